"""What two texts share: ROUGE, chrF and BLEU as counts per row; a corpus score is a function of summed counts.

Pure maths (BLEU's tokens come from sacrebleu). Does not live here: which texts are compared (`metrics.py`).
Why not the peers' ROUGE: `rouge-score` keeps only a-z and 0-9, so Korean and Japanese score 0.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np

CHRF_ORDER = 6
CHRF_BETA = 2
BLEU_ORDER = 4

_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


@cache
def _letter_kind(letter: str) -> str:
    """`inside` a word, `alone` (scripts without spaces: each letter is a word), or `between` words."""
    if unicodedata.category(letter)[0] not in "LNM":
        return "between"
    return "alone" if unicodedata.name(letter, "").startswith(_UNSPACED) else "inside"


def words(text: str) -> list[str]:
    """Words for ROUGE in any language: runs of letters, digits and their marks, folded; one letter each without spaces.

    >>> words("The cat's 2 hats, naïve")
    ['the', 'cat', 's', '2', 'hats', 'naïve']
    >>> words("고객의 이름은?"), words("東京タワーへ行く")
    (['고객의', '이름은'], ['東', '京', 'タ', 'ワ', 'ー', 'へ', '行', 'く'])
    """
    spaced = []
    for letter in unicodedata.normalize("NFKC", text).casefold():
        kind = _letter_kind(letter)
        spaced.append(letter if kind == "inside" else f" {letter} " if kind == "alone" else " ")
    return "".join(spaced).split()


# --------------------------------------------------------------------------------------------------------------- ROUGE


def rouge_n(answer: str, reference: str, n: int) -> float:
    """ROUGE-n F1 (Lin 2004): clipped n-grams in common, harmonic mean of precision and recall.

    >>> round(rouge_n("the cat sat", "the cat sat down", 2), 3)
    0.8
    """
    a, b = _ngrams(words(answer), n), _ngrams(words(reference), n)
    return _f1(sum((a & b).values()), sum(a.values()), sum(b.values()))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1: the longest common subsequence of words.

    >>> round(rouge_l("a black cat", "a cat is black"), 3)
    0.571
    """
    a, b = words(answer), words(reference)
    return _f1(_common_subsequence(a, b), len(a), len(b))


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _f1(common: int, a: int, b: int) -> float:
    return 2 * common / (a + b) if common else 0.0


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a column of the table in one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


# ---------------------------------------------------------------------------------------------------------------- chrF


def chrf_counts(answer: str, reference: str) -> np.ndarray:
    """(3 * 6,) n-grams of 1 to 6 characters without spaces: in the answer, in the reference, in both.

    An order the reference is too short for counts nothing in the answer, as in sacrebleu.
    """
    a, b = "".join(answer.split()), "".join(reference.split())
    counts = np.zeros((CHRF_ORDER, 3))
    for n in range(1, CHRF_ORDER + 1):
        in_a, in_b = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (a, b))
        total_b = sum(in_b.values())
        counts[n - 1] = (sum(in_a.values()) if total_b else 0, total_b, sum((in_a & in_b).values()))
    return counts.ravel()


def chrf(counts: np.ndarray) -> np.ndarray:
    """chrF2 on 0-100 from summed counts (..., 18): F of the mean precision and mean recall (Popović 2015, sacrebleu).

    >>> chrf(chrf_counts("the cat", "the cat")), chrf(chrf_counts("xyz", "the cat"))
    (array(100.), array(0.))
    """
    table = counts.reshape(*counts.shape[:-1], CHRF_ORDER, 3)
    hits = table[..., 2]
    usable = (table[..., 0] > 0) & (table[..., 1] > 0)
    orders = np.maximum(usable.sum(axis=-1), 1)
    precision = np.where(usable, hits / np.maximum(table[..., 0], 1e-12), 0).sum(axis=-1) / orders
    recall = np.where(usable, hits / np.maximum(table[..., 1], 1e-12), 0).sum(axis=-1) / orders
    below = CHRF_BETA**2 * precision + recall
    return np.where(below > 0, 100 * (1 + CHRF_BETA**2) * precision * recall / np.where(below > 0, below, 1), 0.0)


# ---------------------------------------------------------------------------------------------------------------- BLEU


@cache
def _sentence_bleu():  # type: ignore[no-untyped-def]
    from sacrebleu.metrics.bleu import BLEU  # here: sacrebleu costs 0.2 s, and most runs do not ask for BLEU

    return BLEU(effective_order=True, tokenize="13a")


def bleu_counts(answer: str, references: Sequence[str]) -> np.ndarray:
    """(10,) hits and n-grams of orders 1 to 4, length of the answer, length of the closest reference.

    Tokens are sacrebleu's 13a; letters of scripts without spaces stand alone.
    """
    score = _sentence_bleu().sentence_score(_spread(answer), [_spread(text) for text in references])
    return np.array([*score.counts, *score.totals, score.sys_len, score.ref_len], np.float64)


def bleu(counts: np.ndarray, effective_order: bool = False) -> np.ndarray:
    """BLEU on 0-100 from summed counts (..., 10), smoothed as sacrebleu does by default (method 3 of Chen & Cherry).

    `effective_order` averages over the orders a single sentence is long enough for.
    """
    hits, totals = counts[..., :BLEU_ORDER], counts[..., BLEU_ORDER : 2 * BLEU_ORDER]
    length, wanted = counts[..., -2], counts[..., -1]
    possible = totals > 0
    missed = np.cumsum((hits == 0) & possible, axis=-1)
    smoothed = np.where(hits > 0, hits, 0.5**missed) / np.maximum(totals, 1)
    logs = np.where(possible, np.log(np.maximum(smoothed, 1e-300)), 0.0)
    orders = np.maximum(possible.sum(axis=-1), 1) if effective_order else BLEU_ORDER
    complete = possible[..., 0] if effective_order else possible.all(axis=-1)
    brevity = np.where(length < wanted, 1 - wanted / np.maximum(length, 1), 0.0)
    score = 100 * np.exp(logs.sum(axis=-1) / orders + brevity)
    return np.where(complete & hits.any(axis=-1), score, 0.0)


def _spread(text: str) -> str:
    """Spaces around letters of scripts that write none; other text is left as it is."""
    return "".join(f" {letter} " if _letter_kind(letter) == "alone" else letter for letter in text)
