"""Take one run and carry it: data → base → train → evaluate → verdict. `python -m luthier.worker RUN_DIR`.

Lives here: the order of a run's work, and the process that does it. Does not live here: the parts (`workbench.py`), the
work itself (`data`, `models`, `train`, `evaluation`), starting this process (`engines.py`).

A run may be ended at any moment and carried again: each step finds what an earlier attempt has finished.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import disk, ownership, redaction, runs
from luthier.disk import write_json
from luthier.errors import LuthierError, TrainingError
from luthier.runs import Evaluated, Finished, Noted, Run

if TYPE_CHECKING:
    from luthier.assessment import Exam
    from luthier.evaluation.predictions import Answerer
    from luthier.models.methods import Tuned
    from luthier.workbench import Bench

Stop = Callable[[], bool]
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")


class Stopped(Exception):
    """Somebody asked the run to end, and all that is finished stands on disk."""


def main() -> int:
    """The process: SIGTERM and SIGINT ask it to save and end. Exit code 0 if the run is done or was stopped, else 1."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    return work(Path(sys.argv[1]).resolve(), asked.is_set)


def work(path: Path, stop: Stop) -> int:
    """Own the run in folder `path`, carry it, write how it ended. A wish in the folder stops it as a signal does."""
    try:
        with runs.owned(path):
            return _to_the_end(runs.load(path), lambda: stop() or ownership.stop_asked(path))
    except (LuthierError, OSError) as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1


def _to_the_end(run: Run, stop: Stop) -> int:
    """Every way a run can end, in its folder: first the event, then the state that follows from it."""
    error: dict[str, str | None] | None = None
    try:
        end = carry(run, stop)
        if end.state == "failed":
            error = {"kind": "TrainingError", "message": end.reason, "where": str(run.path), "hint": None}
    except Stopped:
        end = _finished(run, "stopped", "asked to stop; the same command continues")
    except LuthierError as problem:
        error = {"kind": type(problem).__name__, "message": problem.message}
        error |= {"where": problem.where, "hint": problem.hint}
        end = _finished(run, "failed", problem.message)
    except Exception as defect:
        print(redaction.strike(traceback.format_exc()), file=sys.stderr, flush=True)
        error = _unforeseen(run, defect)
        end = _finished(run, "failed", error["message"] or "")
    runs.append(run.path, replace(end, time=time.time()))
    ownership.withdraw_stop(run.path)
    runs.update(run.path, {"state": end.state, "finished": time.time(), "error": error})
    return 0 if end.state in ("done", "stopped") else 1


def _unforeseen(run: Run, defect: Exception) -> dict[str, str | None]:
    """Not an error we word: either the machine is too small, or we have a defect."""
    words = redaction.strike(f"{type(defect).__name__}: {defect}".splitlines()[0])
    log = str(run.path / runs.LOG)
    if isinstance(defect, MemoryError) or "OutOfMemory" in type(defect).__name__ or "can't allocate memory" in words:
        hint = "a smaller `training.max_seq_length` or `training.batch_size`, `gradient_checkpointing: true`, or qlora"
        return {"kind": "TrainingError", "message": f"not enough memory: {words}", "where": log, "hint": hint}
    if isinstance(defect, OSError) and defect.errno in disk.REFUSALS:
        hint = "make room, or look at the disk, and run the same command again: what is finished stands"
        return {"kind": "TrainingError", "message": f"the disk refuses: {words}", "where": str(run.path), "hint": hint}
    hint = "this is a defect of luthier, not of your input: please report it with this file"
    return {"kind": "TrainingError", "message": words, "where": log, "hint": hint}


def _finished(run: Run, state: runs.State, reason: str) -> Finished:
    told = runs.read_events(run.path)
    return Finished(run.id, told[-1].step if told else 0, time.time(), state, reason)


