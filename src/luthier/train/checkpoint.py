"""Checkpoints that are complete or invisible, and resuming from the newest one that verifies.

A checkpoint is a folder `step-00000120/`: `weights.safetensors` (what the slot trains, under PEFT's names),
`optimizer.safetensors`, `progress.json`, and `MANIFEST.json` with the size and SHA-256 of each. It is written beside
its place under a hidden name, synced, and renamed; nothing is deleted before its successor stands.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier import disk
from luthier.errors import TrainingError

FORMAT = 1
ROOM = 2.2
"""Free space before a save, in checkpoints: the one to be written, and what a run still writes after its last."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Everything a run must remember besides tensors: the data order and dropout are functions of seed and step."""

    step: int = 0
    tokens: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    worse: int = 0  # evaluations since the best
    skipped: int = 0  # updates that were not finite
    skipped_in_a_row: int = 0
    looked_back: bool = True  # whether evaluation and saving after the last update are done
    ended: str = ""  # why nothing more is to be learned, where that was said before the last update


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    progress: Progress

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.path / "weights.safetensors")

    def optimizer(self) -> dict[str, Tensor]:
        return load_file(self.path / "optimizer.safetensors")


def save(folder: Path, progress: Progress, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> Path:
    """Write `folder/step-…`. Raises TrainingError with path and bytes where the disk refuses; older ones stay."""
    final = _place(folder, progress.step)
    if final.exists() and _fault(final) is None and _progress(final) == progress:
        return final  # the same step saved again, after a resume: what stands is as good
    tensors = {"weights.safetensors": weights, "optimizer.safetensors": optimizer}
    need = sum(value.nbytes for content in tensors.values() for value in content.values())
    try:
        with disk.whole_folder(final) as staging:
            if shutil.disk_usage(staging).free < ROOM * need:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
            for name, content in tensors.items():
                save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, staging / name)
            (staging / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
            files = {name: _facts(staging / name) for name in (*tensors, "progress.json")}
            (staging / "MANIFEST.json").write_text(json.dumps({"format": FORMAT, "files": files}), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        hint = (
            f"{ROOM * need / 2**20:.1f} MiB must be free; make room and run the same command again: "
            "the older checkpoint stands"
        )
        raise TrainingError(f"the checkpoint could not be written: {error}", str(final), hint) from error
    return final


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not.

    For the one process that may write there: what a killed save left is put right first.
    """
    disk.sweep(folder)
    complaints: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        fault = _fault(path)
        if fault is None:
            return Checkpoint(path, _progress(path)), complaints
        complaints.append(f"{path.name} is damaged ({fault}); using the one before")
    return None, complaints


def at(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of that step. Raises TrainingError where it is missing or damaged."""
    path = _place(folder, step)
    fault = _fault(path)
    if fault is not None:
        raise TrainingError(f"checkpoint {path.name} is damaged: {fault}", where=str(path))
    return Checkpoint(path, _progress(path))


def rotate(folder: Path, keep: set[int]) -> None:
    """Delete all but the steps to keep and the newest before the last of them, so that two stand at least.

    Nothing is deleted unless those to keep verify. One behind the last does not: the run went on from before it.
    """
    kept = {_place(folder, step) for step in keep}
    if any(_fault(path) is not None for path in kept):
        return
    others = sorted(path for path in folder.glob("step-*") if path not in kept)
    kept |= set([path for path in others if path < max(kept)][-1:])
    for path in others:
        if path not in kept:
            shutil.rmtree(path)


def restore(into: dict[str, Tensor], saved: dict[str, Tensor], where: Path) -> None:
    """Copy tensors by name. Raises TrainingError for one missing, extra, of another shape or type."""
    wrong = sorted(set(into) ^ set(saved)) or [
        name for name in into if into[name].shape != saved[name].shape or into[name].dtype != saved[name].dtype
    ]
    if wrong:
        raise TrainingError(
            f"the checkpoint does not fit this run: `{wrong[0]}` and {len(wrong) - 1} more differ", where=str(where)
        )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(saved[name])


def _place(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _progress(path: Path) -> Progress:
    return Progress(**json.loads((path / "progress.json").read_text(encoding="utf-8")))


def _same_fields(path: Path) -> bool:
    told = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    return set(told) == {field.name for field in fields(Progress)}


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, not {FORMAT}"
        for name, facts in manifest["files"].items():
            if _facts(path / name) != facts:
                return f"{name} differs from the manifest"
        if not _same_fields(path):
            return "progress.json is of another version"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _facts(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": disk.sha256(path)}
