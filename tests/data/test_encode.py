"""Rows that are no chat: the boundary, BOS and end tokens, the three families, the length policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from luthier.data import encode, formats
from luthier.data.encode import Rules
from luthier.data.examples import Encoded, Example, Message
from luthier.errors import DataError, ModelError
from luthier.spec import Data
from tests import tiny

CAUSAL = Rules("causal", end_token_ids=(1,))
TEXTS = tiny.tokenizer("causal")


def _row(row: dict[str, Any], line: int = 1, answered: bool = True, **wishes: Any) -> Example:
    data = Data(train="rows.jsonl", **wishes)
    return formats.to_example(row, formats.detect([*row, "output"], "f", data), data, "f", line, answered)


def _pair(question: str, answer: str, line: int = 1) -> Example:
    return Example(f"{line}", "pair", (Message("user", question), Message("assistant", answer)), file="f", line=line)


def _encoded(example: Example, tokenizer: Any, rules: Rules) -> Encoded:
    row = encode.encode(example, tokenizer, rules)
    assert row is not None and row.ids_L.dtype == np.int32 and row.train_L.dtype == bool
    assert len(row.ids_L) == len(row.train_L)
    return row


def _halves(row: Encoded, tokenizer: Any) -> tuple[str, str]:
    split = row.prompt_length
    assert row.train_L[split:].all()
    return tokenizer.decode(row.ids_L[:split]), tokenizer.decode(row.ids_L[split:])


def sentencepiece() -> PreTrainedTokenizerFast:
    """Pieces with `▁` for spaces and one prepended, byte fallback, BOS added: the shape of Llama 2 and stories260k."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no piece reaches from one word into the next
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    core.train_from_iterator(
        tiny.SENTENCES, trainers.BpeTrainer(vocab_size=400, special_tokens=names, show_progress=False)
    )
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_prompt_and_answer_share_one_text_and_the_answer_is_trained() -> None:
    row = _encoded(_row({"input": "Is it red?", "output": "yes"}), TEXTS, CAUSAL)
    assert _halves(row, TEXTS) == ("<s>Input: Is it red?\nOutput:", " yes</s>")
    assert row.ids_L.tolist() == [*TEXTS("Input: Is it red?\nOutput: yes").input_ids, 1]


@pytest.mark.parametrize(
    ("template", "answer", "prompt", "trained"),
    [
        ("{input} =", "name", "a =", " name"),
        ("{{input}} =", " name", "a =", " name"),
        ("{input} =\n", "name", "a =\n", "name"),
        ("{input} = ", "name", "a =", " name"),  # the same text: the space belongs to the first token of the answer
        ("{input} = ", "q", "a =", " q"),  # and also where this tokenizer makes it a token of its own
        ("<{input}>\n\n", "name", "<a>\n\n", "name"),
    ],
)
def test_joining(template: str, answer: str, prompt: str, trained: str) -> None:
    rules = Rules("causal", template=template, end_token_ids=(1,))
    row = _encoded(_row({"input": "a", "output": answer}, template=template), TEXTS, rules)
    assert _halves(row, TEXTS) == ("<s>" + prompt, trained + "</s>")
    for asked in (_row({"input": "a", "output": answer}), _row({"input": "a"}, answered=False)):
        assert encode.encode_prompt(asked, TEXTS, rules).tolist() == row.ids_L[: row.prompt_length].tolist()


def test_prompt_completion_rows_stay_as_they_are() -> None:
    for prompt, completion in (("2+2=", "4"), ("2+2=", " 4"), ("Name the", " singer.\n"), ("", "x")):
        row = _encoded(_row({"prompt": prompt, "completion": completion}), TEXTS, CAUSAL)
        assert _halves(row, TEXTS) == (f"<s>{prompt}", f"{completion}</s>")
    straddling = _encoded(_row({"prompt": "SELECT na", "completion": "me FROM"}), TEXTS, CAUSAL)
    assert _halves(straddling, TEXTS) == ("<s>SELECT", " name FROM</s>")


