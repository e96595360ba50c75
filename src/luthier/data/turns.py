"""Chats as people write them (OpenAI, ShareGPT, pairs of strings, segments) → messages.

Lives here: the checks of every turn; an error names the turn. Does not live here: which column holds the chat
(`formats.py`), calls of tools (`tool_calls.py`), how a chat becomes text (`templates.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from luthier.data import tool_calls
from luthier.data.examples import EmptyAnswer, Message
from luthier.errors import DataError, did_you_mean

ROLES = ("system", "developer", "user", "assistant", "tool")
DROP_MISSING = "`empty` in data.clean drops such rows"
DROP_EMPTY = f"fill it; {DROP_MISSING}"
_CALLING = "function_call"  # the turn's text is the call
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "developer": "developer",
    "function_call": _CALLING,
    "tool_call": _CALLING,
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_WISHES = ("weight", "loss", "train")


def from_openai(value: Any, where: str, column: str = "messages") -> tuple[Message, ...]:
    """Messages of OpenAI's chat form: role, content (text or text parts), tool_calls, `weight` or `loss` of a turn.

    The form of old (`function_call` in a turn, the role `function` for what came back) becomes calls of tools.
    """
    if isinstance(value, str) and column == "prompt":
        return (Message("user", value),)
    if isinstance(value, str) and column == "completion":
        return (Message("assistant", value),)
    _require_list(value, column, where)
    return tuple(_message(turn, f"{column}[{i}]", where) for i, turn in enumerate(value))


def from_sharegpt(value: Any, system: Any, where: str) -> tuple[Message, ...]:
    """Messages of ShareGPT's form: `from` and `value`, or `role` and `content`, under either's names of the speakers;
    also ms-swift's pairs of `human` and `assistant`. The column `system` counts where no turn is the system's."""
    _require_list(value, "conversations", where)
    messages: list[Message] = []
    for i, turn in enumerate(value):
        name = f"conversations[{i}]"
        if not isinstance(turn, Mapping):
            raise DataError(f"{name} must be an object, not {type(turn).__name__}", where)
        if "human" in turn and "assistant" in turn:
            messages.append(_message({"role": "user", "content": turn["human"]}, name, where))
            messages.append(_message({"role": "assistant", "content": turn["assistant"]}, name, where))
        else:
            messages.append(_sharegpt_turn(turn, name, where))
    told = any(message.role == "system" for message in messages)
    return tuple(messages) if told else (*_system(system), *messages)


def from_pairs(system: Any, history: Any, where: str) -> tuple[Message, ...]:
    """Alpaca's and ms-swift's `system` text and `history` of [question, answer] pairs."""
    messages = [*_system(system)]
    for i, pair in enumerate(history or []):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(said, str) for said in pair)):
            raise DataError(f"history[{i}] must be a pair of texts, [question, answer]", where)
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return tuple(messages)


def from_segments(value: Any, where: str) -> tuple[Message, ...]:
    """Axolotl's template-free form, a list of `{"label": true, "text": …}`: what is labelled true is what the
    assistant says, neighbours of one kind are one message. Nothing is added to the texts, spaces included."""
    _require_list(value, "segments", where)
    for i, segment in enumerate(value):
        if not (isinstance(segment, Mapping) and isinstance(segment.get("text"), str)):
            raise DataError(f"segments[{i}] must be an object with `label` and `text`", where)
        if not isinstance(segment.get("label"), bool):
            raise DataError(f"segments[{i}]: `label` must be true (learned) or false", where)
    told = []
    for learned, group in itertools.groupby(value, key=lambda segment: segment["label"]):
        text = "".join(segment["text"] for segment in group)
        if text:
            told.append(Message("assistant" if learned else "user", text))
    return tuple(told)


def require_answer(messages: tuple[Message, ...], where: str) -> None:
    """At least one assistant turn says something and may be learned; no assistant turn is blank."""
    if not any(m.role == "assistant" for m in messages):
        raise EmptyAnswer("no assistant turn: there is nothing to learn", where)
    for i, message in enumerate(messages):
        if message.role == "assistant" and not message.content.strip() and "tool_calls" not in message.extra:
            raise EmptyAnswer(f"message {i + 1}: the assistant says nothing", where, DROP_EMPTY)
    if all(m.train is False for m in messages if m.role == "assistant"):
        raise DataError("every assistant turn is excluded from training (weight 0)", where)


def _system(text: Any) -> tuple[Message, ...]:
    return (Message("system", text),) if isinstance(text, str) and text.strip() else ()


def _require_list(value: Any, column: str, where: str) -> None:
    if value is None:
        raise DataError(f"this row has no `{column}`", where)
    if isinstance(value, str):
        raise DataError(f"`{column}` is text, not a list of turns", where, "chats belong in .jsonl, .json or .parquet")
    if not isinstance(value, list) or not value:
        raise DataError(f"`{column}` must be a list of turns with at least one", where)


def _message(turn: Any, name: str, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{name} must be an object with role and content, not {type(turn).__name__}", where)
    role = "tool" if turn.get("role") == "function" else turn.get("role")
    if role not in ROLES:
        hint = (did_you_mean(role, ROLES) if isinstance(role, str) else None) or f"one of {', '.join(ROLES)}"
        raise DataError(f"{name}: `{role}` is not a role", where, hint)
    known = {"role", "content", "function_call", *_WISHES}
    extra = {key: value for key, value in turn.items() if key not in known and value is not None}
    calls = tool_calls.calls_of(turn, name, where)
    if calls is not None:
        extra["tool_calls"] = calls
    content = _content(turn.get("content"), name, where, optional=calls is not None)
    return Message(role, content, _trained(turn, role, name, where), extra)


def _content(value: Any, name: str, where: str, *, optional: bool) -> str:
    """Text; or OpenAI's list of parts, as far as they are text."""
    if value is None and optional:
        return ""
    if isinstance(value, list):
        for part in value:
            if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise DataError(f"{name}: only text can be trained on, not images, audio or files", where)
        return "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise DataError(f"{name}: `content` must be text, not {type(value).__name__}", where)
    return value


