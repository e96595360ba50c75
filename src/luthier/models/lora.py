"""N low-rank adapters on one frozen linear map. Pure maths: torch only.

LoRA (Hu et al. 2021, arXiv 2106.09685): a frozen `y = x Wᵀ + b` gains `s · (x Aᵀ) Bᵀ`, with A (r, in) drawn as PEFT
draws it, B (out, r) zero, and `s = alpha / r`, or `alpha / √r` for rank-stabilised LoRA (arXiv 2312.03732). Only A
and B are trained.

Slots. Rows of x belong to slots, contiguous ranges of the batch; each range meets its own A and B, a range whose slot
has none here meets W alone. What rows belong to whom stands in `Turn`, which all layers of a model share.

Dropout on x before A is a function of (slot seed, step, layer, stored token, feature), not of a random state: the same
mask whatever the layout, on recomputation, after a resume, and next to any other slot. A layer that a model
applies several times (ALBERT) draws the same mask each time.

Letters: N rows, r rank; `in` and `out` the widths of W.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRODUCTS = ("torch", "onednn")
"""What multiplies by frozen weights on a CPU: torch's own choice (MKL for float32) or oneDNN. They differ in the last
bits, so a run keeps the one it began with."""


@dataclass(slots=True)
class Turn:
    """Which rows of the batch in flight belong to which slot: (slot, start, stop) out of `units`.

    A unit is one token of a flat batch or one sequence of a padded one; a layer that sees k rows a unit scales the
    ranges by k. A layer that sees exactly the rows somebody asks for (`asked_units` of them) finds their slots in
    `asked_ranges`. While training, `steps` says how far each slot is and `keys` names the rows, by how many there are:
    both decide dropout. `product` says with what frozen weights are multiplied (`PRODUCTS`).
    """

    ranges: tuple[tuple[int, int, int], ...] = ()
    units: int = 1
    asked_ranges: tuple[tuple[int, int, int], ...] = ()
    asked_units: int = 0
    steps: Mapping[int, int] | None = None
    keys: dict[int, Tensor] = field(default_factory=dict)
    product: str = "torch"


@dataclass(frozen=True, slots=True)
class Adapter:
    """One slot's A (r, in) and B (out, r), both float32 leaves, with its scale and dropout."""

    a: Tensor
    b: Tensor
    scale: float
    dropout: float
    seed: int


def lora_scale(rank: int, alpha: float, rslora: bool) -> float:
    """Factor on the low-rank product.

    >>> lora_scale(8, 2, False), lora_scale(16, 8, True)
    (0.25, 2.0)
    """
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def draw_a(rank: int, width: int, seed: int, name: str) -> Tensor:
    """A (r, in), uniform in ±1/√in (Kaiming with a = √5, PEFT's default); a function of (seed, layer name) alone."""
    bound = 1 / math.sqrt(width)
    generator = torch.Generator().manual_seed(mix(seed, name))
    return (torch.rand(rank, width, generator=generator) * 2 - 1) * bound


def mix(seed: int, name: str) -> int:
    """One number below 2³² from a seed and a name."""
    return zlib.crc32(name.encode(), seed & 0xFFFFFFFF)


class LoraLinear(nn.Module):
    """A frozen linear layer, or transformers' `Conv1D` (weight stored transposed), with one adapter or none a slot."""

    def __init__(self, base: nn.Module, name: str, turn: Turn, transposed: bool, quantized: bool) -> None:
        super().__init__()
        self.base: Any = base  # a layer: its weight, its bias, its call
        self.name = name
        self.turn = turn
        self.transposed = transposed
        self.quantized = quantized
        self.adapters: dict[int, Adapter] = {}

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some models look at its type before they call the layer."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """`(…, in)` to `(…, out)`; the base's own dtype in and out, the low-rank path in float32 products of it."""
        rows = x.reshape(-1, x.shape[-1])
        parts, tensors = self._parts(rows) if self.adapters else ([], [])
        if not parts:
            return self.base(x)
        if self.quantized:  # the layer knows how to dequantize; its own backward does so once
            y = self.base(rows) + _LowRank.apply(rows, None, None, (self.turn.product, *parts), *tensors)
        else:
            weight = self.base.weight.t() if self.transposed else self.base.weight
            y = _LowRank.apply(rows, weight, self.base.bias, (self.turn.product, *parts), *tensors)
        return y.view(*x.shape[:-1], -1)

    def _parts(self, rows: Tensor) -> tuple[list[tuple[int, int, float, Tensor | None]], list[Tensor]]:
        """(start, stop, scale, dropout mask) and A, B of every slot with rows here."""
        turn, parts, tensors = self.turn, [], []
        if self.adapters.keys().isdisjoint(slot for slot, _, _ in turn.ranges):  # perhaps rows that slots share
            return [], []
        ranges, units = turn.ranges, turn.units
        if len(rows) == turn.asked_units:
            ranges, units = turn.asked_ranges, turn.asked_units
        scale_up, rest = divmod(len(rows), units)
        alone = len(ranges) == 1 and ranges[0][1:] == (0, units)  # then all rows a layer may see are its
        unknown = rest or (turn.steps is not None and len(rows) not in turn.keys)
        if ranges and not alone and unknown:
            raise ValueError(f"layer {self.name} sees {len(rows)} rows for {units} units: whose they are is not known")
        for slot, start, stop in ranges:
            adapter = self.adapters.get(slot)
            if adapter is None:
                continue
            start, stop = (0, len(rows)) if alone else (start * scale_up, stop * scale_up)
            mask = None
            if adapter.dropout and turn.steps is not None:
                named = turn.keys.get(len(rows))  # rows that are no tokens (relative positions) have a number only
                numbers = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
                keys = numbers if named is None else named[start:stop]
                mask = dropout_mask(
                    keys, rows.shape[1], adapter.dropout, mix(adapter.seed, f"{turn.steps[slot]}.{self.name}")
                )
            parts.append((start, stop, adapter.scale, mask))
            tensors += [adapter.a, adapter.b]
        return parts, tensors


