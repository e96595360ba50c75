"""What an answer is worth: a table of metrics, each giving a value per row and one Score with its 95 % interval.

Lives here: the table, its defaults by task, and a plain Python function as a metric.
Does not live here: how intervals are made (`statistics.py`), text overlap (`overlap.py`), running SQL (`sql.py`).

Letters: N rows, B resamples, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from luthier import plugins
from luthier.errors import DataError
from luthier.evaluation import overlap, statistics
from luthier.evaluation.sql import same_result
from luthier.evaluation.statistics import Weighted
from luthier.runs import Score

SETUP_COLUMN = "setup"  # the column whose CREATE and INSERT statements make a row's database


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row as one model answered it. The first of `references` is the one that is shown; any of them is right.

    `probabilities` by class name, empty where there are no classes. `nll` is the negative log-likelihood (nats) of the
    reference's `tokens` tokens given the prompt, None where it was not computed. `columns` are the row's own columns.
    `judged`: what a judge's verdict is worth, None without one; `rationale`: its words.
    """

    id: str
    where: str
    prompt: str
    references: tuple[str, ...]
    answer: str
    stopped: bool = True
    probabilities: Mapping[str, float] = field(default_factory=dict)
    nll: float | None = None
    tokens: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)
    judged: float | None = None
    rationale: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """A name and what it means.

    kind "share": rows are right (1) or wrong (0); Wilson and McNemar. "mean": the mean of the rows; bootstrap and
    permutation. "whole": `whole` makes a function of row weights from all rows; the same tests, `row` is for reading.
    `row` gives None where the metric has no meaning for the row, which then does not count in n.
    """

    name: str
    title: str
    kind: Literal["share", "mean", "whole"]
    row: Callable[[Prediction], float | None]
    whole: Callable[[Sequence[Prediction]], Weighted] | None = None
    higher_is_better: bool = True
    top: float | None = 1.0  # the scale's upper end, None if it has none
    rule: str = ""  # what counts, in words


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric over a set of predictions; `rows` stand in the order of the predictions."""

    score: Score
    rows: tuple[float | None, ...]


def measure(metric: Metric, predictions: Sequence[Prediction]) -> Measured | None:
    """The score with its interval, or None if the rows do not have what the metric needs."""
    rows = tuple(metric.row(prediction) for prediction in predictions)
    usable = [(p, v) for p, v in zip(predictions, rows, strict=True) if v is not None]
    if not usable:
        return None
    n = len(usable)
    of = weighted(metric, [p for p, _ in usable], [v for _, v in usable])
    value = statistics.value(of, n)
    if not np.isfinite(value):
        return None
    if metric.kind == "share":
        low, high = statistics.wilson(sum(v for _, v in usable), n)
    else:
        low, high = statistics.bootstrap(of, n)
    return Measured(Score(value, min(low, value), max(high, value), n), rows)


def weighted(metric: Metric, predictions: Sequence[Prediction], rows: Sequence[float]) -> Weighted:
    """The metric as a function of row weights."""
    return statistics.mean_of(rows) if metric.whole is None else metric.whole(predictions)


def by_name(names: Iterable[str | Callable[..., Any]], *, dotted_paths: bool = False) -> list[Metric]:
    """Metrics by name (built in, from an installed package, or "module:function" where allowed), or plain functions.

    Raises SpecError for an unknown name, with the nearest known one.
    """
    found = []
    for name in names:
        known = plugins.find("metric", name, METRICS, dotted_paths=dotted_paths) if isinstance(name, str) else name
        found.append(known if isinstance(known, Metric) else from_function(known))
    return found


def from_function(function: Callable[..., Any], name: str | None = None) -> Metric:
    """A metric from `function(answer, reference, columns)`, which returns a bool (right or wrong) or a number.

    Right-or-wrong functions are declared by their return annotation `-> bool`; anything else is averaged.
    """
    name = name or function.__name__
    right_or_wrong = function.__annotations__.get("return") in (bool, "bool")

    def row(p: Prediction) -> float | None:
        try:
            values = [function(p.answer, reference, dict(p.columns)) for reference in p.references]
        except Exception as error:
            raise DataError(f"metric `{name}` failed: {type(error).__name__}: {error}", where=p.where) from error
        known = [float(value) for value in values if value is not None]
        return max(known) if known else None

    return Metric(name, name.replace("_", " "), "share" if right_or_wrong else "mean", row, top=None)


def default_metrics(task: str, columns: Collection[str] = (), labels: Sequence[str] = ()) -> tuple[str, ...]:
    """Metric names for a task, the one the verdict leads with first.

    >>> default_metrics("classification", labels=("no", "yes"))
    ('accuracy', 'macro_f1', 'auc')
    >>> default_metrics("generation", columns=("input", "output", "setup"))
    ('exact_match', 'sql_execution', 'perplexity')
    """
    if task == "classification":
        return ("accuracy", "macro_f1", "auc") if len(labels) == 2 else ("accuracy", "macro_f1")
    if SETUP_COLUMN in columns:
        return ("exact_match", "sql_execution", "perplexity")
    return {
        "summarization": ("rougeL", "rouge1", "rouge2", "chrf", "perplexity"),
        "translation": ("chrf", "bleu", "exact_match", "perplexity"),
        "chat": ("rougeL", "chrf", "exact_match", "perplexity"),
    }.get(task, ("exact_match", "rougeL", "chrf", "perplexity"))


def clean(text: str, end_tokens: Sequence[str] = ()) -> str:
    """The normalisation of exact match: end tokens off the end, white space off both ends, nothing else.

    >>> clean(" SELECT 1 <|im_end|>\\n<|im_end|>", ["<|im_end|>", "</s>"])
    'SELECT 1'
    """
    text = text.strip()
    while end := next((token for token in end_tokens if token and text.endswith(token)), None):
        text = text[: -len(end)].strip()
    return text


# ---------------------------------------------------------------------------------------------------------------- rows


def _is_right(p: Prediction) -> float:
    return float(p.answer.strip() in {reference.strip() for reference in p.references})


def _is_json(p: Prediction) -> float:
    def refuse(word: str) -> None:
        raise ValueError(word)  # NaN and Infinity are Python's, not JSON's

    try:
        json.loads(p.answer, parse_constant=refuse)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _runs_like_reference(p: Prediction) -> float | None:
    if not isinstance(setup := p.columns.get(SETUP_COLUMN), str):
        return None
    found = [same_result(p.answer, reference, setup) for reference in p.references]
    known = [value for value in found if value is not None]
    return float(any(known)) if known else None


def _best(compare: Callable[[str, str], float]) -> Callable[[Prediction], float]:
    return lambda p: max(compare(p.answer, reference) for reference in p.references)


def _chrf_counts(p: Prediction) -> np.ndarray:
    options = [overlap.chrf_counts(p.answer, reference) for reference in p.references]
    return max(options, key=lambda counts: float(overlap.chrf(counts)))


def _bleu_counts(p: Prediction) -> np.ndarray:
    return overlap.bleu_counts(p.answer, p.references)


def _per_token(p: Prediction) -> float | None:
    return float(np.exp(p.nll / p.tokens)) if p.nll is not None and p.tokens else None


def _probability_of_right(p: Prediction) -> float | None:
    return p.probabilities.get(p.references[0], 0.0) if p.probabilities else None


# ---------------------------------------------------------------------------------------------------------- whole sets


def _counted(counts: Callable[[Prediction], np.ndarray], score: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A corpus score: a function of the summed counts of its rows."""

    def whole(predictions: Sequence[Prediction]) -> Weighted:
        table = np.stack([counts(p) for p in predictions]).astype(np.float64)
        return lambda weights_BN: score(weights_BN @ table)

    return whole


