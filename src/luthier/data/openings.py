"""The locked test split: who opened it, when, and how many rows of it, written down in the data set's folder.

A test set that is looked at again and again becomes a validation set: what is chosen after a look is fitted to it a
little (Dwork et al. 2015, Science 349:636). Lives here: `openings.jsonl`, which is only ever appended to, by any number
of processes. Does not live here: what a report says of it (`evaluation/report.py`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import disk
from luthier.data.dataset import Dataset
from luthier.data.examples import content_id

FILE = "openings.jsonl"


@dataclass(frozen=True, slots=True)
class Opening:
    """One look at the test rows: `time` in seconds since 1970, the id of the `run` that asked them, how many `rows`."""

    time: float
    run: str
    rows: int


def opened(dataset: Dataset, run: str, rows: int) -> tuple[Opening, ...]:
    """Record that `run` asks `rows` rows of the test split of `dataset`; every opening so far, this one last.

    A run counts once, however often it is resumed. The record is on the disk before this returns. Data sets that stand
    beside it and have the same test rows (another training file, another cleaning) count as well.
    """
    test = content_id(sorted({example.id for example in dataset.stream("test")}))
    with disk.alone(dataset.path):
        own = next((line for line in _lines(dataset.path / FILE) if line["run"] == run and line["test"] == test), None)
        if own is None:
            own = {"time": time.time(), "run": run, "rows": rows, "test": test}
            _append(dataset.path / FILE, own)
    every = [line for path in dataset.path.parent.glob(f"[!.]*/{FILE}") for line in _lines(path)]
    others = [_opening(line) for line in every if line["test"] == test and line["run"] != run]
    return (*sorted((each for each in others if each.time <= own["time"]), key=lambda each: each.time), _opening(own))


def _opening(line: dict[str, Any]) -> Opening:
    return Opening(line["time"], line["run"], line["rows"])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """What was written down; a line that a power cut tore is passed over."""
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            told = json.loads(line)
            _opening(told), told["test"]
        except (ValueError, KeyError, TypeError):
            continue
        yield told


def _append(path: Path, line: dict[str, Any]) -> None:
    """One write at the end of the file, on a line of its own even after a torn one."""
    new = not path.exists()
    with path.open("ab", buffering=0) as file:
        file.write(b"\n" * (not new) + json.dumps(line).encode() + b"\n")
        os.fsync(file.fileno())
    if new:
        disk.sync(path.parent)
