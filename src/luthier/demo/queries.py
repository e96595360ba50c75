"""Tables, queries and the rows that let a query be executed: sampled from a seed, rendered as SQL. No English."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from luthier.demo.words import Theme, invent

SHAPES = {"list": 24, "all": 6, "count": 14, "aggregate": 14, "group": 11, "order": 12, "top": 12, "distinct": 7}
CONDITIONED = {
    "list": 0.85,
    "all": 0.8,
    "count": 0.8,
    "aggregate": 0.6,
    "group": 0,
    "order": 0.3,
    "top": 0,
    "distinct": 0.6,
}
OPERATORS = {"=": 2, ">": 2, "<": 2, ">=": 3, "<=": 3, "!=": 2, "BETWEEN": 2}  # what is mistaken most comes more often
DOCUMENT_DIRECTIONS = ("ASC", "ASC", "ASC", "DESC", "DESC")  # as the base in this package was pre-trained
FUNCTIONS = ("AVG", "SUM", "MAX", "MIN")


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its text and number columns in order, and the values its text columns may hold."""

    name: str
    columns: tuple[tuple[str, str], ...]  # (name, "TEXT" | "INTEGER"), the keys included
    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    values: tuple[str, ...]

    def create(self) -> str:
        """The statement that makes the table; it is the line a model reads."""
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns)
        return f"CREATE TABLE {self.name} ({columns});"


