"""Processes that carry runs and are killed, signalled or starved at a chosen point; and what is compared then.

Lives here: `Ward`, which makes queued runs of tiny models and forks workers for them; `Training`, the same for the loop
alone; the traps a victim may be sent with; `bits`, everything that must be the same after any number of deaths.
Does not live here: what is promised (the tests).

A victim is a fork of this process, so it pays for no import. It runs `worker.main()` itself: signal handlers, lock,
heartbeat and all. A trap is sprung by the victim, at a point that a seed or a count names, so every run of a test hits
the same places; the signal is the kernel's, and nothing of the victim's runs after a SIGKILL.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

import luthier
from luthier import disk, drafts, runs, spec, worker
from luthier.models import base as bases
from luthier.models.methods import attach
from luthier.studio import Studio
from luthier.train import checkpoint, loop
from tests import rows, tiny
from tests.equivalence import workbench as synthetic

Trap = Callable[[], None]
"""Called in the victim before it works: lays what will hurt it."""

METHODS: dict[str, Any] = {
    "full": "full",
    "lora": {"type": "lora", "rank": 2, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
    "prompt_tuning": {"type": "prompt_tuning", "virtual_tokens": 3, "init_method": "vocabulary"},
    "qlora": {"type": "qlora", "rank": 2, "dropout": 0.1, "target_modules": ["q_proj"]},
}
TRAINING = {"num_epochs": 2, "batch_size": 4, "accumulate_steps": 2, "learning_rate": 1e-2, "save_every": 3}
QUIET = {"compare_base": False, "limit": 2, "max_new_tokens": 2}


class Ward:
    """Queued runs in `folder`, and the processes that carry them; their rows lie in `data`."""

    def __init__(self, folder: Path, data: Path | None = None) -> None:
        self.folder, self.data = folder, data or folder
        self._fresh: dict[str, Path] = {}
        self._copies = 0

    def run(self, method: str = "lora", **training: Any) -> Path:
        """A queued run that nobody has begun yet: training on 38 rows, 10 updates in two epochs unless said else."""
        key = method + json.dumps(training)
        if key not in self._fresh:
            if method == "qlora":
                importlib.import_module("bitsandbytes")  # once here, not in every victim
            values = {"name": "tiny", "model": str(tiny.build("tiny_llama")), "data": str(rows.pairs(self.data))}
            values |= {"method": METHODS[method], "task": "generation", "evaluation": QUIET}
            studio = Studio(self.folder / "home")
            described = spec.from_mapping(values | {"training": TRAINING | training})
            self._fresh[key] = drafts.create(studio.draft(described), studio.home).path
        self._copies += 1
        fresh = self._fresh[key]
        return Path(shutil.copytree(fresh, fresh.with_name(f"{fresh.name}-{self._copies}")))

    def forget_tokens(self) -> None:
        """The next run makes its rows' tokens itself, whatever an earlier one has stored."""
        for tokens in self.folder.glob("home/data/*/tokens"):
            shutil.rmtree(tokens)

    def carry(self, run: Path, *traps: Trap) -> int:
        """A worker carries the run until it ends; gives its exit code, or minus the signal that ended it."""
        return wait(self.begin(run, *traps))

    def begin(self, run: Path, *traps: Trap) -> int:
        """A worker begins; gives its pid. Whoever asks must `wait`."""
        return fork(lambda: _work(run), traps, run / runs.LOG)


def _work(run: Path) -> int:
    sys.argv = ["worker", str(run)]
    return worker.main()


def fork(work: Callable[[], int], traps: Sequence[Trap], log: Path) -> int:
    """A process that lays `traps`, works, and ends with what `work` gives; gives its pid."""
    pid = os.fork()
    return pid or _live(work, traps, log)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _live(work: Callable[[], int], traps: Sequence[Trap], log: Path) -> NoReturn:
    code = 70  # EX_SOFTWARE: what escapes the worker is a defect
    try:
        os.setsid()
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        for trap in traps:
            trap()
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


UPDATES = 2