class _LowRank(torch.autograd.Function):
    """y = x Wᵀ + bias, plus s (m x Aᵀ) Bᵀ on each slot's rows; without W (None) the low-rank part alone.

    With g the gradient of y and, on a slot's rows, u = s (m x) Aᵀ and v = s g B:  dB = gᵀ u,  dA = vᵀ (m x),
    dx = g W + m (v A). Nothing is computed for W, nor dx where nothing below is trained.

    u and v lie transposed, (r, N): a product with only r columns runs at a fifth of the speed of one with r rows (MKL,
    r = 8), and the thin products together cost a quarter of the frozen one instead of a tenth.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, work: Sequence, *tensors: Tensor
    ) -> Tensor:
        product, *parts = work
        if weight is not None:
            y = linear(x, weight, bias, product)
        else:
            y = x.new_zeros(len(x), tensors[1].shape[0])
        downs = []
        for (start, stop, scale, mask), a, b in zip(parts, tensors[::2], tensors[1::2], strict=True):
            part = x[start:stop] if mask is None else x[start:stop] * mask
            down_rN = (a @ part.t().to(a.dtype)).mul_(scale)
            _add_product(y[start:stop], down_rN.t(), b.t())
            downs.append(down_rN)
        ctx.save_for_backward(x, weight, *tensors, *downs)
        ctx.product, ctx.parts = product, parts
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        count = len(ctx.parts)
        tensors, downs = saved[: 2 * count], saved[2 * count :]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(x) if weight is None else linear(grad, weight.t(), None, ctx.product)
        grads = []
        for i, (start, stop, scale, mask) in enumerate(ctx.parts):
            a, b = tensors[2 * i], tensors[2 * i + 1]
            part = x[start:stop] if mask is None else x[start:stop] * mask
            g = grad[start:stop].to(b.dtype)
            up_rN = (b.t() @ g.t()).mul_(scale)
            grads += [up_rN @ part.to(a.dtype), (downs[i] @ g).t()]
            if grad_x is not None and mask is None:
                _add_product(grad_x[start:stop], up_rN.t(), a)
            elif grad_x is not None:
                grad_x[start:stop].add_((up_rN.t() @ a).to(grad_x.dtype) * mask)
        return (grad_x, None, None, None, *grads)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, product: str) -> Tensor:
    """`x Wᵀ + bias`, without a gradient, by one of `PRODUCTS`; where oneDNN has nothing to offer, by torch."""
    if product == "onednn" and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu":
        whole = weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()
        # a column-sliced operand would meet oneDNN's reference kernel, a thousand times slower
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), whole, bias, "none", [], "")
    return F.linear(x, weight, bias)


def measure_product(weights: Iterable[Tensor], rows: int, rounds: int = 5, operations: float = 1e9) -> str:
    """Which of `PRODUCTS` is faster here for `rows` rows on the distinct shapes among `weights`, both ways of a step.

    A product of more than `operations` is tried with fewer rows, 32 at least: it takes a fraction of a second. oneDNN
    must be 15 % faster: where its products alone gained 5 to 12 %, a whole step gained nothing; where torch's library
    is slow (some processors of AMD) it gains far more.
    """
    shapes = {(w.shape, w.dtype, w.device.type) for w in weights if w.dim() == 2}
    alike = {(dtype, device) for _, dtype, device in shapes} == {(torch.float32, "cpu")}
    if not alike or not torch.backends.mkldnn.is_available():
        return "torch"
    seconds = dict.fromkeys(PRODUCTS, 0.0)
    for shape, *_ in shapes:
        weight = torch.ones(shape)
        for operand in (weight, weight.t()):
            x = torch.ones(min(rows, max(32, int(operations / (2 * weight.numel())))), operand.shape[1])
            best = dict.fromkeys(PRODUCTS, math.inf)
            for _ in range(rounds):
                for product in PRODUCTS:
                    started = time.perf_counter()
                    linear(x, operand, None, product)
                    best[product] = min(best[product], time.perf_counter() - started)
            seconds = {product: seconds[product] + best[product] for product in PRODUCTS}
    return "onednn" if seconds["onednn"] < 0.85 * seconds["torch"] else "torch"


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, in one pass where the dtypes agree."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_((left @ right).to(total.dtype))


def dropout_mask(keys_N: Tensor, width: int, p: float, seed: int) -> Tensor:
    """(N, width) float32: 0 with probability p, else 1/(1 - p). Element (i, j) depends on (key i, j, seed) alone.

    A counter-based generator in the manner of Salmon et al. (SC 2011), with the integer finaliser of MurmurHash3: the
    counter is one 32-bit number from row and column, three multiply-xorshift rounds make it uniform.
    """
    columns = torch.arange(width, dtype=torch.int32, device=keys_N.device) * _signed(0x9E3779B1)
    h = keys_N[:, None] ^ (columns + _signed(seed))[None, :]
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 0x27D4EB2F)):
        h ^= (h >> shift) & ((1 << (32 - shift)) - 1)
        h *= _signed(factor)
    h ^= (h >> 15) & ((1 << 17) - 1)
    uniform = (h >> 1) & 0x7FFFFFFF
    return (uniform >= int(p * 2**31)).float() / (1 - p)


def _signed(number: int) -> int:
    """The 32-bit pattern as int32 arithmetic reads it."""
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >= 1 << 31 else number
