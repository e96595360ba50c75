"""Where not, in a terminal: a finished run, an evaluation on other rows, a wrong slice, a missing file."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.cli import show as screen
from luthier.evaluation.differences import Slice
from luthier.evaluation.forgetting import Forgotten
from luthier.evaluation.report import Report
from tests import rows
from tests.cli.conftest import Luthier
from tests.evaluation import sample

SLICES = ("--set", "evaluation.slices.ten=len(input) > 7", "--set", "task=generation")


def test_a_run_tells_groups_and_what_is_forgotten(luthier: Luthier, experiment: Path) -> None:
    said = luthier("tune", experiment, *SLICES, "--set", "training.num_epochs=4")
    assert said.code == 0, said.err
    assert "training: " in said.err and len(said.out.splitlines()) == 1
    told = json.loads(luthier("show", "--json").out)["report"]
    assert {each["by"] for each in told["differences"]} == {"slice"} and len(told["forgetting"]) == 3
    shown = luthier("show").out
    assert re.search(r"slice +ten", shown) and "broken" in shown
    later = rows.write(Path("later.jsonl"), [{"input": f"thing {i}?", "output": "red"} for i in range(24)])
    again = luthier("evaluate", "experiment", "--data", later)
    assert again.code == 0 and re.search(r"slice +ten +24", again.out), again.err


@pytest.mark.parametrize(
    ("wish", "error", "hint"),
    [
        ("evaluation.slices.a=len(input", "is not a condition", ""),
        ("evaluation.slices.a=inputt == 'x'", "which no row has", "did you mean `input`?"),
        ("evaluation.regression=nowhere.jsonl", "nowhere.jsonl", ""),
    ],
)
def test_a_mistake_is_explained_without_a_traceback(
    luthier: Luthier, experiment: Path, wish: str, error: str, hint: str
) -> None:
    said = luthier("tune", experiment, "--set", "task=generation", "--set", wish)
    assert said.code and error in said.err and hint in said.err and "Traceback" not in said.err


def test_only_what_surely_got_worse_is_named_and_no_strange_text(capsys: pytest.CaptureFixture[str]) -> None:
    groups = [Slice("class", f"c{i}", 10, 0.1, 0.9, 0, 8, -0.8, -0.9, -0.5, hurt=i < 5) for i in range(7)]
    known = Forgotten("general English", 45, 41, 55, 1.34, 1.2, 1.5, "general English: forgotten")
    told = Report(sample.subject(), {}, {}, {}, "", differences=tuple(groups), forgetting=(known,), fit="Unsteady.")
    told = replace(told, forgetting=(known, replace(known, sentence="code: strange", strange=True)))
    screen.err.cache_clear()
    screen.where_not(told)
    assert capsys.readouterr().err.splitlines() == [
        "training: Unsteady.",
        "forgetting: general English: forgotten",
        "worse: class c0: 0.9 → 0.1 (n = 10)",
        "worse: class c1: 0.9 → 0.1 (n = 10)",
        "worse: class c2: 0.9 → 0.1 (n = 10)",
        "worse: 2 more groups, in the report",
    ]
    screen.where_not(replace(told, subject=sample.subject(against="most frequent class")))
    assert "worse" not in capsys.readouterr().err
    screen.err.cache_clear()
