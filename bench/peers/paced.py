"""Any of transformers' trainers, held between steps, and what trainers are given: rows as a table, our adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
from peers.common import Job, Pace
from transformers import TrainerCallback


class Paced(TrainerCallback):
    """Waits between steps: a Trainer's loop cannot be entered from outside, but it can be held from inside."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.pace.ready()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.pace.step(logs["loss"])


def table_of(job: Job) -> datasets.Dataset:
    """The steps' examples in order."""
    rows = job.drawn()
    return datasets.Dataset.from_dict(
        {
            "input_ids": [ids.tolist() for ids, _ in rows],
            "attention_mask": [[1] * len(ids) for ids, _ in rows],
            "labels": [labels.tolist() for _, labels in rows],
        }
    )


def adapter_folder(job: Job, folder: Path) -> Path:
    """The start weights as a PEFT adapter, for a trainer that goes on with one."""
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": job.folder}
    config |= {"r": job.rank, "lora_alpha": job.alpha, "lora_dropout": 0.0, "target_modules": linears}
    folder.mkdir(parents=True)
    shutil.copy(job.start, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
