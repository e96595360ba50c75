"""Attention over a flat batch: many sequences in one row, shared prefixes once. Pure maths: torch and numpy only.

The rule. In a row of token trees (drawn in `data/batches.py`) token i may attend to token j exactly if
`j <= i < ends[j]`: j is i itself or an ancestor. With a sliding window w also `positions[i] - positions[j] < w`. An
encoder reads both ways: token i sees every token of its own segment (within a window, where
`|positions[i] - positions[j]| < w`).

How it is computed. The row is cut into *stems*: the longest runs in which each token is the only child of the one
before. A stem's tokens see one another causally; whatever descends from it lies right behind it and sees all of it.
So the T × T picture is made of triangles and rectangles of neighbouring rows, with nothing to gather and no mask. A
stem a with two stems b and c below it:

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

Letters: T stored tokens, H query heads, G key/value heads (G divides H), d head width, n stems of one length l, P rows
of all parts together.
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

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
UNSEEN = -1e30  # a score nobody looks at: finite, so that a row which sees nothing of a part has no weight, and no NaN


@dataclass(slots=True)
class Layout:
    """Where the stems of a flat row lie. Built once a micro-batch, read by every layer.

    Stems of one length are a *run*: `runs` are (rows of `rows_T`, n, the first of its stems), `rows_T` the row's
    indices run after run and `place_T` what puts them back; None: the row as it lies. `below` are the rectangles: a
    stem and the tokens that descend from it.
    """

    causal: bool
    positions_T: np.ndarray
    runs: list[tuple[slice, int, slice]]
    rows_T: Tensor | None
    place_T: Tensor | None
    below: list[tuple[slice, slice]]
    device: torch.device
    masks: dict[tuple[int, int, int, int, int | None], Tensor | None] = field(default_factory=dict)

    def mask(self, queries: slice, keys: slice, window: int | None) -> Tensor | None:
        """(queries, keys) bool, True where a token may look; None where all may look at all. Both lie on one path."""
        name = (queries.start, queries.stop, keys.start, keys.stop, window)
        if name not in self.masks:
            behind = self.positions_T[queries, None] - self.positions_T[keys]
            seen = behind >= 0 if self.causal else np.ones_like(behind, bool)
            if window is not None:
                seen &= np.abs(behind) < window
            self.masks[name] = None if seen.all() else torch.from_numpy(seen).to(self.device)
        return self.masks[name]


def layout(positions_T: np.ndarray, ends_T: np.ndarray, causal: bool, device: torch.device) -> Layout:
    """Find the stems of a row, in depth-first order, from where its tokens stand and where their descendants end.

    A token continues the stem of the one before if it lies one deeper and ends where that one ends.
    """
    goes_on = (np.diff(positions_T) == 1) & (np.diff(ends_T) == 0)
    starts = np.flatnonzero(np.append(True, ~goes_on))
    stems = [slice(*edges) for edges in zip(starts.tolist(), [*starts[1:].tolist(), len(positions_T)], strict=True)]
    by_length: dict[int, list[slice]] = defaultdict(list)
    for stem in stems:
        by_length[stem.stop - stem.start].append(stem)
    runs, rows, size = [], [], 0
    for length, alike in by_length.items():
        runs.append((slice(size, size := size + length * len(alike)), len(alike), alike[0]))
        rows += [np.arange(stem.start, stem.stop) for stem in alike]
    order = np.concatenate(rows)
    rows_T, place_T = (_index(each, device) for each in (order, np.argsort(order)))
    last = ends_T[[stem.stop - 1 for stem in stems]].tolist()
    below = [(stem, slice(stem.stop, end)) for stem, end in zip(stems, last, strict=True) if end > stem.stop]
    return Layout(causal, positions_T, runs, rows_T, place_T, below, device)


def _index(rows: np.ndarray, device: torch.device) -> Tensor | None:
    """The rows as an index, or None where they are all rows in order."""
    return None if (np.diff(rows) == 1).all() else torch.from_numpy(rows).to(device)


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
    if window is not None and window > where.positions_T.max():
        window = None
    alike = query_HTd.device.type == "cpu" and query_HTd.shape[-1] == value_GTd.shape[-1]
    if alike and softcap is None and not dropout:
        out_THd: Tensor = Fused.apply(query, key, value, where, scale, window)
        return out_THd
    return _explicit(query, key, value, where, scale, dropout, window, softcap)


class Fused(torch.autograd.Function):
    """The row's attention by torch's fused kernel for CPUs, part by part. Keeps what it was given, `out` and `s`."""

    @staticmethod
    def forward(
        ctx: Any, query_THd: Tensor, key_TGd: Tensor, value_TGd: Tensor, where: Layout, scale: float, window: int | None
    ) -> Tensor:
        rows = [_take(x, where.rows_T) for x in (query_THd, key_TGd, value_TGd)]
        found = [
            _part([x[run] for x in rows], n, _bias(where, stem, stem, window, query_THd), where.causal, scale)
            for run, n, stem in where.runs
        ]
        out_THd, sums_TH = (_take(torch.cat(each), where.place_T) for each in zip(*found, strict=True))
        whole_THd = out_THd.float() if out_THd.itemsize < 4 else out_THd
        for stem, below in where.below:
            bias = _bias(where, below, stem, window, query_THd)
            part, sums = _part([query_THd[below], key_TGd[stem], value_TGd[stem]], 1, bias, False, scale)
            weight = torch.sigmoid(sums - sums_TH[below])
            whole_THd[below].lerp_(part.to(whole_THd.dtype), weight[..., None])
            torch.logaddexp(sums_TH[below], sums, out=sums_TH[below])
        out_THd = whole_THd.to(query_THd.dtype)
        ctx.save_for_backward(query_THd, key_TGd, value_TGd, out_THd, sums_TH)
        ctx.where, ctx.scale, ctx.window = where, scale, window
        return out_THd

    @staticmethod
    def backward(ctx: Any, grad_THd: Tensor) -> tuple[Tensor | None, ...]:
        query_THd, key_TGd, value_TGd, out_THd, sums_TH = ctx.saved_tensors
        grad_THd = _dense(grad_THd)
        where, scale, window = ctx.where, ctx.scale, ctx.window
        rows = [_take(x, where.rows_T) for x in (grad_THd, query_THd, key_TGd, value_TGd, out_THd, sums_TH)]
        found = [
            _part_backward([x[run] for x in rows], n, _bias(where, stem, stem, window, query_THd), where.causal, scale)
            for run, n, stem in where.runs
        ]
        grads = [_take(torch.cat(each), where.place_T) for each in zip(*found, strict=True)]
        for stem, below in where.below:
            part = [grad_THd[below], query_THd[below], key_TGd[stem], value_TGd[stem], out_THd[below], sums_TH[below]]
            more = _part_backward(part, 1, _bias(where, below, stem, window, query_THd), False, scale)
            for grad, place, each in zip(grads, (below, stem, stem), more, strict=True):
                grad[place] += each
        return *grads, None, None, None


def _part(rows: Sequence[Tensor], n: int, bias: Tensor | None, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """One part of n stems, or one stem and what is below: `out`, and `s`, which is -inf where nothing is seen."""
    out, sums = _forward(*(_cut(x, n) for x in rows), 0.0, causal and bias is None, attn_mask=bias, scale=scale)
    if bias is not None:
        sums = sums.masked_fill((bias == -torch.inf).all(-1), -torch.inf)
    return _row(out), _row(sums)


def _part_backward(rows: Sequence[Tensor], n: int, bias: Tensor | None, causal: bool, scale: float) -> list[Tensor]:
    """Gradients of a part's queries, keys and values, given those of the whole output, itself and its `s`."""
    parts = [_cut(x, n) for x in rows]
    return [_row(x) for x in _backward(*parts, 0.0, causal and bias is None, attn_mask=bias, scale=scale)]


