"""`luthier search` and what belongs to it, with a tiny base; its processes are this one."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import luthier as lt
from luthier import engines, runs, spec
from luthier.cli import searched
from luthier.runs import Evaluated, Run, Stepped
from luthier.searching import roster
from tests.cli import searches
from tests.cli.conftest import Luthier

SPACE = "{training.learning_rate: [0.003, 0.03], method.rank: [2, 4]}"
BRIEF = ("--set", "training.max_steps=6", "--set", "search.trials=3")


@pytest.fixture
def described(experiment: Path) -> Path:
    """experiment.yaml with a small search."""
    kept = [line for line in experiment.read_text().splitlines() if not line.startswith("training")]
    training = "training: {max_steps: 10, batch_size: 16, learning_rate: 0.01, evaluate_every: 5}"
    lines = (training, f"search: {{space: {SPACE}, trials: 3, sampler: random, pruner: none}}")
    experiment.write_text("\n".join([*kept, *lines]) + "\n")
    return experiment


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search is made and nobody carries it."""

    def start(run: Run, waiting: object = None) -> Run:
        return runs.update(run.path, {"state": "stopped", "finished": time.time()})

    monkeypatch.setattr(engines, "start", start)


def trials(home: Path) -> list[Run]:
    return sorted((run for run in runs.all_runs(home) if "search" in run.facts), key=lambda run: run.id)


