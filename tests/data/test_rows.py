"""The heaviest step that rows can make."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.batches import epoch_order, stored_tokens
from luthier.data.examples import Encoded
from luthier.data.rows import heaviest


def row(name: str, ids: list[int]) -> Encoded:
    train_L = np.zeros(len(ids), bool)
    train_L[-1] = True
    return Encoded(name, np.array(ids, np.int32), train_L)


def questions(documents: int, each: int) -> list[Encoded]:
    """Documents of 40 + d tokens, each with as many questions of 5."""
    return [
        row(f"{d}.{q}", [*range(1000 * d, 1000 * d + 40 + d), *range(q, q + 5)])
        for d in range(1, documents + 1)
        for q in range(each)
    ]


def test_the_longest_rows_of_one_document_are_not_taken_for_the_heaviest_step() -> None:
    rows = questions(documents=10, each=8)
    longest = sorted(rows, key=lambda each: -len(each.ids_L))[:8]
    assert stored_tokens(longest) < 100  # one document, stored once
    chosen = heaviest(rows, 8, shared=True)
    assert len({each.example_id.split(".")[0] for each in chosen}) == 8
    most = max(stored_tokens([rows[i] for i in epoch_order(80, seed, 0)[:8]]) for seed in range(200))
    assert stored_tokens(chosen) >= most


def test_without_sharing_the_longest_rows_are_the_heaviest() -> None:
    rows = questions(documents=10, each=8)
    assert [len(each.ids_L) for each in heaviest(rows, 8, shared=False)] == [55] * 8


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=30), st.integers(1, 8))
def test_as_many_rows_as_a_step_draws_each_once(ids: list[list[int]], most: int) -> None:
    rows = [row(str(k), each) for k, each in enumerate(ids)]
    for shared in (True, False):
        names = [each.example_id for each in heaviest(rows, most, shared)]
        assert len(names) == len(set(names)) == min(most, len(rows))
