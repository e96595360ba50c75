"""What `luthier plan` foretells against what `luthier plan --measure` finds: peak memory and seconds of the updates.

python bench/memory.py [SHAPE …]        default: tiny mid; results/memory.json, and the table docs/concepts/memory.md

Every case runs in a process of its own, as a plan's measurement does: the memory before the base is loaded is taken
off, the longest micro-batch and the run's first steps are run. Batches of 8, LoRA of rank 8 on every linear layer, a
prompt of 20 tokens, float32.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from kit.machine import facts
from kit.workloads import SHAPES, make_model, rows_of

from luthier import hardware, spec
from luthier.models import base, methods
from luthier.train import cost, measure, plan
from luthier.train.loop import Job
from luthier.train.room import TOKEN_BUDGET
from luthier.train.shares import longest_batch

ROOT = Path(__file__).resolve().parents[1]
RESULTS, TABLE = ROOT / "bench" / "results" / "memory.json", ROOT / "docs" / "concepts" / "memory.md"
METHODS = {
    "lora": spec.Lora(rank=8, alpha=16.0, dropout=0.0, target_modules=("all-linear",)),
    "prompt": spec.PromptTuning(virtual_tokens=20, init_method="random"),
    "full": spec.Full(),
}
TRAINING = spec.Training(
    batch_size=8, accumulate_steps=1, num_epochs=1, learning_rate=1e-4, warmup=0.0, weight_decay=0.0
)
SECONDS = 45.0


def foretold(folder: Path, data: str, method: str) -> dict:
    """The plan's figures, and the counts behind the memory."""
    described = spec.Experiment(
        model=str(folder), data="rows.jsonl", task="generation", method=METHODS[method], training=TRAINING
    )
    tuned = methods.attach(base.load(described.model, described.method, weights=False), [described.method], [0])
    rows, machine = rows_of(data), hardware.machine()
    rates = hardware.rates(machine, hardware.Neighbours().threads())
    planned = plan.plan(described, rows, 0, tuned, machine, rates)
    longest = cost.count(tuned, longest_batch(tuned, [(tuned.slots[0], TRAINING, rows)], planned.budget))
    told = {"memory_bytes": planned.memory_bytes, "seconds": planned.seconds}
    return told | {"longest": asdict(longest), "rates": asdict(rates)}


def measured(folder: Path, data: str, method: str) -> dict:
    """One case in this process, which must be fresh."""
    before, rows = measure.resident_bytes(), rows_of(data)
    tuned = methods.attach(base.load(spec.Model(name=str(folder)), METHODS[method]), [METHODS[method]], [0])
    checkpoints = folder / f"{data}-{method}"
    job = Job("bench", TRAINING, 0, rows, (), checkpoints)
    return asdict(measure.measure(tuned, job, TOKEN_BUDGET, before, time.monotonic() + SECONDS))


def fresh(what: str, folder: Path, data: str, method: str) -> dict:
    done = subprocess.run([sys.executable, __file__, what, folder, data, method], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{what} {data} {method} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def off_by(case: dict, key: str) -> str:
    """How much more the plan foretold than was found; nothing where no update came to its end."""
    found = case["measured"][key]
    return f"{case['foretold'][key] / found - 1:+.0%}" if found else "–"


def table(results: dict) -> str:
    """The table of the docs, from the results."""
    lines = [
        "| model | workload | method | memory: plan | measured | off by | seconds: plan | measured | off by |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, case in results["cases"].items():
        cells = [*name.split("/")]
        for key, unit, form in (("memory_bytes", 1 << 20, "{:,.0f} MiB"), ("seconds", 1, "{:,.1f}")):
            cells += [form.format((case[what][key] or 0) / unit) for what in ("foretold", "measured")]
            cells.append(off_by(case, key))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    wanted = sys.argv[1:] or list(SHAPES)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": {}}
    results["machine"] = facts()
    for shape in (word for word in wanted if word in SHAPES):
        with tempfile.TemporaryDirectory() as scratch:
            folder = make_model(SHAPES[shape], Path(scratch))
            for data in ("cls", "sql", "chat"):
                for method in METHODS:
                    if set(wanted) & {"cls", "sql", "chat"} and data not in wanted:
                        continue
                    case = {what: fresh(what, folder, data, method) for what in ("foretold", "measured")}
                    results["cases"][f"{shape}/{data}/{method}"] = case
                    off = [off_by(case, key) for key in ("memory_bytes", "seconds")]
                    print(f"{shape}/{data}/{method}: memory {off[0]}, seconds {off[1]}", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    head, mark, _ = TABLE.read_text().partition("<!-- table: bench/memory.py -->\n")
    TABLE.write_text(head + mark + table(results))


if __name__ == "__main__":
    if sys.argv[1:2] in (["foretold"], ["measured"]):
        what, folder, data, method = sys.argv[1:]
        print(json.dumps({"foretold": foretold, "measured": measured}[what](Path(folder), data, method)))
    else:
        main()
