"""Equivalences 1 to 6 over families and methods: a few by default, all of them with `-m slow`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier import spec
from luthier.data.batches import epoch_order
from luthier.data.examples import Encoded
from luthier.models import base as bases
from luthier.models.methods import Method, Tuned, attach
from luthier.runs import Finished, Stepped
from luthier.train.loop import Job, Wishes, train
from tests.equivalence.workbench import (
    LABELS,
    LORA,
    PROMPT,
    assert_close,
    batch_loss,
    gradients,
    load,
    padded_loss,
    peft_model,
    peft_tensors,
    rows,
    share,
    tune,
)
from tests.models.families import FAMILIES
from tests.tiny import build, family

DROPPED = spec.Lora(rank=2, alpha=2, dropout=0.3, target_modules=("all-linear",))
QLORA = spec.QLora(rank=2, alpha=4, dropout=0.0, target_modules=("all-linear",), bits=4)
FULL = spec.Full()
METHODS = {"lora": LORA, "dropout": DROPPED, "prompt": PROMPT, "qlora": QLORA, "full": FULL}


def every(*default: str) -> list:
    """All families, those not named only with `-m slow`."""
    return [kind if kind in default else pytest.param(kind, marks=pytest.mark.slow) for kind in FAMILIES]


def all_methods(*default: tuple[str, str]) -> list:
    """All pairs of family and method, those not named only with `-m slow`."""
    pairs = [(kind, name) for kind in FAMILIES for name in METHODS]
    return [pair if pair in default else pytest.param(*pair, marks=pytest.mark.slow) for pair in pairs]


def tuned_for(kind: str, *methods: Method, seeds: Sequence[int] = ()) -> Tuned:
    if any(isinstance(method, spec.QLora) for method in methods):
        pytest.importorskip("bitsandbytes")
    return tune(load(build, kind, methods[0]), *methods, seeds=seeds)


@pytest.mark.parametrize(
    ("kind", "name"),
    all_methods(
        ("tiny_llama", "qlora"), ("tiny_gemma2", "dropout"), ("tiny_bloom", "dropout"), ("tiny_bloom", "full"),
        ("tiny_deberta_v2", "prompt"), ("tiny_modernbert", "dropout"), ("tiny_t5", "dropout"),
    ),
)  # fmt: skip
def test_no_cut_of_a_step_and_no_sharing_changes_its_gradients(kind: str, name: str) -> None:
    """One example a micro-batch, a few, all; prefixes shared or not: equivalences 1 and 3."""
    tuned = tuned_for(kind, METHODS[name])
    examples = rows(family(kind))
    loss, (whole,) = gradients(tuned, [share(tuned, 0, examples)], 10_000)
    ways = [(1, True), (40, True)] + ([(10_000, False)] if name != "dropout" else [])
    for budget, sharing in ways:
        again, (grads,) = gradients(tuned, [share(tuned, 0, examples, sharing)], budget)
        assert again == pytest.approx(loss, abs=1e-5)
        for tensor in whole:
            assert_close(grads[tensor], whole[tensor], tensor, atol=5e-6)


@pytest.mark.parametrize("kind", every("tiny_bloom", "tiny_t5", "tiny_albert", "tiny_gpt2"))
def test_slots_of_different_ranks_and_methods_have_the_gradients_of_each_alone(kind: str) -> None:
    """Equivalence 2, at the level of one step: different data, dropout in one, a prompt in another."""
    if kind == "tiny_deberta_v2":
        pytest.skip("several LoRA slots on DeBERTa are refused")
    methods, seeds = [LORA, DROPPED, PROMPT], [3, 4, 5]
    data = [rows(family(kind), seed=seed) for seed in (1, 2, 3)]
    tuned = tuned_for(kind, *methods, seeds=seeds)
    start = [{name: tensor.clone() for name, tensor in slot.tensors().items()} for slot in tuned.slots]
    _, together = gradients(tuned, [share(tuned, i, data[i]) for i in range(3)], 200)
    for i, method in enumerate(methods):
        alone = tuned_for(kind, method, seeds=[seeds[i]])
        with torch.no_grad():
            for name, tensor in alone.slots[0].tensors().items():
                tensor.copy_(start[i][name])
        _, (grads,) = gradients(alone, [share(alone, 0, data[i])], 200)
        for name, grad in grads.items():
            assert_close(together[i][name], grad, f"slot {i}: {name}", atol=5e-6)
            assert float(grad.abs().max()) > 0, name


@pytest.mark.parametrize("kind", every("tiny_llama", "tiny_bloom", "tiny_t5"))
def test_qlora_equals_peft_on_the_same_quantized_base(kind: str) -> None:
    tuned = tuned_for(kind, QLORA)
    examples = rows(family(kind))
    ours, (grads,) = gradients(tuned, [share(tuned, 0, examples)], 60)
    theirs = peft_model(build, kind, tuned)
    loss = padded_loss(tuned.base.family, theirs, examples, tuned.base.decoder_start_token_id)
    loss.backward()
    assert ours == pytest.approx(float(loss.detach()), abs=1e-5)
    for name, parameter in peft_tensors(theirs, tuned).items():
        assert_close(grads[name], parameter.grad, name, atol=5e-6)


@pytest.mark.parametrize("kind", every("tiny_bloom", "tiny_gemma2", "tiny_deberta_v2"))
def test_full_gradients_equal_plain_transformers(kind: str) -> None:
    tuned = tuned_for(kind, FULL)
    examples = rows(family(kind))
    ours, (grads,) = gradients(tuned, [share(tuned, 0, examples, share_prefixes=False)], 60)
    base = load(build, kind)
    base.model.requires_grad_(True)
    loss = batch_loss(base.family, base.model, examples, base.decoder_start_token_id)
    loss.backward()
    assert ours == pytest.approx(float(loss.detach()), abs=5e-6)
    plain = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in base.model.named_parameters()}
    assert set(grads) == set(plain)
    for name, grad in plain.items():
        assert_close(grads[name], grad, name, atol=5e-6)


@pytest.mark.parametrize("kind", every("tiny_llama", "tiny_bloom", "tiny_bart", "tiny_deberta_v2"))
def test_updates_equal_a_plain_loop_over_peft(kind: str, tmp_path: Path) -> None:
    """Equivalence 5 where TRL does not go: AdamW, linear schedule and clipping by torch on PEFT's padded batches."""
    chosen = {"batch_size": 3, "num_epochs": 2, "learning_rate": 2e-3, "schedule": "linear", "warmup": 0.0}
    training = spec.Training(**chosen, accumulate_steps=1, weight_decay=0.0, max_grad_norm=0.5)
    examples, tuned = rows(family(kind)), tuned_for(kind, LORA)
    model = peft_model(build, kind, tuned)
    ours = [e.loss for e in train(tuned, [Job("run", training, 5, examples, [], tmp_path)]) if isinstance(e, Stepped)]
    parameters = list(peft_tensors(model, tuned).values())
    adamw = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 1 - step / len(ours))
    theirs = []
    for epoch in range(2):
        order = epoch_order(len(examples), 5, epoch)
        for start in range(0, len(order), 3):
            drawn = [examples[i] for i in order[start : start + 3]]
            loss = batch_loss(tuned.base.family, model, drawn, tuned.base.decoder_start_token_id)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            adamw.step()
            schedule.step()
            adamw.zero_grad()
            theirs.append(float(loss.detach()))
    assert len(ours) >= 6
    assert ours == pytest.approx(theirs, abs=2e-5)


