"""Three questions that a loss cannot answer, on text-to-SQL with a very small decoder: results/puzzles.json.

    python bench/puzzles.py [HOME]      HOME keeps the runs, so that an interrupted session goes on (default: .puzzles)

1. Is batch size 1 better than 3? One epoch each, three seeds, the same test rows: is a difference merit or luck?
2. What does a test sample of 300 rows say of the whole test set? Drawn 2,000 times from the answers of one run.
3. Does batch size 1 over-fit? A thousand rows, eight epochs, both batch sizes.

Needs the folder `shared`. Every run is `luthier tune` on the same file, one thread each, one at a time on every core.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from kit.machine import facts

from luthier import runs
from luthier.evaluation import curves, predictions, statistics
from luthier.evaluation.metrics import METRICS
from luthier.evaluation.report import verdict

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "bench" / "results" / "puzzles.json"
SEEDS, BATCHES, SAMPLE, DRAWS = (0, 1, 2), (1, 3), 300, 2000
EXPERIMENT = """\
model: {model}
task: generation
data:
  train: train.jsonl
  validation: validation.jsonl
  test: test.jsonl
  format: input_output
  group_by: context_id
  remove_leaks: true
  overlength: drop
  template: "{{context}}\\n\\n-- Question: {{input}}\\n-- SQL:"
method: lora
training: {{num_epochs: 1, learning_rate: 2.5e-3}}
"""
FEW = {"data.limit": 1000, "training.num_epochs": 8, "evaluation.limit": SAMPLE}


def lay(folder: Path) -> Path:
    """The rows with their table's columns written out, and the experiment file."""
    data = SHARED / "data" / "wikisql_groups"
    contexts = {row["context_id"]: row["context"] for row in _lines(data / "contexts.jsonl.gz")}
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        rows = [{"context": contexts[row["context_id"]], **row} for row in _lines(data / f"{split}.jsonl.gz")]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    file = folder / "experiment.yaml"
    file.write_text(EXPERIMENT.format(model=SHARED / "models" / "stories260k"))
    return file


def _lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def tune(file: Path, name: str, sets: dict[str, object]) -> runs.Run:
    """`luthier tune`, on one thread; a run that is done already is not trained again."""
    home = file.parent / "home"
    command = [sys.executable, "-m", "luthier", "tune", str(file), "--set", f"name={name}"]
    for path, value in sets.items():
        command += ["--set", f"{path}={value}"]
    environment = {**os.environ, "LUTHIER_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (file.parent / f"{name}.log").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=log)
    if done.returncode:
        sys.exit(f"{name} ended with exit code {done.returncode}; see {file.parent / f'{name}.log'}")
    print(f"{name}: done", flush=True)
    run = runs.newest_of_name(home, name)
    assert run is not None
    return run


def told(run: runs.Run) -> dict[str, object]:
    """A run in figures: exact match with its interval, the curve's best point, what was said of it."""
    report = json.loads((run.path / "report.json").read_text())
    events = runs.read_events(run.path)
    curve = curves.from_events(events)
    seconds = sum(event.seconds for event in events if isinstance(event, runs.Stepped))
    return {
        "verdict": report["verdict"],
        "exact_match": report["scores"]["exact_match"],
        "perplexity": report["scores"]["perplexity"],
        "fit": report["fit"],
        "validation": curve.validation,
        "best": curve.best,
        "update_seconds": round(seconds, 1),
    }


def right(run: runs.Run) -> dict[str, predictions.Prediction]:
    """Answers by row."""
    return {p.id: p for p in predictions.side(predictions.read(run.path / "predictions.jsonl"), "tuned")}


def batch_size(of: dict[str, runs.Run]) -> dict[str, object]:
    """Batch size 1 against 3: each seed's paired test, and all seeds together with rows and seeds drawn again."""
    exact = METRICS["exact_match"]
    pairs, values = {}, {batch: [] for batch in BATCHES}
    for seed in SEEDS:
        one, three = (right(of[f"batch{batch}-seed{seed}"]) for batch in BATCHES)
        order = [row for row in one if row in three]
        said = verdict(exact, [one[row] for row in order], [three[row] for row in order], ("batch 1", "batch 3"))
        pairs[seed] = {"sentence": said.sentence, "difference": said.difference, "p": said.p}
        for batch, answers in zip(BATCHES, (one, three), strict=True):
            values[batch].append([exact.row(answers[row]) for row in order])
    rows_BSN = np.array([values[batch] for batch in BATCHES])
    means_BS = rows_BSN.mean(axis=2)
    difference_N = (rows_BSN[0] - rows_BSN[1]).mean(axis=0)
    low, high = statistics.bootstrap(statistics.mean_of(difference_N), len(difference_N))
    between = means_BS[0] - means_BS[1]
    return {
        "pairs": pairs,
        "means": {f"batch{batch}": means_BS[i].tolist() for i, batch in enumerate(BATCHES)},
        "difference": float(between.mean()),
        "interval_from_rows": [low, high],
        "standard_error_from_seeds": float(between.std(ddof=1) / np.sqrt(len(SEEDS))),
    }


def sampling(first: runs.Run, second: runs.Run) -> dict[str, object]:
    """What samples of SAMPLE rows say, where the whole test set is known."""
    exact, one, two = METRICS["exact_match"], right(first), right(second)
    order = [row for row in one if row in two]
    rows_2N = np.array([[exact.row(side[row]) for row in order] for side in (one, two)])
    whole, draw = rows_2N.mean(axis=1), np.random.default_rng(0)
    scores, covered, reversed_ = [], 0, 0
    for _ in range(DRAWS):
        chosen = rows_2N[:, draw.choice(len(order), SAMPLE, replace=False)]
        score, other = chosen.mean(axis=1)
        low, high = statistics.wilson(float(chosen[0].sum()), SAMPLE)
        covered += low <= whole[0] <= high
        reversed_ += (score - other) * (whole[0] - whole[1]) < 0
        scores.append(score)
    low, high = np.quantile(scores, [0.025, 0.975])
    return {
        "rows": len(order),
        "whole": whole.tolist(),
        "middle_95_percent_of_samples": [float(low), float(high)],
        "least_and_most": [min(scores), max(scores)],
        "intervals_that_hold_the_whole": covered / DRAWS,
        "samples_that_turn_the_order": reversed_ / DRAWS,
    }


def main() -> None:
    file = lay(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".puzzles"))
    wanted = {
        f"batch{batch}-seed{seed}": {"training.batch_size": batch, "seed": seed} for seed in SEEDS for batch in BATCHES
    }
    wanted |= {f"few-batch{batch}": {"training.batch_size": batch, **FEW} for batch in BATCHES}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        done = dict(zip(wanted, pool.map(lambda name: tune(file, name, wanted[name]), wanted), strict=True))
    result = {
        "machine": facts(),
        "runs": {name: told(run) for name, run in done.items()},
        "batch_size": batch_size(done),
        "sampling": sampling(done["batch1-seed0"], done["batch3-seed0"]),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: result[name] for name in ("batch_size", "sampling")}, indent=1))


if __name__ == "__main__":
    main()
