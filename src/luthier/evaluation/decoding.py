"""Prompts of one slot or many, answered together: which rows keep company, and the loop from token to token.

Lives here: companies of rows, reading prompts, one step after another, whose turn it is to leave. Does not live here:
what the tokens mean (`generate.py`), attention over what was said (`models/growing.py`).

Our own loop instead of `model.generate`: a checkpoint's generation config cannot change answers behind one's back
(beams, forced tokens, repetition penalty), a beginning that prompts share is read and kept once, rows of many slots
share a step, finished rows leave, tokens can be streamed, and close calls are settled (see `greedy`).

Letters: B rows, L their padded length, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from luthier.data.batches import Share, common_prefix, flat_batches
from luthier.data.examples import Encoded
from luthier.data.ordering import sort_key
from luthier.models.growing import Growing, Trunk
from luthier.models.methods import Tuned

BUDGET = 16_384  # tokens whose keys and values are kept at once: trunks, and branches with all they may say
CLOSE = 1e-3  # two best logits nearer than this are a close call: rounding, which depends on the batch, could decide it
FEW, SHORT = 4, 16  # fewer rows than this, or a shorter beginning, are not worth a trunk
LEAVING = 8  # one part in so many of a company must have ended before the others move together

_ANY = 0  # a token that is read by nobody


@dataclass(slots=True)
class Row:
    """A prompt being answered as `slot`: what it may say at most, what it has said, and whether it has ended."""

    slot: int
    prompt: Sequence[int]
    room: int
    said: list[int] = field(default_factory=list)
    ended: bool = False


Choose = Callable[[Tensor, Sequence[Row]], list[int]]
"""From logits (B, V) and their rows to the next token of each; that of an ended row is not looked at."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one slot, by number, that begin with the same `shared` tokens, virtual ones included."""

    slot: int
    rows: tuple[int, ...]
    shared: int


Company = list[Piece]
"""Rows that are decoded together, those of a slot side by side."""