def carry(run: Run, stop: Stop) -> Finished:
    """All of a run's work. Raises LuthierError where it cannot go on, Stopped where it was asked to end."""
    if ownership.stop_asked(run.path):  # it was stopped while this process was starting
        raise Stopped
    _note(run, "progress", "loading the base")
    from luthier import assessment, workbench  # heavy from here on: the run is owned already
    from luthier.data import gate
    from luthier.models import adapters, methods

    _share_cores()
    write_json(run.path / "environment.json", _environment())
    bench = workbench.of_run(run)
    for finding in bench.findings:
        _note(run, finding.code, finding.message, finding.rows)
    for remark in bench.remarks:
        _note(run, "data", remark)
    gate.refuse(bench.findings, bench.experiment.data.accept)
    tuned = methods.attach(bench.base, [bench.experiment.method], [bench.experiment.seed])
    longest = max(int(row.train_L.sum()) for row in bench.train)
    runs.update(run.path, {"facts": {"longest_answer": longest}})
    exam = assessment.exam(bench.experiment, bench.dataset, bench.base.tokenizer, bench.rules, longest)
    _go_on(stop)
    before = _ask_base(run, bench, tuned, exam, stop)
    end = _train(run, bench, tuned, stop)
    if end.state != "done":
        return end
    if not workbench.result_of(run).exists():
        adapters.save(tuned, tuned.slots[0], workbench.result_of(run))
    _judge(run, tuned, exam, before, stop)
    return end


def _ask_base(run: Run, bench: Bench, tuned: Tuned, exam: Exam, stop: Stop) -> tuple[Answerer, str] | None:
    """The base answers before anything is trained: full tuning will change its weights."""
    from luthier import assessment

    if not bench.experiment.evaluation.compare_base:
        return None
    answerer, name = assessment.base_answerer(exam, tuned, bench.dataset.examples("train"))
    path, heard = run.path / "base_predictions.jsonl", _heard(run, f"asking the {name}", len(exam.questions), stop)
    rows = assessment.answers(exam, {"base": answerer}, path, run.fingerprint, heard)
    return assessment.as_given(rows, "base"), name


def _judge(run: Run, tuned: Tuned, exam: Exam, before: tuple[Answerer, str] | None, stop: Stop) -> None:
    """The tuned model answers the same rows; the report and the verdict follow."""
    from luthier import assessment
    from luthier.evaluation import ask

    sides = {"base": before[0]} if before else {}
    sides["tuned"] = ask.by_model(tuned, 0, exam.rules, exam.how)
    heard = _heard(run, "asking the tuned model", len(exam.questions) * len(sides), stop)
    rows = assessment.answers(exam, sides, run.path / "predictions.jsonl", run.fingerprint, heard)
    report = assessment.conclude(run, exam, rows, before[1] if before else "base", run.path)
    runs.update(run.path, {"facts": {"verdict": report.verdict}})


def _heard(run: Run, doing: str, total: int, stop: Stop) -> Callable[[int], None]:
    """Tell how far the answers are, once a second at most, and end where somebody asked to."""
    answered, told = 0, time.monotonic()

    def heard(count: int) -> None:
        nonlocal answered, told
        answered += count
        if time.monotonic() - told >= 1:
            told = time.monotonic()
            _note(run, "progress", f"{doing}: {answered:,} of {total:,} answers")
        _go_on(stop)

    return heard


def _train(run: Run, bench: Bench, tuned: Tuned, stop: Stop) -> Finished:
    """Hand the loop its job; its events go into the folder, but for the end, which comes after the verdict."""
    from luthier import hardware
    from luthier.evaluation import curves
    from luthier.train import plan
    from luthier.train.loop import Job, train

    experiment, slot = bench.experiment, tuned.slots[0]
    memory = hardware.machine().memory_bytes
    training = plan.fitted(experiment, bench.train, bench.base.facts, slot.trainable_parameters, memory)
    if training.gradient_checkpointing and experiment.training.gradient_checkpointing is None:
        _note(run, "memory", "activations are recomputed: they would not fit into memory (`gradient_checkpointing`)")
    job = Job(run.id, training, experiment.seed, bench.train, bench.validation, run.path / "checkpoints")
    warned = False
    for event in train(tuned, [job], stop):
        if isinstance(event, Finished):
            return event
        runs.append(run.path, event)
        if isinstance(event, Evaluated) and not warned:
            said = curves.overfitting(curves.from_events(runs.read_events(run.path)))
            if said:
                _note(run, "overfitting", said, step=event.step)
                warned = True
    raise TrainingError("training ended without saying how", where=str(run.path))


def _note(run: Run, kind: str, message: str, rows: tuple[str, ...] = (), step: int = 0) -> None:
    runs.append(run.path, Noted(run.id, step, time.time(), kind, message, rows))


def _go_on(stop: Stop) -> None:
    if stop():
        raise Stopped


def _share_cores() -> None:
    """No more threads than cores that this process may use: torch counts the machine's, not the container's."""
    import torch

    from luthier import hardware

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), hardware.cores()))


def _environment() -> dict[str, Any]:
    """What the figures of this run were made with."""
    import torch

    from luthier import __version__, hardware

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


if __name__ == "__main__":
    sys.exit(main())
