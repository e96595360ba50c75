"""Rows that stand twice: within what was read for a split, and in two splits.

Lives here: finding them by the numbers of a spool, and saying where they stand. Does not live here: what a twin is
(`twins.py`), what is done about them (`prepare.py`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from luthier.data import twins
from luthier.data.dataset import SPLITS
from luthier.data.spool import KINDS as KINDS_OF_ROWS
from luthier.data.spool import Facts, Spool, parts
from luthier.errors import DataError

PAIRS = (("train", "test"), ("validation", "test"), ("train", "validation"))
_BLOCK = 1 << 19  # characters whose shingles are made at once
_SAMPLE = 5000  # rows that tell what is boilerplate

Kind = Literal["exact", "normalised", "near", "group"]
KINDS: tuple[Kind, ...] = ("exact", "normalised", "near", "group")
_SAYS: dict[Kind, str] = {
    "exact": "also {stand} in {late}",
    "normalised": "{stand} in {late} but for case, spaces and punctuation at the ends",
    "near": "{have} a near twin in {late} (Jaccard 0.8 or more)",
    "group": "{are} of a group (`{group_by}`) that stands in {late}",
}


@dataclass(frozen=True, slots=True)
class Leak:
    """Rows of the split `early` that stand in `late` as well, in one of the kinds, and for each the row it meets."""

    early: str
    late: str
    kind: Kind
    rows: np.ndarray
    partners: np.ndarray


@dataclass(frozen=True, slots=True)
class Compared:
    """The rows (numbers, ascending) that were laid ready for the search for near twins."""

    numbers: np.ndarray
    rows: twins.Rows

    def of(self, numbers: np.ndarray) -> twins.Rows:
        return self.rows.take(np.searchsorted(self.numbers, numbers))


def lay(spool: Spool, facts: Facts, chosen: np.ndarray, template: str | None) -> Compared:
    """Make the chosen rows (bool) comparable: reads their texts once. About 0.5 kB a row of 50 characters."""
    found: list[list[twins.Shingles]] = [[], [], []]
    texts: list[tuple[str, str, str]] = []
    fixed, room = array("Q"), 0

    def flush() -> None:
        for part, kept in zip(zip(*texts, strict=True), found, strict=False):
            kept.append(twins.shingle(part))
        texts.clear()

    for example in spool.examples(chosen):
        texts.append(parts(example, template))
        fixed.append(twins.fixed(*texts[-1][:2]))
        room += sum(map(len, texts[-1]))
        if room > _BLOCK:
            flush()
            room = 0
    flush()
    numbers = np.flatnonzero(chosen)
    sample = np.argsort(facts.ids[numbers])[:_SAMPLE]  # by content: the same rows in whatever order they come
    ready = []
    for pieces in found:
        whole = twins.joined(pieces)
        ready.append(twins.without(whole, twins.boilerplate(whole.take(sample))))
    question, answer, before = ready
    return Compared(numbers, twins.rows_of(question, answer, before, np.array(fixed, np.uint64)))


def repeats(keys: np.ndarray, facts: Facts, chosen: np.ndarray) -> np.ndarray:
    """The chosen rows (numbers, ascending) whose key an earlier chosen row of the same source has."""
    found = []
    for source in range(len(SPLITS)):
        numbers = np.flatnonzero(chosen & (facts.sources == source))
        first = np.zeros(len(numbers), bool)
        first[np.unique(keys[numbers], return_index=True)[1]] = True
        found.append(numbers[~first])
    return np.concatenate(found)


def near_repeats(compared: Compared, facts: Facts, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chosen rows with an earlier near twin of the same source, and that twin."""
    rows, partners = [], []
    for source in range(len(SPLITS)):
        numbers = np.flatnonzero(chosen & (facts.sources == source))
        ours = compared.of(numbers)
        found = twins.partners(ours, ours, before=True)
        rows.append(numbers[found >= 0])
        partners.append(numbers[found[found >= 0]])
    return np.concatenate(rows), np.concatenate(partners)


def contradicting(facts: Facts, chosen: np.ndarray) -> np.ndarray:
    """The chosen rows (numbers, ascending) whose question another chosen row of the same source answers otherwise."""
    found = [np.zeros(0, np.int64)]
    for source in range(len(SPLITS)):
        numbers = np.flatnonzero(chosen & (facts.sources == source))
        found.append(numbers[np.isin(facts.questions[numbers], several_answers(facts, numbers))])
    return np.concatenate(found)


def several_answers(facts: Facts, rows: np.ndarray) -> np.ndarray:
    """The questions (their hashes) that have more than one answer (in normal form) among the rows."""
    asks = rows[facts.kinds[rows] != KINDS_OF_ROWS.index("text")]
    order = np.lexsort((facts.contents[asks], facts.questions[asks]))
    asked, told = facts.questions[asks][order], facts.contents[asks][order]
    return np.unique(asked[1:][(asked[1:] == asked[:-1]) & (told[1:] != told[:-1])])


def between(
    facts: Facts, rows: np.ndarray, others: np.ndarray, kinds: Sequence[Kind], compared: Compared | None
) -> list[Leak]:
    """What two splits share, given by their rows; a row is counted once, by the first kind that fits."""
    found = []
    for kind in kinds:
        if not len(rows) or not len(others):
            break
        if kind == "near":
            if compared is None:
                continue
            met = twins.partners(compared.of(rows), compared.of(others))
        else:
            keys = {"exact": facts.ids, "normalised": facts.contents, "group": facts.groups}[kind]
            met = _meeting(keys[rows], keys[others]) if len(keys) else np.full(len(rows), -1)
        hit = met >= 0
        if hit.any():
            found.append(Leak("", "", kind, rows[hit], others[met[hit]]))
        rows = rows[~hit]
    return found


def _meeting(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each key the first place where it stands in `others`, or -1."""
    order = np.argsort(others, kind="stable")
    ranked = others[order]
    place = np.minimum(np.searchsorted(ranked, keys), len(others) - 1)
    return np.where(ranked[place] == keys, order[place], -1)


def refusal(leaks: Sequence[Leak], spool: Spool, facts: Facts, group_by: str | None) -> DataError:
    """The refusal that names the kinds, how many rows, and the first pairs of each."""
    told = "; ".join(says(leak, group_by) for leak in leaks)
    shown = "; ".join(pair for leak in leaks for pair in shown_pairs(leak.rows, leak.partners, spool, facts))
    early = " and ".join(dict.fromkeys(leak.early for leak in leaks))
    return DataError(told, shown, f"data.remove_leaks: true takes them out of {early}")


def says(leak: Leak, group_by: str | None) -> str:
    """The leak in words, without where."""
    one = len(leak.rows) == 1
    words = {"stand": "stands", "have": "has", "are": "is"} if one else {"stand": "stand", "have": "have", "are": "are"}
    what = _SAYS[leak.kind].format(late=leak.late, group_by=group_by, **words)
    return f"{len(leak.rows):,} {'row' if one else 'rows'} of {leak.early} {what}"


def shown_pairs(rows: Iterable[int], partners: Iterable[int], spool: Spool, facts: Facts, most: int = 3) -> list[str]:
    """The first pairs as `file:line = file:line`."""
    return [
        f"{spool.at(facts, row).where} = {spool.at(facts, other).where}"
        for _, row, other in zip(range(most), rows, partners, strict=False)
    ]
