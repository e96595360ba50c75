"""Comparing runs: what differs, paired tests with Holm, curves, rows; from folders made here, without a model."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier import runs, spec
from luthier.errors import DataError, NotFound, SpecError
from luthier.evaluation import charts, compare, compare_page, report
from luthier.evaluation.metrics import by_name
from luthier.evaluation.predictions import Question, collect
from luthier.runs import Evaluated, Stepped
from luthier.studio import Studio
from tests.browser import check_markup, opened
from tests.evaluation import sample

Make = Callable[..., runs.Run]
METRICS = ["exact_match", "chrf"]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make("name", chance=0.8, training={...})` → a run that has been tuned, evaluated and reported."""

    def run(
        name: str,
        chance: float = 0.7,
        asked: list[Question] | None = None,
        names: list[str] = METRICS,
        dataset: str = "d1",
        reported: bool = True,
        **described: object,
    ) -> runs.Run:
        experiment = spec.from_mapping({"model": "org/base", "data": "rows.jsonl", "name": name} | described)
        origins = {
            path: "you" if path in spec.chosen(experiment) else "default (a book)" for path in _leaves(experiment)
        }
        files = {"resolved.yaml": spec.dump(experiment), "origins.json": json.dumps(origins)}
        made = runs.create(tmp_path, name, "f", files, {"model": "org/base", "dataset": dataset, "notes": []})
        batch = experiment.training.batch_size or 1
        for step in range(1, 41):
            runs.append(made.path, Stepped(made.id, step, 0.0, 0.1, 3.0 / step, 1e-3, 1.0, 100 * batch, 0.1))
            if step % 10 == 0:
                runs.append(made.path, Evaluated(made.id, step, 0.0, {"loss": 2.0 / step}, True))
        if reported:
            questions = asked or sample.sql_questions(200)
            answerers = {"tuned": sample.right_with(chance, zlib.crc32(name.encode()))}
            rows = collect(questions, answerers, by_name(names), made.path / "predictions.jsonl", "k")
            report.write_json(report.make(sample.subject(run=made.id), rows, by_name(names)), made.path / "report.json")
        return runs.load(made.path)

    return run


def _leaves(experiment: spec.Experiment) -> list[str]:
    return list(spec.leaves(experiment))


def test_only_settings_that_differ_are_told_with_their_origin(make: Make) -> None:
    one = make("one", training={"batch_size": 1})
    other = make("two", training={"batch_size": 3}, method="prompt_tuning")
    found = compare.compare([one, other])
    told = {setting.path: (setting.values, setting.origins) for setting in found.settings}
    assert told["training.batch_size"] == ((1, 3), ("you", "you"))
    assert told["method.rank"][0][1] is None and told["method.rank"][1][1] == ""
    assert "name" not in told and "training.seed" not in told and "model.name" not in told
    assert compare.compare([one, make("three", training={"batch_size": 1})]).settings == ()


def test_tests_are_paired_and_against_the_first(make: Make) -> None:
    weak, strong = make("weak", 0.3), make("strong", 0.9)
    found = compare.compare([weak, strong])
    [test] = found.tests["exact_match"]
    assert test.outcome == "better" and test.n == found.shared == 200 and test.p_holm is None
    assert test.sentence.startswith(f"exact match: {strong.id} ") and weak.id in test.sentence
    assert compare.outcome_in_words(found) == "B is better than A"
    assert found.runs[0].scores == report.read_json(weak.path / "report.json").scores


def test_holm_allows_for_several_runs() -> None:
    def test(p: float, outcome: report.Outcome) -> report.Comparison:
        return report.Comparison("m", 9, 0.1, 0.0, 0.2, p, outcome, f"m: a 1, b 2: {outcome} on the same rows", 0.1)

    given = [test(0.03, "better"), test(0.001, "worse"), test(0.02, "better"), test(0.6, "cannot tell")]
    found = compare.adjusted(given)
    assert [one.p_holm for one in found] == pytest.approx([0.06, 0.004, 0.06, 0.6])
    assert [one.outcome for one in found] == ["cannot tell", "worse", "cannot tell", "cannot tell"]
    assert found[0].sentence == "m: a 1, b 2: cannot tell on these rows, p = 0.030 alone but p = 0.060 among these runs"
    assert [one.p_holm for one in compare.adjusted([test(0.9, "cannot tell")] * 3)] == [1.0] * 3


def test_rows_where_they_differ_come_worst_first(make: Make) -> None:
    found = compare.compare([make("one", 0.8), make("two", 0.4), make("three", 0.4)])
    ahead = [row.values[0] * 2 - sum(row.values[1:]) for row in found.differing]
    assert ahead == sorted(ahead, reverse=True) and ahead[0] == 2
    assert all(len(set(row.values)) > 1 for row in found.differing)
    same = sum(1 for row in sample.sql_questions(200) if row.example.id not in {d.id for d in found.differing})
    assert 0 < same < 200 and len(found.differing) + same == 200


