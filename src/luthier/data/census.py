"""What a Dataset folder holds, counted in one pass: lengths, classes, languages, longest and first rows of each split.

Lives here: counting, with memory that does not grow with rows. Does not live here: what to think of it (`survey.py`).
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from luthier.data.dataset import SPLITS, Dataset
from luthier.data.languages import LOOKED_AT, language
from luthier.data.lengths import Lengths

SIDES = ("question", "answer")
LANGUAGES_OF = 20_000
"""Rows of a split whose language is looked at, evenly spread."""
ROWS_KEPT = 3
"""Places remembered of each kind of row, the first ones."""
LONGEST_KEPT = 5
FIRST_KEPT = 3


@dataclass(slots=True)
class Split:
    """What was counted in one split. Lengths in characters; `sides` are "question" and "answer".

    `languages[side]`: language → rows, of `looked_at` rows. `places`: first rows of a kind, as `file:line`, by (what,
    name). `longest`: (characters, place), the longest first. `first`: the first rows as they stand in the folder.
    """

    rows: int = 0
    lengths: dict[str, Lengths] = field(default_factory=lambda: {side: Lengths() for side in (*SIDES, "row")})
    labels: Counter[str] = field(default_factory=Counter)
    languages: dict[str, Counter[str]] = field(default_factory=lambda: {side: Counter() for side in SIDES})
    looked_at: int = 0
    places: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    longest: list[tuple[int, str]] = field(default_factory=list)
    beyond: int = 0  # rows longer than every row of train
    first: list[dict[str, Any]] = field(default_factory=list)

    def remember(self, what: str, name: str, place: str) -> None:
        """Keep the place of one of the first rows of a kind."""
        kept = self.places.setdefault((what, name), [])
        if len(kept) < ROWS_KEPT:
            kept.append(place)


def count(dataset: Dataset) -> dict[str, Split]:
    """Every split of a Dataset folder, counted. Raises NotFound if a split's file is missing."""
    found = {}
    reach: int | None = None
    for name in SPLITS:
        found[name] = _counted(dataset, name, reach)
        reach = found["train"].lengths["row"].longest
    return found


def _counted(dataset: Dataset, name: str, reach: int | None) -> Split:
    """One split; `reach` is the length of the longest training row, None for train itself."""
    split = Split()
    step = -(-dataset.counts[name] // LANGUAGES_OF) or 1
    for record in _records(dataset, name):
        place = f"{record['file']}:{record['line']}"
        question, answer, asked = _sides(record)
        split.lengths["question"].add(question)
        split.lengths["answer"].add(len(answer))
        whole = question + len(answer)
        split.lengths["row"].add(whole)
        if len(split.longest) < LONGEST_KEPT or whole > split.longest[0][0]:
            (heapq.heappush if len(split.longest) < LONGEST_KEPT else heapq.heapreplace)(split.longest, (whole, place))
        if reach is not None and whole > reach:
            split.beyond += 1
        if label := record.get("label"):
            split.labels[label] += 1
            split.remember("label", label, place)
        if split.rows % step == 0:
            _hear(split, asked, "" if label else answer, place)
        if len(split.first) < FIRST_KEPT:
            split.first.append(record)
        split.rows += 1
    split.longest.sort(reverse=True)
    return split


def _records(dataset: Dataset, name: str) -> Iterator[dict[str, Any]]:
    with (dataset.path / f"{name}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _sides(record: dict[str, Any]) -> tuple[int, str, str]:
    """Characters of what is asked, the answer, and the text whose language is that of the question.

    Of a chat everything but the last assistant turn is asked; its language is that of the user's last turn.
    """
    if record["kind"] in ("text", "label"):
        text = record.get("text") or ""
        return len(text), record.get("label") or "", text
    asked, answer, total = "", "", 0
    for message in record["messages"]:
        content = message["content"] or ""
        total += len(content)
        if message["role"] == "assistant":
            answer = content
        elif message["role"] == "user":
            asked = content
    return total - len(answer), answer, asked


def _hear(split: Split, asked: str, answer: str, place: str) -> None:
    split.looked_at += 1
    for side, text in zip(SIDES, (asked, answer), strict=True):
        if text and (name := language(text[:LOOKED_AT])):
            split.languages[side][name] += 1
            split.remember(side, name, place)
