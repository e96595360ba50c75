"""LLaMA-Factory's `dataset_info.json`: a data set by its name → the rows' file, and what its columns and tags mean.

Lives here: finding and checking an entry, and turning its rows into alpaca, sharegpt or text rows. Does not live here:
reading the rows (`sources.py`). The format is documented in LLaMA-Factory's data/README.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.data.strict_json import decode
from luthier.data.textfiles import text_pieces
from luthier.errors import DataError, NotFound, did_you_mean, here

FILE = "dataset_info.json"
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_BESIDE = ("history", "system", "tools")
_COLUMNS = {*_ALPACA, "messages", *_BESIDE}
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_SAVED = {"citation", "features"}  # a folder of the library `datasets` holds a file of the same name
_KNOWN = {"file_name", "hf_hub_url", "formatting", "columns", "tags", "ranking", "subset", "split"}
_REFUSED = {
    "ms_hub_url": "it lies on ModelScope, which luthier does not read",
    "om_hub_url": "it lies on OpenMind, which luthier does not read",
    "script_url": "it is made by a script, and luthier runs no code of a data set",
    "cloud_file_name": "it lies in a cloud store, which luthier does not read",
    "folder": "it takes a folder of a Hub repository, which luthier does not pick",
    "num_samples": "it takes a number of rows: write data.limit instead",
    "images": "it has images; luthier trains on text",
    "videos": "it has videos; luthier trains on text",
    "audios": "it has audio; luthier trains on text",
    "chosen": "it holds preference pairs (chosen, rejected), which luthier does not train on",
    "rejected": "it holds preference pairs (chosen, rejected), which luthier does not train on",
    "kto_tag": "it holds judged answers (kto_tag), which luthier does not train on",
}


@dataclass(frozen=True, slots=True)
class Described:
    """An entry: where its rows are (`source`, as `sources.rows` reads it), and how to read a row of it.

    `columns`: ours (instruction, input, output, conversations, history, system, tools, text) → theirs. `tags`: the
    words of a turn, ours → theirs.
    """

    source: str
    columns: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row under our names. What is neither described nor the name of another format's column stays beside."""
        named = {ours: row.get(theirs) for ours, theirs in self.columns.items()}
        if "conversations" in named:
            named["conversations"] = _turns(named["conversations"], self.tags)
        elif "instruction" in named and named["instruction"] in (None, ""):  # the query alone asks
            named |= {"instruction": named.get("input"), "input": None}
        taken = {*self.columns.values(), *_FORMAT_COLUMNS}
        return {name: value for name, value in row.items() if name not in taken} | named


_FORMAT_COLUMNS = {
    *("instruction", "input", "output", "history", "system", "tools", "text", "label", "messages", "conversations"),
    *("prompt", "completion", "query", "response", "segments", "functions"),
}


def described(source: str) -> Described | None:
    """The entry that `source` names: `FOLDER/dataset_info.json:NAME` or `FOLDER:NAME`, where the folder holds such a
    file; `:NAME` may be left out where there is one entry. None where `source` means something else.

    Raises NotFound for a name that is not in the file, DataError for an entry that luthier cannot train on.
    """
    place, _, name = source.rpartition(":") if ":" in source else (source, "", "")
    for text, wanted in ((source, ""), (place, name)):
        path = here(text)
        index = path if path.name == FILE else path / FILE
        if not (text and index.is_file() and (wanted or path.name == FILE)):
            continue
        entries = _entries(index)
        if path.name == FILE or not entries.keys() >= _SAVED:
            return _entry(index, entries, wanted)
    return None


def _entry(index: Path, entries: Mapping[str, Any], wanted: str) -> Described:
    if not wanted and len(entries) > 1:
        raise NotFound(f"which data set of {index}?", hint=f"write {index}:NAME; it has {', '.join(list(entries)[:8])}")
    name = wanted or next(iter(entries), "")
    if name not in entries:
        hint = did_you_mean(name, entries) or f"it has {', '.join(list(entries)[:8]) or 'none'}"
        raise NotFound(f"{index} describes no data set `{name}`", hint=hint)
    where, entry = f"{index}, `{name}`", entries[name]
    if not isinstance(entry, Mapping):
        raise DataError("a data set is described by an object", where)
    columns = _texts(entry.get("columns"), "columns", {*_COLUMNS, *_REFUSED}, where)
    tags = _texts(entry.get("tags"), "tags", _TAGS, where)
    if entry.get("ranking"):
        raise DataError("it ranks answers (ranking: true): preference pairs, which luthier does not train on", where)
    for key in (*entry, *columns):
        if key in _REFUSED and (entry.get(key) or columns.get(key)):
            raise DataError(_REFUSED[key], f"{where}, `{key}`")
    _require_known(entry, {*_KNOWN, *_REFUSED}, where)
    return Described(_source(entry, index, where), _columns(entry, columns, where), dict(_TAGS) | tags)


