"""Planted twins and leaks, and what becomes of them (RELIABILITY 19)."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data import sorting
from luthier.data.prepare import prepare
from luthier.data.twins import NEAR, normal
from luthier.errors import DataError
from luthier.spec import Data
from tests.data.test_twins import edited, sentence, spoken, true_jaccard, words

Rows = list[dict[str, Any]]


def _sentences(language: str, count: int, seed: int) -> list[list[str]]:
    rng, known = random.Random(seed), words(language, 600)
    return [sentence(language, known, rng) for _ in range(count)]


def _in_other_spaces(language: str, said: list[str]) -> str:
    return f" {spoken(language, said).upper()} !" if language == "en" else f"「{spoken(language, said)}」。 "


def _near(language: str, said: list[str], rng: random.Random) -> str:
    """An edit that keeps a true Jaccard of 0.8."""
    while True:
        text = spoken(language, edited(language, said, words(language, 600), rng))
        if NEAR <= true_jaccard(normal(text), normal(spoken(language, said))) < 1:
            return text


def _planted(language: str) -> tuple[Rows, Rows, dict[str, set[int]]]:
    """2,000 rows of train, 500 of test; for each kind of leak the numbers of the 50 rows of train it has."""
    said, rng = _sentences(language, 2300, 7), random.Random(8)
    train = [{"input": spoken(language, one), "output": "ab"[i % 2], "author": i} for i, one in enumerate(said[:2000])]
    test = [
        {"input": spoken(language, one), "output": "ab"[i % 2], "author": -i - 1} for i, one in enumerate(said[2000:])
    ]
    chosen = rng.sample(range(2000), 200)
    planted = {
        kind: set(chosen[50 * i : 50 * i + 50]) for i, kind in enumerate(("exact", "normalised", "near", "group"))
    }
    for kind, numbers in planted.items():
        for number in sorted(numbers):
            text = {
                "exact": lambda one: spoken(language, one),
                "normalised": lambda one: _in_other_spaces(language, one),
                "near": lambda one: _near(language, one, rng),
                "group": lambda one: spoken(language, _sentences(language, 1, 9000 + len(test))[0]),
            }[kind](said[number])
            author = number if kind == "group" else -len(test) - 1
            test.append({"input": text, "output": train[number]["output"], "author": author})
    rng.shuffle(test)
    return train, test, planted


@pytest.mark.parametrize("language", ["en", "ko", "ja"])
def test_planted_leaks_are_found(tmp_path: Path, language: str) -> None:
    train, test, planted = _planted(language)
    wishes = {"train": train, "test": test, "validation": 0.0, "group_by": "author"}
    with pytest.raises(
        DataError, match="50 rows of train also stand in test; 50 rows of train stand in test but"
    ) as no:
        prepare(Data(**wishes), tmp_path)
    assert "of a group (`author`)" in no.value.message and no.value.where.count("rows:") == 24
    dataset = prepare(Data(**wishes, remove_leaks=True), tmp_path)
    kept = {example.columns["author"] for example in dataset.examples("train")}
    gone = set(range(2000)) - kept
    recall = {kind: len(gone & numbers) / len(numbers) for kind, numbers in planted.items()}
    assert recall["exact"] == recall["normalised"] == recall["group"] == 1 and recall["near"] >= 0.9, recall
    assert gone <= set.union(*planted.values())
    ids = {split: {example.id for example in dataset.examples(split)} for split in dataset.counts}
    assert not any(ids[one] & ids[other] for one, other in itertools.combinations(ids, 2))
    told = {leak["kind"]: leak["rows"] for leak in dataset.summary["leak_kinds"]}
    assert told["exact"] == told["normalised"] == told["group"] == 50 and told["near"] >= 45
    assert dataset.summary["leaks"] == len(gone) == sum(told.values())
    assert len(dataset.examples("test")) == len(test)


def test_a_near_question_with_another_answer_is_no_leak(tmp_path: Path) -> None:
    said, other = [" ".join(one) for one in _sentences("en", 40, 1)], ["yes, it is", "no, never"]
    train = [{"input": text, "output": other[0]} for text in said]
    test = [{"input": text + " please", "output": other[1]} for text in said]
    assert prepare(Data(train=train, test=test, validation=0.0), tmp_path).counts["train"] == 40
    with pytest.raises(DataError, match="40 rows of train have a near twin in test"):
        prepare(Data(train=train, test=[row | {"output": other[0]} for row in test], validation=0.0), tmp_path)


def test_twins_in_what_stands_before_the_question_count(tmp_path: Path) -> None:
    """Two contexts that differ are two rows, however alike the questions; two turns of history likewise."""
    contexts = [" ".join(one) for one in _sentences("en", 30, 2)]
    asked = "what is told in the text above about the harbour"
    train = [{"context": text, "input": asked, "output": "nothing"} for text in contexts]
    test = [row | {"context": " ".join(["other", *row["context"].split()[7:], "words", "here"])} for row in train]
    template = "{context}\n{input}"
    assert prepare(Data(train=train, test=test, validation=0.0, template=template), tmp_path).counts["train"] == 30
    near = [row | {"context": row["context"] + " indeed"} for row in train]
    with pytest.raises(DataError, match="30 rows of train have a near twin in test"):
        prepare(Data(train=train, test=near, validation=0.0, template=template), tmp_path)

    def chat(context: str, question: str) -> dict[str, Any]:
        said = (("system", "be kind to everybody here"), ("user", context), ("assistant", "well"), ("user", question))
        turns = [{"role": role, "content": text} for role, text in (*said, ("assistant", "nothing at all"))]
        return {"messages": turns}

    chats = {
        name: [chat(r["context"], r["input"]) for r in rows] for name, rows in (("t", train), ("f", test), ("n", near))
    }
    assert prepare(Data(train=chats["t"], test=chats["f"], validation=0.0), tmp_path).counts["train"] == 30
    with pytest.raises(DataError, match="30 rows of train have a near twin in test"):
        prepare(Data(train=chats["t"], test=chats["n"], validation=0.0), tmp_path)


def test_near_twins_are_left_out_of_the_sides_that_are_cut(tmp_path: Path) -> None:
    """An ordinary file is never refused: what train nearly holds is not asked in validation or test."""
    rng, known = random.Random(4), words("en", 600)
    said = [sentence("en", known, rng) for _ in range(150)]
    rows = [{"input": " ".join(one), "output": "yes"} for one in said]
    rows += [{"input": _near("en", one, rng), "output": "yes"} for one in said]
    dataset = prepare(Data(train=rows), tmp_path)
    left = {leak["from"]: leak["rows"] for leak in dataset.summary["left_out"] if leak["also_in"] == "train"}
    assert left["test"] > 5 and left["validation"] > 5
    assert sum(dataset.counts.values()) == 300 - sum(leak["rows"] for leak in dataset.summary["left_out"])
    texts = {split: [e.messages[0].content for e in dataset.examples(split)] for split in dataset.counts}
    pairs = [(a, b) for one, other in itertools.combinations(texts, 2) for a in texts[one] for b in texts[other]]
    met = sum(true_jaccard(normal(a), normal(b)) >= NEAR for a, b in pairs)
    assert met <= 3  # of about 50: MinHash finds 998 in 1,000
    assert any("left out [rows:" in note for note in dataset.summary["notes"])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_adding_rows_never_changes_the_side_of_a_row(tmp_path: Path, data: st.DataObject) -> None:
    """Near twins, other spellings and all: a row stays on its side, or is left out of validation or test."""
    seed = data.draw(st.integers(0, 99))
    rng, known = random.Random(seed), words("en", 60)
    said = [sentence("en", known, rng, 9) for _ in range(40)]
    rows = [" ".join(one) for one in said] + [" ".join(edited("en", one, known, rng)) for one in said]
    rows += [text.upper() + "!" for text in rows[:20]]
    rng.shuffle(rows)
    old = rows[: data.draw(st.integers(20, 80))]
    splits = []
    for texts in (old, data.draw(st.permutations(rows))):
        dataset = prepare(Data(train=[{"text": text} for text in texts], validation=0.2, test=0.2), tmp_path)
        splits.append({split: {e.text for e in dataset.examples(split)} for split in dataset.counts})
    before, after = splits
    for one, other in itertools.permutations(before, 2):
        assert not before[one] & after[other]
    assert before["train"] <= after["train"]
    for found in splits:
        forms = [{normal(text) for text in texts} for texts in found.values()]
        assert sum(map(len, forms)) == len(set.union(*forms))


def test_spellings_of_one_question_are_on_one_side_or_left_out(tmp_path: Path) -> None:
    rows = [
        {"input": text, "output": "x"} for i in range(200) for text in (f"Is it {i} ?", f"is it {i}", f" IS IT {i}.")
    ]
    dataset = prepare(Data(train=rows, validation=0.2, test=0.2), tmp_path)
    forms = [{normal(e.messages[0].content) for e in dataset.examples(split)} for split in dataset.counts]
    assert sum(map(len, forms)) == 200 == len(set.union(*forms)) and forms[0] and forms[2]
    assert dataset.summary["repeats"]["normalised_duplicates"]["rows"] == 400


def test_groups_may_share_a_text_and_the_test_does_not_ask_it(tmp_path: Path) -> None:
    """Two authors wrote the same: their other rows stay on their sides, the shared one leaves the test."""
    rows = [{"input": f"question {i}", "output": "a", "author": author} for author in range(60) for i in (author, 999)]
    dataset = prepare(Data(train=rows, group_by="author", clean=[], validation=0.0, test=0.3), tmp_path)
    asked = {split: Counter(e.messages[0].content for e in dataset.examples(split)) for split in dataset.counts}
    assert asked["train"]["question 999"] and not asked["test"]["question 999"] and asked["test"]
    assert [leak["kind"] for leak in dataset.summary["left_out"]] == ["exact"]


STEPS = {
    "normalised_duplicates": ["what does it cost today", "What does it cost TODAY?"],
    "near_duplicates": [
        "what does the blue card cost for a month of use",
        "what does the blue card cost for a month of usage",
    ],
}


@pytest.mark.parametrize("step", STEPS)
def test_twins_are_told_and_dropped_on_request(tmp_path: Path, step: str) -> None:
    rows = [{"input": text, "output": "ten"} for text in [*STEPS[step], "an entirely different thing is asked here"]]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wishes = {"train": str(path), "validation": 0.0, "test": 0.0}
    told = prepare(Data(**wishes), tmp_path)
    found = {"rows": 1, "dropped": False, "first": [f"{path}:2 = {path}:1"]}
    assert told.counts["train"] == 3 and told.summary["repeats"][step] == found
    assert any(f"{path}:2 = {path}:1" in note and step in note for note in told.summary["notes"])
    clean = prepare(Data(**wishes, clean=["duplicates", step]), tmp_path)
    assert [e.messages[0].content for e in clean.examples("train")] == [STEPS[step][0], rows[2]["input"]]
    assert clean.summary["repeats"][step] == found | {"dropped": True}
    assert any(note.startswith("1 row ") and note.endswith("was dropped") for note in clean.summary["notes"])


def test_contradictions_are_told_and_all_their_rows_dropped_on_request(tmp_path: Path) -> None:
    """Nobody can say which answer is right, so none stays. Case and spaces of an answer are no contradiction."""
    said = [
        ("how long is it", "one"),
        ("How long is it?", "two"),
        ("how long is it", "One."),
        ("how wide is it", "ten feet"),
    ]
    rows = [{"input": question, "output": answer} for question, answer in [*said, ("how wide is it", "Ten feet.")]]
    wishes = {"train": rows, "validation": 0.0, "test": 0.0}
    told = prepare(Data(**wishes), tmp_path)
    assert told.counts["train"] == 5 and told.summary["conflicts"] == 1
    found = told.summary["repeats"]["contradictions"]
    assert found == {"rows": 3, "dropped": False, "first": ["rows:1 = rows:2", "rows:2 = rows:1", "rows:3 = rows:1"]}
    assert any(note.startswith("1 question has more than one answer [rows:1") for note in told.summary["notes"])
    clean = prepare(Data(**wishes, clean=["contradictions"]), tmp_path)
    assert {e.messages[0].content for e in clean.examples("train")} == {"how wide is it"}
    assert clean.summary["conflicts"] == 0 and clean.counts["train"] == 2


def test_many_rows_are_searched_for_near_twins_on_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "MAX_BYTES", 500)
    rows = [{"input": text, "output": "ten"} for text in STEPS["near_duplicates"] * 4]
    wishes = {"train": rows, "validation": 0.0, "test": 0.0}
    told = prepare(Data(**wishes), tmp_path)
    assert "near_duplicates" not in told.summary["repeats"]
    assert any(note.startswith("near twins were not looked for: 8 rows") for note in told.summary["notes"])
    assert prepare(Data(**wishes, clean=["duplicates", "near_duplicates"]), tmp_path).counts["train"] == 1


def test_an_iterator_is_read_like_a_list(tmp_path: Path) -> None:
    rows = [{"input": f"question {i}", "output": f"answer {i}"} for i in range(50)]
    once = prepare(Data(train=(row for row in rows)), tmp_path)
    assert once.fingerprint == prepare(Data(train=rows), tmp_path).fingerprint
    assert once.examples("train")[0].file == "rows"
    assert not list((tmp_path / "data").glob(".*"))
