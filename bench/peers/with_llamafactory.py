"""LLaMA-Factory's supervised tuning (`run_exp`) on tokenised rows, from our adapter; its older transformers and TRL."""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import datasets
import transformers  # noqa: F401  before the stand-in below: it looks at what is installed

sys.modules["torchaudio"] = ModuleType("torchaudio")  # imported for sounds; its wheels want a CUDA build of torch

from llamafactory.train.tuner import run_exp
from peers.common import Job, Pace
from peers.paced import Paced, adapter_folder, table_of


def run(job: Job, pace: Pace) -> None:
    place = Path(job.start).parent / "llamafactory"
    datasets.DatasetDict({"train": table_of(job)}).save_to_disk(place / "rows")
    said = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": job.folder,
        "adapter_name_or_path": str(adapter_folder(job, place / "start")),
        "finetuning_type": "lora",
        "template": "empty",
        "dataset": "rows",  # asked for, never read
        "tokenized_path": str(place / "rows"),
        "output_dir": str(place / "out"),
        "per_device_train_batch_size": job.micro,
        "gradient_accumulation_steps": job.batch // job.micro,
        "max_steps": job.steps,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_gradient_checkpointing": True,
        "disable_shuffling": True,
        "disable_tqdm": True,
        "plot_loss": False,
    }
    run_exp(args=said, callbacks=[Paced(pace)])
