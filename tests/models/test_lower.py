"""Slots that adapt only upper layers share the layers below: the same numbers, fewer tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from luthier import spec
from luthier.data.abreast import side_by_side
from luthier.data.batches import FlatBatch, Share, flat_batches
from luthier.evaluation import generate
from luthier.models.base import Base
from luthier.models.methods import Tuned, attach
from luthier.runs import Evaluated, Stepped
from luthier.train.loop import Job, train
from tests.equivalence.workbench import LORA, PROMPT, assert_close, gradients, load, rows, share, tune
from tests.tiny import family

Tiny = Callable[..., Path]
KINDS = ("tiny_llama", "tiny_gpt2", "tiny_bert")
LAYERS = 4
NUMBER = {"tiny_gpt2": "n_layer"}
NAME = {"tiny_gpt2": "h", "tiny_bert": "layer"}


def _base(tiny: Tiny, kind: str) -> Base:
    return load(tiny, kind, **{NUMBER.get(kind, "num_hidden_layers"): LAYERS})


def _upper(base: Base, first: int, rank: int = 4, dropout: float = 0.0) -> spec.Lora:
    """An adapter on every linear map of the layers from `first` on."""
    named = [
        name for name, module in base.model.named_modules() if hasattr(module, "weight") and module.weight.ndim > 1
    ]
    mine = [name for name in named if any(f".{number}." in name for number in range(first, LAYERS))]
    return spec.Lora(rank=rank, alpha=8, dropout=dropout, target_modules=tuple(mine))


@contextmanager
def _seen(tuned: Tuned) -> Iterator[list[int]]:
    """How many rows every layer is given meanwhile, in the order of the calls."""
    counts: list[int] = []
    norms = [_first_norm(layer) for layer in tuned._forward.lower.layers]
    hooks = [
        norm.register_forward_pre_hook(lambda _, given: counts.append(given[0].shape[:-1].numel())) for norm in norms
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def _first_norm(layer: nn.Module) -> nn.Module:
    return next(part for part in layer.modules() if "norm" in type(part).__name__.lower())


def _apart(tuned: Tuned, shares: Sequence[Share], budget: int) -> tuple[float, list[dict[str, torch.Tensor]]]:
    """Loss and gradients of slots that go through the model one after another."""
    losses, found = zip(*(gradients(tuned, [each], budget) for each in shares), strict=True)
    return sum(losses), [grads[each.slot] for grads, each in zip(found, shares, strict=True)]


def _assert_equal(tuned: Tuned, shares: Sequence[Share], budget: int) -> None:
    loss, grads = gradients(tuned, shares, budget)
    expected_loss, expected = _apart(tuned, shares, budget)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    for slot, (mine, theirs) in enumerate(zip(grads, expected, strict=True)):
        assert mine.keys() == theirs.keys() and any(grad.abs().max() > 1e-4 for grad in theirs.values())
        for name, grad in theirs.items():
            assert_close(mine[name], grad, f"slot {slot}: {name}", atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_slots_apart(tiny: Tiny, kind: str) -> None:
    """Different ranks, dropout, lowest layers; the first layers are given one slot's tokens."""
    base = _base(tiny, kind)
    tuned = tune(base, _upper(base, 2), _upper(base, 3, rank=2, dropout=0.3), _upper(base, 2, rank=8, dropout=0.1))
    examples = rows(family(kind))
    shares = [share(tuned, slot, examples) for slot in range(3)]
    _assert_equal(tuned, shares, budget=10_000)
    with _seen(tuned) as counts:
        gradients(tuned, shares, budget=10_000)
    tokens = counts[0]
    assert tokens > 10 and counts[:2] == [tokens] * 2 and counts[2] == 3 * tokens


