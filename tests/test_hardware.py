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


@pytest.mark.parametrize(("busy", "threads"), [(0.0, 2), (0.29, 2), (0.5, 1), (1.0, 1), (2.0, 1)])
def test_threads_are_the_cores_that_others_leave(busy: float, threads: int):
    assert hardware.left(2, busy) == threads


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells")
def test_work_is_counted_on_the_cores_of_this_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A line of /proc/stat: user nice system idle iowait irq softirq steal; waiting is no work."""
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: {1, 12})
    lines = [
        "cpu  9 9 9 9 9 9 9 9 0 0",
        "cpu1 1 2 4 1000 1000 8 16 32 0 0",
        "cpu2 9 9 9 9 9 9 9 9",
        "cpu12 64 0 0 9 9 0 0 0",
    ]
    (tmp_path / "stat").write_text("\n".join(lines) + "\nintr 77\n")
    assert hardware.busy_seconds(tmp_path) * os.sysconf("SC_CLK_TCK") == 127
    assert hardware.busy_seconds(tmp_path / "absent") == 0
    monkeypatch.setattr(hardware.metadata, "version", lambda name: "2.13.0+cpu")
    assert hardware.graphics_cards({}, tmp_path) == ()


def test_a_wish_for_threads_wins_and_otherwise_at_least_one_is_found(monkeypatch: pytest.MonkeyPatch):
    neighbours = hardware.Neighbours()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert neighbours.threads() == 7
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= neighbours.threads() <= hardware.cores()


def test_rates_are_positive_and_threads_are_put_back():
    before = torch.get_num_threads()
    found = hardware.rates(hardware.machine("cpu"), 1)
    assert found.products > 1e8 and found.bytes > 1e7 and 0 < found.call < 1e-2
    assert torch.get_num_threads() == before


@pytest.mark.gpu
def test_a_gpu():
    found = hardware.machine("cuda")
    assert found.count >= 1 and found.memory_bytes > 2**30 and found.dtype in ("bfloat16", "float32")


def test_graphics_cards_are_those_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.metadata, "version", lambda name: "2.13.0")
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert hardware.graphics_cards({}, tmp_path) == ("0", "1", "2")
    assert hardware.graphics_cards({"CUDA_VISIBLE_DEVICES": "0, 2"}, tmp_path) == ("0", "2")
    assert hardware.graphics_cards({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ()
    assert hardware.graphics_cards({"LUTHIER_DEVICE": "cpu"}, tmp_path) == ()
    assert hardware.graphics_cards({"LUTHIER_DEVICE": "cuda"}, tmp_path / "absent") == ()
