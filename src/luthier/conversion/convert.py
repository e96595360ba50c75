"""A foreign configuration → the text of an experiment file, and the list of what became of each key.

Lives here: which tool wrote a file, the way through its tables, and the experiment that results. Does not live here:
what a key means (`axolotl.py`, `llama_factory.py`, `trl.py`, `watsonx.py`).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import spec
from luthier.conversion import axolotl, llama_factory, trl, watsonx
from luthier.conversion.lines import Foreign, Line, Tool, carried, default, is_off, lost
from luthier.errors import NotFound, SpecError, near_path
from luthier.spec import text

TOOLS = (axolotl.TOOL, llama_factory.TOOL, trl.TOOL, watsonx.TOOL)
_IDLE = "it says nothing more beside the other keys"
_PLACES = ("model.name", "data.train", "data.validation", "data.test", "model.chat_template")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was made of a file of `tool`: the experiment as YAML `text`, and every key's fate with its place."""

    tool: str
    text: str
    lines: tuple[Line, ...]

    def of(self, kind: str) -> list[Line]:
        """The lines of one kind, in the file's order."""
        return [line for line in self.lines if line.kind == kind]


def convert(path: str | Path, out: str | Path = "experiment.yaml") -> Conversion:
    """The experiment that the configuration at `path` describes; paths in it are meant from here, and are written so
    that they are found from `out`. Nothing is written and nothing of the file is run.

    Raises NotFound; SpecError with file:line for what is no plain YAML or JSON, fits no tool or two, trains in a way
    that luthier does not, or holds a value of the wrong kind.
    """
    path = Path(path)
    written = text.read(text.read_text(path), str(path))
    values = {key: _whole(value, str(path)) for key, value in written.values.items() if value is not None}
    places = {".".join(keys): place for keys, place in written.places.items() if keys}
    tool = _tool(values, places, str(path))
    nulls = frozenset(written.values.keys() - values.keys())
    foreign = _opened(tool, Foreign(values, places, nulls))
    if refused := tool.refuse(foreign):
        key, words = refused
        where = foreign.places.get(key, str(path))
        raise SpecError(f"`{key}` of {tool.name}: {words}" if key else f"{tool.name}: {words}", where)
    found = [_found(line, Path(out).parent) for line in _lines(tool, foreign)]
    found = [dataclasses.replace(line, where=_place(line.key, foreign.places)) for line in found]
    for part, what in (("model.name", "base"), ("data.train", "rows")):
        if not any(line.path == part for line in found):
            raise SpecError(f"this configuration of {tool.name} names no {what} (`{part}`)", str(path))
    return Conversion(tool.name, _text(tool, found, str(path)), tuple(found))


def write(made: Conversion, out: str | Path) -> None:
    """The experiment file. Raises SpecError where there is a file already, NotFound where there is no such folder."""
    out = Path(out)
    if out.exists():
        raise SpecError(f"{out} exists", hint="give another name: `--out FILE`")
    if not out.parent.is_dir():
        raise NotFound(f"the folder {out.parent} does not exist", hint=near_path(out.parent))
    out.write_text(made.text, encoding="utf-8")


def _whole(value: Any, name: str) -> Any:
    """`value` with the halves joined that JSON writes of a character beyond 16 bits, and YAML leaves apart."""
    if isinstance(value, Mapping):
        return {key: _whole(inner, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner, name) for inner in value]
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise SpecError("half of a surrogate pair (\\ud800–\\udfff) is not a character", name) from None


def _tool(values: Mapping[str, Any], places: Mapping[str, str], name: str) -> Tool:
    """The one tool whose keys these are."""
    keys = {*values, *(key for inner in _inner(values) for key in inner)}
    fits = [(tool, sorted(tool.signs & keys)) for tool in TOOLS if tool.signs & keys]
    if len(fits) == 1:
        return fits[0][0]
    if fits:
        told = "; ".join(f"{', '.join(f'`{key}`' for key in signs[:3])} of {tool.name}" for tool, signs in fits)
        hint = "take out what belongs to the other: a key that none of them reads is told, not lost in silence"
        raise SpecError(f"this file has keys of two tools: {told}", _place(fits[0][1][0], places) or name, hint)
    if {"model", "data"} <= keys:
        raise SpecError("this is an experiment file of luthier's already", name, f"luthier plan {name}")
    known = "; ".join(f"{tool.name}: {', '.join(sorted(tool.signs)[:3])}, …" for tool in TOOLS)
    raise SpecError("this file has no key that tells whose configuration it is", name, known)


