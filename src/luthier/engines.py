"""Where a worker starts, and how it is stopped: here, as a child process with a group of its own.

Lives here: starting, finding again, stopping. Does not live here: what the worker does (`worker.py`), or the run's
states, which follow from facts (`runs.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from luthier import redaction, runs, settings
from luthier.errors import TrainingError

_HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # a gated base is loaded by the worker itself


def start(run: runs.Run) -> runs.Run:
    """Start a worker on `run`, or find the one it has; gives the run once a worker owns it.

    The worker outlives this process: closing the terminal does not end a training. Raises TrainingError if the
    worker ends before it owns the run.
    """
    if runs.owner(run.path):
        return runs.load(run.path)
    attempt = runs.attempts(run.path)
    command = [sys.executable, "-m", "luthier.worker", str(run.path)]
    with (run.path / runs.LOG).open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_environment(run.path.parents[1]),
        )
    while child.poll() is None and runs.attempts(run.path) == attempt:
        time.sleep(0.02)
    if runs.attempts(run.path) == attempt:
        raise TrainingError("the worker ended before it began", where=str(run.path / runs.LOG))
    return runs.load(run.path)


def _environment(home: Path) -> dict[str, str]:
    """What the worker inherits: the home's settings, and everything here but the secrets it has no use for."""
    kept = {name: value for name, value in os.environ.items() if not redaction.names_a_secret(name)}
    return settings.environment(home) | kept | {name: os.environ[name] for name in _HUB_TOKENS if name in os.environ}


def stop(run: runs.Run, grace_seconds: float = 30.0) -> runs.Run:
    """Ask the run's worker to save and end; after `grace_seconds` end its whole group. Gives the run as it is then."""
    holder = runs.owner(run.path)
    if holder is None:
        if run.state == "queued":
            return runs.update(run.path, {"state": "stopped", "finished": time.time()})
        return runs.load(run.path)
    os.kill(holder["pid"], signal.SIGTERM)  # the leader alone: its helpers must live while it saves
    if not _gone(holder, grace_seconds):
        _kill_group(holder["pid"])
        _gone(holder, grace_seconds)
    return runs.load(run.path)


def _gone(holder: dict[str, object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while runs.alive(holder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _kill_group(pid: int) -> None:
    """End the worker and what it started. A worker started by hand shares its shell's group, which is left alone."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended by itself in between
