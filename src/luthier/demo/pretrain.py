"""Make the embedded base: `python -m luthier.demo.pretrain` trains the tokenizer and the model and writes `base/`.

Batch number n is a pure function of (seed, n), so a run that was stopped goes on where it was. Not part of a tuning
run; nothing of the package imports this module. What is trained stands in `network.py`.

Letters: B rows, T tokens of a row, N learned positions of a batch.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from luthier import disk
from luthier.demo.documents import Document, document
from luthier.demo.network import BOS, EOS, PAD, SPECIALS, build_model, train_tokenizer

ROW_TOKENS, ROWS = 192, 14
PEAK, WARMUP_STEPS, DECAY_SHARE = 2.5e-3, 100, 0.3


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows. A token sees only earlier tokens of its own document."""

    tokens_BT: torch.Tensor
    positions_BT: torch.Tensor
    bias_B1TT: torch.Tensor  # 0 where a token may look, else very low
    learned_N: torch.Tensor  # flat index of each position whose next token is learned
    targets_N: torch.Tensor


def make_batch(tokenizer: Tokenizer, seed: int, step: int, rows: int = ROWS) -> Batch:
    """Batch number `step` of the seed."""
    rng = random.Random(f"{seed}/{step}")
    packed = [_pack(tokenizer, rng) for _ in range(rows)]
    tokens_BT, positions_BT, learned_BT, numbers_BT = (torch.tensor(column) for column in zip(*packed, strict=True))
    same_BTT = numbers_BT[:, :, None] == numbers_BT[:, None, :]
    # A position is learned if its *next* token is learned and of the same document.
    next_BT = torch.zeros_like(learned_BT)
    next_BT[:, :-1] = learned_BT[:, 1:] & (numbers_BT[:, 1:] == numbers_BT[:, :-1])
    learned_N = next_BT.flatten().nonzero()[:, 0]
    bias_B1TT = torch.zeros_like(same_BTT, dtype=torch.bfloat16).masked_fill_(~same_BTT.tril(), -1e4)[:, None]
    return Batch(tokens_BT, positions_BT, bias_B1TT, learned_N, tokens_BT.roll(-1, 1).flatten()[learned_N])


Encoded = tuple[list[int], list[bool]]  # tokens, and which of them are learned
Row = tuple[list[int], list[int], list[bool], list[int]]  # tokens, positions, learned, number of the document


def _pack(tokenizer: Tokenizer, rng: random.Random) -> Row:
    """One row of documents; the last one is cut."""
    tokens: list[int] = []
    positions: list[int] = []
    learned: list[bool] = []
    numbers: list[int] = []
    while len(tokens) < ROW_TOKENS:
        ids, flags = _encode(tokenizer, document(rng))
        positions += range(len(ids))
        numbers += [len(tokens)] * len(ids)
        tokens += ids
        learned += flags
    return tokens[:ROW_TOKENS], positions[:ROW_TOKENS], learned[:ROW_TOKENS], numbers[:ROW_TOKENS]


def _encode(tokenizer: Tokenizer, segments: Document) -> Encoded:
    pieces = tokenizer.encode_batch([text for text, _ in segments], add_special_tokens=False)
    ids, flags = [BOS], [False]
    for piece, (_, flag) in zip(pieces, segments, strict=True):
        ids += piece.ids
        flags += [flag] * len(piece.ids)
    return [*ids, EOS], [*flags, True]


class _NegativeLogLikelihood(torch.autograd.Function):
    """Mean of -log softmax(logits)[target]. The gradient is made with the value, a few rows at a time, in the cache."""

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        count, total = len(targets_N), 0.0
        gradient_NV = torch.empty_like(logits_NV)
        for logits_nV, targets_n, gradient_nV in zip(
            logits_NV.split(128), targets_N.split(128), gradient_NV.split(128), strict=True
        ):
            shares_nV = logits_nV.float().softmax(-1)
            own = (torch.arange(len(targets_n)), targets_n)
            total -= shares_nV[own].clamp_min(1e-30).log().sum().item()
            shares_nV[own] -= 1
            gradient_nV.copy_(shares_nV.div_(count))
        ctx.save_for_backward(gradient_NV)
        return torch.tensor(total / count)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV * upstream, None


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean negative log-likelihood of the learned tokens; only they meet the output layer."""
    hidden_BTD = model.model(
        input_ids=batch.tokens_BT, position_ids=batch.positions_BT, attention_mask=batch.bias_B1TT, use_cache=False
    ).last_hidden_state
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, batch.learned_N)
    return _NegativeLogLikelihood.apply(model.lm_head(hidden_ND), batch.targets_N)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, constant, linear to 0 over the last DECAY_SHARE of the steps."""
    rise = (step + 1) / WARMUP_STEPS
    fall = (steps - step) / (steps * DECAY_SHARE)
    return PEAK * min(1.0, rise, fall)


