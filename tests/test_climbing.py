"""A whole ladder on tiny models: every rung, the test rows unread until the rates are chosen, nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier import climbing, redaction, rungs, runs, spec, worker
from luthier.data.dataset import Dataset
from luthier.errors import DataError, LuthierError, SpecError, TrainingError
from luthier.evaluation import ask, ladder
from luthier.runs import Event, Run
from luthier.studio import Studio
from tests import rows
from tests.conftest import Starting

SHORT = {"num_epochs": 1, "batch_size": 16, "max_steps": 2}
Experiments = Callable[..., spec.Experiment]


@pytest.fixture
def studio(tmp_path: Path, starting: Starting, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """Workers and pieces of work are this process."""

    def start(run: Run) -> Run:
        worker.work(run.path, lambda: False)
        return runs.load(run.path)

    def working(room: Path, home: Path, model: str) -> Generator[Event, None, None]:
        told: list[Event] = []
        rungs.work(room, told.append)
        yield from told

    starting(start)
    monkeypatch.setattr(climbing, "working", working)
    return Studio(tmp_path / "home")


@pytest.fixture
def experiment(tiny: Callable[..., Path], tmp_path: Path) -> Experiments:
    def make(kind: str = "tiny_llama", **parts: Any) -> spec.Experiment:
        values = {"name": "tiny", "model": str(tiny(kind)), "data": str(rows.pairs(tmp_path)), "training": SHORT}
        return spec.from_mapping(values | parts)

    return make


def test_every_rung_is_climbed_once_and_the_test_rows_are_unread_until_the_rates_are_chosen(
    studio: Studio, experiment: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    stream, by_model = Dataset.stream, ask.by_model

    def streamed(self: Dataset, split: str) -> Iterator[Any]:
        heard.append(f"reads {split}")
        return stream(self, split)

    def asked(tuned: Any, slot: int | None, rules: Any, how: Any) -> Any:
        answerer = by_model(tuned, slot, rules, how)

        def answers(questions: Any) -> Any:
            heard.append(f"asks {slot} {len(questions)}")
            return answerer(questions)

        return answers

    monkeypatch.setattr(Dataset, "stream", streamed)
    monkeypatch.setattr(ask, "by_model", asked)
    shown: list[str] = []

    def show(words: str, events: Any, run: Run | None) -> None:
        shown.append(words)
        heard.append(words)
        assert run is None
        list(events)

    found = studio.ladder(experiment(), show=show)
    assert [words.split(":")[0] for words in shown] == ["prompt tuning", "LoRA", "full", "zero-shot", "few-shot"]
    first = heard.index("zero-shot: asking the bare base")
    assert "reads train" in heard[:first] and not {"reads test", "asks None 4"} & set(heard[:first])
    test = [words for words in heard if words.startswith("asks") and words.endswith(" 4")]  # not the general texts
    assert test == ["asks None 4"] * 2 + ["asks 0 4"] * 3

    assert [(rung.name, rung.state) for rung in found.rungs] == [
        (name, "done") for name in ("zero-shot", "few-shot", "prompt_tuning", "lora", "full")
    ]
    assert {run.name for run in studio.runs()} == {f"tiny-ladder-{end}" for end in ("prompt-tuning", "lora", "full")}
    for name in ("prompt_tuning", "lora", "full"):
        rung = found.rung(name)
        run, resolved = studio.find(rung.run), spec.load(studio.find(rung.run).path / "resolved.yaml")
        assert rung.choice is not None and len(rung.choice.losses) == 3 and rung.choice.steps == 2
        assert resolved.training.learning_rate == rung.choice.rate in rung.choice.rates
        assert rung.parameters > 0 and rung.bytes > 0 and rung.seconds > 0
        assert json.loads((run.path / "report.json").read_text())["comparisons"]  # with the base it was not asked for
    few, zero = found.rung("few-shot"), found.rung("zero-shot")
    assert few.shots == 3 and few.tokens > 2 * zero.tokens and found.rung("lora").tokens == zero.tokens
    assert found.rung("prompt_tuning").tokens == zero.tokens + 20
    folder = studio.home / "ladders" / "tiny"
    assert ladder.read_json(folder / "ladder.json") == found
    assert found.sentence.partition(": ")[2][1:] in (folder / "ladder.html").read_text(encoding="utf-8")

    heard.clear()
    assert studio.ladder(experiment()) == found and not [words for words in heard if words.startswith("asks")]
    more = studio.ladder(experiment(), shots=2)  # only that rung is another one
    assert more.rung("few-shot").shots == 2 and more.rung("lora") == found.rung("lora") and len(studio.runs()) == 3


class Killed(BaseException):
    """Ends everything at once, as Ctrl-C does."""


def test_what_is_finished_is_not_done_again_wherever_it_was_ended(studio: Studio, experiment: Experiments) -> None:
    given = experiment("tiny_bert", data=str(rows.labels(studio.home.parent)))
    begun: list[str] = []
    found = None

    def show(words: str, events: Any, run: Run | None) -> None:
        list(events)
        begun.append(words)
        if "left out" not in words:
            raise Killed

    while found is None:
        begun.clear()
        try:
            found = studio.ladder(given, show=show)
        except Killed:
            assert not (studio.home / "ladders" / "tiny" / "ladder.json").exists()
            assert len(begun) == 1  # everything before it stands
    assert [rung.state for rung in found.rungs] == ["done", "left out", "done", "done", "done"]
    assert found.rung("zero-shot").remark == "most frequent class" and "encoder" in found.rung("few-shot").remark


def test_a_rung_that_fails_is_told_and_the_others_go_on(
    studio: Studio, experiment: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, carry = rungs.work, worker.carry

    def small(folder: Path, tell: Any) -> None:
        if folder.name == "full":
            raise rungs.LeftOut("not enough memory: full needs about 40.0 GiB, and this machine has 2.0")
        work(folder, tell)

    def out_of_memory(run: Run, stop: Any) -> Any:
        if run.facts["method"] == "lora":
            raise MemoryError("no more")
        return carry(run, stop)

    monkeypatch.setattr(rungs, "work", small)
    monkeypatch.setattr(worker, "carry", out_of_memory)
    said: list[str] = []
    found = studio.ladder(experiment(), show=lambda words, events, run: said.append(words) or (list(events) and None))
    assert [rung.state for rung in found.rungs] == ["done", "done", "done", "failed", "left out"]
    assert "not enough memory: MemoryError: no more" in found.rung("lora").remark
    assert [words for words in said if "failed" in words or "left out" in words] == [
        "full is left out: not enough memory: full needs about 40.0 GiB, and this machine has 2.0",
        "LoRA failed: not enough memory: MemoryError: no more",
    ]
    monkeypatch.setattr(worker, "carry", carry)
    assert studio.ladder(experiment()).rung("lora").state == "done"  # the same command tries it again


def test_where_no_tuned_rung_comes_to_its_end_its_problem_is_the_answer(
    studio: Studio, experiment: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, tell: Any) -> None:
        raise DataError("G01: rows that teach nothing")

    monkeypatch.setattr(rungs, "work", refuse)
    with pytest.raises(DataError, match="G01"):
        studio.ladder(experiment())
    assert not (studio.home / "ladders" / "tiny" / "ladder.json").exists() and studio.runs() == []


def test_what_cannot_be_begun_is_refused_at_once(studio: Studio, experiment: Experiments, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="compares on test rows, and there are none") as refusal:
        studio.ladder(experiment(data={"train": str(rows.pairs(tmp_path)), "test": 0.0}))
    assert "data.test" in str(refusal.value.hint)
    with pytest.raises(SpecError, match="`--shots 0` shows no example"):
        studio.ladder(experiment(), shots=0)
    with (climbing._alone(tmp_path), pytest.raises(LuthierError, match="is being climbed by another process"),
          climbing._alone(tmp_path)):  # fmt: skip
        pass


def test_a_run_under_way_that_was_described_otherwise_ends_the_ladder(
    studio: Studio, experiment: Experiments, starting: Starting
) -> None:
    starting(lambda run: runs.update(run.path, {"state": "stopped"}))
    with pytest.raises(LuthierError, match="is stopped") as ended:
        studio.ladder(experiment())
    assert "luthier resume" in str(ended.value.hint)
    [run] = studio.runs()
    (run.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(SpecError, match="was described differently") as refusal:
        studio.ladder(experiment(seed=1))
    assert "another `name`" in str(refusal.value.hint)


def test_without_validation_rows_the_usual_rate_is_taken(
    studio: Studio, experiment: Experiments, tmp_path: Path
) -> None:
    found = studio.ladder(experiment(data={"train": str(rows.pairs(tmp_path)), "validation": 0.0}))
    choice = found.rung("lora").choice
    assert choice is not None and (choice.losses, choice.rate) == ((), 0.013) and "no validation rows" in choice.remark


def test_more_examples_than_fit_are_reduced_with_a_note(studio: Studio, experiment: Experiments) -> None:
    found = studio.ladder(experiment(task="generation"), shots=40)
    few = found.rung("few-shot")
    assert 1 < few.shots < 40
    assert found.notes == (f"few-shot: {few.shots} examples instead of 40: more do not fit before every test row",)


# --- the experiments of the rungs
def test_the_files_own_method_stays_and_the_others_have_their_own_rate(experiment: Experiments) -> None:
    lora = {"type": "lora", "rank": 4}
    made = rungs.experiments(experiment(method=lora, training=SHORT | {"learning_rate": 0.5}))
    assert list(made) == ["prompt_tuning", "lora", "full"]
    assert [each.training.learning_rate for each in made.values()] == [None, 0.5, None]
    assert all(each.training.max_steps == 2 for each in made.values())
    assert isinstance(made["lora"].method, spec.Lora) and made["lora"].method.rank == 4
    assert {"name", "method.type", "method.rank", "training.max_steps"} <= spec.chosen(made["lora"])
    assert "training.learning_rate" not in spec.chosen(made["full"])


def test_qlora_is_a_rung_only_where_the_file_asks_for_it(experiment: Experiments) -> None:
    made = rungs.experiments(experiment(method={"type": "qlora", "rank": 4, "bits": 8}))
    assert list(made) == ["prompt_tuning", "qlora", "lora", "full"]
    assert isinstance(made["lora"].method, spec.Lora) and made["lora"].method.rank == 4
    assert isinstance(made["qlora"].method, spec.QLora) and made["qlora"].method.bits == 8


def test_a_long_name_leaves_room_for_the_rung(experiment: Experiments) -> None:
    name = rungs.run_name(experiment(name="x" * 64), "prompt_tuning")
    assert len(name) == 64 and name.endswith("x-ladder-prompt-tuning")


# --- processes
def test_a_piece_of_work_is_a_process_whose_end_is_told_as_it_was(studio: Studio, tmp_path: Path) -> None:
    monkey_free = climbing._ended(
        '{"error": {"kind": "LeftOut", "message": "m", "where": null, "hint": "h"}}', 1, tmp_path
    )
    assert isinstance(monkey_free, rungs.LeftOut) and monkey_free.hint == "h"
    killed = climbing._ended("", -9, tmp_path)
    assert isinstance(killed, TrainingError) and "signal 9" in killed.message
    assert "KeyError" in climbing._ended("KeyError: 'x'", 1, tmp_path).message


def test_a_piece_of_work_ends_with_the_process_that_wants_it(tmp_path: Path) -> None:
    """Its standard input closes when its parent is gone, by whatever death."""
    code = "import threading, time; from luthier import rungs; threading.Thread(target=rungs._end_with_parent).start()"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('up', flush=True); time.sleep(60)"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=redaction.inherited(),
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None and child.stdout.readline() == b"up\n"
    child.stdin.close()
    assert child.wait(timeout=30) == 1
    child.stdout.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment_the_same_command_goes_on(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    """Real processes: the ladder is killed (signal 9) whenever something new was finished, until it comes through."""
    home = tmp_path / "home"
    rows.pairs(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(f"model: {tiny('tiny_llama')}\ndata: pairs.jsonl\ntraining: {json.dumps(SHORT)}\n")
    command = [sys.executable, "-m", "luthier", "--home", str(home), "ladder", str(file), "--json"]

    def finished() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in [*home.glob("ladders/tiny/*/result.json"),
                                                          *home.glob("runs/*/report.json")]}  # fmt: skip

    stood: dict[Path, int] = {}
    for _ in range(20):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=dict(os.environ))
        while child.poll() is None and not set(finished()) - set(stood):
            time.sleep(0.05)
        assert stood.items() <= finished().items()  # nothing was done again
        stood = finished()
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
        said = child.communicate()[0]
        if child.returncode == 0:
            break
    assert len(stood) == 8 and [rung["state"] for rung in json.loads(said)["rungs"]] == ["done"] * 5
