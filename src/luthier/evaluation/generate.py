"""From prompts to answers with one model: decoding, the likelihood of references, the choice among classes.

Lives here: everything that runs the model for evaluation and `luthier generate`, on token ids.
Does not live here: which rows are asked and what they mean (`ask.py`).

Our own decoding loop instead of `model.generate`: a checkpoint's generation config cannot change answers behind one's
back (beams, forced tokens, repetition penalty), finished rows leave the batch, tokens can be streamed, and close calls
are settled (see `_settle`).

Letters: B rows, V vocabulary, S supervised entries.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.data.batches import Share
from luthier.data.examples import Encoded
from luthier.models.forward import Batch
from luthier.models.methods import Tuned

BUDGET = 16_384  # padded tokens, prompt and answer, decoded at once; stored tokens of one pass over references
CLOSE = 1e-3  # two best logits nearer than this are a close call: rounding, which depends on the batch, could decide it
SURE = 0.69  # nats: below ln 2 a token has more than half of the probability, so no other is near
SURE_ROUGH = 0.35  # the same in half precision, where rounding moves logits by much more
LOGITS = 1 << 27  # numbers of output alive at once: 512 MiB of float32
CONTEXT = 16  # tokens before a new one that are read again to see what it adds to a streamed text

BARE_BASE = -1  # a slot number that no adapter has: its rows see the base alone


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer: its tokens without the end token, its text, and whether it ended by itself (not at the limit)."""

    ids: tuple[int, ...]
    text: str
    stopped: bool


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of a row's trained tokens: the sum of negative log-likelihoods (nats), how many, and which are surely greedy.

    `greedy` says that greedy decoding from the prompt gives exactly the trained tokens, whatever the rounding.
    """

    nll: float
    tokens: int
    greedy: bool


# ------------------------------------------------------------------------------------------------------------ decoding


def answer(
    tuned: Tuned,
    slot: int | None,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Completion]:
    """Answers to token prompts, in their order, as `slot` or (None) as the bare base. Stops at every end token.

    Greedy at temperature 0: on float32 an answer is the same in every company of rows. Otherwise sampled, each row with
    its own numbers from (seed, prompt). A row has at most the room its prompt leaves in the model's positions.
    """
    said: list[list[int]] = [[] for _ in prompts]
    choose = _greedy if temperature == 0 else _sampler(temperature, seed)
    for rows in _by_length(prompts, max_new_tokens, most=LOGITS // tuned.base.facts.vocab_size):
        for place, token in _tokens(tuned, slot, [list(prompts[i]) for i in rows], max_new_tokens, choose):
            said[rows[place]].append(token)
    return [_completion(tuned, ids) for ids in said]


def stream(
    tuned: Tuned,
    slot: int | None,
    prompt: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """The answer to one prompt piece by piece, whole letters only. Several streams may be read in turns."""
    choose = _greedy if temperature == 0 else _sampler(temperature, seed)
    yield from texts(tuned, (token for _, token in _tokens(tuned, slot, [list(prompt)], max_new_tokens, choose)))


def texts(tuned: Tuned, tokens: Iterable[int]) -> Iterator[str]:
    """Tokens as text as soon as it is certain: half a letter waits for its other bytes."""
    window: list[int] = []  # the last tokens, not all of them: reading all at every token would take quadratic time
    shown = ""
    for token in tokens:
        window.append(token)
        text = _completion(tuned, window).text
        if text.endswith("\ufffd") or not text.startswith(shown):
            continue
        if len(text) > len(shown):
            yield text[len(shown) :]
        shown = text
        if len(window) > 2 * CONTEXT:
            last = _completion(tuned, window[-CONTEXT:]).text
            if last and text.endswith(last):  # not where it would cut a letter, or a word's mark, in two
                window, shown = window[-CONTEXT:], last
    text = _completion(tuned, window).text
    if len(text) > len(shown):
        yield text[len(shown) :]


def _completion(tuned: Tuned, ids: Sequence[int]) -> Completion:
    ends = tuned.base.end_token_ids
    stopped = bool(ids) and ids[-1] in ends
    kept = tuple(ids[:-1] if stopped else ids)
    text = tuned.base.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion(kept, text, stopped)


def _by_length(prompts: Sequence[Sequence[int]], max_new_tokens: int, most: int) -> Iterator[list[int]]:
    """Rows decoded together: longest first, within the budget, at most `most`. A row without a prompt has no answer."""
    rows: list[int] = []
    for i in sorted((i for i, p in enumerate(prompts) if len(p)), key=lambda i: (-len(prompts[i]), i)):
        size = (len(rows) + 1) * (len(prompts[rows[0] if rows else i]) + max_new_tokens)
        if rows and (size > BUDGET or len(rows) >= most):
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows


Choose = Callable[["_Decoding", Tensor], list[int]]


def _tokens(
    tuned: Tuned, slot: int | None, prompts: list[list[int]], max_new_tokens: int, choose: Choose
) -> Iterator[tuple[int, int]]:
    """(row, token) as they are decoded, an end token included, until every row has ended or has no room."""
    ends, room = set(tuned.base.end_token_ids), _room(tuned, slot, prompts, max_new_tokens)
    run = _Decoding(tuned, slot, prompts, rows=[b for b, places in enumerate(room) if places > 0])
    logits_BV = run.start() if run.rows else None
    while logits_BV is not None and run.rows:
        tokens = choose(run, logits_BV)
        for row, token in zip(run.rows, tokens, strict=True):
            run.said[row].append(token)
            yield row, token
        going = [
            b
            for b, (row, token) in enumerate(zip(run.rows, tokens, strict=True))
            if token not in ends and len(run.said[row]) < room[row]
        ]
        if len(going) < len(tokens):
            run.keep(going)
        if run.rows:
            logits_BV = run.go_on([tokens[b] for b in going])


def _room(tuned: Tuned, slot: int | None, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[int]:
    """How many tokens each row may say within the model's positions."""
    positions = tuned.base.facts.positions
    if positions is None:
        return [max_new_tokens] * len(prompts)
    if tuned.base.family == "seq2seq":
        return [min(max_new_tokens, positions)] * len(prompts)
    virtual = tuned.slots[slot].virtual_tokens if slot is not None else 0
    return [max(0, min(max_new_tokens, positions - virtual - len(prompt))) for prompt in prompts]


