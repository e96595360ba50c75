"""A wave: trials that train beside others and come out as alone, each with a folder like any run's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from luthier import assessment, ownership, runs, workbench, worker
from luthier.errors import TrainingError
from luthier.evaluation import ask, metrics, predictions
from luthier.evaluation.report import read_json
from luthier.models import methods
from luthier.searching.sharing import Group
from luthier.studio import Studio, failure
from luthier.train import checkpoint
from luthier.trials import rows as rows_of_trials
from tests import rows
from tests.waves import SPREAD, TRAINING, Trials

ROUNDING = 2e-5


def states(paths: list[Path]) -> list[str]:
    return [runs.load(path).state for path in paths]


def of(path: Path, kind: type[runs.Event]) -> list[Any]:
    return [event for event in runs.read_events(path) if isinstance(event, kind)]


def learned(path: Path) -> dict[str, Any]:
    return load_file(path / "adapter" / "adapter_model.safetensors")


def far(one: Path, other: Path) -> float:
    """The largest difference between what two runs learned."""
    a, b = learned(one), learned(other)
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def steps_kept(path: Path) -> list[str]:
    return sorted(folder.name for folder in (path / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def ridden(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """Four trials that differ in everything slots may differ in, in two slots."""
    trials = Trials(tmp_path_factory.mktemp("ridden"))
    trials.add(*SPREAD)
    assert trials.wave() == 0, (trials.folder / "log").read_text()
    return trials


def test_a_trial_beside_others_equals_the_run_it_would_be_alone(ridden: Trials) -> None:
    """Update by update, evaluation by evaluation, and the checkpoints that stand; every trial in another company."""
    for path, changes in zip(ridden.made, SPREAD, strict=True):
        alone = ridden.alone(changes)
        assert worker.work(alone, lambda: False) == 0
        for kind, values in ((runs.Stepped, ("loss", "grad_norm", "learning_rate")), (runs.Evaluated, ("scores",))):
            beside, by_itself = of(path, kind), of(alone, kind)
            assert [event.step for event in beside] == [event.step for event in by_itself]
            for one, other in zip(beside, by_itself, strict=True):
                for value in values:
                    expected = vars_of(other, value)
                    assert vars_of(one, value) == pytest.approx(expected, rel=1e-4, abs=1e-6), (changes, one.step)
        best = [[event.step for event in of(run, runs.Evaluated) if event.best] for run in (path, alone)]
        assert best[0] == best[1] and steps_kept(path) == steps_kept(alone)
        assert far(path, alone) < ROUNDING


def test_what_the_rows_were_worth_is_kept_with_the_weights_that_are(ridden: Trials) -> None:
    for path in ridden.made:
        kept = rows_of_trials.read(path)
        assert kept is not None and len(kept.ids) == len(set(kept.ids)) > 1
        best = [event for event in of(path, runs.Evaluated) if event.best][-1]
        assert sum(kept.values["loss"]) / sum(kept.sizes["loss"]) == pytest.approx(best.scores["loss"], rel=1e-6)


def vars_of(event: Any, name: str) -> Any:
    return {"scores": lambda: event.scores["loss"]}.get(name, lambda: runs.to_json(event)[name])()


def test_every_trial_has_a_folder_like_any_run_s(ridden: Trials) -> None:
    assert states(ridden.made) == ["done"] * 4
    for path in ridden.made:
        run = runs.load(path)
        assert failure(run) is None and runs.owner(path) is None and run.facts["longest_answer"] > 0
        assert isinstance(runs.read_events(path)[-1], runs.Finished) and workbench.learned(run).is_dir()
        choices = json.loads((path / "environment.json").read_text())["choices"]
        assert choices["threads"] == 1 and choices["budget"] == 4096 and choices["product"]
        assert not list(path.rglob(".*tmp-*")) and not (path / "stop").exists()


def test_the_search_hears_of_every_evaluation_and_of_the_end_with_the_scores_that_were_kept(ridden: Trials) -> None:
    assert [said["want"] for said in ridden.told("want")] == [None, "g", "g", "g", "g"]
    for path in ridden.made:
        evaluated = of(path, runs.Evaluated)
        heard = [said for said in ridden.told("heard") if said["heard"] == path.name]
        assert [said["step"] for said in heard] == [event.step for event in evaluated] and len(heard) > 1
        assert heard[-1]["share"] == 1.0 and all(said["scores"].keys() == {"loss"} for said in heard)
        [ended] = [said for said in ridden.told("ended") if said["ended"] == path.name]
        best = min(event.scores["loss"] for event in evaluated)
        assert ended["state"] == "done" and ended["scores"] == {"loss": best} == runs.load(path).facts["scores"]


def test_the_ordinary_worker_asks_a_finished_trial_and_opens_the_test_once(ridden: Trials) -> None:
    """Nothing is trained again; afterwards it is a run for `evaluate`, `generate`, `compare`."""
    one, other = ridden.made[0], ridden.made[1]
    before = (one / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns, len(of(one, runs.Stepped))
    for path in (one, other):
        assert worker.work(path, lambda: False) == 0
        assert [opening.run for opening in read_json(path / "report.json").openings].count(path.name) == 1
    after = (one / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns, len(of(one, runs.Stepped))
    assert before == after and read_json(one / "report.json").subject.split == "test"
    studio = Studio(ridden.studio.home)
    assert studio.find(one.name).state == "done"
    assert studio.compare([runs.load(one), runs.load(other)]).shared
    [reply] = studio.generate(runs.load(one), ["item 3?"])
    assert isinstance("".join(reply.tuned), str)


def test_a_trial_that_the_gate_refuses_fails_alone_as_a_run_would(tmp_path: Path) -> None:
    long = rows.write(tmp_path / "long.jsonl", [{"input": f"{i} " + "x" * i, "output": "yes"} for i in range(1, 30)])
    trials = Trials(tmp_path, data=str(long))
    short = {"training.max_seq_length": 20}
    good, refused, last = trials.add({}, short, {"seed": 3})
    alone = trials.alone(short)
    assert worker.work(alone, lambda: False) == 1
    assert trials.wave() == 0
    assert states([good, refused, last]) == ["done", "failed", "done"]
    here, there = failure(runs.load(refused)), failure(runs.load(alone))
    assert here is not None and there is not None and type(here) is type(there)
    assert (here.message, here.where, here.hint) == (there.message, there.where, there.hint)
    assert not (refused / "checkpoints").exists()
    [ended] = [said for said in trials.told("ended") if said["ended"] == refused.name]
    assert ended["state"] == "failed"


def test_a_trial_with_modules_that_are_not_there_fails_alone(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    paths = trials.add({"method.target_modules": ["nowhere"]}, {}, {"method.target_modules": ["nothing"]}, {"seed": 2})
    assert trials.wave() == 0
    assert states(paths) == ["failed", "done", "failed", "done"]
    assert "nowhere" in str(failure(runs.load(paths[0])))


def test_a_weak_trial_is_ended_by_the_search_and_its_slot_is_refilled(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    weak, *others = trials.add({}, {"seed": 1}, {"seed": 2})
    said = {"end": ["pruned", "worse than the median"]}
    assert trials.wave(verdict=lambda heard: said["end"] if heard["heard"] == weak.name else None) == 0
    assert states([weak, *others]) == ["pruned", "done", "done"]
    last = of(weak, runs.Finished)[-1]
    assert (last.state, last.reason, last.step) == ("pruned", "worse than the median", TRAINING["evaluate_every"])
    assert not (weak / "adapter").exists() and steps_kept(weak)
    assert runs.load(weak).facts["scores"] == of(weak, runs.Evaluated)[0].scores
    third = [said for said in trials.said if said.get("heard") == others[1].name or said.get("ended") == weak.name]
    assert "ended" in third[0]  # it began in the place of the weak one


def test_a_trial_that_over_fits_ends_as_done_and_what_it_keeps_is_what_is_tested(tmp_path: Path) -> None:
    """Its best weights are saved, not its last; the worker that opens the test trains no further."""
    trials = Trials(tmp_path, training=TRAINING | {"learning_rate": 3.0, "schedule": "constant", "evaluate_every": 1})
    (one,) = trials.add({})

    def worse(heard: dict[str, Any]) -> list[str] | None:
        return None if of(one, runs.Evaluated)[-1].best else ["done", "it over-fits"]

    assert trials.wave(verdict=worse) == 0
    looks, trained = of(one, runs.Evaluated), len(of(one, runs.Stepped))
    best = [look for look in looks if look.best][-1]
    assert states([one]) == ["done"] and best.step < looks[-1].step == trained < of(one, runs.Started)[-1].steps
    assert runs.load(one).facts["scores"] == best.scores
    kept = checkpoint.at(one / "checkpoints", best.step).weights()
    saved = learned(one)
    assert sorted(tensor.norm().item() for tensor in saved.values()) == pytest.approx(
        sorted(tensor.norm().item() for tensor in kept.values())
    )
    assert worker.work(one, lambda: False) == 0
    assert len(of(one, runs.Stepped)) == trained and (one / "report.json").is_file()


def test_a_person_s_wish_stops_one_trial_and_it_goes_on_where_it_stood(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    one, other = trials.add({}, {"seed": 1})

    def stop_it(heard: dict[str, Any]) -> None:
        if heard["heard"] == one.name:
            ownership.ask_to_stop(one)

    assert trials.wave(verdict=stop_it) == 0
    assert states([one, other]) == ["stopped", "done"] and not (one / "stop").exists()
    assert trials.wave() == 0
    assert states([one]) == ["done"] and [event.step for event in of(one, runs.Started)] == [0, 4]
    heard = [said["step"] for said in trials.told("heard")]
    assert heard[0] == 4  # who takes it up tells again what nobody may have acted on
    whole = trials.alone({})
    assert worker.work(whole, lambda: False) == 0 and far(one, whole) < ROUNDING


@pytest.mark.parametrize("how", ["leave_after", "terminate_after"])
def test_without_a_search_or_asked_to_end_all_is_saved_and_taken_up_again(tmp_path: Path, how: str) -> None:
    trials = Trials(tmp_path)
    paths = trials.add(*SPREAD[:3])
    assert trials.wave(**{how: 3}) == 0, (trials.folder / "log").read_text()
    assert {"stopped"} <= set(states(paths)) <= {"stopped", "queued", "done"}
    stood = {path: [int(name[5:]) for name in steps_kept(path)] for path in paths}
    assert trials.wave() == 0 and states(paths) == ["done"] * 3
    for path in paths:
        begun = [event.step for event in of(path, runs.Started)]
        assert len(begun) == 1 or begun[-1] == max(stood[path], default=0)
        steps = [event.step for event in of(path, runs.Stepped)]
        assert steps == sorted(set(steps))


def test_a_trial_that_ended_unheard_is_told_and_not_done_again(ridden: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ridden.made[2]
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    trials = Trials.__new__(Trials)
    trials.folder, trials.studio, trials.search, trials.made = ridden.folder, ridden.studio, ridden.search, [done]
    with monkeypatch.context() as patch:  # the script hands it out although it stands there done
        patch.setattr("tests.waves.ENDED", ())
        assert trials.wave() == 0
    [said] = trials.told("ended")
    assert (said["ended"], said["state"], said["scores"]) == (done.name, "done", runs.load(done).facts["scores"])
    assert before == {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}


def test_generated_metrics_are_measured_for_all_slots_and_kept_with_the_weights(tmp_path: Path) -> None:
    """The same rows, rules and metrics as a report has, on validation rows; also where a slot has virtual tokens."""
    trials = Trials(tmp_path, objective="exact_match, perplexity, size")
    paths = trials.add({}, {"seed": 5}, {"method": PROMPT})
    assert trials.wave(slots=3) == 0, (trials.folder / "log").read_text()
    for path in paths:
        run = runs.load(path)
        assert run.state == "done" and run.facts["scores"].keys() == {"loss", "exact_match", "perplexity"}
        assert all(event.scores.keys() == run.facts["scores"].keys() for event in of(path, runs.Evaluated))
        assert run.facts["scores"]["perplexity"] == pytest.approx(on_validation(run), rel=1e-4)
        kept = rows_of_trials.read(path)
        assert kept is not None and len(kept.ids) > 4
        for name in ("exact_match", "perplexity"):
            sizes = kept.sizes[name]
            assert sorted(sizes) == [0.0] * (len(kept.ids) - 4) + [1.0] * 4  # `evaluation.limit`
            assert sum(kept.values[name]) / 4 == pytest.approx(run.facts["scores"][name])
        losses = zip(kept.values["loss"], kept.sizes["loss"], strict=True)
        assert [pair for pair, size in zip(losses, kept.sizes["perplexity"], strict=True) if size and not pair[1]] == []


def on_validation(run: runs.Run) -> float:
    """The perplexity of what the run learned on its validation rows, asked as its report asks."""
    tuned, experiment, dataset = workbench.open_run(run), workbench.experiment_of(run), workbench.dataset_of(run)
    rules = workbench.rules_of(experiment, dataset, tuned.base)
    asked = (dataset.examples("validation"), "validation", (), run.facts["drawn_by"])
    exam = assessment.exam_on(experiment, asked, dataset, tuned.base.tokenizer, rules, run.facts["longest_answer"])
    assert len(exam.questions) == 4  # `evaluation.limit`
    said = ask.by_model(tuned, 0, rules, exam.how)(exam.questions)
    told = [predictions.given(question, answer) for question, answer in zip(exam.questions, said, strict=True)]
    found = metrics.measure(metrics.METRICS["perplexity"], told)
    assert found is not None
    return found.score.value


PROMPT = {"type": "prompt_tuning", "virtual_tokens": 3, "init_method": "vocabulary"}


@pytest.mark.parametrize(("kind", "data"), [("tiny_bert", rows.labels), ("tiny_t5", rows.pairs)])
def test_trials_of_every_family_equal_the_runs_they_would_be_alone(
    kind: str, data: Callable[[Path], Path], tmp_path: Path
) -> None:
    """An encoder's slots have a head each; LoRA and a soft prompt share a base."""
    task = "classification" if kind == "tiny_bert" else "generation"
    objective = "accuracy" if kind == "tiny_bert" else "loss"
    layers = ["query"] if kind == "tiny_bert" else ["q"]
    trials = Trials(tmp_path, kind, data=str(data(tmp_path)), task=task, objective=objective)
    lora = {"method.target_modules": layers}
    changes = (lora, {"method": PROMPT}, lora | {"seed": 3})
    paths = trials.add(*changes)
    assert trials.wave() == 0, (trials.folder / "log").read_text()
    assert states(paths) == ["done"] * 3
    assert all("accuracy" in runs.load(path).facts["scores"] for path in paths) == (kind == "tiny_bert")
    for path, change in zip(paths, changes, strict=True):
        alone = trials.alone(change)
        assert worker.work(alone, lambda: False) == 0 and far(path, alone) < ROUNDING


