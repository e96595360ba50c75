"""One AdamW a slot, on its flat buffers, with the slot's own learning rate, schedule and clipping.

AdamW: Loshchilov and Hutter 2019, arXiv 1711.05101. Schedules are those of transformers' `get_scheduler`, step for
step, so that runs compare with peers. Does not live here: when to step (`loop.py`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from luthier.models.slots import Slot
from luthier.spec import Training


def learning_rate_at(step: int, steps: int, training: Training) -> float:
    """The rate of update `step` (0-based) of `steps`.

    Warm-up rises linearly from 0; after it the rate falls linearly to 0, along half a cosine, or stays.
    """
    peak = training.learning_rate
    warmup = warmup_steps(training.warmup, steps)
    if step < warmup:
        return peak * step / warmup
    if training.schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, steps - warmup)
    if training.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (1 - progress)


def warmup_steps(warmup: float, steps: int) -> int:
    """Below 1 a share of the steps (rounded up), otherwise their number.

    >>> warmup_steps(0.1, 25), warmup_steps(5, 25), warmup_steps(0, 25)
    (3, 5, 0)
    """
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)


class SlotOptimizer:
    """Clips and steps one slot; its state has the names of the slot's tensors."""

    def __init__(self, slot: Slot, training: Training, steps: int) -> None:
        self.slot = slot
        self.training = training
        self.steps = steps
        groups = []
        for flat in slot.flats:
            flat.values.grad = flat.grads
            groups.append({"params": [flat.values], "weight_decay": training.weight_decay if flat.decayed else 0.0})
        self._adamw = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def gradient_norm(self) -> float:
        """Euclidean norm of the slot's whole gradient."""
        return float(torch.stack([flat.grads.norm() for flat in self.slot.flats]).norm())

    def step(self, step: int, gradient_norm: float) -> float:
        """One update with gradients scaled to at most `max_grad_norm`; gives the learning rate used."""
        bound = self.training.max_grad_norm
        if bound and gradient_norm > bound:
            for flat in self.slot.flats:
                flat.grads.mul_(bound / (gradient_norm + 1e-6))  # torch.nn.utils.clip_grad_norm_ adds the same 1e-6
        rate = learning_rate_at(step, self.steps, self.training)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self.zero()
        return rate

    def zero(self) -> None:
        """Forget the gradients, in place: the leaves keep their slices."""
        for flat in self.slot.flats:
            flat.grads.zero_()

    def state(self) -> dict[str, Tensor]:
        """Live views of both moments by tensor name, and of the number of updates each buffer has seen."""
        live: dict[str, Tensor] = {}
        for number, flat in enumerate(self.slot.flats):
            moments = self._moments(flat.values)
            for kind in ("exp_avg", "exp_avg_sq"):
                live |= {f"{kind}:{name}": piece for name, piece in flat.split(moments[kind]).items()}
            live[f"updates:{number}"] = moments["step"].view(1)
        return live

    def _moments(self, values: Tensor) -> dict[str, Tensor]:
        """AdamW's state of a buffer, made as AdamW would make it where it has not stepped yet."""
        state = self._adamw.state[values]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=values.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(values), torch.zeros_like(values)
        return state
