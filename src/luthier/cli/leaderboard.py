"""The end of a search in a terminal: its leaderboard, what is said of it, its verdict.

Lives here: which columns there is room for, what goes where. Does not live here: the board's words (`trials/board.py`),
a search on its way (`searched.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from luthier.cli import searched
from luthier.cli import show as screen
from luthier.cli.progress import clock
from luthier.runs import Plan, Run

if TYPE_CHECKING:
    from luthier.spec import Search
    from luthier.trials.board import Board

LEAST_FIRST = ("why it ended", "kept", "tokens", "weights", "best step", "time")  # in this order they make room
GAP = 2


def tell_end(search: Run, as_json: bool) -> None:
    """What came of a search that is done: table and verdict on standard output, the rest on standard error."""
    from luthier.trials import board

    found = board.read_json(search.path / board.FILE)
    if as_json:
        verdict = found.tested and found.tested.verdict
        screen.json_line({"search": search.id, "verdict": verdict, "board": board.to_json(found)})
        return
    tell(found)
    screen.say(f"report: {search.path / board.PAGE}")
    if found.tested is not None:
        screen.line(found.tested.verdict)


def show(search: Run, as_json: bool) -> None:
    """A search at any moment: its board as it stands."""
    from luthier import studio
    from luthier.searching import lead
    from luthier.trials import board

    done = search.state == "done"  # else the file is of an earlier end
    found = board.read_json(search.path / board.FILE) if done else lead.board_of(search)
    if as_json:
        screen.as_json(asdict(search) | {"search": searched.brief(search), "board": board.to_json(found)})
        return
    screen.pairs(_facts(search))
    screen.line("")
    tell(found)
    if not done:
        followed = searched.Following(search)
        followed.look()
        screen.say(searched.counts(followed, time.time()))
    if found.tested is not None:
        screen.line(found.tested.verdict)
    if problem := studio.failure(search):
        screen.error(problem)


def _facts(search: Run) -> dict[str, Any]:
    facts = screen.run_facts(search)
    for name in ("steps", "loss", "validation", "verdict"):
        del facts[name]
    page = search.path / "report.html"
    return facts | {"space": spaces(search.facts.get("searched", {})), "report": page if page.is_file() else ""}


def tell(found: Board) -> None:
    """The leaderboard, and what is said below it but for the verdict."""
    from luthier.trials import board

    columns, rows = fitted(*board.table(found), screen.out().width)
    screen.table(columns, rows)
    verdict = found.tested.verdict.rstrip(".") if found.tested else None
    for sentence in board.sentences(found):
        if verdict is None or verdict not in sentence:
            screen.say(sentence)
    for note in found.notes:
        screen.say(f"note: {note}")


def fitted(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> tuple[list[str], list[list[str]]]:
    """Columns that fit into `width`: empty ones go, then those that matter least.

    >>> fitted(["trial", "state", "kept"], [["000", "", "1.2 MB"]], 9)
    (['trial'], [['000']])
    """
    kept = [i for i, _ in enumerate(columns) if any(row[i] for row in rows)]

    def total() -> int:
        return sum(max(len(columns[i]), *(len(row[i]) for row in rows)) + GAP for i in kept) - GAP

    for name in LEAST_FIRST:
        if rows and total() > width:
            kept = [i for i in kept if columns[i] != name]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def planned(wishes: Search, one: Plan) -> dict[str, Any]:
    """What a search would do: its space, how many trials, what one costs as described, and all at most."""
    trials = wishes.trials + wishes.seeds - 1
    return {
        "space": dict(wishes.space),
        "chosen": "space" in wishes.model_fields_set,
        "trials": wishes.trials,
        "seeds": wishes.seeds,
        "objective": wishes.objective,
        "sampler": wishes.sampler,
        "pruner": wishes.pruner,
        "steps_each": one.steps,
        "seconds_each": one.seconds,
        "seconds_alone": None if one.seconds is None else one.seconds * trials,
        "time_limit": wishes.time_limit,
        "token_limit": wishes.token_limit,
    }


def tell_plan(told: Mapping[str, Any]) -> None:
    """What a search would do, on standard output."""
    each, alone = told["seconds_each"], told["seconds_alone"]
    limits = [clock(told["time_limit"])] if told["time_limit"] is not None else []
    limits += [f"{told['token_limit']:,} tokens"] if told["token_limit"] is not None else []
    screen.line("")
    screen.pairs(
        {
            "search": f"{told['trials']} trials by {told['sampler']}, the weak stopped by {told['pruner']}"
            if told["pruner"] != "none"
            else f"{told['trials']} trials by {told['sampler']}, none stopped early",
            "best by": told["objective"],
            "space": spaces(told["space"]),
            "space from": "you" if told["chosen"] else "default: the method's own; `search.space` says another",
            "seeds": f"{told['seeds']} of the winner" if told["seeds"] > 1 else "",
            "a trial": f"{told['steps_each']:,} steps" + (f", about {clock(each)} alone" if each is not None else ""),
            "all": "" if alone is None else f"about {clock(alone)} one after another, to the end; less together",
            "no new after": " or ".join(limits),
        }
    )


def spaces(space: Mapping[str, Any]) -> str:
    """A space as lines: `training.learning_rate: log 1e-05 to 0.01`.

    >>> spaces({"method.rank": [8, 16], "training.learning_rate": {"log": [1e-05, 0.01]}})
    'method.rank: 8, 16\\ntraining.learning_rate: log 1e-05 to 0.01'
    """
    return "\n".join(f"{path}: {_values(told)}" for path, told in space.items())


def _values(told: Any) -> str:
    if not isinstance(told, Mapping):
        return ", ".join(screen.value(each) for each in told) if isinstance(told, list | tuple) else screen.value(told)
    parts = []
    for key, value in told.items():
        if key in ("log", "uniform", "int"):
            parts.append(f"{key} {screen.value(value[0])} to {screen.value(value[1])}")
        elif key == "choices":
            parts.append(_values(value))
        elif key == "when":
            parts.append("where " + " and ".join(f"{path} is {_values(among)}" for path, among in value.items()))
        else:
            parts.append(f"{key} {screen.value(value)}")
    return " ".join(parts)
