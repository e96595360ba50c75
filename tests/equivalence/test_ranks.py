"""Equivalence 7: two processes (gloo) do what one does: same examples in every update, same losses, same weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor

from luthier import spec
from luthier.data.batches import Share, part_of, stored_tokens
from luthier.models.forward import Batch
from luthier.models.methods import Method, Tuned, attach
from luthier.runs import Evaluated, Event, Finished, Saved, Stepped
from luthier.train import loop
from luthier.train.loop import Job, Wishes, train
from luthier.train.ranks import Ranks
from tests.equivalence.workbench import LORA, PROMPT, Tiny, assert_close, load, rows
from tests.tiny import family
from tests.together import together

DROPOUT = spec.Lora(rank=2, alpha=2, dropout=0.3, target_modules=("q_proj", "v_proj"))
ALONE = spec.Training(
    batch_size=5, accumulate_steps=1, num_epochs=3, learning_rate=1e-2, warmup=0.0, weight_decay=0.01, save_every=2
)


def _training(**chosen: object) -> spec.Training:
    return spec.Training(**{**ALONE.model_dump(), **chosen})


def _job(folder: Path, kind: str, seed: int, **chosen: object) -> Job:
    examples = rows(family(kind), count=9)
    return Job(f"s{seed}", _training(**chosen), seed, examples, examples[:3], folder / f"s{seed}")


Drawn = dict[tuple[int, int], list[str]]
Told = tuple[list[Event], list[torch.Tensor]]


def _run(
    ranks: Ranks,
    tuned: Tuned,
    jobs: Sequence[Job],
    stop: Callable[[], bool] = lambda: False,
    budget: int = 60,
) -> Told:
    events = list(train(tuned, jobs, Wishes(stop), budget, ranks=ranks))
    return events, [torch.cat([flat.values for flat in slot.flats]).clone() for slot in tuned.slots]


def _watch(tuned: Tuned) -> Drawn:
    """What this process computes, as it comes: the examples of (slot, update)."""
    seen: Drawn = defaultdict(list)
    ask = tuned.nll

    def nll(batch: Batch, steps: Mapping[int, int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        for slot in steps or {}:
            rows_of = [i for i, entries in enumerate(batch.entries) if _slot_of(batch, entries) == slot]
            if rows_of:
                seen[slot, steps[slot]] += [batch.example_ids[i] for i in rows_of]
        return ask(batch, steps)

    tuned.nll = nll
    return seen


def _slot_of(batch: Batch, entries: np.ndarray) -> int:
    source = int(batch.sources_S[entries[0]]) // batch.width
    return next(slot for slot, start, stop in batch.ranges if start <= source < stop)


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bart", "tiny_bert"])
@pytest.mark.parametrize("method", [LORA, PROMPT, spec.Full(trainable=("weight",))], ids=["lora", "prompt", "full"])
def test_four_processes_equal_one(tiny: Tiny, tmp_path: Path, kind: str, method: Method) -> None:
    _compare(tiny, tmp_path, kind, [method], 4)


def _compare(tiny: Tiny, tmp_path: Path, kind: str, methods: list[Method], count: int) -> None:
    base = load(tiny, kind)
    seeds = list(range(3, 3 + len(methods)))

    def work(ranks: Ranks) -> tuple[Told, Drawn]:
        tuned = attach(base if ranks.count > 1 else load(tiny, kind), methods, seeds)
        folder = tmp_path / str(ranks.count)
        jobs = [_job(folder, kind, seed, batch_size=5 - 2 * i) for i, seed in enumerate(seeds)]
        seen = _watch(tuned)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "_rehearse", lambda *_: None)  # it computes what nobody has drawn
            return _run(ranks, tuned, jobs), seen

    several = together(count, work)
    ((one, drawn),) = together(1, work)
    computed = {update: sorted(name for _, seen in several for name in seen.get(update, [])) for update in drawn}
    assert computed == {update: sorted(names) for update, names in drawn.items()}
    assert all(set(seen) <= set(drawn) for _, seen in several)
    _same([told for told, _ in several], one, [f"s{seed}" for seed in seeds])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("method", [LORA, PROMPT], ids=["lora", "prompt"])
def test_a_base_spread_over_two_processes_equals_one(
    tiny: Tiny, tmp_path: Path, method: Method, checkpointing: bool
) -> None:
    base = load(tiny, "tiny_llama")

    def work(ranks: Ranks) -> Told:
        mine = base if ranks.count > 1 else load(tiny, "tiny_llama")
        if ranks.count > 1:
            ranks.shard(mine.model)
            layers = [p for p in mine.model.model.layers.parameters() if isinstance(p, DTensor)]
            assert sum(p.to_local().numel() for p in layers) <= sum(p.numel() for p in layers) / 2 + len(layers)
            assert len(layers) == len(list(mine.model.model.layers.parameters()))
        tuned = attach(mine, [method], [3])
        # one example an update: one of the two processes has nothing of its own to compute
        job = _job(tmp_path / str(ranks.count), "tiny_llama", 3, gradient_checkpointing=checkpointing, batch_size=1)
        return _run(ranks, tuned, [job], budget=20)

    several = together(2, work, sharded=True)
    (one,) = together(1, work)
    _same(several, one, ["s3"])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(0, 9), min_size=1, max_size=3), st.booleans(), st.integers(0, 99))
def test_the_parts_of_a_step_are_the_step(count: int, sizes: list[int], sharing: bool, seed: int) -> None:
    """Every example has one owner and keeps its place and weight; no part costs much more than its share."""
    examples = rows("causal", count=9, seed=seed)
    shares = [
        Share(slot, examples[slot : slot + size], 0.5 + slot, share_prefixes=sharing)
        for slot, size in enumerate(sizes)
        if size
    ]
    parts = [part for rank in range(count) for part in part_of(shares, rank, count)]
    for share in shares:
        mine = [part for part in parts if part.slot == share.slot]
        assert sorted(part.place(i) for part in mine for i in range(len(part.examples))) == list(
            range(len(share.examples))
        )
        assert all(share.examples[part.place(i)] is row for part in mine for i, row in enumerate(part.examples))
        assert all(part.weight == share.weight for part in mine)
    whole = sum(stored_tokens(share.examples, sharing) for share in shares)
    longest = max((len(row.ids_L) for row in examples), default=0)
    for rank in range(count):
        stored = [stored_tokens(part.examples, sharing) for part in part_of(shares, rank, count)]
        assert sum(stored) <= whole / count + 2 * longest


def test_dropout_of_examples_that_share_nothing_follows_their_place_in_the_step(tiny: Tiny, tmp_path: Path) -> None:
    def work(ranks: Ranks) -> Told:
        tuned = attach(load(tiny, "tiny_llama"), [DROPOUT], [3])
        return _run(ranks, tuned, [_job(tmp_path / str(ranks.count), "tiny_llama", 3, share_prefixes=False)])

    _same(together(2, work), together(1, work)[0], ["s3"])


@pytest.mark.parametrize("asked", [0, 3, 7], ids=["at once", "within an update", "later"])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "spread"])
def test_a_wish_to_stop_heard_by_one_stops_all_at_the_same_update(
    tiny: Tiny, tmp_path: Path, asked: int, sharded: bool
) -> None:
    base = load(tiny, "tiny_llama")

    def work(ranks: Ranks) -> Told:
        if sharded:
            ranks.shard(base.model)
        heard = iter(range(asked)) if ranks.rank == 1 else iter(range(10_000))
        tuned, job = attach(base, [LORA], [3]), _job(tmp_path, "tiny_llama", 3)
        return _run(ranks, tuned, [job], lambda: next(heard, None) is None, budget=20)

    (first, mine), (second, theirs) = together(2, work, sharded)
    ends = [[event for event in events if isinstance(event, Finished)] for events in (first, second)]
    assert [[end.state for end in each] for each in ends] == [["stopped"]] * 2
    assert ends[0][0].step == ends[1][0].step
    assert ends[0][0].step < 9
    assert torch.equal(mine[0], theirs[0])
    assert isinstance(first[-2], Saved) and Path(first[-2].path).is_dir()


def test_resumed_by_another_number_of_processes(tiny: Tiny, tmp_path: Path) -> None:
    """1 → 2 → 4 → 1 processes, stopped in between: the same examples in every update, the same losses, one end."""

    def work(ranks: Ranks, asks: int, folder: Path) -> Told:
        patience = iter(range(asks))
        tuned = attach(load(tiny, "tiny_llama"), [DROPOUT], [3])
        job = _job(folder, "tiny_llama", 3, batch_size=4, num_epochs=6)
        return _run(ranks, tuned, [job], lambda: next(patience, None) is None)

    whole = together(1, lambda ranks: work(ranks, 10_000, tmp_path / "whole"))[0]
    events: list[Event] = []
    for count, asks in ((1, 4), (2, 3), (4, 3), (1, 10_000)):
        told, weights = together(count, lambda ranks, asks=asks: work(ranks, asks, tmp_path / "parts"))[0]
        events += told
    assert [event.state for event in events if isinstance(event, Finished)] == ["stopped"] * 3 + ["done"]
    steps = [event.step for event in events if isinstance(event, Stepped)]
    assert steps == list(range(1, max(steps) + 1))
    _same([(events, weights)], whole, ["s3"])


def test_who_dies_is_missed_by_the_others(tiny: Tiny, tmp_path: Path) -> None:
    def work(ranks: Ranks) -> str:
        tuned = attach(load(tiny, "tiny_llama"), [LORA], [3])
        for event in train(tuned, [_job(tmp_path, "tiny_llama", 3)], ranks=ranks):
            if ranks.rank == 1 and isinstance(event, Stepped):
                return "gone"
        return "done"

    with pytest.raises(AssertionError, match="Parted: another process of this run ended"):
        together(2, work)
    assert not list(tmp_path.glob("**/.*tmp*"))


def test_what_fails_in_the_lead_fails_in_all(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> list[int]:
        assert ranks.by_lead(lambda: [7]) == [7]
        ranks.by_lead(lambda: 1 // 0)
        return [0]

    with pytest.raises(AssertionError, match=r"(?s)ZeroDivisionError.*Parted"):
        together(2, work)
