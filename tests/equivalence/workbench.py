"""What the equivalence tests share: rows of token ids with common prefixes, tiny bases with slots, losses by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import peft
import torch
from torch import Tensor
from torch.nn import functional as F

from luthier import spec
from luthier.data.batches import Share, trained_entries
from luthier.data.examples import Encoded
from luthier.models import base as bases
from luthier.models.base import Base
from luthier.models.methods import Method, Tuned, attach
from luthier.train.shares import lay_out

Tiny = Callable[..., Path]
LORA = spec.Lora(rank=4, alpha=8, dropout=0.0, target_modules=("all-linear",))
PROMPT = spec.PromptTuning(virtual_tokens=3, init_method="vocabulary")
LABELS = ("no", "perhaps", "yes")
TASK = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "encoder": "SEQ_CLS"}


def rows(family: str, count: int = 7, seed: int = 0) -> list[Encoded]:
    """Examples of uneven length; many share a prefix, two are the same, one is the beginning of another."""
    draw = np.random.default_rng(seed)
    shared = draw.integers(5, 300, 9)
    made = []
    for i in range(count):
        head = shared[: draw.integers(2, 9)] if i % 3 else draw.integers(5, 300, 4)
        ids = np.concatenate([head, draw.integers(5, 300, draw.integers(2, 7))]).astype(np.int32)
        made.append(_encoded(f"row{i}", ids, int(draw.integers(1, 4)), family, i % len(LABELS)))
    if family != "encoder":
        made.append(_encoded("twin", made[1].ids_L, int(made[1].train_L.sum()), family, 0))
        made.append(_encoded("prefix", made[2].ids_L[:-1], 1, family, 0))
    return made


def _encoded(name: str, ids_L: np.ndarray, trained: int, family: str, label: int) -> Encoded:
    train_L = np.zeros(len(ids_L), bool)
    if family == "encoder":
        return Encoded(name, ids_L, train_L, label=label)
    train_L[-trained:] = True
    return Encoded(name, ids_L, train_L)


def load(tiny: Tiny, kind: str, method: Method | None = None, **overrides: object) -> Base:
    """A tiny base in float32 without dropout of its own."""
    base = bases.load(spec.Model(name=str(tiny(kind, **overrides)), attention="eager"), method, labels=LABELS)
    for module in base.model.modules():
        for name, value in vars(module).items():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return base


def tune(base: Base, *methods: Method, seeds: Sequence[int] = ()) -> Tuned:
    """Slots with noise in B and the head, so that nothing is zero by chance."""
    tuned = attach(base, methods, seeds or range(len(methods)))
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for slot in tuned.slots:
            for name, tensor in slot.tensors().items():
                if ".lora_B." in name:
                    tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.1)
    return tuned


def share(tuned: Tuned, slot: int, examples: Sequence[Encoded], share_prefixes: bool = True) -> Share:
    virtual = tuned.slots[slot].virtual_tokens
    return Share(slot, examples, 1 / trained_entries(examples, virtual), virtual, share_prefixes)


def gradients(tuned: Tuned, shares: Sequence[Share], budget: int) -> tuple[float, list[dict[str, Tensor]]]:
    """Loss of a step and every gradient by name, for every slot."""
    total = 0.0
    for slot in tuned.slots:
        for flat in slot.flats:
            flat.grads.zero_()
    for batch in lay_out(tuned, shares, budget):
        nll_S, _ = tuned.nll(batch, {slot.index: 0 for slot in tuned.slots})
        loss = (nll_S * torch.from_numpy(batch.weights_S)).sum()
        loss.backward()
        total += float(loss.detach())
    return total, [{name: leaf.grad.clone() for name, leaf in slot.leaves.items()} for slot in tuned.slots]


def padded_loss(family: str, model: Callable[..., object], examples: Sequence[Encoded], start_id: int | None) -> Tensor:
    """Mean loss per trained token, one example after another through the whole model: the definition."""
    losses, count = [], 0
    for row in examples:
        ids = torch.from_numpy(row.ids_L.astype(np.int64))[None]
        if family == "encoder":
            logits, targets = model(input_ids=ids).logits, torch.tensor([row.label])
        elif family == "seq2seq":
            target = ids[:, row.prompt_length :]
            decoder = torch.cat([torch.tensor([[start_id]]), target[:, :-1]], 1)
            logits = model(input_ids=ids[:, : row.prompt_length], decoder_input_ids=decoder).logits[0]
            targets = target[0]
        else:
            trained = torch.from_numpy(np.flatnonzero(row.train_L))
            everything = model(input_ids=ids).logits[0]
            shift = everything.shape[0] - ids.shape[1]  # virtual tokens before the row
            logits, targets = everything[trained + shift - 1], ids[0, trained]
        losses.append(F.cross_entropy(logits.float(), targets, reduction="sum"))
        count += len(targets)
    return torch.stack(losses).sum() / count


def batch_loss(family: str, model: Callable[..., object], examples: Sequence[Encoded], start_id: int | None) -> Tensor:
    """The same through one padded batch with its attention mask: how other programs do it."""
    cuts = [row.prompt_length if family == "seq2seq" else len(row.ids_L) for row in examples]
    source = _padded([row.ids_L[:cut] for row, cut in zip(examples, cuts, strict=True)], 2)
    call = {"input_ids": source, "attention_mask": _padded([np.ones(cut, np.int32) for cut in cuts], 0)}
    if family == "encoder":
        return F.cross_entropy(model(**call).logits.float(), torch.tensor([row.label for row in examples]))
    if family == "seq2seq":
        targets = _padded([row.ids_L[cut:] for row, cut in zip(examples, cuts, strict=True)], -100)
        call["decoder_input_ids"] = torch.cat(
            [torch.full_like(targets[:, :1], start_id), targets.clamp(min=0)[:, :-1]], 1
        )
        logits = model(**call).logits
    else:
        targets = _padded([np.where(row.train_L, row.ids_L, -100) for row in examples], -100)[:, 1:]
        logits = model(**call).logits[:, -source.shape[1] : -1]  # without the places of virtual tokens
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def _padded(rows: Sequence[np.ndarray], fill: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row).long() for row in rows], True, fill)


def peft_model(tiny: Tiny, kind: str, tuned: Tuned, base: Base | None = None) -> peft.PeftModel:
    """PEFT's model of the same base (or of `base`) with the slot's tensors in it."""
    slot = tuned.slots[0]
    base = base or load(tiny, kind, slot.method)
    kind_of = {"task_type": TASK[base.family]}
    if isinstance(slot.method, spec.Lora | spec.QLora):
        config = peft.LoraConfig(
            r=slot.method.rank,
            lora_alpha=slot.method.alpha,
            lora_dropout=slot.method.dropout,
            use_rslora=slot.method.rslora,
            target_modules=list(slot.targets),
            modules_to_save=list(base.fresh) or None,
            **kind_of,
        )
    else:
        n = slot.method.virtual_tokens
        config = peft.PromptTuningConfig(
            num_virtual_tokens=n,
            token_dim=slot.leaves["prompt_embeddings"].shape[1],
            num_transformer_submodules=1,
            num_attention_heads=4,
            num_layers=2,
            modules_to_save=list(base.fresh) or None,
            **kind_of,
        )
    model = peft.get_peft_model(base.model, config, autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        for name, theirs in peft_tensors(model, tuned).items():
            theirs.copy_(slot.leaves[name])
    return model


def peft_tensors(model: peft.PeftModel, tuned: Tuned) -> dict[str, Tensor]:
    """PEFT's live parameters under the names of its files."""
    found = {}
    for name, parameter in model.named_parameters():
        if name.startswith("prompt_encoder."):
            found["prompt_embeddings"] = parameter
        elif parameter.requires_grad:
            found[name.replace(".default", "").replace(".modules_to_save", "")] = parameter
    assert set(found) == set(tuned.slots[0].leaves)
    return found


def assert_close(ours: Tensor, theirs: Tensor, name: str, atol: float = 2e-6) -> None:
    """By absolute tolerance and by mean residual, so that a one-sided drift shows."""
    bound = atol * max(1.0, float(theirs.abs().max()))
    residual = (ours - theirs).abs()
    assert float(residual.max()) <= bound, f"{name}: {float(residual.max()):.2e} > {bound:.2e}"
    assert abs(float((ours - theirs).mean())) <= bound / 2, f"{name} drifts by {float((ours - theirs).mean()):.2e}"
