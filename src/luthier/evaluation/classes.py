"""Scores of classes as functions of row weights: F1, MCC, AUC, calibration; the confusion matrix and the class table.

Pure maths: numpy and `Weighted`. Does not live here: which text is a row's class (`metrics.py`).

Letters: N rows, B resamples, C classes, G distinct scores, K bins. A class that is answered and is nobody's reference
is a class as well, as in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from luthier.evaluation import statistics
from luthier.evaluation.statistics import Weighted

BINS = 15  # of ECE, as Guo et al. 2017

Names = Sequence[str]


@dataclass(frozen=True, slots=True)
class OneClass:
    """A line of the class table. `n` rows are of the class, `answered` are said to be; None where nothing is divided.

    `low` and `high`: 95 % interval of the recall (Wilson).
    """

    name: str
    n: int
    answered: int
    hits: int
    precision: float | None
    recall: float | None
    f1: float
    low: float | None
    high: float | None


def confusion(gold: Names, said: Names) -> tuple[list[str], np.ndarray]:
    """(class names, counts_CC): rows are the references, columns the answers."""
    names, gold_N, said_N = _coded(gold, said)
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (gold_N, said_N), 1)
    return names, counts


def table(gold: Names, said: Names) -> list[OneClass]:
    """Precision, recall and F1 of each class, in the order of their names."""
    names, counts = confusion(gold, said)
    found = []
    for c, name in enumerate(names):
        n, answered, hits = int(counts[c].sum()), int(counts[:, c].sum()), int(counts[c, c])
        precision, recall = (hits / answered if answered else None), (hits / n if n else None)
        low, high = statistics.wilson(hits, n) if n else (None, None)
        found.append(OneClass(name, n, answered, hits, precision, recall, 2 * hits / (n + answered), low, high))
    return found


def f1(gold: Names, said: Names, average: Literal["macro", "micro"]) -> Weighted:
    """F1 over the classes that occur as reference or answer, as scikit-learn's default."""
    names, gold_N, said_N = _coded(gold, said)
    right_N = gold_N == said_N

    def of(weights_BN: np.ndarray) -> np.ndarray:
        hits_BC = _by_class(weights_BN * right_N, gold_N, len(names))
        sizes_BC = _by_class(weights_BN, gold_N, len(names)) + _by_class(weights_BN, said_N, len(names))
        if average == "micro":
            return 2 * hits_BC.sum(axis=1) / sizes_BC.sum(axis=1)
        present = sizes_BC > 0
        return np.where(present, 2 * hits_BC / np.where(present, sizes_BC, 1), 0).sum(axis=1) / present.sum(axis=1)

    return of


def mcc(gold: Names, said: Names) -> Weighted:
    """Matthews' correlation for any number of classes (Gorodkin 2004); 0 if all references or all answers agree."""
    names, gold_N, said_N = _coded(gold, said)
    right_N = gold_N == said_N

    def of(weights_BN: np.ndarray) -> np.ndarray:
        n_B, right_B = weights_BN.sum(axis=1), weights_BN @ right_N
        gold_BC, said_BC = (_by_class(weights_BN, of_N, len(names)) for of_N in (gold_N, said_N))
        cross_B = right_B * n_B - (gold_BC * said_BC).sum(axis=1)
        spread_B = (n_B**2 - (gold_BC**2).sum(axis=1)) * (n_B**2 - (said_BC**2).sum(axis=1))
        possible_B = spread_B > 0
        return np.where(possible_B, cross_B / np.sqrt(np.where(possible_B, spread_B, 1)), 0.0)

    return of


def auc(gold: Names, scores_NC: np.ndarray, classes: Names) -> Weighted:
    """Area under the ROC curve: of two classes the second against the first, of more the mean of each against the rest.

    `scores_NC` are the rows' probabilities of `classes`. Not a number if the rows are of fewer than two classes.
    """
    if len(classes) < 2:
        return lambda weights_BN: np.full(len(weights_BN), np.nan)
    gold_N = np.array(gold, object)
    curves = [
        _one_auc(scores_NC[:, c], gold_N == name)
        for c, name in enumerate(classes)
        if c or len(classes) > 2  # of two classes one curve says it all
    ]

    def of(weights_BN: np.ndarray) -> np.ndarray:
        areas_CB = np.stack([curve(weights_BN) for curve in curves])
        known = ~np.isnan(areas_CB)
        total = np.where(known, areas_CB, 0).sum(axis=0)
        return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), 0.5)

    return of


def _one_auc(scores_N: np.ndarray, positive_N: np.ndarray) -> Weighted:
    """Mann-Whitney's U over pairs, ties count half; nan where a resample lacks one of the two sides."""
    order = np.argsort(scores_N, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores_N[order]) > 0])  # one group per distinct score

    def of(weights_BN: np.ndarray) -> np.ndarray:
        sorted_BN = weights_BN[:, order]
        positive_BG = np.add.reduceat(sorted_BN * positive_N[order], starts, axis=1)
        negative_BG = np.add.reduceat(sorted_BN * ~positive_N[order], starts, axis=1)
        below_BG = np.cumsum(negative_BG, axis=1) - negative_BG / 2
        pairs_B = positive_BG.sum(axis=1) * negative_BG.sum(axis=1)
        wins_B = (positive_BG * below_BG).sum(axis=1)
        return np.where(pairs_B > 0, wins_B / np.where(pairs_B > 0, pairs_B, 1), np.nan)

    return of


def ece(right_N: np.ndarray, confidence_N: np.ndarray) -> Weighted:
    """Expected calibration error: how far confidence and accuracy lie apart, in bins of equal width (Guo et al. 2017).

    `confidence_N` is the probability the row gave its own answer; a bin holds its upper edge. A small sample makes it
    too large, and so does drawing rows again: its interval leans upwards.
    """
    bin_N = np.clip(np.ceil(confidence_N * BINS) - 1, 0, BINS - 1).astype(np.int64)
    gap_N = right_N - confidence_N

    def of(weights_BN: np.ndarray) -> np.ndarray:
        return np.abs(_by_class(weights_BN * gap_N, bin_N, BINS)).sum(axis=1) / weights_BN.sum(axis=1)

    return of


def _coded(gold: Names, said: Names) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The classes by name, and for each row the number of its class and of its answer."""
    names = sorted({*gold, *said})
    place = {name: c for c, name in enumerate(names)}
    gold_N, said_N = (np.array([place[name] for name in column], np.int64) for column in (gold, said))
    return names, gold_N, said_N


def _by_class(weights_BN: np.ndarray, class_N: np.ndarray, count: int) -> np.ndarray:
    """(B, C) the weights summed over the rows of each class; never a table of rows by classes."""
    order = np.argsort(class_N, kind="stable")
    present, starts = np.unique(class_N[order], return_index=True)
    sums_BC = np.zeros((len(weights_BN), count))
    sums_BC[:, present] = np.add.reduceat(weights_BN[:, order], starts, axis=1)
    return sums_BC
