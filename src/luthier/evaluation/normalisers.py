"""What exact match may overlook: a text → the form in which two texts of the same meaning are the same.

Lives here: the normalisers, and numbers and JSON as values. Does not live here: who compares what (`metrics.py`).
A normaliser takes any text and never fails: one that is no number (no JSON) is only stripped.
"""

from __future__ import annotations

import json
import string
import unicodedata
from collections.abc import Callable
from decimal import Context, Decimal, DecimalException
from typing import Any

import regex

_NUMBER = regex.compile(
    r"(?P<sign>(?<!\w)[-+\u2212])? \p{Sc}? (?P<size>(?:\d{1,3}(?:,\d{3})+(?!\d) | \d+)(?:\.\d+)? | (?<!\d)\.\d+)"
    r"(?P<power>[eE][-+]?\d+)? (?P<after>\s?(?:%|\p{Sc}))?",
    regex.VERBOSE,
)
_EXACT = Context(prec=10**6, traps=[])
_SQL = regex.compile(
    r"(?P<quoted>'(?:[^']|'')*' | \"(?:[^\"]|\"\")*\" | `[^`]*` | \[[^\]]*\]) | (?P<comment>--[^\n]* | /\*.*?\*/)"
    r"| [\w$]+ | [<>!=|]{1,2} | \S",
    regex.VERBOSE | regex.DOTALL,
)
_SAME_SQL = {"<>": "!=", "==": "="}


def whitespace(text: str) -> str:
    """Runs of white space are one space.

    >>> whitespace(" SELECT  a\\n FROM t ")
    'SELECT a FROM t'
    """
    return " ".join(text.split())


def case(text: str) -> str:
    """Capitals are small letters, and a letter is one however its accents are stored (NFC).

    >>> case("Straße ") == case("STRASSE"), case("한글") == case("\\u1112\\u1161\\u11ab\\u1100\\u1173\\u11af")
    (True, True)
    """
    return unicodedata.normalize("NFC", text.casefold()).strip()


def squad(text: str) -> str:
    """SQuAD's: small letters, no punctuation, no English articles, single spaces (Rajpurkar et al. 2016).

    SQuAD's script knows ASCII punctuation alone; here that of every script goes, so that “東京。” is “東京”.

    >>> squad("The  Beatles, an English band."), squad("東京。")
    ('beatles english band', '東京')
    """
    kept = "".join(letter for letter in text.lower() if not _is_punctuation(letter))
    return whitespace(regex.sub(r"\b(a|an|the)\b", " ", kept))


def sql(text: str) -> str:
    """Case and spaces outside quotes, comments, a last semicolon, `<>` for `!=`: what no SQL reader heeds.

    >>> sql("select NAME from t where a<>'It''s  A';") == sql("SELECT name\\nFROM t WHERE a != 'It''s  A' -- why")
    True
    >>> sql("SELECT 'A'") == sql("SELECT 'a'")
    False
    """
    tokens = []
    for found in _SQL.finditer(text):
        if found["comment"] is None:
            token = found[0] if found["quoted"] else found[0].casefold()
            tokens.append(_SAME_SQL.get(token, token))
    while tokens and tokens[-1] == ";":
        tokens.pop()
    return " ".join(tokens)


def number(text: str) -> str:
    """One number's value: thousands' commas, zeros at the ends, a currency sign and `%` do not count.

    >>> number("$1,234.50") == number("1234.5"), number("1e3") == number("1000"), number("about 5")
    (True, True, 'about 5')
    """
    text = text.strip()
    found = _NUMBER.fullmatch(unicodedata.normalize("NFKC", text))
    return (_value(found) if found else None) or text


def last_number(text: str) -> str | None:
    """The value of the last number in a text, None if there is none.

    >>> last_number("She pays 3 * $4 = $12.00.") == number("12"), last_number("none")
    (True, None)
    """
    found = None
    for found in _NUMBER.finditer(unicodedata.normalize("NFKC", text)):  # noqa: B007
        pass
    return _value(found) if found else None


def json_value(text: str) -> str:
    """A JSON text's value: the order of keys, spaces, escapes and 1.0 for 1 do not count.

    >>> json_value('{"a": 1.0, "b": "é"}') == json_value('{"b":"\\\\u00e9","a":1}'), json_value("{a: 1}")
    (True, '{a: 1}')
    """
    try:
        return _canonical(json.loads(text, parse_int=Decimal, parse_float=Decimal, parse_constant=refuse))
    except (ValueError, DecimalException, RecursionError):
        return text.strip()


def refuse(word: str) -> None:
    """NaN and Infinity are Python's, not JSON's: for `parse_constant` of `json.loads`."""
    raise ValueError(word)


NORMALISERS: dict[str, tuple[Callable[[str], str], str]] = {
    "strip": (str.strip, "white space at both ends"),
    "case": (case, "white space at both ends, and case"),
    "whitespace": (whitespace, "how much white space there is"),
    "squad": (squad, "case, punctuation, `a`, `an`, `the` and how much white space there is (SQuAD)"),
    "sql": (sql, "case and white space outside quotes, comments, a last semicolon, `<>` for `!=`"),
    "number": (number, "how a number is written: `$1,234.50` is `1234.5`"),
    "json": (json_value, "the order of keys, white space, escapes and how a number is written"),
}
"""Name → the normaliser, and what does not count under it."""


def _is_punctuation(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def _value(found: regex.Match[str]) -> str | None:
    size = found["size"].replace(",", "") + (found["power"] or "")
    return _plain(Decimal(size, _EXACT), negative=found["sign"] in ("-", "\u2212"))


def _plain(value: Decimal, negative: bool = False) -> str | None:
    """Digits and a power of ten, the shortest of all equal ones; None for what is past all exponents."""
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return None
    written = "".join(map(str, digits)).lstrip("0")
    short = written.rstrip("0")
    if not short:
        return "0"
    return f"{'-' if bool(sign) != negative else ''}{short}e{exponent + len(written) - len(short)}"


def _canonical(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{json.dumps(key)}:{_canonical(each)}" for key, each in value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_canonical, value)) + "]"
    if isinstance(value, Decimal):
        return _plain(value) or "0"
    return json.dumps(value)
