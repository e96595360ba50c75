"""The gate before a run, in a run, before an evaluation; and what its promise is worth: a tuned model that stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier import runs, spec, workbench
from luthier.errors import DataError
from luthier.evaluation import generate
from luthier.models.methods import attach
from luthier.studio import Studio
from luthier.train.loop import Job, train
from tests import rows
from tests.cli.conftest import Luthier, experiment, luthier  # noqa: F401
from tests.test_traps import _bench

WRONG = {"input": "item x?", "output": "red</s>blue"}


def _with_wrong(folder: Path, at: int) -> Path:
    """`pairs.jsonl` with an answer in line `at` that has an end token in its middle."""
    lines = rows.pairs(folder).read_text(encoding="utf-8").splitlines()
    lines.insert(at - 1, json.dumps(WRONG))
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "pairs.jsonl"


def test_tune_refuses_before_there_is_a_run_and_says_what_and_where(
    luthier: Luthier,  # noqa: F811
    experiment: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    _with_wrong(tmp_path, 7)
    keep = ("--set", "data.validation=0", "--set", "data.test=0")
    said = luthier("tune", experiment, *keep)
    assert said.code == 2 and said.out == ""
    assert "G07: an end token stands inside the answer" in said.err and "pairs.jsonl:7" in said.err
    assert "red⟦</s>⟧blue" in said.err and "data.accept: [G07]" in said.err and "Traceback" not in said.err
    assert not (tmp_path / "home" / "runs").exists()
    planned = json.loads(luthier("plan", experiment, *keep, "--json").out)["plan"]
    (found,) = planned["findings"]
    assert (found["code"], found["severity"], found["split"], found["count"]) == ("G07", "refuse", "train", 1)
    assert found["rows"][0].endswith("pairs.jsonl:7") and "⟦</s>⟧" in found["excerpts"][0] and found["hint"]


def test_a_person_accepts_a_finding_and_the_run_remembers(
    luthier: Luthier,  # noqa: F811
    experiment: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    _with_wrong(tmp_path, 7)
    keep = ("--set", "data.validation=0", "--set", "data.test=0")
    wrong = luthier("tune", experiment, *keep, "--accept", "G7")
    assert wrong.code == 2 and "`G7` is not a finding's code" in wrong.err and "G07" in wrong.err
    assert luthier("tune", experiment, *keep, "--accept", "G01").code == 2
    said = luthier("tune", experiment, *keep, "--accept", "G01", "--accept", "G07")
    (run,) = runs.all_runs(tmp_path / "home")
    assert spec.load(run.path / "experiment.yaml").data.accept == ("G01", "G07")
    assert run.facts["accepted"] == ["G07"]
    (noted,) = [e for e in runs.read_events(run.path) if isinstance(e, runs.Noted) and e.kind == "G07"]
    assert noted.message.endswith("(accepted: data.accept)") and noted.rows[0].endswith("pairs.jsonl:7")
    assert said.code in (0, 1) and run.state == "done"


@pytest.mark.parametrize("split", ["validation", "test"])
def test_rows_that_are_only_asked_are_judged_likewise(tiny: Callable[..., Path], tmp_path: Path, split: str) -> None:
    good = rows.write(tmp_path / "good.jsonl", [{"input": f"item {i}?", "output": f"it is {i}"} for i in range(20)])
    bad = rows.write(tmp_path / "bad.jsonl", [{"input": f"thing {i}?", "output": "so"} for i in range(4)] + [WRONG])
    data = {"train": str(good), "validation": 0.0, "test": 0.0} | {split: str(bad)}
    described = spec.from_mapping({"model": str(tiny("tiny_llama")), "data": data, "name": "asked"})
    studio = Studio(tmp_path / "home")
    with pytest.raises(DataError, match=f"1 of 5 rows of {split}") as caught:
        studio.tune(described)
    assert caught.value.where == f"{bad}:5" and studio.runs() == []
    (found,) = [each for each in studio.plan(described).findings if each.severity == "refuse"]
    assert (found.code, found.split, found.rows) == ("G07", split, (f"{bad}:5",))


def test_rows_of_an_evaluation_are_judged_before_the_model_is_asked(
    luthier: Luthier,  # noqa: F811
    experiment: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = rows.write(tmp_path / "good.jsonl", [{"input": f"item {i}?", "output": f"it is {i}"} for i in range(60)])
    assert luthier("tune", experiment, "--set", f"data={good}").code == 0
    bad = rows.write(tmp_path / "bad.jsonl", [{"input": "thing?", "output": "so"}, WRONG])
    monkeypatch.setattr(generate, "complete", None)
    (run,) = runs.all_runs(tmp_path / "home")
    for subject in (run.id, json.loads((run.path / "run.json").read_text())["facts"]["model"]):
        said = luthier("evaluate", subject, "--data", bad)
        assert said.code == 2 and "G07" in said.err and "bad.jsonl:2" in said.err


def test_the_words_of_a_user_are_noted_in_the_run(tiny: Callable[..., Path], tmp_path: Path) -> None:
    told = [{"input": f"item {i}? </s>", "output": f"it is {i}"} for i in range(20)]
    data = {"train": str(rows.write(tmp_path / "rows.jsonl", told)), "validation": 0.0, "test": 0.0}
    described = spec.from_mapping({"model": str(tiny("tiny_llama")), "data": data})
    (found,) = [each for each in Studio(tmp_path / "home").plan(described).findings if each.code == "G10"]
    assert (found.severity, found.count, len(found.rows)) == ("warn", 20, 5)


def test_a_model_whose_pad_token_is_its_end_token_learns_to_stop(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """RELIABILITY 18: 20 rows over-fitted; at least 19 answers stop before `max_new_tokens`."""
    told = [{"input": f"item {i}?", "output": f"it is {i * i}"} for i in range(20)]
    data = {"train": str(rows.write(tmp_path / "rows.jsonl", told)), "validation": 0.0, "test": 0.0}
    bench = _bench(tiny("tiny_gpt2"), data, tmp_path / "home", "full")
    assert bench.base.pad_token_id in bench.base.end_token_ids
    assert all(row.train_L[-1] and row.ids_L[-1] == bench.base.pad_token_id for row in bench.train)
    codes = {finding.code: finding.severity for finding in bench.findings}
    assert codes == {"G11": "note"}
    tuned = attach(bench.base, [bench.experiment.method], [0])
    changes = {"max_steps": 150, "batch_size": 20, "learning_rate": 1e-2, "schedule": "constant", "warmup": 0}
    training = bench.experiment.training.model_copy(update=changes)
    for _ in train(tuned, [Job("run", training, 0, bench.train, [], tmp_path)]):
        pass
    prompts = [row.ids_L[: row.prompt_length].tolist() for row in bench.train]
    said = generate.answer(tuned, 0, prompts, 32)
    assert sum(completion.stopped for completion in said) >= 19
    answers = [completion.text.strip() for completion in said]
    assert sum(answer == row["output"] for answer, row in zip(answers, told, strict=True)) >= 19


def test_the_gate_asks_no_weights(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = workbench.base.load
    monkeypatch.setattr(workbench.base, "load", lambda *a, **k: asked.append(k.get("weights")) or load(*a, **k))
    data = spec.Data(train=str(rows.pairs(tmp_path)))
    studio = Studio(tmp_path / "home")
    draft = studio.draft(spec.Experiment(model=spec.Model(name=str(tiny("tiny_llama"))), data=data))
    workbench.judge(draft.resolved.experiment, draft.dataset)
    assert asked == [False]
