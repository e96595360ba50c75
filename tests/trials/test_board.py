"""The board of a search: who is best, how sure that is, what it was worth, what was saved; and its JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from luthier.evaluation.report import Report
from luthier.runs import Score
from luthier.trials import board as boards
from luthier.trials import optimism, study
from luthier.trials.conclude import NO_ROWS, aim, conclude
from luthier.trials.rows import Rows
from tests.evaluation import sample
from tests.trials import made


def test_the_best_on_validation_wins_and_the_rest_stand_behind_it_in_order() -> None:
    told = made.trials(16)
    found = made.board(16)
    done = {trial.number: trial.scores["loss"] for trial in told if trial.state == "done" and trial.scores}
    assert found.best == min(done, key=lambda n: done[n])
    assert [e.number for e in found.entries[: len(done)]] == sorted(done, key=lambda n: done[n])
    assert [e.state for e in found.entries[len(done) :]] == ["pruned"] * 5 + ["failed"]
    assert found.headline.startswith(f"Trial {found.best:03d} is best: validation loss {done[found.best]:.3f} (")


def test_intervals_are_those_of_the_rows_and_say_who_cannot_be_told_apart() -> None:
    found = made.board(16)
    first, second = found.entries[:2]
    assert first.low is not None and first.high is not None and first.objective is not None
    assert first.low < first.objective[0] < first.high
    told = made.rows_of(made.trials(16))
    ours, theirs = (np.array(told[e.number].values["loss"]) for e in (first, second))
    gap = (theirs - ours) / 5
    sure = abs(gap.mean()) > 1.96 * gap.std(ddof=1) / math.sqrt(len(gap))
    assert second.alike is (not sure) and first.alike is None and found.entries[9].alike is False


def test_without_rows_there_is_no_interval_and_it_says_why() -> None:
    found = made.board(16, with_rows=False)
    assert all(entry.low is None and entry.alike is None for entry in found.entries)
    assert found.intervals == NO_ROWS and "(" not in found.headline
    assert found.optimism.how == "unknown" and found.optimism.amount is None
    assert "by how much is not known" in found.optimism.sentence


def test_a_share_has_an_interval_by_the_count_of_rows_and_a_bound_for_its_optimism() -> None:
    told = [
        made.trial(k, {"method.rank": rank}, 1.0, scores={"loss": 1.0, "exact_match": share})
        for k, (rank, share) in enumerate([(4, 0.70), (8, 0.76), (16, 0.74)])
    ]
    found = conclude(made.search(aims=(aim("exact_match", True),), rows=400), told, {}, {})
    assert found.best == 1 and found.headline == "Trial 001 is best: exact match 0.760 (0.716–0.799)"
    assert found.optimism.how == "bound" and found.optimism.amount == pytest.approx(0.8463 * 0.02135, rel=0.01)
    assert "on other rows expect up to 0.018 lower" in found.optimism.sentence


def test_of_equals_the_best_is_the_one_that_the_search_chooses() -> None:
    """Two have as many right answers: the smaller one, which none beats, is `study.front`'s first."""
    told = [
        made.trial(k, {"method.rank": rank}, 1.0, scores={"loss": 1.0, "exact_match": right})
        for k, (rank, right) in enumerate([(32, 0.8), (8, 0.8), (4, 0.7)])
    ]
    found = conclude(made.search(aims=(aim("exact_match", True), aim("size", False))), told, {}, {})
    assert found.best == study.front("exact_match, size", told)[0].number == 1
    assert [entry.number for entry in found.entries] == [1, 0, 2]


def test_what_was_chosen_stays_the_best_and_who_came_later_is_named() -> None:
    told = [
        made.trial(k, {"method.rank": rank}, loss) for k, (rank, loss) in enumerate([(4, 1.5), (8, 1.2), (16, 1.1)])
    ]
    found = conclude(made.search(chosen=1), told, {}, {})
    assert found.best == 1 and [entry.number for entry in found.entries] == [1, 2, 0] and found.optimism.count == 2
    later = "better, but at its end only after the choice: trial 002"
    assert found.headline == f"Trial 001 was chosen: validation loss 1.200; {later}"
    assert conclude(made.search(), told, {}, {}).best == 2


