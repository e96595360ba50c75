"""Numbers in words: a score with its interval, a p value, a count of rows, no more digits than are known.

Does not live here: the sentences these stand in (`report.py`, `seeds.py`).
"""

from __future__ import annotations

import math
import re

from luthier.runs import Score


def say(score: Score, top: float | None, with_n: bool = False, digits: int | None = None) -> str:
    """A score in words, no more digits than its interval supports.

    >>> say(Score(0.8333, 0.787, 0.8714, 300), 1.0, with_n=True)
    '0.83 (0.79–0.87, n = 300)'
    >>> say(Score(0.8942, 0.8829, 0.9046, 3080), 1.0), say(Score(4.127, 3.9, 4.4, 50), None)
    ('0.894 (0.883–0.905)', '4.13 (3.90–4.40)')
    """
    d = digits_of(score, top) if digits is None else digits
    n = f", n = {score.n:,}" if with_n else ""
    n += f" in {score.groups:,} groups" if n and score.groups is not None else ""
    return f"{score.value:.{d}f} ({score.low:.{d}f}–{score.high:.{d}f}{n})"


def digits_of(score: Score, top: float | None) -> int:
    """Decimals to show: as many as the interval supports."""
    if top is None:
        size = max(abs(score.value), 1e-9)
        return max(0, 2 - math.floor(math.log10(size))) if math.isfinite(size) else 0
    return (3 if score.high - score.low < 0.03 * top else 2) - round(math.log10(top))


def say_p(p: float) -> str:
    """A p value with two digits.

    >>> say_p(0.0002), say_p(0.0123), say_p(0.4), say_p(1.0)
    ('p < 0.001', 'p = 0.012', 'p = 0.40', 'p = 1.0')
    """
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:#.2g}"


def begun(text: str) -> str:
    """A text as the beginning of a sentence; a name that has capitals of its own keeps them.

    >>> begun("exact match"), begun("macro-F1"), begun("chrF")
    ('Exact match', 'Macro-F1', 'chrF')
    """
    first = re.match(r"\w*", text)
    return text[:1].upper() + text[1:] if first and first[0].islower() else text


def times(ratio: float) -> str:
    """A ratio with two decimals, of a small one its first digit, of a large one no decimals.

    >>> times(6.651), times(0.29), times(0.00018), times(0.00001), times(78432.58)
    ('6.65', '0.29', '0.0002', '0.0000', '78,433')
    """
    if ratio >= 100:
        return f"{ratio:,.0f}"
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.1g}" if ratio >= 1e-4 else "0.0000"


def round_up(rows: int) -> int:
    """Two digits are all an estimate of rows has."""
    unit = 10 ** max(0, len(str(rows)) - 2)
    return math.ceil(rows / unit) * unit
