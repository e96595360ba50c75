"""Attention over a flat batch on a GPU: one fused kernel (FlexAttention) that skips what no token may see. Pure maths.

The rule is that of `attention.py`, said once for decoders and encoders: token i may look at token j exactly if
`starts[j] <= i < ends[j]`, and within a window w also `|positions[i] - positions[j]| < w`. In a decoder `starts[j]` is
j itself and `ends[j]` one past its last descendant; in an encoder both are the edges of j's segment.

A block mask says for every pair of blocks of 128 tokens whether it is empty (skipped), full (no mask is looked at) or
partial. It comes straight from the intervals, without the T × T matrix: what block b of keys may be seen by is one
contiguous range of the row, from its least `starts` to its greatest `ends`, because descendants follow their
ancestor. (FlexAttention: Dong et al. 2024, arXiv 2412.05496.)

The kernel has no dropout and wants heads at least 16 wide; such calls go through `attention.attend`. Measured nowhere
yet: this was written and its rule tested without a GPU.

Letters: T stored tokens, N blocks, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from luthier.models import attention

BLOCK = 128
LEAST_WIDTH = 16


@dataclass(slots=True)
class Intervals:
    """By whom each token of a flat row may be seen. Built once a micro-batch, read by every layer."""

    causal: bool
    positions_T: np.ndarray
    ends_T: np.ndarray
    device: torch.device
    masks: dict[int | None, BlockMask] = field(default_factory=dict)
    cut: attention.Layout | None = None

    def mask(self, window: int | None) -> BlockMask:
        """The block mask of layers with that window."""
        if window not in self.masks:
            self.masks[window] = block_mask(self, window)
        return self.masks[window]

    def stems(self) -> attention.Layout:
        """The same row for `attention.attend`."""
        if self.cut is None:
            self.cut = attention.layout(self.positions_T, self.ends_T, self.causal, self.device)
        return self.cut

    def starts(self) -> np.ndarray:
        """(T,) the first token that may look at each."""
        here = np.arange(len(self.positions_T))
        return here if self.causal else np.maximum.accumulate(np.where(self.positions_T == 0, here, 0))


def attend(
    query_HTd: Tensor,
    key_GTd: Tensor,
    value_GTd: Tensor,
    where: Intervals,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of every token of the row over what it may see, `(T, H, d)`; what `attention.attend` gives."""
    if dropout or query_HTd.shape[-1] < LEAST_WIDTH:
        return attention.attend(query_HTd, key_GTd, value_GTd, where.stems(), scaling, dropout, window, softcap)
    out_1HTd = _kernel(query_HTd.device.type)(
        query_HTd[None],
        key_GTd[None],
        value_GTd[None],
        score_mod=_cap(softcap) if softcap is not None else None,
        block_mask=where.mask(window),
        scale=scaling,
        enable_gqa=query_HTd.shape[0] != key_GTd.shape[0],
    )
    return out_1HTd[0].transpose(0, 1)


def block_mask(where: Intervals, window: int | None) -> BlockMask:
    """Which blocks of queries meet which blocks of keys, and the rule for the pairs that meet in part."""
    starts_T, ends_T, positions_T = where.starts(), where.ends_T, where.positions_T
    first_N = np.arange(0, len(ends_T), BLOCK)
    last_N = np.minimum(first_N + BLOCK, len(ends_T)) - 1
    some_NN = (last_N[:, None] >= np.minimum.reduceat(starts_T, first_N)) & (
        first_N[:, None] < np.maximum.reduceat(ends_T, first_N)
    )
    all_NN = (first_N[:, None] >= np.maximum.reduceat(starts_T, first_N)) & (
        last_N[:, None] < np.minimum.reduceat(ends_T, first_N)
    )
    if window is not None:
        least_N, most_N = np.minimum.reduceat(positions_T, first_N), np.maximum.reduceat(positions_T, first_N)
        gap_NN = np.maximum(least_N[:, None] - most_N, least_N - most_N[:, None])
        reach_NN = np.maximum(most_N[:, None] - least_N, most_N - least_N[:, None])
        some_NN &= gap_NN < window
        all_NN &= reach_NN < window
    return BlockMask.from_kv_blocks(
        *_listed(some_NN & ~all_NN, where.device),
        *_listed(some_NN & all_NN, where.device),
        BLOCK_SIZE=BLOCK,
        mask_mod=_rule(where, starts_T, window),
        seq_lengths=(len(ends_T), len(ends_T)),
    )


def _listed(chosen_NN: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries meets, `(1, 1, N)`, and which, these first, `(1, 1, N, N)`."""
    order_NN = np.argsort(~chosen_NN, axis=1, kind="stable")
    counts_N = torch.from_numpy(chosen_NN.sum(1)).to(device, torch.int32)
    return counts_N[None, None], torch.from_numpy(order_NN).to(device, torch.int32)[None, None]


def _rule(where: Intervals, starts_T: np.ndarray, window: int | None) -> Callable[..., Tensor]:
    starts, ends, positions = (
        torch.from_numpy(np.ascontiguousarray(row)).to(where.device, torch.int32)
        for row in (starts_T, where.ends_T, where.positions_T)
    )

    def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (starts[j] <= i) & (i < ends[j])

    if window is None:
        return sees

    def sees_near(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return sees(batch, head, i, j) & ((positions[i] - positions[j]).abs() < window)

    return sees_near


@cache
def _cap(softcap: float) -> Callable[..., Tensor]:
    """`c · tanh(score / c)` (Gemma 2, arXiv 2408.00118); one function for all layers, or each would compile its own."""

    def cap(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


@cache
def _kernel(device: str) -> Callable[..., Any]:
    """The compiled kernel; on a CPU, for tests, the reference, which has no backward pass."""
    kernel: Any = torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention
    return kernel
