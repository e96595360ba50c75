"""What the loop promises whoever runs many jobs: who is asked what and when, what is computed once, what is let go."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from luthier import runs, spec
from luthier.data.examples import Encoded
from luthier.models.lora import LoraLinear
from luthier.models.methods import Method, attach
from luthier.runs import Evaluated, Event, Finished, Started, Stepped
from luthier.train import checkpoint
from luthier.train.loop import Asked, Job, Wishes, train
from tests.equivalence.workbench import LORA, PROMPT, Tiny, load, rows

PLAIN = spec.Training(batch_size=4, accumulate_steps=1, max_steps=2, learning_rate=1e-2, warmup=0.0, weight_decay=0.0)
ROWS = rows("causal")
JUDGES = ROWS[:3]


def _job(folder: Path, name: str, method: Method = LORA, validation: Sequence[Encoded] = JUDGES, **said: object) -> Job:
    training = spec.Training(**PLAIN.model_dump() | said)
    return Job(name, training, 0, ROWS, validation, folder / name, method)


def _of(events: Sequence[Event], kind: type, run: str) -> list:
    return [event for event in events if isinstance(event, kind) and event.run == run]


def test_slots_with_the_same_rows_are_evaluated_in_one_pass(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two share their rows and are due together; one has rows of its own, one is due at other times."""
    jobs = [_job(tmp_path, "a"), _job(tmp_path, "b", PROMPT), _job(tmp_path, "c", validation=list(JUDGES))]
    jobs.append(_job(tmp_path, "d", evaluate_every=1))
    tuned, asked = attach(load(tiny, "tiny_llama"), [], []), []
    plain = tuned.nll
    tuned.nll = lambda batch, steps=None: (  # type: ignore[method-assign]
        asked.append([slot for slot, _, _ in batch.ranges]) if steps is None else None,
        plain(batch, steps),
    )[1]
    events = list(train(tuned, jobs))
    assert asked == [[3], [0, 1, 3], [2]]
    monkeypatch.undo()
    for job in jobs:
        alone = list(train(attach(load(tiny, "tiny_llama"), [job.method], [0]), [_alone(job)]))
        ours, theirs = (_of(told, Evaluated, job.run)[-1].scores["loss"] for told in (events, alone))
        assert ours == pytest.approx(theirs, abs=1e-5)


def _alone(job: Job) -> Job:
    return replace(job, checkpoints=job.checkpoints.with_name(f"{job.run}-alone"))


def test_further_scores_are_asked_for_all_together_and_do_not_decide(tiny: Tiny, tmp_path: Path) -> None:
    """The measure says the second evaluation is worse; the loss says it is better."""
    jobs = [_job(tmp_path, "a", evaluate_every=1), _job(tmp_path, "b", max_steps=1, num_epochs=1)]
    asked: list[list[int]] = []

    def measure(slots: Sequence[int]) -> list[dict[str, float]]:
        asked.append(list(slots))
        return [{"exact_match": 1.0 / len(asked) + slot} for slot in slots]

    tuned = attach(load(tiny, "tiny_llama"), [LORA, LORA], [0, 0])
    events = list(train(tuned, jobs, Wishes(measure=measure)))
    assert asked == [[0, 1], [0]]
    assert [event.scores["exact_match"] for event in _of(events, Evaluated, "a")] == [1.0, 0.5]
    assert [event.scores["exact_match"] for event in _of(events, Evaluated, "b")] == [2.0]
    assert [event.best for event in _of(events, Evaluated, "a")] == [True, True]
    assert all(set(event.scores) == {"loss", "exact_match"} for event in events if isinstance(event, Evaluated))


def test_a_stop_within_a_measure_is_made_up_for(tiny: Tiny, tmp_path: Path) -> None:
    def measure(slots: Sequence[int]) -> list[dict[str, float]]:
        raise Asked

    job = _job(tmp_path, "a", evaluate_every=1)
    events = list(train(attach(load(tiny, "tiny_llama"), [LORA], [0]), [job], Wishes(measure=measure)))
    assert events[-1].state == "stopped" and not _of(events, Evaluated, "a")
    found, _ = checkpoint.newest(job.checkpoints)
    assert found is not None and (found.progress.step, found.progress.looked_back) == (1, False)
    rest = list(train(attach(load(tiny, "tiny_llama"), [LORA], [0]), [job]))
    assert [event.step for event in _of(rest, Evaluated, "a")] == [1, 2]


