"""The tables of a report's page: classes, slices, forgetting, the judge, the tests behind the verdict.

Lives here: plain values; `tables.html.j2` draws them. Does not live here: rows (`page_rows.py`), where lines lie
(`charts.py`). What other modules put into a report is read from its `asdict`, as report.json holds it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.evaluation import charts, metrics, statistics
from luthier.evaluation.metrics import Metric, Prediction
from luthier.evaluation.report import Comparison, Report, say_p
from luthier.evaluation.words import times

COUNTED_CLASSES = 12  # a larger confusion matrix is a picture: its counts stand in lists
DRAWN_CLASSES = 150  # a still larger one only in lists
PAIRS_SHOWN = 12


# ------------------------------------------------------------------------------------------------------------- classes


@dataclass(frozen=True, slots=True)
class Class:
    """A class: its `rows`, how many of them were found, how often it was answered; recall with its 95 % interval."""

    number: int
    name: str
    rows: int
    found: int
    said: int
    recall: float | None
    low: float
    high: float
    precision: float | None
    f1: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """Classes and who was taken for whom.

    `cells`: for each class (name, [(count, tenths of the row)]), empty where there are too many to count; `picture`
    where they can be drawn; `classes`, hardest first; `pairs`: (class, answered as, times), most frequent first.
    """

    names: tuple[str, ...]
    cells: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]
    picture: charts.Matrix | None
    classes: tuple[Class, ...]
    pairs: tuple[tuple[str, str, int], ...]


def confusion(predictions: Sequence[Prediction]) -> Confusion:
    """Who was taken for whom."""
    names, counts_CC = metrics.confusion(predictions)
    wrong = sorted(
        ((names[a], names[b], int(counts_CC[a, b])) for a, b in np.argwhere(counts_CC > 0) if a != b),
        key=lambda pair: -pair[2],
    )
    cells = tuple(
        (name, tuple((int(k), round(10 * k / max(1, sum(row)))) for k in row))
        for name, row in zip(names, counts_CC.tolist(), strict=True)
    )
    small, drawn = len(names) <= COUNTED_CLASSES, COUNTED_CLASSES < len(names) <= DRAWN_CLASSES
    return Confusion(
        tuple(names),
        cells if small else (),
        charts.matrix(names, counts_CC.tolist()) if drawn else None,
        tuple(sorted(_classes(names, counts_CC), key=lambda each: (each.f1, -each.rows))),
        tuple(wrong[:PAIRS_SHOWN]),
    )


def _classes(names: Sequence[str], counts_CC: np.ndarray) -> list[Class]:
    found = []
    for c, name in enumerate(names):
        rows, said, hits = int(counts_CC[c].sum()), int(counts_CC[:, c].sum()), int(counts_CC[c, c])
        low, high = statistics.wilson(hits, rows) if rows else (0.0, 1.0)
        recall, precision = hits / rows if rows else None, hits / said if said else None
        f1 = 2 * hits / (rows + said) if rows + said else 1.0
        found.append(Class(c + 1, name, rows, hits, said, recall, low, high, precision, f1))
    return found


def reliability(predictions: Sequence[Prediction]) -> charts.Reliability | None:
    """How often the model is right where it is so sure, if it said how sure it is."""
    sure = [
        (p.probabilities.get(p.answer, max(p.probabilities.values())), p.answer.strip() == p.references[0].strip())
        for p in predictions
        if p.probabilities
    ]
    return charts.reliability(sure) if sure else None


# ------------------------------------------------------------------------------------------------------------ intervals


@dataclass(frozen=True, slots=True)
class Gap:
    """A difference of two systems as an interval around zero; places in per cent of the width of its table."""

    name: str
    n: int
    words: str
    at: float
    low: float
    high: float
    zero: float
    tone: str
    p: str
    holm: str
    note: str
    by: str = ""
    tuned: str = ""
    base: str = ""


def tests(report: Report, scored: Sequence[Metric]) -> list[Gap]:
    """Every paired test of a report, each on a scale of its own around zero."""
    compared = report.comparisons
    return [gap(metric, compared[metric.name], metric.title) for metric in scored if metric.name in compared]


def gap(metric: Metric, compared: Comparison, name: str, reach: float | None = None) -> Gap:
    """A comparison as a line of a table. `reach`: the largest difference of the scale, else its own."""
    scale, digits = (100.0, 1) if metric.top == 1.0 else (1.0, 1 if metric.top else 3)
    note: str = compared.outcome
    if compared.outcome == "cannot tell" and compared.rows_needed:
        note += f", about {compared.rows_needed:,} rows would tell"
    tone = {"better": "good", "worse": "bad"}.get(compared.outcome, "dim")
    places = _around_zero((compared.difference, compared.low, compared.high), reach)
    said = _words(compared.difference, compared.low, compared.high, scale, digits)
    holm = "" if compared.p_holm is None else say_p(compared.p_holm)
    return Gap(name, compared.n, said, *places, tone, say_p(compared.p), holm, note)


def _words(difference: float, low: float, high: float, scale: float, digits: int) -> str:
    at, a, b = (f"{scale * x:+.{digits}f}".replace("-", "−") for x in (difference, low, high))
    return f"{at} ({a} to {b})"


def _around_zero(values: tuple[float, float, float], reach: float | None) -> tuple[float, float, float, float]:
    """(difference, low, high, zero) as places on a scale that shows them all and zero."""
    widest = reach or max(abs(x) for x in values) or 1.0
    at, low, high = (charts.share_of(x, -widest, widest) for x in values)
    return at, low, high, 50.0


def slices(found: Sequence[Mapping[str, Any]], lead: Metric) -> list[Gap]:
    """Parts of the rows, grouped by what they have in common: who gained and who lost there, on one scale.

    Where there was no base a part has its score alone.
    """
    scale, digits = (100.0, 1) if lead.top == 1.0 else (1.0, 1 if lead.top else 3)
    reach = max((abs(x) for each in found for x in (each["low"], each["high"]) if x is not None), default=1.0)
    return [_slice(each, lead, reach, scale, digits) for each in found]


def _slice(each: Mapping[str, Any], lead: Metric, reach: float, scale: float, digits: int) -> Gap:
    tuned, base = (_figure(each[who], scale, digits) for who in ("tuned", "base"))
    if each["difference"] is None:
        nowhere = (50.0, 50.0, 50.0, 50.0)
        return Gap(each["name"], each["n"], "", *nowhere, "dim", "", "", "", by=each["by"], tuned=tuned, base=base)
    difference, low, high = each["difference"], each["low"], each["high"]
    tone = "good" if low > 0 else "bad" if high < 0 else "dim"
    if not lead.higher_is_better:
        tone = {"good": "bad", "bad": "good"}.get(tone, tone)
    note = "" if each["fixed"] is None else f"{each['fixed']:,} fixed, {each['broken']:,} broken"
    places = _around_zero((difference, low, high), reach)
    said = _words(difference, low, high, scale, digits)
    return Gap(each["name"], each["n"], said, *places, tone, "", "", note, by=each["by"], tuned=tuned, base=base)


def _figure(score: Any, scale: float, digits: int) -> str:
    """A score, given as a number or with its interval."""
    number = score["value"] if isinstance(score, Mapping) else score
    return "–" if number is None else f"{scale * number:.{digits}f}"


# ------------------------------------------------------------------------------------------ forgetting, judge, openings


@dataclass(frozen=True, slots=True)
class Before:
    """A score before and after on one set of texts; places in per cent of the width."""

    name: str
    n: int
    before: str
    after: str
    ratio: str
    before_at: float
    after_at: float
    tone: str
    sentence: str


def forgetting(found: Sequence[Mapping[str, Any]]) -> list[Before]:
    """What became of texts that have nothing to do with the task. Perplexities share one logarithmic scale.

    With another metric there is no ratio: the interval is that of after - before, on a scale from zero.
    """
    seen = [each[when] for each in found if each["ratio"] is not None for when in ("before", "after")]
    bottom, top = (min(seen) / 1.5, max(seen) * 1.1) if seen else (1.0, 2.0)
    lines = []
    for each in found:
        low, high, ratio = each["low"], each["high"], each["ratio"]
        if ratio is None:
            ends = (0.0, max(1.0, each["before"], each["after"]), False)
            changed = f"{each['after'] - each['before']:+.2f} ({low:+.2f} to {high:+.2f})".replace("-", "−")
            tone = "good" if low > 0 else "bad" if high < 0 else "dim"
        else:
            ends, changed = (bottom, top, True), f"× {times(ratio)} ({times(low)}–{times(high)})"
            tone = "dim" if each.get("strange") else "bad" if low > 1 else "good" if high < 1 else "dim"
        before_at, after_at = (charts.share_of(each[when], *ends) for when in ("before", "after"))
        before, after = (_short(each[when]) for when in ("before", "after"))
        lines.append(
            Before(each["name"], each["n"], before, after, changed, before_at, after_at, tone, each["sentence"])
        )
    return lines


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class JudgeLine:
    """What a judge said: its score as an interval, its bounds if every missing judgement were for or against."""

    words: str
    bounds: str
    at: float
    low: float
    high: float
    bound_low: float | None
    bound_high: float | None
    facts: tuple[tuple[str, str], ...]
    canaries: tuple[tuple[str, bool], ...]
    warning: str


def judged(found: Mapping[str, Any]) -> JudgeLine:
    """The judge's part of a report. Its scale is 0 to 1, or 1 to 5 for a rubric."""
    bottom, top = (1.0, 5.0) if found["mode"] == "rubric" else (0.0, 1.0)

    def at(value: float) -> float:
        return charts.share_of(value, bottom, top)

    has = found["score"] is not None
    words = f"{found['score']:.2f} ({found['low']:.2f}–{found['high']:.2f})" if has else "no judgement could be read"
    bounds = found["bounds"]
    facts = [("model", str(found["model"])), ("mode", str(found["mode"])), ("asked", f"{found['asked']:,} rows")]
    facts.append(("missing", f"{found['missing']:,} judgements could not be read; they count as missing, not as wrong"))
    if found["agreement"] is not None:
        kappa = f"{found['kappa']:.2f} ({found['kappa_low']:.2f}–{found['kappa_high']:.2f})"
        facts.append(("with people", f"agrees with {found['agreement']:.0%} of human labels, κ = {kappa}"))
    if found["tokens"]:
        facts.append(("tokens", _tokens(found["tokens"])))
    unreliable = found["unreliable"]
    warning = unreliable if isinstance(unreliable, str) else "a canary was misjudged" if unreliable else ""
    return JudgeLine(
        words,
        f"between {bounds[0]:.2f} and {bounds[1]:.2f}" if bounds else "",
        at(found["score"]) if has else 0.0,
        at(found["low"]) if has else 0.0,
        at(found["high"]) if has else 0.0,
        at(bounds[0]) if bounds else None,
        at(bounds[1]) if bounds else None,
        tuple(facts),
        tuple((str(name), bool(passed)) for name, passed in found["canaries"]),
        warning,
    )


def _tokens(tokens: Any) -> str:
    if isinstance(tokens, Mapping):
        return ", ".join(f"{count:,} {name}" for name, count in tokens.items())
    if isinstance(tokens, list | tuple):
        return f"{tokens[0]:,} in, {tokens[1]:,} out"
    return f"{tokens:,}"


def openings(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Who opened the test split when: (time in UTC, run, rows)."""
    return [
        (time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(each["time"])), each["run"], f"{each['rows']:,}")
        for each in found
    ]
