"""Rows of a file, a folder, a Hub data set or any Python iterable, each with its file and line.

Lives here: what a source is, and the readers of Python rows and data sets. Does not live here: the readers of files
(`json_files.py`, `tables.py`), what a row means (`formats.py`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.data import dataset_info
from luthier.data.cells import Row, plain
from luthier.data.json_files import json_rows
from luthier.data.tables import parquet_rows, table_rows
from luthier.data.textfiles import begins_with_mark
from luthier.errors import DataError, MissingExtra, NotFound, here, near_path

Source = str | Path | Iterable[Mapping[str, Any]]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_TEXTS = SUFFIXES[:-1]
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")


def rows(source: Source, encoding: str | None = None) -> Iterator[Row]:
    """Every row of `source`, in order.

    `source` is a path (jsonl, json, csv, tsv, parquet, each also as .gz), a folder of such files (`folder[:split]`), a
    Hub data set as `org/name[/config][@revision][:split]` (`hf://` forces this reading), a name in LLaMA-Factory's
    `dataset_info.json` (`folder/dataset_info.json:name`, `folder:name`), or an iterable of mappings.
    `encoding` reads text files that are not UTF-8. Text files of a folder are read by the same strict readers as a
    single file; the library `datasets` reads other folders and the Hub. Raises NotFound at once, DataError with
    file:line on the way.
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
        return _data_set_rows(name, encoding)
    raise _missing(path, name)


def name_of(source: Source) -> str:
    """What messages call this source."""
    return str(source) if isinstance(source, str | Path) else "rows"


def _names_the_hub(text: str, path: Path) -> bool:
    looks = _HUB_NAME.fullmatch(_base_and_split(text)[0])
    marked = text.startswith((".", "/", "~"))
    return bool(looks) and "/" in text and not marked and _kind(path) is None and not path.parent.exists()


def _missing(path: Path, name: str) -> NotFound:
    if path.is_symlink():
        return NotFound(f"a link that leads nowhere: {name}", hint=f"it points to {path.readlink()}")
    if path.exists():
        return NotFound(f"neither a file nor a folder: {name}", hint="write the rows to a file first")
    missing = None if path.parent.is_dir() else f"the folder `{path.parent}` does not exist either"
    return NotFound(f"no such data file: {name}", hint=near_path(path) or missing)


def _kind(path: Path) -> str | None:
    """The suffix that says how to read `path`, without .gz; None when there is none that we know."""
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return inner.suffix.lower() if inner.suffix.lower() in SUFFIXES else None


def _file_rows(path: Path, name: str, encoding: str | None) -> Iterator[Row]:
    kind = _kind(path)
    if kind is None:
        archive = path.suffix.lower() in (".zip", ".tar", ".tgz", ".7z", ".bz2", ".xz", ".zst")
        hint = f"save it as one of {', '.join(SUFFIXES)}, or .gz of them"
        raise DataError(f"`{path.name}` is of no kind luthier reads", name, "unpack it" if archive else hint)
    if kind == ".parquet":
        return parquet_rows(path, name)
    if kind in (".csv", ".tsv"):
        return table_rows(path, name, "," if kind == ".csv" else "\t", encoding)
    return json_rows(path, name, encoding)


# -- Python and the Hub ------------------------------------------------------------------------------------------------


