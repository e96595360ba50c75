"""Example → Encoded: which text a model sees, which tokens are trained, what happens to a long row.

Lives here: tokens and their flags, the length policy. Does not live here: the text (`layout.py`, `templates.py`), what
the result promises (`gate.py`).

Prompt and answer are tokenised as one text and the boundary is found by character offsets, because a tokenizer splits
a text otherwise than its parts; a token that straddles the boundary belongs to the answer.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.data.controls import Coded, Controls, controls_of, is_marked, spell, unmark
from luthier.data.examples import Encoded, Example, answer_text
from luthier.data.layout import Piece, Rules, encoder_text, pieces, source
from luthier.data.overlength import Long, Tokens, encoded, no_limit, shortened, under_policy
from luthier.data.templates import Span, answered, next_turn, require_told
from luthier.errors import DataError, ModelError, did_you_mean

__all__ = ["EncodedSplit", "Rules", "all_dropped", "encode", "encode_prompt", "encode_split", "reference", "stream"]

_BATCH = 512  # texts tokenised per call: keeps the offsets of one call small


@dataclass(frozen=True, slots=True)
class EncodedSplit:
    """The rows that are trained, in order; `dropped` and `cut` name the others as `file:line: reason`."""

    rows: tuple[Encoded, ...]
    dropped: tuple[str, ...]
    cut: tuple[str, ...]


def encode(example: Example, tokenizer: Any, rules: Rules) -> Encoded | None:
    """One example as tokens; None when the length policy drops it. Raises DataError with its file:line."""
    ((_, row, _),) = stream([example], tokenizer, rules)
    return row


def encode_split(examples: Sequence[Example], tokenizer: Any, rules: Rules) -> EncodedSplit:
    """Every example as tokens, in order. Raises DataError when the length policy refuses or leaves nothing."""
    rows: list[Encoded] = []
    dropped: list[str] = []
    cut: list[str] = []
    for _, row, said in stream(examples, tokenizer, rules):
        if row is not None:
            rows.append(row)
        if said:
            (dropped if row is None else cut).append(said)
    if examples and not rows:
        raise all_dropped(len(examples), dropped[0])
    return EncodedSplit(tuple(rows), tuple(dropped), tuple(cut))


Outcome = tuple[Example, Encoded | None, str]
"""An example, its tokens or None where the length policy left none, what that did (`file:line: what`, or "")."""


def stream(examples: Iterable[Example], tokenizer: Any, rules: Rules) -> Iterator[Outcome]:
    """Every example as tokens, in order and in flat memory. Raises DataError at the end when the policy refuses."""
    closing, rest = _closing(tokenizer, rules), iter(examples)
    long, seen = Long(rules), 0
    while batch := list(itertools.islice(rest, _BATCH)):
        seen += len(batch)
        for example, tokens in zip(batch, _tokens(batch, tokenizer, rules), strict=True):
            kept = shortened(tokens, rules, closing)
            if len(kept.ids) == len(tokens.ids):
                yield example, encoded(example, kept), ""
            elif rules.overlength == "error":
                long.add(tokens, example.where)
            else:
                yield example, *under_policy(example, tokens, kept, rules)
    if long.count:
        raise long.error(seen)


def all_dropped(rows: int, first: str) -> DataError:
    """The refusal of a split of which the length policy leaves nothing."""
    hint = "raise training.max_seq_length, or shorten the prompts"
    return DataError(f"all {rows:,} rows were dropped, the first because: {first}", hint=hint)


def encode_prompt(example: Example, tokenizer: Any, rules: Rules) -> np.ndarray:
    """The ids (int32) a model is asked with: a decoder's before the answer (of a chat's last turn), a seq2seq model's
    source, an encoder's whole text (shortened only under `overlength: cut`, as in training).

    They are the ids that stand before the answer in `encode`, whatever `train_on` says. An example whose answer is not
    known yet (a chat that ends with the user, a question alone) is asked with the same ids as one with an answer.
    """
    (tokens,) = _tokens([example], tokenizer, dataclasses.replace(rules, train_on="last"))
    if rules.family == "causal":
        return np.asarray(tokens.ids[: tokens.start], np.int32)
    asked = dataclasses.replace(tokens, ids=tokens.ids[: tokens.start], train=tokens.train[: tokens.start])
    # a source that is short enough by itself is not cut for its answer's sake
    alone = rules if rules.family == "encoder" else no_limit(rules)
    if rules.overlength == "cut":
        asked = shortened(asked, alone, _closing(tokenizer, rules))
    elif rules.sides is not None and len(asked.ids) > rules.sides[0]:
        long = Long(alone)
        long.add(asked, example.where)
        raise long.error(1)
    return np.asarray(asked.ids, np.int32)


def reference(example: Example) -> str:
    """The answer that `encode_prompt` asks for: the class name, or what the assistant says last."""
    return answer_text(example) if example.label is None else example.label


# -- tokens ------------------------------------------------------------------------------------------------------------


def _tokens(examples: Sequence[Example], tokenizer: Any, rules: Rules) -> Iterator[Tokens]:
    if not tokenizer.is_fast:
        raise ModelError("this tokenizer gives no character offsets", hint="it needs a tokenizer.json (fast tokenizer)")
    if rules.family == "encoder":
        return _encoder_tokens(examples, tokenizer, rules)
    if not rules.end_token_ids:
        raise ModelError("the model names no end token", hint="its config or generation_config needs eos_token_id")
    if rules.family == "seq2seq":
        return _seq2seq_tokens(examples, tokenizer, rules)
    return _causal_tokens(examples, tokenizer, rules)


def _closing(tokenizer: Any, rules: Rules) -> list[int]:
    """What stands at the end of an encoder's text or of a source, however short it is cut."""
    if rules.family == "encoder":
        return _enclosure(tokenizer)[1]
    return _around(tokenizer)[1] if rules.sides is not None else []


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a lone text by itself."""
    for probe in ("a", "1", "C", "あ"):
        bare = tokenizer(probe, add_special_tokens=False).input_ids
        full = tokenizer(probe).input_ids
        if bare:
            at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
            return full[:at], full[at + len(bare) :]
    return [], []


def _enclosure(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What stands around an encoder's text: what the tokenizer adds, or its [CLS] and [SEP] when it adds nothing."""
    before, behind = _around(tokenizer)
    if before or behind or None in (tokenizer.cls_token_id, tokenizer.sep_token_id):
        return before, behind
    return [tokenizer.cls_token_id], [tokenizer.sep_token_id]


