"""From the trials of a search to its board: who is best and how sure that is, what it was worth, what was saved.

Lives here: the rules and the sentences. Does not live here: what a board holds (`board.py`), the arithmetic of luck
(`optimism.py`), how a trial is read (`record.py`), what Optuna says (`study.py`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luthier.evaluation import metrics, statistics
from luthier.evaluation.ladder_page import duration
from luthier.evaluation.report import Report
from luthier.runs import Score
from luthier.trials import optimism, pruning, record
from luthier.trials.board import (
    Aim,
    Axis,
    Board,
    Entry,
    Failure,
    Guess,
    Plain,
    Pruned,
    Repeats,
    Tested,
    standing,
)
from luthier.trials.record import Trial
from luthier.trials.rows import Rows, Table, table

NEXT_TO_NOTHING = 5e-4  # of a score: an optimism of less is not worth a number
NO_ROWS = "no intervals: what single validation rows were worth was not kept"


@dataclass(frozen=True, slots=True)
class Search:
    """What is known of a search beside its trials. `facts`: words for people (model, method, dataset, task …).

    `described`: the experiment's own values at the searched paths. `rows`: of validation; None where not known.
    `chosen`: the number of the trial that was chosen, whatever came to its end afterwards; None before the choice.
    """

    id: str
    name: str
    state: str
    aims: tuple[Aim, ...]
    axes: tuple[Axis, ...]
    described: Mapping[str, Any]
    rows: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    chosen: int | None = None


def aim(name: str, higher: bool) -> Aim:
    """How people call an objective: the loss, a metric, or the number of weights.

    >>> aim("loss", False).title, aim("exact_match", True).top
    ('validation loss', 1.0)
    """
    if name == "loss":
        return Aim(name, "validation loss", False)
    if name == record.SIZE:
        return Aim(name, "weights trained", higher)
    metric = metrics.by_name([name])[0]
    return Aim(name, metric.title, higher, metric.top)


def conclude(
    search: Search,
    trials: Sequence[Trial],
    rows: Mapping[int, Rows],
    importance: Mapping[str, float],
    report: Report | None = None,
) -> Board:
    """The board of a search, at its end or on its way. `rows`: by trial, of those that kept them; `importance`: by
    path; `report`: the winner's on the test rows."""
    lead = search.aims[0]
    entries = [_entry(trial, search.aims) for trial in trials]
    seeded = [entry for entry in entries if entry.by == "seed"]
    tried = [entry for entry in entries if entry.by != "seed"]
    front = _front(tried, search.aims)
    tried = [dataclasses.replace(entry, front=entry.number in front) for entry in tried]
    ranked = _ranked(tried, lead, search.chosen)
    best = ranked[0] if ranked and ranked[0].objective is not None else None
    done = [entry.number for entry in ranked if entry.objective is not None]
    own_rows = {n: found for n in done if n in rows and (found := table({n: rows[n]}, lead.name)) is not None}
    known = table({number: rows[number] for number in own_rows}, lead.name)
    told = tuple(_sure(entry, best, lead, own_rows.get(entry.number), known, search.rows) for entry in ranked)
    own = next((entry for entry in told if _same(entry.values, search.described)), None)
    winner = None if best is None else told[0]
    return Board(
        search.id,
        search.name,
        dict(search.facts),
        search.state,
        search.aims,
        search.axes,
        search.rows,
        told,
        winner.number if winner else None,
        _headline(winner, told, search),
        "" if any(entry.low is not None for entry in told) or winner is None else NO_ROWS,
        own.number if own else None,
        _against(winner, own, lead, known) if winner else "",
        _differs(winner, search) if winner else (),
        dict(sorted(importance.items(), key=lambda item: -item[1])),
        _guess(winner, told, lead, own_rows, known, search.rows),
        _pruned(told),
        tuple(seeded),
        _repeats(winner, seeded, lead) if winner else None,
        _tested(winner, report, lead) if winner and report else None,
        _failures(told),
        search.notes,
    )


# ---------------------------------------------------------------------------------------------------------- the trials


