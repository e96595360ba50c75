"""The one loop: `train(tuned, jobs)` trains every slot of a base and yields events.

A turn of the loop is one update of every live slot. Their examples ride the same micro-batches, each slot's loss is
divided by its own count of trained tokens, one backward pass fills all gradients, each slot clips and steps at its own
rate. No slot can feel another.

Lives here: the order of things. Does not live here: what a batch is (`data/batches.py`), what is trained
(`models/methods.py`), files (`checkpoint.py`), what is done with events (`worker.py` and whoever listens).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from luthier.data.batches import (
    Share,
    epoch_order,
    grouped_order,
    stored_tokens,
    trained_entries,
)
from luthier.data.examples import Encoded
from luthier.data.rows import TOGETHER, heaviest, lengths
from luthier.errors import TrainingError
from luthier.models.forward import Batch
from luthier.models.lora import mix
from luthier.models.methods import Tuned
from luthier.models.slots import Slot
from luthier.runs import Evaluated, Event, Finished, Noted, Saved, Started, Stepped
from luthier.spec import Training, batches_per_epoch, steps_per_epoch
from luthier.train import checkpoint
from luthier.train.checkpoint import Progress
from luthier.train.optimizer import SlotOptimizer
from luthier.train.ranks import ALONE, Ranks
from luthier.train.room import TOKEN_BUDGET, Room, out_of_memory

BAD_STEPS_IN_A_ROW = 3
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """One slot's work. `training` has every value resolved; `checkpoints` is the folder to save in and resume from."""

    run: str
    training: Training
    seed: int
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    checkpoints: Path


@dataclass(slots=True)
class Lane:
    """A slot on its way: its job, its optimizer, how far it is."""

    slot: Slot
    job: Job
    optimizer: SlotOptimizer
    epoch_steps: int
    steps: int
    progress: Progress
    order: tuple[int, np.ndarray] = (
        -1,
        np.empty(0),
    )  # the epoch at hand and its order: kept, because sorting is not free
    loss: float = 0.0
    tokens: int = 0
    live: bool = True


class Asked(Exception):
    """Somebody asked to stop; whatever is half done is forgotten."""


