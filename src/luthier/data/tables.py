"""Rows of tables: comma- and tab-separated text, and parquet.

Lives here: headers, cells, which columns are plain data. Does not live here: bytes and encodings (`textfiles.py`).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.data.cells import Row, plain
from luthier.data.textfiles import MAX_ROW, MAX_WHOLE_BYTES, check_ratio, line_groups, open_bytes, text_pieces, too_long
from luthier.errors import DataError

_BATCH = 1024


class _Feed:
    """Lines for the csv reader, with an eye on what it would take silently: endless records, quotes behind spaces."""

    def __init__(self, groups: Iterator[tuple[int, list[str]]], name: str, delimiter: str) -> None:
        self.groups, self.name = groups, name
        self.spaced = f'{delimiter} "'
        self.started, self.characters, self.suspicious = 1, 0, False

    def begin(self, line: int) -> None:
        """A record begins on `line`."""
        self.started, self.characters, self.suspicious = line, 0, False

    def __iter__(self) -> Iterator[str]:
        for _, group in self.groups:
            for line in group:
                self.characters += len(line)
                if self.characters > MAX_ROW:
                    raise too_long("row (is a quote left open?)", f"{self.name}:{self.started}")
                if self.spaced in line:
                    self.suspicious = True
                yield line + "\n"


def table_rows(path: Path, name: str, delimiter: str, encoding: str | None) -> Iterator[Row]:
    """Rows of a .csv or .tsv with a header; every cell is text. The line of a row is the one it begins on."""
    csv.field_size_limit(2 * MAX_ROW)  # the feed refuses a whole record first, in our words
    feed = _Feed(line_groups(text_pieces(path, name, encoding), name), name, delimiter)
    reader = csv.reader(iter(feed), delimiter=delimiter, strict=True)
    header: list[str] = []
    first: list[str] = []
    while True:
        started = reader.line_num + 1
        feed.begin(started)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _not_a_table(error, f"{name}:{started}") from None
        if cells is None:
            return
        if not cells:
            continue
        if not header:
            first, header = cells, _header(cells, f"{name}:{started}", delimiter)
            continue
        if len(cells) != len(header) or cells == first or feed.suspicious:
            _check(cells, first, feed.suspicious, f"{name}:{started}")
        yield dict(zip(header, cells, strict=True)), name, started


def _not_a_table(error: csv.Error, where: str) -> DataError:
    if "new-line character" in str(error):
        hint = "the lines end with CR alone: tr '\\r' '\\n' < OLD > NEW"
    else:
        hint = "is a quote left open? A quote inside a cell is doubled, and the cell quoted"
    return DataError(f"not a table: {error}", where, hint)


def _check(cells: list[str], header: list[str], suspicious: bool, where: str) -> None:
    if len(cells) != len(header):
        message = f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'} where the header has {len(header)}"
        raise DataError(message, where, "a cell that holds the separator stands in double quotes")
    if cells == header:
        raise DataError("the header stands here again", where, "were several files joined? Take this line out")
    if suspicious and any(cell.startswith(' "') and cell.endswith('"') for cell in cells):
        raise DataError("a quote behind a space would become part of the cell", where, 'write "a","b", not "a", "b"')


def _header(cells: list[str], where: str, delimiter: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if names[0].startswith(('{"', "[")):
        raise DataError("this is JSON, not a table", where, "name it .jsonl")
    if not all(names):
        message = f"column {names.index('') + 1} has no name in the header"
        raise DataError(message, where, "name it; if it is a data frame's index, write it with index=False")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        times = "twice" if count == 2 else f"{count} times"
        raise DataError(f"the column `{name}` stands {times} in the header", where)
    signs = [sign for sign in (";", "\t", "|", ",") if sign != delimiter and len(names) == 1 and sign in names[0]]
    if signs:
        message = f"the columns seem to be separated by {signs[0]!r}"
        raise DataError(message, where, "use commas in .csv, tabs in .tsv")
    return names


# -- parquet -----------------------------------------------------------------------------------------------------------


def parquet_rows(path: Path, name: str) -> Iterator[Row]:
    """Rows of a parquet file, which carries no lines: rows are counted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_bytes(path, name) as stream:
        try:
            file = pq.ParquetFile(pa.BufferReader(_unpacked(stream, path, name)) if _packed(path) else path)
            _check_columns(file.schema_arrow, name)
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in _python_rows(batch, f"{name}:{number + 1}"):
                    number += 1
                    where = f"{name}:{number}"
                    yield {key: plain(value, where, key) for key, value in row.items()}, name, number
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or ["?"])[0]
            raise DataError(f"not a readable parquet file: {reason}", name, "write or copy it again") from None


def _packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _unpacked(stream: Any, path: Path, name: str) -> bytes:
    whole = io.BytesIO()
    while piece := stream.read(1 << 20):
        whole.write(piece)
        check_ratio(whole.tell(), path, name)
        if whole.tell() > MAX_WHOLE_BYTES:
            raise DataError(f"unpacks to more than {MAX_WHOLE_BYTES >> 30} GB", name, "parquet is compressed by itself")
    return whole.getvalue()


def _check_columns(schema: Any, name: str) -> None:
    twice = [column for column, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise DataError(f"the column `{twice[0]}` stands twice", name, "rename one of them")
    for field in schema:
        if not _plain_type(field.type):
            hint = "leave it out, or write it as text"
            raise DataError(f"the column `{field.name}` holds {field.type}, which is not plain data", name, hint)


def _python_rows(batch: Any, where: str) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:  # a date beyond Python's, text that is not UTF-8
        message = f"one of the next {_BATCH:,} rows holds a value that cannot be read: {error}"
        raise DataError(message, where, "write dates as text") from None


def _plain_type(kind: Any) -> bool:
    """Numbers, text, dates, and lists and structures of them; no binary, no extension types (they can carry code)."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return False
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_plain_type(kind.field(i).type) for i in range(kind.num_fields))
    tests = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string)
    more = (pa.types.is_large_string, pa.types.is_string_view, pa.types.is_temporal, pa.types.is_decimal)
    return any(test(kind) for test in tests + more)