def test_a_search_ends_with_its_leaderboard_and_the_winners_verdict(
    luthier: Luthier, described: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = luthier("search")
    assert first.code == 0, first.err
    head, *table, verdict = first.out.splitlines()
    assert re.fullmatch(r"accuracy: tuned \d\.\d\d \(.*", verdict) and head.split()[:2] == ["trial", "state"]
    assert {"learning_rate", "rank"} <= set(head.split()) and len(table) == 3 and table[0].split()[1] == "best"
    home = tmp_path / "home"
    [search] = [run for run in runs.all_runs(home) if run.facts.get("kind") == "search"]
    for words in (" is best: validation loss", "chosen by luck", f"report: {search.path / 'report.html'}"):
        assert words in first.err
    assert (search.path / "report.html").is_file() and len(trials(home)) == 3

    again = luthier("search")
    assert again.out == first.out and f"search {search.id} is done already" in again.err
    told = json.loads(luthier("search", "--json").out)
    assert told["search"] == search.id and told["verdict"] == verdict
    assert [entry["state"] for entry in told["board"]["entries"]] == ["done"] * 3
    best = search.facts["best"]

    listed = luthier("runs").out.splitlines()
    assert len(listed) == 2 and "3 done" in listed[1] and verdict in listed[1]
    shown = luthier("show", search.id)
    assert table[0] in shown.out and verdict in shown.out and "training.learning_rate: 0.003, 0.03" in shown.out
    assert (
        json.loads(luthier("show", "--json").out)["board"]["best"] == told["board"]["best"]
    )  # the newest is the search
    assert "done" in luthier("search", "stop", best).err
    late = luthier("search", "add", search.id, "--set", "method.rank=4")
    assert late.code == 2 and "too late" in late.err

    alone = luthier("tune", "--from", best)
    assert alone.code == 0 and alone.out.strip() == verdict
    [run] = [run for run in runs.all_runs(home) if "search" not in run.facts and run.facts.get("kind") != "search"]
    assert lowest(run) == pytest.approx(lowest(runs.load(home / "runs" / best)), abs=1e-5)

    capsys.readouterr()
    assert lt.search(described).id == best and capsys.readouterr().out == verdict + "\n"


def lowest(run: Run) -> float:
    """The lowest validation loss."""
    return min(event.scores["loss"] for event in runs.read_events(run.path) if isinstance(event, Evaluated))


def test_json_is_events_of_all_trials_and_then_the_board(luthier: Luthier, described: Path, tmp_path: Path) -> None:
    said = luthier("search", *BRIEF, "--json", "--seeds", "2")
    told = [json.loads(line) for line in said.out.splitlines()]
    assert said.code == 0 and all("event" in line for line in told[:-1]) and "board" in told[-1]
    seeded = [run for run in trials(tmp_path / "home") if run.facts["by"] == "seed"]
    assert len(seeded) == 1 and told[-1]["board"]["repeats"]["numbers"] and told[-1]["board"]["state"] == "done"


def test_from_python_the_best_trial_is_given_and_wishes_are_laid_over_the_file(
    luthier: Luthier, described: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = lt.search(described, space={"method.rank": [2, 4]}, trials=2)
    assert capsys.readouterr().out == best.facts["verdict"] + "\n"
    assert set(best.facts["values"]) == {"method.rank"} and len(trials(tmp_path / "home")) == 2


def test_trials_are_added_cloned_and_stopped_by_hand(
    luthier: Luthier, described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engines, "start", lambda run, waiting=None: runs.update(run.path, {"state": "stopped"}))
        begun = luthier("search")
        assert begun.code == 1 and "is stopped" in begun.err and "luthier resume" in begun.err
    [search] = runs.all_runs(tmp_path / "home")
    added = luthier("search", "add", search.name, "--set", "method.rank=3", "--set", "training.learning_rate=1e-2")
    assert (
        added.code == 0 and added.out == "" and "makes a trial: method.rank 3, training.learning_rate 0.01" in added.err
    )
    assert f"luthier resume {search.id}" in added.err
    ended = luthier("resume", search.name)
    assert ended.code == 0 and len(ended.out.splitlines()) == 6
    by_hand = [run for run in trials(tmp_path / "home") if run.facts["by"] == "person"]
    assert [run.facts["values"] for run in by_hand] == [{"method.rank": 3, "training.learning_rate": 0.01}]
    assert spec.load(by_hand[0].path / "resolved.yaml").method.rank == 3


def test_a_clone_has_the_trials_values_but_for_those_that_are_changed(
    luthier: Luthier, described: Path, idle: None, tmp_path: Path
) -> None:
    luthier("search")
    [search] = runs.all_runs(tmp_path / "home")
    trial = roster.Roster(search).make({"method.rank": 4, "training.learning_rate": 0.003}, "sampler")
    said = luthier("search", "clone", trial.id, "--set", "method.rank=8")
    assert said.code == 0 and "method.rank 8" in said.err and "training.learning_rate 0.003" in said.err
    same = luthier("search", "clone", trial.id)
    assert same.code == 2 and "no value is given" in same.err  # it would be a twin
    runs.update(trial.path, {"state": "failed"})
    again = luthier("search", "clone", trial.id)
    assert again.code == 0 and "method.rank 4, training.learning_rate 0.003" in again.err
    runs.update(trial.path, {"state": "queued"})
    stopped = luthier("search", "stop", trial.id)
    assert stopped.code == 0 and trial.id in stopped.err
    assert len(roster.Roster(search).hear(())) == 3  # as the search's process does
    assert sorted(run.state for run in trials(tmp_path / "home")) == ["queued", "queued", "stopped"]


def test_a_search_on_its_way_is_shown_as_it_stands(
    luthier: Luthier, described: Path, idle: None, tmp_path: Path
) -> None:
    luthier("search")
    [search] = runs.all_runs(tmp_path / "home")
    trial = roster.Roster(search).make({"method.rank": 4, "training.learning_rate": 0.003}, "sampler")
    searches.tell(trial, 1, 0.75)
    said = luthier("show", search.name)
    assert said.code == 0 and re.search(r"^000 +queued +0\.75.* 0\.003 +4", said.out, re.M) and search.id in said.out
    assert "nothing can be said of validation loss" in said.err and "stopped" in said.out and "3 to come" in said.err
    told = json.loads(luthier("show", search.name, "--json").out)
    assert (
        told["board"]["best"] is None and told["search"]["trials"] == {"queued": 1} and told["search"]["planned"] == 3
    )
    assert re.search(r"^state +queued", luthier("show", trial.id).out, re.M)  # a trial is shown as a run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("search", "absent.yaml"), "absent.yaml does not exist"),
        (("search", "--set", "search.space.training.learning_rte=[1, 2]"), "learning_rate"),
        (("search", "--set", "search.space.method.rank=[4, 0]"), "method.rank"),
        (("search", "--set", "search.trails=3"), "did you mean `trials`?"),
        (("search", "--set", "data.validation=0.0"), "a search chooses on validation rows, and there are none"),
        (("search", "add", "nobody", "--set", "method.rank=3"), "there is no run `nobody`"),
        (("search", "add", "experiment", "--set", "method.rank=0"), "`method.rank` must be at least 1"),
        (("search", "add", "experiment", "--set", "method.rnk=3"), "did you mean `rank`?"),
        (("search", "add", "experiment", "--set", "method=full"), "is no single parameter"),
        (("search", "add", "experiment"), "no value is given"),
        (("search", "stop", "experiment"), "is no trial"),
        (("search", "clone", "experiment", "--set", "method.rank=3"), "is no trial"),
        (("watch", "nobody"), "there is no run `nobody`"),
        (("show", "nobody"), "there is no run `nobody`"),
        (("tune", "--from", "nobody"), "there is no run `nobody`"),
        (("tune", "--from", "experiment.000", "--seeds", "2"), "as it is"),
    ],
)
def test_what_is_not_there_or_cannot_be_meant_is_your_input(
    luthier: Luthier, described: Path, idle: None, words: tuple[str, ...], said: str
) -> None:
    luthier("search")
    told = luthier(*words)
    assert told.code == 2 and told.err.startswith("error: ") and said in told.err and told.out == ""
    assert "Traceback" not in told.err and "defect" not in told.err


