"""A loop by hand over transformers and PEFT (full tuning: transformers alone): padded batches, full logits."""

from __future__ import annotations

import peft
import torch
from peers.common import Job, Pace
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM


def adapted(job: Job) -> nn.Module:
    """The base with PEFT's adapter, which begins with the job's start weights."""
    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
    if job.method == "full":
        return model
    if job.method == "lora":
        linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = peft.LoraConfig(r=job.rank, lora_alpha=job.alpha, target_modules=linears, task_type="CAUSAL_LM")
    else:
        config = peft.PromptTuningConfig(num_virtual_tokens=job.virtual, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    start = load_file(job.start)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                stored = "prompt_embeddings" if job.method == "prompt" else name.replace(".default", "")
                parameter.copy_(start[stored])
    return model


def run(job: Job, pace: Pace) -> None:
    fit(job, adapted(job).train(), pace)


def fit(job: Job, model: nn.Module, pace: Pace) -> None:
    """The job's updates."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, weight_decay=0.0)
    pace.ready()
    for batches, count in job.padded_steps():
        total = 0.0
        for batch in batches:
            loss = loss_of(model, batch) / count
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        pace.step(total)


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum over a batch's targets."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logits, targets = logits[:, -batch["labels"].shape[1] : -1], batch["labels"][:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
