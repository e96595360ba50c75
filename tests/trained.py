"""Tuned tiny models without a training run: slots filled with seeded noise, and the two ways to ask them for logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier import spec
from luthier.data.batches import Share
from luthier.data.examples import Encoded
from luthier.models import base
from luthier.models.methods import Tuned, attach
from tests import tiny

LABELS = ("refund", "delivery", "other")
LORA = spec.Lora(rank=4, alpha=8, dropout=0.0, target_modules=("all-linear",))
QLORA = spec.QLora(rank=4, alpha=8, dropout=0.0, target_modules=("all-linear",))
PROMPT = spec.PromptTuning(virtual_tokens=3, init_method="vocabulary")
FULL = spec.Full()


def labels_of(kind: str) -> tuple[str, ...]:
    return LABELS if tiny.family(kind) == "encoder" else ()


def trained(kind: str, method: spec.Method, folder: Path | None = None, **chosen: Any) -> Tuned:
    """The tiny model `kind` (or the copy of it in `folder`) with one slot, every trained number moved by noise."""
    model = spec.Model(name=str(folder or tiny.build(kind)), **chosen)
    tuned = attach(base.load(model, method, labels_of(kind)), [method], [1])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in tuned.slots[0].tensors().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return tuned


def rows(family: str) -> list[Encoded]:
    """Three sequences of different lengths; everything after the first token (seq2seq: the second half) is trained."""
    rng = np.random.default_rng(0)
    made = []
    for length in (7, 12, 9):
        ids_L = rng.integers(5, 300, length).astype(np.int32)
        train_L = np.arange(length) >= {"causal": 1, "seq2seq": length // 2, "encoder": length}[family]
        made.append(Encoded(str(length), ids_L, train_L, label=1 if family == "encoder" else -1))
    return made


def ours(tuned: Tuned) -> Tensor:
    """Logits of every trained place of `rows`, through luthier's forward pass: (S, V), encoder (3, classes)."""
    slot, found = tuned.slots[0], []
    for row in rows(tuned.base.family):
        share = Share(slot.index, [row], 1.0, slot.virtual_tokens)
        batch = next(tuned.lay_out([share], 999))
        found.append(tuned.logits(batch)[torch.from_numpy(batch.entries[0]).long()])
    return torch.cat(found)


@torch.no_grad()
def plain(model: Any, family: str, virtual_tokens: int = 0, start: int | None = None) -> Tensor:
    """The same through a model of transformers or PEFT, called as their documentation says."""
    found = []
    for row in rows(family):
        ids = torch.from_numpy(row.ids_L).long()[None]
        if family == "seq2seq":
            source, target = ids[:, : row.prompt_length], ids[:, row.prompt_length :]
            shifted = torch.cat([torch.full((1, 1), start), target[:, :-1]], 1)
            mask = torch.ones_like(source)
            found.append(model(input_ids=source, attention_mask=mask, decoder_input_ids=shifted).logits[0])
        else:
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            found.append(logits if family == "encoder" else logits[0, virtual_tokens:-1])
    return torch.cat(found)


def far(one: Tensor, other: Tensor) -> float:
    """Largest difference."""
    return (one.float() - other.float()).abs().max().item()
