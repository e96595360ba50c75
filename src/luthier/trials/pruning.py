"""Which trial is weak: halving at rungs, the median, divergence, over-fitting; pure functions of what trials told.

Trials are compared at equal shares of their own planned updates, because that is where their schedules stand alike: a
trial of ten epochs has its learning rate still high where one of three is nearly done, and at equal epochs it would
look worse than it will be. Nothing is interpolated: a trial counts by the weights it had kept at its last look that was
no later. A trial that looks seldom is judged seldom, and never by what others learned after the share it has reached.

Lives here: when a trial ends early, and why. Does not live here: what is asked of it (`record.py`), who acts on it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from luthier import spec
from luthier.events import State
from luthier.trials import record
from luthier.trials.record import Trial

ETA = 3  # of the trials at a rung one in so many goes on
RUNGS = (1 / ETA**2, 1 / ETA)  # shares of a trial's updates
BRACKETS: Mapping[str, tuple[float, ...]] = {"A": RUNGS, "B": RUNGS[1:], "C": ()}
TURNS = "ABACABAABACABABAC"  # of Hyperband: 9, 5 and 3 of 17 trials, as it sizes brackets for two rungs (Li 2018)
JUDGED_AMONG = 3  # trials at a rung before the first is judged
MEDIAN_OF = 4  # trials that have ended, before the median says anything
RISES = 3  # evaluations in a row that the validation loss rises, while the training loss falls
TOLERANCE = 0.01  # of the best loss: less is noise
DIVERGED = 2.0  # times its first validation loss
FAR_ABOVE = 3.0  # times the median of the others
NEARLY = 1e-6
OUT = ("pruned", "failed", "stopped")  # who ends so has not won

Values = tuple[float, ...]
Ending = tuple[State, str]


def weak(wishes: spec.Search, higher: Sequence[bool], trials: Sequence[Trial], number: int) -> Ending | None:
    """How the trial should end now, by its newest evaluation, and why. None: it goes on.

    ("pruned", reason) where it is weak or diverges; ("done", reason) where it over-fits: the best weights it kept count
    as those of any trial, only the time is saved. `higher` says for each objective whether more is better.
    """
    trial = next(each for each in trials if each.number == number)
    if wishes.pruner == "none" or trial.by == "seed" or not trial.told or trial.told[-1][1] >= 1 - NEARLY:
        return None
    others = [each for each in trials if each.by != "seed" and each.number != number]
    if (reason := diverged(trial, others)) is not None:
        return ("pruned", reason)
    if (reason := overfitting(trial)) is not None:
        return ("done", reason)
    names = record.objectives(wishes.objective)
    if wishes.pruner == "median":
        reason = _below_median(trial, others, names, higher)
    elif wishes.pruner == "hyperband":
        bracket = _bracket(number)
        beside = [each for each in others if _bracket(each.number) == bracket]
        reason = _halved(trial, beside, names, higher, BRACKETS[bracket])
    else:
        reason = _halved(trial, others, names, higher, RUNGS)
    return ("pruned", reason) if reason and _outdone(trial, others, names, higher) else None


# --- what shows in the trial alone -----------------------------------------------------------------------------------
def diverged(trial: Trial, others: Sequence[Trial]) -> str | None:
    """In words if the newest validation loss is no number, or the trial has not learned since its first look and is
    far above that, or above the others at an equal share."""
    _, share, scores = trial.told[-1]
    loss, first = (told[2].get("loss", math.nan) for told in (trial.told[-1], trial.told[0]))
    if "loss" in scores and not math.isfinite(loss):
        return "diverged: its validation loss is not a number"
    learning = len(trial.training) > 1 and trial.training[-1] < trial.training[0]
    if len(trial.told) < 2 or learning:
        return None
    if loss > DIVERGED * first:
        return f"diverged: validation loss rose from {first:.4g} to {loss:.4g}, and training loss did not fall"
    beside = [found[0] for each in others if (found := record.objective_at(each, share + NEARLY, ["loss"]))]
    if len(beside) >= JUDGED_AMONG and loss > FAR_ABOVE * (middle := statistics.median(beside)) and loss >= first:
        return f"diverged: validation loss is {loss:.4g}, where the median of the others is {middle:.4g}"
    return None


def overfitting(trial: Trial) -> str | None:
    """In words if the validation loss rose at each of the last looks while the training loss fell."""
    losses = [scores.get("loss", math.nan) for _, _, scores in trial.told][-RISES - 1 :]
    fits = trial.training[-RISES - 1 :]
    if len(losses) <= RISES or len(fits) <= RISES or not fits[-1] < fits[0]:
        return None
    if any(not after > before for before, after in itertools.pairwise(losses)):
        return None
    if not losses[-1] > (1 + TOLERANCE) * (trial.scores or {}).get("loss", math.inf):
        return None
    rise, fall = f"{losses[0]:.4g} to {losses[-1]:.4g}", f"{fits[0]:.4g} to {fits[-1]:.4g}"
    return f"over-fitting: validation loss rose from {rise} over {RISES} looks while training loss fell from {fall}"


# --- beside the others -----------------------------------------------------------------------------------------------
def _bracket(number: int) -> str:
    return TURNS[number % len(TURNS)]


def _halved(
    trial: Trial, others: Sequence[Trial], names: Sequence[str], higher: Sequence[bool], rungs: Sequence[float]
) -> str | None:
    """Whether the trial is not among the best third at the highest rung it has reached.

    Asked again at every look, with all that has been told since: who passed a rung early, for want of company, is
    judged among those who came later. With several objectives, only who is beaten in all of them counts as worse.
    """
    share = trial.told[-1][1] + NEARLY
    rung = max((each for each in rungs if each <= share), default=None)
    own = record.objective_at(trial, share, names)
    if rung is None or own is None:
        return None
    reached = [each for each in others if each.told and each.told[-1][1] + NEARLY >= rung]
    found = [values for each in reached if (values := record.objective_at(each, share, names)) is not None]
    kept = max(1, (len(found) + 1) // ETA)
    ahead = [values for values in found if beats(values, own, higher)]
    if len(found) + 1 < JUDGED_AMONG or len(ahead) < kept:
        return None
    best = min(ahead, key=lambda values: -values[0] if higher[0] else values[0])
    said = f"{names[0]} {own[0]:.4g}, the best {best[0]:.4g}"
    return f"weak: {len(ahead)} of {len(found)} others are better at {share:.0%} of the updates ({said})"


def _outdone(trial: Trial, others: Sequence[Trial], names: Sequence[str], higher: Sequence[bool]) -> bool:
    """Whether somebody who may still win is ahead, too. A metric may fall while the loss does: without this a trial
    could end for the sake of those it had outlived, and none would be left."""
    share = trial.told[-1][1] + NEARLY
    own, left = record.objective_at(trial, share, names), [each for each in others if each.state not in OUT]
    found = [record.objective_at(each, share, names) for each in left]
    return own is not None and any(beats(values, own, higher) for values in found if values is not None)


def _below_median(trial: Trial, others: Sequence[Trial], names: Sequence[str], higher: Sequence[bool]) -> str | None:
    """Whether the trial is worse, in all objectives, than the median of those that have ended and came this far."""
    share = trial.told[-1][1] + NEARLY
    own = record.objective_at(trial, share, names)
    if share < RUNGS[0] or own is None:
        return None
    reached = [
        each for each in others if each.state in ("done", "pruned") and each.told and each.told[-1][1] + NEARLY >= share
    ]
    found = [values for each in reached if (values := record.objective_at(each, share, names)) is not None]
    if len(found) < MEDIAN_OF:
        return None
    middle = [statistics.median(column) for column in zip(*found, strict=True)]
    if not all(_better(m, o, more) for m, o, more in zip(middle, own, higher, strict=True)):
        return None
    said = f"{names[0]} {own[0]:.4g}, the median of {len(found)} others {middle[0]:.4g}"
    return f"weak: below the median at {share:.0%} of the updates ({said})"


def beats(one: Sequence[float], other: Sequence[float], higher: Sequence[bool]) -> bool:
    """Whether `one` is as good as `other` in every objective, and better in at least one."""
    pairs = [*zip(one, other, higher, strict=True)]
    return any(_better(*pair) for pair in pairs) and not any(_better(b, a, more) for a, b, more in pairs)


def _better(a: Any, b: Any, more: bool) -> bool:
    return bool(a > b) if more else bool(a < b)
