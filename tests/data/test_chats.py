"""Chats through templates: exactly the answers and their end tokens are trained, and serving asks with the same ids."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from luthier.data import encode, formats, gate
from luthier.data.encode import Rules
from luthier.data.examples import Encoded, Example
from luthier.errors import DataError
from luthier.spec import Data
from tests.data import chats

DATA = Data(train="rows.jsonl")
SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "How many?"}
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
    "system": [SYSTEM, ASK, {"role": "assistant", "content": "3"}],
    "tool": [
        ASK,
        {"role": "assistant", "content": "Let me look."},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "Three."},
    ],
}


def _example(messages: list[dict[str, Any]], answered: bool = True, **columns: Any) -> Example:
    return formats.to_example({"messages": messages} | columns, "messages", DATA, "f", 1, answered)


def _rules(style: chats.Style, text: Any, **rules: Any) -> Rules:
    ends = tuple(text.convert_tokens_to_ids(list(style.ends)))
    return Rules("causal", "chat", chat=True, end_token_ids=ends, **rules)


def _runs(row: Encoded, text: Any) -> list[str]:
    """The text of every trained stretch."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.train_L.astype(int), [0]])))
    return [text.decode(row.ids_L[a:b]) for a, b in pairwise(edges)][::2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", chats.STYLES)
def test_every_answer_and_its_end_token_is_trained_and_nothing_else(name: str, shape: str) -> None:
    style, messages = chats.STYLES[name], SHAPES[shape]
    text = chats.tokenizer(style.template)
    rules = _rules(style, text)
    if shape in style.refuses:
        with pytest.raises(DataError, match="System role not supported") as caught:
            encode.encode(_example(messages), text, rules)
        assert caught.value.where == "f:1"
        return
    row = encode.encode(_example(messages), text, rules)
    assert row is not None
    answers = [style.opens + m["content"] for m in messages if m["role"] == "assistant"]
    stops = [style.stop if style.tail is None else f"<|{m['role']}|>" for m in messages[2:] if m["role"] != "assistant"]
    assert _runs(row, text) == [a + s for a, s in zip(answers, [*stops, style.tail or style.stop], strict=True)]
    facts = gate.GateFacts(rules.end_token_ids, bos_id=text.bos_token_id)
    assert gate.inspect([row], [], facts) == []

    whole = text.apply_chat_template(messages, tokenize=False)
    appended = "" if style.tail is None else style.tail
    assert text.decode(row.ids_L) == whole + appended
    asked = text.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert encode.encode_prompt(_example(messages), text, rules).tolist() == asked
    assert encode.encode_prompt(_example(messages[:-1], answered=False), text, rules).tolist() == asked
    last = encode.encode(_example(messages), text, _rules(style, text, train_on="last"))
    assert last is not None and last.ids_L[: last.prompt_length].tolist() == asked
    assert _runs(last, text) == _runs(row, text)[-1:]


def test_weights_override_what_is_trained() -> None:
    style, text = chats.STYLES["chatml"], chats.tokenizer(chats.CHATML)
    messages = [dict(m) for m in SHAPES["three turns"]]
    messages[1]["weight"], messages[5]["weight"] = 1, 0
    for train_on, told in (("assistant", ["Three.", "Three."]), ("last", ["Three."])):
        row = encode.encode(_example(messages), text, _rules(style, text, train_on=train_on))
        assert row is not None and _runs(row, text) == [f"{answer}<|im_end|>" for answer in told]
    row = encode.encode(_example(messages), text, _rules(style, text, train_on="all"))
    assert row is not None
    told = "".join(_runs(row, text))
    assert "How many?" in told and "Three." in told and "Sure, three" not in told


def test_all_trains_everything_but_the_first_token() -> None:
    style, text = chats.STYLES["headers"], chats.tokenizer(chats.HEADERS)
    row = encode.encode(_example(SHAPES["system"]), text, _rules(style, text, train_on="all"))
    assert row is not None and not row.train_L[0] and row.train_L[1:].all()
    assert gate.inspect([row], [], gate.GateFacts((text.convert_tokens_to_ids("<|eot_id|>"),), text.bos_token_id)) == []
    prompt = encode.encode_prompt(_example(SHAPES["system"]), text, _rules(style, text, train_on="all"))
    assert text.decode(prompt).endswith("assistant<|end_header_id|>\n\n")


def test_thoughts_of_earlier_turns_are_gone_where_the_template_takes_them_out() -> None:
    style = chats.STYLES["strips thinking"]
    text = chats.tokenizer(style.template)
    messages = [
        ASK,
        {"role": "assistant", "content": "<think>" + "hm " * 40 + "</think>\nThree."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "<think>yes</think>\nSure."},
    ]
    row = encode.encode(_example(messages), text, _rules(style, text))
    assert row is not None
    assert _runs(row, text) == ["Three.<|im_end|>", "<think>yes</think>\nSure.<|im_end|>"]


def test_an_empty_thought_that_the_model_must_write_is_trained() -> None:
    style, text = chats.STYLES["chatml"], chats.tokenizer(chats.ADDS_EMPTY_THINKING)
    row = encode.encode(_example(SHAPES["three turns"]), text, _rules(style, text))
    assert row is not None
    runs = _runs(row, text)
    assert runs[:2] == ["Three.<|im_end|>"] * 2
    assert runs[2] == "<think>\n\n</think>\n\nSure, three\nof them.<|im_end|>"


def test_a_template_that_prompts_otherwise_than_it_renders_is_refused() -> None:
    text = chats.tokenizer(chats.DISAGREES)
    rules = Rules("causal", "chat", chat=True, end_token_ids=(1,))
    with pytest.raises(DataError, match="otherwise in training than in generation") as caught:
        encode.encode(_example(SHAPES["one turn"]), text, rules)
    assert "<think>" in (caught.value.hint or "") and caught.value.where == "f:1"


@pytest.mark.parametrize("rewritten", ["m.content | upper", "'(hidden)' if 'Three' in m.content else m.content"])
def test_a_rewritten_turn_that_cannot_be_found_asks_for_the_last_one(rewritten: str) -> None:
    history = f"{{{{ ({rewritten}) if m.role == 'assistant' and not loop.last else m.content }}}}"
    text = chats.tokenizer(chats.CHATML.replace("{{ m.content }}", history))
    rules = _rules(chats.STYLES["chatml"], text)
    with pytest.raises(DataError, match="rewrites message 2") as caught:
        encode.encode(_example(SHAPES["three turns"]), text, rules)
    assert "train_on: last" in (caught.value.hint or "")
    row = encode.encode(_example(SHAPES["three turns"]), text, _rules(chats.STYLES["chatml"], text, train_on="last"))
    prompt = encode.encode_prompt(_example(SHAPES["three turns"]), text, rules)
    assert row is not None and row.ids_L[: row.prompt_length].tolist() == prompt.tolist()


def test_a_template_without_end_token_gets_one_and_a_missing_one_is_found() -> None:
    text = chats.tokenizer(chats.NO_END)
    rules = Rules("causal", "chat", chat=True, end_token_ids=(text.eos_token_id,))
    row = encode.encode(_example(SHAPES["one turn"]), text, rules)
    assert row is not None and _runs(row, text) == ["Three of them.\n\n</s>"]
    facts = gate.GateFacts(rules.end_token_ids)
    assert gate.inspect([row], [], facts) == []
    several = encode.encode(_example(SHAPES["three turns"]), text, rules)
    assert several is not None
    (finding,) = gate.inspect([several], [], facts)
    assert (finding.code, finding.severity) == ("G01", "refuse")


def test_a_doubled_bos_is_found() -> None:
    text = chats.tokenizer("{{ bos_token }}" + chats.HEADERS)
    rules = _rules(chats.STYLES["headers"], text)
    row = encode.encode(_example(SHAPES["one turn"]), text, rules)
    assert row is not None and text.decode(row.ids_L).startswith("<s><s>")
    (finding,) = gate.inspect(
        [row], [_example(SHAPES["one turn"])], gate.GateFacts(rules.end_token_ids, text.bos_token_id)
    )
    assert finding.code == "G04"


def test_tools_reach_the_template_and_calls_are_trained() -> None:
    style = chats.STYLES["chatml"]
    text = chats.tokenizer(style.template)
    call = {"type": "function", "function": {"name": "count", "arguments": '{"what": "apples"}'}}
    messages = [ASK, {"role": "assistant", "content": None, "tool_calls": [call]}, *SHAPES["tool"][2:]]
    tools = [{"type": "function", "function": {"name": "count"}}]
    row = encode.encode(_example(messages, tools=tools), text, _rules(style, text))
    assert row is not None
    runs = _runs(row, text)
    assert runs[0].startswith("<call>") and '"what": "apples"' in runs[0] and runs[0].endswith("</call><|im_end|>")
    assert text.decode(row.ids_L).startswith("<|im_start|>tools")
    plain = Rules("causal", "chat", end_token_ids=(1,))
    with pytest.raises(DataError, match="tools need a model with a chat template"):
        encode.encode(_example(messages), text, plain)
    with pytest.raises(DataError, match="tools need a model with a chat template"):
        encode.encode(_example(SHAPES["one turn"], tools=tools), text, plain)
    seq2seq = Rules("seq2seq", "chat", chat=True, end_token_ids=(1,))
    with pytest.raises(DataError, match="not by calling a tool"):
        encode.encode(_example(messages[:2], tools=tools), text, seq2seq)


KNOWS_NO_TOOLS = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


CUTS_THOUGHTS = (  # as DeepSeek-R1's does, also from the answer that is to be learned
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLS_WITHOUT_WORDS = (  # as Llama 3.1's does
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_words_and_thoughts_that_the_template_leaves_out_of_an_answer_are_refused() -> None:
    text = chats.tokenizer(CUTS_THOUGHTS)
    rules = _rules(chats.STYLES["chatml"], text)
    thought = {"role": "assistant", "content": "<think>hm</think>Three."}
    with pytest.raises(DataError, match="leaves out what the assistant says in message 2"):
        encode.encode(_example([ASK, thought]), text, rules)
    aside = {"role": "assistant", "content": "Three.", "reasoning_content": "hm"}
    with pytest.raises(DataError, match="leaves out the assistant's thought in message 2") as caught:
        encode.encode(_example([ASK, aside]), text, rules)
    assert caught.value.where == "f:1"
    history = encode.encode(_example([ASK, thought, ASK, {"role": "assistant", "content": "4"}]), text, rules)
    assert history is not None and _runs(history, text) == ["Three.<|im_end|>", "4<|im_end|>"]
    text = chats.tokenizer(CALLS_WITHOUT_WORDS)
    call = {"type": "function", "function": {"name": "count", "arguments": {}}}
    calling = {"role": "assistant", "content": "Let me look.", "tool_calls": [call]}
    for messages in ([ASK, calling], [ASK, calling, *SHAPES["tool"][2:]]):
        with pytest.raises(DataError, match="leaves out what the assistant says in message 2"):
            encode.encode(_example(messages), text, rules)
    silent = [ASK, calling | {"content": None}, *SHAPES["tool"][2:]]
    assert encode.encode(_example(silent), text, rules) is not None


def test_a_thought_may_be_spaced_otherwise() -> None:
    spaced = CUTS_THOUGHTS.replace("m.content.split('</think>')[-1]", "m.content.replace('</think>', '\n</think>\n\n')")
    text = chats.tokenizer(spaced)
    messages = [ASK, {"role": "assistant", "content": "<think>hm</think>Three."}]
    row = encode.encode(_example(messages), text, _rules(chats.STYLES["chatml"], text))
    assert row is not None and _runs(row, text) == ["<think>hm\n</think>\n\nThree.<|im_end|>"]


def test_a_message_or_a_tool_that_the_template_leaves_out_is_refused() -> None:
    """The result of a call, `3`, would be missing from the text, although a later `Three.` and other digits are not."""
    text = chats.tokenizer(KNOWS_NO_TOOLS)
    rules = _rules(chats.STYLES["chatml"], text)
    told = [ASK, {"role": "assistant", "content": "3?"}, {"role": "tool", "content": "3"}, *SHAPES["tool"][3:]]
    fine = [SYSTEM, *SHAPES["three turns"]]
    assert encode.encode(_example(fine), text, rules) is not None
    rows = [_example(fine), _example(told)]
    with pytest.raises(DataError, match="leaves out message 3, which the tool says") as caught:
        encode.encode_split(rows, text, rules)
    assert caught.value.where == "f:1" and "template knows tools" in str(caught.value.hint)
    with pytest.raises(DataError, match="leaves out message 3"):
        encode.encode_prompt(_example(told), text, rules)
    with pytest.raises(DataError, match="leaves out message 3"):
        encode.encode(_example(told), text, Rules("seq2seq", "chat", chat=True, end_token_ids=rules.end_token_ids))
    with pytest.raises(DataError, match="leaves out message 1, which the developer says") as caught:
        encode.encode(_example([{"role": "developer", "content": "Be brief."}, *SHAPES["one turn"]]), text, rules)
    assert "`system`" in str(caught.value.hint)
    with pytest.raises(DataError, match="leaves out the tools"):
        tools = [{"type": "function", "function": {"name": "count"}}]
        encode.encode(_example(SHAPES["one turn"], tools=tools), text, rules)


def test_the_templates_sandbox_holds() -> None:
    text = chats.tokenizer("{{ messages.__class__.__mro__ }}")
    with pytest.raises(DataError, match="tries what no template may"):
        encode.encode(_example(SHAPES["one turn"]), text, Rules("causal", "chat", chat=True, end_token_ids=(1,)))


def test_without_a_chat_template_turns_are_lines_with_an_end_token_each() -> None:
    text = chats.tokenizer("")
    rules = Rules("causal", "chat", end_token_ids=(text.eos_token_id,))
    row = encode.encode(_example([SYSTEM, *SHAPES["three turns"]]), text, rules)
    assert row is not None
    assert text.decode(row.ids_L) == (
        "<s>system: Be brief.\nuser: How many?\nassistant: Three.</s>user: Three?\nassistant: Three.</s>"
        "user: Sure?\nassistant: Sure, three\nof them.</s>"
    )
    assert _runs(row, text) == [" Three.</s>", " Three.</s>", " Sure, three\nof them.</s>"]
    last = encode.encode(
        _example([SYSTEM, *SHAPES["three turns"]]), text, Rules("causal", "chat", train_on="last", end_token_ids=(1,))
    )
    assert last is not None and last.ids_L.tolist() == row.ids_L.tolist()
    prompt = encode.encode_prompt(_example([SYSTEM, *SHAPES["three turns"]]), text, rules)
    assert prompt.tolist() == last.ids_L[: last.prompt_length].tolist()
    asked = _example([SYSTEM, *SHAPES["three turns"][:-1]], answered=False)
    assert encode.encode_prompt(asked, text, rules).tolist() == prompt.tolist()
    assert encode.reference(_example(SHAPES["three turns"])) == "Sure, three\nof them."


def test_a_chat_for_an_encoder_decoder_is_asked_as_lines() -> None:
    text = chats.tokenizer("")
    rules = Rules("seq2seq", "chat", end_token_ids=(1,))
    row = encode.encode(_example(SHAPES["tool"]), text, rules)
    assert row is not None
    asked = text.decode(row.ids_L[: row.prompt_length])
    assert asked == "<s>user: How many?\nassistant: Let me look.\ntool: 3\n"
    assert encode.encode_prompt(_example(SHAPES["tool"][:-1], answered=False), text, rules).tolist() == (
        row.ids_L[: row.prompt_length].tolist()
    )
