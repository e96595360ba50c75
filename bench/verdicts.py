"""Six tasks through `tune`, `evaluate`, `ladder` and `compare`, as a user would: results/verdicts.json.

    python bench/verdicts.py HOME [TASK …]      HOME keeps runs and reports: an interrupted session goes on

Every tuned rung is bounded to UPDATES updates and every test to LIMIT rows (`evaluate` takes all of validation), so
that all six fit into an hour of one core; what more training gives is not the question here. Needs the folder `shared`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from kit.machine import facts
from puzzles import lay

from examples import ROOT, encoder_folder

SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "bench" / "results" / "verdicts.json"
UPDATES, LIMIT = 200, 300
STORIES, NAMES = SHARED / "models" / "stories260k", SHARED / "models" / "translit-ar-en"
HEAD = """\
model: {model}
task: {task}
data:
  train: {data}/train.jsonl.gz
  validation: {data}/validation.jsonl.gz
  test: {data}/test.jsonl.gz
  format: input_output
  remove_leaks: true
"""
TASKS = {  # model, task, what else the file says
    "banking77": (encoder_folder, "classification", "  columns: {output: label}\n"),
    "snips": (STORIES, "classification", '  columns: {output: label}\n  template: "Command: {input}\\nIntent:"\n'),
    "wikisql_groups": (STORIES, "generation", ""),
    "translit_ar_en": (NAMES, "translation", "evaluation: {metrics: [exact_match, chrf]}\n"),
    "nsmc_ko": (
        STORIES,
        "classification",
        '  group_by: movie\n  template: "리뷰: {input}\\n감정:"\n'
        "evaluation: {metrics: [accuracy, macro_f1, mcc, ece]}\n",
    ),
    "tanaka_ja_en": (
        STORIES,
        "translation",
        '  template: "日本語: {input}\\n英語:"\nevaluation: {metrics: [chrf, bleu, rougeL, exact_match]}\n',
    ),
}


def file_of(task: str, home: Path) -> Path:
    """The experiment file of a task, written beside the home folder's runs."""
    if task == "wikisql_groups":
        return lay(home / task)
    folder, (model, kind, more) = home / task, TASKS[task]
    folder.mkdir(parents=True, exist_ok=True)
    text = HEAD.format(model=model() if callable(model) else model, task=kind, data=SHARED / "data" / task)
    (folder / "experiment.yaml").write_text(text + more, encoding="utf-8")
    return folder / "experiment.yaml"


def said(home: Path, verb: str, *words: str) -> tuple[dict, float]:
    """What `luthier VERB WORDS --json` says, and its seconds."""
    environment = {**os.environ, "LUTHIER_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    command = [sys.executable, "-m", "luthier", verb, *words, "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command[2:])} ended with exit code {done.returncode}")
    seconds = round(time.perf_counter() - began, 1)
    lines = done.stdout.splitlines()  # of verbs that say events, the last has what came of it
    return json.loads(lines[-1] if lines[-1].startswith("{") else done.stdout), seconds


def carry(task: str, home: Path) -> dict:
    """One task through all four verbs."""
    file, (_, kind, _) = file_of(task, home), TASKS[task]
    bounds = ["--set", f"training.max_steps={UPDATES}", "--set", f"evaluation.limit={LIMIT}"]
    tuned, tune_seconds = said(home, "tune", str(file), "--set", f"name={task}", *bounds)
    other = str(file.parent / "validation.jsonl") if task == "wikisql_groups" else None
    other = other or str(SHARED / "data" / task / "validation.jsonl.gz")
    judged, evaluate_seconds = said(home, "evaluate", tuned["run"], "--data", other)
    climbed, ladder_seconds = said(home, "ladder", str(file), "--set", f"name={task}", *bounds)
    rungs = [rung["run"] for rung in climbed["rungs"] if rung.get("run")]
    compared, compare_seconds = said(home, "compare", tuned["run"], *rungs)
    return {
        "task": kind,
        "tune": tuned["verdict"],
        "evaluate": judged["verdict"],
        "ladder": climbed["answer"],
        "rungs": {rung["name"]: rung.get("scores") for rung in climbed["rungs"]},
        "choices": {rung["name"]: rung["choice"] for rung in climbed["rungs"] if rung.get("choice")},
        "compare": {name: [test["sentence"] for test in each] for name, each in compared["tests"].items()},
        "seconds": {
            "tune": tune_seconds,
            "evaluate": evaluate_seconds,
            "ladder": ladder_seconds,
            "compare": compare_seconds,
        },
    }


def main(how: str | None, each: Callable[[str, Path], dict], tasks: Iterable[str], into: Path) -> None:
    """Tasks named on the command line (default: `tasks`), one after another; `into` keeps the newest of each."""
    if len(sys.argv) < 2:
        sys.exit(how)
    for task in sys.argv[2:] or tasks:
        told = each(task, Path(sys.argv[1]).resolve())
        results = json.loads(into.read_text()) if into.exists() else {}
        into.write_text(json.dumps(results | {"machine": facts(), task: told}, indent=1, ensure_ascii=False) + "\n")
        print(f"{task}: {told['seconds']}", flush=True)


if __name__ == "__main__":
    main(__doc__, carry, TASKS, RESULTS)
