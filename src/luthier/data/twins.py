"""Texts that are the same but for case and spaces, and texts that are nearly the same (pure maths).

Lives here: a text's normal form, its shingles, MinHash with banding, the true Jaccard of candidates.
Does not live here: files and splits (`leaks.py`), what is done about a twin (`sorting.py`).

Letters: N rows, S shingles of all rows one after another, P pairs, B bands.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

NEAR = 0.8
"""Jaccard similarity from which two texts are near twins."""
BANDS, HASHES, MOST = 16, 5, 16
"""Bands of a signature; MinHash values of the question in each; rows of one bucket that a row is compared with.

Two questions of similarity J meet in some band with probability 1 - (1 - J^5)^16: 0.998 at J = 0.8, 0.13 at J = 0.4
(Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4)."""
_WIDE = 0x2E80  # from here on a character says about as much as two of an alphabet: CJK, kana, Hangul
_NUMBER = re.compile(r"(?<![a-z_\d])\d+(?![a-z_\d])")
_BLOCK = 1 << 20  # shingles that are worked on at once
_EMPTY = np.uint32(0xFFFFFFFF)
_M1, _M2, _M3 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)


def normal(text: str) -> str:
    """What stays of a text when case, width, spaces and punctuation at the ends do not count.

    One word of ASCII stays as it is: it may be a formula, a name in code or a path, where all of them count.

    >>> normal("  Where is\\tmy CARD?"), normal("どこですか？"), normal("CC(=O)Oc1")
    ('where is my card', 'どこですか', 'CC(=O)Oc1')
    """
    words = text.split()
    if text.isascii():
        if len(words) < 2:
            return words[0] if words else ""
        folded = " ".join(words).casefold()
    else:
        folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        folded = unicodedata.normalize("NFKC", folded)  # folding case can take a text out of its normal form
    start, end = 0, len(folded)
    while start < end and _is_mark(folded[start]):
        start += 1
    while end > start and _is_mark(folded[end - 1]):
        end -= 1
    return folded[start:end] or folded


def _is_mark(character: str) -> bool:
    return character == " " or (not character.isalnum() and unicodedata.category(character)[0] == "P")


def fixed(question: str, answer: str) -> int:
    """What near twins must have in common besides, as 64 bits: their numbers; and of one word, the word.

    "Who won stage 16?" and "Who won stage 18?" ask two things; two names or two formulas that look alike are two.
    Takes normal forms. A question in a script that writes without spaces is never one word.
    """
    word = question if " " not in question and all(ord(letter) < _WIDE for letter in question) else ""
    told = "\0".join([word, *_NUMBER.findall(question), "", *_NUMBER.findall(answer)])
    return int.from_bytes(hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Shingles:
    """The shingles of N texts: text i has `values_S[starts_N1[i] : starts_N1[i + 1]]`, uint32, sorted, each once."""

    values_S: np.ndarray
    starts_N1: np.ndarray

    def __len__(self) -> int:
        return len(self.starts_N1) - 1

    @property
    def sizes_N(self) -> np.ndarray:
        """How many shingles each text has."""
        return np.diff(self.starts_N1)

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shingles of these rows one after another, and for each the place of its row in `rows`."""
        sizes = self.sizes_N[rows]
        owner = np.repeat(np.arange(len(rows)), sizes)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.values_S[self.starts_N1[rows][owner] + within], owner

    def take(self, rows: np.ndarray) -> Shingles:
        """These rows alone."""
        values, owner = self.of(rows)
        return _ragged(owner, values, len(rows))


