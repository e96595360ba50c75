"""Equivalence 7: two processes (gloo) do what one does: same examples in every update, same losses, same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from luthier import spec
from luthier.data.batches import Share, part_of, stored_tokens
from luthier.models.methods import Method, Tuned, attach
from luthier.runs import Evaluated, Event, Finished, Saved, Stepped
from luthier.train.loop import Job, train
from luthier.train.ranks import Ranks
from tests.equivalence.together import together
from tests.equivalence.workbench import LORA, PROMPT, Tiny, assert_close, load, rows
from tests.tiny import family

DROPOUT = spec.Lora(rank=2, alpha=2, dropout=0.3, target_modules=("q_proj", "v_proj"))
ALONE = spec.Training(
    batch_size=5, accumulate_steps=1, num_epochs=3, learning_rate=1e-2, warmup=0.0, weight_decay=0.01, save_every=2
)


def _training(**chosen: object) -> spec.Training:
    return spec.Training(**{**ALONE.model_dump(), **chosen})


def _job(folder: Path, kind: str, seed: int, **chosen: object) -> Job:
    examples = rows(family(kind), count=9)
    return Job(f"s{seed}", _training(**chosen), seed, examples, examples[:3], folder / f"s{seed}")


Told = tuple[list[Event], list[torch.Tensor]]


def _run(
    ranks: Ranks,
    tuned: Tuned,
    jobs: Sequence[Job],
    stop: Callable[[], bool] = lambda: False,
    budget: int = 60,
) -> Told:
    events = list(train(tuned, jobs, stop, budget, ranks))
    return events, [torch.cat([flat.values for flat in slot.flats]).clone() for slot in tuned.slots]


def _numbers(events: Sequence[Event], run: str) -> list[float]:
    stepped = [event.loss for event in events if isinstance(event, Stepped) and event.run == run]
    return stepped + [event.scores["loss"] for event in events if isinstance(event, Evaluated) and event.run == run]


def _same(several: Sequence[Told], one: Told, runs: Sequence[str], relative: float = 1e-6) -> None:
    """The processes among themselves bit for bit; with one alone losses within 1e-6, weights by rounding."""
    for _, weights in several[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights, several[0][1], strict=True))
    for run in runs:
        losses = _numbers(one[0], run)
        assert len(losses) > 3
        for events, _ in several:
            assert _numbers(events, run) == pytest.approx(losses, rel=relative)
    for ours, theirs in zip(several[0][1], one[1], strict=True):
        assert_close(ours, theirs, "weights after the run", atol=2e-4)


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        ("tiny_llama", [LORA, DROPOUT]),
        ("tiny_llama", [PROMPT]),
        ("tiny_llama", [spec.Full(trainable=("weight",))]),
        ("tiny_bart", [LORA]),
        ("tiny_bert", [LORA]),
    ],
    ids=["two slots", "prompt", "full", "seq2seq", "encoder"],
)
def test_two_processes_equal_one(tiny: Tiny, tmp_path: Path, kind: str, methods: list[Method]) -> None:
    _compare(tiny, tmp_path, kind, methods, 2)


def _compare(tiny: Tiny, tmp_path: Path, kind: str, methods: list[Method], count: int) -> None:
    base = load(tiny, kind)
    seeds = list(range(3, 3 + len(methods)))

    def work(ranks: Ranks) -> Told:
        tuned = attach(base if ranks.count > 1 else load(tiny, kind), methods, seeds)
        folder = tmp_path / str(ranks.count)
        jobs = [_job(folder, kind, seed, batch_size=5 - 2 * i) for i, seed in enumerate(seeds)]
        return _run(ranks, tuned, jobs)

    several = together(count, work)
    (one,) = together(1, work)
    _same(several, one, [f"s{seed}" for seed in seeds])
