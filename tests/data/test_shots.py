"""Worked examples before a question: which rows, and exactly which text the model reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from luthier.data import shots
from luthier.data.encode import encode
from luthier.data.examples import Example, Message
from luthier.data.layout import Rules

CAUSAL = Rules("causal", end_token_ids=(1,))


@pytest.fixture
def tokenizer(tiny: Callable[..., Path]) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny("tiny_llama", chat=True))


def pair(question: str, answer: str, number: int = 0, label: str | None = None, exact: bool = False) -> Example:
    told = (Message("user", question), Message("assistant", answer))
    return Example(f"{number:016x}", "pair", told, label=label, columns={"input": question, "q": question}, exact=exact)


def read(example: Example, tokenizer: PreTrainedTokenizerBase, rules: Rules) -> tuple[str, str]:
    """Prompt and answer, as the model gets them."""
    row = encode(example, tokenizer, rules)
    assert row is not None
    return tokenizer.decode(row.ids_L[: row.prompt_length]), tokenizer.decode(row.ids_L[row.prompt_length :])


def test_classes_are_shown_evenly_and_a_smaller_choice_begins_a_larger_one() -> None:
    train = [pair(f"q{i}", "abc"[i % 3 and i % 2 + 1], i, label="abc"[i % 3 and i % 2 + 1]) for i in range(90)]
    seven = shots.choose(train, 7, seed=0)
    assert sorted(Counter(each.label for each in seven).values()) == [2, 2, 3]
    assert shots.choose(reversed(train), 7, seed=0) == seven and shots.choose(train, 3, seed=0) == seven[:3]
    assert shots.choose(train, 7, seed=1) != seven
    assert len(shots.choose([*train[:2], *train[:2]], 7, seed=0)) == 2  # the same words once


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (None, "Input: one {q}\nOutput: A\n\nInput: two\nOutput: B\n\nInput: three\nOutput:"),
        ("Q {{q}} ({input})\nA: ", "Q one {q} (one {q})\nA: A\n\nQ two (two)\nA: B\n\nQ three (three)\nA:"),
    ],
)
def test_examples_are_written_by_the_rows_own_template(
    tokenizer: PreTrainedTokenizerBase, template: str | None, prompt: str
) -> None:
    rules = replace(CAUSAL, template=template)
    shown = [pair("one {q}", "A", 1), pair("two", "B", 2)]
    asked = shots.behind(pair("three", "C", 3), shown, rules)
    said = read(asked, tokenizer, shots.rules_with(rules, shown))
    assert said == (f"<s>{prompt}", " C</s>") and asked.id == pair("three", "C", 3).id


def test_prompts_that_are_taken_as_they_came_are_joined_as_they_came(tokenizer: PreTrainedTokenizerBase) -> None:
    shown = [pair("<s>one:", " A", 1, exact=True)]
    asked = shots.behind(pair("<s>two:", " B", 2, exact=True), shown, CAUSAL)
    assert asked.messages[0].content == "<s>one: A\n\n<s>two:"
    assert shots.rules_with(CAUSAL, shown) == CAUSAL and read(asked, tokenizer, CAUSAL)[1] == " B</s>"


def test_in_a_chat_examples_are_earlier_turns_behind_its_system_message(tokenizer: PreTrainedTokenizerBase) -> None:
    def chat(question: str, answer: str) -> Example:
        turns = [("system", f"s {question}"), ("user", question), ("assistant", answer)]
        return Example("", "chat", tuple(Message(*turn) for turn in turns))

    rules = replace(CAUSAL, chat=True, train_on="last")
    asked = shots.behind(chat("two", "B"), [chat("one", "A")], rules)
    prompt = "<s><system>s two</s><user>one</s><assistant>A</s><user>two</s><assistant>"
    assert read(asked, tokenizer, shots.rules_with(rules, [asked])) == (prompt, "B</s>")


def test_a_special_token_in_the_words_of_a_shown_row_stays_text(tokenizer: PreTrainedTokenizerBase) -> None:
    shown = [pair("end</s>", "A</s>", 1)]
    row = encode(shots.behind(pair("two", "B", 2), shown, CAUSAL), tokenizer, shots.rules_with(CAUSAL, shown))
    assert row is not None and row.ids_L.tolist().count(1) == 1 and row.ids_L[-1] == 1


def test_what_has_no_question_cannot_be_shown() -> None:
    kinds = ("pair", "label", "chat", "text", "segments")
    assert [shots.can_show(Example("", kind)) for kind in kinds] == [True, True, True, False, False]
