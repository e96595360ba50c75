"""Where the trials of a search train: some updates of the first one, measured alone and side by side with copies.

Lives here: the probe. Does not live here: the decision (`hardware.placement`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from luthier import hardware
from luthier.data.batches import Share, epoch_order, grouped_order
from luthier.hardware import Placement, Probe
from luthier.models.methods import Tuned
from luthier.train.loop import Job, lay_out, step_share
from luthier.train.measure import peak_bytes
from luthier.train.plan import USABLE_SHARE
from luthier.train.room import TOKEN_BUDGET, out_of_memory

SECONDS = 4.0
TRIES = 3
GROWS = 1.05
"""How much faster twice as many slots must be for the probe to double them again."""
NUMBERS = 4
"""Float32 numbers kept for each trained one: itself, its gradient, two moments."""


def measure(
    tuned: Tuned,
    job: Job,
    at_once: int,
    budget: int = TOKEN_BUDGET,
    seconds: float = SECONDS,
) -> Placement:
    """How at most `at_once` trials like `job` are best placed on this machine, from about `seconds` of probing.

    `tuned` holds the job's slot (slot 0), which learns nothing; its rows stand for those of the trials beside it.
    A method that cannot share its base gets one slot a process. All cores count, also those that others use now: a
    search outlives what is busy when it begins, and single-threaded processes bear neighbours (hardware.SPARED).
    """
    machine = hardware.machine(tuned.base.device.type)
    cpu, processors = machine.device == "cpu", machine.processors
    most = 1 if tuned.full else max(1, at_once // min(processors, at_once))
    if job.training.gradient_checkpointing:
        tuned.checkpoint_activations()
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if cpu else threads)
    try:
        probe = Probe(
            _seconds(tuned, _first_step(tuned, job), most, budget, time.monotonic() + seconds),
            peak_bytes(tuned),
            4 * NUMBERS * tuned.slots[0].trainable_parameters,
        )
    finally:
        torch.set_num_threads(threads)
        for flat in tuned.slots[0].flats:
            flat.grads.zero_()
    usable = int(USABLE_SHARE * machine.memory_bytes)
    return hardware.placement(machine.device, processors, at_once, usable, probe)


def _first_step(tuned: Tuned, job: Job) -> Share:
    """What the job's first update draws."""
    rows, training = job.train, job.training
    size = training.batch_size * training.accumulate_steps
    grouped = training.batching == "grouped"
    order = grouped_order(rows, size, job.seed, 0) if grouped else epoch_order(len(rows), job.seed, 0)
    return step_share(tuned, tuned.slots[0], training, [rows[i] for i in order[:size]])


def _seconds(tuned: Tuned, share: Share, most: int, budget: int, until: float) -> dict[int, float]:
    """Seconds of an update by the number of slots that take it together: 1, 2, 4 … `most`, while that pays and there
    are time and memory. The copies are one slot, several times in the batch: as many rows, as many products."""
    before, slots, found = 1, 1, dict[int, float]()
    while True:
        try:
            found[slots] = _least(tuned, [share] * slots, budget, until)
        except (MemoryError, RuntimeError) as error:
            if out_of_memory(error) is None:
                raise
            return found
        paid = slots == 1 or slots / found[slots] >= GROWS * before / found[before]
        if slots == most or not paid or time.monotonic() + 4 * found[slots] > until:
            return found
        before, slots = slots, min(2 * slots, most)


def _least(tuned: Tuned, shares: Sequence[Share], budget: int, until: float) -> float:
    """The shortest of some updates after one to warm up: others may disturb one, nothing makes it faster than it is."""
    _update(tuned, shares, budget)
    least = math.inf
    for _ in range(TRIES):
        began = time.perf_counter()
        _update(tuned, shares, budget)
        if tuned.base.device.type != "cpu":
            torch.accelerator.synchronize()
        least = min(least, time.perf_counter() - began)
        if time.monotonic() > until:
            break
    return least


def _update(tuned: Tuned, shares: Sequence[Share], budget: int) -> None:
    for batch in lay_out(tuned, shares, budget):
        nll_S, _ = tuned.nll(batch, {slot.index: 0 for slot in tuned.slots})
        (nll_S * torch.from_numpy(batch.weights_S).to(nll_S.device)).sum().backward()
