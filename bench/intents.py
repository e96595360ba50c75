"""Full tuning of MiniLM on banking77: luthier and transformers' `Trainer`, same budget, same rows, one after the other.

python bench/intents.py          results/intents.json: accuracy and seconds of both (three epochs, about ten minutes)
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from examples import ROOT, carry, encoder_folder
from luthier import spec
from luthier.studio import Studio

FILE = ROOT / "examples" / "intents" / "full.yaml"


def rows() -> dict[str, list[dict]]:
    """The rows of each split as luthier prepares them: what it takes out of train, `Trainer` must not see either."""
    with tempfile.TemporaryDirectory() as home:
        dataset = Studio(Path(home)).prepare(spec.load(FILE, [f"model.name={encoder_folder()}"]).data, "classification")
        return {
            split: [{"input": each.messages[0].content, "label": each.label} for each in dataset.stream(split)]
            for split in ("train", "test")
        }


def trainer() -> dict:
    """A plain `Trainer` run: 3 epochs, batch 16, 1e-4, linear to zero."""
    given = rows()
    started = time.perf_counter()
    labels = sorted({row["label"] for row in given["train"]})
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    model = AutoModelForSequenceClassification.from_pretrained(encoder_folder(), num_labels=len(labels))

    def encoded(split: str) -> list[dict]:
        texts = given[split]
        ids = tokenizer([row["input"] for row in texts])["input_ids"]
        return [{"input_ids": i, "labels": labels.index(row["label"])} for i, row in zip(ids, texts, strict=True)]

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=3, per_device_train_batch_size=16, learning_rate=1e-4, use_cpu=True,
            report_to=[], save_strategy="no", per_device_eval_batch_size=64, seed=0, disable_tqdm=True,
        )  # fmt: skip
        run = Trainer(model, arguments, train_dataset=encoded("train"), processing_class=tokenizer)
        run.train()
        trained = time.perf_counter() - started
        test = encoded("test")
        found = torch.from_numpy(run.predict(test).predictions).argmax(-1)
    right = sum(int(a) == row["labels"] for a, row in zip(found, test, strict=True))
    whole = time.perf_counter() - started
    return {"accuracy": right / len(test), "train_seconds": round(trained, 1), "whole_seconds": round(whole, 1)}


if __name__ == "__main__":
    ours = carry(FILE)
    theirs = trainer()
    results = {"luthier": ours, "trainer": theirs, "ratio_whole": theirs["whole_seconds"] / ours["whole_seconds"]}
    Path(ROOT / "bench" / "results" / "intents.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({"luthier": ours["verdict"], "trainer": theirs, "ratio_whole": results["ratio_whole"]}))