@pytest.mark.parametrize("budget", [40, 90, 150])
@pytest.mark.parametrize("kind", KINDS)
def test_any_budget_gives_the_same(tiny: Tiny, kind: str, budget: int) -> None:
    base = _base(tiny, kind)
    tuned = tune(base, *[_upper(base, 2, rank=2 + slot) for slot in range(5)])
    examples = rows(family(kind))
    shares = [share(tuned, slot, examples) for slot in range(5)]
    _assert_equal(tuned, shares, budget)
    batches = list(tuned.lay_out(shares, budget))
    assert all(batch.stored <= budget for batch in batches) and max(len(batch.ranges) for batch in batches) > 1


def test_recomputed_layers_share_too(tiny: Tiny) -> None:
    base = _base(tiny, "tiny_llama")
    tuned = tune(base, *[_upper(base, 2, dropout=0.2)] * 3)
    shares = [share(tuned, slot, rows("causal")) for slot in range(3)]
    plain = gradients(tuned, shares, 10_000)
    tuned.checkpoint_activations()
    with _seen(tuned) as counts:
        again = gradients(tuned, shares, 10_000)
    assert plain[0] == pytest.approx(again[0]) and len(counts) > LAYERS
    for mine, theirs in zip(again[1], plain[1], strict=True):
        for name, grad in theirs.items():
            assert_close(mine[name], grad, name)


def _tokens_below(tuned: Tuned, shares: Sequence[Share]) -> tuple[int, int]:
    """Tokens the first layer is given, and all that are stored."""
    below = stored = 0
    for batch in tuned.lay_out(shares, 10_000):
        tuned.nll(batch, {slot.index: 0 for slot in tuned.slots})  # now it is known whether the model shares
        with _seen(tuned) as counts:
            tuned.nll(batch, {slot.index: 0 for slot in tuned.slots})
        below, stored = below + counts[0], stored + batch.stored
    return below, stored


def test_nothing_is_shared_where_something_differs(tiny: Tiny) -> None:
    """Other rows, an adapter in the first layer, or virtual tokens: as before."""
    base = _base(tiny, "tiny_llama")
    tuned = tune(base, _upper(base, 2), _upper(base, 2), LORA, PROMPT)
    examples = rows("causal")
    cases = [[(0, examples), (1, examples[1:])], [(0, examples), (2, examples)], [(2, examples), (3, examples)]]
    for case in cases:
        shares = [share(tuned, slot, mine) for slot, mine in case]
        below, stored = _tokens_below(tuned, shares)
        assert below == stored > 0
        loss, grads = gradients(tuned, shares, 10_000)
        expected_loss, expected = _apart(tuned, shares, 10_000)
        assert loss == pytest.approx(expected_loss, abs=1e-5)
        for each, theirs in zip(shares, expected, strict=True):
            for name, grad in theirs.items():
                assert_close(grads[each.slot][name], grad, name, atol=1e-5)


def test_slots_with_the_same_rows_find_each_other_among_others(tiny: Tiny) -> None:
    """Two of four bring the same rows and leave the lower layers alone: they share, the others ride as before."""
    base = _base(tiny, "tiny_llama")
    tuned = tune(base, _upper(base, 2), LORA, _upper(base, 1), _upper(base, 2))
    examples = rows("causal")
    shares = [share(tuned, slot, mine) for slot, mine in enumerate([examples, examples, examples, examples[:3]])]
    batches = list(tuned.lay_out(shares, 10_000))
    assert [[slot for slot, _, _ in batch.ranges] for batch in batches] == [[0, 2], [1, 3]]
    below, stored = _tokens_below(tuned, shares)
    assert stored - below == batches[0].stored // 2
    _assert_equal(tuned, shares, 10_000)


def test_a_repeated_batch_is_the_batch_of_the_slots() -> None:
    """What is repeated equals what is laid out slot by slot, weights and names included."""
    examples = rows("causal")
    shares = [Share(slot, examples, weight) for slot, weight in ((3, 0.1), (5, 0.25), (7, 0.3))]
    (found,), (expected,) = side_by_side(shares, 10_000, {3, 5, 7}), flat_batches(shares, 10_000)
    for name in FlatBatch.__dataclass_fields__:
        mine, theirs = getattr(found, name), getattr(expected, name)
        if name == "entries":
            assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
        elif isinstance(theirs, np.ndarray):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6)
        else:
            assert mine == theirs


