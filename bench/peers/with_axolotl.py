"""Axolotl's trainer (`setup_model_and_trainer`, `execute_training`) on tokenised rows, from our adapter, unpacked."""

from __future__ import annotations

import os
from pathlib import Path

os.environ |= {"AXOLOTL_DO_NOT_TRACK": "1", "ACCELERATE_USE_CPU": "true"}

from axolotl.cli.config import load_cfg
from axolotl.common.datasets import TrainDatasetMeta
from axolotl.train import execute_training, setup_model_and_trainer
from axolotl.utils.dict import DictDefault
from peers.common import Job, Pace
from peers.paced import Paced, adapter_folder, table_of


def run(job: Job, pace: Pace) -> None:
    place = Path(job.start).parent / "axolotl"
    said = {
        "base_model": job.folder,
        "adapter": "lora",
        "lora_model_dir": str(adapter_folder(job, place / "start")),
        "lora_r": job.rank,
        "lora_alpha": job.alpha,
        "lora_dropout": 0.0,
        "lora_target_linear": True,
        "lora_mlp_kernel": False,  # Triton's: for a GPU
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "lora_embedding_kernel": False,
        "sequence_len": 2048,
        "datasets": [{"path": str(place), "type": "completion"}],  # asked for, never read
        "val_set_size": 0,
        "sample_packing": False,
        "pad_to_sequence_len": False,
        "curriculum_sampling": True,
        "micro_batch_size": job.micro,
        "gradient_accumulation_steps": job.batch // job.micro,
        "max_steps": job.steps,
        "num_epochs": 1,
        "learning_rate": job.learning_rate,
        "lr_scheduler": "constant",
        "optimizer": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "warmup_steps": 0,
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "gradient_checkpointing": False,
        "flash_attention": False,
        "sdp_attention": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": str(place / "out"),
    }
    cfg = load_cfg(DictDefault(said))
    trainer = setup_model_and_trainer(cfg, TrainDatasetMeta(table_of(job), None, job.steps))[0]
    trainer.add_callback(Paced(pace))
    execute_training(cfg, trainer, None)
