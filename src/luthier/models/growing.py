"""Attention while answers grow, over keys and values kept from the steps before. Pure maths: torch and numpy only.

Prompts are read once, as a row of token trees (`attention.py`); then every row says one token a step, which sees the
path that led to it. Neighbouring rows with a long common beginning keep its keys and values once, as a *trunk*. What
is a row's own is its *branch*: the rest of its prompt, pushed to the right so that all branches grow in one column,
then what it has said. A row's scores over trunk and branch lie side by side, so one softmax is the whole attention.

Letters: T stored tokens of the prompts, B rows, H query heads, G key/value heads, s = H / G, d head width, P tokens of
a trunk, C columns of the branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from luthier.models.attention import Layout
from luthier.models.flex import Intervals
from luthier.models.lower import Halves


@dataclass(frozen=True, slots=True)
class Trunk:
    """Rows `start` to `stop` begin with the same `length` tokens."""

    start: int
    stop: int
    length: int


@dataclass(slots=True)
class _Layer:
    """Keys and values of one layer: (G, P, d) of every trunk, (B, G, C, d) of the branches."""

    trunks: list[tuple[Tensor, Tensor]]
    keys_BGCd: Tensor
    values_BGCd: Tensor


class Growing:
    """What the rows have said so far, in every layer, from their prompts on.

    `paths` are the stored tokens on the way to each row's last one, `room` how many tokens a row may say. First the
    prompts go through the model (`prompts` says how they see each other, every layer calls `take`), then in turns
    `advance()` and one token of every row goes through (every layer calls `attend`). Layers are known by turn.
    """

    def __init__(self, paths: Sequence[np.ndarray], trunks: Sequence[Trunk], room: int, device: torch.device) -> None:
        self.prompts: Layout | Intervals | Halves | None = None
        self.started = False
        self.trunks = list(trunks)
        self._trunk_paths = [torch.from_numpy(paths[t.start][: t.length]).to(device) for t in trunks]
        shared_B = _lengths(trunks, len(paths))
        own = [path[length:] for path, length in zip(paths, shared_B.tolist(), strict=True)]
        self._column = max(map(len, own))  # the next to be filled
        self._columns = self._column + room
        table_BC = np.zeros((len(paths), self._column), np.int64)
        for b, path in enumerate(own):
            table_BC[b, self._column - len(path) :] = path
        self._branch_paths = torch.from_numpy(table_BC).to(device)
        self._shared_B = shared_B.to(device)
        self._own_B = torch.tensor([len(path) for path in own], device=device)
        self._empty_B = self._column - self._own_B  # columns before a branch begins
        self._layers: list[_Layer] = []
        self._turn = 0
        self._hidden: dict[int | None, Tensor | None] = {}

    def take(self, key_GTd: Tensor, value_GTd: Tensor) -> None:
        """One more layer's keys and values of the prompts."""
        trunks = [
            (key_GTd.index_select(1, path.to(key_GTd.device)), value_GTd.index_select(1, path.to(key_GTd.device)))
            for path in self._trunk_paths
        ]
        self._layers.append(_Layer(trunks, self._branches(key_GTd), self._branches(value_GTd)))

    def advance(self) -> None:
        """Open the column of the rows' next token."""
        self.started, self.prompts = True, None
        self._turn, self._column = 0, self._column + 1
        self._hidden = {None: self._hidden[None]} if None in self._hidden else {}

    def keep(self, places: Sequence[int]) -> None:
        """Let the other rows go. `places` ascend."""
        device = self._own_B.device
        rows = torch.tensor(places, device=device)
        numbers = np.array(places)
        kept, stay = [], []
        for number, trunk in enumerate(self.trunks):
            start, stop = np.searchsorted(numbers, [trunk.start, trunk.stop]).tolist()
            if start < stop:
                stay.append(number)
                kept.append(Trunk(start, stop, trunk.length))
        self.trunks = kept
        for layer in self._layers:
            here = rows.to(layer.keys_BGCd.device)
            layer.trunks = [layer.trunks[number] for number in stay]
            layer.keys_BGCd = self._chosen(layer.keys_BGCd, here)
            layer.values_BGCd = self._chosen(layer.values_BGCd, here)
        self._shared_B, self._own_B, self._empty_B = (
            numbers_B[rows] for numbers_B in (self._shared_B, self._own_B, self._empty_B)
        )
        self._hidden = {}

    def attend(
        self,
        query_HBd: Tensor,
        key_GBd: Tensor,
        value_GBd: Tensor,
        scaling: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Attention of every row's new token over its path, itself included, `(B, H, d)`; see `attention.attend`."""
        layer = self._layers[self._turn]
        self._turn += 1
        layer.keys_BGCd[:, :, self._column - 1] = key_GBd.transpose(0, 1)
        layer.values_BGCd[:, :, self._column - 1] = value_GBd.transpose(0, 1)
        heads, rows, width = query_HBd.shape
        groups = len(key_GBd)
        query_BGsd = query_HBd.transpose(0, 1).reshape(rows, groups, heads // groups, width)
        scores = self._scores(layer, query_BGsd * (scaling if scaling is not None else width**-0.5))
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        hidden = self._unseen(window)
        if hidden is not None:
            scores = scores.masked_fill_(hidden[:, None, None].to(scores.device), float("-inf"))
        shares = scores.float().softmax(-1).to(value_GBd.dtype)
        return self._mixed(layer, shares).reshape(rows, heads, -1)

    def _scores(self, layer: _Layer, query_BGsd: Tensor) -> Tensor:
        """(B, G, s, P + C): trunks from the left edge on, then the branches."""
        keys_BGCd, edge = layer.keys_BGCd[:, :, : self._column], self._edge()
        if not edge:
            return query_BGsd @ keys_BGCd.transpose(-1, -2)
        scores = query_BGsd.new_empty(*query_BGsd.shape[:3], edge + self._column)
        scores[..., edge:] = query_BGsd @ keys_BGCd.transpose(-1, -2)
        for trunk, (key_GPd, _) in zip(self.trunks, layer.trunks, strict=True):
            part = query_BGsd[trunk.start : trunk.stop].transpose(0, 1)
            found = part.flatten(1, 2) @ key_GPd.transpose(-1, -2)
            scores[trunk.start : trunk.stop, ..., : trunk.length] = found.view(*part.shape[:3], -1).transpose(0, 1)
        return scores

    def _mixed(self, layer: _Layer, shares: Tensor) -> Tensor:
        """(B, G, s, d): values by their shares."""
        edge = self._edge()
        out = shares[..., edge:] @ layer.values_BGCd[:, :, : self._column]
        for trunk, (_, value_GPd) in zip(self.trunks, layer.trunks, strict=True):
            part = shares[trunk.start : trunk.stop, ..., : trunk.length].transpose(0, 1)
            found = part.flatten(1, 2) @ value_GPd
            out[trunk.start : trunk.stop] += found.view(*part.shape[:3], -1).transpose(0, 1)
        return out

    def _edge(self) -> int:
        """Where the branches begin among the scores: behind the longest trunk."""
        return max((trunk.length for trunk in self.trunks), default=0)

    def _unseen(self, window: int | None) -> Tensor | None:
        """(B, P + C) bool, True where there is no token of the row's path, or none within the window."""
        if window not in self._hidden:
            edge, device = self._edge(), self._own_B.device
            trunk_P = torch.arange(edge, device=device)
            branch_C = torch.arange(self._column if window is not None else self._columns, device=device)
            missing = [trunk_P >= self._shared_B[:, None], branch_C < self._empty_B[:, None]]
            if window is not None:
                last = self._column - 1
                here_B = self._shared_B + last - self._empty_B
                missing[0] |= here_B[:, None] - trunk_P >= window
                missing[1] |= last - branch_C >= window
            table = torch.cat(missing, 1)
            self._hidden[window] = table if bool(table.any()) else None
        hidden = self._hidden[window]
        return None if hidden is None else hidden[:, : self._edge() + self._column]

    def _branches(self, x_GTd: Tensor) -> Tensor:
        """(B, G, C, d) with the prompts' part filled."""
        rows, filled = self._branch_paths.shape
        table = x_GTd.new_empty(rows, len(x_GTd), self._columns, x_GTd.shape[-1])
        found = x_GTd.transpose(0, 1).index_select(0, self._branch_paths.flatten().to(x_GTd.device))
        table[:, :, :filled] = found.view(rows, filled, *found.shape[1:]).transpose(1, 2)
        return table

    def _chosen(self, table_BGCd: Tensor, rows: Tensor) -> Tensor:
        """Some rows, what is filled of them."""
        kept = table_BGCd.new_empty(len(rows), *table_BGCd.shape[1:])
        kept[:, :, : self._column] = table_BGCd[:, :, : self._column].index_select(0, rows)
        return kept


def _lengths(trunks: Sequence[Trunk], rows: int) -> Tensor:
    """(B,) how many tokens of each row lie in a trunk."""
    lengths_B = torch.zeros(rows, dtype=torch.int64)
    for trunk in trunks:
        lengths_B[trunk.start : trunk.stop] = trunk.length
    return lengths_B
