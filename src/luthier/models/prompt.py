"""N soft prompts before one frozen model. Pure maths: torch only.

Prompt tuning (Lester et al. 2021, arXiv 2104.08691): n trained vectors stand before the embedded tokens; the model
stays as it is. They come first of all, before BOS and before [CLS], as PEFT places them, and count as positions.

In a flat batch the virtual tokens are the root of a slot's tree, computed once for all its examples. A token id
`-1 - k` stands for virtual token k of the slot whose range it lies in.

Letters: n virtual tokens, D embedding width, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Embed = Callable[[Tensor], Tensor]


def embed_with_prompts(
    tokens_T: Tensor, ranges: Sequence[tuple[int, int, int]], prompts: Mapping[int, Tensor], embed: Embed
) -> Tensor:
    """(T, D): the model's own embedding of real tokens, the slot's vectors (n, D) where virtual ones stand.

    `embed` keeps whatever scaling the model gives its embeddings; virtual vectors are used as they are.
    """
    embedded_TD = embed(tokens_T.clamp(min=0))
    pieces = []
    for slot, start, stop in ranges:
        tokens, piece = tokens_T[start:stop], embedded_TD[start:stop]
        if slot in prompts:
            chosen = prompts[slot][(-1 - tokens).clamp(min=0)].to(piece.dtype)
            piece = torch.where((tokens < 0)[:, None], chosen, piece)
        pieces.append(piece)
    return torch.cat(pieces)


def random_prompt(n: int, width: int, seed: int) -> Tensor:
    """(n, D) normal with unit variance: what `torch.nn.Embedding` and PEFT start from."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def vocabulary_prompt(n: int, vocabulary: Sequence[int], embed: Embed, seed: int) -> Tensor:
    """(n, D): the embeddings of n tokens drawn from the ordinary vocabulary."""
    drawn = torch.randint(len(vocabulary), (n,), generator=torch.Generator().manual_seed(seed))
    return embed(torch.tensor(vocabulary)[drawn]).float()


def text_prompt(n: int, text_ids: Sequence[int], embed: Embed) -> Tensor:
    """(n, D): the embeddings of a text, repeated or cut to n tokens (as PEFT does)."""
    repeated = (list(text_ids) * (n // len(text_ids) + 1))[:n]
    return embed(torch.tensor(repeated)).float()
