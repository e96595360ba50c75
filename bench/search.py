"""A search of many trials, side by side with the same trials one after another under Optuna; and where that comes from.

    python bench/search.py                     every case; bench/results/search.json keeps the newest of each
    python bench/search.py --only cls/tiny     cases whose name begins with one of these words
    python bench/search.py --steps 2           so many updates a trial instead of the case's own
    python bench/search.py --quick             two updates, the smallest case of each kind, nothing kept

**Cases.** `DATA/SHAPE/METHOD/TRIALS`: ranks (or prompt lengths) × learning rates, every combination once. luthier's
search is `Studio.search` in a fresh process, with the processes it starts: its grid, nothing pruned. The peer's is
Optuna with the same values and TRL's `SFTTrainer` (soft prompts: a loop over PEFT) in a fresh process, one trial after
another, threads on all cores. `…/pruned` is luthier's search again with ASHA, evaluated after every update, against the
same peer. `parts/…`: luthier against itself: every trial a run of its own; a search of one trial at a time; of two; of
as many as measuring finds best. `growth/…`: N adapters trained at once in one process: seconds an update of all, peak
memory.

**What is equal.** Tokens, their order, base, start weights, updates, AdamW without decay, clipping at 1, constant
rates, float32; one evaluation on the same validation rows at the end. The loss of every update and the validation loss
of every trial are compared: beyond 1e-3 the case fails and the exit code is 1 (where trials are pruned the best
validation losses are compared, 1 %). Both sides do the whole work; nothing is extrapolated.

**Seconds.** `whole`: from the start of the process to its end: for luthier with the winner's test and the report, which
the peer has not. `trials`: until the last trial has ended. `training`: without start-up, from the first trial's first
update (luthier: after probing what pays) to the last one's end; the peer's from the begin of the first trial, when all
is imported, on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kit import machine, searches, workloads
from kit.picture import Line, draw
from kit.searches import Workload
from train import micro_of

from luthier import runs, spec, workbench
from luthier.runs import Evaluated, Finished, Run, Started, Stepped

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURES = ROOT / "bench" / "results" / "search.json", ROOT / "docs" / "concepts"
PEER = ROOT / "bench" / "peers" / "one_after_another.py"
MOST_DIFFERENCE, WORSE = 1e-3, 0.01
SLOTS = (1, 2, 4, 8, 16, 32, 64)
PLAIN = {"pruner": "none"}


@dataclass(frozen=True, slots=True)
class Case:
    """`kind`: search (beside the peer), parts, growth. `pruned`: the search is made once more with ASHA."""

    work: Workload
    kind: str = "search"
    pruned: bool = False

    @property
    def name(self) -> str:
        work = self.work
        plain = f"{work.data}/{work.shape}/{work.method}"
        return {
            "search": f"{plain}/{work.trials}" + "/pruned" * self.pruned,
            "parts": f"parts/{plain}/{work.trials}",
            "growth": f"growth/{plain}",
        }[self.kind]


def _work(data: str, shape: str, method: str, trials: int, steps: int, evaluations: int = 1) -> Workload:
    return Workload(data, shape, method, trials, steps, steps // evaluations)


CASES = (
    Case(_work("cls", "tiny", "lora", 8, 24)),
    Case(_work("sql+grouped", "tiny", "lora", 8, 8)),
    Case(_work("sql", "tiny", "lora", 8, 6)),
    Case(_work("cls", "mid", "lora", 8, 4)),
    Case(_work("cls", "tiny", "lora", 16, 12, 6), pruned=True),
    Case(_work("cls", "tiny", "prompt", 8, 8)),
    Case(_work("cls", "tiny", "lora", 8, 10), "parts"),
    Case(_work("cls", "tiny", "lora", 16, 2), "growth"),
)
QUICK = ("cls/tiny/lora/8", "cls/tiny/prompt/8", "parts/cls/tiny/lora/8")

_SEARCH = """
import sys, time
from pathlib import Path
from luthier import runs
from luthier.studio import Studio
run = Studio(Path(sys.argv[1])).search(sys.argv[2])
while run.state in ("queued", "running"):
    time.sleep(0.05)
    run = runs.load(run.path)
