"""Which rows `look` shows, and what it says of them; the worst ones against a count by hand."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier import looking, spec
from luthier.data import encode
from luthier.data.seen import Seen
from luthier.errors import DataError, LuthierError, NotFound, SpecError
from luthier.studio import Studio
from tests import rows

Look = Callable[..., list[Seen]]
LENGTHS = (3, 40, 5, 90, 7, 60, 2, 30)
"""Words of the questions; the answer of question i has i + 1 words."""


@pytest.fixture
def look(tiny: Callable[..., Path], tmp_path: Path) -> Look:
    """`look("3", worst=…, kind=…, **data)`: eight rows of train, three of validation, three of test."""
    given = [{"input": f"{i} " + "word " * n, "output": "said " * (i + 1)} for i, n in enumerate(LENGTHS)]
    train = rows.write(tmp_path / "rows.jsonl", given)
    others = rows.write(tmp_path / "others.jsonl", [{"input": f"new {i}?", "output": "yes"} for i in range(3)])
    tests = rows.write(tmp_path / "tests.jsonl", [{"input": f"test {i}?", "output": "no"} for i in range(3)])

    def look(*words: str, worst: bool = False, kind: str = "tiny_llama", limit: int | None = None, **data: Any) -> Any:
        sources = {"train": str(train), "validation": str(others), "test": str(tests)} | data
        task = "classification" if kind == "tiny_bert" else "generation"
        values = {"model": str(tiny(kind)), "data": sources, "task": task}
        training = {"max_seq_length": limit} if limit else {}
        return Studio(tmp_path / "home").look(spec.from_mapping(values | {"training": training}), words, worst)

    return look


def places(shown: list[Seen]) -> list[tuple[str, int]]:
    return [(seen.split, seen.number) for seen in shown]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), [("train", 1), ("train", 2), ("train", 3)]),
        (("8",), [("train", 8)]),
        (("2-4",), [("train", 2), ("train", 3), ("train", 4)]),
        (("7-99",), [("train", 7), ("train", 8)]),
        (("test",), [("test", 1), ("test", 2), ("test", 3)]),
        (("validation:2", "train:1"), [("validation", 2), ("train", 1)]),
        (("rows.jsonl:8",), [("train", 8)]),
        (("others.jsonl:2-3",), [("validation", 2), ("validation", 3)]),
    ],
)
def test_rows_by_number_by_split_and_by_line(look: Look, words: tuple[str, ...], expected: list[Any]) -> None:
    shown = look(*words)
    assert places(shown) == expected
    for seen in shown:
        name = {"train": "rows", "validation": "others", "test": "tests"}[seen.split]
        assert seen.where.endswith(f"/{name}.jsonl:{seen.number}")  # nothing was dropped or moved: number = line


def test_a_whole_path_with_a_line_names_a_row_too(look: Look, tmp_path: Path) -> None:
    assert places(look(f"{tmp_path}/rows.jsonl:5")) == [("train", 5)]


@pytest.mark.parametrize(
    ("word", "kind", "what", "hint"),
    [
        ("0", SpecError, "counted from 1", "rows.jsonl:17"),
        ("5-3", SpecError, "names no row", "1-10"),
        ("tset", SpecError, "`tset` names no row", "did you mean `test`?"),
        ("rows.jsonl", SpecError, "names no row", "a file and line"),
        ("9", NotFound, "there is no row 9 of train", "8 train, 3 validation, 3 test"),
        ("test:4", NotFound, "there is no row 4 of test", "3 test"),
        ("absent.jsonl:1", NotFound, "no row comes from `absent.jsonl`", "rows.jsonl"),
        ("rows.jsonl:12", NotFound, "no prepared row stands on line 12", "the nearest: 8"),
    ],
)
def test_a_row_that_is_not_there_is_told_with_what_is(look: Look, word: str, kind: type, what: str, hint: str) -> None:
    with pytest.raises(kind) as told:
        look(word)
    assert isinstance(told.value, LuthierError) and told.value.where == "--row"
    assert what in told.value.message and hint in (told.value.hint or "")


def test_of_a_row_that_preparation_left_out_the_neighbours_are_named(look: Look, tmp_path: Path) -> None:
    given = [{"input": f"{i} ?", "output": "yes"} for i in (0, 1, 2, 2, 3)]  # line 4 is a twin of line 3
    path = rows.write(tmp_path / "twins.jsonl", given)
    with pytest.raises(NotFound, match=r"line 4 of twins\.jsonl") as told:
        look("twins.jsonl:4", train=str(path))
    assert all(words in (told.value.hint or "") for words in ("left it out", "3", "5"))


def test_without_worst_only_the_shown_rows_become_tokens(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    made, single = [], encode.encode

    def counted(example: Any, *rest: Any) -> Any:
        made.append(example.line)
        return single(example, *rest)

    monkeypatch.setattr(encode, "encode", counted)
    monkeypatch.setattr(encode, "encode_split", lambda *_: pytest.fail("rows are encoded that nobody asked for"))
    look("6", "2")
    assert made == [6, 2]


def test_the_worst_are_the_longest_the_most_cut_and_the_least_trained(look: Look) -> None:
    limit = 60
    whole = {seen.number: seen for seen in look("1-8", limit=250)}
    by_length = sorted(whole, key=lambda i: -whole[i].whole)
    shown = look("train", worst=True, limit=limit, overlength="cut")
    told = {seen.number: seen.worst for seen in shown}
    assert [i for i in told if any(words.startswith("longest") for words in told[i])] == by_length[:3]
    for i in by_length[:3]:
        assert f"longest: {whole[i].whole:,} tokens" in told[i]
    cut = {i: whole[i].whole - limit for i in whole if whole[i].whole > limit}
    assert 0 < len(cut) < 8  # both kinds of rows are there
    for i in sorted(cut, key=lambda i: -cut[i])[:3]:
        assert f"most cut: {cut[i]:,} tokens beyond the limit" in told[i]
    left = {i: sum(seen.trained[:limit]) for i, seen in whole.items()}
    least = sorted(left, key=lambda i: (left[i], -min(whole[i].whole, limit)))[:3]
    assert {i for i in told if any(words.startswith("least trained") for words in told[i])} == set(least)
    for i in least:
        assert f"least trained: {left[i]:,} of {min(whole[i].whole, limit):,} tokens" in told[i]


@pytest.mark.parametrize(("overlength", "kind"), [("drop", "dropped"), ("error", "refused")])
def test_a_row_that_is_not_trained_at_all_is_not_the_least_trained(look: Look, overlength: str, kind: str) -> None:
    shown = look("train", worst=True, limit=60, overlength=overlength)
    for seen in shown:
        names = [words.split(":")[0] for words in seen.worst]
        assert (f"too long, {kind}" in names) == (seen.fate == kind) != ("least trained" in names)
    assert {seen.fate for seen in shown} == {"used", kind}


def test_the_worst_of_all_splits_and_of_those_that_are_named(look: Look) -> None:
    assert {split for split, _ in places(look(worst=True))} == {"train", "test"}
    assert {split for split, _ in places(look("test", worst=True))} == {"test"}
    assert {number for _, number in places(look("1-2", worst=True))} == {1, 2}


@pytest.mark.parametrize("overlength", ["error", "drop", "cut"])
def test_what_becomes_of_a_row_that_is_too_long_is_shown_and_not_refused(look: Look, overlength: str) -> None:
    [short, long] = look("1", "4", limit=60, overlength=overlength)
    assert (short.fate, short.remark) == ("used", "") and len(short.ids) == short.whole
    assert long.fate == {"error": "refused", "drop": "dropped", "cut": "dropped"}[overlength]  # its answer stands last
    assert len(long.ids) == long.whole > 60 and f"60 of its {long.whole} tokens" in long.remark
    [whole] = look("7")
    [part] = look("7", limit=whole.whole - 5, overlength=overlength)
    if overlength == "cut":
        assert part.fate == "cut" and part.ids == whole.ids[:-5] and part.trained[-1]
    else:
        assert part.ids == whole.ids


def test_of_an_encoder_decoder_source_and_target_are_shown(look: Look) -> None:
    [whole] = look("7", kind="tiny_t5")
    assert whole.pieces.count("</s>") == 2 and whole.trained == tuple(sorted(whole.trained))
    [both] = look("7", kind="tiny_t5", limit=whole.whole - 5, overlength="cut")
    assert both.fate == "cut" and both.ids == whole.ids[:-5]


def test_of_an_encoders_row_the_class_is_named_and_nothing_is_least_trained(look: Look, tmp_path: Path) -> None:
    path = rows.labels(tmp_path, 30)
    shown = look(worst=True, kind="tiny_bert", train=str(path), validation=None, test=None)
    assert all(seen.label in rows.COLOURS and "class" in seen.figures for seen in shown)
    assert not any("least trained" in words for seen in shown for words in seen.worst)
    assert all(seen.special[0] and seen.special[-1] and seen.pieces[0] == "[CLS]" for seen in shown)


def test_of_a_chat_in_test_only_the_last_answer_is_marked_as_it_is_asked_for(look: Look, tmp_path: Path) -> None:
    def chats(name: str) -> str:
        turns = [("user", "hi"), ("assistant", "well"), ("user", "and"), ("assistant", "good")]
        told = [[{"role": role, "content": f"{text} {name} {i}"} for role, text in turns] for i in range(4)]
        return str(rows.write(tmp_path / f"{name}.jsonl", [{"messages": messages} for messages in told]))

    sources = {name: chats(name) for name in ("train", "validation", "test")}
    trained, asked = look("1", "test:1", **sources)
    assert "".join(trained.pieces).count("</s>") == "".join(asked.pieces).count("</s>") == 2
    for seen, said in ((trained, 2), (asked, 1)):
        marked = "".join(piece for piece, learned in zip(seen.pieces, seen.trained, strict=True) if learned)
        assert marked.count("</s>") == said and marked.count("good") == 1
    worst = [seen for seen in look("1", "test:1", worst=True, **sources) if seen.split == "test"]
    assert f"least trained: {sum(asked.trained)} of {len(asked.ids)} tokens" in worst[0].worst


def test_a_row_that_cannot_become_tokens_is_named(look: Look) -> None:
    with pytest.raises(DataError, match="column `context`") as told:
        look("5", template="{context} {input}")
    assert "rows.jsonl:" in (told.value.where or "")


def test_doctests() -> None:
    assert doctest.testmod(looking).failed == 0
