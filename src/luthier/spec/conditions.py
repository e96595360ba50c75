"""A condition on a row, such as `len(input) > 200 and lang == "ko"`: read from text, and asked of a row's columns.

Lives here: a small language, a part of Python's own: columns, constants, comparisons, `and`, `or`, `not`, `in`, `len`,
`lower`. The text is parsed and walked, never executed. Does not live here: what conditions are for.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

LONGEST = 1000  # letters of a condition: deep nesting needs many
WORDS = "names of columns, constants, comparisons, and, or, not, in, len(…), lower(…)"

_COMPARED: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_EQUAL = (ast.Eq, ast.NotEq)
_AMONG = (ast.In, ast.NotIn)


def read(text: str) -> ast.expr:
    """The condition that `text` describes. Raises ValueError with what is wrong with it, and what may stand in one.

    >>> sorted(names(read('len(input) > 200 and lang == "ko"')))
    ['input', 'lang']
    >>> read("__import__('os')")
    Traceback (most recent call last):
    ValueError: `__import__('os')` calls what cannot be called: len(…) and lower(…) of one thing can
    """
    if len(text) > LONGEST:
        raise ValueError(f"`{text[:40]}…` is longer than {LONGEST:,} letters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on style is not for users of a YAML file
            tree = ast.parse(text.strip(), mode="eval").body
        _check(tree)
    except (SyntaxError, MemoryError, RecursionError) as error:
        said = error.msg if isinstance(error, SyntaxError) else "nested too deeply"
        raise ValueError(f"`{text}` is not a condition ({said}); it is made of {WORDS}") from None
    return tree


def names(tree: ast.expr) -> set[str]:
    """The columns that a condition asks for."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}


def holds(tree: ast.expr, cells: Mapping[str, Any]) -> bool:
    """Whether the condition is true of a row. Raises ValueError where its columns cannot be compared so.

    A column that the row lacks is None: its length is 0, and it is neither below nor above anything. A number is
    compared with the number that a text spells, because a table's cells are all text.

    >>> holds(read("len(input) > 3 and not lang in ['en', 'de']"), {"input": "어디예요", "lang": "ko"})
    True
    >>> holds(read("age > 30"), {"age": "31"}), holds(read("age > 30"), {})
    (True, False)
    """
    return bool(_value(tree, cells))


def _check(node: ast.expr) -> None:
    """Refuse everything that is not named in WORDS."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return
    if isinstance(node, ast.Name):
        return
    if isinstance(node, ast.UnaryOp):
        signed = isinstance(node.op, ast.USub | ast.UAdd) and isinstance(node.operand, ast.Constant)
        if isinstance(node.op, ast.Not) or (signed and isinstance(node.operand.value, int | float)):  # type: ignore[attr-defined]
            _check(node.operand)
            return
    elif isinstance(node, ast.List | ast.Tuple | ast.Set) and all(isinstance(one, ast.Constant) for one in node.elts):
        _check_all(node.elts)
        return
    elif isinstance(node, ast.BoolOp):
        _check_all(node.values)
        return
    elif isinstance(node, ast.Compare) and all(type(op) in _COMPARED for op in node.ops):
        _check_all([node.left, *node.comparators])
        return
    elif isinstance(node, ast.Call):
        function = node.func.id if isinstance(node.func, ast.Name) else ""
        if function not in ("len", "lower") or len(node.args) != 1 or node.keywords:
            what = "calls what cannot be called: len(…) and lower(…) of one thing can"
            raise ValueError(f"`{ast.unparse(node)}` {what}")
        _check(node.args[0])
        return
    raise ValueError(f"`{ast.unparse(node)}` is more than a condition may hold: {WORDS}")


def _check_all(nodes: list[ast.expr]) -> None:
    for node in nodes:
        _check(node)


def _value(node: ast.expr, cells: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return cells.get(node.id)
        case ast.List() | ast.Tuple() | ast.Set():
            return [_value(one, cells) for one in node.elts]
        case ast.UnaryOp():
            value = _value(node.operand, cells)
            return not value if isinstance(node.op, ast.Not) else -value if isinstance(node.op, ast.USub) else value
        case ast.BoolOp():
            first_of = all if isinstance(node.op, ast.And) else any
            return first_of(_value(one, cells) for one in node.values)
        case ast.Call():
            return _called(node, _value(node.args[0], cells))
        case ast.Compare():
            values = [_value(one, cells) for one in (node.left, *node.comparators)]
            return all(_compared(node, op, a, b) for op, a, b in zip(node.ops, values[:-1], values[1:], strict=True))
    raise AssertionError(node)  # `_check` lets nothing else pass


def _called(node: ast.Call, value: Any) -> Any:
    assert isinstance(node.func, ast.Name)
    if node.func.id == "lower":
        if isinstance(value, str | None):
            return (value or "").lower()
    elif isinstance(value, str | list | dict | None):
        return len(value or "")
    raise ValueError(f"`{ast.unparse(node)}`: {value!r} has no {'lower case' if node.func.id == 'lower' else 'length'}")


def _compared(node: ast.Compare, op: ast.cmpop, a: Any, b: Any) -> bool:
    if not isinstance(op, _EQUAL):
        inside = b if isinstance(op, _AMONG) else None
        if (a is None and inside is None) or b is None:  # nothing is there to be compared
            return isinstance(op, ast.NotIn)
    if not isinstance(op, _AMONG):
        a, b = _number(a, b), _number(b, a)
    try:
        return bool(_COMPARED[type(op)](a, b))
    except TypeError:
        raise ValueError(f"`{ast.unparse(node)}` cannot compare {a!r} and {b!r}") from None


def _number(value: Any, other: Any) -> Any:
    """The number that `value` spells, if `other` is one."""
    if isinstance(value, str) and isinstance(other, int | float) and not isinstance(other, bool):
        try:
            return float(value)
        except ValueError:
            return value
    return value
