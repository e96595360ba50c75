"""The machine is asked, and the answer respects what the process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from luthier import hardware
from luthier.errors import SpecError


def test_this_machine():
    found = hardware.machine("cpu")
    assert (found.device, found.count, found.dtype) == ("cpu", 1, "float32")
    assert 1 <= found.cores <= (os.cpu_count() or 1) and found.memory_bytes > 2**28 and found.name


def test_the_best_device_is_taken_unless_one_is_named(monkeypatch):
    monkeypatch.delenv("LUTHIER_DEVICE", raising=False)
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert hardware.machine().device == best
    monkeypatch.setenv("LUTHIER_DEVICE", "cpu")
    assert hardware.machine().device == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(SpecError, match="this machine has no device `cuda`"):
        hardware.machine("cuda")


def test_an_unknown_device_is_refused():
    with pytest.raises(SpecError, match="`tpu` is not a device") as caught:
        hardware.machine("tpu")
    assert caught.value.hint == "one of cpu, cuda, mps"


def test_a_container_s_limits_count(tmp_path: Path):
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert (hardware.memory(tmp_path), hardware.cores(tmp_path)) == (1 << 30, 1)


def test_version_1_groups_count_too(tmp_path: Path):
    for folder, file, content in [
        ("memory", "memory.limit_in_bytes", "2147483648"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
    ]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / file).write_text(content)
    assert (hardware.memory(tmp_path), hardware.cores(tmp_path)) == (2 << 30, 1)


def test_no_limit_is_no_limit(tmp_path: Path):
    free = (hardware.memory(tmp_path), hardware.cores(tmp_path))
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert (hardware.memory(tmp_path), hardware.cores(tmp_path)) == free


@pytest.mark.gpu
def test_a_gpu():
    found = hardware.machine("cuda")
    assert found.count >= 1 and found.memory_bytes > 2**30 and found.dtype in ("bfloat16", "float32")


def test_graphics_cards_are_those_this_process_may_use(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert hardware.graphics_cards({}, tmp_path) == 3
    assert hardware.graphics_cards({"CUDA_VISIBLE_DEVICES": "0,2"}, tmp_path) == 2
    assert hardware.graphics_cards({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0
    assert hardware.graphics_cards({"LUTHIER_DEVICE": "cpu"}, tmp_path) == 0
    assert hardware.graphics_cards({"LUTHIER_DEVICE": "cuda"}, tmp_path / "absent") == 0
