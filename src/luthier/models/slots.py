"""What a slot trains, and where its numbers lie: LoRA, a soft prompt, or (alone) the whole model.

Lives here: `Slot`, its flat buffers, how each method makes one. Does not live here: hanging slots on a base
(`methods.py`), the maths (`lora.py`, `prompt.py`), files (`adapters.py`).

A slot's trainable numbers lie in one or two flat float32 buffers (decayed or not), its gradients in their twins; every
A, B, prompt or head parameter is a leaf tensor whose data and grad are slices of them. Clipping, stepping, saving are
one call each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError
from luthier.models.base import Base
from luthier.models.lora import Adapter, LoraLinear, draw_a, lora_scale, mix
from luthier.models.prompt import random_prompt, text_prompt, vocabulary_prompt
from luthier.spec import Full, Lora, PromptTuning, QLora

Method = PromptTuning | Lora | QLora | Full
PEFT_PREFIX = "base_model.model."  # before a module's name in the files of a PEFT adapter
PROMPT_PREFIX = "base_model."  # the same in the files of a soft prompt, which PEFT puts around the model itself
PROMPT = "prompt_embeddings"
BARE_BASE = -1  # a slot number that no adapter has: its rows see the base alone
Who = int | Sequence[int | None] | None
"""Whose rows they are: one slot's, or one slot a row; None is the bare base."""


