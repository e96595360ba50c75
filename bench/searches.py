"""A search of sixteen trials on four tasks, its winner beside the default preset: results/searches.json.

    python bench/searches.py HOME [TASK …]      HOME keeps the runs: an interrupted session goes on

The tasks are those of `verdicts.py`, every trial bounded to UPDATES updates and every test to LIMIT rows; the space is
the method's own. Needs the folder `shared`.
"""

from __future__ import annotations

from pathlib import Path

from verdicts import ROOT, file_of, main, said

UPDATES, LIMIT = 400, 500
RESULTS = ROOT / "bench" / "results" / "searches.json"
TEST = ("n", "difference", "low", "high", "p", "outcome")
TASKS = ("banking77", "snips", "wikisql_groups", "translit_ar_en")


def carry(task: str, home: Path) -> dict:
    """One task: the search, the default alone, and both on the same test rows."""
    file = str(file_of(task, home))
    bounds = ["--set", f"training.max_steps={UPDATES}", "--set", f"evaluation.limit={LIMIT}"]
    found, search_seconds = said(home, "search", file, "--set", f"name={task}", *bounds)
    default, tune_seconds = said(home, "tune", file, "--set", f"name={task}", *bounds)
    compared, _ = said(home, "compare", default["run"], found["search"])  # a search stands for its winner
    return kept(found, default, compared) | {"seconds": {"search": search_seconds, "default": tune_seconds}}


def kept(found: dict, default: dict, compared: dict) -> dict:
    """What came of it, without rows and places."""
    board = found["board"]
    best = next(entry for entry in board["entries"] if entry["number"] == board["best"])
    tests = {name: [{key: test[key] for key in TEST} for test in each] for name, each in compared["tests"].items()}
    return {
        "values": best["values"],
        "validation": [*best["objective"], best["low"], best["high"]],
        "described": board["against"],
        "optimism": board["optimism"]["sentence"],
        "pruned": board["pruned"],
        "importance": board["importance"],
        "winner": found["verdict"],
        "default": default["verdict"],
        "winner against default": tests,
    }


if __name__ == "__main__":
    main(__doc__, carry, TASKS, RESULTS)