def test_the_best_weights_are_there_when_the_end_is_told_and_nothing_of_them_afterwards(
    tiny: Tiny, tmp_path: Path
) -> None:
    """A rate that destroys keeps early weights; the next job in the slot finds nothing of the one before it, in memory
    neither its numbers nor its moments."""
    wild = _job(tmp_path, "wild", learning_rate=3.0, schedule="constant", max_steps=20, evaluate_every=1, patience=2)
    beside = _job(tmp_path, "beside", max_steps=22)
    later = iter([_job(tmp_path, "next", PROMPT)])
    tuned = attach(load(tiny, "tiny_llama"), [LORA, LORA], [0, 1])
    held: list[weakref.ref] = []
    for event in train(tuned, [wild, beside], Wishes(more=lambda: next(later, None))):
        if isinstance(event, Finished) and event.run == "wild":
            slot = tuned.slots[0]
            best = checkpoint.newest(wild.checkpoints)[0].progress.best_step
            assert best < event.step and "kept the weights of update" in event.reason
            kept = checkpoint.at(wild.checkpoints, best).weights()
            assert all(torch.equal(kept[name], tensor) for name, tensor in slot.tensors().items())
            held = [weakref.ref(t) for flat in slot.flats for t in (flat.values, flat.grads)]
            held += [weakref.ref(leaf) for leaf in slot.leaves.values()]
            del slot
        if isinstance(event, Started) and event.run == "next":
            assert held and all(ref() is None for ref in held)
            assert tuned.slots[0].method is PROMPT and tuned.slots[0].trainable_parameters == 3 * 32
            adapters = [m.adapters for m in tuned.base.model.modules() if isinstance(m, LoraLinear)]
            assert adapters and all(set(each) == {1} for each in adapters)


def test_a_job_that_is_ended_as_done_keeps_its_best_weights_and_is_never_gone_on_with(
    tiny: Tiny, tmp_path: Path
) -> None:
    wild = _job(tmp_path, "wild", learning_rate=3.0, schedule="constant", max_steps=20, evaluate_every=1)

    def ends(run: str) -> tuple[runs.State, str] | None:
        return ("done", "it over-fits") if looks and not looks[-1].best else None

    looks: list[Evaluated] = []
    for again in (False, True):
        tuned = attach(load(tiny, "tiny_llama"), [LORA], [0])
        events = []
        for event in train(tuned, [wild], Wishes(ends=ends)):
            events.append(event)
            looks += [event] if isinstance(event, Evaluated) else []
        end, found = events[-1], checkpoint.newest(wild.checkpoints)[0]
        worse = looks[-1].step
        assert isinstance(end, Finished) and (end.state, end.step) == ("done", worse) and worse == found.progress.step
        best = found.progress.best_step
        assert best < worse < 20 and end.reason.startswith(f"it over-fits; kept the weights of update {best}")
        kept = checkpoint.at(wild.checkpoints, best).weights()
        assert all(torch.equal(kept[name], tensor) for name, tensor in tuned.slots[0].tensors().items())
        assert len(_of(events, Stepped, "wild")) == (0 if again else worse)


def test_free_slots_are_asked_for_again_and_none_leaves_them_free(tiny: Tiny, tmp_path: Path) -> None:
    """A slot that nothing was there for is filled when something comes; the loop ends when all is done."""
    answers = iter([None, None, _job(tmp_path, "late"), None, _job(tmp_path, "later", max_steps=1)])
    tuned = attach(load(tiny, "tiny_llama"), [LORA, LORA], [0, 1])
    jobs = [_job(tmp_path, "first", max_steps=4)]
    events = list(train(tuned, jobs, Wishes(more=lambda: next(answers, None))))
    order = [(type(event).__name__, event.run, event.step) for event in events if isinstance(event, Started | Stepped)]
    assert order[:3] == [("Started", "first", 0), ("Stepped", "first", 1), ("Started", "late", 0)]
    assert {event.run for event in events if isinstance(event, Finished)} == {"first", "late", "later"}
    assert len(tuned.slots) == 2


def test_whether_to_end_is_asked_after_each_evaluation_and_between_turns(tiny: Tiny, tmp_path: Path) -> None:
    told: list[object] = []
    job = _job(tmp_path, "a", evaluate_every=2, max_steps=4)

    def ends(run: str) -> tuple[str, str] | None:
        told.append(run)
        return ("pruned", "weak") if told.count("evaluated") == 1 else None

    events = []
    for event in train(attach(load(tiny, "tiny_llama"), [LORA], [0]), [job], Wishes(ends=ends)):
        told += ["evaluated"] if isinstance(event, Evaluated) else []
        events.append(event)
    assert told == ["a", "a", "evaluated", "a"]
    assert (events[-1].state, events[-1].reason, events[-1].step) == ("pruned", "weak", 2)
    found, _ = checkpoint.newest(job.checkpoints)
    assert found is not None and (found.progress.step, found.progress.looked_back) == (2, True)


def test_memory_that_ends_with_a_new_job_is_found_in_smaller_micro_batches(tiny: Tiny, tmp_path: Path) -> None:
    """The longest example is that of the job at hand: a budget below it would divide nothing."""
    tuned = attach(load(tiny, "tiny_llama"), [LORA], [0])
    later = iter([replace(_job(tmp_path, "next"), train=[*ROWS, replace(ROWS[0], example_id="long")])])
    plain, halves = tuned.nll, []

    def short(batch, steps=None):
        if "long" in batch.example_ids and len(batch.example_ids) > 1:
            raise MemoryError
        return plain(batch, steps)

    tuned.nll = short  # type: ignore[method-assign]
    events = list(train(tuned, [_job(tmp_path, "a")], Wishes(more=lambda: next(later, None)), 64, halves.append))
    assert halves and [event.state for event in events if isinstance(event, Finished)] == ["done", "done"]
