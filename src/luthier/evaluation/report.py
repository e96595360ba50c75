"""The verdict: both models scored on the same rows, their difference with its certainty, one sentence by fixed rules.

Lives here: `Report`, `verdict`, `report.json`. Does not live here: the page (`report_page.py`), the tests themselves
(`statistics.py`), numbers in words (`words.py`), asking the models (`ask.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter

from luthier import disk
from luthier.data.openings import Opening
from luthier.errors import DataError
from luthier.evaluation import statistics
from luthier.evaluation.differences import Slice
from luthier.evaluation.forgetting import Forgotten
from luthier.evaluation.metrics import Metric, Prediction, groups_of, measure, weighted
from luthier.evaluation.predictions import Row, side
from luthier.evaluation.seeds import Seeds
from luthier.evaluation.verdicts import Judged
from luthier.evaluation.words import digits_of, round_up, say, say_p
from luthier.runs import Score

LEVEL = 0.05  # a difference is said to be there if chance alone would show it in fewer than 5 % of such tests
FEW_GROUPS = 20  # with fewer, intervals of shares near 0 or 1 may cover less than they say
FEWEST_DISCORDANT = 6  # exact McNemar cannot reach 5 % with fewer rows that differ

Outcome = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems under one metric on the same n rows. `difference` = first - second, with its 95 % interval.

    `fixed` and `broken` count rows only the first, or only the second, has right (None unless rows are right or wrong).
    `smallest` is the difference n rows find four times in five; `rows_needed` the rows this difference would need.
    `p_holm`: where several metrics were tested, p adjusted for that (the metric that leads is first: its p is its own);
    it decides the outcome. `groups`: how many groups the rows are in, where whole groups were drawn and exchanged.
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
    groups: int | None = None


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
    """Everything `report.json` holds. `verdict` is the sentence of the first metric; `fit` says how the curves went.

    `grouped_by`: the column whose rows share a context, if intervals and tests count by it. `openings`: every opening
    of this test split so far, this one last. `seeds`: the same experiment trained with several seeds, if it was.
    """

    subject: Subject
    scores: dict[str, Score]
    base_scores: dict[str, Score]
    comparisons: dict[str, Comparison]
    verdict: str
    fit: str | None = None
    notes: tuple[str, ...] = ()
    samples_path: str = "predictions.jsonl"
    rules: dict[str, str] = field(default_factory=dict)
    grouped_by: str | None = None
    openings: tuple[Opening, ...] = ()
    seeds: tuple[Seeds, ...] = ()
    differences: tuple[Slice, ...] = ()
    forgetting: tuple[Forgotten, ...] = ()
    judge: Judged | None = None


def make(
    subject: Subject,
    rows: Sequence[Row],
    metrics: Sequence[Metric],
    fit: str | None = None,
    notes: Sequence[str] = (),
    grouped_by: str | None = None,
) -> Report:
    """Score the sides "tuned" and, where it was asked, "base" of all rows, and compare them.

    `grouped_by`: the column whose equal values mark rows that share a context. The first metric leads the verdict.
    """
    tuned = side(rows, "tuned")
    base = side(rows, "base") if rows and "base" in rows[0].sides else None
    scores: dict[str, Score] = {}
    base_scores: dict[str, Score] = {}
    said: list[str] = [*notes, *_grouping(tuned, grouped_by)]
    for metric in metrics:
        measured = measure(metric, tuned, grouped_by)
        if measured is None:
            said.append(f"{metric.title}: the rows do not have what it needs")
            continue
        scores[metric.name] = measured.score
        if measured.score.n < len(rows):
            said.append(
                f"{metric.title}: {len(rows) - measured.score.n} of {len(rows)} rows have no value and are left out"
            )
        against = measure(metric, base, grouped_by) if base is not None else None
        if against is not None:
            base_scores[metric.name] = against.score
    both = [metric for metric in metrics if metric.name in base_scores]
    comparisons = verdicts(both, tuned, base, ("tuned", subject.against), grouped_by) if base is not None else {}
    return Report(
        subject,
        scores,
        base_scores,
        comparisons,
        _headline(metrics, scores, comparisons),
        fit,
        tuple(said),
        rules={metric.name: metric.rule for metric in metrics if metric.name in scores},
        grouped_by=grouped_by if groups_of(tuned, grouped_by) is not None else None,
    )


def _grouping(predictions: Sequence[Prediction], grouped_by: str | None) -> list[str]:
    """What a person should know of the groups."""
    if grouped_by is None or not predictions:
        return []
    if any(grouped_by not in p.columns for p in predictions):
        return [f"these rows lack the column `{grouped_by}`: they are counted as independent of each other"]
    groups_N = groups_of(predictions, grouped_by)
    if groups_N is None:
        alone = len({json.dumps(p.columns[grouped_by], default=str) for p in predictions}) == 1 < len(predictions)
        return [f"all rows are of one group (`{grouped_by}`): nothing is said of other groups"] if alone else []
    if (count := int(groups_N.max()) + 1) < FEW_GROUPS:
        return [f"the rows are in {count} groups (`{grouped_by}`): intervals from fewer than {FEW_GROUPS} are rough"]
    return []


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
    grouped_by: str | None = None,
) -> Comparison:
    """Compare two systems under one metric on the rows both have a value for. Raises DataError where there is none.

    Rules: p < 0.05 and the difference in the metric's good direction → better; in the other → worse; otherwise cannot
    tell, with the rows it would take. Shares: exact McNemar and Newcombe's interval. Others: permutation and bootstrap.
    Rows in groups: whole groups change places, and are drawn. docs/concepts/verdict.md has formulas and sources.
    """
    return _concluded(_tested(metric, first, second, names, grouped_by), None)


def verdicts(
    metrics: Sequence[Metric],
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    names: tuple[str, str] = ("tuned", "base"),
    grouped_by: str | None = None,
) -> dict[str, Comparison]:
    """Compare two systems under several metrics, the one that was declared to lead first.

    It is tested alone; the others by Holm's rule, and only where the first shows a difference (`statistics.gatekept`).
    """
    tested = [_tested(metric, first, second, names, grouped_by) for metric in metrics]
    adjusted = statistics.gatekept([each.found.p for each in tested]) if len(tested) > 1 else [None] * len(tested)
    return {each.metric.name: _concluded(each, p) for each, p in zip(tested, adjusted, strict=True)}


@dataclass(frozen=True, slots=True)
class _Found:
    """What interval and test say; `smallest` and `rows_needed` as in `Comparison`."""

    difference: float
    low: float
    high: float
    p: float
    smallest: float
    rows_needed: int | None
    fixed: int | None = None
    broken: int | None = None


@dataclass(frozen=True, slots=True)
class _Tested:
    """What was found on n rows, before the rule is applied. `head`: both scores in words; `digits`: theirs."""

    metric: Metric
    n: int
    groups: int | None
    head: str
    digits: int
    found: _Found


def _tested(
    metric: Metric,
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    names: tuple[str, str],
    grouped_by: str | None,
) -> _Tested:
    pairs = [
        (a, x, b, y)
        for a, x, b, y in zip(first, map(metric.row, first), second, map(metric.row, second), strict=True)
        if x is not None and y is not None
    ]
    if not pairs:
        raise DataError(f"no row has a value of {metric.title} for both {names[0]} and {names[1]}")
    one, other = [a for a, _, _, _ in pairs], [b for _, _, b, _ in pairs]
    values_SN = np.array([[x for _, x, _, _ in pairs], [y for _, _, _, y in pairs]])
    groups_N = groups_of(one, grouped_by)
    groups = None if groups_N is None else int(groups_N.max()) + 1
    if metric.kind == "share":
        found = _shares(values_SN, groups_N)
    else:
        found = _sampled(weighted(metric, [*one, *other], values_SN.ravel().tolist()), len(pairs), groups_N)
    head, digits = _head(metric, names, one, other, grouped_by)
    return _Tested(metric, len(pairs), groups, head, digits, found)


def _shares(values_SN: np.ndarray, groups_N: np.ndarray | None) -> _Found:
    """Two systems (S) on rows that are right or wrong: only rows that differ say anything."""
    n, off_N = values_SN.shape[1], values_SN[0] - values_SN[1]
    fixed, broken, both = int((off_N > 0).sum()), int((off_N < 0).sum()), int(values_SN.prod(axis=0).sum())
    difference, error = (fixed - broken) / n, statistics.share_standard_error(fixed, broken, n)
    if groups_N is None:
        independent = 1.0  # the part of the rows that counts as independent
        p, rows_for, step = statistics.mcnemar(fixed, broken), statistics.pairs_needed, 1 / n
    else:
        independent = statistics.effective_rows(off_N, groups_N) / n
        p = statistics.permutation(statistics.mean_of(values_SN.ravel()), n, groups_N=groups_N)
        error, rows_for, step = error / math.sqrt(independent), statistics.rows_needed, 0.0
    table = (independent * count for count in (both, fixed, broken, n - both - fixed - broken))
    low, high = statistics.share_difference(*table)
    smallest = min(1.0, max(statistics.smallest_visible(error, step), FEWEST_DISCORDANT / n))
    needed = None
    if difference:
        least = math.ceil(FEWEST_DISCORDANT / abs(difference))
        needed = max(n + 1, least, rows_for(difference, error, n))
    return _Found(difference, low, high, p, smallest, needed, fixed, broken)


def _sampled(of: statistics.Weighted, n: int, groups_N: np.ndarray | None) -> _Found:
    """Any other statistic: rows, or groups, are drawn again in pairs, and answers change places."""
    difference = statistics.paired_difference(of, n)
    low, high, error = statistics.paired_bootstrap(of, n, groups_N=groups_N)
    p = statistics.permutation(of, n, groups_N=groups_N)
    needed = max(n + 1, statistics.rows_needed(difference, error, n)) if difference and error else None
    return _Found(difference, low, high, p, statistics.smallest_visible(error), needed)


def _concluded(tested: _Tested, p_holm: float | None) -> Comparison:
    """The rule: which outcome the p value, adjusted where several metrics were tested, and the direction have."""
    found = tested.found
    p = found.p if p_holm is None else p_holm
    outcome: Outcome = "cannot tell"
    if p < LEVEL:
        outcome = "better" if (found.difference > 0) == tested.metric.higher_is_better else "worse"
    return Comparison(
        tested.metric.name,
        tested.n,
        found.difference,
        found.low,
        found.high,
        found.p,
        outcome,
        _sentence(tested, p, outcome),
        found.smallest,
        found.rows_needed if found.p >= LEVEL else None,
        found.fixed,
        found.broken,
        p_holm,
        tested.groups,
    )


# ---------------------------------------------------------------------------------------------------------- in words


def _head(
    metric: Metric,
    names: tuple[str, str],
    one: list[Prediction],
    other: list[Prediction],
    grouped_by: str | None,
) -> tuple[str, int]:
    """`exact match: tuned 0.83 (0.78–0.87, n = 300), base 0.01 (0.00–0.03)` and the digits it shows."""
    ours, theirs = measure(metric, one, grouped_by), measure(metric, other, grouped_by)
    assert ours is not None and theirs is not None
    digits = min(digits_of(ours.score, metric.top), digits_of(theirs.score, metric.top))
    first, second = say(ours.score, metric.top, True, digits), say(theirs.score, metric.top, False, digits)
    return f"{metric.title}: {names[0]} {first}, {names[1]} {second}", digits


def _sentence(tested: _Tested, p: float, outcome: Outcome) -> str:
    """The head and `: better on the same rows, p < 0.001`; `p` is the one that decides."""
    found, head = tested.found, tested.head
    if outcome != "cannot tell":
        return f"{head}: {outcome} on the same rows, {say_p(p)}" + (" (Holm)" if p > found.p else "")
    if found.p < LEVEL:
        return f"{head}: cannot tell, {say_p(found.p)} alone, but {say_p(p)} beside the metrics tested with it"
    if found.rows_needed is None:
        hidden = f"; one below {found.smallest:.{tested.digits}f} would stay hidden" if found.smallest else ""
        return f"{head}: cannot tell, no difference on these rows{hidden}"
    needed = f"about {round_up(found.rows_needed):,} rows"
    if tested.groups is not None:
        needed += f" in {round_up(math.ceil(found.rows_needed * tested.groups / tested.n)):,} such groups"
    return f"{head}: cannot tell on these rows, {say_p(found.p)}; {needed} would be needed"


# ------------------------------------------------------------------------------------------------------------ on disk


def write_json(report: Report, path: Path) -> None:
    """`report.json`: complete or not there."""
    content = json.dumps(asdict(report), ensure_ascii=False, indent=1, default=str)
    disk.write_whole(path, content + "\n")


def read_json(path: Path) -> Report:
    """A report as `write_json` left it; what an older one did not know has its default."""
    return TypeAdapter(Report).validate_python(json.loads(path.read_text(encoding="utf-8")))
