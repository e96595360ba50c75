"""The chat templates of 15 families: what is trained, and that training, evaluation and serving see the same ids."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from luthier.data import encode, formats, gate, rendering
from luthier.data.encode import Rules
from luthier.data.examples import Encoded, Example
from luthier.errors import DataError
from luthier.spec import Data
from tests.data.families import FAMILIES, Family

DATA = Data(train="rows.jsonl")
ASK = {"role": "user", "content": "How many?"}
CALL = {"id": "call00001", "type": "function", "function": {"name": "count", "arguments": {"what": "red apples"}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "count",
            "description": "Counts things.",
            "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
        },
    }
]
SHAPES: dict[str, list[dict[str, Any]]] = {
    "one turn": [ASK, {"role": "assistant", "content": "Three of them."}],
    "three turns": [
        ASK,
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Sure, three\nof them."},
    ],
    "system": [
        {"role": "system", "content": "Be brief."},
        ASK,
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "4"},
    ],
    "tools": [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "count", "tool_call_id": "call00001", "content": "3"},
        {"role": "assistant", "content": "Three."},
    ],
}
CASES = [(name, shape) for name in FAMILIES for shape in SHAPES]


TELLS_NO_TOOLS = {"deepseek3"}
"""Its template writes calls and results, but not which tools there are: rows must not bring them."""


def _example(messages: list[dict[str, Any]], shape: str, answered: bool = True, family: str = "") -> Example:
    columns = {"tools": TOOLS} if shape == "tools" and family not in TELLS_NO_TOOLS else {}
    return formats.to_example({"messages": messages} | columns, "messages", DATA, "f", 1, answered)


def _rules(family: Family, text: Any, **rules: Any) -> Rules:
    return Rules(
        "causal", "chat", chat=True, end_token_ids=tuple(text.convert_tokens_to_ids(list(family.ends))), **rules
    )


def _found(row: Encoded, text: Any) -> list[tuple[str, bool]]:
    """The row's text in stretches, each with whether it is trained."""
    edges = [0, *(np.flatnonzero(np.diff(row.train_L)) + 1), len(row.ids_L)]
    return [(text.decode(row.ids_L[a:b]), bool(row.train_L[a])) for a, b in pairwise(edges)]


def _expected(family: Family, shape: str) -> list[tuple[str, bool]]:
    told: list[tuple[str, bool]] = []
    for piece, trained in family.speak(SHAPES[shape], TOOLS if shape == "tools" else None):
        if told and told[-1][1] == trained:
            piece = told.pop()[0] + piece
        if piece:
            told.append((piece, trained))
    return told


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_assistant_token_and_its_stop_token_is_trained_and_nothing_else(name: str, shape: str) -> None:
    """RELIABILITY 17. The stop of an earlier turn of gpt-oss is not one of the model's end tokens: refused by G01."""
    family = FAMILIES[name]
    text, messages = family.tokenizer(name), SHAPES[shape]
    rules = _rules(family, text)
    if shape in family.refuses:
        with pytest.raises(DataError, match=family.refuses[shape]) as caught:
            encode.encode(_example(messages, shape, family=name), text, rules)
        assert caught.value.where == "f:1"
        return
    row, expected = encode.encode(_example(messages, shape, family=name), text, rules), _expected(family, shape)
    assert row is not None
    unending = name == "gpt_oss" and shape in ("three turns", "system")
    if unending:  # the content of earlier turns is trained, their `<|end|>` is not
        assert [told for told, trained in _found(row, text) if trained] == [
            told.removesuffix("<|end|>") for told, trained in expected if trained
        ]
    else:
        assert _found(row, text) == expected
    facts = gate.GateFacts(rules.end_token_ids, text.bos_token_id)
    found = gate.inspect([row], [_example(messages, shape, family=name)], facts, tokenizer=text)
    assert [finding.code for finding in found] == (["G01"] if unending else [])
    bos = (row.ids_L == text.bos_token_id) if text.bos_token_id not in rules.end_token_ids else np.zeros(1, bool)
    assert bos.sum() <= 1 and not bos[1:].any()


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_training_evaluation_and_serving_see_the_same_ids(name: str, shape: str) -> None:
    family = FAMILIES[name]
    text, messages, tools = family.tokenizer(name), SHAPES[shape], TOOLS if shape == "tools" else None
    if shape in family.refuses:
        return
    rules = _rules(family, text, train_on="last")
    row = encode.encode(_example(messages, shape, family=name), text, rules)
    assert row is not None
    trained = encode.encode_prompt(_example(messages, shape, family=name), text, rules).tolist()
    asked = encode.encode_prompt(_example(messages[:-1], shape, answered=False, family=name), text, rules).tolist()
    if name == "deepseek3" and shape == "tools":  # it wants the arguments of a call as text
        calls = [{**CALL, "function": {**CALL["function"], "arguments": '{"what": "red apples"}'}}]
        messages = [m | {"tool_calls": calls} if "tool_calls" in m else m for m in messages]
    served = text.apply_chat_template(messages[:-1], tools=tools, add_generation_prompt=True, return_dict=False)
    assert row.ids_L[: row.prompt_length].tolist() == trained == asked == served
    assert (
        _found(row, text)[-1 if row.train_L[-1] else -2] == [each for each in _expected(family, shape) if each[1]][-1]
    )


@pytest.mark.parametrize("name", TELLS_NO_TOOLS)
def test_tools_that_the_template_does_not_tell_are_refused(name: str) -> None:
    family = FAMILIES[name]
    text = family.tokenizer(name)
    with pytest.raises(DataError, match="leaves out the tools") as caught:
        encode.encode(_example(SHAPES["tools"], "tools"), text, _rules(family, text))
    assert caught.value.where == "f:1"


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_those_of_transformers(name: str) -> None:
    """Also with thoughts, which Qwen 3, GLM and gpt-oss read under different names."""
    text = FAMILIES[name].tokenizer(name)
    thoughtful = [ASK, {"role": "assistant", "content": "Three.", "reasoning_content": "One, two …"}]
    for shape, messages in (SHAPES | {"thought": thoughtful, "said": [*thoughtful, ASK]}).items():
        if shape in FAMILIES[name].refuses or (name, shape) == ("deepseek3", "tools"):
            continue
        tools = TOOLS if shape == "tools" else None
        views = tuple((count, opened) for count in range(1, len(messages) + 1) for opened in (False, True))
        chat = rendering.Chat(messages, tools, views)
        (texts,) = rendering.render(text.get_chat_template(None, tools), text.special_tokens_map, [chat])
        assert texts == [
            text.apply_chat_template(messages[:count], tools=tools, tokenize=False, add_generation_prompt=opened)
            for count, opened in views
        ]


def test_a_thought_is_trained_where_the_template_writes_it() -> None:
    family = FAMILIES["qwen3"]
    text = family.tokenizer("qwen3")
    messages = [ASK, {"role": "assistant", "content": "Three.", "reasoning_content": "hm"}]
    messages = [*messages, ASK, {"role": "assistant", "content": "<think>\nso\n</think>\n\nFour."}]
    row = encode.encode(_example(messages, ""), text, _rules(family, text))
    assert row is not None
    assert [told for told, trained in _found(row, text) if trained] == [
        "Three.<|im_end|>",
        "<think>\nso\n</think>\n\nFour.<|im_end|>",
    ]
