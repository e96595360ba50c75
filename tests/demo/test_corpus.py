"""What the demo's texts and rows promise: the same every time, nothing leaks, every query runs. No training here."""

import json
import random
import re
import sqlite3
from pathlib import Path

import pytest

from luthier.demo import base_path, write_demo
from luthier.demo.dataset import SIZES, rows
from luthier.demo.documents import KINDS, document, text_of
from luthier.demo.phrases import held_out_words
from luthier.demo.queries import OPERATORS
from luthier.demo.words import (
    NEW_TEST_THEMES,
    PRETRAINING_THEMES,
    TEST_THEMES,
    TUNING_THEMES,
    VALIDATION_THEMES,
    invent,
    written_words,
)

NEW_WORDS = {word.lower() for theme in NEW_TEST_THEMES for word in theme.words()}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, str]]]:
    return {split: list(rows(split)) for split in SIZES}


@pytest.fixture(scope="module")
def documents() -> list[tuple[str, str]]:
    rng = random.Random("documents")
    return [(kind, text_of(document(rng, kind))) for kind in KINDS for _ in range(400)]


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def execute(row: dict[str, str], query: str) -> list[tuple]:
    database = sqlite3.connect(":memory:")
    try:
        database.executescript(row["setup"])
        return database.execute(query).fetchall()
    finally:
        database.close()


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    folders = [write_demo(tmp_path / name, seed).parent for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    first, again, other = ([(f / f"{split}.jsonl").read_bytes() for split in SIZES] for f in folders)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_files_are_the_splits(tmp_path: Path, splits: dict) -> None:
    experiment = write_demo(tmp_path)
    assert experiment == tmp_path / "experiment.yaml"
    for split, size in SIZES.items():
        lines = (tmp_path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == splits[split]
        assert len(lines) == size
        assert f"{split}: {split}.jsonl" in experiment.read_text()
    assert json.dumps(str(base_path())) in experiment.read_text()


def test_a_prompt_ends_without_a_space_and_an_answer_begins_without_one(tmp_path: Path, splits: dict) -> None:
    assert 'template: "{schema}\\nQuestion: {input}\\nSQL:"' in write_demo(tmp_path).read_text()
    for row in [row for split in splits.values() for row in split]:
        for column in ("schema", "input", "output"):
            assert row[column] == row[column].strip()
            assert "  " not in row[column]


def test_no_theme_is_in_two_splits(splits: dict) -> None:
    domains = {split: {row["domain"] for row in of_split} for split, of_split in splits.items()}
    assert domains["test"] == {theme.name for theme in TEST_THEMES}
    assert not domains["train"] & domains["test"]
    assert not domains["train"] & domains["validation"]
    assert not domains["validation"] & domains["test"]


def test_no_table_of_a_test_or_validation_theme_is_in_a_train_row(splits: dict) -> None:
    held_out = {table for theme in TEST_THEMES + VALIDATION_THEMES for table in theme.tables}
    assert not held_out & {table for theme in TUNING_THEMES for table in theme.tables}
    assert not any(held_out & words_of(row["schema"]) for row in splits["train"])


def test_new_words_are_in_no_train_row_and_in_no_document(splits: dict, documents: list) -> None:
    assert not NEW_WORDS & {word.lower() for theme in PRETRAINING_THEMES for word in theme.words()}
    for text in [row["schema"] + row["input"] for row in splits["train"]] + [text for _, text in documents]:
        assert not NEW_WORDS & words_of(text)


def test_held_out_wordings_are_in_no_train_row_and_in_every_test_row(splits: dict) -> None:
    held_out = {word for word in held_out_words() if word not in written_words()}
    assert len(held_out) > 20
    for row in splits["train"] + splits["validation"]:
        assert not held_out & set(re.findall(r"[A-Za-z]+", row["input"]))
    assert all(held_out & set(re.findall(r"[A-Za-z]+", row["input"])) for row in splits["test"])


def test_no_document_has_a_question_together_with_a_query(documents: list) -> None:
    for kind, text in documents:
        queries = [line for line in text.splitlines() if "SELECT" in line]
        others = [line for line in text.splitlines() if "SELECT" not in line]
        assert bool(queries) == (kind in ("queries", "noted"))
        if queries:
            assert all(line.startswith(("CREATE TABLE ", "-- ")) for line in others)
            assert "?" not in text and "Question" not in text
        assert "SQL:" not in text


def test_a_note_names_and_says_nothing_of_what_the_query_does(documents: list) -> None:
    telling = {
        "above",
        "below",
        "more",
        "least",
        "most",
        "average",
        "total",
        "count",
        "many",
        "highest",
        "lowest",
        "not",
        "or",
        "per",
        "each",
        "different",
        "first",
        "rising",
        "falling",
        "between",
    }
    notes = [line for kind, text in documents if kind == "noted" for line in text.splitlines() if line[:2] == "--"]
    assert len(notes) > 1000
    assert not any(telling & words_of(note) for note in notes)


def test_every_right_query_runs_and_finds_something(splits: dict) -> None:
    for row in [row for split in splits.values() for row in split]:
        found = execute(row, row["output"])
        assert found and found != [(None,)], row
        assert "COUNT(*)" not in row["output"] or found != [(0,)], row


def test_executing_catches_most_wrong_operators(splits: dict) -> None:
    """Every comparison of a test row replaced by each other one: nearly all give another result."""
    pairs = [
        (row, row["output"].replace(f" {old} ", f" {new} "))
        for row in splits["test"]
        for old in list(OPERATORS)[:5]
        for new in list(OPERATORS)[:5]
        if new != old and row["output"].count(f" {old} ") == 1 and " JOIN " not in row["output"]
    ]
    caught = sum(execute(row, row["output"]) != execute(row, wrong) for row, wrong in pairs)
    assert len(pairs) > 200
    assert caught / len(pairs) > 0.85


def test_no_question_is_asked_twice_of_a_schema(splits: dict) -> None:
    keys = [(row["schema"], row["input"]) for split in splits.values() for row in split]
    assert len(keys) == len(set(keys))


def test_an_invented_word_is_in_no_theme() -> None:
    rng = random.Random(0)
    words = [invent(rng) for _ in range(5000)]
    assert not written_words() & set(words)
    assert all(4 <= len(word) <= 10 and word.isalpha() and word.islower() for word in words)
