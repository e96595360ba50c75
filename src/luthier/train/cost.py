"""What a step costs, counted before any number is there: bytes kept for the backward pass, products, operations.

A base whose weights are shapes only (torch's meta device) takes a micro-batch through the same code as a real one,
forward and backward, while nothing is computed; what autograd would keep and what would be multiplied is counted. So
the figures follow the engine, every family and every method, without a table of them.

Lives here: counting, and the formulas from counts to bytes and seconds. Does not live here: measuring (`measure.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from luthier.data.batches import PaddedBatch
from luthier.hardware import Rates
from luthier.models.forward import Batch
from luthier.models.methods import Tuned
from luthier.spec import QLora

LOSS_COPIES = 4
"""Rows of logits alive at once where the loss is deepest: themselves, their exponentials, two gradients."""
EFFICIENCY = 0.8
"""Share of the rate of one large product that a step's products reach (bench/memory.py)."""
ATTENTION = 3
"""How much slower attention's small products are: masked halves and short rows (bench/memory.py)."""
PASSES = 6
"""How often what the backward pass needs goes through memory: written, read, its gradients (bench/memory.py)."""
CALLS = 10
"""Python around an operation, in times of the operation itself (bench/memory.py)."""
ALLOCATOR = 1.2
"""Memory in use is more than memory asked for: pages of freed blocks stay (bench/memory.py)."""
LIBRARIES = 64 << 20
"""Bytes of kernels, thread stacks and modules that the first step brings in on a CPU (bench/memory.py)."""


@dataclass(frozen=True, slots=True)
class Count:
    """One micro-batch of `stored` tokens with `outputs` rows of `width` logits: `kept` bytes for the backward pass,
    `widest` bytes of the largest temporary, `flops` of all products (two a multiply-add) but for attention's own,
    which are in `attention`; `operations`."""

    stored: int
    outputs: int
    width: int
    layers: int
    kept: int
    widest: int
    flops: int
    attention: int
    operations: int


class _Operations(TorchDispatchMode):
    """Counts what is dispatched, and remembers the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.widest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.count += 1
        if isinstance(result, Tensor):
            self.widest = max(self.widest, result.numel() * result.element_size())
        return result


def count(tuned: Tuned, batch: Batch) -> Count:
    """Count `batch` through a tuned base of shapes; a base with numbers would compute meanwhile, and is right too."""
    owned = {tensor.untyped_storage()._cdata for tensor in _owned(tuned)}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            kept[storage._cdata] = tensor  # held, so that no other storage takes its name
        return tensor

    with _Operations() as operations, FlopCounterMode(display=False) as flops:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = tuned.hidden(batch)
        hidden.sum().backward()
    outputs, width = _outputs(tuned, batch)
    return Count(
        stored=batch.stored,
        outputs=outputs,
        width=width,
        layers=max(1, tuned.base.facts.layers),
        kept=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
        widest=operations.widest,
        flops=flops.get_total_flops() + 6 * outputs * width * tuned.base.facts.hidden_size,
        attention=_attention_flops(tuned, batch),
        operations=operations.count,
    )


def _attention_flops(tuned: Tuned, batch: Batch) -> int:
    """What a fused kernel computes unseen: two products forward, five backward, for each pair that may look."""
    if isinstance(batch, PaddedBatch):
        return 0  # their attention is made of products that are counted
    pairs = int((batch.positions_T + 1).sum())
    return 14 * pairs * tuned.base.facts.hidden_size * tuned.base.facts.layers


def _owned(tuned: Tuned) -> list[Tensor]:
    """What is there whether or not a step is under way."""
    flats = [tensor for slot in tuned.slots for flat in slot.flats for tensor in (flat.values, flat.grads)]
    return [*tuned.base.model.parameters(), *tuned.base.model.buffers(), *flats]


def _outputs(tuned: Tuned, batch: Batch) -> tuple[int, int]:
    """Rows that meet the output layer, and its width."""
    if tuned.base.family == "encoder":
        return len(batch.sources_S), len(tuned.base.labels)
    width = tuned.base.model.config.get_text_config().vocab_size
    return (len(set(batch.sources_S.tolist())) if tuned.base.family == "causal" else 0), width


# ------------------------------------------------------------------------------------------------------------- formulas


def weight_bytes(tuned: Tuned) -> int:
    """Bytes of the frozen base: a number's width, or a quantized layer's bits; nothing where all of it is trained."""
    if tuned.full:
        return 0
    method = next((slot.method for slot in tuned.slots if isinstance(slot.method, QLora)), None)
    width = tuned.base.dtype.itemsize
    total = 0
    for parameter in {id(p): p for p in tuned.base.model.parameters()}.values():
        quantized = method is not None and parameter.dim() == 2 and parameter is not _embedding(tuned)
        total += int(parameter.numel() * (method.bits / 8 if quantized and method is not None else width))
    return total


def _embedding(tuned: Tuned) -> Tensor:
    return tuned.base.model.get_input_embeddings().weight


def peak_bytes(counted: Count, tuned: Tuned, tokens: int, recompute: bool, slots: int = 1) -> int:
    """Bytes at the peak of a step with micro-batches of `tokens`: the base; value, gradient and two moments of what is
    trained (float32), for as many `slots` as are like those of `tuned`; what the backward pass needs, or with
    `recompute` each layer's input and one layer whole; then the loss's logits or the layer at hand, whichever is more.
    """
    share = tokens / counted.stored
    kept = counted.kept
    if recompute:
        inputs = counted.stored * tuned.base.facts.hidden_size * tuned.base.dtype.itemsize * counted.layers
        kept = kept // counted.layers + inputs
    trained = 16 * slots * sum(slot.trainable_parameters for slot in tuned.slots)
    logits = LOSS_COPIES * 4 * min(int(counted.outputs * share) * counted.width, 1 << 26)
    step = kept * share + max(logits, 3 * counted.widest * share)
    libraries = LIBRARIES if tuned.base.device.type in ("cpu", "meta") else 0
    return int(weight_bytes(tuned) + trained + ALLOCATOR * step + libraries)


def seconds(counts: Sequence[Count], stored_tokens: float, rates: Rates, recompute: bool) -> float:
    """Seconds for updates over `stored_tokens`, of which `counts` are a sample, at this machine's measured rates."""
    flops = sum(each.flops + ATTENTION * each.attention for each in counts) * (
        4 / 3 if recompute else 1
    )  # one forward pass more
    moved = sum(each.kept for each in counts)
    stored = sum(each.stored for each in counts)
    operations = sum(each.operations for each in counts)
    once = flops / (EFFICIENCY * rates.products) + PASSES * moved / rates.bytes + CALLS * operations * rates.call
    return once * stored_tokens / stored
