"""Processes on the nodes of a Ray cluster, in place of those that `engines.Helper` starts here.

Lives here: connecting to a cluster, which must ask for a token; how many processes it has room for; a process on it.
Does not live here: what the processes do (`wave.py`), or who gives them work (`lead.py`).

A process is held by an actor on its node, which ends with the driver: the one that connected. A node that dies looks
like a process that died. Nothing stands in the cluster: all that is known stands in the home folder, which every node
must see under the same path. Ray's tokens do not encrypt: `docs/guides/cluster.md` says what that means.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import luthier
from luthier import engines, settings
from luthier.errors import MissingExtra, SpecError, TrainingError

OLDEST = (2, 59)  # the first that asks for a token where nobody says otherwise
REACH_SECONDS, KNOCK_SECONDS, LOOK_SECONDS, END_SECONDS, GONE_SECONDS = 5, 60, 60, 5, 30
_BROKEN = 1  # the code of a process that could not be begun, or that Ray has ended
_ADDRESS, _MODE, _TOKEN, _TOKEN_PATH = "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_READING = "reading"
_VERSIONS = "is it up, and is this Ray of its version?"
_GUIDE = "docs/guides/cluster.md shows how a cluster is started with one"


def connect(home: Path) -> Cluster:
    """The cluster that `ray_address` of luthier.toml or $RAY_ADDRESS names, which this process may compute on from now
    until it ends.

    Raises MissingExtra without Ray, SpecError where no cluster is named or no token is there, TrainingError where the
    cluster is not to be reached, does not ask for a token, or has a node that does not see `home` or this luthier.
    """
    address = require(home)
    _knock(address)
    os.environ.setdefault(_MODE, "token")  # read by Ray when it is imported
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, namespace="luthier", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as problem:
        hint = "a search is started on a machine that is itself a node of the cluster"
        raise TrainingError(f"cannot join the Ray cluster: {_first_line(problem)}", address, hint) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray sets one that ends the process before it has saved
    cluster = Cluster(ray, home)
    try:
        cluster.check()
    except TrainingError:
        cluster.close()
        raise
    return cluster


class Cluster:
    """A cluster this process is connected to. Made by `connect`."""

    def __init__(self, ray: ModuleType, home: Path) -> None:
        self._ray, self._home, self._helpers = ray, home, list[Helper]()

    def check(self) -> None:
        """Raises TrainingError for a node that does not see the home folder, or has another luthier."""
        probe = self._home / f".probe-{secrets.token_hex(8)}"
        word = secrets.token_hex(8)
        probe.write_text(word, encoding="utf-8")
        look = self._ray.remote(num_cpus=0, max_retries=0)(_seen)
        try:
            nodes = [node for node in self._ray.nodes() if node["Alive"]]
            asked = [look.options(scheduling_strategy=_at(node)).remote(str(probe)) for node in nodes]
            for node, answer in zip(nodes, asked, strict=True):
                self._judge(f"node {node['NodeManagerAddress']}", answer, word)
        finally:
            probe.unlink(missing_ok=True)

    def room(self) -> int:
        """How many processes of ours the cluster holds at most as it is now: those that live, and one for each free
        graphics card; where no node has one, for each free CPU core."""
        self._helpers = [helper for helper in self._helpers if helper.returncode is None]
        waiting = sum(not helper.placed() for helper in self._helpers)
        free = int(self._ray.available_resources().get(self._kind(), 0))
        return len(self._helpers) + max(0, free - waiting)

    @property
    def threads(self) -> int | None:
        """For one process: its core's own; None beside a graphics card."""
        return None if self._kind() == "GPU" else 1

    def helper(self, command: Sequence[str], model: str) -> Helper:
        """A process `python -m COMMAND` on a node with room, where Ray thinks best; it waits for room if there is none.
        `model` is the base it will load: the Hub's token goes to who loads one from there."""
        wanted = {"num_gpus": 1, "num_cpus": 0} if self._kind() == "GPU" else {"num_cpus": 1}
        groups = {_READING: 1}  # a thread of its own, or a process that is silent could not be spoken to
        held = self._ray.remote(concurrency_groups=groups, scheduling_strategy="SPREAD", **wanted)(_Held)
        helper = Helper(self._ray, held.remote())
        helper.start(list(command), self._home, model)
        self._helpers.append(helper)
        return helper

    def close(self) -> None:
        """Leave the cluster: what still runs there for us is ended."""
        self._ray.shutdown()

    def _kind(self) -> str:
        return "GPU" if self._ray.cluster_resources().get("GPU", 0) >= 1 else "CPU"

    def _judge(self, where: str, answer: object, word: str) -> None:
        """What a node has seen; one that died meanwhile is no matter."""
        try:
            seen, version = self._ray.get(answer, timeout=LOOK_SECONDS)
        except self._ray.exceptions.GetTimeoutError:
            raise TrainingError(f"the node does not answer within {LOOK_SECONDS} seconds", where) from None
        except (self._ray.exceptions.NodeDiedError, self._ray.exceptions.TaskUnschedulableError):
            return
        except self._ray.exceptions.RayError as problem:
            hint = "install luthier on every node, in the environment that its Ray runs in"
            raise TrainingError(f"luthier does not run there: {_last_line(problem)}", where, hint) from None
        if seen != word:
            hint = "every node must see it under this path: put it on a shared file system (--home, $LUTHIER_HOME)"
            raise TrainingError(f"the node does not see the home folder {self._home}", where, hint)
        if version != luthier.__version__:
            raise TrainingError(f"the node has luthier {version}, not {luthier.__version__}", where, "install the same")