def test_the_optimism_is_said_with_the_score_that_other_rows_would_give() -> None:
    told = made.trials(16, pruned=False)
    found = conclude(made.search(), told, made.rows_of(told), {}).optimism
    assert found.how == "rows" and found.count == 15 and found.amount is not None and found.expected is not None
    assert 0 < found.amount < 0.05 and f"expect about {found.expected:.3f} on other rows" in found.sentence
    one = conclude(made.search(), made.trials(1), {}, {})
    assert one.optimism.sentence == "One trial came to its end: there is no other score to tell luck by"


def test_trials_that_were_pruned_were_compared_too_and_nobody_is_said_to_be_far_ahead() -> None:
    """They lost on the same rows, before their end: how lucky the winner was among them is only bounded."""
    told = [made.trial(0, {"method.rank": 4}, 1.0), made.trial(1, {"method.rank": 8}, 3.0)]
    rows = made.rows_of(told)
    assert "far enough ahead" in conclude(made.search(), told, rows, {}).optimism.sentence
    told += [made.trial(k, {"method.rank": 16}, 2.0, "pruned", 0.3) for k in range(2, 16)]
    for few in (told, [each for each in told if each.number != 1]):
        found = conclude(made.search(), few, rows, {})
        said, winner = found.optimism, found.entries[0]
        assert said.how == "bound" and said.count == len(few) and said.expected is None
        assert f"The best of {len(few)} trials" in said.sentence and "14 of them ended at looks" in said.sentence
        assert winner.low is not None and winner.high is not None and said.amount is not None
        assert said.amount == pytest.approx(optimism.at_most(len(few), (winner.high - winner.low) / 2 / 1.96), rel=1e-3)
    unknown = conclude(made.search(), told, {}, {}).optimism
    assert unknown.how == "unknown" and "14 of them" in unknown.sentence and "is not known" in unknown.sentence
    alone = conclude(made.search(), [told[0], made.trial(1, {}, None, "failed")], {}, {}).optimism
    assert alone.sentence == "One trial came to its end: there is no other score to tell luck by"


def test_the_described_values_against_the_winners() -> None:
    found = made.board(16)
    assert found.described == 0
    gap = found.entry(0).objective[0] - found.winner.objective[0]  # type: ignore[index,union-attr]
    assert f"the winner is {gap:.2g} lower (" in found.against and "on the same 240 rows)" in found.against
    assert {path for path, _, _ in found.differs} == set(made.DESCRIBED)
    assert "No trial had the values" in made.board(16, described={**made.DESCRIBED, "method.rank": 99}).against
    alone = made.board(1)
    assert alone.against == "The described values are the best that were tried (trial 000)" and alone.differs == ()


def test_what_pruning_saved() -> None:
    saved = made.board(16).pruned
    assert (saved.count, saved.updates, saved.planned) == (5, 5 * 210, 16 * 300)
    assert saved.seconds == pytest.approx(5 * 210 * 0.11) and saved.shares == (0.3,) * 5
    assert "5 of 16 trials were pruned, at 30% of their updates: 1,050 of 4,800 updates (22%)" in saved.sentence
    none = conclude(made.search(), made.trials(4, pruned=False), {}, {}).pruned
    assert none.sentence == "Nothing was pruned" and none.updates == 0


def test_failures_of_one_reason_are_one_and_all_may_fail() -> None:
    told = [made.trial(k, {"method.rank": 8}, None, "failed", 0.1, f"not finite at update {k}") for k in range(3)]
    found = conclude(made.search(), [*told, made.trial(3, {"method.rank": 4}, None, "failed", 0, "no memory")], {}, {})
    assert [(f.reason, f.numbers) for f in found.failures] == [
        ("not finite at update 0", (0, 1, 2)),
        ("no memory", (3,)),
    ]
    assert found.best is None and found.headline.startswith("No trial came to its end") and found.intervals == ""
    running = conclude(made.search(state="running"), told, {}, {})
    assert running.headline.startswith("No trial has come to its end yet")


def test_several_seeds_of_the_winner_are_no_trials_of_the_search() -> None:
    told = made.trials(16)
    best = made.board(16).best
    values = told[best].values  # type: ignore[index]
    more = [made.trial(16 + k, values, loss, by="seed") for k, loss in enumerate((1.0, 1.3))]
    found = conclude(made.search(), [*told, *more], {}, {})
    assert found.best == best and len(found.entries) == 16 and [e.number for e in found.seeded] == [16, 17]
    assert found.repeats is not None and found.repeats.numbers == (best, 16, 17)
    own = found.winner.objective[0]  # type: ignore[index,union-attr]
    assert (
        found.repeats.mean == pytest.approx((own + 2.3) / 3)
        and "without the seed that was chosen 1.150" in found.repeats.sentence
    )
    assert found.pruned.planned == 16 * 300


