"""The locked test split: who opened it, when and how many rows of it, written down in the data set's folder.

A test set that is looked at and looked at again becomes a validation set: every choice made after a look is fitted to
it a little (Dwork et al. 2015, Science 349:636). Lives here: `openings.jsonl`, which is only ever appended to, by any
number of processes. Does not live here: what a report says of it (`evaluation/report.py`).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from luthier import disk

FILE = "openings.jsonl"


@dataclass(frozen=True, slots=True)
class Opening:
    """One look at the test rows: `time` in seconds since 1970, the id of the `run` that asked them, how many `rows`."""

    time: float
    run: str
    rows: int


def opened(folder: Path, run: str, rows: int) -> tuple[Opening, ...]:
    """Record in the data set's `folder` that `run` opens its test split; every opening so far, this run's last.

    A run counts once, however often it is resumed. What is written is on the disk before a row is asked. A line that a
    kill cut short is passed over.
    """
    with disk.alone(folder):
        known = read(folder)
        own = [opening for opening in known if opening.run == run]
        if not own:
            own = [Opening(time.time(), run, rows)]
            _append(folder / FILE, own[0])
    return (*(opening for opening in known if opening.run != run), own[0])


def read(folder: Path) -> tuple[Opening, ...]:
    """Every opening of the data set in `folder`, in the order they were made."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return ()
    found = []
    for line in lines:
        try:
            found.append(Opening(**json.loads(line)))
        except (ValueError, TypeError):  # torn by a kill, or empty
            continue
    return tuple(found)


def _append(path: Path, opening: Opening) -> None:
    new = not path.exists()
    with path.open("ab+") as file:
        torn = file.tell() > 0 and _last_byte(path) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(asdict(opening)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        disk.sync(path.parent)


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
