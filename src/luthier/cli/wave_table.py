"""A search on its way, as a table that is drawn anew: a row a trial, as wide and as high as the terminal has room.

Lives here: bars, spark-lines, which columns and rows make room first. Does not live here: where the figures come from
(`searched.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from luthier.cli.progress import clock
from luthier.cli.searched import (
    ENDED,
    TOLD_BY_ROWS,
    Following,
    Goal,
    Row,
    counts,
    looks,
    remark,
    short,
    short_names,
)
from luthier.runs import Noted

SIZES = ((20, 20), (12, 16), (8, 12), (8, 8), (0, 8), (0, 0))  # columns of bar (0: a percentage) and spark-line
WIDEST_VALUE, NARROWEST_NAME, GAP = 24, 4, 2
AROUND = 3  # lines that are no trial: what is done, headings, trials that are not shown
STYLES = {"pruned": "dim", "failed": "red", "stopped": "dim", "interrupted": "yellow", "queued": "dim"}
BLOCKS = "▁▂▃▄▅▆▇█"


def draw(followed: Following, console: Console) -> None:
    """Draw the search until it rests; remarks go above the table. What stands then is wiped: results come after it."""
    with Live(console=console, transient=True, auto_refresh=False) as live:
        for news in looks(followed):
            for event in news:
                told = not isinstance(event, Noted) or event.kind not in TOLD_BY_ROWS
                if event.run == followed.run.id and told and (words := remark(event, followed)):
                    live.console.print(Text(words), highlight=False)
            live.update(picture(followed, time.time(), console.width, console.height), refresh=True)


def picture(followed: Following, now: float, width: int, height: int) -> Group:
    """The whole of it, no line wider than `width`, no more lines than `height`."""
    rows = chosen(followed.sorted(), followed.goal, height - AROUND - 1)
    hidden = len(followed.rows) - len(rows)
    gone = f" · {clock(now - followed.run.started)}" if followed.run.started else ""
    head = _cut(f"{followed.run.name}{gone} · {counts(followed, now)}", width)
    lines = [Text(head, style="bold"), *table(rows, followed.goal, width)]
    if hidden:
        lines.append(Text(_cut(f"… and {hidden} more: luthier show {followed.run.id}", width), style="dim"))
    return Group(*lines)


def chosen(rows: Sequence[Row], goal: Goal, room: int) -> list[Row]:
    """The rows that are shown where there is room for so many: those at work, then the best, by number."""
    room = max(room, 1)
    best = goal.best(list(rows))
    sign = -1 if goal.higher else 1

    def rank(row: Row) -> tuple[int, float]:
        grade = 0 if row is best else 1 if row.state == "running" else 2 if row.state not in ENDED else 3
        kept = row.kept if row.kept is not None and math.isfinite(row.kept) else math.inf
        return grade, sign * kept if math.isfinite(kept) else math.inf

    return sorted(sorted(rows, key=rank)[:room], key=lambda row: row.number)


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    cells: list[str]
    right: bool = True
    needed: bool = True  # else it makes room where the terminal is narrow

    def width(self, most_name: int | None = None) -> int:
        name = len(self.name) if most_name is None else min(len(self.name), most_name)
        return max([name, *map(len, self.cells)])


def table(rows: Sequence[Row], goal: Goal, width: int) -> list[Text]:
    """Headings and a line a row, none wider than `width`: bars shrink first, then headings, then parameters go."""
    best = goal.best(list(rows))
    columns = _columns(rows, goal, best, *SIZES[-1])
    widths: list[int] = []
    for bar, spark in SIZES:
        columns = _columns(rows, goal, best, bar, spark)
        for most_name in (None, 8, NARROWEST_NAME):
            widths = [each.width(most_name) if not each.needed else each.width() for each in columns]
            if _total(widths) <= width:
                return _written(rows, columns, widths, best, width)
    while _total(widths) > width and any(not each.needed for each in columns):
        gone = max(i for i, each in enumerate(columns) if not each.needed)
        del columns[gone], widths[gone]
    return _written(rows, columns, widths, best, width)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _columns(rows: Sequence[Row], goal: Goal, best: Row | None, bar: int, spark: int) -> list[_Column]:
    paths = list(goal.paths)
    paths += [path for row in rows for path in row.values if path not in paths and row.by != "seed"]
    names = short_names(tuple(dict.fromkeys(paths)))
    scale = _scale(rows, goal)
    curves = [sparks(row, scale, spark) for row in rows]
    parameters = [
        _Column(name, [_cut(short(row.values.get(path)), WIDEST_VALUE) for row in rows], needed=False)
        for path, name in names.items()
    ]
    return [
        _Column("", [f"{row.number:03d}{'★' if row is best else ''}" for row in rows], right=False),
        *parameters,
        _Column("", [_progress(row, bar) for row in rows], right=False),
        *([_Column("", curves, right=False)] if spark and any(curves) else []),
        _Column(goal.objective, [_score(row.kept) for row in rows]),
    ]


def _written(
    rows: Sequence[Row], columns: Sequence[_Column], widths: Sequence[int], best: Row | None, width: int
) -> list[Text]:
    def line(cells: Sequence[str]) -> str:
        fitted = [
            _cut(cell, wide).rjust(wide) if column.right else _cut(cell, wide).ljust(wide)
            for cell, column, wide in zip(cells, columns, widths, strict=True)
        ]
        return _cut((" " * GAP).join(fitted).rstrip(), width)

    heads = [Text(line([column.name for column in columns]), style="dim")]
    return heads + [
        Text(line([column.cells[i] for column in columns]), style="green" if row is best else STYLES.get(row.state, ""))
        for i, row in enumerate(rows)
    ]


def _progress(row: Row, bar: int) -> str:
    """A bar while it trains, then what became of it."""
    percent = f"{100 * row.share:.0f} %"
    if row.state == "running" and bar:
        full = round(bar * row.share)
        return f"{'━' * full}{'·' * (bar - full)} {percent:>5}"
    if row.state in ("running", "pruned"):
        return f"{row.state} {percent}"
    return "seed" if row.by == "seed" and row.state == "done" else row.state


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if math.isfinite(value) else "not finite"


def _scale(rows: Sequence[Row], goal: Goal) -> tuple[float, float]:
    """The lowest and highest score of the spark-lines, one for all, so that they can be compared.

    A first evaluation far off would flatten all others: the worse end is the middle one of the first scores.
    """
    curves = [[score for _, score in row.curve if math.isfinite(score)] for row in rows]
    curves = [curve for curve in curves if curve]
    if not curves:
        return 0.0, 0.0
    firsts = sorted(curve[0] for curve in curves)
    middle, every = firsts[len(firsts) // 2], [score for curve in curves for score in curve]
    return (min(middle, min(every)), max(every)) if goal.higher else (min(every), max(middle, min(every)))


def sparks(row: Row, scale: tuple[float, float], columns: int) -> str:
    """A trial's scores on validation as a line of blocks; where there is no room for all, every so many-th; `×` for one
    that is not finite."""
    scores = [score for _, score in row.curve]
    if columns and len(scores) > columns:
        scores = [scores[round(i * (len(scores) - 1) / (columns - 1))] for i in range(columns)]
    low, high = scale
    far = max(high - low, 1e-12)
    return "".join(_block((score - low) / far) for score in scores if columns)


def _block(share: float) -> str:
    return BLOCKS[round(min(max(share, 0.0), 1.0) * (len(BLOCKS) - 1))] if math.isfinite(share) else "×"


def _cut(words: str, width: int) -> str:
    return words if len(words) <= width else words[: max(width - 1, 0)] + "…"
