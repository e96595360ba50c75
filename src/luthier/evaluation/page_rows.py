"""Rows for a page: each with its fate, worst first, the difference of answer and reference marked word by word.

Lives here: plain values; `rows.html.j2` draws them, `rows.js` filters and pages them. Does not live here: what an
answer is worth (`metrics.py`), the rest of the report (`report_page.py`).
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.evaluation.metrics import Metric, Prediction
from luthier.evaluation.predictions import Row

MOST_ROWS = 5_000
FIRST_ROWS = 20  # of a fate that stand there without a script
ALIKE = 0.72  # texts less alike than this are read better without marks
LETTERS = (3000, 1200, 500, 200)  # of a text; the longest of these with which a page's texts stay within the sum
LETTERS_OF_A_PAGE = 6_000_000
MARKS = (
    200_000_000  # letters times letters compared for marks, the worst rows first: about 3 s, more than all else here
)

Pieces = tuple[tuple[str, str], ...]
Fate = tuple[str, str, str]  # name, tone, words


@dataclass(frozen=True, slots=True)
class Said:
    """One answer on the page; `pieces` are (mark, text) with mark same, added or missing; `reason` a judge's words."""

    who: str
    right: bool | None
    value: str
    pieces: Pieces
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One row on the page."""

    where: str
    prompt: str
    expected: str
    answers: tuple[Said, ...]
    fate: str


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one fate, worst first: those on the page of `total`."""

    name: str
    tone: str
    title: str
    total: int
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Cases:
    """All rows of a page, `total` counts those there are. `compact`: short enough for the lines of a table.

    `classes`: what the rows may be filtered by. `letters`: of each text so many are shown.
    """

    groups: tuple[Group, ...]
    who: tuple[str, ...]
    classes: tuple[str, ...]
    total: int
    letters: int
    compact: bool

    @property
    def class_of(self) -> dict[str, int]:
        """A class's place among `classes`."""
        return {name: place for place, name in enumerate(self.classes)}

    @property
    def shown(self) -> int:
        """How many rows stand on the page."""
        return sum(len(group.cases) for group in self.groups)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A row before its texts are cut: answers as (who, text, value under the leading metric)."""

    id: str
    where: str
    prompt: str
    expected: str
    fate: str
    is_class: bool
    answers: tuple[tuple[str, str, float | None], ...]


def drawn(row: Prediction, fate: str, answers: Iterable[tuple[str, str, float | None]]) -> Drawn:
    """The row of a prediction, with the answers of all."""
    return Drawn(row.id, row.where, row.prompt, row.references[0], fate, bool(row.probabilities), tuple(answers))


def of_report(rows: Sequence[Row], lead: Metric, reasons: Mapping[str, str] | None = None) -> Cases:
    """The rows of a report: got worse first, then wrong, then fixed, then right; `reasons`: a row's id → words."""
    ranked: list[tuple[tuple[int, float], Drawn]] = []
    order = {name: place for place, (name, _, _) in enumerate(FATES)}
    sign = 1 if lead.higher_is_better else -1
    for row in rows:
        tuned, base = values(row, lead)
        fate = _fate(lead, tuned, base, "base" in row.sides)
        change = 0.0 if tuned is None or base is None else sign * (tuned - base)
        harm = -abs(change) if fate == "gained" else change
        given = {"tuned": tuned, "base": base}
        answers = ((who, row.sides[who].answer, given[who]) for who in ("base", "tuned") if who in row.sides)
        ranked.append(((order[fate], harm or sign * (tuned or 0.0)), drawn(row.sides["tuned"], fate, answers)))
    ranked.sort(key=lambda each: each[0])
    return gathered([one for _, one in ranked], FATES, lead, reasons or {})


def reasons_of(rows: Sequence[Row]) -> dict[str, str]:
    """A judge's words by the row's id, where there are any."""
    told = (row.sides["tuned"] for row in rows)
    return {prediction.id: prediction.rationale for prediction in told if prediction.rationale}


FATES: tuple[Fate, ...] = (
    ("broken", "bad", "Got worse"),
    ("lost", "bad", "Lost"),
    ("wrong", "plain", "Wrong"),
    ("same", "plain", "As before"),
    ("scored", "plain", "Worst first"),
    ("fixed", "good", "Fixed"),
    ("gained", "good", "Gained"),
    ("right", "good", "Right"),
    ("unscored", "plain", "No value"),
)


