"""dataset.html: what a data set holds and what deserves a second look, as one file without script or network.

Lives here: what the page says, as plain values; `dataset.html.j2` draws it, escaping every text. Does not live here:
counting (`census.py`), the remarks (`survey.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from luthier import disk, sheet
from luthier.data import census, survey
from luthier.data.census import SIDES, Split
from luthier.data.dataset import SPLITS, Dataset, shortly
from luthier.data.lengths import Lengths

PAGE = "dataset.html"
CLASSES_SHOWN, LANGUAGES_SHOWN, PLACES_SHOWN, LETTERS_SHOWN = 40, 6, 5, 1500
_BARS, _WIDTH, _HEIGHT = 28, 560, 120


def write(dataset: Dataset) -> Path:
    """Put the page into the Dataset folder; complete or not there. Gives its path."""
    path = dataset.path / PAGE
    disk.write_whole(path, render(dataset))
    return path


def render(dataset: Dataset) -> str:
    """The page as text, from the Dataset folder alone."""
    counted = census.count(dataset)
    train = counted["train"]
    sides = SIDES[:1] if dataset.labels else SIDES  # of a class's name the length says nothing
    values = {
        "d": dataset,
        "short": shortly(dataset),
        "name": _name(dataset),
        "remarks": dataset.summary.get("remarks", []),
        "notes": dataset.summary.get("notes", []),
        "splits": [
            (name, dataset.summary["rows"].get(name), dataset.counts[name], dataset.splits[name]) for name in SPLITS
        ],
        "reasons": list(_reasons(dataset.summary)),
        "cleaning": [told | {"name": name} for name, told in dataset.summary.get("cleaning", {}).items()],
        "classes": _classes(counted),
        "more_classes": max(0, len(_all_classes(counted)) - CLASSES_SHOWN),
        "charts": [_chart(side, train.lengths[side]) for side in sides if train.lengths[side].longest],
        "quantiles": [_quantiles(name, side, split) for name, split in counted.items() if split.rows for side in sides],
        "languages": [
            _tongues(name, side, split) for name, split in counted.items() for side in SIDES if split.languages[side]
        ],
        "first": [(name, [_shown(record) for record in split.first]) for name, split in counted.items() if split.first],
        "curve": survey.learning_curve(train.rows),
        "advice": survey.ADVICE,
    }
    return sheet.render("data/dataset.html.j2", values, "data/dataset.css")


def _name(dataset: Dataset) -> str:
    return Path(dataset.splits["train"]).name or dataset.splits["train"]


# --- what was dropped, and why


@dataclass(frozen=True, slots=True)
class Reason:
    """Rows of a kind: `fate` says what became of them, `first` where the first ones stand."""

    name: str
    rows: int
    fate: str
    first: tuple[str, ...]


def _reasons(summary: Mapping[str, Any]) -> Iterator[Reason]:
    """Twins, contradictions and leaks, as the summary tells them."""
    for step, found in summary["repeats"].items():
        if found["rows"]:
            fate = "dropped" if found["dropped"] else "kept"
            yield Reason(step.replace("_", " "), found["rows"], fate, tuple(found["first"][:PLACES_SHOWN]))
    for fate, leaks in (("taken out", summary["leak_kinds"]), ("left out", summary["left_out"])):
        for leak in leaks:
            name = f"{leak['from']} rows that also stand in {leak['also_in']} ({leak['kind']})"
            yield Reason(name, leak["rows"], fate, tuple(leak["first"][:PLACES_SHOWN]))


# --- classes, lengths, languages


@dataclass(frozen=True, slots=True)
class Class:
    """A class with its rows in every split; `share` of the largest class's training rows, in per cent."""

    name: str
    counts: tuple[int, ...]
    share: float


def _all_classes(counted: Mapping[str, Split]) -> Counter[str]:
    """Every class by its training rows; those that only other splits have come last."""
    found: Counter[str] = Counter()
    for split in counted.values():
        found.update(dict.fromkeys(split.labels, 0))
    found.update(counted["train"].labels)
    return found


def _classes(counted: Mapping[str, Split]) -> list[Class]:
    ordered = _all_classes(counted).most_common(CLASSES_SHOWN)
    most = max((count for _, count in ordered), default=0) or 1
    return [
        Class(name, tuple(split.labels[name] for split in counted.values()), round(100 * count / most, 1))
        for name, count in ordered
    ]


@dataclass(frozen=True, slots=True)
class Chart:
    """A histogram on a logarithmic axis: bars and marks are places in a drawing of `width` by `height`."""

    title: str
    label: str
    bars: tuple[tuple[float, float, float, float, str], ...]  # x, y, width, height, what it says
    ticks: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, str], ...]
    width: int = _WIDTH
    height: int = _HEIGHT


def _chart(side: str, lengths: Lengths) -> Chart:
    low, high = max(1, lengths.quantile(0)), max(2, lengths.longest)
    growth = (high / low) ** (1 / _BARS) if high > low else 2.0
    inner = sorted({math.floor(low * growth**i) for i in range(1, _BARS)} - {low})
    found = [(max(a, low), b, lengths.between(a, b)) for a, b in pairwise([0, *inner, high + 1])]
    most = max(n for _, _, n in found)

    def x(length: float) -> float:
        span = math.log(high + 1) - math.log(low)
        return round(_WIDTH * (math.log(max(length, low)) - math.log(low)) / span, 1)

    bars = tuple(
        (
            x(a),
            round(_HEIGHT * (1 - n / most), 1),
            max(1.0, x(b) - x(a) - 1),
            round(_HEIGHT * n / most, 1),
            f"{n:,} rows of {a:,} to {b - 1:,}",
        )
        for a, b, n in found
        if n
    )
    ticks = tuple((x(10**k * m), f"{10**k * m:,}") for k in range(9) for m in (1, 3) if low <= 10**k * m <= high)
    marks = tuple((x(lengths.quantile(share)), name) for share, name in ((0.5, "median"), (0.99, "99 %")))
    said = f"{side}s of train in characters: median {lengths.quantile(0.5):,}, longest {lengths.longest:,}"
    return Chart(side, said, bars, ticks, marks)


def _quantiles(name: str, side: str, split: Split) -> tuple[str, str, tuple[int, ...]]:
    lengths = split.lengths[side]
    return name, side, (*(lengths.quantile(share) for share in (0, 0.25, 0.5, 0.75, 0.99)), lengths.longest)


def _tongues(name: str, side: str, split: Split) -> tuple[str, str, list[tuple[str, float]], int, int]:
    """Split, side, languages with their share in per cent, how many could be told, of how many."""
    heard = split.languages[side]
    shares = [(x, round(100 * n / heard.total(), 1)) for x, n in heard.most_common(LANGUAGES_SHOWN)]
    return name, side, shares, heard.total(), split.looked_at


# --- the first rows


def _shown(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the page shows it: where it stood, and who says what."""
    turns = [(message["role"], _short(message["content"] or "")) for message in record.get("messages", [])]
    if record.get("text"):
        turns.append(("text", _short(record["text"])))
    if record.get("label"):
        turns.append(("class", _short(record["label"])))
    return {"where": f"{record['file']}:{record['line']}", "turns": turns}


def _short(text: str) -> str:
    return (
        text
        if len(text) <= LETTERS_SHOWN
        else f"{text[:LETTERS_SHOWN]}… ({len(text) - LETTERS_SHOWN:,} more characters)"
    )
