"""Companies of rows: which share a beginning, and that nobody's answer depends on who else is there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import spec
from luthier.data.examples import Encoded
from luthier.evaluation import decoding, generate
from luthier.models import base as bases
from luthier.models.attention import attend, layout
from luthier.models.growing import Growing, Trunk
from luthier.models.methods import Tuned, attach
from luthier.models.slots import BARE_BASE

Tiny = Callable[..., Path]
METHODS = (
    spec.Lora(rank=4, alpha=8, dropout=0.0, target_modules=("all-linear",)),
    spec.PromptTuning(virtual_tokens=3, init_method="vocabulary"),
    spec.Lora(rank=2, alpha=8, dropout=0.0, target_modules=("all-linear",)),
    spec.PromptTuning(virtual_tokens=20, init_method="random"),
)
EVERYBODY = (None, 0, 1, 2, 3)
NEW = 7


def tune(tiny: Tiny, kind: str) -> Tuned:
    """Two LoRA slots that change answers and two prompt slots; an end token that is often said."""
    tuned = attach(bases.load(spec.Model(name=str(tiny(kind))), labels=("no", "yes")), METHODS, [0, 1, 2, 3])
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in itertools.chain(tuned.slots[0].tensors().items(), tuned.slots[2].tensors().items()):
            if ".lora_B." in name:
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.3)
    return tuned


def prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts that begin like others, like all of another, or like none."""
    draw = np.random.default_rng(seed)
    heads = [draw.integers(5, 300, n).tolist() for n in (25, 18, 40)]
    found: list[list[int]] = []
    for _ in range(count):
        head = heads[draw.integers(3)] if draw.random() < 0.8 else []
        found.append([*head, *draw.integers(5, 300, draw.integers(0 if head else 1, 9)).tolist()])
    return found


