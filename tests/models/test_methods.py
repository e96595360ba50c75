"""Which bases can be tuned on flat batches, which layers an adapter may target, what a slot trains and decays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from luthier import spec
from luthier.errors import ModelError
from luthier.models import base as bases
from luthier.models.methods import Tuned, attach
from tests import tiny as models
from tests.equivalence.workbench import LABELS, LORA, PROMPT, Tiny, gradients, load, rows, share, tune
from tests.tiny import CAUSAL, ENCODERS

SMALL = {"vocab_size": models.VOCABULARY, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}


def test_a_base_that_takes_neither_flat_nor_padded_rows_is_refused(tmp_path: Path) -> None:
    """FNet mixes all places of a row and knows no mask: trained on padded rows it would compute something else."""
    torch.manual_seed(0)
    config = transformers.FNetConfig(hidden_size=32, num_hidden_layers=2, intermediate_size=48, **SMALL)
    transformers.FNetForMaskedLM(config).save_pretrained(tmp_path)
    models.tokenizer("encoder").save_pretrained(tmp_path)
    base = bases.load(spec.Model(name=str(tmp_path)), LORA, labels=LABELS)
    with pytest.raises(ModelError, match="fnet models cannot be tuned"):
        attach(base, [LORA], [0])


def test_slots_that_a_layer_cannot_tell_apart_are_refused() -> None:
    """DeBERTa's positions pass through linear layers too, rows that belong to no token: one slot at a time has them."""
    assert attach(load(models.build, "tiny_deberta_v2"), [LORA], [0]).layout == "padded"
    with pytest.raises(ModelError, match="cannot share"):
        attach(load(models.build, "tiny_deberta_v2"), [LORA, LORA], [0, 1])


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_family_of_the_tests_passes_the_proof(kind: str, dtype: str) -> None:
    base = bases.load(spec.Model(name=str(models.build(kind)), dtype=dtype), LORA, labels=LABELS)
    assert attach(base, [LORA], [0]).slots[0].targets


def _with_stored_pooler(folder: Path) -> Path:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=3,
        id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)}, **SMALL,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    models.tokenizer("encoder").save_pretrained(folder)
    return folder


def test_a_stored_pooler_gets_no_adapter_that_would_never_be_applied(tmp_path: Path) -> None:
    """It sees one row an example, not one a token. Every parameter a slot has must get a gradient."""
    base = bases.load(spec.Model(name=str(_with_stored_pooler(tmp_path))), LORA, labels=LABELS)
    tuned = tune(base, LORA)
    assert not any("pooler" in name for name in tuned.slots[0].targets)
    _, (grads,) = gradients(tuned, [share(tuned, 0, rows("encoder"))], budget=100)
    assert all(float(grad.abs().max()) > 0 for grad in grads.values())


def test_full_tuning_of_some_layers_still_trains_the_new_head(tiny: Tiny) -> None:
    tuned = attach(load(tiny, "tiny_bert"), [spec.Full(trainable=("layer.1.",))], [0])
    trained = set(tuned.slots[0].leaves)
    assert {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight"} <= trained
    assert not any("layer.0." in name for name in trained) and any("layer.1." in name for name in trained)
    frozen = [name for name, p in tuned.base.model.named_parameters() if not p.requires_grad]
    assert frozen and not set(frozen) & trained


def _decayed(tuned: Tuned) -> set[str]:
    return {name for flat in tuned.slots[0].flats if flat.decayed for name in flat.shapes}


def test_weight_decay_spares_prompts_biases_norms_and_embeddings(tiny: Tiny) -> None:
    lora = attach(load(tiny, "tiny_bert"), [LORA], [0])
    assert all(".lora_" in name or name.endswith("weight") for name in _decayed(lora))
    assert {name for name in lora.slots[0].leaves if name.endswith("bias")} and _decayed(lora)
    assert "prompt_embeddings" not in _decayed(attach(load(tiny, "tiny_llama"), [PROMPT], [0]))
    full = _decayed(attach(load(tiny, "tiny_llama"), [spec.Full()], [0]))
    assert "model.layers.0.mlp.up_proj.weight" in full
    assert not any("norm" in name or "embed" in name for name in full)


def test_dropout_of_an_encoder_decoder_is_the_same_in_every_layout(tiny: Tiny) -> None:
    """Also where source and target are equally wide, so that both sides have the same number of rows."""
    dropping = spec.Lora(rank=4, alpha=8, dropout=0.4, target_modules=("all-linear",))
    tuned = tune(load(tiny, "tiny_t5"), dropping)
    examples = [row for row in rows("seq2seq", count=40) if len(row.ids_L) == 2 * row.prompt_length][:4]
    examples += rows("seq2seq", count=4)
    losses = [gradients(tuned, [share(tuned, 0, examples)], budget)[0] for budget in (1, 30, 10_000)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_a_slot_that_is_not_finite_leaves_its_neighbours_alone(tiny: Tiny) -> None:
    tuned = tune(load(tiny, "tiny_llama"), LORA, LORA, seeds=(1, 2))
    examples = rows("causal")
    shares = [share(tuned, slot, examples) for slot in (0, 1)]
    _, healthy = gradients(tuned, shares, budget=10_000)
    with torch.no_grad():
        next(iter(tuned.slots[1].tensors().values())).fill_(torch.nan)
    _, sick = gradients(tuned, shares, budget=10_000)
    assert all(torch.equal(sick[0][name], healthy[0][name]) for name in healthy[0])
    assert any(not bool(grad.isfinite().all()) for grad in sick[1].values())


def test_what_is_multiplied_are_linear_layers_without_embeddings_and_output(tiny: Tiny) -> None:
    tuned = attach(load(tiny, "tiny_llama", tie_word_embeddings=True), [LORA], [0])
    model = tuned.base.model
    found = [weight.data_ptr() for weight in tuned.multiplied()]
    assert model.get_input_embeddings().weight.data_ptr() not in found
    assert len(found) == 7 * model.config.num_hidden_layers  # q, k, v, o, gate, up, down
