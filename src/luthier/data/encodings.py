"""Which encoding text has that is not UTF-8: a guess that is told to a person, never acted on.

Lives here: the guess. Does not live here: reading (`textfiles.py`), which names are allowed (`spec`).

Statistical detectors need some hundred bytes; a bad line often has four. Here every encoding people meet is tried, and
each character it gives is weighed by how common it is in the language that the encoding was made for.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

SAMPLE = 1 << 14
_ENOUGH, _NEAR, _SURE = 0.25, 0.12, 0.8
_HANGUL = (
    "이다는의가에을를은하고지한도로기사리어인자시나대아서라수그들해니만전일정장부여보주원성안게상제것오신요우면과"
    "있없구국학생각않물중으선거무동비용모았습네세때된문유내화조경말위공간불관개음당실연행미력터금마소계방발회현"
    "강두통호분입작품입역까래술적남녀영재감긍배송환카드결취너최좋별고객반늦비싸번호확인점수많못던줄길예드려"
)
_HANZI = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道"
    "行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意"
    "無與這個來們為會說時對過發後經現當沒動還進開從實請謝問電話訂單退款配送影品很快慢正负負密码信卡取消丢失"
)
_QUOTES = "‘’“”–—…€°£§«»¿¡®©ªº·"


@dataclass(frozen=True, slots=True)
class Guess:
    """`name` as people say it, `codec` as `data.encoding` takes it."""

    name: str
    codec: str

    @property
    def iconv(self) -> str:
        """As the command iconv takes it."""
        return self.name if self.name.startswith("UTF") else self.codec.upper().replace("_", "-")


@cache
def _bytes_of(character: str, codec: str) -> bytes:
    return character.encode(codec, "ignore")


def _korean(text: str, at: int) -> float:
    c = text[at]
    if "가" <= c <= "힣":
        in_first_set = len(_bytes_of(c, "euc_kr")) == 2
        return (1.0 if c in _HANGUL else 0.6) if in_first_set else 0.1
    return 0.9 if "ㄱ" <= c <= "ㅣ" else 0.3


def _japanese(text: str, at: int) -> float:
    c = text[at]
    if "ぁ" <= c <= "ヾ" or c in "、。「」！？・":
        return 1.0
    lead = _bytes_of(c, "cp932")[:1]
    return 0.58 if b"\x88" <= lead <= b"\x97" else 0.5 if "①" <= c <= "⑳" else 0.3 if "｡" <= c <= "ﾟ" else 0.1


def _chinese(c: str, codec: str, first: bytes, last: bytes) -> float:
    raw = _bytes_of(c, codec)
    common_set = len(raw) == 2 and first <= raw[:1] <= last and raw[1:] >= (b"\xa1" if codec == "gb2312" else b"\x40")
    return 1.0 if c in _HANZI or c in "，。！？、：；" else 0.55 if common_set else 0.05


def _alphabet(text: str, at: int, common: str, letters: str) -> float:
    """Letters of another alphabet stand beside each other, not between plain ones."""
    c, around = text[at], text[max(0, at - 1) : at] + text[at + 1 : at + 2]
    if any("a" <= other.lower() <= "z" for other in around):
        return 0.1
    if not any(letters[0] <= other <= letters[1] for other in around) or c.isupper():
        return 0.4 if letters[0] <= c <= letters[1] else 0.1
    return 1.0 if c in common else 0.6 if letters[0] <= c <= letters[1] else 0.1


def _western(text: str, at: int) -> float:
    """Accented letters stand between plain ones, rarely in runs, and capitals do not follow small letters."""
    c, before, after = text[at], text[max(0, at - 1) : at], text[at + 1 : at + 2]
    if c in _QUOTES:
        return 0.8 if before <= "\x7f" and after <= "\x7f" else 0.4
    if not c.isalpha() or "\u0100" <= c < "\u2000":
        return 0.1
    if c.isupper() and (before.islower() or (after > "\x7f" and not after.isupper())):
        return 0.1
    wide = (before > "\x7f" and before.isalpha()) + (after > "\x7f" and after.isalpha())
    return (1.0, 0.6, 0.1)[wide]


_EACH: dict[Guess, Callable[[str, int], float]] = {
    Guess("CP949", "cp949"): _korean,
    Guess("Shift-JIS", "cp932"): _japanese,
    Guess("EUC-JP", "euc-jp"): _japanese,
    Guess("GB18030", "gb18030"): lambda text, at: _chinese(text[at], "gb2312", b"\xb0", b"\xd7"),
    Guess("Windows-1251", "cp1251"): lambda text, at: _alphabet(text, at, "оеаинтсрвлкмдпуяыьгз", "Аё"),
    Guess("Windows-1253", "cp1253"): lambda text, at: _alphabet(text, at, "αιτεοσνρπκυημλςάίόέή", "Άώ"),
    Guess("Big5", "big5"): lambda text, at: _chinese(text[at], "big5", b"\xa4", b"\xc6"),
    Guess("latin-1", "cp1252"): _western,
}


_JUDGED = {codec: codec for codec in ("cp949", "cp932", "gb18030", "big5", "cp1251", "cp1252", "cp1253")} | {
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "euc_jp": "euc-jp",
    "gbk": "gb18030",
    "gb2312": "gb18030",
    "iso8859-1": "cp1252",
    "iso8859-15": "cp1252",
}
_ENOUGH_TO_JUDGE, _LIKELY, _BETTER = 100, 0.6, 0.3


def better_encoding(sample: bytes, encoding: str) -> Guess | None:
    """What `sample` is by all appearance, when it is not the `encoding` somebody claims; None where that may be right.

    Some encodings take the bytes of others without complaint: Korean read as EUC-JP is Japanese nonsense.
    """
    claimed = _JUDGED.get(codecs.lookup(encoding).name)
    if claimed is None or sum(byte > 0x7F for byte in sample) < _ENOUGH_TO_JUDGE:
        return None
    scores = {guess: _score(sample, guess.codec, weigh) for guess, weigh in _EACH.items()}
    best = max(scores, key=lambda guess: scores[guess])
    own = next(score for guess, score in scores.items() if guess.codec == claimed)
    return best if scores[best] > _LIKELY and scores[best] - own > _BETTER else None


def guess_encodings(sample: bytes) -> tuple[Guess, ...]:
    """The likeliest encodings of text that is not UTF-8, best first: one, two where they are near, none for no text."""
    if 0 in sample:
        return _sixteen_bits(sample)
    sample = sample[:SAMPLE]
    scores = {guess: _score(sample, guess.codec, weigh) for guess, weigh in _EACH.items()}
    ranked = sorted(scores, key=lambda guess: -scores[guess])
    best = scores[ranked[0]]
    near = tuple(guess for guess in ranked[:2] if scores[guess] > max(best - _NEAR, _ENOUGH))
    return near if best > _SURE else (*_by_statistics(sample), *near)[:2]


def _score(sample: bytes, codec: str, weigh: Callable[[str, int], float]) -> float:
    """Mean weight of the bytes that are not ASCII; what cannot be decoded weighs below nothing."""
    text = codecs.getincrementaldecoder(codec)("replace").decode(sample)
    total, count = 0.0, 0
    for at, c in enumerate(text):
        if c <= "\x7f":
            continue
        bad = c == "\ufffd" or "\x80" <= c <= "\x9f" or "\ue000" <= c <= "\uf8ff"
        total += -1.0 if bad else weigh(text, at)
        count += 1
    return total / count if count else 0.0


def _sixteen_bits(sample: bytes) -> tuple[Guess, ...]:
    """UTF-16 without a mark: the zero bytes of its ASCII characters stand all on one side."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if min(even, odd) * 20 > max(even, odd) or max(even, odd) < 2:
        return ()
    name = "UTF-16LE" if odd > even else "UTF-16BE"
    text = sample[: len(sample) & ~1].decode(name, "replace")
    unprintable = sum(not (c.isprintable() or c in "\n\r\t\ufeff") for c in text[:4096])
    return () if unprintable * 20 > min(len(text), 4096) else (Guess(name, f"utf-16-{name[-2:].lower()}"),)


def _by_statistics(sample: bytes) -> tuple[Guess, ...]:
    """An encoding that we cannot weigh (Arabic, Hebrew, …): charset-normalizer's choice, if there is text enough."""
    from charset_normalizer import from_bytes

    if sum(byte > 0x7F for byte in sample) < _ENOUGH_TO_JUDGE:
        return ()
    best = from_bytes(sample).best()
    if best is None or best.encoding == "utf_8" or best.encoding in _JUDGED:
        return ()
    return (Guess(best.encoding, best.encoding),)
