"""TRL's `SFTTrainer` on tokenised rows, padded: its defaults, without bfloat16 and activation checkpointing."""

from __future__ import annotations

import datasets
import trl
from peers.common import Job, Pace
from peers.with_peft import adapted
from peers.with_trainer import COMMON, Paced
from transformers import AutoTokenizer


def run(job: Job, pace: Pace) -> None:
    rows = job.drawn()
    table = {"input_ids": [ids.tolist() for ids, _ in rows], "labels": [labels.tolist() for _, labels in rows]}
    said = trl.SFTConfig(
        **COMMON,
        per_device_train_batch_size=job.micro,
        gradient_accumulation_steps=job.batch // job.micro,
        max_steps=job.steps,
        learning_rate=job.learning_rate,
        gradient_checkpointing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trl.SFTTrainer(
        model=adapted(job),
        args=said,
        train_dataset=datasets.Dataset.from_dict(table),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
        callbacks=[Paced(pace)],
    ).train()
