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


def _working(proc: Path, monkeypatch: pytest.MonkeyPatch, others: float, own: float = 0.0) -> hardware.Neighbours:
    """Two cores watched for a second, in which other processes worked `others` seconds and this one `own`."""
    moment = [100.0]
    monkeypatch.setattr(hardware.platform, "system", lambda: "Linux")
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    monkeypatch.setattr(hardware.time, "monotonic", lambda: moment[0])
    monkeypatch.setattr(hardware.time, "process_time", lambda: own * (moment[0] - 100.0))
    tick = os.sysconf("SC_CLK_TCK")
    line = "cpu{} {} 0 0 900 0 0 0 0 0 0\n"
    (proc / "stat").write_text(line.format("", 9) + line.format(0, 50) + line.format(1, 50) + line.format(2, 50))
    found = hardware.Neighbours(proc)
    moment[0] += 1.0
    worked = int((others + own) * tick)
    (proc / "stat").write_text(
        line.format("", 9) + line.format(0, 50) + line.format(1, 50 + worked) + line.format(2, 999)
    )
    return found


@pytest.mark.parametrize(
    ("others", "own", "threads"), [(0.0, 0.0, 2), (0.2, 0.9, 2), (0.5, 0.0, 1), (1.0, 1.0, 1), (2.0, 0.0, 1)]
)
def test_threads_are_the_cores_that_others_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: float, own: float, threads: int
) -> None:
    """This process's own work is not taken for a neighbour's; cores outside its affinity do not count."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    neighbours = _working(tmp_path, monkeypatch, others, own)
    assert neighbours.threads() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert neighbours.threads() == 7


def test_rates_are_positive_and_threads_are_put_back():
    before = torch.get_num_threads()
    found = hardware.rates(hardware.machine("cpu"), 1)
    assert found.products > 1e8 and found.bytes > 1e7 and 0 < found.call < 1e-2
    assert torch.get_num_threads() == before


@pytest.mark.gpu
def test_a_gpu():
    found = hardware.machine("cuda")
    assert found.count >= 1 and found.memory_bytes > 2**30 and found.dtype in ("bfloat16", "float32")
