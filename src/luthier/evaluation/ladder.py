"""The ladder: ways to use a base from the cheapest to the dearest, on the same test rows; the cheapest that is enough.

Lives here: what a ladder holds, the rules that choose a learning rate and a rung, `ladder.json`. Does not live here:
the page (`ladder_page.py`), the tests (`report.py`), doing the work (`rungs.py`, `climbing.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from luthier import disk
from luthier.errors import DataError
from luthier.evaluation.metrics import Metric, Prediction, measure
from luthier.evaluation.report import Comparison, Outcome, digits_of, verdict
from luthier.evaluation.words import begun
from luthier.runs import Score

TITLES = {
    "zero-shot": "zero-shot",
    "few-shot": "few-shot",
    "prompt_tuning": "prompt tuning",
    "qlora": "QLoRA",
    "lora": "LoRA",
    "full": "full",
}
"""The rungs from the cheapest to the dearest, with their names for people."""
ORDER = "cheapest first: nothing is trained, then by the number of weights that are trained and kept"

State = Literal["done", "failed", "left out"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The learning rate of a rung: validation loss after `steps` short updates at each of `rates` (None: not finite).

    `losses` is empty where nothing could be tried. `seconds`: of all trials together.
    """

    rates: tuple[float, ...]
    losses: tuple[float | None, ...]
    rate: float
    steps: int
    seconds: float
    remark: str


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to use the base. `seconds` of training (the choice has its own), `parameters` trained, `bytes` kept of
    them, `tokens` of a mean test row: prompt with its examples or virtual tokens, and the reference.

    `against_best`: this rung against the best one on the same rows, under the leading metric.
    """

    name: str
    state: State
    remark: str = ""
    run: str | None = None
    scores: Mapping[str, Score] | None = None
    choice: Choice | None = None
    seconds: float = 0.0
    parameters: int = 0
    bytes: int = 0
    tokens: float = 0.0
    shots: int = 0
    against_best: Comparison | None = None

    @property
    def title(self) -> str:
        return TITLES[self.name]


@dataclass(frozen=True, slots=True)
class Ladder:
    """What `ladder.json` holds. `answer`: the cheapest rung that is not significantly worse than `best`."""

    name: str
    model: str
    dataset: str
    task: str
    metric: str
    n: int
    rungs: tuple[Rung, ...]
    best: str
    answer: str
    sentence: str
    order: str = ORDER
    notes: tuple[str, ...] = ()

    def rung(self, name: str) -> Rung:
        return next(rung for rung in self.rungs if rung.name == name)


# ------------------------------------------------------------------------------------------------------------- choices


def grid(rate: float, factor: float = 3.0) -> tuple[float, ...]:
    """Three rates around one, by a factor, two digits each.

    >>> grid(2e-4)
    (6.7e-05, 0.0002, 0.0006)
    """
    return tuple(float(f"{rate * factor**power:.1e}") for power in (-1, 0, 1))


def best_rate(rates: Sequence[float], losses: Sequence[float | None]) -> tuple[float, str]:
    """The rate with the lowest validation loss (of equals the lowest), and a word where the choice is doubtful.

    >>> best_rate((1e-4, 3e-4, 9e-4), (2.0, 1.0, None))
    (0.0003, '')
    """
    tried = [(loss, rate) for rate, loss in zip(rates, losses, strict=True) if loss is not None and math.isfinite(loss)]
    if not tried:
        return rates[len(rates) // 2], "no trial had a finite validation loss: the rate is the usual one"
    rate = min(tried)[1]
    if rate in (rates[0], rates[-1]):
        end = "lowest" if rate == rates[0] else "highest"
        return rate, f"the {end} rate that was tried won: one beyond it may be better still"
    return rate, ""


def cheapest(order: Sequence[str], best: str, outcomes: Mapping[str, Outcome]) -> str:
    """The first rung of `order` that is the best one or not significantly worse than it.

    >>> cheapest(["zero-shot", "lora", "full"], "full", {"zero-shot": "worse", "lora": "cannot tell"})
    'lora'
    """
    return next(name for name in order if name == best or outcomes[name] != "worse")


# ------------------------------------------------------------------------------------------------------------- verdict


def conclude(
    ladder: Mapping[str, Any],
    rungs: Sequence[Rung],
    answers: Mapping[str, Sequence[Prediction]],
    metrics: Sequence[Metric],
    notes: Sequence[str] = (),
    grouped_by: str | None = None,
) -> Ladder:
    """Score every rung that is done on the rows all of them answered, test each against the best, name the cheapest.

    `ladder`: its name, model, dataset, task. `grouped_by`: the column whose equal values mark rows that share a
    context. Raises DataError where no rung, or no row, can be compared.
    """
    done = [rung.name for rung in rungs if rung.state == "done"]
    if not done:
        raise DataError("no rung came to its end: there is nothing to compare")
    same, notes = _same_rows([answers[name] for name in done], notes)
    rows = dict(zip(done, same, strict=True))
    scores = {name: _scores(rows[name], metrics, grouped_by) for name in done}
    lead = next((metric for metric in metrics if all(metric.name in scores[name] for name in done)), None)
    if lead is None:
        raise DataError("no metric has a value for every rung")
    sign = 1 if lead.higher_is_better else -1
    best = max(done, key=lambda name: sign * scores[name][lead.name].value)  # of equals the first, which is cheaper
    compared = {
        name: verdict(lead, rows[name], rows[best], (TITLES[name], TITLES[best]), grouped_by)
        for name in done
        if name != best
    }
    answer = cheapest(done, best, {name: each.outcome for name, each in compared.items()})
    told = [
        replace(rung, scores=scores[rung.name], against_best=compared.get(rung.name)) if rung.name in scores else rung
        for rung in rungs
    ]
    sentence = _sentence(answer, best, compared, lead)
    return Ladder(
        **ladder, metric=lead.name, n=scores[best][lead.name].n, rungs=tuple(told), best=best, answer=answer,
        sentence=sentence, notes=tuple(notes),
    )  # fmt: skip


def _same_rows(
    answers: Sequence[Sequence[Prediction]], notes: Sequence[str]
) -> tuple[list[list[Prediction]], Sequence[str]]:
    """Of every rung the answers to the rows that all of them answered, in one order."""
    known = [{prediction.id: prediction for prediction in each} for each in answers]
    shared = set.intersection(*(set(each) for each in known))
    if not shared:
        raise DataError("the rungs share no test row")
    order = [row for row in known[0] if row in shared]
    most = max(len(each) for each in known)
    if len(order) < most:
        notes = (*notes, f"{most - len(order):,} of {most:,} rows are too long for a rung, and are left out for all")
    return [[each[row] for row in order] for each in known], notes


def _scores(rows: Sequence[Prediction], metrics: Sequence[Metric], grouped_by: str | None) -> dict[str, Score]:
    measured = {metric.name: measure(metric, rows, grouped_by) for metric in metrics}
    return {name: found.score for name, found in measured.items() if found is not None}


def _sentence(answer: str, best: str, compared: Mapping[str, Comparison], lead: Metric) -> str:
    """`LoRA is enough: …`, `full pays: …`, or of the cheapest, which need be no good: `nothing beats zero-shot: …`."""
    if answer != best:
        found = compared[answer]
        said = f"{TITLES[answer]} is enough: the cheapest rung that is not significantly worse than the best"
        if answer == min(compared, key=list(TITLES).index):
            said = f"nothing is shown to beat {TITLES[answer]}: no other rung is significantly better"
        score = Score(0.0, found.low, found.high, found.n)
        d = digits_of(score, lead.top)
        seen = f"{found.n:,} rows show a difference of {found.smallest:.{d}f} four times in five"
        return f"{said}. {begun(found.sentence)}. {seen}"
    cheaper = [name for name in compared if list(TITLES).index(name) < list(TITLES).index(best)]
    if not compared:
        return f"{TITLES[best]} alone came to its end: there is nothing to compare it with"
    if not cheaper:
        return f"nothing beats {TITLES[best]}: no rung is better than the cheapest"
    nearest = compared[cheaper[-1]]
    return f"{TITLES[best]} pays: every cheaper rung is significantly worse. {begun(nearest.sentence)}"


# ------------------------------------------------------------------------------------------------------------- on disk


def write_json(ladder: Ladder, path: Path) -> None:
    """`ladder.json`: complete or not there."""
    disk.write_whole(path, json.dumps(asdict(ladder), ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path) -> Ladder:
    """A ladder as `write_json` left it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Ladder(**content | {"rungs": tuple(map(_rung, content["rungs"])), "notes": tuple(content["notes"])})


def _rung(content: Mapping[str, Any]) -> Rung:
    values = dict(content)
    if values["scores"] is not None:
        values["scores"] = {name: Score(**score) for name, score in values["scores"].items()}
    values["choice"] = values["choice"] and choice_of(values["choice"])
    values["against_best"] = values["against_best"] and Comparison(**values["against_best"])
    return Rung(**values)


def choice_of(content: Mapping[str, Any]) -> Choice:
    """A choice from its JSON."""
    return Choice(**{**content, "rates": tuple(content["rates"]), "losses": tuple(content["losses"])})
