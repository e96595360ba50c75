"""What the tokens promise: findings that would fail silently in training, with their rows and how these look.

Lives here: the checks on encoded rows, and the refusal. Does not live here: making the tokens (`encode.py`), facts of
the model (the worker hands them over as plain numbers).

Rows pass once, in blocks of some thousand laid end to end, so that a check is a few operations on arrays and nothing
grows with the rows. Letters: T = tokens of a block, R = its rows.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luthier.data.examples import Encoded, Example
from luthier.data.rows import Place
from luthier.errors import DataError, did_you_mean
from luthier.runs import Finding, Severity

SHOWN = 5
"""How many rows a finding names."""
_BLOCK = 4096  # rows judged together
_BEFORE, _BEHIND = 12, 8  # tokens shown around the place of a finding
_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True, slots=True)
class GateFacts:
    """What the gate must know of the model.

    `positions` None: no limit. `untrained_ids`: tokens whose embedding was never trained and will not be by this
    method. `unknown_id`: the token for what the tokenizer cannot say. `pad_id`: what fills padded places. `dated`: the
    chat template asks for the day.
    """

    end_token_ids: tuple[int, ...]
    bos_id: int | None = None
    positions: int | None = None
    untrained_ids: frozenset[int] = frozenset()
    virtual_tokens: int = 0
    family: str = "causal"
    unknown_id: int | None = None
    pad_id: int | None = None
    dated: bool = False


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows laid end to end: `ids_T`, `train_T`, the row of each token, where each row starts and how long it is."""

    rows: list[Encoded]
    ids_T: np.ndarray
    train_T: np.ndarray
    row_T: np.ndarray
    starts_R: np.ndarray
    lengths_R: np.ndarray
    cut_R: np.ndarray
    last_R: np.ndarray  # the last trained token of each row, as a place in T; -1 if there is none
    last_id_R: np.ndarray  # and its id
    trained_next_T: np.ndarray  # whether the token behind it is trained and of the same row

    def first(self, found_T: np.ndarray) -> np.ndarray:
        """The first found token of each row as its place within the row, (R,); -1 where there is none."""
        places = np.flatnonzero(found_T)[::-1]
        place_R = np.full(len(self.rows), -1)
        place_R[self.row_T[places]] = places  # of several the one written last stays: the first
        return np.where(place_R < 0, -1, place_R - self.starts_R)

    def at(self, place_R: np.ndarray, found_R: np.ndarray) -> np.ndarray:
        """`place_R` (places in T) within the rows, where `found_R`; else -1."""
        return np.where(found_R, place_R - self.starts_R, -1)


def _block(rows: list[Encoded]) -> _Block:
    lengths_R = np.array([len(row.ids_L) for row in rows])
    starts_R = np.cumsum(lengths_R) - lengths_R
    row_T = np.repeat(np.arange(len(rows)), lengths_R)
    ids_T = np.concatenate([row.ids_L for row in rows])
    train_T = np.concatenate([row.train_L for row in rows])
    last_R = np.full(len(rows), -1)
    trained = np.flatnonzero(train_T)
    last_R[row_T[trained]] = trained
    last_id_R = np.full(len(rows), -1)
    last_id_R[row_T[trained]] = ids_T[trained]
    next_T = np.zeros(len(ids_T), bool)
    next_T[:-1] = train_T[1:] & (row_T[1:] == row_T[:-1])
    cut_R = np.array([row.cut for row in rows])
    return _Block(rows, ids_T, train_T, row_T, starts_R, lengths_R, cut_R, last_R, last_id_R, next_T)


def _blocks(rows: Iterable[Encoded]) -> Iterator[_Block]:
    rest = iter(rows)
    while part := list(itertools.islice(rest, _BLOCK)):
        yield _block(part)


# -- checks: for each row the token that a person should look at, -1 where all is well ---------------------------------


def _ends(block: _Block, facts: GateFacts) -> np.ndarray:
    return np.isin(block.ids_T, facts.end_token_ids)


def _no_end(block: _Block, facts: GateFacts) -> np.ndarray:
    """A trained stretch (an assistant turn) that does not end in an end token; a cut row's last one is for G03."""
    wrong_T = block.train_T & ~block.trained_next_T & ~_ends(block, facts)
    wrong_T[block.last_R[block.cut_R & (block.last_R >= 0)]] = False
    return block.first(wrong_T)


def _nothing(block: _Block, facts: GateFacts) -> np.ndarray:
    nothing_R = block.last_R < 0
    if facts.family == "encoder":
        nothing_R = np.array([row.label < 0 for row in block.rows])
    return np.where(nothing_R, np.maximum(block.lengths_R - 1, 0), -1)


