"""YAML text ↔ plain values, with the line of every key and the reasons for refusing.

Lives here: the strict reader (YAML 1.2; no duplicate keys, aliases or tags), `--set` overrides, the writer.
Does not live here: which parameters exist (`parameters.py`) and how a wrong one is explained (`wording.py`).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from luthier.errors import NotFound, SpecError

KeyPath = tuple[str, ...]

MAX_BYTES = 1 << 20  # an experiment file is a page; a megabyte of it is an accident or an attack (SECURITY: YAML bombs)
MAX_DEPTH = 64
INIT = "`luthier init MODEL DATA` writes an experiment file"

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,300}")
_OTHER_BASE = re.compile(r"0o[0-7]{1,99}|0x[0-9a-fA-F]{1,99}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PLAIN = re.compile(r"[^\W\d][\w./+-]*( [\w./+-]+)*|/[\w./+-]+")
_UNSAFE = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Written:
    """What a person wrote: plain `values`, and for each key path its place (`file:line` or `--set path`)."""

    values: dict[str, Any]
    places: dict[KeyPath, str]

    def place(self, path: KeyPath) -> str | None:
        """The place of `path`, or of the nearest key above it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return None


def read_text(path: Path) -> str:
    """The text of an experiment file. Raises NotFound, naming what is near; SpecError: a folder, too big, not UTF-8."""
    if path.is_dir():
        raise SpecError(f"{path} is a folder, not an experiment file")
    if not path.is_file():
        names = [entry.name for entry in path.parent.iterdir() if entry.is_file()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
        others = near or sorted(name for name in names if name.endswith((".yaml", ".yml")))[:3]
        listed = ", ".join(str(path.parent / name) for name in others)
        hint = f"did you mean {listed}?" if near else f"there is {listed}" if others else INIT
        raise NotFound(f"{path} does not exist", hint=hint)
    if path.stat().st_size > MAX_BYTES:
        raise SpecError(f"{path} is larger than {MAX_BYTES:,} bytes", hint="an experiment file names its data by path")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise SpecError("the file is not UTF-8", where=f"{path}:{line}", hint="save it as UTF-8") from None


def read(text: str, label: str) -> Written:
    """The mapping in `text` with `label:line` for each key. Raises SpecError for everything that is not plain YAML."""
    places: dict[KeyPath, str] = {(): label}
    values = _parse(text, label, places)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SpecError("an experiment is a mapping (`model: …`, `data: …`)", f"{label}:1", INIT)
    return Written(values, places)


def override(
    written: Written,
    settings: Sequence[str],
    shorthands: Mapping[KeyPath, str],
    tables: Iterable[KeyPath],
    is_text: Callable[[KeyPath], bool] = lambda path: False,
) -> Written:
    """`written` with each `path=value` of `settings` laid over it; the value is YAML.

    `shorthands` say which key a plain text stands for (`model: X` is `model.name`), so that `model.revision=…` can be
    added beside it. Below a path in `tables` the rest of the path is one key (`search.space.method.rank`). Where
    `is_text` says that a path can only hold text, what YAML would not read as one is that text as it stands: the
    shell has taken the quotes of `data.template="Input: {input}"`.
    """
    values, places = _copy(written.values), dict(written.places)
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        dotted, label = dotted.strip(), f"--set {dotted.strip()}"
        keys = tuple(dotted.split("."))
        if not equals or not all(keys):
            raise SpecError(f"--set needs path=value, not {setting!r}", hint="for example --set training.num_epochs=3")
        for table in tables:
            if keys[: len(table)] == table and len(keys) > len(table):
                keys = (*table, ".".join(keys[len(table) :]))
        inner: dict[KeyPath, str] = {}
        value = _text_or_parsed(text, label, inner) if is_text(keys) else _parse(text, label, inner)
        _put(values, keys, value, shorthands, label)
        places = {path: place for path, place in places.items() if path[: len(keys)] != keys} | {keys: label}
    return Written(values, places)


def _text_or_parsed(text: str, label: str, places: dict[KeyPath, str]) -> Any:
    """The YAML value if it is a quoted text, a number or null; anything else is the text, `: ` and ` #` and all."""
    as_it_stands = text.strip()
    try:
        value = _parse(text, label, places)
    except SpecError:
        return as_it_stands
    if value is None:
        return None if as_it_stands in _NULL else as_it_stands
    if isinstance(value, str):
        return value if as_it_stands[0] in "'\"|>" else as_it_stands
    return as_it_stands if isinstance(value, dict | list) else value


def _put(values: dict[str, Any], keys: KeyPath, value: Any, shorthands: Mapping[KeyPath, str], label: str) -> None:
    """Set `value` at `keys`, opening the mappings on the way."""
    for depth, key in enumerate(keys[:-1], 1):
        inner = values.get(key)
        if isinstance(inner, str) and keys[:depth] in shorthands:
            inner = {shorthands[keys[:depth]]: inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise SpecError(f"`{'.'.join(keys[:depth])}` has no parts", where=label)
        values[key] = inner
        values = inner
    values[keys[-1]] = value


def _copy(values: Any) -> Any:
    return {key: _copy(value) for key, value in values.items()} if isinstance(values, dict) else values


def _parse(text: str, label: str, places: dict[KeyPath, str]) -> Any:
    """The one value in `text`; fills `places`. Made from parser events: nothing is resolved behind our back."""
    # A new parser for each text: a ruamel parser that has met an error keeps pieces of it.
    events = iter(YAML(typ="safe", pure=True).parse(text))
    documents, value = 0, None
    try:
        for event in events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise SpecError("one experiment a file: a second `---` document begins", where=_at(label, event))
                value = _value(next(events), events, (), label, places)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{label}:{mark.line + 1}" if mark is not None and not label.startswith("--set") else label
        raise SpecError(f"not valid YAML: {error.problem or error.context}", where=where) from None
    except YAMLError as error:
        raise SpecError(f"not valid YAML: {str(error).splitlines()[0]}", where=label) from None
    return value


def _value(event: Any, events: Iterator[Any], path: KeyPath, label: str, places: dict[KeyPath, str]) -> Any:
    where = _at(label, event)
    if len(path) > MAX_DEPTH:
        raise SpecError(f"nested deeper than {MAX_DEPTH} levels", where=where)
    if isinstance(event, AliasEvent) or event.anchor is not None:
        raise SpecError("aliases and anchors (`*name`, `&name`) are not allowed", where, hint="write the value out")
    if event.tag is not None:
        raise SpecError(f"tags are not allowed (`{event.tag}`)", where=where, hint="write the plain value")
    if isinstance(event, ScalarEvent):
        return plain(event.value) if event.style is None else event.value
    if isinstance(event, SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(item := next(events), SequenceEndEvent):
            places[(*path, str(len(items)))] = _at(label, item)
            items.append(_value(item, events, (*path, str(len(items))), label, places))
        return items
    assert isinstance(event, MappingStartEvent)
    mapping: dict[str, Any] = {}
    while not isinstance(key := next(events), MappingEndEvent):
        if not isinstance(key, ScalarEvent):
            raise SpecError("a key must be a plain name", where=_at(label, key))
        here = (*path, key.value)
        if key.value in mapping:
            raise SpecError(f"`{'.'.join(here)}` is given twice", _at(label, key), f"first at {places[here]}")
        places[here] = _at(label, key)
        mapping[key.value] = _value(next(events), events, here, label, places)
    return mapping


def _at(label: str, event: Any) -> str:
    return label if label.startswith("--set") else f"{label}:{event.start_mark.line + 1}"


def plain(text: str) -> Any:
    """An unquoted scalar by YAML 1.2's core schema: `1e-4` is a number, `no` is text.

    >>> plain("1e-4"), plain("no"), plain("12"), plain("~"), plain("true"), plain("1_000")
    (0.0001, 'no', 12, None, True, '1_000')
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    if _OTHER_BASE.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text


def write(leaves: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """Leaves (dotted path → value, neighbours together) as YAML for `read`, each with its comment behind it."""
    lines: list[str] = []
    above: list[str] = []
    for path, value in leaves.items():
        *parents, key = path.split(".")
        for depth, parent in enumerate(parents):
            if above[: depth + 1] != parents[: depth + 1]:
                lines.append(f"{'  ' * depth}{parent}:")
        above = parents
        comment = f"  # {comments[path]}" if path in comments else ""
        lines.append(f"{'  ' * len(parents)}{key}: {_flow(value)}{comment}")
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(str(key))}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and isinstance(plain(value), str) else _quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _quoted(text: str) -> str:
    """A JSON string is a YAML double-quoted scalar, once what YAML may not hold raw is escaped."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))
