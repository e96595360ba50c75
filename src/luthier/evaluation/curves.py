"""The loss curves of a run and what they say in words: over-fitting, under-fitting, and what to change next.

Plain Python, so that a terminal may ask without loading numpy. Does not live here: drawing them (`charts.py`).

One change at a time, by a factor of two or three: step 6 of the seven-step guide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.runs import Evaluated, Event, Stepped

TOLERANCE = 0.01  # a rise of the validation loss by less than 1 % of its best value is noise
PATIENCE = 2  # evaluations after the best before anything is said
WELL = "Neither over- nor under-fitting shows"
SMOOTHING = 0.9  # of the training loss: the mean of about the last ten steps
PARTS = 5  # of the training, compared by their mean losses
FEWEST_STEPS = 10  # with fewer updates nothing is said of the training loss
FALLING = 0.02  # of the loss: a fall from the last but one part to the last that counts
RISING = 0.05  # of the lowest part's loss: a rise to the last part that counts
MOVED = 0.05  # of the first steps' loss: less has hardly been learned
NOTHING_LEFT = 0.02  # nats a token: below it there is nothing left to learn
SURE = 2.0  # standard errors a difference between two parts must have

Kind = Literal["over-fitting", "under-fitting", "unsteady", "fits"]


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean loss per trained token after a step: `training` at every update, `validation` at every evaluation."""

    training: tuple[tuple[int, float], ...] = ()
    validation: tuple[tuple[int, float], ...] = ()

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest validation loss, the first of equals."""
        finite = [point for point in self.validation if math.isfinite(point[1])]
        return min(finite, key=lambda point: (point[1], point[0]), default=None)


def from_events(events: Iterable[Event]) -> Curve:
    """The curves of a run's events. A step seen again after a resume counts once, as the last one said."""
    training: dict[int, float] = {}
    validation: dict[int, float] = {}
    for event in events:
        if isinstance(event, Stepped):
            training[event.step] = event.loss
        elif isinstance(event, Evaluated) and "loss" in event.scores:
            validation[event.step] = event.scores["loss"]
    return Curve(tuple(sorted(training.items())), tuple(sorted(validation.items())))


def smoothed(points: Iterable[tuple[int, float]], factor: float = SMOOTHING) -> list[tuple[int, float]]:
    """Exponential mean of the past only, corrected for its start, so that the first point is itself.

    >>> smoothed([(1, 4.0), (2, 2.0)], factor=0.5)
    [(1, 4.0), (2, 2.6666666666666665)]
    """
    mean, weight, line = 0.0, 0.0, []
    for step, loss in points:
        mean, weight = factor * mean + (1 - factor) * loss, factor * weight + (1 - factor)
        line.append((step, mean / weight))
    return line


def overfitting(curve: Curve) -> str | None:
    """One sentence if the validation loss has turned, else None.

    Turned: the best evaluation is at least two back, and the last one is more than 1 % above it. It is called
    over-fitting only if the smoothed training loss went on falling; otherwise the training itself is unsteady.
    """
    if not turned(curve):
        return None
    (step, best), (last_step, last) = curve.best or (0, 0.0), curve.validation[-1]
    later = sum(1 for at, _ in curve.validation if at > step)
    rise = f"validation loss rose from {_short(best)} to {_short(last)} over {later} evaluations"
    line = smoothed(curve.training)
    before, after = _at(line, step), _at(line, last_step)
    if before is None or after is None:
        return f"Likely over-fitting since step {step}: {rise}."
    if after < before:
        fall = f"training loss fell from {_short(before)} to {_short(after)}"
        return f"Likely over-fitting since step {step}: {rise} while {fall}."
    return f"Unsteady since step {step}: {rise}, and training loss did not fall either; a lower learning rate may help."


def turned(curve: Curve) -> bool:
    """Whether the validation loss has passed its minimum and risen beyond the tolerance."""
    if curve.best is None:
        return False
    step, best = curve.best
    later = [loss for at, loss in curve.validation if at > step]
    return len(later) >= PATIENCE and later[-1] > best * (1 + TOLERANCE)


# ------------------------------------------------------------------------------------------------------ what they mean


@dataclass(frozen=True, slots=True)
class Knobs:
    """The values that an advice may change, as the run had them. `steps`: updates of the whole training."""

    num_epochs: int
    learning_rate: float
    steps: int
    max_steps: int | None = None
    dropout: float | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """How the training went: its kind, the evidence in words, and the one value to change next, if any."""

    kind: Kind
    evidence: str
    path: str | None = None
    old: float | None = None
    new: float | None = None

    @property
    def words(self) -> str:
        """Evidence and advice as one text."""
        if self.path is None:
            return self.evidence
        return f"{self.evidence} Next, one change: `{self.path}` {_number(self.old)} → {_number(self.new)}."


