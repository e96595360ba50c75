"""report.html of a search: what it says and draws for searches of every shape, every text escaped; and in a browser."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import pytest

from luthier.evaluation.report import Report
from luthier.runs import Score
from luthier.trials import page, pictures
from luthier.trials.board import Axis, Board
from luthier.trials.conclude import conclude
from tests.browser import View, check_markup, opened
from tests.evaluation import sample
from tests.payloads import PAYLOADS
from tests.trials import made

BOARDS = made.varied()
ALL = " ".join(PAYLOADS)
REPORT = Report(sample.subject(), {"loss": Score(1.25, 1.1, 1.4, 300)}, {}, {}, "exact match: better on the same rows")


def hostile() -> Board:
    """Every text of it a payload, values and paths among them."""
    axes = tuple(Axis(f"data.{text}", "choices", choices=(text, "plain")) for text in PAYLOADS[:3])
    told = [
        made.trial(k, {axis.path: text for axis in axes}, 1 + k / 60, reason=text, by=text)
        for k, text in enumerate(PAYLOADS)
    ]
    told += [made.trial(60 + k, {axes[0].path: text}, None, "failed", 0.1, text) for k, text in enumerate(PAYLOADS)]
    report = dataclasses.replace(REPORT, verdict=ALL, fit=ALL)
    facts = {text: text for text in PAYLOADS}
    known = made.search(name=ALL, axes=axes, facts=facts, notes=(ALL,), described={axis.path: ALL for axis in axes})
    return conclude(known, told, {}, dict.fromkeys((axis.path for axis in axes), 0.3), report)


@pytest.mark.parametrize("name", BOARDS)
def test_every_shape_of_a_search_is_a_sound_page(name: str) -> None:
    found = BOARDS[name]
    text = page.render(found)
    check_markup(text)
    assert text.count('<th scope="row">') >= len(found.entries) and "nan" not in re.sub(
        r"<style>.*?</style>", "", text, flags=re.S
    )
    for entry in found.entries:
        assert f">{entry.called}<" in text


def test_it_says_the_answer_and_what_it_rests_on() -> None:
    found = BOARDS["sixteen"]
    text = page.render(found)
    assert f'<p class="box-t">Trial {found.best:03d} is best: validation loss ' in text
    for sentence in (found.against, found.optimism.sentence, found.pruned.sentence):
        assert f'<p class="box-d">{sentence}.</p>' in text
    assert text.count('<tr class="pruned">') == 5 and "as described</span>" in text
    assert text.index('<h2 id="board">') < text.index('<h2 id="values">') < text.index('<h2 id="matters">')


def test_the_winners_verdict_stands_there_with_a_way_to_its_report() -> None:
    found = conclude(made.search(), made.trials(16), {}, {}, REPORT)
    text = page.render(found)
    link = f"../{made.ID}.{found.best:03}/report.html"
    check_markup(text, frozenset([link]))
    assert f'<a href="{link}">' in text and "exact match: better on the same rows." in text
    assert "Validation loss there: 1.25 (1.10–1.40)." in text
    winner = dataclasses.replace(found.tested, run_id="javascript:alert(1)")  # type: ignore[type-var]
    check_markup(page.render(dataclasses.replace(found, tested=winner)))


def test_a_base_in_a_folder_goes_by_its_own_name() -> None:
    text = page.render(conclude(made.search(facts={"model": "/home/somebody/models/small"}), made.trials(3), {}, {}))
    assert "model <b>small</b>" in text and "somebody" not in text


def test_hostile_texts_are_texts() -> None:
    text = page.render(hostile())
    check_markup(text, frozenset([f"../{made.ID}.000/report.html"]))
    assert "&lt;script&gt;" in text and "<script" not in text


@pytest.mark.parametrize("name", BOARDS)
def test_every_line_lies_in_its_picture(name: str) -> None:
    found = BOARDS[name]
    if drawn := pictures.parallel(found):
        assert len(drawn.lines) == len(found.entries)
        for _, points, _ in drawn.lines:
            for x, y in (map(float, point.split(",")) for point in points.split()):
                assert 0 <= x <= drawn.width and drawn.top <= y <= drawn.height
                assert y <= drawn.bottom or y == drawn.none
        for column in drawn.columns:
            assert all(drawn.top <= y <= drawn.bottom for y, _ in column.ticks)
            marks = sorted(y for y, _ in column.ticks)
            assert all(b - a > 11 for a, b in itertools.pairwise(marks))
    if lines := pictures.curves(found):
        assert len(lines.lines) == sum(bool(entry.curve) for entry in found.entries)


def test_the_winner_is_drawn_last_and_the_pruned_first() -> None:
    for drawn in (pictures.parallel(BOARDS["sixteen"]), pictures.curves(BOARDS["sixteen"])):
        assert drawn is not None
        tones = [line[0] for line in drawn.lines]
        assert tones[-1] == "best" and tones.count("pruned") == 5 and tones.index("plain") > tones.index("pruned")


def test_the_heat_map_has_the_best_of_each_cell_and_says_what_was_not_tried() -> None:
    values = [(1e-4, 8), (1e-3, 8), (1e-3, 8), (1e-3, 16)]
    losses = [2.0, 1.5, 1.4, None]
    told = [
        made.trial(k, {pictures.RATE: rate, pictures.RANK: rank}, loss, "done" if loss else "failed")
        for k, ((rate, rank), loss) in enumerate(zip(values, losses, strict=True))
    ]
    found = pictures.heat(conclude(made.search(), told, {}, {}))
    assert (
        found is not None and found.columns == ("1e-4", "0.001") and [label for label, _ in found.rows] == ["16", "8"]
    )
    (empty, failed), (worst, best) = (cells for _, cells in found.rows)
    assert empty is None and failed is not None and (failed.text, failed.shade) == ("failed", 0)
    assert worst is not None and (worst.text, worst.shade, worst.best) == ("2.000", 1, False)
    assert best is not None and (best.text, best.shade, best.best, best.count) == ("1.400", 10, True, 2)
    assert pictures.heat(BOARDS["one parameter"]) is None and pictures.heat(BOARDS["words alone"]) is None


def test_one_that_is_far_off_does_not_press_the_others_together() -> None:
    drawn = pictures.curves(BOARDS["far off"])
    assert drawn is not None and drawn.beyond == 1
    best, worst = pictures.reach([3.5, 1.3, 1.2, 1.25, 5_000.0], BOARDS["far off"].aims[0])
    assert best == 1.2 and 3.5 < worst < 10


OVERLAPS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll("svg.chart")) {
    const texts = [...svg.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
    const frame = svg.getBoundingClientRect();
    for (const [words, box] of texts)
      if (box.right > frame.right + 1 || box.left < frame.left - 1) found.push(`${words} leaves the picture`);
    texts.forEach(([a, p], i) => texts.slice(i + 1).forEach(([b, q]) => {
      if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 3 && q.top < p.bottom - 3)
        found.push(`${a} over ${b}`);
    }));
  }
  return found;
}"""


def _is_calm(view: View, width: int) -> None:
    assert view.seen == [] and view.violations() == []
    assert view.page.evaluate("document.documentElement.scrollWidth") == width
    assert view.page.evaluate(OVERLAPS) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", BOARDS)
def test_in_a_browser(tmp_path: Path, name: str) -> None:
    """Nothing is wider than the screen, no label covers another, nothing is asked for outside."""
    path = tmp_path / "report.html"
    path.write_text(page.render(BOARDS[name]), encoding="utf-8")
    for theme, width in (("light", 1280), ("dark", 360)):
        with opened(path, theme, width) as view:
            _is_calm(view, width)
            paper = view.page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert paper == ("rgb(250, 249, 246)" if theme == "light" else "rgb(20, 19, 16)")


@pytest.mark.slow
def test_hostile_texts_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page.render(hostile()), encoding="utf-8")
    with opened(path, "light", 360) as view:
        for details in view.page.locator("details").all()[:6]:
            details.locator("summary").click()
        _is_calm(view, 360)