class Helper:
    """A process on a node, spoken to as `engines.Helper` is."""

    def __init__(self, ray: ModuleType, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self._code: int | None = None
        self._began: object = None
        self.node = ""
        """Ray's id of the node that holds it, as far as `lines` has heard."""

    @property
    def returncode(self) -> int | None:
        """What it ended with, as far as `lines` or `kill` has heard; None while it lives."""
        return self._code

    def start(self, command: list[str], home: Path, model: str) -> None:
        # to the actor itself, not to its constructor: what that is given, the head node remembers
        self._began = self._actor.start.remote(command, str(home), model, engines.tokens(model), str(Path.cwd()))

    def placed(self) -> bool:
        """Whether a node holds it already."""
        return bool(self._ray.wait([self._began], timeout=0)[0])

    def say(self, text: str) -> None:
        """One line for it. Where it has ended this is said to nobody: `lines` tells of its end."""
        self._actor.say.remote(text)

    def lines(self) -> Iterator[str]:
        """What it says, line by line, until it ends, or its node does."""
        try:
            self.node = self._ray.get(self._began)
            read = self._actor.read.options(concurrency_group=_READING)
            while self._code is None:
                said, code = self._ray.get(read.remote())
                yield from said
                self._code = code
        except self._ray.exceptions.RayTaskError as problem:
            self._code = _BROKEN
            yield _last_line(problem)
        except self._ray.exceptions.RayError as problem:
            if self._code is None:  # nobody has ended it
                lost = self._node_is_gone()
                self._code = self._code or (engines.LOST if lost else _BROKEN)
                where = f"node {self.node[:12]} of" if self.node else "a node of"
                yield f"{where} the cluster is gone, or Ray has ended the process there: {_last_line(problem)}"

    def _node_is_gone(self) -> bool:
        """Whether the node that held it is dead; Ray says so some 15 seconds after the end of what ran on it."""
        until = time.monotonic() + GONE_SECONDS
        while self.node and self._code is None and self._ray.is_initialized() and time.monotonic() < until:
            if not any(node["Alive"] and node["NodeID"] == self.node for node in self._ray.nodes()):
                return True
            time.sleep(0.2)
        return False

    def leave(self) -> None:
        """Nobody will say more: it saves what it has and ends."""
        self._actor.leave.remote()

    def kill(self) -> None:
        """End it, if it has not ended, and what it started; its place is free again."""
        code: int | None = None
        with contextlib.suppress(self._ray.exceptions.RayError):
            code = self._ray.get(self._actor.end.remote(), timeout=END_SECONDS)
        if self._code is None:
            self._code = -signal.SIGKILL if code is None else code
        self._ray.kill(self._actor)


class _Held:
    """On the node: an actor that holds the process. Its own end closes the process's standard input, which ends it."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._helper: engines.Helper | None = None

    def start(self, command: list[str], home: str, model: str, tokens: dict[str, str], folder: str) -> str:
        import ray

        os.environ.update(tokens)
        with contextlib.suppress(OSError):
            os.chdir(folder)  # a relative path means what it means where the search was started
        self._helper = engines.Helper(command, Path(home), model)
        threading.Thread(target=self._listen, args=(self._helper,), daemon=True).start()
        return str(ray.get_runtime_context().get_node_id())

    def say(self, text: str) -> None:
        if self._helper is not None:
            self._helper.say(text)

    def leave(self) -> None:
        if self._helper is not None:
            self._helper.leave()

    def end(self) -> int | None:
        if self._helper is None:
            return None
        self._helper.kill()
        return self._helper.returncode

    def read(self) -> tuple[list[str], int | None]:
        """Lines, at least one unless it has ended; with the last of them its code."""
        assert self._helper is not None
        said = [self._said.get()]
        while not self._said.empty():
            said.append(self._said.get())
        ended = said[-1] is None
        return [line for line in said if line is not None], self._helper.returncode if ended else None

    def _listen(self, helper: engines.Helper) -> None:
        for line in helper.lines():
            self._said.put(line)
        self._said.put(None)


def _at(node: Mapping[str, Any]) -> object:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def _seen(probe: str) -> tuple[str, str]:
    """On the node: what stands in a file (nothing where there is none), and which luthier this is."""
    try:
        return Path(probe).read_text(encoding="utf-8"), luthier.__version__
    except OSError:
        return "", luthier.__version__


# --- before anything is said to the cluster --------------------------------------------------------------------------
def require(home: Path) -> str:
    """The address of the cluster that is meant, after all checks that need not ask it. Raises as `connect` does."""
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtra("the engine `ray` needs Ray", hint="pip install 'luthier[ray]'") from None
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MissingExtra(f"Ray {version} is too old: {oldest} is the oldest that will do", hint="pip install -U ray")
    address = _address(home)
    _require_a_token()
    return address


def _address(home: Path) -> str:
    address = os.environ.get(_ADDRESS) or settings.environment(home).get(_ADDRESS, "")
    if not address:
        hint = '`ray_address = "HOST:6379"`, or $RAY_ADDRESS; `auto` for the one that this machine is a node of'
        raise SpecError("the engine `ray` needs a cluster, and none is named", str(home / settings.FILE), hint)
    if "://" in address or address == "local":
        hint = "HOST:PORT of a cluster that this machine is a node of, or `auto`"
        raise SpecError(f"`{address}` is not the address of a Ray cluster that a search can join", _ADDRESS, hint)
    return address


def _require_a_token() -> None:
    """Raises SpecError where Ray would find no token, in the order that it looks."""
    mode = os.environ.get(_MODE, "token")
    if mode.lower() != "token":
        raise SpecError(f"luthier joins no Ray cluster without a token, and ${_MODE} is `{mode}`", hint=_GUIDE)
    if os.environ.get(_TOKEN, "").strip():
        return
    file = Path(os.environ.get(_TOKEN_PATH) or "~/.ray/auth_token").expanduser()
    try:
        found = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        found = ""
    if not found:
        raise SpecError("there is no token for the Ray cluster", where=str(file), hint=_GUIDE)


def _knock(address: str) -> None:
    """Raises TrainingError unless the cluster lets in who has the token, and nobody else."""
    _require_somebody(address)
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    with _asking(address, os.environ) as known, _asking(address, without | {_MODE: "disabled"}) as stranger:
        refused, let_in = _answer(known), _answer(stranger) is None
    if let_in:
        raise TrainingError("the Ray cluster lets in anybody: it does not ask for a token", address, _GUIDE)
    if refused is not None and "AuthenticationError" in refused:
        raise TrainingError("the Ray cluster does not take our token", address, "all nodes and this one need the same")
    if refused is not None:
        raise TrainingError(f"no Ray cluster answers: {_last_line(refused)}", address, _VERSIONS)


def _require_somebody(address: str) -> None:
    """Ray itself would go on trying for most of a minute."""
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, ValueError) as problem:
        hint = "HOST:PORT of its head node, 6379 where nobody says otherwise"
        raise TrainingError(f"no Ray cluster answers: {problem}", address, hint) from None


@contextlib.contextmanager
def _asking(address: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Ray's own question whether a cluster is well, asked by a process of its own: who refuses a token, is not asked
    twice by one process."""
    place = [] if address == "auto" else ["--address", address]
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", *place]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(environment)
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _answer(child: subprocess.Popen[str]) -> str | None:
    """None if it was let in, else what it was told."""
    try:
        told, _ = child.communicate(timeout=KNOCK_SECONDS)
    except subprocess.TimeoutExpired:
        return f"nothing within {KNOCK_SECONDS} seconds"
    return None if child.returncode == 0 else told


def _first_line(problem: object) -> str:
    return next((line for line in str(problem).splitlines() if line.strip()), repr(problem))


def _last_line(problem: object) -> str:
    return next((line.strip() for line in reversed(str(problem).splitlines()) if line.strip()), repr(problem))
