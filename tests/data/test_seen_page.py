"""The page of `look`: nothing from outside, nothing that runs, every text escaped; and how it looks, in a browser."""

from __future__ import annotations

import itertools
from html.parser import HTMLParser
from pathlib import Path

import pytest

from luthier.data import seen_page
from tests.browser import check_markup, opened
from tests.tokens import long_row, row

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} \"'>"
FACTS = {"model": HOSTILE, "rows": "1 train"}


def page() -> str:
    hostile = row(pieces=("<s>", HOSTILE, " b\u202e", "\n<c>", ""), where=HOSTILE, remark=HOSTILE, worst=(HOSTILE,))
    return seen_page.render([row(), hostile, long_row(3_000, 40), row(label=HOSTILE)], FACTS)


class Elements(HTMLParser):
    """Every element with its attributes, and the tokens' texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_nothing_comes_from_outside_and_nothing_runs() -> None:
    check_markup(page())
    assert "&lt;script&gt;alert(1)" in page() and "{{ 7*7 }}" in page()


def test_every_token_is_there_with_its_id_its_style_and_its_neighbours_shade() -> None:
    elements = Elements(seen_page.render([row()], {}))
    tokens = [given for tag, given in elements.found if tag == "span" and "title" in given]
    assert [given["class"] for given in tokens] == ["tok r s", "tok r o", "tok r", "tok t o", "tok t s"]
    assert tokens[0]["title"] == "token 1, id 0: special" and tokens[4]["title"] == "token 5, id 1: trained, special"
    everything = Elements(seen_page.render([long_row(3_000, 40)], {}))
    assert sum("title" in given for _, given in everything.found) == 3_040  # a page leaves nothing out
    assert "<wbr><i>␣</i>b</span>" in seen_page.render([row()], {})


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(tmp_path: Path, theme: str) -> None:
    """No request, no script, no dialog, no sideways scroll; both themes follow the system; neighbours differ."""
    (tmp_path / "rows.html").write_text(page(), encoding="utf-8")
    with opened(tmp_path / "rows.html", theme) as view:
        assert view.seen == [] and view.violations() == []
        assert view.page.evaluate("document.documentElement.scrollWidth") == 390
        paper = view.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(250, 249, 246)" if theme == "light" else "rgb(20, 19, 16)")
        shades = view.page.evaluate(
            "[...document.querySelectorAll('.row')[0].children].map(t => getComputedStyle(t).backgroundColor)"
        )
        assert len(shades) == 5 and all(a != b for a, b in itertools.pairwise(shades))
        assert view.page.get_by_role("heading", name="What the model sees").is_visible()
