"""Two to eight runs side by side: what was set differently, how they learned, paired tests, rows where they differ.

Lives here: plain values, for terminal, JSON and page alike. Does not live here: the tests (`report.py`), how it looks
(`compare_page.py`, `cli/compared.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier import runs, spec
from luthier.errors import SpecError
from luthier.evaluation import curves, judgements, metrics, predictions, statistics
from luthier.evaluation.curves import smoothed
from luthier.evaluation.metrics import Metric, Prediction, measure
from luthier.evaluation.report import LEVEL, Comparison, Report, read_json, say_p, verdict
from luthier.runs import Run, Score, Stepped

FEWEST, MOST = 2, 8
KEYS = "ABCDEFGH"
_DATA = "data (rows)"

Point = tuple[int, int, float]  # updates, tokens read in training until then, mean loss per trained token


@dataclass(frozen=True, slots=True)
class Contestant:
    """A run in a comparison. `key`: A is what the others are compared with. `scores` on the rows that all share.

    `training` is smoothed, `validation` as it was measured.
    """

    key: str
    run: str
    name: str
    model: str
    method: str
    dataset: str
    rows: int
    scores: dict[str, Score]
    training: tuple[Point, ...]
    validation: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """A parameter on which the runs differ: each run's value and where it comes from, None where it has none."""

    path: str
    values: tuple[Any, ...]
    origins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Differing:
    """A test row on which the runs differ under the leading metric, with each run's answer and its value."""

    id: str
    where: str
    prompt: str
    expected: str
    answers: tuple[str, ...]
    values: tuple[float, ...]
    is_class: bool


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison of runs on the `shared` test rows that all of them answered.

    `tests`: metric → each later run against the first, in their order; with several, `p_holm` is Holm's over them, and
    the outcome follows it. `differing`: worst first, where the first run did better than the others.
    """

    runs: tuple[Contestant, ...]
    settings: tuple[Setting, ...]
    shared: int
    lead: str
    tests: dict[str, tuple[Comparison, ...]]
    differing: tuple[Differing, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Read:
    """What a run's folder says."""

    run: Run
    report: Report
    answers: dict[str, Prediction]  # by the row's id


def compare(subjects: Sequence[Run]) -> Compared:
    """Compare runs that have a report. SpecError: fewer than 2 or more than 8, one twice, no shared row."""
    _count(subjects)
    read = [_read(run) for run in subjects]
    shared = [row for row in read[0].answers if all(row in each.answers for each in read)]
    if not shared:
        raise SpecError("these runs share no test row", hint="compare runs of one data set")
    judged_by, left_out = _metrics([each.report for each in read])
    rows = [[each.answers[row] for row in shared] for each in read]
    groups = {each.report.grouped_by for each in read}
    grouped_by = groups.pop() if len(groups) == 1 else None
    contestants = tuple(_contestant(KEYS[k], each, judged_by, rows[k]) for k, each in enumerate(read))
    return Compared(
        contestants,
        _settings(subjects),
        len(shared),
        judged_by[0].name,
        {metric.name: tests(metric, rows, [run.id for run in subjects], grouped_by) for metric in judged_by},
        differing(judged_by[0], rows),
        (*_notes(read, len(shared)), *left_out),
    )


def _count(subjects: Sequence[Run]) -> None:
    if len(subjects) < FEWEST:
        raise SpecError("one run alone cannot be compared", hint="name two runs or more")
    if len(subjects) > MOST:
        raise SpecError(f"{len(subjects)} runs are too many to compare", hint=f"name {MOST} at most")
    names = [run.id for run in subjects]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpecError(f"run {twice[0]} is named twice", hint="a run cannot be compared with itself")


def _read(run: Run) -> _Read:
    rows = judgements.joined(predictions.read(run.path / "predictions.jsonl"), run.path)
    answered = predictions.side(rows, "tuned")
    return _Read(run, read_json(run.path / "report.json"), {row.id: row for row in answered})


def _metrics(reports: Sequence[Report]) -> tuple[list[Metric], list[str]]:
    """The metrics that every report has and that can be counted again, and a note on the others."""
    found: list[Metric] = []
    left_out: list[str] = []
    for name in reports[0].scores:
        if not all(name in report.scores for report in reports):
            left_out.append(f"{name}: not every run was scored by it")
            continue
        try:
            found += metrics.by_name([name])
        except SpecError:
            left_out.append(f"{name}: its values cannot be counted again from the answers alone")
    if not found:
        raise SpecError("these runs have no metric in common", hint="evaluate them with the same `evaluation.metrics`")
    return found, left_out


def _contestant(key: str, read: _Read, judged_by: Sequence[Metric], rows: Sequence[Prediction]) -> Contestant:
    report, facts = read.report, read.run.facts
    scores = report.scores
    if len(rows) != len(read.answers):
        measured = {metric.name: measure(metric, rows, report.grouped_by) for metric in judged_by}
        scores = {name: found.score for name, found in measured.items() if found is not None}
    training, validation = _learned(read.run)
    names = (read.run.id, read.run.name, facts["model"], report.subject.method, facts["dataset"])
    kept = {metric.name: scores[metric.name] for metric in judged_by if metric.name in scores}
    return Contestant(key, *names, len(read.answers), kept, training, validation)


