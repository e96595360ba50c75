"""How many tokens a micro-batch may store, and what happens where memory ends before they do.

Lives here: the budget and its halving. Does not live here: what is done again with less (`loop.py`), how much memory a
number of tokens takes (`memory.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from luthier.errors import TrainingError

TOKEN_BUDGET = 4096
WIDE_BUDGET = 16384  # on a GPU, where long rows pay; a step that has fewer tokens is one micro-batch
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "DefaultCPUAllocator")


@dataclass(slots=True)
class Room:
    """`tokens` a micro-batch may store; `longest`: tokens of the longest example, which is never split.

    `halved` is told every new budget, so that a resumed run begins with it.
    """

    tokens: int
    longest: int
    halved: Callable[[int], None]

    def halve(self, problem: str) -> str:
        """Half the budget from now on; gives what a person should know. Raises TrainingError where halving is no help.

        A budget below the longest example gives micro-batches of that example's size at most: no split is left.
        """
        if self.tokens < self.longest:
            hint = (
                "a smaller `training.max_seq_length`, `training.gradient_checkpointing: true`, `method: qlora`, or a"
                " smaller base"
            )
            raise TrainingError(f"an example of {self.longest:,} tokens does not fit into memory: {problem}", hint=hint)
        self.tokens //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.halved(self.tokens)
        return f"memory ended ({problem}): the same again with micro-batches of {self.tokens:,} tokens, half as many"


def out_of_memory(error: MemoryError | RuntimeError) -> str | None:
    """The first line of an error that says that memory ended; None for any other error."""
    words = f"{error}".strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(known in f"{error}" for known in _WORDS):
        return words
    return None
