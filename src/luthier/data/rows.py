"""Rows in arrays that a file holds: what the gate, the plan and the loop see of a stored split.

Lives here: seeing rows in the arrays, figures of all rows at once. Does not live here: the arrays' files (`tokens.py`).
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import overload

import numpy as np

from luthier.data.examples import Encoded

_KINDS = {"bool": np.dtype(bool), "int": np.dtype(np.int32)}
FACTS = {field.name: _KINDS[str(field.type)] for field in fields(Encoded)[3:]}
"""What a row tells beside its id and tokens, in order (`label`, `cut`, …): a column each, of this kind."""
TOGETHER = 8192
"""Rows read, or written, at a time where all are."""
CANDIDATES = 64
"""Long rows looked at for each that a step draws, where they may share what they begin with."""


@dataclass(frozen=True, slots=True)
class Place:
    """An example by its id, and where it stood: `file:line`."""

    id: str
    where: str


@dataclass(frozen=True, slots=True)
class Arrays:
    """An opened folder: its arrays as views into the files, the mappings behind them."""

    column: dict[str, np.ndarray]
    mappings: tuple[mmap.mmap, ...]
    places: tuple[str, ...]

    def forget(self) -> None:
        """Give back the memory of what was read; it is read again where it is wanted again."""
        for mapping in self.mappings:
            mapping.madvise(mmap.MADV_DONTNEED)


class TokenRows(Sequence[Encoded]):
    """The rows of a folder, read-only: row i is made when it is asked for, a slice is a view of the same arrays."""

    def __init__(self, arrays: Arrays, chosen: range) -> None:
        self._arrays, self._chosen = arrays, chosen
        self._ids, self._train = arrays.column["ids"], arrays.column["train"]
        self._offsets, self._examples = arrays.column["offsets"], arrays.column["example"]
        self._facts = tuple(arrays.column[name] for name in FACTS)

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> TokenRows: ...
    def __getitem__(self, index: int | slice) -> Encoded | TokenRows:
        if isinstance(index, slice):
            return TokenRows(self._arrays, self._chosen[index])
        i = self._chosen[index]
        begin, end = self._offsets[i], self._offsets[i + 1]
        return Encoded(
            self._examples[i].decode("ascii"),
            self._ids[begin:end],
            self._train[begin:end],
            *[fact[i].item() for fact in self._facts],
        )

    def __iter__(self) -> Iterator[Encoded]:
        """One pass in flat memory: the rows are copies, what was read is given back."""
        for start in range(0, len(self._chosen), TOGETHER):
            some = self._chosen[start : start + TOGETHER]
            yield from self._copies(some) if some.step == 1 else (self[start + k] for k in range(len(some)))
            self._arrays.forget()

    def _copies(self, some: range) -> Iterator[Encoded]:
        span = slice(some.start, some.stop)
        offsets = self._offsets[some.start : some.stop + 1]
        edges = (offsets - offsets[0]).tolist()
        ids, train = (array[offsets[0] : offsets[-1]].copy() for array in (self._ids, self._train))
        names, *facts = (array[span].tolist() for array in (self._examples, *self._facts))
        for name, begin, end, *told in zip(names, edges[:-1], edges[1:], *facts, strict=True):
            yield Encoded(name.decode("ascii"), ids[begin:end], train[begin:end], *told)

    def flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of all rows of the folder, (T,), and where each of these rows begins and ends in them, (N,)."""
        return self._ids, self._offsets[:-1][self._span], self._offsets[1:][self._span]

    def places(self) -> Iterator[Place]:
        """Where each row stood, in order."""
        names = self._examples
        return (Place(names[i].decode("ascii"), self.where(k)) for k, i in enumerate(self._chosen))

    def where(self, index: int) -> str:
        """`file:line` of a row, as messages name it."""
        i = self._chosen[index]
        column = self._arrays.column
        return f"{self._arrays.places[column['file'][i]]}:{column['line'][i]}"

    @property
    def lengths_N(self) -> np.ndarray:
        """Tokens of every row, (N,) int64."""
        return np.diff(self._offsets)[self._span]

    @property
    def trained_N(self) -> np.ndarray:
        """Trained tokens of every row, (N,) int32."""
        return self._arrays.column["trained"][self._span]

    @property
    def prompts_N(self) -> np.ndarray:
        """`prompt_length` of every row, (N,) int32."""
        return self._arrays.column["prompt"][self._span]

    @property
    def labels_N(self) -> np.ndarray:
        """Class index of every row, (N,) int32; -1 where there is none."""
        return self._arrays.column["label"][self._span]

    @property
    def _span(self) -> slice:
        chosen = self._chosen
        stop = chosen.stop if chosen.stop >= 0 else None  # a backward range ends before 0, a slice would begin anew
        return slice(chosen.start, stop, chosen.step)


def lengths(rows: Sequence[Encoded]) -> np.ndarray:
    """Tokens of every row, (N,) int64."""
    if isinstance(rows, TokenRows):
        return rows.lengths_N
    return np.fromiter((len(row.ids_L) for row in rows), np.int64, len(rows))


def trained(rows: Sequence[Encoded]) -> np.ndarray:
    """Trained tokens of every row, (N,) integers."""
    if isinstance(rows, TokenRows):
        return rows.trained_N
    return np.fromiter((np.count_nonzero(row.train_L) for row in rows), np.int64, len(rows))


def heaviest(rows: Sequence[Encoded], most: int, shared: bool) -> list[Encoded]:
    """At most `most` rows whose step could not easily store more tokens.

    The longest ones. With `shared` prefixes, of long rows that begin alike first only the longest: the eight longest of
    a file may ask eight questions of one document, which a step would store once, while others draw eight documents.
    """
    longest = np.argsort(-lengths(rows), kind="stable")[: most * CANDIDATES if shared else most]
    if not shared:
        return [rows[i] for i in longest]
    alike: Counter[bytes] = Counter()
    places = []
    for k, row in enumerate(rows[i] for i in longest):
        beginning = row.ids_L[: 1 << max(0, len(row.ids_L).bit_length() - 2)].tobytes()  # a quarter to a half of it
        places.append((alike[beginning], k))
        alike[beginning] += 1
    return [rows[longest[k]] for _, k in sorted(places)[:most]]