@pytest.mark.parametrize(
    ("kind", "name"), all_methods(("tiny_bloom", "dropout"), ("tiny_deberta_v2", "dropout"), ("tiny_gpt_neo", "full"))
)
def test_resumed_equals_uninterrupted_bit_for_bit(kind: str, name: str, tmp_path: Path) -> None:
    """Equivalence 6, the base's own dropout on."""
    if name == "qlora":
        pytest.importorskip("bitsandbytes")
    chosen = {"batch_size": 2, "num_epochs": 2, "learning_rate": 1e-2, "warmup": 0.0, "accumulate_steps": 2}
    training, examples = spec.Training(**chosen, weight_decay=0.01, save_every=2), rows(family(kind), count=5)

    def fresh() -> Tuned:
        loaded = bases.load(spec.Model(name=str(build(kind))), METHODS[name], labels=LABELS)
        return attach(loaded, [METHODS[name]], [1])

    def carried(tuned: Tuned, folder: Path, calls: int) -> list:
        patience = iter(range(calls))
        job = Job("run", training, 0, examples, examples[:2], folder)
        return list(train(tuned, [job], Wishes(lambda: next(patience, None) is None), 60))

    whole, tuned = fresh(), fresh()
    expected = carried(whole, tmp_path / "whole", 10_000)
    parts = carried(tuned, tmp_path / "parts", 3)
    tuned = fresh()
    parts += carried(tuned, tmp_path / "parts", 10_000)
    assert [e.state for e in parts if isinstance(e, Finished)] == ["stopped", "done"]
    assert [e.loss for e in parts if isinstance(e, Stepped)] == [e.loss for e in expected if isinstance(e, Stepped)]
    for name, tensor in whole.slots[0].tensors().items():
        assert torch.equal(tuned.slots[0].tensors()[name], tensor), name


