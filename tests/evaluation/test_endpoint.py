"""Asking an OpenAI-style endpoint: every bad reply in its class, a bounded number of calls, no key anywhere."""

from __future__ import annotations

import asyncio
import doctest
import json
import socket
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import MissingExtra, SpecError
from luthier.evaluation import endpoint, served
from luthier.evaluation.endpoint import Endpoint, Reply, ask
from luthier.evaluation.kept import Kept
from tests.evaluation import fake
from tests.evaluation.fake import Said

pytest.importorskip("openai", reason="needs the extra `judge`")

SCHEMA = {"temperature": 0, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}


def quick(url: str, **more: Any) -> Endpoint:
    return Endpoint("fake", url, **{"retries": 2, "timeout": 0.4, "pause": 0.005, "concurrency": 8} | more)


def asked(server: fake.Server, texts: list[str], body: dict[str, Any] | None = None, **more: Any) -> dict[str, Reply]:
    found: dict[str, Reply] = {}
    chats = [[{"role": "user", "content": text}] for text in texts]
    ask(quick(server.url, **more), chats, body or {}, lambda i, reply: found.__setitem__(texts[i], reply))
    return found


def words(request: dict[str, Any]) -> str:
    return str(request["messages"][-1]["content"])


BAD = {
    "429": Said(status=429, body=b'{"error": {"message": "slow down"}}'),
    "429 with Retry-After": Said(status=429, headers={"retry-after": "0.02"}, body=b"{}"),
    "500": Said(status=500, body=b"<html>oops</html>"),
    "timeout": Said("late", delay=0.8),
    "no completion": Said(body=b'{"hello": 1}'),
    "cut body": Said(body=b'{"choices": [{"mess'),
    "not json": Said(body=b"hello", headers={"content-type": "text/plain"}),
    "nothing": Said(body=b""),
    "null": Said(body=b"null"),
    "odd choices": Said(body=b'{"choices": "x", "usage": 3}'),
}


@pytest.mark.parametrize("always", [True, False])
def test_what_fails_is_tried_again_within_its_budget(always: bool) -> None:
    """Always bad: an error after 1 + retries calls. Bad once: an answer, after one call more."""
    seen: dict[str, int] = {}

    def answer(request: dict[str, Any]) -> Said | str:
        name = words(request)
        seen[name] = seen.get(name, 0) + 1
        return BAD[name] if name in BAD and (always or seen[name] == 1) else "fine"

    with fake.serving(answer) as server:
        found = asked(server, ["good", *BAD], timeout=0.3)
    assert found.pop("good") == Reply("ok", "fine", tokens=(100, 10)) and seen.pop("good") == 1
    assert {reply.state for reply in found.values()} == ({"error"} if always else {"ok"})
    assert all(bool(reply.reason) == always for reply in found.values())
    assert set(seen.values()) == {3 if always else 2} and len(server.requests) <= (1 + len(BAD)) * 3


def test_a_refusal_is_not_tried_again_and_an_empty_answer_is_an_answer() -> None:
    replies = {
        "first": Said("fine"),
        "refusal": Said(None, refusal="I will not"),
        "filter": Said("", end="content_filter"),
        "too long": Said(status=400, body=b'{"error": {"message": "context length"}}'),
        "empty": Said(None),
        "cut": Said("half", end="length"),
    }
    with fake.serving(lambda request: replies[words(request)]) as server:
        found = asked(server, list(replies))
    states = {name: (reply.state, reply.text, reply.cut) for name, reply in found.items()}
    assert states == {
        "first": ("ok", "fine", False),
        "refusal": ("refused", "", False),
        "filter": ("refused", "", False),
        "too long": ("refused", "", False),
        "empty": ("ok", "", False),
        "cut": ("ok", "half", True),
    }
    assert len(server.requests) == len(replies) and "I will not" in found["refusal"].reason


def test_who_asks_for_rest_gets_it_and_everybody_rests() -> None:
    asked_for, times = 0.15, []

    def answer(request: dict[str, Any]) -> Said | str:
        times.append(time.monotonic())
        return Said(status=429, headers={"retry-after": str(asked_for)}, body=b"{}") if len(times) == 2 else "fine"

    with fake.serving(answer) as server:
        found = asked(server, list("abcdef"), concurrency=1)
    assert {reply.state for reply in found.values()} == {"ok"} and len(times) == 7
    assert times[2] - times[1] >= asked_for  # a wait that was asked for, not a speed
    assert endpoint._retry_after(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)


def test_an_endpoint_that_wants_an_hour_is_not_waited_for() -> None:
    with fake.serving(lambda request: Said(status=429, headers={"retry-after": "3600"}, body=b"{}")) as server:
        found = asked(server, list("abc"))
    assert {reply.state for reply in found.values()} == {"error"} and len(server.requests) == 1
    assert all("429" in reply.reason or "3,600 s" in reply.reason or "3,5" in reply.reason for reply in found.values())


def test_so_many_at_once_and_no_more() -> None:
    with fake.serving(lambda request: Said("fine", delay=0.05)) as server:
        asked(server, [str(i) for i in range(20)], concurrency=4)
    assert server.most == 4 and len(server.requests) == 20


@pytest.mark.parametrize(
    ("status", "calls"), [(401, 1), (403, 1), (404, 1), ("insufficient_quota", 1)], ids=lambda value: str(value)
)
def test_where_we_are_not_let_in_nobody_else_is_sent(status: int | str, calls: int) -> None:
    code = {"error": {"message": "no", "code": status}}
    said = Said(status=status if isinstance(status, int) else 429, body=json.dumps(code).encode())
    with fake.serving(lambda request: said) as server:
        found = asked(server, [str(i) for i in range(50)])
    assert len(server.requests) == calls and {reply.state for reply in found.values()} == {"refused", "error"}