@pytest.mark.parametrize("make", [sentencepiece, lambda: tiny.tokenizer("causal")], ids=["pieces", "bytes"])
def test_the_boundary_is_exact_whatever_the_text(make: Any) -> None:
    tokenizer = make()
    letters = st.text(st.characters(codec="utf-8", exclude_characters="<>▁\x00"), min_size=1, max_size=20)

    @settings(max_examples=60, deadline=None)
    @given(question=letters, answer=letters.filter(lambda text: bool(text.strip())))
    def check(question: str, answer: str) -> None:
        row = _encoded(_pair(question, answer), tokenizer, Rules("causal", end_token_ids=(tokenizer.eos_token_id,)))
        text = f"Input: {question}\nOutput:" + ("" if answer[0].isspace() else " ") + answer
        bare = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert row.ids_L.tolist() == [tokenizer.bos_token_id, *bare.input_ids, tokenizer.eos_token_id]
        boundary = len(f"Input: {question}\nOutput:")
        behind = [end > boundary for _, end in bare.offset_mapping]
        assert row.train_L.tolist() == [False, *behind, True]
        assert behind == sorted(behind)

    check()


def test_no_doubled_space_piece(shared: Path) -> None:
    """Trap 2: an answer tokenised by itself begins with one space piece too many."""
    for tokenizer in (sentencepiece(), AutoTokenizer.from_pretrained(shared / "models" / "stories260k")):
        row = _encoded(_pair("fox", "dog"), tokenizer, Rules("causal", end_token_ids=(1,)))
        pieces = tokenizer.convert_ids_to_tokens(row.ids_L[row.train_L].tolist()[:-1])
        assert "".join(pieces) == "▁dog"
        alone = tokenizer.convert_ids_to_tokens(tokenizer(" dog", add_special_tokens=False).input_ids)
        assert "".join(alone) == "▁▁dog"


def test_stories260k_ends_with_its_bos(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    row = _encoded(_pair("Say hi.", "hi"), tokenizer, Rules("causal", end_token_ids=(tokenizer.eos_token_id,)))
    assert row.ids_L.tolist() == [*tokenizer("Input: Say hi.\nOutput: hi").input_ids, 1]
    assert (row.ids_L[0], row.ids_L[-1], row.train_L[0], row.train_L[-1]) == (1, 1, False, True)


@pytest.mark.parametrize(("style", "opening"), [("causal", [0]), ("gpt2", []), ("asked", [0])])
def test_one_bos_at_most(style: str, opening: list[int]) -> None:
    tokenizer = tiny.tokenizer("gpt2" if style != "causal" else "causal")
    if style == "asked":  # the configuration wants a BOS that the post-processor does not add
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, bos_token="<unk>", add_bos_token=True
        )
    for example in (_pair("a", "b"), Example("t", "text", text="a b c")):
        row = _encoded(example, tokenizer, CAUSAL)
        assert row.ids_L[: len(opening)].tolist() == opening
        assert (row.ids_L == 0).sum() == len(opening)
        assert row.train_L[-1] and row.ids_L[-1] == 1


def test_the_end_token_is_trained_even_if_it_pads() -> None:
    tokenizer = tiny.tokenizer("gpt2")
    tokenizer.pad_token = tokenizer.eos_token
    row = _encoded(_pair("a", "b"), tokenizer, Rules("causal", end_token_ids=(tokenizer.eos_token_id,)))
    assert row.ids_L[-1] == tokenizer.pad_token_id and row.train_L[-1]
    with pytest.raises(ModelError, match="names no end token"):
        encode.encode(_pair("a", "b"), tokenizer, Rules("causal"))


