"""The steps of `data.clean` on rows: each has an effect, each is told, none touches what is not text."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data import pii, repairs
from luthier.data.cleaning import EXAMPLES, Cleaner, notes
from luthier.data.prepare import prepare
from luthier.errors import DataError, SpecError
from luthier.spec import Data
from luthier.spec.parameters import RepairStep

STEPS = get_args(RepairStep)
DIRTY = {
    "mojibake": ("sÃ­, seÃ±or", "sí, señor"),
    "control": ("to\u200bken\x00", "token"),
    "unicode": ("re\u0301sume\u0301", "résumé"),
    "html": ("fish &amp; <b>chips</b>", "fish & chips"),
    "whitespace": (" a  b\r\nc ", "a b\nc"),
    "pii": ("mail ann@mail.org, call 010-1234-5678", "mail <EMAIL>, call <PHONE>"),
}


def _rows(answer: str = "fine", n: int = 40) -> list[dict[str, Any]]:
    return [{"input": f"question {i}", "output": f"{answer} {i}"} for i in range(n)]


def _whole(rows: list[dict[str, Any]], home: Path, *clean: str, **wishes: Any) -> Any:
    return prepare(Data(train=rows, validation=0.0, test=0.0, clean=clean, **wishes), home)


@pytest.mark.parametrize("step", DIRTY)
def test_a_step_has_its_effect_where_it_is_asked_for_and_is_told_where_not(tmp_path: Path, step: str) -> None:
    dirty, clean = DIRTY[step]
    rows = [*_rows(), {"input": dirty, "output": "last"}]
    kept = _whole(rows, tmp_path)
    asked = _whole(rows, tmp_path, step)
    assert kept.examples("train")[-1].messages[0].content == dirty
    assert asked.examples("train")[-1].messages[0].content == clean
    names = ["pii:email", "pii:phone"] if step == "pii" else [step]
    for dataset, applied in ((kept, False), (asked, True)):
        assert [name for name in dataset.summary["cleaning"] if name != "constant"] == names
        for name in names:
            told = dataset.summary["cleaning"][name]
            assert (told["step"], told["applied"], told["rows"], told["count"]) == (step, applied, 1, 1)
            assert told["examples"][0]["where"] == "rows:41"
            assert told["examples"][0]["before"] != told["examples"][0]["after"]
    assert any(f"`{step}` in data.clean" in note and "rows:41" in note for note in kept.summary["notes"])
    assert any(("masked" if step == "pii" else "repaired") in note for note in asked.summary["notes"])


def test_every_step_has_an_effect_test() -> None:
    assert {*DIRTY, "empty"} == set(STEPS)
    with pytest.raises(SpecError, match="clean"):
        Data(train="x", clean=["whitespaces"])


ANSWERLESS = [
    {"input": "q", "output": ""},
    {"input": "q", "output": None},
    {"input": "q", "output": "N/A"},
    {"input": "q", "output": " … "},
    {"input": "q", "output": "없음"},
]


@pytest.mark.parametrize("row", ANSWERLESS)
def test_rows_without_an_answer_are_dropped_on_request(tmp_path: Path, row: dict[str, Any]) -> None:
    dataset = _whole([*_rows(), row], tmp_path, "empty")
    assert dataset.counts["train"] == 40
    told = dataset.summary["cleaning"]["empty"]
    assert (told["applied"], told["rows"], told["examples"][0]["where"]) == (True, 1, "rows:41")
    assert any("dropped" in note for note in dataset.summary["notes"])


def test_without_the_step_blank_answers_are_refused_and_placeholders_told(tmp_path: Path) -> None:
    for row in ANSWERLESS[:2]:
        with pytest.raises(DataError, match="output") as caught:
            _whole([*_rows(), row], tmp_path)
        assert caught.value.where == "rows:41" and "`empty` in data.clean" in (caught.value.hint or "")
    dataset = _whole([*_rows(), *ANSWERLESS[2:]], tmp_path)
    assert dataset.counts["train"] == 43
    assert dataset.summary["cleaning"]["empty"] | {"examples": 0} == {
        "step": "empty", "applied": False, "rows": 3, "count": 3, "examples": 0, "labels": {}, "fate": "left as it is",
    }  # fmt: skip


def test_what_a_repair_leaves_empty_is_an_empty_answer(tmp_path: Path) -> None:
    rows = [*_rows(), {"input": "q", "output": "<br><br/>"}]
    assert _whole(rows, tmp_path, "html", "empty").counts["train"] == 40
    with pytest.raises(DataError, match="`output` is empty"):
        _whole(rows, tmp_path, "html")


def test_dropping_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row is left"):
        _whole(ANSWERLESS, tmp_path, "empty")


def test_chats_lose_rows_without_an_answer_but_keep_calls(tmp_path: Path) -> None:
    def chat(*said: Any) -> dict[str, Any]:
        return {"messages": [{"role": r, "content": c} for r, c in zip(("user", "assistant"), said, strict=False)]}

    call = {"function": {"name": "f", "arguments": "{}"}}
    calling = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    }
    rows = [chat("q", "good"), chat("q", "TODO"), chat("q", " "), chat("q"), calling]
    dataset = _whole(rows, tmp_path, "empty")
    assert [example.line for example in dataset.examples("train")] == [1, 5]
    assert dataset.summary["cleaning"]["empty"]["rows"] == 3


def test_a_class_called_none_is_a_class(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": ("none", "billing")[i % 2]} for i in range(40)]
    dataset = _whole(rows, tmp_path, *STEPS)
    assert dataset.labels == ("billing", "none") and dataset.counts["train"] == 40
    rows[3]["label"] = " "
    assert _whole(rows, tmp_path, *STEPS).counts["train"] == 39


MAIL = "ann@mail.org"
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "be  good", "name": " a  b "},
        {"role": "user", "content": [{"type": "text", "text": f" mail  {MAIL} "}]},
        {
            "role": "assistant",
            "content": None,
            "weight": 1,
            "tool_calls": [
                {
                    "id": "call  010-1234-5678",
                    "type": "function",
                    "function": {"name": "se  nd", "arguments": json.dumps({MAIL: [f"to  {MAIL}", 4111111111111111]})},
                }
            ],
        },
        {"role": "tool", "content": '{"sent":  1}', "tool_call_id": "call  010-1234-5678"},
        {"role": "assistant", "content": f"sent to {MAIL} "},
    ],
    "tools": [{"type": "function", "function": {"name": "se  nd", "description": f"like  {MAIL}"}}],
    "slots": [["a  b", MAIL]],
    "n  n": 4155552671,
    "none": None,
}


def test_roles_names_numbers_and_calls_keep_their_form() -> None:
    before = copy.deepcopy(CHAT)
    row = Cleaner(STEPS).row(CHAT, "f:1")
    assert before == CHAT, "the raw row itself is never changed"
    said = row["messages"]
    assert [turn["content"] for turn in said] == [
        "be good", [{"type": "text", "text": "mail <EMAIL>"}], None, '{"sent":  1}', "sent to <EMAIL>",
    ]  # fmt: skip
    [call] = said[2]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {MAIL: ["to  <EMAIL>", 4111111111111111]}
    for turn in [*said, *before["messages"]]:
        turn.pop("content")
    call["function"]["arguments"] = before["messages"][2]["tool_calls"][0]["function"]["arguments"]
    assert row == before


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": " hi  you"}, {"from": "gpt", "value": f"ask {MAIL}"}]},
        {"conversation": [{"human": " hi  you", "assistant": f"ask {MAIL}"}]},
        {"instruction": " hi  you", "output": f"ask {MAIL}", "history": [[" hi  you", f"ask {MAIL}"]]},
        {
            "prompt": [{"role": "user", "content": " hi  you"}],
            "completion": [{"role": "assistant", "content": f"ask {MAIL}"}],
        },
    ],
)
def test_every_way_to_write_a_chat_is_cleaned(row: dict[str, Any]) -> None:
    told = json.dumps(Cleaner(STEPS).row(row, "f:1"))
    assert "hi  you" not in told and MAIL not in told
    assert told.count("hi you") == json.dumps(row).count("hi  you") and told.count("<EMAIL>") == json.dumps(row).count(
        MAIL
    )


def test_prompt_and_completion_are_joined_as_they_came() -> None:
    row = {"prompt": "Is  it?\n\n###\n\n", "completion": " yes\r\nit is"}
    assert Cleaner(STEPS).row(row, "f:1") == {"prompt": "Is it?\n\n###\n\n", "completion": " yes\nit is"}
    mine = Cleaner(STEPS, {"prompt": "p", "completion": "c"}).row({"p": "x ", "c": " y"}, "f:1")
    assert mine == {"p": "x ", "c": " y"}


def test_labels_and_groups_are_never_masked_and_new_class_names_are_told(tmp_path: Path) -> None:
    assert Cleaner(STEPS, group_by="prompt").row({"prompt": MAIL}, "f:1") == {"prompt": MAIL}
    cleaner = Cleaner(STEPS, {"label": "who"}, group_by="author")
    row = {"text": "hi", "who": f" {MAIL} <b>x</b>", "author": f"{MAIL} "}
    assert cleaner.row(row, "f:1") == {"text": "hi", "who": f"{MAIL} <b>x</b>", "author": MAIL}
    rows = [{"text": f"text {i}", "label": ("bill\u200bing", "card", "billing", "card  ")[i % 4]} for i in range(40)]
    dataset = _whole(rows, tmp_path, "control", "whitespace")
    assert dataset.labels == ("billing", "card")
    assert dataset.summary["cleaning"]["control"]["labels"] == {"bill\u200bing": "billing"}
    assert dataset.summary["cleaning"]["whitespace"]["labels"] == {"card  ": "card"}
    assert any('classes renamed: "card  " → "card"' in note for note in dataset.summary["notes"])


def test_steps_work_in_their_own_order_whatever_the_list_says() -> None:
    row = {"text": "&nbsp;ann\u200b@mail.org<br>  Ã©  "}
    for steps in (STEPS, STEPS[::-1]):
        assert Cleaner(steps).row(row, "f:1") == {"text": "<EMAIL>\né"}


def test_what_is_found_is_told_by_its_cause() -> None:
    """The soft hyphen in garbled text is no control character of its own: `control` would only hide the damage."""
    cleaner = Cleaner(())
    cleaner.row({"text": "sÃ\xad"}, "f:1")
    assert [*cleaner.tallies] == ["mojibake"]
    cleaner = Cleaner(["control"])
    assert cleaner.row({"text": "sÃ\xad"}, "f:1") == {"text": "sÃ"} and [*cleaner.tallies] == ["mojibake", "control"]


def test_a_clean_row_is_the_same_object_and_found_only_rows_too() -> None:
    cleaner, clean = Cleaner(STEPS), {"input": "a (b) 12.5% - c's", "output": "좋아요", "n": 1, "tags": ["a  b", None]}
    assert cleaner.row(clean, "f:1") == clean and cleaner.tallies == {}
    plain = {"input": "a (b) 12.5%", "output": "x_y"}
    assert cleaner.row(plain, "f:2") is plain
    dirty = {key: dirty for key, (dirty, _) in DIRTY.items()}
    assert Cleaner(()).row(dirty, "f:1") == dirty


_SIGNS = [
    *"ab <>/&;=\n\t\r\x00\u200b\xa0é한漢か|.@0123456789-+()",
    "e\u0301",
    "Ã©",
    "<b>",
    "</b>",
    "ann@mail.org",
    "\u3000",
]


@given(st.lists(st.sampled_from(_SIGNS), max_size=30).map("".join), st.text(max_size=20))
def test_the_short_cut_for_clean_rows_skips_nothing(first: str, second: str) -> None:
    def repaired(text: str) -> str:
        for step in (repairs.mojibake, repairs.control, repairs.composed, repairs.without_html, repairs.spaces):
            text = step(text)
        return pii.masked(text)[0]

    turns = [{"role": "user", "content": first}, {"role": "assistant", "content": second}]
    row = Cleaner(STEPS).row({"a": first, "b": second, "messages": turns}, "f:1")
    assert (row["a"], row["b"]) == (repaired(first), repaired(second))
    assert [turn["content"] for turn in row["messages"]] == [row["a"], row["b"]]


def test_tallies_are_bounded_and_count_rows_and_texts() -> None:
    cleaner = Cleaner(["whitespace"])
    for i in range(100):
        cleaner.row({"a": " x ", "b": " y ", "label": f" {i} "}, f"f:{i}")
    told = cleaner.tallies["whitespace"]
    assert (told.rows, told.count, len(told.examples), len(told.labels)) == (100, 300, EXAMPLES, 50)
    assert [change.where for change in told.examples] == [f"f:{i}" for i in range(EXAMPLES)]


def test_examples_show_where_it_is_and_no_personal_data() -> None:
    cleaner = Cleaner(())
    cleaner.row({"a": "x" * 200 + f" \u202eand  then {MAIL} and 4111-1111-1111-1111"}, "f:1")
    for name, tally in cleaner.tallies.items():
        [change] = tally.examples
        assert len(change.before) < 80 and "\u202e" not in change.before
        assert MAIL not in change.before + change.after and "4111" not in change.before + change.after, name
    assert cleaner.tallies["control"].examples[0].before.startswith("…xxx")
    assert "\\u202eand" in cleaner.tallies["control"].examples[0].before
    assert "xxx@xxxx.xxx" in cleaner.tallies["pii:email"].examples[0].before
    assert len(notes(cleaner.tallies)) == 4


def test_constant_columns_are_told(tmp_path: Path) -> None:
    rows = [row | {"kind": "x", "empty": None, "some": 1} for row in _rows()]
    rows[7]["some"] = 2
    dataset = _whole(rows, tmp_path)
    told = dataset.summary["cleaning"]["constant"]
    assert [change["where"] for change in told["examples"]] == ["kind", "empty"] and told["count"] == 2
    assert "the same value in every row: `kind`, `empty`" in dataset.summary["notes"]
    assert "constant" not in _whole(rows[:3], tmp_path).summary["cleaning"]


def test_what_is_only_found_changes_no_fingerprint(tmp_path: Path) -> None:
    rows = [*_rows(), {"input": DIRTY["html"][0], "output": DIRTY["pii"][0]}]
    assert _whole(rows, tmp_path).fingerprint != _whole(rows, tmp_path, "pii").fingerprint
    assert _whole(rows, tmp_path, "pii").fingerprint == _whole(rows, tmp_path, "pii", "unicode").fingerprint
