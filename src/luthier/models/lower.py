"""The frozen layers below every adapter, computed once for all slots that see the same rows.

Nothing a slot trains changes what lies below its lowest adapter. So where slots bring the same trees and none trains
anything below layer k, the layers below k are given one slot's tokens; before layer k their rows are repeated, one
sequence a slot, `(1, t, D)` to `(N, t, D)`. Positions broadcast by themselves; our attention takes the N sequences for
one row of N · t tokens; adapters see the rows of all slots as ever. Exact, and in no family's own code: a hook before
every layer acts where the layout in hand says so.

Lives here: whether and where slots share. Does not live here: how the model is called (`forward.py`), how slots that
see the same rows come to lie side by side (`data/abreast.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier.data.batches import FlatBatch
from luthier.models.attention import Layout
from luthier.models.flex import Intervals
from luthier.models.lora import LoraLinear
from luthier.models.slots import BARE_BASE

Seen = Layout | Intervals


@dataclass(frozen=True, slots=True)
class Halves:
    """How rows see each other: `one` slot's below layer `first`, from there on the `whole` row, `copies` of them."""

    one: Seen
    whole: Seen
    copies: int
    first: nn.Module

    def of(self, sequences: int) -> Seen:
        """The layout of a layer that is given so many sequences."""
        return self.one if sequences == 1 else self.whole

    def before(self, layer: nn.Module, hidden_1tD: Tensor) -> Tensor:
        """What a layer is given: before the first that slots do not share, the rows once a slot."""
        return hidden_1tD.repeat(self.copies, 1, 1) if layer is self.first else hidden_1tD


class Lower:
    """The layers of one backbone, in the order of its modules, which is that of their calls."""

    def __init__(self, backbone: nn.Module) -> None:
        self._backbone = backbone
        self.layers = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]

    def lowest(self) -> dict[int, int]:
        """The layer of each slot's lowest adapter, by the slot; 0 where one hangs outside of the layers."""
        inside = Counter[int]()
        found: dict[int, int] = {}
        for number, layer in enumerate(self.layers):
            for slot in _adapters(layer):
                inside[slot] += 1
                found.setdefault(slot, number)
        return {
            slot: found.get(slot, 0) if inside[slot] == n else 0
            for slot, n in Counter(_adapters(self._backbone)).items()
        }

    def upper(self) -> set[int]:
        """The slots that leave at least one layer below them as it is; the bare base leaves all."""
        return {BARE_BASE} | {slot for slot, number in self.lowest().items() if number}


def _adapters(module: nn.Module) -> Iterator[int]:
    """The slots of all adapters in a module, each as often as it has one."""
    for part in module.modules():
        if isinstance(part, LoraLinear):
            yield from part.adapters


def copies(batch: FlatBatch) -> int:
    """How many slots a batch consists of, if all bring the same tokens in the same trees; else 1."""
    count = len(batch.ranges)
    if count < 2 or len({stop - start for _, start, stop in batch.ranges}) > 1:
        return 1
    tokens_Nt, positions_Nt = batch.tokens_T.reshape(count, -1), batch.positions_T.reshape(count, -1)
    return count if bool((tokens_Nt == tokens_Nt[0]).all() and (positions_Nt == positions_Nt[0]).all()) else 1


def as_row(x_NHtd: Tensor) -> Tensor:
    """`(N, H, t, d)` as one row `(H, N · t, d)`: a view, laid out as the projections wrote it."""
    return x_NHtd.squeeze(0) if len(x_NHtd) == 1 else x_NHtd.transpose(1, 2).flatten(0, 1).transpose(0, 1)


def differs(shared: Tensor, plain: Tensor, tolerance: float) -> bool:
    """Whether two computations of the same rows are apart by more than rounding: on average, since a few numbers of a
    hidden row may be thousands of times larger than the others. What is no number differs."""
    return not float((shared - plain).abs().mean()) <= tolerance * float(plain.abs().mean())
