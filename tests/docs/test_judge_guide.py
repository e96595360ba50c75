"""The guide to the judge: its experiments are valid, its flags exist, its numbers are the program's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from luthier import spec
from luthier.cli import app
from luthier.evaluation import verdicts

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "judge.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL))
def test_every_experiment_of_the_guide_is_one(block: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(block if "model:" in block.split("evaluation")[0] else f"model: m\ndata: d\n{block}")
    assert spec.load(path).evaluation.judge is not None


def test_every_flag_of_the_guide_is_one_of_the_command() -> None:
    flags = {flag for option in typer.main.get_group(app.app).commands["evaluate"].params for flag in option.opts}
    assert set(re.findall(r"--[a-z][a-z-]*", GUIDE)) <= flags
    for sets in re.findall(r"--set (\S+)=", GUIDE):
        assert sets in spec.known_paths() or sets == "evaluation.judge"


def test_the_guide_s_numbers_are_the_program_s() -> None:
    asked = [verdicts.Asked("p", (reference,), "a") for reference in ("yes", "no")]
    assert len(verdicts.canaries(asked, "reference")) == 10 and "Ten things" in GUIDE
    judge = pytest.importorskip("luthier.evaluation.judge")
    assert f"{judge.SUSPECT:.0%}".replace("%", " %") in GUIDE
    assert judge.Endpoint("m").retries == 5 and "up to five times more" in GUIDE
