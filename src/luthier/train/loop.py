"""The one loop: `train(tuned, jobs)` trains every slot of a base and yields events.

A turn of the loop is one update of every live slot. Their examples ride the same micro-batches, each slot's loss is
divided by its own count of trained tokens, one backward pass fills all gradients, each slot clips and steps at its own
rate. No slot can feel another. Between turns slots are evaluated, saved, ended and, where a job ended, filled again.

Lives here: the order of things. Does not live here: one slot's way through its job (`lanes.py`), what a slot brings to
a micro-batch (`shares.py`, `data/batches.py`), what is trained (`models/methods.py`), files (`checkpoint.py`), what is
done with events (`worker.py` and whoever listens).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch

from luthier.data.batches import Share, stored_tokens
from luthier.data.examples import Encoded
from luthier.data.rows import TOGETHER
from luthier.errors import ModelError, TrainingError
from luthier.models.forward import Batch
from luthier.models.lora import mix
from luthier.models.methods import Tuned
from luthier.models.slots import Slot
from luthier.runs import Event, Finished, Noted, State
from luthier.train.lanes import Job, Lane, begin, drawn, halt, lane_of, look_back, update
from luthier.train.ranks import ALONE, Parted, Ranks
from luthier.train.room import TOKEN_BUDGET, Room, out_of_memory
from luthier.train.shares import entries_by_slot, lay_out, longest_batch, share, step_share

STOPPED = "asked to stop; the same command continues"
Worth = dict[str, tuple[float, float]]
"""Of validation rows by id: the row's negative log-likelihood, and the trained tokens it is the sum of."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the loop asks whoever runs it.

    `stop`, between micro-batches: whether all should save where they are and end.
    `ends(run)`, of every live job between turns, so after each of its evaluations: how and why it should end now
    (pruned, stopped, failed), if it should. It saves its checkpoint and ends; the others go on.
    `more`, between turns for every free slot: the next job for it, whose `method` is hung there; None leaves it free.
    `measure(slots)`: further scores of the slots that are being evaluated, of all of them together, in their order.
    It may raise Asked. Which weights are best stays decided by the validation loss.
    `weigh(slot, rows)`: told at each evaluation what the validation rows of this process were worth in that slot.
    """

    stop: Callable[[], bool] = lambda: False
    ends: Callable[[str], tuple[State, str] | None] = lambda run: None
    more: Callable[[], Job | None] = lambda: None
    measure: Callable[[Sequence[int]], list[dict[str, float]]] | None = None
    weigh: Callable[[int, Worth], None] | None = None


NONE = Wishes()


class Asked(Exception):
    """Somebody asked to stop; whatever is half done is forgotten."""


@dataclass(frozen=True, slots=True)
class Wave:
    """What trains together: the lanes under way by their slots, at most `places` of them, and what a turn needs."""

    tuned: Tuned
    places: int
    wishes: Wishes
    room: Room
    ranks: Ranks
    lanes: dict[int, Lane] = field(default_factory=dict)

    def live(self) -> list[Lane]:
        """The lanes that go on, in the order of their slots; the others are let go, with all they hold."""
        for index in [index for index, lane in self.lanes.items() if not lane.live]:
            del self.lanes[index]
        return [self.lanes[index] for index in sorted(self.lanes)]


def train(
    tuned: Tuned,
    jobs: Sequence[Job],
    wishes: Wishes = NONE,
    budget: int = TOKEN_BUDGET,
    halved: Callable[[int], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> Generator[Event, None, None]:
    """Train slot i of `tuned` on job i, then on what `wishes.more` gives, until nothing is left.

    For a job beyond the slots of `tuned` its `method` is hung on the base. When a job's `Finished` is told, its slot
    holds its best weights (its last, where it ended early): whoever wants them takes them then, for the next job may
    get the slot. A job whose method cannot share the base, or which cannot begin in the slot made for it, ends as
    `failed`, alone.

    Resumes each job from its newest checkpoint that verifies. When `wishes.stop` says yes the unfinished update or
    evaluation is forgotten, every live job saves and ends as `stopped`. `budget` is the number of stored tokens that
    fit in a micro-batch; it changes no result beyond float32 rounding (but for full tuning of a base with dropout,
    whose draws follow the micro-batches). Where memory ends before the budget does, it is halved, `halved` is told, and
    what was half done is done again; a new run tries its longest micro-batch first.

    Of several processes (`ranks`) each calls this with the same jobs, and wishes that answer alike but for `stop`; all
    see the same events, rank 0 saves.

    Raises TrainingError where a checkpoint or an example does not fit, or the disk is full.
    """
    beyond = list(jobs[len(tuned.slots) :])
    asked = replace(wishes, stop=ranks.together(wishes.stop), more=lambda: beyond.pop(0) if beyond else wishes.more())
    wave = Wave(tuned, max(len(jobs), len(tuned.slots)), asked, Room(budget, 0, halved), ranks)
    yield from _open(wave, jobs)
    try:
        yield from _between_turns(wave)
        while wave.live():
            yield from _turn(wave)
            yield from _between_turns(wave)
    except Asked:
        for lane in wave.live():
            yield from halt(lane, "stopped", STOPPED, ranks)


def validation_losses(
    tuned: Tuned,
    slots: Sequence[Slot],
    rows: Sequence[Encoded],
    stop: Callable[[], bool] = lambda: False,
    budget: int = TOKEN_BUDGET,
    ranks: Ranks = ALONE,
    weigh: Callable[[int, Worth], None] | None = None,
) -> list[float]:
    """Each slot's mean negative log-likelihood per trained token (per example for classes), of all slots in one pass.

    `weigh` is told, slot by slot, what each row of this process was worth. Raises Asked when `stop` says yes.
    """
    wholes = [share(slot, rows, share_prefixes=True) for slot in slots]
    losses, asked = {slot.index: 0.0 for slot in slots}, False
    worth: dict[int, Worth] = {slot.index: {} for slot in slots}
    with torch.no_grad():
        for batch in _in_parts(tuned, wholes, budget, ranks):
            if asked := stop():
                break
            nll_S, _ = tuned.nll(batch)
            weights_S = torch.from_numpy(batch.weights_S).to(nll_S.device).double()
            for slot, mine in entries_by_slot(batch):
                losses[slot] += float(nll_S[mine].double() @ weights_S[mine])
                if weigh is not None:
                    worth[slot] |= _worth(batch, mine, nll_S)
    *totals, wished = ranks.sum([*losses.values(), asked])
    if wished:
        raise Asked
    if weigh is not None:
        for index, found in worth.items():
            weigh(index, found)
    return totals


def _worth(batch: Batch, mine: slice, nll_S: torch.Tensor) -> Worth:
    """What the rows of one slot were worth: a token that rows share counts in each of them."""
    nll = nll_S.double().cpu().numpy()
    rows = zip(batch.example_ids, batch.entries, strict=True)
    return {
        name: (float(nll[at].sum()), float(len(at))) for name, at in rows if len(at) and mine.start <= at[0] < mine.stop
    }


def _in_parts(tuned: Tuned, wholes: Sequence[Share], budget: int, ranks: Ranks) -> Iterator[Batch]:
    """Micro-batches of many rows, not all of which need be in memory at once."""
    for k in range(0, len(wholes[0].examples), TOGETHER):
        some = [replace(whole, examples=whole.examples[k : k + TOGETHER]) for whole in wholes]
        yield from ranks.in_step(lay_out(tuned, ranks.part(some), budget))


# -------------------------------------------------------------------------------------------------------------- begin


def _open(wave: Wave, jobs: Sequence[Job]) -> Iterator[Event]:
    """Begin the jobs; where all of them are new, try the longest micro-batch before anything is learned."""
    lanes = [lane_of(slot, job) for slot, job in zip(wave.tuned.slots, jobs, strict=False)]
    for lane in lanes:
        yield from _begin(wave, lane)
    yield from _fill(wave)
    lanes = wave.live()
    if lanes and len(lanes) == len(jobs) and all(lane.progress.step == 0 for lane in lanes):
        yield from _within_memory(wave, lanes, partial(_rehearse, wave.tuned, lanes))


def _begin(wave: Wave, lane: Lane) -> Iterator[Event]:
    if lane.job.training.gradient_checkpointing:
        wave.tuned.checkpoint_activations()
    wave.room.longest = max(wave.room.longest, lane.longest)
    yield from begin(lane, wave.ranks)
    if lane.live:
        wave.lanes[lane.slot.index] = lane


def _fill(wave: Wave) -> Generator[Event, None, bool]:
    """Begin further jobs where slots are free, as long as there are any; gives whether one has begun."""
    began = False
    while len(wave.live()) < wave.places and (job := wave.wishes.more()) is not None:
        free = next(index for index in range(wave.places) if index not in wave.lanes)
        yield from _hang(wave, free, job)
        began = True
    return began


def _hang(wave: Wave, index: int, job: Job) -> Iterator[Event]:
    """Begin a job in a fresh slot. What is wrong with it ends it, and nobody else."""
    try:
        if job.method is None:
            raise TrainingError("the job has no slot, and names no method to make one of")
        slot = wave.tuned.hang(index, job.method, job.seed)
        yield from _begin(wave, lane_of(slot, job))
    except Parted:
        raise
    except (ModelError, TrainingError) as error:
        yield Finished(job.run, 0, time.time(), "failed", "; ".join(filter(None, (error.message, error.hint))))


def _rehearse(tuned: Tuned, lanes: Sequence[Lane], budget: int) -> None:
    """Forward and backward through the longest micro-batch, for its memory alone; nothing is learned from it."""
    for lane in lanes:
        lane.optimizer.state()  # both moments take their place beside it
    work = [(lane.slot, lane.job.training, lane.job.train) for lane in lanes]
    _weighted(tuned, longest_batch(tuned, work, budget), {lane.slot.index: 0 for lane in lanes}).sum().backward()
    for lane in lanes:
        lane.optimizer.zero()


# ------------------------------------------------------------------------------------------------------------- a turn


def _turn(wave: Wave) -> Iterator[Event]:
    """One update of every live slot; its seconds are theirs by their tokens, so that all trials' make the process's."""
    lanes, started = wave.live(), time.monotonic()
    yield from _within_memory(wave, lanes, partial(_accumulate, wave, lanes))
    seconds, tokens = time.monotonic() - started, sum(lane.tokens for lane in lanes)
    for lane in lanes:
        yield from update(lane, seconds * lane.tokens / tokens)


def _within_memory(wave: Wave, lanes: Sequence[Lane], work: Callable[[int], T]) -> Generator[Event, None, T]:
    """What `work` gives with the room's budget. Where memory ends, half done gradients are forgotten, the budget is
    halved, and `work` begins again: any budget gives the same result."""
    while True:
        try:
            return work(wave.room.tokens)
        except (MemoryError, RuntimeError) as error:
            problem = out_of_memory(error)
            if problem is None or wave.ranks.sharded:  # the others wait in a layer that this process cannot enter again
                raise
        told = wave.room.halve(problem)  # here the error and all that its frames held are gone
        for lane in lanes:
            lane.optimizer.zero()
            yield Noted(lane.job.run, lane.progress.step, time.time(), "memory", told)


def _accumulate(wave: Wave, lanes: Sequence[Lane], budget: int) -> None:
    """Gradients and losses of one update for every lane. Raises Asked when `stop` says yes, in any process."""
    tuned, ranks, shares = wave.tuned, wave.ranks, []
    for lane in lanes:
        rows = drawn(lane)
        shares.append(step_share(tuned, lane.slot, lane.job.training, rows))
        lane.tokens = stored_tokens(rows, share_prefixes=False)
    losses = {lane.slot.index: 0.0 for lane in lanes}
    steps = {lane.slot.index: lane.progress.step for lane in lanes}
    asked = False
    for micro, batch in enumerate(ranks.in_step(lay_out(tuned, ranks.part(shares), budget))):
        if asked := wave.wishes.stop():
            break
        if tuned.full:  # the base's own dropout draws from torch's global state: seeded here, nothing to save
            torch.manual_seed(mix(lanes[0].job.seed, f"{lanes[0].progress.step}.{micro * ranks.count + ranks.rank}"))
        weighted_S = _weighted(tuned, batch, steps)
        weighted_S.sum().backward()
        values = weighted_S.detach().double().cpu().numpy()
        for slot, mine in entries_by_slot(batch):
            losses[slot] += float(values[mine].sum())
    wished, *summed = ranks.sum([asked, *losses.values()])  # what all hear, before any of them goes on
    if wished:
        raise Asked
    ranks.sum_gradients([lane.slot for lane in lanes])
    for lane, loss in zip(lanes, summed, strict=True):
        lane.loss = loss


def _weighted(tuned: Tuned, batch: Batch, steps: dict[int, int]) -> torch.Tensor:
    """Each entry's part of the update's loss, `(S,)`: its nll times its weight."""
    nll_S, _ = tuned.nll(batch, steps)
    return nll_S * torch.from_numpy(batch.weights_S).to(nll_S.device)


# ------------------------------------------------------------------------------------------------------ between turns


def _between_turns(wave: Wave) -> Iterator[Event]:
    """Evaluate, save and finish where due, end who should end, fill what is free; until nobody new has begun."""
    began = True
    while began:
        yield from _look_back(wave)
        yield from _heed(wave)
        began = yield from _fill(wave)


def _look_back(wave: Wave) -> Iterator[Event]:
    """After an update: evaluate, save, finish, where due. Done once an update, also when stopped in between."""
    lanes = [lane for lane in wave.live() if not lane.progress.looked_back]
    scores = yield from _evaluate(wave, [lane for lane in lanes if lane.to_evaluate])
    for lane in lanes:
        yield from look_back(lane, scores.get(lane.slot.index), wave.ranks)


def _evaluate(wave: Wave, lanes: Sequence[Lane]) -> Generator[Event, None, dict[int, dict[str, float]]]:
    """Scores on the validation rows by slot; slots that have the same rows are asked in one pass."""
    together: dict[int, list[Lane]] = {}
    for lane in lanes:
        together.setdefault(id(lane.job.validation), []).append(lane)
    scores: dict[int, dict[str, float]] = {}
    for some in together.values():
        slots, rows = [lane.slot for lane in some], some[0].job.validation
        ask = partial(
            validation_losses, wave.tuned, slots, rows, wave.wishes.stop, ranks=wave.ranks, weigh=wave.wishes.weigh
        )
        losses = yield from _within_memory(wave, some, ask)
        scores |= {slot.index: {"loss": loss} for slot, loss in zip(slots, losses, strict=True)}
    if lanes and wave.wishes.measure is not None:
        indices = [lane.slot.index for lane in lanes]
        for index, further in zip(indices, wave.wishes.measure(indices), strict=True):
            scores[index] |= further
    return scores


def _heed(wave: Wave) -> Iterator[Event]:
    """End the lanes that should end now, by whoever runs the loop."""
    for lane in wave.live():
        end = wave.wishes.ends(lane.job.run)
        if end is not None:
            yield from halt(lane, *end, wave.ranks)
