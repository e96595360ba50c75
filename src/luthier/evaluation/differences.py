"""Where tuning helped and where it hurt: rows fixed and broken, by class, length, group and the user's own slices.

Lives here: which rows form a group, what each group scores before and after. Does not live here: the language of
conditions (`spec/conditions.py`), the rows one by one with their marks (the page's), the verdict (`report.py`).

A row is fixed where the leading metric rises, for the better, by more than `threshold`; broken where it falls so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.data.examples import Example
from luthier.errors import SpecError, did_you_mean, few
from luthier.evaluation import statistics
from luthier.evaluation.metrics import Metric, Prediction, weighted
from luthier.evaluation.predictions import Question, Row
from luthier.spec import conditions

FEWEST = 5  # rows of a group: smaller ones say nothing by themselves and are joined
QUARTERS = 40  # rows from which lengths are told apart in four bins
MOST = 50  # groups of one kind that are shown by themselves
CHANGE = 0.05  # of a metric's scale: a smaller change of a row's value is not counted as fixed or broken
REST = "other"

Grouped = Mapping[str, Mapping[str, frozenset[str]]]
"""What rows are grouped by ("class", "length", "slice", or the column of `data.group_by`) → name → ids of examples."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A group of n rows under the leading metric. `difference` = tuned - base, with its 95 % interval [low, high].

    `hurt`: the whole interval lies on the bad side. Interval by interval: of 40 groups that tuning left alone one is
    called hurt by chance. Without a base only `tuned` is known.
    """

    by: str
    name: str
    n: int
    tuned: float
    base: float | None = None
    fixed: int | None = None
    broken: int | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    hurt: bool = False


# ---------------------------------------------------------------------------------------------------------- the groups


def grouped(
    questions: Sequence[Question], task: str, group_by: str | None = None, slices: Mapping[str, str] | None = None
) -> Grouped:
    """Which rows form a group. Raises SpecError where a slice's condition names no column or cannot be asked."""
    found: dict[str, Mapping[str, frozenset[str]]] = {}
    cells = {question.example.id: cells_of(question) for question in questions}
    if slices and questions:
        found["slice"] = {name: _holding(name, text, questions, cells) for name, text in slices.items()}
    if group_by is not None and any(cell.get(group_by) is not None for cell in cells.values()):
        found[group_by] = _by(
            {row: "none" if cell.get(group_by) is None else str(cell[group_by]) for row, cell in cells.items()}
        )
    if task == "classification":
        found["class"] = _by({question.example.id: question.references[0] for question in questions})
    if len(lengths := _lengths(questions)) > 1:
        found["length"] = lengths
    return found


def cells_of(question: Question) -> dict[str, Any]:
    """What a condition may ask of a row: its columns, and `prompt` and `reference` whatever the format."""
    shown = {"prompt": question.prompt, "reference": question.references[0] if question.references else None}
    return shown | dict(question.example.columns)