@dataclass(slots=True)
class _Decoding:
    """A batch being decoded: the model's cache and what must be given again at every step.

    `rows` are the prompts still being answered, in the order of the cache; `said` holds every row's tokens so far.
    """

    tuned: Tuned
    slot: int | None
    prompts: list[list[int]]
    rows: list[int]
    said: list[list[int]] = field(default_factory=list)
    cache: Any = None
    mask_BL: Tensor | None = None
    encoded_BLD: Tensor | None = None

    def start(self) -> Tensor:
        """Read the prompts: logits of the first token, (B, V)."""
        self.said = [[] for _ in self.prompts]
        logits_BV, self.cache, self.mask_BL, self.encoded_BLD = self._read([self.prompts[row] for row in self.rows])
        return logits_BV

    def go_on(self, tokens: list[int]) -> Tensor:
        """Logits after one more token of every row, (B, V)."""
        assert self.mask_BL is not None
        ids_B1 = torch.tensor(tokens, device=self.mask_BL.device)[:, None]
        if self.encoded_BLD is not None:
            call = self._decoder_call(ids_B1, self.mask_BL, self.encoded_BLD)
        else:
            self.mask_BL = torch.cat([self.mask_BL, torch.ones_like(self.mask_BL[:, :1])], 1)
            call = {"input_ids": ids_B1, **self._causal_call(self.mask_BL, 1)}
        return self._forward(past_key_values=self.cache, **call)[0]

    def keep(self, going: list[int]) -> None:
        """Let the other rows of the batch go."""
        self.rows = [self.rows[b] for b in going]
        if not going or self.mask_BL is None:
            return
        places = torch.tensor(going, device=self.mask_BL.device)
        self.cache.batch_select_indices(places)
        self.mask_BL = self.mask_BL[places]
        self.encoded_BLD = None if self.encoded_BLD is None else self.encoded_BLD[places]

    def alone(self, place: int) -> Tensor:
        """Logits (V,) of the next token of one row, from all its tokens, without company, padding or cache."""
        row = self.rows[place]
        if self.encoded_BLD is None:
            return self._read([self.prompts[row] + self.said[row]])[0][0]
        return self._read([self.prompts[row]], self.said[row])[0][0]

    def _read(self, prompts: list[list[int]], said: Sequence[int] = ()) -> tuple[Tensor, Any, Tensor, Tensor | None]:
        inputs = self.tuned.generation_inputs(self.slot, prompts)
        mask_BL = inputs["attention_mask"]
        if self.tuned.base.family != "seq2seq":
            logits_BV, cache = self._forward(**{**inputs, **self._causal_call(mask_BL, mask_BL.shape[1])})
            return logits_BV, cache, mask_BL, None
        with torch.no_grad(), self.tuned.speaking(self.slot):
            encoded_BLD = self.tuned.base.model.get_encoder()(**inputs).last_hidden_state
        start = [[self.tuned.base.decoder_start_token_id, *said]] * len(prompts)
        ids_BM = torch.tensor(start, device=mask_BL.device)
        logits_BV, cache = self._forward(**self._decoder_call(ids_BM, mask_BL, encoded_BLD))
        return logits_BV, cache, mask_BL, encoded_BLD

    def _causal_call(self, mask_BL: Tensor, new: int) -> dict[str, Any]:
        call: dict[str, Any] = {"attention_mask": mask_BL}
        accepted = inspect.signature(self.tuned.base.model.forward).parameters
        if "position_ids" in accepted:  # left padding shifts a row; its positions begin at its own first token
            call["position_ids"] = (mask_BL.cumsum(-1) - 1).clamp(min=0)[:, -new:]
        if "logits_to_keep" in accepted:
            call["logits_to_keep"] = 1
        return call

    def _decoder_call(self, ids_BM: Tensor, mask_BL: Tensor, encoded_BLD: Tensor) -> dict[str, Any]:
        return {"decoder_input_ids": ids_BM, "attention_mask": mask_BL, "encoder_outputs": (encoded_BLD,)}

    def _forward(self, **call: Any) -> tuple[Tensor, Any]:
        with torch.no_grad(), self.tuned.speaking(self.slot) as model:
            out = model(use_cache=True, **call)
        return out.logits[:, -1].float(), out.past_key_values


