"""The corpus of bad files, second half: parquet, cells, chats. One case a line, to be read as a table."""
# ruff: noqa: E501

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.bad_files import ROWS, Make, jsonl, read, refused, second


def parquet(columns: dict[str, Any]) -> Make:
    return lambda path: pq.write_table(pa.table(columns), path)


def _cut(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-20])


def _zeros_inside(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, compression="none")
    whole = bytearray(path.read_bytes())
    whole[8:60] = bytes(52)
    path.write_bytes(whole)


def _twice(path: Path) -> None:
    names = pa.schema([("input", pa.string()), ("output", pa.string()), ("input", pa.string())])
    pq.write_table(pa.table([["a"], ["b"], ["c"]], schema=names), path)


TEXTS = {"input": [row["input"] for row in ROWS], "output": [row["output"] for row in ROWS]}
DATED = [row | {"at": "2026-01-02", "price": "1.50", "tags": ["a", None], "more": {"deep": None}} for row in ROWS]

PARQUET = {
    "a parquet file cut off": refused("x.parquet", _cut, "", "not a readable parquet file", "write or copy it again"),
    "a parquet file with damaged pages": refused("x.parquet", _zeros_inside, "", "not a readable parquet file"),
    "an empty file named .parquet": refused("x.parquet", b"", "", "not a readable parquet file"),
    "a parquet file without rows": refused("x.parquet", parquet({"input": pa.array([], pa.string())}), "", "no rows"),
    "a binary column": refused("x.parquet", parquet(TEXTS | {"image": [b"x"] * 12}), "", "the column `image` holds binary, which is not plain data"),
    "bytes inside a structure": refused("x.parquet", parquet(TEXTS | {"image": [{"bytes": b"x", "path": "y"}] * 12}), "", "the column `image` holds struct<bytes: binary, path: string>"),
    "a column twice in parquet": refused("x.parquet", _twice, "", "the column `input` stands twice"),
    "NaN in a column": refused("x.parquet", parquet(TEXTS | {"score": [1.0, float("nan")] * 6}), "2", "the column `score` holds nan"),
    "a null where the answer should be": refused("x.parquet", parquet(TEXTS | {"output": [*TEXTS["output"][:4], None, *TEXTS["output"][5:]]}), "5", "`output` is null"),
    "dates, decimals, lists and structures": read("x.parquet", parquet(TEXTS | {"at": [datetime.date(2026, 1, 2)] * 12, "price": [decimal.Decimal("1.50")] * 12, "tags": [["a", None]] * 12, "more": [{"deep": None}] * 12}), DATED, remark="dates and decimals become text"),
    "a column of nulls": read("x.parquet", parquet(TEXTS | {"none": pa.nulls(12)}), [row | {"none": None} for row in ROWS]),
    "a date beyond the year 9999": refused("x.parquet", parquet(TEXTS | {"at": pa.array([10**7] * 12, pa.date32())}), "1", "holds a value that cannot be read", "write dates as text"),
}  # fmt: skip