print(run.path)
sys.exit(run.state != "done")
"""
_RUN = _SEARCH.replace(".search(", ".tune(")


# --- one search, one peer --------------------------------------------------------------------------------------------
def searched(work: Workload, folder: Path, search: dict) -> tuple[dict, list[dict], Run]:
    """luthier's search in a home of its own: its seconds, its trials, its run."""
    home = Path(tempfile.mkdtemp(dir=folder, prefix="home"))
    file = home / "bench.yaml"
    file.write_text(json.dumps(work.experiment(folder, search)))  # YAML's subset
    run, began, whole = _fresh(_SEARCH, home, file)
    trials = [told(each) for each in _trials(run)]
    started = min(trial["started"] for trial in trials)
    ended = max(trial["ended"] for trial in trials)
    seconds = {"whole": whole, "trials": ended - began, "training": ended - started}
    placements = [_placement(each) for each in run.facts.get("placements", {}).values()]
    return {"seconds": _rounded(seconds), "placed": placements[0] if placements else None}, trials, run


def _fresh(program: str, home: Path, file: Path) -> tuple[Run, float, float]:
    """The run that a program in a fresh process has carried to its end; when it began, seconds that it took."""
    began, clock = time.time(), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, home, file], stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - clock
    if done.returncode:
        logs = [path.read_text(errors="replace")[-2000:] for path in home.glob(f"runs/*/{runs.LOG}")]
        sys.exit("\n".join(["the search did not end well", *logs]))
    return runs.load(Path(done.stdout.split()[-1])), began, seconds


def _trials(search: Run) -> list[Run]:
    return [runs.load(path) for path in sorted(search.path.parent.glob(f"{search.id}.[0-9]*"))]


def _placement(said: dict) -> dict:
    return {name: said[name] for name in ("processes", "slots", "threads", "figures") if name in said}


def told(run: Run) -> dict:
    """What a trial's events say: values, losses, when it began and ended. The validation loss is that of what it
    keeps."""
    found = {"values": run.facts.get("values", {}), "state": run.state, "losses": []}
    for event in runs.read_events(run.path):
        match event:
            case Started(time=when):
                found.setdefault("started", when)
            case Stepped(loss=loss):
                found["losses"].append(loss)
            case Evaluated(scores=scores, best=True):
                found["validation_loss"] = scores["loss"]
            case Finished(time=when):
                found.setdefault("ended", when)
    return found