def test_all_tokens_of_a_text_are_trained_but_the_first() -> None:
    row = _encoded(Example("t", "text", text="The quick brown fox"), TEXTS, CAUSAL)
    assert TEXTS.decode(row.ids_L) == "<s>The quick brown fox</s>"
    assert row.train_L.tolist() == [False] + [True] * (len(row.ids_L) - 1)
    pair = _encoded(_pair("a", "b"), TEXTS, Rules("causal", train_on="all", end_token_ids=(1,)))
    assert pair.train_L.tolist() == [False] + [True] * (len(pair.ids_L) - 1)
    prompt = encode.encode_prompt(_pair("a", "b"), TEXTS, Rules("causal", train_on="all", end_token_ids=(1,)))
    assert TEXTS.decode(prompt) == "<s>Input: a\nOutput:"


def test_class_names_are_the_answers_of_a_decoder() -> None:
    example = _row({"text": "fine", "label": "good"})
    row = _encoded(example, TEXTS, Rules("causal", "classification", end_token_ids=(1,), labels=("bad", "good")))
    assert _halves(row, TEXTS) == ("<s>Input: fine\nOutput:", " good</s>")
    assert (row.label, encode.reference(example)) == (-1, "good")
    spaced = Example("p", "pair", (Message("user", "q"), Message("assistant", " good")), label="good", exact=True)
    assert _halves(_encoded(spaced, TEXTS, CAUSAL), TEXTS) == ("<s>q", " good</s>")


# -- encoder-decoders and encoders -------------------------------------------------------------------------------------


def test_an_encoder_decoders_source_is_the_tokenizers_own(shared: Path) -> None:
    """Trap 3: translit-ar-en wants no `</s>` on the source but needs one on the labels; T5-like tokenizers add both."""
    translit = AutoTokenizer.from_pretrained(shared / "models" / "translit-ar-en")
    row = _encoded(_row({"input": "سلام", "output": "slam"}), translit, Rules("seq2seq", end_token_ids=(2,)))
    assert row.ids_L.tolist() == [49, 48, 44, 53, *translit("slam").input_ids, 2]
    assert row.prompt_length == 4 and row.train_L[4:].all()
    added = tiny.tokenizer("seq2seq")
    rules = Rules("seq2seq", end_token_ids=(1,))
    row = _encoded(_row({"input": "a b", "output": "c"}), added, rules)
    assert row.ids_L.tolist() == [*added("a b").input_ids, *added("c").input_ids]
    assert row.ids_L[row.prompt_length - 1] == row.ids_L[-1] == 1 and (row.ids_L == 1).sum() == 2
    asked = encode.encode_prompt(_row({"input": "a b"}, answered=False), added, rules)
    assert asked.tolist() == added("a b").input_ids
    with pytest.raises(DataError, match="not plain text"):
        encode.encode(Example("t", "text", text="a"), added, rules)


def test_bart_like_labels_keep_their_bos() -> None:
    tokenizer = tiny.tokenizer("seq2seq")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    row = _encoded(_pair("a", "b"), tokenizer, Rules("seq2seq", end_token_ids=(1,)))
    assert row.ids_L[row.train_L].tolist() == tokenizer("b").input_ids and row.ids_L[row.train_L][0] == 0


