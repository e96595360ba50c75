"""Who carries a run: a process by its birth, the lock it holds, its heartbeat, and the wish that it stop.

Lives here: the files `lock` and `stop` of a run's folder. Does not live here: the run's record (`runs.py`), starting
and ending processes (`engines.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.errors import TrainingError

LOCK, STOP = "lock", "stop"
BEAT_SECONDS, FRESH_SECONDS = 10, 120


# --- processes: a number alone does not name one, its birth does --------------------------------------------------
def birth(pid: int) -> str | None:
    """When process `pid` was born, as a word that no later process of the same number shares; None if it is gone.

    A process that has ended but is not yet reaped counts as gone.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it is gone, or went while it was read; or there is no /proc
        return None if Path("/proc/self/stat").exists() else _birth_by_ps(pid)
    state, *rest = status.rpartition(")")[2].split()  # the name before ")" may hold spaces and brackets
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return None if state in "ZX" else f"{boot}:{rest[18]}"  # field 22 of proc(5): start time in ticks since boot


def _birth_by_ps(pid: int) -> str | None:
    command = ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    state, _, started = answer.stdout.strip().partition(" ")
    return started.strip() or None if state and not state.startswith("Z") else None


def this_process() -> dict[str, Any]:
    """The owner that this process is: `pid`, `birth`, `host`."""
    return {"pid": os.getpid(), "birth": birth(os.getpid()), "host": socket.gethostname()}


def is_here(owner: Mapping[str, Any]) -> bool:
    """Whether `owner` is a process of this host, which can be looked at and signalled."""
    return bool(owner["host"] == socket.gethostname())


def alive(path: Path, owner: Mapping[str, Any] | None) -> bool:
    """Whether `owner` still carries the run in `path`: here by its birth, on another host by its heartbeat."""
    if owner is None:
        return False
    if is_here(owner):
        return birth(owner["pid"]) == owner["birth"]
    try:
        return time.time() - (path / LOCK).stat().st_mtime < FRESH_SECONDS
    except FileNotFoundError:
        return False


# --- the lock --------------------------------------------------------------------------------------------------------
@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run in `path`, alone. The lock is the kernel's: it cannot outlive the process that holds it.

    Raises TrainingError if another holds it.
    """
    with (path / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"run `{path.name}` is being carried by another process", where=str(path)) from None
        yield


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """Tell other hosts that the run is carried until the block ends: the lock's time is never older than a beat."""
    rest = threading.Event()

    def beat() -> None:
        while not rest.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path / LOCK)

    os.utime(path / LOCK)
    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield
    finally:
        rest.set()
        heart.join()
        with contextlib.suppress(OSError):
            os.utime(path / LOCK, (0, 0))


# --- the wish that it stop -----------------------------------------------------------------------------------------
def ask_to_stop(path: Path) -> None:
    """Whoever carries the run in `path`, or has just been started on it, on any host, saves and ends."""
    (path / STOP).touch()


def stop_asked(path: Path) -> bool:
    return (path / STOP).exists()


def withdraw_stop(path: Path) -> None:
    (path / STOP).unlink(missing_ok=True)
