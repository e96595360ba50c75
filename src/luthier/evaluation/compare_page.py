"""The page of a comparison: runs side by side, in one file. `compare.html.j2` draws it, escaping every text.

Lives here: what the page says, as plain values. Does not live here: the comparison (`compare.py`), rows
(`page_rows.py`), where lines lie (`charts.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from luthier import disk, sheet
from luthier.evaluation import charts, compare, page_rows, page_tables
from luthier.evaluation.compare import Compared
from luthier.evaluation.metrics import Metric
from luthier.evaluation.report import digits_of, say
from luthier.evaluation.report_page import yaml

_FATES = (("ahead", "bad", "A better"), ("between", "plain", "Between"), ("behind", "good", "A worse"))


@dataclass(frozen=True, slots=True)
class _Score:
    """A run's score as an interval; places in per cent of the width."""

    key: str
    words: str
    at: float
    low: float
    high: float


def write_html(compared: Compared, path: Path) -> None:
    """Write the page; complete or not there."""
    disk.write_whole(path, render(compared))


def render(compared: Compared) -> str:
    """The page as text."""
    known = compare.metric_of(compared)
    validation = any(len(run.validation) > 1 for run in compared.runs)
    lead = known[compared.lead]
    values = {
        "c": compared,
        "lead": lead,
        "verdict": compare.outcome_in_words(compared),
        "tone": _tone(compared),
        "scores": [(metric, _scores(metric, compared)) for metric in known.values()],
        "tests": [(metric.title, _gaps(metric, compared)) for metric in known.values()],
        "settings": [
            (s.path, ["–" if value is None else yaml(value) for value in s.values], s.origins)
            for s in compared.settings
        ],
        "what": "validation" if validation else "training",
        "by_update": _overlay(compared, validation, by_tokens=False),
        "by_tokens": _overlay(compared, validation, by_tokens=True),
        "best": {run.key: min((loss for *_, loss in run.validation), default=None) for run in compared.runs},
        "cases": _cases(compared, lead),
        "names": {run.key: run.key for run in compared.runs},
    }
    return sheet.render("evaluation/compare.html.j2", values, "evaluation/report.css", "evaluation/rows.js")


def _tone(compared: Compared) -> str:
    outcomes = {test.outcome for test in compared.tests[compared.lead]}
    return "good" if outcomes == {"better"} else "bad" if outcomes == {"worse"} else "open"


def _scores(metric: Metric, compared: Compared) -> list[_Score]:
    """Every run's score on one scale: the metric's own, or one around what was seen."""
    found = [(run.key, run.scores[metric.name]) for run in compared.runs if metric.name in run.scores]
    low, high, log = 0.0, metric.top or 1.0, False
    if metric.top is None:
        seen = [end for _, score in found for end in (score.low, score.high)]
        log = min(seen) > 0
        low, high = (min(seen) / 1.2, max(seen) * 1.2) if log else (min(0.0, *seen), max(seen) * 1.1 or 1.0)
    digits = min(digits_of(score, metric.top) for _, score in found)
    return [
        _Score(
            key,
            say(score, metric.top, digits=digits),
            *(charts.share_of(x, low, high, log) for x in (score.value, score.low, score.high)),
        )
        for key, score in found
    ]


def _gaps(metric: Metric, compared: Compared) -> list[page_tables.Gap]:
    tests = compared.tests[metric.name]
    reach = max((abs(end) for test in tests for end in (test.low, test.high)), default=1.0)
    return [
        page_tables.gap(metric, test, f"{run.key} − A", reach)
        for run, test in zip(compared.runs[1:], tests, strict=True)
    ]


def _overlay(compared: Compared, validation: bool, by_tokens: bool) -> charts.Overlay | None:
    """Everybody's curve by update or by tokens read."""
    curves = {run.key: run.validation if validation else run.training for run in compared.runs}
    drawn = {
        key: [(tokens if by_tokens else step, loss) for step, tokens, loss in points] for key, points in curves.items()
    }
    return charts.overlay(drawn, dotted=validation)


def _cases(compared: Compared, lead: Metric) -> page_rows.Cases:
    """The rows on which the runs differ."""
    keys = [run.key for run in compared.runs]
    sign = 1 if lead.higher_is_better else -1
    found = []
    for row in compared.differing:
        others = [sign * (value - row.values[0]) for value in row.values[1:]]
        fate = "ahead" if max(others) <= 0 else "behind" if min(others) >= 0 else "between"
        answers = tuple(zip(keys, row.answers, row.values, strict=True))
        found.append(page_rows.Drawn(row.id, row.where, row.prompt, row.expected, fate, row.is_class, answers))
    return page_rows.gathered(found, _FATES, lead, {})
