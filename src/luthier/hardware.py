"""What this machine can do: its device, memory, cores and the precision it computes in.

Lives here: asking the machine, without loading a model. Does not live here: what it means for a run (`train/plan.py`).
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
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

    @property
    def processors(self) -> int:
        """How many processes compute side by side without taking from each other: cores, or graphics cards."""
        return self.cores if self.device == "cpu" else self.count


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


def graphics_cards(environment: Mapping[str, str], devices: Path = Path("/dev")) -> tuple[str, ...]:
    """The NVIDIA cards a process of that environment may use, as CUDA_VISIBLE_DEVICES names them, found without
    importing torch.

    None where the CPU is wished, or torch was built for nothing else.
    """
    if environment.get("LUTHIER_DEVICE", "cuda") != "cuda" or metadata.version("torch").endswith("+cpu"):
        return ()
    there = len(list(devices.glob("nvidia[0-9]*")))
    visible = environment.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(there))))
    return tuple(card.strip() for card in visible.split(",") if card.strip())[:there]


def take_card(index: int) -> None:
    """Compute on that graphics card from now on."""
    import torch

    torch.cuda.set_device(index)


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


SPARED = 0.3
"""How busy a core may be with other work and still be worth a thread. Threads that compute together wait for the
slowest: MiniLM, full, two threads: 176 ms a step on two idle cores, 465 beside one busy process; one thread 260 and
249. Between, the two cross at 0.3."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What else these cores are doing, from the moment this is made on: ask `idle_cores` a while later."""

    proc: Path = Path("/proc")
    began: float = field(default_factory=time.monotonic)
    mine: float = field(default_factory=time.process_time)
    all: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "all", busy_seconds(self.proc))

    def threads(self) -> int:
        """How many threads to compute with: OMP_NUM_THREADS if somebody says so, else one an idle core."""
        said = os.environ.get("OMP_NUM_THREADS", "")
        return int(said) if said.isdigit() and said != "0" else self.idle_cores()

    def idle_cores(self, watched_seconds: float = 0.3) -> int:
        """Cores this process may use and others do not, at least 1; looks for `watched_seconds` at least.

        What this process itself has computed meanwhile is known and taken off. On systems other than Linux: all cores.
        """
        if platform.system() != "Linux":
            return cores()
        time.sleep(max(0.0, self.began + watched_seconds - time.monotonic()))
        others = busy_seconds(self.proc) - self.all - (time.process_time() - self.mine)
        return min(cores(), left(len(os.sched_getaffinity(0)), others / (time.monotonic() - self.began)))


def left(count: int, busy: float) -> int:
    """Of `count` cores those worth a thread, at least 1, where others keep `busy` cores at work on average.

    >>> left(2, 0.2), left(2, 0.5), left(2, 3.0), left(8, 1.1)
    (2, 1, 1, 7)
    """
    return max(1, count - max(0, math.ceil(busy - SPARED)))


def busy_seconds(proc: Path) -> float:
    """Seconds that the cores of this process's affinity have worked since the machine began; 0 where nobody tells.

    A line of /proc/stat: user nice system idle iowait irq softirq steal, in ticks (man 5 proc_stat).
    """
    if platform.system() != "Linux":
        return 0.0
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    with contextlib.suppress(OSError):
        for line in (proc / "stat").read_text().splitlines():
            name, *counts = line.split()
            if name in mine:
                ticks += sum(map(int, counts[:3])) + sum(map(int, counts[5:8]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory this process may use: the machine's, or its container's limit (cgroup v2 or v1)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (groups / "memory.max", groups / "memory" / "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(limit.read_text()))
    return total


PAYS = 1.1
"""How many times faster several slots in one forward must be than as many one after another. On a CPU adapters on all
layers gave 0.99 to 1.06, on the upper half 1.23 to 1.36 (bench/slots.py): the former is no reason to let any wait."""
NEARLY = 0.95
"""Of the best rate found: fewer slots are taken where they reach so much of it."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a short probe measured: `seconds` of an update of all slots by their number, none where memory ended
    at once; the bytes of a process with its base and one slot, and those of a further slot."""

    seconds: Mapping[int, float]
    process_bytes: int
    slot_bytes: int


@dataclass(frozen=True, slots=True)
class Placement:
    """So many processes train side by side, each so many trials in one forward, on so many threads of a CPU. `figures`
    are what it follows from."""

    processes: int
    slots_each: int
    threads: int
    figures: Mapping[str, float]


def placement(device: Device, processors: int, at_once: int, usable_bytes: int, probe: Probe) -> Placement:
    """How at most `at_once` trials of one base share a machine, by measured seconds.

    `processors`: idle cores of a CPU, cards otherwise; `usable_bytes`: of all cores together, or of one card. Every
    processor gets a process (on a CPU, where memory holds as many bases); slots share a forward where that pays.
    """
    processes = min(processors, at_once)
    if device == "cpu":
        processes = min(processes, max(1, usable_bytes // max(1, probe.process_bytes)))
    each_bytes = usable_bytes // processes if device == "cpu" else usable_bytes
    more = max(0, each_bytes - probe.process_bytes) // max(1, probe.slot_bytes)
    most = min(at_once // processes, 1 + more)
    rates = {slots: slots / seconds for slots, seconds in probe.seconds.items() if slots <= most} or {1: 1.0}
    best = max(rates.values())
    slots = min(slots for slots, rate in rates.items() if rate >= NEARLY * best) if best >= PAYS * rates[1] else 1
    threads = processors // processes if device == "cpu" else 1
    figures = {f"seconds_{slots}": seconds for slots, seconds in probe.seconds.items()}
    figures |= {"process_bytes": probe.process_bytes, "slot_bytes": probe.slot_bytes, "gain": best / rates[1]}
    return Placement(processes, slots, threads, figures)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device does in a second: `products` (floating point operations of a large matrix product), `bytes` (read
    or written by element-wise work); `call`: seconds that one small operation takes at least."""

    products: float
    bytes: float
    call: float


def rates(machine: Machine, threads: int) -> Rates:
    """Measure a machine's device in about a tenth of a second, on `threads` threads of a CPU. Imports torch."""
    import torch

    device, before = machine.device, torch.get_num_threads()
    torch.set_num_threads(threads)
    kind = torch.bfloat16 if machine.dtype == "bfloat16" else torch.float32
    width = 768 if device == "cpu" else 8192
    a, b = (torch.rand(width, width, device=device, dtype=kind) for _ in range(2))
    wide, small = torch.rand(1 << 22, device=device), torch.rand(8, device=device)
    into = torch.empty_like(wide)
    try:
        product = _least_seconds(lambda: torch.mm(a, b), device)
        written = _least_seconds(lambda: torch.mul(wide, wide, out=into), device)
        call = _least_seconds(lambda: [small * small for _ in range(100)], device) / 100
    finally:
        torch.set_num_threads(before)
    return Rates(2 * width**3 / product, 8 * len(wide) / written, call)


def _least_seconds(work: Callable[[], object], device: str, tries: int = 10) -> float:
    """The least of some runs after one to warm up: others may disturb a run, nothing makes it faster than it is."""
    import torch

    least = math.inf
    for number in range(tries + 1):
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.accelerator.synchronize()
        least = min(least, time.perf_counter() - began) if number else least
    return least
