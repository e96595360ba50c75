"""What a metric is, and how a set of answers is measured by it: a value per row, one Score with its 95 % interval.

Lives here: `Prediction`, `Metric`, `measure`, and a plain Python function as a metric. Does not live here: which
metrics there are (`metrics.py`), how intervals are made (`statistics.py`).
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from luthier.errors import DataError, SpecError
from luthier.evaluation import statistics
from luthier.evaluation.statistics import Weighted
from luthier.runs import Score


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row as one model answered it. The first of `references` is the one that is shown; any of them is right.

    `probabilities` by class name, empty where there are no classes. `nll` is the negative log-likelihood (nats) of the
    reference's `tokens` tokens given the prompt, None where it was not computed. `columns` are the row's own columns.
    `judged`: what a judge's verdict is worth, None without one; `rationale`: its words.
    """

    id: str
    where: str
    prompt: str
    references: tuple[str, ...]
    answer: str
    stopped: bool = True
    probabilities: Mapping[str, float] = field(default_factory=dict)
    nll: float | None = None
    tokens: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)
    judged: float | None = None
    rationale: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """A name and what it means.

    kind "share": rows are right (1) or wrong (0); Wilson and McNemar. "mean": the mean of the rows; bootstrap and
    permutation. "whole": `whole` makes a function of row weights from all rows; the same tests, `row` is for reading.
    `row` gives None where the metric has no meaning for the row, which then does not count in n.
    """

    name: str
    title: str
    kind: Literal["share", "mean", "whole"]
    row: Callable[[Prediction], float | None]
    whole: Callable[[Sequence[Prediction]], Weighted] | None = None
    higher_is_better: bool = True
    top: float | None = 1.0  # the scale's upper end, None if it has none
    rule: str = ""  # what counts, in words
    source: str = ""  # where the definition is from


@dataclass(frozen=True, slots=True)
class Family:
    """Metrics that are told something after a colon: `name:ARGUMENT`. `make` gives one; `rule` says what it counts."""

    name: str
    argument: str
    make: Callable[[str], Metric]
    rule: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric over a set of predictions; `rows` stand in the order of the predictions."""

    score: Score
    rows: tuple[float | None, ...]


def measure(metric: Metric, predictions: Sequence[Prediction], grouped_by: str | None = None) -> Measured | None:
    """The score with its interval, or None if the rows do not have what the metric needs.

    `grouped_by`: the column whose equal values mark rows that share a context; the interval then counts groups.
    """
    rows = tuple(metric.row(prediction) for prediction in predictions)
    usable = [(p, v) for p, v in zip(predictions, rows, strict=True) if v is not None]
    if not usable:
        return None
    n = len(usable)
    of = weighted(metric, [p for p, _ in usable], [v for _, v in usable])
    value = statistics.value(of, n)
    if not np.isfinite(value):
        return None
    groups_N = groups_of([p for p, _ in usable], grouped_by)
    if metric.kind == "share":
        low, high = statistics.share_interval(np.array([v for _, v in usable]), groups_N)
    else:
        low, high = statistics.bootstrap(of, n, groups_N=groups_N)
    groups = None if groups_N is None else int(groups_N.max()) + 1
    return Measured(Score(value, min(low, value), max(high, value), n, groups), rows)


def groups_of(predictions: Sequence[Prediction], grouped_by: str | None) -> np.ndarray | None:
    """groups_N: each row's group by its column `grouped_by`; None without one, or where it makes no groups of rows."""
    if grouped_by is None or any(grouped_by not in p.columns for p in predictions):
        return None
    cells = (p.columns[grouped_by] for p in predictions)
    return statistics.number_groups([json.dumps(cell, sort_keys=True, default=str) for cell in cells])


def weighted(metric: Metric, predictions: Sequence[Prediction], rows: Sequence[float]) -> Weighted:
    """The metric as a function of row weights."""
    return statistics.mean_of(rows) if metric.whole is None else metric.whole(predictions)


def from_function(function: Callable[..., Any], name: str | None = None) -> Metric:
    """A metric from `function(answer, reference, columns)`, which returns a number, or None where it has no meaning.

    A function annotated `-> bool` says right or wrong; anything else is averaged. Of several references the best
    counts. Raises SpecError for a function without a name; the metric raises DataError for what is no number.
    """
    if name is None:
        if not inspect.isroutine(function):
            raise SpecError(
                "a metric needs a name", hint="write it as a function: `def NAME(answer, reference, columns)`"
            )
        name = function.__name__
    right_or_wrong = inspect.get_annotations(function).get("return") in (bool, "bool")

    def row(p: Prediction) -> float | None:
        try:
            values = [function(p.answer, reference, dict(p.columns)) for reference in p.references]
            known = [float(value) for value in values if value is not None]
        except Exception as error:
            raise DataError(f"metric `{name}` failed: {type(error).__name__}: {error}", where=p.where) from error
        for value in known:
            if not math.isfinite(value) or (right_or_wrong and value not in (0, 1)):
                wanted = "True or False" if right_or_wrong else "a finite number, or None"
                raise DataError(f"metric `{name}` gave {value:g}, not {wanted}", where=p.where)
        return max(known) if known else None

    return Metric(name, name.replace("_", " "), "share" if right_or_wrong else "mean", row, top=None)