@dataclass(slots=True)
class Training:
    """A run so far: the model in bfloat16, its weights in float32 beside it, the optimizer over those, the log."""

    seed: int
    steps: int
    step: int
    model: LlamaForCausalLM
    masters: list[torch.Tensor]
    optimizer: torch.optim.Optimizer
    log: list[dict[str, float]]


def begin(tokenizer: Tokenizer, seed: int, steps: int) -> Training:
    """A run before its first step."""
    model = build_model(seed, tokenizer)
    masters = [weight.detach().float().requires_grad_() for weight in model.parameters()]
    matrices = [master for master in masters if master.dim() > 1]
    vectors = [master for master in masters if master.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95), fused=True)
    return Training(seed, steps, 0, model, masters, optimizer, [])


def update(training: Training, batch: Batch) -> float:
    """One step; gives the loss before it."""
    loss = loss_of(training.model, batch)
    loss.backward()
    for weight, master in zip(training.model.parameters(), training.masters, strict=True):
        assert weight.grad is not None
        master.grad = weight.grad.float()
        weight.grad = None
    torch.nn.utils.clip_grad_norm_(training.masters, 1.0)
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(training.step, training.steps)
    training.optimizer.step()
    _round(training)
    training.step += 1
    return loss.item()


@torch.no_grad()
def _round(training: Training) -> None:
    for weight, master in zip(training.model.parameters(), training.masters, strict=True):
        weight.copy_(master)


def save(training: Training, path: Path) -> None:
    """Write everything a resumed run needs, as tensors and a line of JSON; the file is complete or not there."""
    tensors = {f"master.{number}": master.detach() for number, master in enumerate(training.masters)}
    for number, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
    told = {"seed": training.seed, "steps": training.steps, "step": training.step, "log": training.log}
    partial = path.with_suffix(".tmp")
    save_file(tensors, partial, metadata={"training": json.dumps(told)})
    disk.sync(partial)
    partial.replace(path)


def resume(training: Training, path: Path) -> None:
    """Go on from a saved file of the same seed.

    The number of steps may be another one until the learning rate falls: up to there, nothing depends on it.
    """
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["training"])
    fallen = told["step"] > (1 - DECAY_SHARE) * min(told["steps"], training.steps)
    if told["seed"] != training.seed or (fallen and told["steps"] != training.steps):
        raise SystemExit(f"{path} is of another run: delete it, or give its seed and steps")
    moments: dict[int, dict[str, torch.Tensor]] = {}
    with torch.no_grad():
        for key, tensor in load_file(path).items():
            kind, number, *name = key.split(".")
            if kind == "master":
                training.masters[int(number)].copy_(tensor)
            else:
                moments.setdefault(int(number), {})[name[0]] = tensor
    _round(training)
    groups = training.optimizer.state_dict()["param_groups"]
    training.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    training.step, training.log = told["step"], told["log"]


def train(
    tokenizer: Tokenizer, seed: int, steps: int, folder: Path, rows: int = ROWS, save_every: int = 200
) -> Training:
    """Train to the end, from the checkpoint in `folder` if there is one. The log has a line for each checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    training = begin(tokenizer, seed, steps)
    if checkpoint.exists():
        resume(training, checkpoint)
    losses: list[float] = []
    started = time.perf_counter()
    while training.step < steps:
        losses.append(update(training, make_batch(tokenizer, seed, training.step, rows)))
        if training.step % save_every and training.step != steps:
            continue
        line = {
            "step": training.step,
            "loss": round(math.fsum(losses) / len(losses), 4),
            "learning_rate": round(learning_rate(training.step, steps), 6),
            "tokens": len(losses) * rows * ROW_TOKENS,
            "seconds": round(time.perf_counter() - started, 1),
        }
        print(json.dumps(line), flush=True)
        training.log.append(line)
        save(training, checkpoint)
        losses, started = [], time.perf_counter()
    return training


def write_base(tokenizer: Tokenizer, training: Training, folder: Path) -> None:
    """Write the base as transformers reads it, and the log beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    training.model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False, max_new_tokens=64
    )
    training.model.save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIALS[PAD],
        bos_token=SPECIALS[BOS],
        eos_token=SPECIALS[EOS],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    (folder / "pretrain_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in training.log))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base", help="where the base is written")
    parser.add_argument("--checkpoints", type=Path, default=Path("pretrain-checkpoints"), help="to resume from")
    parser.add_argument("--steps", type=int, default=7_600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(options.seed)
    training = train(tokenizer, options.seed, options.steps, options.checkpoints)
    write_base(tokenizer, training, options.out)


if __name__ == "__main__":
    main()