def _perplexity(predictions: Sequence[Prediction]) -> Weighted:
    sums = np.array([[p.nll or 0.0, p.tokens] for p in predictions])

    def of(weights_BN: np.ndarray) -> np.ndarray:
        nll, tokens = np.moveaxis(weights_BN @ sums, -1, 0)
        return np.exp(nll / tokens)

    return of


def _f1(average: Literal["macro", "micro"]) -> Callable[[Sequence[Prediction]], Weighted]:
    """F1 over the classes that occur as reference or answer, as scikit-learn's default."""

    def whole(predictions: Sequence[Prediction]) -> Weighted:
        pairs = [(p.references[0].strip(), p.answer.strip()) for p in predictions]
        place = {name: c for c, name in enumerate(sorted({name for pair in pairs for name in pair}))}
        gold_NC, said_NC = (np.eye(len(place))[[place[pair[k]] for pair in pairs]] for k in (0, 1))

        def of(weights_BN: np.ndarray) -> np.ndarray:
            hits_BC = weights_BN @ (gold_NC * said_NC)
            sizes_BC = weights_BN @ (gold_NC + said_NC)
            if average == "micro":
                return 2 * hits_BC.sum(axis=1) / sizes_BC.sum(axis=1)
            present = sizes_BC > 0
            return np.where(present, 2 * hits_BC / np.where(present, sizes_BC, 1), 0).sum(axis=1) / present.sum(axis=1)

        return of

    return whole


