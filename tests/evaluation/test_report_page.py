"""report.html: nothing from outside, nothing that runs, every text escaped; and how it looks, in a browser."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from luthier.evaluation import curves, report, report_page
from luthier.evaluation.metrics import by_name
from luthier.evaluation.predictions import Answer, Answerer
from tests.evaluation import sample

NAMES = ["exact_match", "rougeL", "chrf", "perplexity"]
CLASSES = ("card lost", "refund", sample.HOSTILE)


class Tags(HTMLParser):
    """Which elements and attributes a page has, and whether they are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def hostile(questions: list) -> list[Answer]:  # type: ignore[type-arg]
    return [Answer(q.references[0] + sample.HOSTILE, nll=1.0, tokens=3) for q in questions]


def sql_page(folder: Path, tuned: Answerer | None = None) -> str:
    asked = [
        sample.question(i, q.prompt + sample.HOSTILE, q.references[0]) for i, q in enumerate(sample.sql_questions(60))
    ]
    answerers = {"tuned": tuned or sample.right_with(0.8, 1), "base": sample.right_with(0.3, 2)}
    rows = sample.answered(folder / "p.jsonl", asked, answerers, NAMES)
    subject = sample.subject(name=sample.HOSTILE, run=sample.HOSTILE, dataset=sample.HOSTILE, model=sample.HOSTILE)
    made = report.make(subject, rows, by_name(NAMES), curves.overfitting(sample.curve()), [sample.HOSTILE])
    settings = [*sample.SETTINGS, ("method.init_text", sample.HOSTILE, sample.HOSTILE)]
    return report_page.render(made, rows, sample.curve(), settings)


def class_page(folder: Path, names: tuple[str, ...]) -> str:
    asked = [sample.question(i, f"row {i}", names[i % len(names)]) for i in range(90)]
    answerers = {"tuned": sample.classified(names, 0.7, 1), "base": sample.classified(names[:1], 0, 2)}
    rows = sample.answered(folder / "p.jsonl", asked, answerers, ["accuracy", "macro_f1"])
    made = report.make(
        sample.subject(task="classification", against="most frequent class"), rows, by_name(["accuracy", "macro_f1"])
    )
    return report_page.render(made, rows)


@pytest.fixture(params=["sql", "hostile answers", "classes", "many classes"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param.endswith("classes"):
        many = tuple(f"class {i} {sample.HOSTILE}" for i in range(30))
        return class_page(tmp_path, many if "many" in request.param else CLASSES)
    return sql_page(tmp_path, hostile if "hostile" in request.param else None)


def test_nothing_comes_from_outside_and_nothing_runs(page: str) -> None:
    tags = Tags(page)
    assert not tags.names & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "link",
        "base",
        "form",
        "a",
        "audio",
        "video",
    }
    assert not {name for name, _ in tags.attributes if name.startswith("on")}
    assert {value for name, value in tags.attributes if name in ("src", "href", "xlink:href")} <= {
        f"#{name}" for name in ("ok", "no", "ask", "warn", "tick", "cross")
    }
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert style is not None
    assert "@import" not in style[1] and "url(" not in style[1] and "http" not in style[1]
    assert "default-src 'none'" in page


def test_hostile_text_is_text(page: str) -> None:
    assert Tags(page).open == []
    assert "<script" not in page and "<img" not in page
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
    for words in ("Got worse", "Still wrong", "Fixed", "preset granite-3-1-8b-base", "end tokens and surrounding"):
        assert words in page
    assert page.index("method.rank") < page.index("method.alpha")  # what the user chose comes first


def test_long_texts_and_many_steps_keep_the_page_small(tmp_path: Path) -> None:
    asked = [sample.question(i, "word " * 20_000, "answer " * 20_000) for i in range(3)]
    rows = sample.answered(tmp_path / "p.jsonl", asked, {"tuned": sample.right_with(1, 1)}, ["exact_match"])
    made = report.make(sample.subject(), rows, by_name(["exact_match"]))
    page = report_page.render(made, rows, sample.curve(steps=50_000))
    assert len(page) < 150_000


def test_marks_show_where_an_answer_differs() -> None:
    assert list(report_page.marked("a b c d x", "a b c d")) == [("same", "a b c d"), ("added", " x")]
    assert list(report_page.marked("nothing alike", "SELECT 1")) == [("same", "nothing alike")]
    pieces = list(report_page.marked("SELECT name FROM t WHERE a < 3", "SELECT name FROM t WHERE a > 3"))
    assert "".join(text for mark, text in pieces if mark != "missing") == "SELECT name FROM t WHERE a < 3"
    assert "".join(text for mark, text in pieces if mark != "added") == "SELECT name FROM t WHERE a > 3"


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(tmp_path: Path, theme: str) -> None:
    """No request, no script, no dialog, no sideways scroll; both themes differ and follow the system."""
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a chromium browser")
    (tmp_path / "report.html").write_text(sql_page(tmp_path, hostile), encoding="utf-8")
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=theme)
        seen: list[str] = []
        view.on("request", lambda request: seen.append(request.url))
        view.on("dialog", lambda dialog: seen.append(dialog.message))
        view.on("console", lambda message: seen.append(message.text))
        view.goto((tmp_path / "report.html").as_uri())
        assert [url for url in seen if not url.endswith("/report.html")] == []
        assert view.evaluate("document.documentElement.scrollWidth") == 390
        paper = view.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(250, 249, 246)" if theme == "light" else "rgb(20, 19, 16)")
        assert view.get_by_role("heading", name="Scores").is_visible()
        assert view.get_by_text("Tuning").first.is_visible()
        browser.close()
