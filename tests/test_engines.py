"""Starting and stopping a worker process: what will not save in time is ended, with everything it started."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier import engines, runs
from luthier.errors import TrainingError

STUBBORN = """
import pathlib, signal, subprocess, sys, time
from luthier import runs
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with runs.owned(pathlib.Path(sys.argv[1])):
    print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
    time.sleep(600)
"""


def test_who_does_not_save_in_time_is_ended_with_all_it_started(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "stubborn", "0", {}, {})
    command = [sys.executable, "-c", STUBBORN, str(run.path)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert worker.stdout is not None
    helper = int(worker.stdout.readline())
    assert engines.start(run).state == "running"  # it has a worker: none is started beside it
    began = time.monotonic()
    assert engines.stop(run, grace_seconds=0.3).state == "interrupted"
    assert time.monotonic() - began < 5
    assert worker.wait() < 0
    deadline = time.monotonic() + 5
    while runs.birth(helper) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert runs.birth(helper) is None
    assert runs.attempts(run.path) == 1


def test_a_worker_that_ends_before_it_begins_is_told_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.create(tmp_path, "early", "0", {}, {})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TrainingError) as problem:
        engines.start(run)
    assert problem.value.where == str(run.path / "worker.log") and runs.load(run.path).state == "queued"