def answerable(slices: Mapping[str, str], examples: Sequence[Example]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The slices whose columns these rows have, and a note on each other one."""
    known = {"prompt", "reference", *(name for example in examples for name in example.columns)}
    lacking = {name: conditions.names(conditions.read(text)) - known for name, text in slices.items()}
    notes = tuple(
        f"slice `{name}`: these rows have no column {few(sorted(gone))}" for name, gone in lacking.items() if gone
    )
    return {name: text for name, text in slices.items() if not lacking[name]}, notes


def _columns(questions: Sequence[Question]) -> set[str]:
    return {name for question in questions for name in cells_of(question)}


def _holding(
    name: str, text: str, questions: Sequence[Question], cells: Mapping[str, Mapping[str, Any]]
) -> frozenset[str]:
    tree, known = conditions.read(text), _columns(questions)
    for unknown in sorted(conditions.names(tree) - known):
        hint = did_you_mean(unknown, known) or f"the columns are {few(sorted(known))}"
        where = f"evaluation.slices.{name}"
        raise SpecError(f"the slice `{name}` asks for `{unknown}`, which no row has: `{text}`", where, hint)
    held = []
    for question in questions:
        try:
            if conditions.holds(tree, cells[question.example.id]):
                held.append(question.example.id)
        except ValueError as error:
            where = f"evaluation.slices.{name}, {question.example.where}"
            raise SpecError(f"the slice `{name}` cannot be asked of this row: {error}", where) from None
    return frozenset(held)


def _by(names: Mapping[str, str]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for row, name in names.items():
        found.setdefault(name, set()).add(row)
    return {name: frozenset(rows) for name, rows in found.items()}


def _lengths(questions: Sequence[Question]) -> dict[str, frozenset[str]]:
    """Quarters (of few rows halves) of the rows by the letters of their prompt; equal lengths stay together."""
    bins = 4 if len(questions) >= QUARTERS else 2
    if len(questions) < bins * FEWEST:
        return {}
    sizes = {question.example.id: len(question.prompt) for question in questions}
    edges = np.unique(np.quantile(list(sizes.values()), np.arange(1, bins) / bins, method="lower")).tolist()
    names = [f"up to {edges[0]:,} characters"]
    names += [f"{low + 1:,} to {high:,} characters" for low, high in itertools.pairwise(edges)]
    names.append(f"over {edges[-1]:,} characters")
    found = _by({row: names[int(np.searchsorted(edges, size))] for row, size in sizes.items()})
    return {name: found[name] for name in names if name in found}


# ---------------------------------------------------------------------------------------------------------- the scores


def slices(rows: Sequence[Row], lead: Metric, groups: Grouped) -> tuple[Slice, ...]:
    """Every group under the leading metric, kind by kind, the worst first: the one that tuning hurt most. Lengths rise.

    Of classes and groups those with fewer than FEWEST rows, and those beyond the MOST largest, are joined as "other".
    A group in which the metric has no value is left out; so is a kind of which one group would be left.
    """
    compared = bool(rows) and all("base" in row.sides for row in rows)
    found: list[Slice] = []
    for by, named in groups.items():
        members = {name: [row for row in rows if row.sides["tuned"].id in ids] for name, ids in named.items()}
        if by not in ("slice", "length"):
            members = _joined(members)
        scored = [_slice(by, name, some, lead, compared) for name, some in members.items()]
        told = [each for each in scored if each is not None]
        if len(told) > 1 or by == "slice":
            found += told if by == "length" else sorted(told, key=lambda each: _badness(each, lead))
    return tuple(found)


def _joined(members: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    largest = sorted(members, key=lambda name: (-len(members[name]), name))
    alone = [name for name in largest[:MOST] if len(members[name]) >= FEWEST]
    rest = [row for name in largest if name not in alone for row in members[name]]
    return {name: members[name] for name in alone} | ({REST: rest} if rest else {})


def _badness(each: Slice, lead: Metric) -> tuple[float, float, int]:
    sign = 1 if lead.higher_is_better else -1
    return sign * (each.difference or 0.0), sign * each.tuned, -each.n


def _slice(by: str, name: str, rows: Sequence[Row], lead: Metric, compared: bool) -> Slice | None:
    sides = ("tuned", "base") if compared else ("tuned",)
    known = [row for row in rows if all(value(row, side, lead) is not None for side in sides)]
    if not known:
        return None
    values = [[value(row, side, lead) or 0.0 for row in known] for side in sides]
    answers = [[row.sides[side] for row in known] for side in sides]
    n, of = len(known), _statistic(by, lead, answers, values)
    scores = [float(of(weights)[0]) for weights in np.eye(len(sides)).repeat(n, axis=1)[:, None, :]]
    if not all(map(math.isfinite, scores)):
        return None
    if not compared:
        return Slice(by, name, n, scores[0])
    changes = [change(lead, t, b) for t, b in zip(*values, strict=True)]
    fixed, broken = changes.count(1), changes.count(-1)
    if lead.kind == "share":
        both = sum(t == 1 == b for t, b in zip(*values, strict=True))
        low, high = statistics.share_difference(both, fixed, broken, n - both - fixed - broken)
    else:
        low, high, _ = statistics.paired_bootstrap(of, n)
    difference = scores[0] - scores[1]
    low, high = min(low, difference), max(high, difference)
    hurt = high < 0 if lead.higher_is_better else low > 0
    return Slice(by, name, n, scores[0], scores[1], fixed, broken, difference, low, high, hurt)


def _statistic(
    by: str, lead: Metric, answers: Sequence[Sequence[Prediction]], values: Sequence[Sequence[float]]
) -> statistics.Weighted:
    """The metric over the rows of all sides; inside a class, where no other class occurs, the mean of its rows."""
    flat = [one for side in values for one in side]
    if by == "class":
        return statistics.mean_of(flat)
    return weighted(lead, [one for side in answers for one in side], flat)


# ------------------------------------------------------------------------------------------------------------ the rows


def value(row: Row, side: str, lead: Metric) -> float | None:
    """What the metric says of a side's answer to a row; None where it has no meaning, or nobody answered."""
    return row.values.get(side, {}).get(lead.name)


def threshold(lead: Metric, base: float) -> float:
    """The change of a row's value that counts: any of right or wrong, a twentieth of the scale, or of the base's value
    where the scale has no end."""
    if lead.kind == "share":
        return 0.0
    return CHANGE * (lead.top if lead.top is not None else abs(base))


def counted(lead: Metric) -> str:
    """`threshold` in words, for a note under a table.

    >>> from luthier.evaluation.metrics import METRICS
    >>> counted(METRICS["rougeL"]), counted(METRICS["perplexity"])
    ('ROUGE-L changed by more than 0.05', 'perplexity changed by more than 5 %')
    """
    if lead.kind == "share":
        return f"{lead.title}: wrong became right, or right became wrong"
    amount = f"{CHANGE * lead.top:g}" if lead.top is not None else f"{CHANGE:.0%}".replace("%", " %")
    return f"{lead.title} changed by more than {amount}"


def change(lead: Metric, tuned: float, base: float) -> int:
    """1 if tuning fixed a row with these values, -1 if it broke it, else 0."""
    better = tuned - base if lead.higher_is_better else base - tuned
    return 0 if abs(better) <= threshold(lead, base) else 1 if better > 0 else -1
