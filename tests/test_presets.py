"""Presets as the documents print them, defaults with their sources, what is refused."""

from __future__ import annotations

import doctest
from dataclasses import replace

import pytest

from luthier import presets, spec
from luthier.errors import SpecError
from luthier.presets import BaseFacts, resolve

LLAMA = BaseFacts("org/some-llama", "causal", "llama", 4096, 32, 8192, 128_256, 8_030_000_000, False, False)
BERT = BaseFacts("org/some-bert", "encoder", "bert", 768, 12, 512, 30_522, 110_000_000, False, False)
MINILM = replace(BERT, name="sentence-transformers/all-MiniLM-L6-v2", hidden_size=384, layers=6, parameters=22_700_000)
T5 = BaseFacts("org/some-t5", "seq2seq", "t5", 2048, 24, None, 32_128, 2_850_000_000, False, False)
BART = BaseFacts("org/some-bart", "seq2seq", "bart", 1024, 12, 1024, 50_265, 400_000_000, False, False)


def resolved(facts: BaseFacts, method: object = "lora", task: str | None = None, **fields) -> presets.Resolved:
    return resolve(spec.Experiment(**{"model": facts.name, "data": "x", "method": method} | fields), facts, task)


# The tables of PARAMETERS §2, cell by cell. -------------------------------------------------------------------------
PROMPT_TUNING = [
    # model, task, init_method, batch_size, accumulate_steps, learning_rate, num_epochs
    ("google/flan-t5-xl", "classification", "random", 16, 16, 0.3, 20),
    ("google/flan-t5-xl", "translation", "random", 16, 16, 0.3, 20),
    ("google/flan-t5-xl", None, "random", 16, 16, 0.3, 20),
    ("ibm/granite-13b-instruct-v2", "classification", None, 8, 32, 0.0006, 20),
    ("ibm/granite-13b-instruct-v2", "generation", None, 16, 16, 0.0002, 20),
    ("ibm/granite-13b-instruct-v2", "summarization", None, 8, 1, 0.0002, 40),
]
LORA = [
    # model, alpha, accumulate_steps, batch_size, dropout, learning_rate, num_epochs, rank, target_modules
    ("ibm-granite/granite-3.1-8b-base", 32, 1, 8, 0.05, 0.00001, 10, 8, ("all-linear",)),
    ("meta-llama/Llama-3.1-8B", 64, 1, 8, 0.05, 0.00001, 5, 32, ("q_proj", "v_proj")),
]


@pytest.mark.parametrize(("model", "task", "start", "batch", "accumulate", "rate", "epochs"), PROMPT_TUNING)
def test_the_document_s_prompt_tuning_rows(model, task, start, batch, accumulate, rate, epochs):
    found = resolved(replace(T5 if "t5" in model else LLAMA, name=model), "prompt_tuning", task)
    training = found.experiment.training
    assert (training.batch_size, training.accumulate_steps) == (batch, accumulate)
    assert (training.learning_rate, training.num_epochs) == (rate, epochs)
    assert found.experiment.method.init_method == (start or "vocabulary")
    name = "flan-t5-xl-3b" if "t5" in model else "granite-13b-instruct-v2"
    assert found.origins["training.learning_rate"] == f"preset {name}"


@pytest.mark.parametrize("row", LORA)
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_document_s_lora_rows(row, method):
    model, alpha, accumulate, batch, dropout, rate, epochs, rank, targets = row
    found = resolved(replace(LLAMA, name=model), method)
    tuned, training = found.experiment.method, found.experiment.training
    assert (tuned.rank, tuned.alpha, tuned.dropout, tuned.target_modules) == (rank, alpha, dropout, targets)
    assert (training.batch_size, training.accumulate_steps) == (batch, accumulate)
    assert (training.learning_rate, training.num_epochs) == (rate, epochs)
    assert all(preset.source == spec.DOCUMENT for preset in presets.PRESETS) and len(presets.PRESETS) == 6


def test_the_low_rates_of_the_document_are_kept_and_said():
    found = resolved(replace(LLAMA, name="meta-llama/Llama-3.1-8B"))
    (note,) = found.notes
    assert "preset llama-3-1-8b keeps its document's learning rate, 1e-05" in note and "29 times as much" in note
    assert "LoRA Without Regret" in note
    mine = resolved(replace(LLAMA, name="meta-llama/Llama-3.1-8B"), training={"learning_rate": 2e-4})
    assert mine.notes == () and mine.origins["training.learning_rate"] == "you"