def _cut_answer(block: _Block, facts: GateFacts) -> np.ndarray:
    ended_R = np.isin(block.last_id_R, facts.end_token_ids)
    return block.at(block.last_R, block.cut_R & (block.last_R >= 0) & ~ended_R)


def _bos_again(block: _Block, facts: GateFacts) -> np.ndarray:
    """More than one BOS at the head. The row's end token is none, even where it has the same id."""
    other_R = block.first(block.ids_T != facts.bos_id)
    head_R = np.where(other_R < 0, block.lengths_R, other_R)
    if facts.bos_id in facts.end_token_ids:
        head_R = head_R - ((head_R > 0) & (block.last_R - block.starts_R == head_R - 1))
    return np.where(head_R > 1, 1, -1)


def _end_untrained(block: _Block, facts: GateFacts) -> np.ndarray:
    hopeless = [end for end in facts.end_token_ids if end in facts.untrained_ids]
    return block.at(block.last_R, (block.last_R >= 0) & np.isin(block.last_id_R, hopeless))


def _beyond_positions(block: _Block, facts: GateFacts) -> np.ndarray:
    if facts.positions is None:
        return np.full(len(block.rows), -1)
    used_R = block.lengths_R + facts.virtual_tokens
    if facts.family == "seq2seq":
        first_R = block.first(block.train_T)
        source_R = np.where(first_R < 0, block.lengths_R, first_R)
        used_R = np.maximum(source_R + facts.virtual_tokens, block.lengths_R - source_R)
    return np.where(used_R > facts.positions, block.lengths_R - 1, -1)


def _end_inside(block: _Block, facts: GateFacts) -> np.ndarray:
    """An end token that is trained and followed by a trained token: the model learns to stop in mid-answer.

    Not where all is trained (`train_on: all`): there every turn of a chat ends inside.
    """
    place_R = block.first(block.train_T & block.trained_next_T & _ends(block, facts))
    if not (place_R >= 0).any():
        return place_R
    everything_R = np.bincount(block.row_T[block.train_T], minlength=len(block.rows)) >= block.lengths_R - 1
    return np.where(everything_R, -1, place_R)


def _unknown(block: _Block, facts: GateFacts) -> np.ndarray:
    if facts.unknown_id is None:
        return np.full(len(block.rows), -1)
    return block.first(block.train_T & (block.ids_T == facts.unknown_id))


def _spelled(block: _Block, facts: GateFacts) -> np.ndarray:
    return np.array([row.spelled for row in block.rows])


def _pad_ends(block: _Block, facts: GateFacts) -> np.ndarray:
    noted_R = np.full(len(block.rows), facts.pad_id in facts.end_token_ids)
    return block.at(block.last_R, noted_R & (block.last_R >= 0))


def _dated(block: _Block, facts: GateFacts) -> np.ndarray:
    return np.full(len(block.rows), 0 if facts.dated else -1)


@dataclass(frozen=True, slots=True)
class _Check:
    severity: Severity
    says: str
    hint: str
    families: str
    look: Callable[[_Block, GateFacts], np.ndarray]


_GENERATING = "causal seq2seq"
_ALL = "causal seq2seq encoder"
CHECKS: dict[str, _Check] = {
    "G01": _Check(
        "refuse",
        "the end token of an answer is not trained: the model would never stop",
        "let the chat template (or, in segments, the row) write one of the model's end tokens after every assistant "
        "turn; where only earlier ones lack it, data.train_on: last",
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
        "refuse",
        "an end token stands inside the answer: the model would learn to stop there",
        "take the end token's text out of the answers",
        _GENERATING,
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
        lambda block, facts: np.full(len(block.rows), -1),  # needs two splits: `inspect` is told the longest row
    ),
    "G10": _Check(
        "warn",
        "a special token's text stands in the words of the user, a tool or the system: it is read as plain text",
        "take it out of the rows if it is not meant as text; where it is meant as the token, write it in data.template",
        _ALL,
        _spelled,
    ),
    "G11": _Check(
        "note",
        "the token that fills padded places also ends answers: it is trained, for padding is known by length alone",
        "nothing is to be done",
        _GENERATING,
        _pad_ends,
    ),
    "G12": _Check(
        "warn",
        "the chat template asks for the day: the same row may have other tokens tomorrow",
        "give the template a fixed date: model.chat_template",
        "causal seq2seq",
        _dated,
    ),
}
UNBENDING = ("G02", "G06")
"""Cannot be accepted: training would fail, not only mislead."""


@dataclass(slots=True)
class _Found:
    """What one check has found so far: how many rows, and of the first ones the id, the place and the row itself."""

    count: int = 0
    first: list[tuple[Encoded, int]] = field(default_factory=list)


