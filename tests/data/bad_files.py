"""Files as they go wrong in practice, each with its verdict: made by code, so that none lies in the repository.

`corpus()`: what is wrong → the file, and what `luthier prepare` makes of it. One case a line, to be read as a table.
`python -m tests.data.test_bad_files` writes them into docs/reference/files.md.
"""
# ruff: noqa: E501

from __future__ import annotations

import gzip
import io
import itertools
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Make = Callable[[Path], None]

ROWS: list[dict[str, Any]] = [{"input": f"question {i}", "output": f"answer {i}"} for i in range(12)]
KOREAN = [{"input": f"배송이 너무 느려요 {i}", "output": f"불만 {i}"} for i in range(12)]
JAPANESE = [{"input": f"配送が遅いです {i}", "output": f"苦情 {i}"} for i in range(12)]
FRENCH = [{"input": f"Où est le café {i} ?", "output": f"à côté {i}"} for i in range(12)]


@dataclass(frozen=True, slots=True)
class Case:
    """A file and its verdict: refused at `place` with these words, or read as exactly `rows` from `lines`."""

    file: str
    content: bytes | Make
    place: str = ""
    says: tuple[str, ...] = ()
    rows: list[dict[str, Any]] | None = None
    lines: list[int] | None = None
    remark: str = ""
    told: str = ""

    def write(self, folder: Path) -> Path:
        path = folder / self.file
        if isinstance(self.content, bytes):
            path.write_bytes(self.content)
        else:
            self.content(path)
        return path


def refused(file: str, content: bytes | str | Make, place: str, *says: str) -> Case:
    """`place` is a line number or "" (the file as a whole)."""
    where = f"{file}:{place}" if place else file
    return Case(file, content.encode() if isinstance(content, str) else content, where, says)


def read(
    file: str,
    content: bytes | str | Make,
    rows: list[dict[str, Any]],
    lines: list[int] | None = None,
    remark: str = "exactly as written",
    told: str = "",
) -> Case:
    """`told` are words that `luthier prepare` says about it."""
    data = content.encode() if isinstance(content, str) else content
    return Case(file, data, rows=rows, lines=lines or [*range(1, len(rows) + 1)], remark=remark, told=told)


