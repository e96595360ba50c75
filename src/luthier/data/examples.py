"""What a row becomes: an Example with an identity by content, and its Encoded form in tokens.

Lives here: the types that travel through `data/`.
Does not live here: reading (`sources.py`), recognising (`formats.py`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from luthier.errors import DataError

Kind = Literal["chat", "pair", "text", "label", "segments"]


class EmptyAnswer(DataError):
    """A row with nothing to learn: its answer is missing, null or blank. Refused, or dropped on request."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `train` overrides what `train_on` says of this turn (None: no opinion)."""

    role: str
    content: str
    train: bool | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # tool_calls, name, … : handed to the chat template as they are


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled row, before any model is known.

    kind "chat": `messages` as they came. kind "segments": `messages` are texts to be joined as they stand, trained
    where the assistant has them. kind "pair": one user and one assistant message; `columns` holds every
    column of the row for the template. kind "text": `text`, all of it trained. kind "label": `text` and `label`.
    `label` is the class name; in a classification every kind has it.
    `exact`: prompt and answer of a pair are concatenated as they came, without template or space.
    `left`: what the row says behind the last answer, which teaches nothing; told in preparation, kept nowhere.
    `id` is the hash of the content alone: the same words are the same example wherever they stand.
    """

    id: str
    kind: Kind
    messages: tuple[Message, ...] = ()
    text: str | None = None
    label: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    file: str = ""
    line: int = 0
    exact: bool = False
    left: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """`file:line`, as every message to a person names a row."""
        return f"{self.file}:{self.line}"


def answer_text(example: Example) -> str:
    """What is learned, as it came: a label row's class name, else what the assistant says last; "" for plain text."""
    if example.kind == "label":
        return example.label or ""
    return next((m.content for m in reversed(example.messages) if m.role == "assistant"), "")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of one example, and for each whether it is trained (predicted and counted in the loss).

    `ids_L` int32 and `train_L` bool have the same length, always. For seq2seq the source comes first and the target
    is the trained tail. For an encoder nothing is trained token by token: `label` is the class index (else -1).
    `cut` says that the length policy removed tokens. `spelled`: the first token of a special token's text that stands
    in the words of its user, tool or system and was read as plain text; -1: there is none.
    """

    example_id: str
    ids_L: np.ndarray
    train_L: np.ndarray
    label: int = -1
    cut: bool = False
    spelled: int = -1

    @property
    def prompt_length(self) -> int:
        """Index of the first trained token (= length if none is): where generation starts."""
        trained = np.flatnonzero(self.train_L)
        return int(trained[0]) if len(trained) else len(self.ids_L)


def content_id(content: Any) -> str:
    """A 16-hex-digit name for JSON-like content; equal content has equal names on every machine."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
