"""luthier's own path: `attach` and `train`, as a run's worker calls them."""

from __future__ import annotations

from pathlib import Path

from peers.common import Job, Pace

from luthier import spec
from luthier.data.examples import Encoded
from luthier.models import base
from luthier.models.methods import attach
from luthier.runs import Stepped
from luthier.train.loop import Job as Training
from luthier.train.loop import train


def method_of(job: Job) -> spec.Lora | spec.PromptTuning | spec.Full:
    if job.method == "lora":
        return spec.Lora(rank=job.rank, alpha=job.alpha, dropout=0.0, target_modules=("all-linear",))
    if job.method == "prompt":
        return spec.PromptTuning(virtual_tokens=job.virtual, init_method="vocabulary")
    return spec.Full()


def run(job: Job, pace: Pace) -> None:
    method = method_of(job)
    tuned = attach(base.load(spec.Model(name=job.folder), method), [method], [job.seed])
    rows = [Encoded(str(i), ids, train) for i, (ids, train) in enumerate(zip(*job.examples(), strict=True))]
    training = spec.Training(
        batch_size=job.micro,
        accumulate_steps=job.batch // job.micro,
        num_epochs=1,
        max_steps=job.steps,
        learning_rate=job.learning_rate,
        schedule="constant",
        warmup=0.0,
        weight_decay=0.0,
        batching=job.batching,
        gradient_checkpointing=False,
        save_every=1_000_000,
    )
    events = train(tuned, [Training("bench", training, job.seed, rows, [], Path(job.folder) / "checkpoints")])
    next(events)  # the run has started
    pace.ready()
    for event in events:
        if isinstance(event, Stepped):
            pace.step(event.loss)
