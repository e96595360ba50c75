"""A split stored as tokens: the rows that encoding gives, made once, whole or anew; and what is counted on them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import disk, presets, spec, workbench
from luthier.data import batches, encode, ordering, rows, tokens
from luthier.data.dataset import Dataset, load_dataset
from luthier.data.encode import Rules
from luthier.data.examples import Encoded
from luthier.data.prepare import prepare
from luthier.data.tokens import stored
from luthier.errors import DataError
from luthier.models import facts
from luthier.spec import Data
from luthier.train import plan as planning
from tests import tiny

CAUSAL = Rules("causal", end_token_ids=(1,))
TEXTS = tiny.tokenizer("causal")
WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(str.strip)


def _dataset(home: Path, pairs: list[tuple[str, str]]) -> Dataset:
    given_rows = [{"input": question, "output": answer} for question, answer in pairs]
    return prepare(Data(train=given_rows, validation=0.0, test=0.0), home, task="generation")


def _many(count: int) -> list[tuple[str, str]]:
    return [(f"question {i} {'x' * (i % 7)}", f"answer {i * i}") for i in range(count)]


def _same(one: Encoded, other: Encoded) -> bool:
    arrays = (one.ids_L, other.ids_L), (one.train_L, other.train_L)
    told = [
        (row.example_id, row.label, row.cut, row.prompt_length, row.ids_L.dtype, row.train_L.dtype)
        for row in (one, other)
    ]
    return told[0] == told[1] and all(np.array_equal(a, b) for a, b in arrays)


def _all_same(view: Any, expected: Any) -> bool:
    return len(view) == len(expected) and all(map(_same, view, expected))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return _dataset(tmp_path, _many(30))


@pytest.fixture
def no_text(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the moment it is called, no text of a data set can be read."""

    def refuse(*_: Any) -> Iterator[Any]:
        raise AssertionError("text was read")
        yield

    return lambda: monkeypatch.setattr(Dataset, "stream", refuse)


# -- the same rows -----------------------------------------------------------------------------------------------------

RULES = {
    "causal": (TEXTS, CAUSAL),
    "all": (TEXTS, dataclasses.replace(CAUSAL, train_on="all", template="{input} =")),
    "seq2seq": (tiny.tokenizer("seq2seq"), Rules("seq2seq", end_token_ids=(1,), positions=24)),
    "encoder": (tiny.tokenizer("encoder"), Rules("encoder", "classification", labels=("no", "yes"))),
}


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8, unique_by=lambda pair: pair[0].strip()),
    policy=st.sampled_from(["drop", "cut"]),
    limit=st.integers(3, 60),
    kind=st.sampled_from(sorted(RULES)),
)
def test_the_stored_rows_are_those_of_encoding_row_for_row(
    pairs: list[tuple[str, str]], policy: str, limit: int, kind: str
) -> None:
    tokenizer, rules = RULES[kind]
    rules = dataclasses.replace(rules, overlength=policy, max_seq_length=limit)
    if kind == "encoder":
        pairs = [(question, ("no", "yes")[i % 2]) for i, (question, _) in enumerate(pairs)]
    with tempfile.TemporaryDirectory() as home:
        data = _dataset(Path(home), pairs)
        alone = [encode.encode(example, tokenizer, rules) for example in data.examples("train")]
        expected = [row for row in alone if row is not None]
        if not expected:
            with pytest.raises(DataError, match="rows were dropped"):
                stored(data, "train", tokenizer, rules)
            assert not list((data.path / "tokens").glob("*"))
            return
        made = stored(data, "train", tokenizer, rules)
        assert _all_same(made.rows, expected)
        assert _all_same([made.rows[i] for i in range(len(made.rows))], expected)
        assert made.dropped.count == len(alone) - len(expected)
        assert made.cut.count == sum(row.cut for row in expected)
        assert rows.lengths(made.rows).tolist() == rows.lengths(expected).tolist()
        assert rows.trained(made.rows).tolist() == rows.trained(expected).tolist()
        assert made.rows.prompts_N.tolist() == [row.prompt_length for row in expected]
        for virtual in (0, 3):
            assert batches.trained_entries(made.rows, virtual) == batches.trained_entries(expected, virtual)
        if kind != "encoder":
            assert (made.rows.trained_N > 0).all()  # a cut never leaves a row without trained tokens


