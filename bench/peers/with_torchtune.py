"""torchtune's Llama and the step of its single-device recipes: output layer and cross entropy in eight chunks."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peers.common import Job, Pace
from safetensors.torch import load_file
from torch import nn
from torchtune.models.convert_weights import hf_to_tune
from torchtune.models.llama3 import llama3, lora_llama3
from torchtune.modules.loss import CEWithChunkedOutputLoss
from torchtune.modules.peft import get_adapter_params, set_trainable_params
from torchtune.training import scale_grads


def _model(job: Job) -> nn.Module:
    known = json.loads((Path(job.folder) / "config.json").read_text())
    heads, groups, width = known["num_attention_heads"], known["num_key_value_heads"], known["hidden_size"]
    shape = {
        "vocab_size": known["vocab_size"],
        "num_layers": known["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": groups,
        "embed_dim": width,
        "max_seq_len": known["max_position_embeddings"],
        "intermediate_dim": known["intermediate_size"],
        "norm_eps": known["rms_norm_eps"],
        "rope_base": int(known["rope_parameters"]["rope_theta"]),
    }
    if job.method == "full":
        model = llama3(**shape)
    else:
        linears = ["q_proj", "k_proj", "v_proj", "output_proj"]
        lora = {"lora_rank": job.rank, "lora_alpha": job.alpha, "lora_dropout": 0.0}
        model = lora_llama3(linears, apply_lora_to_mlp=True, **shape, **lora)
    stored = load_file(Path(job.folder) / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    model.load_state_dict(hf_to_tune(stored, heads, groups, width), strict=job.method == "full")
    model.output.weight = model.tok_embeddings.weight
    if job.method != "full":
        set_trainable_params(model, get_adapter_params(model))
        _start(model, load_file(job.start))
    return model


def _start(model: nn.Module, start: dict[str, torch.Tensor]) -> None:
    """Our A in torchtune's places; B is zero in both."""
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    with torch.no_grad():
        for number, layer in enumerate(model.layers):
            place = f"base_model.model.model.layers.{number}."
            for theirs in ("q_proj", "k_proj", "v_proj", "output_proj"):
                ours = theirs.replace("output", "o")
                layer.attn.get_submodule(theirs).lora_a.weight.copy_(start[f"{place}self_attn.{ours}.lora_A.weight"])
            for theirs, ours in names.items():
                layer.mlp.get_submodule(theirs).lora_a.weight.copy_(start[f"{place}mlp.{ours}.lora_A.weight"])


def run(job: Job, pace: Pace) -> None:
    model = _model(job).train()
    loss_of = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss_of.num_output_chunks)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, weight_decay=0.0, fused=True)
    pace.ready()
    for batches, count in job.padded_steps():
        total = torch.zeros(())
        for batch in batches:
            nothing = torch.full((len(batch["labels"]), 1), loss_of.ignore_index)
            labels = torch.hstack([batch["labels"][:, 1:], nothing])
            loss = loss_of(model(tokens=batch["input_ids"]), labels) * (labels >= 0).sum()
            loss.backward()
            total += loss.detach()
        scale_grads(model, 1 / torch.tensor(count))
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pace.step(total.item() / count)
