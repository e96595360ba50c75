"""One forward pass for three families: a micro-batch goes in, supervised logits of every slot come out.

Lives here: how unmodified transformers classes are called on flat rows, padded rows and heads. Does not live here: what
is trained (`methods.py`), the maths of attention, adapters, prompts and loss (their own files).

The model's own output layer is used as it is, with every scaling its family has: `_head_of` makes a copy of the model
that shares all weights but whose backbone echoes the hidden rows it is given. So only supervised rows meet it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D
from transformers.utils import ModelOutput

from luthier.data.batches import FlatBatch, PaddedBatch
from luthier.data.examples import Encoded
from luthier.models import flex
from luthier.models.attention import Outline, attend, layout
from luthier.models.growing import Growing
from luthier.models.loss import Entries, entry_nll, supervised_nll
from luthier.models.lower import Halves, Lower, Seen, as_row, copies, differs
from luthier.models.prompt import embed_with_prompts

Batch = FlatBatch | PaddedBatch
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # relative to the largest number
CANNOT = (TypeError, AttributeError, KeyError, IndexError, RuntimeError, ValueError)  # what a foreign class may raise
ATTENTION = (
    "luthier"  # the name under which transformers finds our attention; it builds no mask for a name it has no mask for
)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **said: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, H, T, d) in, (1, T, H, d) out. `layout` was given to the model's call."""
    if "layout" not in said:
        raise TypeError("a layer does not hand its attention what the model was given")
    if isinstance(said["layout"], list):  # nothing is computed, only who asks is noted (`keeps_its_attention`)
        said["layout"].append(module)
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None
    if query.is_meta:
        return Outline.apply(*(x[0].transpose(0, 1) for x in (query, key, value)))[None], None
    scaling, dropout = said.get("scaling"), said.get("dropout", 0.0)
    window, softcap = said.get("sliding_window"), said.get("softcap")
    sequences = len(query)  # several: of slots that share the layers below (`lower.py`)
    where: Any = said["layout"]
    query, key, value = as_row(query), as_row(key), as_row(value)
    if isinstance(where, Growing):
        if where.started:
            return where.attend(query, key, value, scaling, window, softcap)[None], None
        again = where.prompts.copies if isinstance(where.prompts, Halves) and sequences == 1 else 1
        where.take(_times(key, again), _times(value, again))  # later tokens see them slot by slot
        where = where.prompts
    if isinstance(where, Halves):
        where = where.of(sequences)
    attending = flex.attend if isinstance(where, flex.Intervals) else attend
    out_THd = attending(query, key, value, where, scaling, dropout, window, softcap)
    return out_THd.unflatten(0, (sequences, -1)), None


def _times(x_GTd: Tensor, count: int) -> Tensor:
    return x_GTd.repeat(1, count, 1) if count > 1 else x_GTd


AttentionInterface.register(ATTENTION, _attention)


