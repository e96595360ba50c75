"""Reading rows: every kind of file, and every way a file can be bad, with its place."""

from __future__ import annotations

import codecs
import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.data import sources
from luthier.errors import DataError, LuthierError, MissingExtra, NotFound

ROWS = [{"input": "2 + 2", "output": "4"}, {"input": "größer, 한국어", "output": "日本\n語"}]


def _read(path: Any, encoding: str | None = None) -> list[dict[str, Any]]:
    return [row for row, _, _ in sources.rows(path, encoding)]


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _table(delimiter: str) -> str:
    quoted = [[f'"{row["input"]}"', f'"{row["output"]}"'] for row in ROWS]
    return "\r\n".join(delimiter.join(cells) for cells in [["input", "output"], *quoted]) + "\r\n"


WRITTEN = {
    "rows.jsonl": _lines(ROWS).encode(),
    "rows.ndjson": _lines(ROWS).replace("\n", "\r\n\r\n").encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + _lines(ROWS).encode(),
    "rows.json": json.dumps(ROWS, indent=2).encode(),
    "lines.json": _lines(ROWS).encode(),
    "rows.csv": _table(",").encode(),
    "bom.csv": b"\xef\xbb\xbf" + _table(",").encode(),
    "rows.tsv": _table("\t").encode(),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_every_kind_of_text_file_gives_the_same_rows(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(WRITTEN[name]) if packed else WRITTEN[name])
    assert _read(path) == ROWS
    assert {file for _, file, _ in sources.rows(str(path))} == {str(path)}


@pytest.mark.parametrize("packed", [False, True])
def test_parquet_with_nested_and_dated_columns(tmp_path: Path, packed: bool) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}], "at": datetime.date(2026, 1, 2), "n": 3, "none": None}]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    if packed:
        packed_path = tmp_path / "rows.parquet.gz"
        packed_path.write_bytes(gzip.compress(path.read_bytes()))
        path = packed_path
    assert list(sources.rows(path)) == [(rows[0] | {"at": "2026-01-02"}, str(path), 1)]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    jsonl, array, table = tmp_path / "a.jsonl", tmp_path / "a.json", tmp_path / "a.csv"
    jsonl.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    array.write_text('[\n {"a": 1},\n\n {"a":\n 2}, {"a": 3}]')
    table.write_text('a,b\n"two\nlines",1\nx,2\n')
    assert [line for _, _, line in sources.rows(jsonl)] == [2, 4]
    assert [line for _, _, line in sources.rows(array)] == [2, 4, 5]
    assert [line for _, _, line in sources.rows(table)] == [2, 4]


