"""How long rows are: counters that do not grow with rows, the fence of outliers, and what a `max_seq_length` costs.

Lives here: arithmetic on lengths, of characters or of tokens (pure maths). Does not live here: reading rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ENOUGH, MEDIANS = 10, 8
_EXACT = 256
ROUND_LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
WORTH_CUTTING = 0.1  # of the tokens


class Lengths:
    """How many rows have which length. Exact below 256 and for the longest, to 1/128 above: some 3,000 counters."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.rows, self.total, self.longest = 0, 0, 0

    def add(self, length: int) -> None:
        """Count a row of `length`."""
        place = _bin(length)
        if place >= len(self.counts):
            self.counts += [0] * (place + 1 - len(self.counts))
        self.counts[place] += 1
        self.rows += 1
        self.total += length
        self.longest = max(self.longest, length)

    def quantile(self, share: float) -> int:
        """The shortest length that at least `share` of the rows do not exceed; 0 without rows."""
        seen = 0
        for place, count in enumerate(self.counts):
            seen += count
            if count and seen >= share * self.rows:
                return min(_lowest(place + 1) - 1, self.longest)
        return self.longest

    def between(self, low: float, high: float) -> int:
        """Rows of a length from `low` up to and without `high`, to the fineness of the counters."""
        return sum(count for place, count in enumerate(self.counts) if low <= _lowest(place) < high)


def _bin(length: int) -> int:
    """The counter of a length: its own below 256, then 128 for each doubling."""
    if length < _EXACT:
        return length
    power = length.bit_length() - 8
    return _EXACT + (power - 1) * 128 + (length >> power) - 128


def _lowest(place: int) -> int:
    """The shortest length that counter `place` counts."""
    if place < _EXACT:
        return place
    power, rest = divmod(place - _EXACT, 128)
    return (rest + 128) << (power + 1)


def far_fence(lengths: Lengths) -> float:
    """The length from which a row is an outlier; 0 where there are too few rows to tell.

    Tukey's far fence, three widths of the middle half above it, drawn on logarithms, for lengths are skewed; and never
    below eight medians.
    """
    if lengths.rows < ENOUGH:
        return 0
    low, middle, high = (max(1, lengths.quantile(share)) for share in (0.25, 0.5, 0.75))
    return max(high * (high / low) ** 3, MEDIANS * middle)


@dataclass(frozen=True, slots=True)
class LengthChoice:
    """A `max_seq_length` and what it costs: rows that are longer, and the share of an epoch's tokens it saves.

    `saved_by_cut` under `data.overlength: cut`, `saved_by_drop` under `drop`. In batches without padding the compute
    of the linear layers is in proportion to tokens; that of attention falls faster.
    """

    limit: int
    longer: int
    saved_by_cut: float
    saved_by_drop: float


@dataclass(frozen=True, slots=True)
class LengthAdvice:
    """`suggested`: the smallest multiple of 64 that no row exceeds; the p99 instead where the last 1 % of the rows
    holds a tenth of the tokens. `p99`, `longest`: of `rows` rows, in tokens."""

    rows: int
    p99: int
    longest: int
    suggested: int
    choices: tuple[LengthChoice, ...]

    @property
    def sentence(self) -> str:
        """The suggestion and its price, for a person."""
        chosen = next(choice for choice in self.choices if choice.limit == self.suggested)
        if not chosen.longer:
            return (
                f"`training.max_seq_length: {self.suggested}` holds every row (the longest has {self.longest:,} tokens)"
            )
        return (
            f"`training.max_seq_length: {self.suggested}` leaves out {chosen.longer:,} of {self.rows:,} rows"
            f" (`data.overlength: drop`) and {chosen.saved_by_drop:.0%} of the tokens; the longest has {self.longest:,}"
        )


def suggested_length(lengths_N: np.ndarray | Sequence[int], positions: int | None = None) -> LengthAdvice:
    """What each `max_seq_length` would cost rows of these lengths (N training rows, in tokens, end token included).

    `positions`: how many the base has; no suggestion goes beyond. Raises ValueError without rows.

    >>> suggested_length([100] * 99 + [9000]).suggested, suggested_length([100, 130]).suggested
    (128, 192)
    """
    lengths_N = np.asarray(lengths_N, dtype=np.int64)
    longest, total = int(lengths_N.max()), int(lengths_N.sum())
    p99 = int(np.quantile(lengths_N, 0.99, method="inverted_cdf"))
    whole, most = _round_up(longest), _round_up(p99)
    tail = total - int(np.minimum(lengths_N, most).sum())
    suggested = min(most if tail >= WORTH_CUTTING * total else whole, positions or whole)
    limits = sorted(
        {limit for limit in (*ROUND_LENGTHS, most, whole, suggested) if limit <= whole or limit == suggested}
    )
    return LengthAdvice(len(lengths_N), p99, longest, suggested, tuple(_choice(lengths_N, limit) for limit in limits))


def _choice(lengths_N: np.ndarray, limit: int) -> LengthChoice:
    total, longer_N = int(lengths_N.sum()), lengths_N > limit
    by_cut = 1 - int(np.minimum(lengths_N, limit).sum()) / total
    return LengthChoice(limit, int(longer_N.sum()), by_cut, int(lengths_N[longer_N].sum()) / total)


def _round_up(length: int) -> int:
    return -(-length // 64) * 64
