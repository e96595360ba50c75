"""ladder.html: the answer, the rungs as a table, and their quality against what they cost. One file, no script.

Lives here: what the page says, as plain values; `ladder.html.j2` draws it, escaping every text. Does not live here: the
answer itself (`ladder.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier import sheet
from luthier.evaluation import charts, metrics
from luthier.evaluation.ladder import Choice, Ladder, Rung
from luthier.evaluation.report import digits_of, say, say_p
from luthier.evaluation.words import begun

WIDTH, HEIGHT = 352.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 14.0, 14.0, 44.0
_NOTHING = 26.0  # beside the axis: the place of what costs nothing, which a logarithm does not have
_DOT = 9.0
_SECONDS = {f"{n} {unit}": n * size for unit, size in (("s", 1), ("min", 60), ("h", 3600)) for n in (1, 3, 10, 30)}
_UNITS = ("B", "kB", "MB", "GB")
_BYTES = {f"{10**k} {unit}": 10**k * 1000**power for power, unit in enumerate(_UNITS) for k in range(3)}
_TOKENS = {f"{m * 10**k:,}": m * 10**k for k in range(7) for m in (1, 2, 5)}


def render(ladder: Ladder) -> str:
    """The page as text."""
    metric = metrics.by_name([ladder.metric])[0]
    title, top = metric.title, metric.top
    answer, _, reason = ladder.sentence.partition(": ")
    numbered = dict(enumerate((rung for rung in ladder.rungs if rung.state == "done"), 1))
    values = {
        "lad": ladder,
        "title": title,
        "heading": begun(title),
        "tone": "open" if ladder.answer == numbered[1].name else "good",
        "answer": begun(answer),
        "reason": begun(reason.strip()),
        "lines": [_line(rung, _number(rung, numbered), ladder, top) for rung in ladder.rungs],
        "panels": _panels(numbered, ladder),
        "others": _others(ladder),
        "choices": [
            (rung.title, _trials(each), each, duration(each.seconds)) for rung in ladder.rungs if (each := rung.choice)
        ],
        "lower": not metric.higher_is_better,
    }
    return sheet.render("evaluation/ladder.html.j2", values, "evaluation/ladder.css")


def _number(rung: Rung, numbered: Mapping[int, Rung]) -> int | None:
    return next((number for number, other in numbered.items() if other.name == rung.name), None)


# ----------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True)
class Line:
    """A rung in the table; every figure in words, empty where there is none. `tone`: answer, worse or plain."""

    number: int | None
    title: str
    tone: str
    score: str
    against: str
    training: str
    size: str
    parameters: str
    tokens: str
    remark: str


def table(ladder: Ladder) -> list[Line]:
    """The rungs in words, for any screen."""
    metric = metrics.by_name([ladder.metric])[0]
    return [_line(rung, None, ladder, metric.top) for rung in ladder.rungs]


def _line(rung: Rung, number: int | None, ladder: Ladder, top: float | None) -> Line:
    remark = rung.remark if rung.state == "done" else f"{rung.state}: {rung.remark}"
    if rung.state != "done" or not rung.scores:
        return Line(None, rung.title, "missing", "", "", "", "", "", "", remark)
    digits = max(digits_of(other.scores[ladder.metric], top) for other in ladder.rungs if other.scores)
    against = _against(rung, ladder)
    tone = "answer" if rung.name == ladder.answer else "worse" if "worse" in against else "plain"
    trained = rung.run is not None
    return Line(
        number,
        rung.title,
        tone,
        say(rung.scores[ladder.metric], top, digits=digits),
        against,
        duration(rung.seconds) if trained else "none",
        weight(rung.bytes) if trained else "nothing",
        f"{rung.parameters:,}" if trained else "",
        f"{rung.tokens:,.0f}",
        remark,
    )


def _against(rung: Rung, ladder: Ladder) -> str:
    if rung.name == ladder.best:
        return "the best"
    found = rung.against_best
    if found is None:
        return ""
    return f"{'worse' if found.outcome == 'worse' else 'not significantly worse'}, {say_p(found.p)}"


def duration(seconds: float) -> str:
    """A time as people read it.

    >>> duration(3.21), duration(48), duration(312), duration(7300)
    ('3.2 s', '48 s', '5 min 12 s', '2 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def weight(count: int) -> str:
    """Bytes as people read them.

    >>> weight(950), weight(43_000), weight(2_600_000)
    ('950 B', '43.0 kB', '2.6 MB')
    """
    power = min(len(_UNITS) - 1, max(0, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:.1f} {_UNITS[power]}" if power else f"{count} B"


def _others(ladder: Ladder) -> list[tuple[str, list[str]]]:
    """The other metrics: title, and a cell for each rung."""
    names = dict.fromkeys(name for rung in ladder.rungs for name in rung.scores or {} if name != ladder.metric)
    rows = []
    for name in names:
        metric = metrics.by_name([name])[0]
        found = [(rung.scores or {}).get(name) for rung in ladder.rungs]
        cells = ["" if score is None else say(score, metric.top) for score in found]
        rows.append((metric.title, cells))
    return rows


def _trials(choice: Choice) -> list[tuple[str, str, bool]]:
    """Rate, validation loss, whether it was taken."""
    return [
        (f"{rate:.2g}", "not finite" if loss is None else f"{loss:.4g}", rate == choice.rate)
        for rate, loss in zip(choice.rates, choice.losses, strict=False)
    ]


# --------------------------------------------------------------------------------------------------------- the picture


@dataclass(frozen=True, slots=True)
class Dot:
    """A rung in a panel: place, the ends of its interval, what it says."""

    number: int
    tone: str
    x: float
    y: float
    low: float
    high: float
    words: str


@dataclass(frozen=True, slots=True)
class Panel:
    """Quality against one cost: a drawing of WIDTH x HEIGHT."""

    title: str
    label: str
    dots: tuple[Dot, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def _panels(rungs: Mapping[int, Rung], ladder: Ladder) -> list[Panel]:
    costs: tuple[tuple[str, Callable[[Rung], float], Mapping[str, float], Callable[[float], str]], ...] = (
        ("training time, learning-rate choice included", _training, _SECONDS, duration),
        ("what is kept", lambda rung: float(rung.bytes), _BYTES, lambda value: weight(round(value))),
        ("tokens a row, answer included", lambda rung: rung.tokens, _TOKENS, lambda value: f"{value:,.0f} tokens"),
    )
    scores = [rung.scores[ladder.metric] for rung in rungs.values() if rung.scores]
    marks = charts.ticks(min(score.low for score in scores), max(score.high for score in scores), 5)
    y = _line_from(marks[0], marks[-1], HEIGHT - _BOTTOM, _TOP)
    found = []
    for title, cost, names, said in costs:
        place, ticks = _across([cost(rung) for rung in rungs.values()], names)
        dots = [
            _dot(number, rung, ladder, (place(cost(rung)), y), said(cost(rung)) if cost(rung) else "nothing")
            for number, rung in rungs.items()
        ]
        words = f"quality against {title}: " + "; ".join(dot.words for dot in dots)
        found.append(Panel(title, words, tuple(_apart(dots)), ticks, tuple((y(m), f"{m:g}") for m in marks)))
    return found


def _training(rung: Rung) -> float:
    return rung.seconds + (rung.choice.seconds if rung.choice else 0.0)


def _dot(number: int, rung: Rung, ladder: Ladder, at: tuple[float, Any], cost: str) -> Dot:
    x, y = at
    score = (rung.scores or {})[ladder.metric]
    tone = "answer" if rung.name == ladder.answer else "best" if rung.name == ladder.best else "plain"
    words = f"{rung.title} {score.value:.3g} ({score.low:.3g} to {score.high:.3g}), {cost}"
    return Dot(number, tone, x, y(score.value), y(score.low), y(score.high), words)


def _apart(dots: Sequence[Dot]) -> list[Dot]:
    """Dots of one place stand side by side, so that every interval is seen."""
    placed: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.x, dot.number)):
        x = max([dot.x, *(other.x + 2 * _DOT + 2 for other in placed if dot.x - other.x < 2 * _DOT + 2)])
        placed.append(Dot(dot.number, dot.tone, round(x, 1), dot.y, dot.low, dot.high, dot.words))
    over = max(0.0, placed[-1].x - (WIDTH - _RIGHT - _DOT)) if placed else 0.0
    return [Dot(d.number, d.tone, round(d.x - over, 1), d.y, d.low, d.high, d.words) for d in placed]


def _across(
    values: Sequence[float], names: Mapping[str, float]
) -> tuple[Callable[[float], float], tuple[tuple[float, str], ...]]:
    """A logarithmic axis with named marks; what costs nothing has a place of its own at the left."""
    some = [value for value in values if value > 0]
    left = _LEFT + (2 * _NOTHING if len(some) < len(values) else 0.0) + _DOT + 4
    low, high = (min(some) / 1.3, max(some) * 1.3) if some else (1.0, 10.0)
    inner = _line_from(math.log(low), math.log(high), left, WIDTH - _RIGHT - _DOT - 4)
    marks = [(inner(math.log(value)), name) for name, value in names.items() if low <= value <= high]
    if not marks and some:  # a range between two marks: its ends say where it lies
        marks = [(inner(math.log(value)), _near(value, names)) for value in sorted({min(some), max(some)})]
    nothing = [(_LEFT + _NOTHING / 2 + _DOT, "none")] if len(some) < len(values) else []
    return (lambda value: inner(math.log(value)) if value > 0 else _LEFT + _DOT + 4), (*nothing, *_spaced(marks))


def _near(value: float, names: Mapping[str, float]) -> str:
    if names is _SECONDS:
        return duration(value)
    return weight(round(value)) if names is _BYTES else f"{value:,.0f}"


def _spaced(marks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Marks whose words do not touch."""
    kept: list[tuple[float, str]] = []
    for x, name in marks:
        if not kept or x - kept[-1][0] > 44:
            kept.append((x, name))
    return kept


def _line_from(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    slope = (stop - start) / ((high - low) or 1.0)
    return lambda value: round(start + (value - low) * slope, 1)
