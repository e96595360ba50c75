"""report.html: the verdict, the scores as intervals, the curves, the rows that changed, the experiment. One file.

Lives here: what the page says, as plain values; `report.html.j2` draws it, escaping every text. No script, no network.
Does not live here: the verdict itself (`report.py`), where lines lie (`charts.py`).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np

import luthier
from luthier import disk
from luthier.evaluation import charts, metrics
from luthier.evaluation.curves import Curve, turned
from luthier.evaluation.metrics import METRICS, Metric, Prediction
from luthier.evaluation.predictions import Row, side
from luthier.evaluation.report import Comparison, Report, digits_of, say
from luthier.runs import Score

ROWS_SHOWN = 20
CLASSES_SHOWN = 12  # a larger confusion matrix is told as a list
LETTERS_SHOWN = 3000
ALIKE = 0.72  # texts less alike than this are read better without marks

Setting = tuple[str, Any, str]  # path, value, where it comes from


def write_html(
    report: Report,
    rows: Sequence[Row],
    path: Path,
    curve: Curve | None = None,
    settings: Sequence[Setting] = (),
    own_metrics: Sequence[Metric] = (),
) -> None:
    """Write the page; complete or not there. `own_metrics` are those beside the table's."""
    disk.write_whole(path, render(report, rows, curve, settings, own_metrics))


def render(
    report: Report,
    rows: Sequence[Row],
    curve: Curve | None = None,
    settings: Sequence[Setting] = (),
    own_metrics: Sequence[Metric] = (),
) -> str:
    """The page as text."""
    known = METRICS | {metric.name: metric for metric in own_metrics}
    scored = [known[name] for name in report.scores]
    lead = scored[0] if scored else None
    classes = side(rows, "tuned") if report.subject.task == "classification" else []
    return _template().render(
        r=report,
        s=report.subject,
        other="untuned" if report.subject.against == "base" else report.subject.against,
        version=luthier.__version__,
        box=_box(report, lead),
        bars=[_bar(metric, report) for metric in scored],
        table=_table(rows, lead),
        chart=charts.loss_chart(curve) if curve else None,
        turned=curve is not None and turned(curve),
        curve=curve,
        confusion=_confusion(classes) if classes else None,
        groups=_groups(rows, lead) if lead else [],
        settings=sorted(((p, _yaml(v), o) for p, v, o in settings), key=lambda setting: setting[2] != "you"),
    )


@cache
def _template() -> jinja2.Template:
    source = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)


def _yaml(value: Any) -> str:
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
    what = lead.title[0].upper() + lead.title[1:]
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


# ---------------------------------------------------------------------------------------------------------------- rows


def _values(row: Row, metric: Metric) -> tuple[float | None, float | None]:
    """What the metric says of the tuned answer and of the other one."""
    return tuple(row.values.get(name, {}).get(metric.name) for name in ("tuned", "base"))  # type: ignore[return-value]


def _table(rows: Sequence[Row], lead: Metric | None) -> dict[str, int] | None:
    """The 2 x 2 table of rows that are right or wrong, if the leading metric says so and there is a second model."""
    if lead is None or lead.kind != "share" or not rows or "base" not in rows[0].sides:
        return None
    pairs = [_values(row, lead) for row in rows]
    names = {"both": (1, 1), "broken": (0, 1), "fixed": (1, 0), "neither": (0, 0)}
    return {name: sum(pair == wanted for pair in pairs) for name, wanted in names.items()}


@dataclass(frozen=True, slots=True)
class Said:
    """One answer on the page; `pieces` are (mark, text) with mark same, added or missing."""

    who: str
    right: bool | None
    value: str
    pieces: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One row on the page."""

    where: str
    prompt: str
    expected: str
    answers: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one fate: the first few of `total`; `compact` if all are short enough for the lines of a table."""

    tone: str
    title: str
    total: int
    cases: tuple[Case, ...]

    @property
    def compact(self) -> bool:
        return all(
            len(case.prompt) <= 200 and "\n" not in case.prompt and len(case.expected) <= 60 for case in self.cases
        )


