"""Decoding against transformers' own, in every company of rows; likelihoods and class scores against plain forwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from luthier import spec
from luthier.data.examples import Encoded
from luthier.evaluation import decoding, generate
from luthier.models import base as bases
from luthier.models.methods import Tuned, attach
from tests.data.test_encode import sentencepiece
from tests.tiny import tokenizer

Tiny = Callable[..., Path]
LORA = spec.Lora(rank=4, alpha=8, dropout=0.0, target_modules=("all-linear",))
PROMPT = spec.PromptTuning(virtual_tokens=3, init_method="vocabulary")
SLOTS = {"base": None, "lora": 0, "prompt": 1}
NEW = 6
EVERY_SLOT = [(kind, slot) for kind in ("tiny_llama", "tiny_t5") for slot in SLOTS]


def tune(tiny: Tiny, kind: str) -> Tuned:
    """A tiny model with a LoRA slot that changes answers, and a prompt slot."""
    base = bases.load(spec.Model(name=str(tiny(kind))), labels=("no", "perhaps", "yes"))
    tuned = attach(base, [LORA, PROMPT], [0, 1])
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in tuned.slots[0].tensors().items():
            if ".lora_B." in name:
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.3)
    return tuned


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(5, 300, draw.integers(1, 15)).tolist() for _ in range(count)]


def rows(count: int, seed: int = 0, label: int = -1) -> list[Encoded]:
    """Prompts with references that end."""
    draw, made = np.random.default_rng(seed), []
    for prompt in prompts(count, seed):
        target = [*draw.integers(5, 300, draw.integers(1, 5)).tolist(), 1]
        train_L = np.arange(len(prompt) + len(target)) >= len(prompt)
        made.append(Encoded("row", np.array(prompt + target, np.int32), train_L))
    return made


@pytest.mark.parametrize(
    ("kind", "slot"),
    [
        *EVERY_SLOT,
        ("tiny_gpt2", "prompt"),
        ("tiny_gemma2", "lora"),
        ("tiny_granite", "prompt"),
        ("tiny_bart", "prompt"),
    ],
)
def test_greedy_answers_are_transformers_and_do_not_depend_on_company(
    tiny: Tiny, kind: str, slot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, asked = tune(tiny, kind), prompts(5)
    together = generate.answer(tuned, SLOTS[slot], asked, NEW)
    ends = set(tuned.base.end_token_ids)
    for prompt, said in zip(asked, together, strict=True):
        with torch.no_grad(), tuned.speaking(SLOTS[slot]) as model:
            inputs = tuned.generation_inputs(SLOTS[slot], [prompt])
            out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, num_beams=1)[0].tolist()
        new = out[1:] if tuned.base.family == "seq2seq" else out[len(prompt) :] if "input_ids" in inputs else out
        stopped = bool(ends & set(new))
        expected = new[: next((i for i, token in enumerate(new) if token in ends), len(new))]
        assert (list(said.ids), said.stopped) == (expected, stopped)
    monkeypatch.setattr(decoding, "BUDGET", 60)
    assert generate.answer(tuned, SLOTS[slot], asked[::-1], NEW)[::-1] == together
    assert [generate.answer(tuned, SLOTS[slot], [prompt], NEW)[0] for prompt in asked] == together


def test_slots_answer_differently(tiny: Tiny) -> None:
    tuned = tune(tiny, "tiny_llama")
    answers = {slot: tuple(c.ids for c in generate.answer(tuned, n, prompts(6), NEW)) for slot, n in SLOTS.items()}
    assert len(set(answers.values())) == 3


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bart"])
def test_a_close_call_is_decided_by_the_row_alone(tiny: Tiny, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output rows in near-equal pairs: every token is a close call. Whatever the batch says, the row alone decides."""
    tuned = tune(tiny, kind)
    output = tuned.base.model.get_output_embeddings().weight
    with torch.no_grad():
        output[1::2] = output[0::2] + 1e-7 * torch.randn(output[0::2].shape, generator=torch.Generator().manual_seed(0))
    asked = prompts(5, seed=3)
    alone = [generate.answer(tuned, None, [prompt], NEW)[0].ids for prompt in asked]
    noise = torch.Generator().manual_seed(1)

    def shaken(read: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Rounding as a large batch would have it, ten times enlarged; a row alone is as it is."""

        def go(*given: object) -> torch.Tensor:
            logits_BV = read(*given)
            return logits_BV + 3e-5 * torch.randn(logits_BV.shape, generator=noise)

        return go

    for way in (decoding._Flat, decoding._Padded):
        for step in ("start", "go_on"):
            monkeypatch.setattr(way, step, shaken(getattr(way, step)))
    assert [completion.ids for completion in generate.answer(tuned, None, asked, NEW)] == alone
    monkeypatch.setattr(decoding, "CLOSE", 0.0)
    assert [completion.ids for completion in generate.answer(tuned, None, asked, NEW)] != alone


def test_room_in_the_models_positions_is_kept(tiny: Tiny) -> None:
    tuned = tune(tiny, "tiny_llama")
    long = [5 + i % 200 for i in range(tuned.base.facts.positions or 0)]
    full, three, six = generate.answer(tuned, None, [long, long[:-3], long[:-6]], 50)
    assert (len(full.ids), full.stopped) == (0, False)
    assert len(three.ids) <= 3 and len(six.ids) <= 6
    (prompted,) = generate.answer(tuned, SLOTS["prompt"], [long[:-6]], 50)
    assert len(prompted.ids) <= 3


def test_no_prompt_no_answer(tiny: Tiny) -> None:
    empty, said = generate.answer(tune(tiny, "tiny_llama"), None, [[], [9, 8]], 3)
    assert empty == generate.Completion((), "", False)
    assert said.ids


def test_sampling_is_by_seed_and_row(tiny: Tiny) -> None:
    tuned, asked = tune(tiny, "tiny_llama"), prompts(6)
    warm = generate.answer(tuned, None, asked, NEW, temperature=1.0, seed=1)
    assert generate.answer(tuned, None, asked[2:3], NEW, temperature=1.0, seed=1) == warm[2:3]
    assert generate.answer(tuned, None, asked, NEW, temperature=1.0, seed=2) != warm
    cold = generate.answer(tuned, None, asked, NEW, temperature=1e-4, seed=1)
    assert [c.ids for c in cold] == [c.ids for c in generate.answer(tuned, None, asked, NEW)]


def test_sampled_tokens_have_the_models_shares(tiny: Tiny) -> None:
    tuned = tune(tiny, "tiny_llama")
    with tuned.speaking(None) as model:
        logits = model(torch.tensor([[7, 9, 11]])).logits[0, -1]
    shares = logits.softmax(-1).detach().numpy()
    first = [generate.answer(tuned, None, [[7, 9, 11]], 1, 1.0, seed)[0].ids[:1] or (1,) for seed in range(100)]
    likely = int(shares.argmax())
    seen = sum(ids == (likely,) for ids in first) / 100
    assert abs(seen - shares[likely]) < 4 * (shares[likely] / 100) ** 0.5


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_t5"])
def test_a_stream_is_the_answer_in_pieces_and_streams_may_alternate(tiny: Tiny, kind: str) -> None:
    tuned, prompt = tune(tiny, kind), prompts(1, seed=5)[0]
    expected = [generate.answer(tuned, slot, [prompt], 10)[0].text for slot in (0, None)]
    streams = [generate.stream(tuned, slot, prompt, 10) for slot in (0, None)]
    heard = ["", ""]
    for _ in range(12):
        for k, pieces in enumerate(streams):
            heard[k] += next(pieces, "")
    assert heard == expected


def test_letters_of_many_bytes_are_streamed_whole(tiny: Tiny) -> None:
    tuned = tune(tiny, "tiny_llama")
    ids = tuned.base.tokenizer("말씀 日本", add_special_tokens=False).input_ids
    pieces = list(generate.texts(tuned, iter(ids)))
    assert "".join(pieces) == tuned.base.tokenizer.decode(ids)
    assert len(pieces) > 1 and not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("make", [tokenizer, sentencepiece], ids=["bytes", "pieces"])
def test_a_long_stream_reads_a_few_tokens_at_a_time(make: Callable[[], Any]) -> None:
    """The whole text comes out, spaces and letters of many bytes included; no step decodes all that was said."""
    words, read = make(), []
    whole = words.decode

    def decode(ids: Sequence[int], **wishes: Any) -> str:
        read.append(len(ids))
        return whole(ids, **wishes)

    words.decode = decode
    tuned = cast(Tuned, SimpleNamespace(base=SimpleNamespace(tokenizer=words, end_token_ids=(1,))))
    ids = words("말씀 日本  is two\n words, and 3 more. " * 12, add_special_tokens=False).input_ids
    assert len(ids) > 400
    assert "".join(generate.texts(tuned, ids)) == whole(ids, skip_special_tokens=True)
    assert max(read) <= 3 * generate.CONTEXT


@pytest.mark.parametrize(("kind", "slot"), EVERY_SLOT)
def test_likelihoods_are_those_of_a_plain_forward(tiny: Tiny, kind: str, slot: str) -> None:
    tuned, asked = tune(tiny, kind), rows(6)
    for row, told in zip(asked, generate.likelihoods(tuned, SLOTS[slot], asked), strict=True):
        prompt, target = row.ids_L[: row.prompt_length].tolist(), row.ids_L[row.prompt_length :].tolist()
        with torch.no_grad(), tuned.speaking(SLOTS[slot]) as model:
            if tuned.base.family == "seq2seq":
                inputs = tuned.generation_inputs(SLOTS[slot], [prompt])
                shifted = torch.tensor([[tuned.base.decoder_start_token_id, *target[:-1]]])
                logits = model(**inputs, decoder_input_ids=shifted).logits[0]
            else:
                inputs = tuned.generation_inputs(SLOTS[slot], [prompt + target])
                logits = model(**inputs).logits[0, -len(target) - 1 : -1]
        picked = logits.log_softmax(-1)[range(len(target)), target]
        assert told.nll == pytest.approx(-float(picked.sum()), abs=1e-4)
        assert told.tokens == len(target)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bart"])
def test_a_reference_that_is_surely_greedy_is_not_generated(
    tiny: Tiny, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharpen the model, take its own answers as references: they are recognised, and the others are generated."""
    tuned, asked = tune(tiny, kind), prompts(12, seed=2)
    with torch.no_grad():
        tuned.base.model.get_output_embeddings().weight.mul_(30.0)
    endless = generate.answer(tuned, 0, asked, 6)
    common = Counter(token for completion in endless for token in completion.ids[1:]).most_common(1)[0][0]
    tuned.base = replace(tuned.base, end_token_ids=(common,))  # a token the tiny model does say
    said = generate.answer(tuned, 0, asked, 6)
    ended = [(prompt, completion) for prompt, completion in zip(asked, said, strict=True) if completion.stopped]
    assert ended
    own = []
    for prompt, completion in ended:
        ids = [*prompt, *completion.ids, tuned.base.end_token_ids[0]]
        own.append(Encoded("own", np.array(ids, np.int32), np.arange(len(ids)) >= len(prompt)))
    foreign = rows(3, seed=8)
    generated: list[int] = []
    decode = generate.answer

    def counted(*arguments: object) -> list[generate.Completion]:
        generated.append(len(arguments[2]))  # type: ignore[arg-type]
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(generate, "answer", counted)
    completed = [completion for completion, _ in generate.complete(tuned, 0, [*own, *foreign], 6)]
    assert generated[0] < len(own) + len(foreign)
    monkeypatch.undo()
    everything = [row.ids_L[: row.prompt_length].tolist() for row in [*own, *foreign]]
    assert completed == generate.answer(tuned, 0, everything, 6)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_t5"])
def test_label_scores_are_the_labels_likelihoods(tiny: Tiny, kind: str) -> None:
    tuned = tune(tiny, kind)
    labels = [[40, 1], [41, 42, 1], [43, 1]]
    candidates = [
        [
            Encoded("c", np.array([*prompt, *label], np.int32), np.arange(len(prompt) + len(label)) >= len(prompt))
            for label in labels
        ]
        for prompt in prompts(4)
    ]
    scores = generate.label_scores(tuned, 0, candidates)
    assert scores.shape == (4, 3)
    one_by_one = [[-generate.likelihoods(tuned, 0, [c])[0].nll for c in row] for row in candidates]
    assert scores == pytest.approx(np.array(one_by_one), abs=1e-4)


@pytest.mark.parametrize("slot", SLOTS)
def test_class_logits_of_an_encoder(tiny: Tiny, slot: str) -> None:
    tuned = tune(tiny, "tiny_bert")
    asked = [Encoded("e", np.array(p, np.int32), np.zeros(len(p), bool), label=-1) for p in prompts(5)]
    logits = generate.class_logits(tuned, SLOTS[slot], asked)
    assert logits.shape == (5, 3)
    assert generate.class_logits(tuned, SLOTS[slot], asked[3:4]) == pytest.approx(logits[3:4], abs=1e-5)
    if slot == "base":
        for prompt, row in zip(prompts(5), logits, strict=True):
            with torch.no_grad(), tuned.speaking(None) as model:
                plain = model(torch.tensor([prompt])).logits[0]
            assert row == pytest.approx(plain.numpy(), abs=1e-5)
