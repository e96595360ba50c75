"""report.html: the verdict, the scores as intervals, the curves, the tables, every row, the experiment. One file.

Lives here: what the page says, as plain values; `report.html.j2` draws it, escaping every text. No network; one script,
which only shows and hides rows. Does not live here: the verdict (`report.py`), where lines lie (`charts.py`), the rows
(`page_rows.py`), the tables (`page_tables.py`), the sheet (`sheet.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from luthier import disk, sheet
from luthier.evaluation import charts, metrics, page_rows, page_tables
from luthier.evaluation.curves import WELL, Curve
from luthier.evaluation.metrics import Metric
from luthier.evaluation.predictions import Row, side
from luthier.evaluation.report import Comparison, Report, digits_of, say
from luthier.evaluation.words import begun
from luthier.runs import Score

Setting = tuple[str, Any, str]  # path, value, where it comes from


def write_html(
    report: Report,
    rows: Sequence[Row],
    path: Path,
    curve: Curve | None = None,
    settings: Sequence[Setting] = (),
    own_metrics: Sequence[Metric] = (),
) -> None:
    """Write the page; complete or not there. `own_metrics` are those that no name stands for."""
    disk.write_whole(path, render(report, rows, curve, settings, own_metrics))


def render(
    report: Report,
    rows: Sequence[Row],
    curve: Curve | None = None,
    settings: Sequence[Setting] = (),
    own_metrics: Sequence[Metric] = (),
    reasons: Mapping[str, str] | None = None,
) -> str:
    """The page as text. `reasons`: a row's id → a judge's words on it."""
    scored = metrics_of(report, own_metrics)
    lead = scored[0] if scored else None
    told = asdict(report)  # what later versions and other parts of luthier add is drawn if it is there
    classes = side(rows, "tuned") if report.subject.task == "classification" else []
    other = "untuned" if report.subject.against == "base" else report.subject.against
    values = {
        "r": report,
        "s": report.subject,
        "other": other,
        "names": {"tuned": "Tuned", "base": begun(other)},
        "box": _box(report, lead),
        "bars": [_bar(metric, report) for metric in scored],
        "table": _table(rows, lead),
        "tests": page_tables.tests(report, scored),
        "chart": charts.loss_chart(curve) if curve else None,
        "curve": curve,
        "fits": (report.fit or "").startswith(WELL),
        "confusion": page_tables.confusion(classes) if classes else None,
        "reliability": page_tables.reliability(classes),
        "slices": page_tables.slices(told.get("differences") or (), lead) if lead else [],
        "forgetting": page_tables.forgetting(told.get("forgetting") or ()),
        "judge": page_tables.judged(told["judge"]) if told.get("judge") else None,
        "openings": page_tables.openings(told.get("openings") or ()),
        "grouped_by": told.get("grouped_by"),
        "cases": page_rows.of_report(rows, lead, reasons or page_rows.reasons_of(rows)) if lead and rows else None,
        "settings": sorted(((p, yaml(v), o) for p, v, o in settings), key=lambda setting: setting[2] != "you"),
    }
    return sheet.render("evaluation/report.html.j2", values, "evaluation/report.css", "evaluation/rows.js")


def metrics_of(report: Report, own: Sequence[Metric] = ()) -> list[Metric]:
    """The metrics of a report's scores, the leading one first."""
    known = {metric.name: metric for metric in own}
    return [known[name] if name in known else metrics.by_name([name])[0] for name in report.scores]


