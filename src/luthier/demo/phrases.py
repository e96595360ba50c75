"""English for queries: every question has many wordings, and some of them are kept out of tuning. No SQL.

Each list is a pair: wordings that tuning may use, and wordings that only the test (and pre-training's English) uses.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from luthier.demo.queries import Condition, Query

Pool = Literal["tuning", "test", "all", "plain"]
Wordings = tuple[tuple[str, ...], tuple[str, ...]]
Pick = Callable[[Wordings], str]

FRAMES: dict[str, Wordings] = {
    "list": (
        (
            "Show the {select} of {table}{where}.",
            "What is the {select} of {table}{where}?",
            "List the {select} of all {table}{where}.",
            "Give me the {select} for {table}{where}.",
            "Find the {select} of every one of the {table}{where}.",
            "Which {select} do the {table}{where} have?",
            "Please return the {select} of {table}{where}.",
            "I want to see the {select} of the {table}{where}.",
            "Can you get the {select} for all {table}{where}?",
        ),
        (
            "I need the {select} of {table}{where}.",
            "Print the {select} for all {table}{where}.",
            "Could you look up the {select} of the {table}{where}?",
            "Tell me the {select} of {table}{where}.",
        ),
    ),
    "all": (
        (
            "Show everything about {table}{where}.",
            "List all columns of {table}{where}.",
            "Give me the full rows of {table}{where}.",
            "What do we know about {table}{where}?",
            "Please return whole rows of {table}{where}.",
        ),
        ("Print every detail of {table}{where}.", "I need the complete records of {table}{where}."),
    ),
    "count": (
        (
            "How many {table}{where} are there?",
            "Count the {table}{where}.",
            "What is the number of {table}{where}?",
            "Give me the count of {table}{where}.",
            "Please say how many {table}{where} there are.",
            "I want to see how many {table}{where} we have.",
        ),
        ("Tell me how many {table}{where} exist.", "I need the number of {table}{where}."),
    ),
    "aggregate": (
        (
            "What is the {function} {number} of {table}{where}?",
            "Show the {function} {number} of all {table}{where}.",
            "Find the {function} {number} for {table}{where}.",
            "Give me the {function} {number} of the {table}{where}.",
            "I want to see the {function} {number} of {table}{where}.",
        ),
        (
            "Tell me the {function} {number} of {table}{where}.",
            "Compute the {function} {number} for all {table}{where}.",
        ),
    ),
    "group count": (
        (
            "How many {table} are there {by}?",
            "Count the {table} {by}.",
            "Show the number of {table} {by}.",
            "Please say how many {table} there are {by}.",
        ),
        ("Tell me how many {table} exist {by}.", "I need the number of {table} {by}."),
    ),
    "group": (
        (
            "What is the {function} {number} of {table} {by}?",
            "Show the {function} {number} of the {table} {by}.",
            "Find the {function} {number} for {table} {by}.",
            "I want to see the {function} {number} of {table} {by}.",
        ),
        ("Tell me the {function} {number} of {table} {by}.", "Compute the {function} {number} for {table} {by}."),
    ),
    "order": (
        (
            "Show the {select} of {table}{where}, {order}.",
            "List the {select} of all {table}{where}, {order}.",
            "Give me the {select} for {table}{where}, sorted {order}.",
            "Sort the {select} of {table}{where}, {order}.",
            "Please return the {select} of the {table}{where}, {order}.",
        ),
        ("Print the {select} of {table}{where}, {order}.", "I need the {select} of {table}{where}, arranged {order}."),
    ),
    "top": (
        (
            "Show the {select} of the {limit} {table} with the {extreme} {number}.",
            "Which {select} do the {limit} {table} with the {extreme} {number} have?",
            "List the {select} of the {limit} {table} that have the {extreme} {number}.",
            "Find the {limit} {table} with the {extreme} {number} and give me their {select}.",
            "Please return the {select} of the {limit} {table} with the {extreme} {number}.",
        ),
        (
            "Tell me the {select} of the {limit} {table} with the {extreme} {number}.",
            "Take the {limit} {table} with the {extreme} {number} and print their {select}.",
        ),
    ),
    "distinct": (
        (
            "What are the {distinct} {select} of {table}{where}?",
            "List the {distinct} {select} of all {table}{where}.",
            "Show each of the {distinct} {select} of {table}{where}.",
            "Give me the {distinct} {select} for {table}{where}.",
            "I want to see the {distinct} {select} of the {table}{where}.",
        ),
        ("Print the {distinct} {select} of {table}{where}.", "Tell me the {distinct} {select} for {table}{where}."),
    ),
}
CONNECTORS: Wordings = (  # "" or " is" between column and comparison
    ("whose {column} is", "with {column}", "where {column} is", "having {column}", "whose {column} was"),
    ("that have {column}", "for which the {column} is", "if their {column} is"),
)
COMPARISONS: dict[str, Wordings] = {
    "=": (("{a}", "equal to {a}", "{a}", "just {a}"), ("exactly {a}", "the same as {a}")),
    "!=": (
        ("not {a}", "other than {a}", "different from {a}", "not equal to {a}"),
        ("anything but {a}", "unequal to {a}"),
    ),
    ">": (
        ("above {a}", "more than {a}", "over {a}", "greater than {a}", "larger than {a}", "in excess of {a}"),
        ("higher than {a}", "beyond {a}"),
    ),
    "<": (
        ("below {a}", "less than {a}", "under {a}", "smaller than {a}", "fewer than {a}", "inferior to {a}"),
        ("lower than {a}", "short of {a}"),
    ),
    ">=": (
        (
            "at least {a}",
            "{a} or more",
            "{a} or greater",
            "{a} and above",
            "not below {a}",
            "no fewer than {a}",
            "no smaller than {a}",
            "not less than {a}",
        ),
        ("{a} or higher", "no less than {a}"),
    ),
    "<=": (
        (
            "at most {a}",
            "{a} or less",
            "{a} or smaller",
            "{a} and below",
            "not above {a}",
            "no larger than {a}",
            "no greater than {a}",
            "not more than {a}",
        ),
        ("{a} or lower", "no more than {a}"),
    ),
    "BETWEEN": (
        ("between {a} and {b}", "from {a} to {b}", "within {a} and {b}", "from {a} through {b}"),
        ("in the range {a} to {b}", "anywhere from {a} up to {b}"),
    ),
}
GLUES: dict[str, Wordings] = {
    "AND": (("and", "and besides", "and at the same time"), ("and also",)),
    "OR": (("or", "or alternatively", "or failing that"), ("or else",)),
}
FUNCTIONS: dict[str, Wordings] = {
    "AVG": (("average", "mean"), ("typical",)),
    "SUM": (("total", "summed", "overall"), ("combined", "added up")),
    "MAX": (("highest", "largest", "maximum", "top"), ("greatest", "biggest")),
    "MIN": (("lowest", "smallest", "minimum", "bottom"), ("least", "slightest")),
}
# The direction follows the column's name, as comparisons do: a model that has learned to copy looks at what comes after
# the name it copies. Where the direction came before ("highest age first") tuning never learned it (docs/log.md).
DIRECTIONS: dict[str, Wordings] = {
    "DESC": (
        (
            "by {number}, highest first",
            "by {number}, falling",
            "by {number} from the highest to the lowest",
            "by {number}, largest first",
            "with {number} falling",
        ),
        ("by {number} in descending order", "by {number}, the greatest first"),
    ),
    "ASC": (
        (
            "by {number}, lowest first",
            "by {number}, rising",
            "by {number} from the lowest to the highest",
            "by {number}, smallest first",
            "with {number} rising",
        ),
        ("by {number} in ascending order", "by {number}, the least first"),
    ),
}
DIRECTIONS_IN_DOCUMENTS: dict[str, Wordings] = {
    "DESC": (
        (
            "highest {number} first",
            "by falling {number}",
            "from the highest {number} to the lowest",
            "largest {number} first",
            "with falling {number}",
        ),
        ("in descending order of {number}", "starting with the greatest {number}"),
    ),
    "ASC": (
        (
            "lowest {number} first",
            "by rising {number}",
            "from the lowest {number} to the highest",
            "smallest {number} first",
            "with rising {number}",
        ),
        ("in ascending order of {number}", "starting with the least {number}"),
    ),
}
GROUPINGS: Wordings = (
    ("per {by}", "for each {by}", "by {by}", "within each {by}", "split by {by}"),
    ("in every {by}", "broken down by {by}"),
)
DISTINCTS: Wordings = (("different", "distinct", "individual", "differing"), ("unique", "separate"))
LINKS: Wordings = (
    ("linked to", "that belong to", "from", "tied to", "joined with", "related to"),
    ("connected with", "attached to"),
)
LISTINGS: Wordings = ((" and ", " and the "), (" plus ", " along with the "))


def spoken(name: str | int) -> str:
    """A name as a sentence has it: `harvest_year` → `harvest year`."""
    return str(name).replace("_", " ")


def ask(rng: random.Random, query: Query, pool: Pool) -> str:
    """One wording of the query.

    pool: `tuning` uses the wordings of tuning only; `test` a sentence that tuning never has, its parts from either
    list; `all` whatever there is; `plain` the first of each list.
    """

    def pick(wordings: Wordings) -> str:
        tuning, held_out = wordings
        if pool == "plain":
            return tuning[0]
        if pool == "tuning":
            return rng.choice(tuning)
        return rng.choice(held_out if pool == "test" and rng.random() < 0.5 else tuning + held_out)

    frames = FRAMES["group count" if query.shape == "group" and query.function == "COUNT" else query.shape]
    frame = rng.choice(frames[1]) if pool == "test" else pick(frames)
    where = _where(pick, query)
    table = spoken(query.table.name)
    if query.other:
        table += f" {pick(LINKS)} {spoken(query.other.name)}"
    number = spoken(query.number)
    directions = DIRECTIONS if pool in ("tuning", "test") else DIRECTIONS_IN_DOCUMENTS
    extreme = {"DESC": "MAX", "ASC": "MIN", "": "MAX"}[query.direction]
    return frame.format(
        select=pick(LISTINGS).join(spoken(column) for column in query.select),
        table=table,
        where=f" {where}" if where else "",
        function="" if query.function in ("", "COUNT") else pick(FUNCTIONS[query.function]),
        number=number,
        by=pick(GROUPINGS).format(by=spoken(query.by)),
        order=pick(directions[query.direction]).format(number=number) if query.direction else "",
        extreme=pick(FUNCTIONS[extreme]),
        limit=query.limit,
        distinct=pick(DISTINCTS),
    )


def _where(pick: Pick, query: Query) -> str:
    if not query.conditions:
        return ""
    connector = pick(CONNECTORS)
    parts = [_condition(pick, connector, condition) for condition in query.conditions]
    return f" {pick(GLUES[query.glue])} ".join(parts) if query.glue else parts[0]


def _condition(pick: Pick, connector: str, condition: Condition) -> str:
    comparison = pick(COMPARISONS[condition.operator])
    subject = connector.format(column=spoken(condition.column))
    return f"{subject} {comparison.format(**dict(zip('ab', condition.operands, strict=False)))}"


def held_out_words() -> set[str]:
    """Words that only held-out wordings have: a question of tuning contains none of them."""
    groups = [CONNECTORS, GROUPINGS, DISTINCTS, LINKS, LISTINGS]
    for lists in (FRAMES, COMPARISONS, GLUES, FUNCTIONS, DIRECTIONS):
        groups += lists.values()
    tuning, held_out = (
        {word.strip(".,?") for group in groups for text in group[side] for word in text.split() if "{" not in word}
        for side in (0, 1)
    )
    return held_out - tuning
