"""The verdict: both models scored on the same rows, their difference with its certainty, one sentence by fixed rules.

Lives here: `Report`, `verdict`, `report.json`. Does not live here: the page (`report_page.py`), the tests themselves
(`statistics.py`), asking the models (`ask.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from luthier import disk
from luthier.errors import DataError
from luthier.evaluation import statistics
from luthier.evaluation.metrics import Measured, Metric, Prediction, measure, weighted
from luthier.evaluation.predictions import Row, side
from luthier.runs import Score

LEVEL = 0.05  # a difference is said to be there if chance alone would show it in fewer than 5 % of such tests
FEWEST_DISCORDANT = 6  # exact McNemar cannot reach 5 % with fewer rows that differ

Outcome = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems under one metric on the same n rows. `difference` = first - second, with its 95 % interval.

    `fixed` and `broken` count rows only the first, or only the second, has right (None unless rows are right or wrong).
    `smallest` is the difference n rows find four times in five; `rows_needed` the rows this difference would need.
    """

    metric: str
    n: int
    difference: float
    low: float
    high: float
    p: float
    outcome: Outcome
    sentence: str
    smallest: float
    rows_needed: int | None = None
    fixed: int | None = None
    broken: int | None = None
    p_holm: float | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged: names for people. `against` is what the tuned model is compared with."""

    run: str
    name: str
    model: str
    method: str
    dataset: str
    task: str
    against: str = "base"
    split: str = "test"
    rows_in_split: int | None = None
    decoding: str = "greedy"


@dataclass(frozen=True, slots=True)
class Report:
    """Everything `report.json` holds. `verdict` is the sentence of the first metric; `fit` says how the curves went."""

    subject: Subject
    scores: dict[str, Score]
    base_scores: dict[str, Score]
    comparisons: dict[str, Comparison]
    verdict: str
    fit: str | None = None
    notes: tuple[str, ...] = ()
    samples_path: str = "predictions.jsonl"
    rules: dict[str, str] = field(default_factory=dict)


def make(
    subject: Subject, rows: Sequence[Row], metrics: Sequence[Metric], fit: str | None = None, notes: Sequence[str] = ()
) -> Report:
    """Score the sides "tuned" and, where it was asked, "base" of all rows, and compare them."""
    tuned = side(rows, "tuned")
    base = side(rows, "base") if rows and "base" in rows[0].sides else None
    scores: dict[str, Score] = {}
    base_scores: dict[str, Score] = {}
    comparisons: dict[str, Comparison] = {}
    said: list[str] = list(notes)
    for metric in metrics:
        measured = measure(metric, tuned)
        if measured is None:
            said.append(f"{metric.title}: the rows do not have what it needs")
            continue
        scores[metric.name] = measured.score
        if measured.score.n < len(rows):
            said.append(
                f"{metric.title}: {len(rows) - measured.score.n} of {len(rows)} rows have no value and are left out"
            )
        against = measure(metric, base) if base is not None else None
        if against is not None and base is not None:
            base_scores[metric.name] = against.score
            comparisons[metric.name] = verdict(metric, tuned, base, ("tuned", subject.against))
    return Report(
        subject,
        scores,
        base_scores,
        comparisons,
        _headline(metrics, scores, comparisons),
        fit,
        tuple(said),
        rules={metric.name: metric.rule for metric in metrics if metric.name in scores},
    )


def _headline(metrics: Sequence[Metric], scores: Mapping[str, Score], compared: Mapping[str, Comparison]) -> str:
    for metric in metrics:
        if metric.name in compared:
            return compared[metric.name].sentence
        if metric.name in scores:
            return f"{metric.title}: tuned {say(scores[metric.name], metric.top, with_n=True)}"
    return "nothing could be scored"


# ------------------------------------------------------------------------------------------------------- the verdict


def verdict(
    metric: Metric,
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    names: tuple[str, str] = ("tuned", "base"),
) -> Comparison:
    """Compare two systems on the rows both have a value for.

    Rules: p < 0.05 and the difference in the metric's good direction → better; in the other → worse; otherwise cannot
    tell, with the rows it would take. Shares: exact McNemar and Newcombe's interval. Others: permutation and bootstrap.
    """
    pairs = [
        (a, x, b, y)
        for a, x, b, y in zip(first, map(metric.row, first), second, map(metric.row, second), strict=True)
        if x is not None and y is not None
    ]
    if not pairs:
        raise DataError(f"no row has a value of {metric.title} for both {names[0]} and {names[1]}")
    one, other = [a for a, _, _, _ in pairs], [b for _, _, b, _ in pairs]
    values = [x for _, x, _, _ in pairs], [y for _, _, _, y in pairs]
    tested = _shares(metric, values) if metric.kind == "share" else _sampled(metric, one, other, values)
    outcome: Outcome = "cannot tell"
    if tested.p < LEVEL:
        outcome = "better" if (tested.difference > 0) == metric.higher_is_better else "worse"
    measured = measure(metric, one), measure(metric, other)
    sentence = _sentence(metric, names, measured, tested, outcome)
    return Comparison(
        metric.name,
        len(pairs),
        tested.difference,
        tested.low,
        tested.high,
        tested.p,
        outcome,
        sentence,
        tested.smallest,
        tested.rows_needed if outcome == "cannot tell" else None,
        tested.fixed,
        tested.broken,
    )


@dataclass(frozen=True, slots=True)
class _Tested:
    difference: float
    low: float
    high: float
    p: float
    smallest: float
    rows_needed: int | None
    fixed: int | None = None
    broken: int | None = None


def _shares(metric: Metric, values: tuple[list[float], list[float]]) -> _Tested:
    """Rows that are right or wrong: only those that differ say anything."""
    pairs = list(zip(*values, strict=True))
    n = len(pairs)
    fixed, broken = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
    low, high = statistics.share_difference(pairs.count((1.0, 1.0)), fixed, broken, pairs.count((0.0, 0.0)))
    difference, error = (fixed - broken) / n, statistics.share_standard_error(fixed, broken, n)
    smallest = min(1.0, max(statistics.smallest_visible(error), FEWEST_DISCORDANT / n))
    needed = None
    if difference:
        least = math.ceil(FEWEST_DISCORDANT / abs(difference))
        needed = max(n + 1, least, statistics.rows_needed(difference, error, n))
    return _Tested(difference, low, high, statistics.mcnemar(fixed, broken), smallest, needed, fixed, broken)


def _sampled(
    metric: Metric, one: list[Prediction], other: list[Prediction], values: tuple[list[float], list[float]]
) -> _Tested:
    """Any other statistic: rows are drawn again in pairs, and answers change places."""
    n = len(one)
    of = weighted(metric, [*one, *other], [*values[0], *values[1]])
    difference = statistics.paired_difference(of, n)
    low, high, error = statistics.paired_bootstrap(of, n)
    p = statistics.permutation(of, n)
    needed = max(n + 1, statistics.rows_needed(difference, error, n)) if difference and error else None
    return _Tested(difference, low, high, p, statistics.smallest_visible(error), needed)


# ---------------------------------------------------------------------------------------------------------- in words


def _sentence(
    metric: Metric,
    names: tuple[str, str],
    measured: tuple[Measured | None, Measured | None],
    tested: _Tested,
    outcome: Outcome,
) -> str:
    """`exact match: tuned 0.83 (0.78–0.87, n = 300), base 0.01 (0.00–0.03): better on the same rows, p < 0.001`"""
    assert measured[0] is not None and measured[1] is not None
    first, second = measured[0].score, measured[1].score
    digits = min(digits_of(first, metric.top), digits_of(second, metric.top))
    one, other = say(first, metric.top, True, digits), say(second, metric.top, False, digits)
    head = f"{metric.title}: {names[0]} {one}, {names[1]} {other}"
    if outcome != "cannot tell":
        return f"{head}: {outcome} on the same rows, {say_p(tested.p)}"
    if tested.rows_needed is None:
        hidden = f"; one below {tested.smallest:.{digits}f} would stay hidden" if tested.smallest else ""
        return f"{head}: cannot tell, no difference on these rows{hidden}"
    needed = f"about {_round_up(tested.rows_needed):,} rows would be needed"
    return f"{head}: cannot tell on these rows, {say_p(tested.p)}; {needed}"


def say(score: Score, top: float | None, with_n: bool = False, digits: int | None = None) -> str:
    """A score in words, no more digits than its interval supports.

    >>> say(Score(0.8333, 0.787, 0.8714, 300), 1.0, with_n=True)
    '0.83 (0.79–0.87, n = 300)'
    >>> say(Score(0.8942, 0.8829, 0.9046, 3080), 1.0), say(Score(4.127, 3.9, 4.4, 50), None)
    ('0.894 (0.883–0.905)', '4.13 (3.90–4.40)')
    """
    d = digits_of(score, top) if digits is None else digits
    n = f", n = {score.n:,}" if with_n else ""
    return f"{score.value:.{d}f} ({score.low:.{d}f}–{score.high:.{d}f}{n})"


def digits_of(score: Score, top: float | None) -> int:
    """Decimals to show: as many as the interval supports."""
    if top is None:
        size = max(abs(score.value), 1e-9)
        return max(0, 2 - math.floor(math.log10(size))) if math.isfinite(size) else 0
    return (3 if score.high - score.low < 0.03 * top else 2) - round(math.log10(top))


def say_p(p: float) -> str:
    """A p value with two digits.

    >>> say_p(0.0002), say_p(0.0123), say_p(0.4), say_p(1.0)
    ('p < 0.001', 'p = 0.012', 'p = 0.40', 'p = 1.0')
    """
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:#.2g}"


def _round_up(rows: int) -> int:
    """Two digits are all an estimate of rows has."""
    unit = 10 ** max(0, len(str(rows)) - 2)
    return math.ceil(rows / unit) * unit


# ------------------------------------------------------------------------------------------------------------ on disk


def write_json(report: Report, path: Path) -> None:
    """`report.json`: complete or not there."""
    content = json.dumps(asdict(report), ensure_ascii=False, indent=1, default=str)
    disk.write_whole(path, content + "\n")


def read_json(path: Path) -> Report:
    """A report as `write_json` left it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Report(
        Subject(**content["subject"]),
        {name: Score(**score) for name, score in content["scores"].items()},
        {name: Score(**score) for name, score in content["base_scores"].items()},
        {name: Comparison(**compared) for name, compared in content["comparisons"].items()},
        content["verdict"],
        content["fit"],
        tuple(content["notes"]),
        content["samples_path"],
        content["rules"],
    )