def _bias(where: Layout, queries: slice, keys: slice, window: int | None, like: Tensor) -> Tensor | None:
    """What the kernel adds to scores where a window hides some; the bare triangle it knows by itself."""
    seen = None if window is None else where.mask(queries, keys, window)
    return None if seen is None else like.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)


def _dense(x_THd: Tensor) -> Tensor:
    """As the projections wrote it, if the numbers of a head lie side by side, which the kernel takes for granted."""
    return x_THd if x_THd.stride(-1) == 1 else x_THd.contiguous()


def _cut(x: Tensor, n: int) -> Tensor:
    """Rows of n equal parts, `(n · l, H, …)`, as `(n, H, l, …)`."""
    return x.unflatten(0, (n, -1)).transpose(1, 2)


def _row(x: Tensor) -> Tensor:
    """`(n, H, l, …)` as rows, `(n · l, H, …)`."""
    return x.transpose(1, 2).flatten(0, 1)


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


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
    """The same by its formula, for what the fused kernel cannot: squeezed scores, dropout, values of
    another width than keys (DeepSeek's latent attention), another device."""
    share = query_THd.shape[1] // key_TGd.shape[1]
    rows = [query_THd, key_TGd.repeat_interleave(share, 1), value_TGd.repeat_interleave(share, 1)]
    taken = [_take(x, where.rows_T) for x in rows]
    parts = [([x[run] for x in taken], n, where.mask(stem, stem, window)) for run, n, stem in where.runs]
    for stem, below in where.below:
        parts.append(([rows[0][below], rows[1][stem], rows[2][stem]], 1, where.mask(below, stem, window)))
    outs, sums = [], []
    for each, n, seen in parts:
        q, k, v = (_cut(x, n) for x in each)
        scores = (q @ k.transpose(-1, -2) * scale).float()
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        scores = scores if seen is None else scores.masked_fill(~seen, UNSEEN)
        sums.append(_row(scores.logsumexp(-1)))
        outs.append(_row(F.dropout(scores.softmax(-1), dropout).to(v.dtype) @ v))
    every_T = torch.arange(len(query_THd), device=where.device)
    rows_P = torch.cat([_take(every_T, where.rows_T), *(every_T[below] for _, below in where.below)])
    return _joined(torch.cat(outs), torch.cat(sums), rows_P, len(query_THd)).to(query_THd.dtype)


