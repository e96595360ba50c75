"""A curve as an SVG picture: lines with dots over a linear or logarithmic axis, dashed where they are not measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from luthier.evaluation.charts import ticks

WIDTH, HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 64, 52
_COLOURS = ("#0b6e99", "#c4560a", "#3d7a3d", "#7a3d78")
_INK, _FAINT = "#333", "#ddd"


@dataclass(frozen=True, slots=True)
class Line:
    """Points (x, y) under a name; `dashed` ones are computed, not measured, and have no dots."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def draw(title: str, across: str, upward: str, lines: Sequence[Line], log: bool = False) -> str:
    """The picture. Both axes begin at 0, unless `log`: then x is logarithmic with a tick at every measured point."""
    xs = sorted({x for line in lines for x, _ in line.points})
    x_ticks = xs if log else ticks(0, max(xs), 6)
    y_ticks = ticks(0, max(y for line in lines for _, y in line.points), 6)
    x = _axis(x_ticks[0], max(xs[-1], x_ticks[-1]), _LEFT, WIDTH - _RIGHT, log)
    y = _axis(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP, False)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{_INK}" role="img" aria-label="{escape(title, quote=True)}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 12}" text-anchor="end">{escape(across)}</text>',
        f'<text x="{_LEFT}" y="{_TOP - 8}" fill="#777">{escape(upward)}</text>',
    ]
    for tick in y_ticks:
        parts.append(f'<path d="M{_LEFT} {y(tick)}H{WIDTH - _RIGHT}" stroke="{_FAINT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4}" text-anchor="end">{_short(tick)}</text>')
    below = HEIGHT - _BOTTOM + 18
    parts += [f'<text x="{x(tick)}" y="{below}" text-anchor="middle">{_short(tick)}</text>' for tick in x_ticks]
    for number, line in enumerate(lines):
        parts += _line(line, _COLOURS[number % len(_COLOURS)], x, y)
        parts.append(_legend(line, _COLOURS[number % len(_COLOURS)], number))
    return "\n".join([*parts, "</svg>\n"])


def _line(line: Line, colour: str, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    path = " ".join(f"{x(a)},{y(b)}" for a, b in line.points)
    dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>']
    if not line.dashed:
        parts += [f'<circle cx="{x(a)}" cy="{y(b)}" r="3.5" fill="{colour}"/>' for a, b in line.points]
    return parts


def _legend(line: Line, colour: str, number: int) -> str:
    sign = "- -" if line.dashed else "●"
    return f'<text x="{_LEFT + number * 165}" y="40" fill="{colour}">{sign} {escape(line.name)}</text>'


def _axis(low: float, high: float, start: float, stop: float, log: bool) -> Callable[[float], float]:
    def place(value: float) -> float:
        a, b, v = (math.log(low), math.log(high), math.log(value)) if log else (low, high, value)
        return round(start + (v - a) / ((b - a) or 1.0) * (stop - start), 1)

    return place


def _short(value: float) -> str:
    """
    >>> _short(0.25), _short(8192), _short(30000), _short(1500000)
    ('0.25', '8192', '30k', '1.5M')
    """
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e6 if letter == 'M' else 1e3):g}{letter}"
    return f"{value:g}"
