"""Personal data and secrets found by rule: what they look like, what proves them, what they are masked with.

Lives here: RULES, one row a form, precision before recall: a number without a form or check digit of its own is no
finding. Does not live here: which texts are searched and who is told (`cleaning.py`).
"""

from __future__ import annotations

import base64
import datetime
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

Check = Callable[[re.Match[str]], bool]

_IBAN_LENGTHS = """
15 NO; 16 BE; 18 DK FI FO GL NL SD FK; 19 MK SI; 20 AT BA EE KZ LT LU MN XK; 21 CH HR LI LV; 22 BG BH CR DE GB GE IE ME
RS; 23 AE GI IL IQ OM SO TL; 24 AD CZ ES MD PK RO SA SE SK TN VG; 25 LY PT ST; 26 IS TR; 27 BI DJ FR GR IT MC MR SM;
28 AL AZ BY CY DO GT HN HU LB NI PL SV; 29 BR EG PS QA UA; 30 JO KW MU YE; 31 MT SC; 32 LC; 33 RU
"""
_COUNTRY = re.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|21[1-368]|2[2346]\d|25[0-8]|29[01789]|3[57]\d|38[0-35-79]"
    r"|42[013]|50\d|59\d|6[78]\d|69[0-2]|80[08]|85[02356]|87[08]|88[0-368]|96\d|97[0-79]|99[2-68]"
)
_FILE_ENDINGS = re.compile(r"png|jpe?g|gif|svg|webp|bmp|ico|css|js|json|html?|xml|txt|csv|pdf|php", re.IGNORECASE)
_MY_NUMBER_WORDS = re.compile(r"マイナンバー|個人番号|my ?number|individual number", re.IGNORECASE)
_NO_MORE_CHECK_DIGIT = datetime.date(2020, 10, 5)


@dataclass(frozen=True, slots=True)
class Rule:
    """One form. `kind` is what reports call it, `check` proves a match of `pattern`, `source` says who defines it.

    A text without any of `signs` is not searched; a rule without signs looks for many digits.
    """

    kind: str
    name: str
    signs: tuple[str, ...]
    pattern: re.Pattern[str]
    check: Check
    source: str

    @property
    def mask(self) -> str:
        """What stands in the place of a finding: `<EMAIL>`."""
        return f"<{self.kind.upper()}>"


def suspicious(text: str) -> bool:
    """Whether a rule may match somewhere: False for most rows, in a microsecond."""
    if "@" in text or _many_digits(text):
        return True
    long_word = _LONG_WORD in text.encode("utf-8", "surrogatepass").translate(_LETTERS)
    return long_word and any(sign in text for rule in RULES for sign in rule.signs)


def _many_digits(text: str) -> bool:
    """Eight digits with nothing between them but what stands between a number's groups."""
    return b"00000000" in text.encode("utf-8", "surrogatepass").translate(_ZEROS, b" ().-")


def masked(text: str) -> tuple[str, dict[str, int]]:
    """`text` with every finding replaced by its mask, and how many there were of each kind.

    In text that is JSON only the strings are searched, never keys and numbers, so that it stays JSON.

    >>> masked("mail ann@mail.org or call +82 10-1234-5678; order 2023-1015-77")
    ('mail <EMAIL> or call <PHONE>; order 2023-1015-77', {'email': 1, 'phone': 1})
    """
    found: dict[str, int] = {}

    def cover(rule: Rule, match: re.Match[str]) -> str:
        found[rule.kind] = found.get(rule.kind, 0) + 1
        return rule.mask

    return _swept(text, cover), found


def shaped(text: str) -> str:
    """`text` fit to be shown: every finding keeps its form, but letters become x and digits 0.

    >>> shaped("call +82 10-1234-5678")
    'call +00 00-0000-0000'
    """
    return _swept(text, lambda _, match: re.sub(r"[0-9]", "0", re.sub(r"[^\W\d_]", "x", match[0])))


def _swept(text: str, cover: Callable[[Rule, re.Match[str]], str]) -> str:
    if not suspicious(text):
        return text
    if text.lstrip()[:1] in ("{", "[") and _is_json(text):
        return _JSON_STRING.sub(lambda quoted: quoted[0] if quoted["key"] else _covered(quoted[0], cover), text)
    return _covered(text, cover)


