"""What the tokens promise: findings that would fail silently in training, with their rows.

Lives here: the checks on encoded rows, and the refusal. Does not live here: making the tokens (`encode.py`), facts of
the model (the worker hands them over as plain numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from luthier.data.examples import Encoded, Example
from luthier.errors import DataError, did_you_mean

SHOWN = 5
"""How many rows a finding names."""


@dataclass(frozen=True, slots=True)
class GateFacts:
    """What the gate must know of the model.

    `positions` None: no limit. `untrained_ids`: tokens whose embedding was never trained and will not be by this
    method. `unknown_id`: the token for what the tokenizer cannot say.
    """

    end_token_ids: tuple[int, ...]
    bos_id: int | None = None
    positions: int | None = None
    untrained_ids: frozenset[int] = frozenset()
    virtual_tokens: int = 0
    family: str = "causal"
    unknown_id: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A code, whether it refuses the run, what was found, the first rows as file:line, what to do, how many rows."""

    code: str
    severity: Literal["refuse", "warn"]
    message: str
    rows: tuple[str, ...]
    hint: str
    count: int


@dataclass(frozen=True, slots=True)
class _Check:
    severity: Literal["refuse", "warn"]
    says: str
    hint: str
    families: str
    holds: Callable[[Encoded, GateFacts], bool]


def _last_trained(row: Encoded) -> int:
    """Index of the last trained token, -1 if there is none."""
    trained = np.flatnonzero(row.train_L)
    return int(trained[-1]) if len(trained) else -1


def _are_ends(ids_L: np.ndarray, facts: GateFacts) -> np.ndarray:
    """Which ids are end tokens, (L,): `np.isin` for one or two values, ten times as fast on short rows."""
    found = np.zeros(len(ids_L), bool)
    for end in facts.end_token_ids:
        found |= ids_L == end
    return found


def _no_end(row: Encoded, facts: GateFacts) -> bool:
    """A trained stretch (an assistant turn) that does not end in an end token; a cut row's last one is for G03."""
    ends = row.train_L & ~np.append(row.train_L[1:], False)
    stops = _are_ends(row.ids_L[ends], facts)
    return not bool(stops[:-1].all() if row.cut else stops.all())


def _nothing(row: Encoded, facts: GateFacts) -> bool:
    return row.label < 0 if facts.family == "encoder" else _last_trained(row) < 0


def _cut_answer(row: Encoded, facts: GateFacts) -> bool:
    return row.cut and _last_trained(row) >= 0 and int(row.ids_L[_last_trained(row)]) not in facts.end_token_ids


def _bos_again(row: Encoded, facts: GateFacts) -> bool:
    """More than one BOS at the head. The row's end token is none, even where it has the same id."""
    head = 0
    while head < len(row.ids_L) and int(row.ids_L[head]) == facts.bos_id:
        head += 1
    is_end = facts.bos_id in facts.end_token_ids and head > 0 and _last_trained(row) == head - 1
    return head - is_end > 1


def _end_untrained(row: Encoded, facts: GateFacts) -> bool:
    last = _last_trained(row)
    return last >= 0 and int(row.ids_L[last]) in facts.end_token_ids and int(row.ids_L[last]) in facts.untrained_ids


def _beyond_positions(row: Encoded, facts: GateFacts) -> bool:
    if facts.positions is None:
        return False
    if facts.family == "seq2seq":
        source, target = row.prompt_length, len(row.ids_L) - row.prompt_length
        return max(source + facts.virtual_tokens, target) > facts.positions
    return len(row.ids_L) + facts.virtual_tokens > facts.positions


def _end_inside(row: Encoded, facts: GateFacts) -> bool:
    """An end token that is trained and followed by a trained token: the model learns to stop in mid-answer.

    Not where all is trained (`train_on: all`): there every turn of a chat ends inside.
    """
    if row.train_L[1:].all():
        return False
    ends = _are_ends(row.ids_L, facts) & row.train_L
    return bool((ends[:-1] & row.train_L[1:]).any())


def _unknown(row: Encoded, facts: GateFacts) -> bool:
    return facts.unknown_id is not None and bool((row.ids_L[row.train_L] == facts.unknown_id).any())