def plain(of: Any) -> Plain:
    """A parameter's value as JSON text where it is none of the plain kinds.

    >>> plain(0.1), plain(["q_proj", "v_proj"])
    (0.1, '["q_proj", "v_proj"]')
    """
    return of if of is None or isinstance(of, bool | int | float | str) else json.dumps(of, ensure_ascii=False)


def _entry(trial: Trial, aims: tuple[Aim, ...]) -> Entry:
    name = aims[0].name
    told = [(step, share, scores) for step, share, scores in trial.told if math.isfinite(scores.get(name, math.nan))]
    losses = [(scores["loss"], step) for step, _, scores in trial.told if math.isfinite(scores.get("loss", math.nan))]
    return Entry(
        trial.number,
        trial.run_id,
        trial.by,
        trial.state,
        {path: plain(each) for path, each in trial.values.items()},
        {known: score if math.isfinite(score) else None for known, score in (trial.scores or {}).items()},
        record.objective(trial, [each.name for each in aims]) if trial.state == "done" else None,
        share=trial.told[-1][1] if trial.told else 0.0,
        planned=_planned(trial),
        steps=trial.steps,
        best_step=min(losses)[1] if losses else None,
        seconds=trial.seconds,
        tokens=trial.tokens,
        parameters=trial.parameters or 0,
        bytes=trial.bytes or 0,
        reason=trial.reason or "",
        curve=tuple((share, scores[name]) for _, share, scores in told),
    )


def _planned(trial: Trial) -> int:
    """All updates the trial would have made."""
    return max(trial.steps, trial.planned or 0)


def _front(entries: Sequence[Entry], aims: tuple[Aim, ...]) -> set[int]:
    """The numbers that no other trial beats in one aim and equals in the others (Pareto); none where there is one."""
    higher, known = [aim.higher for aim in aims], {e.number: e.objective for e in entries if e.objective}
    if len(aims) < 2:
        return set()
    return {n for n, own in known.items() if not any(pruning.beats(each, own, higher) for each in known.values())}


_LAST = {"running": 1, "queued": 2, "interrupted": 2, "pruned": 3, "stopped": 4, "failed": 5}


def _ranked(entries: Sequence[Entry], lead: Aim, chosen: int | None) -> list[Entry]:
    """The chosen one, then the best first, of equals those of the front; then what is on its way; then the pruned, the
    furthest first; then the failed."""
    sign = -1.0 if lead.higher else 1.0

    def key(entry: Entry) -> tuple[float, float, float, int]:
        if entry.objective is not None:
            return (-1 if entry.number == chosen else 0, sign * entry.objective[0], not entry.front, entry.number)
        last = sign * entry.curve[-1][1] if entry.curve else math.inf
        return (_LAST.get(entry.state, 4), -entry.share, last, entry.number)

    return sorted(entries, key=key)


def _ahead(entry: Entry, winner: Entry, lead: Aim) -> bool:
    """Whether a trial is better than the winner: it came to its end after the choice."""
    if entry.objective is None or winner.objective is None:
        return False
    one, other = entry.objective[0], winner.objective[0]
    return one > other if lead.higher else one < other


def _sure(
    entry: Entry, best: Entry | None, lead: Aim, own: Table | None, known: Table | None, rows: int | None
) -> Entry:
    """The entry with the interval of its `own` rows, and whether the rows that all share tell it from the best; as it
    is where nothing is known."""
    if entry.objective is None or best is None:
        return entry
    if own is not None:
        own_N, alike = own.of(entry.number), None
        low, high = statistics.share_interval(own_N) if own.is_share else optimism.interval(own_N, own.sizes_N)
        if known is not None and best.number in known.numbers and entry.number != best.number:
            below, above = optimism.interval(known.of(entry.number) - known.of(best.number), known.sizes_N)
            alike = below <= 0 <= above
        return dataclasses.replace(entry, low=low, high=high, alike=alike)
    if rows and _is_share(lead):
        low, high = statistics.wilson(entry.objective[0] * rows, rows)
        return dataclasses.replace(entry, low=low, high=high)
    return entry


def _is_share(lead: Aim) -> bool:
    """Whether a score is the share of rows that are right, so that its noise is known without them."""
    return lead.top == 1.0 and metrics.by_name([lead.name])[0].kind == "share"


