"""JSON as RFC 8259 means it: no NaN, no key twice, no half characters, bounded depth; errors name place and column.

Lives here: `scan` and `decode`, and why a text is not JSON, in words that help. Does not live here: files.

The scanning is done by the C decoder of `json`; its hooks see what it would take silently.
"""

from __future__ import annotations

import json
import math
import re
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


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python reads no more than 4,300 digits
        raise _Refused(f"the number {text[:20]}… has {len(text):,} digits") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"the key `{twice[:80]}` stands twice in one object")
    return found


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_int=_whole, parse_constant=_no_constant
)
_scan_once = _DECODER.scan_once  # type: ignore[attr-defined]
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def scan(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and where it ends. Raises StopIteration where none begins, ValueError and
    RecursionError for what is not strictly JSON: `explain` puts them into words."""
    value, end = _scan_once(text, start)
    if end - start > 2 * MAX_DEPTH and _depth_exceeded(text, start, end, value):
        raise _Refused(f"nested deeper than {MAX_DEPTH} levels")
    if text.find("\\u", start, end) >= 0 and _HALF.search(text, start, end):  # of a window only the value is looked at
        _check_whole(json.dumps(value, ensure_ascii=False))
    return value, end


def decode(text: str, start: int, where: str) -> tuple[Any, int]:
    """The JSON value of `text` at `start` and where it ends; DataError when it is not strictly JSON."""
    try:
        return scan(text, start)
    except (StopIteration, ValueError, RecursionError) as problem:
        raise explain(problem, text, start, where) from None


def stopped_at(problem: Exception, start: int) -> int:
    """Where in the text `scan` stopped; `start` for what concerns the whole value."""
    if isinstance(problem, json.JSONDecodeError):
        return problem.pos
    return int(problem.value) if isinstance(problem, StopIteration) else start


def explain(problem: Exception, text: str, start: int, where: str) -> DataError:
    """What `scan` raised, as a person can act on it."""
    if isinstance(problem, RecursionError):
        return DataError(f"nested deeper than {MAX_DEPTH} levels", where)
    if isinstance(problem, _Refused):
        return DataError(str(problem), where)
    at = stopped_at(problem, start)
    message = "expecting value"
    if isinstance(problem, json.JSONDecodeError):
        message = problem.msg.lower().removesuffix(" starting at")
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    return DataError(f"not JSON: {message}, column {column:,}", where, _advice(text, start, at, message))


def _advice(text: str, start: int, at: int, message: str) -> str | None:
    """What people write instead of JSON, recognised by what stands where the scanner stopped."""
    here, before = text[at : at + 9], text[start:at].rstrip()[-1:]
    if message.startswith("unterminated string") or not here.strip():
        return "is the file cut off here, or the object spread over lines? One object per line: jq -c . OLD > NEW"
    if here.startswith("\ufeff"):
        return "a byte order mark inside the file: were several files joined?"
    if here.startswith("'") or text.startswith(("{'", "['"), start):
        return "JSON needs double quotes"
    if here.startswith(("//", "/*", "#")):
        return "JSON has no comments"
    if message.startswith("illegal trailing comma"):  # Python 3.13 stops at the comma, older ones behind it
        before, here = ",", text[at + 1 : at + 64].lstrip()
    if before == "," and here[:1] in ("}", "]"):
        return f"no comma before `{here[0]}`"
    if re.match(r"None|True|False|undefined", here):
        return "JSON writes null, true and false"
    if message.startswith("invalid control character"):
        return "inside a text a line break is written \\n, a tab \\t"
    if message.startswith("invalid \\"):
        return "inside a text a backslash is written \\\\"
    if message.startswith("expecting property name"):
        return "names of columns stand in double quotes"
    if at == start and re.search(r"[,;\t]", text[start : start + 4096]):
        return "if it is a table, name it .csv or .tsv"
    return None


def _depth_exceeded(text: str, start: int, end: int, value: Any) -> bool:
    return text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and _depth(value) > MAX_DEPTH


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
        _check_whole(text)
    except _Refused as problem:
        raise DataError(str(problem), where) from None
    return text


def _check_whole(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Refused("half of a surrogate pair (\\ud800–\\udfff) is not a character") from None
