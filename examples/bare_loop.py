"""The training that `luthier tune` does, without luthier: LoRA on a decoder, in one file to read from top to bottom.

    python examples/bare_loop.py MODEL train.jsonl --template "{schema}\nQuestion: {input}\nSQL:"

Rows are `{"input": …, "output": …}` and whatever else the template names. What luthier adds on top of these lines is
speed with the same numbers (token trees instead of padding, only trained positions in the output layer), many adapters
at once, checkpoints, refusals, and a verdict. A test compares the losses of both, update by update.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

Row = tuple[list[int], int]  # token ids, and how many of them are the prompt


# ---------------------------------------------------------------------------------------------------------------- data


def encode(record: dict, template: str, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Prompt and answer as one text, so that no token is split at the seam; the end token is learnt like any other."""
    prompt = template.format(**record)
    text = tokenizer(f"{prompt} {record['output']}", return_offsets_mapping=True)
    ids = text["input_ids"]
    starts = [start for start, end in text["offset_mapping"]]
    first = next(i for i, (start, end) in enumerate(text["offset_mapping"]) if end > len(prompt))
    assert starts == sorted(starts)
    return [*ids, tokenizer.eos_token_id], first


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's order is a function of (seed, epoch): nothing to save, nothing to restore."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)


def pad(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """ids and targets, both (B, L); a target is -100 where nothing is trained: in the prompt and behind the end."""
    longest = max(len(ids) for ids, _ in rows)
    ids_BL = torch.zeros(len(rows), longest, dtype=torch.long)
    targets_BL = torch.full_like(ids_BL, -100)
    for b, (ids, prompt) in enumerate(rows):
        ids_BL[b, : len(ids)] = torch.tensor(ids)
        targets_BL[b, prompt : len(ids)] = torch.tensor(ids[prompt:])
    return ids_BL, targets_BL


# ---------------------------------------------------------------------------------------------------------------- LoRA


class LoraLinear(nn.Module):
    """y = x Wᵀ + (alpha / r) (x Aᵀ) Bᵀ with W frozen; B starts at zero, so that the first forward is the base's."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, seed: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(base.in_features)
        draw = torch.Generator().manual_seed(seed)
        self.base = base
        self.scale = alpha / rank
        self.A = nn.Parameter((torch.rand(rank, base.in_features, generator=draw) * 2 - 1) * bound)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * F.linear(F.linear(x, self.A), self.B)


def add_lora(model: PreTrainedModel, rank: int, alpha: float, seed: int) -> list[nn.Parameter]:
    """Put an adapter on every linear layer except the output layer; gives what is trained."""
    model.requires_grad_(False)
    output = model.get_output_embeddings()
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not output]
    for name, linear in linears:
        parent, _, child = name.rpartition(".")
        adapter = LoraLinear(linear, rank, alpha, zlib.crc32(name.encode(), seed))
        setattr(model.get_submodule(parent), child, adapter)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# ------------------------------------------------------------------------------------------------------------ the loop


def train(
    model: PreTrainedModel, trained: list[nn.Parameter], rows: list[Row], say: argparse.Namespace
) -> Iterator[float]:
    """One AdamW update a batch, learning rate falling linearly to zero; yields the mean loss per trained token."""
    optimizer = torch.optim.AdamW(trained, lr=say.learning_rate, weight_decay=0.0)
    steps_per_epoch = math.ceil(len(rows) / say.batch_size)
    steps = steps_per_epoch * say.epochs
    for step in range(steps):
        epoch, place = divmod(step, steps_per_epoch)
        chosen = order(len(rows), say.seed, epoch)[place * say.batch_size : (place + 1) * say.batch_size]
        ids_BL, targets_BL = pad([rows[i] for i in chosen])
        logits_BLV = model(input_ids=ids_BL).logits
        loss = F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), targets_BL[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = say.learning_rate * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--template", default="Input: {input}\nOutput:")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    say = arguments()
    tokenizer = AutoTokenizer.from_pretrained(say.model)
    model = AutoModelForCausalLM.from_pretrained(say.model, dtype=torch.float32)
    records = [json.loads(line) for line in say.data.read_text(encoding="utf-8").splitlines()]
    rows = [encode(record, say.template.replace("\\n", "\n"), tokenizer) for record in records]
    trained = add_lora(model, say.rank, say.alpha, say.seed)
    print(f"{len(rows)} rows, {sum(p.numel() for p in trained):,} trainable parameters")
    for step, loss in enumerate(train(model, trained, rows, say), 1):
        print(f"step {step}  loss {loss:.4f}")


if __name__ == "__main__":
    main()
