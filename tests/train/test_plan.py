"""The plan's counts, its estimates, and the decisions it makes for the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from luthier import presets, spec
from luthier.hardware import Machine, Rates
from luthier.models import base as bases
from luthier.models import facts
from luthier.models.methods import Tuned, attach
from luthier.train import cost, plan
from luthier.train.shares import longest_batch
from tests.equivalence.workbench import LABELS, rows

Tiny = Callable[..., Path]
MACHINE = Machine("cpu", 1, 10**10, 2, "a processor", "float32")
RATES = Rates(products=1e11, bytes=1e10, call=1e-6)
METHODS = {
    "lora": spec.Lora(rank=4, alpha=8, dropout=0.0, target_modules=("all-linear",)),
    "prompt": spec.PromptTuning(virtual_tokens=3, init_method="random"),
    "full": spec.Full(),
}


def _shapes(folder: Path, method: str = "lora") -> Tuned:
    loaded = bases.load(spec.Model(name=str(folder)), METHODS[method], LABELS, weights=False)
    return attach(loaded, [METHODS[method]], [0])


def _experiment(folder: Path, **training: object) -> spec.Experiment:
    given = {"model": str(folder), "data": "rows.jsonl", "method": {"type": "lora"}, "training": training}
    return presets.resolve(spec.from_mapping(given), facts.inspect(str(folder), None)).experiment


@pytest.fixture
def made(tiny: Tiny) -> Callable[..., plan.Plan]:
    """`made(batch_size=…)`: the plan of 25 rows on a tiny Llama."""
    folder = tiny("tiny_llama")

    def make(**training: object) -> plan.Plan:
        experiment = _experiment(folder, **training)
        return plan.plan(experiment, rows("causal", count=23), 0, _shapes(folder), MACHINE, RATES)

    return make


def test_batches_and_steps_never_drop_a_remainder(made: Callable[..., plan.Plan]) -> None:
    planned = made(batch_size=10, accumulate_steps=2, num_epochs=3)  # 25 rows: 3 batches, 2 updates an epoch
    assert (planned.batches_per_epoch, planned.steps) == (3, 6)
    assert made(batch_size=10, accumulate_steps=2, max_steps=4).steps == 4
    assert any("only 2 steps" in warning for warning in planned.warnings)


def test_shared_tokens_are_those_the_engine_does_not_compute(made: Callable[..., plan.Plan]) -> None:
    whole = made(batch_size=25)
    assert 0 < whole.shared_tokens < whole.tokens
    assert made(batch_size=25, share_prefixes=False).shared_tokens == 0
    assert made(batch_size=1).shared_tokens == 0
    few = made(batch_size=5)
    assert few.saved_tokens["grouped"] > few.saved_tokens["random"] == few.shared_tokens
    assert made(batch_size=5, batching="grouped").shared_tokens == few.saved_tokens["grouped"]


def test_time_goes_with_the_tokens_that_are_computed(made: Callable[..., plan.Plan]) -> None:
    one, three = made(batch_size=5, num_epochs=1).seconds, made(batch_size=5, num_epochs=3).seconds
    assert one and three == pytest.approx(3 * one)
    assert (made(batch_size=5, gradient_checkpointing=True, num_epochs=1).seconds or 0) > one


def test_the_plan_says_which_numbers_are_kept_in_which_precision(made: Callable[..., plan.Plan]) -> None:
    told = made().dtypes
    assert told["base weights"] == told["products"] == told["trained weights"] == told["optimizer state"] == "float32"


def _with(memory_bytes: float) -> Machine:
    return replace(MACHINE, memory_bytes=int(memory_bytes))


def _needed(folder: Path, budget: int, recompute: bool) -> int:
    shapes, training = _shapes(folder), _experiment(folder, batch_size=16).training
    counted = cost.count(shapes, longest_batch(shapes, [(shapes.slots[0], training, rows("causal", 30))], 4096))
    return cost.peak_bytes(counted, shapes, min(counted.stored, budget), recompute)


def test_memory_is_found_in_smaller_micro_batches_first_then_in_recomputation(tiny: Tiny) -> None:
    folder, examples = tiny("tiny_llama", num_hidden_layers=6), rows("causal", 30)
    training, shapes = _experiment(folder, batch_size=16).training, _shapes(folder)
    longest = max(len(row.ids_L) for row in examples)
    roomy = plan.fitted(training, examples, shapes, _with(10**10))
    assert (roomy.budget, roomy.training.gradient_checkpointing) == (4096, False)
    tight = plan.fitted(training, examples, shapes, _with(_needed(folder, 2 * longest, False) / plan.USABLE_SHARE))
    assert tight.budget <= 2 * longest and not tight.training.gradient_checkpointing
    tighter = plan.fitted(training, examples, shapes, _with(_needed(folder, longest, True) / plan.USABLE_SHARE + 1))
    assert tighter.training.gradient_checkpointing and tighter.memory_bytes < tight.memory_bytes
    said = training.model_copy(update={"gradient_checkpointing": False})
    assert plan.fitted(said, examples, shapes, _with(10**6)).training.gradient_checkpointing is False


def test_slots_are_as_many_as_memory_holds_and_the_wish_allows(tiny: Tiny) -> None:
    """Room for the base, what one slot brings, and five adapters with gradients and moments: five, in small batches."""
    folder, examples = tiny("tiny_llama", num_hidden_layers=6), rows("causal", 30)
    training, shapes = _experiment(folder, batch_size=2).training, _shapes(folder)
    roomy = plan.slots_that_fit(training, examples, shapes, _with(10**10), 8)
    assert (roomy.slots, roomy.budget) == (8, 4096)
    alone = plan.fitted(training, examples, shapes, _with(10**10))
    numbers = 16 * shapes.slots[0].trainable_parameters
    memory = (alone.memory_bytes + 4 * numbers) / plan.USABLE_SHARE + 1
    tight = plan.slots_that_fit(training, examples, shapes, _with(memory), 8)
    assert tight.slots == 5 and tight.memory_bytes == alone.memory_bytes + 4 * numbers
    assert alone.budget > tight.budget >= max(len(row.ids_L) for row in examples)
    assert plan.slots_that_fit(training, examples, shapes, _with(memory), 3).slots == 3
    wider = plan.slots_that_fit(training, examples, shapes, _with(2 * memory), 5)
    assert wider.slots == 5 and wider.budget > tight.budget and wider.memory_bytes > tight.memory_bytes
    scarce = plan.slots_that_fit(training, examples, shapes, _with(10**6), 8)
    assert scarce == plan.fitted(training, examples, shapes, _with(10**6)) and scarce.slots == 1
    assert plan.slots_that_fit(training, examples, _shapes(folder, "full"), _with(10**10), 8).slots == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2", "tiny_bert", "tiny_t5", "tiny_bart"])
def test_what_is_counted_without_numbers_is_what_is_kept_with_them(tiny: Tiny, kind: str, method: str) -> None:
    folder = tiny(kind)
    loaded = bases.load(spec.Model(name=str(folder)), METHODS[method], LABELS)
    real = attach(loaded, [METHODS[method]], [0])
    training = _experiment(folder, batch_size=8).training.model_copy(update={"share_prefixes": True})
    family = loaded.family
    shapes, numbers = (
        cost.count(tuned, longest_batch(tuned, [(tuned.slots[0], training, rows(family))], 4096))
        for tuned in (_shapes(folder, method), real)
    )
    assert (shapes.stored, shapes.outputs, shapes.width) == (numbers.stored, numbers.outputs, numbers.width)
    assert shapes.kept == pytest.approx(numbers.kept, rel=0.25) and shapes.kept > 0
    assert shapes.flops == pytest.approx(numbers.flops, rel=0.25)
