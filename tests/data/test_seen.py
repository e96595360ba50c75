"""What `look` shows: what each token adds to the text, and nothing invisible."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

from luthier.data import seen
from tests import tiny as models

TEXTS = (
    "Classify the ticket: my card was declined at the shop.",
    "Übersetze: 한국어 문장, 日本語の文, عربى. 👩‍👩‍👧 🎻!",
    "  two  spaces\n\n\tand a line ",
)


class Counted:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.decoded = tokenizer, 0

    def decode(self, ids: list[int], **wishes: Any) -> str:
        self.decoded += len(ids)
        return self.tokenizer.decode(ids, **wishes)


def by_definition(tokenizer: Any, ids: list[int]) -> list[str]:
    """The longest text so far, less what was shown already: right, and quadratic."""
    shown, text = [], ""
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = whole.rstrip("\ufffd")
        shown.append(whole[len(text) :])
        text = text if len(whole) < len(text) else whole
    return shown


@pytest.mark.parametrize("style", ["causal", "seq2seq", "encoder", "gpt2"])
def test_the_pieces_are_the_text_and_each_token_is_decoded_a_few_times(style: str) -> None:
    tokenizer = models.tokenizer(style)
    for text in TEXTS:
        ids = tokenizer(text * 20).input_ids
        counted = Counted(tokenizer)
        pieces = seen.pieces(counted, ids)
        assert list(pieces) == by_definition(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert counted.decoded < 16 * len(ids)


def test_tokens_of_no_text_come_to_an_end_too() -> None:
    tokenizer = models.tokenizer()
    for seed in range(20):
        ids = np.random.default_rng(seed).integers(0, models.VOCABULARY, 60).tolist()
        assert list(seen.pieces(tokenizer, ids)) == by_definition(tokenizer, ids)


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (" two  words", "␣two␣␣words"),
        ("a\r\n\tb", "a\\u000d↵\n⇥b"),
        ("zero\u200bwidth\u00a0\u202eturned", "zero\\u200bwidth\\u00a0\\u202eturned"),
        ("\x1b[31mred", "\\u001b[31mred"),
        ("한국어 e\u0301 🎻", "한국어␣e\u0301␣🎻"),
        ("\U000e0041", "\\U000e0041"),
        ("", "⋯"),
    ],
)
def test_nothing_in_a_token_is_invisible_and_nothing_steers_a_terminal(piece: str, shown: str) -> None:
    stretches = list(seen.marked(piece))
    assert "".join(text for text, _ in stretches) == shown
    assert all(is_mark or text in piece for text, is_mark in stretches)


def test_special_tokens_are_those_that_the_tokenizer_finds_whole() -> None:
    tokenizer = models.tokenizer()
    tokenizer.add_tokens(["<think>"])
    ids = tokenizer("a <think> </s> < s >").input_ids
    special = seen.special_ids(tokenizer)
    named = [piece for piece, token in zip(seen.pieces(tokenizer, ids), ids, strict=True) if token in special]
    assert [name.strip() for name in named] == ["<s>", "<think>", "</s>"]


def test_doctests() -> None:
    assert doctest.testmod(seen).failed == 0