def test_a_slice_is_a_view_and_what_is_outside_is_refused(dataset: Dataset) -> None:
    whole = stored(dataset, "train", TEXTS, CAUSAL).rows
    expected = encode.encode_split(dataset.examples("train"), TEXTS, CAUSAL).rows
    for cut in (slice(3, 9), slice(None, None, 4), slice(20, None, -1), slice(5, 5), slice(-4, None)):
        view = whole[cut]
        assert isinstance(view, rows.TokenRows) and np.shares_memory(view.trained_N, whole.trained_N) == bool(len(view))
        assert _all_same(view, expected[cut]) and rows.lengths(view).tolist() == rows.lengths(expected[cut]).tolist()
        assert view.prompts_N.tolist() == [row.prompt_length for row in expected[cut]]
    assert _same(whole[-1], expected[-1]) and _same(whole[2:][1:][0], expected[3])
    with pytest.raises(IndexError):
        whole[30]
    with pytest.raises(ValueError, match="read-only"):
        whole[0].ids_L[0] = 5


def test_orders_on_stored_rows_are_those_of_rows_in_memory(dataset: Dataset) -> None:
    view = stored(dataset, "train", TEXTS, CAUSAL).rows
    plain = list(view)
    for epoch in range(3):
        one, other = (batches.grouped_order(some, 4, 7, epoch) for some in (view, plain))
        assert one.tolist() == other.tolist()
    assert batches.stored_tokens(view) == batches.stored_tokens(plain)


