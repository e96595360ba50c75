"""What a run costs, measured: its longest micro-batch and some of its first steps, in a process of their own.

The loop itself runs, on the run's own rows; what it learned is thrown away. Lives here: the watch and the scales. Does
not live here: starting the process (`workbench.py`), the formulas (`cost.py`).
"""

from __future__ import annotations

import resource
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

from luthier.models.methods import Tuned
from luthier.runs import Started, Stepped
from luthier.train.loop import Job, Wishes, train

STEPS = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes at the peak beyond the process's own before the base was loaded; seconds for all the run's updates."""

    memory_bytes: int
    seconds: float | None


def resident_bytes() -> int:
    """Memory this process holds now. On systems other than Linux: the most it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return most_resident_bytes()
    return pages * resource.getpagesize()


def most_resident_bytes() -> int:
    """The most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_bytes(tuned: Tuned) -> int:
    """The most memory the base's device held for this process: on a CPU the whole process."""
    return torch.cuda.max_memory_allocated() if tuned.base.device.type == "cuda" else most_resident_bytes()


def measure(tuned: Tuned, job: Job, budget: int, before: int, until: float) -> Measured:
    """Run `job` from its beginning until the moment `until` (monotonic seconds), or for STEPS updates.

    `before`: what the process held before the base was loaded. The first update warms up and is not counted, if there
    are others. `seconds` is None where not even one update came to its end.
    """
    steps, seconds = 0, []
    with closing(train(tuned, [job], Wishes(lambda: time.monotonic() > until), budget)) as events:
        for event in events:
            if isinstance(event, Started):
                steps = event.steps
            if isinstance(event, Stepped):
                seconds.append(event.seconds)
                if len(seconds) > STEPS or time.monotonic() > until:
                    break
    peak = peak_bytes(tuned) - (0 if tuned.base.device.type == "cuda" else before)
    return Measured(peak, mean(seconds[1:] or seconds) * steps if seconds else None)
