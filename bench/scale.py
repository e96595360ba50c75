"""How the cost of training grows: with examples, length, shared prefixes, rank, slots.

    python bench/scale.py                     all curves: bench/results/scale.json, docs/concepts/scale-*.svg
    python bench/scale.py --only rank slots   some of them
    python bench/scale.py --quick             fewer points and rounds; nothing kept

Everything goes through luthier's own path (`attach`, `train`), LoRA of rank 8 on all linear layers of the tiny Llama
(15 M parameters, random weights, float32). A curve's points are measured in turns, median of the rounds; a turn
during which others used more than a tenth of a core is repeated, at most twice. Threads: OMP_NUM_THREADS, else
the cores of this process.

    examples   seconds of an epoch against its examples and its unique tokens, with the line fitted to the latter
    length     seconds per 1,000 tokens at 128 … 8,192 tokens an example, 8,192 tokens an update, nothing shared
    shared     speed-up at 0 … 95 % of every example the same, 16 examples of 512 tokens an update
    rank       examples a second at rank 1 … 128 (cls, 8 an update)
    slots      examples a second of all slots together, 1 … 16 of them in one pass (chat, 8 and 1 an update and slot)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from kit import machine, work, workloads
from kit.picture import Line, draw

from luthier import spec
from luthier.data.batches import epoch_order
from luthier.data.examples import Encoded
from luthier.models import base
from luthier.models.methods import Tuned, attach
from luthier.runs import Stepped
from luthier.train.loop import Job, train

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "scale.json"
PICTURES = ROOT / "docs" / "concepts"
POSITIONS = 8192
FOREIGN = 0.1


@dataclass(frozen=True, slots=True)
class Scene:
    """Where the curves are measured: the base's folder, room for checkpoints, how thoroughly."""

    model: Path
    room: Path
    rounds: int
    quick: bool

    def some(self, points: Sequence) -> Sequence:
        """All points, or in a quick run every third."""
        return points[::3] if self.quick else points


def tuned_on(scene: Scene, rank: int = 8, slots: int = 1) -> Tuned:
    """The base with that many adapters."""
    method = spec.Lora(rank=rank, alpha=2 * rank, dropout=0.0, target_modules=("all-linear",))
    return attach(base.load(spec.Model(name=str(scene.model)), method), [method] * slots, range(slots))


def updates(scene: Scene, tuned: Tuned, rows: Sequence[Encoded], batch: int, steps: int | None) -> Iterator[None]:
    """Train every slot on the rows, each in an order of its own; yields after each update of all slots. Without
    `steps` one epoch."""
    training = spec.Training(
        batch_size=batch, accumulate_steps=1, num_epochs=1, max_steps=steps, learning_rate=1e-4, schedule="constant",
        warmup=0.0, weight_decay=0.0, gradient_checkpointing=False, save_every=1_000_000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=scene.room) as room:
        jobs = [Job(str(s.index), training, s.index, rows, [], Path(room) / str(s.index)) for s in tuned.slots]
        told = 0
        for event in train(tuned, jobs):
            told += isinstance(event, Stepped)
            if isinstance(event, Stepped) and told % len(jobs) == 0:
                yield


def timed(action: Callable[[], object]) -> float:
    """Seconds the action takes; again, at most twice, where others disturbed it."""
    best = float("inf")
    for _ in range(3):
        busy, cpu, started = machine.busy_seconds(), time.process_time(), time.perf_counter()
        action()
        wall = time.perf_counter() - started
        best = min(best, wall)
        foreign = machine.busy_seconds() - busy - (time.process_time() - cpu)
        if foreign < max(FOREIGN * wall, 0.03):
            return wall
    return best


def in_turns(scene: Scene, actions: Sequence[Callable[[], object]], warm: int | None = None) -> list[float]:
    """Median seconds of each action over `rounds`, all actions in each; first, once, the `warm` first (None: all)."""
    for action in actions[:warm]:
        action()
    told = [[timed(action) for action in actions] for _ in range(scene.rounds)]
    return [median(each) for each in zip(*told, strict=True)]


def endless(scene: Scene, rows: Sequence[Encoded], batch: int, rank: int = 8, slots: int = 1) -> Callable[[], object]:
    """An action that does one update."""
    going = updates(scene, tuned_on(scene, rank, slots), rows, batch, steps=1_000_000)
    return lambda: next(going)


# ---------------------------------------------------------------------------------------------------------- the curves


def examples(scene: Scene) -> dict:
    """An epoch of n examples: seconds, unique tokens, and the straight line through them."""
    counts = scene.some((32, 64, 128, 256, 384, 512))
    told: dict[str, dict] = {}
    for data in ("cls", "chat"):
        rows, tuned = workloads.rows_of(data), tuned_on(scene)

        def epoch(n: int, tuned: Tuned = tuned, rows: list[Encoded] = rows) -> None:
            for _ in updates(scene, tuned, rows[:n], 8, steps=None):
                pass

        seconds = in_turns(scene, [lambda n=n: epoch(n) for n in counts], warm=1)
        unique = [_unique_of_epoch(rows[:n]) for n in counts]
        told[data] = {
            "examples": list(counts),
            "unique_tokens": unique,
            "seconds": seconds,
            "fit": fit(unique, seconds),
        }
    for axis, word in (("examples", "examples"), ("unique_tokens", "unique tokens")):
        lines = [Line(data, list(zip(each[axis], each["seconds"], strict=True))) for data, each in told.items()]
        if axis == "unique_tokens":
            lines += [_fitted(data, each) for data, each in told.items()]
        picture(scene, axis.replace("_", "-"), f"An epoch against its {word}", word, "seconds", lines)
    return told


