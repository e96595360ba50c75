"""The board of a search: every trial with its score, which is best and how sure that is, what mattered, what was saved.

Lives here: what `search.json` holds, and the table a terminal prints. Does not live here: how it is worked out
(`conclude.py`), the page (`page.py`), the trials themselves (`record.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from luthier import disk
from luthier.evaluation.ladder_page import duration, weight
from luthier.runs import Score

FILE, PAGE = "search.json", "report.html"

Plain = bool | int | float | str | None
"""A value as the board says it: lists and mappings of a parameter are written as JSON."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What is made best. `top`: the end of its scale, None where it has none."""

    name: str
    title: str
    higher: bool
    top: float | None = None

    def say(self, value: float, like: float | None = None) -> str:
        """The number, four digits of it, or as many decimals as `like` has so.

        >>> loss, share = Aim("loss", "validation loss", False), Aim("accuracy", "accuracy", True, 1.0)
        >>> loss.say(1.3), loss.say(0.98765), loss.say(0.98765, like=1.3), loss.say(81_920), share.say(0.9)
        ('1.300', '0.9877', '0.988', '81,920', '0.900')
        """
        size = abs(value if like is None else like)
        if self.top == 1.0:
            return f"{value:.3f}"
        decimals = min(9, max(0, 3 - math.floor(math.log10(size)))) if size > 0 else 0
        return f"{value:,.{decimals}f}"

    def span(self, value: float, low: float, high: float) -> str:
        """A number with its interval.

        >>> Aim("loss", "validation loss", False).span(1.3, 0.98765, 1.61)
        '1.300 (0.988–1.610)'
        """
        return f"{self.say(value)} ({self.say(low, value)}–{self.say(high, value)})"

    def gap(self, value: float) -> str:
        """The size of a difference, two digits of it.

        >>> Aim("loss", "validation loss", False).gap(-0.01883)
        '0.019'
        """
        return f"{abs(value):,.0f}" if abs(value) >= 100 else f"{abs(value):#.2g}".rstrip(".")


@dataclass(frozen=True, slots=True)
class Axis:
    """A searched parameter: `choices` of kind "choices", else from `low` to `high`."""

    path: str
    kind: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Plain, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A trial on the board. `scores`: of the weights it keeps; `objective`: the aims' values among them, once done.

    `low`–`high`: 95 % interval of the first aim; `alike`: whether the rows cannot tell it from the winner (None: not
    known). `share`: of its planned updates done; `planned`: those updates. `curve`: (share, first aim) at evaluations.
    """

    number: int
    run_id: str
    by: str
    state: str
    values: dict[str, Plain]
    scores: dict[str, float | None] = field(default_factory=dict)
    objective: tuple[float, ...] | None = None
    low: float | None = None
    high: float | None = None
    alike: bool | None = None
    front: bool = False
    share: float = 0.0
    planned: int = 0
    steps: int = 0
    best_step: int | None = None
    seconds: float = 0.0
    tokens: int = 0
    parameters: int = 0
    bytes: int = 0
    reason: str = ""
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def called(self) -> str:
        """As its folder ends, and as `SEARCH.007` names it."""
        return f"{self.number:03d}"


@dataclass(frozen=True, slots=True)
class Guess:
    """The optimism of the best of `count` trials, in the first aim's unit. `how`: rows, bound or unknown.

    `expected`: what such a winner scores on rows that did not choose it, where the rows tell.
    """

    how: str
    count: int
    amount: float | None
    expected: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """What stopping weak trials early saved: updates not done of all that were planned, and their seconds."""

    count: int
    shares: tuple[float, ...]
    updates: int
    planned: int
    seconds: float
    sentence: str


@dataclass(frozen=True, slots=True)
class Repeats:
    """The winner's values with further seeds: the first aim of each, winner first."""

    numbers: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    spread: float
    sentence: str