def test_an_encoder_reads_between_its_special_tokens(shared: Path) -> None:
    rxn = AutoTokenizer.from_pretrained(shared / "models" / "rxn-albert")
    rules = Rules("encoder", "classification", labels=("no", "yes"))
    row = _encoded(_row({"input": "CC(=O)N", "output": "yes"}), rxn, rules)
    assert row.ids_L.tolist() == rxn("CC(=O)N").input_ids and row.ids_L[[0, -1]].tolist() == [12, 13]
    assert row.label == 1 and not row.train_L.any()
    bare = tiny.tokenizer("encoder")
    bare.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    assert bare("a").input_ids != (whole := tiny.tokenizer("encoder")("a").input_ids)
    assert _encoded(_pair("a", "no"), bare, rules).ids_L.tolist() == whole
    assert encode.encode_prompt(_pair("a", "no"), bare, rules).tolist() == whole
    assert encode.encode_prompt(_row({"input": "a"}, answered=False), bare, rules).tolist() == whole
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 0)]
    )
    assert _encoded(_pair("a", "no"), bare, rules).ids_L.tolist() == whole[:-1]  # what it adds is what it wants
    with pytest.raises(DataError, match="`yess` is not among the 2 classes") as caught:
        encode.encode(_pair("a", "yess", 4), bare, rules)
    assert (caught.value.where, caught.value.hint) == ("f:4", "did you mean `yes`?")
    with pytest.raises(DataError, match="the task is generation"):
        encode.encode(_pair("a", "no"), bare, Rules("encoder"))
    with pytest.raises(DataError, match="this row is a chat"):
        encode.encode(Example("c", "chat", (Message("assistant", "no"),), label="no"), bare, rules)


# -- length policy -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12),
    limit=st.integers(1, 70),
    policy=st.sampled_from(["error", "drop", "cut"]),
    family=st.sampled_from(["causal", "seq2seq"]),
)
def test_the_length_policy_against_an_oracle(rows: list[tuple[int, int]], limit: int, policy: str, family: str) -> None:
    """RELIABILITY 16 and D15: counts are an independent oracle's; a cut never leaves a row without a trained token."""
    examples = [_pair("q" * n, "a" * m, line) for line, (n, m) in enumerate(rows, 1)]
    free = [_encoded(example, TEXTS, Rules(family, end_token_ids=(1,))) for example in examples]
    rules = Rules(family, end_token_ids=(1,), overlength=policy, max_seq_length=limit)
    long = [row for row in free if len(row.ids_L) > limit]
    hopeless = [row for row in long if row.prompt_length >= limit]
    gone = {"error": [], "drop": long, "cut": hopeless}[policy]
    if (policy == "error" and long) or len(gone) == len(free):
        with pytest.raises(DataError, match="are longer than" if policy == "error" else "rows were dropped"):
            encode.encode_split(examples, TEXTS, rules)
        return
    split = encode.encode_split(examples, TEXTS, rules)
    kept = [row for row in free if row not in gone]
    assert [row.ids_L.tolist() for row in split.rows] == [row.ids_L[:limit].tolist() for row in kept]
    assert [row.train_L.tolist() for row in split.rows] == [row.train_L[:limit].tolist() for row in kept]
    assert all(row.train_L.any() for row in split.rows)
    assert [row.cut for row in split.rows] == [len(row.ids_L) > limit for row in kept]
    assert len(split.dropped) == len(gone)
    assert [told.split(": ")[0] for told in split.cut] == [
        f"f:{row.example_id}" for row in kept if len(row.ids_L) > limit
    ]


def test_refusing_names_the_rows_and_the_way_out() -> None:
    examples = [_pair("q" * n, "a", line) for line, n in enumerate((1, 90, 2, 80), 1)]
    with pytest.raises(DataError) as caught:
        encode.encode_split(examples, TEXTS, Rules("causal", end_token_ids=(1,), max_seq_length=50))
    assert "2 of 4 rows are longer than 50 tokens, the longest" in caught.value.message
    assert caught.value.where == "f:2, f:4"
    assert "data.overlength: drop, or cut" in (caught.value.hint or "")
    dropping = Rules("causal", end_token_ids=(1,), max_seq_length=50, overlength="drop")
    assert encode.encode(examples[1], TEXTS, dropping) is None
    assert len(encode.encode_prompt(examples[1], TEXTS, dropping)) > 50


