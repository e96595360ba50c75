"""transformers' `Trainer` with PEFT."""

from __future__ import annotations

import tempfile

from peers.common import Job, Pace, pad
from peers.paced import Paced
from peers.with_peft import adapted
from transformers import Trainer, TrainingArguments

COMMON = {
    "output_dir": tempfile.gettempdir(),
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "train_sampling_strategy": "sequential",
    "disable_tqdm": True,
}


def run(job: Job, pace: Pace) -> None:
    said = TrainingArguments(
        **COMMON,
        per_device_train_batch_size=job.micro,
        gradient_accumulation_steps=job.batch // job.micro,
        max_steps=job.steps,
        learning_rate=job.learning_rate,
    )
    Trainer(
        model=adapted(job), args=said, train_dataset=job.drawn(), data_collator=pad, callbacks=[Paced(pace)]
    ).train()
