"""From supervised rows to losses: only the positions that are trained meet the output layer. Pure maths: torch only.

The loss of a step is `sum over entries of weight · nll`. With weight = 1 / (trained tokens of the slot in the whole
step) it is the mean over trained tokens, whatever micro-batches the step was cut into (the bug of means of means:
transformers#34191).

Letters: S supervised entries, U distinct source rows (several entries may share one), D hidden width, V outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 24  # logits alive at once: 64 MiB of float32, and as much again for their gradient
_TOLD_ELEMENTS = {"cpu": 1 << 22}  # without a gradient on a CPU: glibc gives blocks over 32 MiB back each time


class Entries(NamedTuple):
    """What is supervised: entry s says that row `rows_S[s]` should give `targets_S[s]`, worth `weights_S[s]`."""

    rows_S: Tensor
    targets_S: Tensor
    weights_S: Tensor


def entry_nll(logits_UV: Tensor, rows_S: Tensor, targets_S: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each entry, and the arg-max at its source row: `(S,)` float32 and `(S,)` int64."""
    best_S = logits_UV.argmax(-1)[rows_S]
    return -logits_UV.float().log_softmax(-1)[rows_S, targets_S], best_S  # one kernel: a third of logsumexp's time


def supervised_nll(
    output: Callable[[Tensor], Tensor],
    hidden_UD: Tensor,
    entries: Entries,
    width: int,
    trained: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """`entry_nll(output(hidden))` without ever holding all logits: the gradient is computed along with them.

    `output` maps `(u, D)` to `(u, V)`, row by row, with V = `width`; `trained` are the parameters inside it that want a
    gradient. The gradient is that of `sum(weights * nll)` times a number: another combination of the entries raises
    ValueError in the backward pass.
    """
    if torch.is_grad_enabled() and (hidden_UD.requires_grad or trained):
        return _WeightedNll.apply(hidden_UD, output, entries, width, *trained)
    nll_S, best_S = torch.empty_like(entries.weights_S), torch.empty_like(entries.rows_S)
    most = _TOLD_ELEMENTS.get(hidden_UD.device.type, _CHUNK_ELEMENTS)
    for start, stop, mine in _chunks(entries.rows_S, len(hidden_UD), max(1, most // width)):
        rows, targets = entries.rows_S[mine] - start, entries.targets_S[mine]
        nll_S[mine], best_S[mine] = entry_nll(output(hidden_UD[start:stop]), rows, targets)
    return nll_S, best_S


class _WeightedNll(torch.autograd.Function):
    """Each entry's nll, with the gradient of their weighted sum made where the logits are: in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_UD: Tensor, output: Callable, entries: Entries, width: int, *trained: Tensor
    ) -> tuple[Tensor, Tensor]:
        nll_S, best_S = torch.empty_like(entries.weights_S), torch.empty_like(entries.rows_S)
        grad_UD = torch.empty_like(hidden_UD)
        totals: list[Tensor | None] = [None] * len(trained)
        for start, stop, mine in _chunks(entries.rows_S, len(hidden_UD), max(1, _CHUNK_ELEMENTS // width)):
            rows, targets, weights = entries.rows_S[mine] - start, entries.targets_S[mine], entries.weights_S[mine]
            with torch.enable_grad():
                hidden = hidden_UD[start:stop].detach().requires_grad_()
                logits = output(hidden)
            nll_S[mine], best_S[mine], slope = _nll_and_slope(logits.detach().float(), rows, targets, weights)
            grad_UD[start:stop], *grads = torch.autograd.grad(logits, (hidden, *trained), slope.to(logits.dtype))
            totals = [grad if total is None else total.add_(grad) for total, grad in zip(totals, grads, strict=True)]
        ctx.save_for_backward(entries.weights_S, grad_UD, *totals)
        ctx.mark_non_differentiable(best_S)
        return nll_S, best_S

    @staticmethod
    def backward(ctx: Any, grad_S: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        weights_S, grad_UD, *totals = ctx.saved_tensors
        total = float(
            weights_S.sum()
        )  # zero where a process repeats a batch that counts for nothing (`train/ranks.py`)
        factor = grad_S.sum() / total if total else grad_S.new_ones(())
        if not torch.allclose(grad_S, weights_S * factor, rtol=1e-4, atol=0, equal_nan=True):
            raise ValueError("the loss must be the entries' nll times the weights that were given with them")
        if float(factor) != 1:
            grad_UD, totals = grad_UD * factor, [total * factor for total in totals]
        return (grad_UD, None, None, None, *totals)


def _chunks(rows_S: Tensor, count: int, size: int) -> Iterator[tuple[int, int, Tensor]]:
    """(first row, last row + 1, entries there) of pieces of `size` rows."""
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield start, stop, ((rows_S >= start) & (rows_S < stop)).nonzero()[:, 0]


def _nll_and_slope(
    logits_uV: Tensor, rows_s: Tensor, targets_s: Tensor, weights_s: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`entry_nll`, and the gradient of `sum(weights * nll)` with respect to the logits, `(u, V)`."""
    best_u1 = logits_uV.argmax(-1, keepdim=True)
    slope_uV = logits_uV.softmax(-1)
    total_u = (logits_uV.gather(1, best_u1) - slope_uV.gather(1, best_u1).log())[:, 0]  # log of the sum of exponentials
    nll_s = total_u[rows_s] - logits_uV[rows_s, targets_s]
    weight_u = torch.zeros_like(total_u).index_add_(0, rows_s, weights_s)
    slope_uV.mul_(weight_u[:, None]).index_put_((rows_s, targets_s), -weights_s, accumulate=True)
    return nll_s, best_u1[rows_s, 0], slope_uV
