"""Which run an experiment means, and a worker as a process of its own: started, stopped, found again, continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from luthier import drafts, engines, runs, spec, workbench, worker
from luthier.errors import ModelError, NotFound, SpecError
from luthier.studio import Studio, report
from tests import rows
from tests.conftest import Starting

FEW = {"num_epochs": 1, "batch_size": 16, "learning_rate": 1e-2}


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path / "home")


@pytest.fixture
def here(starting: Starting) -> None:
    """The worker works in this process, at once."""

    def start(run: runs.Run) -> runs.Run:
        worker.work(run.path, lambda: False)
        return runs.load(run.path)

    starting(start)


@pytest.fixture
def nobody(starting: Starting) -> None:
    """No worker begins: runs stay as they are."""
    starting(lambda run: run)


@pytest.fixture
def experiment(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., spec.Experiment]:
    values = {"name": "tiny", "model": str(tiny("tiny_llama")), "data": str(rows.pairs(tmp_path))}

    def make(**parts: Any) -> spec.Experiment:
        return spec.from_mapping(values | {"training": FEW} | parts)

    return make


Experiments = Callable[..., spec.Experiment]


@pytest.mark.usefixtures("here")
def test_the_same_again_is_the_same_run_and_something_else_is_another(studio: Studio, experiment: Experiments) -> None:
    first = studio.tune(experiment())
    assert first.state == "done"
    written = (first.path / "events.jsonl").stat().st_mtime_ns
    again = studio.tune(experiment())
    assert again.id == first.id and (first.path / "events.jsonl").stat().st_mtime_ns == written
    assert report(again).verdict == first.facts["verdict"]
    other = studio.tune(experiment(seed=1))
    assert other.id != first.id and other.state == "done"
    assert studio.tune(experiment(seed=1), new=True).id not in (first.id, other.id)


@pytest.mark.usefixtures("nobody")
def test_an_unfinished_run_is_continued_or_the_difference_named(studio: Studio, experiment: Experiments) -> None:
    first = studio.tune(experiment())
    assert studio.tune(experiment()).id == first.id
    with pytest.raises(SpecError) as refusal:
        studio.tune(experiment(training=FEW | {"learning_rate": 0.02}, seed=3))
    for part in ("`training.learning_rate` (0.01 → 0.02)", "`seed` (0 → 3)", first.id):
        assert part in refusal.value.message
    assert "--new" in str(refusal.value.hint) and len(studio.runs()) == 1
    assert studio.tune(experiment(seed=3), new=True).id != first.id


@pytest.mark.usefixtures("nobody")
def test_changed_rows_and_a_changed_base_are_named(
    studio: Studio, experiment: Experiments, tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    base = tiny("tiny_llama", tmp_path / "base")
    studio.tune(experiment(model=str(base)))
    rows.pairs(tmp_path, count=60)
    with pytest.raises(SpecError, match=r"`data` \(the rows have changed\)"):
        studio.tune(experiment(model=str(base)))
    rows.pairs(tmp_path)
    changed(base)
    with pytest.raises(SpecError, match=r"`model` \(the base's files have changed\)"):
        studio.tune(experiment(model=str(base)))


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("state", ["failed", "stopped", "interrupted"])
def test_a_run_that_came_to_nothing_does_not_block_a_corrected_file(
    studio: Studio, experiment: Experiments, state: str
) -> None:
    first = studio.tune(experiment())
    ended = {"state": "running", "owner": {"pid": 0, "birth": "long ago", "host": socket.gethostname()}}
    assert runs.update(first.path, ended if state == "interrupted" else {"state": state}).state == state
    assert studio.tune(experiment()).id == first.id
    assert studio.tune(experiment(seed=1)).id != first.id


@pytest.mark.usefixtures("nobody")
def test_work_that_could_be_continued_is_not_left_behind_silently(studio: Studio, experiment: Experiments) -> None:
    first = studio.tune(experiment())
    (first.path / "checkpoints" / "step-00000004").mkdir(parents=True)
    runs.update(first.path, {"state": "stopped"})
    with pytest.raises(SpecError, match=r"is stopped and was described differently: `seed` \(0 → 1\)"):
        studio.tune(experiment(seed=1))
    runs.update(first.path, {"state": "failed"})  # as it was described it cannot go on
    assert studio.tune(experiment(seed=1)).id != first.id


def test_what_nothing_acts_on_yet_is_refused(studio: Studio, experiment: Experiments) -> None:
    with pytest.raises(SpecError, match="not yet: `search`"):
        studio.tune(experiment(search={"space": {"method.rank": [4, 8]}}))
    assert studio.runs() == []


def in_the_hub(cache: Path, commit: str, base: Path) -> None:
    """Lay `base` into a Hub cache as the newest commit of `org/small`."""
    repository = cache / "models--org--small"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(base, repository / "snapshots" / commit)


def changed(base: Path) -> Path:
    """`base` with the last of its weights changed."""
    with (base / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\1")
    return base


@pytest.mark.usefixtures("nobody")
def test_a_base_of_the_hub_stays_at_its_commit(
    studio: Studio,
    experiment: Experiments,
    tiny: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    old, new = "0" * 40, "1" * 40
    in_the_hub(tmp_path / "hub", old, tiny("tiny_llama"))
    run = studio.tune(experiment(model="org/small"))
    assert workbench.experiment_of(run).model.revision == run.facts["revision"] == old
    assert "newest commit" in json.loads((run.path / "origins.json").read_text())["model.revision"]
    assert "revision" not in (run.path / "experiment.yaml").read_text()
    assert studio.tune(experiment(model={"name": "org/small", "revision": old})).id == run.id
    in_the_hub(tmp_path / "hub", new, changed(tiny("tiny_llama", tmp_path / "base")))
    assert workbench.of_run(run).base.revision == old
    with pytest.raises(SpecError, match=rf": `model.revision` \({old} → {new}\)\s+hint"):
        studio.tune(experiment(model="org/small"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_base_whose_files_changed_is_refused_by_every_verb_of_the_run(
    studio: Studio, experiment: Experiments, tmp_path: Path, tiny: Callable[..., Path], method: str
) -> None:
    base = tiny("tiny_llama", tmp_path / "base")
    wishes = {"model": str(base), "method": method, "task": "generation", "evaluation": {"max_new_tokens": 4}}
    run = studio.tune(experiment(**wishes))
    begun = drafts.create(studio.draft(experiment(**wishes)), studio.home)
    assert run.state == "done"
    changed(base)
    for verb in (lambda: list(studio.generate(run, ["item 3?"], base=True)), lambda: workbench.of_run(begun)):
        with pytest.raises(ModelError, match=r"the base of run .* has changed: its weights were") as refusal:
            verb()
        assert str(base) in str(refusal.value.where) and "--new" in str(refusal.value.hint)
    assert engines.start(begun).state == "failed"


@pytest.mark.usefixtures("nobody")
def test_where_and_what_it_is_called_does_not_make_another_experiment(
    studio: Studio, experiment: Experiments, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = studio.tune(experiment())
    moved = experiment(data=str(rows.pairs(tmp_path / "elsewhere")), name="other")
    assert studio.tune(moved).fingerprint == first.fingerprint


@pytest.mark.usefixtures("nobody")
def test_rows_from_python_make_a_run_too(studio: Studio, tiny: Callable[..., Path]) -> None:
    given = [{"input": f"item {i}?", "output": rows.COLOURS[i % 3]} for i in range(40)]
    data = spec.Data(train=given)
    run = studio.tune(spec.Experiment(model=spec.Model(name=str(tiny("tiny_llama"))), data=data))
    assert run.name.endswith("-lora") and spec.load(run.path / "resolved.yaml").training.learning_rate
    origins = json.loads((run.path / "origins.json").read_text())
    assert origins["training.learning_rate"].startswith("default (")


def test_the_plan_reads_no_run_and_makes_none(studio: Studio, experiment: Experiments) -> None:
    planned = studio.plan(experiment())
    assert planned.steps == planned.batches_per_epoch > 0 and planned.trainable_parameters
    assert planned.lengths["longest"] >= planned.lengths["median"] > planned.lengths["longest_answer"] > 1
    assert studio.runs() == []
    with pytest.raises(NotFound, match="no runs yet"):
        studio.find()


@pytest.mark.usefixtures("here")
def test_a_run_speaks_is_evaluated_on_other_rows_and_compared(
    studio: Studio, experiment: Experiments, tmp_path: Path
) -> None:
    asked = {"max_new_tokens": 6, "limit": 1, "metrics": ["exact_match", "exact_match:case", "regex:^r?"]}
    run = studio.tune(experiment(task="generation", evaluation=asked))
    assert report(run).scores["exact_match"].n == 1 and report(run).scores["regex:^r?"].value == 1
    assert "exact match (case)" in (run.path / "report.html").read_text(encoding="utf-8")
    [reply] = studio.generate(run, ["item 3?"], base=True)
    assert reply.base is not None and isinstance("".join(reply.tuned) + "".join(reply.base), str)
    fresh = rows.write(tmp_path / "fresh.jsonl", [{"input": "item 900?", "output": "red"}] * 2)
    told = studio.evaluate(run, fresh)
    assert told.scores["exact_match"].n == 1 and told.base_scores  # equal rows are asked once
    assert not any("trained on" in note for note in told.notes)
    known = workbench.dataset_of(run).examples("train")[0].messages
    pair = {"input": known[0].content, "output": known[1].content}
    mixed = studio.evaluate(run, rows.write(tmp_path / "mixed.jsonl", [{"input": "item 900?", "output": "red"}, pair]))
    assert "1 of these 2 rows were trained on: on them a score is memory, not skill" in mixed.notes
    assert mixed.scores["exact_match"].n == 2  # `evaluation.limit` was for the run's own test
    slower = FEW | {"learning_rate": 2e-3}
    other = studio.tune(experiment(task="generation", evaluation=asked, training=slower))
    compared = studio.compare([run, other])
    assert compared.tests["exact_match"][0].n == report(run).scores["exact_match"].n
    assert other.id in compared.tests["exact_match"][0].sentence and set(compared.tests) == set(asked["metrics"])


@pytest.fixture
def long_run(studio: Studio, experiment: Experiments) -> Iterator[runs.Run]:
    """A real worker process that would train for an hour."""
    run = studio.tune(experiment(training=FEW | {"num_epochs": 50_000}))
    yield run
    if holder := runs.owner(run.path):
        os.kill(holder["pid"], signal.SIGKILL)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_worker_is_found_again_saves_when_stopped_and_leaves_nothing(
    studio: Studio, experiment: Experiments, long_run: runs.Run
) -> None:
    assert long_run.state == "running"
    pid = runs.owner(long_run.path)["pid"]
    assert os.getpgid(pid) == pid != os.getpgid(0)
    again = studio.tune(experiment(training=FEW | {"num_epochs": 50_000}))
    assert again.id == long_run.id and runs.owner(again.path)["pid"] == pid
    wait_for(lambda: any(isinstance(event, runs.Stepped) for event in runs.read_events(long_run.path)))
    stopped = studio.stop(long_run)
    assert stopped.state == "stopped" and runs.birth(pid) is None
    last = runs.read_events(long_run.path)[-1]
    [checkpoint] = (
        path for path in (long_run.path / "checkpoints").iterdir() if path.name.endswith(f"{last.step:08d}")
    )
    assert (checkpoint / "MANIFEST.json").is_file()
    assert studio.stop(stopped).state == "stopped"


@pytest.mark.slow
def test_a_killed_worker_is_seen_and_the_run_goes_on(studio: Studio, long_run: runs.Run) -> None:
    wait_for(lambda: any(isinstance(event, runs.Stepped) for event in runs.read_events(long_run.path)))
    os.kill(runs.owner(long_run.path)["pid"], signal.SIGKILL)
    wait_for(lambda: runs.load(long_run.path).state == "interrupted")
    before = len(runs.read_events(long_run.path))
    assert studio.resume(studio.find(long_run.id)).state == "running"
    wait_for(lambda: len(runs.read_events(long_run.path)) > before + 2)
    assert studio.stop(long_run).state == "stopped"
