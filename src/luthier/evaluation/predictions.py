"""Test rows and what each model answered: `predictions.jsonl`, one line an example, append-only, resumable by id.

Lives here: `Row`, collecting the answers of several models chunk by chunk, reading them back.
Does not live here: how a model answers (`ask.py`), what an answer is worth (`metrics.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.data.examples import Encoded, Example, content_id
from luthier.errors import DataError
from luthier.evaluation.metrics import Metric, Prediction

CHUNK = 256  # rows answered between two writes: what a kill can cost


@dataclass(frozen=True, slots=True)
class Question:
    """A test row ready to be asked: `encoded` with its reference as it would be trained, `prompt` for people."""

    example: Example
    encoded: Encoded
    prompt: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to a question. `nll` (nats) and `tokens` are those of the reference."""

    text: str
    stopped: bool = True
    probabilities: Mapping[str, float] = field(default_factory=dict)
    nll: float | None = None
    tokens: int = 0


Answerer = Callable[[Sequence[Question]], list[Answer]]


@dataclass(frozen=True, slots=True)
class Row:
    """One example with the answers of every side, and what each metric says of them (`values[side][metric]`)."""

    sides: Mapping[str, Prediction]
    values: Mapping[str, Mapping[str, float | None]]


def collect(
    questions: Sequence[Question],
    sides: Mapping[str, Answerer],
    metrics: Sequence[Metric],
    path: Path,
    key: str,
    kept: Collection[str] = (),
) -> list[Row]:
    """Ask every side every question; rows already in `path` under the same `key` are not asked again.

    `key` names who answers and how (adapter, base, settings): a file of another key, other sides or other metrics is
    begun anew. The work may be killed at any moment: what stands of an unfinished chunk is dropped and asked again,
    because a likelihood's last bits depend on the rows that are asked together; so a resumed file equals an unbroken
    one, byte for byte. `kept` names columns that are written down even where they repeat the prompt or a reference.
    """
    key = content_id([key, sorted(sides), [metric.name for metric in metrics]])
    known = _keep(path, key, len(questions))
    todo = [question for question in questions if question.example.id not in known]
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            answers = {side: ask(chunk) for side, ask in sides.items()}
            for i, question in enumerate(chunk):
                row = _row(question, {side: said[i] for side, said in answers.items()}, metrics, kept)
                file.write(_to_line(row, key))
                known[question.example.id] = row
            file.flush()
            os.fsync(file.fileno())
    return [known[question.example.id] for question in questions]


def read(path: Path) -> list[Row]:
    """The rows of a `predictions.jsonl`. Raises DataError naming the line that cannot be read."""
    return [row for row, _ in _lines(path)]


def side(rows: Sequence[Row], name: str) -> list[Prediction]:
    """The answers of one side, in the order of the rows."""
    return [row.sides[name] for row in rows]


def given(question: Question, answer: Answer, kept: Collection[str] = ()) -> Prediction:
    """An answer with the row it was given to, as metrics read it; columns that repeat what is shown only if `kept`."""
    shown = (question.prompt, *question.references)  # cells may be lists, which no set can hold
    columns = {name: cell for name, cell in question.example.columns.items() if name in kept or cell not in shown}
    return Prediction(
        question.example.id,
        question.example.where,
        question.prompt,
        question.references,
        answer.text,
        answer.stopped,
        answer.probabilities,
        answer.nll,
        answer.tokens,
        columns,
    )


def _row(question: Question, answers: Mapping[str, Answer], metrics: Sequence[Metric], kept: Collection[str]) -> Row:
    sides = {name: given(question, answer, kept) for name, answer in answers.items()}
    values = {name: {metric.name: metric.row(prediction) for metric in metrics} for name, prediction in sides.items()}
    return Row(sides, values)


# ------------------------------------------------------------------------------------------------------------ the file


def _keep(path: Path, key: str, wanted: int) -> dict[str, Row]:
    """The rows of an earlier, perhaps killed, collection of the same key; anything else leaves an empty file."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    if len(lines) < wanted:
        del lines[len(lines) // CHUNK * CHUNK :]
    if (size := sum(map(len, lines))) < len(content):
        with path.open("r+b") as file:
            file.truncate(size)
    found = list(_lines(path))
    if any(of != key for _, of in found):
        path.unlink()
        return {}
    return {next(iter(row.sides.values())).id: row for row, _ in found}


def _lines(path: Path) -> Iterator[tuple[Row, str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield _from_line(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                hint = "delete the file and evaluate again"
                raise DataError("not a line of predictions", where=f"{path}:{number}", hint=hint) from error


def _to_line(row: Row, key: str) -> str:
    one = next(iter(row.sides.values()))
    line: dict[str, Any] = {"id": one.id, "where": one.where, "prompt": one.prompt, "references": one.references}
    line |= {"columns": dict(one.columns), "key": key, "sides": {}}
    for name, p in row.sides.items():
        line["sides"][name] = {
            "answer": p.answer,
            "stopped": p.stopped,
            "probabilities": dict(p.probabilities),
            "nll": p.nll,
            "tokens": p.tokens,
            "metrics": dict(row.values[name]),
        }
    return json.dumps(line, ensure_ascii=False, default=str) + "\n"


def _from_line(line: dict[str, Any]) -> tuple[Row, str]:
    sides, values = {}, {}
    for name, said in line["sides"].items():
        values[name] = said.pop("metrics")
        sides[name] = Prediction(
            line["id"],
            line["where"],
            line["prompt"],
            tuple(line["references"]),
            columns=line["columns"],
            **said,
        )
    return Row(sides, values), line["key"]
