"""Where a run's process starts, and how it is stopped: here, as a child process with a group of its own.

What a worker imports takes seconds: `early` begins with it while the rows are prepared here, and the same worker finds
out what the experiment means (`drafted`), so that nobody else has to import it.

Lives here: starting, finding again, stopping; a helper process, which ends with the one it helps. Does not live here:
what the processes do (`worker.py`, `searching/`), or the run's states, which follow from facts (`runs.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from luthier import hardware, ownership, redaction, runs, settings, spec
from luthier.errors import TrainingError, as_it_was, in_words

LOST = 256  # the code of a process whose machine is gone, of a cluster; none ends itself with it
_HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # a gated base is loaded by the worker itself
_CLUSTER = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_JUDGE_TOKENS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID")


Waiting = subprocess.Popen[bytes]
"""A worker without a run yet."""


WORKER, SEARCH = "luthier.worker", "luthier.searching.lead"


@contextmanager
def early(home: Path, module: str = WORKER) -> Iterator[Waiting | None]:
    """A worker that imports what every run needs and waits for its run; it ends with the block if `start` gave it none.

    Or the process of a search, whose first wave imports. None where torchrun starts a worker for each graphics card.
    """
    environment = settings.environment(home) | redaction.inherited() | {"LUTHIER_HOME": str(home)}
    if module == WORKER and len(hardware.graphics_cards(environment)) > 1:
        yield None
        return
    waiting = _spawn([sys.executable, "-m", module], environment, None)
    try:
        yield waiting
    finally:
        assert waiting.stdin is not None and waiting.stdout is not None
        if not waiting.stdin.closed:
            waiting.kill()
            waiting.wait()
            with contextlib.suppress(BrokenPipeError):  # what it was told and never read
                waiting.stdin.close()
        waiting.stdout.close()


def drafted(waiting: Waiting, experiment: spec.Experiment, wish: dict[str, object]) -> runs.Run | None:
    """The run that `experiment` means, found or made by the waiting worker: so that only one process imports for it.

    `wish` has the other arguments of `drafts.wanted`, `rows` as `drafts.rows_in` takes them. Raises what that raises.

    None where the worker cannot be told (rows that live in this process) or ends without an answer.
    """
    if not spec.can_be_written(experiment):
        return None
    assert waiting.stdout is not None
    described = {"experiment": spec.dump(experiment), "named": "name" in experiment.model_fields_set}
    environment = _run_tokens([experiment.model.name], experiment.evaluation.judge is not None)
    with contextlib.suppress(BrokenPipeError):
        _say(waiting, wish | described | {"environment": environment})
    for line in waiting.stdout:
        with contextlib.suppress(ValueError):  # a library's chatter is no answer
            answer = json.loads(line)
            break
    else:
        return None
    if "error" in answer:
        raise as_it_was(answer["error"])
    return runs.load(Path(answer["run"]))


def start(run: runs.Run, waiting: Waiting | None = None) -> runs.Run:
    """Start a worker on `run`, or find the one it has; gives the run once a worker owns it, or somebody stopped it.

    A search is carried by a process that does not compute itself. Either outlives this process: closing the terminal
    does not end a training. `waiting` becomes the worker where it can. Raises TrainingError if the worker ends before
    it owns the run.
    """
    if runs.owner(run.path):
        return runs.load(run.path)
    if run.state != "queued":  # a run that nobody has begun yet may be stopped already, and then stays so
        ownership.withdraw_stop(run.path)
    attempt = runs.attempts(run.path)
    child = (waiting and _told(waiting, run)) or _fresh(run)
    while child.poll() is None and runs.attempts(run.path) == attempt:
        time.sleep(0.02)
    if runs.attempts(run.path) == attempt and not ownership.stop_asked(run.path):
        problem = TrainingError("the worker ended before it began", where=str(run.path / runs.LOG))
        runs.at_rest(run.path, {"state": "failed", "finished": time.time(), "error": in_words(problem)})
        raise problem
    return runs.load(run.path)


class Helper:
    """A process for a piece of work beside runs, `python -m COMMAND`: lines go in, lines come out, errors among them.

    Its standard input stays open as long as this process lives: so it can tell that nobody waits for it any more.
    """

    def __init__(self, command: Sequence[str], home: Path, *models: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=settings.environment(home) | redaction.inherited() | tokens(*models),
        )
        assert self._child.stdin is not None and self._child.stdout is not None
        self._to, self._from = self._child.stdin, self._child.stdout

    @property
    def returncode(self) -> int | None:
        """What it ended with: a code, or minus the signal that ended it; None while it lives."""
        return self._child.poll()

    def say(self, text: str) -> None:
        """One line for it. Where it has ended this is said to nobody: `lines` tells of its end."""
        with contextlib.suppress(BrokenPipeError):
            if not self._to.closed:
                self._to.write(text.encode() + b"\n")
                self._to.flush()

    def lines(self) -> Iterator[str]:
        """What it says, line by line, until it ends."""
        with self._from as told:
            for line in told:
                yield line.decode("utf-8", "replace").rstrip()
            self._child.wait()

    def leave(self) -> None:
        """Nobody will say more: it saves what it has and ends."""
        with contextlib.suppress(BrokenPipeError):
            self._to.close()

    def kill(self) -> None:
        """End it, if it has not ended, and what it started."""
        if self._child.poll() is None:
            _kill_group(self._child.pid)
        self._child.wait()
        self.leave()


def _fresh(run: runs.Run) -> Waiting:
    """A new worker on `run`, or the process of a search."""
    environment = _environment(run)
    if run.facts.get("kind") == "search":
        command = [sys.executable, "-m", SEARCH, str(run.path)]
    else:
        command = _command(run.path, len(hardware.graphics_cards(environment)))
    with (run.path / runs.LOG).open("ab") as log:
        return _spawn(command, environment, log)


def _told(waiting: Waiting, run: runs.Run) -> Waiting | None:
    """The waiting worker, now that it knows its run; None if it has ended meanwhile. See `worker.the_run`."""
    assert waiting.stdin is not None
    try:
        with waiting.stdin:
            _say(waiting, {"run": str(run.path), "environment": _run_tokens(*_wants(run))})
    except BrokenPipeError:
        return None
    return waiting


def _say(waiting: Waiting, told: dict[str, object]) -> None:
    assert waiting.stdin is not None
    waiting.stdin.write(json.dumps(told).encode() + b"\n")
    waiting.stdin.flush()


def _spawn(command: list[str], environment: dict[str, str], log: IO[bytes] | None) -> Waiting:
    """A worker process; without a log it reads on its standard input what it has to do."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE if log is None else subprocess.DEVNULL,
        stdout=subprocess.PIPE if log is None else log,
        stderr=subprocess.DEVNULL if log is None else log,
        start_new_session=True,
        env=environment,
    )


