"""Which layers of a base adapters may hang on, and hanging them there.

Lives here: finding the layers, wrapping one when the first adapter wants it. Does not live here: what hangs there
(`slots.py`), the maths (`lora.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError, did_you_mean
from luthier.models.base import Base
from luthier.models.lora import Adapter, LoraLinear, Turn
from luthier.models.slots import inside
from luthier.spec import Lora, QLora

_BITS = {torch.uint8: 4, torch.int8: 8}  # what bitsandbytes keeps quantized weights in


class Targets:
    """Every layer of a base that an adapter may hang on, by its name in the unmodified model.

    A layer once wrapped stays so: for rows without an adapter there it is the layer it was.
    """

    def __init__(self, base: Base, turn: Turn) -> None:
        self.turn = turn
        self._base = base
        self._linears = _linears(base)
        self._wrapped: dict[str, LoraLinear] = {}

    def of(self, method: Lora | QLora) -> dict[str, LoraLinear]:
        """The layers a method targets, wrapped. Raises ModelError for a name that none has; then none is wrapped."""
        return {name: self._wrapped.get(name) or self._wrap(name) for name in self._named(method)}

    def take(self, slot: int) -> dict[str, Adapter]:
        """Take a slot's adapters off their layers."""
        return {name: layer.adapters.pop(slot) for name, layer in self._wrapped.items() if slot in layer.adapters}

    def give(self, slot: int, adapters: Mapping[str, Adapter]) -> None:
        """Hang on their layers again what `take` took off, and nothing else of that slot."""
        self.take(slot)
        for name, adapter in adapters.items():
            self._wrapped[name].adapters[slot] = adapter

    def bits(self) -> int | None:
        """In how many bits the layers' weights are kept; None where they are not quantized."""
        return next((_BITS[kept] for kept in {m.weight.dtype for m in self._linears.values()} if kept in _BITS), None)

    def _named(self, method: Lora | QLora) -> list[str]:
        wanted, linears = tuple(method.target_modules), self._linears
        if wanted == ("all-linear",):
            return list(linears)
        found = [name for name in linears if any(name == w or name.endswith(f".{w}") for w in wanted)]
        for name in wanted:
            if not any(f == name or f.endswith(f".{name}") for f in found):
                short = sorted({linear.rpartition(".")[2] for linear in linears})
                hint = did_you_mean(name, short) or f"this model has {', '.join(short)}"
                said = f"`{name}` (`method.target_modules`) is not a linear layer of {self._base.name}"
                raise ModelError(said, hint=hint)
        return found

    def _wrap(self, name: str) -> LoraLinear:
        module: Any = self._linears[name]
        quantized = not module.weight.is_floating_point()
        layer = LoraLinear(module, name, self.turn, transposed=isinstance(module, Conv1D), quantized=quantized)
        parent, _, child = name.rpartition(".")
        setattr(self._base.model.get_submodule(parent), child, layer)
        self._wrapped[name] = layer
        return layer


def _linears(base: Base) -> dict[str, Any]:
    """Every linear and `Conv1D` layer by name, without the output layer and whatever an encoder has behind its layers.

    A pooler or head sees one row an example, not one a token: it is trained whole (`base.fresh`) or stays as it is.
    """
    output = base.model.get_output_embeddings()
    backbone = base.model.base_model_prefix
    inner = f"{backbone}." if base.family == "encoder" else ""
    behind = (*base.fresh, f"{backbone}.pooler") if base.family == "encoder" else base.fresh
    return {
        name: module
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        and name.startswith(inner)
        and not inside(name, behind)
    }
