"""Equivalences 3 and 4: shared prefixes = each example alone, flat = padded, our LoRA and soft prompt = PEFT's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luthier import spec
from luthier.models.slots import PEFT_PREFIX
from luthier.train.shares import lay_out
from tests.equivalence.workbench import (
    LORA,
    PROMPT,
    Tiny,
    assert_close,
    gradients,
    load,
    padded_loss,
    peft_model,
    peft_tensors,
    rows,
    share,
    tune,
)
from tests.tiny import CAUSAL, ENCODERS, SEQ2SEQ_KINDS, family

EVERY = (*CAUSAL, *SEQ2SEQ_KINDS, *ENCODERS)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("method", [LORA, PROMPT], ids=["lora", "prompt"])
def test_loss_and_every_gradient_equalpeft_model(tiny: Tiny, kind: str, method: spec.Lora | spec.PromptTuning) -> None:
    base = load(tiny, kind)
    tuned = tune(base, method)
    examples = rows(family(kind))
    ours, grads = gradients(tuned, [share(tuned, 0, examples)], budget=60)
    theirs = peft_model(tiny, kind, tuned)
    loss = padded_loss(base.family, theirs, examples, base.decoder_start_token_id)
    loss.backward()
    assert ours == pytest.approx(float(loss.detach()), abs=5e-6)
    for name, parameter in peft_tensors(theirs, tuned).items():
        assert_close(grads[0][name], parameter.grad, name)
        assert float(parameter.grad.abs().max()) > 0, f"{name} has no gradient: the test would see nothing"


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2", "tiny_bart", "tiny_bert"])
def test_full_gradients_equal_plain_transformers(tiny: Tiny, kind: str) -> None:
    tuned = tune(load(tiny, kind), spec.Full())
    examples = rows(family(kind))
    ours, grads = gradients(tuned, [share(tuned, 0, examples)], budget=60)
    base = load(tiny, kind)
    base.model.requires_grad_(True)
    loss = padded_loss(base.family, base.model, examples, base.decoder_start_token_id)
    loss.backward()
    assert ours == pytest.approx(float(loss.detach()), abs=5e-6)
    for name, parameter in base.model.named_parameters():
        theirs = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        assert_close(grads[0][name], theirs, name)
    assert set(grads[0]) == {name for name, _ in base.model.named_parameters()}


def test_rslora_scales_as_peft_does(tiny: Tiny) -> None:
    method = spec.Lora(rank=4, alpha=8, dropout=0.0, target_modules=("q_proj", "v_proj"), rslora=True)
    tuned = tune(load(tiny, "tiny_llama"), method)
    examples = rows("causal")
    ours, _ = gradients(tuned, [share(tuned, 0, examples)], budget=1000)
    theirs = padded_loss("causal", peft_model(tiny, "tiny_llama", tuned), examples, None)
    assert ours == pytest.approx(float(theirs.detach()), abs=5e-6)
    assert PEFT_PREFIX + "model.layers.0.self_attn.q_proj.lora_A.weight" in tuned.slots[0].leaves


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2", "tiny_gemma2"])
def test_only_rows_that_are_asked_for_meet_the_last_feed_forward_part(tiny: Tiny, kind: str) -> None:
    tuned = tune(load(tiny, kind, LORA), LORA, spec.Lora(rank=2, alpha=4, target_modules=("all-linear",)))
    parts = [module for name, module in tuned.base.model.named_modules() if name.endswith(".mlp")]
    seen: list[int] = []
    for part in parts[-2:]:
        linear = next(iter(part.children()))
        linear.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    shares = [share(tuned, slot, rows("causal", seed=slot)) for slot in (0, 1)]
    (batch,) = lay_out(tuned, shares, 10_000)
    sparse, gradients = tuned.nll(batch)[0], []
    for whole in (False, True):
        for slot in tuned.slots:
            slot.flats[0].grads.zero_()
        if whole:  # as the model has it: every row
            tuned._ask = lambda sources_S: None  # type: ignore[method-assign]
            tuned.turn.asked_units, tuned._forward.asked.rows_U = 0, None
        nll = tuned.nll(batch)[0]
        (nll * torch.from_numpy(batch.weights_S)).sum().backward()
        gradients.append([slot.flats[0].grads.clone() for slot in tuned.slots])
        torch.testing.assert_close(nll, sparse, atol=1e-5, rtol=1e-5)
    asked, stored = len(np.unique(batch.sources_S)), len(batch.tokens_T)
    assert seen[:2] == [stored, asked] and seen[-2:] == [stored, stored] and asked < stored
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)
