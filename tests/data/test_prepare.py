"""From files to a Dataset: twins, sides, leaks, task, labels, and the folder."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data import formats
from luthier.data.dataset import amend
from luthier.data.examples import content_id
from luthier.data.prepare import guess_task, load_dataset, prepare
from luthier.data.spool import side
from luthier.errors import DataError, NotFound
from luthier.spec import Data


def _pairs(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"input": f"question {i}", "output": f"answer {i * 7}"} for i in range(start, start + n)]


def _file(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _inputs(dataset: Any, split: str) -> set[str]:
    return {example.messages[0].content for example in dataset.examples(split)}


def test_a_file_becomes_a_folder(tmp_path: Path) -> None:
    path = _file(tmp_path / "rows.jsonl", _pairs(200) + _pairs(3))
    dataset = prepare(Data(train=path), tmp_path)
    assert dataset.path == tmp_path / "data" / dataset.fingerprint
    assert sum(dataset.counts.values()) == 200
    assert 8 <= dataset.counts["validation"] <= 35 and 8 <= dataset.counts["test"] <= 35
    assert (dataset.task, dataset.format, dataset.labels) == ("generation", "input_output", ())
    assert dataset.summary["duplicates"] == {"train": 3}
    assert dataset.summary["duplicate_rows"] == [f"{path}:{line}" for line in (201, 202, 203)]
    assert dataset.summary["notes"] == ["3 rows repeat another one and were dropped"]
    assert dataset.splits["test"] == f"10% of {path}, by content"
    assert load_dataset(dataset.path) == dataset
    assert {p.name for p in dataset.path.iterdir()} == {"dataset.json", "train.jsonl", "validation.jsonl", "test.jsonl"}
    example = dataset.examples("train")[0]
    assert example.where == f"{path}:{int(example.messages[0].content.split()[1]) + 1}"
    assert prepare(Data(train=path, clean=False), tmp_path).summary["duplicates"] == {}


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first = prepare(Data(train=_file(tmp_path / "a.jsonl", _pairs(50))), tmp_path)
    again = prepare(Data(train=_file(tmp_path / "b.jsonl", _pairs(50))), tmp_path)
    assert (again.fingerprint, again.path) == (first.fingerprint, first.path)
    assert {example.file for example in again.examples("train")} == {str(tmp_path / "b.jsonl")}
    in_memory = prepare(Data(train=_pairs(50)), tmp_path / "other")
    assert in_memory.fingerprint == first.fingerprint
    changed = _pairs(50)
    changed[7]["output"] = "else"
    assert prepare(Data(train=changed), tmp_path).fingerprint != first.fingerprint
    assert prepare(Data(train=_pairs(50)), tmp_path, task="chat").fingerprint != first.fingerprint
    left = [p.name for p in (tmp_path / "data").iterdir() if p.name.startswith(".")]
    assert not left


def test_what_a_killed_process_left_goes_a_day_later(tmp_path: Path) -> None:
    for name, age in (("old", 2 * 86_400), ("new", 60)):
        left = tmp_path / "data" / f".prepare.tmp-{name}"
        left.mkdir(parents=True)
        (left / "spool").write_text("rows")
        os.utime(left, (time.time() - age,) * 2)
    prepare(Data(train=_pairs(50)), tmp_path)
    assert [path.name for path in (tmp_path / "data").glob(".*")] == [".prepare.tmp-new"]


_PEAK = """
import resource, sys
from pathlib import Path
from luthier.data import prepare, sorting
from luthier.spec import Data
sorting.MAX_BYTES = 0  # without the search for near twins, as with millions of rows
rows = ({"input": f"{i * 7919 % 100003} asks {i}", "output": f"told {i}"} for i in range(int(sys.argv[1])))
prepare.prepare(Data(train=rows), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path) -> None:
    """Some hundred bytes a row, whatever the rows hold: 10 million rows stay below 1.5 GiB."""
    few, many = 50_000, 250_000
    peaks = [
        int(subprocess.run([sys.executable, "-c", _PEAK, str(n), tmp_path], capture_output=True, check=True).stdout)
        for n in (few, many)
    ]
    assert (peaks[1] - peaks[0]) / (many - few) < 150 and peaks[0] < 200 << 20


