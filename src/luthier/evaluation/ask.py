"""Who answers the test rows, and how rows become questions: a tuned model, its bare base, or the most frequent class.

Lives here: from examples to `Question`s, and the `Answerer`s. Does not live here: decoding (`generate.py`), keeping the
answers (`predictions.py`), what they are worth (`metrics.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from luthier.data import encode
from luthier.data.examples import Encoded, Example
from luthier.errors import DataError
from luthier.evaluation import generate
from luthier.evaluation.metrics import clean, default_metrics
from luthier.evaluation.predictions import Answer, Answerer, Question
from luthier.models.methods import Tuned
from luthier.models.slots import Who

_DIGITS = 6  # of probabilities in files; smaller ones are left out
_SHOWN = 5  # rows a note names
_MARGIN = 8  # tokens a class name may have more inside a row than alone


@dataclass(frozen=True, slots=True)
class How:
    """How answers are made. `generate` False: only the likelihood of references is wanted (plain text, perplexity)."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    generate: bool = True


def questions(
    examples: Sequence[Example], tokenizer: Any, rules: encode.Rules
) -> tuple[list[Question], tuple[str, ...]]:
    """The rows to ask, each once, and notes on rows that are left out. A chat is asked for its last answer.

    A row of classes is left out if any class name would take it past the model's positions: all are tried. Raises
    DataError where the length policy is to refuse long rows, or where no row is left.
    """
    asked: dict[str, Example] = {}
    for example in examples:
        free = tuple(replace(message, train=None) for message in example.messages)
        asked.setdefault(example.id, replace(example, messages=free))
    split = encode.encode_split(list(asked.values()), tokenizer, replace(rules, train_on="last"))
    ends = tokenizer.convert_ids_to_tokens(list(rules.end_token_ids))
    outgrown = _outgrown([(asked[row.example_id], row) for row in split.rows], tokenizer, rules)
    found = []
    for encoded in split.rows:
        example = asked[encoded.example_id]
        if example.id in outgrown:
            continue
        reference = clean(encode.reference(example), ends)
        found.append(Question(example, encoded, prompt_text(example), (reference,)))
    notes = []
    if len(asked) < len(examples):
        notes.append(f"{len(examples) - len(asked):,} rows occur twice and are asked once")
    if split.dropped:
        notes.append(f"{len(split.dropped):,} rows are too long and are left out, the first: {split.dropped[0]}")
    if outgrown:
        rows, name = [asked[row].where for row in outgrown], next(iter(outgrown.values()))
        shown = ", ".join(rows[:_SHOWN]) + (", …" if len(rows) > _SHOWN else "")
        said = f"with `{name}` as answer they pass the positions: {shown}"
        if not found:
            raise DataError(f"no row can be asked: {said}", hint="shorten the class names, or the prompts")
        notes.append(f"{len(rows):,} rows are left out: {said}")
    if split.cut:
        notes.append(f"{len(split.cut):,} rows are cut, the first: {split.cut[0]}")
    return found, tuple(notes)


def prompt_text(example: Example) -> str:
    """What is asked, for people: the text, or the turns before the last answer."""
    if not example.messages:
        return example.text or ""
    turns = example.messages[:-1] if example.messages[-1].role == "assistant" else example.messages
    if len(turns) == 1:
        return turns[0].content
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def metrics_for(task: str, asked: Sequence[Question], labels: Sequence[str] = ()) -> tuple[str, ...]:
    """The task's metrics; rows of plain text have no answer, only a perplexity."""
    if asked and all(question.example.kind == "text" for question in asked):
        return ("perplexity",)
    return default_metrics(task, asked[0].example.columns if asked else (), labels)


# ----------------------------------------------------------------------------------------------------------- answerers


def by_model(tuned: Tuned, slot: int | None, rules: encode.Rules, how: How) -> Answerer:
    """Answers as `slot`, or (None) as the bare base.

    Classes: an encoder's head decides; decoders and encoder-decoders choose the class name that is likeliest as the
    answer, so that nothing outside the closed set is said. Everything else is generated; classes too where the
    experiment's task is `generation`.
    """
    answering = by_models(tuned, [slot], rules, how)
    return lambda asked: answering(asked)[0]


def by_models(
    tuned: Tuned, slots: Sequence[int | None], rules: encode.Rules, how: How
) -> Callable[[Sequence[Question]], list[list[Answer]]]:
    """The answers of each of `slots` in turn, as `by_model` gives them, all made in one pass over the base."""
    ask = _way(tuned, rules, how)

    def answering(asked: Sequence[Question]) -> list[list[Answer]]:
        if not asked:
            return [[] for _ in slots]
        said = ask([slot for slot in slots for _ in asked], [question for _ in slots for question in asked])
        return [said[k * len(asked) : (k + 1) * len(asked)] for k in range(len(slots))]

    return answering


