"""From prompts to answers with one model: decoding, the likelihood of references, the choice among classes.

Lives here: everything that runs the model for evaluation and `luthier generate`, on token ids.
Does not live here: the loop from token to token (`decoding.py`), which rows are asked and what they mean (`ask.py`).

Who answers is one slot for all rows (None: the bare base), or one for each row: then rows of many slots go through the
model together, and each is answered as if its slot were alone.

Letters: S supervised entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from luthier.data.batches import Share
from luthier.data.examples import Encoded
from luthier.evaluation.decoding import Row, companies, decode, greedy, sampler
from luthier.models.forward import Batch
from luthier.models.methods import Tuned
from luthier.models.slots import Who, slots_of

BUDGET = {"cpu": 4_096}  # stored tokens of one pass over references: what a CPU's caches and allocator keep
WIDE_BUDGET = 16_384  # the same on other devices
SURE = 0.69  # nats: below ln 2 a token has more than half of the probability, so no other is near
SURE_ROUGH = 0.35  # the same in half precision, where rounding moves logits by much more
LOGITS = 1 << 27  # numbers of output alive at once: 512 MiB of float32
CONTEXT = 16  # tokens before a new one that are read again to see what it adds to a streamed text


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
    who: Who,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Completion]:
    """Answers to token prompts, in their order. Stops at every end token.

    Greedy at temperature 0: on float32 an answer is the same in every company of rows. Otherwise sampled, each row with
    its own numbers from (seed, prompt). A row has at most the room its prompt leaves in the model's positions.
    """
    rows = _rows(tuned, who, prompts, max_new_tokens)
    choose = greedy(tuned) if temperature == 0 else sampler(temperature, seed)
    for company in companies(tuned, rows, most=LOGITS // tuned.base.facts.vocab_size):
        for _ in decode(tuned, rows, company, choose):
            pass
    return [_completion(tuned, row.said) for row in rows]


def stream(
    tuned: Tuned,
    slot: int | None,
    prompt: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """The answer to one prompt piece by piece, whole letters only. Several streams may be read in turns."""
    rows = _rows(tuned, slot, [prompt], max_new_tokens)
    choose = greedy(tuned) if temperature == 0 else sampler(temperature, seed)
    for company in companies(tuned, rows, most=1):
        yield from texts(tuned, (token for _, token in decode(tuned, rows, company, choose)))


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


def _rows(tuned: Tuned, who: Who, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Row]:
    """Prompts with the room that the model's positions leave; without a prompt there is no answer."""
    positions, rows = tuned.base.facts.positions, []
    for slot, prompt in zip(slots_of(who, len(prompts)), prompts, strict=True):
        room = max_new_tokens
        if positions is not None:
            taken = 0 if tuned.base.family == "seq2seq" else tuned.virtual_tokens(slot) + len(prompt)
            room = max(0, min(room, positions - taken))
        rows.append(Row(slot, list(prompt), room if len(prompt) else 0))
    return rows


# --------------------------------------------------------------------------------------------------------- likelihoods


def likelihoods(tuned: Tuned, who: Who, rows: Sequence[Encoded]) -> list[Likelihood]:
    """How likely each row's trained tokens are, in one pass over prompt and reference; shared prefixes once."""
    found: list[Likelihood] = []
    pairs = _entries(tuned, who, rows, lambda batch: tuned.nll(batch))
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
    who: Who,
    rows: Sequence[Encoded],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[tuple[Completion, Likelihood]]:
    """Answer every row's prompt, generating only where the reference is not surely what greedy decoding gives."""
    told = likelihoods(tuned, who, rows)
    targets = [_first_answer(row) for row in rows]
    known = [temperature == 0 and t.greedy and len(ids) <= max_new_tokens for t, ids in zip(told, targets, strict=True)]
    left = [i for i, is_known in enumerate(known) if not is_known]
    asked, slots = [rows[i].ids_L[: rows[i].prompt_length].tolist() for i in left], slots_of(who, len(rows))
    generated = iter(answer(tuned, [slots[i] for i in left], asked, max_new_tokens, temperature, seed))
    answers = [
        _completion(tuned, ids) if is_known else next(generated) for ids, is_known in zip(targets, known, strict=True)
    ]
    return list(zip(answers, told, strict=True))


# ------------------------------------------------------------------------------------------------------------- classes


def class_logits(tuned: Tuned, who: Who, rows: Sequence[Encoded]) -> np.ndarray:
    """An encoder's logits, (rows, classes)."""
    asked = [replace(row, label=max(row.label, 0)) for row in rows]  # a class to predict may be unknown
    pairs = _entries(tuned, who, asked, lambda batch: (tuned.logits(batch),))
    return np.stack([logits_SC[0] for (logits_SC,) in pairs])


def label_scores(tuned: Tuned, who: Who, candidates: Sequence[Sequence[Encoded]]) -> np.ndarray:
    """(rows, classes): the log-likelihood of each class name, end token included, as the answer to the row's prompt.

    The same number of candidates for every row; a row's candidates share their prompt, which a decoder reads once.
    """
    flat = [candidate for row in candidates for candidate in row]
    slots = [slot for slot, row in zip(slots_of(who, len(candidates)), candidates, strict=True) for _ in row]
    scores = [-told.nll for told in likelihoods(tuned, slots, flat)]
    return np.array(scores).reshape(len(candidates), -1)


def _entries(
    tuned: Tuned,
    who: Who,
    rows: Sequence[Encoded],
    ask: Callable[[Batch], tuple[Tensor, ...]],
) -> list[tuple[np.ndarray, ...]]:
    """What `ask` gives for the supervised entries of every row, in the rows' order."""
    by_slot: dict[int, list[Encoded]] = {}
    for i, (slot, row) in enumerate(zip(slots_of(who, len(rows)), rows, strict=True)):
        by_slot.setdefault(slot, []).append(replace(row, example_id=str(i)))
    shares = [Share(slot, own, 1.0, tuned.virtual_tokens(slot)) for slot, own in by_slot.items()]
    budget = BUDGET.get(tuned.base.device.type, WIDE_BUDGET)
    if tuned.base.family == "seq2seq":
        budget = min(budget, LOGITS // tuned.base.facts.vocab_size)  # every place of a padded target has logits
    found: dict[int, tuple[np.ndarray, ...]] = {}
    with torch.no_grad():
        for batch in tuned.lay_out(shares, budget):
            asked = [tensor.cpu().numpy() for tensor in ask(batch)]
            for name, places in zip(batch.example_ids, batch.entries, strict=True):
                found[int(name)] = tuple(values[places] for values in asked)
    return [found[i] for i in range(len(rows))]