def _auc(predictions: Sequence[Prediction]) -> Weighted:
    """Area under the ROC curve: of two classes the second against the first, of more the mean of each against the rest.

    Not a number if the rows know fewer than two classes.
    """
    classes = sorted({p.references[0] for p in predictions})
    if len(classes) < 2:
        return lambda weights_BN: np.full(len(weights_BN), np.nan)
    curves = [
        _one_auc(
            np.array([p.probabilities.get(name, 0.0) for p in predictions]),
            np.array([p.references[0] == name for p in predictions]),
        )
        for name in (classes if len(classes) > 2 else classes[1:])
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


def confusion(predictions: Sequence[Prediction]) -> tuple[list[str], np.ndarray]:
    """(class names, counts_CC): rows are the references, columns the answers."""
    names = sorted({p.references[0].strip() for p in predictions} | {p.answer.strip() for p in predictions})
    place = {name: c for c, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    for p in predictions:
        counts[place[p.references[0].strip()], place[p.answer.strip()]] += 1
    return names, counts


# ----------------------------------------------------------------------------------------------------------- the table

_SAME = "the answer equals a reference once end tokens and surrounding white space are stripped"
_WORDS = "words of any language, folded; letters of scripts without spaces count one by one; no stemming"
_ALL = (
    Metric("exact_match", "exact match", "share", _is_right, rule=_SAME),
    Metric("accuracy", "accuracy", "share", _is_right, rule="the class answered is the class of the row"),
    Metric("macro_f1", "macro-F1", "whole", _is_right, _f1("macro"), rule="the mean of the classes' F1"),
    Metric("micro_f1", "micro-F1", "whole", _is_right, _f1("micro"), rule="F1 over all classes at once"),
    Metric("auc", "AUC", "whole", _probability_of_right, _auc, rule="chance that a row of a class ranks above others"),
    Metric("rouge1", "ROUGE-1", "mean", _best(lambda a, b: overlap.rouge_n(a, b, 1)), rule=_WORDS),
    Metric("rouge2", "ROUGE-2", "mean", _best(lambda a, b: overlap.rouge_n(a, b, 2)), rule=_WORDS),
    Metric("rougeL", "ROUGE-L", "mean", _best(overlap.rouge_l), rule=_WORDS),
    Metric(
        "chrf",
        "chrF",
        "whole",
        lambda p: float(overlap.chrf(_chrf_counts(p))),
        _counted(_chrf_counts, overlap.chrf),
        top=100.0,
        rule="character n-grams of 1 to 6, recall counts twice (sacrebleu's chrF2)",
    ),
    Metric(
        "bleu",
        "BLEU",
        "whole",
        lambda p: float(overlap.bleu(_bleu_counts(p), effective_order=True)),
        _counted(_bleu_counts, overlap.bleu),
        top=100.0,
        rule="sacrebleu's BLEU, tokens 13a, smoothing exp; letters of scripts without spaces stand alone",
    ),
    Metric(
        "perplexity",
        "perplexity",
        "whole",
        _per_token,
        _perplexity,
        higher_is_better=False,
        top=None,
        rule="exp of the mean negative log-likelihood per token of the reference, end token included",
    ),
    Metric(
        "sql_execution",
        "SQL execution",
        "share",
        _runs_like_reference,
        rule="answer and reference give the same rows in sqlite, in order if the reference sorts",
    ),
    Metric("json_valid", "valid JSON", "share", _is_json, rule="the whole answer parses as JSON (RFC 8259)"),
    Metric("judge", "judge", "mean", lambda p: p.judged, top=None, rule="what a model says of it (`evaluation.judge`)"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