class Training:
    """The loop alone, on a tiny base that is loaded once: two updates, each evaluated and saved.

    A room is laid out as a run's folder is: `checkpoints/` and the events.
    """

    def __init__(self, folder: Path, rows: int = 11) -> None:
        base = bases.load(spec.Model(name=str(tiny.build("tiny_llama"))), None)
        lora = spec.Lora(rank=2, alpha=4, dropout=0.1, target_modules=("q_proj", "v_proj"))
        self.tuned = attach(base, [lora], [1])
        self.folder = folder
        self.examples = synthetic.rows("causal", count=rows - 2)  # it adds a twin and a prefix
        self.latest = folder  # the room of the last reference
        self._rooms = 0

    def carry(self, room: Path, *traps: Trap, **chosen: Any) -> int:
        return wait(self.begin(room, *traps, **chosen))

    def begin(self, room: Path, *traps: Trap, budget: int = 30, **chosen: Any) -> int:
        job, stop = self.job(room, **chosen), threading.Event()

        def work() -> int:
            signal.signal(signal.SIGTERM, lambda *_: stop.set())
            for event in loop.train(self.tuned, [job], loop.Wishes(stop.is_set), budget=budget):
                runs.append(room, event)
            return 0

        return fork(work, traps, self.folder / "log")

    def job(self, room: Path, **chosen: Any) -> loop.Job:
        wishes = {"batch_size": 2, "accumulate_steps": 1, "num_epochs": 1, "max_steps": UPDATES, "evaluate_every": 1}
        wishes |= {"learning_rate": 1e-2, "warmup": 0.0, "weight_decay": 0.01, "save_every": 1}
        training = spec.Training(**wishes | chosen)
        return loop.Job("run", training, 1, self.examples, self.examples[:2], room / "checkpoints")

    def reference(self, **chosen: Any) -> dict[int, dict[str, str]]:
        """The bits of every update's checkpoint, of a training that nothing happens to."""
        room = self._room("reference")

        def keep_all() -> None:
            checkpoint.rotate = lambda folder, keep: None

        assert self.carry(room, keep_all, **chosen) == 0
        self.latest = room
        return {int(path.name[5:]): checkpoint_bits(path) for path in (room / "checkpoints").iterdir()}

    def fresh(self) -> Path:
        """A room in which nothing has happened."""
        return self._room("fresh")

    def stopped(self) -> Path:
        """A room of a training that was asked to stop in the evaluation after its first update: it will be made up for,
        and the checkpoint written again."""
        room = self._room("stopped")
        assert self.carry(room, at_call("luthier.train.loop:validation_losses", 1, asked)) == 0
        return room

    def _room(self, name: str) -> Path:
        self._rooms += 1
        room = self.folder / f"{name}-{self._rooms}"
        room.mkdir()
        (room / runs.EVENTS).touch()
        return room


def checkpoint_bits(path: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in path.iterdir()}


# --- traps ----------------------------------------------------------------------------------------------------------
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def be_asked_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def asked() -> None:
    raise loop.Asked


def at_line(number: int | None, told: Path | None = None) -> Trap:
    """Die before the `number`-th line of luthier that is executed once the run is owned; with `told` only count."""

    def lay() -> None:
        seen = 0

        def line(frame: Any, event: str, _: Any) -> Any:
            nonlocal seen
            if event == "line":
                seen += 1
                if seen == number:
                    die()
                if told is not None and frame.f_code is last:
                    told.write_text(str(seen))
            return line

        last = worker._to_the_end.__code__
        home = str(Path(luthier.__file__).parent)
        sys.settrace(lambda frame, *_: line if frame.f_code.co_filename.startswith(home) else None)

    return lay


OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.utime"}