def test_curves_lie_over_each_other_by_update_and_by_tokens(make: Make) -> None:
    small = make("small", training={"batch_size": 1})
    large = make("large", training={"batch_size": 4})
    found = compare.compare([small, large])
    assert [point[:2] for point in found.runs[0].validation] == [(10, 1000), (20, 2000), (30, 3000), (40, 4000)]
    assert [point[:2] for point in found.runs[1].validation][-1] == (40, 16000)
    by_tokens = charts.overlay({"A": [(1000, 2.0), (4000, 1.0)], "B": [(4000, 2.0), (16000, 1.0)]}, dotted=True)
    assert by_tokens is not None
    ends = {key: end[0] for key, _, _, end in by_tokens.lines}
    assert ends["B"] == by_tokens.right and ends["A"] == pytest.approx(
        by_tokens.left + (ends["B"] - by_tokens.left) / 4
    )
    assert charts.overlay({"A": [(1, 2.0)]}, dotted=True) is None


def test_letters_at_the_ends_of_lines_do_not_cover_each_other() -> None:
    same = {key: [(1, 1.0), (2, 0.5)] for key in "ABCDEFGH"}
    found = charts.overlay(same, dotted=False)
    assert found is not None
    places = sorted(end[1] for *_, end in found.lines)
    assert all(b - a >= 12.9 for a, b in itertools.pairwise(places)) and places[-1] <= found.bottom


def test_what_cannot_be_compared_is_said(make: Make, tmp_path: Path) -> None:
    one = make("one")
    with pytest.raises(SpecError, match="one run alone"):
        compare.compare([one])
    with pytest.raises(SpecError, match="9 runs are too many"):
        compare.compare([one] * 9)
    with pytest.raises(SpecError, match="named twice"):
        compare.compare([one, one])
    with pytest.raises(NotFound, match="has no report yet"):
        Studio(tmp_path).compare([one, make("unfinished", reported=False)])
    other = make("other", asked=[sample.question(10_000 + i, f"q {i}", "a") for i in range(5)], dataset="d2")
    with pytest.raises(SpecError, match="share no test row"):
        compare.compare([one, other])
    with pytest.raises(SpecError, match="no metric in common"):
        compare.compare([one, make("otherwise", names=["bleu"])])
    (one.path / "predictions.jsonl").write_text("torn\n", encoding="utf-8")
    with pytest.raises(DataError, match="not a line of predictions"):
        compare.compare([one, make("last")])


def test_runs_of_different_rows_are_compared_on_those_they_share(make: Make) -> None:
    one = make("one", 0.8)
    other = make("two", 0.5, asked=sample.sql_questions(120), dataset="d2", names=["exact_match"])
    found = compare.compare([one, other])
    assert found.shared == found.tests["exact_match"][0].n == 120
    assert [run.rows for run in found.runs] == [200, 120]
    assert {run.scores["exact_match"].n for run in found.runs} == {120}
    assert "different data sets: they are compared on the 120 rows they share" in found.notes[0]
    assert found.notes[1] == "chrf: not every run was scored by it" and list(found.tests) == ["exact_match"]
    assert found.settings[-1].path == "data (rows)" and found.settings[-1].values == ("d1", "d2")


def test_a_metric_that_answers_alone_do_not_give_is_left_out(make: Make) -> None:
    one, other = make("one"), make("two")
    for run in (one, other):
        told = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
        told["scores"]["own_judge"] = told["scores"]["chrf"]
        (run.path / "report.json").write_text(json.dumps(told), encoding="utf-8")
    found = compare.compare([one, other])
    assert found.notes == ("own_judge: its values cannot be counted again from the answers alone",)
    assert "own_judge" not in found.runs[0].scores


def eight(make: Make) -> compare.Compared:
    described = [{"training": {"batch_size": 1 + k}} for k in range(8)]
    return compare.compare([make(f"run-{k}", 0.3 + 0.08 * k, **each) for k, each in enumerate(described)])


def test_the_page_says_what_the_comparison_says(make: Make) -> None:
    found = eight(make)
    page = compare_page.render(found)
    check_markup(page)
    for run in found.runs:
        assert run.run in page and f'<span class="letter">{run.key}</span>' in page
    for words in ("Eight runs, side by side", "training.batch_size", "Rows where they differ", "p, Holm", "by update"):
        assert words in page
    for test in found.tests["exact_match"]:
        assert test.sentence.replace("<", "&lt;") in page
    assert page.count('class="case one"') == len(found.differing)
    assert page.count('class="chart over"') == 2


def test_two_runs_alike_are_a_page_too(make: Make) -> None:
    found = compare.compare([make("one", 1.0), make("two", 1.0)])
    page = compare_page.render(found)
    check_markup(page)
    assert "the same settings on the same rows" in page and "every row is worth the same" in page
    assert "p, Holm" not in page


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(make: Make, tmp_path: Path, theme: str) -> None:
    """Eight runs at the width of a phone: no sideways scroll, no request, rows by who was ahead."""
    found = eight(make)
    compare_page.write_html(found, tmp_path / "compare.html")
    with opened(tmp_path / "compare.html", theme) as view:
        assert view.page.evaluate("document.documentElement.scrollWidth") == 390
        view.page.locator(".chips button", has_text="A better").click()
        told = int(view.page.locator(".count").inner_text().rpartition(" ")[2])
        assert told == sum(row.values[0] == 1 for row in found.differing)
        assert view.seen == [] and view.violations() == []
