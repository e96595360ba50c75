"""Folders of a search and its trials, written as a search's processes would, without a model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier import ownership, runs
from luthier.runs import Evaluated, Finished, Noted, Run, Started, State, Stepped

SPACE = "{training.learning_rate: {log: [0.0001, 0.1]}, method.rank: [4, 8, 16], method.dropout: [0, 0.1]}"
FACTS = {"model": "/bases/tiny", "family": "causal", "method": "lora", "task": "classification", "dataset": "d0"}
STEPS = 40


def search(
    home: Path, name: str = "colours", trials: int = 6, objective: str = "loss", state: State = "running"
) -> Run:
    """A search of `trials` trials that this process carries, if it runs."""
    text = f"model: /bases/tiny\ndata: d.jsonl\nsearch: {{space: {SPACE}, trials: {trials}, objective: {objective}}}\n"
    facts = FACTS | {"kind": "search", "notes": [], "searched": {}, "verdict": None}
    run = runs.create(home, name, "0", {"experiment.yaml": text, "resolved.yaml": text}, facts)
    return _state(run, state)


def trial(
    search: Run,
    number: int,
    state: State,
    losses: Sequence[float] = (),
    values: Mapping[str, Any] | None = None,
    by: str = "sampler",
    steps: int = STEPS,
) -> Run:
    """A trial with an evaluation every fifth of its updates."""
    values = values or {"training.learning_rate": 0.0031623 * (number + 1), "method.rank": 8, "method.dropout": 0.1}
    facts = FACTS | {"search": search.id, "number": number, "values": dict(values), "by": by, "notes": []}
    run = runs.create(
        search.path.parents[1], f"{search.name}.{number:03d}", "0", {}, facts, f"{search.id}.{number:03d}"
    )
    if state != "queued":
        runs.append(run.path, Started(run.id, 0, time.time(), steps, 160, 4096))
    for turn, loss in enumerate(losses, 1):
        tell(run, turn, loss, best=loss == min(losses[:turn]), steps=steps)
    if state in ("done", "pruned", "failed"):
        runs.append(run.path, Finished(run.id, steps, time.time(), state, state))
    return _state(run, state)


def tell(run: Run, turn: int, loss: float, best: bool = True, steps: int = STEPS) -> None:
    """The updates up to the evaluation `turn`, of five, and that evaluation."""
    begin, end = steps * (turn - 1) // 5, steps * turn // 5
    for step in range(begin + 1, end + 1):
        runs.append(run.path, Stepped(run.id, step, time.time(), step / steps, loss, 1e-3, 1.0, 100, 0.01))
    runs.append(run.path, Evaluated(run.id, end, time.time(), {"loss": loss, "exact_match": 1 - loss / 4}, best))


def note(search: Run, kind: str, message: str) -> None:
    runs.append(search.path, Noted(search.id, 0, time.time(), kind, message))


def _state(run: Run, state: State) -> Run:
    holder = ownership.this_process() if state == "running" else None
    return runs.update(run.path, {"state": state, "started": time.time() - 60, "owner": holder})


def end(search: Run, state: State = "done") -> Run:
    """The search is at rest."""
    runs.append(search.path, Finished(search.id, 0, time.time(), state, "trial 001 is the best of 6"))
    return runs.update(search.path, {"state": state, "finished": time.time(), "owner": None})


def wave(home: Path) -> Run:
    """A search half-way: two done, one of them the best, one pruned, one failed, one at work."""
    run = search(home, trials=8)
    trial(run, 0, "done", (2.0, 1.5, 1.2, 1.1, 1.0))
    trial(run, 1, "done", (1.8, 1.0, 0.6, 0.4, 0.5))
    trial(run, 2, "pruned", (2.5, 2.4))
    trial(run, 3, "failed", (float("nan"),))
    trial(run, 4, "running", (1.9, 1.1, 0.7))
    trial(run, 5, "queued")
    return run
