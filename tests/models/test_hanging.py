"""A slot hung anew on a base that others share: as if it had always been there; what cannot share changes nothing."""

from __future__ import annotations

import pytest
import torch

from luthier import spec
from luthier.errors import ModelError
from luthier.models.methods import Method, Tuned, attach
from tests import tiny as models
from tests.equivalence.workbench import LORA, PROMPT, Tiny, load, rows, share

ROWS = rows("causal")


def _said(tuned: Tuned, slot: int) -> torch.Tensor:
    (batch,) = tuned.lay_out([share(tuned, slot, ROWS)], 10_000)
    return tuned.nll(batch)[0]


@pytest.mark.parametrize("method", [LORA, PROMPT, spec.Lora(rank=2, alpha=2, dropout=0.0, target_modules=("o_proj",))])
def test_a_slot_hung_anew_is_as_if_it_had_always_been_there(tiny: Tiny, method: Method) -> None:
    few = spec.Lora(rank=3, alpha=6, dropout=0.0, target_modules=("q_proj",))
    tuned = attach(load(tiny, "tiny_llama"), [few, PROMPT, LORA], [1, 2, 3])
    before = [_said(tuned, 0), _said(tuned, 2)]
    with torch.no_grad():
        for tensor in tuned.slots[1].tensors().values():
            tensor.fill_(torch.nan)
    fresh = tuned.hang(1, method, 5)
    assert tuned.slots[1] is fresh and [slot.index for slot in tuned.slots] == [0, 1, 2]
    expected = attach(load(tiny, "tiny_llama"), [method], [5]).slots[0].tensors()
    assert all(torch.equal(expected[name], tensor) for name, tensor in fresh.tensors().items())
    assert torch.equal(_said(tuned, 0), before[0]) and torch.equal(_said(tuned, 2), before[1])
    assert _said(tuned, 1).isfinite().all()
    assert tuned.hang(3, PROMPT, 4).index == 3 and len(tuned.slots) == 4


REFUSED = {
    "unknown": (spec.Lora(rank=2, alpha=2, dropout=0.0, target_modules=("q_proj", "q_prj")), "q_prj"),
    "full": (spec.Full(), "cannot share it"),
    "quantized": (
        spec.QLora(rank=2, alpha=4, dropout=0.0, target_modules=("q_proj",), bits=4),
        "base of its own: this one is kept unquantized",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_method_that_cannot_be_hung_changes_nothing(tiny: Tiny, case: str) -> None:
    tuned = attach(load(tiny, "tiny_llama"), [LORA, PROMPT], [1, 2])
    before, said = list(tuned.slots), [_said(tuned, 0), _said(tuned, 1)]
    names = [name for name, _ in tuned.base.model.named_modules()]
    method, words = REFUSED[case]
    for place in (0, 2):
        with pytest.raises(ModelError, match=words):
            tuned.hang(place, method, 0)
    assert tuned.slots == before and [name for name, _ in tuned.base.model.named_modules()] == names
    assert torch.equal(_said(tuned, 0), said[0]) and torch.equal(_said(tuned, 1), said[1])


def test_a_slot_that_a_layer_could_not_tell_from_its_neighbour_is_not_hung() -> None:
    """DeBERTa's positions pass through linear layers too; what was hung before still speaks."""
    tuned = attach(load(models.build, "tiny_deberta_v2"), [LORA], [0])
    (batch,) = tuned.lay_out([share(tuned, 0, rows("encoder"))], 10_000)
    before = tuned.nll(batch)[0]
    with pytest.raises(ModelError, match="cannot share"):
        tuned.hang(1, LORA, 1)
    assert len(tuned.slots) == 1 and torch.equal(tuned.nll(batch)[0], before)


def test_a_quantized_base_takes_its_own_kind_only(tiny: Tiny) -> None:
    pytest.importorskip("bitsandbytes")
    four = spec.QLora(rank=2, alpha=4, dropout=0.0, target_modules=("q_proj",), bits=4)
    tuned = attach(load(tiny, "tiny_llama", four), [four], [0])
    assert tuned.hang(0, four, 1).seed == 1
    for method in (LORA, four.model_copy(update={"bits": 8})):
        with pytest.raises(ModelError, match="kept in 4 bits"):
            tuned.hang(0, method, 1)
