"""The interval rule of a flat row, and attention over its segments, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.batches import Share, flat_batches
from luthier.data.examples import Encoded
from luthier.models.attention import attend, layout

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=9)


def _flat(lists: list[list[int]], classes: bool = False):
    rows = [
        Encoded(str(i), np.array(ids, np.int32), np.full(len(ids), not classes), label=0 if classes else -1)
        for i, ids in enumerate(lists)
    ]
    (batch,) = flat_batches([Share(0, rows, 1.0)], budget=10_000)
    return batch


def _seen_by_rule(batch) -> np.ndarray:
    i, j = np.arange(len(batch.ends_T))[:, None], np.arange(len(batch.ends_T))
    return (j <= i) & (i < batch.ends_T[j])


@settings(max_examples=150, deadline=None)
@given(sequences)
def test_interval_rule_is_the_ancestor_relation(lists: list[list[int]]) -> None:
    """Each stored token sees exactly the prefix it stands for: the rule spells the sequences' prefixes."""
    batch = _flat(lists)
    seen = _seen_by_rule(batch)
    paths = [tuple(batch.tokens_T[row]) for row in seen]
    assert sorted(paths) == sorted({tuple(ids[: k + 1]) for ids in lists for k in range(len(ids))})
    assert (seen.sum(1) == batch.positions_T + 1).all()


@settings(max_examples=60, deadline=None)
@given(sequences, st.sampled_from([None, 2, 3]), st.sampled_from([None, 5.0]), st.booleans())
def test_attention_equals_the_masked_definition(
    lists: list[list[int]], window: int | None, softcap: float | None, classes: bool
) -> None:
    batch = _flat(lists, classes)
    T, H, G, d = len(batch.tokens_T), 4, 2, 8
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(heads, T, d, generator=draw, requires_grad=True) for heads in (H, G, G))
    behind = torch.from_numpy(batch.positions_T[:, None] - batch.positions_T)
    if classes:
        segment = np.searchsorted(np.unique(batch.sources_S), np.arange(T), side="right")
        seen = torch.from_numpy(segment[:, None] == segment) & (behind.abs() < (window or 99))
    else:
        seen = torch.from_numpy(_seen_by_rule(batch)) & (behind < (window or 99))
    scores = q @ k.repeat_interleave(H // G, 0).transpose(-1, -2) * 0.3
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.repeat_interleave(H // G, 0)
    where = layout(batch.positions_T, not classes, torch.device("cpu"))
    ours = attend(q, k, v, where, scaling=0.3, window=window, softcap=softcap).transpose(0, 1)
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-5)
    weight = torch.randn(expected.shape, generator=draw)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=5e-6, rtol=1e-4)


def test_the_drawn_tree() -> None:
    """The picture in `data/batches.py`: three sequences, two of which share three tokens."""
    batch = _flat([[10, 11, 12, 13], [10, 11, 12, 14], [10, 11, 15, 16]])
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 3, 2, 3]
    assert batch.ends_T.tolist() == [7, 7, 5, 4, 5, 7, 7]
    assert _groups(batch) == [(0, 4, 1), (3, 1, 1), (2, 2, 1)]


def _groups(batch):
    return layout(batch.positions_T, True, torch.device("cpu")).groups


@pytest.mark.parametrize("causal", [True, False])
def test_segments_of_one_shape_are_one_call(causal: bool) -> None:
    positions = np.concatenate([np.arange(4), np.arange(3), np.arange(4)])
    assert layout(positions, causal, torch.device("cpu")).groups == [(0, 4, 2), (0, 3, 1)]
