"""Rows of JSON files: one object per line, or one array of objects, told apart by how the text begins.

Lives here: where a row begins and ends in the text, and its line. Does not live here: values (`strict_json.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.data.cells import Row
from luthier.data.strict_json import explain, scan, stopped_at
from luthier.data.textfiles import MAX_ROW, line_groups, text_pieces, too_long
from luthier.errors import DataError

_ONE_PER_LINE = "one object per line, or one array of objects"
_CHATS = ("messages", "conversations", "conversation", "tools", "prompt", "completion")
_SPACE = re.compile(r"[ \t\r\n]*")
_ARRAY_OF_OBJECTS = re.compile(r"\[[ \t\r\n]*[{\]]")


def json_rows(path: Path, name: str, encoding: str | None = None) -> Iterator[Row]:
    """Rows of a .json, .jsonl or .ndjson file: the suffixes are mixed up so often that the text decides."""
    window = _Window(text_pieces(path, name, encoding), name)
    begin, is_json = window.peek(), ".json" in (suffix.lower() for suffix in path.suffixes[-2:])
    if begin == "[" and (is_json or window.begins_with_array_of_objects()):
        return _array(window)
    if begin == "{" and is_json:
        _refuse_one_object(window)
    return _lines(window)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kinds = {list: "an array", str: "a string", type(None): "null", bool: "a truth value"}
        kind = kinds.get(type(value), "a number")
        raise DataError(f"a row must be an object with named columns, not {kind}", where)
    return value


# -- one object per line -----------------------------------------------------------------------------------------------


def _lines(window: _Window) -> Iterator[Row]:
    name = window.name
    for first, group in line_groups(window.rest(), name, window.line):
        for number, line in enumerate(group, first):
            try:
                value, end = scan(line)
            except (StopIteration, ValueError, RecursionError):
                end = -1
            if end != len(line) and (end < 0 or line[end:] != "\r"):
                value = _careful(line, f"{name}:{number}")
                if value is None:
                    continue
            if type(value) is not dict:
                _object(value, f"{name}:{number}")
            yield value, name, number


def _careful(line: str, where: str) -> Any:
    """The object of a line that holds more than one plain value; None for a blank line."""
    text = line.strip(" \t\r")
    if not text:
        return None
    try:
        value, end = scan(text)
    except (StopIteration, ValueError, RecursionError) as problem:
        raise explain(problem, text, 0, where) from None
    if end == len(text):
        return _object(value, where)
    rest = text[end:].lstrip(" \t\r")
    if rest == ",":
        raise DataError("a comma after the object", where, "lines of JSON have none; or put all into [ … ]")
    hint = _ONE_PER_LINE
    if "\r" in text[end:]:
        hint = "the lines end with CR alone: tr '\\r' '\\n' < OLD > NEW"
    elif rest.startswith(("//", "#")):
        hint = "JSON has no comments"
    raise DataError("more than one JSON value on this line", where, hint)


def _refuse_one_object(window: _Window) -> None:
    """A .json file that begins with an object which is no row: a wrapper of rows, columns, a row over many lines."""
    try:
        value = window.value()
    except DataError:
        return  # the reader of lines says it with its place
    start, end = window.last
    spread, window.at = "\n" in window.text[start:end], start
    alone = not window.text[end:].strip() and not window.more()
    wrapped = [name for name, inner in value.items() if name not in _CHATS and _lists_objects(inner)] if alone else []
    if wrapped:
        hint = f"save that list alone: jq -c '.{wrapped[0]}[]' OLD > NEW.jsonl"
        raise DataError(f"one object, whose `{wrapped[0]}` holds the rows", window.where, hint)
    if alone and _turned(list(value.values())):
        hint = 'a data frame writes rows by to_json(orient="records", lines=True)'
        raise DataError("this file holds columns, not rows", window.where, hint)
    if spread:
        raise DataError("an object spread over several lines", window.where, "one per line: jq -c . OLD > NEW.jsonl")


def _lists_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(inner, dict) for inner in value)


def _turned(values: list[Any]) -> bool:
    """Whether all are columns of one length: lists, or objects whose keys are the numbers of the rows."""
    if all(isinstance(value, list) and len(value) > 1 for value in values):
        lengths, cells = {len(value) for value in values}, (cell for value in values for cell in value)
        return len(values) > 1 and len(lengths) == 1 and not any(isinstance(cell, dict | list) for cell in cells)
    keys = [tuple(value) for value in values if isinstance(value, dict)]
    return len(keys) == len(values) and len(set(keys)) == 1 and all(key.isdecimal() for key in keys[0])


# -- an array of objects -----------------------------------------------------------------------------------------------


def _array(window: _Window) -> Iterator[Row]:
    """The rows of the array that the window stands before, one after the other; the array is never held whole."""
    name = window.name
    window.at += 1
    closed = window.peek() == "]"
    while not closed:
        line = window.line
        yield _object(window.value(), f"{name}:{line}"), name, line
        sign = window.peek()
        closed = sign == "]"
        if sign == ",":
            window.at += 1
            if window.peek() == "]":
                raise DataError("a comma before the closing `]`", window.where, "take it out")
        elif sign == "":
            raise DataError("the array does not end", window.where, "is the file cut off?")
        elif not closed:
            hint = "a comma stands between two rows"
            raise DataError("the array does not go on with `,` or end with `]`", window.where, hint)
    window.at += 1
    if window.peek():
        raise DataError("something follows the end of the array", window.where, _ONE_PER_LINE)


class _Window:
    """The part of a text that is being looked at: `text` from `at` on; `line` is that of the last `peek`.

    `last` is where the last value began and ended in `text`.
    """

    def __init__(self, pieces: Iterator[str], name: str) -> None:
        self.pieces, self.name = pieces, name
        self.text, self.at, self.last = "", 0, (0, 0)
        self.line, self._counted = 1, 0

    @property
    def where(self) -> str:
        return f"{self.name}:{self.line}"

    def peek(self) -> str:
        """The next character that is no space, where `at` then stands; empty at the end of the text."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            self.line += self.text.count("\n", self._counted, self.at)
            self._counted = self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def begins_with_array_of_objects(self) -> bool:
        while not (found := _ARRAY_OF_OBJECTS.match(self.text, self.at)):
            match = _SPACE.match(self.text, self.at + 1)
            ended = match is None or match.end() < len(self.text)
            if ended or len(self.text) > MAX_ROW or not self.more():
                break
        return bool(found)

    def value(self) -> Any:
        """The JSON value at `at`, which then stands behind it. Reads on as long as the value may be incomplete."""
        while True:
            problem: Exception | None = None
            try:
                value, end = scan(self.text, self.at)
            except (StopIteration, ValueError, RecursionError) as found:
                problem, end = found, len(self.text)
            if problem is None and end < len(self.text):
                break
            if len(self.text) - self.at > MAX_ROW or not self.more():
                break
        if problem is not None:
            self._refuse(problem)
        if end - self.at > MAX_ROW:
            raise too_long("row", self.where)
        self.last = self.at, end
        self.at = end
        return value

    def _refuse(self, problem: Exception) -> None:
        stopped = stopped_at(problem, self.at)
        cut_in_text = str(problem).startswith("Unterminated string") and len(self.text) - self.at > MAX_ROW
        if cut_in_text or stopped - self.at > MAX_ROW:
            raise too_long("row", self.where)
        self.line += self.text.count("\n", self._counted, stopped)
        raise explain(problem, self.text, self.at, self.where)

    def more(self) -> bool:
        """Drop what is behind `at` and read as much again as is left; False at the end of the text."""
        left = len(self.text) - self.at
        found, taken = [], 0
        while taken <= left and (piece := next(self.pieces, None)) is not None:
            found.append(piece)
            taken += len(piece)
        if not taken:
            return False
        self.text, self.at, self._counted = self.text[self.at :] + "".join(found), 0, self._counted - self.at
        return True

    def rest(self) -> Iterator[str]:
        """All text from `at` on."""
        yield self.text[self.at :]
        self.text, self.at, self._counted = "", 0, 0
        yield from self.pieces
