"""Where things lie in the pictures of a search: numbers and words only; `search.html.j2` draws them as SVG.

Does not live here: what a board says (`board.py`), ticks and scales (`evaluation/charts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from luthier.evaluation.charts import scale, shortened, thousands, ticks
from luthier.trials.board import Aim, Axis, Board, Entry, Plain, names, standing, value

_LETTER = 6.4  # width of a letter of the pictures' 11 px text, at most on the average
_LINE = 14.0  # height of a line of it
_MOST, _PARTS = 8, 6  # columns or rows of the heat map: with more values than _MOST, they are put into _PARTS
RATE, RANK = "training.learning_rate", "method.rank"


def tone(entry: Entry, board: Board, good: frozenset[int]) -> str:
    """How a trial is drawn: best, good (the better quarter), plain, or by its state."""
    if entry.number == board.best:
        return "best"
    if entry.state in ("pruned", "failed", "running"):
        return entry.state
    return "good" if entry.number in good else "plain"


def better_quarter(board: Board) -> frozenset[int]:
    """The numbers of the better quarter of what is done."""
    done = [entry.number for entry in board.entries if entry.objective is not None]
    return frozenset(done[: max(1, len(done) // 4)])


def words(entry: Entry, board: Board) -> str:
    """What a line or a dot says when asked."""
    called = names(tuple(axis.path for axis in board.axes))
    values = ", ".join(f"{called.get(path, path)} {value(each)}" for path, each in entry.values.items())
    return f"trial {entry.called} ({entry.state}): {standing(entry, board.aims[0]) or 'no score'}; {values}"


def reach(values: Iterable[float], aim: Aim) -> tuple[float, float]:
    """From the best value to the worst that is worth drawing: far-off ones would press all others together.

    >>> reach([1.0, 1.1, 1.2, 1.3, 90.0], Aim("loss", "loss", False))
    (1.0, 1.75)
    """
    ordered = sorted((x for x in values if math.isfinite(x)), reverse=aim.higher) or [0.0]
    best, worst = ordered[0], ordered[-1]
    usual = ordered[math.ceil(0.8 * len(ordered)) - 1]  # four of five lie before it
    furthest = best + 2.5 * (usual - best)
    return (best, worst) if usual == best or abs(worst - best) <= abs(furthest - best) else (best, furthest)


def last(entry: Entry) -> float | None:
    """The first aim, of a trial that did not come to its end where it stood."""
    if entry.objective is not None:
        return entry.objective[0]
    return entry.curve[-1][1] if entry.curve else None


# ------------------------------------------------------------------------------------------------ parallel coordinates


@dataclass(frozen=True, slots=True)
class Column:
    """An axis at `x`: its short and whole name, ticks as (y, text)."""

    x: float
    title: str
    whole: str
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """Every trial a line (tone, points, words) through its values to its score; `none` is where a value is missing."""

    columns: tuple[Column, ...]
    lines: tuple[tuple[str, str, str], ...]
    none: float | None
    width: float
    height: float = 310.0
    top: float = 44.0
    bottom: float = 270.0


_TONES = ("failed", "pruned", "plain", "running", "good", "best")  # the later is drawn over the earlier


def parallel(board: Board) -> Parallel | None:
    """Parallel coordinates, the better end of the score on top; None without a parameter or a trial."""
    if not board.axes or not board.entries:
        return None
    count = len(board.axes) + 1
    width, left, right = max(1060.0, 170.0 + 136.0 * (count - 1)), 20.0, 110.0
    step = (width - left - right) / (count - 1)
    frame, called = Parallel((), (), None, width), names(tuple(axis.path for axis in board.axes))
    room = int((step - 14) / _LETTER)
    columns, places = [], []
    for number, axis in enumerate(board.axes):
        place, marks = _along(axis, [entry.values.get(axis.path) for entry in board.entries], frame)
        x = round(left + number * step, 1)
        columns.append(
            Column(x, _ends(called[axis.path], room), axis.path, tuple((y, shortened(text, room)) for y, text in marks))
        )
        places.append(place)
    score, marks = _score_axis(board, frame)
    title = shortened(board.aims[0].title, int((right - 6) / _LETTER))
    columns.append(Column(round(width - right, 1), title, board.aims[0].title, marks))
    none = frame.bottom + 22
    lines, missing, good = [], False, better_quarter(board)
    for entry in board.entries:
        found = [
            place(entry.values.get(axis.path), entry.number) for place, axis in zip(places, board.axes, strict=True)
        ]
        ended = last(entry)
        ys = [*found, None if ended is None else score(ended)]
        missing = missing or None in ys
        points = " ".join(f"{column.x},{none if y is None else y}" for column, y in zip(columns, ys, strict=True))
        lines.append((tone(entry, board, good), points, words(entry, board)))
    lines.sort(key=lambda line: _TONES.index(line[0]))
    return Parallel(tuple(columns), tuple(lines), none if missing else None, width)


def _ends(name: str, letters: int) -> str:
    """A name's beginning and end: parameters of one kind begin alike.

    >>> _ends("evaluation.max_new_tokens", 13)
    'evalua…tokens'
    """
    half = (letters - 1) // 2
    return name if len(name) <= letters else f"{name[:half]}…{name[-half:]}"


_Place = Callable[[Plain, int], float | None]


def _along(axis: Axis, tried: Sequence[Plain], frame: Parallel) -> tuple[_Place, tuple[tuple[float, str], ...]]:
    """Where values lie on an axis, and its ticks; trials of one choice lie a little apart."""
    numbers = [float(x) for x in tried if isinstance(x, int | float) and not isinstance(x, bool)]
    if axis.kind == "choices" or not numbers or any(isinstance(x, str | bool) for x in tried):
        found = list(dict.fromkeys([*axis.choices, *(x for x in tried if x is not None)]))
        if all(isinstance(x, int | float) for x in found):
            found.sort(key=lambda x: float(x))  # type: ignore[arg-type]
        y = scale(0, max(1, len(found) - 1), frame.bottom - 6, frame.top + 12)
        spots = {choice: y(k if len(found) > 1 else 0.5) for k, choice in enumerate(found)}
        every = math.ceil(_LINE / max(1.0, (frame.bottom - frame.top - 18) / max(1, len(found) - 1)))
        marks = tuple((spots[choice], value(choice)) for choice in found[::every])
        return lambda x, n: None if x is None else round(spots[x] + (n * 5 % 9 - 4) * 0.7, 1), marks
    ends = [x for x in (axis.low, axis.high) if x is not None] + numbers
    low, high = min(ends), max(ends)
    log = axis.log and low > 0
    to = math.log if log else float
    y = scale(to(low), to(high), frame.bottom - 6, frame.top + 12)
    rounds = _decades(low, high) if log else [x for x in ticks(low, high, 5) if low <= x <= high]
    marks = tuple((y(to(x)), f"{x:g}") for x in rounds)
    return lambda x, n: y(to(float(x))) if isinstance(x, int | float) else None, marks


def _decades(low: float, high: float) -> list[float]:
    """Round marks of a logarithmic axis, few enough to read: of each decade 1, 3; the ends where there is none.

    >>> _decades(1e-4, 2e-3), _decades(4e-4, 8e-4)
    ([0.0001, 0.0003, 0.001], [0.0004, 0.0008])
    """
    spans = range(math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9) + 1)
    wanted = (1, 3) if len(spans) <= 4 else (1,)
    marks = [float(f"{m}e{k}") for k in spans for m in wanted]
    inside = [x for x in marks if low * (1 - 1e-9) <= x <= high * (1 + 1e-9)]
    return inside if len(inside) > 1 else [low, high]


def _score_axis(board: Board, frame: Parallel) -> tuple[Callable[[float], float], tuple[tuple[float, str], ...]]:
    """The axis of the first aim, its better end on top; what lies beyond its lower end is drawn at it."""
    aim = board.aims[0]
    best, worst = reach((x for entry in board.entries if (x := last(entry)) is not None), aim)
    if best == worst:
        worst = best + (-0.5 if aim.higher else 0.5) * abs(best or 1)
    y = scale(worst, best, frame.bottom - 6, frame.top + 12)
    low, high = sorted((best, worst))
    marks = tuple((y(x), f"{x:g}") for x in ticks(low, high, 5) if low <= x <= high)
    return lambda x: min(max(y(x), frame.top + 12), frame.bottom - 6), marks


# ---------------------------------------------------------------------------------------------------------- heat map


@dataclass(frozen=True, slots=True)
class Cell:
    """The best of `count` trials: its score in words, `shade` 1 (worst) to 10 (best), 0 where none came to its end."""

    text: str
    shade: int
    best: bool
    count: int
    words: str


@dataclass(frozen=True, slots=True)
class Heat:
    """Learning rates across, ranks down; None where nothing was tried."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def heat(board: Board) -> Heat | None:
    """Learning rate x rank, where both were searched."""
    tried = [
        (float(rate), float(rank), entry)
        for entry in board.entries
        if isinstance(rate := entry.values.get(RATE), int | float)
        and isinstance(rank := entry.values.get(RANK), int | float)
    ]
    if not tried or not {RATE, RANK} <= {axis.path for axis in board.axes}:
        return None
    rates, ranks = _bins([rate for rate, _, _ in tried]), _bins([rank for _, rank, _ in tried])
    done = [entry.objective[0] for _, _, entry in tried if entry.objective is not None]
    ends = reach(done, board.aims[0])
    rows = []
    for low, high, label in reversed(ranks):
        cells = []
        for start, stop, _ in rates:
            inside = [e for rate, rank, e in tried if start <= rate <= stop and low <= rank <= high]
            cells.append(_cell(inside, board, ends) if inside else None)
        rows.append((label, tuple(cells)))
    return Heat(tuple(label for _, _, label in rates), tuple(rows))