_GENERATING = "causal seq2seq"
_ALL = "causal seq2seq encoder"
CHECKS: dict[str, _Check] = {
    "G01": _Check(
        "refuse",
        "the end token of the answer is not trained: the model would never stop",
        "let the chat template write one of the model's end tokens after every assistant turn",
        _GENERATING,
        _no_end,
    ),
    "G02": _Check("refuse", "there is nothing to train", "look at weight, train_on and the answers", _ALL, _nothing),
    "G03": _Check(
        "warn",
        "the answer was cut and is trained without its end token",
        "raise training.max_seq_length, or choose data.overlength: drop",
        _GENERATING,
        _cut_answer,
    ),
    "G04": _Check(
        "refuse",
        "more than one BOS token at the head of the prompt",
        "take the BOS out of the template or the text: the tokenizer adds it",
        "causal",
        _bos_again,
    ),
    "G05": _Check(
        "warn",
        "the end token's embedding was never trained and stays frozen: the model can hardly learn to stop",
        "choose another end token in the model's config, or method: full",
        _GENERATING,
        _end_untrained,
    ),
    "G06": _Check(
        "refuse",
        "longer than the model has positions (virtual tokens included)",
        "lower training.max_seq_length or virtual_tokens, and choose data.overlength: drop or cut",
        _ALL,
        _beyond_positions,
    ),
    "G07": _Check(
        "warn",
        "an end token stands inside the answer: the model would learn to stop there",
        "take the end token's text out of the answers",
        "causal",
        _end_inside,
    ),
    "G08": _Check(
        "warn",
        "the answer holds something the tokenizer cannot say, and the model would learn to answer `unknown`",
        "change these characters, or take another base model",
        _GENERATING,
        _unknown,
    ),
    "G09": _Check(
        "warn",
        "longer than every row of train (PARAMETERS: training rows should match the limits of later use)",
        "add long rows to train, or expect less of these",
        _ALL,
        lambda row, facts: False,  # needs two splits: `longer_than_training`
    ),
}
UNBENDING = ("G02", "G06")
"""Cannot be accepted: training would fail, not only mislead."""


def inspect(rows: Sequence[Encoded], examples: Iterable[Example], facts: GateFacts) -> list[Finding]:
    """What the gate finds in `rows`; `examples` give the file and line of their ids."""
    found = []
    for code, check in CHECKS.items():
        if facts.family in check.families.split():
            ids = [row.example_id for row in rows if check.holds(row, facts)]
            found += [(code, ids)] if ids else []
    places = {example.id: example.where for example in examples} if found else {}
    return [_finding(code, ids, places, len(rows)) for code, ids in found]


def longer_than_training(
    train: Sequence[Encoded], others: Sequence[Encoded], examples: Iterable[Example]
) -> list[Finding]:
    """G09, if a row of `others` (validation, test) is longer than any of `train`."""
    longest = max((len(row.ids_L) for row in train), default=0)
    ids = [row.example_id for row in others if len(row.ids_L) > longest]
    return [_finding("G09", ids, {example.id: example.where for example in examples}, len(others))] if ids else []


def refuse(findings: Iterable[Finding], accepted: Collection[str] = ()) -> None:
    """Raise DataError when a finding refuses the run and its code is not among `accepted` (`data.accept`)."""
    for code in accepted:
        if code not in CHECKS:
            raise DataError(f"`{code}` is not a finding's code", "data.accept", did_you_mean(code, CHECKS))
    stops = [f for f in findings if f.severity == "refuse" and (f.code not in accepted or f.code in UNBENDING)]
    if not stops:
        return
    bendable = [f.code for f in stops if f.code not in UNBENDING]
    hint = "; ".join(dict.fromkeys(f.hint for f in stops))
    hint += f"; if it is meant so: data.accept: [{', '.join(bendable)}]" if bendable else ""
    said = "\n".join(f"{f.code}: {f.message}: {', '.join(f.rows)}{', …' if f.count > SHOWN else ''}" for f in stops)
    raise DataError(said, stops[0].rows[0], hint)


def _finding(code: str, ids: Sequence[str], places: dict[str, str], rows: int) -> Finding:
    check = CHECKS[code]
    shown = tuple(places.get(name, name) for name in ids[:SHOWN])
    message = f"{check.says} ({len(ids):,} of {rows:,} rows)"
    return Finding(code, check.severity, message, shown, check.hint, len(ids))