def _groups(rows: Sequence[Row], lead: Metric) -> list[Group]:
    """Got worse first, then wrong, then fixed. Where rows have degrees: lost most, lowest, gained most."""
    valued = [(row, *_values(row, lead)) for row in rows if _values(row, lead)[0] is not None]
    sign = 1 if lead.higher_is_better else -1
    both = [(sign * (t - b), row) for row, t, b in valued if t is not None and b is not None]
    if lead.kind == "share":
        lowest = [row for row, t, b in valued if t == 0 and b != 1]
        titles = ("Got worse", "Still wrong" if both else "Wrong", "Fixed")
    else:
        ranked = sorted(valued, key=lambda v: sign * (v[1] or 0.0))
        lowest = [row for row, t, _ in ranked if t != lead.top][: max(1, len(valued) // 10)]
        titles = ("Lost most", "Lowest scores", "Gained most")
    worse = [row for change, row in sorted(both, key=lambda c: c[0]) if change < 0]
    fixed = [row for change, row in sorted(both, key=lambda c: -c[0]) if change > 0]
    found = zip(("bad", "plain", "good"), titles, (worse, lowest, fixed), strict=True)
    return [
        Group(tone, title, len(group), tuple(_case(row, lead) for row in group[:ROWS_SHOWN]))
        for tone, title, group in found
        if group
    ]


def _case(row: Row, lead: Metric) -> Case:
    tuned = row.sides["tuned"]
    answers = []
    for who, value in zip(("tuned", "base"), _values(row, lead), strict=True):
        if who in row.sides:
            right = None if value is None or lead.kind != "share" else value == 1
            shown = "" if value is None else f"{value:.3g}"
            said = row.sides[who]
            whole = (("same", said.answer),)  # a class name is another class, not a misspelling
            pieces = whole if said.probabilities else tuple(marked(said.answer, tuned.references[0]))
            answers.append(Said(who, right, shown, pieces))
    answers.reverse()
    return Case(Path(tuned.where).name, _cut(tuned.prompt), _cut(tuned.references[0]), tuple(answers))


def _cut(text: str) -> str:
    if len(text) <= LETTERS_SHOWN:
        return text
    half = LETTERS_SHOWN // 2
    return f"{text[:half]}\n… {len(text) - LETTERS_SHOWN:,} characters …\n{text[-half:]}"


def marked(answer: str, reference: str) -> Iterator[tuple[str, str]]:
    """The answer in pieces: the same as the reference, added to it, or (from the reference) missing.

    >>> list(marked("select a from t", "select b from t"))
    [('same', 'select '), ('missing', 'b'), ('added', 'a'), ('same', ' from t')]
    """
    answer, reference = answer.strip(), reference.strip()
    a, b = (re.findall(r"\s+|[^\W_]+|.", _cut(text)) for text in (reference, answer))
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    if answer == reference or matcher.ratio() < ALIKE:
        yield "same", _cut(answer)
        return
    for kind, a1, a2, b1, b2 in matcher.get_opcodes():
        if kind == "equal":
            yield "same", "".join(b[b1:b2])
            continue
        if a2 > a1:
            yield "missing", "".join(a[a1:a2])
        if b2 > b1:
            yield "added", "".join(b[b1:b2])


# ------------------------------------------------------------------------------------------------------------- classes


@dataclass(frozen=True, slots=True)
class Confusion:
    """Classes and who was taken for whom. `cells` is empty where there are too many classes to draw.

    `cells`: for each class (name, [(count, share of the row in per cent)]). `worst`: (class, rows, found, recall,
    precision), worst F1 first. `pairs`: (class, answered as, times), most frequent first.
    """

    names: tuple[str, ...]
    cells: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]
    worst: tuple[tuple[str, int, int, str, str], ...]
    pairs: tuple[tuple[str, str, int], ...]


def _confusion(predictions: Sequence[Prediction]) -> Confusion:
    names, counts = metrics.confusion(predictions)
    gold, said, hits = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    f1 = np.where(gold + said > 0, 2 * hits / np.maximum(gold + said, 1), 1.0)

    def share(part: int, whole: int) -> str:
        return f"{part / whole:.2f}" if whole else "–"

    worst = tuple(
        (names[c], int(gold[c]), int(hits[c]), share(hits[c], gold[c]), share(hits[c], said[c]))
        for c in np.argsort(f1, kind="stable")[:CLASSES_SHOWN]
    )
    wrong = sorted(
        ((names[a], names[b], int(counts[a, b])) for a, b in np.argwhere(counts > 0) if a != b), key=lambda p: -p[2]
    )
    cells = tuple(
        (name, tuple((int(k), round(100 * k / max(1, total))) for k in row))
        for name, row, total in zip(names, counts.tolist(), gold.tolist(), strict=True)
    )
    small = len(names) <= CLASSES_SHOWN
    return Confusion(tuple(names), cells if small else (), worst, tuple(wrong[:CLASSES_SHOWN]))
