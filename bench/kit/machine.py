"""The machine while it is measured: what it is, how fast it multiplies, and who else uses it."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path

import torch

from luthier import hardware

_SIDE = 2048  # of the square product that gives the matrix rate: 17 GFLOP
_TICK = os.sysconf("SC_CLK_TCK")


def facts() -> dict:
    """What a figure depends on besides the code."""
    here = hardware.machine("cpu")
    return {
        "processor": here.name,
        "cores": here.cores,
        "threads": torch.get_num_threads(),
        "memory_bytes": here.memory_bytes,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
        "load": os.getloadavg()[0],
    }


def matrix_rate(times: int = 5) -> float:
    """Float32 operations a second of a large product, the better of torch's two libraries, best of `times`."""
    a, b = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    products = [lambda: torch.mm(a, b)]
    if torch.backends.mkldnn.is_available():
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    best = 0.0
    with torch.no_grad():
        for product in products:
            product()
            for _ in range(times):
                started = time.perf_counter()
                product()
                best = max(best, 2 * _SIDE**3 / (time.perf_counter() - started))
    return best


def busy_seconds() -> float:
    """Processor seconds that anybody has used, so far, on the cores this process may use (0 where Linux is not)."""
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)} if platform.system() == "Linux" else set()
    total = 0
    for line in Path("/proc/stat").read_text().splitlines() if mine else ():
        name, *ticks = line.split()
        if name in mine:
            user, nice, system, _, _, irq, softirq, steal = map(int, ticks[:8])
            total += user + nice + system + irq + softirq + steal
    return total / _TICK