def _opening(tokenizer: Any) -> list[int]:
    """What a plain prompt begins with: what the tokenizer adds by itself, or BOS if its configuration asks for it."""
    before, _ = _around(tokenizer)
    asked = tokenizer.init_kwargs.get("add_bos_token") and tokenizer.bos_token_id is not None
    return before or ([tokenizer.bos_token_id] if asked else [])


def _causal_tokens(examples: Sequence[Example], tokenizer: Any, rules: Rules) -> Iterator[Tokens]:
    opening, controls = _opening(tokenizer), controls_of(tokenizer, rules.end_token_ids)
    stop = functools.cache(lambda: _stop_of_template(tokenizer, rules))
    for start in range(0, len(examples), _BATCH):
        part = examples[start : start + _BATCH]
        batch = answered(tokenizer, [pieces(example, rules, controls) for example in part])
        _require_told(part, tokenizer, rules)
        texts = [piece.text for parts in batch for piece in parts]
        found = ((coded.ids, coded.offsets) for coded in _coded(texts, tokenizer))
        for example, parts in zip(part, batch, strict=True):
            told = [
                (
                    piece,
                    coded
                    if not piece.letters
                    else spell(tokenizer, piece.text, piece.letters, controls, example.where),
                )
                for piece, coded in zip(parts, found, strict=False)
            ]
            templated = any(piece.end != "append" for piece in parts)
            yield _joined(told, [] if templated else opening, rules, stop)


def _require_told(examples: Sequence[Example], tokenizer: Any, rules: Rules) -> None:
    if rules.chat:
        require_told(tokenizer, (example for example in examples if example.kind == "chat"))


def _coded(texts: Sequence[str], tokenizer: Any) -> Sequence[Any]:
    """Ids and offsets as `tokenizer(texts, add_special_tokens=False)` gives them, without its copies of masks and
    types, which take as long as the tokens. Its first call brings the tokenizer behind it into the same state."""
    if texts:
        tokenizer(texts[:1], add_special_tokens=False, verbose=False)
    return tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)


def _joined(parts: Sequence[tuple[Piece, Coded]], opening: list[int], rules: Rules, stop: Callable[[], int]) -> Tokens:
    """The tokens of a decoder's example. The very first token is never trained: nothing precedes it."""
    ids, flags, start, spelled = list(opening), [np.full(len(opening), rules.train_on == "all")], None, -1
    for piece, (piece_ids, offsets) in parts:
        train, own = _flags(piece, piece_ids, offsets, rules.end_token_ids, stop)
        if piece.answer is not None:
            start = len(ids) + _first_beyond(offsets, piece.answer)
        if piece.letters and spelled < 0:
            spelled = len(ids) + _first_beyond(offsets, piece.letters[0][0])
        ids += own
        flags.append(train)
    train = np.concatenate(flags)
    if len(train):
        train[0] = False
    return Tokens(ids, train, len(ids) if start is None else start, spelled=spelled)


def _first_beyond(offsets: Sequence[Span], place: int) -> int:
    """Index of the first token that reaches beyond character `place`: where an answer begins that starts there."""
    for i, (_, end) in enumerate(offsets if place else ()):  # a plain loop: three times as fast as `next`
        if end > place:
            return i
    return len(offsets) if place else 0


def _first_behind(offsets: Sequence[Span], place: int, first: int) -> int:
    """Index of the first token from `first` on that begins at character `place` or behind it."""
    return next((i for i in range(first, len(offsets)) if offsets[i][0] >= place), len(offsets))


