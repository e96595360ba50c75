"""The least work of a training step, in floating-point operations, whoever does it.

With T distinct tokens (each prefix of the step stored once), U distinct supervised sources, N the weights of the
layers' linear maps, D the hidden width, V the vocabulary, c the tokens a token attends to:

    linear maps     4 N T      forward 2, gradient of the activations 2 (full: 6, the weights' gradient too)
    output layer    4 V D U    likewise (full: 6)
    attention       12 D c     a token and layer: two products forward, four backward
    adapters        6 r (in + out) T    a linear map of rank r

LoRA's first layer needs no gradient of its input: its q, k, v count 2 instead of 4. Full tuning is counted with shared
prefixes as well, which is exact where the base has no dropout.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.batches import Share, flat_batches
from luthier.data.examples import Encoded

from .workloads import VOCABULARY, Shape


def least_flops(shape: Shape, method: str, rank: int, virtual: int, rows: Sequence[Encoded]) -> float:
    """Operations of one step over `rows`. `method` is lora, prompt or full."""
    (batch,) = flat_batches([Share(0, rows, 1.0, virtual)], budget=1 << 40)
    tokens, sources = len(batch.tokens_T), len(set(batch.sources_S.tolist()))
    attended = float(batch.positions_T.sum() + tokens)
    factor = 6 if method == "full" else 4
    linears = shape.linears()
    weights = shape.layers * sum(a * b for a, b in linears)
    work = factor * (weights * tokens + VOCABULARY * shape.hidden * sources)
    work += 12 * shape.hidden * shape.layers * attended
    if method == "lora":
        work += 6 * rank * shape.layers * sum(a + b for a, b in linears) * tokens
        work -= 2 * sum(a * b for a, b in linears[:3]) * tokens
    return float(work)


def unique_tokens(rows: Sequence[Encoded], virtual: int = 0) -> int:
    """Tokens left when every prefix that the rows share is stored once."""
    (batch,) = flat_batches([Share(0, rows, 1.0, virtual)], budget=1 << 40)
    return len(batch.tokens_T)
