"""The demo's labelled rows: a schema, a question, its SQL. Train, validation and test never share a domain.

Rows are a pure function of the seed. The file formats are in the package's `__init__`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

from luthier.demo.fill import setup
from luthier.demo.phrases import Pool, ask
from luthier.demo.queries import SHAPES, sample_query, sample_tables
from luthier.demo.words import TEST_THEMES, TUNING_THEMES, VALIDATION_THEMES, Theme

Split = Literal["train", "validation", "test"]
SIZES: dict[Split, int] = {"train": 2000, "validation": 100, "test": 300}

# How many of a row's names and values are invented: only tuning has such rows, they teach to copy and not to recall.
_INVENTED = {"train": (0.0, 0.3, 0.7, 1.0), "validation": (0.0,), "test": (0.0,)}
_THEMES = {"train": TUNING_THEMES, "validation": VALIDATION_THEMES, "test": TEST_THEMES}
_WORDINGS: dict[Split, Pool] = {"train": "tuning", "validation": "tuning", "test": "test"}
# Which way to sort is what tuning learns last: it has more such rows than the test, each way as many.
_SHAPES = {"train": SHAPES | {"order": 20, "top": 20}, "validation": SHAPES, "test": SHAPES}
# Test rows with a schema of their own are independent, as the interval of a score supposes.
_QUESTIONS_PER_SCHEMA = {"train": 3, "validation": 1, "test": 1}


def rows(split: Split, seed: int = 0) -> Iterator[dict[str, str]]:
    """The rows of a split, SIZES[split] of them, no two with the same schema and question.

    Columns: `domain` the theme, `schema` CREATE TABLE statements, `input` the question, `output` the query,
    `setup` statements that make the tables and fill them, for executing the query in sqlite.
    """
    rng = random.Random(f"{seed}/{split}")
    seen: set[tuple[str, str]] = set()
    while True:
        theme = _turn(_THEMES[split], len(seen) // _QUESTIONS_PER_SCHEMA[split])
        tables = sample_tables(rng, (theme,), rng.choice(_INVENTED[split]))
        schema = "\n".join(table.create() for table in tables)
        for _ in range(_QUESTIONS_PER_SCHEMA[split]):
            query = sample_query(rng, tables, _SHAPES[split], ("ASC", "DESC"))
            question = ask(rng, query, _WORDINGS[split])
            if (schema, question) in seen:
                continue
            seen.add((schema, question))
            yield {
                "domain": theme.name,
                "schema": schema,
                "input": question,
                "output": query.sql(),
                "setup": setup(rng, query, tables),
            }
            if len(seen) == SIZES[split]:
                return


def _turn(themes: tuple[Theme, ...], index: int) -> Theme:
    return themes[index % len(themes)]