def _iterable_rows(source: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(source, 1):
        where = f"rows:{number}"
        if not isinstance(row, Mapping):
            hint = 'a data frame becomes rows by `frame.to_dict("records")`' if isinstance(row, str) else None
            raise DataError(f"a row must be a mapping of named columns, not {type(row).__name__}", where, hint)
        yield {str(key): plain(value, where, str(key)) for key, value in row.items()}, "rows", number


def marked_files(source: Source) -> list[str]:
    """The files of `source`, as messages name them, that begin with a byte order mark, which is no part of a row."""
    if not isinstance(source, str | Path):
        return []
    entry = dataset_info.described(str(source))
    name = entry.source if entry is not None else str(source)
    files: dict[str, Path] = {name: here(name)} if here(name).is_file() else {}
    base, split = _base_and_split(name)
    if not files and here(base).is_dir():
        found = _splits(base)
        rows = found.get(split or "train", next(iter(found.values())))
        files = rows if isinstance(rows, dict) else {}
    return [name for name, path in files.items() if _kind(path) != ".parquet" and begins_with_mark(path, name)]


def own_split(source: Source, split: str) -> str | None:
    """The source of `split` when `source` is a data set (Hub or folder) that has one of that name; None otherwise."""
    if not isinstance(source, str | Path) or not _is_data_set(str(source)) or dataset_info.described(str(source)):
        return None
    base, _ = _base_and_split(str(source))
    return f"{base}:{split}" if split in _splits(base) else None


def _is_data_set(text: str) -> bool:
    path, folder = here(text), here(_base_and_split(text)[0])
    return text.startswith("hf://") or folder.is_dir() or (not path.exists() and _names_the_hub(text, path))


def _base_and_split(text: str) -> tuple[str, str | None]:
    base, colon, split = text.removeprefix("hf://").rpartition(":")
    return (base, split) if colon and "/" not in split else (text.removeprefix("hf://"), None)


def _data_set_rows(text: str, encoding: str | None) -> Iterator[Row]:
    """Rows of a data set of the Hub, or of a folder with data files."""
    base, split = _base_and_split(text)
    found = _splits(base)
    if split is None:
        split = "train" if "train" in found else next(iter(found)) if len(found) == 1 else ""
    if split not in found:
        message = f"`{base}` has no split `{split}`" if split else f"which split of `{base}`?"
        raise NotFound(message, hint=f"it has {', '.join(found)}; write {base}:SPLIT")
    if isinstance(found[split], dict):
        for name, path in found[split].items():
            yield from _file_rows(path, name, encoding)
        return
    table, name = found[split], f"{base}:{split}"
    classes = {column: kind.names for column, kind in table.features.items() if type(kind).__name__ == "ClassLabel"}
    for number, row in enumerate(table, 1):
        where = f"{name}:{number}"
        values = {key: plain(value, where, key) for key, value in row.items()}
        for column, names in classes.items():
            if values[column] is not None and values[column] >= 0:  # -1 marks a hidden label
                values[column] = names[values[column]]
        yield values, name, number


def _splits(base: str) -> Mapping[str, Any]:
    """Split name → what holds its rows: text files (name → path) that our own readers read, strictly, line by line; or
    the library's table, of parquet, of other kinds, of the Hub. Raises NotFound with the library's reason, MissingExtra
    without the library."""
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
        with _quiet() if folder.is_dir() else _asking_once(arguments["path"]):
            return (_text_splits(folder) if folder.is_dir() else None) or datasets.load_dataset(**arguments)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        _name_the_bad_file(folder)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = near_path(folder) or "a name on the Hub (does it answer from here?), or a folder with data files"
        raise NotFound(f"cannot load `{base}`: {reason}", hint=hint) from None


def _text_splits(folder: Path) -> dict[str, dict[str, Path]] | None:
    """The files of each split, as the library sorts them by their names; None where not all are text in this folder, or
    where a description beside them gives their columns another meaning."""
    import datasets

    builder = datasets.load_dataset_builder(str(folder))
    classes = any(type(kind).__name__ == "ClassLabel" for kind in (builder.info.features or {}).values())
    found = {str(split): [Path(name) for name in names] for split, names in (builder.config.data_files or {}).items()}
    whole, paths = folder.resolve(), [path for files in found.values() for path in files]
    ours = all(path.is_file() and _kind(path) in _TEXTS and path.is_relative_to(whole) for path in paths)
    if classes or not (paths and ours):
        return None
    return {split: {str(folder / path.relative_to(whole)): path for path in files} for split, files in found.items()}


def _name_the_bad_file(folder: Path) -> None:
    """The library says that a folder cannot be read; our own readers say which file, which line and why."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and _kind(path) is not None:
            for _ in _file_rows(path, str(path), None):
                pass


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library's log says what our error says, with a Python class in it."""
    import datasets

    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before)


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
