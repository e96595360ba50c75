"""What the base is pre-trained on: schemas, SQL and English about them, never a question together with its SQL.

A document is a list of segments, each with a flag: is it learned, or only read?
"""

from __future__ import annotations

import random

from luthier.demo.phrases import ask, spoken
from luthier.demo.queries import Query, Table, sample_query, sample_tables
from luthier.demo.words import PRETRAINING_THEMES

Document = list[tuple[str, bool]]

KINDS = {"queries": 14, "noted": 28, "described": 5, "questions": 6, "reworded": 40, "lists": 7}
AGAIN = ("Again: ", "In other words: ", "That is: ", "Put differently: ", "Question: ", "")
NOTES = ("uses the {names}", "about {names}", "needs {names}", "on {names}", "with the {names}")
# An answer to a prompt begins with a space, so the queries of pre-training mostly do, too. `SQL:` is never used.
BULLETS = ("-", "*", ">", "Query:")


def document(rng: random.Random, kind: str | None = None) -> Document:
    """One document: a kind by its share in KINDS, and 20, 60 or 100 % invented words."""
    kind = kind or rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    tables = sample_tables(rng, PRETRAINING_THEMES, rng.choice((0.2, 0.6, 1.0)))
    # Tables are read, not learned: their words come by chance.
    head = [("\n".join(table.create() for table in tables), False)]
    if kind == "queries":
        return head + [part for _ in range(rng.randint(3, 5)) for part in _query(rng, sample_query(rng, tables))]
    if kind == "noted":
        return head + _noted(rng, tables)
    if kind == "described":
        return head + _described(rng, tables)
    if kind == "questions":
        return head + [("\n" + _question(rng, tables), True) for _ in range(rng.randint(2, 4))]
    if kind == "reworded":
        return (head if rng.random() < 0.5 else []) + _reworded(rng, tables)
    return _lists(rng, tables)


def text_of(document: Document) -> str:
    """The document as it would stand in a file."""
    return "".join(text for text, _ in document).lstrip("\n")


def _query(rng: random.Random, query: Query) -> Document:
    return [("\n" + rng.choice(BULLETS), False), (" " + query.sql(), True)]


def _noted(rng: random.Random, tables: tuple[Table, ...]) -> Document:
    """Queries, each after a note that names its tables, columns and values in random order, and nothing else."""
    segments: Document = []
    for _ in range(rng.randint(3, 5)):
        query = sample_query(rng, tables)
        names = [spoken(name) for name in query.names()]
        rng.shuffle(names)
        listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
        segments += [("\n-- " + rng.choice(NOTES).format(names=listed), True), *_query(rng, query)]
    return segments


def _described(rng: random.Random, tables: tuple[Table, ...]) -> Document:
    segments: Document = []
    for table in tables:
        for column, kind in table.columns:
            thing = "number" if kind == "INTEGER" else "text"
            segments.append((f"\n{column}: the {spoken(column)} of {spoken(table.name)}, a {thing}", True))
    rng.shuffle(segments)
    return segments


def _question(rng: random.Random, tables: tuple[Table, ...]) -> str:
    return rng.choice(("Question: ", "")) + ask(rng, sample_query(rng, tables), "all")


def _reworded(rng: random.Random, tables: tuple[Table, ...]) -> Document:
    """Questions, each with other wordings and at last the plainest: so `beyond 30` comes to mean what `above 30` means.

    The plainest wording is one for each question, so it teaches more than wordings that come by chance.
    """
    segments: Document = []
    for _ in range(rng.randint(1, 3)):
        query = sample_query(rng, tables)
        segments.append(("\nQuestion: " + ask(rng, query, "all"), True))
        if rng.random() < 0.5:
            segments.append((f"\n{rng.choice(AGAIN)}{ask(rng, query, 'all')}", True))
        segments.append(("\nPlainly: " + ask(rng, query, "plain"), True))
    return segments


def _lists(rng: random.Random, tables: tuple[Table, ...]) -> Document:
    """The same names again and again, bare, spoken and quoted: the quickest way to learn to copy."""
    names: list[str] = []
    for table in tables:
        names += [table.name, *(name for name, _ in table.columns), *table.values]
    names = rng.sample(names, min(len(names), rng.randint(3, 7)))
    forms: tuple[str, ...] = (
        ", ".join(names),
        ", ".join(spoken(n) for n in names),
        ", ".join(f"'{n}'" for n in names),
        "(" + ", ".join(names) + ")",
        " and ".join(spoken(n) for n in names),
    )
    if rng.random() < 0.5:
        forms = (rng.choice(forms),)
    return [("\n" + rng.choice(forms), index > 0) for index in range(rng.randint(3, 5))]