def yaml(value: Any) -> str:
    """A parameter's value as a person writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# ---------------------------------------------------------------------------------------------------- verdict, scores


@dataclass(frozen=True, slots=True)
class Box:
    """The conclusion in words: `tone` good, bad or open."""

    tone: Literal["good", "bad", "open"]
    title: str
    detail: str


def _box(report: Report, lead: Metric | None) -> Box:
    compared = report.comparisons.get(lead.name) if lead else None
    if lead is None or compared is None:
        return Box("open", "Scored, with nothing to compare with.", report.verdict)
    what = begun(lead.title)
    tone: Literal["good", "bad", "open"] = "open"
    if compared.outcome == "cannot tell":
        title = f"Cannot tell whether tuning helped. {what} differs by {_signed(compared.difference, lead)}, and the "
        title += f"true difference may lie anywhere between {_span(compared, lead)}."
    else:
        tone, helped = ("good", "helped") if compared.outcome == "better" else ("bad", "hurt")
        moved = "rose" if compared.difference > 0 else "fell"
        title = f"Tuning {helped}. {what} {moved} by {_amount(abs(compared.difference), lead)}; the true change is "
        title += f"very likely between {_span(compared, lead)}."
    detail = report.verdict
    if compared.fixed is not None:
        detail += f". {compared.fixed:,} rows got better and {compared.broken:,} got worse."
    return Box(tone, title, detail)


def _amount(value: float, metric: Metric) -> str:
    if metric.top == 1.0:
        return f"{100 * value:.1f} points"
    return f"{value:.1f}" if metric.top else f"{value:.3g}"


def _signed(value: float, metric: Metric) -> str:
    return ("+" if value > 0 else "−" if value < 0 else "") + _amount(abs(value), metric)


def _span(compared: Comparison, metric: Metric) -> str:
    scale = 100 if metric.top == 1.0 else 1
    d = 1 if metric.top else 3
    low, high = (f"{scale * x:.{d}f}".replace("-", "−") for x in (compared.low, compared.high))
    return f"{low} and {high}"


@dataclass(frozen=True, slots=True)
class Bar:
    """A metric as an interval on its scale; places in per cent of the width."""

    title: str
    n: int
    value: str
    base: str | None
    gain: str | None
    tone: str
    at: float
    low: float
    high: float
    base_at: float | None
    log: bool
    label: str
    rule: str


def _bar(metric: Metric, report: Report) -> Bar:
    score, base = report.scores[metric.name], report.base_scores.get(metric.name)
    compared = report.comparisons.get(metric.name)
    bottom, top, log = _axis(metric, score, base)

    def at(value: float) -> float:
        return charts.share_of(value, bottom, top, log)

    tone = {"better": "good", "worse": "bad"}.get(compared.outcome if compared else "", "dim")
    digits = min(digits_of(known, metric.top) for known in (score, base) if known)
    value = say(score, metric.top, digits=digits)
    other = say(base, metric.top, digits=digits) if base else None
    label = f"{metric.title}: tuned {value}" + (f", {report.subject.against} {other}" if other else "")
    return Bar(
        metric.title,
        score.n,
        value,
        other.split(" ")[0] if other else None,
        _signed(compared.difference, metric).removesuffix(" points") if compared else None,
        tone,
        at(score.value),
        at(score.low),
        at(score.high),
        at(base.value) if base else None,
        log,
        label,
        metric.rule,
    )


def _axis(metric: Metric, score: Score, base: Score | None) -> tuple[float, float, bool]:
    """The scale of a metric: its own, or for one without end a logarithmic one around what was seen."""
    if metric.top is not None:
        return 0.0, metric.top, False
    seen = [score.low, score.high] + ([base.low, base.high] if base else [])
    log = min(seen) > 0
    return (min(seen) / 1.2, max(seen) * 1.2, True) if log else (min(0.0, *seen), max(seen) * 1.1 or 1.0, False)


def _table(rows: Sequence[Row], lead: Metric | None) -> dict[str, int] | None:
    """The 2 x 2 table of rows that are right or wrong, if the leading metric says so and there is a second model."""
    if lead is None or lead.kind != "share" or not rows or "base" not in rows[0].sides:
        return None
    pairs = [page_rows.values(row, lead) for row in rows]
    names = {"both": (1, 1), "broken": (0, 1), "fixed": (1, 0), "neither": (0, 0)}
    return {name: sum(pair == wanted for pair in pairs) for name, wanted in names.items()}
