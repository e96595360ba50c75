"""A trial as its folder tells it: its values, what it told on the way, what it came to.

Lives here: `Trial`, read from a run's folder. Does not live here: making that folder (`searching/`), judging it
(`study.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier import runs
from luthier.evaluation import curves
from luthier.runs import Evaluated, Event, Finished, Run, Started, State, Stepped

SIZE = "size"
"""The objective that counts trained parameters (kept as float32: four bytes each)."""

Told = tuple[int, float, dict[str, float]]
"""An evaluation: updates made, share of the trial's own updates, scores on validation."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial. `told` are its evaluations in order, `training` its smoothed training loss at each of them (nan where
    nobody knows). `scores`: those of the weights it keeps, the evaluation of lowest validation loss; None before the
    first. `seconds` of its updates, `steps` made, `tokens` trained on, `parameters` trained, `bytes` of its adapter;
    `planned` updates. `by`: sampler, person or seed.
    """

    number: int
    run_id: str
    path: str
    values: Mapping[str, Any]
    by: str
    state: State
    told: tuple[Told, ...] = ()
    scores: dict[str, float] | None = None
    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    parameters: int | None = None
    bytes: int | None = None
    reason: str | None = None
    training: tuple[float, ...] = field(default=())
    planned: int | None = None


def objectives(objective: str) -> tuple[str, ...]:
    """The names in `search.objective`.

    >>> objectives("loss, size")
    ('loss', 'size')
    """
    return tuple(name.strip() for name in objective.split(",") if name.strip())


def of_search(search: Run) -> list[Trial]:
    """Every trial of a search, by number. A folder that is no whole run yet is passed over."""
    found = [runs.load(path.parent) for path in search.path.parent.glob(f"{search.id}.[0-9]*/{runs.RECORD}")]
    return sorted((read(run) for run in found if "number" in run.facts), key=lambda trial: trial.number)


def read(run: Run) -> Trial:
    """The trial in a run's folder. What an attempt before did, and a later one did again, counts once."""
    told = _events(run)
    began = next((event for event in reversed(told) if isinstance(event, Started)), None)
    steps = [event for event in told if isinstance(event, Stepped)]
    seen = {event.step: event for event in told if isinstance(event, Evaluated)}
    looks = [seen[step] for step in sorted(seen)]
    planned = began.steps if began else None
    last = next((event for event in reversed(told) if isinstance(event, Finished)), None)
    return Trial(
        number=int(run.facts["number"]),
        run_id=run.id,
        path=str(run.path),
        values=run.facts["values"],
        by=run.facts["by"],
        state=run.state,
        told=tuple((look.step, look.step / planned if planned else 0.0, dict(look.scores)) for look in looks),
        scores=_kept(looks),
        seconds=sum(step.seconds for step in steps),
        steps=max((event.step for event in told), default=0),
        tokens=sum(step.tokens for step in steps),
        parameters=began.trainable_parameters if began else None,
        bytes=_bytes(run),
        reason=_reason(run, last),
        training=_training(steps, looks),
        planned=planned,
    )


def _events(run: Run) -> list[Event]:
    """What happened, without a line that is half written; nothing, where the file is missing or damaged."""
    try:
        return runs.read_events(run.path)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def _kept(looks: Sequence[Evaluated]) -> dict[str, float] | None:
    """The scores of the weights that a run keeps: lowest validation loss, the first of equals; None before any."""
    finite = [look for look in looks if math.isfinite(look.scores.get("loss", math.nan))]
    return dict(min(finite, key=lambda look: look.scores["loss"]).scores) if finite else None


def _training(steps: Sequence[Stepped], looks: Sequence[Evaluated]) -> tuple[float, ...]:
    line = dict(curves.smoothed((step.step, step.loss) for step in steps))
    found, reached, at = [], math.nan, 0
    numbers = sorted(line)
    for look in looks:
        while at < len(numbers) and numbers[at] <= look.step:
            reached, at = line[numbers[at]], at + 1
        found.append(reached)
    return tuple(found)


def _bytes(run: Run) -> int | None:
    folders = (run.path / name for name in ("adapter", "model"))
    sizes = [file.stat().st_size for folder in folders for file in folder.glob("*") if file.is_file()]
    return sum(sizes) or None


def _reason(run: Run, last: Finished | None) -> str | None:
    """Why it ended as it did, where there is something to say: an error, or the end's own words."""
    if run.error is not None:
        return run.error.get("message")
    return last.reason if last is not None and run.state == last.state else None


def objective(trial: Trial, names: Sequence[str]) -> tuple[float, ...] | None:
    """The trial's value of each name (`loss`, a metric, SIZE) at the weights it keeps; None while one is not known or
    not finite."""
    return _values(trial, trial.scores, names)


def objective_at(trial: Trial, share: float, names: Sequence[str]) -> tuple[float, ...] | None:
    """As `objective`, of the weights that the trial kept when it had made `share` of its updates."""
    seen = [scores for _, at, scores in trial.told if at <= share and math.isfinite(scores.get("loss", math.nan))]
    return _values(trial, min(seen, key=lambda scores: scores["loss"], default=None), names)


def _values(trial: Trial, scores: Mapping[str, float] | None, names: Sequence[str]) -> tuple[float, ...] | None:
    if scores is None:
        return None
    known: dict[str, float] = {**scores} | ({SIZE: trial.parameters} if trial.parameters is not None else {})
    found = tuple(float(known.get(name, math.nan)) for name in names)
    return found if all(map(math.isfinite, found)) else None
