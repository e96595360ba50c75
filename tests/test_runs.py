"""The run folder: whole or invisible, states derived from live processes, events that survive a kill."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from luthier import redaction, runs
from luthier.errors import NotFound, SpecError, TrainingError

EVENTS = [
    runs.Started("r", 0, 1.5, steps=10, examples=80, trainable_parameters=1234),
    runs.Stepped("r", 1, 2.5, epoch=0.1, loss=2.25, learning_rate=1e-3, grad_norm=0.5, tokens=99, seconds=0.25),
    runs.Evaluated("r", 1, 3.0, scores={"loss": 1.75, "exact_match": 0.5}, best=True),
    runs.Saved("r", 1, 3.5, path="checkpoints/step-1"),
    runs.Noted("r", 1, 4.0, kind="overfitting", message="the validation loss has turned — 過学習", rows=("a.jsonl:3",)),
    runs.Finished("r", 1, 5.0, state="stopped", reason="asked to stop"),
]

OWNER = """
import os, pathlib, sys, time
from luthier import runs
with runs.owned(pathlib.Path(sys.argv[1])) as attempt:
    print(attempt, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    return runs.create(tmp_path, "tickets", "f00d", {"experiment.yaml": "model: tiny\n"}, {"model": "tiny"})


def start_owner(run: runs.Run) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", OWNER, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().strip()
    return child


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_from_json_as_it_was(event: runs.Event) -> None:
    assert runs.from_json(json.loads(json.dumps(runs.to_json(event)))) == event


def test_every_kind_of_event_is_covered_above() -> None:
    assert {type(event).__name__ for event in EVENTS} == set(runs.EVENT_KINDS)


def test_a_number_that_is_not_finite_stays_json_and_comes_back_as_nan(run: runs.Run) -> None:
    runs.append(run.path, dataclasses.replace(EVENTS[1], loss=math.nan, grad_norm=math.inf))
    line = (run.path / "events.jsonl").read_text(encoding="utf-8")
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None
    [event] = runs.read_events(run.path)
    assert isinstance(event, runs.Stepped) and math.isnan(event.loss) and math.isnan(event.grad_norm)


def test_a_new_run_is_queued_and_found_by_any_of_its_names(tmp_path: Path, run: runs.Run) -> None:
    assert run.state == "queued" and run.facts == {"model": "tiny"}
    assert run.id.split("-")[3:4] == ["tickets"] and len(run.id.rsplit("-", 1)[1]) == 4
    for word in (run.id, run.id[:-2], run.id.rsplit("-", 1)[1], "tickets", str(run.path)):
        assert runs.find(tmp_path, word).id == run.id


def test_a_name_means_its_newest_run_and_a_misspelt_one_is_hinted(tmp_path: Path, run: runs.Run) -> None:
    later = runs.create(tmp_path, "tickets", "beef", {}, {})
    assert runs.find(tmp_path, "tickets").id == later.id
    newest = runs.newest_of_name(tmp_path, "tickets")
    assert newest is not None and newest.id == later.id
    with pytest.raises(NotFound, match="did you mean `tickets`"):
        runs.find(tmp_path, "tikets")
    with pytest.raises(NotFound, match="fits 2 runs"):
        runs.find(tmp_path, run.id[:10])


def test_a_half_made_folder_is_no_run(tmp_path: Path, run: runs.Run) -> None:
    (tmp_path / "runs" / f".{run.id}.tmp-0000").mkdir()
    (tmp_path / "runs" / "2025-01-01-foreign-0000").mkdir()
    assert [each.id for each in runs.all_runs(tmp_path)] == [run.id]
    with pytest.raises(NotFound):
        runs.load(tmp_path / "runs" / "2025-01-01-foreign-0000")


def test_a_killed_owner_leaves_an_interrupted_run_that_nobody_wrote(run: runs.Run) -> None:
    child = start_owner(run)
    assert runs.load(run.path).state == "running" and runs.owner(run.path)["pid"] == child.pid
    child.kill()
    while child.poll() is None and runs.birth(child.pid):  # not yet reaped is gone already
        time.sleep(0.01)
    assert runs.load(run.path).state == "interrupted" and runs.owner(run.path) is None
    child.wait()
    assert json.loads((run.path / "run.json").read_text())["state"] == "running"


def test_two_processes_never_own_one_run_and_a_dead_one_gives_it_back(run: runs.Run) -> None:
    child = start_owner(run)
    with pytest.raises(TrainingError, match="another process"), runs.owned(run.path):
        pytest.fail("owned twice")
    child.send_signal(signal.SIGKILL)
    child.wait()
    with runs.owned(run.path) as attempt:
        assert attempt == 2


def test_a_reused_process_number_is_not_the_owner(run: runs.Run) -> None:
    runs.update(run.path, {"state": "running", "owner": {"pid": os.getpid(), "birth": "before", "host": "here"}})
    assert runs.load(run.path).state == "interrupted"


def test_a_line_cut_by_a_kill_is_passed_over_and_then_removed(run: runs.Run) -> None:
    runs.append(run.path, EVENTS[0])
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"event": "Stepped", "run": "r", "st')
    assert runs.read_events(run.path) == EVENTS[:1]
    with runs.owned(run.path):
        runs.append(run.path, EVENTS[1])
    assert runs.read_events(run.path) == EVENTS[:2]


def test_what_a_later_attempt_did_again_is_told_once(run: runs.Run) -> None:
    def step(number: int, loss: float) -> runs.Stepped:
        return dataclasses.replace(EVENTS[1], step=number, loss=loss)  # type: ignore[type-var]

    again = dataclasses.replace(EVENTS[0], step=2)
    for event in [EVENTS[0], step(1, 4.0), step(2, 3.0), step(3, 2.5), again, step(3, 2.0), step(4, 1.0)]:
        runs.append(run.path, event)
    told = [(event.step, event.loss) for event in runs.read_events(run.path) if isinstance(event, runs.Stepped)]
    assert told == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]


