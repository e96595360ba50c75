"""A lane: one slot on its way through its job, from where it begins to how it ends.

Lives here: what a job is, resuming it, the examples of its updates, one update, saving, the ways to end. Does not live
here: when any of that is due (`loop.py`), what a checkpoint is (`checkpoint.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from luthier.data.batches import epoch_order, grouped_order
from luthier.data.examples import Encoded
from luthier.data.rows import lengths
from luthier.errors import TrainingError
from luthier.models.slots import Method, Slot
from luthier.runs import Evaluated, Event, Finished, Noted, Saved, Started, State, Stepped
from luthier.spec import Training, batches_per_epoch, steps_per_epoch
from luthier.train import checkpoint
from luthier.train.checkpoint import Progress
from luthier.train.optimizer import SlotOptimizer
from luthier.train.ranks import Ranks

BAD_STEPS_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Job:
    """One slot's work. `training` has every value resolved; `checkpoints` is the folder to save in and resume from.

    `method`: what to hang on the base for it, where no slot is there yet or one has become free.
    """

    run: str
    training: Training
    seed: int
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    checkpoints: Path
    method: Method | None = None


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

    @property
    def longest(self) -> int:
        """Tokens of the longest example, virtual ones included."""
        splits = (self.job.train, self.job.validation)
        return max(int(lengths(rows).max(initial=0)) for rows in splits) + self.slot.virtual_tokens

    @property
    def last(self) -> bool:
        """Whether all planned updates are done."""
        return self.progress.step == self.steps

    @property
    def to_evaluate(self) -> bool:
        """Whether the validation rows are due after the update just made."""
        every = self.job.training.evaluate_every or self.epoch_steps
        return len(self.job.validation) > 0 and (self.last or self.progress.step % every == 0)

    @property
    def to_save(self) -> bool:
        """Whether a checkpoint is due after the update just made, however it was judged."""
        every = self.job.training.save_every or self.epoch_steps
        return self.last or self.out_of_patience or self.progress.step % every == 0

    @property
    def out_of_patience(self) -> bool:
        patience = self.job.training.patience
        return patience is not None and self.progress.worse >= patience


def lane_of(slot: Slot, job: Job) -> Lane:
    """A lane at its beginning. Raises TrainingError where there is nothing to train on."""
    training = job.training
    if not job.train:
        raise TrainingError("there is nothing to train on: no example is left", hint="look at `luthier plan`")
    batches = batches_per_epoch(len(job.train), training.batch_size)
    epoch_steps = steps_per_epoch(batches, training.accumulate_steps)
    steps = training.max_steps or epoch_steps * training.num_epochs
    return Lane(slot, job, SlotOptimizer(slot, training, steps), epoch_steps, steps, Progress())


def begin(lane: Lane, ranks: Ranks) -> Iterator[Event]:
    """Go on from the newest checkpoint that verifies; a job that was done before ends here."""
    job = lane.job
    found, complaints = ranks.by_lead(lambda: checkpoint.newest(job.checkpoints))
    for complaint in complaints:
        yield Noted(job.run, 0, time.time(), "checkpoint", complaint)
    if found is not None:
        checkpoint.restore(lane.slot.tensors(), found.weights(), found.path)
        checkpoint.restore(lane.optimizer.state(), found.optimizer(), found.path)
        lane.progress = found.progress
        ranks.by_lead(lambda: _rotate(lane))  # the attempt before may have died before it did
    over = lane.progress.step >= lane.steps or lane.out_of_patience or bool(lane.progress.ended)
    lane.live = not (lane.progress.looked_back and over)
    if job.training.patience is not None and not job.validation:
        yield Noted(job.run, 0, time.time(), "patience", "`training.patience` has no effect without validation rows")
    yield Started(job.run, lane.progress.step, time.time(), lane.steps, len(job.train), lane.slot.trainable_parameters)
    if not lane.live:
        yield from finish(lane)


def drawn(lane: Lane) -> list[Encoded]:
    """The examples of the update at hand: a slice of the epoch's order, `batch_size × accumulate_steps` long."""
    rows, training, seed = lane.job.train, lane.job.training, lane.job.seed
    size = training.batch_size * training.accumulate_steps
    epoch, place = divmod(lane.progress.step, lane.epoch_steps)
    if lane.order[0] != epoch:
        grouped = training.batching == "grouped"
        order = grouped_order(rows, size, seed, epoch) if grouped else epoch_order(len(rows), seed, epoch)
        lane.order = (epoch, order)
    return [rows[i] for i in lane.order[1][place * size : (place + 1) * size]]


