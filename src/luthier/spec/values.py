"""What a field may hold: the strict base of all sections, advice ranges, and the readings that people expect.

Lives here: `Part`, `Advice`, field types and their checks. Does not live here: any parameter (`parameters.py`).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from encodings.aliases import aliases
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import core_schema

from luthier.errors import did_you_mean
from luthier.spec import conditions, wording

DOCUMENT = "IBM watsonx.ai, Parameters for tuning foundation models (2025)"
ROWS = "(rows given in Python)"
"""Stands for an iterable of rows wherever an experiment is written down."""


class _Preset:
    """Marks a value that a preset decides: until then it is None."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.nullable_schema(handler(source))


PRESET = _Preset()


@dataclass(frozen=True, slots=True)
class Advice:
    """The range a document advises. A value outside draws one warning; the schema carries the range for forms."""

    low: float
    high: float
    source: str = DOCUMENT

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return handler(core) | {"advice": {"low": self.low, "high": self.high, "source": self.source}}


@dataclass(frozen=True, slots=True)
class OrText:
    """In the schema: the section may be written as a plain text, which stands for its `shorthand` field."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(core)]}


if TYPE_CHECKING:
    _Strict = BaseModel
else:

    class _Checked(type(BaseModel)):
        """A section made in Python is refused with the same SpecError as in a file; sections inside sections keep
        pydantic's own error, which knows where they stand."""

        def __call__(cls, /, **fields):
            try:
                return super().__call__(**fields)
            except ValidationError as error:
                method = cls.model_fields["type"].default if "type" in cls.model_fields else None
                raise wording.explain(error, known_paths(), lambda path: None, cls.root, method) from None

    class _Strict(BaseModel, metaclass=_Checked):
        pass


class Part(_Strict):
    """A section of an experiment: frozen, strict (the text "8" is not a number), closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )  # fmt: skip
    root: ClassVar[tuple[str, ...]] = ()
    shorthand: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _open_shorthand(cls, value: Any) -> Any:
        if value is None:  # a section whose every line is commented out
            return {}
        return {cls.shorthand: value} if cls.shorthand and isinstance(value, str | os.PathLike) else value


def sections(part: type[Part] = Part) -> Iterator[type[Part]]:
    """Every section that can stand in an experiment, each method on its own."""
    for kind in part.__subclasses__():
        if kind.__subclasses__():
            yield from sections(kind)
        elif kind.__module__.startswith("luthier."):
            yield kind


@functools.cache
def known_paths() -> dict[str, tuple[str, ...]]:
    """Every leaf's dotted path → the methods it belongs to (none: to any)."""
    known: dict[str, tuple[str, ...]] = {}
    inner = {kind.root for kind in sections()}
    for kind in sections():
        methods = (kind.model_fields["type"].default,) if kind.root == ("method",) else ()
        for name in kind.model_fields:
            if (*kind.root, name) not in inner:
                path = ".".join((*kind.root, name))
                known[path] = (*known.get(path, ()), *methods)
    return known


# --- checks and readings of single values. A message continues the parameter's name: "`data.train` must be …" ---------


def no_secret(text: str) -> str:
    if wording.is_secret(text):
        raise ValueError(wording.SECRET)
    return text


def path_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def listed(value: Any) -> Any:
    """One text where a list is meant is a list of one."""
    return (value,) if isinstance(value, str) else value


def split_source(value: Any, info: ValidationInfo[Any]) -> Any:
    """A split: a path or Hub name, a share of `train`, or (from Python) rows."""
    if isinstance(value, str | os.PathLike):
        if not os.fspath(value):
            raise ValueError("must not be empty")
        return no_secret(os.fspath(value))
    if info.field_name != "train":
        if value is None:
            return None
        if type(value) in (int, float):
            if not 0 <= value < 1:
                raise ValueError(f"as a number is a share of `train`: at least 0 and less than 1, not {value:g}")
            return float(value)
    if type(value).__module__.partition(".")[0] == "pandas" and type(value).__name__ == "DataFrame":
        value = value.to_dict("records")  # iterating over a frame gives the names of its columns
    written = info.context is not None and info.context["written"]
    if written or isinstance(value, Mapping | bytes) or not isinstance(value, Iterable):
        rows = "" if written else ", or an iterable of rows"
        raise ValueError(f"must be a path or the name of a Hub data set{rows}, not {wording.shown(value)}")
    if isinstance(value, Sequence) and not all(isinstance(row, Mapping) for row in value[:1]):
        raise ValueError(f"must hold rows that are mappings (column: value), not {wording.shown(value[0])}")
    return value


