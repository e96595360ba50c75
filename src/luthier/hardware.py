"""What this machine can do: its device, memory, cores and the precision it computes in.

Lives here: asking the machine, without loading a model. Does not live here: what it means for a run (`train/plan.py`).
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.errors import SpecError

Device = Literal["cpu", "cuda", "mps"]
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True, slots=True)
class Machine:
    """`count` devices of kind `device`, `memory_bytes` of one of them, CPU `cores`, the device's `name`, the `dtype`
    (bfloat16 or float32) it computes in. Memory and cores of a CPU are what this process may use."""

    device: Device
    count: int
    memory_bytes: int
    cores: int
    name: str
    dtype: str


def machine(device: str | None = None) -> Machine:
    """This machine. `device` (default: $LUTHIER_DEVICE, else the best there is) picks the kind. Imports torch.

    Raises SpecError for a device that is unknown or not there.
    """
    import torch

    wanted = device or os.environ.get("LUTHIER_DEVICE")
    if wanted is not None and wanted not in DEVICES:
        raise SpecError(f"`{wanted}` is not a device", hint=f"one of {', '.join(DEVICES)}")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted is not None and not there[wanted]:
        raise SpecError(f"this machine has no device `{wanted}`", hint="`luthier doctor` shows what it has")
    kind = wanted or next(name for name, present in there.items() if present)
    if kind == "cuda":
        facts = torch.cuda.get_device_properties(0)
        dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        return Machine("cuda", torch.cuda.device_count(), facts.total_memory, cores(), facts.name, dtype)
    if kind == "mps":
        return Machine("mps", 1, int(torch.mps.recommended_max_memory()), cores(), _processor(), "float32")
    return Machine("cpu", 1, memory(), cores(), _processor(), "float32")


def graphics_cards(environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """How many NVIDIA cards a process of that environment may use, found without torch; 0 where the CPU is wished."""
    if environment.get("LUTHIER_DEVICE", "cuda") != "cuda":
        return 0
    there = len(list(devices.glob("nvidia[0-9]*")))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return there if visible is None else min(there, len([card for card in visible.split(",") if card.strip()]))


def cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """CPU cores this process may use: its affinity, and its container's quota (cgroup v2 or v1)."""
    count = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (groups / "cpu.max").read_text().split()
        return max(1, min(count, round(int(quota) / int(period))))  # "max" is no number: no quota
    with contextlib.suppress(OSError, ValueError):
        quota_us, period_us = (int((groups / "cpu" / f"cpu.cfs_{part}_us").read_text()) for part in ("quota", "period"))
        return max(1, min(count, round(quota_us / period_us))) if quota_us > 0 else count
    return count


def memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory this process may use: the machine's, or its container's limit (cgroup v2 or v1)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (groups / "memory.max", groups / "memory" / "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(limit.read_text()))
    return total


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
