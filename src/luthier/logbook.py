"""What whoever carries a run owes its folder: with what it was carried, what was said, how it ended.

Lives here: `environment.json` with the choices that every attempt keeps, notes, a training's events as they come, the
ways a run can end. Does not live here: the work (`worker.py`, `searching/`), the files' forms (`runs.py`, `events.py`).
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import disk, hardware, ownership, redaction, runs
from luthier.disk import write_json
from luthier.errors import LuthierError, TrainingError, in_words
from luthier.runs import Evaluated, Event, Finding, Finished, Noted, Run, Started

if TYPE_CHECKING:
    from luthier.models.methods import Tuned
    from luthier.spec import Training
    from luthier.workbench import Bench

ENVIRONMENT = "environment.json"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")

Problem = dict[str, str | None]
"""What ended a run: `kind`, `message`, `where`, `hint`, as run.json keeps it."""


class Stopped(Exception):
    """Somebody asked the run to end, and all that is finished stands on disk."""


# --- how a run ends ------------------------------------------------------------------------------------------------
def close(run: Run, end: Finished, error: Problem | None, facts: Mapping[str, Any] | None = None) -> None:
    """How the run has ended, into its folder: first the event, then the state that follows from it."""
    runs.append(run.path, replace(end, time=time.time()))
    ownership.withdraw_stop(run.path)
    runs.update(run.path, {"state": end.state, "finished": time.time(), "error": error, "facts": dict(facts or {})})


def ended(run: Run, problem: Exception) -> tuple[Finished, Problem | None]:
    """The end that an exception means, and the error to keep: none where somebody asked to stop."""
    if isinstance(problem, Stopped):
        return finished(run, "stopped", "asked to stop; the same command continues"), None
    if isinstance(problem, LuthierError):
        return finished(run, "failed", problem.message), in_words(problem)
    print(redaction.strike("".join(traceback.format_exception(problem))), file=sys.stderr, flush=True)
    told = _unforeseen(run, problem)
    return finished(run, "failed", told["message"] or ""), told


def failure(run: Run, end: Finished) -> Problem | None:
    """The error to keep of a training that ended by itself."""
    if end.state != "failed":
        return None
    return in_words(TrainingError(end.reason, str(run.path)))


def finished(run: Run, state: runs.State, reason: str) -> Finished:
    told = runs.read_events(run.path)
    return Finished(run.id, told[-1].step if told else 0, time.time(), state, reason)


def _unforeseen(run: Run, defect: Exception) -> Problem:
    """Not an error we word: either the machine is too small, or we have a defect."""
    words = redaction.strike(f"{type(defect).__name__}: {defect}".splitlines()[0])
    log = str(_log(run))
    if isinstance(defect, MemoryError) or "OutOfMemory" in type(defect).__name__ or "can't allocate memory" in words:
        hint = "a smaller `training.max_seq_length` or `training.batch_size`, `gradient_checkpointing: true`, or qlora"
        return in_words(TrainingError(f"not enough memory: {words}", log, hint))
    if isinstance(defect, OSError) and defect.errno in disk.REFUSALS:
        hint = "make room, or look at the disk, and run the same command again: what is finished stands"
        return in_words(TrainingError(f"the disk refuses: {words}", str(run.path), hint))
    hint = "this is a defect of luthier, not of your input: please report it with this file"
    return in_words(TrainingError(words, log, hint))


def _log(run: Run) -> Path:
    """What the process that carries the run writes; that of a trial, which a search carries, speaks in its search's."""
    own, search = run.path / runs.LOG, run.facts.get("search")
    return own if search is None or own.is_file() else run.path.parent / search / runs.LOG


# --- what was said -------------------------------------------------------------------------------------------------
def note(run: Run, kind: str, message: str, rows: tuple[str, ...] = (), step: int = 0) -> None:
    runs.append(run.path, Noted(run.id, step, time.time(), kind, message, rows))


