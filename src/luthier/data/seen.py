"""A row as a model sees it, told to a person: what each token adds to the text, with everything invisible made visible.

Lives here: `Seen`, the text of tokens, the marks. Does not live here: which rows (`looking.py`), colours
(`cli/show.py`), the page (`seen_page.py`).
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SPACE, LINE_END, TAB, PART = "␣", "↵", "⇥", "⋯"
"""What stands for a space, a line's end, a tab, and a token that is only a part of a letter."""

_MARKS = {" ": SPACE, "\n": LINE_END, "\t": TAB}

Fate = Literal["used", "cut", "dropped", "refused"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A row's tokens as text, and what becomes of them.

    `split` and `number` (from 1) are its place in the prepared data, `where` its file and line. For each token: `ids`,
    `pieces` (what it adds to the text; "" where it ends within a letter), `trained`, `special` (one name, not made of
    letters: a control token). `whole`: how many tokens the row has before the length policy. A row that is cut shows
    what is left of it; one that is dropped or refused shows all of it, with the reason in `remark`. `label`: an
    encoder's class. `worst`: in what it is among the worst, with the figure.
    """

    split: str
    number: int
    where: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    trained: tuple[bool, ...]
    special: tuple[bool, ...]
    whole: int
    label: str | None = None
    fate: Fate = "used"
    remark: str = ""
    worst: tuple[str, ...] = ()

    @property
    def figures(self) -> str:
        """Its tokens and what is trained of them, in words."""
        count = len(self.ids)
        if self.label is not None:
            return f"{count:,} tokens, class {self.label}"
        learned = sum(self.trained)
        return f"{count:,} tokens, {learned:,} trained ({100 * learned / max(count, 1):.1f} %)"


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The tokens that are no text: found whole, before the tokenizer looks at letters."""
    return frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)


def pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """What each token adds to the text; a token that ends within a letter adds nothing, the next one all of it.

    Only the last tokens are decoded again: those of the piece before, beside which a token shows its space, and those
    that wait for the end of a letter.
    """
    found, before, begun, said = [], 0, 0, 0
    for end in range(1, len(ids) + 1):
        told, longer = (
            tokenizer.decode(ids[before:to], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for to in (begun, end)
        )
        new = longer.rstrip("\ufffd")[len(told) :]
        found.append(new[said:])
        said = max(said, len(new))
        if new and not longer.endswith("\ufffd"):
            before, begun, said = begun, end, 0
    return tuple(found)


def marked(piece: str) -> Iterator[tuple[str, bool]]:
    r"""A token's text in stretches of (text, whether it is a mark of ours); a line's end is a mark and the line's end.

    Whatever has no shape of its own (control and format characters, other spaces) is written as its escape, so that
    nothing hides in a row, and nothing in it can steer a terminal.

    >>> list(marked(" a\u200bb\n"))
    [('␣', True), ('a', False), ('\\u200b', True), ('b', False), ('↵\n', True)]
    >>> list(marked(""))
    [('⋯', True)]
    """
    if not piece:
        yield PART, True
    for plain, stretch in itertools.groupby(piece, key=_has_shape):
        letters = "".join(stretch)
        yield (letters, False) if plain else ("".join(map(_mark, letters)), True)


def _has_shape(letter: str) -> bool:
    return unicodedata.category(letter)[0] not in "CZ"


def _mark(letter: str) -> str:
    if letter in _MARKS:
        return _MARKS[letter] + ("\n" if letter == "\n" else "")
    return f"\\u{ord(letter):04x}" if ord(letter) < 1 << 16 else f"\\U{ord(letter):08x}"
