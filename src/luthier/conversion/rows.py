"""Where rows come from and how they are shared out, as several tools write it.

Lives here: readings of data sets and validation shares. Does not live here: columns and templates, which each tool has
in its own way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.conversion.lines import VERDICT, Foreign, Line, carried, changed, default, lost
from luthier.errors import SpecError

_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".ndjson")
_BUILDERS = ("json", "csv", "parquet", "text")


def name_of(path: str, config: Any = None, split: Any = None, revision: Any = None) -> str:
    """What luthier calls a data set of the Hub, a folder (`path:split`), or a file.

    >>> name_of("org/set", "fr", "train[:5%]"), name_of("rows.jsonl", split="train"), name_of("org/set", revision="v2")
    ('org/set/fr:train', 'rows.jsonl', 'org/set@v2')
    """
    if path.endswith(_FILES) or Path(path).is_file():
        return path
    part = split.partition("[")[0] if isinstance(split, str) else ""
    return f"{path}{f'/{config}' if config else ''}{f'@{revision}' if revision else ''}{f':{part}' if part else ''}"


def one_of(path: str, key: str, sets: list[Foreign], prefix: str) -> tuple[list[Line], Foreign | None]:
    """The first of several data sets as `path`; the others stay behind, for a split has one source."""
    if not sets:
        return [], None
    first, found = sets[0], []
    files = first.values.get("data_files")
    if isinstance(files, dict):
        files = files.get("train")
    files = files if isinstance(files, list) else [files] if isinstance(files, str) else []
    named = first.text("path", "")
    local = files and named in ("", *_BUILDERS)
    name = files[0] if local else name_of(named, first.values.get("name"), first.text("split"), first.text("revision"))
    if not name:
        raise SpecError(f"`{key}` names no rows", next(iter(first.places.values()), None), "it needs a `path`")
    found.append(carried(f"{prefix}0.path", path, name))
    found += [as_part(f"{prefix}0.{part}") for part in ("name", "split", "revision", "ds_type") if first.has(part)]
    if "[" in first.text("split", ""):
        found.append(lost(f"{prefix}0.split", "a slice of a split: data.limit draws that many rows"))
    if first.has("data_files"):
        rest = "" if local and len(files) < 2 else "a split is read whole, or from one file: join the files"
        found.append(lost(f"{prefix}0.data_files", rest) if rest else as_part(f"{prefix}0.data_files"))
    words = f"`{path}` has one source: join the files to one, in one format"
    return found + [lost(f"{prefix}{i}", words) for i in range(1, len(sets))], first


def as_part(key: str) -> Line:
    """`key` is part of the data set's name here."""
    return Line("carried", key, words="part of the name of the data set")


def validation(key: str, tool: str, f: Foreign) -> Line:
    """A share of the rows; a number of rows becomes a tenth of them."""
    size = f.number(key, 0.0)
    if not f.has(key):
        return default("data.validation", 0.0, f"{tool} validates on nothing")
    if 0 <= size < 1:
        return carried(key, "data.validation", size)
    words = f"{size:g} rows there, a share of the rows here: a tenth is written"
    return changed(key, words, "data.validation", 0.1)


def verdict(tool: str) -> Line:
    """What luthier adds to every one of these configurations."""
    return changed("", VERDICT.format(tool=tool), "data.test", 0.1)
