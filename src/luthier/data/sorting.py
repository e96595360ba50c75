"""Where every row stands: what is dropped as a twin, what leaves because of a leak, what `limit` draws.

Lives here: the decisions on a spool's numbers, and what is told about them. Does not live here: how twins are found
(`leaks.py`), reading, tasks and labels (`prepare.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from luthier.data import leaks
from luthier.data.dataset import SPLITS
from luthier.data.examples import content_id
from luthier.data.leaks import Compared, Leak
from luthier.data.spool import Facts, Spool
from luthier.spec import Data

OUT = len(SPLITS)
"""The place of a row that stands in no split."""
MAX_BYTES = 100_000_000
"""Of spooled rows (some 400,000 short ones) that are looked through for near twins unasked."""
SHOWN = 20  # rows of a kind that the summary names
_STEPS = {
    "duplicates": ("repeats another one", "repeat another one"),
    "normalised_duplicates": (
        "repeats another one but for case, spaces and punctuation at the ends",
        "repeat another one but for case, spaces and punctuation at the ends",
    ),
    "near_duplicates": (
        "nearly repeats another one (Jaccard 0.8 or more)",
        "nearly repeat another one (Jaccard 0.8 or more)",
    ),
    "contradictions": (
        "answers a question that has another answer too",
        "answer a question that has another answer too",
    ),
}


@dataclass(slots=True)
class Sorting:
    """All rows while it is decided where they stand.

    `given`: the splits that have a source of their own. `places`: for each row an index of SPLITS, or OUT. `notes`:
    what was done, for a person.
    """

    data: Data
    given: frozenset[str]
    spool: Spool
    facts: Facts
    places: np.ndarray
    notes: list[str] = field(default_factory=list)

    def rows(self, split: str) -> np.ndarray:
        """The numbers of the rows of `split`, ascending."""
        return np.flatnonzero(self.places == SPLITS.index(split))

    def where(self, rows: Iterable[int], most: int = SHOWN) -> list[str]:
        """`file:line` of the first rows."""
        return [self.spool.at(self.facts, row).where for _, row in zip(range(most), rows, strict=False)]

    def counts(self, rows: np.ndarray) -> dict[str, int]:
        """How many of the rows were read for each split that has a source."""
        found = np.bincount(self.facts.sources[rows], minlength=len(SPLITS))
        return {split: int(found[SPLITS.index(split)]) for split in SPLITS if split in self.given}


# -- twins and contradictions within what was read for a split ---------------------------------------------------------


def clean(sorting: Sorting) -> tuple[dict[str, Any], Compared | None]:
    """Find what stands twice and what contradicts itself, drop what `data.clean` names; the summary's part of it.

    Gives the rows laid ready for the search for near twins as well, None where there are too many to search unasked.
    """
    facts, told, steps = sorting.facts, {}, sorting.data.clean
    open_rows = np.ones(len(facts), bool)
    exact = leaks.repeats(facts.ids, facts, open_rows)
    open_rows[exact] = False
    told["duplicates"] = _drop(sorting, "duplicates", exact, _firsts(sorting, facts.ids, exact))
    same = leaks.repeats(facts.contents, facts, open_rows)
    open_rows[same] = False
    told["normalised_duplicates"] = _drop(
        sorting, "normalised_duplicates", same, _firsts(sorting, facts.contents, same)
    )
    compared = _compared(sorting)
    if compared is not None:
        near, partners = leaks.near_repeats(compared, facts, open_rows & (sorting.places != OUT))
        told["near_duplicates"] = _drop(sorting, "near_duplicates", near, partners)
    several = leaks.contradicting(facts, sorting.places != OUT)
    told["contradictions"] = _drop(sorting, "contradictions", several, _firsts(sorting, facts.questions, several))
    dropped = "duplicates" in steps
    old = {
        "duplicates": sorting.counts(exact) if dropped else {},
        "duplicate_rows": sorting.where(exact) if dropped else [],
    }
    return old | {"repeats": told}, compared


def _firsts(sorting: Sorting, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For the rows that are shown: the first other row of the same source with the same key."""
    facts, found = sorting.facts, []
    for row in rows[:SHOWN]:
        alike = np.flatnonzero((keys == keys[row]) & (facts.sources == facts.sources[row]))
        found.append(alike[alike != row][0])
    return np.array(found, np.int64)