GOOD = b'{"input": "a", "output": "b"}\n'
KOREAN = '{"input": "배송이 너무 느려요. 환불해 주세요", "output": "불만"}\n{"input": "좋아요", "output": "칭찬"}\n'
JAPANESE = '{"input": "配送が遅いです。返金してください", "output": "苦情"}\n'
FRENCH = '{"input": "Café déjà vu à la crème brûlée", "output": "Ça va"}\n'
BAD: dict[str, tuple[str, bytes, str, str]] = {  # case → file name, content, place, words of the message
    "utf-16": ("x.jsonl", FRENCH.encode("utf-16"), "x.jsonl:1", "UTF-16"),
    "utf-16 without mark": ("x.jsonl", GOOD.decode().encode("utf-16-le"), "x.jsonl:1", "UTF-16"),
    "utf-32": ("x.jsonl", FRENCH.encode("utf-32"), "x.jsonl:1", "UTF-32"),
    "cp949": ("x.jsonl", GOOD + KOREAN.encode("cp949"), "x.jsonl:2", "CP949"),
    "shift-jis": ("x.jsonl", JAPANESE.encode("shift_jis"), "x.jsonl:1", "Shift-JIS"),
    "latin-1": ("x.jsonl", GOOD + GOOD + FRENCH.encode("latin-1"), "x.jsonl:3", "latin-1"),
    "latin-1 table": ("x.csv", b"input,output\n" + "é,b\n".encode("latin-1"), "x.csv:2", "not UTF-8, at byte 13"),
    "nul bytes": ("x.jsonl", GOOD + b'{"input": "a\x00"}\n', "x.jsonl:2", "NUL bytes in the text, at byte 42"),
    "not json": ("x.jsonl", GOOD + b'{"input": }\n', "x.jsonl:2", "column 11"),
    "python literals": ("x.jsonl", b"{'input': 'a'}\n", "x.jsonl:1", "not JSON"),
    "two values": ("x.jsonl", b'{"a": 1} {"a": 2}\n', "x.jsonl:1", "more than one"),
    "array row": ("x.jsonl", GOOD + b"[1]\n", "x.jsonl:2", "not an array"),
    "null row": ("x.jsonl", b"null\n", "x.jsonl:1", "not null"),
    "text row": ("x.jsonl", b'"a"\n', "x.jsonl:1", "not a string"),
    "number row": ("x.json", b"[1, 2]", "x.json:1", "not a number"),
    "nan": ("x.jsonl", GOOD + b'{"a": NaN}\n', "x.jsonl:2", "NaN"),
    "infinity": ("x.jsonl", b'{"a": -Infinity}\n', "x.jsonl:1", "-Infinity"),
    "too large": ("x.jsonl", b'{"a": 1e999}\n', "x.jsonl:1", "1e999"),
    "endless number": ("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", "x.jsonl:1", "has 5,000 digits"),
    "key twice": ("x.jsonl", b'{"a": {"b": 1, "b": 2}}\n', "x.jsonl:1", "`b` stands twice"),
    "deep": ("x.jsonl", b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}\n", "x.jsonl:1", "nested deeper than 64"),
    "very deep": ("x.jsonl", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "x.jsonl:1", "nested deeper"),
    "long line": ("x.jsonl", b'{"a": "' + b"x" * (9 << 20) + b'"}\n', "x.jsonl:1", "longer than 8,388,608 characters"),
    "half a character": ("x.jsonl", b'{"a": "\\ud83d"}\n', "x.jsonl:1", "surrogate"),
    "raw control character": ("x.jsonl", b'{"a": "b\tc"}\n', "x.jsonl:1", "not JSON"),
    "gz under a wrong name": ("x.jsonl", gzip.compress(GOOD), "x.jsonl:1", "gzip"),
    "no gz": ("x.jsonl.gz", GOOD, "x.jsonl.gz", "gzip"),
    "broken gz": ("x.jsonl.gz", gzip.compress(GOOD * 99)[:-9], "x.jsonl.gz:100", "damaged gzip"),
    "zip": ("x.csv", b"PK\x03\x04rest", "x.csv:1", "zip archive"),
    "open array": ("x.json", b'[{"a": 1},\n{"a": 2}\n', "x.json:3", "does not end"),
    "array without comma": ("x.json", b'[{"a": 1}\n{"a": 2}]', "x.json:2", "does not go on"),
    "after the array": ("x.json", b'[{"a": 1}] []', "x.json:1", "follows"),
    "pretty object": ("x.json", b'{\n "a": 1\n}', "x.json:1", "spread over several lines"),
    "short row": ("x.csv", b"a,b\n1,2\n3\n", "x.csv:3", "1 cell where the header has 2"),
    "long row": ("x.tsv", b"a\tb\n1\t2\t3\n", "x.tsv:2", "3 cells"),
    "header twice": ("x.csv", b"a,a\n1,2\n", "x.csv:1", "`a` stands twice"),
    "nameless column": ("x.csv", b"a,\n1,2\n", "x.csv:1", "column 2 has no name"),
    "semicolons": ("x.csv", b"a;b\n1;2\n", "x.csv:1", "';'"),
    "open quote": ("x.csv", b'a,b\n1,2\n"x,3\n4,5\n', "x.csv:3", "not a table"),
    "stray quote": ("x.csv", b'a,b\n"x"y,3\n', "x.csv:2", "not a table"),
    "no parquet": ("x.parquet", GOOD, "x.parquet", "not a readable parquet"),
    "unknown kind": ("x.xlsx", GOOD, "x.xlsx", "no kind"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_their_place(tmp_path: Path, monkeypatch: Any, case: str) -> None:
    name, content, place, words = BAD[case]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(sources.rows(name))
    assert caught.value.where == place
    assert words in caught.value.message


def test_encoding_is_converted_only_when_named(tmp_path: Path) -> None:
    for encoding, text in (("cp949", KOREAN), ("utf-16", FRENCH), ("shift-jis", JAPANESE), ("latin-1", FRENCH)):
        path = tmp_path / f"{encoding}.jsonl"
        path.write_bytes(text.encode(encoding))
        assert _read(path, encoding) == [json.loads(line) for line in text.splitlines()]
    with pytest.raises(DataError, match="not shift-jis, at byte 14"):
        _read(tmp_path / "latin-1.jsonl", "shift-jis")


def test_missing_files_name_their_neighbours(tmp_path: Path) -> None:
    (tmp_path / "tickets.jsonl").write_bytes(GOOD)
    with pytest.raises(NotFound) as caught:
        sources.rows(tmp_path / "tikets.jsonl")
    assert caught.value.hint == f"did you mean `{tmp_path / 'tickets.jsonl'}`?"
    with pytest.raises(NotFound, match="no such data file") as caught:
        sources.rows(tmp_path / "nowhere" / "x.jsonl")
    assert "does not exist either" in (caught.value.hint or "")


def test_iterables_are_checked_as_files_are() -> None:
    rows = [{"a": 1, "when": datetime.date(2026, 1, 2), "l": ("x", 2.5)}]
    assert list(sources.rows(rows)) == [({"a": 1, "when": "2026-01-02", "l": ["x", 2.5]}, "rows", 1)]
    assert len(list(sources.rows({"a": i} for i in range(3)))) == 3
    deep: Any = "x"
    for _ in range(70):
        deep = [deep]
    for bad, words in (
        ([{"a": float("nan")}], "`a` holds nan"),
        ([{"a": b"x"}], "`a` holds a bytes"),
        ([{"a": object()}], "`a` holds a object"),
        ([{"a": deep}], "nested deeper"),
        ([{"a": "\ud800"}], "surrogate"),
        ([{"a": 1}, "input"], "rows:2"),
    ):
        with pytest.raises(DataError) as caught:
            list(sources.rows(bad))
        assert words in str(caught.value)
    for source in ({"a": 1}, 7):
        with pytest.raises(DataError, match="data source"):
            sources.rows(source)  # type: ignore[arg-type]


def test_parquet_holds_plain_types_only(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [b"bytes"]}), path)
    with pytest.raises(DataError, match="`a` holds binary, which is not plain data"):
        _read(path)
    pq.write_table(pa.table({"a": [1.0, float("nan")]}), path)
    with pytest.raises(DataError, match="`a` holds nan") as caught:
        _read(path)
    assert caught.value.where == f"{path}:2"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as the Hub would hold it, read by the `datasets` library from disk."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    home = tmp_path / "sentiment"
    home.mkdir()
    classes = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    for split, rows in (("train", [("fine", 1), ("awful", 0)]), ("test", [("okay", 1), ("hidden", -1)])):
        table = datasets.Dataset.from_dict({"text": [t for t, _ in rows], "label": [n for _, n in rows]}, classes)
        table.to_parquet(home / f"{split}.parquet")
    return home