def beside(work: Workload, folder: Path, search: Run) -> dict:
    """The same trials by the peer, on the tokens that luthier's search trained."""
    bench = workbench.of_run(_trials(search)[0])
    job = searches.for_peers(work, folder, bench.train, bench.validation, micro_of(bench.train))
    (folder / "search.json").write_text(json.dumps(job))
    engine, out = {"lora": "trl", "prompt": "peft"}[work.method], folder / "out.json"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    clock = time.perf_counter()
    done = subprocess.run(
        [sys.executable, PEER, engine, folder / "search.json", out], capture_output=True, text=True, env=environment
    )
    whole = time.perf_counter() - clock
    if done.returncode:
        sys.exit(f"{engine} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    answer = json.loads(out.read_text())
    seconds = {"whole": whole, "trials": whole, "training": answer["seconds"]}
    return {"engine": engine, "seconds": _rounded(seconds), "peak_mb": round(answer["peak_bytes"] / 1e6)} | {
        "trials": answer["trials"]
    }


# --- cases -----------------------------------------------------------------------------------------------------------
def side_by_side(case: Case, folder: Path) -> dict:
    """The search beside the peer; with `pruned` the search once more, which may leave trials."""
    work = case.work
    plain = replace(work, evaluate_every=work.steps)
    ours, trials, run = searched(plain, folder, PLAIN)
    peer = beside(plain, folder, run)
    theirs = {_key(trial): trial for trial in peer.pop("trials")}
    off = max(_difference(trial, theirs[_key(trial)]) for trial in trials)
    best = min(trial["validation_loss"] for trial in theirs.values())
    result = {
        "steps": work.steps, "luthier": ours, "peer": peer, "best_validation_loss": best, "loss_difference": off,
        "equal": off < MOST_DIFFERENCE and len(trials) == len(theirs) == work.trials,
        "times_faster": _ratios(peer, ours),
    }  # fmt: skip
    if case.pruned:
        pruned, left, _ = searched(work, folder, {"pruner": "asha"})
        found = min(trial["validation_loss"] for trial in left if trial["state"] == "done")
        worse = found / best - 1
        result["pruned"] = pruned | {
            "trials_pruned": sum(trial["state"] == "pruned" for trial in left),
            "updates": sum(len(trial["losses"]) for trial in left),
            "updates_unpruned": sum(len(trial["losses"]) for trial in trials),
            "best_validation_loss": found, "worse_by": worse, "times_faster": _ratios(peer, pruned),
        }  # fmt: skip
        result["equal"] &= worse <= WORSE
    return result


def _key(trial: dict) -> str:
    return json.dumps(trial["values"], sort_keys=True)


def _difference(ours: dict, theirs: dict) -> float:
    """The largest difference of any loss of a trial."""
    pairs = zip(ours["losses"], theirs["losses"], strict=True)
    return max(abs(ours["validation_loss"] - theirs["validation_loss"]), *(abs(a - b) for a, b in pairs))


def _ratios(peer: dict, ours: dict) -> dict[str, float]:
    return {name: round(peer["seconds"][name] / seconds, 2) for name, seconds in ours["seconds"].items()}


def parts(case: Case, folder: Path) -> dict:
    """Where the ratio comes from: luthier's own ways to train the same trials, each step taking one thing more."""
    work = case.work
    home, seconds, losses = folder / "runs", 0.0, []
    home.mkdir()
    for number, values in enumerate(work.values()):
        file = home / f"trial{number}.yaml"
        described = spec.from_mapping(work.experiment(folder, PLAIN) | {"name": f"trial{number}"})
        sets = ["search=null", *(f"{path}={value}" for path, value in values.items())]
        file.write_text(spec.dump(spec.changed(described, sets)))
        run, _, took = _fresh(_RUN, home, file)
        seconds += took
        losses.append(told(run)["validation_loss"])
    ways = {"runs of their own": {"seconds": _rounded({"whole": seconds}), "best_validation_loss": min(losses)}}
    for name, at_once in (("one at a time", 1), ("two at once", 2), ("as many as pay", None)):
        found, trials, _ = searched(work, folder, PLAIN | ({"at_once": at_once} if at_once else {}))
        ways[name] = found | {"best_validation_loss": min(trial["validation_loss"] for trial in trials)}
    best = [way["best_validation_loss"] for way in ways.values()]
    alone, one, two, many = (way["seconds"] for way in ways.values())
    ratios = {
        "one process, one base, the best alone is tested": alone["whole"] / one["whole"],
        "two processes": one["training"] / two["training"],
        "slots and what they share": two["training"] / many["training"],
        "all": alone["whole"] / many["whole"],
    }
    return {"steps": work.steps, "ways": ways, "ratios": _rounded(ratios), "equal": max(best) - min(best) < 1e-3}


def growth(case: Case, folder: Path) -> dict:
    """Seconds an update of all and peak memory over what the imports took, for N adapters in one process; and the line
    through 1 and the most."""
    found = {}
    for count in SLOTS:
        command = [sys.executable, __file__, "--slots", str(count), str(folder / "model"), case.work.data]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[str(count)] = json.loads(done.stdout.splitlines()[-1])
        print(f"  {count:3d} at once: {found[str(count)]}", flush=True)
    first, last = found[str(SLOTS[0])], found[str(SLOTS[-1])]
    each = {name: (last[name] - first[name]) / (SLOTS[-1] - SLOTS[0]) for name in ("seconds", "peak_mb")}
    return {"batch": searches.BATCH, "slots": found, "each_more": _rounded(each, 4), "equal": True}


def grown(count: int, model: Path, data: str) -> dict:
    """N adapters of rank 8 in this process, which must be fresh: three updates of all, the first not timed."""
    import torch

    from luthier.models import base
    from luthier.models.methods import attach
    from luthier.train.loop import Job, train

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    before, rows = _memory("VmRSS"), workloads.rows_of(data, searches.SEED)
    method = spec.Lora(rank=8, alpha=16, dropout=0.0, target_modules=("all-linear",))
    tuned = attach(base.load(spec.Model(name=str(model)), method), [method] * count, range(count))
    training = spec.Training(
        batch_size=searches.BATCH, accumulate_steps=1, num_epochs=1, max_steps=3, learning_rate=1e-3,
        schedule="constant", warmup=0.0, weight_decay=0.0, gradient_checkpointing=False, save_every=1_000_000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as room:
        jobs = [Job(str(i), training, i, rows, [], Path(room) / str(i)) for i in range(count)]
        times = [(event.step, time.perf_counter()) for event in train(tuned, jobs) if isinstance(event, Stepped)]
    first, last = (max(when for step, when in times if step == number) for number in (1, 3))
    return {"seconds": round((last - first) / 2, 3), "peak_mb": round((_memory("VmHWM") - before) / 1e6)}


def _memory(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def pictures(result: dict) -> None:
    """The curves of `growth`, with the line from 1 to the most."""
    points = {int(count): found for count, found in result["slots"].items()}
    for name, key, title, unit in (
        ("search-seconds", "seconds", "One update of N trials at once", "seconds"),
        ("search-memory", "peak_mb", "Memory of N trials at once, one process", "MB over the imports"),
    ):
        ends = [(count, points[count][key]) for count in (min(points), max(points))]
        lines = [Line("measured", [(count, found[key]) for count, found in points.items()]), Line("a line", ends, True)]
        (PICTURES / f"{name}.svg").write_text(draw(title, "trials at once", unit, lines), encoding="utf-8")


# --- telling ---------------------------------------------------------------------------------------------------------
def _rounded(figures: dict[str, float], digits: int = 2) -> dict[str, float]:
    return {name: round(value, digits) for name, value in figures.items()}


def _line(who: str, figures: dict[str, float], unit: str) -> str:
    return f"  {who:22}" + "".join(f"{what} {figure:8.1f} {unit}   " for what, figure in figures.items())


def show(name: str, result: dict) -> None:
    print(f"\n{name}")
    if "peer" in result:
        for who, side in (("luthier", result["luthier"]), (result["peer"]["engine"], result["peer"])):
            print(_line(who, side["seconds"], "s"))
        print(
            f"  {'luthier faster':22}" + "".join(f"{what} {r:8.1f} ×   " for what, r in result["times_faster"].items())
        )
        print(f"  losses off by {result['loss_difference']:.0e}; placed {result['luthier']['placed']}")
    if "pruned" in result:
        pruned = result["pruned"]
        print(_line("faster with pruning", pruned["times_faster"], "×"))
        print(f"  {pruned['trials_pruned']} pruned, {pruned['updates']} of {pruned['updates_unpruned']} updates made")
    for way, side in result.get("ways", {}).items():
        print(_line(way, side["seconds"], "s"))
    for why, ratio in result.get("ratios", {}).items():
        print(f"  {ratio:6.2f} × {why}")
    if not result["equal"]:
        print("  LOSSES DIFFER")
    sys.stdout.flush()


def measure(case: Case) -> dict:
    kinds: dict[str, Callable[[Case, Path], dict]] = {"search": side_by_side, "parts": parts, "growth": growth}
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as place:
        searches.write(case.work, Path(place))
        return {"machine": machine.facts()} | kinds[case.kind](case, Path(place))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--slots", nargs=3, default=None, metavar=("N", "MODEL", "DATA"), help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.slots:
        count, model, data = said.slots
        print(json.dumps(grown(int(count), Path(model), data)))
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    equal, steps = True, said.steps or (2 if said.quick else None)
    for case in CASES:
        if not case.name.startswith(tuple(said.only)) or (said.quick and case.name not in QUICK):
            continue
        if steps:
            case = replace(case, work=replace(case.work, steps=steps, evaluate_every=1))
        result = measure(case)
        show(case.name, result)
        equal &= result["equal"]
        if not said.quick:
            known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            RESULTS.write_text(json.dumps(known | {case.name: result}, indent=1) + "\n")
            if case.kind == "growth":
                pictures(result)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
