"""What the loop promises besides equal numbers: bad updates skipped, early stopping, the best kept, effects of keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import get_scheduler

from luthier import spec
from luthier.data.batches import flat_batches
from luthier.data.examples import Encoded
from luthier.models import base as bases
from luthier.models.methods import Tuned, attach
from luthier.runs import Evaluated, Event, Finished, Noted, Saved, Started, Stepped
from luthier.train import checkpoint, loop
from luthier.train.loop import Job, Wishes, train, validation_losses
from luthier.train.optimizer import learning_rate_at
from luthier.train.shares import step_share
from tests.equivalence.workbench import LABELS, LORA, Tiny, load, rows, share
from tests.tiny import family

PLAIN = spec.Training(batch_size=4, accumulate_steps=1, num_epochs=2, learning_rate=1e-2, warmup=0.0, weight_decay=0.0)


def _with(**chosen: object) -> spec.Training:
    return spec.Training(**{**PLAIN.model_dump(), **chosen})


def _events(
    tuned: Tuned, folder: Path, training: spec.Training, examples: Sequence[Encoded] = (), validation: object = None
) -> list[Event]:
    examples = examples or rows(tuned.base.family)
    held_out = examples[:3] if validation is None else validation
    return list(train(tuned, [Job("run", training, 0, examples, held_out, folder)]))


def _of(events: Sequence[Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.25, 5.0])
def test_schedules_are_those_of_transformers(schedule: str, warmup: float) -> None:
    training, steps = _with(schedule=schedule, warmup=warmup), 20
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=training.learning_rate)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    peer = get_scheduler(name, optimizer, int(warmup) if warmup >= 1 else math.ceil(warmup * steps), steps)
    for step in range(steps):
        assert learning_rate_at(step, steps, training) == pytest.approx(peer.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        peer.step()


def test_events_tell_the_whole_story(tiny: Tiny, tmp_path: Path) -> None:
    tuned = attach(load(tiny, "tiny_llama"), [LORA], [0])
    events = _events(tuned, tmp_path, _with(num_epochs=8))
    (started,) = _of(events, Started)
    steps = _of(events, Stepped)
    epoch = math.ceil(started.examples / 4)
    assert started.steps == len(steps) == 8 * epoch
    assert started.trainable_parameters == sum(t.numel() for t in tuned.slots[0].tensors().values())
    assert [event.step for event in steps] == list(range(1, len(steps) + 1))
    assert steps[-1].epoch == 8.0
    assert sum(event.loss for event in steps[-epoch:]) < sum(event.loss for event in steps[:epoch])
    assert len(_of(events, Evaluated)) == 8 and len(_of(events, Saved)) == 8
    assert isinstance(events[-1], Finished) and events[-1].state == "done"


def test_non_finite_updates_are_skipped_named_and_end_the_run(tiny: Tiny, tmp_path: Path) -> None:
    tuned = attach(load(tiny, "tiny_llama"), [LORA], [0])
    before = {name: tensor.clone() for name, tensor in tuned.slots[0].tensors().items()}
    tuned.base.model.model.layers[0].mlp.down_proj.base.weight[0, 0] = torch.nan
    events = _events(tuned, tmp_path, PLAIN, validation=[])
    notes = _of(events, Noted)
    assert [note.kind for note in notes] == ["not_finite"] * 3
    assert notes[0].rows and set(notes[0].rows) <= {row.example_id for row in rows("causal")}
    assert events[-1].state == "failed" and not _of(events, Stepped)
    assert all(torch.equal(before[name], tensor) for name, tensor in tuned.slots[0].tensors().items())


def test_patience_stops_and_the_best_weights_are_kept(tiny: Tiny, tmp_path: Path) -> None:
    """A learning rate that destroys: the validation loss turns at once, the slot ends with its best weights."""
    tuned = attach(load(tiny, "tiny_llama"), [LORA], [0])
    examples = rows("causal")
    wild = _with(learning_rate=3.0, schedule="constant", num_epochs=20, evaluate_every=1, patience=2)
    events = _events(tuned, tmp_path, wild, examples)
    evaluated = _of(events, Evaluated)
    best = min(evaluated, key=lambda event: event.scores["loss"])
    assert len(_of(events, Stepped)) < 20 and "stopped early" in events[-1].reason
    assert evaluated[-1].step == best.step + 2 and best.best
    (kept_loss,) = validation_losses(tuned, tuned.slots, examples[:3])
    assert kept_loss == pytest.approx(best.scores["loss"], abs=1e-5)
    kept = sorted(path.name for path in tmp_path.glob("step-*"))
    assert {f"step-{best.step:08d}", f"step-{evaluated[-1].step:08d}"} <= set(kept) and len(kept) <= 3


@pytest.mark.parametrize(
    ("model", "kind"), [("tiny_llama", "causal"), ("tiny_t5", "seq2seq"), ("tiny_bert", "encoder")]
)
def test_what_single_rows_were_worth_adds_up_to_the_loss(tiny: Tiny, model: str, kind: str) -> None:
    """Of each slot by itself; a row alone is worth what it was worth among others."""
    tuned, examples = attach(load(tiny, model), [LORA, LORA.model_copy(update={"rank": 3})], [0, 1]), rows(kind)
    told: dict[int, loop.Worth] = {}
    losses = validation_losses(tuned, tuned.slots, examples, weigh=told.__setitem__)
    assert sorted(told) == [0, 1]
    for loss, worth in zip(losses, told.values(), strict=True):
        assert set(worth) == {row.example_id for row in examples}
        assert sum(v for v, _ in worth.values()) / sum(n for _, n in worth.values()) == pytest.approx(loss, rel=1e-6)
    alone = validation_losses(tuned, tuned.slots[:1], examples[:1])
    value, size = told[0][examples[0].example_id]
    assert value / size == pytest.approx(alone[0], rel=1e-4)


def test_many_validation_rows_are_asked_some_at_a_time(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, examples = attach(load(tiny, "tiny_llama"), [LORA], [0]), rows("causal")
    whole, laid = validation_losses(tuned, tuned.slots, examples), []
    lay_out = type(tuned).lay_out
    monkeypatch.setattr(loop, "TOGETHER", 2)
    monkeypatch.setattr(loop, "lay_out", lambda *given: laid.append(len(given[1][0].examples)) or lay_out(*given))
    assert validation_losses(tuned, tuned.slots, examples) == pytest.approx(whole, rel=1e-6)
    assert max(laid) == 2 and sum(laid) == len(examples)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bert", "tiny_bart"])
def test_checkpointing_recomputes_and_changes_nothing(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    """HF's checkpointing silently does nothing in evaluation mode: count the calls inside a layer."""
    ends, calls = [], []
    for recompute in (False, True):
        tuned = attach(load(tiny, kind), [_dropout(0.2)], [0])
        layer = next(m for name, m in tuned.base.model.named_modules() if name.endswith(("layers.0", "layer.0")))
        counted = []
        next(layer.children()).register_forward_pre_hook(lambda *_, into=counted: into.append(1))
        training = _with(gradient_checkpointing=recompute, num_epochs=1)
        _events(tuned, tmp_path / str(recompute), training, validation=[])
        ends.append(tuned.slots[0].flats[0].values.clone())
        calls.append(len(counted))
    assert calls[1] == 2 * calls[0]
    torch.testing.assert_close(ends[0], ends[1], atol=1e-6, rtol=1e-5)


