"""A run carried from rows to verdict: every family and method, stopped and continued, failed and explained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from luthier import afterwards, logbook, runs, spec, workbench, worker
from luthier.evaluation import predictions
from luthier.evaluation.report import read_json
from luthier.models.forward import Batch
from luthier.models.lora import PRODUCTS
from luthier.models.methods import Tuned
from luthier.studio import Studio, failure
from tests import rows
from tests.conftest import Starting

FEW = {"num_epochs": 1, "batch_size": 8, "learning_rate": 1e-2}


@pytest.fixture
def begin(tmp_path: Path, starting: Starting) -> Callable[..., runs.Run]:
    """`begin(model, data, method="lora", …)`: a queued run in `tmp_path`; the test carries it in this process."""
    starting(lambda run: run)

    def make(model: Any, data: Any, **parts: Any) -> runs.Run:
        values = {
            "name": "tiny",
            "model": model if isinstance(model, dict) else str(model),
            "data": data if isinstance(data, dict) else str(data),
            "method": "lora",
            "training": FEW,
        } | parts
        return Studio(tmp_path / "home").tune(spec.from_mapping(values), new=True)

    return make


def carry(run: runs.Run, stop: Callable[[], bool] = lambda: False) -> runs.Run:
    worker.work(run.path, stop)
    return runs.load(run.path)


def after(updates: int) -> Callable[[], bool]:
    """A stop that says yes once the loop has asked that often."""
    asked = iter(range(10_000))
    return lambda: next(asked) >= updates


@pytest.mark.parametrize(
    ("kind", "data", "method"),
    [
        ("tiny_llama", rows.pairs, "lora"),
        ("tiny_llama", rows.chats, "prompt_tuning"),
        ("tiny_t5", rows.pairs, "full"),
        ("tiny_bert", rows.labels, "lora"),
    ],
)
def test_a_run_ends_in_a_verdict_with_everything_in_its_folder(
    kind: str,
    data: Callable[..., Path],
    method: str,
    tiny: Callable[..., Path],
    tmp_path: Path,
    begin: Callable[..., runs.Run],
) -> None:
    run = carry(begin(tiny(kind, chat=data is rows.chats), data(tmp_path), method=method))
    assert failure(run) is None and run.state == "done"
    report = read_json(run.path / "report.json")
    assert report.scores and set(report.scores) == set(report.base_scores)
    assert report.verdict == run.facts["verdict"] and report.subject.split == "test"
    assert report.subject.against == ("most frequent class" if kind == "tiny_bert" else "base")
    kept = {path.name for path in run.path.iterdir()}
    assert {"report.html", "predictions.jsonl", "environment.json", "events.jsonl", "resolved.yaml"} <= kept
    assert ("model" if method == "full" else "adapter") in kept
    assert isinstance(runs.read_events(run.path)[-1], runs.Finished)
    told = json.loads((run.path / "environment.json").read_text())
    assert told["packages"]["torch"] and told["choices"].pop("product") in PRODUCTS
    assert told["choices"] == {"threads": told["threads"], "budget": 4096}


@pytest.mark.parametrize(
    ("kind", "data", "method"),
    [
        ("tiny_llama", rows.pairs, "lora"),
        ("tiny_llama", rows.pairs, "full"),
        ("tiny_t5", rows.pairs, "prompt_tuning"),
        ("tiny_bert", rows.labels, "full"),
    ],
)
def test_what_is_read_back_from_the_folder_answers_as_it_did(
    kind: str,
    data: Callable[..., Path],
    method: str,
    tiny: Callable[..., Path],
    tmp_path: Path,
    begin: Callable[..., runs.Run],
) -> None:
    task = "classification" if kind == "tiny_bert" else "generation"
    wishes = {"method": method, "task": task, "evaluation": {"max_new_tokens": 6}}
    run = carry(begin(tiny(kind), data(tmp_path), **wishes))
    assert failure(run) is None
    before = {row.sides["tuned"].id: row.sides for row in predictions.read(run.path / "predictions.jsonl")}
    afterwards.of_run(run, data(tmp_path))
    [again] = (run.path / "evaluations").glob("*/predictions.jsonl")
    after = {row.sides["tuned"].id: row.sides for row in predictions.read(again)}
    assert before.keys() < after.keys()
    for name, sides in before.items():
        assert after[name]["tuned"].answer == sides["tuned"].answer
        assert after[name]["base"].answer == sides["base"].answer
    question = next(iter(before.values()))["tuned"]
    [reply] = workbench.generate(run, [question.prompt])
    assert "".join(reply.tuned).strip() == question.answer


def test_rows_evaluated_later_are_repaired_as_the_run_s_own_were_and_none_is_dropped(
    tiny: Callable[..., Path], tmp_path: Path, begin: Callable[..., runs.Run]
) -> None:
    clean = ["duplicates", "whitespace", "empty"]
    wishes = {"task": "generation", "evaluation": {"max_new_tokens": 4}}
    run = carry(begin(tiny("tiny_llama"), {"train": str(rows.pairs(tmp_path)), "clean": clean}, **wishes))
    later = rows.write(tmp_path / "later.jsonl", [{"input": f" item  {i}? ", "output": "N/A"} for i in (1, 2)])
    report = afterwards.of_run(run, later)
    [answers] = (run.path / "evaluations").glob("*/predictions.jsonl")
    assert {row.sides["tuned"].prompt for row in predictions.read(answers)} == {"item 1?", "item 2?"}
    assert next(iter(report.scores.values())).n == 2


def test_a_stopped_run_goes_on_bit_for_bit(
    tiny: Callable[..., Path], tmp_path: Path, begin: Callable[..., runs.Run]
) -> None:
    data = rows.pairs(tmp_path)
    training = FEW | {"num_epochs": 3}
    whole = carry(begin(tiny("tiny_llama"), data, training=training))
    broken = begin(tiny("tiny_llama"), data, training=training)
    for asked in (3, 4, 5):
        broken = carry(broken, after(asked))
        assert broken.state == "stopped"
    assert not (broken.path / "adapter").exists()
    broken = carry(broken)
    assert broken.state == "done"

    def told(run: runs.Run) -> list[tuple[int, float]]:
        return [(event.step, event.loss) for event in runs.read_events(run.path) if isinstance(event, runs.Stepped)]

    assert told(broken) == told(whole) and len(told(whole)) > 6
    one, other = (load_file(run.path / "adapter" / "adapter_model.safetensors") for run in (whole, broken))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    same = [(run.path / "predictions.jsonl").read_bytes() for run in (whole, broken)]
    assert same[0] == same[1]


def test_what_was_chosen_once_is_kept_by_every_later_attempt(
    tiny: Callable[..., Path], tmp_path: Path, begin: Callable[..., runs.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads and budget come from environment.json where it has them; a budget that memory halved stands there."""
    run = carry(begin(tiny("tiny_llama"), rows.pairs(tmp_path)), after(3))
    file = run.path / "environment.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"choices": {"threads": 2, "budget": 512, "product": "onednn"}}))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    budgets, whole = [], Tuned.nll

    def short(self: Tuned, batch: Batch, steps: Mapping[int, int] | None = None) -> tuple[Tensor, Tensor]:
        budgets.append((json.loads(file.read_text())["choices"], torch.get_num_threads()))
        if len(budgets) == 1:
            raise MemoryError
        return whole(self, batch, steps)

    monkeypatch.setattr(Tuned, "nll", short)
    before = torch.get_num_threads()
    run = carry(run)
    torch.set_num_threads(before)
    assert run.state == "done" and budgets[0] == ({"threads": 2, "budget": 512, "product": "onednn"}, 2)
    assert json.loads(file.read_text())["choices"] == {"threads": 2, "budget": 256, "product": "onednn"}
    notes = [event for event in runs.read_events(run.path) if isinstance(event, runs.Noted) and event.kind == "memory"]
    assert len(notes) == 1 and "256 tokens" in notes[0].message


