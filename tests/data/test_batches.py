"""Orders and micro-batches: pure functions of the seed, nothing lost, nothing counted twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.batches import (
    Share,
    epoch_order,
    flat_batches,
    grouped_order,
    padded_batches,
    stored_tokens,
    trained_entries,
)
from luthier.data.examples import Encoded


def _row(name: str, ids: list[int], trained: int) -> Encoded:
    train_L = np.zeros(len(ids), bool)
    train_L[len(ids) - trained :] = True
    return Encoded(name, np.array(ids, np.int32), train_L)


rows_strategy = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=2, max_size=8), st.integers(1, 2)), min_size=1, max_size=12
).map(lambda pairs: [_row(str(i), ids, min(n, len(ids) - 1)) for i, (ids, n) in enumerate(pairs)])


def test_order_depends_on_seed_and_epoch_alone() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert tuple(epoch_order(50, 1, 1)) == orders[3]


def test_grouped_order_brings_prefixes_together_and_keeps_every_example() -> None:
    rows = [_row(f"{g}.{i}", [g] * 6 + [i], 1) for i in range(8) for g in range(4)]
    order = grouped_order(rows, 8, seed=3, epoch=0)
    assert sorted(order) == list(range(32))

    def stored(order: np.ndarray) -> int:
        return sum(stored_tokens([rows[i] for i in order[k : k + 8]]) for k in range(0, 32, 8))

    assert stored(order) < stored(epoch_order(32, 3, 0))
    assert list(order) != list(grouped_order(rows, 8, seed=3, epoch=1))


@settings(max_examples=100, deadline=None)
@given(rows_strategy, st.integers(1, 40), st.booleans(), st.integers(0, 2))
def test_any_budget_supervises_the_same_things(rows: list[Encoded], budget: int, sharing: bool, virtual: int) -> None:
    """Whatever the cut: every trained token of every example once, each with the context it has alone."""
    weight = 1 / trained_entries(rows, virtual)
    found: dict[tuple, float] = {}
    seen_ids = []
    for batch in flat_batches([Share(0, rows, weight, virtual, sharing)], budget):
        seen_ids += batch.example_ids
        for source, target, w in zip(batch.sources_S, batch.targets_S, batch.weights_S, strict=True):
            ancestors = [j for j in range(source + 1) if source < batch.ends_T[j]]
            key = (*batch.tokens_T[ancestors].tolist(), int(target))
            found[key] = found.get(key, 0.0) + float(w)
    expected: dict[tuple, float] = {}
    for row in rows:
        ids = [-1 - k for k in range(virtual)] + row.ids_L.tolist()
        for at in np.flatnonzero(row.train_L):
            key = (*ids[: at + virtual], int(row.ids_L[at]))
            expected[key] = expected.get(key, 0.0) + weight
    assert sorted(seen_ids) == sorted(row.example_id for row in rows)
    assert found == pytest.approx(expected)
    assert sum(found.values()) == pytest.approx(1.0)


def test_entries_lead_back_to_each_example() -> None:
    rows = [_row("a", [1, 2, 3, 4], 2), _row("b", [1, 2, 3, 4], 2), _row("c", [1, 2, 5], 1)]
    (batch,) = flat_batches([Share(0, rows, 0.25)], 100)
    targets = {name: batch.targets_S[e].tolist() for name, e in zip(batch.example_ids, batch.entries, strict=True)}
    assert targets == {"a": [3, 4], "b": [3, 4], "c": [5]}
    assert sorted(batch.weights_S.tolist()) == [0.25, 0.5, 0.5]  # the twins' entries are computed once, counted twice


def test_keys_name_a_token_by_its_prefix_in_every_layout() -> None:
    rows = [_row("a", [1, 2, 3], 1), _row("b", [1, 2, 4], 1), _row("c", [2, 2, 4], 1)]
    one = next(iter(flat_batches([Share(0, rows, 1.0)], 100)))
    alone = [next(iter(flat_batches([Share(0, [row], 1.0)], 100))) for row in rows]
    together = set(one.keys_T.tolist())
    assert together == {key for batch in alone for key in batch.keys_T.tolist()}
    assert len(together) == len(one.tokens_T) == 7
    apart = next(iter(flat_batches([Share(0, rows, 1.0, share_prefixes=False)], 100)))
    assert len(set(apart.keys_T.tolist())) == 9


def test_padded_rows_keep_lengths_slots_and_targets() -> None:
    rows = [_row("a", [5, 6, 7, 8], 2), _row("b", [5, 9], 1)]
    (batch,) = padded_batches([Share(1, rows, 0.5), Share(0, rows[:1], 1.0, virtual_tokens=2)], 1000, pad_id=0)
    assert batch.ranges == ((1, 0, 2), (0, 2, 3))
    assert batch.source_BL.tolist() == [[5, 0, 0, 0], [5, 6, 0, 0], [-1, -2, 5, 6]]
    assert batch.source_lengths_B.tolist() == [1, 2, 4]
    assert batch.targets_BM.tolist() == [[9, -1], [7, 8], [7, 8]]
    assert batch.targets_S.tolist() == [9, 7, 8, 7, 8]
    assert batch.weights_S.tolist() == [0.5, 0.5, 0.5, 1.0, 1.0]
