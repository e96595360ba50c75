"""From examples to answers with whole tiny models: what is asked, what is left out, who is compared with whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from luthier import spec
from luthier.data import encode
from luthier.data.examples import Example, Message
from luthier.errors import DataError
from luthier.evaluation import ask, generate
from luthier.models import base as bases
from luthier.models.methods import Tuned, attach

Tiny = Callable[..., Path]
LABELS = ("no", "perhaps", "yes")


def load(tiny: Tiny, kind: str, **more: object) -> tuple[Tuned, encode.Rules]:
    base = bases.load(spec.Model(name=str(tiny(kind))), labels=LABELS)
    rules = encode.Rules(base.family, end_token_ids=base.end_token_ids, **more)  # type: ignore[arg-type]
    return attach(base, [spec.Lora(rank=2, alpha=4, dropout=0.0, target_modules=("all-linear",))], [0]), rules


def pair(number: int, prompt: str, answer: str) -> Example:
    turns = (Message("user", prompt), Message("assistant", answer))
    return Example(f"{number:016x}", "pair", turns, columns={"setup": "x"}, file="rows.jsonl", line=number + 1)


def labelled(number: int, text: str, label: str) -> Example:
    return Example(f"{number:016x}", "label", text=text, label=label, file="rows.jsonl", line=number + 1)


def test_a_row_becomes_a_question(tiny: Tiny) -> None:
    tuned, rules = load(tiny, "tiny_llama")
    asked, notes = ask.questions([pair(0, "List all", "a b</s> ")], tuned.base.tokenizer, rules)
    assert (asked[0].prompt, asked[0].references, notes) == ("List all", ("a b",), ())
    expected = encode.encode_prompt(pair(0, "List all", "a b"), tuned.base.tokenizer, rules)
    assert asked[0].encoded.ids_L[: asked[0].encoded.prompt_length].tolist() == expected.tolist()


def test_a_chat_is_asked_for_its_last_answer_whatever_is_trained(tiny: Tiny) -> None:
    tuned, rules = load(tiny, "tiny_llama")
    turns = (
        Message("user", "one"),
        Message("assistant", "two", train=True),
        Message("user", "three"),
        Message("assistant", "four", train=False),
    )
    (asked,), _ = ask.questions([Example("c", "chat", turns)], tuned.base.tokenizer, rules)
    prompt = tuned.base.tokenizer.decode(asked.encoded.ids_L[: asked.encoded.prompt_length])
    assert "two" in prompt and "three" in prompt and "four" not in prompt
    assert asked.references == ("four",)
    assert asked.prompt == "user: one\nassistant: two\nuser: three"


def test_rows_left_out_are_counted_and_named(tiny: Tiny) -> None:
    tuned, rules = load(tiny, "tiny_llama", overlength="drop", max_seq_length=40)
    examples = [pair(0, "short", "a"), pair(0, "short", "a"), pair(1, "long " * 60, "b")]
    asked, notes = ask.questions(examples, tuned.base.tokenizer, rules)
    assert len(asked) == 1
    assert notes[0] == "1 rows occur twice and are asked once"
    assert "rows.jsonl:2" in notes[1]
    with pytest.raises(DataError, match="longer than 40"):
        refuse = encode.Rules("causal", max_seq_length=40, end_token_ids=rules.end_token_ids)
        ask.questions(examples, tuned.base.tokenizer, refuse)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_t5"])
def test_text_answers_carry_the_references_likelihood(tiny: Tiny, kind: str) -> None:
    tuned, rules = load(tiny, kind)
    asked, _ = ask.questions([pair(i, "x" * (i + 1), "yes it is") for i in range(3)], tuned.base.tokenizer, rules)
    answers = ask.by_model(tuned, 0, rules, ask.How(max_new_tokens=4))(asked)
    likelihoods = generate.likelihoods(tuned, 0, [question.encoded for question in asked])
    assert [(a.nll, a.tokens) for a in answers] == [(told.nll, told.tokens) for told in likelihoods]
    only = ask.by_model(tuned, 0, rules, ask.How(generate=False))(asked)
    assert [(a.text, a.nll) for a in only] == [("", told.nll) for told in likelihoods]


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_t5"])
def test_classes_are_chosen_by_likelihood_and_never_outside_the_set(tiny: Tiny, kind: str) -> None:
    tuned, rules = load(tiny, kind, task="classification", labels=LABELS)
    examples = [labelled(0, "the first", "yes"), pair(1, "the second", " no "), labelled(2, "a third one", "perhaps")]
    asked, _ = ask.questions(examples, tuned.base.tokenizer, rules)
    answers = ask.by_model(tuned, None, rules, ask.How())(asked)
    for example, answer, question in zip(examples, answers, asked, strict=True):
        options = (
            [encode.encode(labelled(9, question.prompt, name), tuned.base.tokenizer, rules) for name in LABELS]
            if example.kind == "label"
            else None
        )
        assert answer.text in LABELS
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert answer.text == max(answer.probabilities, key=lambda name: answer.probabilities[name])
        if options is not None:
            nll = [told.nll for told in generate.likelihoods(tuned, None, options)]
            shares = np.exp(-np.array(nll)) / np.exp(-np.array(nll)).sum()
            assert [answer.probabilities.get(name, 0) for name in LABELS] == pytest.approx(shares.tolist(), abs=1e-4)
            assert answer.nll == pytest.approx(nll[LABELS.index(example.label or "")], abs=1e-4)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_t5", "tiny_bert"])
@pytest.mark.parametrize("task", ["classification", "generation"])
def test_slots_answer_together_as_each_alone(tiny: Tiny, kind: str, task: str) -> None:
    """The candidates of a wave and the bare base, in one pass; of a generation task, classes are written freely."""
    base = bases.load(spec.Model(name=str(tiny(kind))), labels=LABELS)
    rules = encode.Rules(base.family, end_token_ids=base.end_token_ids, task=task, labels=LABELS)
    lora = spec.Lora(rank=2, alpha=4, dropout=0.0, target_modules=("all-linear",))
    tuned = attach(base, [lora, spec.PromptTuning(virtual_tokens=4, init_method="vocabulary")], [0, 1])
    examples = [labelled(i, f"text number {i}", LABELS[i % 3]) for i in range(5)]
    asked, _ = ask.questions(examples, tuned.base.tokenizer, rules)
    how = ask.How(max_new_tokens=5)
    slots = [0, 1] if base.family == "encoder" else [None, 0, 1]
    together = ask.by_models(tuned, slots, rules, how)(asked)
    for slot, answers in zip(slots, together, strict=True):
        for mine, alone in zip(answers, ask.by_model(tuned, slot, rules, how)(asked), strict=True):
            assert (mine.text, mine.stopped) == (alone.text, alone.stopped)
            assert (mine.nll or 0) == pytest.approx(alone.nll or 0, abs=1e-4)
    free = {answer.text for answers in together for answer in answers} - set(LABELS)
    assert bool(free) == (task == "generation" and base.family != "encoder")
    assert ask.by_models(tuned, slots, rules, how)([]) == [[] for _ in slots]


def test_candidates_are_written_as_the_row_writes_its_answer(tiny: Tiny) -> None:
    tuned, rules = load(tiny, "tiny_llama", task="classification", labels=LABELS)
    row = pair(0, "Is it?", " yes\n")
    options = ask._candidates(row, tuned.base.tokenizer, rules)
    ends = [tuned.base.tokenizer.decode(o.ids_L[o.prompt_length : -1]) for o in options]
    assert [text.strip() for text in ends] == list(LABELS)
    assert all(text.endswith("\n") for text in ends)


@pytest.mark.parametrize("kind", ["tiny_gpt2", "tiny_bart"])
def test_rows_that_a_class_name_takes_past_the_positions_are_left_out_before_asking(tiny: Tiny, kind: str) -> None:
    long = "z" * 400 if kind == "tiny_bart" else "entirely different"
    names = ("no", long)
    base = bases.load(spec.Model(name=str(tiny(kind))), labels=names)
    tuned, positions = attach(base, [], []), base.facts.positions or 0
    rules = encode.Rules(
        base.family, "classification", end_token_ids=base.end_token_ids, labels=names, positions=positions
    )
    spare = len(encode.encode(labelled(0, "", "no"), base.tokenizer, rules).ids_L)  # type: ignore[union-attr]
    rows = [labelled(0, "q", "no"), labelled(1, "q" * (positions - spare - 2), "no")]
    if kind == "tiny_bart":  # the name alone is longer than a target may be
        with pytest.raises(DataError, match="no row can be asked"):
            ask.questions(rows, base.tokenizer, rules)
        return
    asked, notes = ask.questions(rows, base.tokenizer, rules)
    assert [answer.text in names for answer in ask.by_model(tuned, None, rules, ask.How())(asked)] == [True]
    assert notes == (f"1 rows are left out: with `{long}` as answer they pass the positions: rows.jsonl:2",)


def test_a_source_that_was_cut_for_training_is_cut_for_asking(tiny: Tiny) -> None:
    tuned, rules = load(tiny, "tiny_bart", task="classification", labels=LABELS, positions=256, overlength="cut")
    asked, notes = ask.questions([labelled(0, "q" * 400, "no")], tuned.base.tokenizer, rules)
    assert "rows are cut" in notes[0] and asked[0].encoded.prompt_length == 256
    assert ask.by_model(tuned, 0, rules, ask.How())(asked)[0].text in LABELS


def test_an_encoder_answers_by_its_head(tiny: Tiny) -> None:
    tuned, rules = load(tiny, "tiny_bert", task="classification", labels=LABELS)
    asked, _ = ask.questions([labelled(i, "x y" * (i + 1), "yes") for i in range(3)], tuned.base.tokenizer, rules)
    logits = generate.class_logits(tuned, 0, [question.encoded for question in asked])
    answers = ask.by_model(tuned, 0, rules, ask.How())(asked)
    assert [LABELS.index(answer.text) for answer in answers] == logits.argmax(axis=1).tolist()


def test_the_most_frequent_class_says_itself() -> None:
    answers = ask.by_majority(["b", "a", "b", "c"])([None, None])  # type: ignore[list-item]
    assert [answer.text for answer in answers] == ["b", "b"]
    assert answers[0].probabilities == {"a": 0.25, "b": 0.5, "c": 0.25}
    assert ask.by_majority(["b", "a"])([None])[0].text == "a"  # type: ignore[list-item]


def test_default_metrics_look_at_the_rows(tiny: Tiny) -> None:
    tuned, rules = load(tiny, "tiny_llama")
    asked, _ = ask.questions([pair(0, "q", "a")], tuned.base.tokenizer, rules)
    assert "sql_execution" in ask.metrics_for("generation", asked)
    plain, _ = ask.questions([Example("t", "text", text="only words")], tuned.base.tokenizer, rules)
    assert ask.metrics_for("generation", plain) == ("perplexity",)
