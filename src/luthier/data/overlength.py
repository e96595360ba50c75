"""The length policy: what is left of a row that is longer than it may be, or why it is refused.

Lives here: `data.overlength`. Does not live here: the tokens of a row (`encode.py`), the limits (`layout.Rules`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from luthier.data.examples import Encoded, Example
from luthier.data.layout import Rules
from luthier.errors import DataError


@dataclass(frozen=True, slots=True)
class Tokens:
    """An example's tokens before the length policy. `start`: where generation begins. `spelled`: see `Encoded`."""

    ids: list[int]
    train: np.ndarray
    start: int
    label: int = -1
    spelled: int = -1


def under_policy(example: Example, tokens: Tokens, kept: Tokens, rules: Rules) -> tuple[Encoded | None, str]:
    """What becomes of a row that is too long, where that is not refused."""
    name = f"{example.where}: {_size(tokens, rules)} tokens"
    if rules.overlength == "drop":
        return None, f"{name}, {_room(rules)} are allowed"
    if rules.family != "encoder" and not kept.train.any():
        return None, f"{name}, of which the first {_room(rules)} hold nothing to train"
    return encoded(example, kept, cut=True), f"{name}, the first {_room(rules)} are used"


def encoded(example: Example, kept: Tokens, cut: bool = False) -> Encoded:
    """What is left of a row."""
    spelled = kept.spelled if kept.spelled < len(kept.ids) else -1
    return Encoded(example.id, np.asarray(kept.ids, np.int32), kept.train, kept.label, cut, spelled)


def shortened(tokens: Tokens, rules: Rules, closing: list[int]) -> Tokens:
    """What `cut` leaves: the first tokens of source and target as the positions allow, of both as the limit does.

    The closing token ([SEP], </s>) of an encoder's text or of a source is kept, as its tokenizer truncates.
    """
    if rules.sides is not None:
        source, target = rules.sides
        ids = _first(tokens.ids[: tokens.start], source, closing)
        train = np.concatenate([tokens.train[: len(ids)], tokens.train[tokens.start :][:target]])
        answer = tokens.ids[tokens.start :][:target]
        tokens = dataclasses.replace(tokens, ids=ids + answer, train=train, start=len(ids))
    if rules.max_seq_length is None:
        return tokens
    ids = _first(tokens.ids, rules.max_seq_length, closing if rules.family == "encoder" else [])
    if ids is tokens.ids:
        return tokens
    return dataclasses.replace(tokens, ids=ids, train=tokens.train[: len(ids)])


def _first(ids: list[int], limit: int, closing: list[int]) -> list[int]:
    return ids if len(ids) <= limit else ids[: max(limit - len(closing), 0)] + closing


def _size(tokens: Tokens, rules: Rules) -> str:
    """A row's length for a person: of a seq2seq model with positions, source + target."""
    if rules.sides is None:
        return f"{len(tokens.ids):,}"
    return f"{tokens.start:,} + {len(tokens.ids) - tokens.start:,}"


def _room(rules: Rules) -> str:
    if rules.sides is None:
        return f"{rules.max_seq_length:,}"
    in_all = rules.max_seq_length is not None and rules.max_seq_length < sum(rules.sides)
    return " + ".join(f"{side:,}" for side in rules.sides) + (f" ({rules.max_seq_length:,} in all)" if in_all else "")


@dataclass(slots=True)
class Long:
    """The rows that are refused as too long: how many, where the first ones stand, the longest."""

    rules: Rules
    count: int = 0
    shown: list[str] = field(default_factory=list)
    longest: Tokens | None = None
    beyond_positions: bool = False

    def add(self, tokens: Tokens, where: str) -> None:
        self.count += 1
        self.shown += [where] if len(self.shown) < 5 else []
        if self.longest is None or len(tokens.ids) > len(self.longest.ids):
            self.longest = tokens
        if self.rules.sides is not None and not self.beyond_positions:
            self.beyond_positions = len(shortened(tokens, no_limit(self.rules), []).ids) < len(tokens.ids)

    def error(self, rows: int) -> DataError:
        """The refusal, of so many rows in all."""
        rules, longest = self.rules, self.longest
        assert longest is not None
        of = "" if rules.sides is None else " (source + target)"
        hint = f"training.max_seq_length: {len(longest.ids)} if the model allows it; or data.overlength: drop, or cut"
        if self.beyond_positions:
            hint = f"the model has {rules.positions:,} positions for each: data.overlength: drop, or cut"
        return DataError(
            f"{self.count:,} of {rows:,} rows are longer than {_room(rules)} tokens{of}, the longest "
            f"{_size(longest, rules)}",
            ", ".join(self.shown) + (", …" if self.count > len(self.shown) else ""),
            hint,
        )


def no_limit(rules: Rules) -> Rules:
    return dataclasses.replace(rules, max_seq_length=None)