def fit(curve: Curve, knobs: Knobs) -> Fit | None:
    """Whether the curves show over- or under-fitting, and what to change next. None: too few updates to tell.

    Over-fitting and its rule: `overfitting`. Unsteady: a loss is not a number, or the last fifth of the training lost
    what an earlier one had. Under-fitting: the loss hardly moved from that of the first steps, or it still falls in the
    last fifth and validation, where it was measured, falls with it.
    """
    broken = [step for step, loss in (*curve.training, *curve.validation) if not math.isfinite(loss)]
    if broken:
        said = f"Unsteady: the loss was not a number at step {min(broken)}."
        return Fit("unsteady", said, *_rate(knobs, 1 / 3))
    if (turn := overfitting(curve)) is not None:
        if turn.startswith("Unsteady"):
            return Fit("unsteady", turn, *_rate(knobs, 1 / 3))
        return Fit("over-fitting", turn + _kept(curve, knobs), *_less(curve, knobs))
    losses = [loss for _, loss in curve.training]
    if len(losses) < FEWEST_STEPS:
        return None
    parts = [losses[len(losses) * k // PARTS : len(losses) * (k + 1) // PARTS] for k in range(PARTS)]
    first, last = _mean(losses[: max(3, len(losses) // 100)]), _mean(parts[-1])
    lowest = min(parts[:-1], key=_mean)
    if last > _mean(lowest) * (1 + RISING) and _differ(lowest, parts[-1]):
        said = f"Unsteady: training loss rose from {_short(_mean(lowest))} to {_short(last)} at the end."
        return Fit("unsteady", said, *_rate(knobs, 1 / 3))
    if last > NOTHING_LEFT and first - last < MOVED * first:
        moved = f"from {_short(first)} to {_short(last)} (too low a rate, or rows that teach this base nothing new)"
        said = f"Under-fitting: training loss hardly moved, {moved}{_gap(curve, last)}."
        return Fit("under-fitting", said, *_rate(knobs, 3))
    before = _mean(parts[-2])
    if last > NOTHING_LEFT and last < before * (1 - FALLING) and _differ(parts[-2], parts[-1]) and _follows(curve):
        fell = f"from {_short(before)} to {_short(last)} in the last fifth{_gap(curve, last)}"
        said = f"Under-fitting: training loss was still falling at the end, {fell}."
        return Fit("under-fitting", said, *_more(knobs))
    said = f"{WELL}: training loss ended at {_short(last)}{_gap(curve, last)}."
    return Fit("fits", said)


def _kept(curve: Curve, knobs: Knobs) -> str:
    """Of which epoch (where steps are limited: step) the weights are, and how many came after it."""
    if curve.best is None or not knobs.steps:
        return ""
    if knobs.max_steps is not None:
        later = curve.validation[-1][0] - curve.best[0]
        return f" The weights kept are of step {curve.best[0]:,}, {later:,} steps before the end."
    best, end = (step / knobs.steps * knobs.num_epochs for step in (curve.best[0], curve.validation[-1][0]))
    return f" The weights kept are of epoch {best:.3g}, {end - best:.3g} epochs before the end."


def _less(curve: Curve, knobs: Knobs) -> tuple[str, float, float]:
    """Against over-fitting: end nearer to the best step; if that is the end already more dropout, else a lower rate."""
    best = (curve.best or (0, 0.0))[0]
    share = max(best / knobs.steps, 1 / 3) if knobs.steps else 1.0
    if knobs.max_steps is not None:
        if (steps := math.ceil(knobs.max_steps * share - 1e-9)) < knobs.max_steps:
            return "training.max_steps", knobs.max_steps, steps
    elif (epochs := math.ceil(knobs.num_epochs * share - 1e-9)) < knobs.num_epochs:
        return "training.num_epochs", knobs.num_epochs, epochs
    if knobs.dropout is not None and knobs.dropout < 0.1:
        return "method.dropout", knobs.dropout, 2 * knobs.dropout or 0.05
    return _rate(knobs, 1 / 3)


def _more(knobs: Knobs) -> tuple[str, float, float]:
    if knobs.max_steps is not None:
        return "training.max_steps", knobs.max_steps, 2 * knobs.max_steps
    return "training.num_epochs", knobs.num_epochs, 2 * knobs.num_epochs


def _rate(knobs: Knobs, factor: float) -> tuple[str, float, float]:
    return "training.learning_rate", knobs.learning_rate, float(f"{knobs.learning_rate * factor:.1g}")


def _follows(curve: Curve) -> bool:
    """Whether the validation loss, where there are two evaluations to see it by, still falls at the end too."""
    losses = [loss for _, loss in curve.validation]
    return len(losses) < 2 or (losses[-1] == min(losses) and losses[-1] < losses[-2] * (1 - TOLERANCE))


def _gap(curve: Curve, training: float) -> str:
    """The last validation loss beside the training loss, or that nobody measured it."""
    if not curve.validation:
        return "; there were no validation rows to see over-fitting by"
    last, best = curve.validation[-1][1], curve.best
    side = "above" if last >= training else "below"
    gap = f"validation loss is {_short(last)}, {_short(abs(last - training))} {side} it"
    if len(curve.validation) == 1:
        return f"; {gap} at the only evaluation"
    later = sum(1 for step, _ in curve.validation if best is not None and step > best[0])
    return f"; {gap}, " + (
        "and lowest at the end" if not later else f"and was lowest {later} evaluations before the end"
    )


def _differ(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two parts of a training differ by more than the noise of their steps."""
    error = math.sqrt(_variance(one) / len(one) + _variance(other) / len(other))
    return abs(_mean(one) - _mean(other)) > SURE * error


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)


def _number(value: float | None) -> str:
    return f"{value:g}" if value is not None else ""


def _at(line: list[tuple[int, float]], step: int) -> float | None:
    before = [loss for at, loss in line if at <= step]
    return before[-1] if before else None


def _short(loss: float) -> str:
    return f"{loss:.3f}" if loss < 10 else f"{loss:.1f}"