def _fate(lead: Metric, tuned: float | None, base: float | None, paired: bool) -> str:
    if tuned is None or (paired and base is None and lead.kind != "share"):
        return "unscored"
    if lead.kind == "share":
        if base is not None and tuned != base:
            return "fixed" if tuned == 1 else "broken"
        return "right" if tuned == 1 else "wrong"
    if base is None:
        return "scored"
    if tuned == base:
        return "same"
    return "gained" if (tuned > base) == lead.higher_is_better else "lost"


def values(row: Row, metric: Metric) -> tuple[float | None, float | None]:
    """What the metric says of the tuned answer and of the other one."""
    tuned, base = (row.values.get(name, {}).get(metric.name) for name in ("tuned", "base"))
    return tuned, base


# ---------------------------------------------------------------------------------------------------- from rows to page


def gathered(ordered: Sequence[Drawn], fates: Iterable[Fate], lead: Metric, reasons: Mapping[str, str]) -> Cases:
    """The first rows of `ordered`, cut to what a page can hold, by fate."""
    shown = ordered[:MOST_ROWS]
    limit = _letters(shown)
    left = MARKS
    cases: list[Case] = []
    for one in shown:
        case, spent = _case(one, lead, limit, reasons, mark=left > 0)
        left -= spent
        cases.append(case)
    totals = Counter(one.fate for one in ordered)
    groups = tuple(
        Group(name, tone, title, totals[name], tuple(case for case in cases if case.fate == name))
        for name, tone, title in fates
        if totals[name]
    )
    classes = sorted({case.expected for case in cases}) if any(one.is_class for one in shown) else []
    who = tuple(name for name, _, _ in shown[0].answers) if shown else ()
    return Cases(groups, who, tuple(classes), len(ordered), limit, len(who) <= 3 and _short(cases))


def _short(cases: Sequence[Case]) -> bool:
    """Whether the rows fit the lines of a table: all answers, and nearly all prompts."""
    longer = sum(len(case.prompt) > 200 or "\n" in case.prompt for case in cases)
    return longer <= len(cases) / 20 and all(len(case.expected) <= 60 for case in cases)


def _letters(shown: Sequence[Drawn]) -> int:
    """How many letters of each text the page can hold."""
    texts = (text for one in shown for text in (one.prompt, one.expected, *(answer for _, answer, _ in one.answers)))
    lengths = [len(text) for text in texts]
    fitting = (limit for limit in LETTERS if sum(min(n, limit) for n in lengths) <= LETTERS_OF_A_PAGE)
    return next(fitting, LETTERS[-1])


def _case(one: Drawn, lead: Metric, limit: int, reasons: Mapping[str, str], mark: bool) -> tuple[Case, int]:
    """The row as it is shown, and what its marks cost (see `MARKS`)."""
    answers, spent = [], 0
    for who, said, value in one.answers:
        right = None if value is None or lead.kind != "share" else value == 1
        answer, wanted = cut(said.strip(), limit), cut(one.expected.strip(), limit)
        plain = one.is_class or not mark or answer == wanted  # a class is another class, not a misspelling
        pieces: Pieces = (("same", answer),) if plain else tuple(marked(answer, wanted))
        spent += 0 if plain else len(answer) * len(wanted)
        answers.append(Said(who, right, "" if value is None else f"{value:.3g}", pieces))
    if one.id in reasons:
        answers[-1] = replace(answers[-1], reason=cut(reasons[one.id], limit))
    where = Path(one.where).name
    return Case(where, cut(one.prompt, limit), cut(one.expected, limit), tuple(answers), one.fate), spent


def cut(text: str, letters: int = LETTERS[0]) -> str:
    """The text, or its two ends and how much is missing between them."""
    if len(text) <= letters:
        return text
    half = letters // 2
    return f"{text[:half]}\n… {len(text) - letters:,} characters …\n{text[-half:]}"


def marked(answer: str, reference: str) -> Iterator[tuple[str, str]]:
    """The answer in pieces: the same as the reference, added to it, or (from the reference) missing.

    >>> list(marked("select a from t", "select b from t"))
    [('same', 'select '), ('missing', 'b'), ('added', 'a'), ('same', ' from t')]
    """
    answer, reference = answer.strip(), reference.strip()
    a, b = (re.findall(r"\s+|[^\W_]+|.", text) for text in (reference, answer))
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    if answer == reference or matcher.quick_ratio() < ALIKE or matcher.ratio() < ALIKE:
        yield "same", answer
        return
    for kind, a1, a2, b1, b2 in matcher.get_opcodes():
        if kind == "equal":
            yield "same", "".join(b[b1:b2])
            continue
        if a2 > a1:
            yield "missing", "".join(a[a1:a2])
        if b2 > b1:
            yield "added", "".join(b[b1:b2])
