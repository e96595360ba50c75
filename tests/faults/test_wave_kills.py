"""Whatever a wave is killed at, the next one ends its trials as if nothing had happened (reliability test 30)."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from luthier import runs
from luthier.train import checkpoint
from tests.faults.victims import at_call, at_file_operation, die, leftovers
from tests.waves import SPREAD, TRAINING, Trials

ROUNDING = 2e-5
POINTS = {
    "taking": ("luthier.runs:owned", 2),
    "laid ready": ("luthier.logbook:heed", 1),
    "update": ("luthier.train.optimizer:SlotOptimizer.step", 9),
    "evaluation": ("luthier.train.loop:validation_losses", 2),
    "heard": ("luthier.searching.riding:Wave._tell", 3),
    "save": ("luthier.train.checkpoint:save_file", 6),
    "rotation": ("luthier.train.checkpoint:rotate", 3),
    "result": ("luthier.models.adapters:save", 1),
    "result in place": ("luthier.models.adapters:write_manifest", 2),
    "end": ("luthier.logbook:close", 1),
    "state": ("luthier.ownership:withdraw_stop", 1),
    "told": ("luthier.searching.riding:Wave._ended", 2),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """What an uninterrupted wave makes of the trials."""
    trials = Trials(tmp_path_factory.mktemp("whole"))
    trials.add(*SPREAD[:3])
    assert trials.wave() == 0
    return trials


def ends_as_the_whole(trials: Trials, whole: Trials) -> None:
    """The next wave ends all trials with the same weights; no update is made twice beyond the last checkpoint."""
    stood = {}
    for path in trials.made:
        found, complaints = checkpoint.newest(path / "checkpoints")
        assert not complaints
        stood[path] = 0 if found is None else found.progress.step
        told = [event.step for event in runs.read_events(path) if not isinstance(event, runs.Noted)]
        assert max(told, default=0) - stood[path] <= TRAINING["save_every"]
    ended = {path for path in trials.made if runs.load(path).state == "done"}
    assert trials.wave() == 0, (trials.folder / "log").read_text()
    for path, other in zip(trials.made, whole.made, strict=True):
        run = runs.load(path)
        assert run.state == "done" and run.facts["scores"] == pytest.approx(runs.load(other).facts["scores"], rel=1e-4)
        begun = [event for event in runs.read_events(path) if isinstance(event, runs.Started)]
        assert path in ended or begun[-1].step == stood[path]
        steps = [event.step for event in runs.read_events(path) if isinstance(event, runs.Stepped)]
        assert steps == list(range(1, begun[-1].steps + 1))
        assert steps_kept(path) == steps_kept(other) and not leftovers(path)
        one, two = (load_file(each / "adapter" / "adapter_model.safetensors") for each in (path, other))
        assert one.keys() == two.keys()
        assert max((one[name] - two[name]).abs().max().item() for name in one) < ROUNDING


def steps_kept(path: Path) -> list[str]:
    return sorted(folder.name for folder in (path / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_a_wave_s_trials_end_as_if_nothing_had_happened(
    tmp_path: Path, whole: Trials, point: str
) -> None:
    target, number = POINTS[point]
    trials = Trials(tmp_path)
    trials.add(*SPREAD[:3])
    assert trials.wave(at_call(target, number, die)) == -signal.SIGKILL, "the point was not reached"
    assert not {runs.load(path).state for path in trials.made} & {"failed", "stopped", "running"}
    ends_as_the_whole(trials, whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(4))
def test_killed_twice_at_drawn_file_operations_it_is_the_same(tmp_path: Path, whole: Trials, part: int) -> None:
    counted, draw = tmp_path / "count", np.random.default_rng(part)
    trials = Trials(tmp_path / "counted")
    trials.add(*SPREAD[:3])
    home = trials.studio.home / "runs"
    assert trials.wave(at_file_operation(home, None, counted)) == 0
    for case in range(4):
        trials = Trials(tmp_path / str(case))
        trials.add(*SPREAD[:3])
        home, operations = trials.studio.home / "runs", int(counted.read_text())
        for number in draw.integers(1, operations // 2, 2).tolist():
            assert trials.wave(at_file_operation(home, number)) in (-signal.SIGKILL, 0), f"operation {number}"
        ends_as_the_whole(trials, whole)
