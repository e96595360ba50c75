"""A model behind an OpenAI-style endpoint (`openai:NAME`) as one that answers test rows.

Lives here: rows as chats, answers kept row by row. Does not live here: the calls (`endpoint.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.encode import reference
from luthier.data.examples import Encoded, Example, content_id
from luthier.data.templates import fill
from luthier.errors import SpecError
from luthier.evaluation.ask import metrics_for as usual_metrics
from luthier.evaluation.ask import prompt_text
from luthier.evaluation.endpoint import Chat, Endpoint, Heard, Reply, ask
from luthier.evaluation.kept import Kept
from luthier.evaluation.metrics import clean
from luthier.evaluation.predictions import Answer, Answerer, Question

PREFIX = "openai:"
_NO_TOKENS = Encoded("", np.zeros(0, np.int32), np.zeros(0, bool))


def model_of(name: str) -> str | None:
    """The model behind an endpoint that `name` means (`openai:NAME`), or None.

    >>> model_of("openai:gpt-4o-mini"), model_of("org/base")
    ('gpt-4o-mini', None)
    """
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) and name != PREFIX else None


def messages(example: Example, template: str | None, labels: Sequence[str] = ()) -> Chat:
    """The chat that asks a row for its last answer: its turns, or its text (through `template`) as the user's words.

    Of a row with a class, where no template says what to do, the classes are named. Raises SpecError for plain text.
    """
    turns = example.messages[:-1] if example.messages and example.messages[-1].role == "assistant" else example.messages
    if example.kind == "chat":
        return [{"role": turn.role, "content": turn.content, **turn.extra} for turn in turns]
    if example.kind == "text":
        raise SpecError("plain text asks nothing, and an endpoint tells no perplexity", example.where)
    said = "".join(turn.content for turn in turns) if turns else example.text or ""
    if template is not None and example.kind != "segments":
        said = fill(template, {"input": said} | example.columns, example.where)
    elif example.label is not None and labels:
        said = f"{said}\n\nAnswer with one of these and nothing else: {', '.join(labels)}"
    return [{"role": "user", "content": said}]


def question(example: Example) -> Question:
    """A row to be asked by its words alone."""
    return Question(example, _NO_TOKENS, prompt_text(example), (clean(reference(example)),))


def metrics_for(task: str, asked: Sequence[Question], labels: Sequence[str]) -> tuple[str, ...]:
    """The task's metrics but those that need likelihoods, which no such endpoint tells."""
    return tuple(name for name in usual_metrics(task, asked, labels) if name not in ("perplexity", "auc"))


def answer(
    endpoint: Endpoint, asked: Sequence[tuple[Question, Chat]], body: Mapping[str, Any], path: Path, heard: Heard
) -> tuple[dict[str, Answer], tuple[str, ...]]:
    """Answers by row id, and notes. Each is kept in `path` as it comes; one that stands there is not asked again.

    A row whose calls all failed has no answer: it is named in the notes, and never counts as a wrong one.
    """
    kept = Kept(path)
    keys = {
        question.example.id: content_id({"model": endpoint.model, "chat": chat, **body}) for question, chat in asked
    }
    todo = [(question.example.id, chat) for question, chat in asked if kept.good(keys[question.example.id]) is None]
    failed: dict[str, str] = {}

    def each(i: int, reply: Reply) -> None:
        row = todo[i][0]
        line = {"key": keys[row], "id": row, "state": reply.state, "text": reply.text, "reason": reply.reason}
        kept.add(line | {"tokens": reply.tokens, "cut": reply.cut})
        if reply.state != "ok":
            failed[row] = reply.reason
        heard(1)

    notes = ask(endpoint, [chat for _, chat in todo], body, each, lambda: heard(0)) if todo else ()
    lines = {row: kept.good(key) for row, key in keys.items()}
    found = {row: Answer(clean(line["text"]), not line["cut"]) for row, line in lines.items() if line is not None}
    spent = [line["tokens"] for line in lines.values() if line is not None]
    count = [sum(each[k] for each in spent) for k in (0, 1)]
    notes = (*notes, f"{endpoint.model}: {count[0]:,} tokens in, {count[1]:,} out")
    if failed:
        first = next(iter(failed.values()))
        said = f"{len(failed):,} rows got no answer and are left out ({first}); the same command asks them again"
        notes = (*notes, said)
    return found, notes


def as_given(found: Mapping[str, Answer]) -> Answerer:
    """An answerer that repeats `found`."""
    return lambda questions: [found[question.example.id] for question in questions]
