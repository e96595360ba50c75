"""The low-rank layer against its formula, and its dropout as a distribution."""

from __future__ import annotations

import doctest

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from luthier.models import lora
from luthier.models.lora import PRODUCTS, Adapter, LoraLinear, Turn, draw_a, dropout_mask, measure_product


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_forward_and_gradients_are_the_formula(transposed: bool) -> None:
    """Three ranges: two slots of different rank, and rows that have no adapter here."""
    torch.manual_seed(0)
    base = Conv1D(5, 7).double() if transposed else torch.nn.Linear(7, 5).double()
    base.requires_grad_(False)
    turn = Turn(ranges=((0, 0, 2), (1, 2, 3), (2, 3, 4)), units=4)
    layer = LoraLinear(base, "layer", turn, transposed, quantized=False)
    tensors = []
    for slot, rank in ((0, 2), (2, 3)):
        a, b = (torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in ((rank, 7), (5, rank)))
        layer.adapters[slot] = Adapter(a, b, scale=slot + 0.5, dropout=0.0, seed=0)
        tensors += [a, b]
    x = torch.randn(2, 4, 7, dtype=torch.double, requires_grad=True)  # 8 rows for 4 units: two rows each

    def formula(
        x: torch.Tensor, a0: torch.Tensor, b0: torch.Tensor, a2: torch.Tensor, b2: torch.Tensor
    ) -> torch.Tensor:
        rows, y = x.reshape(8, 7), base(x).reshape(8, 5)
        more = [0.5 * rows[:4] @ a0.T @ b0.T, torch.zeros(2, 5).double(), 2.5 * rows[6:] @ a2.T @ b2.T]
        return (y + torch.cat(more)).view(2, 4, 5)

    torch.testing.assert_close(layer(x), formula(x, *tensors))
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *tensors))
    weight = torch.randn(2, 4, 5, dtype=torch.double)
    for ours, theirs in zip(
        torch.autograd.grad((layer(x) * weight).sum(), (x, *tensors)),
        torch.autograd.grad((formula(x, *tensors) * weight).sum(), (x, *tensors)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_both_products_give_the_same(transposed: bool) -> None:
    """Within float32 rounding, forward and backward, also on an operand cut from wider rows."""
    draw = torch.Generator().manual_seed(0)
    base = Conv1D(5, 7) if transposed else torch.nn.Linear(7, 5)
    turn = Turn(ranges=((0, 0, 6),), units=6)
    layer = LoraLinear(base.requires_grad_(False), "layer", turn, transposed, quantized=False)
    a, b = (torch.randn(shape, generator=draw, requires_grad=True) for shape in ((2, 7), (5, 2)))
    layer.adapters[0] = Adapter(a, b, scale=0.5, dropout=0.0, seed=0)
    wide = torch.randn(6, 9, generator=draw)
    found = []
    for turn.product in PRODUCTS:
        x = wide[:, 1:8].requires_grad_()
        y = layer(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, a, b))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_product_is_measured_only_where_there_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.ones(4, 3), torch.ones(4, 3)]
    assert measure_product([], rows=5) == measure_product([torch.ones(4, 3).double()], rows=5) == "torch"
    now = iter(range(10_000))
    taken = {"onednn": 1.0, "torch": 2.0}
    clock = [0.0]

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: None, product: str) -> None:
        next(now)
        clock[0] += taken[product]

    monkeypatch.setattr(lora, "linear", linear)
    monkeypatch.setattr(lora.time, "perf_counter", lambda: clock[0])
    assert measure_product(weights, rows=5, rounds=3) == "onednn"
    assert next(now) == 2 * 3 * 2  # one shape, both ways of a step
    taken["onednn"] = 1.99
    assert measure_product(weights, rows=5) == "torch"


def test_dropout_is_a_fair_independent_function_of_its_arguments() -> None:
    keys = torch.arange(4000, dtype=torch.int32)
    mask = dropout_mask(keys, 64, 0.1, seed=5)
    kept = mask > 0
    assert mask[kept].unique().tolist() == pytest.approx([1 / 0.9])
    n = mask.numel()
    assert abs(kept.float().mean() - 0.9) < 4 * (0.09 / n) ** 0.5  # four standard errors
    z = (kept.float() - 0.9) / 0.3
    for name, product in {
        "rows": z[1:] * z[:-1],
        "columns": z[:, 1:] * z[:, :-1],
        "seeds": z * ((dropout_mask(keys, 64, 0.1, seed=6) > 0).float() - 0.9) / 0.3,
        "diagonal": z[1:, 1:] * z[:-1, :-1],
    }.items():
        assert abs(product.mean()) < 4 / product.numel() ** 0.5, name
    assert (kept.float().mean(0) - 0.9).abs().max() < 5 * (0.09 / 4000) ** 0.5
    assert torch.equal(mask[7:8], dropout_mask(keys[7:8], 64, 0.1, seed=5))


def test_a_depends_on_seed_and_name_alone_and_lies_within_its_bound() -> None:
    first = draw_a(4, 100, 3, "model.q_proj")
    torch.manual_seed(99)
    assert torch.equal(first, draw_a(4, 100, 3, "model.q_proj"))
    assert not torch.equal(first, draw_a(4, 100, 3, "model.k_proj"))
    assert not torch.equal(first, draw_a(4, 100, 4, "model.q_proj"))
    assert 0.09 < first.abs().max() <= 0.1


def test_doctests() -> None:
    assert doctest.testmod(lora).failed == 0