def _same(values: Mapping[str, Plain], described: Mapping[str, Any]) -> bool:
    """Whether a trial's values are the described ones, wherever it has a value."""
    return bool(values) and all(
        path in described and _equal(each, plain(described[path])) for path, each in values.items()
    )


def _equal(one: Plain, other: Plain) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


# ------------------------------------------------------------------------------------------------------- the sentences


def _headline(winner: Entry | None, entries: Sequence[Entry], search: Search) -> str:
    lead, over = search.aims[0], search.state in ("done", "stopped", "failed")
    if winner is None or winner.objective is None:
        ends = "No trial came to its end" if over else "No trial has come to its end yet"
        return f"{ends}: nothing can be said of {lead.title}"
    if later := [entry.called for entry in entries if _ahead(entry, winner, lead)]:
        said = f"Trial {winner.called} was chosen: {lead.title} {standing(winner, lead)}"
        return f"{said}; better, but at its end only after the choice: trial {', '.join(later)}"
    said = f"Trial {winner.called} is best{'' if over else ' so far'}: {lead.title} {standing(winner, lead)}"
    alike = [entry.called for entry in entries if entry.alike]
    if len(alike) == 1:
        return f"{said}; trial {alike[0]} cannot be told from it on these rows"
    return f"{said}; {len(alike)} others cannot be told from it on these rows" if alike else said


def _against(winner: Entry, own: Entry | None, lead: Aim, known: Table | None) -> str:
    """The described values against the winner's."""
    if own is None:
        return "No trial had the values as they are described, so what the search gained over them is not known"
    if own.number == winner.number:
        return f"The described values are the best that were tried (trial {own.called})"
    if own.objective is None or winner.objective is None:
        return f"The described values (trial {own.called}) did not come to their end: {own.reason or own.state}"
    gap = winner.objective[0] - own.objective[0]
    said = f"The described values (trial {own.called}) have {lead.say(own.objective[0])}: the winner is "
    said += f"{lead.gap(gap)} {'higher' if gap > 0 else 'lower'}"
    if known is None or own.number not in known.numbers or winner.number not in known.numbers:
        return said
    low, high = optimism.interval(known.of(winner.number) - known.of(own.number), known.sizes_N)
    ends = sorted((abs(low), abs(high)))
    sure = f" ({lead.gap(ends[0])}–{lead.gap(ends[1])} on the same {len(known.sizes_N):,} rows)"
    return said + (sure if low * high > 0 else f", which these {len(known.sizes_N):,} rows cannot tell from nothing")


def _differs(winner: Entry, search: Search) -> tuple[tuple[str, Plain, Plain], ...]:
    pairs = ((path, plain(search.described.get(path)), each) for path, each in winner.values.items())
    return tuple(pair for pair in pairs if not _equal(pair[1], pair[2]))


def _guess(
    winner: Entry | None,
    entries: Sequence[Entry],
    lead: Aim,
    own_rows: Mapping[int, Table],
    known: Table | None,
    rows: int | None,
) -> Guess:
    """The optimism of best-of-N: from rows; else a bound where a score's noise is known; else unknown.

    A trial that was pruned was compared on the same rows, before its end: it counts, but its rows do not tell what it
    would have come to, so that with one there is a bound at best.
    """
    if winner is None or winner.objective is None:
        return Guess("unknown", 0, None, None, "")
    done = [each for each in entries if each.objective is not None and not _ahead(each, winner, lead)]
    pruned = sum(each.state == "pruned" and bool(each.curve) for each in entries)
    count = len(done) + pruned
    if count < 2:
        said = "One trial came to its end: there is no other score to tell luck by"
        return Guess("unknown", count, None, None, said)
    head = f"The best of {count} {'trials' if pruned else 'scores'} is chosen by luck as well"
    head += f", {pruned} of them ended at looks on the same rows" if pruned else ""
    if not pruned and known is not None and {each.number for each in done} <= set(known.numbers):
        of_TN = np.array([known.of(each.number) for each in done])
        found = optimism.optimism(of_TN, known.sizes_N, not lead.higher)
        if found is not None:
            return Guess("rows", count, found.amount, found.expected, _by_rows(head, found, count, lead, known))
    noise = _noise(winner, lead, own_rows.get(winner.number), rows)
    if noise is not None:
        bound = optimism.at_most(count, noise)
        said = f"{head}: on other rows expect up to {lead.gap(bound)} {'lower' if lead.higher else 'higher'}"
        return Guess("bound", count, bound, None, f"{said}, as much as {count} trials that do not differ would show")
    return Guess(
        "unknown", count, None, None, f"{head}; by how much is not known, as no values of single rows were kept"
    )


