"""Attention over a flat batch: many sequences in one row, shared prefixes once. Pure maths: torch and numpy only.

The rule. In a row of token trees (drawn in `data/batches.py`) token i may attend to token j exactly if
`j <= i < ends[j]`: j is i itself or an ancestor. With a sliding window w also `positions[i] - positions[j] < w`. An
encoder reads both ways: token i sees every token of its own segment (within a window, where
`|positions[i] - positions[j]| < w`).

How it is computed. The row is cut into *segments*: the longest runs in which each token is the child of the one before.
All tokens of a segment have the same ancestors, a few ranges of the row, so a segment is an ordinary attention problem:
its own queries against keys of [ancestors, itself], causal from the bottom right. Positions along a path count up by
one, hence the mask of a segment depends on nothing but (ancestors, length, window), and segments of equal shape
are one batched call of the fused kernel. No T × T matrix exists.

Letters: T stored tokens, H query heads, G key/value heads (G divides H), d head width, a ancestors, l segment length.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(slots=True)
class Layout:
    """Where the segments of a flat row lie. Built once a micro-batch, read by every layer.

    A group holds n segments of one shape. `queries_T` and `keys_K` are row indices, group after group: n·l and
    n·(a + l) of them each; `place_T` puts the groups' outputs back into the order of the row. None: the row as it lies.
    One gathering for all groups, because the gradient of each is a new row of zeros to add into.
    """

    causal: bool
    groups: list[tuple[int, int, int]]  # (ancestors, length, n)
    queries_T: Tensor | None
    keys_K: Tensor | None
    place_T: Tensor | None
    device: torch.device
    masks: dict[tuple[int, int, int | None], Tensor | None] = field(default_factory=dict)

    def mask(self, ancestors: int, length: int, window: int | None) -> Tensor | None:
        """(l, a + l) bool, True where a query may look; None where it may look everywhere."""
        shape = (ancestors, length, window)
        if shape not in self.masks:
            self.masks[shape] = _mask(self.causal, ancestors, length, window, self.device)
        return self.masks[shape]


def layout(positions_T: np.ndarray, causal: bool, device: torch.device) -> Layout:
    """Find the segments of a row from the depths of its tokens.

    The row is in depth-first order, so token t continues the segment of t - 1 exactly if it lies one deeper; otherwise
    it starts a new one whose ancestors are the first `positions[t]` tokens of the path that led to t - 1.
    """
    starts = np.flatnonzero(np.diff(positions_T, prepend=-2) != 1)
    stops = np.append(starts[1:], len(positions_T))
    path = np.empty(0, np.int64)
    shapes: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for start, stop in zip(starts, stops, strict=True):
        own = np.arange(start, stop)
        path = np.concatenate([path[: positions_T[start]], own])
        shapes[len(path) - len(own), len(own)].append((own, path))
    groups = [(ancestors, length, len(members)) for (ancestors, length), members in shapes.items()]
    queries = np.concatenate([own for members in shapes.values() for own, _ in members])
    keys = np.concatenate([path for members in shapes.values() for _, path in members])
    queries_T, keys_K, place_T = (
        _index(rows, len(positions_T), device) for rows in (queries, keys, np.argsort(queries))
    )
    return Layout(causal, groups, queries_T, keys_K, place_T, device)


def _index(rows: np.ndarray, count: int, device: torch.device) -> Tensor | None:
    """The rows as an index, or None where they are all rows in order."""
    if len(rows) == count and (rows == np.arange(count)).all():
        return None
    return torch.from_numpy(rows).to(device)


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
    outputs = []
    seen = [n * (ancestors + length) for ancestors, length, n in where.groups]
    queries = _take(query_HTd, where.queries_T).split([n * length for _, length, n in where.groups])
    keys, values = _take(key_GTd, where.keys_K).split(seen), _take(value_GTd, where.keys_K).split(seen)
    for (ancestors, length, n), *rows in zip(where.groups, queries, keys, values, strict=True):
        q, k, v = (part.view(n, -1, *part.shape[1:]).transpose(1, 2) for part in rows)
        mask = where.mask(ancestors, length, window)
        if softcap is None:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
            )
        else:
            out = _capped(q, k, v, mask, scaling, softcap)
        outputs.append(out.transpose(1, 2).reshape(n * length, *out.shape[1::2]))
    out_THd = torch.cat(outputs)
    return out_THd if where.place_T is None else out_THd.index_select(0, where.place_T)


def _take(x_HTd: Tensor, rows: Tensor | None) -> Tensor:
    """Rows of `(H, T, d)` as `(len(rows), H, d)`.

    Gathered along the first dimension of `(T, H, d)`, which is how the projections wrote it: along any other, torch
    would first copy the whole row.
    """
    x_THd = x_HTd.transpose(0, 1)
    return x_THd if rows is None else x_THd.index_select(0, rows)


def _mask(causal: bool, ancestors: int, length: int, window: int | None, device: torch.device) -> Tensor | None:
    keys = torch.arange(ancestors + length, device=device)
    queries = torch.arange(ancestors, ancestors + length, device=device)[:, None]
    behind = queries - keys
    if causal:
        seen = behind >= 0
        if window is not None:
            seen &= behind < window
    else:
        seen = torch.ones_like(behind, dtype=torch.bool) if window is None else behind.abs() < window
    return None if bool(seen.all()) else seen


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float) -> Tensor:
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = q @ k.transpose(-1, -2) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.float().softmax(-1).to(q.dtype) @ v
