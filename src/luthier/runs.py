"""A run and what it says of itself: events, scores, plan, and the folder that holds them.

Lives here: the types every face of luthier reads, and reading and writing a run's folder.
Does not live here: what happens in a run (`worker.py`), or how it is shown (`cli/show.py`, `evaluation/report.py`).
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier import redaction
from luthier.errors import NotFound, TrainingError, did_you_mean

State = Literal["queued", "running", "done", "stopped", "failed", "pruned", "interrupted"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in `run` after `step` updates, at `time` (seconds since the epoch)."""

    run: str
    step: int
    time: float


@dataclass(frozen=True, slots=True)
class Started(Event):
    """Training begins or continues (`step` > 0)."""

    steps: int
    examples: int
    trainable_parameters: int


@dataclass(frozen=True, slots=True)
class Stepped(Event):
    """One update: mean loss per trained token, learning rate used, gradient norm before clipping."""

    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Evaluated(Event):
    """Scores on the validation split, `loss` among them; `best` if this is the checkpoint to keep."""

    scores: dict[str, float]
    best: bool


@dataclass(frozen=True, slots=True)
class Saved(Event):
    """A complete checkpoint stands at `path`."""

    path: str


@dataclass(frozen=True, slots=True)
class Noted(Event):
    """Something a person should know: `kind` is a short code, `rows` name the examples concerned."""

    kind: str
    message: str
    rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The end. `state` is done, stopped, failed or pruned; `reason` says why in words."""

    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class Score:
    """A number that carries its certainty: 95 % interval `low`–`high` over `n` rows."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do, before anything is loaded. Sizes in bytes, time in seconds, None where unknown."""

    batches_per_epoch: int
    steps: int
    tokens: int
    trained_tokens: int
    shared_tokens: int
    truncated: int
    trainable_parameters: int | None
    memory_bytes: int | None
    seconds: float | None
    warnings: tuple[str, ...] = ()
    lengths: dict[str, int] = field(default_factory=dict)  # tokens of a training row: median, longest, longest_answer


@dataclass(frozen=True, slots=True)
class Run:
    """One run as its folder tells it. `state` is derived: a running run without a live process is interrupted."""

    id: str
    name: str
    path: Path
    state: State
    fingerprint: str
    created: float
    started: float | None = None
    finished: float | None = None
    parent: str | None = None
    error: dict[str, str | None] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


EVENT_KINDS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (Started, Stepped, Evaluated, Saved, Noted, Finished)
}
RECORD, EVENTS, LOG = "run.json", "events.jsonl", "worker.log"


def home(folder: str | Path | None = None) -> Path:
    """Where runs and prepared data live: `folder`, else `$LUTHIER_HOME`, else `~/.luthier`."""
    return Path(folder or os.environ.get("LUTHIER_HOME") or "~/.luthier").expanduser().resolve()


# --- files that are whole or absent -------------------------------------------------------------------------------
def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader, or a power cut, finds the old text or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, whole or absent. Non-finite numbers are refused: they are not JSON."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


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
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = answer.stdout.strip().partition(" ")
    return started.strip() or None if state and not state.startswith("Z") else None


def alive(owner: Mapping[str, Any] | None) -> bool:
    """Whether the process that `owner` names (`pid`, `birth`) is still that process."""
    return owner is not None and birth(owner["pid"]) == owner["birth"]


# --- the folder ----------------------------------------------------------------------------------------------------
def create(
    where: Path,
    name: str,
    fingerprint: str,
    files: Mapping[str, str],
    facts: Mapping[str, Any],
    parent: str | None = None,
) -> Run:
    """A new queued run under `where`/runs with these text `files`: the folder appears whole, or not at all.

    Raises SpecError if a file holds what looks like a secret: a run folder is made to be shown.
    """
    for file, text in files.items():
        redaction.refuse(text, file)
    shelf = where / "runs"
    shelf.mkdir(parents=True, exist_ok=True)
    now = time.time()
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "run"
    run_id = f"{time.strftime('%Y-%m-%d', time.localtime(now))}-{words}-{secrets.token_hex(2)}"
    if (shelf / run_id).exists():
        return create(where, name, fingerprint, files, facts, parent)
    room = shelf / f".{run_id}.tmp-{secrets.token_hex(4)}"
    room.mkdir()
    for file, text in files.items():
        write_whole(room / file, text)
    (room / EVENTS).touch()
    record = {"format": 1, "id": run_id, "name": name, "state": "queued", "fingerprint": fingerprint, "created": now}
    record |= {"started": None, "finished": None, "parent": parent, "error": None, "owner": None}
    record |= {"attempt": 0, "begins": 0}  # how many workers have owned it, and where in events.jsonl the last began
    write_json(room / RECORD, record | {"facts": dict(facts)})
    room.rename(shelf / run_id)
    sync_folder(shelf)
    return load(shelf / run_id)


def load(path: Path) -> Run:
    """The run in folder `path`. Raises NotFound where there is none."""
    record = _record(path)
    state = record["state"]
    if state == "running" and not alive(record["owner"]):
        state = "interrupted"  # derived, never written: nobody was left to write it
    told = ("id", "name", "fingerprint", "created", "started", "finished", "parent", "error", "facts")
    return Run(path=path, state=state, **{key: record[key] for key in told})


def _record(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"`{path}` is not a run", hint="`luthier runs` lists the runs there are") from None
    except ValueError as problem:
        raise NotFound(f"the run's record cannot be read: {problem}", where=str(path / RECORD)) from None


