"""Take one run and carry it: data → base → train → evaluate → verdict. `python -m luthier.worker [RUN_DIR]`.

Lives here: the order of a run's work, and the process that does it. Does not live here: the parts (`workbench.py`), the
work itself (`data`, `models`, `train`, `evaluation`), starting this process (`engines.py`).

A run may be ended at any moment and carried again: each step finds what an earlier attempt has finished.
"""

from __future__ import annotations

import json
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

from luthier import disk, hardware, ownership, redaction, runs
from luthier.disk import write_json
from luthier.errors import LuthierError, TrainingError, in_words
from luthier.runs import Evaluated, Event, Finished, Noted, Run, Started

if TYPE_CHECKING:
    from luthier.assessment import Exam
    from luthier.evaluation.predictions import Answerer
    from luthier.models.methods import Tuned
    from luthier.spec import Training
    from luthier.train.ranks import Ranks
    from luthier.workbench import Bench

Stop = Callable[[], bool]
ENVIRONMENT = "environment.json"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")


class Stopped(Exception):
    """Somebody asked the run to end, and all that is finished stands on disk."""


def main() -> int:
    """The process: SIGTERM and SIGINT ask it to save and end. Exit code 0 if the run is done or was stopped, else 1."""
    path = Path(sys.argv[1]) if sys.argv[1:] else wait_for_a_run()
    if path is None:
        return 0
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    first = os.environ.get("RANK", "0") == "0"  # torchrun's: this process's number
    return (work if first else assist)(path.resolve(), asked.is_set)


def wait_for_a_run() -> Path | None:
    """Import what every run needs, then read lines of JSON, all with `environment` to add to ours.

    One with an `experiment` is answered by a line: the `run` that it means (`drafts.wanted`), or the `error`. One with
    the folder `run` is a run to carry: what is said from then on goes into its log. None if the one that started us
    left without naming one.
    """
    import luthier.assessment
    import luthier.checks
    import luthier.train.loop
    import luthier.workbench  # noqa: F401

    while line := sys.stdin.readline():
        told = json.loads(line)
        os.environ.update(told["environment"])
        if "run" in told:
            with (Path(told["run"]) / runs.LOG).open("ab") as log:
                for stream in (1, 2):
                    os.dup2(log.fileno(), stream)
            return Path(told["run"])
        print(json.dumps(_drafted(told)), flush=True)
    return None


def _drafted(told: dict[str, Any]) -> dict[str, Any]:
    """The run that a described experiment means, or why there is none."""
    from luthier import drafts, spec

    experiment = spec.loads(told["experiment"], told["named"])
    try:
        run = drafts.wanted(experiment, Path(told["home"]), told["new"], told["further"])
    except LuthierError as problem:
        return {"error": in_words(problem)}
    return {"run": str(run.path)}


def work(path: Path, stop: Stop) -> int:
    """Own the run in folder `path`, carry it, write how it ended. A wish in the folder stops it as a signal does."""
    try:
        with runs.owned(path):
            return _to_the_end(runs.load(path), lambda: stop() or ownership.stop_asked(path))
    except (LuthierError, OSError) as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1


def assist(path: Path, stop: Stop) -> int:
    """A process beside the one that owns the run: the same base and rows, its part of every step. It writes nothing."""
    from luthier import workbench
    from luthier.models import methods
    from luthier.train.ranks import Parted, joined

    run = runs.load(path)
    try:
        with joined() as crew:
            ranks = crew.sharing_layers() if workbench.must_shard(run) else crew
            bench = workbench.of_run(run, ranks.shard if ranks.sharded else None)
            tuned = methods.attach(bench.base, [bench.experiment.method], [bench.experiment.seed])
            _train(run, bench, tuned, lambda: stop() or ownership.stop_asked(path), ranks)
    except Parted:
        return 0  # the owner has ended the run, and says how
    except LuthierError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


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
        error = in_words(problem)
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
    if "WORLD_SIZE" not in os.environ and ownership.stop_asked(run.path):  # while this process was starting
        raise Stopped
    _note(run, "progress", "loading the base")
    neighbours = hardware.Neighbours()  # who else computes here shows while the imports run
    from luthier import workbench  # heavy from here on: the run is owned already
    from luthier.models import adapters
    from luthier.train.ranks import joined

    with joined() as crew:  # of several processes one may leave only from here on, where the others see it go
        ranks = crew.sharing_layers() if workbench.must_shard(run) else crew
        _choose(run, neighbours, ranks.count)
        bench, tuned, exam = _lay_out(run, ranks)
        _go_on(stop)
        before = None if ranks.sharded else _ask_base(run, bench, tuned, exam, stop)
        end = _train(run, bench, tuned, stop, ranks)
    if end.state != "done":
        return end
    if not workbench.result_of(run).exists():
        adapters.save(tuned, tuned.slots[0], workbench.result_of(run))
    if ranks.sharded:  # the others have left: what answers is the base laid over all devices anew
        tuned = workbench.open_run(run)
        before = _ask_base(run, bench, tuned, exam, stop)
    _judge(run, tuned, exam, before, stop)
    return end


def _lay_out(run: Run, ranks: Ranks) -> tuple[Bench, Tuned, Exam]:
    """The base with its slot, the rows, what will be asked; with a word on what the rows promise."""
    from luthier import assessment, checks, workbench
    from luthier.data import gate, rows
    from luthier.models import methods

    bench = workbench.of_run(run, ranks.shard if ranks.sharded else None)
    experiment, longest = bench.experiment, int(rows.trained(bench.train).max())
    exam = assessment.exam(
        experiment, bench.dataset, bench.base.tokenizer, bench.rules, longest, run.facts.get("drawn_by")
    )
    exam = checks.with_checks(exam, run, experiment, bench.base)
    findings = (*bench.findings, *assessment.findings_of(exam, experiment, bench.base))
    accepted = [finding for finding in findings if gate.is_accepted(finding, experiment.data.accept)]
    for finding in findings:
        said = " (accepted: data.accept)" if finding in accepted else ""
        _note(run, finding.code, finding.message + said, finding.rows)
    for remark in bench.remarks:
        _note(run, "data", remark)
    gate.refuse(findings, experiment.data.accept)
    tuned = methods.attach(bench.base, [experiment.method], [experiment.seed])
    if tuned.note:
        _note(run, "layout", tuned.note)
    runs.update(run.path, {"facts": {"longest_answer": longest, "accepted": sorted({f.code for f in accepted})}})
    notes = (*exam.notes, *(f"accepted by a person: {gate.words(finding)}" for finding in accepted))
    return bench, tuned, replace(exam, notes=(*notes, *assessment.rounding(tuned.base)))


def _ask_base(run: Run, bench: Bench, tuned: Tuned, exam: Exam, stop: Stop) -> tuple[Answerer, str] | None:
    """The base answers before anything is trained: full tuning will change its weights."""
    from luthier import assessment, checks

    if not bench.experiment.evaluation.compare_base:
        return None
    assessment.open_test(run, exam)
    answerer, name = assessment.base_answerer(exam, tuned, bench.dataset.stream("train"))
    path, heard = run.path / "base_predictions.jsonl", _heard(run, f"asking the {name}", len(exam.questions), stop)
    rows = assessment.answers(exam, {"base": answerer}, path, run.fingerprint, heard)
    checks.ask_base(run, exam, tuned, lambda count: _go_on(stop))
    return assessment.as_given(rows, "base"), name


def _judge(run: Run, tuned: Tuned, exam: Exam, before: tuple[Answerer, str] | None, stop: Stop) -> None:
    """The tuned model answers the same rows; the report and the verdict follow."""
    from luthier import assessment, checks, workbench
    from luthier.evaluation import ask

    exam = assessment.open_test(run, exam)
    sides = {"base": before[0]} if before else {}
    sides["tuned"] = ask.by_model(tuned, 0, exam.rules, exam.how)
    heard = _heard(run, "asking the tuned model", len(exam.questions) * len(sides), stop)
    rows = assessment.answers(exam, sides, run.path / "predictions.jsonl", run.fingerprint, heard)
    exam = checks.checked(run, exam, tuned, lambda count: _go_on(stop))
    wishes = workbench.experiment_of(run).evaluation.judge
    heard = _heard(run, "asking the judge", len(rows) * len(sides), stop)
    exam, rows = assessment.judged(wishes, exam, rows, run.path, heard)
    report = assessment.conclude(run, exam, rows, before[1] if before else "base", run.path)
    runs.update(run.path, {"facts": {"verdict": report.verdict, "unjudged": exam.found.missing if exam.found else 0}})


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


def _train(run: Run, bench: Bench, tuned: Tuned, stop: Stop, ranks: Ranks) -> Finished:
    """Hand the loop its job; its events go into the folder, but for the end, which comes after the verdict."""
    from luthier.evaluation import curves
    from luthier.train.loop import Job, train

    training, budget, tuned.turn.product = ranks.by_lead(lambda: _fitted(run, bench, tuned))
    job = Job(run.id, training, bench.experiment.seed, bench.train, bench.validation, run.path / "checkpoints")
    told: list[Event] = []
    warned = False

    def halved(tokens: int) -> None:
        if ranks.leads:
            _keep_choice(run, "budget", tokens)

    for event in train(tuned, [job], stop, budget, halved, ranks):
        if isinstance(event, Finished):
            return event
        if not ranks.leads:
            continue
        runs.append(run.path, event)
        told = runs.read_events(run.path) if isinstance(event, Started) else told  # without what is now done again
        told.append(event)
        if isinstance(event, Evaluated) and not warned:
            said = curves.overfitting(curves.from_events(told))
            if said:
                _note(run, "overfitting", said, step=event.step)
                warned = True
    raise TrainingError("training ended without saying how", where=str(run.path))


def _fitted(run: Run, bench: Bench, tuned: Tuned) -> tuple[Training, int, str]:
    """How the run fits into memory, the budget of a micro-batch, and what multiplies: decided by the owner, for all."""
    from luthier import workbench
    from luthier.models import lora

    fit, asked = workbench.fit(bench), bench.experiment.training.gradient_checkpointing
    if fit.training.gradient_checkpointing and asked is None:
        _note(run, "memory", "activations are recomputed: they would not fit into memory (`gradient_checkpointing`)")
    budget = int(_choices(run).get("budget") or fit.budget)
    _keep_choice(run, "budget", budget)
    product = _choices(run).get("product") or lora.measure_product(tuned.multiplied(), rows=1024)
    _keep_choice(run, "product", product)
    return fit.training, budget, product


def _note(run: Run, kind: str, message: str, rows: tuple[str, ...] = (), step: int = 0) -> None:
    runs.append(run.path, Noted(run.id, step, time.time(), kind, message, rows))


def _go_on(stop: Stop) -> None:
    if stop():
        raise Stopped


def _choose(run: Run, neighbours: hardware.Neighbours, processes: int) -> None:
    """What is measured and decided once a run, and kept by every later attempt: equal choices give equal bits.

    Written to environment.json under `choices`: `threads`, here; `budget`, the stored tokens of a micro-batch, by
    `_train`. OMP_NUM_THREADS (`threads` in luthier.toml) is somebody's wish and wins.
    """
    import torch

    kept = _choices(run)
    said = "OMP_NUM_THREADS" in os.environ
    threads = neighbours.threads() if said or "threads" not in kept else int(kept["threads"])
    torch.set_num_threads(threads)
    write_json(
        run.path / ENVIRONMENT, _environment() | {"processes": processes, "choices": kept | {"threads": threads}}
    )


def _choices(run: Run) -> dict[str, Any]:
    """What earlier attempts chose; nothing in a new run."""
    try:
        return dict(json.loads((run.path / ENVIRONMENT).read_text(encoding="utf-8")).get("choices", {}))
    except FileNotFoundError:
        return {}


def _keep_choice(run: Run, name: str, value: Any) -> None:
    written = json.loads((run.path / ENVIRONMENT).read_text(encoding="utf-8"))
    write_json(run.path / ENVIRONMENT, written | {"choices": written["choices"] | {name: value}})


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


if __name__ == "__main__":
    sys.exit(main())
