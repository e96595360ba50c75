"""Pruners and detectors on histories made up for the purpose."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from luthier import spec
from luthier.trials import pruning
from luthier.trials.record import Trial
from tests.trials.told import trial

LOSS = (False,)


def weak(trials: Sequence[Trial], number: int, pruner: str = "asha", **fields):
    return pruning.weak(spec.Search(pruner=pruner, **fields), LOSS, trials, number)


def lockstep(finals: Sequence[float], pruner: str, looks: int = 9) -> tuple[dict[int, str], dict[int, int]]:
    """All trials at once, each with losses that fall to its final one: how each ended, and after how many looks."""
    told: dict[int, list[float]] = {number: [] for number in range(len(finals))}
    ended: dict[int, str] = {}
    for look in range(1, looks + 1):
        for number, final in enumerate(finals):
            if number in ended:
                continue
            told[number].append(final + 1 - look / looks)
            now = [trial(n, told[n], ended.get(n, "running"), looks=looks) for n in told]
            if (end := weak(now, number, pruner)) is not None:
                ended[number] = end[0]
            elif look == looks:
                ended[number] = "done"
    return ended, {number: len(losses) for number, losses in told.items()}


FINALS = [1.0, 0.9, 1.4, 0.8, 1.2, 1.1, 0.5, 1.3, 0.7, 0.6, 1.5, 1.6, 0.95, 0.85, 1.05, 1.25]


# --- without noise ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median", "none"])
@pytest.mark.parametrize("finals", [FINALS, sorted(FINALS), sorted(FINALS, reverse=True)])
def test_the_best_is_never_pruned(pruner, finals):
    ended, _ = lockstep(finals, pruner)
    assert ended[finals.index(min(finals))] == "done"
    assert set(ended) == set(range(16))


def test_asha_keeps_a_third_at_each_rung():
    ended, looks = lockstep(FINALS, "asha")
    assert [number for number, end in ended.items() if end == "done"] == [6]
    assert sum(count > 2 for count in looks.values()) <= 5 and looks[11] <= 2
    assert sum(looks.values()) < 16 * 9 / 3


def test_hyperband_leaves_some_to_the_end_unasked():
    ended, looks = lockstep(FINALS, "hyperband")
    unasked = [number for number in range(16) if pruning.TURNS[number] == "C"]
    assert unasked and all(ended[number] == "done" for number in unasked)
    late = [number for number in range(16) if pruning.TURNS[number] == "B"]
    assert late and min(looks[number] for number in late) >= 3
    assert {letter: pruning.TURNS.count(letter) for letter in "ABC"} == {"A": 9, "B": 5, "C": 3}


def test_none_prunes_nothing():
    ended, _ = lockstep([*FINALS, math.nan], "none")
    assert set(ended.values()) == {"done"}


def one_by_one(finals: Sequence[float], pruner: str) -> dict[int, str]:
    """Each trial after the one before has ended."""
    past: list[Trial] = []
    for number, final in enumerate(finals):
        losses: list[float] = []
        state = "done"
        for look in range(1, 10):
            losses.append(final + 1 - look / 9)
            if (end := weak([*past, trial(number, losses)], number, pruner)) is not None:
                state = end[0]
                break
        past.append(trial(number, losses, state))
    return {each.number: each.state for each in past}


@pytest.mark.parametrize("pruner", ["asha", "median"])
def test_a_known_weak_trial_is_pruned(pruner):
    ended = one_by_one([0.5, 0.6, 0.7, 0.8, 5.0, 0.4], pruner)
    assert ended[4] == "pruned" and ended[0] == ended[5] == "done"


def test_the_median_is_of_at_least_four_that_have_ended():
    others = [trial(i, [1.0] * 9, "done") for i in range(4)]
    assert weak([*others[:3], trial(9, [2.0])], 9, "median") is None
    assert weak([*others, trial(9, [2.0])], 9, "median")[0] == "pruned"
    assert weak([*others, trial(9, [0.9])], 9, "median") is None
    under_way = [trial(i, [1.0] * 8) for i in range(6)]
    assert weak([*under_way, trial(9, [2.0])], 9, "median") is None


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median"])
def test_with_a_metric_that_falls_again_somebody_always_comes_to_the_end(pruner):
    """What is measured at the lowest loss may be worse than at the look before: all were ahead of all at some time."""
    wished = spec.Search(objective="exact_match", pruner=pruner)
    for seed in range(100):
        draw = random.Random(seed)
        metric = [[draw.random() for _ in range(9)] for _ in range(8)]
        ended: dict[int, str] = {}
        for look in range(1, 10):
            for number in range(8):
                seen = {n: look if n not in ended else int(ended[n].split()[1]) for n in range(8)}
                now = [
                    trial(n, [9.0 - i for i in range(k)], ended.get(n, "running").split()[0], metric=metric[n])
                    for n, k in seen.items()
                ]
                if number not in ended and (end := pruning.weak(wished, (True,), now, number)):
                    ended[number] = f"{end[0]} {look}"
        assert len(ended) < 8, f"seed {seed}"


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median"])
def test_nobody_is_pruned_for_the_sake_of_those_who_have_ended_for_nothing(pruner):
    """`hyperband`: numbers of one bracket."""
    wished = spec.Search(objective="exact_match", pruner=pruner)
    gone = [trial(i, [3.0, 2.0], "pruned", metric=[0.8, 0.8]) for i in (0, 2, 4, 6)]
    others = [trial(7, [3.0, 2.0], "failed", metric=[0.9, 0.9]), trial(8, [3.0, 2.0], "stopped", metric=[0.9, 0.9])]
    dipped = trial(9, [2.9, 1.9], metric=[0.9, 0.5])
    assert pruning.weak(wished, (True,), [*gone, *others, dipped], 9) is None
    for state in ("running", "done"):
        ahead = trial(11, [3.0, 2.0], state, metric=[0.6, 0.6])
        assert pruning.weak(wished, (True,), [*gone, *others, ahead, dipped], 9)[0] == "pruned"


# --- fairness --------------------------------------------------------------------------------------------------------
def test_trials_are_compared_at_equal_shares_of_their_own_updates():
    """A trial of 90 looks and one of 9 stand alike after a third of each."""
    short = [trial(i, [3.0, 2.0, 1.0 + i / 10, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2], "done") for i in range(3)]
    slow = trial(7, [3.0 - i / 15 for i in range(30)], looks=90)  # at a third: 1.07, behind the first only
    assert weak([*short, slow], 7) is None or slow.told[-1][2]["loss"] > 1.0
    assert pruning.weak(spec.Search(), LOSS, [*short, trial(7, [3.0, 2.0, 0.99])], 7) is None
    # after a ninth it is not held against what others reached at their end
    assert weak([*short, trial(8, [2.99])], 8) is None


def test_nobody_is_judged_by_what_others_learned_later():
    ahead = [trial(i, [3.0, 0.1, 0.1, 0.1], "running") for i in range(5)]
    assert weak([*ahead, trial(9, [2.9])], 9) is None


def test_a_trial_that_passed_a_rung_alone_is_judged_when_others_came():
    first = trial(0, [2.0])
    assert weak([first], 0) is None and weak([first, trial(1, [1.0])], 0) is None
    others = [trial(i, [1.0, 0.9]) for i in range(1, 6)]
    assert weak([trial(0, [2.0, 1.9]), *others], 0)[0] == "pruned"


def test_who_has_not_reached_the_rung_is_no_company():
    others = [trial(i, [0.1, 0.1], looks=90) for i in range(6)]
    assert weak([*others, trial(9, [2.0])], 9) is None


def test_who_has_made_the_way_is_not_pruned_at_its_end():
    others = [trial(i, [0.1] * 9, "done") for i in range(6)]
    assert weak([*others, trial(9, [2.0] * 9)], 9) is None


def test_equals_go_on_together():
    trials = [trial(i, [1.0, 0.9, 0.8]) for i in range(9)]
    assert all(weak(trials, number) is None for number in range(9))


def test_the_winner_s_seeds_are_neither_judged_nor_company():
    trials = [trial(i, [0.1], by="seed") for i in range(5)] + [trial(9, [2.0])]
    assert weak(trials, 9) is None
    assert weak([trial(i, [0.1]) for i in range(5)] + [trial(9, [2.0], by="seed")], 9) is None


def test_with_several_objectives_only_who_is_beaten_in_all_is_weak():
    others = [trial(i, [1.0], parameters=500) for i in range(6)]
    wished, lower = spec.Search(objective="loss, size"), (False, False)
    assert pruning.weak(wished, lower, [*others, trial(9, [2.0], parameters=100)], 9) is None
    assert pruning.weak(wished, lower, [*others, trial(9, [2.0], parameters=900)], 9)[0] == "pruned"
    median = spec.Search(objective="loss, size", pruner="median")
    ended = [trial(i, [1.0] * 9, "done", parameters=500) for i in range(6)]
    assert pruning.weak(median, lower, [*ended, trial(9, [2.0], parameters=100)], 9) is None
    assert pruning.weak(median, lower, [*ended, trial(9, [2.0], parameters=900)], 9)[0] == "pruned"


def test_a_metric_where_more_is_better():
    others = [trial(i, [1.0], metric=[0.9]) for i in range(6)]
    wished = spec.Search(objective="exact_match")
    end = pruning.weak(wished, (True,), [*others, trial(9, [0.5], metric=[0.1])], 9)
    assert end[0] == "pruned" and "exact_match 0.1, the best 0.9" in end[1]
    assert pruning.weak(wished, (True,), [*others, trial(9, [2.0], metric=[0.95])], 9) is None


# --- detectors -------------------------------------------------------------------------------------------------------
def test_a_loss_that_is_no_number_ends_a_trial():
    assert weak([trial(0, [math.nan])], 0) == ("pruned", "diverged: its validation loss is not a number")


def test_a_loss_far_above_its_start_ends_a_trial_that_learns_nothing():
    assert weak([trial(0, [1.0, 2.5], fits=[1.0, 3.0])], 0)[1].startswith(
        "diverged: validation loss rose from 1 to 2.5"
    )
    assert weak([trial(0, [1.0, 1.9], fits=[1.0, 3.0])], 0) is None
    assert weak([trial(0, [1.0, 2.5], fits=[1.0, 0.3])], 0) is None  # it learns: that is not divergence


def test_a_loss_far_above_the_others_ends_a_trial_that_learns_nothing():
    others = [trial(i, [1.0, 1.0], "running", looks=90) for i in range(3)]
    lost = trial(9, [4.0, 4.0], looks=90, fits=[4.0, 4.0])
    assert "the median of the others is 1" in weak([*others, lost], 9)[1]
    assert weak([*others, trial(9, [4.0, 3.5], looks=90, fits=[4.0, 3.5])], 9) is None
    assert weak([*others[:2], lost], 9) is None


def test_over_fitting_ends_a_trial_that_keeps_what_it_reached():
    rising = trial(0, [2.0, 1.0, 1.1, 1.2, 1.3], fits=[2.0, 1.0, 0.8, 0.6, 0.4])
    state, reason = weak([rising], 0)
    assert state == "done" and reason.startswith("over-fitting: validation loss rose from 1 to 1.3 over 3 looks while")


@pytest.mark.parametrize(
    ("losses", "fits"),
    [
        ([2.0, 1.0, 1.1, 1.2], [2.0, 1.0, 0.8, 0.6]),  # two rises
        ([2.0, 1.0, 1.1, 1.05, 1.2], [2.0, 1.0, 0.8, 0.6, 0.4]),  # not in a row
        ([2.0, 1.0, 1.1, 1.2, 1.3], [2.0, 1.0, 1.1, 1.2, 1.3]),  # training loss rises, too
        ([2.0, 1.0, 1.001, 1.002, 1.003], [2.0, 1.0, 0.8, 0.6, 0.4]),  # noise
        ([2.0, 1.0, 1.1, 1.2, 1.3], [math.nan] * 5),  # nobody knows
    ],
)
def test_what_is_no_over_fitting(losses, fits):
    assert weak([trial(0, losses, fits=fits)], 0) is None


def test_a_queued_trial_is_not_judged():
    assert weak([trial(0, [], "queued"), trial(1, [1.0])], 0) is None
