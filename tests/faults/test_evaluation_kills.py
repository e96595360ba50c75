"""Whatever an evaluation is killed at, the same command ends with the same bytes (reliability test 24)."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import luthier
from luthier import afterwards, assessment, drafts, runs, spec
from luthier.evaluation import predictions
from luthier.studio import Studio
from tests import rows, tiny
from tests.faults.victims import TRAINING, Trap, _work, die, fork, sha256, wait

CHUNK = 4
POINTS = [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
RESULTS = ("report.json", "report.html", "predictions.jsonl", "base_predictions.jsonl", "forgetting", "evaluations")
HOME = Path(luthier.__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that is trained and not evaluated, and the folder it must lie in: its id stands in the report."""
    folder = tmp_path_factory.mktemp("evaluated")
    data = {"train": str(rows.pairs(folder, 60)), "test": 0.5}
    kept = rows.write(folder / "kept.jsonl", [{"input": f"old {i}?", "output": "red"} for i in range(9)])
    wishes = {"max_new_tokens": 4, "slices": {"odd": "'1' in input"}, "regression": str(kept)}
    values = {"name": "tiny", "model": str(tiny.build("tiny_llama")), "data": data, "task": "generation"}
    values |= {"evaluation": wishes, "method": {"type": "lora", "rank": 2}, "training": TRAINING}
    studio = Studio(folder / "home")
    run = drafts.create(studio.draft(spec.from_mapping(values)), studio.home).path
    assert wait(fork(lambda: _work(run), [], run / runs.LOG)) == 0
    whole = Path(shutil.copytree(run, folder / "whole"))
    for name in RESULTS:
        shutil.rmtree(whole / name, ignore_errors=True)
        (whole / name).unlink(missing_ok=True)
    return whole, run


def fresh(trained: tuple[Path, Path]) -> Path:
    whole, run = trained
    shutil.rmtree(run)
    return Path(shutil.copytree(whole, run))


def results(run: Path) -> dict[str, str]:
    """Everything an evaluation leaves, by content."""
    every = [path for name in RESULTS for path in ((run / name).rglob("*") if (run / name).is_dir() else [run / name])]
    return {str(path.relative_to(run)): sha256(path) for path in every if path.is_file()}


def at_line_of_the_evaluation(number: int | None, told: Path) -> Trap:
    """Die before the `number`-th line of the evaluation; with None only count, into `told`."""

    def lay() -> None:
        seen = 0

        def line(frame: Any, event: str, _: Any) -> Any:
            nonlocal seen
            if event == "line":
                seen += 1
                if seen == number:
                    die()
                if number is None and frame.f_code is last:
                    told.write_text(str(seen))
            return line

        last = assessment.conclude.__code__
        rooms = ("evaluation", "assessment.py", "checks.py", "afterwards.py")
        places = tuple(str(HOME / room) for room in rooms)
        sys.settrace(lambda frame, *_: line if frame.f_code.co_filename.startswith(places) else None)

    return lay


def asked_are_counted(log: Path) -> Trap:
    """Every question that anybody is asked leaves a letter in `log`."""

    def lay() -> None:
        plain = assessment._watched

        def watched(answerer: predictions.Answerer, heard: assessment.Heard) -> predictions.Answerer:
            inner = plain(answerer, heard)

            def ask(questions: Any) -> Any:
                with log.open("a") as file:
                    file.write("." * len(questions))
                    os.fsync(file.fileno())
                return inner(questions)

            return ask

        assessment._watched = watched

    return lay


def killed_and_carried_again(
    trained: tuple[Path, Path], folder: Path, work: Callable[[Path], int], points: int, seed: int
) -> None:
    count, log = folder / "count", folder / "asked"
    run = fresh(trained)

    def carry(*traps: Trap) -> int:
        return wait(fork(lambda: work(run), [asked_are_counted(log), *traps], folder / "log"))

    assert carry(at_line_of_the_evaluation(None, count)) == 0, (folder / "log").read_text()
    expected, lines, asked = results(run), int(count.read_text()), log.stat().st_size
    assert {Path(name).name for name in expected} >= {"report.json", "report.html", "predictions.jsonl"}
    for line in sorted(np.random.default_rng(seed).integers(1, lines, points).tolist()):
        log.unlink()
        fresh(trained)
        assert carry(at_line_of_the_evaluation(line, count)) == -signal.SIGKILL, f"line {line} of {lines}"
        assert carry() == 0, (folder / "log").read_text()
        assert results(run) == expected, f"killed at line {line} of {lines}"
        assert log.stat().st_size <= asked + 2 * CHUNK  # both sides of a chunk


@pytest.mark.parametrize("points", POINTS)
def test_a_run_s_own_evaluation_killed_at_any_line_ends_with_the_same_bytes(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: int
) -> None:
    monkeypatch.setattr(predictions, "CHUNK", CHUNK)
    killed_and_carried_again(trained, tmp_path, _work, points, seed=1)
    assert runs.load(trained[1]).state == "done"


@pytest.mark.parametrize("points", POINTS)
def test_an_evaluation_on_other_rows_killed_at_any_line_ends_with_the_same_bytes(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: int
) -> None:
    monkeypatch.setattr(predictions, "CHUNK", CHUNK)
    data = rows.write(tmp_path / "later.jsonl", [{"input": f"thing {i}?", "output": "blue"} for i in range(14)])

    def work(run: Path) -> int:
        afterwards.of_run(runs.load(run), data)
        return 0

    killed_and_carried_again(trained, tmp_path, work, points, seed=2)
