"""What each slot brings to a micro-batch, and which part of a micro-batch's outcome is whose.

Lives here: shares of an update or an evaluation, the heaviest step there can be. Does not live here: how tokens lie in
memory (`data/batches.py`), which examples an update draws (`lanes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from luthier.data.batches import Share, trained_entries
from luthier.data.examples import Encoded
from luthier.data.rows import heaviest
from luthier.models.forward import Batch
from luthier.models.methods import Tuned
from luthier.models.slots import Slot
from luthier.spec import Training


def lay_out(tuned: Tuned, shares: Sequence[Share], budget: int) -> Iterator[Batch]:
    """Micro-batches in the form the base takes."""
    return tuned.lay_out(shares, budget)


def step_share(tuned: Tuned, slot: Slot, training: Training, rows: Sequence[Encoded]) -> Share:
    """What a slot brings to an update that draws `rows`."""
    return share(slot, rows, training.share_prefixes and tuned.shares_prefixes)


def share(slot: Slot, rows: Sequence[Encoded], share_prefixes: bool) -> Share:
    """A slot's rows, each entry worth its part of their mean."""
    entries = trained_entries(rows, slot.virtual_tokens)
    return Share(slot.index, rows, 1 / max(1, entries), slot.virtual_tokens, share_prefixes)


def entries_by_slot(batch: Batch) -> Iterator[tuple[int, slice]]:
    """Where among the batch's entries those of each slot lie: one after another, as the slots' ranges do."""
    unit_S = batch.sources_S // batch.width
    for slot, start, stop in batch.ranges:
        mine = np.flatnonzero((unit_S >= start) & (unit_S < stop))
        if len(mine):
            yield slot, slice(int(mine[0]), int(mine[-1]) + 1)


def longest_batch(tuned: Tuned, work: Sequence[tuple[Slot, Training, Sequence[Encoded]]], budget: int) -> Batch:
    """The largest micro-batch of a step that drew every slot's heaviest examples."""
    shares = []
    for slot, training, rows in work:
        most = training.batch_size * training.accumulate_steps
        drawn = heaviest(rows, most, tuned.base.family == "causal" and training.share_prefixes)
        shares.append(step_share(tuned, slot, training, drawn))
    return max(lay_out(tuned, shares, budget), key=lambda batch: batch.stored)
