"""A made-up evaluation for the tests of reports: an answerer is a function, so no model is needed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from luthier.data.examples import Encoded, Example
from luthier.evaluation import curves, report
from luthier.evaluation.metrics import by_name
from luthier.evaluation.predictions import Answer, Answerer, Question, Row, collect

TABLES = ("singer", "학생", "orders", "<b>stadium</b>")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><a href='http://evil.example'>x</a>{{ 7*7 }}"
NOTHING = Encoded("", np.zeros(0, np.int32), np.zeros(0, bool))


def question(number: int, prompt: str, reference: str) -> Question:
    example = Example(f"{number:016x}", "pair", columns={"k": number}, file="rows.jsonl", line=number + 1)
    return Question(example, NOTHING, prompt, (reference,))


def sql_questions(n: int) -> list[Question]:
    draw = random.Random(1)
    found = []
    for i in range(n):
        table, age = draw.choice(TABLES), draw.randint(10, 90)
        found.append(
            question(i, f"{table}(name, age)\nWho is older than {age}?", f"SELECT name FROM {table} WHERE age > {age}")
        )
    return found


def right_with(chance: float, seed: int) -> Answerer:
    """Answers the reference so often, otherwise something near it; what it says depends on the question alone."""

    def ask(questions: Sequence[Question]) -> list[Answer]:
        return [one(q) for q in questions]

    def one(q: Question) -> Answer:
        draw = random.Random(f"{seed} {q.example.id}")
        text = q.references[0] if draw.random() < chance else q.references[0].replace(">", draw.choice(["<", ">="]))
        return Answer(text + " ", nll=2.0 + draw.random() - 1.5 * chance, tokens=8)

    return ask


def classified(names: Sequence[str], chance: float, seed: int) -> Answerer:
    def ask(questions: Sequence[Question]) -> list[Answer]:
        found = []
        for q in questions:
            draw = random.Random(f"{seed} {q.example.id}")
            said = q.references[0] if draw.random() < chance else draw.choice(names)
            found.append(
                Answer(said, probabilities={name: 0.7 if name == said else 0.3 / len(names) for name in names})
            )
        return found

    return ask


def curve(steps: int = 600, turn: int | None = 300) -> curves.Curve:
    draw = random.Random(0)
    training = [(s, 0.25 + 3 * math.exp(-s / 60) + draw.gauss(0, 0.05) - s * 1e-4) for s in range(1, steps + 1)]
    validation = [
        (s, 0.33 + 2.5 * math.exp(-s / 60) + (2e-4 * max(0, s - turn) if turn else 0.0))
        for s in range(50, steps + 1, 50)
    ]
    return curves.Curve(tuple(training), tuple(validation))


def subject(**more: object) -> report.Subject:
    facts = {
        "run": "2026-01-05-sql-1f2e",
        "name": "ko-sql-lora-r16",
        "model": "luthier/demo",
        "method": "LoRA rank 16",
        "dataset": "text-to-sql",
        "task": "generation",
    }
    return report.Subject(**(facts | more))  # type: ignore[arg-type]


SETTINGS = [
    ("model", "luthier/demo", "you"),
    ("method.rank", 16, "you"),
    ("method.alpha", 32.0, "default: PEFT's documentation"),
    ("method.target_modules", ["all-linear"], "preset granite-3-1-8b-base"),
    ("training.learning_rate", 0.0002, "default: LoRA Without Regret, 2025"),
]


def answered(
    path: Path, questions: Sequence[Question], sides: dict[str, Answerer], names: Sequence[str | Callable[..., object]]
) -> list[Row]:
    return collect(questions, sides, by_name(names), path, key="k")