def jsonl(rows: list[dict[str, Any]], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def second(line: str) -> str:
    """A file of good rows whose second line is this one."""
    return jsonl(ROWS[:1]) + line + "\n" + jsonl(ROWS[1:])


def table(sign: str = ",", rows: list[dict[str, Any]] = ROWS, end: str = "\n") -> str:
    return "".join(sign.join(cells) + end for cells in [["input", "output"], *(row.values() for row in rows)])


def zipped(text: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("rows.jsonl", text)
    return held.getvalue()


def _bomb(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=9) as stream:
        for _ in range(40):
            stream.write(b"\n" * (1 << 20))


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "train.jsonl").write_text('{"a": 1}\n{"a": 2, "a": 3}\n', encoding="utf-8")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _dangling(path: Path) -> None:
    path.symlink_to("was-here.jsonl")


def _pipe(path: Path) -> None:
    import os

    os.mkfifo(path)


UNICODE = [
    row | {"input": row["input"] + sign}
    for row, sign in zip(ROWS, "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\u200b\ufeff\xa0é", strict=True)
]

TEXT = {
    "UTF-8 with a byte order mark": read("x.jsonl", b"\xef\xbb\xbf" + jsonl(ROWS).encode(), ROWS, remark="the mark is dropped, and told"),
    "a table with a byte order mark": read("x.csv", b"\xef\xbb\xbf" + table().encode(), ROWS, [*range(2, 14)], "the mark is dropped, and told"),
    "a byte order mark alone": refused("x.jsonl", b"\xef\xbb\xbf", "", "no rows"),
    "a byte order mark in the middle (joined files)": refused("x.jsonl", second("\ufeff" + jsonl(ROWS[1:2]).strip()), "2", "not JSON", "a byte order mark inside the file"),
    "UTF-16, little end first, with its mark": refused("x.jsonl", b"\xff\xfe" + jsonl(KOREAN).encode("utf-16-le"), "1", "the file is UTF-16", "data.encoding: utf-16"),
    "UTF-16, big end first, with its mark": refused("x.csv", b"\xfe\xff" + table(rows=KOREAN).encode("utf-16-be"), "1", "the file is UTF-16", "data.encoding: utf-16"),
    "UTF-16, little end first, no mark": refused("x.jsonl", jsonl(ROWS).encode("utf-16-le"), "1", "it looks like UTF-16LE", "data.encoding: utf-16-le"),
    "UTF-16, big end first, no mark": refused("x.jsonl", jsonl(KOREAN).encode("utf-16-be"), "1", "it looks like UTF-16BE", "data.encoding: utf-16-be"),
    "UTF-32": refused("x.jsonl", jsonl(ROWS).encode("utf-32"), "1", "the file is UTF-32"),
    "CP949 (Korean)": refused("x.jsonl", (jsonl(ROWS) + jsonl(KOREAN)).encode("cp949"), "13", "it looks like CP949", "data.encoding: cp949", "iconv -f CP949 -t UTF-8"),
    "a table in CP949, as spreadsheets save it": refused("x.csv", table(rows=KOREAN).encode("cp949"), "2", "not UTF-8, at byte 13", "it looks like CP949"),
    "Shift-JIS (Japanese)": refused("x.jsonl", jsonl(JAPANESE).encode("cp932"), "1", "it looks like Shift-JIS", "data.encoding: cp932"),
    "EUC-JP (Japanese)": refused("x.jsonl", jsonl(JAPANESE).encode("euc-jp"), "1", "it looks like EUC-JP", "data.encoding: euc-jp"),
    "GB18030 (Chinese)": refused("x.jsonl", second('{"input": "我想取消订单", "output": "退款"}').encode("gb18030"), "2", "it looks like GB18030"),
    "latin-1": refused("x.jsonl", jsonl(FRENCH).encode("latin-1"), "1", "it looks like latin-1", "data.encoding: cp1252"),
    "Windows quotes (cp1252)": refused("x.jsonl", second('{"input": "It’s “fine”", "output": "so"}').encode("cp1252"), "2", "it looks like latin-1"),
    "Cyrillic (Windows-1251)": refused("x.jsonl", second('{"input": "Где мой заказ?", "output": "нет"}').encode("cp1251"), "2", "it looks like Windows-1251"),
    "two encodings in one file": refused("x.jsonl", jsonl(KOREAN).encode() + jsonl(KOREAN).encode("cp949"), "13", "not UTF-8, at byte", "it looks like CP949"),
    "one byte that is no UTF-8": refused("x.jsonl", jsonl(ROWS[:1]).encode() + b'{"input": "a\xffb", "output": "c"}\n', "2", "not UTF-8, at byte 58"),
    "cut off inside a character": refused("x.jsonl", jsonl(KOREAN).encode()[:-8], "12", "the file ends inside a character", "is it cut off?"),
    "NUL bytes": refused("x.jsonl", second('{"input": "a\x00", "output": "b"}'), "2", "NUL bytes in the text, at byte 58"),
    "binary content": refused("x.jsonl", bytes(range(256)) * 16, "1", "NUL bytes in the text, at byte 0", "is it a binary file"),
    "form feeds, U+2028, U+0085 and other false line ends": read("x.jsonl", jsonl(UNICODE), UNICODE, remark="only `\\n` ends a line"),
    "false line ends in a table": read("x.csv", table(rows=UNICODE[:3] + ROWS[3:]), UNICODE[:3] + ROWS[3:], [*range(2, 14)], "only `\\n` ends a line"),
    "CRLF line ends": read("x.jsonl", jsonl(ROWS, "\r\n"), ROWS),
    "a table with CRLF line ends": read("x.csv", table(end="\r\n"), ROWS, [*range(2, 14)]),
    "lines that end with CR alone": refused("x.jsonl", jsonl(ROWS, "\r"), "1", "more than one JSON value", "tr '\\r' '\\n'"),
    "a table whose lines end with CR alone": refused("x.csv", table(end="\r"), "1", "not a table", "tr '\\r' '\\n'"),
    "blank lines between rows": read("x.jsonl", jsonl(ROWS, "\n\n \t\n"), ROWS, [*range(1, 36, 3)], "blank lines are no rows"),
    "no line end after the last row": read("x.jsonl", jsonl(ROWS).rstrip(), ROWS),
    "a line of 50 MB": refused("x.jsonl", lambda path: path.write_bytes(jsonl(ROWS[:1]).encode() + b'{"input": "' + b"x" * (50 << 20) + b'"}\n'), "2", "a line longer than 8,388,608 characters"),
}  # fmt: skip

FILES = {
    "an empty file": refused("x.jsonl", b"", "", "no rows"),
    "a file of blank lines": refused("x.jsonl", b"\n \n\n", "", "no rows"),
    "one row": read("x.jsonl", jsonl(ROWS[:1]), ROWS[:1], remark="told: “validation is empty”", told="validation is empty"),
    "one row, which its content puts aside for the test": refused("x.jsonl", jsonl(ROWS[2:3]), "", "no row is left to train on", "data.validation: 0"),
    "a folder without data files": refused("x", Path.mkdir, "", "cannot load `x`"),
    "a folder with a bad file": refused("x", _folder, "", "the key `a` stands twice in one object (x/train.jsonl:2)"),
    "a link that points to itself": refused("x.jsonl", _loop, "", "a link that leads nowhere"),
    "a link to a file that is gone": refused("x.jsonl", _dangling, "", "a link that leads nowhere", "was-here.jsonl"),
    "a pipe": refused("x.jsonl", _pipe, "", "neither a file nor a folder"),
    "an unknown ending": refused("x.txt", jsonl(ROWS), "", "of no kind luthier reads", ".jsonl"),
    "an ending in capitals": read("X.JSONL", jsonl(ROWS), ROWS),
    "JSON lines named .json": read("x.json", jsonl(ROWS), ROWS),
    "an array of objects named .jsonl": read("x.jsonl", json.dumps(ROWS, indent=1), ROWS, [*range(2, 50, 4)]),
    "a table named .jsonl": refused("x.jsonl", table(), "1", "not JSON", "name it .csv or .tsv"),
    "JSON lines named .csv": refused("x.csv", jsonl(ROWS), "1", "this is JSON, not a table", "name it .jsonl"),
    "JSON lines named .parquet": refused("x.parquet", jsonl(ROWS), "", "not a readable parquet file"),
    "a compressed file": read("x.jsonl.gz", gzip.compress(jsonl(ROWS).encode()), ROWS),
    "two compressed files joined": read("x.jsonl.gz", gzip.compress(jsonl(ROWS[:6]).encode()) + gzip.compress(jsonl(ROWS[6:]).encode()), ROWS),
    "a compressed file cut off": refused("x.jsonl.gz", gzip.compress(jsonl(ROWS * 500).encode())[:-40], "", "damaged gzip file", "copy or compress it again"),
    "a compressed file with a wrong checksum": refused("x.jsonl.gz", gzip.compress(jsonl(ROWS).encode())[:-8] + b"\0" * 8, "13", "damaged gzip file", "crc check failed"),
    "named .gz, but not compressed": refused("x.jsonl.gz", jsonl(ROWS), "", "not a gzip file", "take .gz off its name"),
    "compressed, but not named .gz": refused("x.jsonl", gzip.compress(jsonl(ROWS).encode()), "1", "gzip-compressed", "name it .gz"),
    "a .gz that unpacks to a thousand times its size": refused("x.jsonl.gz", _bomb, "", "unpacks to more than 200 times its size"),
    "a zip archive": refused("x.zip", zipped(jsonl(ROWS)), "", "of no kind luthier reads", "unpack it"),
    "a zip archive named .jsonl": refused("x.jsonl", zipped(jsonl(ROWS)), "1", "a zip archive or a spreadsheet", "unpack it"),
    "a spreadsheet named .csv": refused("x.csv", zipped("xl"), "1", "a zip archive or a spreadsheet", "save the sheet as .csv"),
    "an old spreadsheet named .csv": refused("x.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "1", "an old spreadsheet"),
    "a parquet file named .jsonl": refused("x.jsonl", b"PAR1" + bytes(64), "1", "a parquet file", "name it .parquet"),
    "a web page saved under the file's name": refused("x.jsonl", "<!DOCTYPE html>\n<html><body>404</body></html>\n", "1", "a web page"),
    "a pointer of Git LFS": refused("x.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "1", "a pointer of Git LFS", "git lfs pull"),
    "a Python pickle": refused("x.jsonl", b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00]\x94.", "1", "a Python pickle"),
}  # fmt: skip

JSON = {
    "single quotes": refused("x.jsonl", second("{'input': 'a', 'output': 'b'}"), "2", "not JSON", "JSON needs double quotes"),
    "names without quotes": refused("x.jsonl", second('{input: "a", output: "b"}'), "2", "names of columns stand in double quotes"),
    "whole numbers as names": refused("x.jsonl", second('{1: "a", 2: "b"}'), "2", "names of columns stand in double quotes"),
    "a comma before the closing brace": refused("x.jsonl", second('{"input": "a", "output": "b",}'), "2", "no comma before `}`"),
    "a comma after the object": refused("x.jsonl", jsonl(ROWS, ",\n"), "1", "a comma after the object"),
    "a comment on a line of its own": refused("x.jsonl", second("// more"), "2", "JSON has no comments"),
    "a comment behind an object": refused("x.jsonl", second('{"input": "a", "output": "b"} # why'), "2", "JSON has no comments"),
    "None, True and False": refused("x.jsonl", second('{"input": "a", "output": None}'), "2", "JSON writes null, true and false"),
    "two objects on one line": refused("x.jsonl", second('{"input": "a", "output": "b"}{"input": "c", "output": "d"}'), "2", "more than one JSON value on this line"),
    "the last line cut off": refused("x.jsonl", jsonl(ROWS) + '{"input": "quest', "13", "not JSON: unterminated string", "is the file cut off here"),
    "objects spread over lines, named .jsonl": refused("x.jsonl", "".join(json.dumps(row, indent=1) + "\n" for row in ROWS), "1", "not JSON", "or the object spread over lines"),
    "objects spread over lines, named .json": refused("x.json", "".join(json.dumps(row, indent=1) + "\n" for row in ROWS), "1", "an object spread over several lines", "jq -c ."),
    "NaN": refused("x.jsonl", second('{"input": "a", "output": "b", "score": NaN}'), "2", "NaN is not JSON and cannot be trained on"),
    "-Infinity": refused("x.jsonl", second('{"input": "a", "output": "b", "score": -Infinity}'), "2", "-Infinity is not JSON"),
    "a number beyond every bound": refused("x.jsonl", second('{"input": "a", "output": "b", "score": 1e999}'), "2", "the number 1e999 is too large"),
    "a number of 5,000 digits": refused("x.jsonl", second('{"input": "a", "output": ' + "7" * 5000 + "}"), "2", "has 5,000 digits"),
    "a whole number of 40 digits": read("x.jsonl", jsonl([*ROWS, {"input": "9" * 40, "output": 10**39}]), [*ROWS, {"input": "9" * 40, "output": 10**39}]),
    "a key twice": refused("x.jsonl", second('{"input": "a", "output": "b", "input": "c"}'), "2", "the key `input` stands twice"),
    "a key twice, deep inside": refused("x.jsonl", second('{"input": "a", "output": "b", "meta": {"x": [{"y": 1, "y": 2}]}}'), "2", "the key `y` stands twice"),
    "half of a surrogate pair": refused("x.jsonl", second('{"input": "\\ud83d", "output": "b"}'), "2", "half of a surrogate pair"),
    "a whole surrogate pair": read("x.jsonl", jsonl(ROWS) + '{"input": "\\ud83d\\ude00", "output": "smile"}\n', [*ROWS, {"input": "😀", "output": "smile"}]),
    "an escape that does not exist": refused("x.jsonl", second('{"input": "C:\\work", "output": "b"}'), "2", "not JSON: invalid \\escape", "a backslash is written \\\\"),
    "a raw tab inside a text": refused("x.jsonl", second('{"input": "a\tb", "output": "c"}'), "2", "not JSON: invalid control character", "a tab \\t"),
    "65 levels deep": refused("x.jsonl", second('{"input": "a", "output": "b", "x": ' + "[" * 65 + "]" * 65 + "}"), "2", "nested deeper than 64 levels"),
    "a million levels deep": refused("x.jsonl", second("[" * 1_000_000), "2", "nested deeper than 64 levels"),
    "a million levels deep, named .json": refused("x.json", "[" + '{"a":' * 1_000_000, "1", "nested deeper than 64 levels"),
    "a row that is an array": refused("x.jsonl", second('["a", "b"]'), "2", "not an array"),
    "a row that is a text": refused("x.jsonl", second('"a"'), "2", "not a string"),
    "a row that is null": refused("x.jsonl", second("null"), "2", "not null"),
    "a row that is a number": refused("x.json", '[{"input": "a", "output": "b"},\n 5]', "2", "not a number"),
    "an array without its end": refused("x.json", json.dumps(ROWS, indent=1)[:-2], "49", "the array does not end", "is the file cut off?"),
    "an array cut off inside a row": refused("x.json", json.dumps(ROWS, indent=1)[:-20], "48", "not JSON: unterminated string", "is the file cut off here"),
    "a comma after the last row": refused("x.json", json.dumps(ROWS)[:-1] + ",\n]", "2", "a comma before the closing `]`"),
    "two rows without a comma": refused("x.json", '[{"input": "a", "output": "b"}\n{"input": "c", "output": "d"}]', "2", "does not go on with `,`"),
    "an error in a later row of an array": refused("x.json", json.dumps(ROWS, indent=1).replace('"answer 7"', "answer 7"), "32", "not JSON: expecting value, column 13"),
    "two arrays": refused("x.json", json.dumps(ROWS) + "\n" + json.dumps(ROWS), "2", "something follows the end of the array"),
    "an empty array": refused("x.json", "[]", "", "no rows"),
    "rows inside an object": refused("x.json", json.dumps({"version": 1, "data": ROWS}, indent=1), "1", "one object, whose `data` holds the rows", "jq -c '.data[]'"),
    "columns instead of rows": refused("x.json", json.dumps({"input": ["a", "b"], "output": ["c", "d"]}), "1", "columns, not rows"),
    "columns as a data frame writes them": refused("x.json", json.dumps({"input": {"0": "a", "1": "b"}, "output": {"0": "c", "1": "d"}}), "1", "columns, not rows", 'orient="records"'),
    "an array on one line of 20 MB": read("x.json", lambda path: path.write_text(json.dumps([*ROWS, *({"input": f"{i} " + "x" * 4_000_000, "output": "y"} for i in range(5))])), [*ROWS, *({"input": f"{i} " + "x" * 4_000_000, "output": "y"} for i in range(5))], [1] * 17),
    "an array with a row of 50 MB": refused("x.json", lambda path: path.write_text('[{"input": "' + "x" * (50 << 20) + '"}]'), "1", "a row longer than 8,388,608 characters"),
}  # fmt: skip

TABLES = {
    "too few cells": refused("x.csv", table() + "alone\n", "14", "1 cell where the header has 2"),
    "too many cells": refused("x.csv", table() + "a, b, c\n", "14", "3 cells where the header has 2", "in double quotes"),
    "a quote left open": refused("x.csv", table() + '"a,b\nc,d\n', "14", "not a table", "is a quote left open?"),
    "a quote inside a cell": refused("x.csv", table() + '"a "b" c",d\n', "14", "not a table", "is doubled"),
    "an error behind a cell of several lines": refused("x.csv", 'input,output\n"a\nb\nc",d\ne\n', "5", "1 cell where"),
    "cells of several lines": read("x.csv", 'input,output\n"a\nb\r\nc",d\n' + table().split("\n", 1)[1], [{"input": "a\nb\r\nc", "output": "d"}, *ROWS], [2, *range(5, 17)]),
    "quotes behind spaces": refused("x.csv", 'input,output\n"a", "b"\n', "2", "a quote behind a space would become part of the cell"),
    "semicolons": refused("x.csv", table(";"), "1", "separated by ';'", "use commas in .csv"),
    "tabs in a .csv": refused("x.csv", table("\t"), "1", "separated by '\\t'", "tabs in .tsv"),
    "commas in a .tsv": refused("x.tsv", table(), "1", "separated by ','"),
    "a line `sep=;` first": refused("x.csv", "sep=;\n" + table(";"), "1", "separated by ';'"),
    "a header alone": refused("x.csv", "input,output\n", "", "no rows", "a header alone"),
    "no header": refused("x.csv", table().split("\n", 1)[1], "", "the columns answer 0, question 0 fit no known format"),
    "the header again in the middle (joined files)": refused("x.csv", table() + table(), "14", "the header stands here again", "were several files joined?"),
    "a column twice": refused("x.csv", "input,output,input\na,b,c\n", "1", "the column `input` stands twice"),
    "a column without a name (a data frame's index)": refused("x.csv", ",input,output\n0,a,b\n", "1", "column 1 has no name", "index=False"),
    "empty cells in every column": refused("x.csv", table() + ",\n", "14", "is empty"),
    "names with spaces around them": read("x.csv", table().replace("input,output", " input , output "), ROWS, [*range(2, 14)], "names are stripped, cells are not"),
    "names with spaces and braces inside": read("x.csv", "input,output,{the rest},a b\n" + "".join(f"question {i},answer {i},x,y\n" for i in range(12)), [row | {"{the rest}": "x", "a b": "y"} for row in ROWS], [*range(2, 14)]),
    "numbers, truth values and dates": read("x.csv", "input,output\n" + "".join(f"00{i}.50,2026-01-{i:02}\n" for i in range(1, 13)), [{"input": f"00{i}.50", "output": f"2026-01-{i:02}"} for i in range(1, 13)], [*range(2, 14)], "every cell is text"),
    "100,000 columns": refused("x.csv", ",".join(f"c{i}" for i in range(100_000)) + "\n" + ",".join("x" * 100_000) + "\n", "", "fit no known format", "c0, c1, c10", "and 99,988 more"),
    "100,000 columns of one name": refused("x.csv", ",".join(["a"] * 100_000) + "\n", "1", "the column `a` stands 100000 times"),
    "an endless record": refused("x.csv", lambda path: path.write_text('input,output\n"' + ("x" * 1000 + "\n") * 9000), "2", "a row (is a quote left open?) longer than"),
}  # fmt: skip


def corpus() -> Mapping[str, Case]:
    """Every case under its name."""
    from tests.data import bad_rows

    parts = (TEXT, FILES, JSON, TABLES, bad_rows.PARQUET, bad_rows.CELLS, bad_rows.CHATS)
    cases = dict(itertools.chain.from_iterable(part.items() for part in parts))
    assert len(cases) == sum(map(len, parts)), "two cases of one name"
    return cases
