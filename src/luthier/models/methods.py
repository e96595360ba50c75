"""What is trained: N slots on one base, each LoRA, soft prompt or (alone) the whole model.

Lives here: `attach`, the slots with their flat buffers, and `Tuned`, the base with its slots. Does not live here: the
maths (`lora.py`, `prompt.py`), the forward pass (`forward.py`), files (`adapters.py`).

A slot's trainable numbers lie in one or two flat float32 buffers, its gradients in their twins; every A, B, prompt or
head parameter is a leaf tensor whose data and grad are slices of them. Clipping, stepping, saving are one call each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from luthier.data.batches import FlatBatch, PaddedBatch
from luthier.errors import ModelError, did_you_mean
from luthier.models.base import Base
from luthier.models.forward import ATTENTION, Batch, Forward
from luthier.models.lora import Adapter, LoraLinear, Turn, draw_a, lora_scale, mix
from luthier.models.prompt import random_prompt, text_prompt, vocabulary_prompt
from luthier.spec import Full, Lora, PromptTuning, QLora

Method = PromptTuning | Lora | QLora | Full
PEFT_PREFIX = "base_model.model."  # before a module's name in the files of a PEFT adapter
PROMPT_PREFIX = "base_model."  # the same in the files of a soft prompt, which PEFT puts around the model itself

# What `target_modules: []` means where the architecture's own default is not in presets: PEFT's choice by model type.
ARCHITECTURE_TARGETS: dict[str, tuple[str, ...]] = {
    "llama": ("q_proj", "v_proj"),
    "granite": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "qwen3": ("q_proj", "v_proj"),
    "gemma": ("q_proj", "v_proj"),
    "gemma2": ("q_proj", "v_proj"),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "gpt2": ("c_attn",),
    "gpt_neox": ("query_key_value",),
    "opt": ("q_proj", "v_proj"),
    "t5": ("q", "v"),
    "bart": ("q_proj", "v_proj"),
    "blenderbot": ("q_proj", "v_proj"),
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "albert": ("query", "value"),
    "deberta-v2": ("query_proj", "value_proj"),
}


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

    @property
    def virtual_tokens(self) -> int:
        return self.method.virtual_tokens if isinstance(self.method, PromptTuning) else 0

    @property
    def trainable_parameters(self) -> int:
        return sum(flat.values.numel() for flat in self.flats)


class Tuned:
    """A base with its slots. `model.forward` outside of `speaking` is not meaningful: ask here."""

    def __init__(self, base: Base, slots: list[Slot], turn: Turn) -> None:
        self.base = base
        self.slots = slots
        self.turn = turn
        self.full = any(isinstance(slot.method, Full) for slot in slots)
        self._prompts = {s.index: s.leaves["prompt_embeddings"] for s in slots if s.virtual_tokens}
        self._heads = {} if self.full else {s.index: _head_parameters(s) for s in slots}
        self._attention = base.model.config._attn_implementation
        self._forward = Forward(base.model, base.family, base.position_offset, base.decoder_start_token_id)

    def nll(self, batch: Batch, steps: Mapping[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood `(S,)` and arg-max `(S,)` of the batch's entries.

        `steps` is given while training: how far each slot is, which decides its dropout.
        """
        self._board(batch, steps)
        return self._forward.nll(batch, self._prompts, self._heads)

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Logits at every supervised entry, `(S, V)`; for an encoder class logits, `(S, classes)`."""
        self._board(batch, None)
        return self._forward.logits(batch, self._prompts, self._heads)

    @contextmanager
    def speaking(self, slot: int | None) -> Iterator[nn.Module]:
        """The model ready for `generate` and cached forwards: every row belongs to `slot`, or to the bare base."""
        self.turn.ranges = () if slot is None else ((slot, 0, 1),)
        self.turn.units, self.turn.steps = 1, None
        self.base.model.eval()
        self.base.model.config._attn_implementation = self._attention
        yield self.base.model

    def embed(self, ids: Tensor, slot: int | None) -> Tensor:
        """(B, L) ids to (B, L, D); a negative id -1-k is virtual token k of the slot."""
        embedded = self._forward.embed(ids.clamp(min=0))
        if slot not in self._prompts:
            return embedded
        vectors = self._prompts[slot].detach()[(-1 - ids).clamp(min=0)].to(embedded.dtype)
        return torch.where((ids < 0)[..., None], vectors, embedded)

    def generation_inputs(self, slot: int | None, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Padded inputs for `generate`: decoders on the left, encoder-decoders on the right, virtual tokens first."""
        virtual = [-1 - k for k in range(self.slots[slot].virtual_tokens)] if slot is not None else []
        rows = [[*virtual, *prompt] for prompt in prompts]
        width = max(map(len, rows))
        left = self.base.family == "causal"
        ids = torch.full((len(rows), width), self.base.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for b, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[b, place], mask[b, place] = torch.tensor(row), 1
        ids, mask = ids.to(self.base.device), mask.to(self.base.device)
        if not virtual:
            return {"input_ids": ids, "attention_mask": mask}
        return {"inputs_embeds": self.embed(ids, slot), "attention_mask": mask}

    def checkpoint_activations(self) -> None:
        """Recompute each layer in the backward pass instead of keeping it (Chen et al. 2016, arXiv 1604.06174).

        transformers does so only for a layer in training mode; a frozen base's layers alone are put there
        (`_set_mode`), their own dropout at zero and their children left in evaluation mode.
        """
        for layer in self._layers():
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            if not self.full:
                _silence_dropout(layer)

    def _layers(self) -> list[Any]:
        return [module for module in self.base.model.modules() if isinstance(module, GradientCheckpointingLayer)]

    def _set_mode(self, training: bool) -> None:
        """The base's dropout belongs to full tuning; a frozen base stays in evaluation mode, save recomputed layers."""
        self.base.model.train(training and self.full)
        if training and not self.full:
            for layer in self._layers():
                layer.training = layer.gradient_checkpointing

    def _board(self, batch: Batch, steps: Mapping[int, int] | None) -> None:
        """Tell the adapters whose rows are coming and bring the model into the right mode.

        It stays so until the next call: a checkpointed layer runs again in the backward pass.
        """
        self.turn.ranges, self.turn.steps = batch.ranges, steps
        self.turn.keys = _row_keys(batch, self.base.device) if steps is not None else {}
        self._set_mode(steps is not None)
        if isinstance(batch, FlatBatch):
            self.turn.units = len(batch.tokens_T)
            self.base.model.config._attn_implementation = ATTENTION
        else:
            self.turn.units = len(batch.source_BL)
            self.base.model.config._attn_implementation = self._attention


def attach(base: Base, methods: Sequence[Method], seeds: Sequence[int]) -> Tuned:
    """Hang one slot a method on the base. LoRA and prompts may share a base; full tuning stands alone.

    Raises ModelError for methods that cannot share a base, unknown target modules, or a task the method cannot do.
    """
    if len(methods) > 1 and any(isinstance(method, Full) for method in methods):
        raise ModelError("full tuning changes the base, so it cannot share it", hint="run it alone")
    turn = Turn()
    base.model.requires_grad_(False)
    linears = _linears(base)
    names = {module: name for name, module in base.model.named_modules()}
    wrapped: dict[str, LoraLinear] = {}
    slots = []
    for index, (method, seed) in enumerate(zip(methods, seeds, strict=True)):
        if isinstance(method, Full):
            slots.append(_full_slot(base, method, seed))
        elif isinstance(method, PromptTuning):
            slots.append(_prompt_slot(base, index, method, seed))
        else:
            targets = _targets(base, method, linears)
            for name in targets:
                if name not in wrapped:
                    wrapped[name] = _wrap(linears[name], names[linears[name]], turn)
            slots.append(_lora_slot(base, index, method, seed, {name: wrapped[name] for name in targets}))
    for name, layer in wrapped.items():
        parent, _, child = name.rpartition(".")
        setattr(base.model.get_submodule(parent), child, layer)
    return Tuned(base, slots, turn)


# -------------------------------------------------------------------------------------------------------------- slots


def _lora_slot(base: Base, index: int, method: Lora | QLora, seed: int, layers: Mapping[str, LoraLinear]) -> Slot:
    start: dict[str, Tensor] = {}
    for name, layer in layers.items():
        width_in, width_out = _widths(layer.base)
        start[f"{PEFT_PREFIX}{name}.lora_A.weight"] = draw_a(method.rank, width_in, seed, name)
        start[f"{PEFT_PREFIX}{name}.lora_B.weight"] = torch.zeros(width_out, method.rank)
    start |= _head_start(base, PEFT_PREFIX)
    leaves, flat = _pack(start, base.device, decayed=True)
    scale = lora_scale(method.rank, method.alpha, method.rslora)
    for name, layer in layers.items():
        a, b = leaves[f"{PEFT_PREFIX}{name}.lora_A.weight"], leaves[f"{PEFT_PREFIX}{name}.lora_B.weight"]
        layer.adapters[index] = Adapter(a, b, scale, method.dropout, seed)
    return Slot(index, method, seed, leaves, (flat,), targets=tuple(layers))


def _prompt_slot(base: Base, index: int, method: PromptTuning, seed: int) -> Slot:
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
    leaves, flat = _pack({"prompt_embeddings": prompt} | _head_start(base, PROMPT_PREFIX), base.device, decayed=True)
    return Slot(index, method, seed, leaves, (flat,))


def _full_slot(base: Base, method: Full, seed: int) -> Slot:
    """All parameters (or those whose name contains one of `trainable`) become slices of two buffers."""
    model = base.model.float()
    parameters = dict(model.named_parameters())
    wanted = method.trainable or ("",)
    chosen = {name: p for name, p in parameters.items() if any(word in name for word in wanted)}
    if not chosen:
        hint = f"names look like `{list(parameters)[-1]}`"
        raise ModelError(f"no parameter's name contains one of {list(wanted)} (`method.trainable`)", hint=hint)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    flats = []
    for decayed in (True, False):
        group = {n: p for n, p in chosen.items() if (p.dim() > 1 and id(p) not in embeddings) == decayed}
        if group:
            leaves, flat = _pack({name: p.detach() for name, p in group.items()}, base.device, decayed)
            for name, p in group.items():
                p.data, p.grad = leaves[name].detach(), leaves[name].grad
                p.requires_grad_(True)
            flats.append(flat)
    return Slot(0, method, seed, dict(chosen), tuple(flats))


def _pack(start: Mapping[str, Tensor], device: torch.device, decayed: bool) -> tuple[dict[str, Tensor], Flat]:
    """Lay tensors into one float32 buffer; each comes back as a leaf over its slice."""
    values = torch.cat([tensor.reshape(-1).to(device, torch.float32) for tensor in start.values()])
    flat = Flat(values, torch.zeros_like(values), decayed, {name: tensor.shape for name, tensor in start.items()})
    grads = flat.split(flat.grads)
    leaves = {name: piece.detach().requires_grad_() for name, piece in flat.split(values).items()}
    for name, leaf in leaves.items():
        leaf.grad = grads[name]
    return leaves, flat


def _head_start(base: Base, prefix: str) -> dict[str, Tensor]:
    """A slot's own copy of the head an encoder's adapter must train."""
    return {prefix + name: p.detach().clone() for name, p in base.model.named_parameters() if _inside(name, base.fresh)}


def _head_parameters(slot: Slot) -> dict[str, Tensor]:
    """The slot's head by the model's own parameter names."""
    prefix = PROMPT_PREFIX if slot.virtual_tokens else PEFT_PREFIX
    return {
        name.removeprefix(prefix): leaf
        for name, leaf in slot.leaves.items()
        if name.startswith(prefix) and ".lora_" not in name
    }


# ------------------------------------------------------------------------------------------------------------- layers


def _linears(base: Base) -> dict[str, nn.Module]:
    """Every linear and `Conv1D` layer by name, without the output layer and what lies behind an encoder's backbone."""
    output = base.model.get_output_embeddings()
    inside = base.model.base_model_prefix + "." if base.family == "encoder" else ""
    return {
        name: module
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        and name.startswith(inside)
        and not _inside(name, base.fresh)
    }


def _inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a parameter or module is one of the modules, or in it."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def _targets(base: Base, method: Lora | QLora, linears: Mapping[str, nn.Module]) -> list[str]:
    wanted = tuple(method.target_modules or ARCHITECTURE_TARGETS.get(base.facts.model_type, ("all-linear",)))
    if wanted == ("all-linear",):
        return list(linears)
    found = [name for name in linears if any(name == w or name.endswith(f".{w}") for w in wanted)]
    for name in wanted:
        if not any(f == name or f.endswith(f".{name}") for f in found):
            short = sorted({linear.rpartition(".")[2] for linear in linears})
            hint = did_you_mean(name, short) or f"this model has {', '.join(short)}"
            raise ModelError(f"`{name}` (`method.target_modules`) is not a linear layer of {base.name}", hint=hint)
    return found


def _wrap(module: Any, name: str, turn: Turn) -> LoraLinear:
    quantized = not module.weight.is_floating_point()
    return LoraLinear(module, name, turn, transposed=isinstance(module, Conv1D), quantized=quantized)


def _widths(module: Any) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features


# --------------------------------------------------------------------------------------------------------------- modes


def _silence_dropout(layer: nn.Module) -> None:
    for name, value in vars(layer).items():
        if "dropout" in name and isinstance(value, float):
            setattr(layer, name, 0.0)


def _row_keys(batch: FlatBatch | PaddedBatch, device: torch.device) -> dict[int, Tensor]:
    """Names of rows for dropout, by how many rows a layer sees."""
    tables = [batch.keys_T] if isinstance(batch, FlatBatch) else [batch.keys_BM, batch.keys_BL]
    return {table.size: torch.from_numpy(table.reshape(-1)).to(device, torch.int32) for table in tables}
