"""The data and the models of the benches: rows of token ids with what is trained, and random-weight Llamas.

Synthetic rows are drawn from a seed: **cls** has one instruction of 200 tokens, then 30–60 tokens, a label of 3–8;
**sql** has 40 schemas of 150–400 tokens, 25 questions of 10–30 each, answers of 15–40; **chat** shares nothing, prompts
and answers have lognormal lengths (medians 50 and 35, sigma 0.7, 4 to 400). Real rows come from the folder `shared`,
cut into tokens by a byte-level BPE of 8,192 pieces learned from those data sets together, each context read once.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from luthier.data.examples import Encoded

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REAL = ("advising_sql", "wikisql_groups", "banking77", "gsm8k", "sgd_chat")
VOCABULARY, FIRST_ID, END_ID = 32_000, 4, 2
REAL_VOCABULARY = 8_192
TOKENIZER_ROWS = 1_500  # of each set: enough to learn pieces from


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's measures. `groups` are the heads of keys and values."""

    hidden: int
    layers: int
    heads: int
    groups: int
    ffn: int

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the seven linear maps of a layer: q, k, v, o, gate, up, down."""
        narrow = self.hidden // self.heads * self.groups
        d, f = self.hidden, self.ffn
        return [(d, d), (d, narrow), (d, narrow), (d, d), (d, f), (d, f), (f, d)]


SHAPES = {"tiny": Shape(288, 6, 6, 6, 768), "mid": Shape(640, 10, 10, 5, 1728)}


def make_model(shape: Shape, folder: Path, positions: int = 2048) -> Path:
    """A folder with a random Llama (seed 0, tied output layer, 32k vocabulary) and a tokenizer that only fits it."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=END_ID,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": END_ID, "<unk>": 3} | {f"w{i}": i for i in range(FIRST_ID, VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    return folder


def rows_of(data: str, seed: int = 0) -> list[Encoded]:
    """All rows of a workload by name. Raises FileNotFoundError where real data are not there."""
    if data in REAL:
        return list(_real(data))
    return {"cls": cls, "sql": sql, "chat": _chat}[data](np.random.default_rng(seed))


def prefixed(count: int, length: int, shared: float, seed: int = 0) -> list[Encoded]:
    """Rows of equal length that begin with the same `shared` part of it; the last eighth of what is left is trained."""
    draw = np.random.default_rng(seed)
    head = _random(draw, int(length * shared))
    own = length - len(head)
    rows = []
    for i in range(count):
        answer = max(1, own // 8)
        rows.append(_row(i, head, _random(draw, own - answer), _random(draw, answer)))
    return rows


# ----------------------------------------------------------------------------------------------------------- synthetic


def cls(draw: np.random.Generator, count: int = 512) -> list[Encoded]:
    """Rows of the workload of that name."""
    instruction = _random(draw, 200)
    return [
        _row(i, instruction, _random(draw, draw.integers(30, 61)), _random(draw, draw.integers(3, 9)))
        for i in range(count)
    ]


def sql(draw: np.random.Generator, schemas: int = 40) -> list[Encoded]:
    """Rows of the workload of that name, 25 a schema."""
    rows = []
    for _ in range(schemas):
        schema = _random(draw, draw.integers(150, 401))
        for _ in range(25):
            question, answer = _random(draw, draw.integers(10, 31)), _random(draw, draw.integers(15, 41))
            rows.append(_row(len(rows), schema, question, answer))
    return rows


def _chat(draw: np.random.Generator, count: int = 512) -> list[Encoded]:
    def length(median: float) -> int:
        return int(np.clip(median * np.exp(0.7 * draw.standard_normal()), 4, 400))

    return [_row(i, _random(draw, 0), _random(draw, length(50)), _random(draw, length(35))) for i in range(count)]


def _random(draw: np.random.Generator, length: int) -> np.ndarray:
    return draw.integers(FIRST_ID, VOCABULARY, int(length)).astype(np.int32)


def _row(number: int, head: np.ndarray, own: np.ndarray, answer: np.ndarray) -> Encoded:
    ids_L = np.concatenate([head, own, answer]).astype(np.int32)
    train_L = np.zeros(len(ids_L), bool)
    train_L[-len(answer) :] = True
    return Encoded(f"row{number}", ids_L, train_L)


# ---------------------------------------------------------------------------------------------------------------- real


def _real(data: str) -> Iterator[Encoded]:
    """Rows as tokens: context, question and answer are cut into tokens apart, so that a context is read only once."""
    tokenizer = _tokenizer()

    @cache
    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text).ids)

    for number, pieces in enumerate(_pieces(data)):
        parts = [(list(ids(text)) + [END_ID] * trained, trained) for text, trained in pieces if text]
        ids_L = np.array([i for part, _ in parts for i in part], np.int32)
        train_L = np.array([trained for part, trained in parts for _ in part], bool)
        yield Encoded(f"{data}{number}", ids_L, train_L)


def _pieces(data: str, most: int | None = None) -> Iterator[list[tuple[str, bool]]]:
    """Each row as (text, is it trained), in order."""
    meta = json.loads((SHARED / data / "meta.json").read_text())
    contexts = {row["context_id"]: row["context"] for row in _lines(SHARED / data / "contexts.jsonl.gz")}
    for row in list(_lines(SHARED / data / "train.jsonl.gz", must=True))[:most]:
        context = contexts.get(row.get("context_id"), "")
        if "messages" in row:
            turns = [(f"{turn['role']}: {turn['content']}", turn["role"] == "assistant") for turn in row["messages"]]
            yield [(context, False), *((f"\n{text}", trained) for text, trained in turns)]
            continue
        before, _, after = meta["template"].rpartition("{context}")
        asked = after.replace("{input}", row["input"])
        yield [(before + context, False), (asked, False), (meta["target"].replace("{output}", row["output"]), True)]


def _lines(path: Path, must: bool = False) -> Iterator[dict]:
    if path.exists() or must:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)


@cache
def _tokenizer() -> Tokenizer:
    """One BPE for all real sets, so that a much repeated schema does not become one piece."""
    texts = {text for data in REAL for pieces in _pieces(data, TOKENIZER_ROWS) for text, _ in pieces}
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        sorted(texts),
        trainers.BpeTrainer(
            vocab_size=REAL_VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return core