@dataclass(frozen=True, slots=True)
class Flat:
    """One buffer of trainable numbers and its gradient; `decayed` says whether weight decay applies."""

    values: Tensor
    grads: Tensor
    decayed: bool
    shapes: Mapping[str, torch.Size]

    def split(self, buffer: Tensor) -> dict[str, Tensor]:
        """Views of a buffer of this layout, by the names of what lies there."""
        pieces = buffer.split([shape.numel() for shape in self.shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}


@dataclass(frozen=True, slots=True)
class Slot:
    """An adapter's place: what it trains, under PEFT's names in files (full tuning: the model's own names)."""

    index: int
    method: Method
    seed: int
    leaves: Mapping[str, Tensor]
    flats: tuple[Flat, ...]
    targets: tuple[str, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Live views of everything the slot trains; assign with `copy_` under `torch.no_grad()`."""
        return {name: leaf.detach() for name, leaf in self.leaves.items()}

    def head(self) -> dict[str, Tensor]:
        """The slot's own head by the model's parameter names; empty for full tuning, which trains the model's."""
        prefix = PROMPT_PREFIX if self.virtual_tokens else PEFT_PREFIX
        return {
            name.removeprefix(prefix): leaf
            for name, leaf in self.leaves.items()
            if name.startswith(prefix) and ".lora_" not in name
        }

    @property
    def virtual_tokens(self) -> int:
        return self.method.virtual_tokens if isinstance(self.method, PromptTuning) else 0

    @property
    def trainable_parameters(self) -> int:
        return sum(flat.values.numel() for flat in self.flats)


def slots_of(who: Who, rows: int) -> list[int]:
    """The slot of each row, `BARE_BASE` where there is none."""
    each = [who] * rows if who is None or isinstance(who, int) else who
    return [BARE_BASE if slot is None else slot for slot in each]


def lora_slot(base: Base, index: int, method: Lora | QLora, seed: int, layers: Mapping[str, LoraLinear]) -> Slot:
    """A and B of every layer, hung into it, and the head an encoder must train."""
    start: dict[str, Tensor] = {}
    for name, layer in layers.items():
        width_in, width_out = _widths(layer.base)
        start[f"{PEFT_PREFIX}{name}.lora_A.weight"] = draw_a(method.rank, width_in, seed, name)
        start[f"{PEFT_PREFIX}{name}.lora_B.weight"] = torch.zeros(width_out, method.rank)
    leaves, flats = _laid(start | _fresh_head(base, PEFT_PREFIX), base.device)
    scale = lora_scale(method.rank, method.alpha, method.rslora)
    for name, layer in layers.items():
        a, b = leaves[f"{PEFT_PREFIX}{name}.lora_A.weight"], leaves[f"{PEFT_PREFIX}{name}.lora_B.weight"]
        layer.adapters[index] = Adapter(a, b, scale, method.dropout, seed)
    return Slot(index, method, seed, leaves, flats, targets=tuple(layers))


def prompt_slot(base: Base, index: int, method: PromptTuning, seed: int) -> Slot:
    """Virtual tokens, as wide as the base's embedding, and the head an encoder must train."""
    n, embedding = method.virtual_tokens, base.model.get_input_embeddings()

    def embed(ids: Tensor) -> Tensor:
        return embedding(ids.to(base.device)).detach().cpu()

    generator_seed = mix(seed, "prompt")
    if method.init_method == "random":
        prompt = random_prompt(n, embedding.embedding_dim, generator_seed)
    elif method.init_method == "text":
        ids = base.tokenizer(method.init_text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ModelError("`method.init_text` gives no tokens", hint="describe the task in a sentence")
        prompt = text_prompt(n, ids, embed)
    else:
        special = set(base.tokenizer.all_special_ids)
        ordinary = [i for i in range(min(len(base.tokenizer), embedding.num_embeddings)) if i not in special]
        prompt = vocabulary_prompt(n, ordinary, embed, generator_seed)
    leaves, flats = _laid({PROMPT: prompt} | _fresh_head(base, PROMPT_PREFIX), base.device, spared=(PROMPT,))
    return Slot(index, method, seed, leaves, flats)


def full_slot(base: Base, method: Full, seed: int) -> Slot:
    """All parameters, or those whose name contains one of `trainable` and what the checkpoint lacked."""
    model = base.model.float()
    parameters = dict(model.named_parameters())
    wanted = method.trainable or ("",)
    chosen = {name: p for name, p in parameters.items() if any(word in name for word in wanted)}
    if not chosen:
        hint = f"names look like `{list(parameters)[-1]}`"
        raise ModelError(f"no parameter's name contains one of {list(wanted)} (`method.trainable`)", hint=hint)
    chosen |= {name: p for name, p in parameters.items() if inside(name, base.fresh)}
    embeddings: dict[int, Any] = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Embedding)}
    spared = tuple(name for name, p in chosen.items() if id(p) in embeddings)
    leaves, flats = _laid({name: p.detach() for name, p in chosen.items()}, base.device, spared)
    for name, p in chosen.items():
        p.data, p.grad = leaves[name].detach(), leaves[name].grad
        p.requires_grad_(True)
        table = embeddings.get(id(p))
        if table is not None and type(table).forward is nn.Embedding.forward:
            table.forward = partial(_look_up, table)
    return Slot(0, method, seed, chosen, flats)


class _LookUp(torch.autograd.Function):
    """Rows of an embedding, whose gradient goes straight to the rows it is of.

    torch would fill a gradient as large as the table with zeros and add all of it: with 240 tokens and MiniLM's table
    that was a seventh of a step.
    """

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.ids, ctx.weight, ctx.padding = ids, weight, padding
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        if ctx.padding is not None:
            grad = grad.masked_fill((ctx.ids == ctx.padding)[..., None], 0)
        ctx.weight.grad.index_add_(0, ctx.ids.flatten(), grad.flatten(0, -2))
        return None, None, None


def _look_up(table: nn.Embedding, ids: Tensor) -> Tensor:
    return _LookUp.apply(ids, table.weight, table.padding_idx)


def inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a parameter or module is one of the modules, or in it."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def _laid(
    start: Mapping[str, Tensor], device: torch.device, spared: Sequence[str] = ()
) -> tuple[dict[str, Tensor], tuple[Flat, ...]]:
    """Lay tensors into flat float32 buffers, each a leaf over its slice.

    Weight decay is for matrices; norms, biases and the `spared` (embeddings, prompts) lie in a buffer without it.
    """
    leaves: dict[str, Tensor] = {}
    flats = []
    for decayed in (True, False):
        group = {name: t for name, t in start.items() if (t.dim() > 1 and name not in spared) == decayed}
        if not group:
            continue
        values = torch.cat([tensor.reshape(-1).to(device, torch.float32) for tensor in group.values()])
        flat = Flat(values, torch.zeros_like(values), decayed, {name: tensor.shape for name, tensor in group.items()})
        grads = flat.split(flat.grads)
        for name, piece in flat.split(values).items():
            leaves[name] = piece.detach().requires_grad_()
            leaves[name].grad = grads[name]
        flats.append(flat)
    return {name: leaves[name] for name in start}, tuple(flats)


def _fresh_head(base: Base, prefix: str) -> dict[str, Tensor]:
    """A slot's own copy of the head an encoder's adapter must train."""
    return {prefix + name: p.detach().clone() for name, p in base.model.named_parameters() if inside(name, base.fresh)}


def _widths(module: Any) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features
