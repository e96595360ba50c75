"""Examples on disk and a few numbers of each in memory: what a decision about millions of rows needs.

Lives here: what is remembered of a row (its names by content, its side, its lengths), writing the spool and reading it
again. Does not live here: the decisions (`prepare.py`, `leaks.py`), the finished folder (`dataset.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.dataset import SPLITS, Record, example_of, record_of
from luthier.data.examples import Example, Kind, answer_text, content_id
from luthier.data.templates import as_text, placeholders
from luthier.data.twins import normal
from luthier.errors import DataError, did_you_mean
from luthier.spec import Data

KINDS: tuple[Kind, ...] = ("chat", "pair", "text", "label", "segments")
MAX_ANSWERS, MAX_CLASS_LENGTH = 1 << 16, 60
"""Different answers that are remembered, and their length, until it is known that they are classes."""
NO_CLASS = -1

_COLUMNS = {
    "ids": "Q",
    "questions": "Q",
    "contents": "Q",
    "groups": "Q",
    "offsets": "Q",
    "sources": "B",
    "sides": "B",
    "kinds": "B",
    "asked": "I",
    "answered": "I",
    "classes": "i",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is remembered of N rows in the order they were read, about 50 bytes each.

    `ids`: hash of the content. `questions`: of all but the answer, in its normal form. `contents`: of both in normal
    form. `groups`: of the column `group_by` (empty without one). `offsets`: where the row begins in the spool.
    `sources`, `sides`: the split it was read for and the one its content sends it to, as indices of SPLITS. `kinds`:
    indices of KINDS. `asked`, `answered`: characters of question and answer. `classes`: its answer as an index of the
    spool's `answers`, or NO_CLASS.
    """

    ids: np.ndarray
    questions: np.ndarray
    contents: np.ndarray
    groups: np.ndarray
    offsets: np.ndarray
    sources: np.ndarray
    sides: np.ndarray
    kinds: np.ndarray
    asked: np.ndarray
    answered: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class Spool:
    """The file of examples, being written and then read. `shares`: what validation and test get of `train`."""

    def __init__(self, path: Path, data: Data, shares: Mapping[str, float], every_answer: bool) -> None:
        self._path, self._data, self._shares = path, data, shares
        self._every_answer = every_answer
        self._columns = {name: array(code) for name, code in _COLUMNS.items()}
        self._out = path.open("wb")
        self.bytes = 0
        self.answers: dict[str, int] = {}

    def add(self, example: Example, split: str) -> None:
        """Remember one row that was read for `split`. Raises DataError where the column `group_by` is missing."""
        plain, folded = (_question(example, self._data.template, form) for form in (str, normal))
        question = content_id(plain)
        same = question if folded == plain else content_id(folded)
        group = _group(example, self._data)
        source = SPLITS.index(split)
        place = (
            SPLITS.index(side(group or question, self._shares["validation"], self._shares["test"]))
            if split == "train"
            else source
        )
        answer = answer_text(example)
        whole = len(example.text or "") + sum(len(message.content) for message in example.messages)
        asked = whole if example.kind in ("text", "label") else whole - len(answer)
        line = b"\t".join(record_of(example))
        values = (
            int(example.id, 16),
            int(same, 16),
            _content(example, same),
            int(group, 16) if group else None,
            self.bytes,
            source,
            place,
            KINDS.index(example.kind),
            asked,
            len(answer),
            self._class(example.kind, answer.strip()),
        )
        for column, value in zip(self._columns.values(), values, strict=True):
            if value is not None:
                column.append(value)
        self._out.write(line)
        self.bytes += len(line)

    def _class(self, kind: Kind, answer: str) -> int:
        if kind == "text":
            return NO_CLASS
        known = self.answers.get(answer)
        if known is not None:
            return known
        if kind != "label" and not self._every_answer:
            long = len(answer) > MAX_CLASS_LENGTH or "\n" in answer
            if long or len(self.answers) >= MAX_ANSWERS:
                return NO_CLASS
        return self.answers.setdefault(answer, len(self.answers))

    def facts(self) -> Facts:
        """End the writing; what is remembered of all rows."""
        self._out.close()
        return Facts(**{name: np.frombuffer(column, column.typecode) for name, column in self._columns.items()})

    def records(self, chosen: np.ndarray) -> Iterator[Record]:
        """The chosen rows (bool, one for each row) in their order, as they are written to a split's file."""
        with self._path.open("rb") as lines:
            for line in itertools.compress(lines, chosen.tobytes()):
                yield Record(*line.split(b"\t"))

    def examples(self, chosen: np.ndarray) -> Iterator[Example]:
        """The chosen rows (bool, one for each row) in their order."""
        return map(_example, self.records(chosen))

    def at(self, facts: Facts, row: int) -> Example:
        """One row by its number."""
        with self._path.open("rb") as lines:
            lines.seek(int(facts.offsets[row]))
            return _example(Record(*lines.readline().split(b"\t")))