@dataclass(frozen=True, slots=True)
class Tested:
    """The winner on the test rows, opened once. `score`: of the first aim, where the test has it."""

    run_id: str
    verdict: str
    score: Score | None
    fit: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Trials that failed for one reason, as the first of them says it."""

    reason: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """What `search.json` holds. `entries`: the leaderboard, best first; `seeded`: the winner's further seeds.

    `differs`: where the winner is not as described, (path, described, winner). `described`: the number of the trial
    with the described values, if it was made. `intervals`: why there are none, else empty.
    """

    id: str
    name: str
    facts: dict[str, str]
    state: str
    aims: tuple[Aim, ...]
    axes: tuple[Axis, ...]
    rows: int | None
    entries: tuple[Entry, ...]
    best: int | None
    headline: str
    intervals: str
    described: int | None
    against: str
    differs: tuple[tuple[str, Plain, Plain], ...]
    importance: dict[str, float]
    optimism: Guess
    pruned: Pruned
    seeded: tuple[Entry, ...] = ()
    repeats: Repeats | None = None
    tested: Tested | None = None
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()

    def entry(self, number: int) -> Entry:
        return next(entry for entry in (*self.entries, *self.seeded) if entry.number == number)

    @property
    def winner(self) -> Entry | None:
        return None if self.best is None else self.entry(self.best)


# ------------------------------------------------------------------------------------------------------------- on disk


def to_json(board: Board) -> dict[str, Any]:
    """The board as JSON holds it: no number in it is not finite."""
    return json.loads(json.dumps(asdict(board), allow_nan=False))


def write_json(board: Board, path: Path) -> None:
    """`search.json`: complete or not there."""
    disk.write_json(path, asdict(board))


def read_json(path: Path) -> Board:
    """A board as `write_json` left it."""
    return TypeAdapter(Board).validate_python(json.loads(path.read_text(encoding="utf-8")))


# ------------------------------------------------------------------------------------------------------------ in words


def value(of: Plain) -> str:
    """A parameter's value as people read it.

    >>> value(0.00019999), value(16), value(True), value("q_proj"), value(None)
    ('0.0002', '16', 'true', 'q_proj', '–')
    """
    if of is None:
        return "–"
    if isinstance(of, bool):
        return str(of).lower()
    return f"{of:.3g}" if isinstance(of, float) else str(of)


def short(path: str) -> str:
    """A path's last word, by which people know it.

    >>> short("training.learning_rate")
    'learning_rate'
    """
    return path.rpartition(".")[2]


def names(paths: Mapping[str, Any] | tuple[str, ...]) -> dict[str, str]:
    """Path → its last word, or the whole path where two end alike.

    >>> names(("training.seed", "seed", "method.rank"))
    {'training.seed': 'training.seed', 'seed': 'seed', 'method.rank': 'rank'}
    """
    last = [short(path) for path in paths]
    return {path: short(path) if last.count(short(path)) == 1 else path for path in paths}


def standing(entry: Entry, aim: Aim) -> str:
    """What the trial scored, in words: `1.235 (1.19–1.28)`, or where it stood when it ended: `1.31 after 33 %`."""
    if entry.objective is not None:
        if entry.low is None or entry.high is None:
            return aim.say(entry.objective[0])
        return aim.span(entry.objective[0], entry.low, entry.high)
    return f"{aim.say(entry.curve[-1][1])} after {entry.curve[-1][0]:.0%}" if entry.curve else ""


def table(board: Board) -> tuple[list[str], list[list[str]]]:
    """The leaderboard for any screen: a header, and a row of texts for each trial, best first. With several aims the
    trials that no other beats in all of them stand as `front`."""
    title = names(tuple(axis.path for axis in board.axes))
    aims = board.aims
    header = ["trial", "state", aims[0].title, *(aim.title for aim in aims[1:]), *title.values()]
    header += ["best step", "time", "tokens", "weights", "kept", "why it ended"]
    return header, [_line(entry, board, tuple(title)) for entry in (*board.entries, *board.seeded)]


def _line(entry: Entry, board: Board, paths: tuple[str, ...]) -> list[str]:
    others = [aim.say(got) for aim, got in zip(board.aims[1:], (entry.objective or ())[1:], strict=False)]
    others += [""] * (len(board.aims) - 1 - len(others))
    return [
        entry.called,
        "best" if entry.number == board.best else "front" if entry.front else entry.state,
        standing(entry, board.aims[0]),
        *others,
        *(value(entry.values.get(path)) for path in paths),
        "" if entry.best_step is None else f"{entry.best_step:,}",
        duration(entry.seconds) if entry.seconds else "",
        f"{entry.tokens:,}" if entry.tokens else "",
        f"{entry.parameters:,}" if entry.parameters else "",
        weight(entry.bytes) if entry.bytes else "",
        entry.reason,
    ]


def sentences(board: Board) -> list[str]:
    """What the board says below its table, most important first; each a whole sentence."""
    told = [board.headline, board.against, board.optimism.sentence]
    told += [board.repeats.sentence] if board.repeats else []
    told += [f"On the test rows, opened once for the winner: {board.tested.verdict}"] if board.tested else []
    told += [board.pruned.sentence, *(f"{len(each.numbers)} failed: {each.reason}" for each in board.failures)]
    return [sentence.rstrip(".") + "." for sentence in told if sentence]