@pytest.mark.parametrize(
    ("written", "method", "task", "preset"),
    [
        ("meta-llama/Meta-Llama-3.1-8B", "lora", None, "llama-3-1-8b"),
        ("meta-llama/llama-3-1-8b", "lora", "chat", "llama-3-1-8b"),
        ("unsloth/Meta-Llama-3.1-8B-unsloth-bnb-4bit", "qlora", None, "llama-3-1-8b"),
        ("/models/Llama-3.1-8B/", "lora", None, "llama-3-1-8b"),
        ("C:\\models\\Llama-3.1-8B", "lora", None, "llama-3-1-8b"),
        ("/hub/models--meta-llama--Llama-3.1-8B/snapshots/0123abc", "lora", None, "llama-3-1-8b"),
        ("ibm/granite-3-1-8b-base", "lora", None, "granite-3-1-8b-base"),
        ("ibm-granite/granite-3.1-8b-base", "prompt_tuning", None, None),
        ("ibm-granite/granite-3.1-8b-instruct", "lora", None, None),
        ("ibm-granite/granite-3.3-8b-base", "lora", None, None),
        ("ibm-granite/granite-3.1-2b-base", "lora", None, None),
        ("meta-llama/Llama-3.1-8B-Instruct", "lora", None, None),
        ("meta-llama/Llama-3.1-8B", "full", None, None),
        ("meta-llama/Llama-3.1-70B", "lora", None, None),
        ("someone/Llama-3.1-8B-my-finetune", "lora", None, None),
        ("/runs/Llama-3.1-8B/merged", "lora", None, None),
        ("google/flan-t5-xl-3b", "prompt_tuning", None, "flan-t5-xl-3b"),
        ("google/flan-t5-xxl", "prompt_tuning", None, None),
        ("google/flan-t5-xl", "lora", None, None),
        ("ibm/granite-13b-instruct-v2", "prompt_tuning", "chat", None),
        ("ibm/granite-13b-instruct-v2", "prompt_tuning", None, None),
        ("ibm/granite-13b-chat-v2", "prompt_tuning", "generation", None),
    ],
)
def test_presets_are_matched_on_names_as_people_write_them(written, method, task, preset):
    found = presets.find(written, method, task)
    assert (found.name if found else None) == preset


# --- defaults --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("facts", "method", "rate"),
    [
        (LLAMA, "lora", 2.9e-4),  # 5e-5 · 10 · (2000/4096)^0.781
        (LLAMA, "qlora", 2.9e-4),
        (LLAMA, "full", 2.9e-5),
        (replace(LLAMA, model_type="qwen3"), "lora", 4.7e-4),  # … ^0.0775
        (replace(LLAMA, hidden_size=2000), "lora", 5e-4),
        (LLAMA, "prompt_tuning", 1e-2),
        (replace(LLAMA, hidden_size=768), "prompt_tuning", 2.1e-2),
        (replace(LLAMA, hidden_size=64), "prompt_tuning", 1e-1),
        (T5, "prompt_tuning", 1e-2),
        (MINILM, "prompt_tuning", 1e-2),
        (replace(LLAMA, hidden_size=64), "lora", 7.4e-3),
        (BERT, "full", 5e-5),
        (BERT, "lora", 1e-3),
        (MINILM, "lora", 1.7e-3),
        (MINILM, "full", 8.6e-5),
        (replace(BERT, hidden_size=64), "full", 1e-4),
        (replace(BERT, hidden_size=4096), "full", 2e-5),
        (T5, "full", 1e-4),
        (T5, "lora", 1e-3),
        (BART, "full", 3e-5),
        (BART, "lora", 3e-4),
    ],
)
def test_learning_rates(facts, method, rate):
    found = resolved(facts, method)
    assert found.experiment.training.learning_rate == pytest.approx(rate)
    assert found.origins["training.learning_rate"].startswith("default (")


def test_smaller_models_get_higher_rates():
    for facts in (LLAMA, BERT, T5, BART, replace(LLAMA, model_type="qwen2")):
        rates = [presets.learning_rate("lora", replace(facts, hidden_size=size))[0] for size in (64, 512, 2048, 8192)]
        assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]


def test_defaults_of_the_methods():
    lora = resolved(LLAMA).experiment.method
    assert (lora.rank, lora.alpha, lora.dropout, lora.target_modules) == (16, 32.0, 0.0, ("all-linear",))
    soft = resolved(LLAMA, "prompt_tuning").experiment
    assert (soft.method.virtual_tokens, soft.method.init_method, soft.training.num_epochs) == (20, "vocabulary", 20)
    told = resolved(LLAMA, {"type": "prompt_tuning", "init_text": "Classify the ticket."})
    assert told.experiment.method.init_method == "text"
    assert told.origins["method.init_method"] == "default (`init_text` is given)"
    flan = resolved(replace(T5, name="google/flan-t5-xl"), {"type": "prompt_tuning", "init_text": "Summarize."})
    assert (flan.experiment.method.init_method, flan.experiment.training.learning_rate) == ("text", 0.3)
    assert resolved(BERT, "full").experiment.training.weight_decay == 0.01


