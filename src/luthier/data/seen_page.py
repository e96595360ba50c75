"""Rows as the model sees them, as a page: one file, light and dark, no script, no network.

Lives here: what the page says, as plain values; `seen.html.j2` draws it, escaping every text. Does not live here: the
rows (`looking.py`), the same in a terminal (`cli/tokens.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier import disk, sheet
from luthier.data.seen import Seen, marked


@dataclass(frozen=True, slots=True)
class _Token:
    """A token on the page: classes of its style, what is said when it is pointed at, its text in (text, mark)."""

    style: str
    title: str
    text: tuple[tuple[str, bool], ...]


def write(rows: Sequence[Seen], facts: Mapping[str, str], path: Path) -> None:
    """Write the page of `rows`; complete or not there. `facts` (name → words) stand at its head."""
    disk.write_whole(path, render(rows, facts))


def render(rows: Sequence[Seen], facts: Mapping[str, str]) -> str:
    """The page as text."""
    shown = [(row, tuple(_tokens(row))) for row in rows]
    return sheet.render("data/seen.html.j2", {"rows": shown, "facts": facts}, "data/seen.css")


def _tokens(row: Seen) -> Iterator[_Token]:
    for index, (token_id, piece) in enumerate(zip(row.ids, row.pieces, strict=True)):
        learned, special = row.trained[index], row.special[index]
        style = ("t" if learned else "r") + (" s" if special else "") + (" o" if index % 2 else "")
        said = ["trained"] * learned + ["special"] * special
        title = f"token {index + 1:,}, id {token_id}" + (f": {', '.join(said)}" if said else "")
        yield _Token(style, title, tuple(marked(piece)))
