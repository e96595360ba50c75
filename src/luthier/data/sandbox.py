"""The process that renders chat templates: chats come in on standard input, texts go out on standard output.

Lives here: Jinja as transformers' `apply_chat_template` sets it up, and the limits this process lays on itself before
it reads anything. Does not live here: who starts it, and what is made of its end (`rendering.py`). A template is a
stranger's program: this file imports jinja2 and the standard library alone, and speaks JSON lines, one object each.

In: `{"template", "variables"}` sets the template; `{"chats": [[messages, tools, views], …]}` asks for texts, a view
being `[count, open]`: the first `count` messages, with or without the opening of an assistant turn. Out: for each chat,
in order, a list of texts or `{"error"}`. A limit ends the process: `EXITS` tells which one by the exit code.
"""

from __future__ import annotations

import contextlib
import html  # noqa: F401
import json
import os
import pprint  # noqa: F401
import resource
import signal
import sys
import textwrap  # noqa: F401
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import jinja2.constants  # what jinja2 loads when a template needs it: then no file can be opened any more
import jinja2.debug  # noqa: F401
from jinja2 import Template, TemplateError, ext, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

CPU_SECONDS, MEMORY_BYTES = 2.0, 256 << 20
"""Processor time of one text, and address space of the process (SECURITY R6)."""
OUTPUT_FACTOR, OUTPUT_BASE = 4, 1 << 20
"""A text has at most `OUTPUT_BASE` characters more than `OUTPUT_FACTOR` times what came in."""
EXITS = {3: f"takes more than {MEMORY_BYTES >> 20} MB of memory", 4: "writes too much text"}
_LIMITS = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_NOFILE": 3, "RLIMIT_CORE": 0}


def main() -> None:
    """Serve until standard input ends."""
    template: Template | None = None
    variables: dict[str, Any] = {}
    failed, size = None, 0
    reads, writes = sys.stdin.buffer, sys.stdout.fileno()
    _confine()
    try:
        while line := reads.readline():
            message = json.loads(line)
            if "template" in message:
                template, variables, failed = _compiled(message)
                size = len(message["template"])
                continue
            room = OUTPUT_BASE + OUTPUT_FACTOR * (size + len(line))
            for chat in message["chats"]:
                said = failed or _rendered(template, variables, chat, room)
                _write(writes, json.dumps(said).encode() + b"\n")
    except MemoryError:
        os._exit(3)


def _confine() -> None:
    """Give up what rendering does not need: memory, files, further processes. Not every system knows every limit."""
    time.localtime()  # reads the time zone, and a text in quotes its codec, while files can still be opened
    environment().from_string("{{ 'a' }}").render()
    for name in _LIMITS.keys() & vars(resource).keys():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(vars(resource)[name], (_LIMITS[name], _LIMITS[name]))


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """At most `CPU_SECONDS` of this process's time; then the system ends it (SIGPROF), whatever it is doing."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def _write(to: int, data: bytes) -> None:
    """All of it, and at once: what is written stands even if the next chat ends this process."""
    while data:
        data = data[os.write(to, data) :]


def _compiled(message: dict[str, Any]) -> tuple[Template | None, dict[str, Any], dict[str, str] | None]:
    try:
        with _watched():
            return environment().from_string(message["template"]), message["variables"], None
    except MemoryError:
        raise
    except Exception as error:
        return None, {}, _error(error)


def _rendered(template: Any, variables: dict[str, Any], chat: list[Any], room: int) -> list[str] | dict[str, str]:
    messages, tools, views = chat
    messages = [_with_reasoning(message) for message in messages]
    try:
        return [_text(template, variables, messages[:count], tools, opened, room) for count, opened in views]
    except MemoryError:
        raise
    except Exception as error:  # a template may fail in any way a program can
        return _error(error)


def _text(template: Any, variables: dict[str, Any], messages: list[Any], tools: Any, opened: bool, room: int) -> str:
    parts = []
    given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": opened}
    with _watched():
        for part in template.generate(**given | variables):
            room -= len(part)
            if room < 0:
                os._exit(4)
            parts.append(part)
    return "".join(parts)


def _error(error: Exception) -> dict[str, str]:
    reason = (str(error).splitlines() or [""])[0][:300] or type(error).__name__
    return {"error": reason, "kind": "unsafe" if isinstance(error, SecurityError) else "refused"}


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A thought under the names templates know it by: `reasoning_content`, and `thinking` (gpt-oss)."""
    message = {name: value for name, value in message.items() if value is not None}
    for name in ("reasoning_content", "thinking", "reasoning"):
        if name in message:
            return {"thinking": message[name], **message, "reasoning_content": message[name]}
    return message


# -- Jinja, with what transformers adds --------------------------------------------------------------------------------


class _Generation(ext.Extension):
    """The tags `{% generation %}` … `{% endgeneration %}`, which say where an assistant speaks: they write nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Any) -> str:
        return caller()


class _Namespace(Namespace):
    """Jinja's namespace, but for names that begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # so that a value may be called `self`
        self, *given = args
        for name in (values := dict(*given, **values)):
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template may not keep anything under the name {name!r}")


class _Dict:
    """`dict` as a template may call it, without its attributes."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is; Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers renders chats with: its options, filters and functions."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols], autoescape=False
    )
    made.filters["tojson"] = _to_json
    made.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return made


if __name__ == "__main__":
    main()