def _flags(
    piece: Piece, ids: list[int], offsets: Sequence[Span], ends: tuple[int, ...], stop: Callable[[], int]
) -> tuple[np.ndarray, list[int]]:
    """Which tokens of a piece are trained, and its ids with the end token that was appended, if any."""
    train = np.zeros(len(ids) + 1, bool)
    append = piece.end == "append" and not (piece.spans and ids and ids[-1] in ends)  # some rows bring theirs along
    for begin, close in piece.spans:
        first = _first_beyond(offsets, begin)
        last = len(ids) if close >= len(piece.text) else _first_behind(offsets, close, first)
        if piece.end == "template":
            last, missing = _turn_end(piece, ids, offsets, (first, last), ends)
            append |= missing
        train[first:last] = True
        train[-1] |= append and last == len(ids)
    if not append:
        return train[:-1], ids
    return train, [*ids, stop() if piece.end == "template" else ends[0]]


def _turn_end(
    piece: Piece, ids: list[int], offsets: Sequence[Span], tokens: Span, ends: tuple[int, ...]
) -> tuple[int, bool]:
    """Where a templated turn's training stops: behind its end token, and whether one has to be appended.

    A turn as the template writes it: `answer <|im_end|> \\n`: what follows the end token is not the model's to say. A
    template may write two of them (Phi), leave it to the next turn's opening (GLM), or out altogether.
    """
    first, last = tokens

    def blank(i: int) -> bool:
        return not piece.text[offsets[i][0] : offsets[i][1]].strip()

    at = next((i for i in range(last - 1, first - 1, -1) if ids[i] in ends), None)
    if at is not None:
        for i in range(at - 1, first - 1, -1):  # of several with nothing but space between them the first one stops
            if ids[i] in ends:
                at = i
            elif not blank(i):
                break
        return at + 1, False
    at = last
    while at < len(ids) and blank(at):
        at += 1
    if at < len(ids):
        return (at + 1, False) if ids[at] in ends else (last, False)
    return len(ids), True


def _stop_of_template(tokenizer: Any, rules: Rules) -> int:
    """The end token of a turn which its template leaves open: that with which the user's next turn would begin."""
    try:
        (behind,) = answered(tokenizer, [next_turn()])
    except DataError:
        behind = ""
    ids = tokenizer(behind.lstrip(), add_special_tokens=False).input_ids
    return ids[0] if ids and ids[0] in rules.end_token_ids else rules.end_token_ids[0]


# -- the other families ------------------------------------------------------------------------------------------------


def _seq2seq_tokens(examples: Sequence[Example], tokenizer: Any, rules: Rules) -> Iterator[Tokens]:
    """Source as the tokenizer gives a lone text, target likewise and always ended by an end token."""
    controls = controls_of(tokenizer, rules.end_token_ids)
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        texts = answered(tokenizer, [source(example, rules, controls) for example in batch])
        _require_told(batch, tokenizer, rules)
        asked = tokenizer(texts, verbose=False).input_ids
        told = tokenizer(text_target=[answer_text(example) for example in batch], verbose=False).input_ids
        for example, text, ids, target in zip(batch, texts, asked, told, strict=True):
            spelled = -1
            if is_marked(text):
                ids, spelled = _spelled(tokenizer, text, _around(tokenizer), controls, example.where)
            ended = target if target and target[-1] in rules.end_token_ids else [*target, rules.end_token_ids[0]]
            train = np.arange(len(ids) + len(ended)) >= len(ids)
            yield Tokens(ids + ended, train, len(ids), spelled=spelled)


def _spelled(
    tokenizer: Any, marked: str, around: tuple[list[int], list[int]], controls: Controls, where: str
) -> tuple[list[int], int]:
    """A marked text as ids, with what stands around a text by itself, and the first token that was marked."""
    text, letters, _ = unmark(marked, where)
    ids, offsets = spell(tokenizer, text, letters, controls, where)
    return [*around[0], *ids, *around[1]], len(around[0]) + _first_beyond(offsets, letters[0][0])


def _encoder_tokens(examples: Sequence[Example], tokenizer: Any, rules: Rules) -> Iterator[Tokens]:
    """The text between the tokenizer's own special tokens, or between [CLS] and [SEP] when it adds none."""
    index = {label: i for i, label in enumerate(rules.labels)}
    if not index:
        raise DataError(f"an encoder needs class names; the task is {rules.task}", hint="task: classification")
    (opening, closing), controls = _enclosure(tokenizer), controls_of(tokenizer)
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        texts = [encoder_text(example, rules, controls) for example in batch]
        coded = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        for example, text, ids in zip(batch, texts, coded, strict=True):
            whole = opening + ids + closing
            spelled = -1
            if is_marked(text):
                whole, spelled = _spelled(tokenizer, text, (opening, closing), controls, example.where)
            label = _class(example, index)
            yield Tokens(whole, np.zeros(len(whole), bool), len(whole), label, spelled)


def _class(example: Example, index: dict[str, int]) -> int:
    label = example.label if example.label is not None else answer_text(example).strip()
    if not label:
        return -1  # a question alone
    if label not in index:
        hint = did_you_mean(label, index) or f"the classes are {', '.join(list(index)[:5])}, …"
        raise DataError(f"`{label}` is not among the {len(index)} classes", example.where, hint)
    return index[label]
