"""A base with N slots: hanging them on it, and asking it what it predicts for a micro-batch.

Lives here: `attach` and `Tuned`. Does not live here: what a slot holds (`slots.py`), which layers adapters hang on
(`targets.py`), how the model is called (`forward.py`), the maths (`lora.py`, `prompt.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from luthier.data.abreast import side_by_side
from luthier.data.batches import FlatBatch, Share, padded_batches, slot_ranges
from luthier.errors import ModelError
from luthier.models.base import Base
from luthier.models.forward import ATTENTION, CANNOT, TOLERANCE, Batch, Forward, alone, keeps_its_attention, probes
from luthier.models.growing import Growing
from luthier.models.lora import Turn
from luthier.models.prompt import embed_with_prompts
from luthier.models.slots import (
    BARE_BASE,
    PROMPT,
    Method,
    Slot,
    Who,
    full_slot,
    lora_slot,
    prompt_slot,
    slots_of,
)
from luthier.models.targets import Targets
from luthier.spec import Full, PromptTuning, QLora

ALONE = ("full tuning changes the base, so it cannot share it", None, "run it alone")


class Tuned:
    """A base with its slots. `model.forward` outside of `speaking` is not meaningful: ask here.

    `layout` is how rows lie in a micro-batch; `note` says for a person why not flat, where one would expect it.
    """

    layout: Literal["flat", "padded"]
    note: str

    def __init__(self, base: Base, slots: list[Slot], targets: Targets) -> None:
        self.base = base
        self.slots = slots
        self.turn = targets.turn
        self._targets = targets
        self.full = any(isinstance(slot.method, Full) for slot in slots)
        # A base's own dropout, at work in full tuning only, draws for each stored token: shared ones would share it.
        self.shares_prefixes = not self.full or not _drops(base.model.config)
        self._seat(slots)
        self._attention = base.model.config._attn_implementation
        self._forward = Forward(base.model, base.family, base.position_offset, base.decoder_start_token_id)
        self.layout, self.note = "padded" if base.family == "seq2seq" else "flat", ""

    def _seat(self, slots: list[Slot]) -> None:
        self.slots = slots
        self._prompts = {s.index: s.leaves[PROMPT] for s in slots if s.virtual_tokens}
        self._heads = {s.index: s.head() for s in slots}

    def hang(self, index: int, method: Method, seed: int) -> Slot:
        """A fresh slot in the place of what slot `index` holds, or behind the last one; no other slot notices.

        What was there is let go: whoever wants it has saved it. Raises ModelError for a method that cannot share this
        base, or targets a layer that is not there; then nothing has changed.
        """
        if self.full or isinstance(method, Full):
            raise ModelError(*ALONE)
        bits, wanted = self._targets.bits(), method.bits if isinstance(method, QLora) else None
        if bits != wanted and not isinstance(method, PromptTuning):
            kept = f"in {bits} bits" if bits else "unquantized"
            raise ModelError(f"`method.type: {method.type}` needs a base of its own: this one is kept {kept}")
        before, taken = self.slots, self._targets.take(index)
        try:
            fresh = _slot(self.base, self._targets, index, method, seed)
            self._seat([*before[:index], fresh, *before[index + 1 :]])
            if len(self.slots) > 1 and self.base.model.device.type != "meta":
                self._divide()
        except ModelError:
            self._targets.give(index, taken)
            self._seat(before)
            raise
        return fresh

    def lay_out(self, shares: Sequence[Share], budget: int) -> Iterator[Batch]:
        """Micro-batches of at most `budget` tokens in the form this base takes."""
        if self.layout == "flat":
            return side_by_side(shares, budget, self._forward.lower.upper())
        return padded_batches(shares, budget, self.base.pad_token_id, paired=self.base.family == "seq2seq")

    def nll(self, batch: Batch, steps: Mapping[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood `(S,)` and arg-max `(S,)` of the batch's entries.

        `steps` is given while training: how far each slot is, which decides its dropout.
        """
        self._board(batch, steps)
        return self._forward.nll(batch, self._prompts, self._heads)

    def hidden(self, batch: Batch) -> Tensor:
        """What the output layer or head would be given in training (`Forward.hidden`); also without numbers."""
        self._board(batch, {slot.index: 0 for slot in self.slots})
        return self._forward.hidden(batch, self._prompts)

    @torch.no_grad()
    def logits(self, batch: Batch, growing: Growing | None = None) -> Tensor:
        """Logits at every supervised entry, `(S, V)`; for an encoder class logits, `(S, classes)`.

        `growing` keeps what later tokens of a flat batch's rows will see (`grow`).
        """
        self._board(batch, None)
        return self._forward.logits(batch, self._prompts, self._heads, growing)

    def grow(
        self, growing: Growing, tokens_B: Sequence[int], positions_B: Sequence[int], slots_B: Sequence[int]
    ) -> Tensor:
        """Logits `(B, V)` after one more token of every row that `growing` keeps, rows of a slot side by side."""
        growing.advance()
        rows_B, none_B = np.arange(len(tokens_B)), np.zeros(len(tokens_B), np.int64)
        batch = FlatBatch(
            tokens_T=np.array(tokens_B, np.int64),
            positions_T=np.array(positions_B, np.int64),
            ends_T=rows_B + 1,
            keys_T=none_B,
            ranges=slot_ranges(slots_B),
            sources_S=rows_B,
            targets_S=none_B,
            weights_S=none_B.astype(np.float32),
            example_ids=(),
            entries=(),
        )
        return self.logits(batch, growing)

    def prove(self) -> None:
        """Lay rows flat where that computes what each row alone gives through the unmodified model, else padded.

        Whether a family's attention can be given from outside shows in what its layers do and in what they compute, not
        in its name; a model without numbers shows only the first. Raises ModelError where padded rows differ too, or
        where slots cannot be told apart.
        """
        if self.base.family == "seq2seq":
            return
        kind, numbers = self.base.facts.model_type, self.base.model.device.type != "meta"
        with self.speaking(None) as model:
            reason = keeps_its_attention(model, self.base.facts.layers) or (self._differs() if numbers else "")
        if reason:
            self.layout = "padded"
            self.note = f"{kind} models run padded and share no prefix: they do not take flat batches ({reason})"
        still = self._differs() if reason and numbers else ""
        if still:
            raise ModelError(
                f"{kind} models cannot be tuned: neither flat nor padded rows compute what a row alone does ({still})",
                where=self.base.name,
                hint="Llama, Qwen, Mistral, Gemma, GPT-2, BERT, T5 and many more can: docs/families.md",
            )
        if len(self.slots) > 1 and numbers:
            self._divide()

    @torch.no_grad()
    def _divide(self) -> None:
        """Send rows of all slots through the model: a layer whose rows are not the batch's cannot tell slots apart."""
        rows = probes(self.base.family, self.base.model.config.get_text_config().vocab_size)
        try:
            for batch in self.lay_out([Share(s.index, rows, 1.0, s.virtual_tokens) for s in self.slots], budget=100):
                self.nll(batch, {slot.index: 0 for slot in self.slots})
        except ValueError as error:
            hint = "train them one at a time, or name other `method.target_modules`"
            raise ModelError(f"these slots cannot share {self.base.name}: {error}", hint=hint) from error

    def _differs(self) -> str:
        """How far two rows in the layout at hand are from each alone; empty within rounding."""
        rows = probes(self.base.family, self.base.model.config.get_text_config().vocab_size)
        with self.speaking(None) as model:
            expected = {row.example_id: alone(model, row) for row in rows}
        try:
            (batch,) = self.lay_out([Share(BARE_BASE, rows, 1.0)], budget=100)
            together = self.logits(batch)
        except CANNOT as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        separate = torch.stack([expected[name] for name in batch.example_ids])
        difference = float((together - separate).abs().max() / separate.abs().max().clamp(min=1.0))
        return "" if difference < TOLERANCE[self.base.dtype] else f"the logits differ by {difference:.1g}"

    @contextmanager
    def speaking(self, who: Who) -> Iterator[PreTrainedModel]:
        """The model ready for `generate` and cached forwards: every row is `who`'s, those of a slot side by side."""
        slots_B = slots_of(who, 1)
        self.turn.ranges, self.turn.units, self.turn.steps = slot_ranges(slots_B), len(slots_B), None
        self._ask(None)
        self.base.model.eval()
        self.base.model.config._attn_implementation = self._attention
        yield self.base.model

    def virtual_tokens(self, slot: int | None) -> int:
        """How many stand before each row of a slot; none before those of the bare base."""
        return len(self._prompts[slot]) if slot is not None and slot in self._prompts else 0

    def generation_inputs(self, who: Who, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Padded inputs for `generate`: decoders on the left, encoder-decoders on the right, virtual tokens first."""
        slots_B = slots_of(who, len(prompts))
        rows = [
            [*range(-1, -1 - self.virtual_tokens(slot), -1), *prompt]
            for slot, prompt in zip(slots_B, prompts, strict=True)
        ]
        width = max(map(len, rows))
        left = self.base.family == "causal"
        ids = torch.full((len(rows), width), self.base.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for b, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[b, place], mask[b, place] = torch.tensor(row), 1
        ids, mask = ids.to(self.base.device), mask.to(self.base.device)
        if not any(map(self.virtual_tokens, slots_B)):
            return {"input_ids": ids, "attention_mask": mask}
        ranges = [(slot, start * width, stop * width) for slot, start, stop in slot_ranges(slots_B)]
        embedded = embed_with_prompts(ids.flatten(), ranges, self._prompts, self._forward.embed)
        return {"inputs_embeds": embedded.detach().view(*ids.shape, -1), "attention_mask": mask}

    def multiplied(self) -> Iterator[Tensor]:
        """The weights that every token is multiplied by: not tables of embeddings, nor the output layer."""
        output = self.base.model.get_output_embeddings()
        for module in self.base.model.modules():
            if isinstance(module, nn.Linear | Conv1D) and module is not output:
                yield module.weight

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
        self._ask(batch.sources_S if isinstance(batch, FlatBatch) else None)
        self._set_mode(steps is not None)
        if isinstance(batch, FlatBatch):
            self.turn.units = len(batch.tokens_T)
            self.base.model.config._attn_implementation = ATTENTION
        else:
            self.turn.units = len(batch.source_BL)
            self.base.model.config._attn_implementation = self._attention

    def _ask(self, sources_S: np.ndarray | None) -> None:
        """Which rows of a flat batch will be read, for the last layer and its adapters; None: all of them."""
        turn, asked = self.turn, self._forward.asked
        turn.asked_units, asked.rows_U = 0, None
        if sources_S is None or self.base.family != "causal":
            return
        rows_U = np.unique(sources_S)
        asked.rows_U = torch.from_numpy(rows_U).to(self.base.device)
        turn.asked_units = len(rows_U)
        turn.asked_ranges = tuple(
            (slot, *np.searchsorted(rows_U, (start, stop)).tolist()) for slot, start, stop in turn.ranges
        )
        if turn.keys:
            (keys_T,) = turn.keys.values()
            turn.keys[len(rows_U)] = keys_T[asked.rows_U]


def attach(base: Base, methods: Sequence[Method], seeds: Sequence[int]) -> Tuned:
    """Hang one slot a method on the base. LoRA and prompts may share a base; full tuning stands alone.

    Raises ModelError for methods that cannot share a base, unknown target modules, or a base that cannot be tuned
    (`Tuned.prove`, which chooses the layout).
    """
    full = any(isinstance(method, Full) for method in methods)
    if full and len(methods) > 1:
        raise ModelError(*ALONE)
    base.model.requires_grad_(False)
    targets = Targets(base, Turn())
    slots = [_slot(base, targets, i, *each) for i, each in enumerate(zip(methods, seeds, strict=True))]
    tuned = Tuned(replace(base, dtype=torch.float32) if full else base, slots, targets)
    tuned.prove()
    return tuned


def _slot(base: Base, targets: Targets, index: int, method: Method, seed: int) -> Slot:
    if isinstance(method, Full):
        return full_slot(base, method, seed)
    if isinstance(method, PromptTuning):
        return prompt_slot(base, index, method, seed)
    return lora_slot(base, index, method, seed, targets.of(method))


# --------------------------------------------------------------------------------------------------------------- modes


def _drops(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration drops anything in training (`attn_pdrop`, `hidden_dropout_prob`, …)."""
    return any("drop" in name and isinstance(value, float) and value > 0 for name, value in config.to_dict().items())


def _silence_dropout(layer: nn.Module) -> None:
    for name, value in vars(layer).items():
        if "dropout" in name and isinstance(value, float):
            setattr(layer, name, 0.0)


def _row_keys(batch: Batch, device: torch.device) -> dict[int, Tensor]:
    """Names of rows for dropout, by how many rows a layer sees."""
    tables = [batch.keys_T] if isinstance(batch, FlatBatch) else [batch.keys_BM, batch.keys_BL]
    return {table.size: torch.from_numpy(table.reshape(-1)).to(device, torch.int32) for table in tables}
