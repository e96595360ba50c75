"""Training, side by side with peers: the same base, rows, order and start, in one run, turn and turn about.

    python bench/train.py                      every case; bench/results/train.json keeps the newest of each
    python bench/train.py --only sql/mid       cases whose name (data/shape/method) contains one of these words
    python bench/train.py --quick              tiny LoRA and one soft prompt, two rounds, nothing kept
    python bench/train.py --make-peers [NAME]  environments for peers of their own (.venv-peers, or $LUTHIER_PEERS)

**How it is measured.** Each engine is a process of its own (`peers/child.py`) that waits between steps. After a step to
warm up, a round lets each engine in turn do the same steps; figures are medians over rounds, spread is the lowest and
highest. What others used of our cores meanwhile is read from /proc/stat: a round in which that was more than a tenth of
a core is disturbed, not counted and made up for, at most as often as rounds were asked for (then all count, and the
result says `disturbed`). Threads: OMP_NUM_THREADS, else the cores of this process (`taskset` restricts them).

**What is equal.** Rows, their order, learning rate (constant 1e-3), AdamW without decay, clipping at 1, float32, one
update every 8 examples, our start weights in every engine. All losses of all steps are compared with luthier's: beyond
1e-3 the case fails and the exit code is 1. Rows come as tokens: preparing text is not measured. Where 8 padded rows
are more than 4,096 tokens every engine is told to accumulate smaller batches.

**Figures.** Examples and tokens (as given: nothing shared, nothing padded) a second; peak memory of the process over
its own before the base was loaded; share of the matrix rate measured beside it that the least work (`kit/work.py`)
makes up; ratios are medians of each round's own.

Engines: luthier; trl, peft (a loop by hand; for full tuning transformers alone), trainer (transformers' Trainer);
litgpt, torchtune, llamafactory, axolotl in environments of their own. The step of litgpt and torchtune is that of
their recipes around their model classes. One that is not installed is left out, and the result says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from kit import machine, work, workloads
from kit.children import Child, Died
from peers.common import Job
from peers.with_luthier import method_of
from safetensors.torch import save_file

from luthier import spec
from luthier.data.batches import epoch_order, grouped_order
from luthier.data.examples import Encoded
from luthier.models import base
from luthier.models.methods import attach

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "train.json"
REQUIREMENTS = ROOT / "bench" / "peers"
PEERS = Path(os.environ.get("LUTHIER_PEERS", ROOT / ".venv-peers"))
EVERYBODY = ("luthier", "trl", "peft", "trainer", "litgpt", "torchtune", "llamafactory", "axolotl")
NO_CPU = {"unsloth": "does not install beside a CPU build of torch 2.13"}
BATCH, RANK, ALPHA, LEARNING_RATE, SEED = 8, 8, 16, 1e-3, 0
MOST_PADDED_TOKENS = 4096
MOST_DIFFERENCE = 1e-3
PATIENCE = 300.0  # seconds for an answer


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained on what, by whom; `steps` a round and `seconds` after which no further round begins."""

    data: str
    shape: str
    method: str
    engines: tuple[str, ...]
    steps: int = 1
    seconds: float = 60.0

    @property
    def name(self) -> str:
        return f"{self.data}/{self.shape}/{self.method}"

    @property
    def virtual(self) -> int:
        return int(self.method.removeprefix("prompt")) if self.method.startswith("prompt") else 0


SYNTHETIC = ("cls", "sql", "sql+grouped", "chat")
PADDED = ("luthier", "trl", "peft")
RECIPES = (*PADDED, "litgpt", "torchtune")
CASES = (
    *(Case(data, "tiny", "lora", EVERYBODY, seconds=45) for data in ("cls", "chat")),
    *(Case(data, "tiny", "lora", RECIPES, seconds=45) for data in ("sql", "sql+grouped")),
    Case("cls", "tiny", "prompt20", PADDED, seconds=30),
    Case("cls", "tiny", "prompt100", PADDED, seconds=30),
    Case("cls", "tiny", "full", RECIPES, seconds=40),
    *(Case(data, "mid", "lora", RECIPES, seconds=60) for data in SYNTHETIC),
    *(Case(data, "tiny", "lora", PADDED, seconds=40) for data in workloads.REAL),
)
QUICK = ("cls/tiny/lora", "sql/tiny/lora", "sql+grouped/tiny/lora", "chat/tiny/lora", "cls/tiny/prompt20")


