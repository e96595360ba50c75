"""The corpus of bad files through the command line: each gets its verdict, none a traceback, none is taken silently
(RELIABILITY 15)."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import pytest

from luthier.data import sources, textfiles
from tests.cli.conftest import Luthier
from tests.cli.conftest import luthier as luthier  # the fixture
from tests.data.bad_files import Case, corpus

CASES = corpus()
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "files.md"


@pytest.fixture(autouse=True)
def _small_bombs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()  # as the command does, if it is the first to import the library
    monkeypatch.setattr(textfiles, "FREE_UNPACKED", 16 << 20)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.rows is None])
def test_bad_files_are_refused_with_place_and_advice(luthier: Luthier, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    case.write(tmp_path)
    said = luthier("prepare", case.file)
    assert (said.code, said.out) == (2, ""), said.err
    assert said.err.startswith("error: ") and "Traceback" not in said.err
    for words in case.says:
        assert words in said.err
    assert re.search(rf"{re.escape(case.place)}(?!\d)", said.err), said.err
    assert len(said.err) < 1500


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.rows is not None])
def test_what_is_read_is_read_exactly(luthier: Luthier, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    case.write(tmp_path)
    said = luthier("prepare", case.file, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["summary"]["rows"]["train"] == len(case.rows or [])
    found = list(sources.rows(case.file))
    assert [row for row, _, _ in found] == case.rows
    assert [line for _, _, line in found] == case.lines
    if case.told:
        assert case.told in luthier("prepare", case.file).err


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 60


def test_an_unreadable_file_is_said(luthier: Luthier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in: whoever runs the tests may be allowed to read everything."""
    (tmp_path / "x.jsonl").write_text("{}")
    opened = Path.open

    def refuse(path: Path, *arguments: object, **more: object) -> object:
        if path.name == "x.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    said = luthier("prepare", "x.jsonl")
    assert said.code == 2 and "cannot be read: Permission denied (x.jsonl)" in said.err


def test_a_hostile_line_is_never_held_whole(tmp_path: Path) -> None:
    """200 MB without a line end are refused after a few pieces."""
    path = tmp_path / "x.jsonl"
    with path.open("wb") as stream:
        stream.truncate(200 << 20)
        stream.write(b'{"input": "' + b"x" * (9 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="longer than"):
            list(sources.rows(path))
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def pages() -> dict[str, str]:
    """Heading → table, as they stand in the reference."""
    from tests.data import bad_files, bad_rows

    parts = {
        "Encodings, bytes, lines": bad_files.TEXT,
        "Files": bad_files.FILES,
        "JSON": bad_files.JSON,
        "Tables": bad_files.TABLES,
        "Parquet": bad_rows.PARQUET,
        "Cells": bad_rows.CELLS,
        "Chats": bad_rows.CHATS,
    }
    return {heading: _table(cases) for heading, cases in parts.items()}


def _table(cases: dict[str, Case]) -> str:
    lines = ["| the file has | luthier |", "|---|---|"]
    for name, case in cases.items():
        said = "; ".join(case.says).replace("|", "\\|")
        verdict = f"refuses: “{said}”" if case.rows is None else f"reads it: {case.remark}"
        lines.append(f"| {name} | {verdict} |")
    return "\n".join(lines)


@pytest.mark.parametrize("heading", pages())
def test_the_reference_lists_the_corpus(heading: str) -> None:
    assert f"### {heading}\n\n{pages()[heading]}\n" in PAGE.read_text(encoding="utf-8"), (
        "run `python -m tests.data.test_bad_files`"
    )


if __name__ == "__main__":
    head = PAGE.read_text(encoding="utf-8").partition("\n### ")[0].rstrip()
    tables = "\n\n".join(f"### {heading}\n\n{table}" for heading, table in pages().items())
    PAGE.write_text(f"{head}\n\n{tables}\n", encoding="utf-8")
