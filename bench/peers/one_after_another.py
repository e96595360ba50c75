"""A search as users of Optuna write it: trial after trial, each by TRL's `SFTTrainer`, or by a loop over PEFT.

    python one_after_another.py trl|peft SEARCH.json OUT.json

SEARCH.json: `trials` (each the values and the job, see `common.Job`), `validation` (an npz as a job's rows). OUT.json:
seconds from the first trial's begin to the last one's end, and of each trial its values, the loss of every update, the
loss on validation rows at the end, its seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


class Recorder:
    """Stands where `common.Pace` stands, and never waits."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def ready(self) -> None:
        pass

    def step(self, loss: float) -> None:
        self.losses.append(loss)


def by_trl(job, rows) -> tuple[list[float], float]:
    from peers.paced import Paced, table_of
    from peers.with_trl import trainer_of

    recorder = Recorder()
    trainer = trainer_of(job, Paced(recorder), table_of(rows))
    trainer.train()
    return recorder.losses[: job.steps], trainer.evaluate()["eval_loss"]


def by_peft(job, rows) -> tuple[list[float], float]:
    from peers.with_peft import adapted, fit, loss_of

    recorder, model = Recorder(), adapted(job).train()
    fit(job, model, recorder)
    model.eval()
    total = count = 0.0
    with torch.no_grad():
        for batches, targets in rows.padded_steps():
            total += sum(float(loss_of(model, batch)) for batch in batches)
            count += targets
    return recorder.losses, total / count


def searched(trials: list[dict], rows, train: Callable) -> list[dict]:
    """Every trial's values and what came of them, in the order of `trials`."""
    import optuna
    from peers.common import Job

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    choices = {name: sorted({trial["values"][name] for trial in trials}) for name in trials[0]["values"]}
    study, told = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), []
    for trial in trials:
        study.enqueue_trial(trial["values"])

    def objective(asked: optuna.Trial) -> float:
        values = {name: asked.suggest_categorical(name, among) for name, among in choices.items()}
        [job] = [Job(**trial["job"]) for trial in trials if trial["values"] == values]
        started = time.perf_counter()
        losses, validation = train(job, dataclasses.replace(job, rows=rows, batch=job.micro, learning_rate=0.0))
        seconds = time.perf_counter() - started
        told.append({"values": values, "losses": losses, "validation_loss": validation, "seconds": seconds})
        return validation

    study.optimize(objective, n_trials=len(trials))
    return told


def main(engine: str, search: str, out: str) -> None:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # as a package: a peer's own name stays the peer's
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    given, train = json.loads(Path(search).read_text()), {"trl": by_trl, "peft": by_peft}[engine]
    if engine == "trl":
        import trl  # noqa: F401  # what is imported before the first trial is start-up
    started = time.perf_counter()
    told = searched(given["trials"], given["validation"], train)
    seconds = time.perf_counter() - started
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Path(out).write_text(json.dumps({"seconds": seconds, "trials": told, "peak_bytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
