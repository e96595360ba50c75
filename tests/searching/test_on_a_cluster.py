"""A search on a Ray cluster of several nodes: one is killed, the search's own process too, and nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier import runs, spec
from luthier.runs import Run, Stepped
from luthier.searching import roster
from luthier.studio import Studio
from tests import raycluster, rows
from tests.raycluster import TOKEN, Nodes, needs_ray

SPACE = {"training.learning_rate": {"log": [1e-4, 1e-1]}, "method.rank": [2, 4, 8]}
SEARCH = {"space": SPACE, "sampler": "random", "pruner": "none", "trials": 4, "at_once": 3}
TRAINING = {"max_steps": 120, "batch_size": 4, "learning_rate": 1e-2, "save_every": 5, "evaluate_every": 40}
QUIET = {"compare_base": False, "limit": 4, "max_new_tokens": 2}
LORA = {"type": "lora", "rank": 2, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_and_driver_die_and_the_best_trial_is_that_of_one_machine(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"name": "tiny", "model": str(tiny("tiny_llama")), "data": str(rows.pairs(tmp_path)), "task": "generation"}
    parts = {"method": LORA, "training": TRAINING, "evaluation": QUIET, "search": SEARCH}
    experiment = spec.from_mapping(values | parts)
    with raycluster.running(3) as nodes:
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        far = Studio(tmp_path / "far")
        search = far.search(experiment, engine="ray")
        victim = _await(lambda: next((trial for trial in _trials(search) if _steps(trial) > 10), None), search)
        _kill_its_node(victim, nodes)
        _await(lambda: any(trial.state == "done" for trial in _trials(search)), search)
        owner = runs.owner(search.path)
        assert owner is not None
        os.kill(owner["pid"], signal.SIGKILL)
        _await(lambda: runs.load(search.path).state == "interrupted")
        assert far.search(experiment, engine="ray").id == search.id
        _await(lambda: runs.load(search.path).state in ("done", "failed"))
        search = runs.load(search.path)
    assert search.error is None and search.state == "done"
    assert runs.attempts(far.find(victim.id).path) > 1  # it was taken up again

    here = Studio(tmp_path / "here")
    alone = here.search(experiment)
    _await(lambda: runs.load(alone.path).state in ("done", "failed"))
    alone = runs.load(alone.path)
    assert alone.state == "done" and alone.error is None
    for one, other in zip(_trials(search), _trials(alone), strict=True):
        assert one.state == other.state == "done"
        assert one.facts["values"] == other.facts["values"]
        assert one.facts["scores"]["loss"] == pytest.approx(other.facts["scores"]["loss"], abs=1e-5)
    assert search.facts["best"].rpartition(".")[2] == alone.facts["best"].rpartition(".")[2]


def _trials(search: Run) -> list[Run]:
    return roster.Roster(search).runs()


def _steps(trial: Run) -> int:
    return sum(isinstance(event, Stepped) for event in runs.read_events(trial.path)) if trial.state == "running" else 0


def _kill_its_node(trial: Run, nodes: Nodes) -> None:
    """The death of the machine that trains it: all at once."""
    owner = runs.owner(trial.path)
    assert owner is not None
    line, pid = [owner["pid"]], owner["pid"]
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        line.append(pid)
    [node] = [node for node, raylet in nodes.raylets.items() if raylet in line]
    os.killpg(owner["pid"], signal.SIGKILL)
    nodes.kill(node)


def _await(what: Callable[[], Any], search: Run | None = None) -> Any:
    """What is waited for, while the search does not fail."""
    until = time.monotonic() + 200
    while not (found := what()) and time.monotonic() < until:
        assert search is None or runs.load(search.path).error is None
        time.sleep(0.05)
    assert found
    return found
