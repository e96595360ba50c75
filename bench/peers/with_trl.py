"""TRL's `SFTTrainer` on tokenised rows, padded: its defaults, without bfloat16 and activation checkpointing."""

from __future__ import annotations

import datasets
import trl
from peers.common import Job, Pace
from peers.paced import Paced, table_of
from peers.with_peft import adapted
from peers.with_trainer import COMMON
from transformers import AutoTokenizer


def run(job: Job, pace: Pace) -> None:
    trainer_of(job, Paced(pace)).train()


def trainer_of(job: Job, listener: Paced, validation: datasets.Dataset | None = None) -> trl.SFTTrainer:
    """The trainer of a job. `validation`: rows it can evaluate, all in one batch."""
    said = trl.SFTConfig(
        **COMMON,
        per_device_train_batch_size=job.micro,
        per_device_eval_batch_size=len(validation) if validation is not None else 1,
        gradient_accumulation_steps=job.batch // job.micro,
        max_steps=job.steps,
        learning_rate=job.learning_rate,
        gradient_checkpointing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return trl.SFTTrainer(
        model=adapted(job),
        args=said,
        train_dataset=table_of(job).remove_columns("attention_mask"),
        eval_dataset=validation and validation.remove_columns("attention_mask"),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
        callbacks=[listener],
    )
