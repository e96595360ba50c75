"""The traps real small models set, one test each; 2 and 3 (seams of SentencePiece, `</s>` of a transliterator) stand in
`tests/data/test_encode.py`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier import presets, spec, workbench
from luthier.data.batches import Share, flat_batches
from luthier.data.examples import Encoded
from luthier.data.prepare import prepare
from luthier.errors import DataError
from luthier.models import base as bases
from luthier.models import facts
from luthier.models.methods import attach
from luthier.runs import Stepped
from luthier.train.loop import Job, train, validation_losses
from tests.equivalence.workbench import LORA, Tiny, load


def _bench(model: Path, data: dict, home: Path, method: object = "lora") -> workbench.Bench:
    experiment = spec.from_mapping({"model": str(model), "data": data, "method": method})
    dataset = prepare(experiment.data, home)
    known = facts.inspect(str(model))
    return workbench.lay(presets.resolve(experiment, known, dataset.task).experiment, dataset)


def _rows(folder: Path, count: int) -> Path:
    file = folder / "rows.jsonl"
    lines = [json.dumps({"input": f"a cat and {i} dogs", "output": f"{i} dogs"}) for i in range(count)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.mark.parametrize(("end", "warned"), [(1, False), (2, True)], ids=["<s>", "</s>"])
def test_trap_1_an_end_token_nobody_trained_is_named(shared: Path, tmp_path: Path, end: int, warned: bool) -> None:
    """stories260k's `</s>` was never trained: on a frozen base LoRA cannot learn to stop on it; full tuning can."""
    model = tmp_path / "model"
    model.mkdir()
    for file in (shared / "models" / "stories260k").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": end}))
    data = {"train": str(_rows(tmp_path, 30))}
    codes = {finding.code for finding in _bench(model, data, tmp_path).findings}
    assert ("G05" in codes) == warned
    assert "G05" not in {finding.code for finding in _bench(model, data, tmp_path, "full").findings}


def test_trap_4_a_shared_layer_has_one_adapter_that_is_applied_twelve_times(shared: Path) -> None:
    base = bases.load(spec.Model(name=str(shared / "models" / "rxn-albert")), LORA, labels=("no", "yes"))
    tuned = attach(base, [LORA], [0])
    (query,) = (name for name in tuned.slots[0].targets if name.endswith("attention.query"))
    calls = []
    base.model.get_submodule(query).register_forward_pre_hook(lambda *_: calls.append(1))
    ids_L = base.tokenizer("CC(=O)N", return_tensors="np")["input_ids"][0].astype(np.int32)
    row = Encoded("row", ids_L, np.zeros(len(ids_L), bool), label=1)
    (batch,) = flat_batches([Share(0, [row], 1.0)], 100)
    tuned.nll(batch)
    assert len(calls) == 12 == base.model.config.num_hidden_layers
    assert "classifier" in base.fresh and any("classifier" in name for name in tuned.slots[0].leaves)


def test_trap_5_prompts_longer_than_the_positions_are_refused_or_cut_with_a_count(shared: Path, tmp_path: Path) -> None:
    """advising_sql's schema has 3,000 pieces for stories260k, which has 512 positions."""
    folder = shared / "data" / "advising_sql"
    with gzip.open(folder / "contexts.jsonl.gz", "rt") as file:
        context = json.loads(file.readline())["context"]
    with gzip.open(folder / "train.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(20), strict=False)]
    schemas = {0: context, 7: context, 12: context[:400]}  # two prompts are too long, one only with its answer
    rows = [row | {"context": schemas.get(i, "singer(name)")} for i, row in enumerate(rows)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    data = {"train": str(file), "template": "{context}\n\n-- Question: {input}\n-- SQL:", "test": 0, "validation": 0}
    model = shared / "models" / "stories260k"
    with pytest.raises(DataError, match="3 of 20 rows are longer than 512 tokens, the longest 3,") as refusal:
        _bench(model, data, tmp_path)
    places = [f"{file}:{number}" for number in (1, 8, 13)]
    assert refusal.value.where == ", ".join(places)
    dropped = _bench(model, data | {"overlength": "drop"}, tmp_path)
    assert len(dropped.train) == 17 and dropped.cut == 0
    (said,) = (remark for remark in dropped.remarks if "dropped" in remark)
    assert "3 rows of train were dropped" in said
    cut = _bench(model, data | {"overlength": "cut"}, tmp_path)
    assert len(cut.train) == 18 and cut.cut == 1 and max(len(row.ids_L) for row in cut.train) == 512
    assert any("2 rows of train were dropped" in remark for remark in cut.remarks)
    assert any("1 rows of train were cut" in remark for remark in cut.remarks)
    assert [(finding.code, finding.rows) for finding in cut.findings] == [("G03", (places[2],))]


@pytest.mark.slow
def test_trap_6_lora_shows_whether_the_base_matters_full_tuning_hides_it(shared: Path, tmp_path: Path) -> None:
    """Validation loss after one pass over 800 rows of snips, from real and from random weights."""
    data = {
        "train": str(shared / "data" / "snips" / "train.jsonl.gz"),
        "validation": str(shared / "data" / "snips" / "validation.jsonl.gz"),
        "test": 0.0, "limit": 800, "template": "{input}\nIntent:", "format": "input_output",
        "columns": {"output": "label"}, "remove_leaks": True,
    }  # fmt: skip
    gap = {}
    for method in ("lora", "full"):
        losses = []
        for real in (True, False):
            bench = _bench(shared / "models" / "stories260k", data, tmp_path, method)
            if not real:
                draw = torch.Generator().manual_seed(0)
                for matrix in (p for p in bench.base.model.parameters() if p.dim() > 1):
                    matrix.data = torch.randn(matrix.shape, generator=draw) * 0.02
            tuned = attach(bench.base, [bench.experiment.method], [0])
            training = bench.experiment.training.model_copy(update={"num_epochs": 2})
            folder = tmp_path / f"{method}{real}"
            events = list(train(tuned, [Job("run", training, 0, bench.train, [], folder)]))
            assert sum(isinstance(event, Stepped) for event in events) == 100
            losses += validation_losses(tuned, tuned.slots, bench.validation)
        gap[method] = losses[1] - losses[0]
    assert gap["lora"] > 0.02
    assert gap["lora"] > gap["full"]


def test_trap_7_conv1d_layers_and_neither_pad_nor_end_token(tiny: Tiny) -> None:
    """GPT-2's weights lie transposed; with no token to end on, what must be said is said before training."""
    base = load(tiny, "tiny_gpt2")
    tuned = attach(base, [LORA], [0])
    a, b = (tuned.slots[0].leaves[f"base_model.model.transformer.h.0.mlp.c_fc.lora_{x}.weight"] for x in "AB")
    assert (a.shape[1], b.shape[0]) == tuple(base.model.get_submodule("transformer.h.0.mlp.c_fc").weight.shape)
    assert any("no pad token" in note for note in base.notes)