def shingle(texts: Sequence[str]) -> Shingles:
    """Every stretch of three characters of each text, hashed; of two where it begins with a wide one (한, 日, か).

    A text that is shorter than that is one shingle, an empty text has none. Give texts in their normal form.
    """
    sizes = np.array([len(text) for text in texts], np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    owner = np.repeat(np.arange(len(texts)), sizes)
    left = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(codes))  # characters from here to the text's end
    wide = codes >= _WIDE
    mixed = codes * _M1
    following = np.zeros((2, len(codes)), np.uint64)
    following[0, :-1], following[1, :-2] = codes[1:], codes[2:]
    mixed += np.where(left > 1, following[0] * _M2, np.uint64(0))
    mixed += np.where((left > 2) & ~wide, following[1] * _M3, np.uint64(0))
    whole = left >= np.minimum(np.where(wide, 2, 3), sizes[owner])  # the tail of a text is no shingle of its own
    mixed ^= mixed >> np.uint64(29)
    mixed *= _M2
    keys = (owner.astype(np.uint64) << np.uint64(32)) | (mixed >> np.uint64(32))
    keys = keys[whole]
    keys.sort()
    keys = keys[np.r_[True, keys[1:] != keys[:-1]]] if len(keys) else keys
    return _ragged(keys >> np.uint64(32), keys.astype(np.uint32), len(texts))


def _ragged(owner_S: np.ndarray, values_S: np.ndarray, rows: int) -> Shingles:
    counts = np.bincount(owner_S.astype(np.int64), minlength=rows)
    return Shingles(values_S, np.r_[0, np.cumsum(counts)])


def joined(parts: Sequence[Shingles]) -> Shingles:
    """The rows of all parts, one part after another."""
    sizes = np.concatenate([np.zeros(1, np.int64), *(part.sizes_N for part in parts)])
    values = np.concatenate([np.zeros(0, np.uint32), *(part.values_S for part in parts)])
    return Shingles(values, np.cumsum(sizes))


def boilerplate(shingles: Shingles) -> np.ndarray:
    """Shingles of more than half of the rows, and of 20 at least: an instruction, a system prompt. Sorted."""
    found, counts = np.unique(shingles.values_S, return_counts=True)
    return found[(counts > len(shingles) / 2) & (counts >= 20)]


def without(shingles: Shingles, common: np.ndarray) -> Shingles:
    """The same rows without the shingles `common` (sorted)."""
    if not len(common):
        return shingles
    place = np.minimum(np.searchsorted(common, shingles.values_S), len(common) - 1)
    kept = common[place] != shingles.values_S
    before = np.r_[0, np.cumsum(kept)]
    return Shingles(shingles.values_S[kept], before[shingles.starts_N1])


@dataclass(frozen=True, slots=True)
class Rows:
    """N rows ready to be compared: the shingles of question, answer and all that stands before the question, and keys.

    `keys_BN` uint64: rows with an equal key in a band are candidates.
    """

    parts: tuple[Shingles, Shingles, Shingles]
    keys_BN: np.ndarray

    def __len__(self) -> int:
        return self.keys_BN.shape[1]

    def take(self, rows: np.ndarray) -> Rows:
        """These rows alone."""
        question, answer, before = self.parts
        return Rows((question.take(rows), answer.take(rows), before.take(rows)), self.keys_BN[:, rows])


def rows_of(question: Shingles, answer: Shingles, before: Shingles, fixed_N: np.ndarray) -> Rows:
    """Rows by their three parts, each N texts; a band's key is made of MinHash values of all three and `fixed`."""
    keys = np.empty((BANDS, len(question)), np.uint64)
    seeds = np.random.Generator(np.random.PCG64(20261121)).integers(0, 1 << 32, (BANDS, HASHES + 2, 2), np.uint64)
    seeds = seeds.astype(np.uint32)
    seeds[..., 0] |= np.uint32(1)
    plan = [question] * HASHES + [answer, before]
    empty = [part.sizes_N == 0 for part in (question, answer, before)]
    for band in range(BANDS):
        key = fixed_N + np.uint64(band)
        for part, (multiplier, shift) in zip(plan, seeds[band], strict=True):
            key = (key ^ _minimum(part, multiplier, shift)) * _M1
            key ^= key >> np.uint64(31)
        keys[band] = key
    if len(question) and (nothing := empty[0] & empty[1] & empty[2]).any():
        keys[:, nothing] = np.arange(1, 1 + nothing.sum())  # rows of which nothing is left are nobody's twins
    return Rows((question, answer, before), keys)


