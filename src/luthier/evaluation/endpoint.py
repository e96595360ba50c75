"""An OpenAI-style chat endpoint: many chats at once, each tried again within its budget, every failure named.

Lives here: the client, concurrency, retries. Does not live here: who asks: a judge (`judge.py`), or test rows
(`served.py`).

The key comes from the environment (OPENAI_API_KEY) and goes nowhere else: whatever comes back is struck first.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from typing import Any, Literal, TypeVar

from luthier import redaction
from luthier.errors import MissingExtra, SpecError

LONGEST_WAIT = 120.0  # seconds: an endpoint that asks for more is not waited for
_LONGEST_PAUSE = 30.0  # seconds between two tries that nobody asked to wait for
_HOPELESS = 20  # failures in a row, at least, after which nothing more is asked
_PULSE = 0.5  # seconds between two looks at whether to stop
_SHOWN = 300  # characters of an endpoint's complaint

Chat = list[dict[str, Any]]
"""Messages: `role` and `content`."""
Heard = Callable[[int], None]  # told how many were answered; may raise to end the work
T = TypeVar("T")
_Then = Literal["done", "again", "unreachable", "closed"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Who is asked and how patiently: `retries` calls more than one a chat, `timeout` and `pause` in seconds.

    The pause before another try doubles each time; what the endpoint asks for (Retry-After) wins. `base_url` None: the
    environment's, else OpenAI's.
    """

    model: str
    base_url: str | None = None
    concurrency: int = 40
    retries: int = 5
    timeout: float = 120.0
    pause: float = 0.5


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one chat. "ok" has a `text` (it may be empty); "refused" and "error" have a `reason`, in words.

    `tokens` in and out, as the endpoint counts them; `cut` where its own limit ended the text.
    """

    state: Literal["ok", "refused", "error"]
    text: str = ""
    reason: str = ""
    tokens: tuple[int, int] = (0, 0)
    cut: bool = False


def require(base_url: str | None, what: str) -> None:
    """Raise MissingExtra or SpecError where `what` (the one who asks, for people) could not even begin."""
    if importlib.util.find_spec("openai") is None:
        raise MissingExtra(f"{what} needs the library `openai`, which is not installed", hint=_INSTALL)
    address = base_url or os.environ.get("OPENAI_BASE_URL")
    if address and not address.startswith(("http://", "https://")):
        raise SpecError(f"{what}: `{address}` is no address", hint="it begins with https:// or http://")
    if not address and not os.environ.get("OPENAI_API_KEY"):
        hint = "set OPENAI_API_KEY in the environment, or name a server of your own by `base_url`"
        raise SpecError(f"{what} has neither a key nor an address", hint=hint)


_INSTALL = "pip install 'luthier[judge]'"


def ask(
    endpoint: Endpoint,
    chats: Sequence[Chat],
    body: Mapping[str, Any],
    each: Callable[[int, Reply], None],
    pulse: Callable[[], None] = lambda: None,
) -> tuple[str, ...]:
    """Ask every chat, `endpoint.concurrency` at once; `each(i, reply)` hears of each as it comes. Gives notes.

    At most 1 + `endpoint.retries` calls a chat. The first is asked alone: parts of `body` (`response_format`,
    `temperature`, `max_tokens`) that the endpoint refuses there are left out for all, and the notes say so. Where the
    endpoint cannot be reached or does not let us in, the others are not asked and fail for the same reason. `pulse` is
    called twice a second; what it or `each` raises ends the work.
    """
    return _run(_ask_all(endpoint, chats, body, each, pulse))


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run it here, or, where a loop is under way already (a notebook), in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as own:
        return own.submit(asyncio.run, work).result()


async def _ask_all(
    endpoint: Endpoint,
    chats: Sequence[Chat],
    body: Mapping[str, Any],
    each: Callable[[int, Reply], None],
    pulse: Callable[[], None],
) -> tuple[str, ...]:
    try:
        import openai
    except ImportError:
        raise MissingExtra(f"asking `{endpoint.model}` needs the library `openai`", hint=_INSTALL) from None
    key = os.environ.get("OPENAI_API_KEY") or "none"  # a server of one's own often wants none
    async with openai.AsyncOpenAI(api_key=key, base_url=endpoint.base_url, max_retries=0) as client:
        talk, waiting, limit = _Talk(client, endpoint, dict(body)), enumerate(chats), 1
        running: dict[asyncio.Task[Reply], int] = {}
        try:
            while True:
                for i, chat in _some(waiting, limit - len(running)):
                    running[asyncio.create_task(talk.reply(chat))] = i
                if not running:
                    return tuple(talk.notes)
                done, _ = await asyncio.wait(running, timeout=_PULSE, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    each(running.pop(task), task.result())
                pulse()
                limit = endpoint.concurrency if talk.met else 1
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def _some(waiting: Iterator[tuple[int, Chat]], count: int) -> list[tuple[int, Chat]]:
    return [one for _, one in zip(range(count), waiting, strict=False)]


class _Talk:
    """One conversation with an endpoint: what it takes, when it wants rest, whether it has stopped answering."""

    def __init__(self, client: Any, endpoint: Endpoint, body: dict[str, Any]) -> None:
        self.client, self.endpoint, self.body = client, endpoint, body
        self.met = False  # the first chat has been answered, or has failed
        self.notes: list[str] = []
        self._dead = ""  # why nothing more is asked
        self._failed = 0  # in a row
        self._rest_until = 0.0

    async def reply(self, chat: Chat) -> Reply:
        """The answer to `chat`, or why there is none."""
        said = await self._tried([turn | {"content": _whole(turn["content"])} for turn in chat])
        self._failed = 0 if said.state == "ok" else self._failed + 1
        if self._failed >= max(_HOPELESS, self.endpoint.concurrency) and not self._dead:
            self._dead = f"not asked: {self._failed} in a row had failed, the last: {said.reason}"
        self.met = True
        return said

    async def _tried(self, chat: Chat) -> Reply:
        said, then = Reply("error"), "again"
        for tried in range(1 + self.endpoint.retries):
            if self._dead:
                return Reply("error", reason=said.reason or self._dead)
            if (asked := await self._rested(tried)) > LONGEST_WAIT:
                return Reply("error", reason=said.reason or f"it asks to wait {asked:,.0f} s")
            said, then = await self._called(chat)
            if then in ("done", "closed"):
                break
        if then == "closed" or (then == "unreachable" and not self.met):
            self._dead = f"not asked: {said.reason}"
        return said

    async def _rested(self, tried: int) -> float:
        """Wait before a try, as long as the endpoint asked for, or twice as long as last time, give or take.

        Gives the seconds it asked for; more than LONGEST_WAIT are not waited.
        """
        pause = min(self.endpoint.pause * 2 ** (tried - 1), _LONGEST_PAUSE) if tried else 0.0
        asked = self._rest_until - time.monotonic()
        if asked <= LONGEST_WAIT:
            await asyncio.sleep(max(0.0, asked, pause * random.uniform(0.75, 1.0)))
        return asked

    async def _called(self, chat: Chat) -> tuple[Reply, _Then]:
        """One call, and what then."""
        import openai

        try:
            async with asyncio.timeout(self.endpoint.timeout):
                made = await self.client.chat.completions.create(model=self.endpoint.model, messages=chat, **self.body)
            return _read(made)
        except (TimeoutError, openai.APITimeoutError):
            return Reply("error", reason=f"no answer within {self.endpoint.timeout:g} s"), "again"
        except openai.APIStatusError as error:
            return self._complained(error)
        except openai.APIConnectionError as error:
            words = _words(error.__cause__ or error)
            return Reply("error", reason=f"{self.client.base_url.host} cannot be reached: {words}"), "unreachable"
        except (openai.OpenAIError, ValueError) as error:  # a body that is not what it says
            return Reply("error", reason=f"the reply cannot be read: {_words(error)}"), "again"

    def _complained(self, error: Any) -> tuple[Reply, _Then]:
        """A status that is not 200: another try, another body, or the end of it."""
        status, words = error.status_code, _words(error)
        reason = f"status {status}: {words}"
        if status in (400, 422) and not self.met and self._simplified(words):
            return Reply("refused", reason=reason), "again"
        if status in (401, 403, 404) or error.code == "insufficient_quota":
            return Reply("refused", reason=reason), "closed"
        if status in (408, 409, 429) or status >= 500:
            wait = _retry_after(error.response.headers.get("retry-after"))
            if wait is not None:
                self._rest_until = max(self._rest_until, time.monotonic() + wait)
            return Reply("error", reason=reason), "again"
        return Reply("refused", reason=reason), "done"

    def _simplified(self, complaint: str) -> bool:
        """Leave out of the body what the endpoint does not take. False where nothing is left to leave out."""
        form = self.body.get("response_format", {}).get("type")
        if "max_tokens" in self.body and "max_completion_tokens" in complaint:
            self.body["max_completion_tokens"] = self.body.pop("max_tokens")
            return True
        if "temperature" in self.body and ("temperature" in complaint or form is None):
            del self.body["temperature"]
            self._note("it refuses `temperature`: its own is used")
        elif form == "json_schema":
            self.body["response_format"] = {"type": "json_object"}
            self._note("it refuses a JSON schema: plain JSON is asked for")
        elif form == "json_object":
            del self.body["response_format"]
            self._note("it refuses JSON mode too: JSON is asked for in words")
        else:
            return False
        return True

    def _note(self, words: str) -> None:
        self.notes.append(f"{self.endpoint.model}: {words}")


def _read(made: Any) -> tuple[Reply, _Then]:
    """A chat completion as the library read it: it checks no field, and servers write what they like."""
    try:
        choice = made.choices[0]
        text, refusal, end = choice.message.content, choice.message.refusal, choice.finish_reason
    except (AttributeError, IndexError, TypeError):
        return Reply("error", reason="the reply is no chat completion"), "again"
    tokens = (_count(made.usage, "prompt_tokens"), _count(made.usage, "completion_tokens"))
    if refusal or end == "content_filter":
        words = refusal if isinstance(refusal, str) else "its content filter stopped it"
        return Reply("refused", reason=redaction.strike(words[:_SHOWN]), tokens=tokens), "done"
    said = redaction.strike(text) if isinstance(text, str) else ""
    return Reply("ok", said, tokens=tokens, cut=end == "length"), "done"


def _whole(text: Any) -> Any:
    """Text as JSON in UTF-8 can hold it: half a surrogate pair becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


def _count(usage: Any, name: str) -> int:
    counted = dict(usage or {}).get(name)
    return counted if isinstance(counted, int) else 0


def _words(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return redaction.strike(first[:_SHOWN]) or type(error).__name__


def _retry_after(written: str | None) -> float | None:
    """Seconds of a Retry-After header, which may be a number or a date.

    >>> _retry_after("2"), _retry_after("soon"), _retry_after(None), _retry_after("Thu, 01 Jan 1970 00:00:00 GMT")
    (2.0, None, None, 0.0)
    """
    if written is None:
        return None
    try:
        return max(0.0, float(written))
    except ValueError:
        date = parsedate_tz(written)
        return None if date is None else max(0.0, mktime_tz(date) - time.time())
