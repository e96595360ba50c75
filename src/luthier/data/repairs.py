"""Text in, repaired text out: one function a cleaning step, each leaving alone what it cannot tell from meaning.

Lives here: mojibake, control characters, HTML remains, NFC, white space; which answers are placeholders.
Does not live here: which texts of a row are repaired, and who is told (`cleaning.py`).
"""

from __future__ import annotations

import html.entities
import re
import unicodedata

_CHARACTER_SETS = "latin-1 cp1252 cp1251 cp1250 cp1253 cp1254 cp1257 iso8859-2 mac-roman cp437"


def _upper_halves() -> str:
    """Every character that UTF-8 can turn into when it is read in one of the character sets ftfy knows."""
    high = bytes(range(0x80, 0x100))
    found = {sign for name in _CHARACTER_SETS.split() for sign in high.decode(name, "ignore")}
    return "".join(sorted(found))


_MAY_BE_GARBLED = re.compile(f"[{re.escape(_upper_halves())}]")


def _is_visible(text: str) -> bool:
    return text.isprintable() or text.replace("\n", "").replace("\t", "").isprintable()


def is_plain(text: str) -> bool:
    """Whether a text in any script has nothing to repair but spaces: no hidden sign, no tag, letters composed."""
    return (
        _is_visible(text)
        and not ("<" in text or "&" in text or "\t" in text)
        and unicodedata.is_normalized("NFC", text)
        and _MAY_BE_GARBLED.search(text) is None
    )


def mojibake(text: str) -> str:
    """UTF-8 that was read in another character set, read again (ftfy); each line by itself, as files are pasted.

    >>> mojibake("sÃ­, seÃ±or"), mojibake("naïve Ångström, 좋아요")
    ('sí, señor', 'naïve Ångström, 좋아요')
    """
    if text.isascii() or not _MAY_BE_GARBLED.search(text):
        return text
    import ftfy  # 80 ms to import; most data sets never need it

    if not ftfy.is_bad(text):
        return text
    return "\n".join(ftfy.fix_encoding(line) for line in text.split("\n"))


# -- control characters ------------------------------------------------------------------------------------------------

_JOINING = "[\u0590-\u1cff\u2190-\u2bff\ufb50-\ufdff\ufe0f\ufe70-\ufefe\U00010a00-\U0001ffff]"
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefe\U00010800-\U00010fff]")
_BIDI_MARKS = re.compile("[\u061c\u200e\u200f\u202a-\u202c\u2066-\u2069]")
_CONTROL = re.compile(
    "(?P<flag>\U0001f3f4[\U000e0020-\U000e007f]+)"  # England, Scotland, Wales: letters that cannot be seen, on purpose
    r"|\x1b\[[0-9;?]*[ -/]*[@-~]"  # colours of a terminal
    "|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u180e\u202d\u202e\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb]"
    "|[\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
    f"|(?<!{_JOINING})[\u200c\u200d]"
    "|(?<![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff])\u200b"
)


def control(text: str) -> str:
    r"""Without NUL and other control characters, zero-width characters and direction overrides; \n and \t stay.

    Joiners stay where scripts and emoji need them, direction marks where letters run from right to left.

    >>> control("to\u200bken\x00 \x1b[31mred\x1b[0m"), control("👩\u200d💻 می\u200cخواهم")
    ('token red', '👩\u200d💻 می\u200cخواهم')
    """
    if _is_visible(text):
        return text
    if _CONTROL.search(text):
        text = _CONTROL.sub(lambda match: match["flag"] or "", text)
    if not text.isascii() and _BIDI_MARKS.search(text) and not _RIGHT_TO_LEFT.search(text):
        text = _BIDI_MARKS.sub("", text)
    return text


# -- code, markup and HTML ---------------------------------------------------------------------------------------------

_ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,31}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
_SIGNS_OF_CODE = ("`", "==", "!=", "<=", ">=", "&&", "||", "=>", "->", "::", ":=", "++")
_LINE_OF_CODE = re.compile(r"[;{}][ \t]*$", re.MULTILINE)
_CODE = re.compile(
    r"^[ \t]*[{\[]|^[ \t]*(?://|#include|\$ )"
    r"|\b(?i:select)\b[^.?!]{1,200}?\b(?i:from)\b[^.?!]{0,200}?(?:\b(?i:where|join|group by|order by)\b|[=;]|$)"
    r"|\b(?:INSERT INTO|CREATE TABLE|UPDATE \w+ SET|DELETE FROM|WHERE \w+)\b"
    r"|^[ \t]*(?:def|class|function|import|from|return|var|let|const|public|private|static|void)\b[^.?!]{0,100}[(:;={]"
    r"|^[ \t]+(?:return|yield|raise|if|for|while|else|try|print)\b|\\[a-z]+\{",
    re.MULTILINE,
)
_TALKS_OF_MARKUP = re.compile(
    r"\b(?:html|xml|markup|tags?|entit(?:y|ies)|escap\w+|jsx|css|javascript)\b", re.IGNORECASE
)
_BLOCK = (
    "address|article|aside|blockquote|br|caption|center|dd|div|dl|dt|figcaption|figure|footer|h[1-6]|header|hr|li|nav|ol"
    "|p|section|table|tbody|tfoot|thead|tr|ul"
)
_INLINE = "a|abbr|b|big|cite|del|em|font|i|img|ins|mark|nobr|small|span|strike|strong|sub|sup|td|th|tt|u|wbr"
_ATTRIBUTES = r"""(?:\s+[A-Za-z][\w:-]*\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=]+))"""
_TAG = re.compile(rf"<(?P<close>/?)(?P<name>{_BLOCK}|{_INLINE})(?P<attributes>{_ATTRIBUTES}*)\s*/?>", re.IGNORECASE)
_FOREIGN_TAG = re.compile(rf"</?(?!(?:{_BLOCK}|{_INLINE})\b)[a-z!?][\w:-]*(?:\s[^<>]*)?>|<[!?]|<\|", re.DOTALL)
_COMMENT = re.compile(r"<!--.{0,2000}?-->", re.DOTALL)
_BLOCK_NAME = re.compile(_BLOCK, re.IGNORECASE)
_VOID = ("br", "hr", "img", "wbr")
_BREAK = "\uffff"  # a character that Unicode keeps free


def is_code(text: str) -> bool:
    """Whether a text shows signs of code, SQL, JSON, a formula: then its signs and spaces carry meaning."""
    if "&" in text:
        text = _ENTITY.sub("", text)
    if any(map(text.__contains__, _SIGNS_OF_CODE)):
        return True
    return _LINE_OF_CODE.search(text) is not None or _CODE.search(text) is not None


def without_html(text: str) -> str:
    r"""Without HTML remains: tags that only format, and entities as the characters they mean.

    Nothing is touched in code, in markup (a tag that is not one of HTML's formatting tags), and in text that talks of
    markup. Tags go only if one of them is surely one: it has an attribute, its partner, or needs none (`<br>`).

    >>> without_html("<p>Fish &amp; <b>chips</b></p><p>5&nbsp;pounds<br/>each</p>")
    'Fish & chips\n5 pounds\neach'
    >>> without_html("WHERE a <b AND c> d"), without_html("List<B> x"), without_html("write <br> in HTML")
    ('WHERE a <b AND c> d', 'List<B> x', 'write <br> in HTML')
    """
    tags, entities = "<" in text and _TAG.search(text), "&" in text and _ENTITY.search(text)
    if not (tags or entities or "<!--" in text):
        return text
    bare = _COMMENT.sub("", text)
    if _FOREIGN_TAG.search(bare) or _TALKS_OF_MARKUP.search(_TAG.sub("", bare)) or is_code(_TAG.sub("", bare)):
        return text
    if bare != text or (tags and _surely_html(bare)):
        parts = (part.strip(" \t") for part in _TAG.sub(_instead, bare).split(_BREAK))
        text = "\n".join(part for part in parts if part)
    return _ENTITY.sub(_character, text) if entities else text


def _surely_html(text: str) -> bool:
    opened: set[str] = set()
    for tag in _TAG.finditer(text):
        name = tag["name"].lower()
        if name in _VOID or tag["attributes"] or (tag["close"] and name in opened):
            return True
        opened.add(name)
    return False


def _instead(tag: re.Match[str]) -> str:
    if _BLOCK_NAME.fullmatch(tag["name"]):
        return _BREAK  # one line break for all the blocks that begin and end here
    return " " if tag["name"].lower() in ("td", "th") and tag["close"] else ""


def _character(entity: re.Match[str]) -> str:
    if entity[0].startswith("&#"):
        number = entity[0][2:-1]
        code = int(number[1:], 16) if number[0] in "xX" else int(number)
        known = chr(code) if 32 <= code < 0x110000 and not 0xD800 <= code < 0xE000 else entity[0]
    else:
        known = html.entities.html5.get(entity[0][1:], entity[0])
    return " " if known == "\xa0" else known


