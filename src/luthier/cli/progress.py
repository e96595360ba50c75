"""A run on its way, drawn from its events: a bar on a terminal, plain lines elsewhere, JSON lines for programs.

Lives here: what is said while a run works. Does not live here: tables and results (`show.py`), the events (`runs.py`).
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from luthier import runs
from luthier.runs import Evaluated, Event, Finished, Noted, Run, Saved, Started, Stepped

if TYPE_CHECKING:
    from luthier.spec import Experiment
    from luthier.studio import Studio

SECONDS_BETWEEN_LINES = 10.0
LEAST_FIRST = ("rate", "speed", "epoch", "validation", "left")  # in this order they make room; the loss stays
DOING, WIDEST_BAR = "training", 24


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run stands, as far as its events tell. Rates are means that forget (half after about seven steps)."""

    step: int = 0
    steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    validation: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    seconds_per_step: float | None = None


def after(status: Status, event: Event) -> Status:
    """The status once `event` has been heard."""
    if isinstance(event, Started):
        return replace(status, step=event.step, steps=event.steps)
    if isinstance(event, Evaluated):
        return replace(status, validation=event.scores.get("loss", status.validation))
    if not isinstance(event, Stepped):
        return status
    return replace(
        status,
        step=event.step,
        epoch=event.epoch,
        loss=event.loss,
        learning_rate=event.learning_rate,
        tokens_per_second=_smooth(status.tokens_per_second, event.tokens / max(event.seconds, 1e-9)),
        seconds_per_step=_smooth(status.seconds_per_step, event.seconds),
    )


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else 0.9 * old + 0.1 * new


def words(status: Status, room: int | None = None) -> str:
    """`epoch 1.2/3 · loss 0.512 · validation 0.610 · learning rate 1.0e-04 · 12.3k tokens/s · 1:23 left`

    Within `room` columns, if it is given: what says least of how a run fares is left out first.
    """
    told = _told(status)
    for name in LEAST_FIRST:
        if room is not None and len(" · ".join(told.values())) > room:
            told.pop(name, None)
    return " · ".join(told.values())


def _told(status: Status) -> dict[str, str]:
    told = {}
    if status.step and status.epoch:
        epochs = status.epoch * status.steps / status.step
        shares = f"{status.epoch:.2g}/{epochs:.2g}" if epochs < 1 else f"{status.epoch:.1f}/{epochs:.3g}"
        told["epoch"] = f"epoch {shares}"
    if status.loss is not None:
        told["loss"] = f"loss {status.loss:.4g}"
    if status.validation is not None:
        told["validation"] = f"validation {status.validation:.4g}"
    if status.learning_rate is not None:
        told["rate"] = f"learning rate {status.learning_rate:.2g}"
    if status.tokens_per_second is not None:
        told["speed"] = f"{_thousands(status.tokens_per_second)} tokens/s"
    if status.seconds_per_step is not None:
        told["left"] = f"{clock(status.seconds_per_step * (status.steps - status.step))} left"
    return told