def test_a_ray_that_is_not_installed_is_told_with_the_command(
    luthier: Luthier, described: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "ray":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    said = luthier("search", "--engine", "ray")
    assert said.code in (1, 2) and "needs Ray" in said.err and "pip install 'luthier[ray]'" in said.err
    assert "Traceback" not in said.err and trials(tmp_path / "home") == []
    assert luthier("search", "--engine", "spark").code == 2


def test_a_file_without_a_search_is_searched_in_the_methods_own_space(
    luthier: Luthier, experiment: Path, idle: None, tmp_path: Path
) -> None:
    luthier("search", "--set", "search.trials=5")
    [search] = runs.all_runs(tmp_path / "home")
    assert {"training.learning_rate", "method.rank", "method.dropout"} <= set(search.facts["searched"])
    assert searched.goal(search).trials == 5
    assert luthier("search", experiment).code == 1 and len(runs.all_runs(tmp_path / "home")) == 2


def test_a_plan_of_a_search_says_space_trials_and_cost(luthier: Luthier, described: Path) -> None:
    said = luthier("plan")
    assert said.code == 0 and "3 trials by random, none stopped early" in said.out
    assert "method.rank: 2, 4" in said.out and "10 steps, about 0:0" in said.out and "left aside" not in said.err
    told = json.loads(luthier("plan", "--json").out)
    assert told["search"]["space"] == {"training.learning_rate": [0.003, 0.03], "method.rank": [2, 4]}
    assert told["search"]["trials"] == 3 and told["search"]["chosen"] and told["search"]["steps_each"] == 10
    assert told["values"]["search.trials"] == {"value": 3, "origin": "you"}
    assert told["values"]["search.seeds"]["origin"] == "default"
    own = json.loads(luthier("plan", "--set", "search={trials: 4}", "--json").out)["search"]
    assert own["trials"] == 4 and not own["chosen"] and "training.learning_rate" in own["space"]
    assert "default: the method's own" in luthier("plan", "--set", "search={trials: 4}").out
    alone = json.loads(luthier("plan", "--set", "search=null", "--json").out)
    assert "search" not in alone


def test_ctrl_c_saves_every_trial_and_says_how_to_go_on(
    luthier: Luthier, described: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engines, "start", lambda run, waiting=None: run)
    monkeypatch.setattr(searched, "follow", interrupted)
    said = luthier("search")
    [search] = runs.all_runs(tmp_path / "home")
    assert said.code == 1 and "stopping: every trial under way saves first" in said.err
    assert f"continue: luthier resume {search.id} (or the same command again)" in said.err and search.state == "stopped"


@pytest.mark.slow
def test_an_interrupt_of_a_real_search_leaves_it_to_be_continued(tmp_path: Path, described: Path) -> None:
    home = tmp_path / "home"
    environment = os.environ | {"LUTHIER_HOME": str(home), "PYTHONPATH": str(Path(lt.__file__).parents[1])}
    words = [sys.executable, "-m", "luthier", "search", "--set", "training.max_steps=50000"]
    child = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    wait(lambda: any(isinstance(event, Stepped) for run in trials(home) for event in runs.read_events(run.path)), child)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    [search] = [run for run in runs.all_runs(home) if run.facts.get("kind") == "search"]
    assert child.returncode == 1 and search.state == "stopped" and "Traceback" not in said
    assert f"continue: luthier resume {search.id}" in said
    assert {run.state for run in trials(home)} <= {"stopped", "queued"}


def wait(condition: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    while not condition():
        assert child.poll() is None
        time.sleep(0.1)