def _entries(index: Path) -> Mapping[str, Any]:
    text = "".join(text_pieces(index, str(index)))
    value, end = decode(text.strip(), 0, str(index))
    if not isinstance(value, dict) or text.strip()[end:]:
        raise DataError("must be one object: the name of each data set → its description", str(index))
    return value


def _source(entry: Mapping[str, Any], index: Path, where: str) -> str:
    """Where the rows lie. A file must stand below the description's folder, so that a description that came with data
    names nothing else of this machine."""
    split = entry.get("split", "train")
    if url := entry.get("hf_hub_url"):
        subset = f"/{entry['subset']}" if entry.get("subset") else ""
        return f"hf://{url}{subset}:{split}"
    file = entry.get("file_name")
    if not (isinstance(file, str) and file):
        raise DataError("it names no rows (file_name, hf_hub_url)", where)
    path = index.parent / file
    try:
        below, there = path.resolve().is_relative_to(index.parent.resolve()), path.exists()
    except (OSError, ValueError):  # too long, a null byte
        raise DataError("`file_name` is no path", where) from None
    if not below:
        hint = f"move it beside {FILE}, or name it directly: data.train: {file}"
        raise DataError(f"`{file}` lies outside the folder of {FILE}", where, hint)
    if not there:
        near = did_you_mean(path.name, [each.name for each in path.parent.glob("*")]) if path.parent.is_dir() else None
        raise NotFound(f"no such data file: {path}", where, near)
    return f"{path}:{split}" if path.is_dir() else str(path)


def _columns(entry: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, str]:
    """Ours → theirs. As in LLaMA-Factory, `columns` that are given are all that count; else the usual ones."""
    kind = entry.get("formatting", "alpaca")
    if kind not in ("alpaca", "sharegpt", "openai"):
        raise DataError(f"`{kind}` is no formatting", f"{where}, `formatting`", "alpaca, sharegpt or openai")
    given = columns or (dict(_ALPACA) if kind == "alpaca" else {"messages": "conversations"})
    beside = {ours: given[ours] for ours in _BESIDE if ours in given}
    if kind != "alpaca":
        if "messages" not in given:
            raise DataError("`columns` names no `messages`", where)
        return {"conversations": given["messages"]} | beside
    if "prompt" not in given:
        raise DataError("`columns` names no `prompt`", where)
    if "response" not in given:  # rows of plain text, for pre-training
        return {"text": given["prompt"]}
    if "tools" in beside:
        raise DataError("alpaca rows with tools are not read", f"{where}, `tools`", "write them as sharegpt")
    return {ours: given[theirs] for theirs, ours in _ALPACA.items() if theirs in given} | beside


def _turns(value: Any, tags: Mapping[str, str]) -> Any:
    """Turns with their keys and speakers under our names; what is no list of objects is for `turns.py` to refuse."""
    if not isinstance(value, list):
        return value
    said_by, content = tags["role_tag"], tags["content_tag"]
    speakers = {theirs: _TAGS[tag] for tag, theirs in tags.items() if tag not in ("role_tag", "content_tag")}
    ours = ("role", "content") if said_by == "role" else ("from", "value")
    found = []
    for turn in value:
        speaker = turn.get(said_by) if isinstance(turn, Mapping) else None
        if isinstance(speaker, str):
            rest = {key: told for key, told in turn.items() if key not in (said_by, content)}
            turn = rest | {ours[0]: speakers.get(speaker, speaker), ours[1]: turn.get(content)}
        found.append(turn)
    return found


def _texts(value: Any, what: str, known: Iterable[str], where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value.values())):
        raise DataError(f"`{what}` must be an object of names", where)
    _require_known(value, known, f"{where}, `{what}`")
    return dict(value)


def _require_known(given: Iterable[str], known: Iterable[str], where: str) -> None:
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known) or f"luthier reads {', '.join(sorted(known))}"
            raise DataError(f"`{key}` is not known", where, hint)