def test_a_follower_hears_every_event_and_ends_with_the_run(run: runs.Run) -> None:
    def work() -> None:
        with runs.owned(run.path):
            for event in EVENTS:
                runs.append(run.path, event)
                time.sleep(0.01)
            runs.update(run.path, {"state": "stopped", "finished": time.time()})

    worker = threading.Thread(target=work)
    worker.start()
    heard = list(runs.follow(run.path, wait_seconds=0.01))
    worker.join()
    assert heard == EVENTS


def test_the_record_is_replaced_whole_and_facts_are_merged(run: runs.Run) -> None:
    assert runs.update(run.path, {"facts": {"task": "chat"}}).facts == {"model": "tiny", "task": "chat"}
    assert not list(run.path.glob(".*tmp*"))


@pytest.mark.parametrize(
    "secret", ["hf_" + "a" * 34, "sk-proj-" + "b" * 24, "ghp_" + "c" * 36, "AKIA" + "D" * 16, "//ann:pass@host/data"]
)
def test_a_secret_never_enters_a_run_folder(tmp_path: Path, secret: str) -> None:
    text = f"model: tiny\ndata: https:{secret}\n" if secret.startswith("//") else f"model: tiny\nname: {secret}\n"
    with pytest.raises(SpecError) as refusal:
        runs.create(tmp_path, "leaky", "0", {"experiment.yaml": text}, {})
    assert refusal.value.where == "experiment.yaml:2" and secret not in str(refusal.value)
    assert not list((tmp_path / "runs").glob("*")) and secret.strip("/") not in redaction.strike(text)


def test_the_environment_s_secrets_are_struck_out_of_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct-horse-battery")
    monkeypatch.setenv("OPENAI_KEY", "quite-another-secret")
    struck = redaction.strike("401 for correct-horse-battery and quite-another-secret")
    assert struck == "401 for [secret] and [secret]"