def test_a_summary_can_be_amended(tmp_path: Path) -> None:
    dataset = prepare(Data(train=_pairs(50)), tmp_path)
    more = amend(dataset, remarks=[{"code": "D01"}])
    assert more.summary == dataset.summary | {"remarks": [{"code": "D01"}]} and load_dataset(dataset.path) == more
    assert prepare(Data(train=_pairs(50)), tmp_path) == dataset


def test_a_damaged_folder_is_noticed_or_mended(tmp_path: Path) -> None:
    dataset = prepare(Data(train=_pairs(50)), tmp_path)
    (dataset.path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="0 rows where"):
        dataset.examples("train")
    assert prepare(Data(train=_pairs(50)), tmp_path).examples("train")
    (dataset.path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        load_dataset(dataset.path)
    with pytest.raises(NotFound):
        load_dataset(tmp_path / "nothing")
    with pytest.raises(NotFound, match="no split `dev`"):
        dataset.examples("dev")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    old=st.lists(st.integers(0, 400), min_size=30, max_size=60, unique=True),
    new=st.lists(st.integers(401, 900), max_size=60, unique=True),
    seed=st.integers(0, 9),
)
def test_rows_never_change_sides(tmp_path: Path, old: list[int], new: list[int], seed: int) -> None:
    def rows(numbers: list[int]) -> list[dict[str, str]]:
        return [{"input": f"q {i}", "output": f"a {i}"} for i in numbers]

    mixed = old + new
    random.Random(seed).shuffle(mixed)
    before = prepare(Data(train=rows(old)), tmp_path, seed=seed)
    after = prepare(Data(train=rows(mixed)), tmp_path, seed=seed + 1)
    sides = {split: _inputs(after, split) for split in after.counts}
    for split in before.counts:
        assert _inputs(before, split) <= sides[split]
    assert sum(len(found) for found in sides.values()) == len(set.union(*sides.values())) == len(mixed)


def test_the_same_question_stays_on_one_side(tmp_path: Path) -> None:
    rows = [{"input": f"q {i}", "output": f"a {i} {j}"} for i in range(80) for j in range(3)]
    dataset = prepare(Data(train=rows), tmp_path)
    found = [_inputs(dataset, split) for split in dataset.counts]
    assert sum(map(len, found)) == 80 == len(set.union(*found))
    assert dataset.summary["conflicts"] == 80


def test_groups_stay_on_one_side(tmp_path: Path) -> None:
    rows = [row | {"author": i % 40} for i, row in enumerate(_pairs(400))]
    dataset = prepare(Data(train=rows, group_by="author"), tmp_path)
    authors = [{example.columns["author"] for example in dataset.examples(split)} for split in dataset.counts]
    assert sum(map(len, authors)) == 40 and all(authors)
    with pytest.raises(DataError, match="this row lacks") as caught:
        prepare(Data(train=rows, group_by="auther"), tmp_path)
    assert caught.value.hint == "did you mean `author`?"
    test = [row | {"author": 3} for row in _pairs(5, start=900)]
    with pytest.raises(DataError, match=r"10 rows of train are of a group \(`author`\) that stands in test"):
        prepare(Data(train=rows, test=test, group_by="author", validation=0.0), tmp_path)


