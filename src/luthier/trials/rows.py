"""What each validation row was worth under the weights a trial keeps: `validation.json` in its folder.

Who scores a trial may write it; intervals and the optimism of a search need it, nothing else does. Does not live here:
what is made of it (`optimism.py`, `board.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luthier import disk

FILE = "validation.json"


@dataclass(frozen=True, slots=True)
class Rows:
    """By name of score (`loss`, a metric): of each row in `ids` its value and its size; the score is sum over sum.

    Of the loss: a row's summed negative log-likelihood, and its trained tokens. Of a metric: its part, and 1. Where a
    score was not asked of a row, both are 0.
    """

    ids: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]
    sizes: Mapping[str, tuple[float, ...]]


def of(loss: Mapping[str, tuple[float, float]], parts: Mapping[str, Mapping[str, float]]) -> Rows:
    """Rows of the loss, from (negative log-likelihood, trained tokens) by row, and of metrics, from each row's part.

    >>> found = of({"a": (2.5, 3.0), "b": (0.5, 1.0)}, {"exact_match": {"b": 1.0}})
    >>> found.values["loss"], found.values["exact_match"], found.sizes["exact_match"]
    ((2.5, 0.5), (0.0, 1.0), (0.0, 1.0))
    """
    every = {"loss": loss} | {name: {row: (part, 1.0) for row, part in each.items()} for name, each in parts.items()}
    ids = tuple(dict.fromkeys(row for each in every.values() for row in each))
    told = {name: [each.get(row, (0.0, 0.0)) for row in ids] for name, each in every.items()}
    values, sizes = ({name: tuple(pair[k] for pair in each) for name, each in told.items()} for k in (0, 1))
    return Rows(ids, values, sizes)


def write(folder: Path, rows: Rows) -> None:
    """Complete or not there. Raises OSError; ValueError where a value is not finite or rows are missing."""
    for name, values in rows.values.items():
        if not len(values) == len(rows.sizes[name]) == len(rows.ids) or not all(map(math.isfinite, values)):
            raise ValueError(f"{name}: {len(values)} values for {len(rows.ids)} rows, or one is not finite")
    content = {"ids": rows.ids, "values": dict(rows.values), "sizes": dict(rows.sizes)}
    disk.write_whole(folder / FILE, json.dumps(content) + "\n")


def read(folder: Path) -> Rows | None:
    """As `write` left it; None where nobody wrote it."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    values, sizes = ({name: tuple(found) for name, found in content[key].items()} for key in ("values", "sizes"))
    return Rows(tuple(content["ids"]), values, sizes)


@dataclass(frozen=True, slots=True)
class Table:
    """The same N rows under T trials: `numbers` are the trials', in the order of `values_TN`."""

    numbers: tuple[int, ...]
    values_TN: np.ndarray
    sizes_N: np.ndarray

    def of(self, number: int) -> np.ndarray:
        """values_N of one trial."""
        return self.values_TN[self.numbers.index(number)]

    @property
    def is_share(self) -> bool:
        """Whether rows are right or wrong."""
        return bool(np.isin(self.values_TN, (0.0, 1.0)).all() and (self.sizes_N == 1.0).all())


def table(known: Mapping[int, Rows], name: str) -> Table | None:
    """The rows of which `name` was asked, and that all trials with it share and size alike; None without one trial or
    two rows.

    Trials whose rendering of the data differs may count other tokens: rows are shared where their sizes agree.
    """
    found = {number: rows for number, rows in known.items() if name in rows.values}
    if not found:
        return None
    sized = {n: dict(zip(rows.ids, rows.sizes[name], strict=True)) for n, rows in found.items()}
    first = next(iter(sized.values()))
    shared = [row for row, size in first.items() if size > 0 and all(each.get(row) == size for each in sized.values())]
    if len(shared) < 2:
        return None
    worth = {n: dict(zip(rows.ids, rows.values[name], strict=True)) for n, rows in found.items()}
    return Table(tuple(found), np.array([_picked(worth[n], shared) for n in found]), np.array(_picked(first, shared)))


def _picked(of: Mapping[str, float], ids: Sequence[str]) -> list[float]:
    return [of[row] for row in ids]
