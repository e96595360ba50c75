"""A ladder in a terminal: what is being done, and the rungs as a table.

Lives here: what is said, and `luthier.ladder`, which says it. Does not live here: the work (`climbing.py`), one run on
its way (`progress.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from luthier.cli import progress
from luthier.runs import Event, Run

if TYPE_CHECKING:
    from luthier.evaluation.ladder import Ladder
    from luthier.spec import Experiment
    from luthier.studio import Studio

COLUMNS = ("rung", "{}", "against the best", "training", "kept", "tokens a row", "")


def ladder(experiment: Experiment | str | Path, shots: int | None = None) -> Ladder:
    """Climb from the bare base to full tuning; the cheapest rung that is enough is printed. Progress: standard error.

    The same experiment again continues, or gives what stands (`Studio.ladder`).
    """
    from luthier.studio import Studio

    found = climb(Studio(), experiment, shots)
    print(found.sentence)
    return found


def climb(studio: Studio, experiment: Experiment | str | Path, shots: int | None) -> Ladder:
    """The ladder, with its progress on standard error. On Ctrl-C or SIGTERM what is at work ends, and how to go on is
    said."""
    console = Console(stderr=True, highlight=False)

    def show(words: str, events: Iterable[Event], run: Run | None) -> None:
        console.print(Text(words), soft_wrap=True)
        if run is None:
            progress.draw(events, console)
        else:
            progress.carry(studio, run)

    with progress.ending_as_interrupt():
        try:
            return studio.ladder(experiment, shots, show)
        except KeyboardInterrupt:
            console.print("the same `luthier ladder` command goes on where this one ended")
            raise


def rows(found: Ladder) -> list[tuple[str, ...]]:
    """The rungs in words, in the order of COLUMNS."""
    from luthier.evaluation import ladder_page

    return [
        (line.title, line.score, line.against, line.training, line.size, line.tokens, line.remark)
        for line in ladder_page.table(found)
    ]
