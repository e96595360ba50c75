"""Where things lie in the pictures of reports: numbers only; the templates draw them as SVG.

Does not live here: words and colours (`report_page.py`, `report.html.j2`), what curves mean (`curves.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluation.curves import Curve, smoothed, turned
from luthier.evaluation.statistics import wilson

WIDTH, HEIGHT = 1060.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 16.0, 26.0, 28.0
_MOST_POINTS = 400  # of the training line: more cannot be seen
_MOST_DOTS = 100


@dataclass(frozen=True, slots=True)
class LossChart:
    """A drawing of WIDTH x HEIGHT: polylines as SVG points, dots and ticks as (place, label).

    `evaluations` are the (step, loss) of the dots, for the table beside the picture.
    """

    training: str
    training_smooth: str
    validation: str
    dots: tuple[tuple[float, float, str], ...]
    evaluations: tuple[tuple[int, float], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    best: tuple[float, str] | None
    turned_from: float | None
    last: str | None
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def loss_chart(curve: Curve) -> LossChart | None:
    """The curves of a run, or None if there is no line to draw. Early peaks are cut off so that what follows shows."""
    if len(curve.training) + len(curve.validation) < 2:
        return None
    line, evaluations = smoothed(curve.training), thinned(curve.validation, _MOST_DOTS)
    steps = [step for step, _ in (*curve.training, *curve.validation)]
    x_ticks = ticks(min(steps) if min(steps) > 1 else 0, max(steps), 7)
    y_ticks = ticks(*_loss_range(curve, line), 5)
    x = scale(min(min(steps), x_ticks[0]), max(steps), _LEFT, WIDTH - _RIGHT)
    y = scale(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    best = curve.best
    return LossChart(
        training=_points(thinned(curve.training), x, y),
        training_smooth=_points(thinned(line), x, y),
        validation=_points(evaluations, x, y),
        dots=tuple((x(step), y(loss), f"step {step:,}: {loss:.4g}") for step, loss in evaluations),
        evaluations=tuple(evaluations),
        x_ticks=tuple((x(tick), f"{tick:,.0f}") for tick in x_ticks if tick <= max(steps)),
        y_ticks=tuple((y(tick), f"{tick:.4g}") for tick in y_ticks),
        best=None if best is None else (x(best[0]), f"best {best[1]:.4g}"),
        last=f"{line[-1][1]:.3f}" if line else None,
        turned_from=x(best[0]) if best is not None and turned(curve) else None,
    )


def _loss_range(curve: Curve, line: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """From the lowest loss to the highest that matters: every validation loss, training after its first tenth."""
    shown = [loss for _, loss in (*curve.validation, *line[len(line) // 10 :]) if math.isfinite(loss)] or [0.0, 1.0]
    low = min([*shown, *(loss for _, loss in curve.training if math.isfinite(loss))])
    high = max(shown)
    room = (high - low or abs(high) or 1.0) * 0.06
    return max(0.0, low - room), high + room


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that reach from below `low` to above `high`, about so many.

    >>> ticks(0, 650, 7)
    [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0]
    >>> ticks(0.36, 0.71, 5)
    [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    """
    rough = (high - low or 1.0) / max(1, about - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((unit * k for k in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def thinned(points: Sequence[tuple[int, float]], most: int = _MOST_POINTS) -> list[tuple[int, float]]:
    """At most about `most` points that keep every peak: the lowest and highest of each stretch, in order.

    >>> thinned([(1, 5.0), (2, 1.0), (3, 9.0), (4, 2.0)], most=2)
    [(2, 1.0), (3, 9.0)]
    """
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / max(1, most // 2))
    kept: list[tuple[int, float]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept


def share_of(value: float, low: float, high: float, log: bool = False) -> float:
    """Where a value lies between two others, in per cent, kept within 0 to 100.

    >>> share_of(0.25, 0, 1), share_of(10, 1, 100, log=True), share_of(7, 0, 1)
    (25.0, 50.0, 100.0)
    """
    if log:
        value, low, high = (math.log(max(x, 1e-9)) for x in (value, low, high))
    place = 100 * (value - low) / (high - low) if high > low else 50.0
    return round(min(100.0, max(0.0, place)), 2)


def scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """From data to drawing, rounded to a tenth of a unit; what is not finite lies at the far end."""
    slope = (stop - start) / ((high - low) or 1.0)
    return lambda value: round(start + (value - low) * slope, 1) if math.isfinite(value) else stop


def _points(points: Sequence[tuple[int, float]], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return " ".join(f"{x(step)},{y(loss)}" for step, loss in points)


# -------------------------------------------------------------------------------------------------- classes, confidence


@dataclass(frozen=True, slots=True)
class Matrix:
    """A confusion matrix as squares: (x, y, edge, is right, words); rows and columns by number, (place, text)."""

    squares: tuple[tuple[float, float, float, bool, str], ...]
    rows: tuple[tuple[float, str], ...]
    columns: tuple[tuple[float, str], ...]
    left: float
    top: float
    side: float


def matrix(names: Sequence[str], counts: Sequence[Sequence[int]], cell: float = 12.0) -> Matrix:
    """Who was taken for whom: the area of a square is its share of its row, so that it reads without colour."""
    left, top = 190.0, 22.0
    squares = []
    for a, row in enumerate(counts):
        for b, count in enumerate(row):
            if count:
                edge = round(max(2.5, (cell - 1) * math.sqrt(count / sum(row))), 1)
                x, y = (round(start + cell * (k + 0.5) - edge / 2, 1) for start, k in ((left, b), (top, a)))
                said = f"{names[a]} → {names[b]}: {count:,} of {sum(row):,} rows"
                squares.append((x, y, edge, a == b, said))
    rows = tuple((round(top + cell * (c + 0.5), 1), f"{shortened(name)}\u2002{c + 1}") for c, name in enumerate(names))
    columns = tuple((round(left + cell * (c + 0.5), 1), f"{c + 1}") for c in range(len(names)) if (c + 1) % 5 == 0)
    return Matrix(tuple(squares), rows, columns, left, top, cell * len(names))


def shortened(name: str, letters: int = 26) -> str:
    """At most so many letters, the last an ellipsis where there were more."""
    return name if len(name) <= letters else name[: letters - 1] + "…"


@dataclass(frozen=True, slots=True)
class Reliability:
    """Confidence against how often it was right, in bins of a tenth; places in a square of `side`.

    `dots`: (x, y, upper end, lower end, words) with the 95 % interval; `bars`: (x, width, height, words) count rows.
    `table`: (from, to, rows, mean confidence, share right). `error`: expected calibration error (Guo et al. 2017).
    """

    dots: tuple[tuple[float, float, float, float, str], ...]
    bars: tuple[tuple[float, float, float, str], ...]
    table: tuple[tuple[str, int, float, float, float, float], ...]
    error: float
    side: float = 300.0
    left: float = 40.0
    top: float = 12.0


def reliability(sure: Sequence[tuple[float, bool]], bins: int = 10) -> Reliability:
    """The diagram of (confidence, was it right) of every row."""
    binned: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in sure:
        binned.setdefault(min(bins - 1, int(confidence * bins)), []).append((confidence, right))
    side, left, top = 300.0, 40.0, 12.0
    most, dots, bars, table, error = max(map(len, binned.values())), [], [], [], 0.0
    for k, found in sorted(binned.items()):
        n, mean = len(found), sum(c for c, _ in found) / len(found)
        share = sum(right for _, right in found) / n
        low, high = wilson(sum(right for _, right in found), n)
        error += n / len(sure) * abs(share - mean)
        x, y, y_low, y_high = (
            round(v, 1) for v in (left + side * mean, *(top + side * (1 - s) for s in (share, low, high)))
        )
        said = f"{k / bins:.1f} to {(k + 1) / bins:.1f} sure: {share:.0%} of {n:,} rows right"
        dots.append((x, y, y_high, y_low, said))
        bars.append((round(left + side * k / bins + 2, 1), round(side / bins - 4, 1), round(38 * n / most, 1), said))
        table.append((f"{k / bins:.1f}–{(k + 1) / bins:.1f}", n, mean, share, low, high))
    return Reliability(tuple(dots), tuple(bars), tuple(table), error)


# -------------------------------------------------------------------------------------------------------- several runs


@dataclass(frozen=True, slots=True)
class Overlay:
    """Curves of several runs in one drawing: (key, points, dots, (x, y) of the key at its end)."""

    lines: tuple[tuple[str, str, tuple[tuple[float, float, str], ...], tuple[float, float]], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: float = 530.0
    height: float = 300.0
    left: float = 48.0
    right: float = 502.0
    top: float = 14.0
    bottom: float = 272.0


def overlay(curves: Mapping[str, Sequence[tuple[int, float]]], dotted: bool) -> Overlay | None:
    """Curves of (place, loss) by key, or None if there is no line to draw; `dotted` marks every point."""
    drawn = {key: thinned(points) for key, points in curves.items() if len(points) > 1}
    if not drawn:
        return None
    ends = Overlay((), (), ())
    places = [at for points in drawn.values() for at, _ in points]
    shown = [loss for points in drawn.values() for _, loss in points[len(points) // 10 :] if math.isfinite(loss)]
    x_ticks, y_ticks = ticks(0, max(places), 6), ticks(min(shown or [0.0]), max(shown or [1.0]), 5)
    x = scale(0, max(places), ends.left, ends.right)
    y = scale(y_ticks[0], y_ticks[-1], ends.bottom, ends.top)
    lines = []
    for key, points in drawn.items():
        dots = tuple((x(at), y(loss), f"{key}: {loss:.4g} at {at:,}") for at, loss in points) if dotted else ()
        lines.append((key, _points(points, x, y), dots, (x(points[-1][0]), y(points[-1][1]))))
    return Overlay(
        _apart(lines, ends.bottom),
        tuple((x(tick), thousands(tick)) for tick in x_ticks if tick <= max(places)),
        tuple((y(tick), f"{tick:.4g}") for tick in y_ticks),
    )


def _apart(lines: list[Any], bottom: float, least: float = 13.0) -> tuple[Any, ...]:
    """The keys at the ends of lines, moved apart where they would cover each other, none below `bottom`."""
    placed: dict[str, tuple[float, float]] = {}
    above, below = -math.inf, bottom
    for key, _, _, (x, y) in sorted(lines, key=lambda line: line[3][1]):
        above = max(y, above + least)
        placed[key] = (x, above)
    for key, (x, y) in reversed(placed.items()):
        placed[key] = (x, round(min(y, below), 1))
        below = placed[key][1] - least
    return tuple((key, points, dots, placed[key]) for key, points, dots, _ in lines)


def thousands(count: float) -> str:
    """A tick in few letters.

    >>> thousands(9_000), thousands(25_000), thousands(3_000_000), thousands(0.5)
    ('9,000', '25k', '3M', '0.5')
    """
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= unit:
            return f"{count / min(unit, 1e3 if letter == 'k' else unit):g}{letter}"
    return f"{count:,.0f}" if count == round(count) else f"{count:g}"