def test_shares_and_given_files(tmp_path: Path) -> None:
    files = {split: _file(tmp_path / f"{split}.jsonl", _pairs(n, s)) for split, n, s in (("a", 300, 0), ("b", 9, 500))}
    given = prepare(Data(train=files["a"], test=files["b"]), tmp_path)
    assert given.counts["test"] == 9 and given.counts["train"] + given.counts["validation"] == 300
    assert given.splits == {"train": files["a"], "validation": f"10% of {files['a']}, by content", "test": files["b"]}
    none = prepare(Data(train=files["a"], test=0.0, validation=0.0), tmp_path)
    assert (none.counts, none.summary["notes"]) == ({"train": 300, "validation": 0, "test": 0}, [])
    half = prepare(Data(train=files["a"], test=0.5), tmp_path)
    assert 110 < half.counts["test"] < 190 and 15 < half.counts["validation"] < 50
    assert side("x", 0.0, 0.0) == "train"


def test_a_data_sets_own_splits_are_used(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    home = tmp_path / "set"
    home.mkdir()
    for split, start in (("train", 0), ("test", 500)):
        _file(home / f"{split}.jsonl", _pairs(60, start))
    dataset = prepare(Data(train=str(home)), tmp_path)
    assert dataset.counts["test"] == 60
    assert dataset.splits["test"] == f"{home}:test"
    assert dataset.splits["validation"] == f"10% of {home}, by content"


def test_what_is_left_out_of_a_row_or_a_file_is_told(tmp_path: Path) -> None:
    def chat(i: int, *more: str) -> dict[str, Any]:
        said = [("user", f"hi {i}"), ("assistant", f"hello {i}"), *(("user", words) for words in more)]
        return {"messages": [{"role": role, "content": words} for role, words in said]}

    path = tmp_path / "chats.jsonl"
    told = [chat(1, "and then?", "well?"), chat(2), chat(3, "so?")] + [chat(i) for i in range(4, 20)]
    path.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\n" for row in told).encode())
    dataset = prepare(Data(train=str(path), validation=0.0, test=0.0), tmp_path)
    left = dataset.summary["cleaning"]["left"]
    assert (left["rows"], left["count"], left["fate"]) == (2, 3, "left out")
    assert (
        f'2 rows with something behind the last answer, which teaches nothing: left out ({path}:1: "and then?")'
        in dataset.summary["notes"]
    )
    assert f"{path} begins with a byte order mark, which is left out" in dataset.summary["notes"]
    assert dataset.counts["train"] == 19 and dataset.examples("train")[0].messages[-1].content == "hello 1"
    segments = [
        {"segments": [{"label": True, "text": "b"}, {"label": False, "text": f" behind {i}"}]} for i in range(2)
    ]
    told = prepare(Data(train=segments, validation=0.0, test=0.0, clean=[]), tmp_path).summary["cleaning"]
    assert told["left"]["rows"] == 2


def test_a_question_that_two_given_files_share_is_counted(tmp_path: Path) -> None:
    """No leak, the answers differ; but a model that knows train is not asked anything new."""
    test = _pairs(10, start=100) + [row | {"output": "else"} for row in _pairs(2)]
    dataset = prepare(Data(train=_pairs(50), test=test, validation=0.0), tmp_path)
    assert dataset.counts["test"] == 12 and dataset.summary["asked_in_train"] == {"validation": 0, "test": 2}
    assert "2 rows of test with a question of train, but another answer" in dataset.summary["notes"]
    assert prepare(Data(train=_pairs(50)), tmp_path).summary["asked_in_train"] == {"validation": 0, "test": 0}


def test_rows_in_two_splits_are_refused_or_taken_out(tmp_path: Path) -> None:
    train = _file(tmp_path / "train.jsonl", _pairs(60))
    test = _file(tmp_path / "test.jsonl", _pairs(10, start=55))
    with pytest.raises(DataError, match="5 rows of train also stand in test") as caught:
        prepare(Data(train=train, test=test, validation=0.0), tmp_path)
    assert f"{train}:56 = {test}:1" in (caught.value.where or "")
    assert "data.remove_leaks: true" in (caught.value.hint or "")
    dataset = prepare(Data(train=train, test=test, validation=0.0, remove_leaks=True), tmp_path)
    assert (dataset.counts["train"], dataset.counts["test"], dataset.summary["leaks"]) == (55, 10, 5)
    assert not _inputs(dataset, "train") & _inputs(dataset, "test")
    assert dataset.summary["leaked_rows"][0] == f"{train}:56"
    with pytest.raises(DataError, match="no row is left"):
        prepare(Data(train=train, test=train, validation=0.0, remove_leaks=True), tmp_path)


def test_validation_may_not_hold_test_rows_either(tmp_path: Path) -> None:
    data = {"train": _pairs(30), "validation": _pairs(10, 100), "test": _pairs(10, 105)}
    with pytest.raises(DataError, match="5 rows of validation also stand in test"):
        prepare(Data(**data), tmp_path)
    assert prepare(Data(**data, remove_leaks=True), tmp_path).counts == {"train": 30, "validation": 5, "test": 10}


def test_a_limit_draws_by_the_seed_and_leaves_the_test_alone(tmp_path: Path) -> None:
    rows = _pairs(300)
    whole = prepare(Data(train=rows), tmp_path)
    small, larger = (prepare(Data(train=rows, limit=n), tmp_path, seed=1) for n in (20, 50))
    other = prepare(Data(train=rows, limit=20), tmp_path, seed=2)
    assert (small.counts["train"], small.counts["test"]) == (20, whole.counts["test"])
    assert _inputs(small, "train") < _inputs(larger, "train") < _inputs(whole, "train")
    assert _inputs(other, "train") != _inputs(small, "train")
    assert prepare(Data(train=rows, limit=9999), tmp_path).fingerprint == whole.fingerprint


def test_the_task_is_guessed(tmp_path: Path) -> None:
    def task(rows: list[dict[str, Any]]) -> str:
        return prepare(Data(train=rows, validation=0.0, test=0.0), tmp_path).task

    assert task([{"input": f"t {i}", "output": ["yes", "no"][i % 2]} for i in range(20)]) == "classification"
    assert task([{"text": f"t {i}", "label": i % 2} for i in range(4)]) == "classification"
    assert task(_pairs(20)) == "generation"
    assert task([{"input": f"t {i}", "output": "yes"} for i in range(20)]) == "generation"
    assert task([{"input": f"t {i}", "output": ["yes\nno", "b"][i % 2]} for i in range(20)]) == "generation"
    assert task([{"text": f"t {i}"} for i in range(20)]) == "generation"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert task([{"messages": turns}]) == "chat"
    assert guess_task(set(), (), 0) == "generation"


def _labelled(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"t {i} {label}", "label": label} for i, label in enumerate(labels)]