def _drop(sorting: Sorting, step: str, rows: np.ndarray, partners: np.ndarray) -> dict[str, Any]:
    """Take the rows out if `data.clean` names the step; what is told of them either way."""
    asked = step in sorting.data.clean
    pairs = leaks.shown_pairs(rows, partners, sorting.spool, sorting.facts, SHOWN)
    if asked:
        sorting.places[rows] = OUT
    if len(rows):
        said = f"{len(rows):,} {'row' if len(rows) == 1 else 'rows'} {_STEPS[step][len(rows) > 1]}"
        if asked:
            sorting.notes.append(f"{said} and {'was' if len(rows) == 1 else 'were'} dropped")
        elif step != "contradictions":  # these are told by question
            sorting.notes.append(f"{said} [{'; '.join(pairs[:2])}]; `data.clean: [{step}]` drops them")
    return {"rows": len(rows), "dropped": asked, "first": pairs}


def _compared(sorting: Sorting) -> Compared | None:
    """The rows made comparable, if that is asked for or quickly done."""
    if "near_duplicates" not in sorting.data.clean and sorting.spool.bytes > MAX_BYTES:
        size = f"{len(sorting.facts):,} rows, {sorting.spool.bytes / 1e6:,.0f} MB"
        sorting.notes.append(
            f"near twins were not looked for: {size} are more than {MAX_BYTES / 1e6:,.0f} MB;"
            " `data.clean: [duplicates, near_duplicates]` looks for them all the same"
        )
        return None
    return leaks.lay(sorting.spool, sorting.facts, sorting.places != OUT, sorting.data.template)


# -- leaks between splits ----------------------------------------------------------------------------------------------


def settle(sorting: Sorting, compared: Compared | None) -> dict[str, Any]:
    """Refuse what two splits share, or with `remove_leaks` take it out of the earlier one; the summary's part of it.

    Where both splits were cut from the same rows nothing is refused: the row of validation or test is left out. Rows of
    one question are on one side already, so this happens to other spellings, to near twins, and by groups. A side that
    followed from a cluster of twins would change when rows are added; a side by normal form with Python's Unicode.
    """
    refused: list[Leak] = []
    removed: list[Leak] = []
    left_out: list[Leak] = []
    for early, late in leaks.PAIRS:
        cut_apart = late not in sorting.given and (early == "train" or early not in sorting.given)
        if cut_apart:
            loser, other = (late, early) if early == "train" else (early, late)
            kinds: tuple[leaks.Kind, ...] = ("exact", "normalised", "near")
        else:
            loser, other, kinds = early, late, leaks.KINDS
        found = leaks.between(sorting.facts, sorting.rows(loser), sorting.rows(other), kinds, compared)
        found = [replace(leak, early=loser, late=other) for leak in found]
        if cut_apart or sorting.data.remove_leaks:
            (left_out if cut_apart else removed).extend(found)
            for leak in found:
                sorting.places[leak.rows] = OUT
        else:
            refused += found
    if refused:
        raise leaks.refusal(refused, sorting.spool, sorting.facts, sorting.data.group_by)
    gone = [row for leak in removed for row in leak.rows[:SHOWN]]
    return {
        "leaks": sum(len(leak.rows) for leak in removed),
        "leaked_rows": sorting.where(gone),
        "leak_kinds": [_told(sorting, leak, "taken out") for leak in removed],
        "left_out": [_told(sorting, leak, "left out") for leak in left_out],
    }


def _told(sorting: Sorting, leak: Leak, what: str) -> dict[str, Any]:
    """A leak for the summary; also a note."""
    pairs = leaks.shown_pairs(leak.rows, leak.partners, sorting.spool, sorting.facts, SHOWN)
    sorting.notes.append(f"{leaks.says(leak, sorting.data.group_by)}: {what} [{'; '.join(pairs[:2])}]")
    return {"from": leak.early, "also_in": leak.late, "kind": leak.kind, "rows": len(leak.rows), "first": pairs}


def draw(sorting: Sorting, seed: int) -> None:
    """Keep at most `data.limit` rows of train. A smaller limit draws a part of what a larger one draws."""
    limit, rows = sorting.data.limit, sorting.rows("train")
    if limit is None or limit >= len(rows):
        return
    keys = np.array([int(content_id([seed, f"{row:016x}"]), 16) for row in sorting.facts.ids[rows].tolist()], np.uint64)
    sorting.places[rows[np.argsort(keys, kind="stable")[limit:]]] = OUT
