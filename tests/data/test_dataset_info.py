"""LLaMA-Factory's dataset_info.json: found by name, read by its columns and tags, refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier import spec
from luthier.data import formats, sources
from luthier.data.prepare import prepare
from luthier.errors import DataError, LuthierError, NotFound
from luthier.spec import Data
from tests import rows

ALPACA = {"q": "Add.", "given": "1 2", "a": "3", "sys": "be brief", "past": [["hi", "hello"]], "text": "t", "day": 1}
TALK = {
    "chat": [
        {"who": "USER", "says": "q", "score": 1},
        {"who": "CALL", "says": '{"name": "f", "arguments": {}}'},
        {"who": "RESULT", "says": "r"},
        {"who": "BOT", "says": "a", "weight": 1},
    ],
    "can": '[{"name": "f"}]',
}
TAGS = {
    "role_tag": "who",
    "content_tag": "says",
    "user_tag": "USER",
    "assistant_tag": "BOT",
    "observation_tag": "RESULT",
    "function_tag": "CALL",
}
INFO: dict[str, Any] = {
    "sums": {
        "file_name": "sums.json",
        "columns": {"prompt": "q", "query": "given", "response": "a", "system": "sys", "history": "past"},
    },
    "plain": {"file_name": "plain.json"},
    "talk": {
        "file_name": "talk.json",
        "formatting": "sharegpt",
        "columns": {"messages": "chat", "tools": "can"},
        "tags": TAGS,
    },
    "openai": {
        "file_name": "openai.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "corpus": {"file_name": "corpus.json", "columns": {"prompt": "body"}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "sums.json": [ALPACA, ALPACA | {"q": "", "given": "2 2", "past": None, "sys": ""}],
        "plain.json": [{"instruction": "Say hi.", "input": "", "output": "hi"}],
        "talk.json": [TALK],
        "openai.json": [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}],
        "corpus.json": [{"body": "All of it is learned."}],
        "dataset_info.json": INFO,
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def _examples(source: str) -> list[formats.Example]:
    read = list(sources.rows(source))
    data = Data(train=source)
    format_name = formats.detect(formats.columns_of(row for row, _, _ in read), source, data)
    return [formats.to_example(row, format_name, data, file, line) for row, file, line in read]


def test_alpaca_columns_mean_what_the_entry_says(folder: Path) -> None:
    full, bare = _examples(f"{folder}/dataset_info.json:sums")
    assert [m.content for m in full.messages] == ["be brief", "hi", "hello", "Add.\n1 2", "3"]
    assert [m.content for m in bare.messages] == ["2 2", "3"]  # the query alone asks
    assert full.file == str(folder / "sums.json") and full.columns["day"] == 1
    [plain] = _examples(f"{folder}:plain")
    assert [m.content for m in plain.messages] == ["Say hi.", "hi"]
    [corpus] = _examples(f"{folder}:corpus")
    assert (corpus.kind, corpus.text) == ("text", "All of it is learned.")


def test_sharegpt_tags_mean_what_the_entry_says(folder: Path) -> None:
    [talk] = _examples(f"{folder}:talk")
    assert [m.role for m in talk.messages] == ["user", "assistant", "tool", "assistant"]
    assert talk.messages[1].extra["tool_calls"][0]["function"]["name"] == "f" and talk.messages[3].train is True
    assert talk.columns["tools"][0]["type"] == "function" and talk.messages[0].extra == {}
    [openai] = _examples(f"{folder}:openai")
    assert [m.role for m in openai.messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"ranking": True}, "ranks answers"),
        ({"columns": {"prompt": "q", "chosen": "c", "rejected": "r"}}, "preference pairs"),
        ({"columns": {"prompt": "q", "response": "a", "kto_tag": "k"}}, "judged answers"),
        ({"columns": {"prompt": "q", "response": "a", "images": "i"}}, "images"),
        ({"script_url": "make.py"}, "runs no code"),
        ({"ms_hub_url": "a/b"}, "ModelScope"),
        ({"num_samples": 5}, "data.limit"),
        ({"file_name": "../secret.json"}, "lies outside the folder"),
        ({"file_name": "/etc/passwd"}, "lies outside the folder"),
        ({"file_name": "sums.jsn"}, "no such data file"),
        ({"file_name": None}, "names no rows"),
        ({"file_name": "a\0b"}, "is no path"),
        ({"file_name": "x" * 5000}, "is no path"),
        ({"formatting": "chatml"}, "no formatting"),
        ({"formatting": "sharegpt", "columns": {"system": "s"}}, "names no `messages`"),
        ({"columns": {"response": "a"}}, "names no `prompt`"),
        ({"columns": {"promt": "q"}}, "`promt` is not known"),
        ({"columns": ["q"]}, "must be an object of names"),
        ({"file_nam": "x"}, "`file_nam` is not known"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_the_reason(folder: Path, entry: Any, words: str) -> None:
    (folder / "dataset_info.json").write_text(json.dumps({"it": {"file_name": "sums.json"} | entry}), encoding="utf-8")
    with pytest.raises(LuthierError, match=words) as caught:
        sources.rows(f"{folder}/dataset_info.json")
    assert "dataset_info.json, `it`" in (caught.value.where or "")


def test_names_are_asked_for_and_typing_errors_are_found(folder: Path) -> None:
    with pytest.raises(NotFound, match="which data set") as which:
        sources.rows(f"{folder}/dataset_info.json")
    assert "sums, plain" in (which.value.hint or "")
    with pytest.raises(NotFound, match="no data set `sum`") as typed:
        sources.rows(f"{folder}:sum")
    assert typed.value.hint == "did you mean `sums`?"
    (folder / "dataset_info.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="must be one object"):
        sources.rows(f"{folder}:sums")


def test_a_file_of_the_datasets_library_with_the_same_name_is_not_ours(folder: Path) -> None:
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {}}), encoding="utf-8")
    found = list(sources.rows(f"{folder}:train"))
    assert found and "citation" not in str(found)  # the folder's files, without the description


def test_a_described_data_set_is_prepared_from_beside_the_experiment(folder: Path) -> None:
    talk = [{"instruction": f"say {i}", "input": "", "output": f"it is {i}"} for i in range(40)]
    rows.write(folder / "more.jsonl", talk)
    info = INFO | {"more": {"file_name": "more.jsonl"}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    (folder / "e.yaml").write_text("model: m\ndata: {train: 'dataset_info.json:more'}\n", encoding="utf-8")
    data = spec.load(folder / "e.yaml").data
    assert data.train == f"{folder / 'dataset_info.json'}:more"
    dataset = prepare(data, folder / "home")
    assert dataset.format == "alpaca" and sum(dataset.counts.values()) == 40