def heed(run: Run, bench: Bench, findings: Iterable[Finding]) -> tuple[str, ...]:
    """Note what the gate finds and what the length policy did; gives the findings that a person has accepted, in words.

    Raises DataError where the gate refuses.
    """
    from luthier.data import gate, rows

    findings, accept = tuple(findings), bench.experiment.data.accept
    accepted = [finding for finding in findings if gate.is_accepted(finding, accept)]
    for finding in findings:
        said = " (accepted: data.accept)" if finding in accepted else ""
        note(run, finding.code, finding.message + said, finding.rows)
    for remark in bench.remarks:
        note(run, "data", remark)
    gate.refuse(findings, accept)
    longest = int(rows.trained(bench.train).max())
    codes = sorted({finding.code for finding in accepted})
    runs.update(run.path, {"facts": {"longest_answer": longest, "accepted": codes}})
    return tuple(f"accepted by a person: {gate.words(finding)}" for finding in accepted)


@dataclass(slots=True)
class Diary:
    """A training's events, into the run's folder as they come; over-fitting is noted once."""

    run: Run
    told: list[Event] = field(default_factory=list)
    warned: bool = False

    def hear(self, event: Event) -> None:
        from luthier.evaluation import curves

        runs.append(self.run.path, event)
        if isinstance(event, Started):
            self.told = runs.read_events(self.run.path)  # without what is now done again
        else:
            self.told.append(event)
        if not isinstance(event, Evaluated) or self.warned:
            return
        if said := curves.overfitting(curves.from_events(self.told)):
            note(self.run, "overfitting", said, step=event.step)
            self.warned = True


# --- what is chosen once a run ----------------------------------------------------------------------------------------
def choose(run: Run, threads: int, processes: int = 1) -> None:
    """Compute with so many threads, and write down with what this attempt is made.

    What is measured and decided once a run stands in environment.json under `choices`, and every later attempt keeps
    it, because equal choices give equal bits: `threads`; `budget`, the stored tokens of a micro-batch; `product`.
    """
    import torch

    torch.set_num_threads(threads)
    kept = choices(run) | {"threads": threads}
    write_json(run.path / ENVIRONMENT, _environment() | {"processes": processes, "choices": kept})


def threads(run: Run, neighbours: hardware.Neighbours) -> int:
    """How many threads earlier attempts computed with, else one an idle core. OMP_NUM_THREADS (`threads` in
    luthier.toml) is somebody's wish and wins."""
    kept = choices(run)
    return neighbours.threads() if "OMP_NUM_THREADS" in os.environ or "threads" not in kept else int(kept["threads"])


def fitted(run: Run, bench: Bench, tuned: Tuned) -> tuple[Training, int, str]:
    """How the run fits into memory, the budget of a micro-batch, and what multiplies: decided by the owner, for all."""
    from luthier import workbench
    from luthier.models import lora

    fit, asked = workbench.fit(bench), bench.experiment.training.gradient_checkpointing
    if fit.training.gradient_checkpointing and asked is None:
        note(run, "memory", "activations are recomputed: they would not fit into memory (`gradient_checkpointing`)")
    budget = int(choices(run).get("budget") or fit.budget)
    product = choices(run).get("product") or lora.measure_product(tuned.multiplied(), rows=1024)
    keep_choices(run, budget=budget, product=product)
    return fit.training, budget, product


def choices(run: Run) -> dict[str, Any]:
    """What earlier attempts chose; nothing in a new run."""
    try:
        return dict(json.loads((run.path / ENVIRONMENT).read_text(encoding="utf-8")).get("choices", {}))
    except FileNotFoundError:
        return {}


def keep_choices(run: Run, **chosen: Any) -> None:
    """Further choices for every later attempt to keep."""
    written = json.loads((run.path / ENVIRONMENT).read_text(encoding="utf-8"))
    write_json(run.path / ENVIRONMENT, written | {"choices": written["choices"] | chosen})


def _environment() -> dict[str, Any]:
    """What the figures of this run were made with."""
    import torch

    from luthier import __version__

    machine = hardware.machine()
    return {
        "luthier": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "device": machine.device,
        "devices": machine.count,
        "name": machine.name,
        "cores": machine.cores,
        "threads": torch.get_num_threads(),
        "memory_bytes": machine.memory_bytes,
        "dtype": machine.dtype,
    }
