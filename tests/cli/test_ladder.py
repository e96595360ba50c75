"""`luthier ladder`: the table and the answer, mistakes told before any work, Ctrl-C told with how to go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from luthier import climbing, ladder, rungs
from luthier.runs import Event
from tests import rows
from tests.cli.conftest import Luthier

BRIEF = ("--set", "training.max_steps=2")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of work are done by this process."""

    def working(room: Path, home: Path, model: str) -> Generator[Event, None, None]:
        told: list[Event] = []
        rungs.work(room, told.append)
        yield from told

    monkeypatch.setattr(climbing, "working", working)


def test_the_table_is_data_and_the_rest_is_words(luthier: Luthier, experiment: Path, tmp_path: Path) -> None:
    said = luthier("ladder", *BRIEF)
    assert said.code == 0
    *table, answer = said.out.splitlines()
    assert any(words in answer for words in (" is enough: ", " pays: ", "beats zero-shot: ", "to beat zero-shot: "))
    assert [line.split()[0] for line in table] == ["rung", "zero-shot", "few-shot", "prompt", "LoRA", "full"]
    page = tmp_path / "home/ladders/experiment/ladder.html"
    assert "LoRA: which learning rate, 0.0033, 0.01, 0.03?" in said.err and "training: 2 steps" in said.err
    assert "zero-shot: asking the bare base" in said.err and f"page: {page}" in said.err and page.is_file()
    told = json.loads(luthier("ladder", *BRIEF, "--json").out)
    assert told["sentence"] == answer and [rung["name"] for rung in told["rungs"]][-1] == "full"


def test_from_python_it_prints_the_answer(
    luthier: Luthier, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    luthier("ladder", *BRIEF, "--shots", 2)
    experiment.write_text(experiment.read_text().replace("num_epochs: 1", "num_epochs: 1, max_steps: 2"))
    found = ladder(experiment, shots=2)
    assert capsys.readouterr().out == found.sentence + "\n" and found.rung("few-shot").shots == 2


def test_a_mistake_is_told_before_any_work(luthier: Luthier, experiment: Path, tmp_path: Path) -> None:
    for words, told in (
        (("ladder", "nowhere.yaml"), "nowhere.yaml"),
        (("ladder", "--set", "training.learning_rte=1"), "did you mean `learning_rate`?"),
        (("ladder", "--shots", "0"), "`--shots 0` shows no example"),
        (("ladder", "--set", "data.test=0.0"), "a ladder compares on test rows, and there are none"),
    ):
        said = luthier(*words)
        assert said.code == 2 and said.out == "" and told in said.err and "Traceback" not in said.err
    assert not list(tmp_path.glob("home/ladders/*/ladder.json")) and not list(tmp_path.glob("home/runs/*"))


def test_ctrl_c_ends_what_is_at_work_and_tells_how_to_go_on(
    luthier: Luthier, experiment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed: list[bool] = []

    def interrupted(room: Path, home: Path, model: str) -> Generator[Event, None, None]:
        try:
            yield rungs._progress("loading the base")
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    with monkeypatch.context() as patch:
        patch.setattr(climbing, "working", interrupted)
        said = luthier("ladder", *BRIEF)
    assert said.code == 1 and said.out == "" and closed == [True]
    assert "the same `luthier ladder` command goes on where this one ended" in said.err
    assert luthier("ladder", *BRIEF).code == 0


def test_an_encoder_climbs_too(luthier: Luthier, experiment: Path, tmp_path: Path, tiny: Callable[..., Path]) -> None:
    rows.labels(tmp_path)
    text = f"model: {tiny('tiny_bert')}\ndata: labels.jsonl\ntraining: {{batch_size: 16}}\n"
    experiment.write_text(text)
    said = luthier("ladder", *BRIEF)
    assert said.code == 0 and "few-shot is left out: an encoder is not asked in words" in said.err
    assert "most frequent class" in said.out