def class_labels(value: Any) -> tuple[str, ...] | dict[str, str] | None:
    """Class names, or what the file writes → the name; whole numbers are read as their digits, as a CSV file has them.

    >>> class_labels({0: "negative", 1: "positive"}), class_labels([1, 2])
    ({'0': 'negative', '1': 'positive'}, ('1', '2'))
    """
    if value is None:
        return None
    if not isinstance(value, list | tuple | Mapping):
        raise ValueError(
            f"must be a list of names, or a mapping {{0: negative, 1: positive}}, not {wording.shown(value)}"
        )
    if isinstance(value, Mapping):
        found: tuple[str, ...] | dict[str, str] = {_class(key): _class(name) for key, name in value.items()}
    else:
        found = tuple(map(_class, value))
        if len(set(found)) < len(found):
            raise ValueError("must not name the same label twice")
    if not found:
        raise ValueError("must not be empty")
    return found


def _class(item: Any) -> str:
    if type(item) is int:
        return str(item)
    if not isinstance(item, str) or not item:
        raise ValueError(f"must hold names, not {wording.shown(item)}; a name that looks like a value needs quotes")
    return no_secret(item)


def braces(template: str) -> str:
    """watsonx writes a column as `{{input}}`, we as `{input}`; both are read.

    >>> braces("Input: {{ input }} Output:")
    'Input: {input} Output:'
    """
    ours = re.sub(r"\{\{\s*(\w+)\s*\}\}", r"{\1}", template)
    if not re.search(r"\{\w+\}", ours):
        raise ValueError("must name a column, such as {input}: without one every row has the same prompt")
    return ours


def underscored(value: str) -> str:
    return re.sub(r"[/-]", "_", value)


@functools.cache
def _encodings() -> frozenset[str]:
    """Python's names for encodings of text; those that turn bytes into bytes or depend on the machine are none."""
    no_text = {"base64_codec", "bz2_codec", "hex_codec", "quopri_codec", "rot_13", "uu_codec", "zlib_codec", "mbcs"}
    return frozenset(aliases.values()) - no_text - {"tactis"} | {"utf_8_sig"}


def text_encoding(name: str) -> str:
    """
    >>> text_encoding("Shift-JIS")
    'Shift-JIS'
    """
    plain = re.sub(r"[\s_-]+", "_", name.strip().lower())
    known = _encodings()
    if plain in known or aliases.get(plain) in known:
        return name.strip()
    near = did_you_mean(plain, sorted({each for each, meant in aliases.items() if meant in known} | known))
    raise ValueError(f"is no encoding: `{name}`; {near or 'for example cp949, cp932, cp1252, utf-16'}")


def share_or_steps(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError(f"must be a share below 1 or a whole number of steps, not {value:g}")
    return value


def conditions_by_name(value: Any) -> Any:
    """Names → conditions on a row, each readable as one."""
    for name, condition in value.items() if isinstance(value, Mapping) else ():
        try:
            conditions.read(condition if isinstance(condition, str) else str(condition))
        except ValueError as error:
            raise ValueError(f"cannot use the condition of `{name}`: {error}") from None
    return value


def cleaning_steps(value: Any) -> Any:
    return (("duplicates",) if value else ()) if isinstance(value, bool) else value


Text = Annotated[str, Field(min_length=1), AfterValidator(no_secret)]
Texts = Annotated[tuple[Text, ...], Field(strict=False), BeforeValidator(listed)]
UNDECIDED: Any = None
"""Default of a value that a preset decides; its type says what it is from then on."""
Count = Annotated[int, Ge(1), Le(2**31 - 1)]
Positive = Annotated[float, Gt(0)]
