"""Preparing and tokenising many short rows, beside `datasets.map` doing the same tokenisation.

    python bench/data.py                      400,000 rows, some three minutes; results/data.json keeps the newest
    python bench/data.py --rows 10000000      as many as are wanted (about 5 GB of disk for ten million)
    python bench/data.py --keep FOLDER        work there and leave it: the rows are not generated again

**What is measured.** Rows of two columns, no two alike, some 20 words each, in one JSON-lines file; a byte-level BPE of
8,192 pieces learned from the first of them. Every step is a process of its own, one after another, which tells its
seconds without the imports, and its peak memory with everything: what `resource` calls the largest resident set.

* `prepare`: luthier reads, recognises, drops twins, splits, looks for leaks, writes the data set's folder.
* `tokenize`: luthier encodes the training rows under their template, with what is trained of them, into stored arrays.
* `again`: the same call a second time, and a pass over all rows, as the gate makes one.
* `datasets`: the file through `load_dataset`, then `map(batched=True)` with the same tokenizer on the same text
  (prompt, answer, end token) and `labels` for the answer, its usual way: one process, batches of 1,000.
  `load` is the reading, `map` the tokenisation.

**Figures.** Rows a second, the ratio of `tokenize` to `map` and of prepare + tokenize to load + map, within this run.
That the ids are the same is checked on the first 1,000 rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "data.json"
ROWS, PIECES, LEARNED_FROM, COMPARED = 400_000, 8_192, 20_000, 1_000
PROMPT, END = "Input: {input}\nOutput:", "</s>"
STEPS = ("prepare", "tokenize", "again", "datasets")
_TEXT = """
account address agent amount answer app appointment bank bill booking branch button calendar call cancel card
cash change charge chat check city claim code colour contract copy country coupon course credit customer damage
date day debit delay delivery desk device discount document door e-mail error fee file flight form friend gift
group hotel hour house invoice item key late letter limit line list loan login luggage mail meeting message
minute money month name night note number offer office order page parcel password payment phone photo place plan
plane please point policy post price printer problem product profile question receipt refund rent repair reply
report room route rule seat second seller service shop sign size stamp station step stop store street suit table
tax team terms test ticket time today tomorrow total train transfer travel trip update user visit voucher wait
week window word year
"""
_WORDS = _TEXT.split()


# ------------------------------------------------------------------------------------------------------------ workload


def generate(folder: Path, rows: int) -> None:
    """`rows.jsonl` and a tokenizer, unless they are there."""
    file, draw = folder / "rows.jsonl", random.Random(0)
    if not file.exists():
        with file.open("w") as out:
            for number in range(rows):
                asked = " ".join(draw.choices(_WORDS, k=draw.randint(6, 18)))
                told = " ".join(draw.choices(_WORDS, k=draw.randint(1, 6)))
                out.write(f'{{"input": "{asked} {number}", "output": "{told}"}}\n')
    if not (folder / "tokenizer").exists():
        _learn(file, folder / "tokenizer")


def _learn(file: Path, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=["<s>", END, "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    with file.open() as lines:
        core.train_from_iterator((line for line in islice(lines, LEARNED_FROM)), trainer)
    names = {"bos_token": "<s>", "eos_token": END, "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)


# ------------------------------------------------------------------------------------------------ steps, each a process


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def prepare(folder: Path) -> dict[str, Any]:
    from luthier.data.prepare import prepare as preparing
    from luthier.spec import Data

    began = time.perf_counter()
    data = Data(train=str(folder / "rows.jsonl"), validation=0.0, test=0.0)
    dataset = preparing(data, folder / "home", task="generation")
    (folder / "path").write_text(str(dataset.path))
    return {"seconds": time.perf_counter() - began, "rows": dataset.counts["train"]}


def tokenize(folder: Path) -> dict[str, Any]:
    from luthier.data.dataset import load_dataset
    from luthier.data.encode import Rules
    from luthier.data.tokens import stored

    dataset, tokenizer = load_dataset((folder / "path").read_text()), _tokenizer(folder)
    rules = Rules("causal", end_token_ids=(tokenizer.eos_token_id,), max_seq_length=512)
    began = time.perf_counter()
    made = stored(dataset, "train", tokenizer, rules)
    told = {"seconds": time.perf_counter() - began, "rows": len(made.rows)}
    began = time.perf_counter()
    tokens = sum(len(row.ids_L) for row in made.rows)
    told |= {"pass_seconds": time.perf_counter() - began, "tokens": tokens}
    (folder / "ours.json").write_text(json.dumps([made.rows[i].ids_L.tolist() for i in range(COMPARED)]))
    return told


def datasets(folder: Path) -> dict[str, Any]:
    import datasets as library

    library.disable_progress_bars()
    tokenizer, cache = _tokenizer(folder), folder / "cache"
    began = time.perf_counter()
    rows = library.load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(cache))
    loaded = time.perf_counter() - began

    def tokens(batch: dict[str, list[str]]) -> dict[str, Any]:
        prompts = [PROMPT.replace("{input}", asked) for asked in batch["input"]]
        texts = [f"{prompt} {told}{END}" for prompt, told in zip(prompts, batch["output"], strict=True)]
        coded = tokenizer(texts, truncation=True, max_length=512, return_offsets_mapping=True)
        labels = [
            [piece if end > len(prompt) else -100 for piece, (_, end) in zip(ids, offsets, strict=True)]
            for ids, offsets, prompt in zip(coded["input_ids"], coded["offset_mapping"], prompts, strict=True)
        ]
        return {"input_ids": coded["input_ids"], "labels": labels}

    began = time.perf_counter()
    done = rows.map(tokens, batched=True, remove_columns=["input", "output"])
    seconds = time.perf_counter() - began
    (folder / "theirs.json").write_text(json.dumps(done[:COMPARED]["input_ids"]))
    return {"seconds": seconds, "load_seconds": loaded, "rows": len(done)}


def step(name: str, folder: Path) -> None:
    """One step in this process, which must be fresh; its figures are the last line said."""
    work: dict[str, Callable[[Path], dict[str, Any]]] = {"prepare": prepare, "tokenize": tokenize, "datasets": datasets}
    told = work["tokenize" if name == "again" else name](folder)
    told["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(told))


# ------------------------------------------------------------------------------------------------------------------ all


def fresh(name: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--step", name, "--keep", str(folder)]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "TOKENIZERS_PARALLELISM": "true",
    }
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{name} ended with exit code {done.returncode}")
    told = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{name}: {told['rows'] / told['seconds']:,.0f} rows/s, {told['seconds']:,.1f} s, "
        f"peak {told['peak_bytes'] / (1 << 20):,.0f} MiB",
        flush=True,
    )
    return told


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """All steps in turn, and the ratios."""
    from kit.machine import facts

    generate(folder, rows)
    told = {name: fresh(name, folder) for name in STEPS}
    if json.loads((folder / "ours.json").read_text()) != json.loads((folder / "theirs.json").read_text()):
        sys.exit("the ids are not the same")
    ours, theirs = told["tokenize"]["seconds"], told["datasets"]["seconds"]
    whole = told["prepare"]["seconds"] + ours, told["datasets"]["load_seconds"] + theirs
    ratios = {"tokenize": theirs / ours, "whole": whole[1] / whole[0]}
    print(", ".join(f"{name} {ratio:.2f} times datasets' rows/s" for name, ratio in ratios.items()))
    machine = facts() | {name: metadata.version(name) for name in ("tokenizers", "datasets")}
    return {"rows": rows, "machine": machine, "steps": told, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    wish = parser.parse_args()
    if wish.step:
        step(wish.step, wish.keep)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = wish.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        told = measure(folder, wish.rows)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results | {f"{wish.rows:,} rows": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