def _example(record: Record) -> Example:
    return example_of(record.content()[:-1] + record.place)


# -- names by content --------------------------------------------------------------------------------------------------


def _beside(example: Example, template: str | None) -> dict[str, Any]:
    """What the template takes from other columns."""
    return {name: example.columns.get(name) for name in placeholders(template) if name not in ("input", "text")}


def _last_answer(example: Example) -> int:
    turns = example.messages
    return next((i for i in range(len(turns) - 1, -1, -1) if turns[i].role == "assistant"), len(turns))


def _question(example: Example, template: str | None, form: Callable[[str], str]) -> dict[str, Any]:
    beside = {
        name: form(value) if isinstance(value, str) else value for name, value in _beside(example, template).items()
    }
    if example.kind in ("text", "label"):
        return {"text": form(example.text or "")} | beside
    turns = example.messages[: _last_answer(example)]
    return {"messages": [{"role": m.role, "content": form(m.content)} | m.extra for m in turns]} | beside


def _content(example: Example, question: str) -> int:
    """64 bits for question and answer in normal form, with the calls of tools, and the tools there are."""
    told = [question, normal(answer_text(example))]
    if example.kind == "chat":
        last = _last_answer(example)
        calls = example.messages[last].extra if last < len(example.messages) else {}
        told.append(content_id([calls, example.columns.get("tools")]))
    return int.from_bytes(hashlib.blake2b("\0".join(told).encode(), digest_size=8).digest(), "little")


def parts(example: Example, template: str | None) -> tuple[str, str, str]:
    """Question, answer, and what stands before the question (system, history, other columns), in normal form."""
    beside = [as_text(value) for value in _beside(example, template).values() if value is not None]
    if example.kind in ("text", "label"):
        return normal(example.text or ""), normal(example.label or ""), normal("\n".join(beside))
    last = _last_answer(example)
    turns = list(example.messages[:last])
    asked = turns.pop().content if turns else ""
    calls = example.messages[last].extra if last < len(example.messages) else {}
    answer = answer_text(example) + (json.dumps(calls, sort_keys=True, ensure_ascii=False) if calls else "")
    return normal(asked), normal(answer), normal("\n".join(beside + [message.content for message in turns]))


def side(key: str, validation: float, test: float) -> str:
    """The split of the row named `key`: a function of its name and the two shares alone.

    >>> [side("a", 0.0, 0.0), side("a", 0.0, 0.99)]
    ['train', 'test']
    """
    place = int.from_bytes(hashlib.sha256(f"luthier split {key}".encode()).digest()[:8]) / 2**64
    return "test" if place < test else "validation" if place < test + validation else "train"


def _group(example: Example, data: Data) -> str | None:
    if data.group_by is None:
        return None
    value = example.columns.get(data.group_by)
    if value is None:
        hint = did_you_mean(data.group_by, example.columns)
        raise DataError(f"`data.group_by` names `{data.group_by}`, which this row lacks", example.where, hint)
    return content_id({"group": as_text(value)})