@dataclass(frozen=True, slots=True)
class Condition:
    """`column operator operands`; BETWEEN has two operands, every other operator one."""

    column: str
    operator: str
    operands: tuple[str | int, ...]

    def sql(self, prefix: str = "") -> str:
        """The condition as SQL, the column qualified by `prefix` (`crops.`) in a join."""
        operands = " AND ".join(f"'{o}'" if isinstance(o, str) else str(o) for o in self.operands)
        return f"{prefix}{self.column} {self.operator} {operands}"


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked, free of wording. `other` is the second table of a join; the conditions are then on it."""

    shape: str
    table: Table
    select: tuple[str, ...] = ()
    function: str = ""
    number: str = ""
    by: str = ""
    direction: str = ""
    limit: int = 0
    conditions: tuple[Condition, ...] = ()
    glue: str = ""
    other: Table | None = None

    def names(self) -> list[str | int]:
        """The table, columns and values the query mentions, without what it does with them."""
        names: list[str | int] = [*self.select, self.number, self.by, self.limit]
        for condition in self.conditions:
            names += [condition.column, *condition.operands]
        tables = [self.table.name] + ([self.other.name] if self.other else [])
        return list(dict.fromkeys(name for name in tables + names if name))

    def sql(self) -> str:
        """The one query that answers the question: one spelling for each meaning, so that exact match is fair."""
        prefix = f"{self.table.name}." if self.other else ""
        parts = [f"SELECT {self._selected(prefix)} FROM {self.table.name}"]
        if self.other:
            other = self.other.name
            parts.append(f"JOIN {other} ON {self.table.name}.{other}_id = {other}.id")
        if self.conditions:
            owner = f"{self.other.name}." if self.other else ""
            parts.append("WHERE " + f" {self.glue} ".join(c.sql(owner) for c in self.conditions))
        if self.shape == "group":
            parts.append(f"GROUP BY {self.by}")
        if self.direction:
            parts.append(f"ORDER BY {self.number} {self.direction}")
        if self.limit:
            parts.append(f"LIMIT {self.limit}")
        return " ".join(parts)

    def _selected(self, prefix: str) -> str:
        columns = ", ".join(prefix + column for column in self.select)
        computed = "COUNT(*)" if self.function == "COUNT" else f"{self.function}({prefix}{self.number})"
        if self.shape == "all":
            return "*"
        if self.shape == "group":
            return f"{self.by}, {computed}"
        if self.shape in ("count", "aggregate"):
            return computed
        return f"DISTINCT {columns}" if self.shape == "distinct" else columns


def sample_tables(rng: random.Random, themes: tuple[Theme, ...], invented: float) -> tuple[Table, ...]:
    """One table, or (1 of 4) two of which the first points to the second by `<second>_id`.

    invented: the share of names and values that are invented words instead of the theme's.
    """
    theme = rng.choice(themes)
    taken: set[str] = set()
    if rng.random() < 0.75:
        return (_sample_table(rng, theme, invented, taken, keys=()),)
    second = _sample_table(rng, theme, invented, taken, keys=("id",))
    first = _sample_table(rng, theme, invented, taken, keys=(f"{second.name}_id",))
    return (first, second)


def _sample_table(rng: random.Random, theme: Theme, invented: float, taken: set[str], keys: tuple[str, ...]) -> Table:
    def names(pool: tuple[str, ...], count: int) -> tuple[str, ...]:
        chosen: list[str] = []
        while len(chosen) < count:
            name = _invent_name(rng) if rng.random() < invented else rng.choice(pool)
            if name not in taken:
                taken.add(name)
                chosen.append(name)
        return tuple(chosen)

    (name,) = names(theme.tables, 1)
    texts = names(theme.texts, rng.choice((1, 2)))
    if rng.random() < 0.25 and "name" not in taken:
        taken.add("name")
        texts = ("name", *texts)
    numbers = names(theme.numbers, rng.choice((1, 2)))
    columns = [(text, "TEXT") for text in texts] + [(number, "INTEGER") for number in numbers]
    rng.shuffle(columns)
    return Table(
        name=name,
        columns=tuple((key, "INTEGER") for key in keys) + tuple(columns),
        texts=texts,
        numbers=numbers,
        values=tuple(_sample_value(rng, theme, invented) for _ in range(4)),
    )


def _invent_name(rng: random.Random) -> str:
    return f"{invent(rng)}_{invent(rng)}" if rng.random() < 0.15 else invent(rng)


def _sample_value(rng: random.Random, theme: Theme, invented: float) -> str:
    word = invent(rng) if rng.random() < invented else rng.choice(theme.values)
    kind = rng.random()
    if kind < 0.25:
        return word.capitalize()
    if kind < 0.4:
        return f"{word} {invent(rng) if rng.random() < invented else rng.choice(theme.values)}"
    return word


def sample_query(
    rng: random.Random,
    tables: tuple[Table, ...],
    shapes: Mapping[str, int] = SHAPES,
    directions: tuple[str, ...] = DOCUMENT_DIRECTIONS,
) -> Query:
    """A query on one of the tables, or a join of both (4 of 10 where there are two)."""
    if len(tables) == 2 and rng.random() < 0.4:
        return _sample_join(rng, *tables)
    table = rng.choice(tables)
    shape = rng.choices(tuple(shapes), tuple(shapes.values()))[0]
    conditions, glue = _sample_conditions(rng, table) if rng.random() < CONDITIONED[shape] else ((), "")
    used = {condition.column for condition in conditions}
    query = Query(shape, table, conditions=conditions, glue=glue)
    number, text = rng.choice(table.numbers), rng.choice(table.texts)
    if shape == "count":
        query = replace(query, function="COUNT")
    elif shape == "aggregate":
        query = replace(query, function=rng.choice(FUNCTIONS), number=number)
    elif shape == "group":
        function = rng.choice(("COUNT", *FUNCTIONS))
        query = replace(query, function=function, number=number if function != "COUNT" else "", by=text)
    elif shape == "distinct":
        query = replace(query, select=(text,))
    elif shape == "list":
        query = replace(query, select=_sample_select(rng, table, used))
    elif shape in ("order", "top"):
        query = replace(query, select=_sample_select(rng, table, {number}), number=number)
        query = replace(query, direction=rng.choice(directions))
        query = replace(query, limit=rng.randint(1, 9) if shape == "top" else 0)
    return query


def _sample_join(rng: random.Random, table: Table, other: Table) -> Query:
    conditions = (_sample_condition(rng, other, rng.choice(other.texts + other.numbers)),)
    if rng.random() < 0.3:
        return Query("count", table, function="COUNT", conditions=conditions, other=other)
    select = (rng.choice(table.texts + table.numbers),)
    return Query("list", table, select=select, conditions=conditions, other=other)


def _sample_select(rng: random.Random, table: Table, used: set[str]) -> tuple[str, ...]:
    free = [column for column in table.texts + table.numbers if column not in used] or list(table.texts)
    return tuple(rng.sample(free, min(len(free), rng.choice((1, 1, 2)))))


def _sample_conditions(rng: random.Random, table: Table) -> tuple[tuple[Condition, ...], str]:
    columns = table.texts + table.numbers
    if len(columns) > 2 and rng.random() < 0.25:
        chosen = rng.sample(columns, 2)
        return tuple(_sample_condition(rng, table, column) for column in chosen), rng.choice(("AND", "OR"))
    # Comparisons of numbers have seven operators, those of text two: numbers are asked more often.
    column = rng.choice(table.numbers if rng.random() < 0.65 else table.texts)
    return (_sample_condition(rng, table, column),), ""


def _sample_condition(rng: random.Random, table: Table, column: str) -> Condition:
    if column in table.texts:
        return Condition(column, "=" if rng.random() < 0.75 else "!=", (rng.choice(table.values),))
    operator = rng.choices(tuple(OPERATORS), tuple(OPERATORS.values()))[0]
    low = rng.randint(2, 10 ** rng.choice((1, 2, 2, 3, 4)))
    operands = (low, low + rng.randint(2, low + 9)) if operator == "BETWEEN" else (low,)
    return Condition(column, operator, operands)