def at_file_operation(folder: Path, number: int | None, told: Path | None = None) -> Trap:
    """Die before the `number`-th operation on a file below `folder`; with `told` only count.

    Python's own operations: what the safetensors library does between two of them lies in a folder not yet in place.
    """

    def lay() -> None:
        seen, root, busy = 0, str(folder), False

        def heard(event: str, details: tuple[Any, ...]) -> None:
            nonlocal seen, busy
            if busy or event not in OPERATIONS or not str(details[0]).startswith(root):
                return
            seen += 1
            if seen == number:
                die()
            if told is not None:
                busy = True
                told.write_text(str(seen))
                busy = False

        sys.addaudithook(heard)

    return lay


def at_call(target: str, number: int, act: Callable[[], None], again: Sequence[int] = ()) -> Trap:
    """Act before the `number`-th call of `target` ("luthier.train.loop:update"), and before the calls of `again`."""

    def lay() -> None:
        module, name = target.split(":")
        owner: Any = importlib.import_module(module)
        *inner, name = name.split(".")
        for part in inner:
            owner = vars(owner)[part]
        plain, calls = vars(owner)[name], 0

        def wrapped(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number or calls in again:
                act()
            return plain(*given, **named)

        setattr(owner, name, wrapped)

    return lay


def disk_fails() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def small_files(size: int) -> None:
    """From here on no file may grow beyond `size` bytes: a longer write fails, as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# --- a power cut ----------------------------------------------------------------------------------------------------
def power_may_fail(room: Path, platter: Path) -> Trap:
    """Keep in `platter` what had been synced: of a file its content, of a folder the names in it.

    Nothing else is sure. Every synced file is kept open, so that no later one gets its number.
    """

    def lay() -> None:
        plain, kept = os.fsync, []
        platter.mkdir()

        def sync(handle: int) -> None:
            plain(handle)
            kept.append(os.dup(handle))
            place = Path(f"/proc/self/fd/{handle}").readlink()
            if place.is_dir():
                names = {entry.name: [entry.inode(), entry.is_dir()] for entry in os.scandir(place)}
                (platter / f"{place.stat().st_ino}.names").write_text(json.dumps(names))
            else:
                (platter / str(place.stat().st_ino)).write_bytes(place.read_bytes())

        os.fsync = sync
        for path in (room, *room.rglob("*")):  # what stands when the victim begins is old, and long on the disk
            disk.sync(path)

    return lay


def after_power_cut(room: Path, platter: Path, into: Path) -> Path:
    """`room` as the next boot finds it."""

    def lay(number: int, place: Path) -> None:
        place.mkdir()
        listing = platter / f"{number}.names"
        for name, (inner, is_folder) in json.loads(listing.read_text() if listing.exists() else "{}").items():
            if is_folder:
                lay(inner, place / name)
            else:
                content = platter / str(inner)
                (place / name).write_bytes(content.read_bytes() if content.exists() else b"")

    lay(room.stat().st_ino, into)
    return into


# --- what must be the same ------------------------------------------------------------------------------------------
def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bits(run: Path) -> dict[str, Any]:
    """Weights, optimizer, progress, what was learned, answers, log of losses and evaluations: by content."""
    found, complaints = checkpoint.newest(run / "checkpoints")
    assert found is not None and not complaints
    files = [found.path / name for name in ("weights.safetensors", "optimizer.safetensors", "progress.json")]
    learned = run / ("model" if (run / "model").exists() else "adapter")
    files += [*sorted(learned.glob("*.safetensors")), run / "predictions.jsonl"]
    return {path.name: sha256(path) for path in files} | {"log": log(run)}


def log(run: Path) -> list[tuple[Any, ...]]:
    """The log of losses: every update and evaluation as told, without the clock."""
    told: list[tuple[Any, ...]] = []
    for event in runs.read_events(run):
        if isinstance(event, runs.Stepped):
            told.append((event.step, event.epoch, event.loss, event.learning_rate, event.grad_norm, event.tokens))
        if isinstance(event, runs.Evaluated):
            told.append((event.step, event.scores["loss"], event.best))
    return told


def leftovers(run: Path) -> list[str]:
    """Half-made files and folders that nobody will ever finish."""
    return [str(path.relative_to(run)) for path in run.rglob(".*") if ".tmp-" in path.name or ".old-" in path.name]