# -- characters and spaces ---------------------------------------------------------------------------------------------


def composed(text: str) -> str:
    """Unicode's composed form (NFC): the same letter has one spelling.

    >>> composed("re\u0301sume\u0301") == "résumé"
    True
    """
    return text if text.isascii() or unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


_LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_ODD_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f]")
_RUNS = re.compile(r"(?<=[^ \n]) {2,}(?=[^ \n])")
_EMPTY_LINES = re.compile(r"\n{3,}")
_LAID_OUT = re.compile(r"\n[ \t]{2,}\S|\t|^ *\|", re.MULTILINE)
_ODD = re.compile(f"{_LINE_BREAKS.pattern}|{_ODD_SPACES.pattern}")
_PAIRS = ("  ", " \n", "\t\n", "\n\n\n")


def _may_be_odd(text: str) -> bool:
    return any(map(text.__contains__, _PAIRS)) or (not _is_visible(text) and _ODD.search(text) is not None)


def spaces(text: str) -> str:
    r"""Line breaks as \n, odd spaces as spaces, no spaces at the ends; runs of spaces and of empty lines shortened.

    In code and in text that is laid out by spaces, runs and the first line's indent stay.

    >>> spaces(" a\xa0 b \r\nc "), spaces("if x:\n    return  1 \n")
    ('a b\nc', 'if x:\n    return  1')
    """
    if not (text[:1].isspace() or text[-1:].isspace() or _may_be_odd(text)):
        return text
    start, core, _ = _parts(text)
    return core if not start or not _is_laid_out(core) else start.rpartition("\n")[2] + core


def spaces_inside(text: str) -> str:
    """As `spaces`, with both ends as they are: for texts that are joined as they came."""
    return "".join(_parts(text)) if _may_be_odd(text) else text


def _parts(text: str) -> tuple[str, str, str]:
    """White space before a text, the text with its inner white space in order, white space after it."""
    text = _LINE_BREAKS.sub("\n", text)
    core = text.strip()
    before, after = (text.split(core, 1) if core else (text, ""))[:2]
    if _may_be_odd(core):
        core = "\n".join(line.rstrip(" \t") for line in _ODD_SPACES.sub(" ", core).split("\n"))
        if any(map(core.__contains__, _PAIRS)) and not _is_laid_out(core):
            core = _EMPTY_LINES.sub("\n\n", _RUNS.sub(" ", core))
    return before, core, after


def _is_laid_out(text: str) -> bool:
    return _LAID_OUT.search(text) is not None or is_code(text)


# -- placeholders ------------------------------------------------------------------------------------------------------

_PLACEHOLDERS = {
    *("n/a", "n.a", "null", "none", "nil", "nan", "undefined", "todo", "to do", "tbd", "tba", "tbc", "fixme", "xxx"),
    *("placeholder", "no answer", "not available", "not applicable", "to be determined", "lorem ipsum", "keine angabe"),
    *(
        "#n/a",
        "#ref!",
        "#value!",
        "#name?",
        "#div/0!",
        "없음",
        "해당 없음",
        "해당없음",
        "답변 없음",
        "무응답",
        "미정",
        "미입력",
    ),
    *("なし", "無し", "該当なし", "未定", "未入力", "未記入", "未回答", "无", "暂无", "待定", "未填写"),
}
_IN_BRACKETS = {"deleted", "removed", "redacted", "empty", "blank"}
_ONLY_DOTS = re.compile(r"[\s.…。・·_?？\-–—ー*]*")
_LONGEST = 24


def is_placeholder(text: str) -> bool:
    """Whether an answer stands for a missing one: blank, dots and dashes alone, N/A, TODO, null, 없음, なし, [deleted].

    >>> [is_placeholder(text) for text in ("", " ... ", "(N/A)", "TODO.", "[deleted]", "nobody", "No.", "0", "deleted")]
    [True, True, True, True, True, False, False, False, False]
    """
    text = text.strip()
    if len(text) > _LONGEST:
        return False
    word = text.strip("()[]<>{}\"'").rstrip(".。").casefold()
    bracketed = text[:1] in ("(", "[", "<", "{") and word in _IN_BRACKETS
    return word in _PLACEHOLDERS or bracketed or text == "NA" or _ONLY_DOTS.fullmatch(text) is not None
