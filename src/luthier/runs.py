"""A run and what it says of itself: its record, scores, plan, and the folder that holds them.

Lives here: the types every face of luthier reads (events come from `events.py`), and a run's folder.
Does not live here: who may carry it (`ownership.py`), the work (`worker.py`), how it is shown (`cli/show.py`).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier import ownership, redaction
from luthier.disk import sweep, whole_folder, write_json, write_whole
from luthier.errors import NotFound, TrainingError, did_you_mean
from luthier.events import (
    EVENT_KINDS,
    EVENTS,
    Evaluated,
    Event,
    Finished,
    Noted,
    Saved,
    Started,
    State,
    Stepped,
    append,
    complete_lines,
    drop_torn_line,
    from_json,
    read_events,
    to_json,
)
from luthier.ownership import birth

__all__ = [
    "EVENTS",
    "EVENT_KINDS",
    "LOG",
    "RECORD",
    "Evaluated",
    "Event",
    "Finding",
    "Finished",
    "Noted",
    "Plan",
    "Run",
    "Saved",
    "Score",
    "Severity",
    "Started",
    "State",
    "Stepped",
    "all_runs",
    "append",
    "at_rest",
    "attempts",
    "birth",
    "create",
    "find",
    "follow",
    "from_json",
    "home",
    "load",
    "newest_of_name",
    "owned",
    "owner",
    "read_events",
    "to_json",
    "update",
]

RECORD, LOG = "run.json", "worker.log"


@dataclass(frozen=True, slots=True)
class Score:
    """A number that carries its certainty: 95 % interval `low`–`high` over `n` rows (in `groups` that share
    a context)."""

    value: float
    low: float
    high: float
    n: int
    groups: int | None = None


Severity = Literal["refuse", "warn", "note"]
"""Whether a finding stops a run, should be looked at, or is only said."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the gate found in the tokens of a split: a code, how grave it is, what it is and in how many rows, and what
    to do. `rows`: the first of them as file:line, `excerpts` how their tokens look there, the one in question in ⟦ ⟧.
    """

    code: str
    severity: Severity
    split: str
    message: str
    count: int
    rows: tuple[str, ...]
    excerpts: tuple[str, ...]
    hint: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do, before anything is loaded. Sizes in bytes, `seconds` of all updates, None where unknown."""

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
    saved_tokens: dict[str, int] = field(default_factory=dict)  # an epoch's tokens not computed, by way of batching
    budget: int = 0  # stored tokens of a micro-batch
    recompute: bool = False  # whether activations are computed again instead of kept
    dtypes: dict[str, str] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)  # values that nobody chose: what they are by data and base
    findings: tuple[Finding, ...] = ()  # what the gate says of the tokens
    measured: bool = False  # whether memory and seconds were measured, not computed
    splits: dict[str, dict[str, int]] = field(default_factory=dict)  # of each split: rows used, dropped, cut
    histogram: tuple[tuple[int, int, int], ...] = ()  # (from, to, training rows of so many tokens), without gaps

    @property
    def trained_share(self) -> float:
        """How much of the tokens is trained."""
        return self.trained_tokens / max(self.tokens, 1)

    @property
    def shared_share(self) -> float:
        """How much of the tokens need not be computed, because rows begin alike."""
        return self.shared_tokens / max(self.tokens, 1)


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
    error: dict[str, str | None] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def home(folder: str | Path | None = None) -> Path:
    """Where runs and prepared data live: `folder`, else `$LUTHIER_HOME`, else `~/.luthier`."""
    return Path(folder or os.environ.get("LUTHIER_HOME") or "~/.luthier").expanduser().resolve()


# --- the folder ----------------------------------------------------------------------------------------------------
def create(
    where: Path,
    name: str,
    fingerprint: str,
    files: Mapping[str, str],
    facts: Mapping[str, Any],
    run_id: str | None = None,
) -> Run:
    """A new queued run under `where`/runs with these text `files`: the folder appears whole, or not at all.

    Raises SpecError if a file holds what looks like a secret: a run folder is made to be shown; FileExistsError where
    a run of that `run_id` is there already.
    """
    for file, text in files.items():
        redaction.refuse(text, file)
    shelf = where / "runs"
    now = time.time()
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "run"
    given, run_id = run_id, run_id or f"{time.strftime('%Y-%m-%d', time.localtime(now))}-{words}-{secrets.token_hex(2)}"
    if (shelf / run_id).exists():
        if given:
            raise FileExistsError(shelf / run_id)
        return create(where, name, fingerprint, files, facts)
    record = {"format": 1, "id": run_id, "name": name, "state": "queued", "fingerprint": fingerprint, "created": now}
    record |= {"started": None, "finished": None, "error": None, "owner": None}
    record |= {"attempt": 0, "begins": 0}  # how many workers have owned it, and where in events.jsonl the last began
    with whole_folder(shelf / run_id) as room:
        for file, text in files.items():
            write_whole(room / file, text)
        (room / EVENTS).touch()
        write_json(room / RECORD, record | {"facts": dict(facts)})
    return load(shelf / run_id)


def load(path: Path) -> Run:
    """The run in folder `path`. Raises NotFound where there is none."""
    record = _record(path)
    state = record["state"]
    if state == "running" and not ownership.alive(path, record["owner"]):
        state = "interrupted"  # derived, never written: nobody was left to write it
    told = ("id", "name", "fingerprint", "created", "started", "finished", "error", "facts")
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


def newest_of_name(where: Path, name: str, kind: str | None = None) -> Run | None:
    """The newest run called `name` of that kind (None: an ordinary one, "search": a search), or None. No trial is."""
    named = [run for run in all_runs(where) if run.name == name and "search" not in run.facts]
    return next((run for run in named if run.facts.get("kind") == kind), None)


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
    fitting = [run for run in fitting if "search" not in run.facts] or fitting  # a search goes before its trials
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
    return holder if ownership.alive(path, holder) else None


def attempts(path: Path) -> int:
    """How many workers have owned the run so far."""
    return int(_record(path)["attempt"])


@contextmanager
def owned(path: Path) -> Iterator[int]:
    """Own the run as this process, alone, until the block ends; gives the number of this attempt (1, 2, …).

    Raises TrainingError if another process holds it.
    """
    with ownership.locked(path), ownership.beating(path):
        sweep(path)
        begins = drop_torn_line(path / EVENTS)
        attempt = _record(path)["attempt"] + 1
        begun = {"attempt": attempt, "begins": begins, "started": time.time(), "finished": None, "error": None}
        update(path, {"state": "running", "owner": ownership.this_process()} | begun)
        yield attempt


def at_rest(path: Path, changes: Mapping[str, Any]) -> bool:
    """Whether nobody carries the run; if so, and if it is still queued, `changes` are written before anybody can."""
    try:
        with ownership.locked(path):
            if _record(path)["state"] == "queued":
                update(path, changes)
            return True
    except TrainingError:
        return False


def follow(path: Path, wait_seconds: float = 0.1) -> Iterator[Event]:
    """The events of the run's present attempt, each as it is written, until the run rests."""
    offset = _record(path)["begins"]
    while True:
        at_rest = load(path).state not in ("queued", "running")  # asked first: what was said before it rested is read
        events, offset = complete_lines(path, offset)
        yield from events
        if at_rest:
            return
        time.sleep(wait_seconds)
