"""A real HTTP server on this machine: an OpenAI-style endpoint that answers well or badly, by a function of a test."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Said:
    """One HTTP reply: `text` is what the assistant says, unless `body` replaces the whole of it."""

    text: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay: float = 0.0
    refusal: str | None = None
    end: str = "stop"


@dataclass
class Server:
    """`url` to be asked; `requests` as they came, with their headers; `most` is how many were under way at once."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most: int = 0


Answering = Callable[[dict[str, Any]], Said | str]


@contextmanager
def serving(answering: Answering) -> Iterator[Server]:
    """A server whose replies `answering(request)` makes. It lives as long as the block."""
    lock, under_way = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                server.requests.append(request)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                under_way[0] += 1
                server.most = max(server.most, under_way[0])
            said = answering(request)
            said = Said(said) if isinstance(said, str) else said
            time.sleep(said.delay)
            with lock:
                under_way[0] -= 1
            body = completion(said) if said.body is None else said.body
            try:
                self.send_response(said.status)
                for name, value in {"content-type": "application/json", **said.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                self.close_connection = True  # it did not wait

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads, http.block_on_close = True, False
    server = Server(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def completion(said: Said) -> bytes:
    message = {"role": "assistant", "content": said.text, "refusal": said.refusal}
    choice = {"index": 0, "message": message, "finish_reason": said.end}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "fake", "choices": [choice]}
    return json.dumps(whole | {"usage": usage}).encode()


def data_of(request: dict[str, Any]) -> dict[str, Any]:
    """What a judge was shown: the JSON between the two marks."""
    found = re.fullmatch(r"(data-[0-9a-f]{16})\n(.*)\n\1\n\nNow .*", request["messages"][-1]["content"], re.DOTALL)
    assert found is not None and found[1] in request["messages"][0]["content"]
    return json.loads(found[2])


def verdict(value: Any, rationale: str = "so it is") -> str:
    return json.dumps({"rationale": rationale, "verdict": value})


def fair(request: dict[str, Any]) -> str:
    """A judge that knows its trade, in each of the three modes, by comparing with the reference."""
    shown = data_of(request)
    right = [shown[name].strip() in shown["references"] for name in ("answer", "answer A", "answer B") if name in shown]
    if len(right) == 2:
        return verdict("tie" if right[0] == right[1] else "A" if right[0] else "B")
    grades = request["messages"][0]["content"].startswith("You judge answers. Your task: grade")
    return verdict((5 if right[0] else 1) if grades else int(right[0]))
