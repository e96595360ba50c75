"""Attention over a flat batch: many sequences in one row, shared prefixes once. Pure maths: torch and numpy only.

The rule. In a row of token trees (drawn in `data/batches.py`) token i may attend to token j exactly if
`j <= i < ends[j]`: j is i itself or an ancestor. With a sliding window w also `positions[i] - positions[j] < w`. An
encoder reads both ways: token i sees every token of its own segment (within a window, where
`|positions[i] - positions[j]| < w`).

How it is computed. The row is cut into *stems*: the longest runs in which each token is the only child of the one
before. A stem's tokens see one another causally; whatever descends from it lies right behind it and sees all of it.
So the T × T picture is made of triangles and rectangles of neighbouring rows. A stem a with two stems b and c below it:

           a a a b b c c
        a  ◣
        a  ■ ◣
        a  ■ ■ ◣
        b  ■ ■ ■ ◣              a's triangle 3 × 3 and rectangle 4 × 3,
        b  ■ ■ ■ ■ ◣            the triangles of b and c, 2 × 2 each,
        c  ■ ■ ■     ◣          as one batched call, being of one length
        c  ■ ■ ■     ■ ◣

What a token finds in several parts p is put together by their weights: with s_p = log Σ exp(scores in p) and s their
log-sum-exp, `out = Σ exp(s_p - s) · out_p`. Backward, each part is given the whole's `out` and `s` in place of its own,
and the parts' gradients add up. (So Liu et al. 2023, arXiv 2310.01889, join blocks of keys that lie on several
devices; the kernel itself is that of Dao et al. 2022, arXiv 2205.14135.)

A rectangle costs a pass over all rows below it. That pays for a *trunk*, which many see and which is long. A short
stem ("Question:", or the first words that two questions share) stands before the first stem below it, as one with it,
and a copy before each of the others: their triangles grow a little, and what a copy would find is thrown away.

Letters: T stored tokens, P the same with copies, H query heads, G key/value heads (G divides H), d head width, n parts
of one length l.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# The one kernel that tells `s` and takes it back. Its name is torch's own: should it go, the formula does its work.
KERNEL: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
KERNEL_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
COPY, CALL = 2, 64  # what copying a row and calling the kernel cost, in rows below a trunk
UNSEEN = -1e30  # a score nobody looks at: finite, so that a row which sees nothing of a part has no weight, and no NaN


@dataclass(slots=True)
class Part:
    """Queries and the keys they see: n stems of one shape, each with what was copied before it, or a trunk's rectangle.

    `queries` and `keys` are rows: of P for stems, of T for a trunk; their positions are those of one of the n.
    """

    queries: slice
    keys: slice
    n: int
    query_positions: np.ndarray
    key_positions: np.ndarray
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def mask(self, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
        """(l, keys) bool, True where a token may look; None where all may look at all."""
        if window not in self.masks:
            behind = self.query_positions[:, None] - self.key_positions
            seen = behind >= 0 if causal else np.ones_like(behind, bool)
            if window is not None:
                seen &= np.abs(behind) < window
            self.masks[window] = None if seen.all() else torch.from_numpy(seen).to(device)
        return self.masks[window]

    def hides(self, window: int | None) -> bool:
        """Whether the window takes away anything."""
        return window is not None and int(self.query_positions.max() - self.key_positions.min()) >= window


@dataclass(slots=True)
class Layout:
    """How a flat row is cut. Built once a micro-batch, read by every layer.

    `rows_P` are the rows of `stems`, part after part; `place_T` is where each token's own row lies there, `copies_P`
    True where a row is a copy. None: the row as it lies, no copy.
    """

    causal: bool
    stems: list[Part]
    trunks: list[Part]
    rows_P: Tensor | None
    place_T: Tensor | None
    copies_P: Tensor | None
    tokens: int
    device: torch.device


def layout(positions_T: np.ndarray, ends_T: np.ndarray, causal: bool, device: torch.device) -> Layout:
    """Find the stems of a row, in depth-first order, from where its tokens stand and where their descendants end.

    A token continues the stem of the one before if it lies one deeper and ends where that one ends. A stem is a trunk
    if copies of it for all stems below would cost more than a pass over the rows below it.
    """
    goes_on = (np.diff(positions_T) == 1) & (np.diff(ends_T) == 0)
    starts = np.flatnonzero(np.append(True, ~goes_on))
    stops = np.append(starts[1:], len(positions_T))
    ends = ends_T[stops - 1]
    below = np.searchsorted(starts, ends) - np.searchsorted(starts, stops)  # stems
    is_trunk = (below > 0) & (COPY * (stops - starts) * below > ends - stops + CALL)
    trunks, above, blocks = list[Part](), list[tuple[int, np.ndarray]](), list[tuple[np.ndarray, int]]()
    fresh = 0  # rows at the end of `above` that stand in no block yet: the first stem below takes them for its own
    for start, stop, end, trunk in zip(starts.tolist(), stops.tolist(), ends.tolist(), is_trunk.tolist(), strict=True):
        above = [(last, rows) for last, rows in above if last > start]
        own = np.arange(start, stop)
        if end > stop and not trunk:
            above.append((end, own))
            fresh += len(own)
            continue
        rows = np.concatenate([*(rows for _, rows in above), own])
        blocks.append((rows, len(rows) - len(own) - fresh))
        fresh = 0
        if trunk:
            places = positions_T[stop:end], positions_T[start:stop]
            trunks.append(Part(slice(stop, end), slice(start, stop), 1, *places))
    return _side_by_side(blocks, Layout(causal, [], trunks, None, None, None, len(positions_T), device), positions_T)


def _side_by_side(blocks: Sequence[tuple[np.ndarray, int]], found: Layout, positions_T: np.ndarray) -> Layout:
    """The layout with its stems: blocks of one shape are a part. A block: its rows, and how many of them are copies."""
    alike = defaultdict[bytes, list[tuple[np.ndarray, int]]](list)
    for rows, copied in blocks:
        alike[(positions_T[rows] - positions_T[rows[0]]).tobytes()].append((rows, copied))
    size = 0
    for members in alike.values():
        rows, _ = members[0]
        part = slice(size, size := size + len(rows) * len(members))
        found.stems.append(Part(part, part, len(members), positions_T[rows], positions_T[rows]))
    every = [block for members in alike.values() for block in members]
    rows_P = np.concatenate([rows for rows, _ in every])
    copies_P = np.concatenate([np.arange(len(rows)) < copied for rows, copied in every])
    if (np.diff(rows_P) != 1).any():
        place_T = np.flatnonzero(~copies_P)[np.argsort(rows_P[~copies_P])]
        found.rows_P, found.place_T = (torch.from_numpy(rows).to(found.device) for rows in (rows_P, place_T))
    if copies_P.any():
        found.copies_P = torch.from_numpy(copies_P).to(found.device)
    return found


def attend(
    query_HTd: Tensor,
    key_GTd: Tensor,
    value_GTd: Tensor,
    where: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of every token of the row over what it may see, `(T, H, d)`.

    Equal to `softmax(scaling · q kᵀ + mask) v` with the rule above; `scaling` None means 1/√d, `softcap` c squeezes the
    scores to `c · tanh(score / c)` before the mask (Gemma 2, arXiv 2408.00118).
    """
    query, key, value = (_dense(x.transpose(0, 1)) for x in (query_HTd, key_GTd, value_GTd))
    scale = query_HTd.shape[-1] ** -0.5 if scaling is None else scaling
    fits = query_HTd.device.type == "cpu" and query_HTd.shape[-1] == value_GTd.shape[-1] and KERNEL is not None
    if fits and softcap is None and not dropout:
        out_THd: Tensor = Fused.apply(query, key, value, where, scale, window)
        return out_THd
    return _explicit(query, key, value, where, scale, dropout, window, softcap)


