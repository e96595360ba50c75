"""The openings of a test split: counted once a run, by many processes at once, for the same rows in other data sets."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

from luthier.data.dataset import Dataset
from luthier.data.openings import FILE, opened
from luthier.data.prepare import load_dataset, prepare
from luthier.spec import Data
from tests import rows


def split_files(folder: Path, train: int = 30) -> Data:
    test = rows.write(folder / "test.jsonl", [{"input": f"test {i}?", "output": "red"} for i in range(9)])
    return Data(train=str(rows.pairs(folder, train)), validation=0.0, test=str(test))


def test_every_run_counts_once_and_the_fingerprint_does_not_change(tmp_path: Path) -> None:
    data = split_files(tmp_path)
    dataset = prepare(data, tmp_path)
    assert [opening.run for opening in opened(dataset, "a", 9)] == ["a"]
    first = opened(dataset, "a", 9)[0]
    assert opened(dataset, "a", 9) == (first,) and first.rows == 9 and first.time > 1.7e9
    found = opened(dataset, "b", 5)
    assert [opening.run for opening in found] == ["a", "b"] and found[0] == first and found[1].rows == 5
    assert opened(dataset, "a", 9) == (first,)  # as it was when `a` opened it
    again = prepare(data, tmp_path)
    assert again.fingerprint == dataset.fingerprint and len(opened(again, "c", 9)) == 3


def test_the_same_test_rows_beside_other_training_rows_are_the_same_test(tmp_path: Path) -> None:
    opened(prepare(split_files(tmp_path), tmp_path), "a", 9)
    other = prepare(split_files(tmp_path, train=33), tmp_path)
    assert not (other.path / FILE).exists()
    assert [opening.run for opening in opened(other, "b", 9)] == ["a", "b"]
    rows.write(tmp_path / "test.jsonl", [{"input": f"another {i}?", "output": "red"} for i in range(9)])
    fresh = Data(train=str(tmp_path / "pairs.jsonl"), validation=0.0, test=str(tmp_path / "test.jsonl"))
    assert [opening.run for opening in opened(prepare(fresh, tmp_path), "c", 9)] == ["c"]


def test_a_torn_line_is_passed_over_and_harms_no_other(tmp_path: Path) -> None:
    dataset = prepare(split_files(tmp_path), tmp_path)
    opened(dataset, "a", 9)
    with (dataset.path / FILE).open("a") as file:
        file.write('{"time": 17')
    assert [opening.run for opening in opened(dataset, "b", 9)] == ["a", "b"]
    assert [opening.run for opening in opened(dataset, "c", 9)] == ["a", "b", "c"]


def many(folder: Path, who: int) -> None:
    dataset: Dataset = load_dataset(folder)
    for number in range(10):
        opened(dataset, f"{who}-{number % 5}", 9)


def test_processes_at_once_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    dataset = prepare(split_files(tmp_path), tmp_path)
    start = multiprocessing.get_context("fork")
    workers = [start.Process(target=many, args=(dataset.path, who)) for who in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = [line for line in (dataset.path / FILE).read_text().splitlines() if line]
    assert sorted(json.loads(line)["run"] for line in lines) == sorted(f"{w}-{k}" for w in range(6) for k in range(5))
    assert len(opened(dataset, "last", 9)) == 31
