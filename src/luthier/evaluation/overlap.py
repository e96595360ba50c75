"""What two texts share: ROUGE, token F1, edits; chrF, BLEU and TER as counts per row, whose sums give a corpus score.

Pure maths (BLEU's tokens and TER's edits are sacrebleu's). Does not live here: which texts are compared (`metrics.py`).
Why not the peers' ROUGE: `rouge-score` keeps only a-z and 0-9, so Korean and Japanese score 0.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache

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


def rouge_lsum(answer: str, reference: str) -> float:
    """ROUGE-L F1 of a summary, a line a sentence: each line of the reference meets all lines of the answer (Lin 2004).

    >>> round(rouge_lsum("a dog ran\\na cat sat", "the cat sat\\nthe dog ran"), 3), rouge_lsum("", "")
    (0.667, 0.0)
    """
    said, wanted = ([words(line) for line in text.split("\n")] for text in (answer, reference))
    left = Counter(word for line in said for word in line)
    total, common = left.total(), 0
    for line in wanted:
        for place in sorted(set().union(*(_matched(line, other) for other in said))):
            if left[line[place]]:  # a word of the answer is found once
                left[line[place]] -= 1
                common += 1
    return _f1(common, total, sum(map(len, wanted)))


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1 of the words in common, in any order; if one side has none, both must have none to agree.

    Words lie between spaces; letters of scripts without spaces stand alone.

    >>> token_f1("eiffel tower paris", "tower eiffel"), token_f1("", ""), token_f1("東京へ", "東京")
    (0.8, 1.0, 0.8)
    """
    a, b = (Counter(_spread(text).split()) for text in (answer, reference))
    return _f1((a & b).total(), a.total(), b.total()) if a and b else float(a == b)


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _f1(common: int, a: int, b: int) -> float:
    return 2 * common / (a + b) if common else 0.0


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    return len(a) - _subsequence_table(a, b)[-1].bit_count()


def _matched(a: Sequence[str], b: Sequence[str]) -> set[int]:
    """Places in `a` of a longest common subsequence; of several the one that `rouge-score` finds."""
    rows, found = _subsequence_table(b, a), set()

    def length(i: int, j: int) -> int:  # of the first i words of a and the first j of b
        return j - (rows[i] & ((1 << j) - 1)).bit_count()

    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            found.add(i)
        elif length(i, j - 1) > length(i - 1, j):
            j -= 1
        else:
            i -= 1
    return found


def _subsequence_table(a: Sequence[str], b: Sequence[str]) -> list[int]:
    """The table of longest common subsequences, a column in one integer (Hyyrö 2004), for 0, 1, … words of `b`.

    Bit k of a column is 0 where the (k + 1)-th word of `a` makes the subsequence longer.
    """
    places = _places(a)
    full = (1 << len(a)) - 1
    columns = [full]
    for word in b:
        matched = columns[-1] & places.get(word, 0)
        columns.append(((columns[-1] + matched) | (columns[-1] - matched)) & full)
    return columns


def _places(parts: Sequence[str]) -> dict[str, int]:
    """Part → the bits of its places."""
    places: dict[str, int] = {}
    for i, part in enumerate(parts):
        places[part] = places.get(part, 0) | 1 << i
    return places


# --------------------------------------------------------------------------------------------------------------- edits


def edit_similarity(answer: str, reference: str) -> float:
    """1 less the edits (Levenshtein 1966) over the longer text's length, in characters; 1 if both are empty.

    >>> edit_similarity("kitten", "sitting") == 1 - 3 / 7, edit_similarity("", "")
    (True, 1.0)
    """
    a, b = (unicodedata.normalize("NFC", text) for text in (answer, reference))
    return 1 - _edits(a, b) / max(len(a), len(b)) if a or b else 1.0


def _edits(a: str, b: str) -> int:
    """Levenshtein's distance, a column of differences in two integers (Myers 1999, in Hyyrö's form of 2003)."""
    if not a:
        return len(b)
    places, last, full = _places(a), 1 << len(a) - 1, (1 << len(a)) - 1
    up, down, edits = full, 0, len(a)
    for letter in b:
        match = places.get(letter, 0)
        straight = (((match & up) + up) ^ up) | match | down
        rises, falls = down | ~(straight | up) & full, up & straight
        edits += bool(rises & last) - bool(falls & last)
        rises = rises << 1 | 1
        up = (falls << 1 | ~(straight | rises)) & full
        down = rises & straight & full
    return edits


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


# ----------------------------------------------------------------------------------------------------------------- TER


@cache
def _sentence_ter():  # type: ignore[no-untyped-def]
    from sacrebleu.metrics.ter import TER  # here, as BLEU

    return TER()


@lru_cache(maxsize=1 << 14)  # a row is asked for by every interval and test, and costs about a millisecond
def ter_counts(answer: str, references: tuple[str, ...]) -> tuple[float, float]:
    """(edits to the nearest reference, mean length of the references), in words; a moved phrase is one edit.

    Words as sacrebleu's TER finds them, case aside; letters of scripts without spaces stand alone.
    """
    score = _sentence_ter().sentence_score(_spread(answer), [_spread(text) for text in references])
    return score.num_edits, score.ref_length


def ter(counts: np.ndarray) -> np.ndarray:
    """TER in per cent from summed counts (..., 2): 0 is the reference, more than 100 is possible (Snover et al. 2006).

    >>> ter(np.array([[1, 4], [0, 0], [2, 0]]))
    array([ 25.,   0., 100.])
    """
    edits, length = counts[..., 0], counts[..., 1]
    return np.where(length > 0, 100 * edits / np.where(length > 0, length, 1), np.where(edits > 0, 100.0, 0.0))


def _spread(text: str) -> str:
    """Spaces around letters of scripts that write none; other text is left as it is."""
    return "".join(f" {letter} " if _letter_kind(letter) == "alone" else letter for letter in text)
