"""What must never be loaded or stepped with: checkpoints that do not fit (reliability test 10), numbers that are not
finite (13); and the one update that every way of dividing it gives (11).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from luthier import runs
from luthier.errors import TrainingError
from luthier.runs import Finished, Noted
from luthier.train import checkpoint, loop
from luthier.train.optimizer import SlotOptimizer
from tests.faults.victims import Training, Trap, at_call, die

State = dict[str, Tensor]


def transposed(state: State, name: str) -> State:
    return {**state, name: state[name].t().contiguous()}


CHANGES: dict[str, Callable[[State, str], State]] = {
    "missing": lambda state, name: {key: tensor for key, tensor in state.items() if key != name},
    "extra": lambda state, name: {**state, "more": torch.zeros(1)},
    "transposed": transposed,
    "recast": lambda state, name: {**state, name: state[name].half()},
}


@pytest.mark.parametrize("part", ["weights", "optimizer"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    training: Training, tmp_path: Path, part: str, change: str
) -> None:
    """Whole by its manifest, and yet of another run."""
    lane = loop.lane_of(training.tuned.slots[0], training.job(tmp_path))
    state = {"weights": lane.slot.tensors(), "optimizer": lane.optimizer.state()}
    name = next(name for name, tensor in state[part].items() if tensor.dim() == 2)
    before = {key: tensor.clone() for key, tensor in state["weights"].items()}
    changed = state | {part: CHANGES[change](state[part], name)}
    checkpoint.save(tmp_path / "checkpoints", checkpoint.Progress(step=1), **changed)
    with pytest.raises(TrainingError, match="does not fit this run") as refusal:
        next(loop.train(training.tuned, [training.job(tmp_path)]))
    assert ("more" if change == "extra" else name) in refusal.value.message
    assert "step-00000001" in str(refusal.value.where)
    assert all(before[key].equal(tensor) for key, tensor in state["weights"].items())


# --- numbers that are not finite -------------------------------------------------------------------------------------
def poisoned_gradient(at: set[int], value: float) -> Trap:
    def lay() -> None:
        plain, calls = SlotOptimizer.gradient_norm, 0

        def norm(self: SlotOptimizer) -> float:
            nonlocal calls
            calls += 1
            if calls in at:
                self.slot.flats[0].grads[0] = value
            return plain(self)

        SlotOptimizer.gradient_norm = norm

    return lay


def poisoned_loss(at: set[int]) -> Trap:
    def lay() -> None:
        plain, calls = loop.update, 0

        def update(lane: loop.Lane, seconds: float) -> Any:
            nonlocal calls
            calls += 1
            if calls in at:
                lane.loss = math.nan
            return plain(lane, seconds)

        loop.update = update

    return lay


POISONS = {
    "gradient nan": lambda at: poisoned_gradient(at, math.nan),
    "gradient inf": lambda at: poisoned_gradient(at, math.inf),
    "loss": poisoned_loss,
}


def keep_all() -> None:
    checkpoint.rotate = lambda folder, keep: None


@pytest.mark.parametrize("poison", POISONS)
def test_a_number_that_is_not_finite_touches_nothing_and_is_named(training: Training, poison: str) -> None:
    room = training.fresh()
    assert training.carry(room, POISONS[poison]({2}), keep_all, max_steps=5) == 0
    told = runs.read_events(room)
    [note] = [event for event in told if isinstance(event, Noted)]
    assert note.kind == "not_finite" and note.step == 2 and len(note.rows) == 2
    assert {row.example_id for row in training.examples} > set(note.rows)
    steps = sorted((room / "checkpoints").iterdir())
    weights = [load_file(path / "weights.safetensors") for path in steps]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert not all(weights[1][name].equal(weights[2][name]) for name in weights[0])
    for path in steps:
        for file in path.glob("*.safetensors"):
            assert all(tensor.isfinite().all() for tensor in load_file(file).values())
    progress = checkpoint.at(room / "checkpoints", 5).progress
    assert (progress.skipped, progress.skipped_in_a_row) == (1, 0)
    assert isinstance(told[-1], Finished) and told[-1].state == "done"


def test_three_in_a_row_end_the_run_also_across_a_death(training: Training) -> None:
    room = training.fresh()
    deadly = at_call("luthier.train.loop:update", 4, die)
    assert training.carry(room, POISONS["loss"]({2, 3}), deadly, max_steps=6) < 0
    assert training.carry(room, POISONS["loss"]({1}), max_steps=6) == 0
    ended = runs.read_events(room)[-1]
    assert isinstance(ended, Finished) and ended.state == "failed" and "not finite" in ended.reason and ended.step == 4
    found, _ = checkpoint.newest(room / "checkpoints")
    assert found is not None
    assert all(tensor.isfinite().all() for tensor in found.weights().values())


# --- one update -------------------------------------------------------------------------------------------------------
def test_every_division_of_a_step_gives_the_same_update(tmp_path: Path) -> None:
    """16×1 = 8×2 = 4×4 = 1×16 examples of uneven length: one update, each pair within 1e-6; and with any budget."""
    training, ends = Training(tmp_path, rows=16), {}
    for batch, accumulate in ((16, 1), (8, 2), (4, 4), (1, 16)):
        for budget in (1, 30, 10_000):
            room = training.fresh()
            wishes = {"batch_size": batch, "accumulate_steps": accumulate, "max_steps": 1, "learning_rate": 1e-3}
            assert training.carry(room, budget=budget, **wishes) == 0
            ends[batch, budget] = checkpoint.at(room / "checkpoints", 1).weights()
    start = training.tuned.slots[0].tensors()
    for one in ends.values():
        assert any(float((one[name] - start[name]).abs().max()) > 5e-4 for name in start)
        for other in ends.values():
            assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-6
