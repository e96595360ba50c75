"""Samplers, importance and the front: pure functions of seed, number and history."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

from luthier import spec
from luthier.errors import SpecError
from luthier.trials import pruning, space, study
from tests.trials.told import running, search, trial, whole

RATES = {"training.learning_rate": {"log": [1e-5, 1e-1]}, "method.rank": [4, 8, 16, 32]}
CONDITIONED = {
    "method.type": ["lora", "prompt_tuning"],
    "method.rank": [4, 8, 16],
    "method.virtual_tokens": {"int": [2, 40]},
    "training.learning_rate": {"log": [1e-5, 1e-1]},
}
SAMPLERS = ("tpe", "random", "cmaes", "grid")


def wishes(sampler: str = "tpe", **fields) -> spec.Search:
    return spec.Search(sampler=sampler, **fields)


def loss(values) -> float:
    """Lowest at a rate of 1e-3; nothing else matters."""
    return 1 + (math.log10(values["training.learning_rate"]) + 3) ** 2


# --- every sampler ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_values_come_from_the_space_and_no_trial_is_a_twin(sampler):
    within = whole(RATES)
    trials = search(within, wishes(sampler), loss, 20)
    assert len(trials) == 20 and all(within.holds(each.values) for each in trials)
    assert len({space.same(each.values) for each in trials}) == 20


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_conditions_hold_in_every_trial(sampler):
    within = whole(CONDITIONED)
    trials = search(within, wishes(sampler), loss, 16)
    assert all(within.holds(each.values) for each in trials)
    assert {each.values["method.type"] for each in trials} == {"lora", "prompt_tuning"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_begins_again_goes_on_as_if_it_had_never_ended(sampler):
    within, wished = whole(RATES), wishes(sampler)
    never = search(within, wished, loss, 18)
    for known in (0, 3, 9, 17):
        assert study.ask(within, wished, 7, never[:known]) == never[known].values
    alive = [*never[:12], *map(running, never[12:16])]
    assert study.ask(within, wished, 7, alive) == study.ask(within, wished, 7, list(alive))


def test_values_are_the_same_in_another_process():
    """Nothing follows from the order of a set, which differs from process to process."""
    here = [each.values for each in search(whole(CONDITIONED), wishes(), loss, 12)]
    code = (
        "from tests.trials import told, test_study as t\n"
        "print([each.values for each in told.search(told.whole(t.CONDITIONED), t.wishes(), t.loss, 12)])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "3", "PYTHONPATH": "src:."}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(here)


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_random_and_grid_ask_nothing_of_what_trials_came_to(sampler):
    within, wished = whole(RATES), wishes(sampler)
    one, other = (search(within, wished, told, 10) for told in (loss, lambda values: -loss(values)))
    assert [each.values for each in one] == [each.values for each in other]
    other_seed = study.ask(within, wished, 8, [])
    assert other_seed != one[0].values


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_tpe_and_cmaes_come_nearer_to_what_is_good(sampler):
    for objective in ("loss", "exact_match"):
        within, wished, trials = whole(RATES | {"method.dropout": {"uniform": [0, 0.2]}}), wishes(sampler), []
        wished = wishes(sampler, objective=objective)
        while len(trials) < 30:
            values = study.ask(within, wished, 1, trials)
            told = {"losses": [loss(values)], "metric": [-loss(values)]}
            trials.append(trial(len(trials), told["losses"], "done", looks=1, values=values, metric=told["metric"]))
        early, late = ([loss(each.values) for each in part] for part in (trials[:8], trials[-8:]))
        assert sorted(late)[3] < sorted(early)[3] and min(late) < 1.05


def test_trials_under_way_keep_others_from_their_neighbourhood():
    within, wished = whole({"training.learning_rate": {"log": [1e-5, 1e-1]}}), wishes()
    done = search(within, wished, loss, 12)

    def near(taken: float) -> int:
        """Of 20 searches how many would go on near the best rate, where three trials are under way at `taken`."""
        beside = [trial(12 + i, values={"training.learning_rate": taken * (1 + i / 20)}) for i in range(3)]
        asked = [study.ask(within, wished, seed, [*done, *beside]) for seed in range(20)]
        return sum(abs(math.log10(values["training.learning_rate"]) + 3) < 0.4 for values in asked)

    assert near(1e-3) < near(2e-5)


def test_what_failed_is_not_tried_next_to():
    within, wished = whole({"training.learning_rate": {"log": [1e-5, 1e-1]}}), wishes()
    trials = []
    while len(trials) < 30:
        values = study.ask(within, wished, 3, trials)
        bad = values["training.learning_rate"] > 1e-3
        told = [] if bad else [math.log10(values["training.learning_rate"]) + 6]
        trials.append(trial(len(trials), told, "failed" if bad else "done", looks=1, values=values))
    late = [each.values["training.learning_rate"] for each in trials[-10:]]
    assert sum(rate > 1e-3 for rate in late) <= 3


def test_several_objectives_are_taken_by_tpe():
    within, wished = whole(RATES), wishes(objective="loss, size")
    trials = []
    while len(trials) < 16:
        values = study.ask(within, wished, 1, trials)
        state = "pruned" if len(trials) % 4 == 1 else "failed" if len(trials) % 4 == 2 else "done"
        told = [] if state == "failed" else [loss(values)]
        trials.append(trial(len(trials), told, state, values=values, parameters=100 * values["method.rank"]))
    assert all(within.holds(each.values) for each in trials)


# --- grids and what can be counted -----------------------------------------------------------------------------------
@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_what_can_be_counted_is_tried_completely_and_once(sampler):
    entries = {
        "training.schedule": ["linear", "constant"],
        "training.warmup": {"choices": [0, 0.1], "when": {"training.schedule": "linear"}},
        "method.target_modules": [["q"], ["q", "v"]],
    }
    within = whole(entries)
    trials = search(within, wishes(sampler), lambda values: len(values), 20)
    assert {space.same(each.values) for each in trials} == {space.same(each) for each in within.combinations()}
    assert len(trials) == 6


def test_a_grid_goes_on_around_what_a_person_added():
    within, wished = whole({"method.rank": [4, 8, 16]}), wishes("grid")
    first = study.ask(within, wished, 7, [])
    added = [trial(0, [1.0], "done", values=first, by="person"), trial(1, [1.0], "done", values={"seed": 5}, by="seed")]
    rest = []
    while (values := study.ask(within, wished, 7, [*added, *rest])) is not None:
        rest.append(trial(2 + len(rest), [1.0], "done", values=values))
    assert {each.values["method.rank"] for each in rest} == {4, 8, 16} - {first["method.rank"]}


def test_a_range_in_a_grid_has_five_points():
    trials = search(whole({"training.learning_rate": {"log": [1e-5, 1e-1]}}), wishes("grid"), loss, 20)
    assert sorted(each.values["training.learning_rate"] for each in trials) == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]


# --- where it begins -------------------------------------------------------------------------------------------------
def test_the_described_values_come_first_and_then_the_rates():
    within = whole({"training.learning_rate": [1e-4, 1e-3, 1e-2], "method.rank": [4, 8]})
    starts = [{"training.learning_rate": rate, "method.rank": 8} for rate in (1e-3, 1e-4, 1e-2)]
    assert [each.values for each in search(within, wishes("tpe"), loss, 3, starts)] == starts
    drawn = [each.values for each in search(within, wishes("random"), loss, 3, starts)]
    assert drawn[0] == starts[0] and drawn != starts
    assert len(search(within, wishes("tpe"), loss, 20, starts)) == 6


def test_what_the_space_lacks_of_the_described_is_drawn():
    within = whole(RATES)
    values = study.ask(within, wishes(), 7, [], [{"method.rank": 8}])
    assert values["method.rank"] == 8 and within.holds(values)


def test_a_start_that_a_person_has_tried_is_not_tried_again():
    within, starts = whole({"method.rank": [4, 8]}), [{"method.rank": 8}]
    added = [trial(0, [1.0], "done", values={"method.rank": 8}, by="person")]
    assert study.ask(within, wishes(), 7, added, starts) == {"method.rank": 4}


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("entries", "wished", "message"),
    [
        (RATES, wishes(objective="exact_mach"), "there is no metric `exact_mach`"),
        (RATES, wishes(objective=" , "), "`search.objective` names nothing"),
        (
            {"method.rank": {"int": [1, 200]}, "seed": {"int": [0, 100]}},
            wishes("grid"),
            "the grid of `search.space` has more than 10,000 combinations",
        ),
        (RATES, wishes("cmaes", objective="loss, size"), "`search.sampler: cmaes` takes one objective"),
        (
            {"method.rank": [4, 8], "training.schedule": ["linear", "cosine"]},
            wishes("cmaes"),
            "`search.sampler: cmaes` needs two numbers in `search.space` without a condition",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_the_first_question(entries, wished, message):
    with pytest.raises(SpecError) as caught:
        study.ask(whole(entries), wished, 0, [])
    assert caught.value.message.startswith(message) and caught.value.hint


# --- directions, front, importance -----------------------------------------------------------------------------------
def test_directions_are_the_metrics_own():
    assert study.directions("loss") == (False,)
    assert study.directions("exact_match, size, perplexity") == (True, False, False)


def test_the_front_is_what_no_other_beats_best_first():
    trials = [
        trial(0, [1.0], parameters=400),
        trial(1, [2.0], parameters=100),
        trial(2, [1.5], parameters=500),
        trial(3, [0.5], parameters=800),
        trial(4),
        trial(5, [0.5], parameters=900),
        trial(6, [0.5], parameters=800),
    ]
    assert [each.number for each in study.front("loss", trials)] == [3, 5, 6]
    assert [each.number for each in study.front("loss, size", trials)] == [3, 6, 0, 1]
    better = [trial(0, [1.0], metric=[0.2]), trial(1, [1.0], metric=[0.9])]
    assert [each.number for each in study.front("exact_match", better)] == [1]
    assert study.front("loss", [trial(4)]) == []


@pytest.mark.parametrize("matters", ["training.learning_rate", "method.dropout"])
def test_importance_finds_the_parameter_that_alone_matters(matters):
    within = whole({"training.learning_rate": {"log": [1e-5, 1e-1]}, "method.dropout": {"uniform": [0, 0.5]}})
    within = whole(space.written(within) | {"method.rank": [4, 8, 16, 32]})
    best = {"training.learning_rate": -3.0, "method.dropout": math.log10(0.3)}[matters]
    told = lambda values: (math.log10(values[matters] + 1e-9) - best) ** 2  # noqa: E731
    found = study.importance(within, wishes(), search(within, wishes("random"), told, 60))
    assert next(iter(found)) == matters and found[matters] > 0.6
    assert sum(found.values()) == pytest.approx(1) and set(found) == set(RATES) | {"method.dropout"}


def test_importance_says_nothing_of_few_trials_and_counts_the_pruned():
    within = whole(RATES)
    trials = search(within, wishes("random"), loss, 12)
    assert study.importance(within, wishes(), trials[:7]) == {}
    pruned = [trial(each.number, [each.scores["loss"]], "pruned", values=each.values) for each in trials]
    assert study.importance(within, wishes(), pruned)


def test_importance_of_what_varies_under_a_condition():
    within = whole(CONDITIONED)
    found = study.importance(within, wishes(), search(within, wishes("random"), loss, 40))
    assert next(iter(found)) == "training.learning_rate" and set(found) == set(CONDITIONED)


def test_weak_is_asked_with_the_directions_of_the_objective():
    trials = [trial(i, [1.0] * 4, metric=[0.1 * i] * 4) for i in range(6)]
    wished = wishes(objective="exact_match")
    ends = [study.weak(wished, trials, number) for number in range(6)]
    assert ends == [pruning.weak(wished, (True,), trials, number) for number in range(6)]
    assert ends[0] is not None and ends[5] is None
