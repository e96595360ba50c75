"""A run carried by several processes: one owns it and writes, the others compute their part of every step."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier import runs, spec, workbench, worker
from luthier.studio import Studio, failure
from tests import rows
from tests.conftest import Starting
from tests.together import processes

FEW = {"num_epochs": 2, "batch_size": 8, "learning_rate": 1e-2}


@pytest.fixture
def begin(tiny: Callable[..., Path], tmp_path: Path, starting: Starting) -> Callable[[], runs.Run]:
    """A queued run of the same experiment each time."""
    starting(lambda run: run)
    said: dict[str, Any] = {"name": "tiny", "model": str(tiny("tiny_llama")), "method": "lora", "training": FEW}
    said["data"] = str(rows.pairs(tmp_path))

    return lambda: Studio(tmp_path / "home").tune(spec.from_mapping(said), new=True)


def _carried(path: Path, stop: Callable[[], bool] = lambda: False) -> Callable[[], int]:
    """What each process of `torchrun -m luthier.worker` does."""

    def carry() -> int:
        return (worker.work if os.environ["RANK"] == "0" else worker.assist)(path, stop)

    return carry


@pytest.mark.parametrize("spread", [False, True], ids=["whole base", "base spread"])
def test_two_processes_end_in_one_verdict_and_the_same_adapter(
    begin: Callable[[], runs.Run], monkeypatch: pytest.MonkeyPatch, spread: bool
) -> None:
    alone, shared = begin(), begin()
    assert worker.work(alone.path, lambda: False) == 0
    monkeypatch.setattr(workbench, "must_shard", lambda run: spread)
    assert processes(2, _carried(shared.path)) == [0, 0]
    run = runs.load(shared.path)
    assert failure(run) is None and run.state == "done"
    told = [
        [(type(e).__name__, e.step) for e in runs.read_events(p) if not isinstance(e, runs.Noted)]
        for p in (alone.path, shared.path)
    ]
    assert told[0] == told[1]
    assert json.loads((run.path / "environment.json").read_text())["processes"] == 2
    ours, theirs = (load_file(p / "adapter" / "adapter_model.safetensors") for p in (shared.path, alone.path))
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-4), name


@pytest.mark.parametrize("count", [1, 9], ids=["while the base answers", "in training"])
def test_a_stop_ends_all_and_another_number_goes_on(begin: Callable[[], runs.Run], count: int) -> None:
    run = begin()

    def carry() -> int:
        asked = iter(range(count)) if os.environ["RANK"] == "0" else iter(range(10_000))
        return _carried(run.path, lambda: next(asked, None) is None)()

    assert processes(2, carry) == [0, 0]
    assert runs.load(run.path).state == "stopped"
    assert worker.work(run.path, lambda: False) == 0
    assert runs.load(run.path).state == "done"


def test_an_owner_that_fails_is_not_waited_for(begin: Callable[[], runs.Run]) -> None:
    run = begin()

    def carry() -> int:
        if os.environ["RANK"] == "0":
            worker._ask_base = lambda *_: 1 // 0
        return _carried(run.path)()

    assert processes(2, carry) == [1, 0]
    assert "ZeroDivisionError" in str(failure(runs.load(run.path)))


@pytest.mark.slow
def test_torchrun_starts_them(begin: Callable[[], runs.Run]) -> None:
    run = begin()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    done = subprocess.run([*command, "-m", "luthier.worker", str(run.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert runs.load(run.path).state == "done"
    assert json.loads((run.path / "environment.json").read_text())["processes"] == 2
