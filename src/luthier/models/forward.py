"""One forward pass for three families: a micro-batch goes in, supervised logits of every slot come out.

Lives here: how unmodified transformers classes are called on flat rows, padded rows and heads. Does not live here: what
is trained (`methods.py`), the maths of attention, adapters, prompts and loss (their own files).

The model's own output layer is used as it is, with every scaling its family has: `_head_of` makes a copy of the model
that shares all weights but whose backbone echoes the hidden rows it is given. So only supervised rows meet it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from luthier.data.batches import FlatBatch, PaddedBatch, Share, flat_batches
from luthier.data.examples import Encoded
from luthier.models.attention import attend, layout
from luthier.models.loss import Entries, entry_nll, supervised_nll
from luthier.models.prompt import embed_with_prompts

Batch = FlatBatch | PaddedBatch
ATTENTION = (
    "luthier"  # the name under which transformers finds our attention; it builds no mask for a name it has no mask for
)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **said: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, H, T, d) in, (1, T, H, d) out. `layout` was given to the model's call."""
    scaling, dropout = said.get("scaling"), said.get("dropout", 0.0)
    window, softcap = said.get("sliding_window"), said.get("softcap")
    query, key, value = query.squeeze(0), key.squeeze(0), value.squeeze(0)  # [0] has a gradient of zeros to fill
    return attend(query, key, value, said["layout"], scaling, dropout, window, softcap)[None], None


AttentionInterface.register(ATTENTION, _attention)


class Echo(nn.Module):
    """Stands where the backbone stood and answers with the rows it is given, pooled as the backbone would."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        children = dict(backbone.named_children())
        self.pooler = children.get("pooler")
        self.activation = children.get("pooler_activation")  # ALBERT's pooler is a bare linear layer with its own tanh

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutputWithPoolingAndCrossAttentions:
        pooled = None
        if self.pooler is not None and self.activation is not None:
            pooled = self.activation(self.pooler(inputs_embeds[:, 0]))
        elif self.pooler is not None:
            pooled = self.pooler(inputs_embeds)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=inputs_embeds, pooler_output=pooled)


def _head_of(model: PreTrainedModel) -> PreTrainedModel:
    head = copy.copy(model)
    head._modules = dict(model._modules)
    head._modules[model.base_model_prefix] = Echo(model.base_model)
    return head


@torch.no_grad()
def probe(family: str, model: PreTrainedModel) -> tuple[FlatBatch, Tensor]:
    """Two short rows that share their beginning, as a flat batch of no slot, and the logits each has alone."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = [vocabulary // 2 + i % (vocabulary // 2) for i in (0, 1, 2, 3, 4, 5, 6, 7, 8)]
    rows = [np.array(ids[:7], np.int32), np.array(ids[:4] + ids[7:], np.int32)]
    last = [np.arange(len(row)) == len(row) - 1 for row in rows]
    label = 0 if family == "encoder" else -1
    encoded = [Encoded(str(i), row, last[i] & (label < 0), label) for i, row in enumerate(rows)]
    (batch,) = flat_batches([Share(-1, encoded, 1.0)], budget=100)
    alone = []
    for name in batch.example_ids:
        logits = model(input_ids=torch.from_numpy(rows[int(name)]).long()[None].to(model.device)).logits[0].float()
        alone.append(logits if label == 0 else logits[-2])
    return batch, torch.stack(alone)


