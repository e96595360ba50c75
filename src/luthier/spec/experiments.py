"""An experiment in and out: from a file, a mapping, overrides; to YAML, JSON Schema, leaves, a fingerprint.

Lives here: what is done with a whole experiment. Does not live here: its parameters (`parameters.py`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from luthier.spec import text, wording
from luthier.spec.parameters import Experiment
from luthier.spec.values import ROWS, Advice, Part, known_paths, sections

_SPLITS = ("data.train", "data.validation", "data.test")
_TABLES = [("data", "columns"), ("data", "labels"), ("evaluation", "slices"), ("search", "space")]
_PLACES = {"name", "data.encoding", "evaluation.regression", "evaluation.judge.labelled", *_SPLITS}
"""Where things lie and how they are written there, not what is learned."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in a YAML file, `overrides` ("training.learning_rate=1e-4", the value YAML) laid over it.

    Data and model paths that exist beside the file are made absolute, a chat template's file is read, a missing `name`
    is the file's (and does not count as chosen). Raises NotFound, and SpecError that names file:line or `--set path`.
    """
    path = Path(path)
    written = _overridden(text.read(text.read_text(path), str(path)), overrides)
    experiment = _validated(_beside(written.values, path.parent), written.place)
    if experiment.name is None:
        name = re.sub(r"[^\w.-]+", "-", path.stem).lstrip(".-")[:64] or "experiment"
        fields = dict(experiment) | {"name": name}
        experiment = Experiment.model_construct(experiment.model_fields_set - {"name"}, **fields)
    return experiment


def loads(written: str, named: bool = True) -> Experiment:
    """The experiment that `dump` wrote; its name counts as chosen only where somebody `named` it."""
    experiment = _validated(text.read(written, "").values, lambda _: None)
    chosen = experiment.model_fields_set if named else experiment.model_fields_set - {"name"}
    return Experiment.model_construct(chosen, **dict(experiment))


def can_be_written(experiment: Experiment) -> bool:
    """Whether `dump` says all of it: rows given in Python stay where they are."""
    values = leaves(experiment)
    return not any(_writable(path, values.get(path)) == ROWS for path in _SPLITS)


def changed(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """The experiment with `overrides` ("evaluation.limit=100", the value YAML) laid over it. Raises SpecError."""
    if not overrides:
        return experiment
    written = _overridden(text.read(dump(experiment), ""), overrides)
    return _validated(written.values, written.place)


def _holds_text(path: tuple[str, ...]) -> bool:
    """Whether a parameter takes text and neither a list nor a mapping, by its schema; so does every slice."""
    if path[:-1] == ("evaluation", "slices"):
        return True
    for kind in sections():
        if path[:-1] == kind.root and path[-1] in kind.model_fields:
            field = kind.model_json_schema()["properties"].get(path[-1], {})
            kinds = {option.get("type") for option in field.get("anyOf", [field])}
            if "string" in kinds and not kinds & {"array", "object", None}:
                return True
    return False


def from_mapping(mapping: Mapping[str, Any], where: str = "", overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in plain values (a REST body, a form), `overrides` laid over it as in `load`.

    Raises SpecError; `where` names the values' origin in it.
    """
    written = _overridden(text.Written(dict(mapping), {}), overrides)
    return _validated(written.values, lambda path: written.place(path) or where or None)


def _overridden(written: text.Written, overrides: Sequence[str]) -> text.Written:
    return text.override(written, overrides, _shorthands(), _TABLES, _holds_text)


def _shorthands() -> dict[tuple[str, ...], str]:
    """Section → the key that a plain text in its place stands for."""
    return {kind.root: kind.shorthand for kind in sections() if kind.shorthand}


def _validated(values: Mapping[str, Any], place: Callable[[tuple[str, ...]], str | None]) -> Experiment:
    try:
        return Experiment.model_validate(dict(values), context={"written": True})
    except ValidationError as error:
        raise wording.explain(error, known_paths(), place) from None


