"""Recognising formats by columns, and what each row becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.data import formats
from luthier.data.examples import Example, Message
from luthier.data.templates import default_template, fill, placeholders
from luthier.errors import DataError
from luthier.spec import Data


def _data(**wishes: Any) -> Data:
    return Data(train="rows.jsonl", **wishes)


def _one(row: dict[str, Any], **wishes: Any) -> Example:
    data = _data(**wishes)
    return formats.to_example(row, formats.detect(list(row), "f", data), data, "f", 7)


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
RECOGNISED = {
    "messages": "id messages tools label prompt",
    "sharegpt": "conversations system",
    "segments": "segments id",
    "prompt_completion": "prompt completion label",
    "alpaca": "instruction input output history",
    "input_output": "id input label output context_id slots",
    "text_label": "text label output",
    "text": "text id",
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_formats_are_recognised_among_other_columns(name: str) -> None:
    assert formats.detect(RECOGNISED[name].split(), "f") == name


@pytest.mark.parametrize(
    ("columns", "both"),
    [
        ("messages conversations", ("messages", "sharegpt")),
        ("messages input output", ("messages", "input_output")),
        ("prompt completion input output", ("prompt_completion", "input_output")),
        ("instruction input output text", ("alpaca", "text")),
        ("input output text label", ("input_output", "text_label")),
    ],
)
def test_a_file_that_fits_two_formats_is_refused_with_both_named(columns: str, both: tuple[str, str]) -> None:
    with pytest.raises(DataError) as caught:
        formats.detect(columns.split(), "rows.jsonl")
    assert all(f"`{name}`" in caught.value.message for name in both)
    assert "data.format: " in (caught.value.hint or "")
    assert formats.detect(columns.split(), "f", _data(format=both[1])) == both[1]


def test_what_is_not_trained_on_is_named() -> None:
    for columns, words in (
        ("prompt chosen rejected", "preference"),
        ("input_ids labels", "already tokenised"),
        ("input preferred_output non_preferred_output", "preference"),
        ("messages rejected_response", "preference"),
        ("instruction output kto_tag", "judged"),
    ):
        with pytest.raises(DataError, match=words):
            formats.detect(columns.split(), "f")
    with pytest.raises(DataError, match="good or bad"):
        _one({"prompt": "a", "completion": "b", "label": True})


def test_unknown_columns_get_a_hint_that_works() -> None:
    with pytest.raises(DataError, match="id, input, label fit no known format") as caught:
        formats.detect(["id", "input", "label"], "f")
    assert "{text: COLUMN}" in (caught.value.hint or "")
    assert _one({"id": 1, "input": "a", "label": "b"}, columns={"text": "input"}).label == "b"
    pair = _one({"id": 1, "input": "a", "label": "b"}, columns={"output": "label"})
    assert [m.content for m in pair.messages] == ["a", "b"]
    with pytest.raises(DataError, match="no known format"):
        formats.detect([], "f")
    with pytest.raises(DataError, match="`chatml` is not a data format"):
        formats.detect(["messages"], "f", _data(format="chatml"))


def test_aliases_count_only_when_one_reading_is_possible() -> None:
    for row in ({"question": "a", "answer": "b"}, {"query": "a", "response": "b"}, {"prompt": "a", "target": "b"}):
        assert [m.content for m in _one(row).messages] == ["a", "b"]
    for columns in ("question prompt answer", "question answer response", "question answer context"):
        with pytest.raises(DataError, match="no known format"):
            formats.detect(columns.split(), "f")
    row = {"question": "a", "answer": "b", "context": "c"}
    example = _one(row, columns={"input": "question", "output": "answer"}, template="{context}\n{input}")
    assert fill("{context}|{question}|{input}", example.columns, "f") == "c|a|a"


def test_columns_win_over_what_else_would_fit() -> None:
    row = {"input": "a", "label": "b", "output": "c"}
    assert _one(row, columns={"output": "label"}).messages[1].content == "b"
    assert _one(row, columns={"text": "input"}).kind == "label"
    assert _one(row | {"text": "t"}, columns={"input": "text"}).messages[0].content == "t"
    both = {"question": "a", "answer": "b", "text": "t"}
    assert _one(both, columns={"input": "question", "output": "answer"}).messages[0].content == "a"
    with pytest.raises(DataError, match="names the column `qestion`") as caught:
        _one({"question": "a", "answer": "b"}, columns={"input": "qestion"})
    assert caught.value.hint == "did you mean `question`?"


def test_a_template_may_use_any_columns() -> None:
    row = {"premise": "p", "hypothesis": "h", "label": 1}
    example = _one(row, template="{premise} / {hypothesis}", labels=["no", "yes"])
    assert (example.kind, example.text, example.label) == ("label", "p / h", "yes")
    example = _one({"a": "x", "gold": "y"}, template="({a})", columns={"output": "gold"})
    assert [m.content for m in example.messages] == ["(x)", "y"]
    with pytest.raises(DataError, match="names the column `c`") as caught:
        _one({"input": "a", "output": "b"}, template="{c} {input}")
    assert caught.value.where == "f:7"
    with pytest.raises(DataError, match="null in this row"):
        _one({"input": "a", "output": "b", "c": None}, template="{c} {input}")


@pytest.mark.parametrize(
    ("row", "template", "columns"),
    [
        ({"input": "a", "output": "b"}, "{input} {output}", {}),
        ({"input": "a", "gold": "b"}, "{input} {gold}", {"output": "gold"}),
        ({"text": "a", "label": "b"}, "{text}: {label}", {}),
        ({"question": "a", "answer": "b"}, "{question} {answer}", {}),
    ],
)
def test_a_template_that_shows_the_answer_is_refused(row: Any, template: str, columns: Any) -> None:
    with pytest.raises(DataError, match="shows the answer"):
        _one(row, template=template, columns=columns)


def test_placeholders_and_literal_braces() -> None:
    template = 'classify {good,bad} {"k": {{ input }}} \\d{3} {} {input}'
    assert placeholders(template) == ("input",)
    assert fill(template, {"input": "{x}"}, "f") == 'classify {good,bad} {"k": {x}} \\d{3} {} {x}'
    assert fill("{n} {b} {l}", {"n": 3, "b": True, "l": ["é"]}, "f") == '3 true ["é"]'
    assert (default_template("causal"), default_template("seq2seq"), default_template("encoder")) == (
        "Input: {input}\nOutput:",
        "{input}",
        "{input}",
    )


def test_messages_keep_weights_tools_and_extras() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            {"role": "system", "content": "s", "name": None},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
            {"role": "tool", "content": "3", "tool_call_id": "1"},
            {"role": "assistant", "content": "three", "loss": True, "reasoning_content": "hm"},
            {"role": "user", "content": "thanks"},
        ],
        "tools": '[{"type": "function", "function": {"name": "f"}}]',
    }
    example = _one(row)
    assert [m.content for m in example.messages] == ["s", "ab", "", "3", "three"]  # nothing is learned after the answer
    assert [m.train for m in example.messages] == [None, None, False, None, True]
    assert example.messages[0].extra == {}
    assert example.messages[2].extra["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert example.messages[4].extra == {"reasoning_content": "hm"}
    assert example.columns["tools"][0]["function"]["name"] == "f"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (None, "no `messages`"),
        ("hi", "text, not a list"),
        ([], "at least one"),
        (["hi"], "messages[0] must be an object"),
        ([{"role": "asistant", "content": "a"}], "messages[0]: `asistant` is not a role"),
        ([{"role": "user", "content": "a"}], "no assistant turn"),
        ([CHAT[0], {"role": "assistant", "content": None}], "messages[1]: `content` must be text, not NoneType"),
        ([CHAT[0], {"role": "assistant", "content": " \n"}], "message 2: the assistant says nothing"),
        ([CHAT[0], CHAT[1] | {"weight": 0}], "every assistant turn is excluded"),
        ([CHAT[0], CHAT[1] | {"weight": 2}], "`weight` must be 0 or 1"),
        ([CHAT[0], CHAT[1] | {"weight": 1, "loss": False}], "contradict"),
        ([CHAT[0] | {"weight": 1}, CHAT[1]], "a user turn cannot be trained"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, CHAT[1]], "only text"),
        ([CHAT[0], CHAT[1] | {"tool_calls": [{"id": 1}]}], "needs `function`"),
        ([CHAT[0], CHAT[1] | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "not JSON"),
    ],
)
def test_bad_chats_name_the_turn_and_the_row(messages: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        formats.to_example({"messages": messages}, "messages", _data(), "f", 7)
    assert words in caught.value.message
    assert caught.value.where == "f:7"


def test_sharegpt_and_its_variants() -> None:
    turns = [
        *SHAREGPT,
        {"from": "human", "value": "weather?"},
        {"from": "function_call", "value": '{"name": "w", "arguments": {"city": "Bonn"}}'},
        {"from": "observation", "value": "sun"},
        {"from": "gpt", "value": "sunny", "weight": 1},
    ]
    example = _one({"conversations": turns, "system": "be kind"})
    assert [m.role for m in example.messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert example.messages[4].extra["tool_calls"] == [{"function": {"name": "w", "arguments": {"city": "Bonn"}}}]
    assert example.messages[6].train is True
    plain = _one({"messages": CHAT})
    assert _one({"conversations": SHAREGPT}).id == plain.id
    assert _one({"conversation": [{"human": "hi", "assistant": "hello"}]}).id == plain.id
    assert _one({"conversations": CHAT}).id == plain.id
    with pytest.raises(DataError, match="`from` is `alien`"):
        _one({"conversations": [{"from": "alien", "value": "x"}]})


def test_openai_s_calls_of_old_and_now_are_the_same_content() -> None:
    weather = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    asked, said = {"role": "user", "content": "Bonn?"}, {"role": "assistant", "content": "Sunny."}
    call = {"name": "weather", "arguments": '{"city": "Bonn"}'}
    old = {
        "messages": [
            asked,
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "weather", "content": "sun"},
            said,
        ],
        "functions": [weather],
    }
    now = {
        "messages": [
            asked,
            {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "name": "weather", "content": "sun"},
            said,
        ],
        "tools": [{"type": "function", "function": weather}],
        "parallel_tool_calls": False,
    }
    assert _one(old).id == _one(now).id
    assert _one(old).messages[1].extra["tool_calls"][0]["function"]["arguments"] == {"city": "Bonn"}
    assert (_one(old).messages[2].role, _one(old).columns["tools"]) == ("tool", now["tools"])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"parallel_tool_calls": "no"}, "must be true or false"),
        ({"parallel_tool_calls": False}, "message 2 makes 2 calls at once"),
        ({"tools": "[1]"}, "`tools` must be a list of objects"),
        ({"functions": {"name": "f"}}, "`functions` must be a list of objects"),
        ({"tools": "{"}, "`tools`: not JSON"),
    ],
)
def test_tools_that_cannot_be_meant_are_refused(row: Any, words: str) -> None:
    calls = [{"function": {"name": "f"}}, {"function": {"name": "g"}}]
    with pytest.raises(DataError, match=words) as caught:
        _one({"messages": [CHAT[0], {"role": "assistant", "tool_calls": calls}]} | row)
    assert caught.value.where == "f:7"
    two = {"role": "assistant", "tool_calls": calls[:1], "function_call": {"name": "f"}}
    with pytest.raises(DataError, match="both `tool_calls` and `function_call`"):
        _one({"messages": [CHAT[0], two]})


def test_sharegpt_speakers_have_many_names_and_one_meaning() -> None:
    call = {"name": "w", "arguments": {"city": "Bonn"}}
    turns = [("system", "s"), ("human", "q"), ("function_call", json.dumps([call, call])), ("observation", "sun")]
    ours = [*turns, ("gpt", "sunny")]
    theirs = [*turns[:1], ("user", "q"), ("tool_call", json.dumps([call, call])), ("tool_response", "sun")]
    shown = [{"from": who, "value": text, "score": 3, "markdown": None} for who, text in ours]
    same = [{"role": who, "content": text} for who, text in [*theirs, ("assistant", "sunny")]]
    example = _one({"conversations": shown, "system": "not this one"})
    assert example.id == _one({"conversations": same}).id
    assert [m.role for m in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert len(example.messages[2].extra["tool_calls"]) == 2 and example.messages[0].content == "s"
    tools = json.dumps([{"name": "w", "description": "d", "parameters": {}}])
    described = _one({"conversations": SHAREGPT, "tools": tools, "system": "be kind"})
    assert described.columns["tools"][0]["function"]["name"] == "w" and described.messages[0].content == "be kind"
    for value, words in (("sunny", "not JSON"), ("3", "a call is an object"), ("{}", "needs `function` with a name")):
        with pytest.raises(DataError, match=words):
            _one({"conversations": [SHAREGPT[0], {"from": "function_call", "value": value}]})


def test_ms_swift_writes_query_response_history() -> None:
    row = {"query": "q2", "response": "a2", "history": [["q1", "a1"]], "system": "s"}
    assert [m.content for m in _one(row).messages] == ["s", "q1", "a1", "q2", "a2"]
    plain = _one({"query": "q", "response": "a", "history": None, "system": ""})
    assert (plain.kind, [m.content for m in plain.messages]) == ("pair", ["q", "a"])
    alone = formats.to_example({"query": "q", "history": []}, "alpaca", _data(), "f", 1, answered=False)
    assert [m.content for m in alone.messages] == ["q"]


def test_segments_are_learned_where_their_label_is_true() -> None:
    parts = [(False, "<s>Q: "), (False, "hi\n"), (True, "hello"), (True, "</s>"), (False, ""), (False, " end")]
    example = _one({"segments": [{"label": label, "text": text} for label, text in parts]})
    assert (example.kind, [(m.role, m.content) for m in example.messages]) == (
        "segments",
        [("user", "<s>Q: hi\n"), ("assistant", "hello</s>")],
    )
    asked = [{"label": False, "text": "Q:"}]
    assert len(formats.to_example({"segments": asked}, "segments", _data(), "f", 1, answered=False).messages) == 1
    for segments, words in (
        ("text", "is text, not a list"),
        ([], "at least one"),
        (asked, "no segment has `label: true`"),
        ([{"label": 1, "text": "a"}], "`label` must be true"),
        ([{"label": True}], "must be an object with `label` and `text`"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            _one({"segments": segments})
        assert caught.value.where == "f:7"


def test_alpaca_with_and_without_history() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    example = _one(row)
    assert (example.kind, example.messages[0].content, example.columns["input"]) == ("pair", "Add.\n1 2", "Add.\n1 2")
    assert _one(row | {"input": ""}).messages[0].content == "Add."
    raw = _one(row, template="{instruction} [{input}]")
    assert fill("{instruction} [{input}]", raw.columns, "f") == "Add. [1 2]"
    chat = _one(row | {"system": "s", "history": [["q", "a"]]})
    assert [m.content for m in chat.messages] == ["s", "q", "a", "Add.\n1 2", "3"]
    with pytest.raises(DataError, match=r"history\[0\]"):
        _one(row | {"history": [["q"]]})


def test_prompt_completion_as_text_and_as_messages() -> None:
    example = _one({"prompt": "1+1=", "completion": " 2"})
    assert (example.exact, [m.content for m in example.messages]) == (True, ["1+1=", " 2"])
    chat = _one({"prompt": CHAT[:1], "completion": CHAT[1:]})
    assert (chat.kind, chat.id) == ("chat", _one({"messages": CHAT}).id)
    assert _one({"prompt": CHAT[:1], "completion": "hello"}).id == chat.id
    assert _one({"prompt": "", "completion": "x"}).messages[0].content == ""


def test_labels_are_names() -> None:
    assert _one({"text": "a", "label": " good "}).label == "good"
    assert _one({"text": "a", "label": 1}).label == "1"
    assert _one({"text": "a", "label": 1.0}).label == "1"
    assert _one({"text": "a", "label": True}).label == "true"
    assert _one({"text": "a", "label": 1}, labels=["bad", "good"]).label == "good"
    assert _one({"text": "a", "label": "1"}, labels=["bad", "good"]).label == "good"
    assert _one({"text": "a", "label": "1"}, labels=["0", "1"]).label == "1"
    for label, words in ((0.5, "not a class"), (["a"], "one class"), (None, "`label` is empty"), (" ", "is empty")):
        with pytest.raises(DataError, match=words):
            formats.to_example({"text": "a", "label": label}, "text_label", _data(), "f", 7)


def test_a_misspelt_column_is_named() -> None:
    with pytest.raises(DataError, match="fit no known format") as caught:
        formats.detect(["input", "outptu", "id"], "f")
    assert caught.value.hint == "`outptu`: did you mean `output`?"
    with pytest.raises(DataError, match="fit no known format") as caught:
        formats.detect(["frage", "antwort"], "f")
    assert "data.columns: {input: COLUMN, output: COLUMN}" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"input": "a"}, "no `output`"),
        ({"input": "a", "output": None}, "`output` is null"),
        ({"input": "a", "output": "  "}, "`output` is empty"),
        ({"input": "\n", "output": "b"}, "`input` is empty"),
        ({"input": "a", "output": {"x": 1}}, "must be text, not a structure"),
    ],
)
def test_cells_must_hold_something(row: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        formats.to_example(row, "input_output", _data(), "f", 7)
    assert caught.value.where == "f:7"


def test_numbers_answer_as_text() -> None:
    assert [m.content for m in _one({"input": 3, "output": 4.5}).messages] == ["3", "4.5"]


def test_a_question_alone_needs_no_answer() -> None:
    for name, row in (
        ("input_output", {"input": "a"}),
        ("text_label", {"text": "a"}),
        ("prompt_completion", {"prompt": "a"}),
        ("alpaca", {"instruction": "a"}),
        ("messages", {"messages": CHAT[:1]}),
        ("prompt_completion", {"prompt": CHAT[:1]}),
    ):
        example = formats.to_example(row, name, _data(), "f", 1, answered=False)
        assert example.label is None and all(m.role == "user" for m in example.messages)


def test_identity_is_the_content_and_nothing_else() -> None:
    row = {"input": "a", "output": "b", "id": 1, "context": "c"}
    same = _one(row | {"id": 2})
    assert same.id == _one(row).id != _one(row | {"output": "B"}).id
    assert _one(row, template="{context} {input}").id != _one(row | {"context": "d"}, template="{context} {input}").id
    assert _one({"messages": CHAT}).id != _one({"messages": CHAT, "tools": [{"a": 1}]}).id
    moved = formats.to_example(row, "input_output", _data(), "elsewhere", 99)
    assert (moved.id, moved.where) == (same.id, "elsewhere:99")
    assert json.loads(json.dumps(moved.columns)) == row
    assert moved.messages == (Message("user", "a"), Message("assistant", "b"))
