"""Equivalence 2 for a stream of jobs: in any company, slots refilled, pruned or resumed, each is what it is alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from luthier import spec
from luthier.models.methods import Method, Tuned, attach
from luthier.runs import Evaluated, Event, Finished, Started, Stepped
from luthier.train.loop import Job, Wishes, train
from tests.equivalence.workbench import Tiny, assert_close, load, rows
from tests.tiny import family


@dataclass(frozen=True)
class Trial:
    """What is tried: a method, and what differs from a plain training."""

    method: Method
    seed: int = 0
    training: dict[str, object] = field(default_factory=dict)

    def job(self, folder: Path, name: str, kind: str) -> Job:
        plain: dict[str, object] = {"batch_size": 2, "accumulate_steps": 1, "num_epochs": 1, "learning_rate": 1e-2}
        training = spec.Training(**plain | {"warmup": 0.0, "weight_decay": 0.01, "evaluate_every": 2} | self.training)
        examples = ROWS[family(kind)]
        return Job(name, training, self.seed, examples, JUDGES[family(kind)], folder / name, self.method)


ROWS = {name: rows(name, count=9) for name in ("causal", "seq2seq", "encoder")}
JUDGES = {name: some[:4] for name, some in ROWS.items()}


def _lora(rank: int, alpha: float, targets: Sequence[str], dropout: float = 0.0, rslora: bool = False) -> spec.Lora:
    return spec.Lora(rank=rank, alpha=alpha, dropout=dropout, target_modules=tuple(targets), rslora=rslora)


def _prompt(length: int, text: str | None = None, init: str = "text") -> spec.PromptTuning:
    return spec.PromptTuning(virtual_tokens=length, init_method=init, init_text=text)


def _trials(some: Sequence[str], others: Sequence[str]) -> dict[str, Trial]:
    """Trials that differ in all they may; `some` and `others` are layers of the base."""
    return {
        "plain": Trial(_lora(4, 8, some)),
        "short": Trial(_lora(1, 2, others), 3, {"max_steps": 3, "schedule": "constant", "batch_size": 1}),
        "prompt": Trial(_prompt(3, init="vocabulary"), 5, {"learning_rate": 5e-2, "batch_size": 3, "warmup": 2}),
        "pruned": Trial(_lora(2, 2, ["all-linear"]), 4, {"num_epochs": 3, "evaluate_every": 3}),
        "dropped": Trial(_lora(2, 4, some, 0.3, True), 6, {"num_epochs": 2, "schedule": "cosine", "weight_decay": 0.2}),
        "text": Trial(_prompt(5, "Classify the ticket:"), 7, {"accumulate_steps": 2, "num_epochs": 2}),
        "wide": Trial(_lora(8, 4, others, 0.1), 8, {"batch_size": 4, "max_grad_norm": 0.1, "num_epochs": 2}),
        "random": Trial(_prompt(2, init="random"), 9, {"max_steps": 4, "share_prefixes": False}),
    }


LAYERS = {
    "tiny_llama": (["q_proj", "v_proj"], ["down_proj", "o_proj"]),
    "tiny_bart": (["q_proj", "v_proj"], ["fc1", "fc2"]),
    "tiny_bert": (["query", "value"], ["intermediate.dense"]),
}


@dataclass
class Told:
    """What became of each run: its losses, what its evaluations gave, its weights when its end was told."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    scores: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    ends: dict[str, Finished] = field(default_factory=dict)
    weights: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)

    def hear(self, events: Iterator[Event], tuned: Tuned, jobs: Callable[[str], Job]) -> Told:
        """Listen; who has which slot is known by what its method makes of it, when its end is told."""
        for event in events:
            if isinstance(event, Stepped):
                self.losses.setdefault(event.run, []).append(event.loss)
            elif isinstance(event, Evaluated):
                self.scores.setdefault(event.run, []).append((event.step, event.scores["loss"]))
            elif isinstance(event, Finished):
                self.ends[event.run] = event
                job = jobs(event.run)
                (slot,) = [s for s in tuned.slots if s.method is job.method and s.seed == job.seed]
                self.slots[event.run] = slot.index
                self.weights[event.run] = {name: tensor.clone() for name, tensor in slot.tensors().items()}
        return self