def _beside(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`values` with what exists in `folder` named by its whole path, and a chat template read."""
    values, shorthands = dict(values), _shorthands()
    for section in ("model", "data", "evaluation"):
        part = values.get(section)
        part = {shorthands[section,]: part} if isinstance(part, str) and (section,) in shorthands else part
        if not isinstance(part, dict):
            continue
        values[section] = part = dict(part)
        for key in ("name", "train", "validation", "test", "chat_template", "regression"):
            if isinstance(part.get(key), str) and part[key]:
                part[key] = _found(part[key], key == "chat_template", folder)
    evaluation = values.get("evaluation")
    if isinstance(evaluation, dict):
        values["evaluation"] = evaluation = dict(evaluation)
        if "metrics" in evaluation:
            evaluation["metrics"] = _schemas_found(evaluation["metrics"], folder)
        judge = evaluation.get("judge")
        if isinstance(judge, dict) and isinstance(judge.get("labelled"), str):
            labelled = _found(judge["labelled"], False, folder) if judge["labelled"] else ""
            evaluation["judge"] = judge | {"labelled": labelled}
    return values


def _schemas_found(metrics: Any, folder: Path) -> Any:
    """`metrics` as written, a schema's file by its whole path."""
    if isinstance(metrics, (list, tuple)):
        return [_schemas_found(name, folder) for name in metrics]
    first, colon, file = metrics.partition(":") if isinstance(metrics, str) else ("", "", "")
    return f"{first}:{_found(file, False, folder)}" if colon and first == "json_schema" else metrics


def _found(value: str, is_template: bool, folder: Path) -> str:
    """`value` as a path below `folder`: the text of a template's file, the whole path of anything else that exists."""
    if is_template and "{" in value:
        return value
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # too long, a null byte, the home of nobody: no path
        path = folder / Path(value).expanduser()
        if is_template and path.is_file():
            return text.read_text(path)
        if not is_template and path.exists():
            return str(path.resolve())
        place, colon, name = value.rpartition(":")  # a split of a folder, a data set of a dataset_info.json
        if colon and not is_template and "/" not in name and (beside := folder / Path(place).expanduser()).exists():
            return f"{beside.resolve()}:{name}"
    return value


def leaves(experiment: Experiment) -> dict[str, Any]:
    """Every parameter's dotted path → its value, in the documentation's order; a section that is None is a leaf."""
    return dict(_leaves(experiment, ()))


def _leaves(part: Part, path: tuple[str, ...]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in part:
        inner = (*path, name)
        found += _leaves(value, inner) if isinstance(value, Part) else [(".".join(inner), value)]
    return found


def chosen(experiment: Experiment) -> set[str]:
    """Dotted paths of what a person wrote. An empty value (None) where the preset decides chooses nothing."""
    return _chosen(experiment, ())


def _chosen(part: Part, path: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    for name, value in part:
        inner = (*path, name)
        if name in part.model_fields_set and isinstance(value, Part):
            found |= _chosen(value, inner)
        elif name in part.model_fields_set and value is not None:
            found.add(".".join(inner))
    return found | {"method.type"} if path == ("method",) else found


def dump(experiment: Experiment, origins: Mapping[str, str] | None = None) -> str:
    """YAML that `load` reads back: what was chosen (and the name); with `origins`, every leaf and its origin.

    Rows given in Python are not written down: ROWS stands in their place.
    """
    if origins is None:
        wanted = chosen(experiment) | ({"name"} if experiment.name else set())
    else:
        wanted = set(leaves(experiment))
    values = {path: _writable(path, value) for path, value in leaves(experiment).items() if path in wanted}
    if origins is None:
        for kind in sections():  # a section of which only the shorthand was chosen is written as that text
            alone, section = ".".join((*kind.root, kind.shorthand or "")), ".".join(kind.root)
            if [path for path in values if path.startswith(section + ".")] == [alone]:
                values = {section if path == alone else path: value for path, value in values.items()}
    return text.write(values, origins or {})


def _writable(path: str, value: Any) -> Any:
    return ROWS if path in _SPLITS and not isinstance(value, str | float | None) else value


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of an experiment file, with advice ranges and their sources."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Experiment.model_json_schema()}


@functools.cache
def _advised() -> dict[str, Advice]:
    return {
        ".".join((*kind.root, name)): note
        for kind in sections()
        for name, field in kind.model_fields.items()
        for note in field.metadata
        if isinstance(note, Advice)
    }


def advice(experiment: Experiment) -> list[str]:
    """One sentence for each value outside the range its document advises, with range and source."""
    warnings = []
    values = leaves(experiment)
    for path, note in _advised().items():
        value = values.get(path)
        if value is not None and not note.low <= value <= note.high:
            warnings.append(f"`{path}` is {value:g}; advised are {note.low:g} to {note.high:g} ({note.source})")
    if "\\n" in (experiment.data.template or ""):
        said = "`data.template` holds a backslash and an n, which is no line break"
        warnings.append(f'{said}; in double quotes it is one: "Input: {{input}}\\nOutput:"')
    if experiment.search and {"method.alpha", "training.learning_rate"} <= set(experiment.search.space):
        both = "`search.space` varies alpha and learning rate, which work much alike: one of them is enough"
        warnings.append(f"{both} (PARAMETERS §3)")
    unlike = {"model.name", "data.train_on"} & set(experiment.search.space if experiment.search else ())
    if experiment.search and unlike and experiment.search.objective.startswith("loss"):
        varied = " and ".join(f"`{path}`" for path in sorted(unlike))
        said = f"`search.space` varies {varied}: a loss of other tokens is another loss"
        warnings.append(f"{said}; take a metric as `search.objective`")
    return warnings


def fingerprint(experiment: Experiment, data_fingerprint: str, revision: str | None) -> str:
    """16 hex digits that name what is learned: a resolved experiment, the data and the base, wherever they lie.

    The name and all paths stay out: the data are named by their fingerprint, a base in a folder by the folder's name.
    """
    what = {"experiment": _substance(experiment), "data": data_fingerprint, "revision": revision}
    canonical = json.dumps(what, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differences(a: Experiment, b: Experiment) -> list[str]:
    """Dotted paths on which two experiments disagree, as the fingerprint sees them, in the documentation's order."""
    left, right = _substance(a), _substance(b)
    paths = [*left, *(path for path in right if path not in left)]
    return [path for path in paths if path not in left or path not in right or left[path] != right[path]]


def _substance(experiment: Experiment) -> dict[str, Any]:
    values = {path: value for path, value in leaves(experiment).items() if path not in _PLACES}
    base = PurePath(experiment.model.name)
    values["model.name"] = base.name if base.is_absolute() else experiment.model.name
    return json.loads(json.dumps(values))  # tuples and lists are the same, as in a file
