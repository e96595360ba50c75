"""Asked to stop in any phase, a run saves where it is and goes on bit for bit (reliability test 8).

Deaths in a row within one epoch repeat no example and skip none (3).
"""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from luthier import runs
from luthier.train import checkpoint, loop
from tests.faults.victims import (
    Training,
    Trap,
    Ward,
    at_call,
    be_asked_to_stop,
    bits,
    checkpoint_bits,
    die,
    leftovers,
    log,
)

# phase → where the signal comes (before which call of what), and the checkpoint that must stand then: update, and
# whether the evaluation and saving after it are done
PHASES: dict[str, tuple[str, int, tuple[int, bool] | None]] = {
    "start-up": ("luthier.workbench:of_run", 1, None),
    "step": ("luthier.train.optimizer:SlotOptimizer.step", 4, (4, True)),
    "evaluation": ("luthier.train.loop:validation_losses", 1, (5, False)),
    "save": ("luthier.train.checkpoint:save_file", 3, (5, True)),
    "final": ("luthier.models.adapters:save", 1, (10, True)),
    "answers": ("luthier.evaluation.predictions:collect", 1, (10, True)),
}


@pytest.fixture(scope="module")
def expected(ward: Ward) -> dict[str, Any]:
    run = ward.run()
    assert ward.carry(run) == 0
    return bits(run)


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_saves_and_the_run_goes_on(ward: Ward, expected: dict[str, Any], phase: str) -> None:
    target, number, stands = PHASES[phase]
    run = ward.run()
    assert ward.carry(run, at_call(target, number, be_asked_to_stop)) == 0
    assert runs.load(run).state == "stopped"
    found, complaints = checkpoint.newest(run / "checkpoints")
    assert not complaints
    assert (None if found is None else (found.progress.step, found.progress.looked_back)) == stands
    assert max((event.step for event in runs.read_events(run)), default=0) == (stands[0] if stands else 0)
    assert ward.carry(run) == 0
    assert bits(run) == expected
    assert not leftovers(run)


def test_a_second_signal_during_the_save_changes_nothing(ward: Ward, expected: dict[str, Any]) -> None:
    run = ward.run()
    assert ward.carry(run, at_call("luthier.disk:sync", 4, be_asked_to_stop, again=(5, 6, 7))) == 0
    assert runs.load(run).state == "stopped" and not leftovers(run)
    found, complaints = checkpoint.newest(run / "checkpoints")
    assert found is not None and not complaints
    assert ward.carry(run) == 0
    assert bits(run) == expected


def test_an_evaluation_that_was_told_but_not_saved_is_told_once(ward: Ward, expected: dict[str, Any]) -> None:
    """Stopped before an evaluation, killed after it and before its save: the next makes it once more."""
    run = ward.run()
    assert ward.carry(run, at_call("luthier.train.loop:validation_losses", 1, be_asked_to_stop)) == 0
    assert ward.carry(run, at_call("luthier.train.checkpoint:save_file", 1, die)) < 0
    assert ward.carry(run) == 0
    assert bits(run) == expected


def test_a_signal_between_two_micro_batches_forgets_the_half_done_update(training: Training) -> None:
    """Each example is a micro-batch, four an update; the signal comes in the first of the third update."""
    wishes = {"batch_size": 4, "save_every": 9, "max_steps": 3, "budget": 1}
    whole, room = training.reference(**wishes), training.fresh()
    assert training.carry(room, at_call("luthier.train.loop:_weighted", 10, be_asked_to_stop), **wishes) == 0
    found, _ = checkpoint.newest(room / "checkpoints")
    assert found is not None and found.progress.step == 2
    ended = runs.read_events(room)[-1]
    assert isinstance(ended, runs.Finished) and ended.state == "stopped"
    assert training.carry(room, **wishes) == 0
    assert checkpoint_bits(max((room / "checkpoints").iterdir())) == whole[3]


# --- chained ----------------------------------------------------------------------------------------------------------
def samples_to(path: Path) -> Trap:
    """Write down which examples each update is made of, before it is made."""

    def lay() -> None:
        plain = loop.drawn

        def told(lane: loop.Lane) -> Any:
            rows = plain(lane)
            with path.open("a") as file:
                file.write(json.dumps([lane.progress.step, [row.example_id for row in rows]]) + "\n")
            return rows

        loop.drawn = told

    return lay


def samples(path: Path) -> dict[int, list[str]]:
    """Update → its examples; an update that was begun again must have been begun with the same."""
    told: dict[int, list[str]] = {}
    for line in path.read_text().splitlines():
        step, rows = json.loads(line)
        assert told.setdefault(step, rows) == rows, f"update {step} saw other examples the second time"
    return told


@pytest.mark.parametrize("accumulate", [1, 4, 16])
@pytest.mark.parametrize("batching", ["random", "grouped"])
def test_five_deaths_within_an_epoch_repeat_no_example_and_skip_none(
    accumulate: int, batching: str, tmp_path: Path
) -> None:
    training = Training(tmp_path, rows=7 * accumulate + 1)  # eight updates, the last of one example
    carry = functools.partial(
        training.carry, batch_size=1, accumulate_steps=accumulate, max_steps=8, evaluate_every=8, batching=batching
    )
    whole, broken = training.fresh(), training.fresh()
    assert carry(whole, samples_to(tmp_path / "whole")) == 0
    for _ in range(5):  # in the second update after each beginning, before it counts
        deadly = at_call("luthier.train.optimizer:SlotOptimizer.step", 2, die)
        assert carry(broken, samples_to(tmp_path / "broken"), deadly) < 0
    assert carry(broken, samples_to(tmp_path / "broken")) == 0
    expected, seen = samples(tmp_path / "whole"), samples(tmp_path / "broken")
    assert seen == expected and sorted(seen) == list(range(8))
    assert sorted(itertools.chain(*seen.values())) == sorted(row.example_id for row in training.examples)
    assert log(broken) == log(whole)
    ends = [checkpoint_bits(room / "checkpoints" / "step-00000008") for room in (whole, broken)]
    assert ends[0] == ends[1]
