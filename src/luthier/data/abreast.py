"""Slots that see the same rows, side by side: one slot's trees, repeated, so that a model's lower layers can be shared.

Lives here: which slots bring the same rows, and how many of them a micro-batch takes. Does not live here: the trees
(`batches.py`), whether layers are shared (`models/lower.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np

from luthier.data.batches import FlatBatch, Share, flat_batches, stored_tokens
from luthier.data.examples import Encoded

ABREAST = 4
"""How many slots that share layers lie side by side at least, if need be with fewer examples in a micro-batch: a
quarter of the budget stores few prefixes twice, and what is shared is computed a fourth as often."""


def side_by_side(shares: Sequence[Share], budget: int, upper: Collection[int]) -> Iterator[FlatBatch]:
    """`flat_batches`, with those slots of `upper`, which can share a model's lower layers, that bring the same rows in
    micro-batches of their own."""
    rest = list(shares)
    while len(group := _alike(rest, upper)) > 1:
        rest = [share for share in rest if not any(share is other for other in group)]
        yield from _abreast(group, budget)
    yield from flat_batches(rest, budget)


def _alike(shares: Sequence[Share], upper: Collection[int]) -> list[Share]:
    """The first of the shares whose rows some other has too, with those others; all of them slots of `upper`."""
    able = [share for share in shares if share.slot in upper]
    groups = ([share for share in able if _same_rows(one, share)] for one in able)
    return next((group for group in groups if len(group) > 1), [])


def _same_rows(a: Share, b: Share) -> bool:
    """Whether two slots bring the same examples, whatever their names, in the same order, laid out in the same way."""
    alike = (a.virtual_tokens, a.share_prefixes, a.numbers) == (b.virtual_tokens, b.share_prefixes, b.numbers)
    return (
        alike
        and 0 < len(a.examples) == len(b.examples)
        and (a.examples is b.examples or all(map(_same_row, a.examples, b.examples)))
    )


def _same_row(a: Encoded, b: Encoded) -> bool:
    return a is b or (a.label == b.label and np.array_equal(a.ids_L, b.ids_L) and np.array_equal(a.train_L, b.train_L))


def _abreast(shares: Sequence[Share], budget: int) -> Iterator[FlatBatch]:
    """Slots with the same rows: as many side by side as whole trees fit, but ABREAST at least if examples fit."""
    rows = shares[0].examples
    longest = max(len(row.ids_L) for row in rows)
    whole = stored_tokens(rows, shares[0].share_prefixes and rows[0].label < 0)
    most = max(1, budget // whole, min(ABREAST, budget // longest))
    bands = -(-len(shares) // most)
    numbered = [replace(row, example_id=str(i)) for i, row in enumerate(rows)]
    for k in range(bands):
        band = shares[len(shares) * k // bands : len(shares) * (k + 1) // bands]
        for batch in flat_batches([replace(band[0], examples=numbered, weight=1.0)], budget // len(band)):
            yield _once_a_slot(batch, band)


def _once_a_slot(batch: FlatBatch, shares: Sequence[Share]) -> FlatBatch:
    """A batch of one slot repeated for every slot; in it an entry weighs one an example, and examples have numbers."""
    count, places = len(shares), np.arange(len(shares))[:, None]
    tokens, entries = len(batch.tokens_T), len(batch.sources_S)
    return FlatBatch(
        tokens_T=np.tile(batch.tokens_T, count),
        positions_T=np.tile(batch.positions_T, count),
        ends_T=(batch.ends_T + tokens * places).ravel(),
        keys_T=np.tile(batch.keys_T, count),
        ranges=tuple((share.slot, tokens * i, tokens * (i + 1)) for i, share in enumerate(shares)),
        sources_S=(batch.sources_S + tokens * places).ravel(),
        targets_S=np.tile(batch.targets_S, count),
        weights_S=np.concatenate([batch.weights_S * np.float32(share.weight) for share in shares]),
        example_ids=tuple(share.examples[int(i)].example_id for share in shares for i in batch.example_ids),
        entries=tuple(entry + entries * i for i in range(count) for entry in batch.entries),
    )
