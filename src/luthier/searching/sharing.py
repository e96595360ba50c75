"""What trials of one base share: the base, loaded once, rows as tokens, and being asked for metrics in one pass.

Lives here: `Group`, laying a trial's rows ready, the answers of several slots. Does not live here: which trials train
together and how they end (`riding.py`).
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from luthier import assessment, spec, workbench
from luthier.assessment import TOGETHER, Exam
from luthier.data import rows
from luthier.data.examples import Encoded, content_id
from luthier.data.ordering import by_content
from luthier.errors import TrainingError
from luthier.evaluation import ask, metrics, predictions, statistics
from luthier.evaluation.metrics import Metric, Prediction
from luthier.evaluation.statistics import Weighted
from luthier.models import base
from luthier.models.methods import Tuned
from luthier.runs import Finding, Run
from luthier.trials import record
from luthier.workbench import Bench

MOST_ROWS = 2000  # of a metric of all rows together: what each was worth costs a value for each
AT_A_TIME = 100  # rows left out, one by one
_RENDERING = ("model.", "task", "data.", "evaluation.", "method.type", "method.virtual_tokens")


def measured(objective: str) -> tuple[str, ...]:
    """Which of a search's objectives are metrics of answers, to be measured on validation rows."""
    return tuple(name for name in record.objectives(objective) if name not in ("loss", record.SIZE))


@dataclass(frozen=True, slots=True)
class Laid:
    """A trial's rows as tokens, what the gate finds in them and in the test rows, and the validation rows that are
    asked for metrics (None: only the loss is wanted). The bench's base has no network: a group has one, and lends it.
    """

    bench: Bench
    findings: tuple[Finding, ...]
    exam: Exam | None


class Group:
    """What trials of one base share: the base, loaded once, and rows as tokens, once for each way of rendering them."""

    def __init__(self, first: Run, wanted: Sequence[str]) -> None:
        experiment = workbench.experiment_of(first)
        self.model, self._wanted, self._laid = experiment.model, wanted, dict[str, Laid]()
        self._load = lambda: base.load(self.model, experiment.method, workbench.dataset_of(first).labels)
        self.base, self._lent = self._load(), False

    def lend(self) -> base.Base:
        """The base as it was loaded: what hung on it, or changed it, is not there."""
        if self._lent:
            del self.base
            gc.collect()  # modules hold each other
            self.base = self._load()
        self._lent = True
        return self.base

    def laid(self, run: Run) -> Laid:
        """A trial's rows. Raises what `workbench.of_run` does, and TrainingError for a trial of another base."""
        experiment = workbench.experiment_of(run)
        if experiment.model != self.model:
            raise TrainingError(f"this trial is of another base than those beside it: {experiment.model.name}")
        told = {path: value for path, value in spec.leaves(experiment).items() if path.startswith(_RENDERING)}
        told["training.max_seq_length"] = experiment.training.max_seq_length
        told["seed"] = experiment.seed if experiment.evaluation.temperature else None  # it draws answers
        key = content_id([told, run.facts["revision"], run.facts["dataset"], run.facts["drawn_by"]])
        if key not in self._laid:
            self._laid[key] = self._lay(run)
        found = self._laid[key]
        return replace(found, bench=replace(found.bench, experiment=experiment))

    def _lay(self, run: Run) -> Laid:
        bench = workbench.of_run(run, loaded=self.base)
        for other in self._laid.values():
            if _same(other.bench.validation, bench.validation):  # one pass evaluates all whose rows are these
                bench = replace(bench, validation=other.bench.validation)
        drawn_by = run.facts["drawn_by"]
        longest, words = int(rows.trained(bench.train).max()), bench.base.tokenizer
        test = assessment.exam(bench.experiment, bench.dataset, words, bench.rules, longest, drawn_by)
        findings = (*bench.findings, *assessment.findings_of(test, bench.experiment, bench.base))
        exam = self._exam(bench, longest, drawn_by)
        return Laid(replace(bench, base=replace(bench.base, model=None)), findings, exam)

    def _exam(self, bench: Bench, longest: int, drawn_by: int) -> Exam | None:
        """The validation rows as the test rows will be asked: by the same rules, in the same way, as many at most."""
        examples = bench.dataset.examples("validation") if self._wanted else []
        if not examples:
            return None
        given = bench.experiment
        wishes = given.evaluation.model_copy(update={"metrics": tuple(self._wanted), "slices": {}})
        like = given.model_copy(update={"evaluation": wishes})
        asked = (examples, "validation", (), drawn_by)
        exam = assessment.exam_on(like, asked, bench.dataset, bench.base.tokenizer, bench.rules, longest)
        only_likelihood = all(metric.name == "perplexity" for metric in exam.metrics)
        return replace(exam, how=replace(exam.how, generate=exam.how.generate and not only_likelihood))


