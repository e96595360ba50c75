"""Rows as tokens in a terminal: colour says trained, a block says special, every other token is underlined.

Where there is no colour, brackets say the same. Lives here: styles and brackets. Does not live here: the text and marks
(`data/seen.py`), the page (`data/seen_page.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rich.text import Text

from luthier.data.seen import LINE_END, PART, SPACE, TAB, Seen, marked

EDGE = 200
"""Tokens shown at either end of a stretch that is longer than three times as many."""

_TRAINED, _SPECIAL, _BETWEEN = ("⟦", "⟧"), ("⟨", "⟩"), "¦"


def legend(plain: bool) -> Text:
    """What the colours (or brackets) and marks mean, in a line."""
    if plain:
        said = Text(f"{_TRAINED[0]}trained{_TRAINED[1]}  {_SPECIAL[0]}special{_SPECIAL[1]}  token{_BETWEEN}token")
    else:
        said = Text.assemble(("trained", _style(True)), "  ", ("special", _style(False, True)), "  ")
        said.append("to").append("ken", style="underline").append("s")
    marks = ((SPACE, "space"), (LINE_END, "line end"), (TAB, "tab"), (PART, "part of a letter"))
    return said.append("".join(f"  {mark} {meaning}" for mark, meaning in marks), style="dim")


def heading(seen: Seen) -> Text:
    """Which row it is, with its figures."""
    said = Text(f"{seen.split} {seen.number} · {seen.where} · {seen.figures}", style="bold")
    for words in seen.worst:
        said.append(f"\n{words}", style="not bold yellow")
    return said.append(f"\n{seen.remark}", style="not bold yellow") if seen.remark else said


def tokens(seen: Seen, plain: bool) -> Text:
    """The row's tokens. A long stretch of one kind is shown at its ends, with how many tokens stand between."""
    said, inside, bracketed = Text(), False, True
    for index in _shown(seen.trained):
        if index < 0:
            said.append(f"\n… {-index:,} more tokens …\n", style="dim italic")
            bracketed = True
            continue
        learned, special = seen.trained[index], seen.special[index]
        if plain:
            if learned != inside:
                said.append(_TRAINED[0] if learned else _TRAINED[1])
                inside = learned
            elif not (bracketed or special):
                said.append(_BETWEEN)
            bracketed = special
        _append(said, seen, index, plain)
    return said.append(_TRAINED[1]) if inside else said


def shortened(seen: Seen) -> bool:
    """Whether `tokens` leaves some out."""
    return any(index < 0 for index in _shown(seen.trained))


def _append(said: Text, seen: Seen, index: int, plain: bool) -> None:
    style = "" if plain else _style(seen.trained[index], seen.special[index]) + (" underline" if index % 2 else "")
    brackets = _SPECIAL if plain and seen.special[index] else ("", "")
    said.append(brackets[0])
    for text, is_mark in marked(seen.pieces[index]):
        said.append(text, style=f"{style} dim" if is_mark and not plain else style)
    said.append(brackets[1])


def _style(trained: bool, special: bool = False) -> str:
    return ("bold green" if trained else "not bold") + (" reverse" if special else "")


def _shown(trained: tuple[bool, ...]) -> Iterator[int]:
    """The indices of the tokens to show; -n where n of them are left out."""
    start = 0
    for _, stretch in itertools.groupby(trained):
        stop = start + len(list(stretch))
        if stop - start <= 3 * EDGE:
            yield from range(start, stop)
        else:
            yield from range(start, start + EDGE)
            yield 2 * EDGE - (stop - start)
            yield from range(stop - EDGE, stop)
        start = stop