def _trained(turn: Mapping[str, Any], role: str, name: str, where: str) -> bool | None:
    """OpenAI's `weight` (0 or 1), ms-swift's `loss`, our own `train`: three names of one wish."""
    wishes = set()
    for key in _WISHES:
        value = turn.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise DataError(f"{name}: `{key}` must be 0 or 1, false or true", where)
        wishes.add(bool(value))
    if len(wishes) > 1:
        raise DataError(f"{name}: weight, loss and train contradict each other", where)
    wish = wishes.pop() if wishes else None
    if wish and role != "assistant":
        raise DataError(
            f"{name}: a {role} turn cannot be trained", where, "only assistant turns; or data.train_on: all"
        )
    return wish if role == "assistant" else None


def _sharegpt_turn(turn: Mapping[str, Any], name: str, where: str) -> Message:
    """One turn; beside a `from` stands much that is no part of the chat (scores, flags of a web page): it is left."""
    key = "from" if "from" in turn else "role"
    said_by, value = turn.get(key), turn.get("value", turn.get("content"))
    role = _SHAREGPT_ROLES.get(said_by) if isinstance(said_by, str) else None
    if role is None:
        known = ", ".join(_SHAREGPT_ROLES)
        raise DataError(f"{name}: `{key}` is `{said_by}`, which is nobody we know", where, f"one of {known}")
    kept = turn if key == "role" else [part for part in ("name", "tool_calls", *_WISHES) if part in turn]
    rest = {part: turn[part] for part in kept if part not in ("value", "role", "content")}
    if role == _CALLING:
        calls = tool_calls.calls_in_text(value, name, where)
        return _message(rest | {"role": "assistant", "content": None, "tool_calls": calls}, name, where)
    return _message(rest | {"role": role, "content": value}, name, where)
