"""From supervised rows to losses: only the positions that are trained meet the output layer. Pure maths: torch only.

The loss of a step is `sum over entries of weight · nll`. With weight = 1 / (trained tokens of the slot in the whole
step) it is the mean over trained tokens, whatever micro-batches the step was cut into (the bug of means of means:
transformers#34191).

Letters: S supervised entries, U distinct source rows (several entries may share one), D hidden width, V outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHUNK_ELEMENTS = 1 << 26  # logits alive at once: 256 MiB of float32


def entry_nll(logits_UV: Tensor, rows_S: Tensor, targets_S: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each entry, and the arg-max at its source row: `(S,)` float32 and `(S,)` int64."""
    logits_UV = logits_UV.float()
    picked_S = logits_UV[rows_S, targets_S]
    return logits_UV.logsumexp(-1)[rows_S] - picked_S, logits_UV.argmax(-1)[rows_S]


def supervised_nll(
    output: Callable[[Tensor], Tensor], hidden_UD: Tensor, rows_S: Tensor, targets_S: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """`entry_nll(output(hidden))` without ever holding all logits: chunks of U, computed again in the backward pass.

    `output` maps `(u, D)` to `(u, V)` with V = `width`.
    """
    chunk = max(1, _CHUNK_ELEMENTS // width)
    if len(hidden_UD) <= chunk:
        return entry_nll(output(hidden_UD), rows_S, targets_S)

    def one(hidden: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return entry_nll(output(hidden), rows, targets)

    order_S = rows_S.argsort()
    pieces = []
    for start in range(0, len(hidden_UD), chunk):
        mine = order_S[(rows_S[order_S] >= start) & (rows_S[order_S] < start + chunk)]
        hidden = hidden_UD[start : start + chunk]
        pieces.append(checkpoint(one, hidden, rows_S[mine] - start, targets_S[mine], use_reentrant=False))
    back_S = order_S.argsort()
    return torch.cat([nll for nll, _ in pieces])[back_S], torch.cat([best for _, best in pieces])[back_S]
