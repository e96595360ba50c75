"""A row of five tokens as `look` gives it, for the tests of how it is shown."""

from __future__ import annotations

from typing import Any

from luthier.data.seen import Seen


def row(**changes: Any) -> Seen:
    """`<s>`, `a`, ` b` are read; a line's end with `<c>` as plain text, and `</s>`, are trained."""
    told: dict[str, Any] = {
        "split": "train",
        "number": 1,
        "where": "rows.jsonl:1",
        "ids": (0, 5, 6, 7, 1),
        "pieces": ("<s>", "a", " b", "\n<c>", "</s>"),
        "trained": (False, False, False, True, True),
        "special": (True, False, False, False, True),
        "whole": 5,
    }
    return Seen(**told | changes)


def long_row(read: int, learned: int) -> Seen:
    """A row of so many tokens that are read, then so many that are trained; each is its number."""
    count = read + learned
    trained = (False,) * read + (True,) * learned
    names = tuple(f"{i}," for i in range(count))
    return row(ids=tuple(range(count)), pieces=names, trained=trained, special=(False,) * count, whole=count)
