"""report.html: what it says, every part it may have, rows that can be browsed; and how it looks, in a browser."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from luthier.evaluation import charts, curves, page_rows, page_tables, report, report_page
from luthier.evaluation.metrics import METRICS, by_name
from luthier.evaluation.predictions import Answer, Answerer, Row
from tests.browser import check_markup, opened
from tests.evaluation import sample
from tests.evaluation.optional import full, judge

NAMES = ["exact_match", "rougeL", "chrf", "perplexity"]
CLASSES = ("card lost", "refund", sample.HOSTILE)


def hostile(questions: list) -> list[Answer]:  # type: ignore[type-arg]
    return [Answer(q.references[0] + sample.HOSTILE, nll=1.0, tokens=3) for q in questions]


def sql_report(folder: Path, tuned: Answerer | None = None) -> tuple[report.Report, list[Row]]:
    asked = [
        sample.question(i, q.prompt + sample.HOSTILE, q.references[0]) for i, q in enumerate(sample.sql_questions(60))
    ]
    answerers = {"tuned": tuned or sample.right_with(0.8, 1), "base": sample.right_with(0.3, 2)}
    rows = sample.answered(folder / "p.jsonl", asked, answerers, NAMES)
    subject = sample.subject(name=sample.HOSTILE, run=sample.HOSTILE, dataset=sample.HOSTILE, model=sample.HOSTILE)
    return report.make(subject, rows, by_name(NAMES), curves.overfitting(sample.curve()), [sample.HOSTILE]), rows


def sql_page(folder: Path, tuned: Answerer | None = None) -> str:
    made, rows = sql_report(folder, tuned)
    settings = [*sample.SETTINGS, ("method.init_text", sample.HOSTILE, sample.HOSTILE)]
    return report_page.render(made, rows, sample.curve(), settings)


def class_rows(folder: Path, names: tuple[str, ...], base: bool = True, count: int = 90) -> list[Row]:
    asked = [sample.question(i, f"row {i}", names[i % len(names)]) for i in range(count)]
    answerers = {"tuned": sample.classified(names, 0.7, 1)}
    if base:
        answerers["base"] = sample.classified(names[:1], 0, 2)
    return sample.answered(folder / "p.jsonl", asked, answerers, ["accuracy", "macro_f1"])


def class_page(folder: Path, names: tuple[str, ...], base: bool = True, count: int = 90) -> str:
    rows = class_rows(folder, names, base, count)
    subject = sample.subject(task="classification", against="most frequent class")
    return report_page.render(report.make(subject, rows, by_name(["accuracy", "macro_f1"])), rows)


@pytest.fixture(params=["sql", "hostile answers", "classes", "many classes", "no base"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "no base":
        return class_page(tmp_path, CLASSES, base=False)
    if request.param.endswith("classes"):
        many = tuple(f"class {i} {sample.HOSTILE}" for i in range(30))
        return class_page(tmp_path, many if "many" in request.param else CLASSES)
    return sql_page(tmp_path, hostile if "hostile" in request.param else None)


def test_nothing_comes_from_outside_and_only_the_named_script_runs(page: str) -> None:
    check_markup(page)
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(1)" in page
    assert "{{ 7*7 }}" in page  # shown, not calculated


def test_the_page_says_what_the_report_says(tmp_path: Path) -> None:
    page = sql_page(tmp_path)
    for words in (
        "Tuning helped",
        "better on the same rows",
        "Likely over-fitting since step 300",
        "validation rising",
    ):
        assert words in page
    for words in ("Got worse", "Wrong", "Fixed", "preset granite-3-1-8b-base", "end tokens and surrounding"):
        assert words in page
    assert page.index("method.rank") < page.index("method.alpha")  # what the user chose comes first


def test_a_report_of_nothing_is_a_page(tmp_path: Path) -> None:
    made = report.make(sample.subject(), [], by_name(NAMES))
    assert "nothing could be scored" in report_page.render(made, [])


def test_a_metric_of_ones_own_is_drawn(tmp_path: Path) -> None:
    def shouts(answer: str, reference: str, columns: object) -> bool:
        return answer.isupper()

    asked = sample.sql_questions(9)
    rows = sample.answered(tmp_path / "p.jsonl", asked, {"tuned": sample.right_with(1, 1)}, [shouts])
    made = report.make(sample.subject(), rows, by_name([shouts]))
    assert "<b>shouts</b>" in report_page.render(made, rows, own_metrics=by_name([shouts]))


# ---------------------------------------------------------------------------------------------------------------- rows


def test_every_row_stands_on_the_page_by_its_fate_and_the_worst_come_first(tmp_path: Path) -> None:
    made, rows = sql_report(tmp_path)
    cases = page_rows.of_report(rows, METRICS["exact_match"])
    names = [group.name for group in cases.groups]
    assert names == ["broken", "wrong", "fixed", "right"] and cases.shown == cases.total == 60
    counts = {group.name: group.total for group in cases.groups}
    compared = made.comparisons["exact_match"]
    assert (counts["fixed"], counts["broken"]) == (compared.fixed, compared.broken)
    page = report_page.render(made, rows)
    assert page.count('class="case one"') == 60
    for name, count in counts.items():
        assert page.count(f'data-fate="{name}"') == count + 1  # its rows, and its button
    hidden = sum(max(0, count - 20) for count in counts.values())
    assert len(re.findall(r'class="case one"[^>]* hidden>', page)) == hidden  # the first stand there without a script


def test_rows_with_degrees_are_lost_or_gained(tmp_path: Path) -> None:
    _, rows = sql_report(tmp_path)
    lost, *_ = page_rows.of_report(rows, METRICS["chrf"]).groups
    changes = [float(case.answers[1].value) - float(case.answers[0].value) for case in lost.cases]
    assert lost.name == "lost" and changes == sorted(changes) and changes[-1] < 0
    alone = [Row({"tuned": row.sides["tuned"]}, {"tuned": row.values["tuned"]}) for row in rows]
    [group] = page_rows.of_report(alone, METRICS["chrf"]).groups
    values = [float(case.answers[0].value) for case in group.cases]
    assert group.name == "scored" and values == sorted(values)


def test_perplexity_counts_downwards(tmp_path: Path) -> None:
    _, rows = sql_report(tmp_path)
    groups = {group.name: group for group in page_rows.of_report(rows, METRICS["perplexity"]).groups}
    for name, sign in (("gained", -1), ("lost", 1)):
        for case in groups[name].cases if name in groups else ():
            before, after = (float(answer.value) for answer in case.answers)
            assert sign * (after - before) >= 0
    assert groups["gained"].cases


def test_a_page_holds_at_most_five_thousand_rows_the_worst(tmp_path: Path) -> None:
    asked = [sample.question(i, f"row {i}", "yes") for i in range(5_200)]
    sides = {"tuned": sample.right_with(0.0, 1), "base": sample.right_with(1.0, 1)}
    sides["tuned"] = lambda questions: [Answer("yes" if int(q.example.id, 16) < 3_000 else "no") for q in questions]
    rows = sample.answered(tmp_path / "p.jsonl", asked, sides, ["exact_match"])
    cases = page_rows.of_report(rows, METRICS["exact_match"])
    assert [(g.name, g.total, len(g.cases)) for g in cases.groups] == [
        ("broken", 2_200, 2_200),
        ("right", 3_000, 2_800),
    ]
    made = report.make(sample.subject(), rows, by_name(["exact_match"]))
    assert "5,000 of 5,200 rows" in report_page.render(made, rows)


def test_long_texts_and_many_steps_keep_the_page_small(tmp_path: Path) -> None:
    asked = [sample.question(i, "word " * 20_000, "answer " * 20_000) for i in range(3)]
    rows = sample.answered(tmp_path / "p.jsonl", asked, {"tuned": sample.right_with(1, 1)}, ["exact_match"])
    made = report.make(sample.subject(), rows, by_name(["exact_match"]))
    page = report_page.render(made, rows, sample.curve(steps=50_000))
    assert len(page) < 150_000 and "97,000 characters" in page


def test_many_long_rows_are_cut_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_rows, "LETTERS_OF_A_PAGE", 60_000)
    asked = [sample.question(i, "word " * 1_000, "answer " * 500) for i in range(40)]
    rows = sample.answered(tmp_path / "p.jsonl", asked, {"tuned": sample.right_with(0, 1)}, ["exact_match"])
    cases = page_rows.of_report(rows, METRICS["exact_match"])
    assert cases.letters == 500
    assert all(len(case.prompt) < 550 for group in cases.groups for case in group.cases)


def test_marks_show_where_an_answer_differs() -> None:
    assert list(page_rows.marked("a b c d x", "a b c d")) == [("same", "a b c d"), ("added", " x")]
    assert list(page_rows.marked("nothing alike", "SELECT 1")) == [("same", "nothing alike")]
    pieces = list(page_rows.marked("SELECT name FROM t WHERE a < 3", "SELECT name FROM t WHERE a > 3"))
    assert "".join(text for mark, text in pieces if mark != "missing") == "SELECT name FROM t WHERE a < 3"
    assert "".join(text for mark, text in pieces if mark != "added") == "SELECT name FROM t WHERE a > 3"


def test_marks_have_a_price_and_the_worst_rows_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = sql_report(tmp_path)
    monkeypatch.setattr(page_rows, "MARKS", 20_000)
    cases = page_rows.of_report(rows, METRICS["exact_match"])
    every = [len(answer.pieces) > 1 for group in cases.groups for case in group.cases for answer in case.answers]
    assert any(every[:12]) and not any(every[40:])


def test_a_judges_words_stand_by_their_row(tmp_path: Path) -> None:
    made, rows = sql_report(tmp_path)
    page = report_page.render(made, rows, reasons={rows[7].sides["tuned"].id: "the operator is reversed"})
    assert page.count("the operator is reversed") == 1


# -------------------------------------------------------------------------------------------------------------- tables


def test_a_small_matrix_is_counted_and_a_large_one_drawn(tmp_path: Path) -> None:
    few = page_tables.confusion([row.sides["tuned"] for row in class_rows(tmp_path, ("a", "b", "c"))])
    assert sum(count for _, cells in few.cells for count, _ in cells) == 90 and few.picture is None
    many = tuple(f"class {i:02}" for i in range(70))
    (tmp_path / "many").mkdir()
    found = page_tables.confusion([row.sides["tuned"] for row in class_rows(tmp_path / "many", many, count=700)])
    assert not found.cells and found.picture is not None
    assert sum(right for *_, right, _ in found.picture.squares) <= 70
    assert len(found.classes) == 70 and [c.f1 for c in found.classes] == sorted(c.f1 for c in found.classes)
    worst = found.classes[0]
    assert worst.recall is not None and worst.low <= worst.recall <= worst.high
    page = class_page(tmp_path / "many", many, count=700)
    assert "Confusion matrix of 70 classes" in page and page.count('<span class="dim">') >= 70


def test_a_matrix_square_is_as_large_as_its_share() -> None:
    found = charts.matrix(["a", "b"], [[3, 1], [0, 0]], cell=10)
    assert [(edge, right) for _, _, edge, right, _ in found.squares] == [(pytest.approx(7.8), True), (4.5, False)]
    assert found.squares[1][4] == "a → b: 1 of 4 rows"


def test_the_reliability_of_a_model_that_is_too_sure() -> None:
    found = charts.reliability([(0.95, k % 2 == 0) for k in range(100)] + [(0.55, True)] * 10)
    assert [(name, n, share) for name, n, _, share, _, _ in found.table] == [
        ("0.5–0.6", 10, 1.0),
        ("0.9–1.0", 100, 0.5),
    ]
    assert found.error == pytest.approx((10 * 0.45 + 100 * 0.45) / 110)
    x, y, high, low, _ = found.dots[1]
    assert x == pytest.approx(found.left + 0.95 * found.side) and high < y < low  # the interval stands around the dot
    assert charts.reliability([(1.0, True)]).table[0][0] == "0.9–1.0"


def test_reliability_is_drawn_where_there_are_probabilities(page: str) -> None:
    assert ("Reliability diagram" in page) == ("Confusion matrix" in page)


def test_every_optional_part_is_drawn_if_it_is_there(tmp_path: Path) -> None:
    made, rows = sql_report(tmp_path)
    heads = ("Where it helped, and where not", "The judge", "What it forgot", "have been opened 2 times")
    bare = report_page.render(made, rows)
    assert not [head for head in heads if head in bare] and "share a context" not in bare
    page = report_page.render(full(made, "a text"), rows)
    assert not [head for head in heads if head not in page]
    for words in ("Rows of one <code>a text</code> share a context", "<b>Unreliable:</b> a text", "was fooled"):
        assert words in page
    for words in ("× 1.50 (1.20–1.90)", "10 → 15", "−20.0 (−30.0 to −10.0)", "4 fixed, 2 broken", "1,234 in, 56 out"):
        assert words in page
    assert "κ = 0.80 (0.60–0.95)" in page and "between 0.75 and 0.85" in page
    once = report_page.render(full(made, "a text", opened=1), rows)
    assert "have been opened" not in once and "were opened once, for this report, at 2023-11-14 22:13 UTC" in once


def test_a_judge_may_have_nothing_to_say(tmp_path: Path) -> None:
    made, rows = sql_report(tmp_path)
    nothing = judge(score=None, low=None, high=None, agreement=None, unreliable="", canaries=(), tokens=(0, 0))
    page = report_page.render(dataclasses.replace(full(made), judge=nothing), rows)
    assert "no judgement could be read" in page and "Unreliable" not in page and "κ" not in page


def test_a_rubric_has_its_own_scale() -> None:
    line = page_tables.judged(judge(mode="rubric", score=3.0, low=2.0, high=4.0, bounds=(2.5, 3.5)))
    assert (line.at, line.low, line.high, line.bound_low) == (50.0, 25.0, 75.0, 37.5)


def test_parts_without_a_base_have_their_score_alone(tmp_path: Path) -> None:
    made, rows = sql_report(tmp_path)
    nothing = dict.fromkeys(("base", "fixed", "broken", "difference", "low", "high"))
    alone = {"by": "length", "name": "short", "n": 30, "tuned": 0.25} | nothing
    [line] = page_tables.slices([alone], METRICS["exact_match"])
    assert (line.tuned, line.base, line.words, line.tone) == ("25.0", "–", "", "dim")
    page = report_page.render(dataclasses.replace(full(made), differences=(alone,)), rows)
    assert "short" in page and "short: " not in page


def test_forgetting_may_be_told_by_another_metric() -> None:
    own = {"name": "own", "n": 9, "before": 0.8, "after": 0.6, "ratio": None, "low": -0.3, "high": -0.1, "sentence": ""}
    [line] = page_tables.forgetting([own])
    assert (line.before_at, line.after_at, line.tone) == (80.0, 60.0, "bad")
    assert line.ratio == "−0.20 (−0.30 to −0.10)"


def test_what_the_base_never_knew_is_no_bad_news() -> None:
    grown = {"name": "x", "n": 9, "before": 4000.0, "after": 60976.4, "ratio": 15.2, "low": 9.0, "high": 20.0}
    known, strange = page_tables.forgetting([grown | {"sentence": "", "strange": each} for each in (False, True)])
    assert (known.tone, strange.tone) == ("bad", "dim")
    assert (known.before, known.after) == ("4,000", "60,976")


def test_a_training_that_went_well_is_no_warning(tmp_path: Path) -> None:
    made, rows = sql_report(tmp_path)
    for words, icon in ((f"{curves.WELL}: all is fine.", "ok"), ("Over-fitting since step 3.", "warn")):
        page = report_page.render(dataclasses.replace(made, fit=words), rows, sample.curve())
        note = page[: page.index(f"<span>{words}")].rpartition("<p ")[2]
        assert f'href="#{icon}"' in note and ("calm" in note) == (icon == "ok")


def test_a_gap_lies_around_zero(tmp_path: Path) -> None:
    made, _ = sql_report(tmp_path)
    compared = made.comparisons["exact_match"]
    line = page_tables.gap(METRICS["exact_match"], compared, "x", reach=1.0)
    assert line.zero == 50 and line.low < line.at < line.high
    assert line.at == pytest.approx(50 + 50 * compared.difference, abs=0.01)


# ----------------------------------------------------------------------------------------------------------- a browser


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["sql", "classes", "everything"])
def test_in_a_browser(tmp_path: Path, theme: str, kind: str) -> None:
    """No request, no dialog, no sideways scroll; both themes differ and follow the system."""
    text = class_page(tmp_path, tuple(f"a_class_with_a_long_name_{i}" * 3 for i in range(30)), count=300)
    if kind != "classes":
        (tmp_path / "sql").mkdir()
        made, rows = sql_report(tmp_path / "sql", hostile)
        text = report_page.render(full(made, "long" * 90) if kind == "everything" else made, rows, sample.curve())
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    with opened(tmp_path / "report.html", theme) as view:
        assert view.seen == [] and view.violations() == []
        assert view.page.evaluate("document.documentElement.scrollWidth") == 390
        paper = view.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(250, 249, 246)" if theme == "light" else "rgb(20, 19, 16)")
        assert view.page.get_by_role("heading", name="Scores").is_visible()
        assert view.page.get_by_text("Tuning").first.is_visible()


@pytest.mark.slow
def test_rows_are_browsed(tmp_path: Path) -> None:
    """By fate, by class, by words, page by page; and without a script the first rows stand there."""
    names = ("lost card", "refund", "top up")
    (tmp_path / "report.html").write_text(class_page(tmp_path, names), encoding="utf-8")
    with opened(tmp_path / "report.html", width=1000) as view:
        shown = view.page.locator(".one:visible")
        told = view.page.locator(".count")
        assert (shown.count(), told.inner_text()) == (25, "1–25 of 90")
        for _ in range(3):
            view.page.locator("#after").click()
        assert (shown.count(), told.inner_text()) == (15, "76–90 of 90")
        assert view.page.locator("#after").is_disabled()
        view.page.get_by_role("button", name="Fixed").click()
        fixed = int(told.inner_text().rpartition(" ")[2])
        assert 0 < fixed < 90 and view.page.locator("#before").is_disabled()
        view.page.select_option("select", label="refund")
        assert 0 < int(told.inner_text().rpartition(" ")[2]) < fixed
        assert {row.locator("td").nth(2).inner_text() for row in shown.all()} == {"refund"}
        view.page.get_by_role("button", name="All").click()
        view.page.select_option("select", label="every class")
        view.page.fill("input[type=search]", "TOP row 8")
        texts = [row.inner_text().lower() for row in shown.all()]
        assert texts and all("top" in text and "row" in text and "8" in text for text in texts)
        view.page.fill("input[type=search]", "nothing holds this")
        assert view.page.get_by_text("No row is like this.").is_visible() and told.inner_text() == "0–0 of 0"
        assert view.seen == [] and view.violations() == []
    with opened(tmp_path / "report.html", script=False) as view:
        assert 0 < view.page.locator(".one:visible").count() <= 20 and not view.page.locator("#tools").is_visible()