def test_labels_are_collected_sorted_and_closed(tmp_path: Path) -> None:
    train, none = _labelled("b", "a", "b", "a"), {"validation": 0.0}
    dataset = prepare(Data(train=train, test=_labelled("a"), **none), tmp_path)
    assert dataset.labels == ("a", "b")
    assert dataset.summary["label_counts"] == {"a": 2, "b": 2}
    with pytest.raises(DataError, match="`bb` is not among the 2 classes") as caught:
        prepare(Data(train=train, test=_labelled("bb"), **none), tmp_path)
    assert caught.value.where == "rows:1"
    named = prepare(Data(train=train, test=_labelled("c"), labels=["c", "b", "a"], **none), tmp_path)
    assert named.labels == ("c", "b", "a")
    assert named.summary["notes"] == ["no row of train has the class c"]
    with pytest.raises(DataError, match="`a` is not among the 2 classes"):
        prepare(Data(train=train, labels=["b", "c"], test=0.0, **none), tmp_path)
    with pytest.raises(DataError, match="same class"):
        prepare(Data(train=_labelled("a", "a"), test=0.0, **none), tmp_path)
    with pytest.raises(DataError, match="plain text has no class"):
        prepare(Data(train=[{"text": "a"}]), tmp_path, task="classification")


def test_pairs_get_labels_when_they_classify(tmp_path: Path) -> None:
    rows = [{"input": f"t {i}", "output": [" yes", "no "][i % 2]} for i in range(40)]
    dataset = prepare(Data(train=rows), tmp_path)
    example = dataset.examples("train")[0]
    assert dataset.labels == ("no", "yes")
    assert (example.kind, example.label, example.messages[1].content) == ("pair", "yes", " yes")


