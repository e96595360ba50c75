"""What loss curves are said to mean, and the one change advised, on made-up trainings of every kind."""

from __future__ import annotations

import doctest
import math
import random
from collections.abc import Callable

import pytest

from luthier.evaluation import curves
from luthier.evaluation.curves import Curve, Fit, Knobs

STEPS, EPOCHS = 600, 6
KNOBS = Knobs(EPOCHS, 2e-4, STEPS, dropout=0.05)


def training(loss: Callable[[float], float], noise: float = 0.1, steps: int = STEPS) -> tuple[tuple[int, float], ...]:
    """`loss` of the share of the training that is done, with each step's own noise."""
    draw = random.Random(0)
    return tuple((s, loss(s / steps) + draw.gauss(0, noise)) for s in range(1, steps + 1))


def validation(loss: Callable[[float], float], count: int = EPOCHS) -> tuple[tuple[int, float], ...]:
    return tuple((STEPS * k // count, loss(k / count)) for k in range(1, count + 1))


def falls(to: float = 0.3, fast: float = 0.05) -> Callable[[float], float]:
    return lambda t: to + 2.5 * math.exp(-t / fast)


def judged(training: tuple[tuple[int, float], ...], validation: tuple[tuple[int, float], ...] = ()) -> Fit:
    found = curves.fit(Curve(training, validation), KNOBS)
    assert found is not None
    return found


def test_over_fitting_is_said_with_its_epoch_and_fewer_epochs_are_advised() -> None:
    turns = validation(lambda t: 0.35 + 0.6 * abs(t - 0.5))
    found = judged(training(lambda t: falls()(t) - 0.2 * t), turns)
    assert found.kind == "over-fitting" and found.words.startswith(
        "Likely over-fitting since step 300: validation loss rose from 0.350 to 0.650 over 3 evaluations while "
    )
    assert found.words.endswith(
        " The weights kept are of epoch 3, 3 epochs before the end. Next, one change: `training.num_epochs` 6 → 3."
    )


@pytest.mark.parametrize(
    ("knobs", "advised"),
    [
        (KNOBS, ("training.num_epochs", 6, 2)),  # never below a third at once
        (Knobs(1, 2e-4, STEPS, dropout=0.05), ("method.dropout", 0.05, 0.1)),
        (Knobs(1, 2e-4, STEPS, dropout=0.0), ("method.dropout", 0.0, 0.05)),
        (Knobs(1, 2e-4, STEPS), ("training.learning_rate", 2e-4, 7e-5)),
        (Knobs(1, 2e-4, STEPS, dropout=0.2), ("training.learning_rate", 2e-4, 7e-5)),
        (Knobs(6, 2e-4, STEPS, max_steps=STEPS, dropout=0.05), ("training.max_steps", 600, 200)),
        (Knobs(6, 2e-4, 0), ("training.learning_rate", 2e-4, 7e-5)),
    ],
)
def test_against_over_fitting_one_value_changes_by_two_or_three(
    knobs: Knobs, advised: tuple[str, float, float]
) -> None:
    curve = Curve(training(lambda t: 1 - t), validation(lambda t: 0.5 + t))
    found = curves.fit(curve, knobs)
    assert found is not None and (found.path, found.old, found.new) == advised
    epochs = f"epoch {knobs.num_epochs / 6:.3g}, {knobs.num_epochs * 5 / 6:.3g} epochs before the end"
    kept = "step 100, 500 steps before the end" if knobs.max_steps else epochs
    assert (f" The weights kept are of {kept}." in found.words) == (knobs.steps > 0)


def test_a_loss_that_still_falls_asks_for_more_epochs() -> None:
    slow = falls(fast=0.6)
    found = judged(training(slow), validation(lambda t: slow(t) + 0.05))
    assert (found.kind, found.path, found.old, found.new) == ("under-fitting", "training.num_epochs", 6, 12)
    assert (
        "still falling at the end, from" in found.words and "0.0" in found.words and "lowest at the end" in found.words
    )
    limited = curves.fit(Curve(training(slow)), Knobs(6, 2e-4, STEPS, max_steps=600))
    assert limited is not None and (limited.path, limited.new) == ("training.max_steps", 1200)


def test_a_loss_that_hardly_moved_asks_for_a_higher_rate() -> None:
    found = judged(training(lambda t: 2.3 - 0.05 * t, 0.02), validation(lambda t: 2.31 - 0.05 * t))
    assert (found.kind, found.path, found.old, found.new) == ("under-fitting", "training.learning_rate", 2e-4, 6e-4)
    assert found.evidence == (
        "Under-fitting: training loss hardly moved, from 2.294 to 2.256 (too low a rate, or rows that teach this base "
        "nothing new); validation loss is 2.260, 0.004 above it, and lowest at the end."
    )
    assert judged(training(lambda t: 2.3, 0)).path == "training.learning_rate"  # a constant loss


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_what_has_levelled_off_fits_and_gets_no_advice(noise: float) -> None:
    found = judged(training(falls(), noise), validation(falls(0.33)))
    assert (found.kind, found.path) == ("fits", None)
    assert found.words.startswith("Neither over- nor under-fitting shows: training loss ended at 0.")
    assert "above it" in found.words


def test_a_training_that_loses_what_it_had_is_unsteady_and_wants_a_lower_rate() -> None:
    found = judged(training(lambda t: falls()(t) + (0.8 if t > 0.7 else 0)))
    assert (found.kind, found.path, found.new) == ("unsteady", "training.learning_rate", 7e-5)
    both = judged(training(lambda t: 0.5 + t), validation(lambda t: 0.5 + t))
    assert both.kind == "unsteady" and both.path == "training.learning_rate"


def test_a_loss_that_is_not_a_number_is_unsteady() -> None:
    points = (*training(falls())[:300], (301, math.nan), *training(falls())[301:])
    found = judged(points, validation(falls()))
    assert found.words == (
        "Unsteady: the loss was not a number at step 301. Next, one change: `training.learning_rate` 0.0002 → 7e-05."
    )
    assert judged(training(falls()), ((600, math.inf),)).kind == "unsteady"
    assert Curve((), ((1, math.nan), (2, 0.5), (3, 0.7))).best == (2, 0.5)


def test_without_validation_that_is_said() -> None:
    assert "no validation rows to see over-fitting by" in judged(training(falls())).words
    assert judged(training(falls(fast=0.6))).kind == "under-fitting"


def test_one_evaluation_tells_the_gap_and_no_more() -> None:
    found = judged(training(falls()), ((600, 0.5),))
    assert found.kind == "fits" and "at the only evaluation" in found.words


def test_when_validation_stands_still_a_falling_training_loss_is_not_under_fitting() -> None:
    found = judged(training(falls(fast=0.6)), validation(lambda t: 0.8))
    assert found.kind == "fits" and "lowest 5 evaluations before the end" in found.words


def test_nothing_is_said_of_a_few_steps_and_nothing_is_left_to_learn_at_zero() -> None:
    assert curves.fit(Curve(training(falls())[:9]), KNOBS) is None
    assert curves.fit(Curve(), KNOBS) is None
    assert judged(training(lambda t: 0.0, 0)).kind == "fits"


def test_noise_alone_is_seldom_called_anything() -> None:
    """Levelled-off trainings with the wide noise of small batches: 200 of them."""
    kinds = []
    for seed in range(200):
        draw = random.Random(seed)
        points = [(s, max(0.0, falls(0.5, 0.03)(s / 200) + draw.gauss(0, 0.3))) for s in range(1, 201)]
        found = curves.fit(Curve(tuple(points)), KNOBS)
        kinds.append(found and found.kind)
    assert kinds.count("fits") > 170


def test_doctests() -> None:
    assert doctest.testmod(curves).failed == 0
