"""Text from columns and from chats: `{column}` placeholders, default prompts, the model's chat template, and where each
assistant turn stands in the rendered text.

Lives here: which texts are asked of a template, and what they tell. Does not live here: the process that renders them
(`rendering.py`), tokens (`encode.py`).

What one row needs is written as a generator that yields `Ask`s and is sent the texts; `answered` runs many of them side
by side, so that a batch of rows is one message to that process.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from luthier.data import rendering
from luthier.data.examples import Example, Message
from luthier.errors import DataError, did_you_mean

_PLACEHOLDER = re.compile(r"\{\{\s*([^\W\d]\w*)\s*\}\}|\{([^\W\d]\w*)\}")
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_MARK = "Zq7luthierMark7qZ"  # stands for an answer where its place in a rendered chat is looked for

Span = tuple[int, int]
"""Start and end of a stretch of text, in characters."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """A chat whose texts a row needs: of its first so many messages, with or without an open assistant turn."""

    messages: Sequence[Message]
    tools: Any
    views: tuple[rendering.View, ...]
    where: str


Row = Generator[Ask, list[str], T]
"""What becomes of one row, which may ask for texts on the way."""


@functools.lru_cache(maxsize=256)
def placeholders(template: str | None) -> tuple[str, ...]:
    """The columns a template names, each once, in order.

    >>> placeholders("Classify {good,bad}. {context} Input: {{input}} Output:")
    ('context', 'input')
    """
    found = [match[1] or match[2] for match in _PLACEHOLDER.finditer(template or "")]
    return tuple(dict.fromkeys(found))


def fill(template: str, columns: Mapping[str, Any], where: str, write: Callable[[str], str] = str) -> str:
    """`template` with `{column}` or `{{column}}` replaced by the row's values; all other braces stay.

    `write` is done to each value. Raises DataError for a column the row does not have or has no value for.

    >>> fill('{"q": {input}}', {"input": "a {b}"}, "")
    '{"q": a {b}}'
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in columns:
            hint = did_you_mean(name, columns) or f"the row has: {', '.join(columns)}"
            raise DataError(f"the template names the column `{name}`, which this row does not have", where, hint)
        if columns[name] is None:
            raise DataError(f"the template names the column `{name}`, which is null in this row", where)
        return write(as_text(columns[name]))

    return _PLACEHOLDER.sub(value, template)


