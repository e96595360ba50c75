"""What a run would do: batches, steps, tokens, and what they cost in memory and time, before any weight is loaded.

The arithmetic is that of the reference documents (`spec`): a batch is `batch_size` examples, a step one adjustment of
the weights, a remainder is never dropped. Memory and time are estimates from counts; nothing here looks at a device.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.batches import epoch_order, grouped_order, stored_tokens, trained_entries
from luthier.data.examples import Encoded
from luthier.presets import BaseFacts
from luthier.runs import Plan
from luthier.spec import Experiment, Full, PromptTuning, QLora, Training, batches_per_epoch, steps_per_epoch
from luthier.train.loop import TOKEN_BUDGET
from luthier.train.optimizer import warmup_steps

FEW_STEPS_AN_EPOCH = 20
ACTIVATION_BYTES = 34  # a token, hidden unit and layer, in two-byte numbers (Korthikanti et al., arXiv 2205.05198)
USABLE_SHARE = 0.8  # of a device's memory: the rest is the allocator's and other people's


def plan(experiment: Experiment, rows: Sequence[Encoded], truncated: int, facts: BaseFacts, trainable: int) -> Plan:
    """The plan of a resolved experiment on encoded training rows. `trainable` counts the parameters it would train."""
    training = experiment.training
    size = training.batch_size * training.accumulate_steps
    batches = batches_per_epoch(len(rows), training.batch_size)
    epoch_steps = steps_per_epoch(batches, training.accumulate_steps)
    steps = training.max_steps or epoch_steps * training.num_epochs
    tokens = sum(len(row.ids_L) for row in rows)
    return Plan(
        batches_per_epoch=batches,
        steps=steps,
        tokens=tokens,
        trained_tokens=trained_entries(rows),
        shared_tokens=tokens - _stored(experiment, rows, size, facts),
        truncated=truncated,
        trainable_parameters=trainable,
        memory_bytes=memory_bytes(experiment, rows, facts, trainable),
        seconds=None,
        warnings=_warnings(epoch_steps, batches, steps, training),
    )


def trainable_parameters(experiment: Experiment, facts: BaseFacts) -> int | None:
    """Parameters a method trains, where config alone tells: None for LoRA, whose layers are known once the base is."""
    if isinstance(experiment.method, Full):
        return facts.parameters
    if isinstance(experiment.method, PromptTuning):
        return experiment.method.virtual_tokens * facts.hidden_size
    return None


def _stored(experiment: Experiment, rows: Sequence[Encoded], size: int, facts: BaseFacts) -> int:
    """Tokens computed in the first epoch, prefixes shared within each step as the engine will."""
    training = experiment.training
    sharing = facts.family == "causal" and training.share_prefixes and not isinstance(experiment.method, Full)
    if not sharing:
        return stored_tokens(rows, share_prefixes=False)
    grouped = training.batching == "grouped"
    order = grouped_order(rows, size, experiment.seed, 0) if grouped else epoch_order(len(rows), experiment.seed, 0)
    return sum(stored_tokens([rows[i] for i in order[k : k + size]]) for k in range(0, len(rows), size))


def fitted(experiment: Experiment, rows: Sequence[Encoded], facts: BaseFacts, trainable: int, memory: int) -> Training:
    """The training with `gradient_checkpointing` decided: recompute only where memory (bytes) does not do otherwise."""
    training = experiment.training
    if training.gradient_checkpointing is not None:
        return training
    needed = memory_bytes(experiment, rows, facts, trainable)
    return training.model_copy(update={"gradient_checkpointing": needed > USABLE_SHARE * memory})


def memory_bytes(experiment: Experiment, rows: Sequence[Encoded], facts: BaseFacts, trainable: int) -> int:
    """Bytes at the peak of a step: the base, what is trained (value, gradient, two moments), the activations."""
    method = experiment.method
    number_bytes = 4 if experiment.model.dtype in ("auto", "float32") else 2
    weight_bytes = method.bits / 8 if isinstance(method, QLora) else number_bytes
    base = 0 if isinstance(method, Full) else int(facts.parameters * weight_bytes)
    longest = max((len(row.ids_L) for row in rows), default=0)
    tokens = max(longest, min(TOKEN_BUDGET, sum(len(row.ids_L) for row in rows)))
    layer = tokens * facts.hidden_size * ACTIVATION_BYTES * number_bytes // 2
    layers = 1 if experiment.training.gradient_checkpointing else facts.layers
    inputs = tokens * facts.hidden_size * number_bytes * facts.layers
    return base + 16 * trainable + layer * layers + inputs


def _warnings(epoch_steps: int, batches: int, steps: int, training: Training) -> tuple[str, ...]:
    said = []
    if epoch_steps < FEW_STEPS_AN_EPOCH:
        said.append(
            f"an epoch has only {epoch_steps} steps ({batches} batches): with few examples take a smaller"
            " `training.batch_size` or `training.accumulate_steps`, so that there are enough of them"
        )
    if warmup_steps(training.warmup, steps) >= steps:
        said.append(f"`training.warmup` lasts all {steps} steps: the learning rate never reaches its peak")
    return tuple(said)
