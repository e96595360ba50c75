"""Rows in the order of their content: the order in which those that begin alike are neighbours.

Lives here: sorting, of millions of rows in little memory. Does not live here: what the order is for (`batches.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from luthier.data.examples import Encoded
from luthier.data.rows import TokenRows

AT_ONCE = 1 << 18
"""Rows whose keys are in memory together (some hundred bytes each)."""


def sort_key(ids_L: np.ndarray) -> bytes:
    """Bytes whose order is the order of the id sequences."""
    return ids_L.astype(">i4").tobytes()


def by_content(rows: Sequence[Encoded], at_once: int = AT_ONCE) -> np.ndarray:
    """(N,) int64: the indices of `rows` in the order of their ids; equal rows stay in their order.

    Stored rows are first divided by two tokens at a time, until `at_once` of them or fewer begin alike: beside their
    tokens they take a few numbers a row.
    """
    if not isinstance(rows, TokenRows):
        return np.array(sorted(range(len(rows)), key=lambda i: sort_key(rows[i].ids_L)), np.int64)
    ids_T, begins, ends = rows.flat()
    order = np.arange(len(rows))
    parts = [(0, len(rows), 0)]  # rows of one beginning, so many tokens long, stand in order[start:stop]
    while parts:
        start, stop, depth = parts.pop()
        some = order[start:stop]
        if len(some) <= at_once:
            order[start:stop] = sorted(some.tolist(), key=lambda i: sort_key(ids_T[begins[i] + depth : ends[i]]))
            continue
        pairs = _pairs(ids_T, begins[some] + depth, ends[some])
        by_pair = np.argsort(pairs, kind="stable")
        order[start:stop], pairs = some[by_pair], pairs[by_pair]
        edges = np.concatenate([[0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1, [len(pairs)]])
        for a, b, alike in _divided(edges, at_once):
            if not alike:
                parts.append((start + a, start + b, depth))
            elif int(pairs[a]) & 0xFFFFFFFF:  # else all of them end here: they are equal
                parts.append((start + a, start + b, depth + 2))
    return order


def _pairs(ids_T: np.ndarray, at_N: np.ndarray, ends_N: np.ndarray) -> np.ndarray:
    """(N,) uint64: the two tokens of each row from its place `at_N` on, as a number in their order; an end is least."""
    found = np.zeros(len(at_N), np.uint64)
    for _ in range(2):
        there = at_N < ends_N
        found <<= np.uint64(32)
        found[there] |= ids_T[at_N[there]].astype(np.uint64) + np.uint64(1)
        at_N = at_N + 1
    return found


def _divided(edges: np.ndarray, at_once: int) -> Iterator[tuple[int, int, bool]]:
    """Groups of rows that begin alike, from edge to edge: each large one by itself (True), small ones together."""
    at = 0
    while at < len(edges) - 1:
        large = edges[at + 1] - edges[at] > at_once
        beyond = at + 1 if large else int(np.searchsorted(edges, edges[at] + at_once, "right")) - 1
        yield int(edges[at]), int(edges[beyond]), bool(large)
        at = beyond
