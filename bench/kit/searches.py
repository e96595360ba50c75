"""A workload as a search has it: rows in files, the experiment, its trials' values; and the same as jobs for peers.

Rows are written as words, one a token, so that every engine reads the same ids: luthier renders and encodes them, and
peers are given what it made of them. Where a context is shared by all rows it stands in the template: rows that are
alike but for a few words would be refused as leaks. Validation and test rows are of contexts that train has not.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from peers.common import Job
from peers.with_luthier import method_of
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer

from luthier import spec
from luthier.data.batches import epoch_order, grouped_order
from luthier.data.examples import Encoded
from luthier.models import base
from luthier.models.methods import attach

from . import workloads

BATCH, ALPHA, SEED, ASIDE = 8, 16, 0, 8
RATES = {8: [3e-4, 3e-3], 16: [1e-4, 3e-4, 1e-3, 3e-3]}
SIZES = {"lora": ("method.rank", [4, 8, 16, 32]), "prompt": ("method.virtual_tokens", [8, 16, 32, 64])}


@dataclass(frozen=True, slots=True)
class Workload:
    """`data` (cls, sql; `+grouped`: rows of a context meet in one update), the base's `shape`, `method` (lora, prompt),
    how many trials, the updates of each, and after how many updates it is evaluated."""

    data: str
    shape: str
    method: str
    trials: int
    steps: int
    evaluate_every: int

    def values(self) -> list[dict[str, float]]:
        """Every trial's: sizes and learning rates, each with each."""
        name, sizes = SIZES[self.method]
        among = itertools.product(sizes, RATES[self.trials])
        return [{name: size, "training.learning_rate": rate} for size, rate in among]

    def method_spec(self) -> dict:
        if self.method == "prompt":
            return {"type": "prompt_tuning", "init_method": "vocabulary", "virtual_tokens": SIZES["prompt"][1][0]}
        return {"type": "lora", "alpha": ALPHA, "dropout": 0.0, "target_modules": "all-linear"}

    def experiment(self, folder: Path, search: dict) -> dict:
        """What the file of the search says."""
        rows = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
        template = (folder / "template.txt").read_text()
        return {
            "name": "bench",
            "model": str(folder / "model"),
            "data": rows | {"template": template, "clean": []},
            "task": "generation",
            "method": self.method_spec(),
            "training": {
                "batch_size": BATCH, "accumulate_steps": 1, "num_epochs": 1, "max_steps": self.steps,
                "learning_rate": RATES[self.trials][0], "schedule": "constant", "warmup": 0, "weight_decay": 0.0,
                "batching": "grouped" if "+grouped" in self.data else "random", "gradient_checkpointing": False,
                "evaluate_every": self.evaluate_every,
            },
            "evaluation": {"compare_base": False, "max_new_tokens": 2, "limit": ASIDE},
            "search": {"space": self.space(), "sampler": "grid", "trials": self.trials, **search},
        }  # fmt: skip

    def space(self) -> dict[str, list]:
        name, sizes = SIZES[self.method]
        return {name: sizes, "training.learning_rate": RATES[self.trials]}


def write(work: Workload, folder: Path) -> None:
    """The base, the rows in files and the template."""
    model = workloads.make_model(workloads.SHAPES[work.shape], folder / "model")
    words = AutoTokenizer.from_pretrained(model)
    words.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    words.save_pretrained(model)
    data = work.data.partition("+")[0]
    rows = workloads.rows_of(data, SEED)
    head = _common_head(rows) if data == "cls" else 0
    (folder / "template.txt").write_text(f"{_text(rows[0].ids_L[:head])} {{input}} ".lstrip())
    aside = rows[-2 * 25 :] if data == "sql" else rows[-2 * ASIDE :]  # two schemas of 25 questions
    half = len(aside) // 2
    splits = {"train": rows[: -len(aside)], "validation": aside[:ASIDE], "test": aside[half : half + ASIDE]}
    for name, some in splits.items():
        lines = [json.dumps(_as_text(row, head)) for row in some]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def _common_head(rows: Sequence[Encoded]) -> int:
    """How many tokens all rows begin with."""
    shortest = min(len(row.ids_L) for row in rows)
    same = np.all([row.ids_L[:shortest] == rows[0].ids_L[:shortest] for row in rows], axis=0)
    return int(np.argmin(same))


def _as_text(row: Encoded, head: int) -> dict[str, str]:
    cut = int(np.argmax(row.train_L))
    return {"input": _text(row.ids_L[head:cut]), "output": _text(row.ids_L[cut:])}


def _text(ids_L: np.ndarray) -> str:
    return " ".join(f"w{i}" for i in ids_L)


def for_peers(
    work: Workload, folder: Path, train: Sequence[Encoded], validation: Sequence[Encoded], micro: int
) -> dict:
    """What `peers/one_after_another.py` reads: the trials' values and jobs, on the very tokens of luthier's."""
    drawn: list[int] = []
    for epoch in range(-(-work.steps * BATCH // len(train))):
        grouped = "+grouped" in work.data
        order = grouped_order(train, BATCH, SEED, epoch) if grouped else epoch_order(len(train), SEED, epoch)
        drawn += order.tolist()
    save_rows(folder / "train.npz", train, drawn[: work.steps * BATCH])
    save_rows(folder / "validation.npz", validation, list(range(len(validation))))
    trials = []
    for number, values in enumerate(work.values()):
        size, rate = values.values()
        job = Job(
            folder=str(folder / "model"), rows=str(folder / "train.npz"),
            start=str(folder / f"start{number}.safetensors"), method=work.method,
            virtual=int(size) if work.method == "prompt" else 0, rank=int(size), alpha=ALPHA, learning_rate=rate,
            batch=BATCH, micro=micro, steps=work.steps, seed=SEED, batching="",
        )  # fmt: skip
        method = method_of(job)
        tuned = attach(base.load(spec.Model(name=job.folder), method), [method], [SEED])
        save_file({name: tensor.clone() for name, tensor in tuned.slots[0].tensors().items()}, job.start)
        trials.append({"values": values, "job": asdict(job)})
    return {"trials": trials, "validation": str(folder / "validation.npz")}


def save_rows(path: Path, rows: Sequence[Encoded], drawn: Sequence[int]) -> None:
    """Rows as `Job.examples` reads them."""
    offsets = np.concatenate([[0], np.cumsum([len(row.ids_L) for row in rows])])
    ids, train = np.concatenate([row.ids_L for row in rows]), np.concatenate([row.train_L for row in rows])
    np.savez(path, ids=ids, train=train, offsets=offsets, drawn=np.array(drawn))