def test_a_stop_while_answers_are_asked_for_keeps_what_was_learned(
    tiny: Callable[..., Path], tmp_path: Path, begin: Callable[..., runs.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tiny("tiny_llama"), rows.pairs(tmp_path))
    adapter = run.path / "adapter"
    stopped = carry(run, adapter.exists)
    assert stopped.state == "stopped" and adapter.exists() and not (run.path / "report.json").exists()
    written = (adapter / "adapter_model.safetensors").stat().st_mtime_ns
    assert carry(run).state == "done" and (adapter / "adapter_model.safetensors").stat().st_mtime_ns == written


def test_a_finding_of_the_gate_ends_the_run_with_rows_and_a_hint(
    tiny: Callable[..., Path], tmp_path: Path, begin: Callable[..., runs.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate has looked before there was a run; the worker looks again: its base may be another one."""
    monkeypatch.setattr(workbench, "judge", lambda experiment, dataset: None)
    data = rows.write(
        tmp_path / "long.jsonl", [{"input": f"{i} " + "x" * 9 * i, "output": "yes"} for i in range(1, 30)]
    )
    run = carry(begin(tiny("tiny_llama"), data, task="generation", training=FEW | {"max_seq_length": 64}))
    assert run.state == "failed"
    problem = failure(run)
    assert problem is not None and type(problem).__name__ == "DataError"
    assert "long.jsonl:" in str(problem.where) and "data.overlength" in str(problem.hint)
    last = runs.read_events(run.path)[-1]
    assert isinstance(last, runs.Finished) and last.state == "failed"


def test_a_defect_is_told_with_the_log_and_without_secrets(
    tiny: Callable[..., Path],
    tmp_path: Path,
    begin: Callable[..., runs.Run],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct-horse-battery")

    def broken() -> None:
        raise ZeroDivisionError("correct-horse-battery")

    monkeypatch.setattr(logbook, "_environment", broken)
    run = carry(begin(tiny("tiny_llama"), rows.pairs(tmp_path)))
    problem = failure(run)
    assert run.state == "failed" and problem is not None
    assert problem.where == str(run.path / "worker.log") and "defect of luthier" in str(problem.hint)
    logged = capfd.readouterr().err
    assert "Traceback" in logged and "correct-horse-battery" not in logged + (run.path / "run.json").read_text()


def test_without_test_rows_validation_is_measured_and_the_report_says_so(
    tiny: Callable[..., Path], tmp_path: Path, begin: Callable[..., runs.Run]
) -> None:
    run = carry(begin(tiny("tiny_llama"), {"train": str(rows.pairs(tmp_path)), "test": 0.0}))
    report = read_json(run.path / "report.json")
    assert report.subject.split == "validation" and "no test rows" in " ".join(report.notes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_report_says_where_rounding_may_decide(
    dtype: str, tiny: Callable[..., Path], tmp_path: Path, begin: Callable[..., runs.Run]
) -> None:
    """ENGINE.md §10.12 holds on float32; rows that begin alike are asked, and kept, side by side."""
    model = {"name": str(tiny("tiny_llama")), "dtype": dtype}
    wishes = {"task": "generation", "evaluation": {"max_new_tokens": 3}}
    run = carry(begin(model, rows.pairs(tmp_path), **wishes))
    for report in (read_json(run.path / "report.json"), afterwards.of_run(run, rows.pairs(tmp_path))):
        assert ("answers in bfloat16: where two tokens" in " ".join(report.notes)) == (dtype == "bfloat16")
    asked = [row.sides["tuned"].prompt for row in predictions.read(run.path / "predictions.jsonl")]
    words = workbench.open_run(run).base.tokenizer
    assert asked == sorted(asked, key=lambda prompt: words(prompt).input_ids) and len(asked) > 1


def test_without_a_base_to_compare_there_is_a_score_and_no_comparison(
    tiny: Callable[..., Path], tmp_path: Path, begin: Callable[..., runs.Run]
) -> None:
    run = carry(begin(tiny("tiny_llama"), rows.pairs(tmp_path), evaluation={"compare_base": False, "limit": 4}))
    report = read_json(run.path / "report.json")
    assert report.scores["accuracy"].n <= 4 and not report.base_scores and not report.comparisons


def test_a_training_that_does_not_stay_finite_fails_with_its_reason(
    tiny: Callable[..., Path], tmp_path: Path, begin: Callable[..., runs.Run]
) -> None:
    run = carry(
        begin(tiny("tiny_llama"), rows.pairs(tmp_path), training=FEW | {"learning_rate": 1e30, "num_epochs": 9})
    )
    problem = failure(run)
    assert run.state == "failed" and problem is not None and "not finite" in problem.message
    assert not (run.path / "adapter").exists()
