"""What `luthier prepare` says of a data set: counts, remarks, what each `max_seq_length` costs, where the page lies.

Lives here: the words, on standard error, plain where nobody looks. Does not live here: the findings (`data/survey.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from luthier.cli import show as screen
from luthier.errors import LuthierError

if TYPE_CHECKING:
    from luthier import spec
    from luthier.data.dataset import Dataset
    from luthier.data.lengths import LengthAdvice

ROWS_SHOWN, INDENT = 3, 5


def described(data: str, sets: Sequence[str], remove_leaks: bool) -> tuple[spec.Experiment, bool]:
    """What to prepare, of rows or of an experiment file, with the values of `sets`; and whether it names its base."""
    from luthier import spec

    wishes = [*sets, *(["data.remove_leaks=true"] if remove_leaks else [])]
    if data.endswith((".yaml", ".yml")):
        return spec.load(data, wishes), True
    rows = {"model": "none", "data": {"train": data}}  # preparing asks for no model
    return spec.from_mapping(rows, overrides=wishes), False


def foresee(experiment: spec.Experiment, dataset: Dataset) -> LengthAdvice | None:
    """The lengths in tokens, and D10 at its own batch size; a word and None where its base cannot be read."""
    from dataclasses import asdict

    from luthier.data import survey
    from luthier.studio import Studio

    try:
        lengths, training = Studio().lengths(experiment, dataset)
    except LuthierError as problem:
        screen.say(f"note: lengths in tokens are not told: {problem.message}")
        return None
    steps = survey.few_steps(dataset.counts["train"], training.batch_size, training.accumulate_steps)
    others = [remark for remark in dataset.summary["remarks"] if remark["code"] != "D10"]
    found = others + ([asdict(steps)] if steps else [])
    dataset.summary["remarks"] = sorted(found, key=lambda remark: remark["code"])
    return lengths


def tell(dataset: Dataset, lengths: LengthAdvice | None, page: Path) -> None:
    """The summary of a data set for a person."""
    from luthier.data.dataset import shortly

    for name, words in _facts(dataset):
        screen.err().print(Text(f"{name:<9}", style="dim") + Text(words), soft_wrap=True)
    short = shortly(dataset)
    for note in dataset.summary["notes"]:
        screen.say(short(f"note: {note}"))
    for remark in dataset.summary["remarks"]:
        _remark(remark, short)
    if lengths is not None:
        _lengths(lengths)
    screen.say(f"page: {page}")


def _facts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    read = sum(dataset.summary["rows"].values())
    kept = ", ".join(f"{count:,} {split}" for split, count in dataset.counts.items())
    yield "rows", f"{kept} (of {read:,} read)"
    counts = dataset.summary.get("label_counts", {})
    if counts:
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        (most, n), (least, m) = ordered[0], ordered[-1]
        yield "classes", f"{len(ordered):,}, from `{most}` with {n:,} training rows to `{least}` with {m:,}"
    sizes = dataset.summary["characters"]
    told = [f"{side} {sizes[side]['median']:,}, longest {sizes[side]['max']:,}" for side in sizes if sizes[side]["max"]]
    yield "length", f"median {'; '.join(told)} characters"


def _remark(remark: dict[str, Any], short: Callable[[str], str]) -> None:
    rows = [short(row) for row in remark["rows"]]
    shown = f" [{', '.join(rows[:ROWS_SHOWN])}{', …' if len(rows) > ROWS_SHOWN else ''}]" if rows else ""
    told = Text(f"{remark['code']:<{INDENT}}", style="bold yellow") + Text(
        f"{remark['message']}{shown}", style="not bold"
    )
    screen.err().print(told, soft_wrap=True)
    screen.say(f"{' ' * INDENT}{remark['hint']}", style="dim")


def _lengths(advice: LengthAdvice) -> None:
    """What each limit costs, in a few aligned lines."""
    screen.say(
        f"tokens   of {advice.rows:,} training rows: 99 % have {advice.p99:,} or fewer, the longest {advice.longest:,}"
    )
    for choice in advice.choices:
        cost = "holds every row"
        if choice.longer:
            cost = f"{choice.longer:,} rows are longer; saves {choice.saved_by_cut:.1%} of the tokens if they are cut, "
            cost += f"{choice.saved_by_drop:.1%} if dropped"
        mark = "→" if choice.limit == advice.suggested else " "
        screen.say(f" {mark} max_seq_length {choice.limit:>6,}: {cost}")
    screen.say(f"{' ' * INDENT}{advice.sentence}", style="dim")