def _dropout(p: float) -> spec.Lora:
    return spec.Lora(rank=4, alpha=8, dropout=p, target_modules=("all-linear",))


CHANGES = {
    "batch_size": 2,
    "accumulate_steps": 2,
    "num_epochs": 1,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup": 2.0,
    "weight_decay": 0.5,
    "max_grad_norm": 1e-3,
    "batching": "grouped",
}


@pytest.mark.parametrize("key", CHANGES)
def test_every_training_key_has_an_effect(tiny: Tiny, tmp_path: Path, key: str) -> None:
    ends = []
    for name, training in (("plain", PLAIN), ("changed", _with(**{key: CHANGES[key]}))):
        tuned = attach(load(tiny, "tiny_llama"), [LORA], [0])
        _events(tuned, tmp_path / name, training, validation=[])
        ends.append(tuned.slots[0].flats[0].values.clone())
    assert not torch.allclose(ends[0], ends[1], atol=1e-6)


@pytest.mark.parametrize(("key", "value"), [("save_every", 1), ("evaluate_every", 1)])
def test_save_and_evaluate_every(tiny: Tiny, tmp_path: Path, key: str, value: int) -> None:
    counts = []
    for name, training in (("plain", PLAIN), ("changed", _with(**{key: value}))):
        events = _events(attach(load(tiny, "tiny_llama"), [LORA], [0]), tmp_path / name, training)
        counts.append(len(_of(events, Saved if key == "save_every" else Evaluated)))
    assert counts[1] > counts[0]


