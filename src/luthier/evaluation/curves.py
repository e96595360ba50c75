"""The loss curves of a run and what they say in words: when the validation loss turned.

Plain Python, so that a terminal may ask without loading numpy. Does not live here: drawing them (`charts.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from luthier.runs import Evaluated, Event, Stepped

TOLERANCE = 0.01  # a rise of the validation loss by less than 1 % of its best value is noise
PATIENCE = 2  # evaluations after the best before anything is said
SMOOTHING = 0.9  # of the training loss: the mean of about the last ten steps


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean loss per trained token after a step: `training` at every update, `validation` at every evaluation."""

    training: tuple[tuple[int, float], ...] = ()
    validation: tuple[tuple[int, float], ...] = ()

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest validation loss, the first of equals."""
        return min(self.validation, key=lambda point: (point[1], point[0]), default=None)


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


def _at(line: list[tuple[int, float]], step: int) -> float | None:
    before = [loss for at, loss in line if at <= step]
    return before[-1] if before else None


def _short(loss: float) -> str:
    return f"{loss:.3f}" if loss < 10 else f"{loss:.1f}"