def test_the_documents_cut_of_the_first_tokens() -> None:
    """PARAMETERS §1: with 200 and an input of 1,000 tokens only the first 200 are used; so nothing is trained."""
    rules = Rules("causal", end_token_ids=(1,), max_seq_length=200, overlength="cut")
    split = encode.encode_split([_pair("q" * 1000, "a", 1), _pair("q" * 150, "a" * 100, 2)], TEXTS, rules)
    (row,) = split.rows
    assert (row.example_id, len(row.ids_L), row.cut, row.ids_L[-1] == 1) == ("2", 200, True, False)
    assert "the first 200 hold nothing to train" in split.dropped[0]
    assert split.cut[0].startswith("f:2: ") and split.cut[0].endswith("the first 200 are used")


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), limit=st.integers(1, 50))
def test_an_encoders_cut_keeps_the_closing_token(size: int, limit: int) -> None:
    tokenizer = tiny.tokenizer("encoder")
    rules = Rules("encoder", "classification", labels=("x",), max_seq_length=limit, overlength="cut")
    row = _encoded(_pair("q" * size, "x"), tokenizer, rules)
    assert row.ids_L.tolist() == tokenizer("q" * size, truncation=True, max_length=max(limit, 2)).input_ids[-limit:]
    assert encode.encode_prompt(_pair("q" * size, "x"), tokenizer, rules).tolist() == row.ids_L.tolist()


def test_source_and_target_of_an_encoder_decoder_each_have_the_positions() -> None:
    """BART: without this a source beyond the positions is neither cut nor trained; T5 has no such limit."""
    tokenizer = tiny.tokenizer("seq2seq")
    wish = {"family": "seq2seq", "end_token_ids": (1,), "positions": 30, "virtual_tokens": 4, "max_seq_length": 56}
    examples = [_pair("q" * 40, "a", 1), _pair("q" * 9, "z" * 40, 2), _pair("q" * 9, "a", 3)]
    split = encode.encode_split(examples, tokenizer, Rules(**wish, overlength="cut"))
    source, target, whole = split.rows
    assert (source.prompt_length, source.ids_L[25], source.ids_L[-1], source.cut) == (26, 1, 1, True)
    assert (len(target.ids_L) - target.prompt_length, target.ids_L[-1] == 1, target.cut) == (30, False, True)
    assert not whole.cut and split.cut[0] == "f:1: 41 + 2 tokens, the first 26 + 30 are used"
    assert encode.encode_prompt(examples[0], tokenizer, Rules(**wish, overlength="cut")).tolist() == (
        source.ids_L[:26].tolist()
    )
    dropping = encode.encode_split(examples, tokenizer, Rules(**wish, overlength="drop"))
    assert [row.example_id for row in dropping.rows] == ["3"] and len(dropping.dropped) == 2
    for refused in (encode.encode_split, lambda rows, *rest: encode.encode_prompt(rows[0], *rest)):
        with pytest.raises(DataError, match=r"longer than 26 \+ 30 tokens") as caught:
            refused(examples, tokenizer, Rules(**wish))
        assert (caught.value.where or "").startswith("f:1") and "30 positions for each" in (caught.value.hint or "")
    assert len(encode.encode_split(examples, tokenizer, Rules(**wish | {"positions": None})).rows) == 3
    both = encode.encode_split(examples[1:2], tokenizer, Rules(**wish | {"max_seq_length": 20}, overlength="cut"))
    assert len(both.rows[0].ids_L) == 20 and both.cut[0].endswith("26 + 30 (20 in all) are used")


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="character offsets"):
        encode.encode(_pair("a", "b"), Slow(), CAUSAL)


def test_batches_do_not_mix_rows() -> None:
    examples = [_pair(f"q{i}", f"a{i * i}", i) for i in range(1200)]
    split = encode.encode_split(examples, TEXTS, CAUSAL)
    assert [row.example_id for row in split.rows] == [example.id for example in examples]
    for i in (0, 511, 512, 1199):
        assert _halves(split.rows[i], TEXTS) == (f"<s>Input: q{i}\nOutput:", f" a{i * i}</s>")
