"""Ours against scikit-learn, rouge-score and sacrebleu on random cases: 10,000 in all, a share of them by default."""

from __future__ import annotations

import random

import numpy as np
import pytest

from luthier.evaluation import classes, overlap
from luthier.evaluation.statistics import value

PIECES = ["the", "a", "cat", "dog", "sat", "it's", "well-known", "3", "30", "U.S.", "run_time,", ".", "!", "(see)", "x"]
SCRIPTS = ["고객의", "이름은", "東京へ", "مرحبا", "naïve", "🙂", "नमस्ते"]

# how many cases each library is asked, by default and with `-m slow`
few_and_all = [pytest.param(0.02, id="few"), pytest.param(1.0, id="all", marks=[pytest.mark.slow])]


def texts(draw: random.Random, pieces: list[str], glue: str = " ") -> tuple[str, str]:
    """An answer and a reference that share words; one in eight is empty, some are equal."""
    reference = [draw.choice(pieces) for _ in range(draw.randint(0, 14))]
    answer = [word for word in reference if draw.random() < 0.7] + [
        draw.choice(pieces) for _ in range(draw.randint(0, 4))
    ]
    if draw.random() < 0.3:
        draw.shuffle(answer)
    return tuple(glue.join(side) if draw.random() > 0.06 else "" for side in (answer, reference))  # type: ignore[return-value]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", few_and_all)
def test_rouge_is_rouge_score_on_english(share: float) -> None:
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(names)
    draw = random.Random(1)
    for case in range(int(4000 * share)):
        answer, reference = texts(draw, [*PIECES, "\n", "\n"])
        theirs = {name: score.fmeasure for name, score in scorer.score(reference, answer).items()}
        ours = [overlap.rouge_n(answer, reference, 1), overlap.rouge_n(answer, reference, 2)]
        ours += [overlap.rouge_l(answer, reference), overlap.rouge_lsum(answer, reference)]
        assert ours == pytest.approx([theirs[name] for name in names]), (case, answer, reference)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", few_and_all)
def test_bleu_chrf_and_ter_are_sacrebleus(share: float) -> None:
    from sacrebleu.metrics import BLEU, CHRF, TER

    draw, one = random.Random(2), (BLEU(effective_order=True), CHRF(), TER())
    of_many = (BLEU(), CHRF(), TER())
    rows = []
    for case in range(int(4000 * share)):
        answer, reference = texts(draw, PIECES if case % 2 else [word for word in SCRIPTS if word != "東京へ"])
        others = [texts(draw, PIECES)[0]] if case % 4 == 3 else []
        references = [reference, *others]
        chrf = max((overlap.chrf_counts(answer, each) for each in references), key=lambda c: float(overlap.chrf(c)))
        counts = [
            overlap.bleu_counts(answer, references),
            chrf,
            np.array(overlap.ter_counts(answer, tuple(references))),
        ]
        ours = [overlap.bleu(counts[0], True), overlap.chrf(counts[1]), overlap.ter(counts[2])]
        theirs = [metric.sentence_score(answer, references).score for metric in one]
        assert list(map(float, ours)) == pytest.approx(theirs, abs=1e-9), (case, answer, references)
        rows.append((answer, reference, counts if not others else None))
    single = [(answer, reference, counts) for answer, reference, counts in rows if counts is not None]
    for start in range(0, len(single) - 20, 20):
        answers, references, counted = zip(*single[start : start + 20], strict=True)
        sums = [np.sum([counts[k] for counts in counted], axis=0) for k in range(3)]
        ours = [overlap.bleu(sums[0]), overlap.chrf(sums[1]), overlap.ter(sums[2])]
        theirs = [metric.corpus_score(list(answers), [list(references)]).score for metric in of_many]
        assert list(map(float, ours)) == pytest.approx(theirs, abs=1e-9), start


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # scikit-learn's, of classes that only one side has
@pytest.mark.parametrize("share", few_and_all)
def test_scores_of_classes_are_scikit_learns(share: float) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(3)
    for case in range(int(2000 * share)):
        kinds, n = int(draw.integers(1, 6)), int(draw.integers(1, 60))
        shares = draw.dirichlet(np.ones(kinds), n).round(1) + 0.01
        shares /= shares.sum(axis=1, keepdims=True)
        gold_N = draw.integers(0, kinds, n)
        said_N = np.where(draw.random(n) < 0.5, gold_N, draw.integers(0, kinds + 1, n))  # `kinds`: nobody's reference
        gold, said = [str(c) for c in gold_N], [str(c) for c in said_N]
        ours = [classes.f1(gold, said, "macro"), classes.f1(gold, said, "micro"), classes.mcc(gold, said)]
        theirs = [sklearn.f1_score(gold, said, average=average, zero_division=0) for average in ("macro", "micro")]
        theirs.append(sklearn.matthews_corrcoef(gold, said))
        if kinds > 1 and len(set(gold)) == kinds:
            ours.append(classes.auc(gold, shares, sorted(set(gold))))
            theirs.append(sklearn.roc_auc_score(gold, shares[:, 1] if kinds == 2 else shares, multi_class="ovr"))
        assert [value(of, n) for of in ours] == pytest.approx(theirs), case
        names, counts = classes.confusion(gold, said)
        assert (counts == sklearn.confusion_matrix(gold, said, labels=names)).all(), case
        lines = classes.table(gold, said)
        told = sklearn.precision_recall_fscore_support(gold, said, labels=names, zero_division=0)
        mine = [[line.precision or 0, line.recall or 0, line.f1, line.n] for line in lines]
        assert np.allclose(mine, np.transpose(told)), case