def test_data_sets_are_read_by_the_library_with_their_class_names(folder: Path) -> None:
    rows = list(sources.rows(folder))
    assert rows[0] == ({"text": "fine", "label": "good"}, f"{folder}:train", 1)
    assert [row["label"] for row, _, _ in sources.rows(f"{folder}:test")] == ["good", -1]
    assert sources.own_split(folder, "test") == f"{folder}:test"
    assert sources.own_split(f"{folder}:train", "test") == f"{folder}:test"
    assert sources.own_split(folder, "validation") is None
    with pytest.raises(NotFound, match="no split `dev`") as caught:
        list(sources.rows(f"{folder}:dev"))
    assert "train, test" in (caught.value.hint or "")


def test_text_files_of_a_folder_are_read_as_strictly_as_single_ones(tmp_path: Path) -> None:
    """The library would read numbers as text, a key that stands twice, and spaces in cells as it likes."""
    home = tmp_path / "set"
    home.mkdir()
    (home / "train.jsonl").write_text('{"a": 5}\n{"a": "x"}\n')
    (home / "validation.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"a": 1}\n')
    (home / "test-00000-of-00002.jsonl").write_text('{"a": 1}\n')
    (home / "test-00001-of-00002.jsonl").write_text('{"a": 2}\n{"a": 3, "a": 4}\n')
    assert list(sources.rows(str(home))) == [
        ({"a": 5}, f"{home}/train.jsonl", 1),
        ({"a": "x"}, f"{home}/train.jsonl", 2),
    ]
    assert sources.own_split(home, "validation") == f"{home}:validation"
    assert [row for row, _, _ in sources.rows(f"{home}:validation")] == [{"a": 1}]
    rows = sources.rows(f"{home}:test")
    assert [next(rows)[1:], next(rows)[1:]] == [
        (f"{home}/test-00000-of-00002.jsonl", 1),
        (f"{home}/test-00001-of-00002.jsonl", 1),
    ]
    with pytest.raises(DataError, match="stands twice") as caught:
        next(rows)
    assert caught.value.where == f"{home}/test-00001-of-00002.jsonl:2"
    assert sources.marked_files(str(home)) == []
    assert sources.marked_files(f"{home}:validation") == [f"{home}/validation.jsonl"]


def test_a_folder_in_another_encoding_is_read_on_request(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes("말,답\n하나,둘\n".encode("cp949"))
    with pytest.raises(DataError, match="CP949"):
        list(sources.rows(str(tmp_path)))
    assert [row for row, _, _ in sources.rows(str(tmp_path), "cp949")] == [{"말": "하나", "답": "둘"}]


def test_hub_names_go_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(**arguments: Any) -> Any:
        asked.append(arguments)
        return {"train": datasets.Dataset.from_list(ROWS), "dev": datasets.Dataset.from_list(ROWS[:1])}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert _read("acme/tickets/small@v2:dev") == ROWS[:1]
    assert _read("hf://tickets") == ROWS
    assert asked[0] == {"path": "acme/tickets", "name": "small", "revision": "v2"}
    assert asked[1]["path"] == "tickets"
    assert sources.own_split("acme/tickets", "dev") == "acme/tickets:dev"


def test_where_the_hub_does_not_answer_the_library_is_not_let_to_retry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Asked by itself it waits 1 + 2 + 4 + 8 + 8 seconds before it looks into its cache."""
    import datasets
    import huggingface_hub

    seen = []

    def silent(self: Any, name: str, timeout: float) -> None:
        raise ConnectionResetError(f"nobody there for {name}")

    def load(**arguments: Any) -> Any:
        seen.append((huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE))
        raise ConnectionError("offline")

    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", silent)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tickets").mkdir()
    (tmp_path / "tickets" / "may").mkdir()
    with pytest.raises(NotFound, match="cannot load `tikets/may`: offline") as caught:
        list(sources.rows("tikets/may"))
    assert caught.value.hint == "did you mean `tickets/may`?"
    assert seen == [(True, True)]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    "name", ["./tikets", "~/nobody-s/rows", "/nowhere/rows", "../rows/x", "~nobody-of-that-name/x"]
)
def test_what_can_only_be_a_path_never_goes_to_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)  # asking for it would be another error
    with pytest.raises(NotFound, match="no such data file"):
        sources.rows(name)


def test_unreachable_data_sets_and_a_missing_library_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="cannot load `acme/does-not-exist`"):
        list(sources.rows("acme/does-not-exist"))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtra) as caught:
        list(sources.rows("acme/tickets"))
    assert caught.value.hint == 'pip install "luthier[hub]"'
    assert isinstance(caught.value, LuthierError)
