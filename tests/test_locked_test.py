"""The test split is locked: nothing that is chosen looks at it, and whoever opens it is in every later report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier import assessment, runs, spec, worker
from luthier.data.openings import FILE
from luthier.evaluation import predictions
from luthier.evaluation.report import read_json
from luthier.studio import Studio, done
from tests import rows
from tests.conftest import Starting
from tests.rows import COLOURS

FEW = {"num_epochs": 1, "batch_size": 8, "learning_rate": 1e-2}


@pytest.fixture
def tune(tmp_path: Path, starting: Starting, tiny: Callable[..., Path]) -> Callable[..., runs.Run]:
    """`tune(…)`: a run of the tiny decoder in `tmp_path`/home, carried to its end in this process."""

    def begin(run: runs.Run) -> runs.Run:
        worker.work(run.path, lambda: False)
        return runs.load(run.path)

    starting(begin)

    def make(number: int = 0, new: bool = False, **parts: Any) -> runs.Run:
        values = {"name": "tiny", "model": str(tiny("tiny_llama")), "method": "lora", "training": FEW} | parts
        return done(Studio(tmp_path / "home").tune(spec.from_mapping(values), new, number))

    return make


def files(folder: Path, test: str, shared: bool = False) -> dict[str, str]:
    """Three files; the test rows say `test`."""
    asked = [{"input": f"{test} {i}?", "output": COLOURS[i % 3]} for i in range(12)]
    validation = [{"input": f"seen {i}?", "output": COLOURS[i % 2]} for i in range(12)]
    return {
        "train": str(rows.pairs(folder)),
        "validation": str(rows.write(folder / "validation.jsonl", validation)),
        "test": str(rows.write(folder / f"{test}.jsonl", asked)),
    }


def weights(run: runs.Run) -> str:
    return hashlib.sha256((run.path / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_early_stopping_gives_the_same_weights_whatever_the_test_rows_are(
    tune: Callable[..., runs.Run], tmp_path: Path
) -> None:
    training = {"num_epochs": 12, "batch_size": 8, "learning_rate": 0.1, "evaluate_every": 2, "patience": 2}
    found = []
    for test in ("first", "second"):
        run = tune(data=files(tmp_path, test), training=training, new=True)
        events = runs.read_events(run.path)
        kept = [event.step for event in events if isinstance(event, runs.Evaluated)]
        assert max(kept) < 12 * 6, "it never stopped early: the test shows nothing"
        found.append((weights(run), kept, run.facts["dataset"]))
    assert found[0][:2] == found[1][:2] and found[0][2] != found[1][2]


def test_every_opening_is_in_every_later_report_and_a_resumed_run_counts_once(
    tune: Callable[..., runs.Run], tmp_path: Path
) -> None:
    data = files(tmp_path, "one")
    first = tune(data=data)
    report = read_json(first.path / "report.json")
    assert [(each.run, each.rows) for each in report.openings] == [(first.id, 12)]
    assert not any("opened" in note for note in report.notes)
    second = tune(data=data, seed=1)
    report = read_json(second.path / "report.json")
    assert [each.run for each in report.openings] == [first.id, second.id]
    assert any(f"this test set was opened once before ({first.id})" in note for note in report.notes)
    assert "opened once before" in (second.path / "report.html").read_text(encoding="utf-8")
    (second.path / "report.json").unlink()
    runs.update(second.path, {"state": "stopped"})
    again = tune(data=data, seed=1)
    assert again.id == second.id and read_json(second.path / "report.json") == report


def test_the_base_that_is_asked_before_training_opens_it(
    tmp_path: Path, starting: Starting, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    starting(lambda run: run)
    values = {"name": "tiny", "model": str(tiny("tiny_llama")), "data": files(tmp_path, "one"), "training": FEW}
    run = Studio(tmp_path / "home").tune(spec.from_mapping(values))
    collect, seen = predictions.collect, []

    def first_answer(*given: Any) -> list[predictions.Row]:
        [path] = (tmp_path / "home" / "data").glob(f"*/{FILE}")
        seen.append(json.loads(path.read_text().strip())["run"])
        return collect(*given)

    monkeypatch.setattr(assessment.predictions, "collect", first_answer)
    worker.work(run.path, lambda: False)
    assert seen == [run.id] * 4  # the base, general texts, the tuned model, general texts


def test_rows_of_validation_are_under_no_lock(tune: Callable[..., runs.Run], tmp_path: Path) -> None:
    run = tune(data={"train": str(rows.pairs(tmp_path)), "test": 0.0})
    assert read_json(run.path / "report.json").openings == ()
    assert not list((tmp_path / "home" / "data").glob(f"*/{FILE}"))


def test_evaluating_the_test_rows_again_is_an_opening(tune: Callable[..., runs.Run], tmp_path: Path) -> None:
    data, studio = files(tmp_path, "one"), Studio(tmp_path / "home")
    run = tune(data=data)
    other = rows.write(tmp_path / "other.jsonl", [{"input": "never seen?", "output": "red"}] * 3)
    assert studio.evaluate(run, other).openings == ()
    for _ in range(2):
        told = studio.evaluate(run, data["test"])
        assert [each.run for each in told.openings] == [run.id, f"{run.id} evaluate"]
    assert any("opened once before" in note for note in told.notes)
    report = read_json(tune(data=data, seed=1).path / "report.json")
    assert len(report.openings) == 3 and any("opened 2 times before" in note for note in report.notes)


def test_the_column_of_group_by_counts_in_the_report_of_every_family(
    tune: Callable[..., runs.Run], tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    colours = [{"text": f"{COLOURS[i % 3]} {i}", "label": COLOURS[i % 3], "by": f"w{i // 4}"} for i in range(120)]
    path = rows.write(tmp_path / "labels.jsonl", colours)
    run = tune(name="encoder", model=str(tiny("tiny_bert")), data={"train": str(path), "group_by": "by", "test": 0.3})
    report = read_json(run.path / "report.json")
    groups = report.scores["accuracy"].groups
    assert report.grouped_by == "by" and groups is not None and f" in {groups} groups)" in report.verdict
    assert report.comparisons["accuracy"].groups == groups
    # a column that is the prompt itself is shown, and still counts
    asked = [{"input": f"item {i // 2}?", "output": COLOURS[i % 3]} for i in range(120)]
    path = rows.write(tmp_path / "asked.jsonl", asked)
    data = {"train": str(path), "group_by": "input", "test": 0.3}
    run = tune(name="prompt", data=data, task="generation", evaluation={"max_new_tokens": 4})
    report = read_json(run.path / "report.json")
    assert report.grouped_by == "input" and report.scores["exact_match"].groups == report.scores["exact_match"].n / 2
