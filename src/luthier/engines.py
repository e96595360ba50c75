"""Where a worker starts, and how it is stopped: here, as a child process with a group of its own.

Lives here: starting, finding again, stopping. Does not live here: what the worker does (`worker.py`), or the run's
states, which follow from facts (`runs.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from luthier import hardware, ownership, redaction, runs, settings
from luthier.errors import TrainingError

_HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # a gated base is loaded by the worker itself


def start(run: runs.Run) -> runs.Run:
    """Start a worker on `run`, or find the one it has; gives the run once a worker owns it, or somebody stopped it.

    The worker outlives this process: closing the terminal does not end a training. Raises TrainingError if the
    worker ends before it owns the run.
    """
    if runs.owner(run.path):
        return runs.load(run.path)
    if run.state != "queued":  # a run that nobody has begun yet may be stopped already, and then stays so
        ownership.withdraw_stop(run.path)
    attempt = runs.attempts(run.path)
    environment = _environment(run)
    command = _command(run.path, hardware.graphics_cards(environment))
    with (run.path / runs.LOG).open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
        )
    while child.poll() is None and runs.attempts(run.path) == attempt:
        time.sleep(0.02)
    if runs.attempts(run.path) == attempt and not ownership.stop_asked(run.path):
        problem = TrainingError("the worker ended before it began", where=str(run.path / runs.LOG))
        error = {"kind": "TrainingError", "message": problem.message, "where": problem.where, "hint": None}
        runs.at_rest(run.path, {"state": "failed", "finished": time.time(), "error": error})
        raise problem
    return runs.load(run.path)


def _command(path: Path, cards: int) -> list[str]:
    """The worker's command: where there are several graphics cards one process each, by torchrun."""
    together = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(cards), "-m"] if cards > 1 else []
    return [sys.executable, "-m", *together, "luthier.worker", str(path)]


def _environment(run: runs.Run) -> dict[str, str]:
    """The home's settings, what `redaction` lets pass, and the Hub's token if the base comes from the Hub."""
    local = Path(str(run.facts["model"])).is_dir()
    tokens = {name: os.environ[name] for name in _HUB_TOKENS if name in os.environ and not local}
    return settings.environment(run.path.parents[1]) | redaction.inherited() | tokens


def stop(run: runs.Run, grace_seconds: float = 30.0) -> runs.Run:
    """Ask the run's worker to save and end; after `grace_seconds` end its whole group. Gives the run as it is then.

    A worker that is just starting sees the wish when it owns the run, one of another host at its next step.
    """
    if runs.load(run.path).state == "done":
        return runs.load(run.path)
    ownership.ask_to_stop(run.path)
    deadline = time.monotonic() + grace_seconds
    while (holder := runs.owner(run.path)) is None:
        if runs.at_rest(run.path, {"state": "stopped", "finished": time.time()}) or time.monotonic() > deadline:
            return runs.load(run.path)
        time.sleep(0.02)  # somebody has just taken it, and is about to say so
    if not ownership.is_here(holder):
        _gone(run, holder, grace_seconds)
        return runs.load(run.path)
    with contextlib.suppress(ProcessLookupError):  # it ended by itself in between
        os.kill(holder["pid"], signal.SIGTERM)  # the leader alone: its helpers must live while it saves
    if not _gone(run, holder, grace_seconds):
        _kill_group(holder["pid"])
        _gone(run, holder, grace_seconds)
    return runs.load(run.path)


def _gone(run: runs.Run, holder: dict[str, object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while ownership.alive(run.path, holder):
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