def _joined(out_PHd: Tensor, sums_PH: Tensor, rows_P: Tensor, tokens: int) -> Tensor:
    """`(T, H, d)` float32: what each row found in its parts, by their weights."""
    top_TH = sums_PH.new_full((tokens, sums_PH.shape[1]), -torch.inf)
    top_TH.scatter_reduce_(0, rows_P[:, None].expand_as(sums_PH), sums_PH.detach(), "amax")
    weight_PH = (sums_PH - top_TH[rows_P]).exp()
    total_TH = torch.zeros_like(top_TH).index_add(0, rows_P, weight_PH)
    whole = weight_PH.new_zeros(tokens, *out_PHd.shape[1:]).index_add(0, rows_P, out_PHd * weight_PH[..., None])
    return whole / total_TH[..., None]


class Outline(torch.autograd.Function):
    """`Fused` without numbers, for tensors of torch's meta device: gives `(T, H, d)`, and keeps what that keeps."""

    @staticmethod
    def forward(ctx: Any, query_THd: Tensor, key_TGd: Tensor, value_TGd: Tensor) -> Tensor:
        out_THd = query_THd.new_empty(*query_THd.shape[:2], value_TGd.shape[-1])
        ctx.save_for_backward(query_THd, key_TGd, value_TGd, out_THd, query_THd.new_empty(query_THd.shape[:2]))
        return out_THd

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])
