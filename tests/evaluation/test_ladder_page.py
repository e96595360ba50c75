"""ladder.html: what it says and draws, nothing from outside, every text escaped; and in a browser."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import pytest

from luthier.evaluation import ladder_page
from luthier.evaluation.ladder import Choice, Ladder, Rung
from tests.browser import check_markup, opened
from tests.evaluation.sample import HOSTILE
from tests.evaluation.test_ladder import concluded

CHOICE = Choice((1e-3, 3e-3, 9e-3), (1.25, 0.75, None), 3e-3, 40, 12.0, "")


def climbed() -> Ladder:
    rungs = [
        Rung("zero-shot", "done", tokens=31.0),
        Rung("few-shot", "done", "4 examples of train", tokens=180.4, shots=4),
        Rung("prompt_tuning", "done", HOSTILE, "r-1", None, CHOICE, 95.0, 1280, 5_300, 51.0),
        Rung("lora", "done", "", "r-2", None, CHOICE, 60.0, 41_000, 165_000, 31.0),
        Rung("full", "failed", f"not enough memory {HOSTILE}"),
    ]
    found = concluded({"zero-shot": 2, "few-shot": 9, "prompt_tuning": 71, "lora": 74}, rungs)
    return dataclasses.replace(found, name=f"snips {HOSTILE}", notes=(HOSTILE,))


def test_it_says_the_answer_and_every_rung() -> None:
    text = ladder_page.render(climbed())
    assert '<p class="box-t">Prompt tuning is enough</p>' in text and "The cheapest rung that is not" in text
    for words in ("1 min 35 s", "5.3 kB", "165.0 kB", "41,000", "180", "4 examples of train", "the best", "0.74 ("):
        assert words in text
    assert "failed: not enough memory" in text and "0.003: 0.75" in text and "0.009: not finite" in text
    assert re.search(r'<tr class="answer"><td><span class="no answer">3</span></td><th scope="row">prompt tuning', text)


def test_every_rung_is_a_dot_with_its_interval_in_three_panels() -> None:
    text = ladder_page.render(climbed())
    assert text.count('<svg class="chart"') == 3 and text.count('class="dot ') == 12
    assert text.count('class="dot answer"') == 3 and text.count('class="dot best"') == 3
    panels = ladder_page._panels(dict(enumerate((r for r in climbed().rungs if r.scores), 1)), climbed())
    for panel in panels:
        for dot in panel.dots:
            assert panel.left <= dot.x <= panel.right and panel.top <= dot.high <= dot.y <= dot.low <= panel.bottom
        places = sorted(dot.x for dot in panel.dots)
        assert all(b - a >= 2 * ladder_page._DOT for a, b in itertools.pairwise(places))
    time = {dot.number: dot.x for dot in panels[0].dots}
    assert time[1] < time[2] < time[4] < time[3]  # nothing, nothing, 72 s, 107 s


def test_nothing_comes_from_outside_and_every_text_is_text() -> None:
    text = ladder_page.render(climbed())
    check_markup(text)
    assert "&lt;script&gt;alert(1)" in text and "{{ 7*7 }}" in text


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(tmp_path: Path, theme: str) -> None:
    path = tmp_path / "ladder.html"
    path.write_text(ladder_page.render(climbed()), encoding="utf-8")
    with opened(path, theme) as view:
        assert view.seen == [] and view.violations() == []
        assert view.page.evaluate("document.documentElement.scrollWidth") == 390
        paper = view.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(250, 249, 246)" if theme == "light" else "rgb(20, 19, 16)")
        assert view.page.get_by_role("heading", name="Learning rates").is_visible()
