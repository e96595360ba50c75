"""What tuning cost elsewhere: how likely general texts, and a person's own rows, are before and after it.

Lives here: the built-in texts as questions, the comparison of both sides in figures and words.
Does not live here: asking (`ask.py`, `assessment.py`), the texts themselves (`general.txt`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data.examples import Encoded, Example, content_id
from luthier.evaluation import statistics
from luthier.evaluation.metrics import METRICS
from luthier.evaluation.predictions import Question, Row
from luthier.evaluation.words import times

if TYPE_CHECKING:
    from luthier.data.encode import Rules

KIND = "kind"  # the column that says which of the texts a row is
OWN = "your rows"  # the name of what comes from `evaluation.regression`
FORGOTTEN = 1.1  # times: a perplexity that is surely above it is called forgotten
STRANGE = 0.8  # of the logarithm of the vocabulary: text that costs the base more nats a token is strange to it
FEWEST_POSITIONS = 32  # a base with less room cannot read a sentence


@dataclass(frozen=True, slots=True)
class Forgotten:
    """n texts, perplexity `before` and `after` tuning, `ratio` = after / before with its 95 % interval [low, high].

    With another `metric`, before and after are its means, [low, high] is the interval of after - before, and `ratio` is
    None. `sentence` says it in words. `strange`: the base never knew such text, so that none of it can be forgotten.
    """

    name: str
    n: int
    before: float
    after: float
    ratio: float | None
    low: float
    high: float
    sentence: str
    metric: str = "perplexity"
    strange: bool = False


def texts() -> dict[str, tuple[str, ...]]:
    """The built-in texts by kind: general English, other languages, code."""
    found: dict[str, list[str]] = {}
    kind = ""
    for block in resources.files(__package__).joinpath("general.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        if block.startswith("# "):
            kind = block.removeprefix("# ")
            found[kind] = []
        else:
            found[kind].append(block)
    return {kind: tuple(blocks) for kind, blocks in found.items()}


def questions(tokenizer: Any, rules: Rules) -> tuple[Question, ...]:
    """The built-in texts as rows of a decoder, whole or as far as its positions reach.

    All tokens but the first count. The end token does not: what is learned is when to stop, and that is no forgetting.
    """
    from luthier.data import encode  # brings templates along, which a report is read without

    examples = [
        Example(content_id({"text": text}), "text", text=text, columns={KIND: kind}, file=f"general texts, {kind}")
        for kind, some in texts().items()
        for text in some
    ]
    rows = encode.encode_split(examples, tokenizer, plain(rules)).rows
    read = {example.id: example for example in examples}
    told = [(read[row.example_id], _without_end(row, rules.end_token_ids)) for row in rows]
    return tuple(Question(example, row, "", (example.text or "",)) for example, row in told)


def plain(rules: Rules) -> Rules:
    """The rules by which plain texts become tokens: no wish for the run's own rows holds for them."""
    longest = room(rules)
    return replace(rules, task="generation", labels=(), template=None, max_seq_length=longest, overlength="cut")


def room(rules: Rules) -> int | None:
    """The longest row a decoder can read beside its virtual tokens; of a seq2seq base each side has its own bound."""
    return rules.positions - rules.virtual_tokens if rules.positions is not None and rules.family == "causal" else None


def _without_end(row: Encoded, ends: Sequence[int]) -> Encoded:
    if int(row.ids_L[-1]) not in ends:
        return row
    return replace(row, ids_L=row.ids_L[:-1], train_L=row.train_L[:-1])


def not_applicable(rules: Rules) -> str | None:
    """Why the built-in texts tell nothing of a base that is asked by these rules; None if they do."""
    if rules.family != "causal":
        said = {"encoder": "an encoder has no likelihood of texts", "seq2seq": "a plain text is no task of this base"}
        return f"forgetting was not measured: {said[rules.family]}"
    longest = room(rules)
    if longest is not None and longest < FEWEST_POSITIONS:
        return f"forgetting was not measured: {longest} positions are too few for a sentence"
    return None


def compare(rows: Sequence[Row], vocabulary: int) -> tuple[Forgotten, ...]:
    """Perplexity before (side "base") and after (side "tuned"), kind by kind; exact match where rows were answered."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(str(row.sides["tuned"].columns.get(KIND, OWN)), []).append(row)
    found: list[Forgotten] = []
    for kind, some in kinds.items():
        found += [told for told in (_perplexity(kind, some, vocabulary), _matches(kind, some)) if told is not None]
    return tuple(found)


def _perplexity(name: str, rows: Sequence[Row], vocabulary: int) -> Forgotten | None:
    """The ratio of perplexities; its logarithm is a difference of means per token, which is resampled by rows."""
    pairs = [(row.sides["tuned"], row.sides["base"]) for row in rows]
    known = [(a, b) for a, b in pairs if a.nll is not None and b.nll is not None and a.tokens]
    if not known:
        return None
    after, before = ([p.nll or 0.0 for p in one] for one in zip(*known, strict=True))
    nll, tokens, n = np.array([*after, *before]), np.array([a.tokens for a, _ in known] * 2, np.float64), len(known)

    def of(weights_BN: np.ndarray) -> np.ndarray:
        return (weights_BN @ nll) / (weights_BN @ tokens)

    changed = statistics.paired_difference(of, n)
    low, high, _ = statistics.paired_bootstrap(of, n)
    ratio, low, high = (_exp(value) for value in (changed, min(low, changed), max(high, changed)))
    per_token = sum(before) / float(tokens[:n].sum())
    told = (_exp(per_token), _exp(per_token + changed))
    strange = name != OWN and per_token > STRANGE * math.log(vocabulary)
    said = _sentence(name, told, (ratio, low, high), strange)
    return Forgotten(name, n, *told, ratio, low, high, said, strange=strange)


def _sentence(name: str, told: tuple[float, float], ratio: tuple[float, float, float], strange: bool) -> str:
    """`general English: perplexity 41 → 55, 1.34 times (1.21–1.48): the model has forgotten`"""
    value, low, high = ratio
    head = (
        f"{name}: perplexity {_three(told[0])} → {_three(told[1])}, {times(value)} times ({times(low)}–{times(high)})"
    )
    if strange:
        return f"{head}: strange to the base all along, so nothing is forgotten"
    if low > FORGOTTEN:
        return f"{head}: the model has forgotten"
    if low > 1:
        return f"{head}: the model is a little less sure"
    if high < 1:
        return f"{head}: the model is surer than before"
    return f"{head}: " + ("nothing is forgotten" if high <= FORGOTTEN else "cannot tell on these rows")


def _matches(name: str, rows: Sequence[Row]) -> Forgotten | None:
    """Answers that are exactly right, before and after; None where nothing was answered."""
    metric = METRICS["exact_match"]
    pairs = [(row.values["tuned"].get(metric.name), row.values["base"].get(metric.name)) for row in rows]
    if any(None in pair for pair in pairs):
        return None
    n, gained, lost = len(pairs), pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
    both, neither = pairs.count((1.0, 1.0)), pairs.count((0.0, 0.0))
    low, high = statistics.share_difference(both, gained, lost, neither)
    before, after = (both + lost) / n, (both + gained) / n
    p = statistics.mcnemar(gained, lost)
    said = "cannot tell a change" if p >= 0.05 else "fewer are right" if lost > gained else "more are right"
    sentence = f"{name}: right {before:.2f} → {after:.2f} of {n:,} ({lost:,} lost, {gained:,} gained): {said}"
    return Forgotten(name, n, before, after, None, low, high, sentence, metric.name)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # beyond it a float has no number, and JSON no word


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