@pytest.mark.parametrize(
    "kind", ["tiny_llama", "tiny_gpt2", "tiny_gemma2", "tiny_gemma3", "tiny_bloom", "tiny_t5", "tiny_bart"]
)
def test_answers_are_the_same_in_every_company(tiny: Tiny, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random companies of slots, shared beginnings and budgets, against each row by itself through transformers."""
    tuned = tune(tiny, kind)
    draw = np.random.default_rng(3)
    asked = prompts(24, seed=1)
    who = [EVERYBODY[i] for i in draw.integers(0, 5, len(asked))]
    alone = [generate.answer(tuned, slot, [prompt], NEW)[0] for slot, prompt in zip(who, asked, strict=True)]
    often = np.bincount([token for said in alone for token in said.ids[2:]]).argsort()[-3:]
    tuned.base = replace(tuned.base, end_token_ids=(1, *often.tolist()))  # rows leave at different times
    alone = [generate.answer(tuned, slot, [prompt], NEW)[0] for slot, prompt in zip(who, asked, strict=True)]
    assert len({len(said.ids) for said in alone}) > 1
    for slot, prompt, said in zip(who, asked, alone, strict=True):
        assert _by_transformers(tuned, slot, prompt) == said.ids
    for budget in (1 << 20, 600, 150):
        monkeypatch.setattr(decoding, "BUDGET", budget)
        chosen = draw.permutation(len(asked))[: draw.integers(10, len(asked) + 1)].tolist()
        together = generate.answer(tuned, [who[i] for i in chosen], [asked[i] for i in chosen], NEW)
        assert together == [alone[i] for i in chosen]


def _by_transformers(tuned: Tuned, slot: int | None, prompt: Sequence[int]) -> tuple[int, ...]:
    ends = set(tuned.base.end_token_ids)
    with torch.no_grad(), tuned.speaking(slot) as model:
        inputs = tuned.generation_inputs(slot, [prompt])
        out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, num_beams=1, eos_token_id=list(ends))
    new = out[0].tolist()
    new = new[1:] if tuned.base.family == "seq2seq" else new[len(prompt) :] if "input_ids" in inputs else new
    return tuple(new[: next((i for i, token in enumerate(new) if token in ends), len(new))])


def test_many_slots_share_a_step_and_prompts_their_beginning(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward for all slots a step; a shared beginning is read once a slot and kept once."""
    tuned, asked = tune(tiny, "tiny_llama"), [[*range(10, 40), 50 + i] for i in range(6)]
    read, steps, kept = [], [], []
    logits, grow, begin = Tuned.logits, Tuned.grow, Growing.__init__

    def reading(tuned: Tuned, batch: decoding.FlatBatch, growing: Growing | None = None) -> torch.Tensor:
        if growing is not None and not growing.started:
            read.append(len(batch.tokens_T))
        return logits(tuned, batch, growing)

    def growing(tuned: Tuned, growing: Growing, tokens: Sequence[int], *rest: Sequence[int]) -> torch.Tensor:
        steps.append(len(tokens))
        return grow(tuned, growing, tokens, *rest)

    def beginning(self: Growing, paths: list, trunks: list[Trunk], *rest: object) -> None:
        kept.extend(trunks)
        begin(self, paths, trunks, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Tuned, "logits", reading)
    monkeypatch.setattr(Tuned, "grow", growing)
    monkeypatch.setattr(Growing, "__init__", beginning)
    tuned.base = replace(tuned.base, end_token_ids=())
    generate.answer(tuned, [slot for slot in (None, 0, 1) for _ in asked], asked * 3, 4)
    assert read == [3 * (30 + 6 + 6) + 3]  # the beginning, a last token and a question a row; three virtual tokens
    assert steps == [18, 18, 18]
    assert kept == [Trunk(0, 6, 30), Trunk(6, 12, 30), Trunk(12, 18, 33)]


def test_rows_that_have_ended_leave(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, asked = tune(tiny, "tiny_llama"), prompts(30, seed=4)
    said = generate.answer(tuned, None, asked, 12)
    often = np.bincount([token for one in said for token in one.ids[2:]]).argsort()[-12:]
    tuned.base = replace(tuned.base, end_token_ids=tuple(often.tolist()))
    steps: list[int] = []
    grow = Tuned.grow

    def growing(tuned: Tuned, growing: Growing, tokens: Sequence[int], *rest: Sequence[int]) -> torch.Tensor:
        steps.append(len(tokens))
        return grow(tuned, growing, tokens, *rest)

    monkeypatch.setattr(Tuned, "grow", growing)
    lengths = sorted((len(one.ids) + one.stopped for one in generate.answer(tuned, None, asked, 12)), reverse=True)
    needed = [sum(length > step for length in lengths) for step in range(1, lengths[0])]
    assert len(set(needed)) > 3
    for had, need in zip(steps, needed, strict=True):
        assert need <= had < need * decoding.LEAVING / (decoding.LEAVING - 1) + 1


rows_of_few = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=14)


@given(rows_of_few, st.sampled_from([0, 2]))
@settings(max_examples=150, deadline=None)
def test_trunks_save_the_most_of_one_level(rows: list[list[int]], virtual: int) -> None:
    """Against plain recursion over who shares how much, with small limits."""
    ordered = [np.array(row, np.int32) for row in sorted(rows, key=lambda row: decoding.sort_key(np.array(row)))]
    old = decoding.FEW, decoding.SHORT
    decoding.FEW, decoding.SHORT = 2, 1
    try:
        found = decoding.trunks(ordered, virtual)
    finally:
        decoding.FEW, decoding.SHORT = old
    assert [start for start, _, _ in found] == [0, *(stop for _, stop, _ in found[:-1])]
    assert found[-1][1] == len(rows)
    for start, stop, shared in found:
        assert shared == 0 or all(shared <= _common(ordered[start], other) + virtual for other in ordered[start:stop])
    assert sum((stop - start - 1) * shared for start, stop, shared in found) == _most(ordered, virtual)


def _most(ordered: list[np.ndarray], virtual: int) -> int:
    """What one level of trunks saves at most: everybody's beginning, or the best of those who share more than that."""
    shared = _common(ordered[0], ordered[-1])
    edges = [i for i in range(1, len(ordered)) if _common(ordered[i - 1], ordered[i]) == shared]
    parts = [ordered[a:b] for a, b in itertools.pairwise([0, *edges, len(ordered)])] if len(ordered) > 1 else []
    return max((len(ordered) - 1) * (shared + virtual), sum(_most(part, virtual) for part in parts))


def _common(a: np.ndarray, b: np.ndarray) -> int:
    return decoding.common_prefix(a, b)


def test_a_nest_of_a_thousand_beginnings_is_no_trouble() -> None:
    nest = [np.arange(n, dtype=np.int32) for n in range(1, 1500)]
    assert sum(stop - start for start, stop, _ in decoding.trunks(nest)) == len(nest)


def test_a_group_too_large_for_a_company_is_divided(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = tune(tiny, "tiny_llama")
    monkeypatch.setattr(decoding, "BUDGET", 100)
    rows = [decoding.Row(BARE_BASE, [*range(10, 40), 50 + i], 6) for i in range(40)]
    found = list(decoding.companies(tuned, rows, most=7))
    assert sorted(i for company in found for piece in company for i in piece.rows) == list(range(40))
    assert {len(company) for company in found} == {1}
    assert max(len(piece.rows) for company in found for piece in company) == 7  # 30 + 7 · (1 + 6) tokens are kept
    monkeypatch.setattr(decoding, "BUDGET", 1000)
    (whole,) = decoding.companies(tuned, rows[:3], most=1000)
    assert [piece.shared for piece in whole] == [0, 0, 0]


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (6, None), (None, 4.0), (9, 4.0)])
def test_growing_attention_is_that_of_the_whole_row(window: int | None, softcap: float | None) -> None:
    """Two rows with a trunk, one without, step by step, one leaves: against `attend` over each row by itself."""
    draw = torch.Generator().manual_seed(0)
    heads, groups, width = 4, 2, 8
    tokens = [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 6], [7, 8, 9]]  # stored tokens on the way to each row's end
    query, key, value = (torch.randn(n, 10, width, generator=draw) for n in (heads, groups, groups))
    growing = Growing([np.array(path) for path in tokens], [Trunk(0, 2, 4)], 4, torch.device("cpu"))
    growing.take(key, value)
    rows = [(query[:, path], key[:, path], value[:, path]) for path in tokens]
    for step in range(3):
        if step == 2:
            growing.keep([1, 2])
            rows = rows[1:]
        new = [torch.randn(n, len(rows), width, generator=draw) for n in (heads, groups, groups)]
        growing.advance()
        found = growing.attend(*new, scaling=0.3, window=window, softcap=softcap)
        rows = [
            tuple(torch.cat([old, fresh[:, b : b + 1]], 1) for old, fresh in zip(row, new, strict=True))  # type: ignore[misc]
            for b, row in enumerate(rows)
        ]
        for b, (q, k, v) in enumerate(rows):
            positions = np.arange(q.shape[1])
            where = layout(positions, np.full_like(positions, len(positions)), True, torch.device("cpu"))
            expected = attend(q, k, v, where, 0.3, 0.0, window, softcap)[-1]
            torch.testing.assert_close(found[b], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_t5"])
def test_likelihoods_and_classes_of_many_slots_are_each_slots_own(tiny: Tiny, kind: str) -> None:
    tuned = tune(tiny, kind)
    asked = []
    for prompt in prompts(10, seed=2):
        ids = np.array([*prompt, 60, 61, 1], np.int32)
        asked.append(Encoded("row", ids, np.arange(len(ids)) >= len(prompt)))
    who = [EVERYBODY[i % 5] for i in range(10)]
    together = generate.likelihoods(tuned, who, asked)
    alone = [generate.likelihoods(tuned, slot, [row])[0] for slot, row in zip(who, asked, strict=True)]
    assert [told.nll for told in together] == pytest.approx([told.nll for told in alone], abs=1e-4)
    assert len({round(told.nll, 3) for told in together}) > 6
    completed = generate.complete(tuned, who, asked, NEW)
    prompts_alone = [row.ids_L[: row.prompt_length].tolist() for row in asked]
    assert [one for one, _ in completed] == generate.answer(tuned, who, prompts_alone, NEW)
    candidates = [[row, asked[0]] for row in asked]
    scores = generate.label_scores(tuned, who, candidates)
    assert scores[:, 0] == pytest.approx([-told.nll for told in alone], abs=1e-4)


def test_class_logits_of_many_slots(tiny: Tiny) -> None:
    tuned = tune(tiny, "tiny_bert")
    asked = [Encoded("e", np.array(p, np.int32), np.zeros(len(p), bool), label=-1) for p in prompts(10, seed=5)]
    who = [i % 4 for i in range(10)]
    together = generate.class_logits(tuned, who, asked)
    alone = [generate.class_logits(tuned, slot, [row])[0] for slot, row in zip(who, asked, strict=True)]
    assert together == pytest.approx(np.stack(alone), abs=1e-5)


def test_names_of_classes_are_read_behind_one_prompt(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight names of two tokens add sixteen tokens to a prompt of forty, not eight prompts."""
    tuned, prompt, stored = tune(tiny, "tiny_llama"), list(range(10, 50)), []
    nll = Tuned.nll

    def counted(tuned: Tuned, batch: decoding.FlatBatch) -> tuple[torch.Tensor, torch.Tensor]:
        stored.append(batch.stored)
        return nll(tuned, batch)

    monkeypatch.setattr(Tuned, "nll", counted)
    names = [[100 + i, 1] for i in range(8)]
    ids = [np.array([*prompt, *name], np.int32) for name in names]
    generate.label_scores(tuned, None, [[Encoded("c", one, np.arange(42) >= 40) for one in ids]])
    assert stored == [40 + 16]