def _inner(values: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    opened = {key for tool in TOOLS for key in tool.opened}
    return [values[key] for key in opened if isinstance(values.get(key), Mapping)]


def _opened(tool: Tool, foreign: Foreign) -> Foreign:
    """The mappings at `tool.opened` read as if their keys stood at the top."""
    values, places = dict(foreign.values), dict(foreign.places)
    for key in tool.opened:
        if isinstance(values.get(key), Mapping):
            values |= {name: value for name, value in values[key].items() if value is not None}
            below = {name: place for name, place in foreign.places.items() if name.startswith(f"{key}.")}
            places |= {name.removeprefix(f"{key}."): place for name, place in below.items()}
    return Foreign(values, places, foreign.nulls)


def _lines(tool: Tool, f: Foreign) -> list[Line]:
    """Every key's fate: first what is carried alone, then what only means something together, then what is left."""
    found = [carried(key, path, read(f, key)) for key, (path, read) in tool.same.items() if f.has(key)]
    for function in tool.together.values():
        found += function(f)
    method = next((line.value for line in found if line.path == "method.type"), None)
    known = spec.known_paths()
    foreign_to_method = [line for line in found if known.get(line.path) and method not in known[line.path]]
    found = [
        lost(line.key, f"it has no meaning for the method {method}") if line in foreign_to_method else line
        for line in found
        if line.key or line not in foreign_to_method
    ]
    taken = {line.path for line in found}
    found += [default(path, value) for path, value in tool.defaults.items() if path not in taken]
    read = {*tool.same, *tool.opened, *(key for keys in tool.together for key in keys)}
    told = {_top(part) for line in found for part in line.key.split(" × ")}
    silent = [
        key for key, value in f.values.items() if key not in told and key not in tool.opened and not is_off(value)
    ]
    found += [lost(key, _IDLE if key in read else _why(tool, key, read)) for key in silent]
    order = {key: i for i, key in enumerate(f.values)}
    return sorted(found, key=lambda line: order.get(_top(line.key), len(order)))


def _why(tool: Tool, key: str, read: Iterable[str]) -> str:
    """What is known of a key that stays behind."""
    if key in tool.left:
        return tool.left[key]
    for pattern, words in tool.left.items():
        head, star, tail = pattern.partition("*")
        if star and key.startswith(head) and key.endswith(tail):
            return words
    close = difflib.get_close_matches(key, [*read, *tool.left], n=1, cutoff=0.8)
    near = f"; did you mean `{close[0]}`?" if close else ""
    return f"not a key of {tool.name} that luthier knows{near}"


def _top(key: str) -> str:
    """The key at the top of the file that a line's first key belongs to."""
    return key.split(" × ")[0].partition(".")[0]  # of `datasets.0.path` it is `datasets`


def _place(key: str, places: Mapping[str, str]) -> str:
    """Where a line's first key stands, or the nearest key above it."""
    name = key.split(" × ")[0]
    while name and name not in places:
        name = name.rpartition(".")[0]
    return places.get(name, "")


def _found(line: Line, folder: Path) -> Line:
    """A path that exists from here, as it is called from `folder`: the whole path where the short one is not there."""
    if line.path not in _PLACES or not isinstance(line.value, str) or "{" in line.value or "\n" in line.value:
        return line
    base, colon, name = line.value.rpartition(":")
    for place, rest in ((line.value, ""), (base, f":{name}")):
        if place and (not rest or colon) and Path(place).exists() and not (folder / place).exists():
            return dataclasses.replace(line, value=f"{Path(place).resolve()}{rest}")
    return line


def _text(tool: Tool, lines: Iterable[Line], name: str) -> str:
    """The experiment as YAML, each value with the key it comes from. Raises SpecError with that key's place."""
    origin = {line.path: line for line in lines if line.path}
    values: dict[str, Any] = {}
    for path, line in origin.items():
        *parents, last = path.split(".")
        part = values
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = line.value
    try:
        experiment = spec.from_mapping(values)
    except SpecError as error:
        path = next((path for path in origin if f"`{path}`" in error.message), "")
        where = origin[path].where if path else ""
        raise SpecError(error.message, where or name, error.hint) from None
    leaves = {path: value for path, value in spec.leaves(experiment).items() if path in origin}
    comments = {path: _comment(tool, origin[path]) for path in leaves}
    return f"# converted from {Path(name).name}, a configuration of {tool.name}\n{text.write(leaves, comments)}"


def _comment(tool: Tool, line: Line) -> str:
    """Where a value comes from, in a word or two."""
    if line.key:
        return line.key
    return f"{tool.name}'s default" if line.kind == "default" else "luthier's own"