def inspect(
    rows: Iterable[Encoded],
    examples: Iterable[Example | Place],
    facts: GateFacts,
    split: str = "train",
    tokenizer: Any = None,
    longest: int | None = None,
) -> list[Finding]:
    """What the gate finds in `rows` of `split`, in one pass over them.

    `examples` give the file and line of the rows that are named, and are read only if there are any; `tokenizer` shows
    their tokens. `longest`: the tokens of the longest training row, which others should not exceed (G09).
    """
    found: dict[str, _Found] = {code: _Found() for code, check in CHECKS.items() if facts.family in check.families}
    seen = 0
    for block in _blocks(rows):
        seen += len(block.rows)
        for code, noted in found.items():
            place_R = CHECKS[code].look(block, facts)
            if code == "G09" and longest is not None:
                place_R = np.where(block.lengths_R > longest, longest, -1)
            hits = np.flatnonzero(place_R >= 0)
            noted.count += len(hits)
            noted.first += [(block.rows[i], int(place_R[i])) for i in hits[: SHOWN - len(noted.first)]]
    found = {code: noted for code, noted in found.items() if noted.count}
    places = _places(examples, {row.example_id for noted in found.values() for row, _ in noted.first})
    findings = [_finding(code, noted, (split, seen), places, tokenizer) for code, noted in found.items()]
    return [_naming_ends(finding, facts, tokenizer) for finding in findings]


def refuse(findings: Iterable[Finding], accepted: Collection[str] = ()) -> None:
    """Raise DataError when a finding refuses the run and its code is not among `accepted` (`data.accept`)."""
    for code in accepted:
        if code not in CHECKS:
            raise DataError(f"`{code}` is not a finding's code", "data.accept", did_you_mean(code, CHECKS))
    stops = [f for f in findings if f.severity == "refuse" and not is_accepted(f, accepted)]
    if not stops:
        return
    bendable = list(dict.fromkeys(f.code for f in stops if f.code not in UNBENDING))
    hint = "; ".join(dict.fromkeys(f.hint for f in stops))
    hint += f"; if it is meant so: data.accept: [{', '.join(bendable)}]" if bendable else ""
    raise DataError("\n".join(words(f) for f in stops), stops[0].rows[0] if stops[0].rows else None, hint)


def is_accepted(finding: Finding, accepted: Collection[str]) -> bool:
    """Whether a person has accepted what refuses."""
    return finding.severity == "refuse" and finding.code in accepted and finding.code not in UNBENDING


def words(finding: Finding) -> str:
    """A finding as one line for a person, and how its first row looks as another."""
    more = ", …" if finding.count > len(finding.rows) else ""
    look = f"\n     {finding.excerpts[0]}" if finding.excerpts else ""
    return f"{finding.code}: {finding.message}: {', '.join(finding.rows)}{more}{look}"


def _places(examples: Iterable[Example | Place], wanted: set[str]) -> dict[str, str]:
    """File and line of the examples of these ids; stops reading at the last of them."""
    places: dict[str, str] = {}
    if wanted:
        for example in examples:
            if example.id in wanted:
                places[example.id] = example.where
                if len(places) == len(wanted):
                    break
    return places


def _finding(code: str, found: _Found, where: tuple[str, int], places: dict[str, str], tokenizer: Any) -> Finding:
    check, (split, rows) = CHECKS[code], where
    return Finding(
        code=code,
        severity=check.severity,
        split=split,
        message=f"{check.says} ({found.count:,} of {rows:,} rows of {split})",
        count=found.count,
        rows=tuple(places.get(row.example_id, row.example_id) for row, _ in found.first),
        excerpts=tuple(excerpt(row, place, tokenizer) for row, place in found.first) if tokenizer is not None else (),
        hint=check.hint,
    )


def _naming_ends(finding: Finding, facts: GateFacts, tokenizer: Any) -> Finding:
    """A missing end token can be written only by who knows which would do."""
    if finding.code != "G01" or tokenizer is None:
        return finding
    ends = ", ".join(_visible(tokenizer, [end]) for end in facts.end_token_ids)
    return dataclasses.replace(finding, hint=f"{finding.hint} (its end tokens: {ends})")


def excerpt(row: Encoded, place: int, tokenizer: Any) -> str:
    """The tokens around `place` as text with special tokens written out, the one at `place` in brackets ⟦ ⟧."""
    begin, end = max(place - _BEFORE, 0), place + 1 + _BEHIND
    parts = [row.ids_L[begin:place], row.ids_L[place : place + 1], row.ids_L[place + 1 : end]]
    before, here, behind = (_visible(tokenizer, part.tolist()) for part in parts)
    return f"{'…' if begin else ''}{before}⟦{here}⟧{behind}{'…' if end < len(row.ids_L) else ''}"


def _visible(tokenizer: Any, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return "".join(_SIGNS.get(letter, letter) for letter in text)