def _bins(values: Sequence[float]) -> list[tuple[float, float, str]]:
    """Each value for itself; of many, equal parts of their logarithms, from the lowest to the highest value in each.

    >>> _bins([8, 16, 8])
    [(8, 8, '8'), (16, 16, '16')]
    """
    distinct = sorted(set(values))
    if len(distinct) <= _MOST:
        return [(x, x, brief(x)) for x in distinct]
    of = math.log if distinct[0] > 0 else float
    width = (of(distinct[-1]) - of(distinct[0])) / _PARTS
    parts: dict[int, list[float]] = {}
    for x in distinct:
        parts.setdefault(min(_PARTS - 1, int((of(x) - of(distinct[0])) / width)), []).append(x)
    ends = [(part[0], part[-1]) for _, part in sorted(parts.items())]
    return [(a, b, " to ".join(dict.fromkeys((brief(a), brief(b))))) for a, b in ends]


def brief(number: float) -> str:
    """A number in few letters, two digits of it.

    >>> brief(16), brief(0.05), brief(0.00031), brief(0.0001)
    ('16', '0.05', '3.1e-4', '1e-4')
    """
    if number >= 0.001 or number <= 0:
        return f"{number:.0f}" if number >= 100 else f"{number:.2g}"
    mantissa, _, power = f"{number:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}"


