"""report.html of a search: who is best, every trial, the pictures, what was saved, the test. One file, no script.

Lives here: what the page says, as plain values; `search.html.j2` draws it, escaping every text. Does not live here: the
board (`board.py`, `conclude.py`), where lines lie (`pictures.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import disk, sheet
from luthier.evaluation.charts import share_of
from luthier.evaluation.ladder_page import duration, weight
from luthier.evaluation.report import say
from luthier.evaluation.words import begun
from luthier.trials import pictures
from luthier.trials.board import Board, Entry, names, standing, value

_LETTERS = 40  # of a value in the table; the whole of a longer one is folded away behind them


def write_html(board: Board, path: Path) -> None:
    """Write the page; complete or not there."""
    disk.write_whole(path, render(board))


def render(board: Board) -> str:
    """The page as text."""
    title, detail = _headline(board)
    values = {
        "b": board,
        "begun": begun,
        "tone": "good" if board.best is not None else "open",
        "title": title,
        "detail": detail,
        "called": names(tuple(axis.path for axis in board.axes)),
        "lines": [_line(entry, place, board) for place, entry in enumerate(board.entries, 1)],
        "seeds": [_line(entry, 0, board) for entry in _of_one_winner(board)],
        "parallel": pictures.parallel(board),
        "heat": pictures.heat(board),
        "curves": pictures.curves(board),
        "front": pictures.front(board),
        "bars": _bars(board),
        "keys": _keys(board),
        "sure": any(entry.low is not None for entry in board.entries),
        "differs": [(path, _text(old), _text(new)) for path, old, new in board.differs],
        "link": _link(board.tested.run_id) if board.tested else None,
        "test_score": say(board.tested.score, board.aims[0].top) if board.tested and board.tested.score else None,
    }
    return sheet.render("trials/search.html.j2", values, "trials/search.css")


def _headline(board: Board) -> tuple[str, str]:
    """The headline's first sentence, and what stands below it."""
    title, _, rest = board.headline.partition("; ")
    return title + ".", begun(rest) + "." if rest else ""


@dataclass(frozen=True, slots=True)
class Text:
    """A value: its first letters, and the whole where that is longer."""

    short: str
    whole: str | None


def _text(of: Any) -> Text:
    said = value(of)
    return Text(said[: _LETTERS - 1] + "…", said) if len(said) > _LETTERS else Text(said, None)


@dataclass(frozen=True, slots=True)
class Line:
    """A trial in the table, every figure in words. `at`, `low`, `high`: in per cent of the axis of the first aim."""

    place: str
    called: str
    described: bool
    tone: str
    state: str
    score: str
    at: float | None
    low: float | None
    high: float | None
    others: tuple[str, ...]
    values: tuple[Text, ...]
    best_step: str
    time: str
    tokens: str
    parameters: str
    size: str
    reason: str
    alike: bool


def _line(entry: Entry, place: int, board: Board) -> Line:
    done, lead = entry.objective is not None, board.aims[0]
    low, high = _scale(board)
    ends = (entry.low, entry.high) if done and entry.low is not None and entry.high is not None else (None, None)
    others = [aim.say(each) for aim, each in zip(board.aims[1:], (entry.objective or ())[1:], strict=False)]
    return Line(
        place=str(place) if done and place else "",
        called=entry.called,
        described=entry.number == board.described,
        tone="best" if entry.number == board.best else entry.state,
        state="best" if entry.number == board.best else "" if entry.state == "done" else entry.state,
        score=standing(entry, lead),
        at=share_of(entry.objective[0], low, high) if entry.objective is not None else None,
        low=None if ends[0] is None else share_of(ends[0], low, high),
        high=None if ends[1] is None else share_of(ends[1], low, high),
        others=tuple(others + [""] * (len(board.aims) - 1 - len(others))),
        values=tuple(_text(entry.values.get(axis.path)) for axis in board.axes),
        best_step=f"{entry.best_step:,}" if entry.best_step is not None else "",
        time=duration(entry.seconds) if entry.seconds else "",
        tokens=f"{entry.tokens:,}" if entry.tokens else "",
        parameters=f"{entry.parameters:,}" if entry.parameters else "",
        size=weight(entry.bytes) if entry.bytes else "",
        reason=entry.reason,
        alike=bool(entry.alike),
    )


def _scale(board: Board) -> tuple[float, float]:
    """The ends of the table's axis: what is worth drawing of the first aim, with its intervals."""
    done = [entry for entry in board.entries if entry.objective is not None]
    seen = [x for entry in done for x in (*(entry.objective or ())[:1], entry.low, entry.high) if x is not None]
    low, high = sorted(pictures.reach(seen, board.aims[0]))
    return low, high


def _of_one_winner(board: Board) -> list[Entry]:
    """The winner and its further seeds."""
    return [board.winner, *board.seeded] if board.winner and board.seeded else []


_KEYS = {
    "best": "best",
    "good": "better quarter",
    "plain": "others",
    "running": "running",
    "pruned": "pruned",
    "failed": "failed",
}


def _keys(board: Board) -> list[tuple[str, str]]:
    """The tones that lines of this board have, with their words."""
    good = pictures.better_quarter(board)
    there = {pictures.tone(entry, board, good) for entry in board.entries}
    return [(tone, words) for tone, words in _KEYS.items() if tone in there]


def _bars(board: Board) -> list[tuple[str, str, float, str]]:
    """(name, path, width in per cent, words) of what mattered, most first."""
    called = names(board.importance)
    most = max(board.importance.values(), default=0.0) or 1.0
    return [(called[p], p, round(100 * x / most, 1), f"{x:.0%}") for p, x in board.importance.items()]


def _link(run_id: str) -> str | None:
    """Where the winner's own report lies, seen from the search's; None for an id that no run has."""
    return f"../{run_id}/report.html" if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", run_id) else None
