"""Whatever of a search is killed, it ends as if nothing had happened (reliability test 30)."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from luthier import engines, events, runs, spec, worker
from luthier.runs import Evaluated, Run, Started, Stepped
from luthier.searching import lead, roster, wave
from luthier.studio import Studio, report
from tests import rows, tiny
from tests.conftest import Starting
from tests.faults.victims import fork, leftovers, wait

LORA = {"type": "lora", "rank": 2, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
TRAINING = {"num_epochs": 1, "batch_size": 8, "evaluate_every": 2, "save_every": 2}
QUIET = {"compare_base": False, "limit": 2, "max_new_tokens": 2}
SPACE = {"training.learning_rate": {"log": [1e-4, 1e-1]}, "method.rank": [2, 4]}
ROUNDING = 1e-4


class Forked:
    """`engines.Helper`, its process a fork of this one: it pays for no import. `pids`: of all that were begun."""

    pids: ClassVar[list[int]] = []
    log: ClassVar[Path] = Path(os.devnull)

    def __init__(self, command: Sequence[str], home: Path, *models: str) -> None:
        told, self._to = os.pipe()
        self._from, said = os.pipe()
        ours = (self._to, self._from)
        self._pid = fork(lambda: _ride(told, said, ours), (), self.log)
        for handle in (told, said):
            os.close(handle)
        for handle in ours:
            os.set_inheritable(handle, False)
        self.returncode: int | None = None
        self._left = False
        self.pids.append(self._pid)

    def say(self, text: str) -> None:
        if not self._left:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._to, text.encode() + b"\n")

    def lines(self) -> Iterator[str]:
        with os.fdopen(self._from, encoding="utf-8") as lines:
            for line in lines:
                yield line.rstrip()
        self.returncode = wait(self._pid)

    def leave(self) -> None:
        if not self._left:
            self._left = True
            os.close(self._to)

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self._pid, signal.SIGKILL)
        self.leave()


def _ride(told: int, said: int, others: Sequence[int]) -> int:
    for handle in others:  # of this helper; those of the ones before are closed as well, or their ends would not show
        os.close(handle)
    os.dup2(told, 0)
    os.dup2(said, 1)
    os.closerange(3, 256)
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
    return wave.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("searches")


@pytest.fixture
def begun(folder: Path, monkeypatch: pytest.MonkeyPatch, starting: Starting) -> Callable[..., Run]:
    """A search that nobody carries yet; its waves, and its winner's worker, are forks of who carries it."""

    def start(run: Run) -> Run:
        if run.facts.get("kind") != "search":
            worker.work(run.path, lambda: False)
        return runs.load(run.path)

    monkeypatch.setattr(engines, "Helper", Forked)
    starting(start)
    monkeypatch.setattr(Forked, "pids", [])
    monkeypatch.setattr(Forked, "log", folder / "log")
    base, data = str(tiny.build("tiny_llama")), str(rows.pairs(folder))

    def make(seed: int, **wishes: Any) -> Run:
        search = {"space": SPACE, "sampler": "random", "trials": 4, "at_once": 2, "pruner": "none"} | wishes
        values = {"name": "tiny", "model": base, "data": data, "task": "generation", "method": LORA, "seed": seed}
        values |= {"training": TRAINING, "evaluation": QUIET, "search": search}
        search = Studio(folder / "home").search(spec.from_mapping(values), new=True)
        runs.update(search.path, {"facts": {"placements": _placed(search, 2)}})
        return runs.load(search.path)

    return make


def _placed(search: Run, slots: int) -> dict[str, Any]:
    """As if it had been measured: the figures of a busy machine decide nothing here."""
    return {f"{search.facts['model']} lora": {"processes": 1, "slots": slots, "threads": 1}}


def carried(search: Run) -> Run:
    assert worker.work(search.path, lambda: False, lead.carry) == 0, (Forked.log).read_text()
    return runs.load(search.path)


def events_so_far(search: Run) -> int:
    """How many updates and evaluations the trials have told."""
    told = [runs.read_events(run.path) for run in roster.Roster(search).runs()]
    return sum(isinstance(event, Stepped | Evaluated) for events in told for event in events)


