"""Text from columns and from chats: the one place where templates are rendered.

Lives here: `{column}` placeholders, default prompts, the model's chat template (in transformers' sandboxed Jinja
environment) and where each assistant turn stands in the rendered text. Does not live here: tokens (`encode.py`).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jinja2

from luthier.data.examples import Message
from luthier.errors import DataError, did_you_mean

_PLACEHOLDER = re.compile(r"\{\{\s*([^\W\d]\w*)\s*\}\}|\{([^\W\d]\w*)\}")
_MARK = "Zq7luthierMark7qZ"  # stands for an answer where its place in a rendered chat is looked for

Span = tuple[int, int]
"""Start and end of a stretch of text, in characters."""


@functools.lru_cache(maxsize=256)
def placeholders(template: str | None) -> tuple[str, ...]:
    """The columns a template names, each once, in order.

    >>> placeholders("Classify {good,bad}. {context} Input: {{input}} Output:")
    ('context', 'input')
    """
    found = [match[1] or match[2] for match in _PLACEHOLDER.finditer(template or "")]
    return tuple(dict.fromkeys(found))


def fill(template: str, columns: Mapping[str, Any], where: str) -> str:
    """`template` with `{column}` or `{{column}}` replaced by the row's values; all other braces stay.

    Raises DataError for a column the row does not have or has no value for.

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
        return as_text(columns[name])

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


def render_chat(
    tokenizer: Any, messages: Sequence[Message], tools: Any = None, *, open_turn: bool = False, where: str = ""
) -> str:
    """`messages` through the tokenizer's own chat template; `open_turn` adds the beginning of an assistant turn.

    Raises DataError when the template refuses the chat (many refuse a system message or two user turns in a row).
    """
    turns = [{"role": m.role, "content": m.content} | m.extra for m in messages]
    try:
        return tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=open_turn)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "change the chat, or set `model.chat_template`"
        raise DataError(f"the model's chat template refuses this chat: {reason}", where, hint) from None


def chat_spans(
    tokenizer: Any, messages: Sequence[Message], tools: Any, wanted: Collection[int], where: str
) -> tuple[str, dict[int, Span]]:
    """The rendered chat, and for each message index in `wanted` the span that the model has to produce there.

    A turn's span begins where the prompt of that turn ends: the render of all messages before it with an open
    assistant turn must be a beginning of the whole (then what is trained is what serving asks for), and ends with the
    render that includes it, its end-of-turn text included. Templates that rewrite earlier turns once they are history
    (thinking removed) break this for all but the last turn; there the span is the answer's text alone, found by
    rendering with a mark in its place. Raises DataError where neither holds.
    """
    whole = render_chat(tokenizer, messages, tools, where=where)
    spans = {}
    for index in sorted(wanted):
        opened = render_chat(tokenizer, messages[:index], tools, open_turn=True, where=where)
        last = index == len(messages) - 1
        closed = whole if last else render_chat(tokenizer, messages[: index + 1], tools, where=where)
        if closed.startswith(opened) and whole.startswith(closed):
            spans[index] = (len(opened), len(closed))
        elif last:
            raise DataError(
                "the chat template begins an assistant turn otherwise in training than in generation",
                where,
                f"it would be prompted with {opened[-40:]!r}; set `model.chat_template` to one that agrees with itself",
            )
        else:
            found = _span_by_mark(tokenizer, messages, tools, index, whole)
            if found is None:
                raise DataError(
                    f"the chat template rewrites message {index + 1} so that its answer cannot be found again",
                    where,
                    "train on the last turn only: data.train_on: last",
                )
            spans[index] = found
    return whole, spans


def _span_by_mark(tokenizer: Any, messages: Sequence[Message], tools: Any, index: int, whole: str) -> Span | None:
    """Where the content of message `index` stands in `whole`; None when it cannot be told."""
    told = messages[index]
    marked = [*messages[:index], Message(told.role, _MARK, told.train, told.extra), *messages[index + 1 :]]
    left, mark, right = render_chat(tokenizer, marked, tools).partition(_MARK)
    end = len(whole) - len(right)
    fits = whole.startswith(left) and whole.endswith(right) and len(left) < end and _MARK not in right
    return (len(left), end) if mark and fits and whole[len(left) : end].strip() in told.content else None