def test_a_rare_class_that_fell_to_the_test_is_said(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": ["a", "b"][i % 2]} for i in range(40)]
    rare = next(f"r {i}" for i in range(99) if side(content_id({"text": f"r {i}"}), 0.1, 0.1) == "test")
    dataset = prepare(Data(train=[*rows, {"text": rare, "label": "rare"}]), tmp_path)
    assert dataset.labels == ("a", "b", "rare")
    assert "no row of train has the class rare" in dataset.summary["notes"]


def test_all_bad_rows_are_counted(tmp_path: Path) -> None:
    rows = _pairs(5) + [{"input": "x"}] + [{"input": "y", "output": " "}] * 3
    with pytest.raises(DataError, match=r"no `output` \(and 3 more rows cannot be used\)") as caught:
        prepare(Data(train=_file(tmp_path / "rows.jsonl", rows)), tmp_path)
    assert caught.value.where == f"{tmp_path / 'rows.jsonl'}:6"
    with pytest.raises(DataError, match="no rows"):
        prepare(Data(train=_file(tmp_path / "empty.jsonl", [])), tmp_path)
    with pytest.raises(DataError, match="train is `input_output`, but test is `text`"):
        prepare(Data(train=_pairs(5), test=[{"text": "a"}]), tmp_path)


def test_alpaca_rows_with_and_without_history_become_one_kind(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    rows = [row | {"instruction": f"Add {i}."} for i in range(9)] + [row | {"history": [["q", "a"]]}]
    dataset = prepare(Data(train=rows, validation=0.0, test=0.0), tmp_path)
    assert {example.kind for example in dataset.examples("train")} == {"chat"}
    mixed = [{"prompt": "a", "completion": "b"}, {"prompt": [{"role": "user", "content": "a"}], "completion": "b"}]
    with pytest.raises(DataError, match="some rows are lists of messages"):
        prepare(Data(train=mixed), tmp_path)


def test_too_few_rows_are_said(tmp_path: Path) -> None:
    dataset = prepare(Data(train=_pairs(2)), tmp_path)
    assert "test is empty: 2 rows are too few to share" in dataset.summary["notes"]
    assert dataset.summary["unused_columns"] == []
    extra = prepare(
        Data(train=[row | {"id": 1, "note": "x"} for row in _pairs(2)], template="{note} {input}"), tmp_path
    )
    assert extra.summary["unused_columns"] == ["id"]


def test_every_kind_survives_the_folder(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}], "weight": 0},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "three"},
    ]
    for rows in (
        [{"messages": turns, "tools": [{"type": "function"}], "source": "web"}],
        [{"prompt": "a", "completion": " b"}],
        [{"text": "some text", "n": 3}],
        _labelled("x", "y"),
    ):
        data = Data(train=rows, validation=0.0, test=0.0)
        dataset = prepare(data, tmp_path)
        expected = [formats.to_example(row, dataset.format, data, "rows", i) for i, row in enumerate(rows, 1)]
        assert dataset.examples("train") == expected


def test_real_data(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "banking77"
    files = {split: str(folder / f"{split}.jsonl.gz") for split in ("train", "validation", "test")}
    with pytest.raises(
        DataError, match="6 rows of train also stand in test; 3 rows of train stand in test but for case"
    ):
        prepare(Data(**files), tmp_path)
    dataset = prepare(Data(**files, remove_leaks=True), tmp_path)
    assert (dataset.task, len(dataset.labels)) == ("classification", 77)
    assert dataset.counts == {"train": 8703, "validation": 953, "test": 3079}
    ids = [{example.id for example in dataset.examples(split)} for split in dataset.counts]
    assert sum(map(len, ids)) == len(set.union(*ids)) == sum(dataset.counts.values())
