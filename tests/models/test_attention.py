"""The interval rule of a flat row, and attention over its parts, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.batches import Share, flat_batches
from luthier.data.examples import Encoded
from luthier.models import attention
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
@given(sequences, st.sampled_from([None, 2, 3]), st.sampled_from([None, 5.0]), st.booleans(), st.booleans())
def test_attention_equals_the_masked_definition(
    lists: list[list[int]], window: int | None, softcap: float | None, classes: bool, copies: bool
) -> None:
    """Whether stems are copied or, as if calling the kernel cost nothing, trunks as soon as three share one."""
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
    with pytest.MonkeyPatch.context() as here:
        here.setattr(attention, "CALL", 64 if copies else -64)
        where = layout(batch.positions_T, batch.ends_T, not classes, torch.device("cpu"))
    assert not (copies and where.trunks) and not (where.trunks and classes)
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
    found = layout(batch.positions_T, batch.ends_T, True, torch.device("cpu"))
    assert not found.trunks  # [10, 11] and [12] stand before 13, and are copied before the others who share them
    assert found.rows_P is not None and found.place_T is not None and found.copies_P is not None
    assert sorted(_blocks(found)) == [[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5, 6]]
    assert found.rows_P[found.place_T].tolist() == list(range(7))
    assert sorted(found.rows_P[~found.copies_P].tolist()) == list(range(7)) and found.copies_P.sum() == 5


def _blocks(found) -> list[list[int]]:
    assert found.rows_P is not None
    return [rows for part in found.stems for rows in found.rows_P[part.queries].view(part.n, -1).tolist()]


def test_a_long_stem_that_many_share_is_a_trunk() -> None:
    """Its rectangle is cheaper than so many copies; a short one above it is copied before it as well."""
    shared = list(range(100, 160))
    batch = _flat([[7, *shared, 10 * i, 10 * i + 1] for i in range(5)] + [[7, 9]])
    found = layout(batch.positions_T, batch.ends_T, True, torch.device("cpu"))
    [trunk] = found.trunks
    at = batch.tokens_T.tolist().index(100)
    assert (trunk.keys, trunk.queries) == (slice(at, at + 60), slice(at + 60, at + 70))
    assert [0, *range(at, at + 60)] in _blocks(found) and [0, at + 60, at + 61] in _blocks(found)


@pytest.mark.parametrize("causal", [True, False])
def test_stems_of_one_length_are_one_call(causal: bool) -> None:
    positions = np.concatenate([np.arange(4), np.arange(3), np.arange(4)])
    ends = np.repeat([4, 7, 11], [4, 3, 4])
    found = layout(positions, ends, causal, torch.device("cpu"))
    assert [part.n for part in found.stems] == [2, 1] and not found.trunks


def _row(spec: list[tuple[int, list[int]]]):
    """A layout of stems with children, and random queries, keys and values for it."""
    lists = [
        [tree, *range(stem - 1), 100 + i, *range(own - 1)]
        for tree, (stem, owns) in enumerate(spec, 9)
        for i, own in enumerate(owns)
    ]
    batch = _flat(lists)
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randn(heads, len(batch.tokens_T), 8, generator=draw) for heads in (4, 2, 2)]
    return layout(batch.positions_T, batch.ends_T, True, torch.device("cpu")), rows


def test_bfloat16_joins_parts_in_float32() -> None:
    """No part is rounded on its way: the whole is as near to float32 as bfloat16's own rounding lets it."""
    where, rows = _row([(40, [9, 30, 30]), (20, [5, 6])])
    whole = attend(*(x.bfloat16().float() for x in rows), where)
    halves = attend(*(x.bfloat16() for x in rows), where)
    assert halves.dtype == torch.bfloat16
    torch.testing.assert_close(halves.float(), whole, atol=0.02, rtol=0.02)


def test_values_may_be_of_another_width_than_keys() -> None:
    """As in DeepSeek's latent attention; each column of the values is weighed alike, so halves and whole agree."""
    where, (q, k, v) = _row([(6, [2, 3, 3])])
    torch.testing.assert_close(attend(q, k, v[..., :4], where), attend(q, k, v, where)[..., :4])


def test_gradients_that_are_one_number_written_once() -> None:
    """What `sum` gives back has no memory of its own; nor need what comes in lie side by side."""
    where, rows = _row([(6, [2, 3, 3])])
    spread = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in rows]
    dense = [x.clone().requires_grad_() for x in rows]
    assert spread[0].stride(-1) != 1
    ours = torch.autograd.grad(attend(*spread, where).sum(), spread)
    theirs = torch.autograd.grad((attend(*dense, where) * torch.ones(8)).sum(), dense)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_dropout_takes_from_every_part_and_keeps_the_mean() -> None:
    where, rows = _row([(6, [2, 3, 3])])
    torch.manual_seed(0)
    drawn = torch.stack([attend(*rows, where, dropout=0.3) for _ in range(3000)])
    assert not torch.equal(drawn[0], drawn[1])
    plain = attend(*rows, where)
    error = drawn.std(0) / len(drawn) ** 0.5
    assert bool(((drawn.mean(0) - plain).abs() <= 5 * error + 1e-6).all())
