"""Worked examples before a question: which rows are shown, and how a row is asked behind them.

Lives here: choosing and laying out. Does not live here: tokens (`encode.py`), how many fit (`rungs.py`).

The examples are written by the row's own template, with an empty line between them; in a chat they are earlier turns.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from luthier.data.examples import Example, answer_text, content_id
from luthier.data.layout import Rules
from luthier.data.templates import default_template, fill, placeholders

BETWEEN = "\n\n"
_COLUMN = "luthier_{}_{}"  # whose value a placeholder is: of a shown row by its number, of the row that is asked


def can_show(example: Example) -> bool:
    """Whether rows of its kind have a question and an answer to show; plain text and segments have none."""
    return example.kind in ("pair", "label", "chat")


def choose(train: Iterable[Example], count: int, seed: int) -> list[Example]:
    """`count` rows by the seed and their content alone, of classes as evenly as can be, each content once.

    A smaller count gives the first of a larger one.
    """
    groups: dict[str | None, dict[str, Example]] = {}
    for example in train:
        group = groups.setdefault(example.label, {})
        group[content_id([seed, "shot", example.id])] = example
        if len(group) > 4 * count:
            groups[example.label] = _first(group, count)
    order = sorted(groups, key=lambda label: content_id([seed, "class", label]))
    rounds = itertools.zip_longest(*(_first(groups[label], count).values() for label in order))
    return [example for each in rounds for example in each if example is not None][:count]


def _first(group: Mapping[str, Example], count: int) -> dict[str, Example]:
    return {key: group[key] for key in sorted(group)[:count]}


def rules_with(rules: Rules, shots: Sequence[Example]) -> Rules:
    """The rules by which rows that `behind` made are encoded."""
    if not shots or not _templated(shots[0], rules):
        return rules
    asked = rules.template or default_template(rules.family)
    joint = "" if asked[-1:].isspace() else " "
    parts = [_renamed(asked, number) + joint + "{" + _COLUMN.format(number, "answer") + "}" for number in _of(shots)]
    return dataclasses.replace(rules, template=BETWEEN.join([*parts, _renamed(asked, "row")]))


def behind(example: Example, shots: Sequence[Example], rules: Rules) -> Example:
    """`example` as it is asked behind `shots`; `rules` are those it would have alone."""
    if not shots:
        return example
    if example.kind == "chat":
        turns = [turn for shot in shots for turn in shot.messages if turn.role != "system"]
        first = next((i for i, turn in enumerate(example.messages) if turn.role != "system"), 0)
        return dataclasses.replace(example, messages=(*example.messages[:first], *turns, *example.messages[first:]))
    if not _templated(example, rules):
        told = "".join(shot.messages[0].content + answer_text(shot) + BETWEEN for shot in shots)
        first_turn = dataclasses.replace(example.messages[0], content=told + example.messages[0].content)
        return dataclasses.replace(example, messages=(first_turn, *example.messages[1:]))
    columns = _values(example, rules, "row")
    for number, shot in zip(_of(shots), shots, strict=True):
        columns |= _values(shot, rules, number) | {_COLUMN.format(number, "answer"): answer_text(shot).strip()}
    return dataclasses.replace(example, columns=example.columns | columns)


def _of(shots: Sequence[Example]) -> list[str]:
    return [str(number) for number in range(1, len(shots) + 1)]


def _templated(example: Example, rules: Rules) -> bool:
    """Whether its prompt comes from a template; a chat's turns and a prompt that is taken as it came do not."""
    return example.kind != "chat" and not (example.exact and rules.template is None)


def _renamed(template: str, whose: str) -> str:
    """The template with every placeholder naming the column of one row."""
    names = {name: "{" + _COLUMN.format(whose, name) + "}" for name in placeholders(template)}
    return fill(template, names, "")


def _values(example: Example, rules: Rules, whose: str) -> dict[str, Any]:
    """What the placeholders of a row's template stand for, under the row's own column names."""
    said = example.messages[0].content if example.messages else example.text or ""
    columns = {"input": said} | (example.columns if rules.template is not None else {})
    names = placeholders(rules.template or default_template(rules.family))
    return {_COLUMN.format(whose, name): columns[name] for name in names if name in columns}