def test_where_nobody_is_there_nobody_waits() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    found = asked(fake.Server(url), [str(i) for i in range(500)])
    assert {reply.state for reply in found.values()} == {"error"}
    assert "127.0.0.1 cannot be reached" in found["0"].reason and "not asked" in found["499"].reason


def test_an_endpoint_that_stops_answering_is_left_alone() -> None:
    seen = []

    def answer(request: dict[str, Any]) -> Said | str:
        seen.append(1)
        return "fine" if len(seen) <= 10 else Said(status=503, body=b"{}")

    with fake.serving(answer) as server:
        found = asked(server, [str(i) for i in range(300)], retries=0, pause=0.0)
    states = [reply.state for reply in found.values()]
    assert states.count("ok") == 10 and states.count("error") == 290
    assert len(server.requests) < 60 and "in a row had failed" in found["299"].reason


@pytest.mark.parametrize(
    ("takes", "kept", "notes"),
    [
        ("json_schema", "json_schema", 0),
        ("json_object", "json_object", 1),
        ("text", None, 2),
    ],
)
def test_what_the_endpoint_does_not_take_is_left_out_for_all_and_said_once(
    takes: str, kept: str | None, notes: int
) -> None:
    order = ["json_schema", "json_object", "text"]

    def answer(request: dict[str, Any]) -> Said | str:
        form = request.get("response_format", {"type": "text"})["type"]
        if order.index(form) < order.index(takes):
            return Said(status=400, body=b'{"error": {"message": "response_format is not supported"}}')
        return "fine"

    states: list[str] = []
    with fake.serving(answer) as server:
        chats = [[{"role": "user", "content": str(i)}] for i in range(9)]
        said = ask(quick(server.url), chats, SCHEMA, lambda i, reply: states.append(reply.state))
    assert states == ["ok"] * 9 and len(said) == notes and len(server.requests) == 9 + notes
    forms = [request.get("response_format", {}).get("type") for request in server.requests]
    assert forms[notes:] == [kept] * 9


def test_a_temperature_or_a_name_that_is_refused_is_left_out_or_changed() -> None:
    def answer(request: dict[str, Any]) -> Said | str:
        if "temperature" in request:
            return Said(status=400, body=b'{"error": {"message": "Unsupported value: temperature"}}')
        if "max_tokens" in request:
            return Said(status=400, body=b'{"error": {"message": "use max_completion_tokens instead"}}')
        return "fine"

    with fake.serving(answer) as server:
        found = asked(server, list("ab"), {"temperature": 0, "max_tokens": 9})
    assert [reply.state for reply in found.values()] == ["ok", "ok"] and len(server.requests) == 4
    assert server.requests[-1]["max_completion_tokens"] == 9


def test_the_key_comes_from_the_environment_and_is_struck_from_what_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "correct-horse-battery")

    def answer(request: dict[str, Any]) -> Said | str:
        if words(request) == "tell":
            return "your key is correct-horse-battery"
        return Said(status=400, body=b'{"error": {"message": "bad key correct-horse-battery"}}')

    with fake.serving(answer) as server:
        found = asked(server, ["tell", "no"])
    assert server.headers[0]["authorization"] == "Bearer correct-horse-battery"
    assert found["tell"].text == "your key is [secret]" and "[secret]" in found["no"].reason
    assert "correct-horse-battery" not in str(found)


def test_what_a_listener_raises_ends_the_work_at_once() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    chats = [[{"role": "user", "content": str(i)}] for i in range(50)]
    with fake.serving(lambda request: Said("fine", delay=0.05)) as server, pytest.raises(KeyboardInterrupt):
        ask(quick(server.url), chats, {}, lambda i, reply: None, stop)
    assert len(server.requests) < 5


def test_it_works_where_a_loop_is_under_way_as_in_a_notebook() -> None:
    async def cell() -> dict[str, Reply]:
        return asked(server, ["a"])

    with fake.serving(lambda request: "fine") as server:
        assert asyncio.run(cell())["a"].text == "fine"


def test_what_could_not_begin_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(SpecError, match="neither a key nor an address") as refusal:
        endpoint.require(None, "the judge")
    assert "OPENAI_API_KEY" in str(refusal.value.hint)
    with pytest.raises(SpecError, match="is no address"):
        endpoint.require("localhost:8000", "the judge")
    endpoint.require("http://localhost:8000/v1", "the judge")
    monkeypatch.setenv("OPENAI_API_KEY", "some key of mine")
    endpoint.require(None, "the judge")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as missing:
        endpoint.require(None, "the judge")
    assert "pip install 'luthier[judge]'" in str(missing.value.hint)


def test_kept_lines_lose_a_torn_end_and_a_failure_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    kept = Kept(path)
    for line in ({"key": "a", "state": "ok", "n": 1}, {"key": "b", "state": "error"}):
        kept.add(line)
    with path.open("a") as file:
        file.write('{"key": "c", "sta')
    again = Kept(path)
    assert again.good("a") == {"key": "a", "state": "ok", "n": 1} and again.good("b") is None and len(again.lines) == 2
    again.add({"key": "b", "state": "ok"})
    assert Kept(path).good("b") and path.read_text().count("\n") == 3
    path.write_text("nonsense\n")
    with pytest.raises(Exception, match=r"kept\.jsonl:1"):
        Kept(path)


def test_doctests() -> None:
    for module in (endpoint, served):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed
