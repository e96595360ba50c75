"""Take one run and carry it: data → base → train → evaluate → verdict. `python -m luthier.worker [RUN_DIR]`.

Lives here: the order of a run's work, and the process that does it. Does not live here: the parts (`workbench.py`),
what is written of it (`logbook.py`), the work itself (`data`, `models`, `train`, `evaluation`), starting this process
(`engines.py`).

A run may be ended at any moment and carried again: each step finds what an earlier attempt has finished.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import hardware, logbook, ownership, runs
from luthier.errors import LuthierError, TrainingError, in_words
from luthier.logbook import Stopped, note
from luthier.runs import Finished, Run

if TYPE_CHECKING:
    from luthier.assessment import Exam
    from luthier.evaluation.predictions import Answerer
    from luthier.models.methods import Tuned
    from luthier.train.ranks import Ranks
    from luthier.workbench import Bench

Stop = Callable[[], bool]


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
    """Import what every run needs, then read which one it is; see `the_run`."""
    with lasting():
        import luthier.assessment
        import luthier.checks
        import luthier.train.loop
        import luthier.workbench  # noqa: F401

    return the_run()


def the_run() -> Path | None:
    """Read lines of JSON, all with `environment` to add to ours.

    One with an `experiment` is answered by a line: the `run` that it means (`drafts.wanted`), or the `error`. One with
    the folder `run` is a run to carry: what is said from then on goes into its log. None if the one that started us
    left without naming one.
    """
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


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """What stands at the end of this block stays until the process ends: the garbage collector need not look at it, now
    or later. Imports are a fifth faster for it (bench/startup.py)."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _drafted(told: dict[str, Any]) -> dict[str, Any]:
    """The run that a described experiment means, or why there is none."""
    from luthier import drafts, spec

    experiment = spec.loads(told["experiment"], told["named"])
    try:
        rows = drafts.rows_in(*told["rows"])
        run = drafts.wanted(experiment, Path(told["home"]), told["new"], told["further"], rows)
    except LuthierError as problem:
        return {"error": in_words(problem)}
    return {"run": str(run.path)}


def work(path: Path, stop: Stop, do: Callable[[Run, Stop], Finished] | None = None) -> int:
    """Own the run in folder `path`, carry it (or `do` its work), write how it ended. A wish in the folder stops it as a
    signal does."""
    try:
        with runs.owned(path):
            return _to_the_end(runs.load(path), lambda: stop() or ownership.stop_asked(path), do or carry)
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


def _to_the_end(run: Run, stop: Stop, do: Callable[[Run, Stop], Finished]) -> int:
    """Every way a run can end, in its folder."""
    try:
        end = do(run, stop)
        error = logbook.failure(run, end)
    except Exception as problem:
        end, error = logbook.ended(run, problem)
    logbook.close(run, end, error)
    return 0 if end.state in ("done", "stopped") else 1


def carry(run: Run, stop: Stop) -> Finished:
    """All of a run's work. Raises LuthierError where it cannot go on, Stopped where it was asked to end."""
    if "WORLD_SIZE" not in os.environ and ownership.stop_asked(run.path):  # while this process was starting
        raise Stopped
    note(run, "progress", "loading the base")
    neighbours = hardware.Neighbours()  # who else computes here shows while the imports run
    from luthier import workbench  # heavy from here on: the run is owned already
    from luthier.models import adapters
    from luthier.train.ranks import joined

    with joined() as crew:  # of several processes one may leave only from here on, where the others see it go
        ranks = crew.sharing_layers() if workbench.must_shard(run) else crew
        logbook.choose(run, logbook.threads(run, neighbours), ranks.count)
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
    from luthier.data import rows
    from luthier.models import methods

    bench = workbench.of_run(run, ranks.shard if ranks.sharded else None)
    experiment, longest = bench.experiment, int(rows.trained(bench.train).max())
    exam = assessment.exam(
        experiment, bench.dataset, bench.base.tokenizer, bench.rules, longest, run.facts.get("drawn_by")
    )
    exam = checks.with_checks(exam, run, experiment, bench.base)
    accepted = logbook.heed(run, bench, (*bench.findings, *assessment.findings_of(exam, experiment, bench.base)))
    tuned = methods.attach(bench.base, [experiment.method], [experiment.seed])
    if tuned.note:
        note(run, "layout", tuned.note)
    return bench, tuned, replace(exam, notes=(*exam.notes, *accepted, *assessment.rounding(tuned.base)))


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
            note(run, "progress", f"{doing}: {answered:,} of {total:,} answers")
        _go_on(stop)

    return heard


def _train(run: Run, bench: Bench, tuned: Tuned, stop: Stop, ranks: Ranks) -> Finished:
    """Hand the loop its job; its events go into the folder, but for the end, which comes after the verdict."""
    from luthier.train.loop import Job, Wishes, train

    training, budget, tuned.turn.product = ranks.by_lead(lambda: logbook.fitted(run, bench, tuned))
    job = Job(run.id, training, bench.experiment.seed, bench.train, bench.validation, run.path / "checkpoints")
    diary = logbook.Diary(run)

    def halved(tokens: int) -> None:
        if ranks.leads:
            logbook.keep_choices(run, budget=tokens)

    for event in train(tuned, [job], Wishes(stop), budget, halved, ranks):
        if isinstance(event, Finished):
            return event
        if ranks.leads:
            diary.hear(event)
    raise TrainingError("training ended without saying how", where=str(run.path))


def _go_on(stop: Stop) -> None:
    if stop():
        raise Stopped


if __name__ == "__main__":
    sys.exit(main())
