"""What `luthier compare` says: runs, scores, settings that differ, paired tests, the first rows where they differ.

Lives here: the tables, on standard output, and the words around them, on standard error. Does not live here: the
comparison (`evaluation/compare.py`), its page (`evaluation/compare_page.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from luthier.cli import show as screen

if TYPE_CHECKING:
    from luthier.evaluation.compare import Compared, Setting

ROWS_SHOWN, LETTERS_SHOWN = 5, 120


def tell(found: Compared) -> None:
    """A comparison for a person."""
    from luthier.evaluation.compare import metric_of, outcome_in_words
    from luthier.evaluation.report import say

    known, keys = metric_of(found), [run.key for run in found.runs]
    screen.table(("", "run", "model", "method"), [(r.key, r.run, Path(r.model).name, r.method) for r in found.runs])
    screen.line("")
    scores = [
        (metric.title, *(say(run.scores[name], metric.top) if name in run.scores else "" for run in found.runs))
        for name, metric in known.items()
    ]
    screen.table((f"on {found.shared:,} rows", *keys), scores)
    screen.line("")
    if found.settings:
        screen.table(("parameter", *keys), [_setting(setting) for setting in found.settings])
    else:
        screen.say("the same settings on the same rows")
    screen.line("")
    for tests in found.tests.values():
        for test in tests:
            screen.line(test.sentence)
    _rows(found, keys)
    for note in found.notes:
        screen.say(f"note: {note}")
    screen.say(f"by {known[found.lead].title}: {outcome_in_words(found)}")


def page(found: Compared, path: Path) -> None:
    """A comparison, written as a page."""
    from luthier.evaluation import compare_page

    compare_page.write_html(found, path)


def _setting(setting: Setting) -> tuple[str | Text, ...]:
    """A parameter's line: each value and where it comes from; the page has the sources in full."""
    return setting.path, *(
        Text(screen.value(value)) + Text(f" {origin.partition(' (')[0]}", style="dim")
        if origin
        else Text(screen.value(value))
        for value, origin in zip(setting.values, setting.origins, strict=True)
    )


def _rows(found: Compared, keys: list[str]) -> None:
    """The first rows on which they differ, worst first."""
    if not found.differing:
        return
    screen.line("")
    first = found.differing[:ROWS_SHOWN]
    screen.table(
        ("row", "expected", *keys),
        [(Path(row.where).name, _short(row.expected), *(_short(answer) for answer in row.answers)) for row in first],
    )
    more = len(found.differing) - len(first)
    if more:
        screen.say(f"{more:,} more rows differ: `--html FILE` shows them, `--json` too", style="dim")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LETTERS_SHOWN else f"{line[:LETTERS_SHOWN]}…"