class Forward:
    """Calls one model. `heads` are each slot's own head parameters by name, `prompts` its virtual tokens (n, D)."""

    def __init__(self, model: PreTrainedModel, family: str, position_offset: int, start_id: int | None) -> None:
        self.model = model
        self.family = family
        self.position_offset = position_offset
        self.start_id = start_id if start_id is not None else 0  # only an encoder-decoder has one
        self.head = _head_of(model) if family != "seq2seq" else model
        self.mean_pooling = model.config.to_dict().get("classifier_pooling") == "mean"

    def nll(
        self, batch: Batch, prompts: Mapping[int, Tensor], heads: Mapping[int, Mapping[str, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood and arg-max of every supervised entry: `(S,)` float32, `(S,)` int64."""
        device = self.model.device
        sources_S = torch.from_numpy(batch.sources_S).to(device)
        targets_S = torch.from_numpy(batch.targets_S).to(device)
        if isinstance(batch, PaddedBatch):
            return entry_nll(self._padded_logits(batch, prompts).flatten(0, 1), sources_S, targets_S)
        hidden_TD = self._flat_hidden(batch, prompts)
        if self.family == "encoder":
            logits_SC = self._class_logits(batch, hidden_TD, heads)
            return entry_nll(logits_SC, torch.arange(len(logits_SC), device=device), targets_S)
        rows_U, row_of_S = torch.unique(sources_S, return_inverse=True)
        entries = Entries(row_of_S, targets_S, torch.from_numpy(batch.weights_S).to(device))
        width = self.model.config.get_text_config().vocab_size
        trained = [p for p in self.head.parameters() if p.requires_grad]
        return supervised_nll(self._token_logits, hidden_TD.index_select(0, rows_U), entries, width, trained)

    def logits(self, batch: Batch, prompts: Mapping[int, Tensor], heads: Mapping[int, Mapping[str, Tensor]]) -> Tensor:
        """Logits at the source of every supervised entry, `(S, V)` or `(S, classes)` float32."""
        sources_S = torch.from_numpy(batch.sources_S).to(self.model.device)
        if isinstance(batch, PaddedBatch):
            return self._padded_logits(batch, prompts).flatten(0, 1)[sources_S].float()
        hidden_TD = self._flat_hidden(batch, prompts)
        if self.family == "encoder":
            return self._class_logits(batch, hidden_TD, heads).float()
        return self._token_logits(hidden_TD[sources_S]).float()

    def embed(self, ids: Tensor) -> Tensor:
        """The model's own embedding, with whatever scaling belongs to it."""
        return self.model.get_input_embeddings()(ids.to(self.model.device))

    def _flat_hidden(self, batch: FlatBatch, prompts: Mapping[int, Tensor]) -> Tensor:
        device = self.model.device
        tokens_T = torch.from_numpy(batch.tokens_T).to(device)
        positions_T = torch.from_numpy(batch.positions_T).to(device) + self.position_offset
        call: dict[str, Any] = {"position_ids": positions_T[None]}
        call["layout"] = layout(batch.positions_T, self.family == "causal", device)
        if prompts:
            call["inputs_embeds"] = embed_with_prompts(tokens_T, batch.ranges, prompts, self.embed)[None]
        else:
            call["input_ids"] = tokens_T[None]
        if self.family == "causal":
            call["use_cache"] = False
        return self.model.base_model(**call).last_hidden_state.squeeze(0)

    def _token_logits(self, hidden_UD: Tensor) -> Tensor:
        return self.head(inputs_embeds=hidden_UD[None], use_cache=False).logits.squeeze(0)

    def _class_logits(self, batch: FlatBatch, hidden_TD: Tensor, heads: Mapping[int, Mapping[str, Tensor]]) -> Tensor:
        """(S, classes): one pooled row a segment, each through its own slot's head."""
        starts = torch.from_numpy(batch.sources_S).to(hidden_TD.device)
        if self.mean_pooling:
            lengths = torch.diff(starts, append=starts.new_tensor([len(hidden_TD)]))
            pooled_SD = torch.stack([piece.mean(0) for piece in hidden_TD.split(lengths.tolist())])
        else:
            pooled_SD = hidden_TD.index_select(0, starts)
        logits = []
        for slot, start, stop in batch.ranges:
            first, last = np.searchsorted(batch.sources_S, [start, stop])
            rows = {"inputs_embeds": pooled_SD[first:last, None]}
            logits.append(functional_call(self.head, dict(heads.get(slot, {})), (), rows).logits)
        return torch.cat(logits)

    def _padded_logits(self, batch: PaddedBatch, prompts: Mapping[int, Tensor]) -> Tensor:
        """(B, M, V): the whole model, teacher-forced: the decoder reads the targets one place to the right."""
        device = self.model.device
        source_BL = torch.from_numpy(batch.source_BL).to(device)
        lengths_B = torch.from_numpy(batch.source_lengths_B).to(device)
        mask_BL = torch.arange(source_BL.shape[1], device=device) < lengths_B[:, None]
        targets_BM = torch.from_numpy(batch.targets_BM).to(device).clamp(min=0)
        start_B1 = targets_BM.new_full((len(targets_BM), 1), self.start_id)
        call: dict[str, Any] = {"decoder_input_ids": torch.cat([start_B1, targets_BM[:, :-1]], 1)}
        if prompts:
            width = source_BL.shape[1]
            ranges = [(slot, start * width, stop * width) for slot, start, stop in batch.ranges]
            embedded = embed_with_prompts(source_BL.flatten(), ranges, prompts, self.embed)
            call["inputs_embeds"] = embedded.view(*source_BL.shape, -1)
        else:
            call["input_ids"] = source_BL
        return self.model(attention_mask=mask_BL.long(), use_cache=False, **call).logits