@pytest.mark.parametrize("kind", every("tiny_bloom", "tiny_deberta_v2", "tiny_bart", "tiny_phi"))
def test_recomputing_activations_changes_no_gradient(kind: str) -> None:
    found = []
    for recompute in (False, True):
        tuned = tuned_for(kind, DROPPED)
        if recompute:
            tuned.checkpoint_activations()
        found.append(gradients(tuned, [share(tuned, 0, rows(family(kind)))], 60))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for name, grad in found[0][1][0].items():
        assert_close(found[1][1][0][name], grad, name)


@pytest.mark.parametrize("kind", every("tiny_llama", "tiny_gemma2", "tiny_bloom", "tiny_bert", "tiny_t5"))
def test_bfloat16_is_as_near_to_float32_as_pefts(kind: str) -> None:
    """In bfloat16 both round, differently; ours is no farther from the float32 gradient than half as much again."""
    examples, exact = rows(family(kind)), tuned_for(kind, LORA)
    _, (reference,) = gradients(exact, [share(exact, 0, examples)], 60)
    rough = tune(_in_half(kind), LORA)
    with torch.no_grad():
        for name, tensor in rough.slots[0].tensors().items():
            tensor.copy_(exact.slots[0].tensors()[name])
    _, (ours,) = gradients(rough, [share(rough, 0, examples)], 60)
    model = peft_model(build, kind, rough, _in_half(kind))
    batch_loss(rough.base.family, model, examples, rough.base.decoder_start_token_id).backward()
    theirs = {name: parameter.grad for name, parameter in peft_tensors(model, rough).items()}
    assert _relative(ours, reference) < max(1.5 * _relative(theirs, reference), 0.01)
    assert 0 < _relative(ours, reference) < 0.1


def _in_half(kind: str) -> bases.Base:
    return bases.load(spec.Model(name=str(build(kind)), dtype="bfloat16", attention="eager"), labels=LABELS)


def _relative(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    off = torch.cat([(found[name].float() - grad).flatten() for name, grad in exact.items()])
    return float(off.norm() / torch.cat([grad.flatten() for grad in exact.values()]).norm())


def test_dropout_draws_as_pefts_does_and_sharing_keeps_the_expected_gradient() -> None:
    """Over many draws: loss of an example in mean and spread as under torch's dropout; mean gradient shared or not."""
    examples, tuned = rows("causal", count=4), tuned_for("tiny_llama", DROPPED)
    model = peft_model(build, "tiny_llama", tuned).train()
    draws, one = 150, examples[1]
    with torch.no_grad():
        torch.manual_seed(0)
        theirs = np.array([float(padded_loss("causal", model, [one], None)) for _ in range(draws)])
        ours = np.array([_loss(tuned, one, step) for step in range(draws)])
    error = np.sqrt((theirs.var() + ours.var()) / draws)
    assert abs(theirs.mean() - ours.mean()) < 4 * error
    assert 0.7 < ours.std() / theirs.std() < 1.4
    shared, apart = (_drawn(tuned, examples, sharing, 60) for sharing in (True, False))
    z = (shared.mean(0) - apart.mean(0)) / ((shared.var(0) + apart.var(0)) / 60).sqrt().clamp(min=1e-12)
    assert 0.5 < float(z.square().mean()) < 2.0
    assert not torch.allclose(shared.var(0), apart.var(0), rtol=0.05)


def _loss(tuned: Tuned, row: Encoded, step: int) -> float:
    (batch,) = tuned.lay_out([share(tuned, 0, [row])], 1000)
    return float(tuned.nll(batch, {0: step})[0] @ torch.from_numpy(batch.weights_S))


def _drawn(tuned: Tuned, examples: Sequence[Encoded], sharing: bool, draws: int) -> Tensor:
    """(draws, parameters): the gradient of one step under independent dropout draws."""
    (batch,) = tuned.lay_out([share(tuned, 0, examples, sharing)], 1000)
    found = []
    for step in range(draws):
        (flat,) = tuned.slots[0].flats
        flat.grads.zero_()
        nll_S, _ = tuned.nll(batch, {0: step + 1000 * sharing})
        (nll_S @ torch.from_numpy(batch.weights_S)).backward()
        found.append(flat.grads.clone())
    return torch.stack(found)
