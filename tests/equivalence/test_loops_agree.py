"""Equivalence 5: our loop = the bare loop of `examples/` = TRL's `SFTTrainer`, update by update, on the same rows."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier import spec
from luthier.data import sources
from luthier.data.encode import Rules, encode_split
from luthier.data.examples import Encoded
from luthier.data.formats import to_example
from luthier.models.methods import Tuned, attach
from luthier.runs import Stepped
from luthier.train.loop import Job, train
from tests.equivalence.workbench import LORA, Tiny, load, rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "bare_loop.py"
TEMPLATE = "Table: {schema}\nQuestion: {input}\nSQL:"
TRAINING = spec.Training(
    batch_size=4, accumulate_steps=1, num_epochs=2, learning_rate=4e-3, warmup=0.0, weight_decay=0.0, schedule="linear"
)


def _bare_loop() -> ModuleType:
    found = importlib.util.spec_from_file_location("bare_loop", EXAMPLE)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _losses(tuned: Tuned, examples: list[Encoded], training: spec.Training, folder: Path, seed: int) -> list[float]:
    events = train(tuned, [Job("run", training, seed, examples, [], folder)])
    return [event.loss for event in events if isinstance(event, Stepped)]


def test_bare_loop_gives_the_same_losses(tiny: Tiny, tmp_path: Path) -> None:
    """From the same file: tokens, order, adapters, losses of every update."""
    file = tmp_path / "train.jsonl"
    records = [
        {
            "schema": f"t{i % 3} (a, b)",
            "input": f"how many rows are {i}?",
            "output": f"SELECT a FROM t{i % 3} WHERE b = {i}",
        }
        for i in range(14)
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    bare, folder = _bare_loop(), str(tiny("tiny_llama"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs_rows = [bare.encode(record, TEMPLATE, tokenizer) for record in records]
    said = argparse.Namespace(learning_rate=4e-3, batch_size=4, epochs=2, seed=5)
    trained = bare.add_lora(model, rank=4, alpha=8, seed=5)
    theirs = list(bare.train(model, trained, theirs_rows, said))

    base = load(tiny, "tiny_llama")
    data = spec.Data(train=str(file))
    examples = [to_example(row, "input_output", data, *place) for row, *place in sources.rows(str(file))]
    rules = Rules("causal", template=TEMPLATE, end_token_ids=base.end_token_ids)
    ours_rows = encode_split(examples, base.tokenizer, rules).rows
    assert [row.ids_L.tolist() for row in ours_rows] == [ids for ids, _ in theirs_rows]
    assert [row.prompt_length for row in ours_rows] == [prompt for _, prompt in theirs_rows]
    ours = _losses(attach(base, [LORA], [5]), list(ours_rows), TRAINING, tmp_path / "run", seed=5)
    assert len(ours) == 8
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_trl_gives_the_same_losses(tiny: Tiny, tmp_path: Path) -> None:
    """50 updates of `SFTTrainer` on pre-tokenised rows, in our order, from our adapter: each loss within 1e-5."""
    trl = pytest.importorskip("trl", reason="needs TRL, which is not among the test dependencies")
    datasets = pytest.importorskip("datasets")
    import peft

    training = spec.Training(**{**TRAINING.model_dump(), "num_epochs": 17, "batch_size": 3, "learning_rate": 1e-3})
    examples = rows("causal", count=7)
    base = load(tiny, "tiny_llama")
    tuned = attach(base, [LORA], [0])
    start = {name: tensor.clone() for name, tensor in tuned.slots[0].tensors().items()}
    ours = _losses(tuned, examples, training, tmp_path / "run", seed=0)
    assert len(ours) >= 50

    from luthier.data.batches import epoch_order

    drawn = [examples[i] for epoch in range(17) for i in epoch_order(len(examples), 0, epoch)]
    labels = [np.where(row.train_L, row.ids_L, -100).tolist() for row in drawn]
    data = datasets.Dataset.from_dict({"input_ids": [row.ids_L.tolist() for row in drawn], "labels": labels})
    model = load(tiny, "tiny_llama").model
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(tuned.slots[0].targets), task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(start[name.replace(".default", "")])
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=3, num_train_epochs=1, learning_rate=1e-3,
        lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0, logging_steps=1, report_to=[], save_strategy="no",
        use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=None, train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True}, disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=base.tokenizer)
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(theirs) == len(ours)
    assert ours == pytest.approx(theirs, abs=1e-5)
