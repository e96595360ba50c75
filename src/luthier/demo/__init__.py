"""The data and the base model of `luthier demo`: text to SQL, made by this package, offline.

`words` and `queries` sample domains and queries, `phrases` puts them in English, `fill` makes rows to execute them on,
`dataset` is what tuning reads, `documents`, `network` and `pretrain` made the base in `base/`.
"""

from __future__ import annotations

import json
from pathlib import Path

from luthier.demo.dataset import SIZES, rows

__all__ = ["base_path", "write_demo"]

_EXPERIMENT = """\
name: demo
model: {base}
task: generation
data:
  train: train.jsonl
  validation: validation.jsonl
  test: test.jsonl
  template: "{{schema}}\\nQuestion: {{input}}\\nSQL:"
method: {{type: lora, rank: 16, alpha: 32}}
training: {{batch_size: 16, max_steps: 740, learning_rate: 4.0e-3, schedule: linear}}
evaluation: {{metrics: [exact_match, sql_execution]}}
"""


def base_path() -> Path:
    """The folder of the embedded base model and its tokenizer."""
    return Path(__file__).parent / "base"


def write_demo(folder: Path, seed: int = 0) -> Path:
    """Write train.jsonl, validation.jsonl, test.jsonl and experiment.yaml; give the path of the last.

    The same seed gives the same bytes. The folder is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(split, seed))
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    path = folder / "experiment.yaml"
    path.write_text(_EXPERIMENT.format(base=json.dumps(str(base_path()))), encoding="utf-8")
    return path
