"""The chunked loss against cross entropy over all logits at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.models import loss
from luthier.models.loss import Entries, supervised_nll

U, D, V = 7, 5, 11


def _drawn() -> tuple[Tensor, Tensor, Entries]:
    """Hidden rows, an output weight, and entries out of order, two of which share a row."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=draw, requires_grad=True) for shape in ((U, D), (V, D)))
    rows = torch.tensor([6, 0, 3, 3, 1, 2, 5, 4, 6])
    targets = torch.tensor([1, 10, 4, 5, 0, 2, 3, 7, 8])
    return hidden, weight, Entries(rows, targets, torch.rand(len(rows), generator=draw) + 0.1)


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda x, weight: x @ weight.t(),
    "capped": lambda x, weight: 3 * torch.tanh(x @ weight.t() / 3),
}


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_loss_and_gradients_are_those_of_cross_entropy(
    output: Callable[[Tensor, Tensor], Tensor], rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_CHUNK_ELEMENTS", rows_at_once * V)
    monkeypatch.setattr(loss, "_TOLD_ELEMENTS", {"cpu": rows_at_once * V})
    hidden, weight, entries = _drawn()
    logits = output(hidden, weight)
    expected = F.cross_entropy(logits[entries.rows_S], entries.targets_S, reduction="none")
    nll, best = supervised_nll(lambda x: output(x, weight), hidden, entries, V, [weight])
    torch.testing.assert_close(nll, expected)
    assert torch.equal(best, logits.argmax(-1)[entries.rows_S])
    for factor in (1.0, 2.5):
        nll, _ = supervised_nll(lambda x: output(x, weight), hidden, entries, V, [weight])
        ours = torch.autograd.grad(factor * (nll * entries.weights_S).sum(), (hidden, weight))
        theirs = torch.autograd.grad(factor * (expected * entries.weights_S).sum(), (hidden, weight), retain_graph=True)
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(supervised_nll(lambda x: output(x, weight), hidden, entries, V), (expected, best))


def test_a_target_of_no_probability_has_a_finite_loss() -> None:
    hidden = torch.tensor([[200.0, 0.0]], requires_grad=True)
    entries = Entries(torch.tensor([0]), torch.tensor([1]), torch.ones(1))
    nll, _ = supervised_nll(lambda x: x * 2, hidden, entries, 2)
    assert nll.tolist() == [400.0]
    nll.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[2.0, -2.0]]


def test_another_combination_of_the_entries_is_refused() -> None:
    hidden, weight, entries = _drawn()
    nll, _ = supervised_nll(lambda x: x @ weight.t(), hidden, entries, V)
    with pytest.raises(ValueError, match="weights"):
        nll.sum().backward()