def _same(one: Sequence[Encoded], other: Sequence[Encoded]) -> bool:
    """Whether two splits hold the same rows, token by token."""
    return len(one) == len(other) and all(
        a.example_id == b.example_id and np.array_equal(a.ids_L, b.ids_L) and np.array_equal(a.train_L, b.train_L)
        for a, b in zip(one, other, strict=True)
    )


def answered(tuned: Tuned, exam: Exam, slots: Sequence[int], go_on: Callable[[], None]) -> list[Answers]:
    """Each slot's answers to the exam; all slots are asked together.

    `go_on` is called between two chunks of rows and may raise.
    """
    near = [exam.questions[i] for i in by_content([question.encoded for question in exam.questions])]
    answering = ask.by_models(tuned, slots, exam.rules, exam.how)
    told: list[list[Prediction]] = [[] for _ in slots]
    for start in range(0, len(near), TOGETHER):
        go_on()
        some = near[start : start + TOGETHER]
        for into, said in zip(told, answering(some), strict=True):
            into += [predictions.given(question, answer) for question, answer in zip(some, said, strict=True)]
    return [Answers(exam.metrics, each) for each in told]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a slot answered, and the metrics it is measured by."""

    metrics: Sequence[Metric]
    told: Sequence[Prediction]

    def scores(self) -> dict[str, float]:
        """The metrics' values as a report has them, of those that the rows have; their intervals are not asked for."""
        values = {metric.name: statistics.value(of, len(of_rows)) for metric, of_rows, of in self._measured()}
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def parts(self) -> dict[str, dict[str, float]]:
        """By metric each row's part, whose mean over the rows is the score: its own value, or, where the metric is one
        of all rows together, by the jackknife (and none of more than `MOST_ROWS`)."""
        found: dict[str, dict[str, float]] = {}
        for metric, of_rows, of in self._measured():
            if metric.whole is None:
                found[metric.name] = dict(of_rows)
            elif 2 <= len(of_rows) <= MOST_ROWS:
                parts_N = parts_of(of, len(of_rows))
                if np.isfinite(parts_N).all():
                    found[metric.name] = dict(zip(of_rows, map(float, parts_N), strict=True))
        return found

    def _measured(self) -> Iterator[tuple[Metric, dict[str, float], Weighted]]:
        """(metric, its value of each row that has one, the metric as a function of those rows' weights)."""
        for metric in self.metrics:
            usable = [(p, float(value)) for p in self.told if (value := metric.row(p)) is not None]
            if usable:
                of = metrics.weighted(metric, [p for p, _ in usable], [value for _, value in usable])
                yield metric, {p.id: value for p, value in usable}, of


def parts_of(of: Weighted, n: int) -> np.ndarray:
    """parts_N whose mean is the statistic and whose spread its noise: pseudo-values of the jackknife that leaves out
    one row at a time (Tukey 1958), moved by its bias so that their mean is the statistic itself. A resample's statistic
    is the mean of its rows' parts, but for what is not linear."""
    without_N = np.concatenate([of(1.0 - np.eye(n)[start : start + AT_A_TIME]) for start in range(0, n, AT_A_TIME)])
    return statistics.value(of, n) - (n - 1) * (without_N - without_N.mean())