def test_share_prefixes_changes_the_dropout_draw_and_nothing_else(tiny: Tiny, tmp_path: Path) -> None:
    ends = {}
    for p in (0.0, 0.5):
        for sharing in (True, False):
            tuned = attach(load(tiny, "tiny_llama"), [_dropout(p)], [0])
            _events(tuned, tmp_path / f"{p}{sharing}", _with(share_prefixes=sharing, num_epochs=1), validation=[])
            ends[p, sharing] = tuned.slots[0].flats[0].values.clone()
    torch.testing.assert_close(ends[0.0, True], ends[0.0, False], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ends[0.5, True], ends[0.5, False], atol=1e-5)


def test_full_tuning_shares_prefixes_where_the_base_drops_nothing(tiny: Tiny, tmp_path: Path) -> None:
    ends, sizes = [], []
    for sharing in (True, False):
        tuned = attach(load(tiny, "tiny_llama"), [spec.Full()], [0])
        share_of = step_share(tuned, tuned.slots[0], _with(share_prefixes=sharing), rows("causal"))
        sizes.append(sum(batch.stored for batch in tuned.lay_out([share_of], 10_000)))
        _events(tuned, tmp_path / str(sharing), _with(share_prefixes=sharing, num_epochs=1), validation=[])
        ends.append(tuned.slots[0].flats[0].values.clone())
    assert sizes[0] < sizes[1]
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=1e-4)
    assert not attach(load(tiny, "tiny_gpt2"), [spec.Full()], [0]).shares_prefixes


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bert"])
def test_base_dropout_belongs_to_full_tuning(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    """A frozen base predicts the same while training; full tuning of an encoder uses its configured dropout."""
    for method, differs in ((LORA, False), (spec.Full(), kind == "tiny_bert")):
        tuned = attach(bases.load(spec.Model(name=str(tiny(kind))), method, labels=LABELS), [method], [0])
        (batch,) = flat_batches([share(tuned, 0, rows(family(kind)))], 10_000)
        quiet, _ = tuned.nll(batch)
        training, _ = tuned.nll(batch, {0: 0})
        assert torch.equal(quiet, training) != differs


def test_a_validation_loss_that_is_not_finite_is_never_the_best(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.train import loop

    losses = iter([math.nan, 2.0, 3.0, 1.0])
    monkeypatch.setattr(loop, "validation_losses", lambda *_, **__: [next(losses)])
    training = _with(evaluate_every=1, max_steps=4)
    evaluated = _of(_events(attach(load(tiny, "tiny_llama"), [LORA], [0]), tmp_path, training), Evaluated)
    assert [event.best for event in evaluated] == [False, True, False, True]


def test_a_stop_during_validation_is_heard_and_the_evaluation_made_up_for(tiny: Tiny, tmp_path: Path) -> None:
    examples = rows("causal")
    training = _with(evaluate_every=1, max_steps=3)

    def carried(folder: Path, calls: int) -> list[Event]:
        tuned, asked = attach(load(tiny, "tiny_llama"), [LORA], [0]), iter(range(calls))
        job = Job("run", training, 0, examples, examples, folder)
        return list(train(tuned, [job], Wishes(lambda: next(asked, None) is None), budget=30))

    whole = carried(tmp_path / "whole", 10_000)
    for calls in range(1, 12):
        parts = carried(tmp_path / str(calls), calls) + carried(tmp_path / str(calls), 10_000)
        assert [e.scores for e in _of(parts, Evaluated)] == [e.scores for e in _of(whole, Evaluated)]
        assert [e.loss for e in _of(parts, Stepped)] == [e.loss for e in _of(whole, Stepped)]


def test_two_checkpoints_stand_also_while_the_newest_is_the_best(tiny: Tiny, tmp_path: Path) -> None:
    tuned = attach(load(tiny, "tiny_llama"), [LORA], [0])
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, checkpoint.Progress(step=step, best_step=step), tuned.slots[0].tensors(), {})
        checkpoint.rotate(tmp_path, {step})
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000003"]
