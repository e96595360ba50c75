"""Where memory ends: the same step again with half the budget, and the same result; then a refusal with a way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier import spec
from luthier.data.rows import heaviest
from luthier.errors import TrainingError
from luthier.models.methods import Tuned, attach
from luthier.runs import Evaluated, Event, Finished, Noted, Stepped
from luthier.train.loop import Job, train
from luthier.train.room import out_of_memory
from tests.equivalence.workbench import LORA, Tiny, load, rows

TRAINING = spec.Training(
    batch_size=4, accumulate_steps=2, num_epochs=2, learning_rate=1e-2, warmup=0.0, weight_decay=0.0
)
ROOMY, TIGHT = 64, 32
ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 99 bytes"),
    MemoryError(),
)


def _carried(tuned: Tuned, folder: Path, budget: int, halved: Callable[[int], None] = lambda _: None) -> list[Event]:
    examples = rows("causal", count=14)
    job = Job("run", TRAINING, 0, examples, examples[:9], folder)
    return list(train(tuned, [job], budget=budget, halved=halved))


def _of(events: list[Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


class Short:
    """A machine whose memory ends in call `at`, counted over the calls of one `kind`, and in any later one as large."""

    def __init__(self, tuned: Tuned, kind: str, at: int, error: Exception) -> None:
        self.whole, self.kind, self.at, self.error = tuned.nll, kind, at, error
        self.calls = 0
        tuned.nll = self  # type: ignore[method-assign, assignment]

    def __call__(self, batch, steps=None):
        kind = "evaluate" if steps is None else "train"
        self.calls += kind == self.kind
        if kind == self.kind and self.calls >= self.at and batch.stored > TIGHT:
            if kind == "train":  # half way: some gradients of this step are there already
                (self.whole(batch, steps)[0] @ torch.from_numpy(batch.weights_S)).backward()
            raise self.error
        return self.whole(batch, steps)


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize(("kind", "at"), [("train", 1), ("train", 2), ("train", 4), ("evaluate", 1), ("evaluate", 3)])
def test_a_step_that_does_not_fit_is_done_again_in_halves(
    tiny: Tiny, tmp_path: Path, kind: str, at: int, error: Exception
) -> None:
    """Reliability 14: out of memory at the first, a middle, and an evaluation step; the result is the smaller run's."""
    calm = attach(load(tiny, "tiny_llama"), [LORA], [0])
    expected = _carried(calm, tmp_path / "calm", TIGHT)
    tuned, budgets = attach(load(tiny, "tiny_llama"), [LORA], [0]), []
    Short(tuned, kind, at, error)
    events = _carried(tuned, tmp_path / "short", ROOMY, budgets.append)
    assert budgets == [TIGHT] and [note.kind for note in _of(events, Noted)] == ["memory"]
    assert isinstance(events[-1], Finished) and events[-1].state == "done"
    for ours, theirs in zip(_of(events, Stepped), _of(expected, Stepped), strict=True):
        assert (ours.step, ours.tokens, ours.learning_rate) == (theirs.step, theirs.tokens, theirs.learning_rate)
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
    for ours, theirs in zip(_of(events, Evaluated), _of(expected, Evaluated), strict=True):
        assert ours.scores["loss"] == pytest.approx(theirs.scores["loss"], abs=1e-5)
    torch.testing.assert_close(tuned.slots[0].flats[0].values, calm.slots[0].flats[0].values, atol=1e-5, rtol=1e-4)


def test_the_heaviest_step_is_tried_before_anything_is_learned(tiny: Tiny, tmp_path: Path) -> None:
    tuned, seen = attach(load(tiny, "tiny_llama"), [LORA], [0]), []
    whole, values = tuned.nll, tuned.slots[0].flats[0].values
    start = values.clone()

    def watched(batch, steps=None):
        seen.append((batch.example_ids, torch.equal(values, start), steps))
        return whole(batch, steps)

    tuned.nll = watched  # type: ignore[method-assign]
    _carried(tuned, tmp_path, ROOMY)
    heaviest_8 = heaviest(rows("causal", count=14), 8, shared=True)
    assert set(seen[0][0]) <= {row.example_id for row in heaviest_8} and seen[0][2] == {0: 0}
    assert seen[0][1] and seen[1][1] and not seen[-1][1]
    again = len(seen)
    _carried(tuned, tmp_path, ROOMY)  # done already: nothing is tried, nothing is trained
    assert len(seen) == again


def test_an_example_that_does_not_fit_alone_ends_the_run_with_ways_out(tiny: Tiny, tmp_path: Path) -> None:
    tuned = attach(load(tiny, "tiny_llama"), [LORA], [0])

    def never(batch, steps=None):
        raise MemoryError

    tuned.nll = never  # type: ignore[method-assign]
    longest = max(len(row.ids_L) for row in rows("causal", count=14))
    with pytest.raises(TrainingError, match=f"an example of {longest} tokens does not fit into memory") as refusal:
        _carried(tuned, tmp_path, ROOMY)
    assert "gradient_checkpointing" in str(refusal.value.hint) and "max_seq_length" in str(refusal.value.hint)


def test_any_other_error_is_not_taken_for_want_of_memory(tiny: Tiny, tmp_path: Path) -> None:
    tuned = attach(load(tiny, "tiny_llama"), [LORA], [0])
    Short(tuned, "train", 2, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        _carried(tuned, tmp_path, ROOMY)
    assert out_of_memory(MemoryError()) == "MemoryError" and out_of_memory(RuntimeError("CUDA error")) is None
