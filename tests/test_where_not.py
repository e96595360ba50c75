"""Where not, in whole runs: slices, groups, forgetting and fit in the report, and what the two keys refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier import afterwards, runs, spec, worker
from luthier.errors import DataError, LuthierError, NotFound, SpecError
from luthier.evaluation.report import Report, read_json
from luthier.studio import Studio, failure
from tests import rows
from tests.conftest import Starting

FEW = {"num_epochs": 1, "batch_size": 8, "learning_rate": 1e-2}


@pytest.fixture
def tuned(tmp_path: Path, starting: Starting) -> Callable[..., runs.Run]:
    """`tuned(model, **parts)`: a run carried to its end in this process."""
    starting(lambda run: run)

    def make(model: Path, **parts: Any) -> runs.Run:
        source = rows.write(
            tmp_path / "rows.jsonl",
            [
                {
                    "input": f"item {i}?" + "!" * (i % 7),
                    "output": rows.COLOURS[i % 3],
                    "lang": ("ko", "en")[i % 2],
                    "author": i % 20,
                }
                for i in range(60)
            ],
        )
        values = {"name": "tiny", "model": str(model), "data": {"train": str(source), "test": 0.5}, "training": FEW}
        values |= {"task": "generation", "evaluation": {"max_new_tokens": 2}} | parts
        run = Studio(tmp_path / "home").tune(spec.from_mapping(values), new=True)
        worker.work(run.path, lambda: False)
        return runs.load(run.path)

    return make


def report(run: runs.Run) -> Report:
    assert failure(run) is None
    return read_json(run.path / "report.json")


def test_slices_and_groups_stand_in_the_report(
    tiny: Callable[..., Path], tmp_path: Path, tuned: Callable[..., runs.Run]
) -> None:
    slices = {"korean": 'lang == "ko"', "marked": "len(input) > 10", "nobody": "lang == 'fr'"}
    data = {"train": str(tmp_path / "rows.jsonl"), "test": 0.5, "group_by": "author"}
    run = tuned(tiny("tiny_llama"), data=data, evaluation={"max_new_tokens": 2, "slices": slices})
    told = report(run)
    named = {(each.by, each.name): each for each in told.differences}
    assert {("slice", "korean"), ("slice", "marked")} <= named.keys() and ("slice", "nobody") not in named
    assert "slice `nobody` has no row" in told.notes
    assert sum(each.n for each in told.differences if each.by == "length") == told.scores["exact_match"].n
    assert named["slice", "korean"].base is not None
    later = rows.write(tmp_path / "later.jsonl", [{"input": f"item {i}?", "output": "red"} for i in range(12)])
    again = afterwards.of_run(run, later)
    assert "slice `korean`: these rows have no column lang" in again.notes
    assert [each.name for each in again.differences if each.by == "slice"] == []


def test_a_slice_of_an_unknown_column_ends_the_run_before_it_is_trained(
    tiny: Callable[..., Path], tuned: Callable[..., runs.Run]
) -> None:
    run = tuned(tiny("tiny_llama"), evaluation={"slices": {"s": "langg == 'ko'"}})
    problem = failure(run)
    assert isinstance(problem, SpecError) and problem.hint == "did you mean `lang`?"
    assert not [event for event in runs.read_events(run.path) if isinstance(event, runs.Started)]


@pytest.mark.parametrize("method", ["lora", "full", "prompt_tuning"])
def test_general_texts_are_measured_before_and_after(
    tiny: Callable[..., Path], tuned: Callable[..., runs.Run], method: str
) -> None:
    told = report(tuned(tiny("tiny_llama"), method=method)).forgetting
    assert [each.name for each in told] == ["general English", "other languages", "code"]
    assert [each.n for each in told] == [45, 22, 19]
    for each in told:
        assert each.before != each.after and each.low <= each.ratio <= each.high


def test_before_is_the_bare_base_whatever_is_trained(tiny: Callable[..., Path], tuned: Callable[..., runs.Run]) -> None:
    before = [
        [each.before for each in report(tuned(tiny("tiny_llama"), method=m)).forgetting] for m in ("lora", "full")
    ]
    assert before[0] == pytest.approx(before[1], rel=1e-5)


def test_own_rows_are_measured_with_their_answers(
    tiny: Callable[..., Path], tmp_path: Path, tuned: Callable[..., runs.Run]
) -> None:
    """A key's effect: another format than the training rows', twice as many figures; its content names the run."""
    old = tmp_path / "old.jsonl"
    turns = [[{"role": "user", "content": f"old {i}"}, {"role": "assistant", "content": "yes"}] for i in range(10)]
    rows.write(old, [{"messages": each} for each in turns])
    run = tuned(tiny("tiny_llama", chat=True), evaluation={"max_new_tokens": 2, "regression": str(old)})
    told = report(run)
    own = {each.metric: each for each in told.forgetting if each.name == "your rows"}
    assert set(own) == {"perplexity", "exact_match"} and {each.n for each in own.values()} == {10}
    assert own["perplexity"].before != own["perplexity"].after
    assert (run.path / "forgetting" / "regression.jsonl").exists()
    rows.write(old, [{"messages": each} for each in turns[:9]])
    assert Studio(tmp_path / "home").draft(spec.load(run.path / "experiment.yaml")).fingerprint != run.fingerprint


def test_own_rows_of_plain_text_have_a_perplexity_alone_and_seq2seq_can_be_asked_too(
    tiny: Callable[..., Path], tmp_path: Path, tuned: Callable[..., runs.Run]
) -> None:
    text = rows.write(tmp_path / "text.jsonl", [{"text": f"It was day {i} of the long winter."} for i in range(8)])
    told = report(tuned(tiny("tiny_llama"), evaluation={"max_new_tokens": 2, "regression": str(text)})).forgetting
    assert [each.metric for each in told if each.name == "your rows"] == ["perplexity"]
    pairs = rows.write(tmp_path / "old.jsonl", [{"input": f"old {i}?", "output": "yes"} for i in range(8)])
    made = report(tuned(tiny("tiny_t5"), evaluation={"max_new_tokens": 2, "regression": str(pairs)}))
    assert [each.metric for each in made.forgetting] == ["perplexity", "exact_match"]
    assert any("a plain text is no task of this base" in note for note in made.notes)


def test_an_encoder_says_that_forgetting_was_not_measured(
    tiny: Callable[..., Path], tmp_path: Path, tuned: Callable[..., runs.Run]
) -> None:
    found = report(tuned(tiny("tiny_bert"), data={"train": str(rows.labels(tmp_path))}, task="classification"))
    assert (
        found.forgetting == () and "forgetting was not measured: an encoder has no likelihood of texts" in found.notes
    )


@pytest.mark.parametrize(
    ("kind", "wishes", "error", "said"),
    [
        ("tiny_llama", {"regression": "nowhere.jsonl"}, NotFound, "nowhere.jsonl"),
        ("tiny_llama", {"regression": "bad.jsonl"}, DataError, "not JSON"),
        ("tiny_llama", {"regression": "bad.jsonl", "compare_base": False}, SpecError, "needs the base's answers"),
        ("tiny_bert", {"regression": "old.jsonl"}, SpecError, "nothing that it could forget|could forget"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_a_run_is_made(
    tiny: Callable[..., Path], tmp_path: Path, kind: str, wishes: dict[str, Any], error: type[LuthierError], said: str
) -> None:
    (tmp_path / "bad.jsonl").write_text("{input: 1}\n", encoding="utf-8")
    rows.write(tmp_path / "old.jsonl", [{"input": "a", "output": "b"}])
    values = {"model": str(tiny(kind)), "data": str(rows.labels(tmp_path))}
    given = {key: str(tmp_path / value) if isinstance(value, str) else value for key, value in wishes.items()}
    with pytest.raises(error, match=said):
        Studio(tmp_path / "home").draft(spec.from_mapping(values | {"evaluation": given}))
    assert not (tmp_path / "home" / "runs").exists()


def test_the_fit_stands_in_the_report_with_its_advice(
    tiny: Callable[..., Path], tuned: Callable[..., runs.Run]
) -> None:
    still = tuned(tiny("tiny_llama"), training=FEW | {"num_epochs": 3, "batch_size": 4, "learning_rate": 1e-9})
    assert report(still).fit.endswith("Next, one change: `training.learning_rate` 1e-09 → 3e-09.")
    assert json.loads((still.path / "report.json").read_text())["fit"] == report(still).fit