CELLS = {
    "an empty answer": refused("x.jsonl", second('{"input": "a", "output": ""}'), "2", "`output` is empty", "fill it; `empty` in data.clean drops such rows"),
    "an answer of spaces": refused("x.jsonl", second('{"input": "a", "output": " \\n\\t\\u3000"}'), "2", "`output` is empty"),
    "an empty completion": refused("x.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": ""}\n', "2", "`completion` is empty"),
    "an answer that is null": refused("x.jsonl", second('{"input": "a", "output": null}'), "2", "`output` is null"),
    "a column that is missing in one row": refused("x.jsonl", second('{"input": "a"}'), "2", "this row has no `output`", "it has: input"),
    "a column misspelt in one row": refused("x.jsonl", second('{"input": "a", "ouput": "b"}'), "2", "this row has no `output`", "did you mean `ouput`?"),
    "several bad rows": refused("x.jsonl", second('{"input": "a"}\n{"input": "b"}\n{"input": "c"}'), "2", "(and 2 more rows cannot be used)"),
    "a list where text belongs": refused("x.jsonl", second('{"input": ["a"], "output": "b"}'), "2", "`input` must be text, not a structure"),
    "an object where text belongs": refused("x.jsonl", second('{"input": "a", "output": {"b": null}}'), "2", "`output` must be text, not a structure"),
    "mixed types in one column": read("x.jsonl", jsonl([*ROWS, {"input": 7, "output": True}]), [*ROWS, {"input": 7, "output": True}], remark="numbers and truth values are read as JSON writes them"),
    "100,000 columns in a row": refused("x.jsonl", json.dumps({f"c{i}": i for i in range(100_000)}) + "\n", "", "fit no known format", "and 99,988 more"),
    "unknown columns": refused("x.jsonl", '{"foo": "a", "bar": "b"}\n', "", "the columns bar, foo fit no known format", "data.columns: {input: COLUMN, output: COLUMN}"),
    "preference pairs": refused("x.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "", "preference pairs"),
    "rows that are already tokenised": refused("x.jsonl", '{"input_ids": [1, 2], "labels": [1, 2]}\n', "", "already tokenised"),
    "a label of spaces": refused("x.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": "  "}\n', "2", "`label` is empty"),
    "a label that is null": refused("x.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n', "2", "`label` is empty"),
    "a label that is a list": refused("x.jsonl", '{"text": "a", "label": ["x", "y"]}\n', "1", "`label` must be one class"),
    "a label that is a fraction": refused("x.jsonl", '{"text": "a", "label": 0.5}\n', "1", "the label 0.5 is not a class"),
}  # fmt: skip

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def chats(*turns: Any) -> str:
    """Good chats whose second row has these turns."""
    good = [[{"role": "user", "content": f"question {i}"}, ANSWER] for i in range(12)]
    rows: list[dict[str, Any]] = [{"messages": messages} for messages in good]
    return jsonl([rows[0], {"messages": list(turns)}, *rows[1:]])


def chat(turns: list[Any]) -> tuple[str, list[dict[str, Any]]]:
    text = chats(*turns)
    return text, [json.loads(line) for line in text.splitlines()]


def call(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}

CHATS = {
    "a chat without a turn": refused("x.jsonl", chats(), "2", "`messages` must be a list of turns with at least one"),
    "a chat that is null": refused("x.jsonl", chats(USER, ANSWER) + '{"messages": null}\n', "14", "this row has no `messages`"),
    "a chat that is text": refused("x.jsonl", chats(USER, ANSWER) + '{"messages": "hi"}\n', "14", "`messages` is text, not a list of turns"),
    "a turn that is null": refused("x.jsonl", chats(USER, None), "2", "messages[1] must be an object with role and content"),
    "a turn that is text": refused("x.jsonl", chats(USER, "hello"), "2", "messages[1] must be an object"),
    "a turn without content": refused("x.jsonl", chats(USER, {"role": "assistant"}), "2", "messages[1]: `content` must be text"),
    "content that is null": refused("x.jsonl", chats({"role": "user", "content": None}, ANSWER), "2", "messages[0]: `content` must be text"),
    "a turn without a role": refused("x.jsonl", chats({"content": "hi"}, ANSWER), "2", "messages[0]: `None` is not a role"),
    "a wrong role": refused("x.jsonl", chats(USER, {"role": "asistant", "content": "x"}), "2", "messages[1]: `asistant` is not a role", "did you mean `assistant`?"),
    "a role in capitals": refused("x.jsonl", chats({"role": "User", "content": "x"}, ANSWER), "2", "`User` is not a role", "did you mean `user`?"),
    "no assistant turn": refused("x.jsonl", chats(USER), "2", "no assistant turn: there is nothing to learn"),
    "an assistant who says nothing": refused("x.jsonl", chats(USER, {"role": "assistant", "content": " "}), "2", "message 2: the assistant says nothing"),
    "an image in a turn": refused("x.jsonl", chats(IMAGE, ANSWER), "2", "messages[0]: only text can be trained on, not images"),
    "a weight that is no weight": refused("x.jsonl", chats(USER, ANSWER | {"weight": "high"}), "2", "messages[1]: `weight` must be 0 or 1"),
    "a weight between 0 and 1": refused("x.jsonl", chats(USER, ANSWER | {"weight": 0.5}), "2", "messages[1]: `weight` must be 0 or 1"),
    "weights of 0 everywhere": refused("x.jsonl", chats(USER, ANSWER | {"weight": 0}), "2", "every assistant turn is excluded from training"),
    "a tool call whose arguments are broken JSON": refused("x.jsonl", chats(USER, call('{"city": ')), "2", "messages[1]: the arguments of a tool call: not JSON"),
    "a tool call without a function": refused("x.jsonl", chats(USER, ANSWER | {"tool_calls": [{"id": "1"}]}), "2", "messages[1]: a tool call needs `function` with a name"),
    "tool calls that are no list": refused("x.jsonl", chats(USER, ANSWER | {"tool_calls": "f()"}), "2", "messages[1]: `tool_calls` must be a list"),
    "tools that are broken JSON": refused("x.jsonl", chats(USER, ANSWER) + json.dumps({"messages": [USER, ANSWER], "tools": "[{]"}) + "\n", "14", "`tools`: not JSON"),
    "ShareGPT from nobody we know": refused("x.jsonl", '{"conversations": [{"from": "narrator", "value": "x"}]}\n', "1", "conversations[0]: `from` is `narrator`"),
    "ShareGPT without a value": refused("x.jsonl", '{"conversations": [{"from": "human"}, {"from": "gpt", "value": "x"}]}\n', "1", "conversations[0]: `content` must be text"),
    "a chat that ends with the user": read("x.jsonl", *chat([USER, ANSWER, USER]), remark="turns after the last answer are left out"),
    "an assistant who begins": read("x.jsonl", *chat([ANSWER, USER, ANSWER]), remark="whether it can be rendered, the base's template decides: `luthier plan`"),
    "two assistant turns in a row": read("x.jsonl", *chat([USER, ANSWER, ANSWER]), remark="both are learned, where the base's template allows it"),
}  # fmt: skip
