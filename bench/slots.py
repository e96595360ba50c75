"""N adapters in one forward against N one after another and N processes; and what N slots take in memory.

    python bench/slots.py speed      seconds of an update: bench/results/slots.json
    python bench/slots.py memory     peak memory of a process with 1 … 64 slots, into the same file

The tiny Llama (15 M parameters, random weights, float32), LoRA of rank 8 without dropout on all linear layers of every
layer or of the upper half, cls rows, 8 an update and slot, through luthier's own loop. Slots see the same rows in the
same order, as trials of one seed do, but in `upper, own rows`, where each has its own order and nothing can be shared.

**speed.** Two processes hold bases with 1, 2, 4, 8, 16 slots and are told what to do: one of them alone on one thread
or on all, or both at once on one thread each. All ways are measured in turns; figures are medians over the rounds,
lowest and highest; `foreign_cores` is what others used of our cores meanwhile.
`gain` says how many times faster the slots are in one forward than one after another in the same process or processes,
from each round's own times. `against_processes`: how many times faster than single-threaded processes, one a core, that
train one trial after another.

**memory.** Each number of slots in a fresh process, the longest micro-batch and an update; beyond what the process held
before the base.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from kit import machine, workloads

from luthier import spec
from luthier.models import base
from luthier.models.methods import attach
from luthier.runs import Stepped
from luthier.train.loop import Job, train
from luthier.train.measure import most_resident_bytes, resident_bytes

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results" / "slots.json"
COUNTS, MANY = (1, 2, 4, 8, 16), (1, 2, 4, 8, 16, 32, 64)
KINDS = ("all layers", "upper half", "upper half, own rows")
ROUNDS, BATCH, RANK = 4, 8, 8
LAYERS = workloads.SHAPES["tiny"].layers
LINEARS = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]


# ------------------------------------------------------------------------------------------------- in a child process


def updates(model: Path, room: Path, kind: str, slots: int) -> Iterator[None]:
    """Train so many slots; yields after each update of all."""
    layers = range(0 if kind == "all layers" else LAYERS // 2, LAYERS)
    targets = tuple(f"layers.{layer}.{linear}" for layer in layers for linear in LINEARS)
    method = spec.Lora(rank=RANK, alpha=2 * RANK, dropout=0.0, target_modules=targets)
    tuned = attach(base.load(spec.Model(name=str(model)), method), [method] * slots, range(slots))
    rows = workloads.rows_of("cls")
    jobs = [
        Job(str(i), _training(1e-4 * (i + 1)), i if "own" in kind else 0, rows, (), room / f"{kind}{slots}.{i}")
        for i in range(slots)
    ]
    told = 0
    for event in train(tuned, jobs):
        told += isinstance(event, Stepped)
        if isinstance(event, Stepped) and told % slots == 0:
            yield


def _training(rate: float) -> spec.Training:
    return spec.Training(
        batch_size=BATCH, accumulate_steps=1, num_epochs=1, max_steps=1_000_000, learning_rate=rate,
        schedule="constant", warmup=0.0, weight_decay=0.0, gradient_checkpointing=False, save_every=1_000_000,
    )  # fmt: skip


def serve(model: Path, room: Path) -> None:
    """Do the updates that are asked for, one line a question: kind, slots, threads, updates."""
    going: dict[tuple[str, int], Iterator[None]] = {}
    for line in sys.stdin:
        kind, slots, threads, count = json.loads(line)
        if (kind, slots) not in going:
            going[kind, slots] = updates(model, room, kind, slots)
            next(going[kind, slots])
        torch.set_num_threads(threads)
        cpu, started = time.process_time(), time.perf_counter()
        for _ in range(count):
            next(going[kind, slots])
        print(json.dumps([time.perf_counter() - started, time.process_time() - cpu]), flush=True)


def hold(model: Path, room: Path, kind: str, slots: int) -> None:
    """Peak memory of this process, which must be fresh."""
    torch.set_num_threads(1)
    workloads.rows_of("cls")
    before = resident_bytes()
    next(updates(model, room, kind, slots))
    print(json.dumps(most_resident_bytes() - before))


# -------------------------------------------------------------------------------------------------------------- speed


class Child:
    """A process that serves."""

    def __init__(self, model: Path, room: Path) -> None:
        room.mkdir()
        command = [sys.executable, __file__, "serve", str(model), str(room)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *question: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()

    def answer(self) -> tuple[float, float]:
        assert self._process.stdout is not None
        seconds, cpu = json.loads(self._process.stdout.readline())
        return seconds, cpu

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def timed(children: list[Child], kind: str, slots: int, threads: int) -> tuple[float, float]:
    """Seconds of an update, of the slower process if several work at once; and how many cores others used meanwhile."""
    count = max(1, 4 // slots)
    busy, started = machine.busy_seconds(), time.perf_counter()
    for child in children:
        child.ask(kind, slots, threads, count)
    told = [child.answer() for child in children]
    wall = time.perf_counter() - started
    foreign = machine.busy_seconds() - busy - sum(cpu for _, cpu in told)
    return max(seconds for seconds, _ in told) / count, max(0.0, foreign) / wall


def speed(model: Path, room: Path) -> dict:
    """Every way of every kind in turns."""
    cores = len(os.sched_getaffinity(0))
    children = [Child(model, room / str(number)) for number in range(cores)]
    ways = {"one thread": (1, 1), "all threads": (1, cores), "a process a core": (cores, 1)}
    plan = [(kind, slots) for kind in KINDS for slots in COUNTS]
    told: dict[str, dict[str, dict[int, list[float]]]] = {k: {w: {n: [] for n in COUNTS} for w in ways} for k in KINDS}
    others: list[float] = []
    for kind, slots in plan:  # made and warmed up, all processes at once
        timed(children, kind, slots, 1)
    for _ in range(ROUNDS):
        for kind, slots in plan:
            for way, (processes, threads) in ways.items():
                if "own" not in kind or way == "one thread":
                    seconds, foreign = timed(children[:processes], kind, slots, threads)
                    told[kind][way][slots].append(seconds)
                    others.append(foreign)
    for child in children:
        child.close()
    figures: dict[str, object] = {"rounds": ROUNDS, "foreign_cores": _middle(others)}
    for kind, found in told.items():
        apart = found["a process a core"]
        figures[kind] = {way: _figures(each, apart, ways[way][0], cores) for way, each in found.items() if each[1]}
    return figures


def _figures(seconds: dict[int, list[float]], apart: dict[int, list[float]], processes: int, cores: int) -> dict:
    """By the number of slots: seconds of an update of all, and the ratios."""
    found = {}
    for slots, each in seconds.items():
        gain = [slots * one / all_ for one, all_ in zip(seconds[1], each, strict=True)]
        found[slots] = {"seconds": _middle(each), "gain": _middle(gain)}
        if apart[1]:
            rate = [processes * slots / all_ / (cores / one) for one, all_ in zip(apart[1], each, strict=True)]
            found[slots]["against_processes"] = _middle(rate)
    return found


def _middle(each: list[float]) -> list[float]:
    """Median, lowest, highest."""
    return [float(f"{x:.4g}") for x in (median(each), min(each), max(each))]


# ------------------------------------------------------------------------------------------------------------- memory


def memory(model: Path, room: Path) -> dict:
    """Peak MB by kind and number of slots."""
    found: dict[str, dict[int, int]] = {}
    for kind, counts in zip(KINDS, (MANY, MANY[::3]), strict=False):
        for slots in counts:
            command = [sys.executable, __file__, "hold", str(model), str(room), kind, str(slots)]
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found.setdefault(kind, {})[slots] = round(json.loads(said.splitlines()[-1]) / 1e6)
            print(kind, slots, found[kind][slots], "MB", flush=True)
    return found


def main() -> None:
    what = {"speed": speed, "memory": memory}[sys.argv[1]]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as place:
        model = workloads.make_model(workloads.SHAPES["tiny"], Path(place) / "model")
        results[sys.argv[1]] = {"machine": machine.facts()} | what(model, Path(place))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results[sys.argv[1]], indent=1))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1] == "hold":
        hold(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        main()
