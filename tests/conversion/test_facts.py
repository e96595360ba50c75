"""The defaults that are written out for other tools are those that the tools have, where they are installed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from luthier import conversion
from luthier.conversion import hugging_face


def _defaults(kind: Any) -> dict[str, Any]:
    return {each.name: each.default for each in dataclasses.fields(kind)}


def _written(tmp_path: Path, content: str) -> dict[str, Any]:
    path = tmp_path / "config.yaml"
    path.write_text(content, encoding="utf-8")
    return {line.path: line.value for line in conversion.convert(path).lines if line.path}


TRAINER = {
    "training.batch_size": "per_device_train_batch_size",
    "training.accumulate_steps": "gradient_accumulation_steps",
    "training.num_epochs": "num_train_epochs",
    "training.learning_rate": "learning_rate",
    "training.schedule": "lr_scheduler_type",
    "training.warmup": "warmup_steps",
    "training.weight_decay": "weight_decay",
    "training.max_grad_norm": "max_grad_norm",
    "seed": "seed",
}


def test_llama_factory_s_training_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    theirs = _defaults(TrainingArguments)
    ours = _written(tmp_path, "model_name_or_path: m\ndataset: a\n")
    assert {path: ours[path] for path in TRAINER} == {path: theirs[key] for path, key in TRAINER.items()}
    assert {key: theirs[key] for key in hugging_face._ADAM} == hugging_face._ADAM


def test_a_bare_peft_configuration_has_peft_s_defaults(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    low_rank = peft.LoraConfig()
    ours = _written(tmp_path, "model_name_or_path: m\ndataset_name: a/b\npeft_config: {target_modules: [q]}\n")
    theirs = (low_rank.r, low_rank.lora_alpha, low_rank.lora_dropout)
    assert (ours["method.rank"], ours["method.alpha"], ours["method.dropout"]) == theirs
    soft = _written(tmp_path, "model_name_or_path: m\ndataset_name: a/b\npeft_config: {peft_type: PROMPT_TUNING}\n")
    assert soft["method.init_method"].upper() == peft.PromptTuningConfig().prompt_tuning_init


@pytest.mark.slow
def test_trl_s_defaults_are_trl_s(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    theirs = _defaults(trl.SFTConfig) | _defaults(trl.ModelConfig)
    ours = _written(tmp_path, "model_name_or_path: m\ndataset_name: a/b\nuse_peft: true\nload_in_4bit: true\n")
    keys = TRAINER | {
        "method.rank": "lora_r",
        "method.alpha": "lora_alpha",
        "method.dropout": "lora_dropout",
        "method.double_quantization": "use_bnb_nested_quant",
        "training.max_seq_length": "max_length",
        "training.gradient_checkpointing": "gradient_checkpointing",
        "model.dtype": "dtype",
    }
    assert {path: ours[path] for path in keys} == {path: theirs[key] for path, key in keys.items()}
    assert theirs["use_peft"] is False and theirs["lora_target_modules"] is None
