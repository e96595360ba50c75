"""What a foreign configuration says, and what becomes of each of its keys.

Lives here: `Foreign` (values with their places, read strictly), `Line` (one key's fate) and `Tool` (all that is known
of one tool, as tables). Does not live here: any tool (`axolotl.py`, …), the experiment file (`convert.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier.errors import SpecError

_YES, _NO = ("yes", "on"), ("no", "off")  # words of YAML 1.1, which these tools read


Kind = Literal["carried", "changed", "default", "lost"]
KINDS: tuple[Kind, ...] = ("carried", "changed", "default", "lost")


@dataclass(frozen=True, slots=True)
class Line:
    """The fate of `key` (several are joined by ` × `; "" if nobody wrote it): `path` of the experiment holds `value`.

    kind "carried": it means the same. "changed": it means something else, or an addition of luthier's; `words` say
    what. "default": nobody wrote it, the tool's own default is written out. "lost": it stays behind; `words` say why,
    or what luthier does instead.
    """

    kind: Kind
    key: str
    path: str = ""
    value: Any = None
    words: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class Foreign:
    """The values of a foreign file by key, the place of each as `file:line`, and the keys that are null: not given.

    Every method gives `default` for a key that is not there and raises SpecError for a value of the wrong kind.
    """

    values: Mapping[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)
    nulls: frozenset[str] = frozenset()

    def has(self, key: str) -> bool:
        return key in self.values

    def wrong(self, key: str, must: str) -> SpecError:
        return SpecError(f"`{key}` must be {must}", self.places.get(key))

    def number(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        if value is None:
            return default
        try:
            number = float(value.replace("_", "") if isinstance(value, str) else value)
        except (ValueError, TypeError, OverflowError):
            raise self.wrong(key, "a number") from None
        if isinstance(value, bool) or not math.isfinite(number):
            raise self.wrong(key, "a number")
        return number

    def count(self, key: str, default: Any = None) -> Any:
        number = self.number(key)
        if number is None:
            return default
        if number != int(number):
            raise self.wrong(key, "a whole number")
        return int(number)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key, default)
        if isinstance(value, str) and value.lower() in (*_YES, *_NO, "true", "false"):
            return value.lower() in (*_YES, "true")
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def texts(self, key: str, default: Any = None) -> Any:
        """A list of texts; one text is a list of those between its commas."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        if not (isinstance(value, list) and all(isinstance(part, str) for part in value)):
            raise self.wrong(key, "a list of texts")
        return value

    def word(self, key: str, default: str) -> str:
        """A text in small letters; false is `no`, as YAML 1.1 reads that word."""
        value = self.values.get(key, default)
        return "no" if value is False else "yes" if value is True else str(value).lower()

    def inner(self, key: str) -> Foreign:
        """The mapping at `key`, its keys named as they stand in the whole."""
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            raise self.wrong(key, "a mapping")
        values = {name: told for name, told in value.items() if told is not None}
        return Foreign(values, {name: self.places.get(f"{key}.{name}", self.places.get(key, "")) for name in values})

    def parts(self, key: str) -> list[Foreign]:
        """The mappings of the list at `key` (a lone mapping is a list of one)."""
        value = self.values.get(key, [])
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, Mapping) for item in items):
            raise self.wrong(key, "a list of mappings")
        return [
            Foreign(
                {name: told for name, told in item.items() if told is not None},
                {name: self.places.get(f"{key}.{i}.{name}", self.places.get(key, "")) for name in item},
            )
            for i, item in enumerate(items)
        ]


Read = Callable[[Foreign, str], Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool whose configurations are converted, as tables.

    `signs`: keys that no other of these tools has. `same`: its key → our path, and how its value is read. `together`:
    keys that only mean something together → what is made of them. `left`: a key (or `prefix*`) that stays behind → why,
    or what luthier does instead. `defaults`: our path → the tool's value where nobody wrote one. `opened`: keys whose
    mapping is read as if it stood at the top. `refuse` says why a configuration is none that luthier could carry out.
    """

    name: str
    signs: frozenset[str]
    same: Mapping[str, tuple[str, Read]]
    together: Mapping[tuple[str, ...], Callable[[Foreign], list[Line]]]
    left: Mapping[str, str]
    defaults: Mapping[str, Any]
    refuse: Callable[[Foreign], tuple[str, str] | None]
    opened: tuple[str, ...] = ()


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def carried(key: str, path: str, value: Any) -> Line:
    """`key` means what `path` means."""
    return Line("carried", key, path, value)


def as_here(key: str) -> Line:
    """`key` asks for what luthier does by itself."""
    return Line("carried", key, words="as luthier does by itself")


def changed(key: str, words: str, path: str = "", value: Any = None) -> Line:
    """`key` means something else here."""
    return Line("changed", key, path, value, words)


def default(path: str, value: Any, words: str = "") -> Line:
    """Nobody wrote it; the tool's own value."""
    return Line("default", "", path, value, words)


def lost(key: str, words: str) -> Line:
    """`key` stays behind."""
    return Line("lost", key, words=words)


def written(foreign: Foreign, key: str, path: str, value: Any) -> Line:
    """Carried where `key` is there, else its default."""
    return carried(key, path, value) if foreign.has(key) else default(path, value)


def is_off(value: Any) -> bool:
    """Whether a value switches its key off: then nothing is lost with it.

    >>> [is_off(value) for value in (False, 0, "", [], "no", "none", "false", 1, "cosine")]
    [True, True, True, True, True, True, True, False, False]
    """
    return not value or (isinstance(value, str) and value.lower() in (*_NO, "none", "false"))


VERDICT = "{tool} keeps no rows for a verdict: a tenth of them is kept here (0 keeps none)"
BEST = "luthier keeps the weights of the best evaluation, {tool} those of the last step"
