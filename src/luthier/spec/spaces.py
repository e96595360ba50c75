"""What `search.space` may hold: every entry checked against the parameter it varies, when the file is read.

Lives here: the reading of a space, with a refusal at the entry's own line. Does not live here: what a search does with
it (`trials/space.py`).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails

from luthier.errors import did_you_mean
from luthier.spec import wording
from luthier.spec.values import known_paths, sections

COUNTED = 1_000  # values of one parameter that are listed
RANGES = ("log", "uniform", "int")
SHOWN = ("data.template", "data.train_on", "data.overlength")
"""What of `data` changes how rows are shown to the base, and not which rows there are."""
_FORMS = "a list of choices, {log|uniform|int: [low, high]} or {choices: […]}"
_SAME_ROWS = "trials are compared on the same rows, asked in the same way"

Where = tuple[str | int, ...]


class _Refused(Exception):
    """One entry cannot be used: where below it, what was given, and why."""

    def __init__(self, message: str, given: Any, *where: str | int) -> None:
        super().__init__(message)
        self.given, self.where = given, where


def search_space(value: Any) -> Any:
    """A space as it is searched: parameter → list of choices, or {log|uniform|int: [low, high], step, when}, or
    {choices, when}, every value in the form that its parameter takes. Raises ValidationError for all that cannot be."""
    if not isinstance(value, Mapping):
        return value
    read: dict[str, Any] = {}
    problems: list[InitErrorDetails] = []
    for path, entry in value.items():
        try:
            if (why := why_not(path)) is not None:
                raise _Refused(why, path)
            read[path] = _entry(path, entry)
        except _Refused as refusal:
            problems.append(_details((path, *refusal.where), refusal))
        except ValidationError as error:
            problems += [_again((path, *found["loc"]), found) for found in error.errors(include_url=False)]
    for path in [path for path in read if isinstance(read[path], dict) and "when" in read[path]]:
        try:
            read[path]["when"] = _conditions(path, read, {name for name in value if name not in read})
        except _Refused as refusal:
            problems.append(_details((path, "when", *refusal.where), refusal))
    if problems:
        raise ValidationError.from_exception_data("space", problems)
    return read


def refuse_strangers(space: Mapping[str, Any], method: str) -> None:
    """Raise ValidationError where the space varies what no method of its trials has."""
    entry = space.get("method.type", (method,))
    types = [*(entry["choices"] if isinstance(entry, dict) else entry)]
    problems = []
    for path in space:
        methods = known_paths()[path]
        if methods and path != "method.type" and not set(methods) & set(types):
            what = "this method is" if len(types) == 1 else "the methods are"
            words = f"belongs to {' and '.join(methods)}; {what} {' and '.join(types)}"
            problems.append(_details(("search", "space", path), _Refused(words, path)))
    if problems:
        raise ValidationError.from_exception_data("space", problems)


def _details(where: Where, refusal: _Refused) -> InitErrorDetails:
    return {"type": "value_error", "loc": where, "input": refusal.given, "ctx": {"error": ValueError(str(refusal))}}


def _again(where: Where, found: Any) -> InitErrorDetails:
    return {"type": found["type"], "loc": where, "input": found["input"], "ctx": found.get("ctx", {})}


def why_not(path: str) -> str | None:
    """Why a parameter cannot differ between trials, in words that continue its name; None where it can."""
    known = [name for name in known_paths() if _varied(name)]
    if path in known:
        return None
    if path in known_paths():
        rows = path.startswith(("data.", "evaluation.")) or path == "task"
        return f"is the same for all trials: {_SAME_ROWS if rows else 'it belongs to the search'}"
    last = str(path).rpartition(".")[2]
    by_key = {name.rpartition(".")[2]: name for name in reversed(known)}
    meant = wording.SAME_THING.get(last) or by_key.get(last)
    near = f"did you mean `{meant}`?" if meant in known else did_you_mean(str(path), known)
    return "is not a parameter of a trial" + (f"; {near}" if near else "")


def _varied(path: str) -> bool:
    return path in SHOWN or not (path in ("name", "task") or path.startswith(("data.", "evaluation.", "search")))


# --- one entry -------------------------------------------------------------------------------------------------------
def _entry(path: str, entry: Any) -> Any:
    if isinstance(entry, list | tuple):
        return _choices(path, entry)
    if not isinstance(entry, Mapping):
        raise _Refused(f"needs {_FORMS}, not {wording.shown(entry)}", entry)
    forms = [key for key in (*RANGES, "choices") if key in entry]
    unknown = [key for key in entry if key not in (*RANGES, "choices", "step", "when")]
    if unknown:
        near = did_you_mean(str(unknown[0]), [*RANGES, "choices", "step", "when"])
        raise _Refused(f"has `{unknown[0]}`; it needs {_FORMS}" + (f"; {near}" if near else ""), unknown[0])
    if len(forms) != 1:
        raise _Refused(f"needs {_FORMS}" + (f", one of them: not {' and '.join(forms)}" if forms else ""), entry)
    form = forms[0]
    if form == "choices":
        if not isinstance(entry["choices"], list | tuple):
            raise _Refused(f"must be a list, not {wording.shown(entry['choices'])}", entry, "choices")
        if "step" in entry:
            raise _Refused("has no meaning beside choices", entry["step"], "step")
        read: dict[str, Any] = {"choices": _choices(path, entry["choices"], "choices")}
    else:
        read = _range(path, form, entry)
    return read | ({"when": entry["when"]} if entry.get("when") else {})


def _choices(path: str, given: Sequence[Any], *where: str) -> list[Any]:
    if not given:
        raise _Refused("has no choice: it needs at least one value", given, *where)
    read: list[Any] = []
    for place, value in enumerate(given):
        read.append(checked(path, value, (*where, place)))
        if key(read[-1]) in [key(other) for other in read[:-1]]:
            raise _Refused(f"has {wording.shown(value)} twice", value, *where)
    return read


def _range(path: str, form: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    if (numbers := number_kind(path)) is None:
        raise _Refused(f"has a range, and `{path}` is no number: it needs a list of choices", entry, form)
    ends = entry[form]
    if not isinstance(ends, list | tuple) or [type(end) in (int, float) for end in ends] != [True, True]:
        raise _Refused("needs two numbers: [low, high]", ends, form)
    low, high = (checked(path, end, (form, place)) for place, end in enumerate(ends))
    if not low < high or (form == "log" and low <= 0):
        raise _Refused("needs the lower number first" + (", above 0" if form == "log" else ""), ends, form)
    if form == "int" and not (float(low).is_integer() and float(high).is_integer()):
        raise _Refused("needs two whole numbers", ends, form)
    whole = numbers == "int" or form == "int"
    if not whole:
        checked(path, low + 0.618 * (high - low), (form,))  # a range may hold what both of its ends do not show
    step = entry.get("step")
    if step is not None:
        least = 1 if form == "log" else 0
        if type(step) not in (int, float) or not math.isfinite(step) or step <= least:
            words = "a factor above 1 (from one value to the next)" if form == "log" else "a number above 0"
            raise _Refused(f"must be {words}, not {wording.shown(step)}", step, "step")
        if whole and form != "log" and type(step) is not int:
            raise _Refused(f"must be a whole number, not {wording.shown(step)}", step, "step")
        if (values := count(low, high, step, form == "log")) < 2:
            raise _Refused(f"leaves the range with its first step: {low:g} to {high:g}", step, "step")
        if values > COUNTED:
            raise _Refused(
                f"makes {values:,} values, more than {COUNTED:,}: leave it out, or take a larger one", step, "step"
            )
    return {form: [low, high]} | ({"step": step} if step is not None else {})


def count(low: float, high: float, step: float, log: bool) -> int:
    """Values from `low` to `high` in steps of `step` (`log`: times `step`).

    >>> count(4, 64, 2, True), count(0, 1, 0.1, False)
    (5, 11)
    """
    steps = math.log(high / low) / math.log(step) if log else (high - low) / step
    return math.floor(steps + 1e-9) + 1


# --- conditions ------------------------------------------------------------------------------------------------------
def _conditions(path: str, read: Mapping[str, Any], refused: set[str]) -> dict[str, list[Any]]:
    """`when` as parameter → the values of it under which this entry is varied."""
    when = read[path]["when"]
    if not isinstance(when, Mapping):
        raise _Refused(f"needs a mapping (parameter: value or [values]), not {wording.shown(when)}", when)
    found = {}
    for other, wanted in when.items():
        if other == path or path in _ancestors(str(other), read):
            raise _Refused("stands under a condition on itself", other, str(other))
        if other in refused:
            continue  # said already
        if other not in read:
            near = did_you_mean(str(other), list(read))
            raise _Refused("is not in the space" + (f"; {near}" if near else ""), other, str(other))
        entry = read[other]
        choices = entry if isinstance(entry, list) else entry.get("choices")
        if choices is None:
            raise _Refused("has a range: a condition needs a list of choices", wanted, str(other))
        found[str(other)] = _among(choices, wanted, str(other))
        having = known_paths()[path]
        if other == "method.type" and having and (without := [name for name in found[other] if name not in having]):
            raise _Refused(f"is {without[0]}, which has none: it belongs to {' and '.join(having)}", wanted, str(other))
    return found


def _among(choices: Sequence[Any], wanted: Any, other: str) -> list[Any]:
    """The choices that a condition names: one, or several in a list (a choice may be a list itself)."""
    known = {key(choice): choice for choice in choices}
    if key(wanted) in known:
        return [known[key(wanted)]]
    several = wanted if isinstance(wanted, list | tuple) and wanted else [wanted]
    for value in several:
        if key(value) not in known:
            raise _Refused(f"is never {wording.shown(value)}: it has {_shortly(choices)}", value, other)
    return [known[key(value)] for value in several]


def _ancestors(path: str, read: Mapping[str, Any]) -> Iterator[str]:
    """Everything that the entry of `path` stands under."""
    seen, open_ = set(), [path]
    while open_:
        place = open_.pop()
        entry = read.get(place)
        above = entry.get("when") if isinstance(entry, dict) else None
        for name in (*(above if isinstance(above, Mapping) else ()), *_implied(place, read)):
            if name not in seen:
                seen.add(name)
                open_.append(name)
                yield name


def _implied(path: str, read: Mapping[str, Any]) -> tuple[str, ...]:
    """What a method's own parameter stands under without saying so: the method, where it varies."""
    own = path != "method.type" and "method.type" in read and bool(known_paths().get(path))
    return ("method.type",) if own else ()


