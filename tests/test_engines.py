"""Starting and stopping a worker process: what will not save in time is ended, with everything it started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from luthier import drafts, engines, hardware, ownership, runs, spec
from luthier.errors import NotFound, TrainingError
from tests.tiny import build as tiny

STUBBORN = """
import pathlib, signal, subprocess, sys, time
from luthier import runs
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with runs.owned(pathlib.Path(sys.argv[1])):
    print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
    time.sleep(600)
"""


def test_who_does_not_save_in_time_is_ended_with_all_it_started(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "stubborn", "0", {}, {"model": "tiny"})
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
    run = runs.create(tmp_path, "early", "0", {}, {"model": "tiny"})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TrainingError) as problem:
        engines.start(run)
    assert problem.value.where == str(run.path / "worker.log")
    failed = runs.load(run.path)
    assert failed.state == "failed" and failed.error is not None and failed.error["where"] == problem.value.where


def test_a_stop_before_the_worker_begins_is_kept_by_the_worker(tmp_path: Path) -> None:
    """The worker is on its way when the run, queued still, is stopped: it must not carry it after all."""
    run = runs.create(tmp_path, "early", "0", {}, {"model": "tiny"})
    assert engines.stop(run).state == "stopped"
    command = [sys.executable, "-m", "luthier.worker", str(run.path)]
    assert subprocess.run(command, check=False).returncode == 0
    assert runs.load(run.path).state == "stopped"
    [event] = runs.read_events(run.path)
    assert isinstance(event, runs.Finished) and event.state == "stopped"


def test_a_started_worker_sees_a_stop_that_came_while_it_was_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.create(tmp_path, "early", "0", {}, {"model": "tiny"})
    popen = subprocess.Popen

    def stopped_meanwhile(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        child = popen(*words, **options)
        assert engines.stop(run).state == "stopped"
        return child

    monkeypatch.setattr(subprocess, "Popen", stopped_meanwhile)
    engines.start(run)
    deadline = time.monotonic() + 30
    while runs.owner(run.path) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert runs.load(run.path).state == "stopped"


def test_a_run_of_another_host_runs_while_its_heart_beats_and_is_never_signalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.create(tmp_path, "shared", "0", {}, {"model": "tiny"})
    with runs.owned(run.path):
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        assert runs.load(run.path).state == "running"
        assert engines.start(run).state == "running" and runs.attempts(run.path) == 1
        monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a process of this host was signalled"))
        assert engines.stop(run, grace_seconds=0.1).state == "running"
        assert ownership.stop_asked(run.path)  # what the worker there sees
        long_ago = time.time() - ownership.FRESH_SECONDS
        os.utime(run.path / ownership.LOCK, (long_ago, long_ago))
        assert runs.load(run.path).state == "interrupted"
    assert runs.owner(run.path) is None


def test_to_start_a_stopped_run_is_to_withdraw_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = engines.stop(runs.create(tmp_path, "again", "0", {}, {"model": "tiny"}))
    assert run.state == "stopped" and ownership.stop_asked(run.path)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TrainingError, match="ended before it began"):
        engines.start(run)
    assert not ownership.stop_asked(run.path) and runs.load(run.path).state == "stopped"


def test_several_graphics_cards_are_one_process_each(tmp_path: Path) -> None:
    alone, together = engines._command(tmp_path, 1), engines._command(tmp_path, 4)
    assert alone == [sys.executable, "-m", "luthier.worker", str(tmp_path)]
    assert together[-3:] == alone[-3:][-3:] and together[together.index("--nproc-per-node") + 1] == "4"
    assert "torch.distributed.run" in together


def test_a_worker_begun_early_takes_the_run_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engines.early(tmp_path) as waiting:
        assert waiting is not None
        run = runs.create(tmp_path, "early", "0", {}, {"model": "tiny"})
        engines.start(run, waiting)
    assert waiting.wait(timeout=60) == 1  # this run has no experiment, and its record says so
    failed = runs.load(run.path)
    assert failed.error is not None and "resolved.yaml" in " ".join(filter(None, failed.error.values()))
    assert runs.attempts(run.path) == 1 and (run.path / runs.LOG).is_file()


def test_an_early_worker_ends_with_the_block_that_gave_it_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError), engines.early(tmp_path) as waiting:
        raise TrainingError("the data are wrong")
    assert waiting is not None and waiting.returncode is not None


def test_an_early_worker_ends_when_nobody_is_left_to_tell_it_a_run() -> None:
    command = [sys.executable, "-m", "luthier.worker"]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 0


def test_a_fresh_worker_takes_the_run_if_the_early_one_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engines.stop(runs.create(tmp_path, "early", "0", {}, {"model": "tiny"}))
    with engines.early(tmp_path) as waiting:
        assert waiting is not None
        waiting.kill()
        waiting.wait()
        assert engines.start(run, waiting).state in ("running", "failed")  # failed: there is no experiment in it
    assert runs.attempts(run.path) == 1


def test_no_worker_begins_early_where_torchrun_starts_one_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "graphics_cards", lambda _: ("0", "1"))
    with engines.early(tmp_path) as waiting:
        assert waiting is None


def _described(**values: object) -> spec.Experiment:
    return spec.from_mapping({"name": "early", "model": str(tiny("tiny_llama"))} | values)


def test_an_early_worker_finds_out_what_an_experiment_means_and_carries_it(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"input": "{n} times", "output": "{n * n}"}}\n' for n in range(40)))
    experiment = _described(data=str(rows), method={"type": "lora", "rank": 2}, training={"max_steps": 2})
    prepared = drafts.rows_of(experiment, tmp_path)
    wish = {"home": str(tmp_path), "new": False, "further": 0, "rows": prepared.folders}
    with engines.early(tmp_path) as waiting:
        assert waiting is not None
        run = engines.drafted(waiting, experiment, wish)
        assert run is not None and run.state == "queued" and run.name == "early"
        again = engines.drafted(waiting, experiment, wish)
        assert again is not None and again.id == run.id  # the same experiment means the same run
        engines.start(run, waiting)
    assert waiting.wait(timeout=60) == 0
    assert runs.load(run.path).state == "done" and runs.attempts(run.path) == 1


def test_what_an_early_worker_refuses_is_raised_here_as_it_was(tmp_path: Path) -> None:
    missing = str(tmp_path / "data" / "0123")
    with engines.early(tmp_path) as waiting, pytest.raises(NotFound, match="0123"):
        assert waiting is not None
        wish = {"home": str(tmp_path), "new": False, "further": 0, "rows": (missing, None)}
        engines.drafted(waiting, _described(data="rows.jsonl"), wish)
    assert waiting is not None and waiting.returncode is not None


def test_rows_that_live_in_this_process_are_not_told_to_another(tmp_path: Path) -> None:
    experiment = spec.Experiment(model=spec.Model(name="tiny"), data=spec.Data(train=[{"input": "a", "output": "b"}]))
    with engines.early(tmp_path) as waiting:
        assert waiting is not None
        assert engines.drafted(waiting, experiment, {}) is None


def test_a_worker_that_has_died_drafts_nothing(tmp_path: Path) -> None:
    with engines.early(tmp_path) as waiting:
        assert waiting is not None
        waiting.kill()
        waiting.wait()
        assert engines.drafted(waiting, _described(data="rows.jsonl"), {"new": False}) is None


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="who is whose child is read from /proc")
def test_an_early_search_process_has_a_process_importing_for_it_and_both_end_with_who_began_it(tmp_path: Path) -> None:
    with engines.early(tmp_path, engines.SEARCH) as waiting:
        assert waiting is not None
        until = time.monotonic() + 30
        children = Path(f"/proc/{waiting.pid}/task/{waiting.pid}/children")
        while not (pids := _of_waves(children.read_text())) and time.monotonic() < until:
            time.sleep(0.05)
        (wave,) = pids
    until = time.monotonic() + 30
    while runs.birth(wave) is not None and time.monotonic() < until:
        time.sleep(0.05)
    assert runs.birth(wave) is None and waiting.returncode is not None


def _of_waves(pids: str) -> list[int]:
    """Those among processes that have become one that trains trials."""
    return [int(pid) for pid in pids.split() if b"luthier.searching.wave" in Path(f"/proc/{pid}/cmdline").read_bytes()]
