"""Whatever a run is killed at, the same command ends with the same bits (reliability tests 1 and 2)."""

from __future__ import annotations

import itertools
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier import runs
from luthier.train import checkpoint
from tests.faults.victims import (
    METHODS,
    TRAINING,
    Training,
    Ward,
    after_power_cut,
    at_file_operation,
    at_line,
    bits,
    checkpoint_bits,
    leftovers,
    power_may_fail,
)

UNINTERRUPTED: dict[tuple[Ward, str], tuple[dict[str, Any], int]] = {}


def uninterrupted(ward: Ward, method: str) -> tuple[dict[str, Any], int]:
    """What an uninterrupted run leaves, and of how many lines of luthier it was made."""
    if (ward, method) not in UNINTERRUPTED:
        if method == "qlora":
            pytest.importorskip("bitsandbytes")
        run, count = ward.run(method), ward.folder / f"{method}.count"
        ward.forget_tokens()
        assert ward.carry(run, at_line(None, count)) == 0
        UNINTERRUPTED[ward, method] = bits(run), int(count.read_text())
    return UNINTERRUPTED[ward, method]


@pytest.mark.parametrize("points", [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_any_line_and_carried_again_it_is_the_same_run(ward: Ward, method: str, points: int) -> None:
    expected, lines = uninterrupted(ward, method)
    draw = np.random.default_rng(sorted(METHODS).index(method))
    for line in sorted(draw.integers(1, lines, points).tolist()):
        run = ward.run(method)
        ward.forget_tokens()
        assert ward.carry(run, at_line(line)) == -signal.SIGKILL, f"line {line} of {lines} was not reached"
        assert runs.load(run).state in ("interrupted", "queued")
        assert ward.carry(run) == 0
        assert bits(run) == expected, f"killed at line {line} of {lines}"
        assert not leftovers(run)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(4))
def test_killed_at_every_file_operation_of_a_whole_run_it_is_the_same_run(ward: Ward, part: int) -> None:
    """From the lock to the verdict, every fourth operation; at most one save's interval is done again."""
    expected, _ = uninterrupted(ward, "lora")
    counted = ward.folder / "operations.count"
    run = ward.run()
    assert ward.carry(run, at_file_operation(run, None, counted)) == 0
    for number in range(1 + part, int(counted.read_text()) + 1, 4):
        run = ward.run()
        assert ward.carry(run, at_file_operation(run, number)) == -signal.SIGKILL
        done = max((event.step for event in runs.read_events(run)), default=0)
        assert ward.carry(run) == 0
        began = [event.step for event in runs.read_events(run) if isinstance(event, runs.Started)][-1]
        assert done - began <= TRAINING["save_every"], f"killed at file operation {number}"
        assert bits(run) == expected, f"killed at file operation {number}"
        assert not leftovers(run)


@pytest.mark.parametrize("begins", ["fresh", "stopped"])
def test_killed_or_cut_off_at_every_file_operation_of_its_saves_a_training_has_a_whole_checkpoint(
    training: Training, tmp_path: Path, begins: str
) -> None:
    """Both what stands after a kill, and what a power cut leaves: only what had been synced, by content and by name.

    A training begun fresh makes its folder; one that was stopped before an evaluation writes a checkpoint again.
    """
    wishes = {"max_steps": 1} if begins == "fresh" else {}
    whole, start = training.reference(**wishes), training.fresh() if begins == "fresh" else training.stopped()
    again = [checkpoint_bits(path) for path in (start / "checkpoints").glob("*")]
    assert whole[1] not in again
    for number in itertools.count(1):
        room, platter = shutil.copytree(start, tmp_path / str(number)), tmp_path / f"platter{number}"
        end = training.carry(room, power_may_fail(room, platter), at_file_operation(room, number), **wishes)
        if end == 0:
            break
        for place in (room, after_power_cut(room, platter, tmp_path / f"cut{number}")):
            told = runs.read_events(place)
            saved = max((event.step for event in told if isinstance(event, runs.Saved)), default=0)
            found, complaints = checkpoint.newest(place / "checkpoints")
            step = 0 if found is None else found.progress.step
            assert not complaints
            assert saved <= step <= saved + 1 and max((event.step for event in told), default=0) <= step + 1
            assert found is None or checkpoint_bits(found.path) in (whole[step], *again), place.name
        shutil.rmtree(room)
        shutil.rmtree(platter)
    assert number > 20 * len(whole)  # the operations of every save, and of the rotation after it