def update(path: Path, changes: Mapping[str, Any]) -> Run:
    """Write `changes` (top-level keys of run.json; `facts` are merged) and give the run as it is then."""
    record = _record(path)
    facts = record["facts"] | dict(changes.get("facts", {}))
    write_json(path / RECORD, record | dict(changes) | {"facts": facts})
    return load(path)


def all_runs(where: Path) -> list[Run]:
    """Every complete run under `where`, the newest first."""
    folders = (where / "runs").glob("[!.]*/" + RECORD)
    return sorted((load(record.parent) for record in folders), key=lambda run: run.created, reverse=True)


def newest_of_name(where: Path, name: str) -> Run | None:
    """The newest run called `name`, or None."""
    return next((run for run in all_runs(where) if run.name == name), None)


def find(where: Path, word: str) -> Run:
    """The run that `word` means: its folder, its id, either end of its id, or the newest of that name.

    Raises NotFound with the nearest names, or with the candidates if several ids fit.
    """
    if (Path(word) / RECORD).is_file():
        return load(Path(word).resolve())
    runs = all_runs(where)
    named = [run for run in runs if word in (run.id, run.name)]
    if named:
        return named[0]
    fitting = [run for run in runs if run.id.startswith(word) or run.id.endswith(f"-{word}")] if word else []
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise NotFound(
            f"`{word}` fits {len(fitting)} runs", hint="say one of: " + ", ".join(run.id for run in fitting[:5])
        )
    near = did_you_mean(word, [run.name for run in runs] + [run.id for run in runs])
    raise NotFound(
        f"there is no run `{word}`", where=str(where / "runs"), hint=near or "`luthier runs` lists the runs there are"
    )


def owner(path: Path) -> dict[str, Any] | None:
    """The live process that owns the run (`pid`, `birth`, `host`), or None."""
    holder = _record(path)["owner"]
    return holder if alive(holder) else None


def attempts(path: Path) -> int:
    """How many workers have owned the run so far."""
    return int(_record(path)["attempt"])


@contextmanager
def owned(path: Path) -> Iterator[int]:
    """Own the run as this process, alone, until the block ends; gives the number of this attempt (1, 2, …).

    The lock is the kernel's: it cannot outlive the process that holds it. Raises TrainingError if another holds it.
    """
    with (path / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"run `{path.name}` is being carried by another process", where=str(path)) from None
        begins = _drop_torn_line(path / EVENTS)
        attempt = _record(path)["attempt"] + 1
        here = {"pid": os.getpid(), "birth": birth(os.getpid()), "host": socket.gethostname()}
        begun = {"attempt": attempt, "begins": begins, "started": time.time(), "finished": None, "error": None}
        update(path, {"state": "running", "owner": here} | begun)
        yield attempt


# --- events --------------------------------------------------------------------------------------------------------
def to_json(event: Event) -> dict[str, Any]:
    """The event as JSON says it: its kind, then its fields; a number that is not finite becomes null."""
    fields = {key: _finite(value) for key, value in asdict(event).items()}
    return {"event": type(event).__name__, **fields}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return {key: _finite(part) for key, part in value.items()} if isinstance(value, dict) else value


def from_json(record: Mapping[str, Any]) -> Event:
    """The event that `to_json` wrote; null stands for a number that was not finite."""
    values = {key: value for key, value in record.items() if key != "event"}
    for key in ("loss", "learning_rate", "grad_norm"):
        if key in values and values[key] is None:
            values[key] = math.nan
    if "rows" in values:
        values["rows"] = tuple(values["rows"])
    if "scores" in values:
        values["scores"] = {name: math.nan if score is None else score for name, score in values["scores"].items()}
    return EVENT_KINDS[record["event"]](**values)


def append(path: Path, event: Event) -> None:
    """Add one line to the run's events.jsonl. After `Saved` and `Finished` it is on the disk, not only in memory."""
    line = json.dumps(to_json(event), ensure_ascii=False, allow_nan=False) + "\n"
    with (path / EVENTS).open("ab") as file:
        file.write(line.encode("utf-8", "backslashreplace"))
        if isinstance(event, Saved | Finished):
            file.flush()
            os.fsync(file.fileno())


def _drop_torn_line(path: Path) -> int:
    """What a kill left of a half-written last line goes, so that the next starts on its own; gives the size then."""
    with path.open("ab+") as file:
        file.seek(0)
        return file.truncate(file.read().rfind(b"\n") + 1)


def read_events(path: Path) -> list[Event]:
    """What happened in the run, in order, without what a later attempt did again.

    An attempt that continues from step k starts with `Started(step=k)`: steps after k told before it are gone.
    """
    told: list[Event] = []
    for event in _complete_lines(path, 0)[0]:
        if isinstance(event, Started):
            told = [old for old in told if old.step <= event.step or isinstance(old, Noted)]
        told.append(event)
    return told


def _complete_lines(path: Path, offset: int) -> tuple[list[Event], int]:
    with (path / EVENTS).open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return [from_json(json.loads(line)) for line in data[:end].splitlines()], offset + end


def follow(path: Path, wait_seconds: float = 0.1) -> Iterator[Event]:
    """The events of the run's present attempt, each as it is written, until the run rests."""
    offset = _record(path)["begins"]
    while True:
        at_rest = load(path).state not in ("queued", "running")  # asked first: what was said before it rested is read
        events, offset = _complete_lines(path, offset)
        yield from events
        if at_rest:
            return
        time.sleep(wait_seconds)
