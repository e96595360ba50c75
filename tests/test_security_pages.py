"""Sixty hostile texts in every field of the pages that luthier writes: none runs, from the disk, in a real browser."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from luthier.data.examples import Example
from luthier.evaluation import compare, compare_page, report, report_page
from luthier.evaluation.metrics import by_name
from luthier.evaluation.predictions import Answer, Question
from tests.browser import check_markup, opened
from tests.evaluation import sample
from tests.evaluation.optional import Full, full
from tests.payloads import PAYLOADS

ALL = " ".join(PAYLOADS)


def _questions() -> list[Question]:
    found = []
    for i, text in enumerate(PAYLOADS):
        example = Example(f"{i:016x}", "pair", columns={text: text}, file=text, line=i + 1)
        found.append(Question(example, sample.NOTHING, text, (text,)))
    return found


def _answers(questions: list[Question], classes: bool, ahead: int) -> list[Answer]:
    """Every second answer is its reference, the others are another payload."""
    said = [q.references[0] if i % ahead else PAYLOADS[i - 1] for i, q in enumerate(questions)]
    return [Answer(text, probabilities={text: 0.9} if classes else {}, nll=1.0, tokens=2) for text in said]


def report_of(folder: Path, task: str) -> str:
    """A report with every part there can be, each text of it hostile."""
    classes = task == "classification"
    names = ["accuracy", "macro_f1"] if classes else ["exact_match", "rougeL"]
    sides: Any = {
        "tuned": lambda questions: _answers(questions, classes, 2),
        "base": lambda questions: _answers(questions, classes, 3),
    }
    rows = sample.answered(folder / f"{task}.jsonl", _questions(), sides, names)
    facts = dict.fromkeys(("run", "name", "model", "method", "dataset", "against", "split", "decoding"), ALL)
    made = report.make(sample.subject(**facts | {"task": task}), rows, by_name(names), ALL, [ALL])
    made = dataclasses.replace(made, samples_path=ALL, verdict=ALL)
    reasons = {row.sides["tuned"].id: text for row, text in zip(rows, PAYLOADS, strict=True)}
    settings = [(text, text, text) for text in PAYLOADS]
    return report_page.render(full(made, text=ALL), rows, sample.curve(), settings, reasons=reasons)


def compared(folder: Path) -> str:
    """A comparison of three runs, each text of it hostile."""
    asked = _questions()
    points = ((1, 10, 2.0), (2, 20, 1.0))
    rows = [
        [answer.sides["tuned"] for answer in sample.answered(folder / f"{k}.jsonl", asked, _tuned(k), ["exact_match"])]
        for k in (2, 3, 4)
    ]
    scores = {"exact_match": compare.Score(0.5, 0.4, 0.6, 60)}
    contestants = tuple(
        compare.Contestant(key, ALL, ALL, ALL, ALL, ALL, 60, scores, points, points) for key in ("A", "B", "C")
    )
    metric = by_name(["exact_match"])[0]
    found = compare.Compared(
        contestants,
        tuple(compare.Setting(text, (text, None, text), (text, text, "you")) for text in PAYLOADS),
        60,
        "exact_match",
        {"exact_match": compare.tests(metric, rows, [ALL, ALL, ALL])},
        compare.differing(metric, rows),
        (ALL,),
    )
    assert found.differing
    return compare_page.render(found)


def _tuned(ahead: int) -> Any:
    return {"tuned": lambda questions: _answers(questions, False, ahead)}


@pytest.fixture(params=["generation", "classification", "compare"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return compared(tmp_path) if request.param == "compare" else report_of(tmp_path, request.param)


def test_every_hostile_text_is_text(page: str) -> None:
    check_markup(page)
    assert "&lt;script&gt;alert(1)" in page
    assert "{{ cycler" in page  # shown, not calculated
    assert "{% for x in" in page


def test_the_sample_has_every_part() -> None:
    assert {field.name for field in dataclasses.fields(Full)} >= {
        "openings",
        "forgetting",
        "differences",
        "judge",
        "grouped_by",
    }


@pytest.mark.slow
def test_nothing_runs_in_a_browser(page: str, tmp_path: Path) -> None:
    """0 dialogs, 0 executions, 0 requests, and nothing that the policy had to stop."""
    path = tmp_path / "<img src=x onerror=alert(1)>.html"
    path.write_text(page, encoding="utf-8")
    with opened(path, width=1200) as view:
        use(view.page)
        assert view.seen == [] and view.violations() == []
        assert view.page.evaluate("window.pwned") is None
        assert PAYLOADS[0] in view.page.inner_text("body")
    with opened(path, script=False) as view:
        assert view.seen == []
        assert view.page.locator(".one:visible").count() > 0


@pytest.mark.slow
def test_the_policy_stops_what_would_run(page: str, tmp_path: Path) -> None:
    """The control: markup that did get in is stopped by the page's policy, and the listener hears of it."""
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)><p style='color:red'>x</p><style>p{}</style>"
    (tmp_path / "page.html").write_text(page.replace("</main>", f"{hostile}</main>"), encoding="utf-8")
    with opened(tmp_path / "page.html") as view:
        assert not [words for words in view.seen if words.startswith("dialog")]
        assert {"script-src-elem", "img-src", "style-src-attr", "style-src-elem"} <= set(view.violations())
        assert view.page.evaluate("window.pwned") is None


def use(page: Any) -> None:
    """Point at, focus, open and press everything."""
    for chip in page.locator(".chips button").all():
        chip.click()
    page.locator(".chips button").first.click()
    if page.locator("select").count():
        page.select_option("select", index=3)
        page.select_option("select", index=0)
    page.fill("input[type=search]", "alert(1)")
    page.fill("input[type=search]", "")
    while page.locator("#after").is_enabled():
        page.locator("#after").click()
    page.evaluate(
        """() => {
            for (const part of document.querySelectorAll("details")) part.open = true;
            for (const part of document.querySelectorAll("*")) {
                part.focus?.();
                for (const kind of ["mouseover", "pointerover", "click"]) {
                    if (!part.closest(".tools")) part.dispatchEvent(new Event(kind));
                }
            }
        }"""
    )
    page.wait_for_timeout(100)
