"""JSON as RFC 8259 means it: no NaN, no key twice, no half characters, bounded depth; errors name place and column.

Lives here: `decode` and the constraint on text that rows of other kinds share. Does not live here: files.
"""

from __future__ import annotations

import json
import math
from typing import Any

from luthier.errors import DataError

MAX_DEPTH = 64


class _Refused(ValueError):
    """JSON that parses but may not stand in a row."""


def _no_constant(word: str) -> Any:
    raise _Refused(f"{word} is not JSON and cannot be trained on")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _Refused(f"the number {text[:20]} is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"the key `{twice}` stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)


def decode(text: str, start: int, where: str) -> tuple[Any, int]:
    """The JSON value of `text` at `start` and where it ends; DataError when it is not strictly JSON."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        column = error.pos - (text.rfind("\n", 0, error.pos) + 1) + 1
        hint = "JSON needs double quotes" if text[start : start + 2] in ("{'", "['") else None
        raise DataError(f"not JSON: {error.msg.lower()}, column {column}", where, hint) from None
    except RecursionError:
        raise DataError(f"nested deeper than {MAX_DEPTH} levels", where) from None
    except ValueError as error:
        raise DataError(str(error), where) from None
    if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise DataError(f"nested deeper than {MAX_DEPTH} levels", where)
    if "\\u" in text[start:end]:
        whole_characters(json.dumps(value, ensure_ascii=False), where)
    return value, end


def _depth(value: Any) -> int:
    level, layer = 0, [value]
    while layer:
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        level += 1
    return level - 1


def whole_characters(text: str, where: str) -> str:
    """`text`, if UTF-8 can say it; JSON escapes can spell half a surrogate pair, on which tokenizers fail."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("half of a surrogate pair (\\ud800–\\udfff) is not a character", where) from None
    return text
