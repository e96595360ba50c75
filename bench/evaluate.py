"""Answering test rows: luthier against transformers' pipeline, row by row, and its `generate`, in one interleaved run.

    python bench/evaluate.py             1,500 prompts of each workload; writes bench/results/evaluate.json
    python bench/evaluate.py --quick     300 prompts, two rounds of 150, nothing kept

**What is asked.** The `sql` and `cls` rows of `kit/workloads.py` (schemas of 150–400 tokens with 25 questions each;
one instruction of 200 tokens), to the random Llama of 15 M parameters. Its output layer is its own and its embeddings
are multiplied by `LOUDER`, or it would say one token for ever; its last norm is multiplied by `SURER`, so that it is
as sure of its tokens as a tuned model; one token in `ENDS` ends an answer, so that lengths differ.

**Who answers.** The pipeline, one text at a time; `generate` on left-padded batches of 8 and of 32, prompts sorted by
length; luthier, all prompts of a round in one call. A round is a third of the prompts, with all that share a schema;
luthier answers every one of them, the others, whose time grows with the number of prompts alone, some of all lengths.
Ratios are medians of each round's own seconds a prompt. Every answer that others give is compared with luthier's,
token for token.

**Exact match.** One pass over prompt and reference; a reference is what the model says itself (even rows of the first
`OWN` of a round), or says to another prompt. `complete` then generates what the pass does not settle, so that all
answers are known (timed on those first rows).

**Classes.** Twenty names of 3–8 tokens: the likelihood of each as the answer to the prompt, read once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from kit import machine, workloads
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from luthier import spec
from luthier.data.examples import Encoded
from luthier.evaluation import decoding, generate
from luthier.models import base
from luthier.models.methods import Tuned, attach
from luthier.models.slots import BARE_BASE

RESULTS = Path(__file__).resolve().parent / "results" / "evaluate.json"
LOUDER, SURER, ENDS, CLASSES, OWN = 25.0, 200.0, 30, 20, 64
NEW = {"sql": 40, "cls": 8}
OTHERS = {"pipeline, row by row": 1, "generate, batches of 8": 8, "generate, batches of 32": 32}
PARTS = {1: 10, 8: 3, 32: 1}  # batches of each size a round


@dataclass(frozen=True, slots=True)
class Asked:
    """Prompts as tokens and as the text that gives them, what to answer at most, and the class names."""

    ids: list[list[int]]
    texts: list[str]
    new: int
    names: list[list[int]]


def asked(data: str, count: int, seed: int = 0) -> Asked:
    """`count` prompts of a workload; whole groups where prompts share a schema."""
    draw = np.random.default_rng(seed)
    rows = workloads.sql(draw, -(-count // 25)) if data == "sql" else workloads.cls(draw, count)
    ids = [row.ids_L[: row.prompt_length].tolist() for row in rows[:count]]
    names = [[*draw.integers(4, 32_000, draw.integers(2, 8)).tolist(), workloads.END_ID] for _ in range(CLASSES)]
    return Asked(ids, [" ".join(f"w{i}" for i in row) for row in ids], NEW[data], names)


def make(folder: Path) -> tuple[Tuned, Any, Any]:
    """The same model for luthier and for transformers, and the tokenizer."""
    workloads.make_model(workloads.SHAPES["tiny"], folder)
    words = AutoTokenizer.from_pretrained(folder, padding_side="left")
    words.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.tie_word_embeddings = False
    torch.manual_seed(1)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * model.config.initializer_range)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(LOUDER)
        model.model.norm.weight.mul_(SURER)
    ends = [workloads.END_ID, *range(ENDS, workloads.VOCABULARY, ENDS)]
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    tuned = attach(base.load(spec.Model(name=str(folder), dtype="float32"), None), [], [])
    assert set(tuned.base.end_token_ids) == set(ends)
    return tuned, model, words


def spread(rows: Sequence[int], size: int, turn: int) -> list[list[int]]:
    """Some batches of `size` of sorted prompts, from all lengths."""
    parts = np.array_split(np.arange(0, len(rows) - size + 1, size), PARTS[size])
    draw = np.random.default_rng([size, turn])
    return [list(rows[start : start + size]) for start in (int(draw.choice(part)) for part in parts if len(part))]


def by_pipeline(model: Any, words: Any, work: Asked) -> Callable[[list[int]], list[list[int]]]:
    said = pipeline("text-generation", model=model, tokenizer=words)

    def answer(rows: list[int]) -> list[list[int]]:
        (i,) = rows
        (found,) = said(work.texts[i], max_new_tokens=work.new, do_sample=False, return_full_text=False)
        return [[int(word[1:]) for word in found["generated_text"].split()]]

    return answer


def by_generate(model: Any, words: Any, work: Asked) -> Callable[[list[int]], list[list[int]]]:
    ends = set(model.generation_config.eos_token_id)

    def answer(rows: list[int]) -> list[list[int]]:
        given = words([work.texts[i] for i in rows], return_tensors="pt", padding=True)
        with torch.no_grad():
            out = model.generate(
                input_ids=given.input_ids,
                attention_mask=given.attention_mask,
                max_new_tokens=work.new,
                do_sample=False,
                pad_token_id=words.pad_token_id,
            )
        new = out[:, given.input_ids.shape[1] :].tolist()
        return [row[: next((k + 1 for k, token in enumerate(row) if token in ends), len(row))] for row in new]

    return answer


def spoken(tuned: Tuned, prompts: Sequence[list[int]], new: int) -> list[list[int]]:
    """What the model says to each prompt, end token included."""
    rows = [decoding.Row(BARE_BASE, ids, new) for ids in prompts]
    for company in decoding.companies(tuned, rows, most=1000):
        for _ in decoding.decode(tuned, rows, company, decoding.greedy(tuned)):
            pass
    return [row.said for row in rows]


def references(prompts: Sequence[list[int]], said: Sequence[list[int]], ends: Sequence[int]) -> list[Encoded]:
    """Even rows: what the model says (ended where it would go on), as far as it is known; others: something else."""
    rows = []
    for i, prompt in enumerate(prompts):
        own = said[(i if i % 2 == 0 and i < len(said) else i + 1) % len(said)]
        ids_L = np.array([*prompt, *own, *([] if own[-1] in ends else ends[:1])], np.int32)
        rows.append(Encoded(str(i), ids_L, np.arange(len(ids_L)) >= len(prompt)))
    return rows


def measure(data: str, count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds a prompt of every way, a list with one for each round, and how many answers were compared and differ."""
    tuned, model, words = make(folder)
    work, ends = asked(data, count), tuned.base.end_token_ids
    ways = {1: by_pipeline(model, words, work), 8: by_generate(model, words, work), 32: by_generate(model, words, work)}
    generate.answer(tuned, None, work.ids[:64], work.new)  # to warm up
    for size, way in ways.items():
        way(list(range(size)))
    seconds: dict[str, list[float]] = {}
    compared, differ, known, lengths = dict.fromkeys(OTHERS, 0), dict.fromkeys(OTHERS, 0), [], []

    def timed(name: str, answers: int, way: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = way()
        seconds.setdefault(name, []).append((time.perf_counter() - started) / answers)
        return found

    for turn, part in enumerate(np.array_split(np.arange(count), rounds)):
        mixed = np.random.default_rng(turn).permutation(part).tolist()  # as they would stand in a test split
        prompts = [work.ids[i] for i in mixed]
        answers = timed("answers", len(mixed), lambda: generate.answer(tuned, None, prompts, work.new))  # noqa: B023
        said = {i: list(answer.ids) for i, answer in zip(mixed, answers, strict=True)}
        lengths += [len(answer.ids) for answer in answers]
        for name, size in OTHERS.items():
            batches = spread(sorted(mixed, key=lambda i: len(work.ids[i])), size, turn)
            rows = [i for batch in batches for i in batch]
            found = timed(name, len(rows), lambda: [ways[size](batch) for batch in batches])  # noqa: B023
            for i, answer in zip(rows, (row for some in found for row in some), strict=True):
                compared[name] += 1
                differ[name] += answer[: len(said[i])] != said[i]
        own = spoken(tuned, prompts[:OWN], work.new)
        whole = references(prompts, own, ends)
        told = timed("exact match", len(whole), lambda: generate.likelihoods(tuned, None, whole))  # noqa: B023
        first = whole[: len(own)]
        timed("exact match, all answers", len(own), lambda: generate.complete(tuned, None, first, work.new))  # noqa: B023
        known += [told[i].greedy for i in range(0, len(own), 2) if own[i][-1] in ends]
        options = [[_candidate(prompt, name) for name in work.names] for prompt in prompts[:16]]
        timed("classes", len(options), lambda: generate.label_scores(tuned, None, options))  # noqa: B023
    return {
        "prompts": count,
        "rounds": rounds,
        "tokens_a_prompt": round(sum(map(len, work.ids)) / count, 1),
        "tokens_an_answer": round(sum(lengths) / count, 1),
        "seconds_a_prompt": {name: round(median(each), 5) for name, each in seconds.items()},
        "times_faster": {way: _ratios(seconds, way) for way in ("answers", "exact match", "exact match, all answers")},
        "compared": compared,
        "differ": differ,
        "own_answers_known_without_generation": round(sum(known) / max(1, len(known)), 3),
    }


def _candidate(prompt: Sequence[int], name: Sequence[int]) -> Encoded:
    ids_L = np.array([*prompt, *name], np.int32)
    return Encoded("", ids_L, np.arange(len(ids_L)) >= len(prompt))


def _ratios(seconds: dict[str, list[float]], way: str) -> dict[str, list[float]]:
    """Median, least and most of the rounds, against each of the others."""
    told = {}
    for name in OTHERS:
        each = sorted(theirs / ours for theirs, ours in zip(seconds[name], seconds[way], strict=True))
        told[name] = [round(median(each), 2), round(each[0], 2), round(each[-1], 2)]
    return told


def show(data: str, told: dict[str, Any]) -> None:
    """A workload as a table."""
    prompt, answer = told["tokens_a_prompt"], told["tokens_an_answer"]
    print(f"\n{data}: {told['prompts']:,} prompts of {prompt} tokens, {answer} tokens an answer")
    for name, seconds in told["seconds_a_prompt"].items():
        differ = f"   {told['differ'][name]} of {told['compared'][name]} answers differ" if name in OTHERS else ""
        print(f"  {name:26}{1000 * seconds:9.2f} ms a prompt{differ}")
    for way, ratios in told["times_faster"].items():
        each = (f"{name}: {times[0]:.1f} ({times[1]}–{times[2]})" for name, times in ratios.items())
        print(f"  {way} × " + ", ".join(each))
    print(f"  own answers known without generation: {told['own_answers_known_without_generation']:.0%}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=sorted(NEW), nargs="+", default=["sql", "cls"])
    parser.add_argument("--prompts", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=None)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    logging.getLogger("transformers").setLevel(logging.ERROR)
    results: dict[str, Any] = {"machine": machine.facts(), "matrix_gflops": round(machine.matrix_rate() / 1e9, 1)}
    for data in given.only:
        with tempfile.TemporaryDirectory() as place:
            count, rounds = given.prompts or (300 if given.quick else 1500), given.rounds or (2 if given.quick else 3)
            results[data] = measure(data, count, rounds, Path(place))
        show(data, results[data])
        if not given.quick:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