def test_trials_of_one_rendering_share_their_rows_and_a_trial_of_another_base_is_refused(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    short = {"training.max_seq_length": 40}
    lora, other, prompt, cut = (runs.load(path) for path in trials.add({}, SPREAD[1], {"method": PROMPT}, short))
    group = Group(lora, ())
    one = group.laid(lora).bench
    assert group.laid(other).bench.train is one.train and group.laid(other).bench.experiment.method.rank == 4
    assert group.laid(prompt).bench.validation is one.validation and group.laid(prompt).bench.rules.virtual_tokens == 3
    assert group.laid(cut).bench.rules.max_seq_length == 40
    [stranger] = trials.add({"model": {"name": trials.values["model"], "dtype": "bfloat16"}})
    with pytest.raises(TrainingError, match="another base"):
        group.laid(runs.load(stranger))


def test_a_base_that_was_lent_is_loaded_anew_and_nothing_hangs_on_it(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    [path] = trials.add({})
    group = Group(runs.load(path), ())
    first = group.lend()
    methods.attach(first, [group.laid(runs.load(path)).bench.experiment.method], [1])
    held, names = weakref.ref(first.model), {name for name, _ in first.model.named_modules()}
    del first
    again = group.lend()
    assert held() is None and {name for name, _ in again.model.named_modules()} < names


def test_full_tuning_rides_alone_on_a_base_loaded_anew(tmp_path: Path) -> None:
    trials = Trials(tmp_path, method="full")
    paths = trials.add({}, {"seed": 4})
    assert trials.wave(slots=3) == 0
    assert states(paths) == ["done"] * 2
    alone = trials.alone({"seed": 4})
    assert worker.work(alone, lambda: False) == 0
    one, other = (load_file(path / "model" / "model.safetensors") for path in (paths[1], alone))
    assert all((one[name] - other[name]).abs().max().item() < ROUNDING for name in other)


def test_what_ends_a_loop_of_several_ends_only_the_trial_it_belongs_to(tmp_path: Path) -> None:
    """A checkpoint that cannot be written for one of them: the others go on, one by one."""
    trials = Trials(tmp_path)
    one, broken, third = trials.add({}, {"seed": 1}, {"seed": 2})
    (broken / "checkpoints").write_text("in the way")
    assert trials.wave(slots=3) == 0
    assert states([one, broken, third]) == ["done", "failed", "done"]
    whole = trials.alone({})
    assert worker.work(whole, lambda: False) == 0 and far(one, whole) < ROUNDING


def test_without_a_number_of_slots_the_wave_measures_and_says_what_it_found(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    paths = trials.add({}, {"seed": 1}, {"seed": 2})
    assert trials.wave(slots=None) == 0
    [said] = trials.told("placed")
    assert said["placed"]["processes"] >= 1 and said["placed"]["slots"] >= 1 and said["placed"]["figures"]
    assert states(paths) == ["done"] * 3
    whole = trials.alone({})
    assert worker.work(whole, lambda: False) == 0 and far(paths[0], whole) < ROUNDING


def test_the_process_itself_speaks_in_lines_and_ends_when_nothing_is_left(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    [path] = trials.add({"method.rank": 1})
    command = [sys.executable, "-m", "luthier.searching.wave"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        trials.converse(os.dup(child.stdout.fileno()), os.dup(child.stdin.fileno()), 1, lambda _: {"end": None})
    assert child.returncode == 0 and states([path]) == ["done"]
    assert [next(iter(said)) for said in trials.said if "heard" not in said] == ["want", "ended", "want"]