def _thousands(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def clock(seconds: float) -> str:
    """Seconds as people read them.

    >>> clock(7), clock(83), clock(3723)
    ('0:07', '1:23', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def remark(event: Event) -> str | None:
    """What an event says in words, beyond the numbers of the bar."""
    if isinstance(event, Noted) and event.kind != "progress":
        rows = f" [{', '.join(event.rows[:5])}{', …' if len(event.rows) > 5 else ''}]" if event.rows else ""
        return f"{event.kind}: {event.message}{rows}"
    if isinstance(event, Started):
        begun = f"continues at step {event.step:,} of {event.steps:,}" if event.step else f"{event.steps:,} steps"
        return f"training: {begun}, {event.examples:,} examples, {event.trainable_parameters:,} trainable parameters"
    if isinstance(event, Finished):
        return f"{event.state}: {event.reason}"
    return None


def draw(events: Iterable[Event], console: Console, as_json: Callable[[str], None] | None = None) -> None:
    """Follow `events` to their end on `console`; with `as_json` each event is one JSON line for it instead."""
    if as_json is not None:
        for event in events:
            as_json(json.dumps(runs.to_json(event), ensure_ascii=False))
    elif console.is_terminal:
        _bar(events, console)
    else:
        _lines(events, console)


Follow = Callable[[Run, Console, "Callable[[str], None] | None"], None]
"""Shows a run on a console until it rests; each event as a JSON line where a function for those is given."""


def carry(studio: Studio, run: Run, as_json: Callable[[str], None] | None = None, follow: Follow | None = None) -> Run:
    """Follow `run` to its rest (as a run, or by `follow`) and give it as it is then.

    On Ctrl-C or SIGTERM it is asked to save before all ends.
    """
    console = Console(stderr=True, highlight=False)
    with ending_as_interrupt():
        try:
            if follow is None:
                draw(studio.watch(run), console, as_json)
            else:
                follow(run, console, as_json)
        except KeyboardInterrupt:
            console.print(f"stopping: {_kind(run)} saves first (Ctrl-C again leaves it to itself)")
            stopped = studio.stop(run)
            console.print(Text(f"{stopped.state}{how_to_go_on(stopped)}"), soft_wrap=True)
            raise
    return runs.load(run.path)


def _kind(run: Run) -> str:
    return "every trial under way" if run.facts.get("kind") == "search" else "the run"


@contextlib.contextmanager
def ending_as_interrupt() -> Iterator[None]:
    """SIGTERM means what Ctrl-C means; only the main thread hears signals."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def how_to_go_on(run: Run) -> str:
    """What to type to continue a run that is not done."""
    return "" if run.state == "done" else f"; continue: luthier resume {run.id} (or the same command again)"


def tune(experiment: Experiment | str | Path, new: bool = False) -> Run:
    """Tune, evaluate, and give the run, whose verdict is printed; progress goes to standard error.

    The same experiment again gives the same run, or continues it (`Studio.tune` says when). Raises what ended the run.
    """
    from luthier.studio import Studio, done, report

    studio = Studio()
    run = studio.tune(experiment, new)
    run = done(run if run.state == "done" else carry(studio, run))
    print(report(run).verdict)
    return run


def _bar(events: Iterable[Event], console: Console) -> None:
    status = Status()
    columns = TextColumn("{task.description}"), BarColumn(_bar_width(console)), TextColumn("{task.fields[words]}")
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("preparing", total=None, words="")
        for event in events:
            status = after(status, event)
            _move(progress, task, event, status, words(status, console.width - len(DOING) - _bar_width(console) - 2))
            if said := remark(event):
                progress.console.print(Text(said), highlight=False)


def _bar_width(console: Console) -> int:
    return max(8, min(WIDEST_BAR, console.width // 6))


def _move(progress: Progress, task: TaskID, event: Event, status: Status, said: str) -> None:
    if isinstance(event, Noted) and event.kind == "progress":
        progress.update(task, description=event.message, total=None, words="")
    elif isinstance(event, Started | Stepped | Evaluated):
        progress.update(task, description=DOING, total=status.steps, completed=status.step, words=said)


def _lines(events: Iterable[Event], console: Console) -> None:
    status, spoken = Status(), 0.0
    for event in events:
        status = after(status, event)
        said = remark(event)
        if isinstance(event, Evaluated):
            said = f"step {status.step:,}/{status.steps:,} · {words(status)}{' · best so far' if event.best else ''}"
        elif time.monotonic() - spoken > SECONDS_BETWEEN_LINES and isinstance(event, Stepped):
            said = f"step {status.step:,}/{status.steps:,} · {words(status)}"
        elif time.monotonic() - spoken > SECONDS_BETWEEN_LINES and isinstance(event, Noted):
            said = event.message
        if said and not isinstance(event, Saved):
            spoken = time.monotonic()
            console.print(Text(said), soft_wrap=True, highlight=False)
