"""Equivalence 3 as a property: on random tries every field of a flat row is what the sequences alone say it must be."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.batches import FlatBatch, Share, flat_batches, padded_batches, stored_tokens
from luthier.data.examples import Encoded
from luthier.models import attention

Node = tuple  # (slot, example or "" where prefixes are shared, *tokens up to and including its own)


@st.composite
def _share(draw: st.DrawFn, slot: int) -> Share:
    """Few letters and short words: duplicates, words that begin others, and one trained token are common."""
    words = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=8))
    rows = []
    for i, word in enumerate(words):
        train_L = np.array(draw(st.lists(st.booleans(), min_size=len(word), max_size=len(word))), bool)
        rows.append(Encoded(f"{slot}.{i}", np.array(word, np.int32), train_L))
    return Share(slot, rows, 2.0**-slot, draw(st.integers(0, 2)), draw(st.booleans()))


@st.composite
def _shares(draw: st.DrawFn) -> list[Share]:
    return [draw(_share(slot)) for slot in range(draw(st.integers(1, 3)))]


@dataclass(frozen=True)
class _Expected:
    """What a step holds, from the sequences: its nodes, and how much each (node, next token) weighs."""

    nodes: Counter
    weights: dict


def _expected(shares: list[Share]) -> _Expected:
    nodes: set[Node] = set()
    weights: dict[tuple[Node, int], float] = defaultdict(float)
    for share in shares:
        for row in share.examples:
            owner = "" if share.share_prefixes else row.example_id
            ids = [-1 - k for k in range(share.virtual_tokens)] + row.ids_L.tolist()
            nodes |= {(share.slot, owner, *ids[: k + 1]) for k in range(len(ids))}
            for at in np.flatnonzero(row.train_L) + share.virtual_tokens:
                if at > 0:
                    weights[(share.slot, owner, *ids[:at]), ids[at]] += share.weight
    return _Expected(Counter(nodes), dict(weights))


def _nodes(batch: FlatBatch, shares: list[Share]) -> list[Node]:
    """Which node each stored token is, by walking down the row along `positions`."""
    slot_of = {t: slot for slot, start, stop in batch.ranges for t in range(start, stop)}
    unshared = {share.slot: iter(share.examples) for share in shares if not share.share_prefixes}
    path, owner, found = [], "", []
    for t, (token, depth) in enumerate(zip(batch.tokens_T.tolist(), batch.positions_T.tolist(), strict=True)):
        if depth == 0:
            owner = next(unshared[slot_of[t]]).example_id if slot_of[t] in unshared else ""
        path = [*path[:depth], token]
        found.append((slot_of[t], owner, *path))
    return found


@settings(max_examples=150, deadline=None)
@given(_shares())
def test_a_row_is_the_trie_of_its_sequences(shares: list[Share]) -> None:
    """Stored tokens, depths, weights, and the interval rule as the ancestor relation, over several slots."""
    (batch,) = flat_batches(shares, budget=10_000)
    expected, nodes = _expected(shares), _nodes(batch, shares)
    assert Counter(nodes) == expected.nodes
    plain = [share for share in shares if not share.virtual_tokens]
    alone = [flat for share in plain for flat in flat_batches([share], 10_000)]
    assert [len(flat.tokens_T) for flat in alone] == [stored_tokens(s.examples, s.share_prefixes) for s in plain]
    assert batch.positions_T.tolist() == [len(node) - 3 for node in nodes]
    i, j = np.arange(len(nodes))[:, None], np.arange(len(nodes))
    seen = (j <= i) & (i < batch.ends_T[j])
    ancestor = np.array([[below[: len(above)] == above for above in nodes] for below in nodes])
    assert (seen == ancestor).all()
    weights = {
        (nodes[source], int(target)): float(weight)
        for source, target, weight in zip(batch.sources_S, batch.targets_S, batch.weights_S, strict=True)
    }
    assert weights == expected.weights and len(weights) == len(batch.weights_S)


@settings(max_examples=150, deadline=None)
@given(_shares())
def test_parts_are_the_ancestor_relation(shares: list[Share]) -> None:
    """Triangles and rectangles cover, once each, exactly the pairs of tokens that the rule lets see each other, however
    many stems are trunks; what copies see is nobody's."""
    (batch,) = flat_batches(shares, budget=10_000)
    size = len(batch.tokens_T)
    i, j = np.arange(size)[:, None], np.arange(size)
    rule = (j <= i) & (i < batch.ends_T[j])
    for call in (64, 0, -64):
        with pytest.MonkeyPatch.context() as here:
            here.setattr(attention, "CALL", call)
            where = attention.layout(batch.positions_T, batch.ends_T, True, torch.device("cpu"))
        rows = torch.arange(size) if where.rows_P is None else where.rows_P
        copies = torch.zeros(len(rows), dtype=torch.bool) if where.copies_P is None else where.copies_P
        seen = np.zeros((size, size), int)
        for part in where.stems:
            triangle = part.mask(True, None, where.device)
            for block, copied in zip(
                rows[part.queries].view(part.n, -1), copies[part.queries].view(part.n, -1), strict=True
            ):
                mask = np.ones((len(block), len(block)), bool) if triangle is None else triangle.numpy()
                np.add.at(seen, np.ix_(block[~copied], block), mask[~copied.numpy()])
        for part in where.trunks:
            assert part.mask(True, None, where.device) is None
            seen[part.queries, part.keys] += 1
        assert (seen == rule).all()
        assert (rows if where.place_T is None else rows[where.place_T]).tolist() == list(range(size))


@settings(max_examples=100, deadline=None)
@given(_shares(), st.integers(1, 40))
def test_padded_rows_supervise_and_name_the_same_as_flat_ones(shares: list[Share], budget: int) -> None:
    """Whatever the cut: the same weight for every (context, next token), the same names for dropout."""
    found: dict[tuple[Node, int], float] = defaultdict(float)
    names: dict[int, set[int]] = defaultdict(set)
    virtual = {share.slot: share.virtual_tokens for share in shares}
    owners = {share.slot for share in shares if not share.share_prefixes}
    for batch in padded_batches(shares, budget, pad_id=0, paired=False):
        slot_of = [slot for slot, start, stop in batch.ranges for _ in range(start, stop)]
        for b, name in enumerate(batch.example_ids):
            length = batch.source_lengths_B[b]
            names[slot_of[b]] |= set(batch.keys_BL[b, :length].tolist())
            for entry in batch.entries[b].tolist():
                row, at = divmod(int(batch.sources_S[entry]), batch.width)
                assert row == b and at < length
                context = batch.source_BL[b, : at + 1].tolist()
                owner = name if slot_of[b] in owners else ""
                found[(slot_of[b], owner, *context), int(batch.targets_S[entry])] += float(batch.weights_S[entry])
            assert length >= 1 + virtual[slot_of[b]]
    assert dict(found) == _expected(shares).weights
    (flat,) = flat_batches(shares, budget=10_000)
    for slot, start, stop in flat.ranges:
        assert names[slot] == set(flat.keys_T[start:stop].tolist())
