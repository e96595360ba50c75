"""`luthier prepare`: the summary on standard error, the folder on standard output, the page beside the rows."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.data import survey
from luthier.evaluation import predictions
from luthier.studio import Studio
from tests import rows
from tests.cli.conftest import Luthier


def test_a_file_is_told_in_a_few_lines_and_as_a_page(luthier: Luthier, tmp_path: Path) -> None:
    table = [{"text": f"{rows.COLOURS[i % 2]} {i * 7919}", "label": rows.COLOURS[i % 2]} for i in range(60)]
    rows.write(tmp_path / "few.jsonl", [*table, {"text": "grey 1", "label": "Red"}, table[0]])
    said = luthier("prepare", "few.jsonl")
    folder = Path(said.out.strip())
    assert said.code == 0 and (folder / "dataset.html").is_file() and f"page: {folder / 'dataset.html'}" in said.err
    assert "text_label rows for classification" in said.err and "(of 62 read)" in said.err
    assert re.search(r"classes +3, from `\w+` with \d+ training rows to `Red` with 1", said.err)
    assert "D03  1 pair of classes may be one class spelled twice: `Red` (1) and `red`" in said.err
    assert "few.jsonl:61]" in said.err and "D11" in said.err and "\x1b[" not in said.err
    assert len(said.err.splitlines()) < 20


def test_json_carries_everything(luthier: Luthier, tmp_path: Path) -> None:
    told = json.loads(luthier("prepare", rows.labels(tmp_path), "--json").out)
    assert {"D10", "D11"} <= {remark["code"] for remark in told["summary"]["remarks"]}
    assert Path(told["page"]).is_file() and told["lengths"] is None and told["counts"]["train"]


def test_an_experiment_file_tells_lengths_in_tokens_and_its_own_batch(luthier: Luthier, experiment: Path) -> None:
    said = luthier("prepare", "experiment.yaml")
    assert said.code == 0 and "tokens   of " in said.err and "`training.max_seq_length: 64` holds every row" in said.err
    assert re.search(r"D10  \d+ training rows at batch size 16 are 3 steps an epoch", said.err)
    told = json.loads(luthier("prepare", "experiment.yaml", "--json").out)
    assert told["lengths"]["suggested"] == 64 and told["lengths"]["choices"][-1]["longer"] == 0
    experiment.write_text(experiment.read_text().replace("batch_size: 16", "batch_size: 1"))
    assert "D10" not in luthier("prepare", "experiment.yaml").err


def test_without_its_base_the_data_are_told_all_the_same(luthier: Luthier, tmp_path: Path) -> None:
    rows.pairs(tmp_path)
    (tmp_path / "one.yaml").write_text("model: ./absent\ndata: pairs.jsonl\n")
    said = luthier("prepare", "one.yaml")
    assert said.code == 0 and "note: lengths in tokens are not told: there is no model folder" in said.err
    assert json.loads(luthier("prepare", "one.yaml", "--json").out)["lengths"] is None


def test_the_plan_names_a_shorter_length_where_a_few_rows_hold_much(luthier: Luthier, experiment: Path) -> None:
    table = [{"prompt": f"{i} ", "completion": rows.COLOURS[i % 3]} for i in range(300)]
    long = [{"prompt": f"{i} " + "no " * 70, "completion": "red"} for i in range(3)]
    rows.write(experiment.parent / "pairs.jsonl", [*table, *long])
    wish = ("--set", "data.validation=0.0", "--set", "data.test=0.0")
    assert "`training.max_seq_length: 64` leaves out 3 of 303 rows" in luthier("plan", *wish).err
    assert "leaves out" not in luthier("plan", *wish, "--set", "training.max_seq_length=256").err


def test_the_commands_of_the_learning_curve_run_as_they_are_printed(luthier: Luthier, experiment: Path) -> None:
    *tunes, compare = survey.learning_curve(36)
    for command in tunes:
        assert luthier(*shlex.split(command)[1:]).code == 0
    told = luthier(*shlex.split(compare)[1:])
    assert told.code == 0 and "half" in told.out and "whole" in told.out and "quarter" in told.out


@pytest.mark.parametrize("kind", ["tiny_bert", "tiny_llama"])
def test_classes_as_words_from_the_rows_to_the_answers(
    luthier: Luthier, tiny: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """The file writes 0 and 1, the model says words, and what is scored are words: also of rows read later."""
    column = ("text", "label") if kind == "tiny_bert" else ("input", "output")
    table = [{column[0]: f"{'good' if i % 2 else 'bad'} {i * 7919}", column[1]: i % 2} for i in range(48)]
    rows.write(tmp_path / "reviews.jsonl", table)
    (tmp_path / "e.yaml").write_text(
        f"model: {tiny(kind)}\ndata: {{train: reviews.jsonl, labels: {{0: negative, 1: positive}}, test: 0.4}}\n"
        "training: {num_epochs: 1, batch_size: 16, learning_rate: 0.01}\n"
    )
    assert luthier("tune", "e.yaml").code == 0
    run = Studio().find()
    answered = predictions.read(run.path / "predictions.jsonl")
    said = [row.sides["tuned"] for row in answered]
    assert said and {each.answer for each in said} <= {"negative", "positive"}
    assert {reference for each in said for reference in each.references} == {"negative", "positive"}
    rows.write(tmp_path / "later.jsonl", [{column[0]: f"late {i * 6007}", column[1]: i % 2} for i in range(6)])
    later = luthier("evaluate", run.id, "--data", "later.jsonl")
    assert later.code == 0 and "n = 6" in later.out, later.err