def update(lane: Lane, seconds: float) -> Iterator[Event]:
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
    rows = tuple(row.example_id for row in drawn(lane))
    lane.optimizer.zero()
    in_a_row = before.skipped_in_a_row + 1
    lane.progress = replace(after, skipped=before.skipped + 1, skipped_in_a_row=in_a_row)
    message = f"update {after.step} skipped: loss {lane.loss}, gradient norm {norm}"
    yield Noted(job.run, after.step, time.time(), "not_finite", message, rows)
    if in_a_row == BAD_STEPS_IN_A_ROW:
        lane.live = False
        reason = f"{BAD_STEPS_IN_A_ROW} updates in a row were not finite; a lower `training.learning_rate` may help"
        yield Finished(job.run, after.step, time.time(), "failed", reason)


def look_back(lane: Lane, scores: dict[str, float] | None, ranks: Ranks) -> Iterator[Event]:
    """After an update: note its scores if it was evaluated, save and finish where due."""
    better = False
    if scores is not None:
        loss, best, step = scores["loss"], lane.progress.best_loss, lane.progress.step
        better = math.isfinite(loss) and (best is None or loss < best)
        if better:
            lane.progress = replace(lane.progress, best_loss=loss, best_step=step, worse=0)
        else:
            lane.progress = replace(lane.progress, worse=lane.progress.worse + 1)
        yield Evaluated(lane.job.run, step, time.time(), scores, better)
    lane.progress = replace(lane.progress, looked_back=True)
    if better or lane.to_save:
        yield save(lane, ranks)
    if lane.last or lane.out_of_patience:
        yield from finish(lane)


def save(lane: Lane, ranks: Ranks) -> Saved:
    """Write a checkpoint of where the lane is, and let those go that nobody will want."""

    def write() -> Path:
        path = checkpoint.save(lane.job.checkpoints, lane.progress, lane.slot.tensors(), lane.optimizer.state())
        _rotate(lane)
        return path

    return Saved(lane.job.run, lane.progress.step, time.time(), str(ranks.by_lead(write)))


def _rotate(lane: Lane) -> None:
    progress = lane.progress
    checkpoint.rotate(lane.job.checkpoints, {progress.step} | ({progress.best_step} if progress.best_step else set()))


def halt(lane: Lane, state: State, reason: str, ranks: Ranks) -> Iterator[Event]:
    """End before all is done: what is half done is forgotten, the rest is saved, and a later job may go on with it.

    "done": nothing more is to be learned, then or later, and the best weights count as those of any job.
    """
    lane.live = False
    lane.optimizer.zero()
    if state == "done":
        lane.progress = replace(lane.progress, ended=reason)
    yield save(lane, ranks)
    if state == "done":
        yield from finish(lane)
        return
    yield Finished(lane.job.run, lane.progress.step, time.time(), state, reason)


def finish(lane: Lane) -> Iterator[Event]:
    """Put the best weights back and say how it ended."""
    lane.live = False
    progress = lane.progress
    reason = progress.ended or f"{progress.step} updates"
    if progress.best_step is not None and progress.best_step != progress.step:
        best = checkpoint.at(lane.job.checkpoints, progress.best_step)
        checkpoint.restore(lane.slot.tensors(), best.weights(), best.path)
        reason += f"; kept the weights of update {progress.best_step}, where the validation loss was lowest"
    if lane.out_of_patience and progress.step < lane.steps:
        reason += f"; stopped early: no better for {progress.worse} evaluations"
    yield Finished(lane.job.run, progress.step, time.time(), "done", reason)