def test_evaluation_shares_as_well(tiny: Tiny) -> None:
    """Two slots and the bare base: likelihoods, and answers that grow from prompts read once, as each gives alone."""
    base = _base(tiny, "tiny_llama")
    tuned = tune(base, _upper(base, 2), _upper(base, 3))
    everybody, examples = (None, 0, 1), rows("causal")
    prompts = [row.ids_L[:-1].tolist() for row in examples]
    who = [slot for slot in everybody for _ in examples]
    alone = [told for slot in everybody for told in generate.likelihoods(tuned, slot, examples)]
    said = [each for slot in everybody for each in generate.answer(tuned, slot, prompts, 5)]
    with _seen(tuned) as counts:
        together = generate.likelihoods(tuned, who, list(examples) * 3)
    assert len(counts) == LAYERS and counts[-1] == 3 * counts[0]
    assert [told.nll for told in together] == pytest.approx([told.nll for told in alone], abs=1e-4)
    with _seen(tuned) as counts:
        answers = generate.answer(tuned, who, prompts * 3, 5)
    assert answers == said
    assert counts[LAYERS - 1] == 3 * counts[0] and counts[LAYERS : 2 * LAYERS] == [27] * LAYERS


def test_a_run_is_the_run_alone(tiny: Tiny, tmp_path: Path) -> None:
    """Three trials of one seed through the loop, evaluations included, against each by itself."""

    def job(name: str, rate: float) -> Job:
        training = spec.Training(
            batch_size=3, accumulate_steps=1, num_epochs=2, learning_rate=rate, warmup=0.0, weight_decay=0.01
        )
        return Job(name, training, 5, examples, held, tmp_path / name)

    examples, rates = rows("causal"), (1e-2, 3e-3, 2e-2)
    held = examples[:4]
    base = _base(tiny, "tiny_llama")
    methods = [_upper(base, 2), _upper(base, 3, rank=2, dropout=0.3), _upper(base, 2, rank=8)]
    together = attach(base, methods, [5] * 3)
    with _seen(together) as counts:
        events = list(train(together, [job(f"s{i}", rate) for i, rate in enumerate(rates)]))
    assert sum(counts[3::LAYERS]) == 3 * sum(counts[::LAYERS])
    for i, rate in enumerate(rates):
        alone = attach(_base(tiny, "tiny_llama"), [methods[i]], [5])
        expected = [e for e in train(alone, [job(f"a{i}", rate)]) if isinstance(e, Stepped | Evaluated)]
        found = [e for e in events if isinstance(e, Stepped | Evaluated) and e.run == f"s{i}"]
        assert [_loss(e) for e in found] == pytest.approx([_loss(e) for e in expected], abs=2e-4) and len(found) > 6
        for mine, theirs in zip(together.slots[i].flats, alone.slots[0].flats, strict=True):
            assert_close(mine.values, theirs.values, f"slot {i}", atol=1e-3)


def _loss(event: Stepped | Evaluated) -> float:
    return event.loss if isinstance(event, Stepped) else event.scores["loss"]


def test_one_slot_several_times_in_a_batch_stands_for_as_many(tiny: Tiny) -> None:
    """What a probe of the machine does: twice the rows, twice the gradient, the layers below once."""
    base = _base(tiny, "tiny_llama")
    tuned = tune(base, _upper(base, 2))
    mine = share(tuned, 0, rows("causal"))
    loss, (once,) = gradients(tuned, [mine], 10_000)
    with _seen(tuned) as counts:
        twice_loss, (twice,) = gradients(tuned, [mine, mine], 10_000)
    assert counts[-1] == 2 * counts[-LAYERS] and twice_loss == pytest.approx(2 * loss)
    for name, grad in once.items():
        assert_close(twice[name], 2 * grad, name, atol=1e-5)
