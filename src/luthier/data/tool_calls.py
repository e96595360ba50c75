"""Tools and their calls as people write them (OpenAI now and of old, LLaMA-Factory, ms-swift) → one form.

Lives here: descriptions of tools, calls, their arguments. Does not live here: the turns they stand in (`turns.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Message
from luthier.data.strict_json import decode
from luthier.errors import DataError


def tools(value: Any, functions: Any, where: str) -> list[dict[str, Any]] | None:
    """The row's tool descriptions as chat templates take them; None when there are none.

    `value` is the column `tools`, `functions` OpenAI's column of old: a list of objects, or JSON text of one. A bare
    function (a name, no `type`) is put into `{"type": "function", "function": …}`.
    """
    for name, given in (("tools", value), ("functions", functions)):
        if isinstance(given, str) and given.strip():
            given = _json(given, f"`{name}`", where)
        if not given:
            continue
        if not (isinstance(given, list) and all(isinstance(tool, dict) for tool in given)):
            raise DataError(f"`{name}` must be a list of objects", where)
        return [{"type": "function", "function": tool} if _bare(tool) else tool for tool in given]
    return None


def _bare(tool: Mapping[str, Any]) -> bool:
    return isinstance(tool.get("name"), str) and "function" not in tool


def calls_of(turn: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]] | None:
    """The calls a turn makes, arguments as objects: `tool_calls`, or OpenAI's `function_call` of old. None: none."""
    now, old = turn.get("tool_calls"), turn.get("function_call")
    if now is not None and old is not None:
        raise DataError(f"{name}: has both `tool_calls` and `function_call`", where, "keep `tool_calls`")
    if old is not None:
        return [_call({"type": "function", "function": old}, name, where)]
    if now is None:
        return None
    if not (isinstance(now, list) and now and all(isinstance(call, Mapping) for call in now)):
        raise DataError(f"{name}: `tool_calls` must be a list of objects", where)
    return [_call(call, name, where) for call in now]


def calls_in_text(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    """The calls that a ShareGPT turn holds as JSON: one object with name and arguments, or a list of them."""
    found = _json(value, f"{name}: the call", where) if isinstance(value, str) else value
    found = found if isinstance(found, list) else [found]
    if not (found and all(isinstance(call, Mapping) for call in found)):
        raise DataError(f"{name}: a call is an object with `name` and `arguments`, or a list of them", where)
    return [_call(call if "function" in call else {"function": call}, name, where) for call in found]


def require_one_by_one(parallel: Any, messages: tuple[Message, ...], where: str) -> None:
    """OpenAI's `parallel_tool_calls`: a wish for generation, but where it is false no turn may make two calls."""
    if parallel is not None and not isinstance(parallel, bool):
        raise DataError("`parallel_tool_calls` must be true or false", where)
    for i, message in enumerate(messages):
        calls = len(message.extra.get("tool_calls", ()))
        if parallel is False and calls > 1:
            message_ = f"`parallel_tool_calls` is false, but message {i + 1} makes {calls} calls at once"
            raise DataError(message_, where, "split the turn, or take `parallel_tool_calls` out")


def _call(call: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    function = call.get("function")
    if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
        raise DataError(f"{name}: a tool call needs `function` with a name", where)
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # chat templates want the object, OpenAI writes it as JSON text
        arguments = _json(arguments or "{}", f"{name}: the arguments of a tool call", where)
    return {**call, "function": {**function, "arguments": {} if arguments is None else arguments}}


def _json(text: str, what: str, where: str) -> Any:
    try:
        value, end = decode(text.strip(), 0, where)
    except DataError as error:
        raise DataError(f"{what}: {error.message}", where) from None
    if end != len(text.strip()):
        raise DataError(f"{what}: more than one JSON value", where)
    return value
