"""`luthier convert`: the file on disk, the lists on standard error or as JSON, and a plan of the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import rows
from tests.cli.conftest import Luthier

FILES = Path(__file__).parents[1] / "conversion" / "files"


def _rows(folder: Path) -> None:
    """Rows of the formats that the examples name."""
    rows.pairs(folder)
    rows.chats(folder)
    turns = [[{"from": "human", "value": f"item {i}?"}, {"from": "gpt", "value": f"it is {i}"}] for i in range(60)]
    rows.write(folder / "chats.jsonl", [{"conversations": chat} for chat in turns])
    held_out = [{"input": f"thing {i}?", "output": rows.COLOURS[i % 3]} for i in range(20)]
    rows.write(folder / "held-out.jsonl", held_out)
    rows.write(folder / "corpus.jsonl", [{"body": f"the number {i} is learned whole"} for i in range(60)])
    (folder / "data").mkdir()
    alpaca = [{"instruction": f"say {i}", "input": "", "output": f"it is {i}"} for i in range(60)]
    rows.write(folder / "data" / "tickets.jsonl", alpaca)
    info = {"tickets": {"file_name": "tickets.jsonl"}}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        ("axolotl-qlora.yml", ()),
        ("axolotl-full.yaml", ("method.trainable=[layers.1]",)),
        ("axolotl-prompt.yml", ()),
        ("llama-factory-lora.yaml", ()),
        ("trl-full.json", ("data.format=input_output",)),
        ("watsonx-prompt-tuning.json", ()),
    ],
)
def test_the_result_can_be_planned(
    luthier: Luthier, tiny: Callable[..., Path], tmp_path: Path, name: str, sets: tuple[str, ...]
) -> None:
    _rows(tmp_path)
    shutil.copy(FILES / name, tmp_path)
    said = luthier("convert", name)
    assert said.code == 0 and said.out == "experiment.yaml\n"
    here = (f"model.name={tiny('tiny_llama')}", "model.revision=null", "training.max_seq_length=128", *sets)
    planned = luthier("plan", *(word for setting in here for word in ("--set", setting)), "--json")
    assert planned.code == 0, planned.err
    assert json.loads(planned.out)["plan"]["steps"] > 0


def test_lists_are_words_and_the_result_is_never_written_over(luthier: Luthier, tmp_path: Path) -> None:
    shutil.copy(FILES / "axolotl-qlora.yml", tmp_path)
    said = luthier("convert", "axolotl-qlora.yml", "--out", "e.yaml")
    assert said.code == 0 and said.out == "e.yaml\n" and "a configuration of Axolotl" in said.err
    assert "  lora_modules_to_save (axolotl-qlora.yml:14): " in said.err
    assert "  data.overlength: drop\n" in said.err and "8 rows a step" in said.err
    assert "luthier plan e.yaml" in said.err
    again = luthier("convert", "axolotl-qlora.yml", "--out", "e.yaml")
    assert again.code == 2 and "e.yaml exists" in again.err


def test_json_has_every_list(luthier: Luthier, tmp_path: Path) -> None:
    shutil.copy(FILES / "watsonx-lora.json", tmp_path)
    told = json.loads(luthier("convert", "watsonx-lora.json", "--json").out)
    assert told["tool"] == "watsonx" and told["experiment"] == "experiment.yaml"
    assert {line["path"]: line["value"] for line in told["carried"]}["method.rank"] == 8
    assert all(line["where"] for line in told["lost"]) and told["default"] and told["changed"]


def test_mistakes_are_told_without_a_traceback(luthier: Luthier, tmp_path: Path) -> None:
    missing = luthier("convert", "absent.yml")
    assert missing.code == 2 and "absent.yml does not exist" in missing.err
    (tmp_path / "two.yml").write_text("micro_batch_size: 1\nuse_peft: true\n")
    both = luthier("convert", "two.yml")
    assert both.code == 2 and "two.yml:1" in both.err and not (tmp_path / "experiment.yaml").exists()
    shutil.copy(FILES / "trl-lora.yaml", tmp_path)
    nowhere = luthier("convert", "trl-lora.yaml", "--out", "no/such/folder.yaml")
    assert nowhere.code == 2 and "the folder no/such does not exist" in nowhere.err
