"""Template-free rows: tokenised stretch by stretch as they stand, trained exactly where the label is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier import workbench
from luthier.data import encode, formats
from luthier.data.encode import Rules
from luthier.data.examples import Example
from luthier.data.prepare import prepare
from luthier.errors import DataError
from luthier.spec import Data
from tests import rows, tiny
from tests.data.test_encode import sentencepiece

CAUSAL = Rules("causal", end_token_ids=(1,))
SEGMENTS = [(True, "<s>Hello\n"), (True, "hi the"), (False, "re! good"), (False, "bye "), (True, "farewell</s>")]


def _example(segments: list[tuple[bool, str]], answered: bool = True) -> Example:
    row = {"segments": [{"label": label, "text": text} for label, text in segments]}
    return formats.to_example(row, "segments", Data(train="f"), "f", 1, answered)


@pytest.mark.parametrize("tokenizer", [tiny.tokenizer("causal"), sentencepiece()])
def test_each_stretch_is_tokenised_by_itself_and_nothing_is_added(tokenizer: Any) -> None:
    row = encode.encode(_example(SEGMENTS), tokenizer, CAUSAL)
    assert row is not None
    stretches = [(True, "<s>Hello\nhi the"), (False, "re! goodbye "), (True, "farewell</s>")]
    coded = [(label, tokenizer(text, add_special_tokens=False).input_ids) for label, text in stretches]
    assert row.ids_L.tolist() == [token for _, ids in coded for token in ids]
    labels = [label for label, ids in coded for _ in ids]
    assert row.train_L.tolist() == [False, *labels[1:]]  # nothing comes before the first token to predict it from


def test_what_is_asked_stands_before_the_last_stretch_and_train_on_is_honoured() -> None:
    tokenizer, example = tiny.tokenizer("causal"), _example(SEGMENTS)
    asked = encode.encode_prompt(example, tokenizer, CAUSAL)
    whole = encode.encode(example, tokenizer, CAUSAL)
    assert whole is not None and asked.tolist() == whole.ids_L[: len(asked)].tolist()
    assert tokenizer.decode(whole.ids_L[len(asked) :]) == encode.reference(example) == "farewell</s>"
    alone = _example([(label and text[0] == "<", text) for label, text in SEGMENTS[:-1]], answered=False)
    assert encode.encode_prompt(alone, tokenizer, CAUSAL).size > 0
    everything = encode.encode(example, tokenizer, Rules("causal", end_token_ids=(1,), train_on="all"))
    last = encode.encode(example, tokenizer, Rules("causal", end_token_ids=(1,), train_on="last"))
    assert everything is not None and everything.train_L[1:].all()
    assert last is not None and np.flatnonzero(last.train_L)[0] == len(asked)


def test_segments_travel_through_the_dataset_folder(tmp_path: Path) -> None:
    told = [{"segments": [{"label": False, "text": f"{i}:"}, {"label": True, "text": f" {i}</s>"}]} for i in range(30)]
    dataset = prepare(Data(train=str(rows.write(tmp_path / "rows.jsonl", told))), tmp_path)
    assert (dataset.format, dataset.task) == ("segments", "generation")
    written = dataset.examples("train")[0]
    assert written.kind == "segments" and [m.role for m in written.messages] == ["user", "assistant"]


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_prompt_can_be_asked_of_a_run_of_every_format(name: str) -> None:
    example = formats.to_example(workbench._row("item 3?", name), name, Data(train="f"), "prompt", 1, answered=False)
    assert "item 3?" in (example.text or example.messages[-1].content)


@pytest.mark.parametrize("family", ["seq2seq", "encoder"])
def test_only_decoders_learn_from_segments(family: str) -> None:
    with pytest.raises(DataError, match="segments"):
        rules = Rules(family, end_token_ids=(1,), labels=("a", "b"))
        encode.encode(_example(SEGMENTS), tiny.tokenizer(family), rules)