def _by_rows(head: str, found: optimism.Optimism, count: int, lead: Aim, known: Table) -> str:
    over = f"(bootstrap over {len(known.sizes_N):,} rows)"
    if found.amount < NEXT_TO_NOTHING * abs(found.seen):
        return f"The winner is far enough ahead: chosen among {count}, its score flatters by next to nothing {over}"
    said = f"{head}: expect about {lead.say(found.expected)} on other rows, {lead.gap(found.amount)} "
    return said + f"{'lower' if lead.higher else 'higher'} {over}"


def _noise(winner: Entry, lead: Aim, own: Table | None, rows: int | None) -> float | None:
    """The standard error of the winner's score: of a share from the count of rows, else from its own rows."""
    if rows and _is_share(lead) and winner.objective is not None:
        share = winner.objective[0]
        return math.sqrt(max(share * (1 - share), 1 / rows) / rows)
    return None if own is None else optimism.standard_error(own.of(winner.number), own.sizes_N)


def _pruned(entries: Sequence[Entry]) -> Pruned:
    weak = [entry for entry in entries if entry.state == "pruned"]
    planned = sum(entry.planned for entry in entries)
    undone = sum(entry.planned - entry.steps for entry in weak)
    seconds = sum((e.planned - e.steps) * e.seconds / e.steps for e in weak if e.steps)
    shares = tuple(sorted(entry.share for entry in weak))
    if not weak:
        said = "Nothing was pruned" if any(entry.state == "done" for entry in entries) else ""
        return Pruned(0, (), 0, planned, 0.0, said)
    at = f"{shares[0]:.0%}" if shares[0] == shares[-1] else f"{shares[0]:.0%} to {shares[-1]:.0%}"
    said = f"{len(weak)} of {len(entries)} trials were pruned, at {at} of their updates: {undone:,} of "
    said += f"{planned:,} updates ({undone / max(1, planned):.0%}) were saved, about {duration(seconds)} of training"
    return Pruned(len(weak), shares, undone, planned, seconds, said)


def _repeats(winner: Entry, seeded: Sequence[Entry], lead: Aim) -> Repeats | None:
    """The winner's values over seeds: the further ones were not chosen, so that their mean is not flattered."""
    found = [entry for entry in seeded if entry.objective is not None]
    if not found or winner.objective is None:
        return None
    values = np.array([entry.objective[0] for entry in (winner, *found) if entry.objective is not None])
    mean, spread, further = float(values.mean()), float(values.std(ddof=1)), float(values[1:].mean())
    half = statistics.student(len(values) - 1) * spread / math.sqrt(len(values))
    span = lead.span(mean, mean - half, mean + half)
    said = f"The winner's values with {len(values)} seeds: {span} on average, spread {lead.gap(spread)}"
    said += f"; without the seed that was chosen {lead.say(further)}"
    numbers = (winner.number, *(entry.number for entry in found))
    return Repeats(numbers, tuple(map(float, values)), mean, spread, said)


def _tested(winner: Entry, report: Report, lead: Aim) -> Tested:
    score: Score | None = report.scores.get(lead.name)
    return Tested(winner.run_id, report.verdict, score, report.fit)


def _failures(entries: Sequence[Entry]) -> tuple[Failure, ...]:
    """By reason; reasons that differ in their numbers alone are one."""
    found: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.number):
        if entry.state == "failed":
            found.setdefault(re.sub(r"\d+(\.\d+)?", "0", entry.reason), []).append(entry)
    return tuple(Failure(each[0].reason, tuple(entry.number for entry in each)) for each in found.values())
