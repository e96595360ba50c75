"""What trials of one base share: the base, loaded once, rows as tokens, and being asked for metrics in one pass.

Lives here: `Group`, laying a trial's rows ready, the scores of several slots. Does not live here: which trials train
together and how they end (`riding.py`).
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
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
from luthier.models import base
from luthier.models.methods import Tuned
from luthier.runs import Finding, Run
from luthier.trials import record
from luthier.workbench import Bench

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


def scored(tuned: Tuned, exam: Exam, slots: Sequence[int], go_on: Callable[[], None]) -> list[dict[str, float]]:
    """What each slot's answers to the exam are worth, by metric; all slots are asked together.

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
    values = [{metric.name: _value(metric, answers) for metric in exam.metrics} for answers in told]
    return [{name: value for name, value in each.items() if value is not None} for each in values]


def _value(metric: Metric, told: Sequence[Prediction]) -> float | None:
    """A metric's value as a report has it; its interval is not asked for."""
    usable = [(p, value) for p in told if (value := metric.row(p)) is not None]
    if not usable:
        return None
    of = metrics.weighted(metric, [p for p, _ in usable], [value for _, value in usable])
    found = statistics.value(of, len(usable))
    return float(found) if math.isfinite(found) else None
