"""What happens in a run: the kinds of events, and the file that holds them, one JSON line each.

Lives here: `events.jsonl`. Does not live here: the rest of a run's folder (`runs.py`), how events look
(`cli/progress.py`).
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

EVENTS = "events.jsonl"

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


EVENT_KINDS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (Started, Stepped, Evaluated, Saved, Noted, Finished)
}


# --- on disk ----------------------------------------------------------------------------------------------------------
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
    """Add one line to the run's events.jsonl: the whole line, or OSError and none of it.

    After `Saved` and `Finished` it is on the disk, not only in memory.
    """
    text = json.dumps(to_json(event), ensure_ascii=False, allow_nan=False) + "\n"
    line = text.encode("utf-8", "backslashreplace")
    with (path / EVENTS).open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
        except OSError:
            file.truncate(size)  # the next line must not continue this one
            raise
        if isinstance(event, Saved | Finished):
            os.fsync(file.fileno())


def drop_torn_line(path: Path) -> int:
    """What a kill left of a half-written last line goes, so that the next starts on its own; gives the size then."""
    with path.open("ab+") as file:
        file.seek(0)
        return file.truncate(file.read().rfind(b"\n") + 1)


def read_events(path: Path) -> list[Event]:
    """What happened in the run, in order, without what a later attempt did again.

    An attempt that continues from step k starts with `Started(step=k)`: steps after k told before it are gone. So is an
    evaluation at step k, if the attempt before ended between telling and saving it: this one makes it again.
    """
    told: list[Event] = []
    for event in complete_lines(path, 0)[0]:
        if isinstance(event, Started):
            told = [old for old in told if old.step <= event.step or isinstance(old, Noted)]
        if isinstance(event, Evaluated) and told and isinstance(told[-1], Started):
            told = [old for old in told if not (isinstance(old, Evaluated) and old.step == event.step)]
        told.append(event)
    return told


def complete_lines(path: Path, offset: int) -> tuple[list[Event], int]:
    with (path / EVENTS).open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return [from_json(json.loads(line)) for line in data[:end].splitlines()], offset + end
