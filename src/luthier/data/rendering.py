"""Chat templates rendered in a process of their own, with limits on its time, memory and output (SECURITY R6).

Lives here: that process's life, and what a breach of its limits means. Does not live here: what runs in it
(`sandbox.py`), which texts are asked for (`templates.py`).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import redaction
from luthier.data.sandbox import CPU_SECONDS, EXITS

View = tuple[int, bool]
"""The first so many messages, and whether the opening of an assistant turn follows them."""
_MESSAGE_CHARS = 1 << 20  # the chats of one message to the process: few messages, and little memory


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat to render: its messages and tools as JSON-like values, and the views that are wanted of it."""

    messages: Sequence[Mapping[str, Any]]
    tools: Any
    views: tuple[View, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a chat has no texts, in words that follow "the chat template …"."""

    reason: str


def render(template: str, variables: Mapping[str, str], chats: Sequence[Chat]) -> list[list[str] | Refusal]:
    """For each chat the texts of its views, as `template` with `variables` writes them; or why there are none.

    The texts equal those of transformers' `apply_chat_template(tokenize=False)`. A chat that breaks a limit is the last
    one of the result.
    """
    with _lock:
        return _child(template, dict(variables)).render(chats)


class _Child:
    """The process, with one template. It ends with this one, or by breaking a limit."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", str(Path(__file__).with_name("sandbox.py"))]
        self.owner, self.knows, self.ended = os.getpid(), "", False
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=redaction.inherited(),
            process_group=0,  # Ctrl-C is for who started it; it ends when its input does
        )
        atexit.register(self.end)

    @property
    def usable(self) -> bool:
        """Whether it is alive and this process's own: after a fork the pipe belongs to the other one."""
        return self.owner == os.getpid() and not self.ended and self.process.poll() is None

    def learn(self, template: str, variables: Mapping[str, str]) -> None:
        message = json.dumps({"template": template, "variables": variables})
        if message != self.knows:
            self.knows = message
            self._say(message)

    def render(self, chats: Sequence[Chat]) -> list[list[str] | Refusal]:
        found: list[list[str] | Refusal] = []
        waiting: list[str] = []
        size = 0
        for i, chat in enumerate(chats):
            waiting.append(json.dumps([chat.messages, chat.tools, chat.views], default=str))
            size += len(waiting[-1])
            if i == len(chats) - 1 or size > _MESSAGE_CHARS:
                self._say(f'{{"chats": [{", ".join(waiting)}]}}')
                for _ in waiting:
                    found.append(self._answer())
                    if self.ended:
                        return found
                waiting, size = [], 0
        return found

    def _say(self, line: str) -> None:
        try:
            self.process.stdin.write(line.encode() + b"\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            pass  # it has ended: the next answer says why

    def _answer(self) -> list[str] | Refusal:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line.endswith(b"\n"):
            code = self.process.wait()
            self.end()
            return Refusal(_breach(code))
        said = json.loads(line)
        if isinstance(said, list):
            return said
        verb = "tries what no template may" if said["kind"] == "unsafe" else "refuses this chat"
        return Refusal(f"{verb}: {said['error']}")

    def end(self) -> None:
        """Make sure that it is gone, if it is this process's own."""
        atexit.unregister(self.end)
        self.ended = True
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]


def _breach(code: int) -> str:
    if -code == signal.SIGPROF:
        return f"takes more than {CPU_SECONDS:g} s of processor time"
    return EXITS.get(code, f"ended the process that renders it (exit code {code})")


_lock = threading.Lock()
_current: list[_Child] = []


def _child(template: str, variables: Mapping[str, str]) -> _Child:
    """The one that lives, or a new one, with this template."""
    if not (_current and _current[0].usable):
        _current[:] = [_Child()]
    _current[0].learn(template, variables)
    return _current[0]
