"""What a run would do: batches, steps, tokens, and what they cost in memory and time, before any weight is loaded.

The arithmetic is that of the reference documents (`spec`): a batch is `batch_size` examples, a step one adjustment of
the weights, a remainder is never dropped. Lives here: the plan, and the two decisions that memory asks for. Does not
live here: the formulas (`cost.py`), measuring (`measure.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.data.batches import epoch_order, grouped_order, stored_tokens, trained_entries
from luthier.data.examples import Encoded
from luthier.data.rows import lengths
from luthier.hardware import Machine, Rates
from luthier.models.methods import Tuned
from luthier.runs import Plan
from luthier.spec import Experiment, QLora, Training, batches_per_epoch, steps_per_epoch
from luthier.train import cost
from luthier.train.optimizer import warmup_steps
from luthier.train.room import TOKEN_BUDGET, WIDE_BUDGET
from luthier.train.shares import lay_out, longest_batch, step_share

FEW_STEPS_AN_EPOCH = 20
USABLE_SHARE = 0.8  # of a device's memory: the rest is the allocator's and other people's
TYPICAL_STEPS = 3
COUNTED_ROWS = 100_000  # of more rows a sample says how many tokens sharing saves


@dataclass(frozen=True, slots=True)
class Fit:
    """How a run fits into memory: `training` with `gradient_checkpointing` decided, `budget` tokens a micro-batch, the
    bytes its largest step is expected to take, and how many `slots` like it all this is for."""

    training: Training
    budget: int
    memory_bytes: int
    slots: int = 1


def fitted(training: Training, rows: Sequence[Encoded], shapes: Tuned, machine: Machine) -> Fit:
    """What a device's memory allows, by formula: first smaller micro-batches, which cost little, down to the longest
    example; then recomputed activations, which cost a forward pass more. `shapes`: the tuned base, numbers or none."""
    return slots_that_fit(training, rows, shapes, machine, wish=1)


def slots_that_fit(training: Training, rows: Sequence[Encoded], shapes: Tuned, machine: Machine, wish: int) -> Fit:
    """How many slots like the one of `shapes`, at most `wish` and at least one, train together in a device's memory.

    One is `fitted`. The base is there once; each slot more costs its numbers with gradient and moments, and its part of
    the micro-batch. Where that is too much, micro-batches get smaller, down to what one slot brings; then slots fewer.
    """
    budget = WIDE_BUDGET if machine.device == "cuda" else TOKEN_BUDGET
    counted = cost.count(shapes, longest_batch(shapes, [(shapes.slots[0], training, rows)], budget))
    longest = int(lengths(rows).max()) + shapes.slots[0].virtual_tokens
    usable, recompute = USABLE_SHARE * machine.memory_bytes, bool(training.gradient_checkpointing)

    def needed(slots: int, budget: int) -> int:
        tokens = min(slots * counted.stored, max(budget, longest))
        return cost.peak_bytes(counted, shapes, tokens, recompute, slots)

    while needed(1, budget) > usable and budget > longest:
        budget //= 2
    if needed(1, budget) > usable and training.gradient_checkpointing is None:
        recompute = True
    alone = min(budget, max(counted.stored, longest))  # a budget below would cut what one slot brings
    most = 1 if shapes.full else wish
    slots = next((n for n in range(most, 1, -1) if needed(n, alone) <= usable), 1)
    while slots > 1 and needed(slots, budget) > usable:
        budget = max(alone, budget // 2)
    decided = training.model_copy(update={"gradient_checkpointing": recompute})
    return Fit(decided, budget, needed(slots, budget), slots)


def plan(
    experiment: Experiment, rows: Sequence[Encoded], truncated: int, shapes: Tuned, machine: Machine, rates: Rates
) -> Plan:
    """The plan of a resolved experiment on encoded training rows. `shapes` is its base with its slot, numbers or none;
    `machine` and `rates` say where it would run."""
    training, slot = experiment.training, shapes.slots[0]
    size = training.batch_size * training.accumulate_steps
    batches = batches_per_epoch(len(rows), training.batch_size)
    epoch_steps = steps_per_epoch(batches, training.accumulate_steps)
    steps = training.max_steps or epoch_steps * training.num_epochs
    tokens = int(lengths(rows).sum())
    sharing = shapes.base.family == "causal" and training.share_prefixes and shapes.shares_prefixes
    orders = _orders(rows, training, experiment.seed)
    saved = {name: tokens - _stored(rows, order, size) if sharing else 0 for name, order in orders.items()}
    fit = fitted(training, rows, shapes, machine)
    first = [rows[i] for i in orders[training.batching][: TYPICAL_STEPS * size]]
    counts = _typical(shapes, training, first, fit.budget)
    stored = (tokens - saved[training.batching]) * steps / epoch_steps
    seconds = cost.seconds(counts, stored, rates, bool(fit.training.gradient_checkpointing))
    return Plan(
        batches_per_epoch=batches,
        steps=steps,
        tokens=tokens,
        trained_tokens=trained_entries(rows),
        shared_tokens=saved[training.batching],
        truncated=truncated,
        trainable_parameters=slot.trainable_parameters,
        memory_bytes=fit.memory_bytes,
        seconds=seconds,
        warnings=_warnings(epoch_steps, batches, steps, training),
        saved_tokens=saved,
        budget=fit.budget,
        recompute=bool(fit.training.gradient_checkpointing),
        dtypes=_dtypes(experiment, shapes),
    )


def _typical(shapes: Tuned, training: Training, drawn: Sequence[Encoded], budget: int) -> list[cost.Count]:
    """The micro-batches of an epoch's first steps, counted."""
    size = training.batch_size * training.accumulate_steps
    steps = [drawn[k * size : (k + 1) * size] for k in range(TYPICAL_STEPS)]
    shares = [step_share(shapes, shapes.slots[0], training, step) for step in steps if step]
    return [cost.count(shapes, batch) for share in shares for batch in lay_out(shapes, [share], budget)]


