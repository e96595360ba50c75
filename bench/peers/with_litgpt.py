"""litgpt's GPT and the step of its `finetune_lora` / `finetune_full`: chunked output layer, chunked cross entropy."""

from __future__ import annotations

import json
from pathlib import Path

import litgpt
import litgpt.lora
import torch
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import chunked_cross_entropy
from peers.common import Job, Pace
from safetensors.torch import load_file
from torch import nn


def _model(job: Job) -> nn.Module:
    known = json.loads((Path(job.folder) / "config.json").read_text())
    shape = {
        "name": "bench",
        "block_size": known["max_position_embeddings"],
        "vocab_size": known["vocab_size"],
        "padded_vocab_size": known["vocab_size"],
        "n_layer": known["num_hidden_layers"],
        "n_head": known["num_attention_heads"],
        "n_query_groups": known["num_key_value_heads"],
        "n_embd": known["hidden_size"],
        "intermediate_size": known["intermediate_size"],
        "rope_base": int(known["rope_parameters"]["rope_theta"]),
        "norm_eps": known["rms_norm_eps"],
        "norm_class_name": "RMSNorm",
        "mlp_class_name": "LLaMAMLP",
        "rotary_percentage": 1.0,
        "parallel_residual": False,
        "bias": False,
    }
    if job.method == "full":
        config, kind = litgpt.Config(**shape), litgpt.GPT
    else:
        places = ("query", "key", "value", "projection", "mlp")
        adapters = {f"lora_{place}": True for place in places}
        config = litgpt.lora.Config(**shape, lora_r=job.rank, lora_alpha=job.alpha, lora_dropout=0.0, **adapters)
        kind = litgpt.lora.GPT
    weights: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, weights, load_file(Path(job.folder) / "model.safetensors"), dtype=torch.float32)
    model = kind(config)
    model.load_state_dict(weights, strict=job.method == "full")
    if job.method == "full":
        model.lm_head.weight = model.transformer.wte.weight
    else:
        model.lm_head.linear.weight = model.transformer.wte.weight
        litgpt.lora.mark_only_lora_as_trainable(model)
        _start(model, load_file(job.start))
    return model


def _start(model: nn.Module, start: dict[str, torch.Tensor]) -> None:
    """Our A in litgpt's places (its q, k and v are one map, their A on top of each other); B is zero in both."""
    names = {"attn.proj": "self_attn.o_proj", "mlp.fc_1": "mlp.gate_proj", "mlp.fc_2": "mlp.up_proj"}
    names["mlp.proj"] = "mlp.down_proj"
    with torch.no_grad():
        for number, block in enumerate(model.transformer.h):
            place = f"base_model.model.model.layers.{number}."
            three = [start[f"{place}self_attn.{each}_proj.lora_A.weight"] for each in "qkv"]
            block.attn.qkv.lora_A.copy_(torch.cat(three))
            for theirs, ours in names.items():
                block.get_submodule(theirs).lora_A.copy_(start[f"{place}{ours}.lora_A.weight"])


def run(job: Job, pace: Pace) -> None:
    model = _model(job).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, weight_decay=0.0)
    pace.ready()
    for batches, count in job.padded_steps():
        total = 0.0
        for batch in batches:
            targets = batch["labels"][..., 1:]
            logits = model(batch["input_ids"], lm_head_chunk_size=128)
            logits[-1] = logits[-1][..., :-1, :]
            loss = chunked_cross_entropy(logits, targets) * ((targets >= 0).sum() / count)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        pace.step(total)
