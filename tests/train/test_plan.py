"""The plan's counts, and the decision it makes for the user."""

from __future__ import annotations

import pytest

from luthier import presets, spec
from luthier.train import plan
from tests.equivalence.workbench import rows

FACTS = presets.BaseFacts("base", "causal", "llama", 64, 4, 512, 320, 1_000_000, False, False)


def _experiment(**training: object) -> spec.Experiment:
    given = {"model": "base", "data": "rows.jsonl", "method": {"type": "lora"}, "training": training}
    return presets.resolve(spec.from_mapping(given), FACTS, "generation").experiment


def _plan(**training: object) -> plan.Plan:
    return plan.plan(_experiment(**training), rows("causal", count=23), 0, FACTS, 1000)


def test_batches_and_steps_never_drop_a_remainder() -> None:
    planned = _plan(batch_size=10, accumulate_steps=2, num_epochs=3)  # 25 rows: 3 batches, 2 updates an epoch
    assert (planned.batches_per_epoch, planned.steps) == (3, 6)
    assert _plan(batch_size=10, accumulate_steps=2, max_steps=4).steps == 4
    assert any("only 2 steps" in warning for warning in planned.warnings)


def test_shared_tokens_are_those_the_engine_does_not_compute() -> None:
    whole = _plan(batch_size=25)
    assert 0 < whole.shared_tokens < whole.tokens
    assert _plan(batch_size=25, share_prefixes=False).shared_tokens == 0
    assert _plan(batch_size=1).shared_tokens == 0
    assert _plan(batch_size=5, batching="grouped").shared_tokens > _plan(batch_size=5).shared_tokens


@pytest.mark.parametrize(
    ("said", "memory", "decided"), [(None, 10**9, False), (None, 10**6, True), (False, 10**6, False)]
)
def test_recomputation_is_chosen_only_where_memory_asks_for_it(said: bool | None, memory: int, decided: bool) -> None:
    experiment = _experiment(gradient_checkpointing=said)
    assert plan.fitted(experiment, rows("causal"), FACTS, 1000, memory).gradient_checkpointing is decided


def test_recomputing_lowers_the_estimate() -> None:
    estimates = [
        plan.memory_bytes(_experiment(gradient_checkpointing=said), rows("causal"), FACTS, 1000)
        for said in (False, True)
    ]
    assert estimates[1] < estimates[0]