class Fused(torch.autograd.Function):
    """The row's attention by torch's fused kernel for CPUs, part by part. Keeps what it was given, `out` and `s`."""

    @staticmethod
    def forward(
        ctx: Any, query_THd: Tensor, key_TGd: Tensor, value_TGd: Tensor, where: Layout, scale: float, window: int | None
    ) -> Tensor:
        inputs = query_THd, key_TGd, value_TGd
        taken = [_take(x, where.rows_P) for x in inputs]
        found = [_fused(part, taken, where, scale, window) for part in where.stems]
        out_THd, sums_TH = (_take(torch.cat(each), where.place_T) for each in zip(*found, strict=True))
        whole_THd = out_THd.float() if out_THd.itemsize < 4 else out_THd
        for part in where.trunks:
            out, sums = _fused(part, inputs, where, scale, window)
            weight = torch.sigmoid(sums - sums_TH[part.queries])
            whole_THd[part.queries].lerp_(out.to(whole_THd.dtype), weight[..., None])
            torch.logaddexp(sums_TH[part.queries], sums, out=sums_TH[part.queries])
        out_THd = whole_THd.to(query_THd.dtype)
        ctx.save_for_backward(*inputs, out_THd, sums_TH)
        ctx.where, ctx.scale, ctx.window = where, scale, window
        return out_THd

    @staticmethod
    def backward(ctx: Any, grad_THd: Tensor) -> tuple[Tensor | None, ...]:
        where: Layout = ctx.where
        rows = [_dense(grad_THd), *ctx.saved_tensors]
        taken = [_take(x, where.rows_P) for x in rows]
        if where.copies_P is not None:
            taken[0].masked_fill_(where.copies_P[:, None, None], 0)  # nobody looks at what copies find
        found = [_fused_backward(part, taken, where, ctx.scale, ctx.window) for part in where.stems]
        query, key, value = (torch.cat(each) for each in zip(*found, strict=True))
        grads = [_take(query, where.place_T), *(_given_back(x, where) for x in (key, value))]
        for part in where.trunks:
            more = _fused_backward(part, rows, where, ctx.scale, ctx.window)
            for grad, place, each in zip(grads, (part.queries, part.keys, part.keys), more, strict=True):
                grad[place] += each
        return *grads, None, None, None


