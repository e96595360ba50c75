"""Rows for the tables of a query, so that executing it shows whether it is right. Writes SQL, executes none."""

from __future__ import annotations

import random

from luthier.demo.queries import Condition, Query, Table

ROWS = 12


def setup(rng: random.Random, query: Query, tables: tuple[Table, ...]) -> str:
    """A CREATE TABLE and an INSERT statement for each table.

    The first two rows fulfil every condition, so that the right query finds something; the others lie on, above and
    below each bound in turn, so that `>` and `>=` differ.
    """
    inserts = []
    for table in tables:
        lines = []
        for index in range(ROWS):
            cells = [_cell(rng, query, table, column, kind, index) for column, kind in table.columns]
            lines.append("(" + ", ".join(f"'{cell}'" if isinstance(cell, str) else str(cell) for cell in cells) + ")")
        inserts.append(f"INSERT INTO {table.name} VALUES {', '.join(lines)};")
    return "\n".join([table.create() for table in tables] + inserts)


def _cell(rng: random.Random, query: Query, table: Table, column: str, kind: str, index: int) -> str | int:
    if column == "id":
        return index + 1
    if column.endswith("_id") and column not in table.numbers:
        # Two children of the parents that fulfil the condition; the rest by chance.
        return index + 1 if index < 2 else rng.randint(1, ROWS)
    owner = query.other or query.table
    for place, condition in enumerate(query.conditions):
        if condition.column == column and table is owner:
            # Two conditions take their turns at different paces, so that each meets every case of the other.
            turn = index if place == 0 else index // 3
            return _fulfilling(rng, condition, table) if index < 2 else _nearby(rng, condition, table, turn)
    return rng.choice(table.values) if kind == "TEXT" else rng.randint(1, 999)


def _fulfilling(rng: random.Random, condition: Condition, table: Table) -> str | int:
    operand, operator = condition.operands[0], condition.operator
    if isinstance(operand, str):
        others = [value for value in table.values if value != operand] or ["none"]
        return operand if operator == "=" else rng.choice(others)
    step = rng.randint(1, 5)
    if operator == "BETWEEN":
        return rng.randint(operand, int(condition.operands[1]))
    return operand + {"=": 0, ">": step, ">=": step, "<": -step, "<=": -step, "!=": step}[operator]


def _nearby(rng: random.Random, condition: Condition, table: Table, turn: int) -> str | int:
    operand = rng.choice(condition.operands)
    if isinstance(operand, str):
        return operand if turn % 3 == 0 else rng.choice(table.values)
    return operand + (0, 1, -1)[turn % 3] * rng.randint(1, 9)