def as_text(value: Any) -> str:
    """A cell as it stands in a prompt: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def default_template(family: str) -> str:
    """The prompt for rows that are no chat when the experiment gives none (watsonx's form for decoders)."""
    return "Input: {input}\nOutput:" if family == "causal" else "{input}"


def plain_chat(messages: Sequence[Message]) -> str:
    """A chat as lines `role: content`, for models without a chat template."""
    return "".join(f"{message.role}: {message.content}\n" for message in messages)


def answered(tokenizer: Any, rows: Iterable[Row[T]]) -> list[T]:
    """Run `rows` to their ends, rendering for all of them at once what they ask for. Raises DataError with file:line.

    A template that refuses a chat (many refuse a system message, or two user turns in a row) raises it inside the row.
    """
    ends: dict[int, T] = {}
    waiting: dict[int, tuple[Row[T], Ask]] = {}

    def go_on(number: int, row: Row[T], texts: list[str] | None) -> None:
        try:
            waiting[number] = (row, next(row) if texts is None else row.send(texts))
        except StopIteration as end:
            ends[number] = end.value

    for number, row in enumerate(rows):
        go_on(number, row, None)
    while waiting:
        asked, texts = waiting, _texts(tokenizer, [ask for _, ask in waiting.values()])
        waiting = {}
        for (number, (row, _)), found in zip(asked.items(), texts, strict=True):
            go_on(number, row, found)
    return [ends[number] for number in sorted(ends)]


def _texts(tokenizer: Any, asks: Sequence[Ask]) -> list[list[str]]:
    """What the tokenizer's chat template writes for each of `asks`. Raises DataError for the first that has no text."""
    found: list[list[str]] = []
    while len(found) < len(asks):  # as a rule once; a tokenizer may have another template for chats with tools
        rest = asks[len(found) :]
        template = tokenizer.get_chat_template(None, rest[0].tools)
        alike = next(
            (i for i, a in enumerate(rest) if tokenizer.get_chat_template(None, a.tools) != template), len(rest)
        )
        chats = [rendering.Chat([_turn(m) for m in a.messages], a.tools, a.views) for a in rest[:alike]]
        variables = tokenizer.special_tokens_map
        for ask, chat, texts in zip(rest, chats, rendering.render(template, variables, chats), strict=False):
            if isinstance(texts, rendering.Refusal) and (other := _with_arguments_as_text(chat)):
                (texts,) = rendering.render(template, variables, [other])
            if isinstance(texts, rendering.Refusal):
                hint = "change the chat, or set `model.chat_template`"
                raise DataError(f"the model's chat template {texts.reason}", ask.where, hint)
            found.append(texts)
    return found


def _with_arguments_as_text(chat: rendering.Chat) -> rendering.Chat | None:
    """The chat with the arguments of its calls as JSON text: most templates want objects, some (DeepSeek) want that."""
    if not any(message.get("tool_calls") for message in chat.messages):
        return None

    def told(call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": as_text(function["arguments"])}}

    messages = [
        {**message, "tool_calls": [told(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in chat.messages
    ]
    return rendering.Chat(messages, chat.tools, chat.views)


def _turn(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content} | message.extra


def chat_text(messages: Sequence[Message], tools: Any, where: str) -> Row[str]:
    """The chat with an open assistant turn behind it: what a model is asked with."""
    (text,) = yield Ask(messages, tools, ((len(messages), True),), where)
    return text


def next_turn() -> Row[str]:
    """What a template writes behind an answer when the user speaks again; "" where it then rewrites the answer."""
    turns = [Message(role, "x") for role in ("user", "assistant", "user")]
    told, whole = yield Ask(turns, None, ((2, False), (3, False)), "")
    return whole[len(told) :] if whole.startswith(told) else ""


def chat_spans(
    messages: Sequence[Message], tools: Any, wanted: Collection[int], where: str
) -> Row[tuple[str, dict[int, Span]]]:
    """The rendered chat, and for each message index in `wanted` the span that the model has to produce there.

    A turn's span begins where the prompt of that turn ends: the render of all messages before it with an open
    assistant turn must be a beginning of the whole (then what is trained is what serving asks for), and ends with the
    render that includes it, its end-of-turn text included. Templates that rewrite earlier turns once they are history
    (thinking removed, the system's words moved to the last user turn) break this for all but the last turn: see
    `_rewritten`. Raises DataError where a turn cannot be found.
    """
    order, count = sorted(wanted), len(messages)
    views = [view for index in order for view in ((index, True), (index + 1, False))]
    whole, *pairs = yield Ask(messages, tools, ((count, False), *views), where)
    spans = {}
    for index in order:
        _require_calls(messages[index], index, whole, where)
    for index, opened, closed in zip(order, pairs[::2], pairs[1::2], strict=True):
        if closed.startswith(opened) and whole.startswith(closed):
            spans[index] = (len(opened), len(closed))
        elif index == count - 1:
            raise DataError(
                "the chat template begins an assistant turn otherwise in training than in generation",
                where,
                f"it would be prompted with {opened[-40:]!r}; set `model.chat_template` to one that agrees with itself",
            )
        else:
            found = yield from _rewritten(messages, tools, index, (whole, opened, closed), where)
            if found is None:
                raise DataError(
                    f"the chat template rewrites message {index + 1} so that its answer cannot be found again",
                    where,
                    "train on the last turn only: data.train_on: last",
                )
            spans[index] = found
        _require_calls(messages[index], index, whole[slice(*spans[index])], where)
        _require_said(messages[index], index, index == count - 1, whole[slice(*spans[index])], where)
    return whole, spans


def _require_calls(message: Message, index: int, text: str, where: str) -> None:
    """Templates that know nothing of tools write an empty turn: nobody would see that a call is missing."""
    for call in message.extra.get("tool_calls", ()):
        name = call["function"]["name"]
        if name not in text:
            hint = "set `model.chat_template` to one that knows tools"
            raise DataError(f"the chat template leaves out the call of `{name}` in message {index + 1}", where, hint)


def _require_said(message: Message, index: int, last: bool, text: str, where: str) -> None:
    """Some templates write a call and forget the words before it, or leave thoughts out: they would not be learned.

    Of earlier turns a thought may be missing, for most templates take it out of what is history; their words are looked
    for where they call a tool (without a call the turn was found by them). Spaces do not count.
    """
    told = {"what the assistant says": message.content if last else message.content.rpartition("</think>")[2]}
    if last:
        thought = next((message.extra[name] for name in _THOUGHTS if isinstance(message.extra.get(name), str)), "")
        told["the assistant's thought"] = thought
    elif "tool_calls" not in message.extra:
        return
    for what, words in told.items():
        if words.strip() not in text and "".join(words.split()) not in "".join(text.split()):
            hint = "take it out of the rows, or set `model.chat_template` to one that writes it"
            raise DataError(f"the chat template leaves out {what} in message {index + 1}", where, hint)


def require_told(tokenizer: Any, chats: Iterable[Example]) -> None:
    """Every message that is not the assistant's, and every tool, stands in what the chat template writes.

    Templates that know nothing of tools, or of a developer, skip these without a word: the model would learn answers to
    what it never sees. Marks in their places show what is written; chats of one shape are asked about once. Raises
    DataError with file:line.
    """
    shapes: dict[Any, Example] = {}
    for chat in chats:
        turns = tuple((m.role, bool(m.content.strip()), "tool_calls" in m.extra) for m in chat.messages)
        shapes.setdefault((turns, len(chat.columns.get("tools") or ())), chat)
    for chat in shapes.values():
        marks = {i: f"{_MARK}{i}." for i, m in enumerate(chat.messages) if m.role != "assistant" and m.content.strip()}
        told = [dataclasses.replace(m, content=marks.get(i, m.content)) for i, m in enumerate(chat.messages)]
        tools, names = _marked_tools(chat.columns.get("tools") or [])
        open_turn = chat.messages[-1].role != "assistant"
        try:
            ((text,),) = _texts(tokenizer, [Ask(told, tools or None, ((len(told), open_turn),), chat.where)])
        except DataError:
            continue  # it cannot bear the marks: nothing is known
        for i, mark in marks.items():
            if mark not in text:
                role = chat.messages[i].role
                raise _left_out(f"message {i + 1}, which the {role} says", role, chat.where)
        if any(name not in text for name in names):
            raise _left_out("the tools", "tools", chat.where)


def _marked_tools(tools: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """The tools with a mark for the name of each that has one, and these marks."""
    told, marks = [], []
    for i, tool in enumerate(tools):
        function = tool.get("function")
        if isinstance(function, dict) and "name" in function:
            marks.append(f"{_MARK}tool{i}.")
            tool = {**tool, "function": {**function, "name": marks[-1]}}
        told.append(tool)
    return told, marks


def _left_out(what: str, of: str, where: str) -> DataError:
    ways = {
        "developer": "name the role `system`, or set",
        "tool": "take a base whose template knows tools, or set",
        "tools": "take `tools` out of the rows if the model shall not see them, or set",
    }
    hint = f"{ways.get(of, 'take it out of the rows, or set')} `model.chat_template`"
    return DataError(f"the chat template leaves out {what}", where, hint)


def _rewritten(
    messages: Sequence[Message], tools: Any, index: int, texts: tuple[str, str, str], where: str
) -> Row[Span | None]:
    """Where an earlier turn stands in the whole chat, when the chat up to it is no beginning of the whole.

    A mark in the turn's place (its words, or the name of the function it calls) shows where. There the turn stands as
    it does when it is the last; or else its words do, behind what of the turn's beginning is left. None when it cannot
    be told.
    """
    whole, opened, closed = texts
    told = messages[index]
    marked = [*messages[:index], _marked(told), *messages[index + 1 :]]
    whole_marked, closed_marked = yield Ask(marked, tools, ((len(messages), False), (index + 1, False)), where)
    (before,) = yield Ask(messages, tools, ((index, False),), where)
    left, mark, right = whole_marked.partition(_MARK)
    alone = closed_marked.partition(_MARK)[0]
    if not mark or not whole.startswith(left) or _MARK in right:
        return None
    place = len(left)
    turn = closed[len(opened) :] if closed.startswith(opened) and closed.startswith(alone) else ""
    start = place - (len(alone) - len(opened))
    if turn and start <= place and whole.startswith(turn, start):
        return start, start + len(turn)
    # what opens an assistant turn: the model is asked with it, and what it says begins behind it
    opening = opened[_alike(before, opened) :]
    start = whole.rfind(opening, 0, place) + len(opening)
    began = bool(opening) and start > len(opening) and alone.endswith(whole[start:place])
    if told.content.strip():
        end = len(whole) - len(right)
        words = whole[place:end].strip()
        fits = whole.endswith(right) and place < end and words in told.content
        return (start if began else place, end) if fits else None
    rest = closed[len(alone) :]
    if not whole.startswith(rest, place):  # a last turn may have more behind it; its end token is found by the tokens
        rest = rest[: len(rest) - _alike(closed[::-1], before[::-1])]
    return (start, place + len(rest)) if began and rest and whole.startswith(rest, place) else None


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _marked(message: Message) -> Message:
    """A turn with the mark for its words; where it has none, for the name of the first function it calls."""
    if message.content.strip() or not message.extra.get("tool_calls"):
        return Message(message.role, _MARK, message.train, message.extra)
    first, *others = message.extra["tool_calls"]
    named = {**first, "function": {**first["function"], "name": _MARK}}
    return Message(message.role, message.content, message.train, message.extra | {"tool_calls": [named, *others]})
