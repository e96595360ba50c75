"""What two texts share, where the field's libraries give up or have nothing. What they have: `test_parity.py`."""

from __future__ import annotations

import doctest
import random
from types import ModuleType

import pytest

from luthier.evaluation import forms, metrics, normalisers, overlap, sql_room, words


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("고객의 이름은", "고객의 이름은 무엇"), ("東京へ行く", "東京に行く"), ("नमस्ते दुनिया", "नमस्ते")],
)
def test_rouge_sees_every_script(answer: str, reference: str) -> None:
    assert 0 < overlap.rouge_n(answer, reference, 1) < 1
    assert overlap.rouge_l(reference, reference) == 1


def test_bleu_of_japanese_counts_letters() -> None:
    counts = overlap.bleu_counts("東京へ行く", ["東京に行く"])
    assert counts[-2:].tolist() == [5, 5]
    assert overlap.bleu(counts, effective_order=True) > 20


def test_ter_of_japanese_counts_letters() -> None:
    assert overlap.ter_counts("東京へ行く", ("東京に行く",)) == (1, 5)


def test_rouge_lsum_finds_each_word_of_the_answer_once() -> None:
    assert overlap.rouge_lsum("the cat", "the cat\nthe cat") == pytest.approx(2 * 2 / (2 + 4))
    assert overlap.rouge_lsum("東京へ行く\n名前は何", "名前は何\n東京へ行く") == 1
    assert overlap.rouge_l("東京へ行く\n名前は何", "名前は何\n東京へ行く") < 1  # one line: the order counts


def test_edits_are_levenshteins() -> None:
    def plain(a: str, b: str) -> int:
        above = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            row = [i]
            for j, y in enumerate(b, 1):
                row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
            above = row
        return above[-1]

    draw = random.Random(0)
    for _ in range(500):
        a, b = ("".join(draw.choice("ab東🙂") for _ in range(draw.randint(0, 80))) for _ in range(2))
        expected = 1 - plain(a, b) / max(len(a), len(b)) if a or b else 1
        assert overlap.edit_similarity(a, b) == pytest.approx(expected)
    assert (
        overlap.edit_similarity("한글", "\u1112\u1161\u11ab\u1100\u1173\u11af") == 1
    )  # the same letters, stored otherwise


def test_token_f1_of_nothing() -> None:
    assert [overlap.token_f1(*pair) for pair in [("", ""), ("a", ""), ("", "a")]] == [1, 0, 0]


@pytest.mark.parametrize("module", [overlap, normalisers, forms, metrics, sql_room, words])
def test_the_examples_are_true(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