@pytest.mark.parametrize("facts", [LLAMA, BERT, MINILM, T5, BART])
@pytest.mark.parametrize("method", ["prompt_tuning", "lora", "qlora", "full"])
def test_nothing_is_left_open_and_every_leaf_has_an_origin(facts, method):
    found = resolved(facts, method)
    values = spec.leaves(found.experiment)
    meant = {"max_steps", "gradient_checkpointing", "save_every", "evaluate_every", "patience", "init_text"}
    meant |= {"max_seq_length"} if facts.positions is None else set()
    empty = {path for path, value in values.items() if value is None and path.startswith(("method.", "training."))}
    assert {path.split(".")[1] for path in empty} <= meant
    assert set(found.origins) == set(values)
    assert all(origin in ("you", "default") or origin.endswith(")") for origin in found.origins.values())
    spec.from_mapping(_nested(values))  # what is resolved is itself a valid experiment
    assert spec.advice(found.experiment) == []


def _nested(values):
    tree: dict = {}
    for path, value in values.items():
        *sections, key = path.split(".")
        part = tree
        for section in sections:
            part = part.setdefault(section, {})
        part[key] = value
    return tree


def test_origins_and_choices():
    one = spec.Experiment(model=LLAMA.name, data="x", method={"rank": 4}, training={"num_epochs": 2, "warmup": None})
    found = resolve(one, LLAMA, "generation")
    assert found.origins["method.rank"] == found.origins["training.num_epochs"] == "you"
    assert found.origins["training.warmup"].startswith("default (QLoRA")
    assert found.origins["task"] == "default (what the data look like)" and found.experiment.task == "generation"
    assert found.origins["seed"] == "default"
    assert spec.chosen(found.experiment) == spec.chosen(one)
    assert resolve(found.experiment, LLAMA).experiment == found.experiment


def test_the_task_a_person_names_wins():
    found = resolved(LLAMA, task="generation")
    assert resolved(LLAMA).experiment.task is None
    named = resolve(spec.Experiment(model="m", data="x", task="chat"), LLAMA, "generation")
    assert (found.experiment.task, named.experiment.task, named.origins["task"]) == ("generation", "chat", "you")


@pytest.mark.parametrize(
    ("kind", "targets"),
    [("llama", ("q_proj", "v_proj")), ("granite", ("q_proj", "v_proj")), ("gpt2", ("c_attn",)), ("t5", ("q", "v"))],
)
def test_empty_targets_are_the_architecture_s(kind, targets):
    found = resolved(replace(LLAMA, model_type=kind), {"target_modules": []})
    assert found.experiment.method.target_modules == targets
    assert found.origins["method.target_modules"] == f"you (`[]`: the default of {kind})"


def test_empty_targets_of_an_unknown_architecture_are_all_its_layers():
    found = resolved(replace(LLAMA, model_type="mamba7"), {"target_modules": []})
    assert found.experiment.method.target_modules == ("all-linear",)
    assert found.origins["method.target_modules"] == "you (`[]`: no list is known for mamba7)"


@pytest.mark.parametrize(
    ("facts", "method", "length"),
    [
        (LLAMA, "lora", 8192),
        (LLAMA, {"type": "prompt_tuning", "virtual_tokens": 100}, 8092),
        (T5, "lora", None),
        (BART, "lora", 2048),
        (BART, {"type": "prompt_tuning", "virtual_tokens": 24}, 2024),
    ],
)
def test_length_from_the_positions(facts, method, length):
    assert resolved(facts, method).experiment.training.max_seq_length == length


def test_a_length_beyond_the_positions_is_said():
    assert resolved(BERT, training={"max_seq_length": 512}).notes == ()
    (note,) = resolved(BERT, training={"max_seq_length": 513}).notes
    assert "513 tokens are more than the base's 512 positions" in note
    (note,) = resolved(BERT, {"type": "prompt_tuning", "virtual_tokens": 9}, training={"max_seq_length": 504}).notes
    assert "504 tokens and 9 virtual ones" in note


# --- refusals and notes ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_quantized_base_wants_qlora(method):
    with pytest.raises(SpecError, match="stored quantized") as caught:
        resolved(replace(LLAMA, quantized=True), method)
    assert caught.value.hint is not None and "`method: qlora`" in caught.value.hint


def test_qlora_takes_both_kinds_of_base():
    assert resolved(replace(LLAMA, quantized=True), "qlora").notes == ()
    assert any("quantized at load (NF4, 4 bits)" in note for note in resolved(LLAMA, "qlora").notes)
    assert resolved(replace(LLAMA, quantized=True), "prompt_tuning").notes == ()


def test_lora_on_a_chat_model_is_noted():
    assert any("chat template" in note for note in resolved(replace(LLAMA, chat_template=True)).notes)
    assert resolved(replace(LLAMA, chat_template=True), "full").notes == ()


def test_an_encoder_classifies():
    assert resolved(BERT, task="classification")
    with pytest.raises(SpecError, match="is an encoder: it can classify, but not do `task: generation`"):
        resolved(BERT, task="generation")


def test_virtual_tokens_must_fit():
    with pytest.raises(SpecError, match="600 virtual tokens leave no room in the 512 positions"):
        resolved(BERT, {"type": "prompt_tuning", "virtual_tokens": 600})


def test_doctests():
    found = doctest.testmod(presets)
    assert found.attempted > 0 and found.failed == 0