def _shortly(choices: Sequence[Any]) -> str:
    return ", ".join(str(choice) for choice in choices[:8]) + (", …" if len(choices) > 8 else "")


# --- a parameter's own type ------------------------------------------------------------------------------------------
def key(value: Any) -> str:
    """What makes two values the same choice: a list and a tuple, 8 and 8.0, but not 1 and true."""
    plain = float(value) if type(value) is int and abs(value) < 2**53 else value
    return json.dumps(plain, default=str)


def checked(path: str, value: Any, where: Where = ()) -> Any:
    """`value` in the form that the parameter takes. Raises ValidationError with the parameter's own refusal."""
    try:
        if path == "method.type":
            return _method_types().validate_python("full" if value == "none" else value)
        found = adapter(path).validate_python(value, context={"written": True})
    except ValidationError as error:
        found = [_again((*where, *each["loc"]), each) for each in error.errors(include_url=False)]
        raise ValidationError.from_exception_data("space", found) from None
    return list(found) if isinstance(found, tuple) else found


@functools.cache
def adapter(path: str) -> TypeAdapter[Any]:
    """What reads a value of the parameter, as its section does."""
    *root, name = path.split(".")
    field = next(
        kind.model_fields[name] for kind in sections() if kind.root == tuple(root) and name in kind.model_fields
    )
    config = ConfigDict(strict=True, allow_inf_nan=False)
    read = cast("Any", Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation)
    return TypeAdapter(read, config=config)


@functools.cache
def _method_types() -> TypeAdapter[Any]:
    types = tuple(kind.model_fields["type"].default for kind in sections() if kind.root == ("method",))
    return TypeAdapter(cast("Any", Literal[types]), config=ConfigDict(strict=True))


@functools.cache
def number_kind(path: str) -> Literal["int", "float"] | None:
    """Whether the parameter is a whole number, a number, or none."""
    if path == "method.type":
        return None
    schema = adapter(path).json_schema()
    kinds = {option.get("type") for option in schema.get("anyOf", [schema])}
    return "int" if "integer" in kinds else "float" if "number" in kinds else None
