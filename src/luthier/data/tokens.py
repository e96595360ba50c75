"""A split's rows as tokens, made once: memory-mapped arrays in the data set's folder, shared by all runs.

A second start reads no text. Lives here: making the arrays, knowing whether they may be used. Does not live here: what
the tokens of a row are (`encode.py`), seeing rows in the arrays (`rows.py`).

The form of a folder `data/<fingerprint>/tokens/<key>/`, of N rows with T tokens in all:

    ids.npy        (T,) int32        the ids of all rows, one row after another
    train.npy      (T,) bool         whether each is trained
    offsets.npy    (N + 1,) int64    row i is ids[offsets[i] : offsets[i + 1]]
    prompt.npy     (N,) int32        prompt_length: the tokens before the first trained one
    trained.npy    (N,) int32        how many tokens are trained
    label.npy      (N,) int32        class index, -1 where there is none
    cut.npy        (N,) bool         whether the length policy removed tokens; and so every field of `Encoded`
    example.npy    (N,) S16          the example's id
    file.npy       (N,) int32        where the row stood: a number in the manifest's `places` …
    line.npy       (N,) int32        … and the line
    manifest.json  what the key was made of; rows, tokens, places; what the length policy did; bytes and CRC-32 of the
                   numbers of every file; size and time of the text it was made from

The key is a hash of all that decides the tokens: the data set's fingerprint and the split, the tokenizer (its backend
as JSON, its special tokens, its chat template, and the day where that asks for it), all of `Rules`, the source of this
package and the versions of what it stands on. Nothing has to be remembered when code changes: other code has another
key.

A folder appears whole (`disk.whole_folder`), made by one process while others wait. It is verified when it is opened,
and made anew where a file is missing, has another size or other content, or where the text has been written again
since (the same rows from another place: the lines that messages name have changed). Folders of other code are removed
when a new one is made; who has them open keeps what is mapped.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import itertools
import json
import mmap
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from luthier import disk
from luthier.data import encode
from luthier.data.dataset import Dataset
from luthier.data.encode import Outcome, Rules
from luthier.data.examples import Encoded
from luthier.data.rows import FACTS, TOGETHER, Arrays, TokenRows
from luthier.errors import DataError

MANIFEST = "manifest.json"
SHOWN = 5
"""How many rows are named of those that the length policy dropped or cut."""
_COLUMNS = {
    "ids": np.dtype(np.int32),
    "train": np.dtype(bool),
    "offsets": np.dtype(np.int64),
    "prompt": np.dtype(np.int32),
    "trained": np.dtype(np.int32),
    **FACTS,
    "example": np.dtype("S16"),
    "file": np.dtype(np.int32),
    "line": np.dtype(np.int32),
}
_BLOCK = 1 << 20  # bytes read at a time where a file is verified


@dataclass(frozen=True, slots=True)
class Counted:
    """How many rows something happened to, and of the first ones `file:line: what`."""

    count: int
    shown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredSplit:
    """A split as tokens: the rows that are used, what the length policy did to others, and `remade`: why a folder that
    stood there was made anew ("" if it was not)."""

    rows: TokenRows
    dropped: Counted
    cut: Counted
    remade: str = ""


class _Unusable(Exception):
    """A folder that stands there but may not be used; `told`: whether a person should hear of it."""

    def __init__(self, reason: str, told: bool = True) -> None:
        super().__init__(reason)
        self.told = told


def stored(dataset: Dataset, split: str, tokenizer: Any, rules: Rules) -> StoredSplit:
    """The rows of `split` as tokens, from the data set's folder; encoded and stored there if they are not yet.

    Raises DataError when the length policy refuses or leaves nothing; OSError where the disk does.
    """
    facts = _facts(dataset, split, tokenizer, rules)
    folder, text = dataset.path / "tokens" / _digest(facts)[:16], dataset.path / f"{split}.jsonl"
    found, _ = _looked(folder, text)
    if found is not None:
        return found
    folder.parent.mkdir(exist_ok=True)
    with disk.alone(folder.parent) as locked:
        found, reason = _looked(folder, text)  # another process may have made it meanwhile
        if found is not None:
            return found
        if locked:
            disk.sweep(folder.parent)
            _clear(folder.parent, facts)
        try:
            _make(folder, text, facts, encode.stream(dataset.stream(split), tokenizer, rules))
        except OSError:
            if locked or not folder.is_dir():  # without a lock another process may have been faster
                raise
        found, problem = _looked(folder, text)
    if found is None:
        raise DataError(f"what was just written cannot be read: {problem}", str(folder), "run the command again")
    return dataclasses.replace(found, remade=reason)


def _looked(folder: Path, text: Path) -> tuple[StoredSplit | None, str]:
    """What is stored, if it may be used; if not, what a person should hear of that."""
    try:
        return _opened(folder, text), ""
    except _Unusable as problem:
        return None, str(problem) if problem.told else ""


def _clear(home: Path, facts: dict[str, Any]) -> None:
    """Remove what no run of this installation will use again: what other code, other packages or another day made."""
    today = str(datetime.date.today())
    for folder in home.iterdir():
        try:
            key = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["key"]
            if all(key[name] == facts[name] for name in ("code", "versions")) and key["day"] in ("", today):
                continue
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it could not be opened either
        shutil.rmtree(folder, ignore_errors=True)


# -- the key -----------------------------------------------------------------------------------------------------------


def _facts(dataset: Dataset, split: str, tokenizer: Any, rules: Rules) -> dict[str, Any]:
    """All that decides a split's tokens, JSON-like."""
    return {
        "data": dataset.fingerprint,
        "split": split,
        "tokenizer": tokenizer_digest(tokenizer),
        "rules": dataclasses.asdict(rules),
        "day": str(datetime.date.today()) if "strftime_now" in str(tokenizer.chat_template) else "",
        "code": _code(),
        "versions": {name: metadata.version(name) for name in ("tokenizers", "transformers", "jinja2")},
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """A name for everything in a tokenizer that tokens depend on: its backend, special tokens, chat template, settings.

    Paths are left out: a copy of a tokenizer in another folder is the same.
    """
    if not tokenizer.is_fast:
        return ""  # encoding refuses it
    tokenizer("", add_special_tokens=False)  # takes truncation and padding of earlier calls out of the backend
    settings = {
        name: value
        for name, value in tokenizer.init_kwargs.items()
        if isinstance(value, str | int | float | bool | None) and not name.endswith(("_file", "name_or_path"))
    }
    told = [settings, {name: str(token) for name, token in tokenizer.special_tokens_map.items()}]
    told.append(tokenizer.chat_template)
    return _digest([hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(), *told])


@functools.cache
def _code() -> str:
    """A digest of this package's source."""
    digest = hashlib.sha256()
    for file in sorted(resources.files("luthier.data").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            digest.update(f"\n{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# -- opening -----------------------------------------------------------------------------------------------------------


def _opened(folder: Path, text: Path) -> StoredSplit | None:
    """The folder's rows; None where there is no folder. Raises _Unusable where they cannot be trusted."""
    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["text"] != _stamp(text):
            raise _Unusable("the text was written again", told=False)
        arrays = _verified(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        said = str(problem) if isinstance(problem, ValueError) else f"{type(problem).__name__}: {problem}"
        raise _Unusable(f"the stored tokens in {folder} were damaged and are made anew: {said}") from None
    rows = TokenRows(arrays, range(manifest["rows"]))
    dropped, cut = (Counted(told["count"], tuple(told["shown"])) for told in (manifest["dropped"], manifest["cut"]))
    return StoredSplit(rows, dropped, cut)


def _stamp(text: Path) -> list[int]:
    """Size and time of the text: another text has another stamp."""
    told = text.stat()
    return [told.st_size, told.st_mtime_ns]


def _verified(folder: Path, manifest: dict[str, Any]) -> Arrays:
    """Every array, mapped, after a look at its size, its form and its content. Raises ValueError, OSError, KeyError."""
    rows, tokens = int(manifest["rows"]), int(manifest["tokens"])
    column, mappings = {}, []
    for name, dtype in _COLUMNS.items():
        length = {"ids": tokens, "train": tokens, "offsets": rows + 1}.get(name, rows)
        with (folder / f"{name}.npy").open("rb") as file:
            column[name], mapping = _mapped(file, name, dtype, length, manifest["files"][name])
        mappings.append(mapping)
    offsets = column["offsets"]
    if offsets[0] != 0 or offsets[-1] != tokens or not (offsets[1:] >= offsets[:-1]).all():
        raise ValueError("offsets.npy does not tell the rows of ids.npy")
    return Arrays(column, tuple(mappings), tuple(manifest["places"]))


def _mapped(
    file: BinaryIO, name: str, dtype: np.dtype[Any], length: int, told: dict[str, int]
) -> tuple[np.ndarray, mmap.mmap]:
    np.lib.format.read_magic(file)
    shape, _, kind = np.lib.format.read_array_header_1_0(file)
    begin = file.tell()
    size = file.seek(0, 2)
    if (shape, kind) != ((length,), dtype) or size != told["bytes"] or size - begin != length * dtype.itemsize:
        raise ValueError(f"{name}.npy has {size:,} bytes, {told['bytes']:,} were written")
    file.seek(begin)
    found = 0
    while block := file.read(_BLOCK):
        found = zlib.crc32(block, found)
    if found != told["crc32"]:
        raise ValueError(f"{name}.npy holds other numbers than were written")
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.ndarray((length,), dtype, mapping, begin), mapping


# -- making ------------------------------------------------------------------------------------------------------------


class _Column:
    """An npy file that grows: its header is written again when its length is known (numpy leaves room for that)."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any]) -> None:
        self._file, self._dtype, self._length, self._crc = file, dtype, 0, 0
        self._header()
        self._begin = file.tell()

    def _header(self) -> None:
        form = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, form)

    def add(self, values: np.ndarray | Sequence[Any]) -> None:
        array = np.ascontiguousarray(values, self._dtype)
        block = array.tobytes()
        self._file.write(block)
        self._crc, self._length = zlib.crc32(block, self._crc), self._length + len(array)

    def close(self) -> dict[str, int]:
        """Its size in bytes and the CRC-32 of its numbers."""
        size = self._file.tell()
        self._file.seek(0)
        self._header()
        if self._file.tell() != self._begin:
            raise AssertionError("numpy's header has grown")
        return {"bytes": size, "crc32": self._crc}


def _make(folder: Path, text: Path, facts: dict[str, Any], outcomes: Iterator[Outcome]) -> None:
    """Write the folder, a few thousand rows at a time."""
    stamp = _stamp(text)
    places: dict[str, int] = {}
    did: dict[str, tuple[int, list[str]]] = {"dropped": (0, []), "cut": (0, [])}
    tokens = rows = seen = 0
    with disk.whole_folder(folder) as room:
        with ExitStack() as files:
            columns = {
                name: _Column(files.enter_context((room / f"{name}.npy").open("wb")), dtype)
                for name, dtype in _COLUMNS.items()
            }
            columns["offsets"].add([0])
            while some := list(itertools.islice(outcomes, TOGETHER)):
                seen += len(some)
                _count(did, some)
                kept = [
                    (row, places.setdefault(of.file, len(places)), of.line) for of, row, _ in some if row is not None
                ]
                for name, values in _arrays(kept, tokens).items():
                    columns[name].add(values)
                rows, tokens = rows + len(kept), tokens + sum(len(row.ids_L) for row, _, _ in kept)
            told = {name: column.close() for name, column in columns.items()}
        if seen and not rows:
            raise encode.all_dropped(seen, did["dropped"][1][0])
        manifest = {"key": facts, "rows": rows, "tokens": tokens, "places": list(places), "text": stamp, "files": told}
        manifest |= {name: {"count": count, "shown": shown} for name, (count, shown) in did.items()}
        disk.write_json(room / MANIFEST, manifest)


def _count(did: dict[str, tuple[int, list[str]]], some: Iterable[Outcome]) -> None:
    """Add up what the length policy did, and keep the first of its sentences."""
    for _, row, said in some:
        if said:
            name = "dropped" if row is None else "cut"
            count, shown = did[name]
            did[name] = (count + 1, [*shown, said] if len(shown) < SHOWN else shown)


def _arrays(kept: Sequence[tuple[Encoded, int, int]], before: int) -> dict[str, Any]:
    """The columns of some rows (with file and line), behind `before` tokens."""
    if not kept:
        return {}
    encoded = [row for row, _, _ in kept]
    sizes = np.array([len(row.ids_L) for row in encoded])
    ends = np.cumsum(sizes)
    starts, train = ends - sizes, np.concatenate([row.train_L for row in encoded])
    counted = np.concatenate([[0], np.cumsum(train)])
    flags = np.append(np.flatnonzero(train), len(train))
    firsts = np.minimum(flags[np.searchsorted(flags, starts)], ends) - starts
    return {
        "ids": np.concatenate([row.ids_L for row in encoded]),
        "train": train,
        "offsets": before + ends,
        "prompt": firsts,
        "trained": counted[ends] - counted[starts],
        **{name: [getattr(row, name) for row in encoded] for name in FACTS},
        "example": [_name(row) for row in encoded],
        "file": [file for _, file, _ in kept],
        "line": [line for _, _, line in kept],
    }


def _name(row: Encoded) -> bytes:
    name = row.example_id.encode("ascii")
    if len(name) > _COLUMNS["example"].itemsize:
        raise ValueError(f"`{row.example_id}` is no example's id")
    return name
