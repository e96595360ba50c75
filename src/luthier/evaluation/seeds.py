"""The same experiment trained with several seeds: how much of a difference is the seed's luck, how much the rows'.

Lives here: from the answers of several runs to one sentence. Does not live here: the arithmetic (`statistics.py`),
training them (`studio.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from luthier.evaluation import statistics
from luthier.evaluation.metrics import Metric, Prediction, groups_of, measure, weighted
from luthier.evaluation.words import digits_of, say
from luthier.runs import Score


@dataclass(frozen=True, slots=True)
class Seeds:
    """S runs of one experiment under one metric on the same n rows (in `groups`, if rows share contexts).

    `mean`: of the runs' scores, its 95 % interval over seeds and rows. `spread`: standard deviation of the scores as
    seen; `seed_sd`: what of it is the seeds' doing; `row_error`: standard error of the mean from the rows. `difference`
    to what they are compared with, with the interval that holds for another seed and other rows; None without a base,
    the interval also where no row differs.
    """

    metric: str
    runs: tuple[str, ...]
    scores: tuple[float, ...]
    n: int
    mean: Score
    spread: float
    seed_sd: float
    row_error: float
    outcome: Literal["better", "worse", "cannot tell"]
    sentence: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def compare(
    metric: Metric,
    runs: Sequence[str],
    tuned: Sequence[Sequence[Prediction]],
    base: Sequence[Sequence[Prediction]] | None,
    against: str = "base",
    grouped_by: str | None = None,
) -> Seeds | None:
    """What S runs say together: `tuned` and `base` hold each run's answers to the same rows, in the same order.

    Rows that lack a value in any run are left out; None where no two are left. Outcome: better or worse where the whole
    interval of the difference lies on one side of 0, cannot tell otherwise.
    """
    sides = [*tuned, *(base or ())]
    values_SN = [[metric.row(p) for p in side] for side in sides]
    usable = [k for k in range(len(tuned[0])) if all(row[k] is not None for row in values_SN)]
    if len(usable) < 2:
        return None
    groups_N = groups_of([tuned[0][k] for k in usable], grouped_by)
    kept = [[side[k] for k in usable] for side in sides]
    worth = [[row[k] or 0.0 for k in usable] for row in values_SN]
    measured = [weighted(metric, p, v) for p, v in zip(kept, worth, strict=True)]
    scores = [statistics.value(of, len(usable)) for of in measured[: len(tuned)]]
    units = np.stack([statistics.pseudo_values(of, len(usable), groups_N) for of in measured])
    own = statistics.seed_noise(units[: len(tuned)])
    groups = None if groups_N is None else int(groups_N.max()) + 1
    mean = Score(float(np.mean(scores)), *_bounds(metric, own, kept[: len(tuned)], grouped_by), len(usable), groups)
    apart = statistics.seed_noise(units[: len(tuned)] - units[len(tuned) :]) if base else None
    outcome = _outcome(apart, metric.higher_is_better)
    return Seeds(
        metric.name,
        tuple(runs),
        tuple(scores),
        len(usable),
        mean,
        own.spread,
        own.seed_sd,
        own.row_error,
        outcome,
        _sentence(metric, mean, (len(runs), own, apart), outcome, against),
        apart.mean if apart else None,
        *((apart.low, apart.high) if apart and (apart.low or apart.high) else (None, None)),
    )


def _bounds(
    metric: Metric, own: statistics.Noise, sides: Sequence[Sequence[Prediction]], grouped_by: str | None
) -> tuple[float, float]:
    """The mean's interval, never narrower than the runs' own are on the average: scores of 0 are no certainty of 0."""
    alone = [found.score for side in sides if (found := measure(metric, side, grouped_by)) is not None]
    low = min([own.low, *([float(np.mean([score.low for score in alone]))] if alone else [])])
    high = max([own.high, *([float(np.mean([score.high for score in alone]))] if alone else [])])
    return (max(0.0, low), min(1.0, high)) if metric.kind == "share" else (low, high)


def _outcome(apart: statistics.Noise | None, higher_is_better: bool) -> Literal["better", "worse", "cannot tell"]:
    if apart is None or apart.low <= 0 <= apart.high:
        return "cannot tell"
    return "better" if (apart.low > 0) == higher_is_better else "worse"


def _sentence(
    metric: Metric,
    mean: Score,
    noise: tuple[int, statistics.Noise, statistics.Noise | None],
    outcome: str,
    against: str,
) -> str:
    """`exact match over 3 seeds: 0.81 (0.74–0.88, n = 300), SD between seeds 0.012 (0.004 …), …: better …`"""
    count, own, apart = noise
    d = digits_of(mean, metric.top)
    head = f"{metric.title} over {count} seeds: {say(mean, metric.top, with_n=True)}; seeds alone vary it by "
    head += f"{own.seed_sd:.{d + 1}f} (SD), the rows by {own.row_error:.{d + 1}f} (standard error)"
    if apart is None:
        return head
    if apart.low == apart.high == 0:
        return f"{head}; no row differs from {against}: cannot tell"
    head += f"; {apart.mean:+.{d}f} ({apart.low:+.{d}f} to {apart.high:+.{d}f}) over {against}: "
    return head + (f"{outcome}, whatever the seed and the rows" if outcome != "cannot tell" else "cannot tell")
