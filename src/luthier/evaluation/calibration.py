"""How far a judge can be trusted: its verdicts beside those of people on the same answers.

Lives here: the file of labelled answers, agreement and kappa. Does not live here: asking the judge (`judge.py`).

Letters: N labelled answers, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.data import sources
from luthier.errors import DataError
from luthier.evaluation import statistics
from luthier.evaluation.metrics import Prediction
from luthier.evaluation.statistics import Weighted
from luthier.evaluation.verdicts import Asked, Mode, on_scale

COLUMNS = ("id", "prompt", "reference", "answer", "other", "label")


@dataclass(frozen=True, slots=True)
class Labelled:
    """One answer with a person's verdict on it; what a row leaves out is taken from the test row of that `id`."""

    where: str
    columns: Mapping[str, str]
    label: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """Share of answers on which judge and people agree, kappa with its 95 % interval; None where it means nothing."""

    share: float | None = None
    kappa: float | None = None
    low: float | None = None
    high: float | None = None


def read(path: str, mode: Mode) -> list[Labelled]:
    """The labelled answers in a file (jsonl, csv, parquet, …). Raises NotFound, DataError with file:line.

    Columns: `label` (in the judge's own words: 0 or 1, 1 to 5, A/B/tie), and either `id`, or `prompt` and `answer`;
    `reference`; for a pair `other`, the answer shown as B.
    """
    found = []
    for row, file, line in sources.rows(path):
        where = f"{file}:{line}"
        label = on_scale(row.get("label"), mode)
        if label is None:
            raise DataError(f"`label` is {row.get('label')!r}, not a verdict of `{mode}`", where, _HINT[mode])
        columns = {name: str(row[name]) for name in COLUMNS[:-1] if row.get(name) not in (None, "")}
        needed = {"answer", "other"} if mode == "pairwise" else {"answer"}
        if "id" not in columns and not {"prompt", *needed} <= columns.keys():
            told = ", ".join(sorted({"prompt", *needed}))
            raise DataError(
                "a labelled answer needs the `id` of a test row, or its own text", where, f"columns: {told}"
            )
        found.append(Labelled(where, columns, label))
    if not found:
        raise DataError("no labelled answer", where=path)
    return found


_HINT: Mapping[Mode, str] = {
    "reference": "1 for a correct answer, 0 for a wrong one",
    "rubric": "a grade from 1 to 5",
    "pairwise": "A if `answer` is better, B if `other` is, tie",
}


def as_asked(
    one: Labelled, tuned: Mapping[str, Prediction], base: Mapping[str, Prediction], pair: bool
) -> Asked | None:
    """What the judge is asked to be compared with this label; None if its row is not among those of the test."""
    given, row = one.columns, tuned.get(one.columns.get("id", ""))
    other = base.get(one.columns.get("id", ""))
    if row is None and not {"prompt", "answer"} <= given.keys():
        return None
    references = (given["reference"],) if "reference" in given else row.references if row else ()
    beside = given.get("other", other.answer if other else None) if pair else None
    if pair and beside is None:
        return None
    prompt, answer = given.get("prompt", row.prompt if row else ""), given.get("answer", row.answer if row else "")
    return Asked(prompt, references, answer, beside)


def agreement(pairs: Sequence[tuple[int, int]]) -> Agreement:
    """Judge and person on the same answers.

    >>> told = agreement([(1, 1)] * 20 + [(0, 0)] * 15 + [(1, 0)] * 5 + [(0, 1)] * 10)
    >>> told.share, round(told.kappa, 4), told.low < told.kappa < told.high
    (0.7, 0.4, True)
    """
    if not pairs:
        return Agreement()
    judge_N, person_N = np.array(pairs, np.float64).T
    n, of = len(pairs), kappa(judge_N, person_N)
    share = float((judge_N == person_N).mean())
    if len({*judge_N, *person_N}) == 1:
        return Agreement(share)
    low, high = statistics.bootstrap(of, n)
    value = statistics.value(of, n)
    return Agreement(share, value, min(low, value), max(high, value))


def kappa(judge_N: np.ndarray, person_N: np.ndarray) -> Weighted:
    """Cohen's kappa with squared distances as weights (Cohen 1968), which for two verdicts is the plain one (1960).

    1 - (squared distance seen) / (squared distance by chance), of which the second needs only the moments of both. A
    resample in which all verdicts are the same tells nothing and counts as 0.
    """

    def of(weights_BN: np.ndarray) -> np.ndarray:
        n_B = weights_BN.sum(axis=1)
        seen_B = weights_BN @ (judge_N - person_N) ** 2 / n_B
        means_B = (weights_BN @ judge_N) * (weights_BN @ person_N) / n_B**2
        chance_B = weights_BN @ (judge_N**2 + person_N**2) / n_B - 2 * means_B
        known_B = chance_B > 1e-12
        return np.where(known_B, 1 - seen_B / np.where(known_B, chance_B, 1), 0.0)

    return of
