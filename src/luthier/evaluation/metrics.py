"""What an answer is worth: the table of metrics, and which of them a task has by default.

Lives here: what each metric asks of a row. Does not live here: what a metric is (`measuring.py`), what two texts share
(`overlap.py`), what exact match overlooks (`normalisers.py`), the form of an answer (`forms.py`), scores of classes
(`classes.py`), running SQL (`sql.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from luthier import plugins
from luthier.errors import SpecError, did_you_mean
from luthier.evaluation import classes, forms, overlap
from luthier.evaluation.measuring import (
    Family,
    Measured,
    Metric,
    Prediction,
    from_function,
    groups_of,
    measure,
    weighted,
)
from luthier.evaluation.normalisers import NORMALISERS, last_number, squad
from luthier.evaluation.sql import same_result
from luthier.evaluation.statistics import Weighted

__all__ = [
    "FAMILIES",
    "METRICS",
    "Measured",
    "Metric",
    "Prediction",
    "by_name",
    "clean",
    "default_metrics",
    "from_function",
    "groups_of",
    "measure",
    "weighted",
]

SETUP_COLUMN = "setup"  # the column whose CREATE and INSERT statements make a row's database


def by_name(names: Iterable[str | Callable[..., Any]], *, dotted_paths: bool = False) -> list[Metric]:
    """Metrics by name, each once: built in (`exact_match`, `regex:PATTERN`), from an installed package, or
    "module:function" where allowed; or plain functions.

    Raises SpecError for an unknown name or argument, with the nearest known one; NotFound for a missing schema file.
    """
    found: dict[str, Metric] = {}
    for name in names:
        metric = _named(name, dotted_paths) if isinstance(name, str) else from_function(name)
        found.setdefault(metric.name, metric)
    return list(found.values())


def _named(name: str, dotted_paths: bool) -> Metric:
    first, colon, argument = name.partition(":")
    if first in FAMILIES and (colon or first not in METRICS):
        family = FAMILIES[first]
        if not argument:
            written = f"{first}:{family.argument}"
            raise SpecError(f"`{first}` needs to be told what: `{written}`", hint=f"write `{written}`")
        return family.make(argument)
    if first in METRICS and colon:
        raise SpecError(f"`{name}`: `{first}` takes nothing after a colon", hint=f"write `{first}`")
    if colon and not dotted_paths and (hint := did_you_mean(first, [*METRICS, *FAMILIES])):
        raise SpecError(f"there is no metric `{first}`", hint=hint)
    offered = plugins.find("metric", name, FAMILIES | METRICS, dotted_paths=dotted_paths, ready=Metric)
    return offered if isinstance(offered, Metric) else from_function(offered, name)


def default_metrics(task: str, columns: Collection[str] = (), labels: Sequence[str] = ()) -> tuple[str, ...]:
    """Metric names for a task, the one the verdict leads with first. None of them is slow.

    >>> default_metrics("classification", labels=("no", "yes"))
    ('accuracy', 'macro_f1', 'mcc', 'auc', 'ece')
    >>> default_metrics("generation", columns=("input", "output", "setup"))
    ('exact_match', 'sql_execution', 'perplexity')
    """
    if task == "classification":  # a closed set of classes has probabilities
        return ("accuracy", "macro_f1", "mcc", *(["auc"] if len(labels) == 2 else []), *(["ece"] if labels else []))
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


def _best(compare: Callable[[str, str], float]) -> Callable[[Prediction], float]:
    return lambda p: max(compare(p.answer, reference) for reference in p.references)


def _asks(question: Callable[[str], bool]) -> Callable[[Prediction], float]:
    return lambda p: float(question(p.answer))


def _same(normalise: Callable[[str], str]) -> Callable[[Prediction], float]:
    return lambda p: float(normalise(p.answer) in {normalise(reference) for reference in p.references})


_is_right = _same(str.strip)


def _same_number(p: Prediction) -> float | None:
    wanted = {last_number(reference) for reference in p.references} - {None}
    return float(last_number(p.answer) in wanted) if wanted else None


def _runs_like_reference(p: Prediction) -> float | None:
    if not isinstance(setup := p.columns.get(SETUP_COLUMN), str):
        return None
    found = [same_result(p.answer, reference, setup) for reference in p.references]
    known = [value for value in found if value is not None]
    return float(any(known)) if known else None


def _token_f1(answer: str, reference: str) -> float:
    return overlap.token_f1(squad(answer), squad(reference))


def _chrf_counts(p: Prediction) -> np.ndarray:
    options = [overlap.chrf_counts(p.answer, reference) for reference in p.references]
    return max(options, key=lambda counts: float(overlap.chrf(counts)))


def _bleu_counts(p: Prediction) -> np.ndarray:
    return overlap.bleu_counts(p.answer, p.references)


def _ter_counts(p: Prediction) -> np.ndarray:
    return np.array(overlap.ter_counts(p.answer, p.references))


def _per_token(p: Prediction) -> float | None:
    return float(np.exp(p.nll / p.tokens)) if p.nll is not None and p.tokens else None


def _probability_of_right(p: Prediction) -> float | None:
    return p.probabilities.get(p.references[0], 0.0) if p.probabilities else None


def _confidence(p: Prediction) -> float:
    return p.probabilities.get(p.answer, 0.0)


def _overconfidence(p: Prediction) -> float | None:
    return abs(_is_right(p) - _confidence(p)) if p.probabilities else None


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


def _sides(predictions: Sequence[Prediction]) -> tuple[list[str], list[str]]:
    """The class of each row, and the one answered."""
    return [p.references[0].strip() for p in predictions], [p.answer.strip() for p in predictions]


def _f1(average: Literal["macro", "micro"]) -> Callable[[Sequence[Prediction]], Weighted]:
    return lambda predictions: classes.f1(*_sides(predictions), average)


def _mcc(predictions: Sequence[Prediction]) -> Weighted:
    return classes.mcc(*_sides(predictions))


def _auc(predictions: Sequence[Prediction]) -> Weighted:
    gold = [p.references[0] for p in predictions]
    names = sorted(set(gold))
    return classes.auc(gold, np.array([[p.probabilities.get(name, 0.0) for name in names] for p in predictions]), names)


def _ece(predictions: Sequence[Prediction]) -> Weighted:
    return classes.ece(np.array([_is_right(p) for p in predictions]), np.array([_confidence(p) for p in predictions]))


def confusion(predictions: Sequence[Prediction]) -> tuple[list[str], np.ndarray]:
    """(class names, counts_CC): rows are the references, columns the answers."""
    return classes.confusion(*_sides(predictions))


def by_class(predictions: Sequence[Prediction]) -> list[classes.OneClass]:
    """Precision, recall, F1 and n of each class that occurs as reference or answer."""
    return classes.table(*_sides(predictions))


# ----------------------------------------------------------------------------------------------------------- the table


def _exact(argument: str) -> Metric:
    if argument not in NORMALISERS:
        hint = did_you_mean(argument, NORMALISERS) or f"known: {', '.join(NORMALISERS)}"
        raise SpecError(f"`exact_match:{argument}`: exact match knows no `{argument}`", hint=hint)
    if argument == "strip":
        return METRICS["exact_match"]
    normalise, overlooked = NORMALISERS[argument]
    rule = f"the answer equals a reference; what does not count: {overlooked}"
    return Metric(f"exact_match:{argument}", f"exact match ({argument})", "share", _same(normalise), rule=rule)


def _pattern(argument: str) -> Metric:
    rule = f"`{argument}` is found in the answer"
    return Metric(f"regex:{argument}", f"regex {argument}", "share", _asks(forms.has(argument)), rule=rule)


def _schema(argument: str) -> Metric:
    rule = f"the whole answer is JSON that the schema {argument} allows"
    title = f"JSON schema {argument.rpartition('/')[2]}"
    return Metric(f"json_schema:{argument}", title, "share", _asks(forms.fits(argument)), rule=rule)


def _worse(name: str, title: str, row: Any, whole: Any, top: float | None, rule: str, source: str) -> Metric:
    """A whole metric of which less is better."""
    return Metric(name, title, "whole", row, whole, higher_is_better=False, top=top, rule=rule, source=source)


def _corpus(name: str, title: str, counts: Any, score: Any, one: Any, rule: str) -> Metric:
    """A sacrebleu metric on 0 to 100: `score` of summed counts; `one` the same for a single row."""
    whole = _counted(counts, score)
    return Metric(
        name, title, "whole", lambda p: float(one(counts(p))), whole, top=100.0, rule=rule, source="sacrebleu"
    )


_STRIPPED = "the answer equals a reference once end tokens and surrounding white space are stripped"
_WORDS = "words of any language, folded; letters of scripts without spaces count one by one; no stemming"
_CHRF = "character n-grams of 1 to 6, recall counts twice (chrF2)"
_BLEU = "n-grams of 1 to 4 words, tokens 13a, smoothing exp; letters of scripts without spaces stand alone"
_TER = (
    "edits per word of the reference in per cent, a moved phrase is one; letters of scripts without spaces stand alone"
)
_PERPLEXITY = "exp of the mean negative log-likelihood per token of the reference, end token included"
_ECE = "how far the probability of the answer lies from how often it is right, over 15 bins; small samples raise it"
_SQL = "answer and reference give the same rows in sqlite, in order if the reference sorts"
_NUMBER = "the last number in the answer equals the last one in a reference, however it is written"
_F1_WORDS = "words in common once case, punctuation and English articles are gone (SQuAD)"
_EDITS = "1 less the single-character edits over the longer text's length"
_LIN, _LEARN, _SQUAD = "Lin 2004; rouge-score on English", "scikit-learn", "Rajpurkar et al. 2016"


def _share(name: str, title: str, row: Callable[[Prediction], float | None], rule: str, source: str = "") -> Metric:
    return Metric(name, title, "share", row, rule=rule, source=source)


def _mean(name: str, title: str, compare: Callable[[str, str], float], rule: str, source: str) -> Metric:
    return Metric(name, title, "mean", _best(compare), rule=rule, source=source)


def _of_classes(name: str, title: str, row: Any, whole: Any, rule: str) -> Metric:
    return Metric(name, title, "whole", row, whole, rule=rule, source=_LEARN)


_ALL = (
    _share("exact_match", "exact match", _is_right, _STRIPPED),
    _share("number", "number equality", _same_number, _NUMBER, "as GSM8K is scored"),
    _share("sql_execution", "SQL execution", _runs_like_reference, _SQL, "as Spider and WikiSQL are scored"),
    _share("json_valid", "valid JSON", _asks(forms.is_json), "the whole answer parses as JSON", "RFC 8259"),
    _share("accuracy", "accuracy", _is_right, "the class answered is the class of the row", _LEARN),
    _of_classes("macro_f1", "macro-F1", _is_right, _f1("macro"), "the mean of the classes' F1"),
    _of_classes("micro_f1", "micro-F1", _is_right, _f1("micro"), "F1 over all classes at once"),
    _of_classes(
        "mcc", "MCC", _is_right, _mcc, "correlation of classes and answers; 0 is chance, whatever the classes' sizes"
    ),
    _of_classes("auc", "AUC", _probability_of_right, _auc, "chance that a row of a class ranks above others"),
    _worse("ece", "calibration error (ECE)", _overconfidence, _ece, 1.0, _ECE, "Guo et al. 2017"),
    _mean("token_f1", "token F1", _token_f1, _F1_WORDS, _SQUAD),
    _mean("rouge1", "ROUGE-1", lambda a, b: overlap.rouge_n(a, b, 1), _WORDS, _LIN),
    _mean("rouge2", "ROUGE-2", lambda a, b: overlap.rouge_n(a, b, 2), f"pairs of {_WORDS}", _LIN),
    _mean("rougeL", "ROUGE-L", overlap.rouge_l, f"the longest common subsequence of {_WORDS}", _LIN),
    _mean("rougeLsum", "ROUGE-Lsum", overlap.rouge_lsum, f"as ROUGE-L, line by line; {_WORDS}", _LIN),
    _mean("edit_similarity", "edit similarity", overlap.edit_similarity, _EDITS, "Levenshtein 1966"),
    _corpus("chrf", "chrF", _chrf_counts, overlap.chrf, overlap.chrf, _CHRF),
    _corpus("bleu", "BLEU", _bleu_counts, overlap.bleu, lambda counts: overlap.bleu(counts, True), _BLEU),
    _worse(
        "ter",
        "TER",
        lambda p: float(overlap.ter(_ter_counts(p))),
        _counted(_ter_counts, overlap.ter),
        None,
        _TER,
        "sacrebleu",
    ),
    _worse("perplexity", "perplexity", _per_token, _perplexity, None, _PERPLEXITY, ""),
    Metric("judge", "judge", "mean", lambda p: p.judged, top=None, rule="what a model says of it (`evaluation.judge`)"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
FAMILIES: dict[str, Family] = {
    "exact_match": Family(
        "exact_match", "NORMALISER", _exact, "the answer equals a reference, as far as NORMALISER looks"
    ),
    "regex": Family(
        "regex", "PATTERN", _pattern, "PATTERN is found in the answer; `^` and `$` tie it to the ends", "regex"
    ),
    "json_schema": Family(
        "json_schema", "FILE", _schema, "the whole answer is JSON that the schema in FILE allows", "jsonschema"
    ),
}
