"""What columns become: class labels as words and back, translation pairs, features through the template."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest

from luthier import spec
from luthier.data import formats
from luthier.data.prepare import prepare
from luthier.errors import DataError, SpecError
from luthier.spec import Data, values
from tests import rows

WORDS = {0: "negative", 1: "positive"}
NONE = {"validation": 0.0, "test": 0.0}


def _classes(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"review {i}", "label": label} for i, label in enumerate(labels)]


# --- classes


@pytest.mark.parametrize("written", [[0, 1, 1], ["0", "1", "1"], [0.0, 1.0, 1], ["0", "positive", " 1 "]])
def test_a_mapping_names_the_classes_of_a_file(tmp_path: Path, written: list[Any]) -> None:
    dataset = prepare(Data(train=_classes(*written), labels=WORDS, **NONE), tmp_path)
    assert dataset.labels == ("negative", "positive")
    assert [each.label for each in dataset.examples("train")] == ["negative", "positive", "positive"]
    assert [dataset.labels.index(each.label or "") for each in dataset.examples("train")] == [0, 1, 1]  # and back


def test_the_classes_stand_in_the_order_of_the_mapping_and_true_is_a_key(tmp_path: Path) -> None:
    dataset = prepare(Data(train=_classes(True, False), labels={"true": "yes", "false": "no"}, **NONE), tmp_path)
    assert dataset.labels == ("yes", "no")


def test_two_entries_with_one_name_are_one_class(tmp_path: Path) -> None:
    labels = {"billing": "billing", "Billing": "billing", "refund": "refund"}
    dataset = prepare(Data(train=_classes("Billing", "billing", "refund"), labels=labels, **NONE), tmp_path)
    assert dataset.labels == ("billing", "refund")
    assert dataset.summary["label_counts"] == {"billing": 2, "refund": 1}


def test_what_the_mapping_does_not_name_is_refused_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`2` is not among the 2 classes") as caught:
        prepare(Data(train=_classes(0, 1, 2), labels=WORDS, **NONE), tmp_path)
    assert caught.value.where == "rows:3"


@pytest.mark.parametrize(
    ("columns", "spaces"), [(("input", "output"), ("", "")), (("prompt", "completion"), (" ", "\n"))]
)
def test_the_answer_of_a_pair_becomes_the_word(
    tmp_path: Path, columns: tuple[str, str], spaces: tuple[str, str]
) -> None:
    """What a decoder learns to say is the word, with the spaces that the file has around it."""
    question, answer = columns
    table = [{question: f"review {i}", answer: f"{spaces[0]}{i % 2}{spaces[1]}"} for i in range(12)]
    dataset = prepare(Data(train=table, labels=WORDS, **NONE), tmp_path)
    assert (dataset.task, dataset.labels) == ("classification", ("negative", "positive"))
    first = dataset.examples("train")[0]
    assert (first.label, first.messages[1].content) == ("negative", f"{spaces[0]}negative{spaces[1]}")
    worded = [row | {answer: f"{spaces[0]}{WORDS[i % 2]}{spaces[1]}"} for i, row in enumerate(table)]
    told = prepare(Data(train=worded, labels=WORDS, **NONE), tmp_path)
    assert [each.id for each in told.examples("train")] == [each.id for each in dataset.examples("train")]


def test_a_mapping_survives_the_file_and_set(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("model: m\ndata: {train: x, labels: {0: negative, 1: 'no'}}\n")
    read = spec.load(path)
    assert read.data.labels == {"0": "negative", "1": "no"}
    path.write_text(spec.dump(read))
    assert spec.load(path) == read
    assert spec.load(path, ["data.labels.1=positive"]).data.labels == {"0": "negative", "1": "positive"}
    assert spec.load(path, ["data.labels={a: b}"]).data.labels == {"a": "b"}
    assert spec.fingerprint(read, "d", None) != spec.fingerprint(spec.load(path, ["data.labels.1=yes"]), "d", None)


@pytest.mark.parametrize("wrong", [{}, {"0": None}, {"0": ""}, [True], "negative", 3])
def test_what_is_no_name_is_refused(wrong: Any) -> None:
    with pytest.raises(SpecError, match=r"`data\.labels` must "):
        Data(train="x", labels=wrong)


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(formats).failed == 0 and doctest.testmod(values).failed == 0


# --- translation


def _translations(count: int = 40) -> list[dict[str, Any]]:
    return [{"translation": {"ko": f"안녕 {i}", "ja": f"こんにちは {i}"}} for i in range(count)]


@pytest.mark.parametrize("nested", [True, False])
def test_translation_pairs_go_the_way_that_is_said(tmp_path: Path, nested: bool) -> None:
    table = _translations() if nested else [row["translation"] for row in _translations()]
    path = rows.write(tmp_path / "pairs.jsonl", table)
    dataset = prepare(Data(train=str(path), columns={"input": "ko", "output": "ja"}, **NONE), tmp_path)
    assert (dataset.task, dataset.format) == ("translation", "input_output")
    assert [m.content for m in dataset.examples("train")[1].messages] == ["안녕 1", "こんにちは 1"]
    back = prepare(Data(train=str(path), columns={"input": "ja", "output": "ko"}, **NONE), tmp_path)
    assert [m.content for m in back.examples("train")[1].messages] == ["こんにちは 1", "안녕 1"]
    assert prepare(Data(train=str(path), columns={"input": "ja", "output": "ko"}, **NONE), tmp_path, task="generation")


@pytest.mark.parametrize("nested", [True, False])
def test_which_way_is_not_guessed(tmp_path: Path, nested: bool) -> None:
    table = _translations(4) if nested else [row["translation"] for row in _translations(4)]
    with pytest.raises(DataError, match="ja and ko are languages: which is translated into which") as caught:
        prepare(Data(train=table), tmp_path)
    assert "data.columns: {input: ja, output: ko}" in (caught.value.hint or "")


def test_a_translation_column_that_is_no_pair_stays_a_column(tmp_path: Path) -> None:
    plain = prepare(
        Data(train=[{"input": "a", "translation": "b"}], columns={"output": "translation"}, **NONE), tmp_path
    )
    assert (plain.task, plain.counts["train"]) == ("generation", 1)
    for strange in ({"source": "a", "target": "b"}, {1: "a", 2: "b"}, {}):
        with pytest.raises(DataError, match="the columns translation fit no known format"):
            prepare(Data(train=[{"translation": strange}]), tmp_path)
    with pytest.raises(DataError, match="this row has no `output`") as caught:
        wishes = {"columns": {"input": "ko", "output": "ja"}, **NONE}
        prepare(Data(train=[*_translations(3), {"translation": {"ko": "하나"}}], **wishes), tmp_path)
    assert caught.value.where == "rows:4"


# --- features


def test_features_reach_the_prompt_through_the_template() -> None:
    data = Data(train="x", template="{title} | {price} | {tags} | {sold}", columns={"label": "group"})
    row = {"title": "Lamp", "price": 12.5, "tags": ["a", "b"], "sold": True, "group": 3}
    example = formats.to_example(row, formats.detect(list(row), "f", data), data, "f", 1)
    assert (example.text, example.label) == ('Lamp | 12.5 | ["a", "b"] | true', "3")
    other = formats.to_example(row | {"price": 13}, "text_label", data, "f", 1)
    assert other.id != example.id
    with pytest.raises(DataError, match="`tags`, which is null in this row") as caught:
        formats.to_example(row | {"tags": None}, "text_label", data, "f", 2)
    assert caught.value.where == "f:2"