def _unique_of_epoch(rows: Sequence[Encoded]) -> int:
    order = epoch_order(len(rows), 0, 0)
    return sum(work.unique_tokens([rows[i] for i in order[k : k + 8]]) for k in range(0, len(rows), 8))


def _fitted(data: str, told: dict) -> Line:
    line, last = told["fit"], max(told["unique_tokens"])
    ends = [(x, line["seconds_at_0"] + line["seconds_a_token"] * x) for x in (0, last)]
    return Line(f"{data}: line, r² = {line['r2']:.4f}", ends, dashed=True)


def fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The least-squares line through the points and the share of the variance it explains."""
    slope, start = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (slope * np.asarray(x) + start)
    r2 = 1 - float(rest @ rest) / float(((np.asarray(y) - np.mean(y)) ** 2).sum())
    return {"seconds_a_token": float(slope), "seconds_at_0": float(start), "r2": r2}


def length(scene: Scene) -> dict:
    """The same tokens an update as ever fewer, longer examples."""
    lengths = scene.some((128, 256, 512, 1024, 2048, 4096, 8192))
    total = 8192
    actions = [endless(scene, workloads.prefixed(2 * total // n, n, 0.0), total // n) for n in lengths]
    seconds = in_turns(scene, actions)
    cost = [each / total * 1000 for each in seconds]
    rows = {n: workloads.prefixed(total // n, n, 0.0) for n in lengths}
    shape = workloads.SHAPES["tiny"]
    least = [work.least_flops(shape, "lora", 8, 0, rows[n]) for n in lengths]
    scaled = [cost[0] * each / least[0] for each in least]
    lines = [
        Line("measured", list(zip(lengths, cost, strict=True))),
        Line("least work, to scale", list(zip(lengths, scaled, strict=True)), dashed=True),
    ]
    title = "A token against the length of its example"
    picture(scene, "length", title, "tokens an example", "seconds per 1,000 tokens", lines, log=True)
    return {
        "tokens_an_example": list(lengths),
        "seconds_per_1000_tokens": cost,
        "least_gflop": [f / 1e9 for f in least],
    }


def shared(scene: Scene) -> dict:
    """The same examples with ever more of each the same as in all others."""
    shares, batch, size = scene.some((0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)), 16, 512
    sets = [workloads.prefixed(batch, size, share) for share in shares]
    seconds = in_turns(scene, [endless(scene, rows, batch) for rows in sets])
    speedup = [seconds[0] / each for each in seconds]
    saved = [batch * size / work.unique_tokens(rows) for rows in sets]
    percent = [100 * share for share in shares]
    lines = [
        Line("measured", list(zip(percent, speedup, strict=True))),
        Line("tokens / unique tokens", list(zip(percent, saved, strict=True)), dashed=True),
    ]
    title = "Speed-up by a prefix that 16 examples share"
    picture(scene, "shared", title, "per cent of an example that all share", "times faster than without", lines)
    return {"share": list(shares), "seconds_an_update": seconds, "speedup": speedup, "tokens_over_unique": saved}


def rank(scene: Scene) -> dict:
    """Ever wider adapters."""
    ranks = scene.some((1, 2, 4, 8, 16, 32, 64, 128))
    rows = workloads.rows_of("cls")
    seconds = in_turns(scene, [endless(scene, rows, 8, rank=r) for r in ranks])
    speed = [8 / each for each in seconds]
    lines = [Line("cls", list(zip(ranks, speed, strict=True)))]
    picture(scene, "rank", "Speed against the adapters' rank", "rank", "examples a second", lines, log=True)
    return {"rank": list(ranks), "examples_per_second": speed}


def slots(scene: Scene) -> dict:
    """Ever more adapters in one pass, each with its own examples."""
    counts = scene.some((1, 2, 4, 8, 16))
    rows = workloads.rows_of("chat")
    told = {}
    for batch in (8, 1):
        seconds = in_turns(scene, [endless(scene, rows, batch, slots=n) for n in counts])
        told[f"{batch} an update and slot"] = [n * batch / each for n, each in zip(counts, seconds, strict=True)]
    lines = [Line(name, list(zip(counts, speed, strict=True))) for name, speed in told.items()]
    title = "Speed of all slots together"
    picture(scene, "slots", title, "slots on one base", "examples a second", lines, log=True)
    return {"slots": list(counts), "examples_per_second": told}


CURVES = {"examples": examples, "length": length, "shared": shared, "rank": rank, "slots": slots}


def picture(
    scene: Scene, name: str, title: str, across: str, upward: str, lines: Sequence[Line], log: bool = False
) -> None:
    """Written into the docs, unless the run is a quick one."""
    if not scene.quick:
        (PICTURES / f"scale-{name}.svg").write_text(draw(title, across, upward, lines, log), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(CURVES), choices=list(CURVES))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=None)
    said = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as place:
        room = Path(place)
        model = workloads.make_model(workloads.SHAPES["tiny"], room / "model", positions=POSITIONS)
        scene = Scene(model, room, said.rounds or (1 if said.quick else 3), said.quick)
        for name in said.only:
            started = time.perf_counter()
            told = CURVES[name](scene)
            results[name] = {"machine": machine.facts()} | rounded(told)
            print(f"{name} ({time.perf_counter() - started:.0f} s): {json.dumps(rounded(told))}", flush=True)
            if not said.quick:
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def rounded(told: object) -> object:
    """Four figures of every number, so that a file can be read."""
    if isinstance(told, dict):
        return {name: rounded(each) for name, each in told.items()}
    if isinstance(told, list):
        return [rounded(each) for each in told]
    return float(f"{told:.6g}") if isinstance(told, float) else told


if __name__ == "__main__":
    sys.exit(main())
