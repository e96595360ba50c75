"""Chats as people write them (OpenAI, ShareGPT, pairs of strings) → messages.

Lives here: the checks of every turn; an error names the turn. Does not live here: which column holds the chat
(`formats.py`), how a chat becomes text (`templates.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import EmptyAnswer, Message
from luthier.data.strict_json import decode
from luthier.errors import DataError, did_you_mean

ROLES = ("system", "developer", "user", "assistant", "tool")
DROP_EMPTY = "fill it, or add `empty` to data.clean, which drops such rows"
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "function_call": "function_call",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}


def from_openai(value: Any, where: str, column: str = "messages") -> tuple[Message, ...]:
    """Messages of OpenAI's chat form: role, content (text or text parts), tool_calls, `weight` or `loss` of a turn."""
    if isinstance(value, str) and column == "prompt":
        return (Message("user", value),)
    if isinstance(value, str) and column == "completion":
        return (Message("assistant", value),)
    _require_list(value, column, where)
    return tuple(_message(turn, f"{column}[{i}]", where) for i, turn in enumerate(value))


def from_sharegpt(value: Any, system: Any, where: str) -> tuple[Message, ...]:
    """Messages of ShareGPT's form: `from` and `value` (also role and content, and ms-swift's human/assistant pairs)."""
    _require_list(value, "conversations", where)
    messages = [Message("system", system)] if isinstance(system, str) and system.strip() else []
    for i, turn in enumerate(value):
        name = f"conversations[{i}]"
        if not isinstance(turn, Mapping):
            raise DataError(f"{name} must be an object, not {type(turn).__name__}", where)
        if "role" in turn:
            messages.append(_message(turn, name, where))
        elif "human" in turn and "assistant" in turn:
            messages.append(_message({"role": "user", "content": turn["human"]}, name, where))
            messages.append(_message({"role": "assistant", "content": turn["assistant"]}, name, where))
        else:
            messages.append(_sharegpt_turn(turn, name, where))
    return tuple(messages)


def from_pairs(system: Any, history: Any, where: str) -> tuple[Message, ...]:
    """Alpaca's `system` text and `history` of [question, answer] pairs."""
    messages = [Message("system", system)] if isinstance(system, str) and system.strip() else []
    for i, pair in enumerate(history or []):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(said, str) for said in pair)):
            raise DataError(f"history[{i}] must be a pair of texts, [question, answer]", where)
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return tuple(messages)


def tools(value: Any, where: str) -> list[dict[str, Any]] | None:
    """The row's tool descriptions: a list of objects, or JSON text of one; None when there are none."""
    if isinstance(value, str) and value.strip():
        value = _json(value, "`tools`", where)
    if not value:
        return None
    if not (isinstance(value, list) and all(isinstance(tool, dict) for tool in value)):
        raise DataError("`tools` must be a list of objects", where)
    return value


def require_answer(messages: tuple[Message, ...], where: str) -> None:
    """At least one assistant turn says something and may be learned; no assistant turn is blank."""
    if not any(m.role == "assistant" for m in messages):
        raise EmptyAnswer("no assistant turn: there is nothing to learn", where)
    for i, message in enumerate(messages):
        if message.role == "assistant" and not message.content.strip() and "tool_calls" not in message.extra:
            raise EmptyAnswer(f"message {i + 1}: the assistant says nothing", where, DROP_EMPTY)
    if all(m.train is False for m in messages if m.role == "assistant"):
        raise DataError("every assistant turn is excluded from training (weight 0)", where)


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
    role = turn.get("role")
    if role not in ROLES:
        hint = (did_you_mean(role, ROLES) if isinstance(role, str) else None) or f"one of {', '.join(ROLES)}"
        raise DataError(f"{name}: `{role}` is not a role", where, hint)
    known = {"role", "content", "weight", "loss", "train"}
    extra = {key: value for key, value in turn.items() if key not in known and value is not None}
    if "tool_calls" in extra:
        extra["tool_calls"] = _tool_calls(extra["tool_calls"], name, where)
    content = _content(turn.get("content"), name, where, optional="tool_calls" in extra)
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
    for key in ("weight", "loss", "train"):
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


def _tool_calls(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    """Calls with their arguments as objects, which chat templates expect; OpenAI writes them as JSON text."""
    if not (isinstance(value, list) and value and all(isinstance(call, Mapping) for call in value)):
        raise DataError(f"{name}: `tool_calls` must be a list of objects", where)
    calls = []
    for call in value:
        function = call.get("function")
        if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
            raise DataError(f"{name}: a tool call needs `function` with a name", where)
        calls.append(
            {**call, "function": {**function, "arguments": _arguments(function.get("arguments"), name, where)}}
        )
    return calls


def _arguments(value: Any, name: str, where: str) -> Any:
    if not isinstance(value, str):
        return value if value is not None else {}
    return _json(value or "{}", f"{name}: the arguments of a tool call", where)


def _json(text: str, what: str, where: str) -> Any:
    try:
        value, end = decode(text.strip(), 0, where)
    except DataError as error:
        raise DataError(f"{what}: {error.message}", where) from None
    if end != len(text.strip()):
        raise DataError(f"{what}: more than one JSON value", where)
    return value


def _sharegpt_turn(turn: Mapping[str, Any], name: str, where: str) -> Message:
    said_by = turn.get("from")
    role = _SHAREGPT_ROLES.get(said_by) if isinstance(said_by, str) else None
    if role is None:
        known = ", ".join(_SHAREGPT_ROLES)
        raise DataError(f"{name}: `from` is `{said_by}`, which is nobody we know", where, f"one of {known}")
    rest = {key: turn[key] for key in ("weight", "loss", "train") if key in turn}
    value = turn.get("value")
    if role != "function_call":
        return _message({"role": role, "content": value} | rest, name, where)
    call = _arguments(value, name, where)
    call = {"function": call} if isinstance(call, Mapping) else call
    return _message({"role": "assistant", "content": None, "tool_calls": [call]} | rest, name, where)