def _orders(rows: Sequence[Encoded], training: Training, seed: int) -> dict[str, np.ndarray]:
    """The first epoch's order by either way of batching; of very many rows only by the one that is wished."""
    orders = {"random": epoch_order(len(rows), seed, 0)}
    if training.batching == "grouped" or len(rows) <= COUNTED_ROWS:
        orders["grouped"] = grouped_order(rows, training.batch_size * training.accumulate_steps, seed, 0)
    return orders


def _stored(rows: Sequence[Encoded], order: np.ndarray, size: int) -> int:
    """Tokens computed in an epoch of this order, prefixes shared within each step as the engine will.

    Of more rows than COUNTED_ROWS every n-th step is counted, and stands for those beside it.
    """
    starts = range(0, len(rows), size * -(-len(rows) // COUNTED_ROWS))
    steps = [order[k : k + size] for k in starts]
    found = sum(stored_tokens([rows[i] for i in step]) for step in steps)
    if len(starts) * size >= len(rows):
        return found
    sizes = lengths(rows)
    return round(found / sum(int(sizes[step].sum()) for step in steps) * int(sizes.sum()))


def _dtypes(experiment: Experiment, shapes: Tuned) -> dict[str, str]:
    """Which numbers are kept in which precision. What is trained is float32 whatever the base is."""
    method, products = experiment.method, str(shapes.base.dtype).removeprefix("torch.")
    base = f"{method.bits} bits" if isinstance(method, QLora) else products
    trained = {"trained weights": "float32", "gradients": "float32", "optimizer state": "float32"}
    return ({} if shapes.full else {"base weights": base}) | trained | {"products": products}


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


def histogram(lengths: Sequence[int], bars: int = 12) -> tuple[tuple[int, int, int], ...]:
    """(from, to, how many) for round ranges that cover all `lengths` without a gap, about so many.

    The longest hundredth does not stretch the others: where it reaches far, it is one last range.

    >>> histogram([3, 4, 4, 12, 40], bars=4)
    ((0, 9, 3), (10, 19, 1), (20, 29, 0), (30, 39, 0), (40, 40, 1))
    """
    found = np.asarray(lengths)
    low, most, longest = int(found.min()), int(np.percentile(found, 99, method="higher")), int(found.max())
    step = next(n for k in range(19) for n in (10**k, 2 * 10**k, 5 * 10**k) if n * bars > most - low)
    edges = list(range(low // step * step, most + 1, step))
    if longest >= edges[-1] + step:
        edges.append(edges[-1] + step)
    counts = np.histogram(found, [*edges, longest + 1])[0].tolist()
    return tuple(zip(edges, [edge - 1 for edge in edges[1:]] + [longest], counts, strict=True))