def _cell(inside: Sequence[Entry], board: Board, ends: tuple[float, float]) -> Cell:
    """`inside` is ordered as the board is: best first."""
    first, count = inside[0], len(inside)
    said = "; ".join(words(entry, board) for entry in inside[:5]) + (f"; and {count - 5} more" if count > 5 else "")
    if first.objective is None:
        return Cell(first.state, 0, False, count, said)
    best, worst = ends
    part = 1.0 if best == worst else min(1.0, max(0.0, (first.objective[0] - worst) / (best - worst)))
    aim = board.aims[0]
    return Cell(aim.say(first.objective[0]), 1 + round(9 * part), first.number == board.best, count, said)


# ------------------------------------------------------------------------------------------------------------- curves


@dataclass(frozen=True, slots=True)
class Curves:
    """The first aim over the share of updates: (tone, points, (x, y) of the end, words). `beyond`: lines cut off."""

    lines: tuple[tuple[str, str, tuple[float, float], str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    beyond: int
    width: float = 530.0
    height: float = 300.0
    left: float = 52.0
    right: float = 516.0
    top: float = 14.0
    bottom: float = 260.0


def curves(board: Board) -> Curves | None:
    """Validation of all trials while they trained; None where nothing was evaluated."""
    drawn = [entry for entry in board.entries if entry.curve]
    if not drawn:
        return None
    aim, good = board.aims[0], better_quarter(board)
    best, worst = reach((x for entry in drawn for _, x in entry.curve), aim)
    low, high = sorted((best, worst))
    y_ticks = ticks(low, high, 5)
    frame = Curves((), (), (), 0)
    x = scale(0, 1, frame.left, frame.right)
    y = scale(y_ticks[0], y_ticks[-1], frame.bottom, frame.top)
    lines, beyond = [], 0
    for entry in drawn:
        beyond += any(not y_ticks[0] <= score <= y_ticks[-1] for _, score in entry.curve)
        points = " ".join(f"{x(share)},{y(score)}" for share, score in entry.curve)
        end = (x(entry.curve[-1][0]), y(entry.curve[-1][1]))
        lines.append((tone(entry, board, good), points, end, words(entry, board)))
    lines.sort(key=lambda line: _TONES.index(line[0]))
    return Curves(
        tuple(lines),
        tuple((x(k / 4), f"{k / 4:.0%}") for k in range(5)),
        tuple((y(tick), f"{tick:.4g}") for tick in y_ticks),
        beyond,
    )


# ------------------------------------------------------------------------------------------------------- several aims


@dataclass(frozen=True, slots=True)
class Front:
    """Two aims against each other: (x, y, on the front, label or "", words)."""

    dots: tuple[tuple[float, float, bool, str, str], ...]
    x_title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: float = 530.0
    height: float = 310.0
    left: float = 52.0
    right: float = 506.0
    top: float = 14.0
    bottom: float = 258.0


def _ticks_around(found: Sequence[tuple[float, bool]], aim: Aim) -> list[float]:
    """Round marks around what is worth drawing of (value, is on the front), the front itself always."""
    ends = [*reach((x for x, _ in found), aim), *(x for x, first in found if first)]
    return ticks(min(ends), max(ends), 5)


def front(board: Board) -> Front | None:
    """The first two aims of all trials that are done; None with one aim, or nothing done."""
    done = [(entry, entry.objective) for entry in board.entries if entry.objective and len(entry.objective) > 1]
    if len(board.aims) < 2 or not done:
        return None
    frame = Front((), "", (), ())
    y_ticks, x_ticks = (
        _ticks_around([(found[k], entry.front) for entry, found in done], board.aims[k]) for k in (0, 1)
    )
    x = scale(x_ticks[0], x_ticks[-1], frame.left, frame.right)
    y = scale(y_ticks[0], y_ticks[-1], frame.bottom, frame.top)
    dots: list[tuple[float, float, bool, str, str]] = []
    labelled: list[tuple[float, float]] = []
    for entry, found in sorted(done, key=lambda item: not item[0].front):
        at = (min(max(x(found[1]), frame.left), frame.right), min(max(y(found[0]), frame.top), frame.bottom))
        free = all(abs(at[0] - a) > 26 or abs(at[1] - b) > _LINE for a, b in labelled)
        label = entry.called if entry.front and free else ""
        labelled += [at] if label else []
        said = f"trial {entry.called}: " + ", ".join(
            f"{aim.title} {aim.say(each)}" for aim, each in zip(board.aims, found, strict=False)
        )
        dots.append((*at, entry.front, label, said))
    return Front(
        tuple(reversed(dots)),
        board.aims[1].title,
        tuple((x(tick), thousands(tick)) for tick in x_ticks),
        tuple((y(tick), f"{tick:.4g}") for tick in y_ticks),
    )