def _covered(text: str, cover: Callable[[Rule, re.Match[str]], str]) -> str:
    many_digits = _many_digits(text)
    for rule in RULES:
        if not (any(sign in text for sign in rule.signs) if rule.signs else many_digits):
            continue

        def proved(match: re.Match[str], rule: Rule = rule) -> str:
            return cover(rule, match) if rule.check(match) else match[0]

        text = rule.pattern.sub(proved, text)
    return text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# -- checks ------------------------------------------------------------------------------------------------------------


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: from the right every second digit doubled, digits summed, a multiple of ten.

    >>> luhn("79927398713"), luhn("79927398710")
    (True, False)
    """
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[::-2])) + sum(doubled)) % 10 == 0


def mod97(iban: str) -> bool:
    """ISO 13616: the first four characters moved to the end, letters as 10 … 35, one modulo 97.

    >>> mod97("GB82WEST12345698765432"), mod97("GB82WEST12345698765431")
    (True, False)
    """
    return int("".join(str(int(sign, 36)) for sign in iban[4:] + iban[:4])) % 97 == 1


def rrn_check_digit(first_twelve: str) -> int:
    """The 13th digit of a Korean resident registration number; foreigners' (7th digit 5–8) are two more, modulo 10.

    >>> rrn_check_digit("900101123456")
    8
    """
    total = sum(int(digit) * weight for digit, weight in zip(first_twelve, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)))  # noqa: B905
    return ((13 if first_twelve[6] in "5678" else 11) - total % 11) % 10


def my_number_check_digit(first_eleven: str) -> int:
    """The 12th digit of a Japanese individual number (ministerial ordinance 85 of 2014, article 5).

    >>> my_number_check_digit("12345678901")
    8
    """
    weights = (2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6)
    rest = sum(int(digit) * weight for digit, weight in zip(reversed(first_eleven), weights)) % 11  # noqa: B905
    return 0 if rest <= 1 else 11 - rest


def _digits(match: re.Match[str]) -> str:
    return re.sub(r"[^0-9]", "", match[0])


def _any(match: re.Match[str]) -> bool:
    return True


def _mixed(match: re.Match[str]) -> bool:
    """Random keys hold a digit and a capital; `sk-fading-circle-container` holds neither."""
    return bool(re.search(r"[0-9]", match[0]) and re.search(r"[A-Z]", match[0]))


def _json_header(match: re.Match[str]) -> bool:
    head = match[0].partition(".")[0]
    try:
        told = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except ValueError:
        return False
    return isinstance(told, dict) and "alg" in told


def _mail(match: re.Match[str]) -> bool:
    """Not `icon@2x.png`, and not the `git@host:path` of a repository."""
    ending = match[0].rpartition(".")[2]
    return not _FILE_ENDINGS.fullmatch(ending) and not (
        match[0].startswith("git@") and match.string[match.end() :][:1] == ":"
    )


def _card(match: re.Match[str]) -> bool:
    return luhn(_digits(match))


def _iban(match: re.Match[str]) -> bool:
    return mod97(match[0].replace(" ", ""))


def _rrn(match: re.Match[str]) -> bool:
    """A day that exists, and the check digit; numbers given out since October 2020 have none but are always new births.

    Thirteen digits in a row may also be milliseconds since 1970 or a Korean barcode: those are left alone.
    """
    digits, apart = _digits(match), "-" in match[0]
    if not apart and (digits[:2] in ("14", "15", "16", "17", "18", "19") or digits.startswith("880")):
        return False
    year = int(digits[:2]) + (1900 if digits[6] in "1256" else 2000)
    try:
        born = datetime.date(year, int(digits[2:4]), int(digits[4:6]))
    except ValueError:
        return False
    return rrn_check_digit(digits[:12]) == int(digits[12]) or (apart and born >= _NO_MORE_CHECK_DIGIT)


def _my_number(match: re.Match[str]) -> bool:
    """The check digit; twelve digits in a row count only where the text calls them so."""
    digits = _digits(match)
    named = match[0] != digits or _MY_NUMBER_WORDS.search(match.string, max(0, match.start() - 30), match.start())
    return bool(named) and my_number_check_digit(digits[:11]) == int(digits[11])


def _international(match: re.Match[str]) -> bool:
    """An assigned country code and 8 to 15 digits in groups of at least two; no decimal fraction, no sum of numbers."""
    digits, groups = _digits(match), re.findall(r"[0-9]+", match[0])
    codes = [groups[0]] if len(groups[0]) < 4 else [groups[0][:n] for n in (1, 2, 3)]
    if (
        not 8 <= len(digits) <= 15
        or not any(map(_COUNTRY.fullmatch, codes))
        or match[0].count("(") != match[0].count(")")
    ):
        return False
    if digits[0] == "1":
        return _north_american(digits[1:])
    if len(groups) == 1:
        return len(digits) >= 10
    return all(len(group) > 1 for group in groups[2:]) and match[0].count(".") != 1


def _north_american(ten: str) -> bool:
    return bool(re.fullmatch(r"(?:[2-9](?!11)[0-9]{2}){2}[0-9]{4}", ten))


def _united_states(match: re.Match[str]) -> bool:
    return _north_american(_digits(match)[-10:])


def _domestic(match: re.Match[str]) -> bool:
    """A written form is enough; eleven digits in a row must not be a bit pattern."""
    digits = _digits(match)
    return match[0] != digits or len(set(digits)) > 2


def _ten_digits(match: re.Match[str]) -> bool:
    return len(_digits(match)) == 10


# -- the rules ---------------------------------------------------------------------------------------------------------


def _iban_pattern() -> str:
    forms = []
    for entry in _IBAN_LENGTHS.split(";"):
        length, *countries = entry.split()
        groups, rest = divmod(int(length) - 4, 4)
        tail = rf" ?[A-Z0-9]{{{rest}}}" if rest else ""
        forms.append(rf"(?:{'|'.join(countries)})[0-9]{{2}}(?: ?[A-Z0-9]{{4}}){{{groups}}}{tail}")
    return rf"{_FREE}(?:{'|'.join(forms)}){_END}"


_FREE = r"(?<![0-9A-Za-z_+-])(?<![0-9]\.)"
_END = r"(?![0-9A-Za-z_]|[.-][0-9])"


_CARD_16 = (
    r"(?:4[0-9]{3}|5[1-5][0-9]{2}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)|6(?:011|4[4-9][0-9]|5[0-9]{2})"
    r"|35(?:2[89]|[3-8][0-9])|62[0-9]{2})(?P<by4>[ -]?)[0-9]{4}(?P=by4)[0-9]{4}(?P=by4)[0-9]{4}"
)
_CARD_15 = r"3[47][0-9]{2}(?P<by6>[ -]?)[0-9]{6}(?P=by6)[0-9]{5}"
_CARD_14 = r"3(?:0[0-5]|[68][0-9])[0-9](?P<by64>[ -]?)[0-9]{6}(?P=by64)[0-9]{4}"
_RRN = r"[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?: ?- ?)?[1-8][0-9]{6}"
_E164 = r"(?<![0-9A-Za-z+)])\+[1-9](?:[ .\-]?\(?[0-9]\)?){7,15}(?![0-9A-Za-z_%]|[.,-][0-9])"
_KOREA = (
    r"(?:01[016789](?P<kr>[-. ])[0-9]{3,4}(?P=kr)[0-9]{4}|010[0-9]{8}"
    r"|\(?0(?:2|3[1-3]|4[1-4]|5[1-5]|6[1-4]|70)(?:\) ?|-|\.)[0-9]{3,4}[-.][0-9]{4})"
)
_MY_NUMBER = rf"{_FREE}[0-9]{{4}}(?P<gap>[ -]?)[0-9]{{4}}(?P=gap)[0-9]{{4}}{_END}"
_JAPAN_MOBILE = r"0[5789]0(?P<jp>[- ]?)[0-9]{4}(?P=jp)[0-9]{4}"
_JAPAN_AREA = r"0[1-9][0-9]{0,3}"
_JAPAN = rf"(?:{_JAPAN_AREA}-[0-9]{{1,4}}-|{_JAPAN_AREA}\([0-9]{{1,4}}\)|\({_JAPAN_AREA}\) ?[0-9]{{1,4}}-)[0-9]{{4}}"
_AMERICA = (
    r"(?:1[-. ])?(?:\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[-. ]|[2-9][0-9]{2}(?P<us>[-. ])[2-9][0-9]{2}(?P=us))[0-9]{4}"
)
_PEM = r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?s:.{0,20000}?)(?:-----END [A-Z0-9 ]{0,40}-----|\Z)"
_JWT = r"(?<![\w.-])eyJ[\w-]{8,4096}\.eyJ[\w-]{2,8192}\.[\w-]{0,2048}"
_GITHUB = r"(?<![0-9A-Za-z])(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255})(?!\w)"
_MAIL = (
    r"(?<![0-9A-Za-z._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    r"[A-Za-z]{2,24}(?![0-9A-Za-z-])"
)


def _rule(kind: str, name: str, signs: str, pattern: str, check: Check, source: str) -> Rule:
    return Rule(kind, name, tuple(signs.split()), re.compile(pattern), check, source)


_HUB = r"(?<![0-9A-Za-z])hf_[A-Za-z0-9]{30,50}(?!\w)"

RULES: tuple[Rule, ...] = (
    _rule("private_key", "PEM or OpenPGP block", "-----BEGIN", _PEM, _any, "RFC 7468, RFC 9580"),
    _rule("token", "JSON web token", "eyJ", _JWT, _json_header, "RFC 7519"),
    _rule("api_key", "OpenAI, Anthropic", "sk-", r"(?<![\w-])sk-[\w-]{20,250}(?![\w-])", _mixed, "their key pages"),
    _rule("api_key", "AWS", "AKIA ASIA", r"(?<![0-9A-Za-z])A[KS]IA[A-Z2-7]{16}(?![0-9A-Za-z])", _any, "AWS IAM guide"),
    _rule("api_key", "GitHub", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_", _GITHUB, _any, "GitHub docs, token formats"),
    _rule("api_key", "GitLab", "glpat-", r"(?<![0-9A-Za-z])glpat-[\w-]{20,250}", _mixed, "GitLab docs, token prefixes"),
    _rule(
        "api_key",
        "Slack",
        "xox",
        r"(?<![0-9A-Za-z])xox[abeprs]-[A-Za-z0-9-]{12,250}",
        _any,
        "Slack docs, tokens",
    ),
    _rule("api_key", "Google", "AIza", r"(?<![\w-])AIza[\w-]{35}(?![\w-])", _any, "Google Cloud docs, API keys"),
    _rule("api_key", "Hugging Face", "hf_", _HUB, _mixed, "Hub docs, access tokens"),
    _rule("login", "user:password@", "://", r"(?<=://)[^/\s:@]{1,64}:[^/\s@]{1,64}(?=@)", _any, "RFC 3986, 3.2.1"),
    _rule("email", "mail address", "@", _MAIL, _mail, "RFC 5321, its ASCII forms"),
    _rule("iban", "bank account", "", _iban_pattern(), _iban, "SWIFT IBAN registry, ISO 13616"),
    _rule("card", "payment card", "", rf"{_FREE}(?:{_CARD_16}|{_CARD_15}|{_CARD_14}){_END}", _card, "ISO/IEC 7812-1"),
    _rule("rrn", "Korean resident number", "", rf"{_FREE}{_RRN}{_END}", _rrn, "주민등록법 시행규칙"),
    _rule("my_number", "Japanese individual number", "", _MY_NUMBER, _my_number, "総務省令第85号 (2014), 5"),
    _rule("phone", "with a country code", "", _E164, _international, "ITU-T E.164, E.123"),
    _rule("phone", "Korea", "", rf"{_FREE}{_KOREA}{_END}", _domestic, "전기통신번호관리세칙"),
    _rule("phone", "Japan, mobile", "", rf"{_FREE}{_JAPAN_MOBILE}{_END}", _domestic, "総務省 電気通信番号計画"),
    _rule("phone", "Japan, fixed", "", rf"{_FREE}{_JAPAN}{_END}", _ten_digits, "総務省 電気通信番号計画"),
    _rule("phone", "North America", "", rf"{_FREE}{_AMERICA}{_END}", _united_states, "NANPA numbering plan"),
)
"""In order: what an earlier rule masked, a later one no longer sees. `name` tells the forms of one kind apart."""

KINDS = tuple(dict.fromkeys(rule.kind for rule in RULES))

_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"(?P<key>\s*:)?')
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LETTERS = bytes(97 if (chr(byte).isalnum() and byte < 128) or chr(byte) in "_-" else 32 for byte in range(256))
_LONG_WORD = b"a" * 16
"""Every key and token holds so many letters, digits, - and _ in a row; few other words do."""