# ------------------------------------------------------------------------------------------------------- preparing


def prepare(case: Case, steps: int, folder: Path) -> tuple[Path, list[list[Encoded]], int]:
    """Base, rows, start weights and the job, in files. Gives the job's path, the examples of every step, and how
    many of them peers pad together."""
    data, _, grouped = case.data.partition("+")
    rows = workloads.rows_of(data, SEED)
    rows = rows[: len(rows) // BATCH * BATCH]
    drawn: list[int] = []
    for epoch in range(-(-steps * BATCH // len(rows))):
        order = grouped_order(rows, BATCH, SEED, epoch) if grouped else epoch_order(len(rows), SEED, epoch)
        drawn += order.tolist()
    drawn = drawn[: steps * BATCH]
    job = Job(
        folder=str(workloads.make_model(workloads.SHAPES[case.shape], folder / "model")),
        rows=str(folder / "rows.npz"),
        start=str(folder / "start.safetensors"),
        method="prompt" if case.virtual else case.method,
        virtual=case.virtual,
        rank=RANK,
        alpha=ALPHA,
        learning_rate=LEARNING_RATE,
        batch=BATCH,
        micro=micro_of([rows[i] for i in drawn]),
        steps=steps,
        seed=SEED,
        batching="grouped" if grouped else "random",
    )
    offsets = np.concatenate([[0], np.cumsum([len(row.ids_L) for row in rows])])
    ids, train = np.concatenate([row.ids_L for row in rows]), np.concatenate([row.train_L for row in rows])
    np.savez(job.rows, ids=ids, train=train, offsets=offsets, drawn=np.array(drawn))
    method = method_of(job)
    tuned = attach(base.load(spec.Model(name=job.folder), method), [method], [SEED])
    save_file({name: tensor.clone() for name, tensor in tuned.slots[0].tensors().items()}, job.start)
    (folder / "job.json").write_text(json.dumps(asdict(job)))
    by_step = [[rows[i] for i in drawn[k : k + BATCH]] for k in range(0, len(drawn), BATCH)]
    return folder / "job.json", by_step, job.micro


def micro_of(rows: Sequence[Encoded]) -> int:
    """The most rows, a power of two, that padded to the longest stay within bounds in every step."""
    micro, longest = BATCH, max(len(row.ids_L) for row in rows)
    while micro > 1 and micro * longest > MOST_PADDED_TOKENS:
        micro //= 2
    return micro


def python_of(engine: str) -> Path | None:
    """The interpreter an engine runs in, or None where it is not installed."""
    own = PEERS / engine / "bin" / "python"
    if own.exists():
        return own
    package = {"luthier": "luthier", "trl": "trl", "peft": "peft", "trainer": "peft"}.get(engine)
    return Path(sys.executable) if package and importlib.util.find_spec(package) else None


# ------------------------------------------------------------------------------------------------------- measuring


def measure(case: Case, engines: Sequence[str], rounds: int) -> dict:
    """One case: its figures, as the results file holds them."""
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as place:
        steps = 1 + case.steps * rounds * 2
        job, by_step, micro = prepare(case, steps, Path(place))
        rate = machine.matrix_rate()
        facts = machine.facts()
        skipped = {engine: "not installed" for engine in engines if python_of(engine) is None}
        children = [
            Child(python, engine, job, Path(place) / f"{engine}.log")
            for engine in engines
            if (python := python_of(engine)) is not None
        ]
        ready = _ask(children, skipped, lambda child: child.answer(PATIENCE))
        first = _ask(children, skipped, lambda child: child.steps(1, PATIENCE))
        told = {engine: [answer] for engine, answer in first.items()}
        started, good = time.monotonic(), []
        while len(told["luthier"]) - 1 < 2 * rounds and len(good) < rounds:
            if len(told["luthier"]) > 2 and time.monotonic() - started > case.seconds:
                break
            answers = _ask(children, skipped, lambda child: child.steps(case.steps, PATIENCE))
            for engine, answer in answers.items():
                told[engine].append(answer)
            if not any(answer["disturbed"] for answer in answers.values()):
                good.append(len(told["luthier"]) - 1)
        for child in children:
            child.close()
        rate = max(rate, machine.matrix_rate())
    whole = {engine: answers for engine, answers in told.items() if engine not in skipped}
    used = good if len(good) >= min(2, rounds) else list(range(1, len(told["luthier"])))
    result = {
        "machine": facts,
        "matrix_gflops": round(rate / 1e9, 1),
        "rows_padded_together": micro,
        "rounds": len(used),
        "rounds_disturbed": len(told["luthier"]) - 1 - len(good),
        "disturbed": used is not good,
        "skipped": skipped,
    }
    return result | _figures(case, by_step, whole, ready, used, rate)


def _ask(children: list[Child], skipped: dict[str, str], question) -> dict[str, dict]:
    """Each child's answer; one that died is left out from now on."""
    answers = {}
    for child in list(children):
        try:
            answers[child.engine] = question(child)
        except (Died, OSError) as problem:
            if child.engine == "luthier":
                raise
            skipped[child.engine] = f"ended: {problem}"
            children.remove(child)
    return answers


def _figures(
    case: Case,
    by_step: list[list[Encoded]],
    told: dict[str, list[dict]],
    ready: dict[str, dict],
    used: list[int],
    rate: float,
) -> dict:
    """Speeds, memory, losses, ratios. Round r (from 1) did the steps from 1 + (r - 1) · steps on."""
    of_round = {r: by_step[1 + (r - 1) * case.steps :][: case.steps] for r in used}
    tokens = {r: sum(len(row.ids_L) for step in steps for row in step) for r, steps in of_round.items()}
    unique = {r: sum(work.unique_tokens(step, case.virtual) for step in steps) for r, steps in of_round.items()}
    method = "prompt" if case.virtual else case.method
    shape = workloads.SHAPES[case.shape]
    flops = {
        r: sum(work.least_flops(shape, method, RANK, case.virtual, step) for step in steps)
        for r, steps in of_round.items()
    }
    ours = [loss for answer in told["luthier"] for loss in answer["losses"]]
    engines = {}
    for engine, answers in told.items():
        seconds = {r: answers[r]["seconds"] for r in used}
        speeds = [BATCH * case.steps / seconds[r] for r in used]
        losses = [loss for answer in answers for loss in answer["losses"]]
        engines[engine] = {
            "examples_per_second": round(median(speeds), 3),
            "spread": [round(min(speeds), 3), round(max(speeds), 3)],
            "tokens_per_second": round(median(tokens[r] / seconds[r] for r in used)),
            "peak_mb": round(answers[-1]["peak_bytes"] / 1e6),
            "ready_mb": round((ready[engine]["ready_bytes"] - ready[engine]["baseline_bytes"]) / 1e6),
            "share_of_matrix_rate": round(median(flops[r] / seconds[r] / rate for r in used), 3),
            "foreign_cores": round(median(answers[r]["foreign"] for r in used), 2),
            "first_loss": losses[0],
            "loss_difference": max(abs(a - b) for a, b in zip(losses, ours, strict=True)),
        }
    peers = {engine: answers for engine, answers in told.items() if engine != "luthier"}
    faster = {
        engine: sorted(answers[r]["seconds"] / told["luthier"][r]["seconds"] for r in used)
        for engine, answers in peers.items()
    }
    memory = engines["luthier"]["peak_mb"]
    return {
        "tokens_a_step": round(sum(tokens.values()) / len(used) / case.steps),
        "unique_tokens_a_step": round(sum(unique.values()) / len(used) / case.steps),
        "losses_equal": all(e["loss_difference"] < MOST_DIFFERENCE for e in engines.values()),
        "engines": engines,
        "times_faster_than": {
            engine: {"median": round(median(each), 2), "spread": [round(each[0], 2), round(each[-1], 2)]}
            for engine, each in faster.items()
        },
        "memory_of": {engine: round(memory / max(1, engines[engine]["peak_mb"]), 3) for engine in peers},
    }


# --------------------------------------------------------------------------------------------------------- telling


def show(name: str, result: dict) -> None:
    """A case as a table."""
    note = ", disturbed" if result["disturbed"] else ""
    print(
        f"\n{name}: {result['tokens_a_step']} tokens a step, {result['unique_tokens_a_step']} unique; "
        f"{result['rounds']} rounds{note}; matrix rate {result['matrix_gflops']:.0f} GF/s"
    )
    for engine, e in result["engines"].items():
        times = result["times_faster_than"].get(engine)
        print(
            f"  {engine:13}{e['examples_per_second']:8.2f} examples/s{e['tokens_per_second']:8d} tokens/s"
            f"{e['peak_mb']:7d} MB{100 * e['share_of_matrix_rate']:6.1f} % of the rate"
            f"   loss off by {e['loss_difference']:.0e}" + (f"   luthier {times['median']:.1f} ×" if times else "")
        )
    for engine, why in result["skipped"].items():
        print(f"  {engine:13} left out: {why}")
    if not result["losses_equal"]:
        print("  LOSSES DIFFER")
    sys.stdout.flush()


def keep(name: str, result: dict, out: Path) -> None:
    results = json.loads(out.read_text()) if out.exists() else {}
    results[name] = result
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


def make_peers(names: Sequence[str]) -> None:
    """An environment for each requirement file (or those named); one that does not install is taken away again."""
    known = [path.stem for path in sorted(REQUIREMENTS.glob("*.txt")) if path.stem != "constraints"]
    for name in names or known:
        if python_of(name) is not None:
            print(f"{name}: there already ({python_of(name)})")
            continue
        subprocess.run([sys.executable, "-m", "venv", str(PEERS / name)], check=True)
        python = PEERS / name / "bin" / "python"
        pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(REQUIREMENTS / "constraints.txt")]
        file = REQUIREMENTS / f"{name}.txt"
        done = subprocess.run([*pip, "--requirement", str(file)])
        lines = file.read_text().splitlines()
        unwanted = [word for line in lines if line.startswith("# without: ") for word in line.split()[2:]]
        if unwanted and not done.returncode:
            subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *unwanted], check=True)
        if done.returncode:
            shutil.rmtree(PEERS / name)
        print(f"{name}: {'made' if done.returncode == 0 else 'does not install here'}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD")
    parser.add_argument("--engines", nargs="+", default=EVERYBODY, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--make-peers", nargs="*", default=None, metavar="NAME")
    said = parser.parse_args()
    if said.make_peers is not None:
        make_peers(said.make_peers)
        return 0
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    out = said.out or (None if said.quick else RESULTS)
    equal = True
    for case in CASES:
        if not any(word in case.name for word in said.only) or (said.quick and case.name not in QUICK):
            continue
        if case.data in workloads.REAL and not workloads.SHARED.is_dir():
            print(f"{case.name}: left out, there is no folder {workloads.SHARED.name}")
            continue
        engines = [engine for engine in case.engines if engine in said.engines or engine == "luthier"]
        result = measure(case, engines, said.rounds or (2 if said.quick else 5))
        result["skipped"] = NO_CPU | result["skipped"]
        show(case.name, result)
        equal &= result["losses_equal"]
        if out is not None:
            keep(case.name, result, out)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
