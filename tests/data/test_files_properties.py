"""Any rows, in any kind of file, cut into any pieces, are read back as they were, with the lines they stand on."""

from __future__ import annotations

import csv
import gzip
import io
import json
import string
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import sources
from luthier.data.json_files import _Window
from luthier.data.textfiles import line_groups, text_pieces

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
NAMES = st.text(string.ascii_letters + "_ {}é한", min_size=1, max_size=6).map(str.strip).filter(bool)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ANY_ROWS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), max_size=5)


@st.composite
def text_rows(draw: st.DrawFn) -> list[dict[str, str]]:
    """Rows of one table: the same two columns, cells of text; no row repeats the header."""
    names = draw(st.lists(NAMES, min_size=2, max_size=2, unique=True))
    rows = draw(st.lists(st.tuples(TEXT, TEXT), max_size=5))
    return [dict(zip(names, row, strict=True)) for row in rows if list(row) != names]


def _read(name: str, content: bytes) -> list[tuple[dict[str, Any], int]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
        found = list(sources.rows(path))
        assert all(file == str(path) for _, file, _ in found)
    return [(row, line) for row, _, line in found]


@settings(deadline=None)
@given(ANY_ROWS, st.booleans(), st.sampled_from(["", ".gz"]), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_json_lines(rows: list[dict[str, Any]], plain: bool, packed: str, end: str) -> None:
    content = "".join(json.dumps(row, ensure_ascii=plain) + end for row in rows).encode()
    expected = [(row, 1 + i * end.count("\n")) for i, row in enumerate(rows)]
    for name in ("x.jsonl", "x.ndjson", *(["x.json"] if len(rows) > 1 else [])):  # a .json of one object may be refused
        assert _read(name + packed, content) == expected


@settings(deadline=None)
@given(ANY_ROWS, st.sampled_from([None, 0, 2]), st.booleans(), st.sampled_from(["x.json", "x.jsonl"]))
def test_json_arrays(rows: list[dict[str, Any]], indent: int | None, packed: bool, name: str) -> None:
    text, lines, at = json.dumps(rows, indent=indent, ensure_ascii=False), [], 1
    for row in rows:
        at += indent is not None
        lines.append(at)
        at += json.dumps(row, indent=indent, ensure_ascii=False).count("\n")
    assert _read(name + ".gz" if packed else name, text.encode()) == list(zip(rows, lines, strict=True))


@settings(deadline=None)
@given(text_rows(), st.sampled_from([("x.csv", ","), ("x.tsv", "\t")]), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_tables(rows: list[dict[str, str]], kind: tuple[str, str], packed: bool, end: str) -> None:
    written, lines = io.StringIO(newline=""), []
    writer = csv.writer(written, delimiter=kind[1], lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(rows[0] if rows else ["a", "b"])
    for row in rows:
        lines.append(written.getvalue().count("\n") + 1)
        writer.writerow(row.values())
    found = _read(kind[0] + ".gz" if packed else kind[0], written.getvalue().encode())
    assert found == list(zip(rows, lines, strict=True))


@settings(deadline=None, max_examples=50)
@given(text_rows(), st.booleans())
def test_parquet(rows: list[dict[str, str]], packed: bool) -> None:
    names = list(rows[0]) if rows else ["a", "b"]
    held = io.BytesIO()
    pq.write_table(pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in names}), held)
    expected = [(row, number) for number, row in enumerate(rows, 1)]
    assert _read("x.parquet.gz" if packed else "x.parquet", held.getvalue()) == expected


@settings(deadline=None)
@given(ANY_ROWS, st.integers(1, 40), st.sampled_from(["utf-8", "utf-16", "utf-16-be"]))
def test_lines_do_not_depend_on_the_pieces(rows: list[dict[str, Any]], size: int, encoding: str) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(text.encode(encoding))
        pieces = list(text_pieces(path, "x", encoding, size))
    assert "".join(pieces) == text
    found = [line for first, group in line_groups(iter(pieces), "x") for line in group]
    assert "\n".join(found) == text.removesuffix("\n")


@settings(deadline=None)
@given(ANY_ROWS.filter(bool), st.integers(1, 40), st.sampled_from([None, 1]))
def test_arrays_do_not_depend_on_the_pieces(rows: list[dict[str, Any]], size: int, indent: int | None) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    window = _Window(iter([text[i : i + size] for i in range(0, len(text), size)]), "x")
    found = []
    while (sign := window.peek()) not in ("]", ""):
        if sign in "[,":
            window.at += 1
        else:
            found.append(window.value())
    assert found == rows


BROKEN = ('{"a": 1', '{"a": NaN}', '{"a": 1, "a": 2}', "[1]", '{"a": "b" "c"}', '{"a": [' * 70, "7", "{'a': 1}")


@settings(deadline=None)
@given(ANY_ROWS, ANY_ROWS, st.sampled_from(BROKEN), st.sampled_from(["x.jsonl", "x.jsonl.gz"]))
def test_a_broken_line_is_named(before: list[Any], after: list[Any], broken: str, name: str) -> None:
    lines = [*map(json.dumps, before), broken, *map(json.dumps, after)]
    if broken == "[1]" and not before:
        return  # an array may begin a file
    with pytest.raises(ValueError, match=f"{name}:{len(before) + 1}\\)"):
        _read(name, "\n".join(lines).encode())