def _greedy(run: _Decoding, logits_BV: Tensor) -> list[int]:
    return _settle(run, logits_BV) if run.tuned.base.dtype == torch.float32 else logits_BV.argmax(-1).tolist()


def _settle(run: _Decoding, logits_BV: Tensor) -> list[int]:
    """The arg-max of every row; where the two best are closer than `CLOSE`, the row alone decides (ENGINE.md §10.12).

    A row of a matrix product differs in its last bits with the number of rows, so a tie would be broken by the company.
    """
    (best_B2, ids_B2) = logits_BV.topk(2, dim=-1)
    tokens = ids_B2[:, 0].tolist()
    for place in torch.nonzero(best_B2[:, 0] - best_B2[:, 1] < CLOSE)[:, 0].tolist():
        tokens[place] = int(run.alone(place).argmax())
    return tokens


def _sampler(temperature: float, seed: int) -> Choose:
    """Sampling with one stream of numbers a row, named by seed and prompt: it does not depend on the row's company."""

    def choose(run: _Decoding, logits_BV: Tensor) -> list[int]:
        shares_BV = (logits_BV.double() / temperature).softmax(-1).cumsum(-1).cpu().numpy()
        tokens = []
        for row, shares_V in zip(run.rows, shares_BV, strict=True):
            draw = _uniform(seed, run.prompts[row], len(run.said[row])) * shares_V[-1]
            tokens.append(int(min(np.searchsorted(shares_V, draw, side="right"), len(shares_V) - 1)))
        return tokens

    return choose


