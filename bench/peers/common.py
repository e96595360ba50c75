"""What every engine's child shares: the job it reads, the pace it keeps, batches padded as peers want them.

Needs numpy and torch only: each engine runs in its own environment.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Job:
    """One training, the same for every engine.

    `folder`: the base. `rows`: an npz of ids, train, offsets, and `drawn` (which row comes when, all steps).
    `start`: safetensors with the trained weights to begin with, under PEFT's names. `batch` examples make an update,
    in micro-batches of `micro`, where an engine has to pad.
    """

    folder: str
    rows: str
    start: str
    method: str  # lora, prompt, full
    virtual: int
    rank: int
    alpha: int
    learning_rate: float
    batch: int
    micro: int
    steps: int
    seed: int
    batching: str

    def examples(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Token ids and trained flags of every row."""
        table = np.load(self.rows)
        cuts = table["offsets"][1:-1]
        return np.split(table["ids"], cuts), np.split(table["train"], cuts)

    def drawn(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and labels (-100 where nothing is trained) of all steps' examples, in order."""
        ids, train = self.examples()
        return [
            (ids[i].astype(np.int64), np.where(train[i], ids[i], -100).astype(np.int64))
            for i in np.load(self.rows)["drawn"]
        ]

    def padded_steps(self) -> Iterator[tuple[list[dict[str, torch.Tensor]], int]]:
        """For each update its micro-batches, and how many targets it has."""
        rows = self.drawn()
        for start in range(0, len(rows), self.batch):
            step = rows[start : start + self.batch]
            count = sum(int((labels[1:] >= 0).sum()) for _, labels in step)
            yield [pad(step[i : i + self.micro]) for i in range(0, len(step), self.micro)], count


def pad(rows: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each (B, longest), filled on the right with 0, 0 and -100."""
    longest = max(len(ids) for ids, _ in rows)
    batch = {
        "input_ids": torch.zeros(len(rows), longest, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), longest, dtype=torch.long),
        "labels": torch.full((len(rows), longest), -100),
    }
    for b, (ids, labels) in enumerate(rows):
        batch["input_ids"][b, : len(ids)] = torch.from_numpy(ids)
        batch["attention_mask"][b, : len(ids)] = 1
        batch["labels"][b, : len(ids)] = torch.from_numpy(labels)
    return batch


class Pace:
    """The engine calls `ready` once and `step` after each update; in between it waits for "do k steps" on stdin.

    Answers are lines of JSON on the real stdout; whatever libraries print goes to stderr. End of input ends the child.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._baseline = self._left = 0
        self._losses: list[float] = []
        self._clock = self._cpu = 0.0

    def loaded(self) -> None:
        """Libraries are imported: memory is counted from here."""
        with_peak = Path("/proc/self/clear_refs")
        if with_peak.exists():
            with_peak.write_text("5")  # the peak begins anew
        self._baseline = _memory("VmRSS")

    def ready(self) -> None:
        """Model, adapter and optimizer stand: the next thing is a step."""
        self._say({"ready": True, "baseline_bytes": self._baseline, "ready_bytes": _memory("VmRSS")})
        self._wait()

    def step(self, loss: float) -> None:
        self._losses.append(loss)
        if len(self._losses) == self._left:
            seconds, cpu = time.perf_counter() - self._clock, time.process_time() - self._cpu
            peak = _memory("VmHWM") - self._baseline
            self._say({"seconds": seconds, "cpu_seconds": cpu, "losses": self._losses, "peak_bytes": peak})
            self._wait()

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        self._left, self._losses = int(line), []
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def _say(self, answer: dict) -> None:
        print(json.dumps(answer), file=self._out, flush=True)


def _memory(what: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most so far (0 where Linux is not)."""
    status = Path("/proc/self/status")
    found = re.search(rf"{what}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else 0
