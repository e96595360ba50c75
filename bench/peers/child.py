"""One engine in a process of its own: python child.py ENGINE JOB.json. See `common.Pace` for how it is spoken to."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import torch


def main(engine: str, job: str) -> None:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # as a package: a peer's own name stays the peer's
    from peers.common import Job, Pace

    pace = Pace()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    carried = importlib.import_module(f"peers.with_{engine}")
    pace.loaded()
    carried.run(Job(**json.loads(Path(job).read_text())), pace)


if __name__ == "__main__":
    main(*sys.argv[1:])