def _minimum(shingles: Shingles, multiplier: np.uint32, shift: np.uint32) -> np.ndarray:
    """The least value of each row's shingles under one hash function, uint32; a constant for rows without any."""
    found = np.full(len(shingles), _EMPTY)
    filled = np.flatnonzero(shingles.sizes_N)
    if len(filled):
        hashed = shingles.values_S * multiplier
        hashed += shift
        found[filled] = np.minimum.reduceat(hashed, shingles.starts_N1[filled])
    return found


def jaccard(of: Shingles, rows_P: np.ndarray, among: Shingles, others_P: np.ndarray) -> np.ndarray:
    """Shared shingles over all, float64, for P pairs (a row of `of`, a row of `among`); 1 for two empty ones."""
    found = np.empty(len(rows_P))
    weights = of.sizes_N[rows_P] + among.sizes_N[others_P]
    for start, end in _blocks(weights):
        ours, our_pair = of.of(rows_P[start:end])
        theirs, their_pair = among.of(others_P[start:end])
        keys = np.concatenate([our_pair, their_pair]).astype(np.uint64) << np.uint64(32)
        keys |= np.concatenate([ours, theirs])
        keys.sort()
        twice = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(32)
        shared = np.bincount(twice.astype(np.int64), minlength=end - start)
        union = weights[start:end] - shared
        found[start:end] = np.where(union > 0, shared / np.maximum(union, 1), 1.0)
    return found


def _blocks(weights: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches of rows that weigh at most a block together (or are one heavy row)."""
    ends, start = np.cumsum(weights), 0
    while start < len(weights):
        begun = ends[start] - weights[start]
        end = max(start + 1, int(np.searchsorted(ends, begun + _BLOCK, "right")))
        yield start, end
        start = end


def partners(of: Rows, among: Rows, before: bool = False) -> np.ndarray:
    """For each row of `of` the number of a near twin in `among`, int64, or -1.

    Twins have a Jaccard similarity of at least NEAR in every part, and the same `fixed`. Of a bucket with more rows
    than MOST the first ones are compared. With `before` both are the same rows, and only an earlier one counts.
    """
    found = np.full(len(of), -1)
    for band in range(BANDS):
        keys = among.keys_BN[band]
        order = np.argsort(keys, kind="stable")
        ranked, open_rows = keys[order], np.flatnonzero(found < 0)
        wanted = of.keys_BN[band][open_rows]
        low, high = np.searchsorted(ranked, wanted, "left"), np.searchsorted(ranked, wanted, "right")
        for step in range(MOST):
            more = np.flatnonzero((low + step < high) & (found[open_rows] < 0))
            if not len(more):
                break
            rows, others = open_rows[more], order[low[more] + step]
            if before:
                rows, others = rows[others < rows], others[others < rows]
            near = _near(of, rows, among, others)
            found[rows[near]] = others[near]
    return found


def _near(of: Rows, rows_P: np.ndarray, among: Rows, others_P: np.ndarray) -> np.ndarray:
    """Which of the pairs are twins in every part, bool."""
    found = np.ones(len(rows_P), bool)
    for ours, theirs in zip(of.parts, among.parts, strict=True):
        left = np.flatnonzero(found)
        found[left] = jaccard(ours, rows_P[left], theirs, others_P[left]) >= NEAR
    return found


def compared(questions: Sequence[str], answers: Sequence[str] | None = None) -> Rows:
    """Rows of plain texts, made comparable in one go: for lists that fit in memory."""
    said = answers if answers is not None else [""] * len(questions)
    asked, said = [normal(text) for text in questions], [normal(text) for text in said]
    parts = [shingle(texts) for texts in (asked, said, [""] * len(asked))]
    common = np.array([fixed(one, other) for one, other in zip(asked, said, strict=True)], np.uint64)
    question, answer, before = (without(part, boilerplate(part)) for part in parts)
    return rows_of(question, answer, before, common)