class Decoding(Protocol):
    """A company in a model's memory."""

    def start(self) -> Tensor:
        """Read the prompts: logits (B, V) of the first tokens."""

    def go_on(self, tokens_B: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token of every row."""

    def keep(self, places: Sequence[int]) -> None:
        """Let the other rows go."""


def decode(tuned: Tuned, rows: Sequence[Row], company: Company, choose: Choose) -> Iterator[tuple[int, int]]:
    """(row, token) as they are said by the rows of a company, an end token included, until all have ended."""
    numbers = [number for piece in company for number in piece.rows]
    ends = set(tuned.base.end_token_ids)
    run: Decoding = (
        _Flat(tuned, rows, company) if tuned.layout == "flat" else _Padded(tuned, [rows[i] for i in numbers])
    )
    logits_BV = run.start()
    while True:
        here = [rows[number] for number in numbers]
        tokens_B = choose(logits_BV, here)
        for number, row, token in zip(numbers, here, tokens_B, strict=True):
            if row.ended:
                continue
            row.said.append(token)
            yield number, token
            row.ended = token in ends or len(row.said) >= row.room
        going = [place for place, row in enumerate(here) if not row.ended]
        if not going:
            return
        if (len(here) - len(going)) * LEAVING >= len(here):
            run.keep(going)
            numbers, tokens_B = [numbers[place] for place in going], [tokens_B[place] for place in going]
        logits_BV = run.go_on(tokens_B)


# ----------------------------------------------------------------------------------------------------------- companies


def companies(tuned: Tuned, rows: Sequence[Row], most: int) -> Iterator[Company]:
    """All rows that may say something, longest branches first, each company within `BUDGET` and at most `most` rows."""
    pieces = [part for slot in sorted({row.slot for row in rows}) for part in _pieces(tuned, rows, slot, most)]
    company: Company = []
    width = kept = count = 0

    def size(piece: Piece) -> tuple[int, int]:
        return max(_length(tuned, rows[i]) for i in piece.rows) - piece.shared, max(rows[i].room for i in piece.rows)

    for piece in sorted(pieces, key=lambda piece: (-size(piece)[0], piece.rows)):
        wide = max(width, sum(size(piece)))
        if company and (
            kept + piece.shared + (count + len(piece.rows)) * wide > BUDGET or count + len(piece.rows) > most
        ):
            yield sorted(company, key=lambda piece: piece.slot)
            company, kept, count, wide = [], 0, 0, sum(size(piece))
        company.append(piece)
        width, kept, count = wide, kept + piece.shared, count + len(piece.rows)
    if company:
        yield sorted(company, key=lambda piece: piece.slot)


def _length(tuned: Tuned, row: Row) -> int:
    return tuned.virtual_tokens(row.slot) + len(row.prompt)


def _pieces(tuned: Tuned, rows: Sequence[Row], slot: int, most: int) -> Iterator[Piece]:
    """The rows of a slot, those with a trunk together, none too large for a company."""
    virtual = tuned.virtual_tokens(slot)
    ids = {i: np.array(row.prompt, np.int32) for i, row in enumerate(rows) if row.slot == slot and row.room > 0}
    order = sorted(ids, key=lambda i: (sort_key(ids[i]), i))
    if tuned.layout != "flat":
        yield from (Piece(slot, (i,), 0) for i in order)
        return
    for start, stop, shared in trunks([ids[i] for i in order], virtual):
        widest = max(virtual + len(ids[i]) - shared + rows[i].room for i in order[start:stop])
        fit = max(1, min(most, (BUDGET - shared) // widest))
        for at in range(start, stop, fit):
            yield Piece(slot, tuple(order[at : min(at + fit, stop)]), shared)


def trunks(ordered: Sequence[np.ndarray], virtual: int = 0) -> list[tuple[int, int, int]]:
    """Sorted rows as (start, stop, shared): neighbours whose common beginning is kept once.

    n rows that share d tokens save (n - 1) · d. Of nested beginnings one level is taken, whichever saves more: the
    outer one, or those inside it. Rows without a trunk are alone with 0. `virtual` tokens more stand before every row.
    """
    open_: list[tuple[int, int, int, list[tuple[int, int, int]]]] = [(-1, 0, 0, [])]  # depth, start, saved, how
    for stop in range(1, len(ordered) + 1):
        depth = common_prefix(ordered[stop - 1], ordered[stop]) + virtual if stop < len(ordered) else -1
        start, saved, how = stop - 1, 0, [(stop - 1, stop, 0)]
        while open_[-1][0] > depth:
            shared, start, inner, parts = open_.pop()
            saved, how = saved + inner, parts + how
            whole = (stop - start - 1) * shared
            if stop - start >= FEW and shared >= SHORT and whole >= saved:
                saved, how = whole, [(start, stop, shared)]
        if open_[-1][0] < depth:
            open_.append((depth, start, saved, how))
        else:
            shared, start, inner, parts = open_.pop()
            open_.append((shared, start, inner + saved, parts + how))
    return open_[0][3]


# ------------------------------------------------------------------------------------------------------ flat and padded


class _Flat:
    """Rows without padding: prompts as one token tree, then a token a row and step (`models/growing.py`)."""

    def __init__(self, tuned: Tuned, rows: Sequence[Row], company: Company) -> None:
        self.tuned, self.company = tuned, company
        self.rows = [rows[number] for piece in company for number in piece.rows]
        self.growing: Growing | None = None

    def start(self) -> Tensor:
        shares = []
        numbered = list(enumerate(self.rows))
        for slot, group in groupby(numbered, key=lambda pair: pair[1].slot):
            asked = [_question(str(place), row.prompt) for place, row in group]
            shares.append(Share(slot, asked, 1.0, self.tuned.virtual_tokens(slot)))
        (batch,) = flat_batches(shares, budget=1 << 62)
        entry_B = np.empty(len(self.rows), np.int64)
        for name, (entry,) in zip(batch.example_ids, batch.entries, strict=True):
            entry_B[int(name)] = entry
        paths = [np.flatnonzero(batch.ends_T[: last + 1] > last) for last in batch.sources_S[entry_B].tolist()]
        found, start = [], 0
        for piece in self.company:
            stop = start + len(piece.rows)
            if piece.shared:
                found.append(Trunk(start, stop, piece.shared))
            start = stop
        room = max(row.room for row in self.rows)
        self.growing = Growing(paths, found, room, self.tuned.base.device)
        return self.tuned.logits(batch, self.growing)[torch.from_numpy(entry_B).to(self.tuned.base.device)]

    def go_on(self, tokens_B: Sequence[int]) -> Tensor:
        assert self.growing is not None
        positions_B = [_length(self.tuned, row) + len(row.said) - 1 for row in self.rows]
        return self.tuned.grow(self.growing, tokens_B, positions_B, [row.slot for row in self.rows])

    def keep(self, places: Sequence[int]) -> None:
        assert self.growing is not None
        self.rows = [self.rows[place] for place in places]
        self.growing.keep(places)


def _question(name: str, ids: Sequence[int]) -> Encoded:
    """A row whose last token is asked what follows it."""
    ids_L = np.array([*ids, _ANY], np.int32)
    return Encoded(name, ids_L, np.arange(len(ids_L)) == len(ids))


class _Padded:
    """Rows padded to one length, on the cache of transformers: encoder-decoders, and families with attention of their
    own."""

    def __init__(self, tuned: Tuned, rows: Sequence[Row]) -> None:
        self.tuned, self.rows = tuned, list(rows)
        self.cache: Any = None
        self.mask_BL: Tensor | None = None
        self.encoded_BLD: Tensor | None = None

    def start(self) -> Tensor:
        return self.read([row.prompt for row in self.rows])

    def read(self, prompts: Sequence[Sequence[int]], said: Sequence[int] = ()) -> Tensor:
        """Logits (B, V) after the prompts; after the start of the decoder and what is `said`, where there is one."""
        slots_B = [row.slot for row in self.rows]
        inputs = self.tuned.generation_inputs(slots_B, prompts)
        self.mask_BL = inputs["attention_mask"]
        if self.tuned.base.family != "seq2seq":
            return self._forward(**{**inputs, **self._causal_call(self.mask_BL.shape[1])})
        with torch.no_grad(), self.tuned.speaking(slots_B):
            self.encoded_BLD = self.tuned.base.model.get_encoder()(**inputs).last_hidden_state
        start = [[self.tuned.base.decoder_start_token_id, *said]] * len(prompts)
        return self._forward(**self._decoder_call(torch.tensor(start, device=self.mask_BL.device)))

    def go_on(self, tokens_B: Sequence[int]) -> Tensor:
        assert self.mask_BL is not None
        ids_B1 = torch.tensor(tokens_B, device=self.mask_BL.device)[:, None]
        if self.encoded_BLD is not None:
            return self._forward(past_key_values=self.cache, **self._decoder_call(ids_B1))
        self.mask_BL = torch.cat([self.mask_BL, torch.ones_like(self.mask_BL[:, :1])], 1)
        return self._forward(past_key_values=self.cache, input_ids=ids_B1, **self._causal_call(1))

    def keep(self, places: Sequence[int]) -> None:
        assert self.mask_BL is not None
        self.rows = [self.rows[place] for place in places]
        rows = torch.tensor(places, device=self.mask_BL.device)
        self.cache.batch_select_indices(rows)
        self.mask_BL = self.mask_BL[rows]
        self.encoded_BLD = None if self.encoded_BLD is None else self.encoded_BLD[rows]

    def _causal_call(self, new: int) -> dict[str, Any]:
        assert self.mask_BL is not None
        call: dict[str, Any] = {"attention_mask": self.mask_BL}
        accepted = inspect.signature(self.tuned.base.model.forward).parameters
        if "position_ids" in accepted:  # left padding shifts a row; its positions begin at its own first token
            positions = self.tuned.base.facts.positions
            last = positions - 1 if positions is not None else None  # rows that have ended stay there
            call["position_ids"] = (self.mask_BL.cumsum(-1) - 1).clamp(min=0, max=last)[:, -new:]
        if "logits_to_keep" in accepted:
            call["logits_to_keep"] = 1
        return call

    def _decoder_call(self, ids_BM: Tensor) -> dict[str, Any]:
        return {"decoder_input_ids": ids_BM, "attention_mask": self.mask_BL, "encoder_outputs": (self.encoded_BLD,)}

    def _forward(self, **call: Any) -> Tensor:
        with torch.no_grad(), self.tuned.speaking([row.slot for row in self.rows]) as model:
            out = model(use_cache=True, **call)
        self.cache = out.past_key_values
        return out.logits[:, -1].float()


def alone(tuned: Tuned, row: Row) -> Tensor:
    """Logits (V,) of a row's next token, from all its tokens, without company, padding or anything kept."""
    if tuned.layout == "flat":
        share = Share(row.slot, [_question("", [*row.prompt, *row.said])], 1.0, tuned.virtual_tokens(row.slot))
        (batch,) = tuned.lay_out([share], budget=1 << 62)
        return tuned.logits(batch)[0]
    reader = _Padded(tuned, [row])
    if tuned.base.family == "seq2seq":
        return reader.read([row.prompt], row.said)[0]
    return reader.read([[*row.prompt, *row.said]])[0]


# ------------------------------------------------------------------------------------------------------------ choosing


def greedy(tuned: Tuned) -> Choose:
    """The arg-max of every row; where the two best are closer than `CLOSE`, the row alone decides (ENGINE.md §10.12).

    A row of a matrix product differs in its last bits with the number of rows, so a tie would be broken by the company.
    Half precision has no such promise: its rounding is larger than what lies between many tokens.
    """

    def choose(logits_BV: Tensor, rows: Sequence[Row]) -> list[int]:
        if tuned.base.dtype != torch.float32:
            return logits_BV.argmax(-1).tolist()
        best_B2, ids_B2 = logits_BV.topk(2, dim=-1)
        tokens = ids_B2[:, 0].tolist()
        for place in torch.nonzero(best_B2[:, 0] - best_B2[:, 1] < CLOSE)[:, 0].tolist():
            if not rows[place].ended:
                tokens[place] = int(alone(tuned, rows[place]).argmax())
        return tokens

    return choose


def sampler(temperature: float, seed: int) -> Choose:
    """Sampling with one stream of numbers a row, named by seed and prompt: it does not depend on the row's company."""

    def choose(logits_BV: Tensor, rows: Sequence[Row]) -> list[int]:
        shares_BV = (logits_BV.double() / temperature).softmax(-1).cumsum(-1).cpu().numpy()
        tokens = []
        for row, shares_V in zip(rows, shares_BV, strict=True):
            draw = _uniform(seed, row.prompt, len(row.said)) * shares_V[-1]
            tokens.append(int(min(np.searchsorted(shares_V, draw, side="right"), len(shares_V) - 1)))
        return tokens

    return choose


def _uniform(seed: int, prompt: Sequence[int], step: int) -> float:
    """A number in [0, 1) that depends on its arguments only."""
    digest = hashlib.sha256(repr((seed, step, list(prompt))).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