def train(
    tuned: Tuned,
    jobs: Sequence[Job],
    stop: Callable[[], bool] = lambda: False,
    budget: int = TOKEN_BUDGET,
    halved: Callable[[int], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> Generator[Event, None, None]:
    """Train slot i of `tuned` on job i until every job has finished; afterwards each slot holds its best weights.

    Resumes each job from its newest checkpoint that verifies. `stop` is asked between micro-batches: when it says yes
    the unfinished update or evaluation is forgotten, every live job saves and ends as `stopped`. `budget` is the number
    of stored tokens that fit in a micro-batch; it changes no result beyond float32 rounding (but for full tuning of a
    base with dropout, whose draws follow the micro-batches). Where memory ends before the budget does, it is halved,
    `halved` is told, and what was half done is done again; a new run tries its longest micro-batch first.

    Of several processes (`ranks`) each calls this with the same jobs; all see the same events, rank 0 saves.

    Raises TrainingError where a checkpoint or an example does not fit, or the disk is full.
    """
    lanes = [_lane(slot, job) for slot, job in zip(tuned.slots, jobs, strict=True)]
    if any(lane.job.training.gradient_checkpointing for lane in lanes):
        tuned.checkpoint_activations()
    stop = ranks.together(stop)
    for lane in lanes:
        yield from _begin(lane, ranks)
    room = Room(budget, max(_longest(lane) for lane in lanes), halved)
    if all(lane.live and lane.progress.step == 0 for lane in lanes):
        yield from _within_memory(room, ranks, lanes, partial(_rehearse, tuned, lanes))
    try:
        for lane in lanes:
            yield from _look_back(tuned, lane, stop, room, ranks)
        while turn := [lane for lane in lanes if lane.live]:
            started = time.monotonic()
            yield from _within_memory(room, ranks, turn, partial(_accumulate, tuned, turn, stop, ranks))
            for lane in turn:
                yield from _update(lane, time.monotonic() - started)
            for lane in turn:
                yield from _look_back(tuned, lane, stop, room, ranks)
    except Asked:
        for lane in lanes:
            if lane.live:
                yield from _halt(lane, ranks)


def lay_out(tuned: Tuned, shares: Sequence[Share], budget: int) -> Iterator[Batch]:
    """Micro-batches in the form the base takes."""
    return tuned.lay_out(shares, budget)


def validation_loss(
    tuned: Tuned,
    slot: Slot,
    rows: Sequence[Encoded],
    stop: Callable[[], bool] = lambda: False,
    budget: int = TOKEN_BUDGET,
    ranks: Ranks = ALONE,
) -> float:
    """Mean negative log-likelihood per trained token (per example for classes). Raises Asked when `stop` says yes."""
    whole = _share(slot, rows, share_prefixes=True)
    parts = (ranks.part([replace(whole, examples=rows[k : k + TOGETHER])]) for k in range(0, len(rows), TOGETHER))
    batches = (batch for part in parts for batch in ranks.in_step(lay_out(tuned, part, budget)))
    total, asked = 0.0, False
    with torch.no_grad():
        for batch in batches:
            if asked := stop():
                break
            nll_S, _ = tuned.nll(batch)
            total += float(nll_S.double() @ torch.from_numpy(batch.weights_S).to(nll_S.device).double())
    total, wishes = ranks.sum([total, asked])
    if wishes:
        raise Asked
    return total


# -------------------------------------------------------------------------------------------------------------- a lane


def _lane(slot: Slot, job: Job) -> Lane:
    training = job.training
    if not job.train:
        raise TrainingError("there is nothing to train on: no example is left", hint="look at `luthier plan`")
    batches = batches_per_epoch(len(job.train), training.batch_size)
    epoch_steps = steps_per_epoch(batches, training.accumulate_steps)
    steps = training.max_steps or epoch_steps * training.num_epochs
    return Lane(slot, job, SlotOptimizer(slot, training, steps), epoch_steps, steps, Progress())


def _begin(lane: Lane, ranks: Ranks) -> Iterator[Event]:
    job = lane.job
    found, complaints = ranks.by_lead(lambda: checkpoint.newest(job.checkpoints))
    for complaint in complaints:
        yield Noted(job.run, 0, time.time(), "checkpoint", complaint)
    if found is not None:
        checkpoint.restore(lane.slot.tensors(), found.weights(), found.path)
        checkpoint.restore(lane.optimizer.state(), found.optimizer(), found.path)
        lane.progress = found.progress
    lane.live = not lane.progress.looked_back or (lane.progress.step < lane.steps and not _out_of_patience(lane))
    if job.training.patience is not None and not job.validation:
        yield Noted(job.run, 0, time.time(), "patience", "`training.patience` has no effect without validation rows")
    yield Started(job.run, lane.progress.step, time.time(), lane.steps, len(job.train), lane.slot.trainable_parameters)
    if not lane.live:
        yield from _finish(lane)


def _examples(lane: Lane) -> list[Encoded]:
    """The examples of the update at hand: a slice of the epoch's order, `batch_size × accumulate_steps` long."""
    rows, training, seed = lane.job.train, lane.job.training, lane.job.seed
    size = training.batch_size * training.accumulate_steps
    epoch, place = divmod(lane.progress.step, lane.epoch_steps)
    if lane.order[0] != epoch:
        grouped = training.batching == "grouped"
        drawn = grouped_order(rows, size, seed, epoch) if grouped else epoch_order(len(rows), seed, epoch)
        lane.order = (epoch, drawn)
    return [rows[i] for i in lane.order[1][place * size : (place + 1) * size]]


def step_share(tuned: Tuned, slot: Slot, training: Training, rows: Sequence[Encoded]) -> Share:
    """What a slot brings to an update that draws `rows`."""
    return _share(slot, rows, training.share_prefixes and tuned.shares_prefixes)


def _share(slot: Slot, rows: Sequence[Encoded], share_prefixes: bool) -> Share:
    entries = trained_entries(rows, slot.virtual_tokens)
    return Share(slot.index, rows, 1 / max(1, entries), slot.virtual_tokens, share_prefixes)


def _within_memory(
    room: Room, ranks: Ranks, lanes: Sequence[Lane], work: Callable[[int], T]
) -> Generator[Event, None, T]:
    """What `work` gives with the room's budget. Where memory ends, half done gradients are forgotten, the budget is
    halved, and `work` begins again: any budget gives the same result."""
    while True:
        try:
            return work(room.tokens)
        except (MemoryError, RuntimeError) as error:
            problem = out_of_memory(error)
            if problem is None or ranks.sharded:  # the others wait within a layer that this process cannot enter again
                raise
        told = room.halve(problem)  # here the error and all that its frames held are gone
        for lane in lanes:
            lane.optimizer.zero()
            yield Noted(lane.job.run, lane.progress.step, time.time(), "memory", told)


def longest_batch(tuned: Tuned, work: Sequence[tuple[Slot, Training, Sequence[Encoded]]], budget: int) -> Batch:
    """The largest micro-batch of a step that drew every slot's heaviest examples."""
    shares = []
    for slot, training, rows in work:
        most = training.batch_size * training.accumulate_steps
        drawn = heaviest(rows, most, tuned.base.family == "causal" and training.share_prefixes)
        shares.append(step_share(tuned, slot, training, drawn))
    return max(lay_out(tuned, shares, budget), key=lambda batch: batch.stored)


def _rehearse(tuned: Tuned, lanes: Sequence[Lane], budget: int) -> None:
    """Forward and backward through the longest micro-batch, for its memory alone; nothing is learned from it."""
    for lane in lanes:
        lane.optimizer.state()  # both moments take their place beside it
    work = [(lane.slot, lane.job.training, lane.job.train) for lane in lanes]
    _losses(tuned, longest_batch(tuned, work, budget), {lane.slot.index: 0 for lane in lanes}).sum().backward()
    for lane in lanes:
        lane.optimizer.zero()


def _longest(lane: Lane) -> int:
    splits = (lane.job.train, lane.job.validation)
    return max(int(lengths(rows).max(initial=0)) for rows in splits) + lane.slot.virtual_tokens


def _accumulate(tuned: Tuned, turn: list[Lane], stop: Callable[[], bool], ranks: Ranks, budget: int) -> None:
    """Gradients and losses of one update for every lane. Raises Asked when `stop` says yes, in any process."""
    shares = []
    for lane in turn:
        rows = _examples(lane)
        shares.append(step_share(tuned, lane.slot, lane.job.training, rows))
        lane.tokens = stored_tokens(rows, share_prefixes=False)
    losses = {lane.slot.index: 0.0 for lane in turn}
    steps = {lane.slot.index: lane.progress.step for lane in turn}
    asked = False
    for micro, batch in enumerate(ranks.in_step(lay_out(tuned, ranks.part(shares), budget))):
        if asked := stop():
            break
        if tuned.full:  # the base's own dropout draws from torch's global state: seeded here, nothing to save
            torch.manual_seed(mix(turn[0].job.seed, f"{turn[0].progress.step}.{micro * ranks.count + ranks.rank}"))
        weighted_S = _losses(tuned, batch, steps)
        weighted_S.sum().backward()
        for slot, loss in _losses_by_slot(batch, weighted_S.detach()).items():
            losses[slot] += loss
    wishes, *summed = ranks.sum([asked, *losses.values()])  # what all hear, before any of them goes on
    if wishes:
        raise Asked
    ranks.sum_gradients([lane.slot for lane in turn])
    for lane, loss in zip(turn, summed, strict=True):
        lane.loss = loss


def _losses(tuned: Tuned, batch: Batch, steps: dict[int, int]) -> torch.Tensor:
    """Each entry's part of the update's loss, `(S,)`: its nll times its weight."""
    nll_S, _ = tuned.nll(batch, steps)
    return nll_S * torch.from_numpy(batch.weights_S).to(nll_S.device)


def _losses_by_slot(batch: Batch, weighted_S: torch.Tensor) -> dict[int, float]:
    """Each slot's part of the sum: entries belong to the slot in whose range their source lies."""
    values = weighted_S.double().cpu().numpy()
    unit_S = batch.sources_S // batch.width
    return {slot: float(values[(unit_S >= start) & (unit_S < stop)].sum()) for slot, start, stop in batch.ranges}


def _update(lane: Lane, seconds: float) -> Iterator[Event]:
    """Clip and step, unless a number is not finite: then nothing is touched, and three times in a row end the run."""
    job, before = lane.job, lane.progress
    norm = lane.optimizer.gradient_norm()
    after = replace(before, step=before.step + 1, looked_back=False)
    if math.isfinite(lane.loss) and math.isfinite(norm):
        rate = lane.optimizer.step(before.step, norm)
        lane.progress = replace(after, tokens=before.tokens + lane.tokens, skipped_in_a_row=0)
        epoch = after.step / lane.epoch_steps
        yield Stepped(job.run, after.step, time.time(), epoch, lane.loss, rate, norm, lane.tokens, seconds)
        return
    rows = tuple(row.example_id for row in _examples(lane))
    lane.optimizer.zero()
    in_a_row = before.skipped_in_a_row + 1
    lane.progress = replace(after, skipped=before.skipped + 1, skipped_in_a_row=in_a_row)
    message = f"update {after.step} skipped: loss {lane.loss}, gradient norm {norm}"
    yield Noted(job.run, after.step, time.time(), "not_finite", message, rows)
    if in_a_row == BAD_STEPS_IN_A_ROW:
        lane.live = False
        reason = f"{BAD_STEPS_IN_A_ROW} updates in a row were not finite; a lower `training.learning_rate` may help"
        yield Finished(job.run, after.step, time.time(), "failed", reason)


def _look_back(tuned: Tuned, lane: Lane, stop: Callable[[], bool], room: Room, ranks: Ranks) -> Iterator[Event]:
    """After an update: evaluate, save, finish, where due. Done once an update, also when stopped in between."""
    if not lane.live or lane.progress.looked_back:
        return
    step, training = lane.progress.step, lane.job.training
    last = step == lane.steps
    better = False
    if lane.job.validation and (last or step % (training.evaluate_every or lane.epoch_steps) == 0):
        ask = partial(validation_loss, tuned, lane.slot, lane.job.validation, stop, ranks=ranks)
        loss = yield from _within_memory(room, ranks, [lane], ask)
        best = lane.progress.best_loss
        better = math.isfinite(loss) and (best is None or loss < best)
        if better:
            lane.progress = replace(lane.progress, best_loss=loss, best_step=step, worse=0)
        else:
            lane.progress = replace(lane.progress, worse=lane.progress.worse + 1)
        yield Evaluated(lane.job.run, step, time.time(), {"loss": loss}, better)
    lane.progress = replace(lane.progress, looked_back=True)
    spent = _out_of_patience(lane)
    if last or spent or better or step % (training.save_every or lane.epoch_steps) == 0:
        yield _save(lane, ranks)
    if last or spent:
        yield from _finish(lane)


def _out_of_patience(lane: Lane) -> bool:
    patience = lane.job.training.patience
    return patience is not None and lane.progress.worse >= patience


def _save(lane: Lane, ranks: Ranks) -> Saved:
    def save() -> Path:
        folder, progress = lane.job.checkpoints, lane.progress
        path = checkpoint.save(folder, progress, lane.slot.tensors(), lane.optimizer.state())
        checkpoint.rotate(folder, {progress.step} | ({progress.best_step} if progress.best_step else set()))
        return path

    return Saved(lane.job.run, lane.progress.step, time.time(), str(ranks.by_lead(save)))


def _halt(lane: Lane, ranks: Ranks) -> Iterator[Event]:
    lane.live = False
    lane.optimizer.zero()
    yield _save(lane, ranks)
    yield Finished(
        lane.job.run, lane.progress.step, time.time(), "stopped", "asked to stop; the same command continues"
    )


def _finish(lane: Lane) -> Iterator[Event]:
    """Put the best weights back and say how it ended."""
    lane.live = False
    progress = lane.progress
    reason = f"{progress.step} updates"
    if progress.best_step is not None and progress.best_step != progress.step:
        best = checkpoint.at(lane.job.checkpoints, progress.best_step)
        checkpoint.restore(lane.slot.tensors(), best.weights(), best.path)
        reason += f"; kept the weights of update {progress.best_step}, where the validation loss was lowest"
    if _out_of_patience(lane) and progress.step < lane.steps:
        reason += f"; stopped early: no better for {progress.worse} evaluations"
    yield Finished(lane.job.run, progress.step, time.time(), "done", reason)
