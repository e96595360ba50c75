"""Special tokens' text in what people write: found, marked, and made tokens of plain text, never the special token.

Lives here: which texts a tokenizer would take for control tokens, and how one is spelled in letters instead. Does not
live here: whose words are treated so (`layout.py`), the tokens of everything else (`encode.py`).

Words of a user, a tool or a system message that read `<|im_end|>` would otherwise end their turn and speak as somebody
else. They are marked before a template sees them, so that they can be told from the tokens the template writes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import DataError

Span = tuple[int, int]
"""Start and end of a stretch of text, in characters."""
Coded = tuple[list[int], list[Span]]
"""Ids, and for each the characters it stands for."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # no characters: Unicode keeps them for use within a program
_ESCAPED = ("\\ufdd", "\\uFDD")  # as JSON may write them: no longer told from text
_ANCHOR = "\n"  # before a text that continues another one: nothing is put before it then


@dataclass(frozen=True, slots=True)
class Controls:
    """The texts that this tokenizer takes for control tokens, and their ids."""

    pattern: re.Pattern[str]
    ids: Mapping[str, int]

    def mark(self, value: Any, where: str) -> Any:
        """`value` (text, or lists and mappings of it) with every such text between marks. Keys stay as they are."""
        if isinstance(value, str):
            if not self.pattern.search(value):
                return value
            if _OPEN in value or _CLOSE in value:
                raise _cannot(self.pattern.search(value)[0], where)  # type: ignore[index]
            return self.pattern.sub(f"{_OPEN}\\g<0>{_CLOSE}", value)
        if isinstance(value, Mapping):
            return {name: self.mark(inner, where) for name, inner in value.items()}
        return [self.mark(inner, where) for inner in value] if isinstance(value, list | tuple) else value


def controls_of(tokenizer: Any, end_token_ids: Sequence[int] = ()) -> Controls:
    """Special tokens, end tokens, and other added tokens (`<tool_call>`) that the chat template itself writes."""
    template = tokenizer.chat_template or ""
    written = "\0".join(template.values()) if isinstance(template, dict) else template
    special, found = {*tokenizer.all_special_ids, *end_token_ids}, {}
    for number, token in tokenizer.added_tokens_decoder.items():
        text = token.content
        if text.strip() and (token.special or number in special or text in written):
            found[text] = number
    return Controls(_any_of(frozenset(found)), found)


@functools.lru_cache(maxsize=16)
def _any_of(words: frozenset[str]) -> re.Pattern[str]:
    return re.compile(_either(words) if words else "(?!)")


def _either(words: frozenset[str]) -> str:
    """A pattern of any of `words`, the longest first, as a tree of their letters: models have up to a thousand.

    >>> _either(frozenset({"<s>", "</s>"}))
    '<(?:/s>|s>)'
    """
    rest: dict[str, set[str]] = {}
    for word in words - {""}:
        rest.setdefault(word[0], set()).add(word[1:])
    options = [re.escape(letter) + _either(frozenset(tails)) for letter, tails in sorted(rest.items())]
    if "" in words:
        return f"(?:{'|'.join(options)})?" if options else ""
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"


def unmark(text: str, where: str) -> tuple[str, list[Span], Callable[[int], int]]:
    """`text` without marks, where the marked stretches stand in it, and a place of `text` as a place without marks.

    Raises DataError where the template took a mark apart: what is special cannot be told then.
    """
    places = [i for i, letter in enumerate(text) if letter in (_OPEN, _CLOSE)]
    pairs = list(zip(places[::2], places[1::2], strict=False))
    torn = len(places) % 2 or any(text[a] + text[b] != _OPEN + _CLOSE for a, b in pairs)
    if torn or any(escaped in text for escaped in _ESCAPED):
        raise _cannot("a special token", where)
    spans = [(a - 2 * i, b - 1 - 2 * i) for i, (a, b) in enumerate(pairs)]
    plain = text.replace(_OPEN, "").replace(_CLOSE, "")
    return plain, spans, lambda place: place - sum(mark < place for mark in places)


def is_marked(text: str) -> bool:
    """Whether anything in it was marked."""
    return _OPEN in text or _CLOSE in text or any(escaped in text for escaped in _ESCAPED)


def spell(tokenizer: Any, text: str, spans: Sequence[Span], controls: Controls, where: str) -> Coded:
    """`text` as tokens, that of `spans` in letters. Raises DataError where the tokenizer cannot but make the token."""
    ids: list[int] = []
    offsets: list[Span] = []
    at = 0
    for begin, end in [*spans, (len(text), len(text))]:
        between = _continued(tokenizer, text[at:begin], bool(at))
        ids += between[0]
        offsets += [(a + at, b + at) for a, b in between[1]]
        letters = _letters(tokenizer, text[begin:end], controls, where)
        ids += letters
        offsets += [(begin, end)] * len(letters)
        at = end
    return ids, offsets


def _continued(tokenizer: Any, text: str, anchored: bool) -> Coded:
    """The tokens of a text; where it continues another one, as if something stood before it."""
    if not text:
        return [], []
    shift = len(_ANCHOR) if anchored else 0
    coded = tokenizer.backend_tokenizer.encode(_ANCHOR * shift + text, add_special_tokens=False)
    kept = [i for i, (_, end) in enumerate(coded.offsets) if end > shift]
    if any(coded.offsets[i][0] < shift for i in kept):  # a token holds the anchor and what follows
        return _continued(tokenizer, text, False)
    return [coded.ids[i] for i in kept], [(coded.offsets[i][0] - shift, coded.offsets[i][1] - shift) for i in kept]


def _letters(tokenizer: Any, text: str, controls: Controls, where: str) -> list[int]:
    """A control token's text as the model would read any other word."""
    if not text:
        return []
    anchor = _plain(tokenizer, _ANCHOR)
    wrong = {number for control, number in controls.ids.items() if control in text}
    for parts in ([text], [text[:1], text[1:]]):  # a vocabulary may hold the whole as a word of its own
        ids: list[int] = []
        for part in parts:
            found = _plain(tokenizer, _ANCHOR + part)
            ids += found[len(anchor) :] if anchor and found[: len(anchor)] == anchor else _plain(tokenizer, part)
        if ids and not wrong & set(ids):
            return ids
    raise _cannot(text, where)


def _plain(tokenizer: Any, text: str) -> list[int]:
    """The tokenizer's way with text, added tokens left out of it."""
    core = tokenizer.backend_tokenizer
    text = text if core.normalizer is None else core.normalizer.normalize_str(text)
    words = [text] if core.pre_tokenizer is None else [word for word, _ in core.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in core.model.tokenize(word)]


def _cannot(text: str, where: str) -> DataError:
    return DataError(
        f"`{text}` in the words of this row cannot be kept apart from the special token",
        where,
        "take it out of the row, or write it otherwise",
    )