def whole(search: Run, trials: int = 4) -> list[Run]:
    """Its trials, every one ended, none carried, no update missing, none made twice but those after a checkpoint."""
    found = roster.Roster(search).runs()
    assert search.state == "done" and len(found) == trials
    assert {run.state for run in found} <= {"done", "failed"}
    assert report(runs.load(search.path.parent / search.facts["best"])).verdict
    for run in (run for run in found if run.state == "done"):
        told = runs.read_events(run.path)
        planned = next(event.steps for event in reversed(told) if isinstance(event, Started))
        assert [event.step for event in told if isinstance(event, Stepped)] == list(range(1, planned + 1))
        assert made_again(run) <= TRAINING["save_every"]
        assert not leftovers(run.path)
    assert not leftovers(search.path)
    return found


def made_again(run: Run) -> int:
    """The most updates that an attempt at a trial made though one before had told of them."""
    most = reached = 0
    for event in events.complete_lines(run.path, 0)[0]:  # all that was told: `read_events` leaves out what came again
        if isinstance(event, Started):
            most = max(most, reached - event.step)
        elif isinstance(event, Stepped):
            reached = max(reached, event.step)
    return most


def same_trials(found: list[Run], others: list[Run]) -> None:
    """The same values, and the same scores within rounding, in both."""
    assert [run.facts["values"] for run in found] == [run.facts["values"] for run in others]
    for run, other in zip(found, others, strict=True):
        assert run.facts["scores"] == pytest.approx(other.facts["scores"], rel=ROUNDING)


@pytest.mark.parametrize("studies", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_hpo_in_each_of_20_studies_one_trial_worker_is_killed(begun: Callable[..., Run], studies: int) -> None:
    """What was under way is tried again once, none stays RUNNING, the best is found again from its values and seed."""
    retried = 0
    for seed in range(studies):
        draw, search = np.random.default_rng(seed), begun(seed)
        after = int(draw.integers(1, 24))  # of about 28 updates and evaluations
        killed = list[int]()

        def kill(search: Run = search, after: int = after, killed: list[int] = killed) -> None:
            while runs.load(search.path).state != "done" and events_so_far(search) < after:
                time.sleep(0.005)
            if Forked.pids and runs.birth(Forked.pids[-1]) is not None:
                os.kill(Forked.pids[-1], signal.SIGKILL)
                killed.append(Forked.pids[-1])

        killer = threading.Thread(target=kill)
        killer.start()
        search = carried(search)
        killer.join()
        found = whole(search)
        assert len(killed) == 1 and killed[0] != Forked.pids[-1]  # another one was begun in its place
        assert {run.state for run in found} == {"done"}
        retried += (most := max(run.facts.get("retries", 0) for run in found))
        assert most <= 1  # 0 where the process was killed between two trials
        best = runs.load(search.path.parent / search.facts["best"])
        assert best.facts["scores"]["loss"] == min(run.facts["scores"]["loss"] for run in found)
        if seed < 2:
            alone = Studio(search.path.parents[1]).again(best, new=True)
            kept = min(event.scores["loss"] for event in runs.read_events(alone.path) if isinstance(event, Evaluated))
            assert kept == pytest.approx(best.facts["scores"]["loss"], rel=ROUNDING)
    assert retried >= studies // 2


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_a_search_killed_at_any_moment_goes_on_and_is_the_same_search(
    begun: Callable[..., Run], folder: Path, kills: int
) -> None:
    """The search's process is killed (signal 9) again and again, somewhere between its first trial and its end."""
    reference = whole(carried(begun(0)))
    draw, search = np.random.default_rng(1), begun(0)
    for number in range(kills):
        pid = fork(lambda: worker.work(search.path, lambda: False, lead.carry), (), folder / "log")
        until = time.monotonic() + float(draw.uniform(0.05, 1.5)) / (1 + number % 3)
        while runs.birth(pid) is not None and time.monotonic() < until:
            time.sleep(0.005)
        if runs.birth(pid) is not None:
            os.kill(pid, signal.SIGKILL)
        wait(pid)
        assert runs.load(search.path).state in ("queued", "interrupted", "done")
    search = carried(search) if runs.load(search.path).state != "done" else runs.load(search.path)
    found = whole(search)
    same_trials(found, reference)
    assert [run.facts.get("retries", 0) for run in found] == [0] * 4  # nobody's process died but the search's