def _repeat(
    layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a layer, also when it is computed again for the backward pass: rows once a slot, where that begins.

    All it needs is in the call, so that other calls of the model (`generate`) are as they were.
    """
    where: Any = named.get("layout")
    where = where.prompts if isinstance(where, Growing) else where
    if not isinstance(where, Halves):
        return None
    if given:
        return (where.before(layer, given[0]), *given[1:]), named
    return given, named | {"hidden_states": where.before(layer, named["hidden_states"])}


@dataclass
class Echoed(ModelOutput):
    """What heads read of a backbone's output: rows, perhaps pooled, and nothing else."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    past_key_values: None = None
    hidden_states: None = None
    attentions: None = None
    cross_attentions: None = None
    router_logits: None = None


class Echo(nn.Module):
    """Stands where the backbone stood and answers with the rows it is given, pooled as the backbone would."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        children = dict(backbone.named_children())
        self.pooler = children.get("pooler")
        self.activation = children.get("pooler_activation")  # ALBERT's pooler is a bare linear layer with its own tanh

    @property
    def decoder(self) -> Echo:
        """OPT calls what is inside its backbone."""
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Echoed:
        pooled = None
        if self.pooler is not None and self.activation is not None:
            pooled = self.activation(self.pooler(inputs_embeds[:, 0]))
        elif self.pooler is not None:
            pooled = self.pooler(inputs_embeds)
        return Echoed(inputs_embeds, pooled)


def _head_of(model: PreTrainedModel) -> PreTrainedModel:
    head = copy.copy(model)
    head._modules = dict(model._modules)
    head._modules[model.base_model_prefix] = Echo(model.base_model)
    return head


def probes(family: str, vocabulary: int) -> list[Encoded]:
    """Two short rows of different length that share their beginning; the last token of each is asked for."""
    ids = [vocabulary // 2 + i % (vocabulary // 2) for i in range(9)]
    rows = [np.array(ids[:7], np.int32), np.array(ids[:4] + ids[7:], np.int32)]
    if family == "encoder":
        return [Encoded(str(i), row, np.zeros(len(row), bool), label=0) for i, row in enumerate(rows)]
    return [Encoded(str(i), row, np.arange(len(row)) == len(row) - 1) for i, row in enumerate(rows)]


@torch.no_grad()
def alone(model: PreTrainedModel, row: Encoded) -> Tensor:
    """What the unmodified model says of one probe by itself: logits before its last token, or of its class."""
    logits = model(input_ids=torch.from_numpy(row.ids_L).long()[None].to(model.device)).logits[0].float()
    return logits if row.label >= 0 else logits[-2]


@torch.no_grad()
def keeps_its_attention(model: PreTrainedModel, layers: int) -> str:
    """Why a model's attention cannot be given from outside, as its layers show when called; empty if all ask for ours.

    Numbers do not matter: torch's meta device will do. There some operations (of experts) do not run; then the layers
    called before one tell.
    """
    ids_1T = torch.zeros(1, 9, dtype=torch.int64, device=model.device)
    asked: list[nn.Module] = []
    call = {"input_ids": ids_1T, "position_ids": torch.zeros_like(ids_1T), "layout": asked}
    chosen, model.config._attn_implementation = model.config._attn_implementation, ATTENTION
    try:
        model.base_model(**call)
    except CANNOT as error:
        unseen = isinstance(error, RuntimeError) and model.device.type == "meta"
        return "" if unseen and asked else f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        model.config._attn_implementation = chosen
    own = layers - len(asked)
    return f"{own} of {layers} layers compute their attention themselves" if own > 0 else ""


class AskedRows:
    """Sends only the rows somebody asks for through the last layer's feed-forward part; what it adds to others is 0.

    That part sees each row by itself, and no layer follows: nothing asked for changes. Attention before it sees all
    rows. `rows_U` None: every row goes through, as the model has it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.rows_U: Tensor | None = None
        self.shape = torch.Size((1, 0))
        layers = [module for module in model.base_model.modules() if isinstance(module, GradientCheckpointingLayer)]
        feed_forward = dict(layers[-1].named_children()).get("mlp") if layers else None
        if feed_forward is not None and _is_plain(feed_forward):
            feed_forward.register_forward_pre_hook(self._choose)
            feed_forward.register_forward_hook(self._spread)

    def _choose(self, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.rows_U is None:
            return None
        (hidden_NtD,) = given
        self.shape = hidden_NtD.shape[:2]
        return (hidden_NtD.flatten(0, 1).index_select(0, self.rows_U)[None],)

    def _spread(self, _: nn.Module, __: tuple[Tensor, ...], said_1UD: Tensor) -> Tensor | None:
        if self.rows_U is None:
            return None
        empty_TD = said_1UD.new_zeros(self.shape.numel(), said_1UD.shape[-1])
        return empty_TD.index_copy(0, self.rows_U, said_1UD[0]).unflatten(0, self.shape)


def _is_plain(part: nn.Module) -> bool:
    """Whether only linear layers in it have parameters: no experts, which choose, and no norm over rows."""
    return all(
        isinstance(module, nn.Linear | Conv1D)
        for module in part.modules()
        if next(module.parameters(recurse=False), None) is not None
    )


class Forward:
    """Calls one model. `heads` are each slot's own head parameters by name, `prompts` its virtual tokens (n, D)."""

    def __init__(self, model: PreTrainedModel, family: str, position_offset: int, start_id: int | None) -> None:
        self.model = model
        self.family = family
        self.position_offset = position_offset
        self.start_id = start_id if start_id is not None else 0  # only an encoder-decoder has one
        self.head = _head_of(model) if family != "seq2seq" else model
        self.fused = model.device.type == "cuda"  # one kernel for the whole row (`flex.py`), or part by part
        self.mean_pooling = model.config.to_dict().get("classifier_pooling") == "mean"
        self.asked = AskedRows(model)
        self.lower = Lower(model.base_model)
        for layer in self.lower.layers:
            layer.register_forward_pre_hook(_repeat, with_kwargs=True)
        self._shares: dict[int, bool] = {}  # by the first layer that is not: whether this model lets slots share
        self.numbered = "position_ids" in inspect.signature(model.base_model.forward).parameters  # else: relative

    def nll(
        self, batch: Batch, prompts: Mapping[int, Tensor], heads: Mapping[int, Mapping[str, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood and arg-max of every supervised entry: `(S,)` float32, `(S,)` int64."""
        device = self.model.device
        sources_S = torch.from_numpy(batch.sources_S).to(device)
        targets_S = torch.from_numpy(batch.targets_S).to(device)
        if self.family == "seq2seq":
            return entry_nll(self.hidden(batch, prompts).flatten(0, 1), sources_S, targets_S)
        hidden_TD = self.hidden(batch, prompts)
        if self.family == "encoder":
            logits_SC = self._class_logits(batch, hidden_TD, heads)
            return entry_nll(logits_SC, torch.arange(len(logits_SC), device=device), targets_S)
        rows_U, row_of_S = torch.unique(sources_S, return_inverse=True)
        entries = Entries(row_of_S, targets_S, torch.from_numpy(batch.weights_S).to(device))
        width = self.model.config.get_text_config().vocab_size
        trained = [p for p in self.head.parameters() if p.requires_grad]
        return supervised_nll(self._token_logits, hidden_TD.index_select(0, rows_U), entries, width, trained)

    def logits(
        self,
        batch: Batch,
        prompts: Mapping[int, Tensor],
        heads: Mapping[int, Mapping[str, Tensor]],
        growing: Growing | None = None,
    ) -> Tensor:
        """Logits at the source of every supervised entry, `(S, V)` or `(S, classes)` float32.

        `growing` keeps the keys and values of a flat batch of prompts, and is what later tokens see.
        """
        sources_S = torch.from_numpy(batch.sources_S).to(self.model.device)
        if self.family == "seq2seq":
            return self.hidden(batch, prompts).flatten(0, 1)[sources_S].float()
        hidden_TD = self.hidden(batch, prompts, growing)
        if self.family == "encoder":
            return self._class_logits(batch, hidden_TD, heads).float()
        return self._token_logits(hidden_TD[sources_S]).float()

    def hidden(self, batch: Batch, prompts: Mapping[int, Tensor], growing: Growing | None = None) -> Tensor:
        """(T, D): the backbone's last rows, those of a padded batch one sequence after another (T = B · L).

        For an encoder-decoder the whole model's logits, `(B, M, V)`.
        """
        if self.family == "seq2seq":
            return self._answers(batch, prompts)
        if isinstance(batch, PaddedBatch):
            return self._rows(self._padded_call(batch, prompts))
        first = self._first(batch, prompts) if growing is None or not growing.started else 0
        return self._rows(self._flat_call(batch, prompts, growing, first))

    def _rows(self, call: dict[str, Any]) -> Tensor:
        if self.family == "causal":
            call["use_cache"] = False
        return self.model.base_model(**call).last_hidden_state.flatten(0, 1)

    def _first(self, batch: FlatBatch, prompts: Mapping[int, Tensor]) -> int:
        """The first layer that the slots of a batch do not share; 0 where they share none, or the model cannot.

        Whether it can shows once, in what it computes.
        """
        slots = {slot for slot, _, _ in batch.ranges}
        if self.model.device.type == "meta" or not slots.isdisjoint(prompts) or copies(batch) == 1:
            return 0
        lowest = self.lower.lowest()
        first = min((lowest[slot] for slot in slots if slot in lowest), default=0)
        if first and first not in self._shares:
            self._shares[first] = self._proven(batch, prompts, first)
        return first if first and self._shares[first] else 0

    @torch.no_grad()
    def _proven(self, batch: FlatBatch, prompts: Mapping[int, Tensor], first: int) -> bool:
        """Whether the layers below `first`, computed once, give what they give slot by slot."""
        plain_TD = self._rows(self._flat_call(batch, prompts, None, 0))
        try:
            shared_TD = self._rows(self._flat_call(batch, prompts, None, first))
        except CANNOT:
            return False
        return shared_TD.shape == plain_TD.shape and not differs(shared_TD, plain_TD, TOLERANCE[self.model.dtype])

    def embed(self, ids: Tensor) -> Tensor:
        """The model's own embedding, with whatever scaling belongs to it."""
        return self.model.get_input_embeddings()(ids.to(self.model.device))

    def _flat_call(
        self, batch: FlatBatch, prompts: Mapping[int, Tensor], growing: Growing | None, first: int
    ) -> dict[str, Any]:
        """What the backbone is given: all tokens, or one slot's for all where the layers below `first` are shared."""
        device, ranges = self.model.device, batch.ranges[:1] if first else batch.ranges
        stop = ranges[-1][2]
        tokens_T = torch.from_numpy(batch.tokens_T[:stop]).to(device)
        positions_T = torch.from_numpy(batch.positions_T[:stop]).to(device) + self.position_offset
        call: dict[str, Any] = {"position_ids": positions_T[None], "layout": growing}
        if growing is None:
            call["layout"] = self._sight(batch, first)
        elif not growing.started:
            growing.prompts = self._sight(batch, first)
        return call | self._tokens(tokens_T[None], ranges, prompts)

    def _sight(self, batch: FlatBatch, first: int) -> Seen | Halves:
        whole = self._layout(batch.positions_T, batch.ends_T)
        if not first:
            return whole
        stop = batch.ranges[0][2]
        one = self._layout(batch.positions_T[:stop], batch.ends_T[:stop])
        return Halves(one, whole, len(batch.ranges), self.lower.layers[first])

    def _layout(self, positions_T: np.ndarray, ends_T: np.ndarray) -> Seen:
        if self.fused:
            return flex.Intervals(self.family == "causal", positions_T, ends_T, self.model.device)
        return layout(positions_T, ends_T, self.family == "causal", self.model.device)

    def _padded_call(self, batch: PaddedBatch, prompts: Mapping[int, Tensor]) -> dict[str, Any]:
        """Sequences on the left, what is behind their ends masked; positions given where the model takes any."""
        device = self.model.device
        source_BL = torch.from_numpy(batch.source_BL).to(device)
        rows, width = source_BL.shape
        lengths_B = torch.from_numpy(batch.source_lengths_B).to(device)
        places_L = torch.arange(width, device=device)
        mask_BL = (places_L < lengths_B[:, None]).long()
        call: dict[str, Any] = {"attention_mask": None if mask_BL.is_meta else mask_BL}  # shapes alone need no mask
        if self.numbered:
            call["position_ids"] = (places_L + self.position_offset).expand(rows, width)
        ranges = [(slot, start * width, stop * width) for slot, start, stop in batch.ranges]
        return call | self._tokens(source_BL, ranges, prompts)

    def _tokens(
        self, tokens_BL: Tensor, ranges: Sequence[tuple[int, int, int]], prompts: Mapping[int, Tensor]
    ) -> dict[str, Any]:
        if not prompts:
            return {"input_ids": tokens_BL}
        embedded = embed_with_prompts(tokens_BL.flatten(), ranges, prompts, self.embed)
        return {"inputs_embeds": embedded.view(*tokens_BL.shape, -1)}

    def _token_logits(self, hidden_UD: Tensor) -> Tensor:
        return self.head(inputs_embeds=hidden_UD[None], use_cache=False).logits.squeeze(0)

    def _class_logits(self, batch: Batch, hidden_TD: Tensor, heads: Mapping[int, Mapping[str, Tensor]]) -> Tensor:
        """(S, classes): one pooled row a segment, each through its own slot's head, in float32 as heads are trained."""
        starts = torch.from_numpy(batch.sources_S).to(hidden_TD.device)
        pooled_SD = hidden_TD.index_select(0, starts)
        if self.mean_pooling:
            ends = np.append(batch.sources_S[1:], len(hidden_TD))
            lengths = batch.source_lengths_B if isinstance(batch, PaddedBatch) else ends - batch.sources_S
            places = zip(batch.sources_S.tolist(), lengths.tolist(), strict=True)
            pooled_SD = torch.stack([hidden_TD[start : start + length].mean(0) for start, length in places])
        logits, given = [], {name: p.float() for name, p in self.head.named_parameters()}
        for slot, start, stop in batch.ranges:
            first, last = np.searchsorted(batch.sources_S, [start * batch.width, stop * batch.width])
            rows = {"inputs_embeds": pooled_SD[first:last, None].float()}
            logits.append(functional_call(self.head, given | dict(heads.get(slot, {})), (), rows).logits)
        return torch.cat(logits)

    def _answers(self, batch: Batch, prompts: Mapping[int, Tensor]) -> Tensor:
        """(B, M, V): a whole encoder-decoder, teacher-forced: the decoder reads the targets one place to the right."""
        assert isinstance(batch, PaddedBatch)
        targets_BM = torch.from_numpy(batch.targets_BM).to(self.model.device).clamp(min=0)
        start_B1 = targets_BM.new_full((len(targets_BM), 1), self.start_id)
        call = self._padded_call(batch, prompts)
        call["decoder_input_ids"] = torch.cat([start_B1, targets_BM[:, :-1]], 1)
        return self.model(use_cache=False, **call).logits
