"""ROUGE, chrF and BLEU against the libraries the field reports with, and where those give up."""

from __future__ import annotations

import random

import numpy as np
import pytest

from luthier.evaluation import overlap

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "it's",
    "well-known",
    "3",
    "30",
    "U.S.",
    "run_time,",
    ".",
    "!",
    "(see)",
    "café",
]
PIECES = [*WORDS, "고객의", "이름은", "東京へ", "123", "x", "  "]


def texts(n: int, words: list[str], seed: int) -> list[tuple[str, str]]:
    """Pairs of random texts that share words; some are empty, some equal."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(n):
        reference = [draw.choice(words) for _ in range(draw.randint(0, 12))]
        answer = [w for w in reference if draw.random() < 0.7] + [draw.choice(words) for _ in range(draw.randint(0, 4))]
        pairs.append((" ".join(answer), " ".join(reference)))
    return pairs


def test_rouge_is_rouge_score_on_english() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    for answer, reference in texts(400, [w for w in WORDS if w.isascii()], seed=1):
        theirs = scorer.score(reference, answer)
        assert overlap.rouge_n(answer, reference, 1) == pytest.approx(theirs["rouge1"].fmeasure)
        assert overlap.rouge_n(answer, reference, 2) == pytest.approx(theirs["rouge2"].fmeasure)
        assert overlap.rouge_l(answer, reference) == pytest.approx(theirs["rougeL"].fmeasure)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("고객의 이름은", "고객의 이름은 무엇"), ("東京へ行く", "東京に行く"), ("नमस्ते दुनिया", "नमस्ते")],
)
def test_rouge_sees_every_script(answer: str, reference: str) -> None:
    assert 0 < overlap.rouge_n(answer, reference, 1) < 1
    assert overlap.rouge_l(reference, reference) == 1


def test_chrf_is_sacrebleus() -> None:
    from sacrebleu.metrics.chrf import CHRF

    pairs, theirs = texts(200, PIECES, seed=2), CHRF()
    for answer, reference in pairs:
        ours = overlap.chrf(overlap.chrf_counts(answer, reference))
        assert float(ours) == pytest.approx(theirs.sentence_score(answer, [reference]).score, abs=1e-9)
    summed = np.sum([overlap.chrf_counts(*pair) for pair in pairs], axis=0)
    corpus = theirs.corpus_score([a for a, _ in pairs], [[r for _, r in pairs]]).score
    assert float(overlap.chrf(summed)) == pytest.approx(corpus, abs=1e-9)


def test_bleu_is_sacrebleus() -> None:
    from sacrebleu.metrics.bleu import BLEU

    pairs, one = texts(200, WORDS, seed=3), BLEU(effective_order=True)
    for answer, reference in pairs:
        ours = overlap.bleu(overlap.bleu_counts(answer, [reference]), effective_order=True)
        assert float(ours) == pytest.approx(one.sentence_score(answer, [reference]).score, abs=1e-9)
    for start, stop in [(0, 200), (0, 3), (40, 41), (90, 120)]:
        answers, references = zip(*pairs[start:stop], strict=True)
        summed = np.sum([overlap.bleu_counts(a, [r]) for a, r in pairs[start:stop]], axis=0)
        corpus = BLEU().corpus_score(list(answers), [list(references)]).score
        assert float(overlap.bleu(summed)) == pytest.approx(corpus, abs=1e-9)


def test_bleu_of_japanese_counts_letters() -> None:
    counts = overlap.bleu_counts("東京へ行く", ["東京に行く"])
    assert counts[-2:].tolist() == [5, 5]
    assert overlap.bleu(counts, effective_order=True) > 20