def _command(path: Path, cards: int) -> list[str]:
    """The worker's command: where there are several graphics cards one process each, by torchrun."""
    together = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(cards), "-m"] if cards > 1 else []
    return [sys.executable, "-m", *together, WORKER, str(path)]


def _environment(run: runs.Run) -> dict[str, str]:
    """The home's settings, what `redaction` lets pass, and the tokens the run has a use for."""
    return settings.environment(run.path.parents[1]) | redaction.inherited() | _run_tokens(*_wants(run))


def _wants(run: runs.Run) -> tuple[Sequence[str], bool, bool]:
    """A run's base (a search's bases), whether its answers are judged, whether it uses a cluster."""
    models = run.facts["model"], *run.facts.get("bases", ())
    return models, bool(run.facts.get("judge")), run.facts.get("engine") == "ray"


def _run_tokens(models: Sequence[str], judged: bool, on_cluster: bool = False) -> dict[str, str]:
    """The Hub's if a base comes from the Hub, the judge's if the answers are judged, a cluster's if it is used."""
    others = (_JUDGE_TOKENS if judged else ()) + (_CLUSTER if on_cluster else ())
    return tokens(*models) | {name: os.environ[name] for name in others if name in os.environ}


def tokens(*models: str) -> dict[str, str]:
    """The Hub's, where a base comes from there."""
    local = all(Path(model).is_dir() for model in models)
    return {name: os.environ[name] for name in _HUB_TOKENS if name in os.environ and not local}


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