def test_two_aims_have_a_front() -> None:
    ranks = ((4, 1.5), (8, 1.2), (16, 1.25), (32, 1.1))
    told = [made.trial(k, {"method.rank": rank}, loss) for k, (rank, loss) in enumerate(ranks)]
    found = conclude(made.search(aims=(aim("loss", False), aim("size", False))), told, {}, {})
    assert {e.number for e in found.entries if e.front} == {0, 1, 3} and found.best == 3
    assert found.entries[0].objective == (1.1, 32 * 5120)
    assert [line[:2] for line in boards.table(found)[1]] == [
        ["003", "best"],
        ["001", "front"],
        ["002", "done"],
        ["000", "front"],
    ]


def test_the_winner_on_the_test_rows() -> None:
    report = Report(sample.subject(), {"exact_match": Score(0.8, 0.7, 0.9, 100)}, {}, {}, "exact match: better")
    found = conclude(made.search(), made.trials(4), {}, {}, report)
    assert found.tested is not None and found.tested.verdict == "exact match: better" and found.tested.score is None
    assert "On the test rows, opened once for the winner: exact match: better." in boards.sentences(found)


def test_json_gives_back_the_same_board(tmp_path: Path) -> None:
    report = Report(sample.subject(), {"loss": Score(0.8, 0.7, 0.9, 100)}, {}, {}, "better")
    values = {"method.target_modules": ["q_proj", "v_proj"], "method.rank": 8, "data.template": "{text} ⟦\n"}
    told = [*made.trials(16), made.trial(16, values, math.nan), made.trial(17, values, 1.9, by="seed")]
    found = conclude(made.search(), told, made.rows_of(told[:16]), made.IMPORTANCE, report)
    boards.write_json(found, tmp_path / boards.FILE)
    assert boards.read_json(tmp_path / boards.FILE) == found
    assert boards.to_json(found) == json.loads((tmp_path / boards.FILE).read_text())
    assert (
        found.entry(16).values["method.target_modules"] == '["q_proj", "v_proj"]' and found.entry(16).objective is None
    )


def test_the_plain_table_has_a_row_for_every_trial_and_a_cell_for_every_head() -> None:
    header, lines = boards.table(made.board(16))
    assert header[:6] == ["trial", "state", "validation loss", "learning_rate", "rank", "dropout"]
    assert len(lines) == 16 and {len(line) for line in lines} == {len(header)}
    assert lines[0][1] == "best" and lines[-1][1] == "failed" and lines[12][2].endswith("after 30%")
    assert all(isinstance(cell, str) for line in lines for cell in line)


def test_rows_of_another_rendering_are_compared_where_they_agree() -> None:
    """One trial counts other tokens in half of the rows: the others are what all are compared on."""
    told = made.trials(4, pruned=False)
    known = made.rows_of(told)
    sizes = tuple(5.0 if k < 120 else 7.0 for k in range(240))
    known[3] = Rows(known[3].ids, known[3].values, {"loss": sizes})
    found = conclude(made.search(), told, known, {})
    assert "over 120 rows" in found.optimism.sentence


def test_an_interval_is_that_of_the_trial_s_own_rows() -> None:
    """A score is over all rows of a trial, so is its interval; only the comparison is over what all share."""
    told = [made.trial(k, {"method.rank": rank}, loss) for k, (rank, loss) in enumerate([(4, 1.2), (8, 1.3)])]
    hard_N = np.r_[np.full(100, 0.2), np.full(100, 2.2)] + np.random.default_rng(0).normal(0, 0.1, 200)
    ids, ones = tuple(map(str, range(200))), (1.0,) * 200
    known = {0: Rows(ids, {"loss": tuple(hard_N)}, {"loss": ones})}
    known[1] = Rows(ids, {"loss": tuple(hard_N + 0.1)}, {"loss": ones[:100] + (2.0,) * 100})  # shares the easy half
    for entry in conclude(made.search(), told, known, {}).entries:
        assert entry.low is not None and entry.high is not None
        own = known[entry.number]
        score = sum(own.values["loss"]) / sum(own.sizes["loss"])
        assert entry.low < score < entry.high
        assert entry.alike is (None if entry.number == 0 else False)
