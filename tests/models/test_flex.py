"""The GPU's attention by its rule: block masks from intervals, and the reference kernel against `attention.attend`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import spec
from luthier.data.batches import FlatBatch, Share, flat_batches
from luthier.data.examples import Encoded
from luthier.models import attention, flex
from luthier.models import base as bases
from luthier.models.flex import Intervals
from luthier.models.forward import Batch
from luthier.models.methods import Tuned
from luthier.train.shares import lay_out
from tests.equivalence.workbench import LABELS, LORA, Tiny, assert_close, rows, share, tune
from tests.tiny import family

CPU = torch.device("cpu")


def _row(seed: int, sequences: int, longest: int, encoder: bool) -> FlatBatch:
    """Random sequences over two tokens, so that many begin alike, of two slots."""
    draw = np.random.default_rng(seed)
    made = []
    for i in range(sequences):
        ids = draw.integers(0, 2, draw.integers(1, longest + 1)).astype(np.int32)
        if i and draw.random() < 0.7:
            before = made[draw.integers(i)].ids_L
            ids = np.concatenate([before[: draw.integers(1, len(before) + 1)], ids])[:longest]
        made.append(Encoded(str(i), ids, np.zeros(len(ids), bool), 0 if encoder else -1))
    half = sequences // 2
    (batch,) = flat_batches([Share(0, made[:half], 1.0), Share(1, made[half:], 1.0)], budget=10**9)
    return batch


def _seen(batch: FlatBatch, causal: bool, window: int | None) -> np.ndarray:
    """(T, T) by the definition of `attention.py`."""
    here, positions = np.arange(len(batch.tokens_T)), batch.positions_T
    segment = np.cumsum(positions == 0)
    if causal:
        seen = (here <= here[:, None]) & (here[:, None] < batch.ends_T)
    else:
        seen = segment[:, None] == segment
    return seen if window is None else seen & (np.abs(positions[:, None] - positions) < window)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 300),
    st.booleans(),
    st.sampled_from([None, 1, 7, 64, 150]),
)
def test_the_block_mask_is_the_rule(seed: int, sequences: int, longest: int, causal: bool, window: int | None) -> None:
    """Empty blocks hold no pair that sees, full ones only such, and the rule decides the rest."""
    batch = _row(seed, sequences, longest, encoder=not causal)
    mask = flex.block_mask(Intervals(causal, batch.positions_T, batch.ends_T, CPU), window)
    seen = _seen(batch, causal, window)
    size = len(seen)
    i, j = torch.arange(size)[:, None], torch.arange(size)
    none = torch.tensor(0)
    assert (mask.mask_mod(none, none, i, j).numpy() == seen).all()
    blocks = -(-size // flex.BLOCK)
    for a in range(blocks):
        part = {int(b) for b in mask.kv_indices[0, 0, a, : mask.kv_num_blocks[0, 0, a]]}
        full = {int(b) for b in mask.full_kv_indices[0, 0, a, : mask.full_kv_num_blocks[0, 0, a]]}
        assert not part & full
        for b in range(blocks):
            met = seen[a * flex.BLOCK : (a + 1) * flex.BLOCK, b * flex.BLOCK : (b + 1) * flex.BLOCK]
            if b in full:
                assert met.all()
            elif b not in part:
                assert not met.any()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 160),
    st.booleans(),
    st.sampled_from([None, 5, 40]),
    st.sampled_from([None, 2.0]),
)
def test_forward_equals_the_stems(
    seed: int, longest: int, causal: bool, window: int | None, softcap: float | None
) -> None:
    batch = _row(seed, 6, longest, encoder=not causal)
    where = Intervals(causal, batch.positions_T, batch.ends_T, CPU)
    draw = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(n, len(batch.tokens_T), 16, generator=draw) for n in (4, 2, 2))
    said = {"scaling": 0.3, "window": window, "softcap": softcap}
    with torch.no_grad():
        ours = flex.attend(query, key, value, where, **said)
        theirs = attention.attend(query, key, value, where.stems(), **said)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def test_narrow_heads_and_dropout_take_the_stems() -> None:
    batch = _row(1, 5, 30, encoder=False)
    where = Intervals(True, batch.positions_T, batch.ends_T, CPU)
    narrow = [torch.randn(2, len(batch.tokens_T), 8) for _ in range(3)]
    assert torch.equal(flex.attend(*narrow, where), attention.attend(*narrow, where.stems()))
    wide = [torch.randn(2, len(batch.tokens_T), 16) for _ in range(3)]
    torch.manual_seed(0)
    ours = flex.attend(*wide, where, dropout=0.5)
    torch.manual_seed(0)
    assert torch.equal(ours, attention.attend(*wide, where.stems(), dropout=0.5))


WIDE: dict[str, dict[str, int]] = {
    "tiny_llama": {"hidden_size": 64},
    "tiny_mistral": {"head_dim": 16, "sliding_window": 4},
    "tiny_gemma2": {"head_dim": 16},
    "tiny_bert": {"hidden_size": 64},
}
"""Bases whose heads are wide enough for the kernel."""


def _tuned(tiny: Tiny, kind: str, fused: bool) -> Tuned:
    folder = tiny(kind, **WIDE[kind])
    tuned = tune(bases.load(spec.Model(name=str(folder), dtype="float32"), LORA, labels=LABELS), LORA)
    tuned._forward.fused = fused
    return tuned


def _batch(tuned: Tuned, kind: str) -> Batch:
    (batch,) = lay_out(tuned, [share(tuned, 0, rows(family(kind)))], 10_000)
    return batch


@pytest.mark.parametrize("kind", WIDE)
def test_a_model_says_the_same_through_either(tiny: Tiny, kind: str) -> None:
    ours, theirs = _tuned(tiny, kind, True), _tuned(tiny, kind, False)
    batch = _batch(ours, kind)
    torch.testing.assert_close(ours.logits(batch), theirs.logits(batch), atol=5e-6, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", WIDE)
def test_gradients_on_a_gpu_are_the_same_through_either(tiny: Tiny, kind: str) -> None:
    both = [_tuned(tiny, kind, fused) for fused in (True, False)]
    for tuned in both:
        batch = _batch(tuned, kind)
        nll_S, _ = tuned.nll(batch, {0: 0})
        (nll_S * torch.from_numpy(batch.weights_S).to(nll_S.device)).sum().backward()
    for name, leaf in both[0].slots[0].leaves.items():
        assert_close(leaf.grad, both[1].slots[0].leaves[name].grad, name, atol=1e-4)
