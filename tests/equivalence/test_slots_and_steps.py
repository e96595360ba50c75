"""Equivalences 1, 2 and 6 on the loop itself: batch × accumulate, any budget; N slots = N runs alone; resumed = not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from luthier import spec
from luthier.models import base as bases
from luthier.models.methods import Method, Tuned, attach
from luthier.runs import Event, Finished, Stepped
from luthier.train.loop import Job, Wishes, train
from tests.equivalence.workbench import LABELS, LORA, PROMPT, Tiny, assert_close, load, rows
from tests.tiny import family

DROPOUT = spec.Lora(rank=2, alpha=2, dropout=0.3, target_modules=("q_proj", "v_proj"))
MATRICES = spec.Full(
    trainable=("weight",)
)  # the gradient of a key's bias is 0 up to rounding, which Adam would blow up
QLORA = spec.QLora(rank=2, alpha=4, dropout=0.1, target_modules=("all-linear",), bits=4)


def _training(**chosen: object) -> spec.Training:
    plain = {"batch_size": 2, "accumulate_steps": 1, "num_epochs": 2, "learning_rate": 1e-2, "warmup": 0.0}
    return spec.Training(**{**plain, "weight_decay": 0.01, **chosen})


def _job(tmp: Path, training: spec.Training, kind: str, seed: int = 0) -> Job:
    examples = rows(family(kind), count=9)
    return Job(tmp.name, training, seed, examples, examples[:3], tmp)


def _run(tuned: Tuned, jobs: Sequence[Job], budget: int = 60) -> list[Event]:
    return list(train(tuned, jobs, budget=budget))


def _losses(events: Sequence[Event], run: str) -> list[float]:
    return [event.loss for event in events if isinstance(event, Stepped) and event.run == run]


def _weights(tuned: Tuned, slot: int = 0) -> torch.Tensor:
    return torch.cat([flat.values for flat in tuned.slots[slot].flats]).clone()


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bart", "tiny_bert"])
@pytest.mark.parametrize("method", [LORA, PROMPT, MATRICES], ids=["lora", "prompt", "full"])
def test_batch_times_accumulate_and_any_budget(tiny: Tiny, tmp_path: Path, kind: str, method: Method) -> None:
    """8×1 = 1×8, and a micro-batch of one example = one of all: the same update, unequal lengths included."""
    ends = []
    for place, (batch, accumulate, budget) in enumerate([(8, 1, 10_000), (1, 8, 10_000), (4, 2, 1), (8, 1, 30)]):
        tuned = attach(load(tiny, kind), [method], [0])
        training = _training(batch_size=batch, accumulate_steps=accumulate)
        _run(tuned, [_job(tmp_path / str(place), training, kind)], budget)
        ends.append(_weights(tuned))
    for other in ends[1:]:
        assert_close(other, ends[0], "weights after the run", atol=1e-4)


def test_slots_together_equal_each_alone(tiny: Tiny, tmp_path: Path) -> None:
    """Different ranks, rates, epochs, batch sizes, seeds, dropout, methods: step by step what each does alone."""
    methods = [LORA, DROPOUT, PROMPT]
    trainings = [
        _training(),
        _training(batch_size=3, num_epochs=3, learning_rate=3e-3, schedule="cosine", warmup=2),
        _training(batch_size=1, num_epochs=1, learning_rate=5e-2, accumulate_steps=2, max_grad_norm=0.1),
    ]
    seeds = [3, 4, 5]
    jobs = [_job(tmp_path / f"s{i}", t, "tiny_llama", seeds[i]) for i, t in enumerate(trainings)]
    together = attach(load(tiny, "tiny_llama"), methods, seeds)
    events = _run(together, jobs, budget=200)
    for i, method in enumerate(methods):
        alone = attach(load(tiny, "tiny_llama"), [method], [seeds[i]])
        expected = _run(alone, [_job(tmp_path / f"a{i}", trainings[i], "tiny_llama", seeds[i])], budget=200)
        assert _losses(events, f"s{i}") == pytest.approx(_losses(expected, f"a{i}"), abs=2e-4)
        assert len(_losses(expected, f"a{i}")) > 4
        assert_close(_weights(together, i), _weights(alone), f"slot {i}", atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("tiny_llama", DROPOUT),
        ("tiny_llama", PROMPT),
        ("tiny_llama", QLORA),
        ("tiny_bert", spec.Full()),
        ("tiny_bart", LORA),
    ],
    ids=["lora", "prompt", "qlora", "full", "seq2seq"],
)
def test_resumed_equals_uninterrupted_bit_for_bit(tiny: Tiny, tmp_path: Path, kind: str, method: Method) -> None:
    """Stopped at three places inside an epoch and continued each time from the folder alone."""
    if isinstance(method, spec.QLora):
        pytest.importorskip("bitsandbytes")
    training = _training(accumulate_steps=2, save_every=3)

    def fresh() -> Tuned:
        return attach(bases.load(spec.Model(name=str(tiny(kind))), method, labels=LABELS), [method], [1])

    whole = fresh()
    expected = _run(whole, [_job(tmp_path / "whole", training, kind)])
    parts: list[Event] = []
    for calls in (1, 2, 2, 10_000):
        tuned, patience = fresh(), iter(range(calls))
        stop = Wishes(lambda p=patience: next(p, None) is None)
        parts += train(tuned, [_job(tmp_path / "parts", training, kind)], stop, 60)
    assert [e.state for e in parts if isinstance(e, Finished)] == ["stopped"] * 3 + ["done"]
    assert _losses(parts, "parts") == _losses(expected, "whole")
    assert torch.equal(_weights(tuned), _weights(whole))
