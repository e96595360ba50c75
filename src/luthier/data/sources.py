"""Rows of a file, a folder, a Hub data set or any Python iterable, each with its file and line.

Lives here: reading, strictly: what is not plain, finite, UTF-8 data is refused with its place.
Does not live here: what a row means (`formats.py`).
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import decimal
import math
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.data import dataset_info
from luthier.data.strict_json import MAX_DEPTH, decode, whole_characters
from luthier.data.textfiles import MAX_LINE_BYTES, lines, open_bytes, whole_text
from luthier.errors import DataError, MissingExtra, NotFound, here, near_path

Row = tuple[dict[str, Any], str, int]
"""A row, the file it came from as the user named it, and its line (parquet, Hub, iterables: its number), from 1."""

Source = str | Path | Iterable[Mapping[str, Any]]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")


def rows(source: Source, encoding: str | None = None) -> Iterator[Row]:
    """Every row of `source`, in order.

    `source` is a path (jsonl, json, csv, tsv, parquet, each also as .gz), a folder of such files (`folder[:split]`), a
    Hub data set as `org/name[/config][@revision][:split]` (`hf://` forces this reading), a name in LLaMA-Factory's
    `dataset_info.json` (`folder/dataset_info.json:name`, `folder:name`), or an iterable of mappings.
    `encoding` reads text files that are not UTF-8. Raises NotFound at once, DataError with file:line on the way.
    """
    if isinstance(source, Mapping):
        raise DataError("a data source is a path or many rows, not one mapping", hint="put the row into a list")
    if not isinstance(source, Iterable | Path):
        hint = "give a path or an iterable of mappings"
        raise DataError(f"a {type(source).__name__} is no data source", hint=hint)
    if not isinstance(source, str | Path):
        return _iterable_rows(source)
    entry = dataset_info.described(str(source))
    if entry is not None:
        return ((entry.row(row), file, line) for row, file, line in _named_rows(entry.source, encoding))
    return _named_rows(str(source), encoding)


def _named_rows(name: str, encoding: str | None) -> Iterator[Row]:
    path = here(name)
    if path.is_file():
        return _file_rows(path, name, encoding)
    if _is_data_set(name):
        return _data_set_rows(name)
    raise _missing(path, name)


def name_of(source: Source) -> str:
    """What messages call this source."""
    return str(source) if isinstance(source, str | Path) else "rows"


def _names_the_hub(text: str, path: Path) -> bool:
    looks = _HUB_NAME.fullmatch(_base_and_split(text)[0])
    marked = text.startswith((".", "/", "~"))
    return bool(looks) and "/" in text and not marked and _kind(path) is None and not path.parent.exists()


def _missing(path: Path, name: str) -> NotFound:
    missing = None if path.parent.is_dir() else f"the folder `{path.parent}` does not exist either"
    return NotFound(f"no such data file: {name}", hint=near_path(path) or missing)


def _kind(path: Path) -> str | None:
    """The suffix that says how to read `path`, without .gz; None when there is none that we know."""
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return inner.suffix.lower() if inner.suffix.lower() in SUFFIXES else None


def _file_rows(path: Path, name: str, encoding: str | None) -> Iterator[Row]:
    kind = _kind(path)
    if kind is None:
        known = ", ".join(SUFFIXES)
        raise DataError(
            f"`{path.name}` is of no kind luthier reads", name, f"save it as one of {known}, or .gz of them"
        )
    if kind == ".parquet":
        return _parquet_rows(path, name)
    if kind in (".csv", ".tsv"):
        return _table_rows(path, name, "," if kind == ".csv" else "\t", encoding)
    if kind == ".json":
        return _json_rows(path, name, encoding)
    return _json_lines(lines(path, name, encoding), name)


# -- JSON --------------------------------------------------------------------------------------------------------------


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", type(None): "null", bool: "a truth value"}.get(
            type(value), "a number"
        )
        raise DataError(f"a row must be an object with named columns, not {kind}", where)
    return value


def _json_lines(numbered: Iterator[tuple[int, str]], name: str) -> Iterator[Row]:
    for number, line in numbered:
        text = line.strip(" \t\r\n")
        if not text:
            continue
        where = f"{name}:{number}"
        value, end = decode(text, 0, where)
        if end != len(text):
            raise DataError(
                "more than one JSON value on this line", where, "one object per line, or an array in a .json file"
            )
        yield _object(value, where), name, number


def _json_rows(path: Path, name: str, encoding: str | None) -> Iterator[Row]:
    """A .json file: an array of objects; or JSON lines under the wrong suffix, which is common."""
    text = whole_text(path, name, encoding)
    start = _skip(text, 0)
    if text.startswith("[", start):
        yield from _array(text, start + 1, name)
        return
    first = text[start:].split("\n", 1)[0].strip()
    if first.endswith("}"):
        yield from _json_lines(enumerate(text.split("\n"), 1), name)
    elif first:
        raise DataError("neither an array of objects nor one object per line", f"{name}:1", "put the rows into [ … ]")


def _array(text: str, at: int, name: str) -> Iterator[Row]:
    line, counted = 1, 0
    at = _skip(text, at)
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        value, end = decode(text, at, f"{name}:{line}")
        if end - at > MAX_LINE_BYTES:
            raise DataError(f"a row longer than {MAX_LINE_BYTES >> 20} MB", f"{name}:{line}")
        yield _object(value, f"{name}:{line}"), name, line
        at = _skip(text, end)
        if text.startswith(",", at):
            at = _skip(text, at + 1)
        elif not text.startswith("]", at):
            line += text.count("\n", counted, at)
            raise DataError("the array does not go on with `,` or end with `]`", f"{name}:{line}")
    if _skip(text, at + 1) != len(text):
        raise DataError("something follows the end of the array", f"{name}:{line}")


_SPACE = re.compile(r"[ \t\r\n]*")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


# -- tables ------------------------------------------------------------------------------------------------------------


def _table_rows(path: Path, name: str, delimiter: str, encoding: str | None) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader((line for _, line in lines(path, name, encoding)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        started = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"not a table: {error}", f"{name}:{started}", "a quote inside a cell is doubled") from None
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = _header(cells, f"{name}:{started}")
        elif len(cells) != len(header):
            raise DataError(f"{len(cells)} cells where the header has {len(header)}", f"{name}:{started}")
        else:
            yield dict(zip(header, cells, strict=True)), name, started


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not all(names):
        raise DataError("a column without a name in the header", where)
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise DataError(f"the column `{twice}` stands twice in the header", where)
    other = next((sign for sign in (";", "\t", "|") if len(names) == 1 and sign in names[0]), None)
    if other:
        raise DataError(f"the columns seem to be separated by {other!r}", where, "use commas in .csv, tabs in .tsv")
    return names


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_bytes(path, name) as stream:
        try:
            file = pq.ParquetFile(pa.BufferReader(stream.read()) if path.suffix.lower() == ".gz" else path)
            for field in file.schema_arrow:
                if not _plain_type(field.type):
                    raise DataError(f"the column `{field.name}` holds {field.type}, which is not plain data", name)
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield {key: plain(value, f"{name}:{number}", key) for key, value in row.items()}, name, number
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"not a readable parquet file: {str(error).splitlines()[0]}", name) from None


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


# -- Python and the Hub ------------------------------------------------------------------------------------------------


def _iterable_rows(source: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(source, 1):
        where = f"rows:{number}"
        if not isinstance(row, Mapping):
            hint = 'a data frame becomes rows by `frame.to_dict("records")`' if isinstance(row, str) else None
            raise DataError(f"a row must be a mapping of named columns, not {type(row).__name__}", where, hint)
        yield {str(key): plain(value, where, str(key)) for key, value in row.items()}, "rows", number


def plain(value: Any, where: str, column: str, depth: int = 1) -> Any:
    """`value` as JSON knows it (dates and decimals become text); DataError for anything else, NaN included."""
    if value is None or isinstance(value, str | bool):
        return whole_characters(value, where) if isinstance(value, str) else value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, decimal.Decimal | datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    if isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise DataError(f"the column `{column}` holds {float(value)}, which cannot be trained on", where)
        return float(value)
    if depth >= MAX_DEPTH:
        raise DataError(f"nested deeper than {MAX_DEPTH} levels", where)
    if isinstance(value, Mapping):
        return {str(key): plain(inner, where, column, depth + 1) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(inner, where, column, depth + 1) for inner in value]
    raise DataError(f"the column `{column}` holds a {type(value).__name__}, which is not plain data", where)


def own_split(source: Source, split: str) -> str | None:
    """The source of `split` when `source` is a data set (Hub or folder) that has one of that name; None otherwise."""
    if not isinstance(source, str | Path) or not _is_data_set(str(source)) or dataset_info.described(str(source)):
        return None
    base, _ = _base_and_split(str(source))
    return f"{base}:{split}" if split in _load_splits(base) else None


def _is_data_set(text: str) -> bool:
    path, folder = here(text), here(_base_and_split(text)[0])
    return text.startswith("hf://") or folder.is_dir() or (not path.exists() and _names_the_hub(text, path))


def _base_and_split(text: str) -> tuple[str, str | None]:
    base, colon, split = text.removeprefix("hf://").rpartition(":")
    return (base, split) if colon and "/" not in split else (text.removeprefix("hf://"), None)


def _data_set_rows(text: str) -> Iterator[Row]:
    """Rows by the `datasets` library: a data set of the Hub, or a folder with data files."""
    base, split = _base_and_split(text)
    found = _load_splits(base)
    if split is None:
        split = "train" if "train" in found else next(iter(found)) if len(found) == 1 else ""
    if split not in found:
        message = f"`{base}` has no split `{split}`" if split else f"which split of `{base}`?"
        raise NotFound(message, hint=f"it has {', '.join(found)}; write {base}:SPLIT")
    table, name = found[split], f"{base}:{split}"
    classes = {column: kind.names for column, kind in table.features.items() if type(kind).__name__ == "ClassLabel"}
    for number, row in enumerate(table, 1):
        where = f"{name}:{number}"
        values = {key: plain(value, where, key) for key, value in row.items()}
        for column, names in classes.items():
            if values[column] is not None and values[column] >= 0:  # -1 marks a hidden label
                values[column] = names[values[column]]
        yield values, name, number


def _load_splits(base: str) -> Mapping[str, Any]:
    """Split name → table. Raises NotFound with the library's reason, MissingExtra without the library."""
    try:
        import datasets
    except ImportError:
        message = f"reading `{base}` needs the library `datasets`"
        raise MissingExtra(message, hint='pip install "luthier[hub]"') from None
    folder = here(base)
    match = _HUB_NAME.fullmatch(base)
    if folder.is_dir():
        arguments: dict[str, Any] = {"path": str(folder)}
    elif match:
        arguments = {"path": match["name"], "name": match["config"], "revision": match["revision"]}
    else:
        raise NotFound(f"`{base}` is not the name of a data set", hint="write org/name[/config][@revision][:split]")
    try:
        with _asking_once(arguments["path"]) if match and not folder.is_dir() else contextlib.nullcontext():
            return datasets.load_dataset(**arguments)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = near_path(folder) or "a name on the Hub (does it answer from here?), or a folder with data files"
        raise NotFound(f"cannot load `{base}`: {reason}", hint=hint) from None


@contextlib.contextmanager
def _asking_once(name: str) -> Iterator[None]:
    """Where the Hub does not answer once, the library reads its cache, and does not ask six times in half a minute."""
    import datasets
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(name, timeout=10)
    except HfHubHTTPError:
        pass  # an answer: the library will say which
    except Exception:  # no answer; whose error that is depends on the HTTP library of the day
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
