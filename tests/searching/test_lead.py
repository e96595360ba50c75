"""A search: which it is, who trains which trial, what is left wherever it is ended, what people change meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier import engines, hardware, logbook, runs, spec, worker
from luthier.errors import DataError, LuthierError, NotFound, SpecError, TrainingError
from luthier.runs import Noted, Run
from luthier.searching import handing, lead, roster
from luthier.studio import Studio, report, winner
from luthier.trials import board, record, space
from tests import rows
from tests.conftest import Starting
from tests.formulas import Died, Lost, Wave, Waves

RATES = {"training.learning_rate": [1e-4, 1e-3, 1e-2, 1e-1]}
GRID = {"space": RATES, "sampler": "grid", "pruner": "none", "trials": 4}
Experiments = Callable[..., spec.Experiment]


@pytest.fixture
def experiment(tiny: Callable[..., Path], tmp_path: Path) -> Experiments:
    def make(search: dict[str, Any] | None = None, **parts: Any) -> spec.Experiment:
        values = {"name": "tiny", "model": str(tiny("tiny_llama")), "data": str(rows.pairs(tmp_path)), "method": "lora"}
        wishes = {name: wish for name, wish in (GRID | (search or {})).items() if wish is not None}
        return spec.from_mapping(values | {"search": wishes} | parts)

    return make


@pytest.fixture
def waves() -> Waves:
    return Waves()


@pytest.fixture
def tested() -> list[str]:
    """The trials that have opened the test."""
    return []


@pytest.fixture
def studio(
    tmp_path: Path, waves: Waves, tested: list[str], monkeypatch: pytest.MonkeyPatch, starting: Starting
) -> Studio:
    """Searches are carried by this process, their trials are trained by a formula, their winner's test is empty."""

    def start(run: Run) -> Run:
        if run.facts.get("kind") == "search":
            worker.work(run.path, lambda: False, lead.carry)
        elif run.state == "done":  # the winner
            tested.append(run.id)
            (run.path / "report.json").write_text("{}")
            runs.update(run.path, {"facts": {"verdict": "better"}})
        return runs.load(run.path)

    starting(start)
    monkeypatch.setattr(engines, "Helper", waves)
    monkeypatch.setattr(handing, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr("luthier.workbench.judge", lambda experiment, dataset: None)
    monkeypatch.setattr(lead.report, "read_json", lambda path: None)
    return Studio(tmp_path / "home")


def trials(search: Run) -> list[Run]:
    return roster.Roster(search).runs()


def states(search: Run) -> list[str]:
    return [run.state for run in trials(search)]


def noted(search: Run, kind: str) -> list[str]:
    return [event.message for event in runs.read_events(search.path) if isinstance(event, Noted) and event.kind == kind]


# --- which search
def test_every_trial_is_a_run_the_best_on_validation_wins_and_it_alone_opens_the_test(
    studio: Studio, experiment: Experiments, waves: Waves, tested: list[str]
) -> None:
    search = studio.search(experiment())
    assert search.state == "done" and search.facts["kind"] == "search"
    found = trials(search)
    assert [run.id for run in found] == [f"{search.id}.{number:03d}" for number in range(4)]
    assert {run.facts["values"]["training.learning_rate"] for run in found} == set(RATES["training.learning_rate"])
    assert states(search) == ["done"] * 4 and {run.facts["by"] for run in found} == {"sampler"}
    for run in found:
        resolved = spec.load(run.path / "resolved.yaml")
        assert resolved.training.learning_rate == run.facts["values"]["training.learning_rate"]
        assert resolved.search is None and run.name == resolved.name == f"tiny.{run.facts['number']:03d}"
    best = studio.find(search.facts["best"])
    assert best.facts["values"] == {"training.learning_rate": 1e-2} and tested == [best.id]
    assert search.facts["verdict"] == "better" and winner(search).id == best.id == winner(best).id
    assert studio.search(experiment()).id == search.id and len(waves.told) == 8  # nothing is done again
    assert studio.find().id == search.id and studio.find("tiny").id == search.id  # not one of its trials
    assert studio.search(experiment(), new=True).id != search.id


def test_a_search_described_otherwise_is_another_one_or_refused_while_it_is_under_way(
    studio: Studio, experiment: Experiments, waves: Waves
) -> None:
    search = studio.search(experiment())
    other = studio.search(experiment({"trials": 3}))
    assert other.id != search.id
    runs.update(other.path, {"state": "stopped"})
    with pytest.raises(SpecError, match=r"is stopped and was described differently: `search.trials` \(3 → 4\)"):
        studio.search(experiment())
    assert studio.tune(spec.changed(experiment(), ["search=null"]))  # a run of that name is none of the searches


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"space": {"data.limit": [1, 2]}}, "`search.space.data.limit` is the same for all trials"),
        ({"space": {"evaluation.max_new_tokens": [1, 2]}}, "is the same for all trials"),
        ({"space": {"method.rank": [4, 0]}}, "method.rank"),
        ({"objective": "exactness"}, "exactness"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_made(
    studio: Studio, experiment: Experiments, wishes: dict[str, Any], words: str
) -> None:
    with pytest.raises(LuthierError, match=words):
        studio.search(experiment(wishes))
    assert studio.runs() == []


def test_without_validation_rows_there_is_nothing_to_choose_by(
    studio: Studio, experiment: Experiments, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="chooses on validation rows, and there are none"):
        studio.search(experiment(data={"train": str(rows.pairs(tmp_path)), "validation": 0.0}))


# --- who trains what
def test_as_many_processes_and_slots_as_were_measured_to_pay_and_never_more_than_at_once(
    studio: Studio, experiment: Experiments, waves: Waves
) -> None:
    waves.placed = {"processes": 2, "slots": 2, "threads": 1}
    search = studio.search(experiment())
    assert waves.most == 2 and states(search) == ["done"] * 4
    [placed] = search.facts["placements"].values()
    assert placed["processes"] == 2
    for at_once in (1, 2, 3):
        waves.most, riding, most = 0, set[int](), [0]

        def before(run: Run, step: int, riding: set[int] = riding, most: list[int] = most) -> None:
            riding.add(run.facts["number"])
            most[0] = max(most[0], len(riding))
            if step == 4:
                riding.discard(run.facts["number"])

        waves.before = before
        search = studio.search(experiment({"at_once": at_once}), new=True)
        assert states(search) == ["done"] * 4 and most[0] <= at_once and waves.most <= at_once


@pytest.mark.parametrize(
    ("sampler", "trials", "processes", "slots"),
    [("grid", 4, 2, 2), ("grid", 4, 3, 2), ("random", 8, 1, 8), ("tpe", 8, 1, 2), ("tpe", 8, 2, 1), ("cmaes", 9, 1, 3)],
)
def test_where_nobody_says_how_many_at_once_each_process_has_its_part_and_a_sampler_that_learns_is_told(
    studio: Studio, experiment: Experiments, waves: Waves, sampler: str, trials: int, processes: int, slots: int
) -> None:
    waves.placed |= {"processes": processes, "slots": 16}
    ranges = {"training.learning_rate": {"log": [1e-5, 1e-1]}, "method.dropout": {"uniform": [0, 0.2]}}
    space = RATES if sampler == "grid" else ranges
    search = studio.search(experiment({"space": space, "sampler": sampler, "trials": trials}))
    assert search.state == "done" and len(states(search)) == trials
    told = [[json.loads(line).get("slots") for line in wave.heard[:2]] for wave in waves.all]
    assert told[0] == [None, slots]  # it has measured
    assert {slots_told[0] for slots_told in told[1:]} <= {slots} and (processes == 1 or len(told) > 1)


def test_a_base_in_a_folder_is_the_same_wherever_the_search_goes_on(
    studio: Studio, experiment: Experiments, waves: Waves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves.loss = lambda values: 1.0
    one, two = (shutil.copytree(experiment().model.name, tmp_path / name) for name in ("one", "two"))
    ranks = {"choices": [2, 4], "when": {"model.name": ["two"]}}
    wishes = {"space": {"model.name": ["two", "one"], "method.rank": ranks}, "sampler": "tpe", "trials": 3}
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(engines, "start", lambda run, waiting=None: run)
        search = studio.search(experiment(wishes, model="one"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    search = studio.resume(search)
    assert search.error is None and states(search) == ["done"] * 3
    first, *others = (run.facts["values"] for run in trials(search))
    assert first == {"model.name": str(one)}  # as described
    assert all(values["model.name"] == str(two) and values["method.rank"] in (2, 4) for values in others)


def test_trials_that_show_the_rows_in_other_words_train_in_another_process(
    studio: Studio, experiment: Experiments, waves: Waves
) -> None:
    waves.loss = lambda values: 1.0
    space = {"data.template": ["{input}", "Q: {input}"], "method.rank": [2, 4]}
    search = studio.search(experiment({"space": space, "at_once": 1}))
    assert states(search) == ["done"] * 4 and waves.most == 1
    assert len({run.facts["group"] for run in trials(search)}) == 2


def test_one_trial_at_a_time_gives_the_same_trials_and_winner_again(studio: Studio, experiment: Experiments) -> None:
    space = {"training.learning_rate": {"log": [1e-5, 1e-1]}, "method.rank": [2, 4, 8]}
    for sampler in ("tpe", "random"):
        given = experiment({"space": space, "sampler": sampler, "trials": 12, "at_once": 1, "pruner": "asha"})
        first, second = (studio.search(given, new=True) for _ in range(2))
        told = [[(run.facts["values"], run.state) for run in trials(search)] for search in (first, second)]
        assert told[0] == told[1] and first.facts["best"][-3:] == second.facts["best"][-3:]


def test_the_winner_stays_the_best_while_it_answers_the_test(
    studio: Studio, experiment: Experiments, starting: Starting
) -> None:
    """Its folder says `running`, or `stopped`; it is done all the same, and no other trial takes its place."""
    seen: list[board.Board] = []

    def start(run: Run) -> Run:
        if run.facts.get("kind") == "search":
            worker.work(run.path, lambda: False, lead.carry)
        else:
            search = studio.find(run.facts["search"])
            with runs.owned(run.path):
                assert runs.load(run.path).state == "running"
                seen.append(lead.board_of(search))
            (run.path / "report.json").write_text("{}")
        return runs.update(run.path, {"state": "done"})

    starting(start)
    search = studio.search(experiment({"trials": 3}))
    [found] = seen
    assert found.winner is not None and found.winner.run_id == search.facts["best"] and found.winner.state == "done"
    runs.update(studio.find(search.facts["best"]).path, {"state": "stopped"})
    assert lead.board_of(search).best == found.best


# --- budget
def test_weak_trials_end_early_and_count(studio: Studio, experiment: Experiments) -> None:
    space = {"training.learning_rate": {"log": [1e-5, 1e-1]}}
    search = studio.search(experiment({"space": space, "sampler": "random", "trials": 12, "pruner": "median"}))
    assert len(trials(search)) == 12 and set(states(search)) == {"done", "pruned"}


def test_after_the_time_limit_no_trial_begins_counted_over_restarts(
    studio: Studio, experiment: Experiments, waves: Waves
) -> None:
    waves.before = lambda run, step: time.sleep(0.2)
    search = studio.search(experiment({"time_limit": 1.0}))
    assert search.state == "done" and 1 <= len(trials(search)) < 4 and set(states(search)) == {"done"}
    begun = roster.Roster(search)
    assert begun.spent() == pytest.approx(search.facts.get("spent", 0.0), abs=0.5)
    begun.keep(spent=2.0)
    assert not roster.Roster(runs.load(search.path)).may_ask()


def test_after_the_token_limit_no_trial_begins_and_no_number_of_trials_is_needed(
    studio: Studio, experiment: Experiments
) -> None:
    alone = studio.search(experiment({"trials": 1, "at_once": 1}))
    [trial] = trials(alone)
    each = record.read(trial).tokens
    assert each > 0
    wide = {"training.learning_rate": {"log": [1e-5, 1e-1]}}
    limit = {"token_limit": 2 * each + 1, "at_once": 1, "trials": None, "space": wide, "sampler": "random"}
    search = studio.search(experiment(limit), new=True)
    assert search.state == "done" and len(trials(search)) == 3  # the third begins below the limit
    assert roster.Roster(search).wishes.trials == space.MOST_TRIALS and not roster.Roster(search).may_ask()


def test_a_trial_that_fails_counts_and_is_shown(studio: Studio, experiment: Experiments, waves: Waves) -> None:
    def refuse(run: Run, step: int) -> None:
        if run.facts["values"]["training.learning_rate"] == 1e-1 and step == 2:
            raise TrainingError("the loss is not finite")

    waves.before = refuse
    search = studio.search(experiment())
    assert search.state == "done" and sorted(states(search)) == ["done"] * 3 + ["failed"]
    [said] = [words for words in noted(search, "trial") if "failed" in words]
    assert "the loss is not finite" in said


def test_a_search_whose_first_trials_all_fail_alike_does_not_try_the_others(
    studio: Studio, experiment: Experiments, waves: Waves
) -> None:
    def refuse(run: Run, step: int) -> None:
        raise TrainingError(f"not enough memory: {run.facts['number']}.5 GiB", "here", "less")

    waves.before = refuse
    search = studio.search(experiment({"trials": 4}))
    assert search.state == "failed" and states(search) == ["failed"] * 3
    found = board.read_json(search.path / board.FILE)
    assert found.state == "failed" and [each.numbers for each in found.failures] == [(0, 1, 2)]
    assert "not enough memory" in (search.path / board.PAGE).read_text()
    assert search.error is not None and search.error["message"] == "not enough memory: 0.5 GiB"
    assert search.error["hint"] == "less"


def test_what_failed_before_does_not_end_a_search_that_goes_on(
    studio: Studio, experiment: Experiments, waves: Waves
) -> None:
    def refuse(run: Run, step: int) -> None:
        raise TrainingError("the disk refuses")

    waves.before = refuse
    assert studio.search(experiment()).state == "failed"
    waves.before = lambda run, step: None  # somebody has made room
    search = studio.search(experiment())
    assert search.state == "done" and states(search) == ["failed"] * 3 + ["done"]


def test_a_search_of_which_nothing_came_takes_trials_of_a_person(
    studio: Studio, experiment: Experiments, waves: Waves
) -> None:
    def refuse(run: Run, step: int) -> None:
        raise TrainingError("the disk refuses")

    waves.before = refuse
    search = studio.search(experiment({"trials": 2}))
    failed = trials(search)[0]
    assert search.state == "failed" and failed.state == "failed"
    assert studio.clone(failed, {}) == failed.facts["values"]
    assert studio.add(search, {"training.learning_rate": 0.5}) == {"training.learning_rate": 0.5}
    waves.before = lambda run, step: None
    search = studio.resume(search)
    assert search.state == "done" and states(search) == ["failed"] * 2 + ["done"] * 2
    assert studio.find(search.facts["best"]).facts["by"] == "person"


def test_what_nobody_foresaw_is_told_with_the_log_that_has_it(studio: Studio, experiment: Experiments) -> None:
    search = studio.search(experiment())
    trial = trials(search)[0]
    wheres = []
    for run in (trial, search):
        told = logbook.ended(run, RuntimeError("odd"))[1]
        assert told is not None
        wheres.append(told["where"])
    assert wheres == [str(search.path / runs.LOG)] * 2
    (trial.path / runs.LOG).touch()  # the winner has a worker of its own
    told = logbook.ended(trial, RuntimeError("odd"))[1]
    assert told is not None and told["where"] == str(trial.path / runs.LOG)


# --- durable
def test_a_trial_whose_process_dies_is_tried_once_more_from_where_it_was(
    studio: Studio, experiment: Experiments, waves: Waves
) -> None:
    died = set[int]()

    def die_once(run: Run, step: int) -> None:
        if step == 3 and run.facts["number"] not in died:
            died.add(run.facts["number"])
            raise Died

    waves.before = die_once
    search = studio.search(experiment())
    assert search.state == "done" and states(search) == ["done"] * 4 and died == {0, 1, 2, 3}
    assert [run.facts["retries"] for run in trials(search)] == [1] * 4
    assert [told for told in waves.told if told[:2] == ("began", 0)] == [("began", 0, 0), ("began", 0, 2)]
    assert len(noted(search, "retry")) == 4


def test_a_trial_whose_node_is_lost_is_tried_again_however_often(
    studio: Studio, experiment: Experiments, waves: Waves
) -> None:
    lost = list[int]()

    def lose(run: Run, step: int) -> None:
        if run.facts["number"] == 1 and len(lost) < 3:
            lost.append(step)
            raise Lost

    waves.before = lose
    search = studio.search(experiment())
    assert search.state == "done" and states(search) == ["done"] * 4 and len(lost) == len(noted(search, "retry")) == 3
    assert not any("retries" in run.facts for run in trials(search))


@pytest.mark.timeout(60)
def test_a_process_that_cannot_be_heard_is_not_waited_for(
    studio: Studio, experiment: Experiments, waves: Waves, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Wave.lines

    def lines(wave: Wave) -> Iterator[str]:
        told = whole(wave)
        yield next(told)
        if wave is waves.all[0]:
            raise OSError("cut off")
        yield from told

    monkeypatch.setattr(Wave, "lines", lines)
    search = studio.search(experiment())
    assert states(search) == ["done"] * 4 and waves.all[0].killed
    [retried] = noted(search, "retry")
    assert "trial 000" in retried and "OSError: cut off" in retried


def test_a_trial_whose_process_dies_twice_has_failed_and_those_beside_it_have_not(
    studio: Studio, experiment: Experiments, waves: Waves
) -> None:
    def die(run: Run, step: int) -> None:
        if run.facts["number"] == 1 and step == 2:
            raise Died

    waves.before, waves.placed["slots"] = die, 4
    search = studio.search(experiment())
    assert search.state == "done" and states(search) == ["done", "failed", "done", "done"]
    error = trials(search)[1].error
    assert error is not None and "its process ended twice: signal 9" in (error["message"] or "")


def test_stopped_at_any_moment_it_goes_on_and_nothing_runs_twice(
    studio: Studio, experiment: Experiments, waves: Waves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every update may be the last of an attempt: each attempt makes one and is asked to stop."""
    asked = threading.Event()

    def stop(run: Run, step: int) -> None:
        asked.set()

    waves.before = stop
    given = experiment({"space": {"training.learning_rate": [1e-3, 1e-2]}, "trials": 2})
    monkeypatch.setattr(engines, "start", lambda run, waiting=None: run)
    search = studio.search(given)
    assert studio.search(given).id == search.id
    again = 0
    while (search := runs.load(search.path)).facts.get("best") is None:
        assert search.state in ("queued", "stopped")
        asked.clear()
        with pytest.MonkeyPatch.context() as here:
            here.setattr(lead, "judge", lambda roster, best, stop: None)
            worker.work(search.path, asked.is_set, lead.carry)
        assert "running" not in states(search)
        if runs.load(search.path).state == "stopped":
            assert board.read_json(search.path / board.FILE).state == "stopped" and (search.path / board.PAGE).is_file()
        again += 1
    assert again > 4 and states(search) == ["done"] * 2
    done = [told for told in waves.told if told[0] == "done"]
    assert sorted(number for _, number, _ in done) == [0, 1]
    for number in range(2):  # every attempt began where the last one had ended
        steps = [told[2] for told in waves.told if told[1] == number and told[0] == "began"]
        assert steps == sorted(set(steps))


# --- people
def test_a_person_adds_stops_and_changes_trials_while_it_runs(
    studio: Studio, experiment: Experiments, waves: Waves
) -> None:
    stopped = list[str]()

    def meddle(run: Run, step: int) -> None:
        search = studio.find(run.facts["search"])
        if run.facts["number"] == 0 and step == 1:
            assert studio.add(search, {"method.rank": 2, "training.learning_rate": 0.02}) != {}
            assert studio.clone(run, {"method.dropout": 0.25}) == run.facts["values"] | {"method.dropout": 0.25}
        elif run.facts["by"] == "sampler" and not stopped and step == 2:
            stopped.append(run.id)
            with pytest.MonkeyPatch.context() as monkey:
                monkey.setattr(runs, "owner", lambda path: None)  # nobody to wait for in this thread
                studio.stop(run)

    waves.before = meddle
    search = studio.search(experiment())
    found = trials(search)
    assert search.state == "done" and len(found) == 6 and [run.facts["by"] for run in found].count("person") == 2
    added, cloned = (run for run in found if run.facts["by"] == "person")
    assert added.state == cloned.state == "done"
    resolved = spec.load(cloned.path / "resolved.yaml")
    assert isinstance(resolved.method, spec.Lora) and resolved.method.dropout == 0.25
    assert [run.id for run in found if run.state == "stopped"] == stopped == search.facts["unwanted"]
    assert list((search.path / roster.WISHES).iterdir()) == []


def test_a_wish_that_cannot_be_meant_is_refused_at_once(studio: Studio, experiment: Experiments) -> None:
    search = studio.search(experiment())
    with pytest.raises(SpecError, match="has chosen its winner"):
        studio.add(search, {"method.rank": 2})
    runs.update(search.path, {"state": "stopped", "facts": {"best": None}})
    search = runs.load(search.path)
    for values in ({"method.rnk": 2}, {"method.rank": "much"}, {"data.limit": 3}, {"seed": "one"}, {"name": "x"}):
        with pytest.raises(SpecError):
            studio.add(search, values)
    assert studio.add(search, {}) == {}  # the file's own values
    with pytest.raises(NotFound, match="has no winner yet"):
        studio.publish(search, "out")
    with pytest.raises(SpecError, match="is no search"):
        studio.add(trials(search)[0], {"method.rank": 2})
    with pytest.raises(SpecError, match="is no trial"):
        studio.clone(search, {"method.rank": 2})


def test_a_trial_is_resumed_by_its_search_and_tuned_again_by_itself(
    studio: Studio, experiment: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = studio.search(experiment())
    trial = trials(search)[0]
    runs.update(trial.path, {"state": "interrupted"})
    with pytest.raises(SpecError, match="is a trial, which its search carries") as refusal:
        studio.resume(runs.load(trial.path))
    assert search.id in str(refusal.value.hint)
    monkeypatch.setattr(engines, "start", lambda run, waiting=None: run)
    alone = studio.again(trial)
    assert alone.fingerprint == trial.fingerprint and alone.name == trial.name and "search" not in alone.facts
    assert (alone.path / "resolved.yaml").read_text() == (trial.path / "resolved.yaml").read_text()
    assert alone.facts["drawn_by"] == trial.facts["drawn_by"]
    assert studio.again(trial).id == alone.id


def test_the_winner_is_trained_with_further_seeds_on_the_same_rows(
    studio: Studio, experiment: Experiments, tested: list[str]
) -> None:
    search = studio.search(experiment({"seeds": 3}))
    seeded = [run for run in trials(search) if run.facts["by"] == "seed"]
    best = studio.find(search.facts["best"])
    assert [run.facts["values"] for run in seeded] == [best.facts["values"] | {"seed": seed} for seed in (1, 2)]
    assert {run.facts["dataset"] for run in trials(search)} == {search.facts["dataset"]}
    assert {run.facts["drawn_by"] for run in seeded} == {0} and tested == [best.id]


def test_further_seeds_are_counted_from_the_winners_own_and_a_clone_keeps_it(
    studio: Studio, experiment: Experiments, waves: Waves
) -> None:
    waves.loss = lambda values: 2.0 - values["seed"]
    search = studio.search(experiment({"space": {"seed": [0, 1]}, "trials": 2, "seeds": 3}))
    assert studio.find(search.facts["best"]).facts["values"] == {"seed": 1}
    assert [run.facts["values"]["seed"] for run in trials(search) if run.facts["by"] == "seed"] == [2, 3]
    runs.update(search.path, {"state": "stopped", "facts": {"best": None}})
    assert studio.clone(studio.find(f"{search.id}.001"), {"method.rank": 2})["seed"] in (0, 1)


# --- processes
def test_processes_that_wait_are_used_first_and_none_is_left(
    studio: Studio, waves: Waves, experiment: Experiments, starting: Starting, tmp_path: Path
) -> None:
    """The first that lives is told the search; the dead one and the one for which there is no work are ended."""
    carried: list[list[Wave]] = []

    def start(run: Run) -> Run:
        if run.facts.get("kind") == "search":
            spares = [waves(["luthier.searching.wave"], tmp_path) for _ in range(3)]
            spares[0].returncode = 1
            carried.append(spares)
            worker.work(run.path, lambda: False, lambda run, stop: lead.carry(run, stop, spares))
        else:
            (run.path / "report.json").write_text("{}")
        return runs.load(run.path)

    starting(start)
    search = studio.search(experiment({"at_once": 1}))
    [(dead, alive, more)] = carried
    assert states(search) == ["done"] * 4 and not dead.heard and not more.heard and dead.killed and more.killed
    told = json.loads(alive.heard[0])
    assert told["search"] == str(search.path) and told["environment"] == {}
    assert waves.made == 3  # nobody else was begun


def test_processes_on_a_machine_of_several_graphics_cards_have_one_each(
    studio: Studio, waves: Waves, experiment: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves.placed["processes"] = 2
    for cards, told in ((("0", "3"), {0, 1}), (("0",), {None})):
        monkeypatch.setattr(hardware, "graphics_cards", lambda _, cards=cards: cards)
        waves.all.clear()
        assert states(studio.search(experiment(), new=True)) == ["done"] * 4
        assert {json.loads(wave.heard[0])["card"] for wave in waves.all} == told


def test_another_process_imports_while_the_first_one_measures(
    studio: Studio, waves: Waves, experiment: Experiments, starting: Starting, tmp_path: Path, monkeypatch: Any
) -> None:
    """It is begun as soon as the search is known, takes its part, and ends where measuring says that one is enough."""
    monkeypatch.setattr(hardware, "cores", lambda: 2)

    def start(run: Run) -> Run:
        if run.facts.get("kind") == "search":
            spare = waves(["luthier.searching.wave"], tmp_path)
            worker.work(run.path, lambda: False, lambda run, stop: lead.carry(run, stop, [spare]))
        else:
            (run.path / "report.json").write_text("{}")
        return runs.load(run.path)

    starting(start)
    for processes in (2, 1):
        waves.placed["processes"], waves.made = processes, 0
        search = studio.search(experiment(), new=True)
        assert states(search) == ["done"] * 4 and waves.made == 2
    assert [wave.heard != [] for wave in waves.all] == [True, True, True, False] and waves.all[-1].killed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_real_processes_killed_and_begun_again_give_the_winners_run(
    tmp_path: Path, experiment: Experiments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wave, then the search itself is killed (signal 9); the same call goes on and prints the winner's verdict."""
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    given = spec.changed(experiment(), ["search=null", "training.num_epochs=2", "evaluation.compare_base=false"])
    wishes = {"space": RATES, "sampler": "grid", "pruner": "none", "at_once": 1}
    studio, search = Studio(), None
    search = studio.search(experiment(wishes, training={"num_epochs": 2}, evaluation={"compare_base": False}))
    owner = None
    while owner is None:
        begun = [run for run in trials(search) if run.state == "running"]
        owner = runs.owner(begun[0].path) if begun else None
    os.kill(owner["pid"], signal.SIGKILL)
    while not noted(search, "retry"):
        time.sleep(0.05)
    holder = runs.owner(search.path)
    assert holder is not None
    os.kill(holder["pid"], signal.SIGKILL)
    while runs.owner(search.path) is not None:
        time.sleep(0.05)
    assert runs.load(search.path).state == "interrupted"
    best = luthier.search(given, **wishes)
    done = runs.load(search.path)
    assert done.state == "done" and best.id == done.facts["best"] and states(done) == ["done"] * 4
    assert report(best).verdict in capsys.readouterr().out and report(done).verdict == report(best).verdict
    assert board.read_json(done.path / board.FILE).best == best.facts["number"]
    assert (done.path / board.PAGE).is_file()
    assert luthier.search(given, **wishes).id == best.id