_Way = Callable[[Sequence[int | None], Sequence[Question]], list[Answer]]


def _way(tuned: Tuned, rules: encode.Rules, how: How) -> _Way:
    """How questions are answered, each by its own slot."""
    if tuned.base.family == "encoder":
        return lambda who, asked: _by_head(tuned, who, rules.labels, asked)
    if rules.task == "classification" and rules.labels:
        return lambda who, asked: _by_label(tuned, who, rules, asked)
    if not how.generate:
        return lambda who, asked: [
            Answer("", nll=told.nll, tokens=told.tokens)
            for told in generate.likelihoods(tuned, who, [question.encoded for question in asked])
        ]
    return lambda who, asked: _by_text(tuned, who, how, asked)


def by_majority(labels: Iterable[str]) -> Answerer:
    """Always the most frequent of the training rows' classes: what a base without a head is compared with."""
    counts = Counter(labels)
    most = min(counts, key=lambda name: (-counts[name], name))
    shares = {name: round(count / counts.total(), _DIGITS) for name, count in sorted(counts.items())}
    return lambda asked: [Answer(most, probabilities=shares) for _ in asked]


def _by_text(tuned: Tuned, who: Who, how: How, asked: Sequence[Question]) -> list[Answer]:
    ends = tuned.base.tokenizer.convert_ids_to_tokens(list(tuned.base.end_token_ids))
    rows = [question.encoded for question in asked]
    said = generate.complete(tuned, who, rows, how.max_new_tokens, how.temperature, how.seed)
    return [
        Answer(clean(completion.text, ends), completion.stopped, nll=told.nll, tokens=told.tokens)
        for completion, told in said
    ]


def _by_head(tuned: Tuned, who: Who, labels: Sequence[str], asked: Sequence[Question]) -> list[Answer]:
    logits = generate.class_logits(tuned, who, [question.encoded for question in asked])
    return [_chosen(row, labels) for row in logits]


def _by_label(tuned: Tuned, who: Who, rules: encode.Rules, asked: Sequence[Question]) -> list[Answer]:
    """The likeliest class name; the reference's own likelihood is among the candidates'."""
    candidates = [_candidates(question.example, tuned.base.tokenizer, rules) for question in asked]
    scores = generate.label_scores(tuned, who, candidates)
    found = []
    for question, row, options in zip(asked, scores, candidates, strict=True):
        place = rules.labels.index(question.references[0])
        found.append(
            replace(_chosen(row, rules.labels), nll=-float(row[place]), tokens=int(options[place].train_L.sum()))
        )
    return found


def _candidates(example: Example, tokenizer: Any, rules: encode.Rules) -> list[Encoded]:
    """The row with every class name as its answer, in the order of the classes, written as the row writes its own."""
    options = [_with_label(example, name) for name in rules.labels]
    # a longer name must not lose its end; only a source that was cut for training is cut here too
    uncut = replace(rules, train_on="last", max_seq_length=None, overlength="cut")
    return list(encode.encode_split(options, tokenizer, uncut).rows)


def _outgrown(rows: Sequence[tuple[Example, Encoded]], tokenizer: Any, rules: encode.Rules) -> dict[str, str]:
    """Ids of the rows that a class name would take past the positions → the first such name."""
    positions = rules.positions
    if rules.family == "encoder" or rules.task != "classification" or not rules.labels or positions is None:
        return {}
    longest = max(len(ids) for ids in tokenizer(list(rules.labels), verbose=False).input_ids)
    found: dict[str, str] = {}
    for example, row in rows:
        if _answered_length(row, rules) + longest + _MARGIN <= positions:
            continue
        options = _candidates(example, tokenizer, replace(rules, positions=None))
        for name, option in zip(rules.labels, options, strict=True):
            if _answered_length(option, rules) > positions:
                found.setdefault(example.id, name)
    return found


def _answered_length(row: Encoded, rules: encode.Rules) -> int:
    """The positions that an answer shares: a decoder's whole row, a seq2seq model's target alone."""
    return len(row.ids_L) - row.prompt_length if rules.family == "seq2seq" else len(row.ids_L) + rules.virtual_tokens


def _with_label(example: Example, name: str) -> Example:
    if example.kind == "label":
        return replace(example, label=name)
    *before, last = example.messages
    written = last.content.replace(last.content.strip(), name) if last.content.strip() else name
    return replace(example, label=name, messages=(*before, replace(last, content=written)))


def _chosen(scores: np.ndarray, labels: Sequence[str]) -> Answer:
    shares = np.exp(scores - scores.max())
    shares = np.round(shares / shares.sum(), _DIGITS)
    probabilities = {name: float(share) for name, share in zip(labels, shares, strict=True) if share}
    return Answer(labels[int(scores.argmax())], probabilities=probabilities)