def _fused(
    part: Part, rows: Sequence[Tensor], where: Layout, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """A part's `out`, and its `s`, which is -inf where a query sees nothing."""
    places = part.queries, part.keys, part.keys
    q, k, v = (_cut(x, place, part.n) for x, place in zip(rows, places, strict=True))
    bias, causal = _bias(part, where, window, q)
    out, sums = KERNEL(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
    if bias is not None:
        sums = sums.masked_fill((bias == -torch.inf).all(-1), -torch.inf)
    return _row(out), _row(sums)


def _fused_backward(
    part: Part, rows: Sequence[Tensor], where: Layout, scale: float, window: int | None
) -> list[Tensor]:
    """Gradients of a part's queries, keys and values, given those of the whole output, itself and its `s`."""
    places = part.queries, part.queries, part.keys, part.keys, part.queries, part.queries
    cut = [_cut(x, place, part.n) for x, place in zip(rows, places, strict=True)]
    bias, causal = _bias(part, where, window, cut[1])
    found = KERNEL_BACKWARD(*cut, 0.0, causal, attn_mask=bias, scale=scale)
    return [_row(x) for x in found]


def _bias(part: Part, where: Layout, window: int | None, like: Tensor) -> tuple[Tensor | None, bool]:
    """What the kernel adds to scores where a window hides some; else whether it shall draw the triangle itself."""
    if not part.hides(window):
        return None, where.causal and part.queries == part.keys
    seen = part.mask(where.causal, window, where.device)
    return None if seen is None else like.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf), False


def _cut(x: Tensor, rows: slice, n: int) -> Tensor:
    """Some rows, n equal parts of them, as `(n, H, l, …)`."""
    return x[rows].unflatten(0, (n, -1)).transpose(1, 2)


def _row(x: Tensor) -> Tensor:
    """`(n, H, l, …)` as rows, `(n · l, H, …)`."""
    return x.transpose(1, 2).flatten(0, 1)


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _given_back(x_PGd: Tensor, where: Layout) -> Tensor:
    """The gradients of rows and of their copies, added up, `(T, G, d)`."""
    if where.rows_P is None or where.copies_P is None:
        return _take(x_PGd, where.place_T)
    return x_PGd.new_zeros(where.tokens, *x_PGd.shape[1:]).index_add_(0, where.rows_P, x_PGd)


def _dense(x_THd: Tensor) -> Tensor:
    """As the projections wrote it, if the numbers of a head lie side by side, which the kernel takes for granted."""
    return x_THd if x_THd.stride(-1) == 1 else x_THd.contiguous()


def _explicit(
    query_THd: Tensor,
    key_TGd: Tensor,
    value_TGd: Tensor,
    where: Layout,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The same by its formula, for what the fused kernel cannot: squeezed scores, dropout, values of another width than
    keys (DeepSeek's latent attention), another device. Scores are made again for the backward pass, not kept."""
    inputs = query_THd, key_TGd, value_TGd
    taken = [_take(x, where.rows_P) for x in inputs]

    def found(part: Part, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        places = part.queries, part.keys, part.keys
        cut = [_cut(x, place, part.n) for x, place in zip(rows, places, strict=True)]
        seen = part.mask(where.causal, window, where.device)
        return checkpoint(_formula, *cut, seen, scale, dropout, softcap, use_reentrant=False)

    outs, sums = zip(*(found(part, taken) for part in where.stems), strict=True)
    own = [_take(torch.cat(each), where.place_T) for each in (outs, sums)]
    outs, sums = zip(own, *(found(part, inputs) for part in where.trunks), strict=True)
    every_T = torch.arange(where.tokens, device=where.device)
    rows_P = torch.cat([every_T, *(every_T[part.queries] for part in where.trunks)])
    return _joined(torch.cat(outs), torch.cat(sums), rows_P, where.tokens).to(query_THd.dtype)


def _formula(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float, dropout: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = q @ k.transpose(-1, -2) * scale
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores if seen is None else scores.masked_fill(~seen, UNSEEN)
    return _row(F.dropout(scores.softmax(-1), dropout).to(v.dtype) @ v), _row(scores.logsumexp(-1))


def _joined(out_PHd: Tensor, sums_PH: Tensor, rows_P: Tensor, tokens: int) -> Tensor:
    """`(T, H, d)` in the sums' precision: what each row found in its parts, by their weights."""
    top_TH = sums_PH.new_full((tokens, sums_PH.shape[1]), -torch.inf)
    top_TH.scatter_reduce_(0, rows_P[:, None].expand_as(sums_PH), sums_PH.detach(), "amax")
    weight_PH = (sums_PH - top_TH[rows_P]).exp()
    total_TH = torch.zeros_like(top_TH).index_add(0, rows_P, weight_PH)
    whole = weight_PH.new_zeros(tokens, *out_PHd.shape[1:]).index_add(0, rows_P, out_PHd * weight_PH[..., None])
    return whole / total_TH[..., None]


class Outline(torch.autograd.Function):
    """`Fused` without numbers, for tensors of torch's meta device: gives `(T, H, d)`, and keeps what that keeps (the
    formula, which keeps no scores either, keeps about twice as much)."""

    @staticmethod
    def forward(ctx: Any, query_THd: Tensor, key_TGd: Tensor, value_TGd: Tensor) -> Tensor:
        out_THd = query_THd.new_empty(*query_THd.shape[:2], value_TGd.shape[-1])
        sums_TH = query_THd.new_empty(query_THd.shape[:2], dtype=torch.float32)
        ctx.save_for_backward(query_THd, key_TGd, value_TGd, out_THd, sums_TH)
        return out_THd

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])