@settings(max_examples=40, deadline=None)
@given(
    ids=st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=40),
    at_once=st.integers(1, 6),
    head=st.integers(0, 5),
)
def test_many_rows_sorted_in_parts_are_in_the_order_of_all(ids: list[list[int]], at_once: int, head: int) -> None:
    ids = [[7] * head + row for row in ids]
    column = {name: np.zeros(len(ids), dtype) for name, dtype in tokens._COLUMNS.items()}
    column |= {"ids": np.array([i for row in ids for i in row], np.int32)}
    column |= {"offsets": np.cumsum([0, *map(len, ids)])}
    view = rows.TokenRows(rows.Arrays(column, (), ()), range(len(ids)))
    assert ordering.by_content(view, at_once).tolist() == sorted(range(len(ids)), key=lambda i: ids[i])


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4, unique_by=lambda pair: pair[0].strip()))
def test_what_is_trained_is_the_answer_and_an_end_token(pairs: list[tuple[str, str]]) -> None:
    """Rendered, masked, tokenised, stored: the trained tokens say the answer, and stop. Of a chat, all its answers."""
    with tempfile.TemporaryDirectory() as home:
        data = _dataset(Path(home), pairs)
        answers = [example.messages[-1].content for example in data.examples("train")]
        said = [_said(row) for row in stored(data, "train", TEXTS, CAUSAL).rows]
        assert said == [("" if answer[:1].isspace() else " ") + answer + "</s>" for answer in answers]
        turns = [
            {"role": role, "content": text}
            for pair in pairs
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        chat = prepare(Data(train=[{"messages": turns}], validation=0.0, test=0.0), Path(home))
        templated = tiny.tokenizer("causal")
        templated.chat_template = tiny.CHAT_TEMPLATE
        (row,) = stored(chat, "train", templated, dataclasses.replace(CAUSAL, task="chat", chat=True)).rows
        assert _said(row) == "".join(f"{answer}</s>" for _, answer in pairs)


def _said(row: Encoded) -> str:
    return str(TEXTS.decode(row.ids_L[row.train_L], clean_up_tokenization_spaces=False))


# -- made once ---------------------------------------------------------------------------------------------------------


def test_a_second_start_reads_no_text(dataset: Dataset, no_text: Callable[[], None]) -> None:
    first = stored(dataset, "train", TEXTS, CAUSAL)
    no_text()
    again = stored(load_dataset(dataset.path), "train", TEXTS, CAUSAL)
    assert _all_same(again.rows, list(first.rows)) and not again.remade
    assert (again.dropped, again.cut) == (first.dropped, first.cut)


def test_a_runs_second_start_reads_no_text(tmp_path: Path, no_text: Callable[[], None]) -> None:
    """Nor does what the gate names by file and line need it."""
    file = tmp_path / "rows.csv"
    file.write_text("input,output\n" + "".join(f"{question},{answer}\n" for question, answer in _many(40)))
    wish = {"train": str(file), "validation": 0.2, "test": 0.0, "overlength": "cut"}
    model, training = str(tiny.build("tiny_llama")), {"max_seq_length": 30}
    given = spec.from_mapping({"model": model, "data": wish, "method": "lora", "training": training})
    data = prepare(given.data, tmp_path, task="generation")
    resolved = presets.resolve(given, facts.inspect(model), data.task).experiment
    first = workbench.lay(resolved, data, weights=False)
    cut = next(finding for finding in first.findings if finding.code == "G03")
    assert cut.rows[0].startswith(f"{file}:") and first.cut == sum(row.cut for row in first.train)
    no_text()
    again = workbench.lay(resolved, load_dataset(data.path), weights=False)
    assert _all_same(again.train, list(first.train)) and _all_same(again.validation, list(first.validation))
    assert (again.findings, again.remarks) == (first.findings, first.remarks)


def test_preparing_again_keeps_the_tokens(dataset: Dataset, no_text: Callable[[], None]) -> None:
    stored(dataset, "train", TEXTS, CAUSAL)
    again = _dataset(dataset.path.parents[1], _many(30))
    no_text()
    assert len(stored(again, "train", TEXTS, CAUSAL).rows) == 30


def test_what_decides_tokens_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, other = _dataset(tmp_path, _many(30)), _dataset(tmp_path, _many(31))
    special, templated, added = (tiny.tokenizer("causal") for _ in range(3))
    special.eos_token = "<unk>"
    templated.chat_template = tiny.CHAT_TEMPLATE
    added.add_tokens(["answer"])
    changes = [{"train_on": "all"}, {"template": "{input}"}, {"max_seq_length": 99}, {"overlength": "cut"}]
    changes += [{"end_token_ids": (2,)}, {"chat": True}, {"virtual_tokens": 3}, {"labels": ("a", "b")}]
    made = [(data, "train", TEXTS, CAUSAL), (data, "test", TEXTS, CAUSAL), (other, "train", TEXTS, CAUSAL)]
    made += [(data, "train", tokenizer, CAUSAL) for tokenizer in (special, templated, added)]
    made += [(data, "train", TEXTS, dataclasses.replace(CAUSAL, **change)) for change in changes]
    keys = [tokens._digest(tokens._facts(*each)) for each in made]
    assert len(set(keys)) == len(made)
    TEXTS(["a b c", "d"], truncation=True, max_length=2, padding=True)
    copied = TEXTS.__class__.from_pretrained(_saved(tmp_path / "there"))
    loaded = TEXTS.__class__.from_pretrained(_saved(tmp_path / "elsewhere"))
    assert tokens.tokenizer_digest(copied) == tokens.tokenizer_digest(loaded)
    assert tokens._digest(tokens._facts(*made[0])) == keys[0]  # an earlier call's truncation is no difference
    monkeypatch.setattr(tokens, "_code", lambda: "other code")
    assert tokens._digest(tokens._facts(*made[0])) != keys[0]


def test_a_template_that_asks_for_the_day_has_another_key_every_day(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated = tiny.tokenizer("causal")
    dated.chat_template = "{{ strftime_now('%d %B') }}" + tiny.CHAT_TEMPLATE
    home = dataset.path / "tokens"
    for day in (3, 4):
        monkeypatch.setattr(tokens, "datetime", SimpleNamespace(date=SimpleNamespace(today=lambda day=day: day)))
        stored(dataset, "train", TEXTS, CAUSAL)
        stored(dataset, "train", dated, CAUSAL)
        days = [json.loads((folder / "manifest.json").read_text())["key"]["day"] for folder in home.iterdir()]
        assert sorted(days) == ["", str(day)]


def _saved(folder: Path) -> Path:
    TEXTS.save_pretrained(folder)
    return folder


def test_the_length_policy_is_remembered(tmp_path: Path, no_text: Callable[[], None]) -> None:
    data = _dataset(tmp_path, [("q" * n, "a") for n in (1, 90, 80, 70, 60, 95, 99, 98)])
    rules = dataclasses.replace(CAUSAL, max_seq_length=50)
    with pytest.raises(DataError, match="7 of 8 rows are longer than 50 tokens"):
        stored(data, "train", TEXTS, rules)
    assert not list((data.path / "tokens").glob("*"))
    dropping = dataclasses.replace(rules, overlength="drop")
    first = stored(data, "train", TEXTS, dropping)
    no_text()
    for made in (first, stored(data, "train", TEXTS, dropping)):
        assert (made.dropped.count, len(made.dropped.shown), made.cut.count, len(made.rows)) == (7, 5, 0, 1)
        assert made.dropped.shown[0].startswith("rows:2: ")


def test_rows_from_another_place_are_named_by_it(tmp_path: Path) -> None:
    data = _dataset(tmp_path, _many(30))
    assert stored(data, "train", TEXTS, CAUSAL).rows.where(4) == "rows:5"
    moved = tmp_path / "moved.csv"
    moved.write_text("input,output\n" + "".join(f"{question},{answer}\n" for question, answer in _many(30)))
    again = prepare(Data(train=str(moved), validation=0.0, test=0.0), tmp_path, task="generation")
    assert again.fingerprint == data.fingerprint
    made = stored(again, "train", TEXTS, CAUSAL)
    assert made.rows.where(4) == made.rows[2:].where(2) == f"{moved}:6" and not made.remade


# -- whole or made anew ------------------------------------------------------------------------------------------------


def _shorter(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _other(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 64
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [_shorter, _other, Path.unlink])
@pytest.mark.parametrize("name", ["ids.npy", "train.npy", "offsets.npy", "example.npy", "manifest.json"])
def test_a_damaged_folder_is_made_anew_and_told(dataset: Dataset, harm: Callable[[Path], Any], name: str) -> None:
    expected = list(stored(dataset, "train", TEXTS, CAUSAL).rows)
    (folder,) = (dataset.path / "tokens").iterdir()
    harm(folder / name)
    again = stored(dataset, "train", TEXTS, CAUSAL)
    assert _all_same(again.rows, expected)
    assert again.remade.startswith(f"the stored tokens in {folder} were damaged and are made anew: ")
    assert not stored(dataset, "train", TEXTS, CAUSAL).remade
    assert [path.name for path in (dataset.path / "tokens").iterdir()] == [folder.name]


def test_a_writer_that_is_stopped_leaves_nothing_that_counts(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    half = dataset.path / "tokens" / ".0123456789abcdef.tmp-01234567"
    half.mkdir(parents=True)
    (half / "ids.npy").write_bytes(b"half")
    whole = Dataset.stream

    def broken(self: Dataset, split: str) -> Iterator[Any]:
        yield from itertools.islice(whole(self, split), 10)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "stream", broken)
        with pytest.raises(OSError, match="No space left"):
            stored(dataset, "train", TEXTS, CAUSAL)
    assert not list((dataset.path / "tokens").iterdir())
    assert len(stored(dataset, "train", TEXTS, CAUSAL).rows) == 30


def test_of_two_at_once_one_encodes_and_both_have_the_rows(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole, gate = Dataset.stream, threading.Barrier(2)

    def counted(self: Dataset, split: str) -> Iterator[Any]:
        read.append(split)
        yield from whole(self, split)

    def alone(folder: Path, alone: Any = disk.alone) -> Any:
        gate.wait()  # both have seen that there is nothing yet
        return alone(folder)

    monkeypatch.setattr(Dataset, "stream", counted)
    monkeypatch.setattr(disk, "alone", alone)
    made: list[Any] = []
    both = [
        threading.Thread(target=lambda: made.append(stored(dataset, "train", tiny.tokenizer(), CAUSAL))) for _ in "ab"
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert read == ["train"] and len(made) == 2 and _all_same(made[0].rows, list(made[1].rows))


def test_what_other_code_made_is_removed_and_what_other_rules_made_stays(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = dataset.path / "tokens"
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "_code", lambda: "code of yesterday")
        old = stored(dataset, "train", TEXTS, CAUSAL).rows
        (yesterday,) = home.iterdir()
    stored(dataset, "train", TEXTS, CAUSAL)
    stored(dataset, "train", TEXTS, dataclasses.replace(CAUSAL, train_on="all"))
    assert len(list(home.iterdir())) == 2 and not yesterday.exists()
    assert len(list(old)) == 30


def test_rows_stay_readable_when_their_folder_is_replaced(dataset: Dataset) -> None:
    held = stored(dataset, "train", TEXTS, CAUSAL).rows
    expected = encode.encode_split(dataset.examples("train"), TEXTS, CAUSAL).rows
    shutil.rmtree(dataset.path / "tokens")
    assert _all_same(held, expected)


# -- little memory -----------------------------------------------------------------------------------------------------


def test_encoding_reads_no_more_ahead_than_it_tokenises_at_once(tmp_path: Path) -> None:
    examples = _dataset(tmp_path, _many(1500)).examples("train")
    taken = itertools.count()
    pulled = (example for example in examples if next(taken) >= 0)
    for place, _ in enumerate(encode.stream(pulled, TEXTS, CAUSAL)):
        assert int(repr(taken)[6:-1]) - place <= encode._BATCH


def test_a_plan_of_very_many_rows_counts_some_of_the_steps(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    view = stored(dataset, "train", TEXTS, CAUSAL).rows
    order = np.arange(len(view))
    exact = planning._stored(view, order, 3)
    monkeypatch.setattr(planning, "COUNTED_ROWS", 15)
    sampled = planning._stored(view, order, 3)
    assert sampled != exact and abs(sampled - exact) < exact / 10