def _learned(run: Run) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """The run's curves of training and validation, each point with the tokens read until then."""
    events = runs.read_events(run.path)
    tokens, total = {0: 0}, 0
    for event in events:
        if isinstance(event, Stepped):
            total += event.tokens
            tokens[event.step] = total
    curve = curves.from_events(events)
    known = sorted(tokens)

    def placed(points: Sequence[tuple[int, float]]) -> tuple[Point, ...]:
        return tuple((step, tokens[max(at for at in known if at <= step)], loss) for step, loss in points)

    validation = placed(curve.validation)
    return tuple((step, tokens[step], loss) for step, loss in smoothed(curve.training)), validation


# ------------------------------------------------------------------------------------------------------------- settings


def _settings(subjects: Sequence[Run]) -> tuple[Setting, ...]:
    """Only what differs, in the documentation's order; another data set counts as one more."""
    described = [spec.load(run.path / "resolved.yaml") for run in subjects]
    values = [spec.leaves(each) for each in described]
    origins = [json.loads((run.path / "origins.json").read_text(encoding="utf-8")) for run in subjects]
    differ = {path for each in described[1:] for path in spec.differences(described[0], each)}
    order = dict.fromkeys(path for each in values for path in each)
    found = [
        Setting(path, tuple(each.get(path) for each in values), tuple(each.get(path, "") for each in origins))
        for path in order
        if path in differ
    ]
    sets = tuple(run.facts["dataset"] for run in subjects)
    return (*found, *([Setting(_DATA, sets, ("",) * len(sets))] if len(set(sets)) > 1 else []))


def _notes(read: Sequence[_Read], shared: int) -> list[str]:
    notes = []
    if len({each.run.facts["dataset"] for each in read}) > 1:
        notes.append(f"the runs were tuned on different data sets: they are compared on the {shared:,} rows they share")
    elif any(len(each.answers) != shared for each in read):
        notes.append(f"the runs answered different samples: they are compared on the {shared:,} rows they share")
    if splits := {each.report.subject.split for each in read} - {"test"}:
        notes.append(f"not every score is of test rows: {', '.join(sorted(splits))}")
    return notes


# ---------------------------------------------------------------------------------------------------------- tests, rows


def tests(
    metric: Metric, rows: Sequence[Sequence[Prediction]], names: Sequence[str], grouped_by: str | None = None
) -> tuple[Comparison, ...]:
    """Every later run against the first; `grouped_by`: the column whose equal values mark rows that share a context."""
    found = [
        verdict(metric, each, rows[0], (name, names[0]), grouped_by)
        for each, name in zip(rows[1:], names[1:], strict=True)
    ]
    return tuple(found) if len(found) == 1 else adjusted(found)


def adjusted(found: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The comparisons with Holm's p over them (`statistics.holm`), and the outcome that follows from it."""
    ps = statistics.holm([each.p for each in found])
    return tuple(_with(each, p) for each, p in zip(found, ps, strict=True))


def _with(one: Comparison, p: float) -> Comparison:
    if one.outcome == "cannot tell":
        return replace(one, p_holm=p)
    if p >= LEVEL:
        head = one.sentence.rpartition(": ")[0]
        words = f"{head}: cannot tell on these rows, {say_p(one.p)} alone but {say_p(p)} among these runs"
        return replace(one, p_holm=p, outcome="cannot tell", sentence=words)
    return replace(one, p_holm=p, sentence=f"{one.sentence}; {say_p(p)} among these runs")


def differing(lead: Metric, rows: Sequence[Sequence[Prediction]]) -> tuple[Differing, ...]:
    """Rows whose values are not all the same, those first on which the first run is most ahead of the others."""
    sign = 1 if lead.higher_is_better else -1
    found: list[tuple[float, Differing]] = []
    for answers in zip(*rows, strict=True):
        values = [lead.row(answer) for answer in answers]
        known = [value for value in values if value is not None]
        if len(known) < len(values) or len(set(known)) == 1:
            continue
        ahead = sign * sum(known[0] - value for value in known[1:])
        one = answers[0]
        texts = tuple(answer.answer for answer in answers)
        shown = Differing(
            one.id, one.where, one.prompt, one.references[0], texts, tuple(known), bool(one.probabilities)
        )
        found.append((-ahead, shown))
    return tuple(each for _, each in sorted(found, key=lambda pair: pair[0]))


def outcome_in_words(compared: Compared) -> str:
    """The leading metric's tests in one or two sentences, by the runs' letters."""
    told: dict[str, list[str]] = {"better": [], "worse": [], "cannot tell": []}
    for one, test in zip(compared.runs[1:], compared.tests[compared.lead], strict=True):
        told[test.outcome].append(one.key)
    words = []
    for outcome, keys in told.items():
        if keys:
            who, verb = _and(keys), "is" if len(keys) == 1 else "are"
            tail = "cannot be told from A" if outcome == "cannot tell" else f"{verb} {outcome} than A"
            words.append(f"{who} {tail}")
    return "; ".join(words)


def _and(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"


def metric_of(compared: Compared) -> Mapping[str, Metric]:
    """The metrics of a comparison by name."""
    return {name: metrics.by_name([name])[0] for name in compared.tests}