def _uniform(seed: int, prompt: Sequence[int], step: int) -> float:
    """A number in [0, 1) that depends on its arguments only."""
    digest = hashlib.sha256(repr((seed, step, list(prompt))).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


# --------------------------------------------------------------------------------------------------------- likelihoods


def likelihoods(tuned: Tuned, slot: int | None, rows: Sequence[Encoded]) -> list[Likelihood]:
    """How likely each row's trained tokens are, in one pass over prompt and reference; shared prefixes once."""
    found: list[Likelihood] = []
    pairs = _entries(tuned, slot, rows, lambda batch: tuned.nll(batch))
    ends, sure = set(tuned.base.end_token_ids), SURE if tuned.base.dtype == torch.float32 else SURE_ROUGH
    for row, (nll_S, best_S) in zip(rows, pairs, strict=True):
        is_greedy = _is_greedy(row, best_S, ends) and bool((nll_S < sure).all())
        found.append(Likelihood(float(nll_S.sum(dtype=np.float64)), len(nll_S), is_greedy))
    return found


def _is_greedy(row: Encoded, best_S: np.ndarray, ends: set[int]) -> bool:
    """Whether the arg-max is the reference at every place of its answer, which ends as answers do."""
    target = _first_answer(row)
    if not target or len(best_S) < len(target) or target[-1] not in ends or ends & set(target[:-1]):
        return False
    return bool((best_S[: len(target)] == target).all())


def _first_answer(row: Encoded) -> list[int]:
    """The first unbroken run of trained tokens: what the prompt is answered with."""
    start = row.prompt_length
    breaks = np.flatnonzero(~row.train_L[start:])
    return row.ids_L[start : start + int(breaks[0]) if len(breaks) else None].tolist()


def complete(
    tuned: Tuned,
    slot: int | None,
    rows: Sequence[Encoded],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[tuple[Completion, Likelihood]]:
    """Answer every row's prompt, generating only where the reference is not surely what greedy decoding gives."""
    told = likelihoods(tuned, slot, rows)
    targets = [_first_answer(row) for row in rows]
    known = [temperature == 0 and t.greedy and len(ids) <= max_new_tokens for t, ids in zip(told, targets, strict=True)]
    asked = [row.ids_L[: row.prompt_length].tolist() for row, is_known in zip(rows, known, strict=True) if not is_known]
    generated = iter(answer(tuned, slot, asked, max_new_tokens, temperature, seed))
    answers = [
        _completion(tuned, ids) if is_known else next(generated) for ids, is_known in zip(targets, known, strict=True)
    ]
    return list(zip(answers, told, strict=True))


# ------------------------------------------------------------------------------------------------------------- classes


def class_logits(tuned: Tuned, slot: int | None, rows: Sequence[Encoded]) -> np.ndarray:
    """An encoder's logits, (rows, classes)."""
    asked = [replace(row, label=max(row.label, 0)) for row in rows]  # a class to predict may be unknown
    pairs = _entries(tuned, slot, asked, lambda batch: (tuned.logits(batch),))
    return np.stack([logits_SC[0] for (logits_SC,) in pairs])


def label_scores(tuned: Tuned, slot: int | None, candidates: Sequence[Sequence[Encoded]]) -> np.ndarray:
    """(rows, classes): the log-likelihood of each class name, end token included, as the answer to the row's prompt.

    The same number of candidates for every row; a row's candidates share their prompt, which a decoder reads once.
    """
    flat = [candidate for row in candidates for candidate in row]
    scores = [-told.nll for told in likelihoods(tuned, slot, flat)]
    return np.array(scores).reshape(len(candidates), -1)


def _entries(
    tuned: Tuned,
    slot: int | None,
    rows: Sequence[Encoded],
    ask: Callable[[Batch], tuple[Tensor, ...]],
) -> list[tuple[np.ndarray, ...]]:
    """What `ask` gives for the supervised entries of every row, in the rows' order."""
    virtual = tuned.slots[slot].virtual_tokens if slot is not None else 0
    numbered = [replace(row, example_id=str(i)) for i, row in enumerate(rows)]
    share = [Share(BARE_BASE if slot is None else slot, numbered, 1.0, virtual)]
    budget = BUDGET
    if tuned.base.family == "seq2seq":
        budget = min(BUDGET, LOGITS // tuned.base.facts.vocab_size)  # every place of a padded target has logits
    found: dict[int, tuple[np.ndarray, ...]] = {}
    with torch.no_grad():
        for batch in tuned.lay_out(share, budget):
            asked = [tensor.cpu().numpy() for tensor in ask(batch)]
            for name, places in zip(batch.example_ids, batch.entries, strict=True):
                found[int(name)] = tuple(values[places] for values in asked)
    return [found[i] for i in range(len(rows))]
