"""`luthier tune --seeds 3`: the same rows, other seeds; continued where it was ended; told in one report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier import runs, spec
from luthier.errors import SpecError
from luthier.evaluation.report import read_json
from luthier.studio import Studio
from tests import rows
from tests.cli.conftest import Luthier


def test_three_seeds_are_trained_on_one_split_and_told_together(
    luthier: Luthier,
    experiment: Path,
    tmp_path: Path,
) -> None:
    first = luthier("tune")
    assert first.code == 0
    limited = ("--set", "data.limit=40", "--set", "evaluation.limit=4", "--set", "seed=7")
    said = luthier("tune", *limited, "--seeds", "3")
    assert said.code == 0, said.err
    assert re.fullmatch(r"accuracy over 3 seeds: \d\.\d\d .*n = \d\).*base.*", said.out.splitlines()[-1])
    made = {run.name: run for run in runs.all_runs(tmp_path / "home") if run.facts["drawn_by"] == 7}
    assert sorted(made) == ["experiment", "experiment-seed1", "experiment-seed2"]
    assert len({run.facts["dataset"] for run in made.values()}) == 1
    seeds = [spec.load(made[name].path / "resolved.yaml").seed for name in sorted(made)]
    assert seeds == [7, 8, 9]
    asked = [(run.path / "predictions.jsonl").read_text() for run in made.values()]
    ids = [[json.loads(line)["id"] for line in text.splitlines()] for text in asked]
    assert ids[0] == ids[1] == ids[2] and 2 <= len(ids[0]) <= 4
    weights = {(run.path / "adapter" / "adapter_model.safetensors").read_bytes() for run in made.values()}
    assert len(weights) == 3
    told = read_json(made["experiment"].path / "report.json").seeds
    assert told[0].metric == "accuracy" and told[0].sentence == said.out.splitlines()[-1]
    assert told[0].runs == tuple(made[name].id for name in sorted(made)) and len(told[0].scores) == 3


def test_the_same_command_again_trains_only_what_is_missing(
    luthier: Luthier,
    experiment: Path,
    tmp_path: Path,
) -> None:
    assert luthier("tune", "--seeds", "2").code == 0
    again = luthier("tune", "--seeds", "3", "--json")
    assert again.code == 0, again.err
    assert again.err.count("is done already") == 2
    last = json.loads(again.out.splitlines()[-1])
    assert len(last["seeds"][0]["runs"]) == 3 and last["seeds"][0]["outcome"] in ("better", "worse", "cannot tell")
    assert len(runs.all_runs(tmp_path / "home")) == 3
    [first] = [run for run in runs.all_runs(tmp_path / "home") if run.name == "experiment"]
    report = read_json(first.path / "report.json")
    assert [note for note in report.notes if "seeds" in note] == [report.seeds[0].sentence]
    assert "accuracy over 3 seeds" in (first.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("count", ["0", "99", "three"])
def test_a_count_that_makes_no_sense_is_refused(luthier: Luthier, experiment: Path, count: str) -> None:
    said = luthier("tune", "--seeds", count)
    assert said.code == 2 and "--seeds" in said.err and "Traceback" not in said.err


def test_runs_that_share_no_row_are_no_seeds_of_one_experiment(
    luthier: Luthier,
    experiment: Path,
    tmp_path: Path,
    tiny: Callable[..., Path],
) -> None:
    assert luthier("tune").code == 0
    rows.write(tmp_path / "pairs.jsonl", [{"input": f"other {i}?", "output": rows.COLOURS[i % 3]} for i in range(48)])
    assert luthier("tune").code == 0
    studio = Studio(tmp_path / "home")
    with pytest.raises(SpecError, match="share no test rows"):
        studio.seeds(studio.runs())