def _alone(tiny: Tiny, kind: str, job: Job) -> Told:
    tuned = attach(load(tiny, kind), [job.method], [job.seed])
    return Told().hear(train(tuned, [job], budget=200), tuned, lambda _: job)


def _assert_alike(told: Told, alone: Told, run: str) -> None:
    assert told.losses[run] == pytest.approx(alone.losses[run], abs=2e-5), run
    assert [step for step, _ in told.scores[run]] == [step for step, _ in alone.scores[run]]
    for (_, ours), (_, theirs) in zip(told.scores[run], alone.scores[run], strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5), run
    assert told.ends[run].state == alone.ends[run].state == "done"
    assert told.ends[run].reason == alone.ends[run].reason
    assert told.weights[run].keys() == alone.weights[run].keys()
    for name, weights in told.weights[run].items():
        assert_close(weights, alone.weights[run][name], f"{run}: {name}", atol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_stream_of_unlike_jobs_equals_each_alone(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    """Three slots, eight jobs, one pruned on its way: step by step, evaluation by evaluation, weight by weight."""
    trials = _trials(*LAYERS[kind])
    jobs = {name: trial.job(tmp_path / "together", name, kind) for name, trial in trials.items()}
    first, later = list(jobs.values())[:3], iter(list(jobs.values())[3:])
    tuned = attach(load(tiny, kind), [job.method for job in first], [job.seed for job in first])
    told = Told()

    def ends(run: str) -> tuple[str, str] | None:
        return ("pruned", "others do better") if run == "pruned" and len(told.scores.get(run, ())) == 2 else None

    wishes = Wishes(ends=ends, more=lambda: next(later, None))
    told.hear(train(tuned, first, wishes, budget=200), tuned, jobs.__getitem__)
    assert set(told.ends) == set(trials) and set(told.slots.values()) == {0, 1, 2} and len(tuned.slots) == 3
    for name, trial in trials.items():
        alone = _alone(tiny, kind, trial.job(tmp_path / "alone", name, kind))
        if name == "pruned":
            assert (told.ends[name].state, told.ends[name].reason) == ("pruned", "others do better")
            assert told.ends[name].step == told.scores[name][-1][0] == 6 < alone.ends[name].step
            assert told.losses[name] == pytest.approx(alone.losses[name][:6], abs=2e-5)
        else:
            _assert_alike(told, alone, name)


@pytest.mark.parametrize("calls", [4, 9, 17])
def test_a_wave_goes_on_in_the_middle(tiny: Tiny, tmp_path: Path, calls: int) -> None:
    """Asked to stop and begun again on a bare base: jobs that are done, under way, and new ones, in other slots."""
    kind, trials = "tiny_llama", _trials(*LAYERS["tiny_llama"])
    del trials["pruned"]

    def carried(order: Sequence[str], patience: Iterator[int]) -> Told:
        jobs = {name: trials[name].job(tmp_path / "parts", name, kind) for name in order}
        later = iter(list(jobs.values())[3:])
        tuned = attach(load(tiny, kind), [], [])
        wishes = Wishes(stop=lambda: next(patience, None) is None, more=lambda: next(later, None))
        return Told().hear(train(tuned, list(jobs.values())[:3], wishes, budget=60), tuned, jobs.__getitem__)

    before = carried(list(trials), iter(range(calls)))
    states = {run: end.state for run, end in before.ends.items()}
    assert "stopped" in states.values() and len(states) < len(trials)
    after = carried(list(reversed(trials)), itertools.count())
    for name, trial in trials.items():
        alone = _alone(tiny, kind, trial.job(tmp_path / "alone", name, kind))
        for part in ("losses", "scores"):
            whole = getattr(before, part).get(name, []) + getattr(after, part).get(name, [])
            setattr(after, part, getattr(after, part) | {name: whole})
        _assert_alike(after, alone, name)
    assert calls < 17 or "done" in states.values()


def test_a_job_that_stops_by_itself_goes_on_later(tiny: Tiny, tmp_path: Path) -> None:
    """Its neighbour never notices, and the slot is somebody else's at once."""
    kind, trials = "tiny_llama", _trials(*LAYERS["tiny_llama"])
    names = ["dropped", "wide", "short"]
    jobs = {name: trials[name].job(tmp_path / "together", name, kind) for name in names}
    later, asked = iter([jobs["short"]]), []
    tuned = attach(load(tiny, kind), [], [])

    def ends(run: str) -> tuple[str, str] | None:
        asked.append(run)
        return ("stopped", "by its owner") if run == "dropped" and asked.count(run) == 4 else None

    wishes = Wishes(ends=ends, more=lambda: next(later, None))
    told = Told().hear(train(tuned, [jobs["dropped"], jobs["wide"]], wishes), tuned, jobs.__getitem__)
    assert (told.ends["dropped"].state, told.ends["dropped"].reason) == ("stopped", "by its owner")
    assert told.slots["short"] == told.slots["dropped"] == 0
    again = attach(load(tiny, kind), [jobs["dropped"].method], [jobs["dropped"].seed])
    rest = Told().hear(train(again, [jobs["dropped"]]), again, jobs.__getitem__)
    rest.losses["dropped"] = told.losses["dropped"] + rest.losses["dropped"]
    rest.scores["dropped"] = told.scores["dropped"] + rest.scores["dropped"]
    for heard, name in ((rest, "dropped"), (told, "wide"), (told, "short")):
        _assert_alike(heard, _alone(tiny, kind, trials[name].job(tmp_path / "alone", name, kind)), name)


def test_a_job_that_ends_badly_ends_alone(tiny: Tiny, tmp_path: Path) -> None:
    """Numbers that are not finite, a layer that is not there, full tuning, a checkpoint of something else."""
    kind, trials = "tiny_llama", _trials(*LAYERS["tiny_llama"])
    bad = {
        "wild": Trial(_lora(2, 4, ["q_proj"]), 1, {"learning_rate": 1e30, "num_epochs": 2}),
        "misnamed": Trial(_lora(2, 4, ["q_prj"]), 1),
        "full": Trial(spec.Full(), 1),
        "other": Trial(_lora(2, 4, ["q_proj"]), 2),
    }
    _alone(tiny, kind, Trial(_lora(3, 4, ["q_proj"]), 2).job(tmp_path, "other", kind))
    jobs = {name: trial.job(tmp_path, name, kind) for name, trial in bad.items()}
    jobs |= {name: trials[name].job(tmp_path, name, kind) for name in ("plain", "wide")}
    later = iter([jobs["misnamed"], jobs["full"], jobs["other"], jobs["wide"]])
    tuned = attach(load(tiny, kind), [], [])
    events = list(train(tuned, [jobs["wild"], jobs["plain"]], Wishes(more=lambda: next(later, None))))
    ends = {event.run: event for event in events if isinstance(event, Finished)}
    assert {run: end.state for run, end in ends.items()} == dict.fromkeys(bad, "failed") | {
        "plain": "done",
        "wide": "done",
    }
    assert "not finite" in ends["wild"].reason
    assert "`q_prj` (`method.target_modules`)" in ends["misnamed"].reason and "q_proj" in ends["misnamed"].reason
    assert "cannot share it; run it alone" in ends["full"].reason and "does not fit this run" in ends["other"].reason
    assert not any(isinstance(event, Started) for event in events if event.run in ("misnamed", "full"))
    for name in ("plain", "wide"):
        losses = [event.loss for event in events if isinstance(event, Stepped) and event.run == name]
        alone = _alone(tiny, kind, trials[name].job(tmp_path / "alone", name, kind))
        assert losses == pytest.approx(alone.losses[name], abs=2e-5)
