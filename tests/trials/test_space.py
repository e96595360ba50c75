"""The space: values that can be counted, conditions, each method's default, a trial's experiment, what is shared."""

from __future__ import annotations

import pytest

from luthier import presets, spec
from luthier.errors import SpecError
from luthier.trials import space
from tests.trials.told import whole

BASE = presets.BaseFacts("base", "causal", "llama", 576, 30, 2048, 49152, 135_000_000, False, False)


def experiment(**fields) -> spec.Experiment:
    return spec.Experiment(**{"name": "x", "model": "org/base", "data": "rows.jsonl"} | fields)


def default(**fields) -> tuple[space.Space, presets.Resolved]:
    one = experiment(**fields)
    resolved = presets.resolve(one, BASE, "generation")
    return space.default(one, resolved, BASE), resolved


def dimension(entry, path="method.rank") -> space.Dimension:
    return whole({path: entry}).dimensions[0]


# --- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "entry", "values"),
    [
        ("method.rank", {"int": [4, 8]}, (4, 5, 6, 7, 8)),
        ("method.rank", {"int": [4, 16], "step": 4}, (4, 8, 12, 16)),
        ("method.rank", {"int": [4, 15], "step": 4}, (4, 8, 12)),
        ("method.rank", {"log": [4, 64], "step": 2}, (4, 8, 16, 32, 64)),
        ("method.dropout", {"uniform": [0, 0.2], "step": 0.1}, (0.0, 0.1, 0.2)),
        ("training.learning_rate", {"log": [1e-5, 1e-2], "step": 10}, (1e-5, 1e-4, 1e-3, 1e-2)),
        ("method.rank", [8, 4], (8, 4)),
    ],
)
def test_values_that_can_be_counted(path, entry, values):
    found = dimension(entry, path)
    assert found.values == found.grid == values and all(map(found.holds, values))


@pytest.mark.parametrize(
    ("path", "entry", "grid"),
    [
        ("training.learning_rate", {"log": [1e-5, 1e-1]}, (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)),
        ("method.dropout", {"uniform": [0, 0.2]}, (0.0, 0.05, 0.1, 0.15, 0.2)),
        ("method.rank", {"log": [4, 64]}, (4, 8, 16, 32, 64)),
        ("method.rank", {"log": [1, 3]}, (1, 2, 3)),
        ("seed", {"int": [0, 4_000_000_000]}, (0, 10**9, 2 * 10**9, 3 * 10**9, 4 * 10**9)),
    ],
)
def test_a_range_without_steps_has_five_points_in_a_grid(path, entry, grid):
    found = dimension(entry, path)
    assert found.values is None and found.grid == grid


def test_a_range_of_a_whole_number_holds_whole_numbers():
    found = dimension({"log": [4, 64]})
    assert found.kind == "int" and found.holds(5) and not found.holds(5.5) and not found.holds(65)
    assert dimension({"uniform": [0, 0.2]}, "method.dropout").holds(0.123)
    assert not dimension(["linear"], "training.schedule").holds("cosine")


def test_every_combination_stands_once_and_conditions_hold():
    found = whole({"training.schedule": ["linear", "constant"], "training.warmup": [0, 0.1], "method.rank": [4, 8]})
    assert len({space.same(values) for values in found.combinations()}) == 8
    entry = {"choices": [0, 0.1], "when": {"training.schedule": "linear"}}
    found = whole({"training.warmup": entry, "training.schedule": ["linear", "constant"]})
    assert [each.path for each in found.dimensions] == ["training.schedule", "training.warmup"]
    assert list(found.combinations()) == [
        {"training.schedule": "linear", "training.warmup": 0.0},
        {"training.schedule": "linear", "training.warmup": 0.1},
        {"training.schedule": "constant"},
    ]
    assert not found.holds({"training.schedule": "constant", "training.warmup": 0.1})
    assert not found.holds({"training.schedule": "linear"})


def test_a_condition_on_what_is_not_varied_here_is_not_met():
    chain = {
        "training.schedule": ["linear", "constant"],
        "training.warmup": {"choices": [0, 0.1], "when": {"training.schedule": "linear"}},
        "method.dropout": {"choices": [0, 0.2], "when": {"training.warmup": 0.1}},
    }
    found = [values for values in whole(chain).combinations() if "method.dropout" in values]
    assert found and all(each["training.warmup"] == 0.1 for each in found)


def test_what_only_some_methods_have_varies_with_them():
    found = whole(
        {"method.rank": [4, 8], "method.virtual_tokens": [5], "method.type": ["lora", "prompt_tuning", "full"]}
    )
    assert list(found.combinations()) == [
        {"method.type": "lora", "method.rank": 4},
        {"method.type": "lora", "method.rank": 8},
        {"method.type": "prompt_tuning", "method.virtual_tokens": 5},
        {"method.type": "full"},
    ]


def test_a_space_is_written_as_it_is_read():
    entries = {
        "method.type": ["lora", "prompt_tuning"],
        "method.rank": {"int": [4, 64], "step": 4},
        "training.learning_rate": {"log": [1e-5, 1e-2]},
        "method.dropout": {"uniform": [0.0, 0.2]},
        "method.target_modules": [["q"], ["q", "v"]],
    }
    found = whole(entries)
    assert space.parse(space.written(found)) == found
    assert space.written(found)["method.rank"] == {"int": [4, 64], "step": 4, "when": {"method.type": ["lora"]}}


def test_twins_are_the_same_whatever_the_order_and_the_sequence():
    one = {"method.rank": 8, "method.target_modules": ("q",)}
    assert space.same(one) == space.same({"method.target_modules": ["q"], "method.rank": 8})
    assert space.same({"method.rslora": True}) != space.same({"method.rslora": 1})


# --- the default space -----------------------------------------------------------------------------------------------
def test_lora_varies_the_rate_then_rank_and_dropout_and_never_alpha():
    found, resolved = default()
    assert [each.path for each in found.dimensions] == ["training.learning_rate", "method.rank", "method.dropout"]
    rate, rank, dropout = (each.values for each in found.dimensions)
    prior = resolved.experiment.training.learning_rate
    assert len(rate) == 5 and rate[2] == prior and rate[0] == pytest.approx(prior / 10, rel=0.05)
    assert (rank, dropout) == ((4, 8, 16, 32), (0.0, 0.05, 0.1))


def test_a_document_s_rate_and_the_usual_one_are_both_within_the_default_space():
    found, _ = default(training={"learning_rate": 1e-5}, method={"rank": 48, "dropout": 0.2})
    rate, rank, dropout = (each.values for each in found.dimensions)
    usual = presets.learning_rate("lora", BASE)[0]
    assert rate[0] == 1e-6 and 1e-5 in rate and rate[-1] >= 3 * usual
    assert (rank, dropout) == ((12, 24, 48, 64), (0.0, 0.05, 0.1, 0.2))


def test_prompt_tuning_and_full_vary_what_they_have():
    found, _ = default(method="prompt_tuning")
    assert [(each.path, each.values) for each in found.dimensions[1:]] == [
        ("method.virtual_tokens", (10, 20, 40)),
        ("method.init_method", ("vocabulary", "random")),
    ]
    assert max(found.dimensions[0].values) <= 0.5
    texted, resolved = default(method={"type": "prompt_tuning", "init_text": "Answer."})
    assert texted.dimensions[2].values == ("text", "vocabulary", "random")
    space.refuse_combinations(texted, resolved.experiment)
    found, _ = default(method="full")
    assert [(each.path, each.values) for each in found.dimensions[1:]] == [
        ("training.num_epochs", (1, 3, 6)),
        ("training.weight_decay", (0.0, 0.01, 0.1)),
    ]


@pytest.mark.parametrize("method", ["lora", "qlora", "prompt_tuning", "full"])
def test_the_described_values_are_in_every_default_space_and_come_first(method):
    found, resolved = default(method=method, training={"learning_rate": 0.3})
    first, *rates = space.starts(found, resolved.experiment)
    assert found.holds(first)
    assert all(spec.leaves(resolved.experiment)[path] == value for path, value in first.items())
    steps = [values["training.learning_rate"] for values in rates]
    assert len(steps) == len(found.dimensions[0].values) - 1 and len(set(steps)) == len(steps)
    assert all({**values, "training.learning_rate": 0.3} == first for values in rates)


def test_starts_leave_out_what_the_space_does_not_hold():
    one = presets.resolve(experiment(), BASE, "generation").experiment
    assert space.starts(whole({"method.rank": [3, 5], "method.dropout": [0, 0.1]}), one) == ({"method.dropout": 0.0},)
    assert space.starts(whole({"method.rank": [3, 5]}), one) == ()
    (targets,) = space.starts(whole({"method.target_modules": [["all-linear"], ["q"]]}), one)
    assert targets == {"method.target_modules": ["all-linear"]}


def test_the_budget_is_what_was_wished_or_fits_the_method_and_never_more_than_there_is():
    four = whole({"method.rank": [4, 8], "method.dropout": [0, 0.1]})
    rates = whole({"training.learning_rate": {"log": [1e-5, 1e-2]}})
    assert space.budget(rates, spec.Search(), "lora") == 16 and space.budget(rates, spec.Search(), "full") == 8
    assert space.budget(rates, spec.Search(trials=40), "full") == 40
    assert space.budget(four, spec.Search(), "lora") == 4
    many = whole({"method.rank": {"int": [1, 64]}})
    assert space.budget(many, spec.Search(sampler="grid"), "lora") == 64
    assert space.budget(many, spec.Search(sampler="grid", trials=10), "lora") == 10
    assert space.budget(rates, spec.Search(sampler="grid"), "lora") == 5


# --- a trial's experiment --------------------------------------------------------------------------------------------
def test_values_are_laid_over_what_was_described_and_nothing_else_changes():
    one = experiment(method=spec.Lora(rank=8, alpha=32), training={"num_epochs": 2}, search={"trials": 4})
    found = space.applied(one, {"method.rank": 4, "training.learning_rate": 0.1, "seed": 3, "model.name": "org/b"})
    assert found.search is None and "search" not in found.model_fields_set
    changed = {"method.rank": 4, "training.learning_rate": 0.1, "seed": 3, "model.name": "org/b", "search": None}
    assert (
        spec.leaves(found)
        == {path: value for path, value in spec.leaves(one).items() if not path.startswith("search.")} | changed
    )
    assert spec.chosen(found) == spec.chosen(one) - {"search.trials"} | {"training.learning_rate", "seed"}


def test_rows_from_python_stay_what_they_are():
    one = experiment(data=[{"input": "a", "output": "b"}])
    assert space.applied(one, {"method.rank": 4}).data.train == one.data.train
    assert space.applied(one, {"data.template": "{{input}}:"}).data.template == "{input}:"


def test_another_method_keeps_what_both_have():
    one = experiment(method=spec.Lora(rank=8, dropout=0.1))
    assert space.applied(one, {"method.type": "qlora"}).method == spec.QLora(rank=8, dropout=0.1)
    assert space.applied(one, {"method.type": "full"}).method == spec.Full()
    tuned = space.applied(one, {"method.type": "prompt_tuning", "method.virtual_tokens": 4})
    assert tuned.method == spec.PromptTuning(virtual_tokens=4)


def test_a_prompt_that_does_not_start_from_a_text_loses_it():
    one = experiment(method=spec.PromptTuning(init_method="text", init_text="Answer."))
    assert space.applied(one, {"method.init_method": "random"}).method.init_text is None
    assert space.applied(one, {"method.init_method": "text"}).method.init_text == "Answer."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method.rank": 8.5}, "`method.rank` must be a whole number, not 8.5"),
        ({"seed": -1}, "`seed` must be at least 0, not -1"),
        ({"method.rnk": 8}, "`method.rnk` is not a parameter of a trial; did you mean `method.rank`?"),
        ({"data.train": "x"}, "`data.train` is the same for all trials"),
        ({"method.type": "full", "method.rank": 8}, "`method.rank` is not a parameter"),
    ],
)
def test_values_that_cannot_be_are_refused_in_the_same_words(values, message):
    with pytest.raises(SpecError) as caught:
        space.applied(experiment(), values)
    assert message in caught.value.message


def test_values_that_do_not_go_together_are_refused_before_any_is_trained():
    one = experiment(method="prompt_tuning")
    texts = {"method.init_method": ["random", "text"], "method.init_text": ["Answer."]}
    with pytest.raises(SpecError, match="allows what cannot be: `method` has an `init_text`") as caught:
        space.refuse_combinations(whole(texts, "prompt_tuning"), one)
    assert "`when:" in caught.value.hint and "init_method the text 'random'" in caught.value.message
    texts["method.init_text"] = {"choices": ["Answer."], "when": {"method.init_method": "text"}}
    space.refuse_combinations(whole(texts, "prompt_tuning"), one)


def test_probes_show_every_choice_and_both_ends_with_what_their_conditions_ask():
    entries = {
        "method.type": ["lora", "full"],
        "method.rank": {"int": [4, 64]},
        "training.learning_rate": [1e-4, 1e-3],
    }
    assert list(space.probes(whole(entries))) == [
        {"method.type": "lora"},
        {"method.type": "full"},
        {"method.type": "lora", "method.rank": 4},
        {"method.type": "lora", "method.rank": 64},
        {"training.learning_rate": 1e-4},
        {"training.learning_rate": 1e-3},
    ]


# --- looks and groups ------------------------------------------------------------------------------------------------
def looks(train: int, validation: int, pruner: str = "asha", **training) -> int | None:
    fields = {"batch_size": 10, "accumulate_steps": 1, "num_epochs": 3} | training
    return space.evaluate_every(experiment(training=fields), train, validation, pruner)


def test_a_pruner_gets_nine_looks_where_they_cost_a_third():
    assert looks(1000, 100) == 34  # 300 updates
    assert looks(1000, 10) == 34
    assert looks(1000, 600) == 60  # 9,000 rows of validation pay for 5 looks of 600
    assert looks(1000, 100, max_steps=30) == 10  # 300 rows of training for 3 of 100


def test_nobody_looks_more_often_where_an_epoch_is_enough_or_it_was_said():
    assert looks(1000, 100, num_epochs=20) is None
    assert looks(1000, 1000) is None
    assert looks(1000, 100, pruner="none") is None
    assert looks(1000, 100, evaluate_every=7) is None and looks(1000, 100, patience=2) is None
    assert looks(1000, 0) is None


def group(revision: str = "r", **fields) -> str:
    resolved = presets.resolve(experiment(**fields), BASE, "generation").experiment
    return space.group_key(resolved, revision)


def test_trials_share_a_process_where_base_and_rendering_are_the_same():
    here = group()
    assert here == group(method={"rank": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj"]})
    assert here == group(
        training={"learning_rate": 1.0, "batch_size": 2, "num_epochs": 9, "schedule": "cosine"}, seed=5
    )
    assert here == group(method={"type": "prompt_tuning", "virtual_tokens": 5}) == group(name="other")
    others = [
        group("r2"),
        group(model="org/other"),
        group(model={"name": "org/base", "dtype": "bfloat16"}),
        group(method="qlora"),
        group(method={"type": "qlora", "bits": 8}),
        group(data={"train": "rows.jsonl", "template": "{input}"}),
        group(data={"train": "rows.jsonl", "train_on": "all"}),
        group(training={"max_seq_length": 64}),
    ]
    assert len({here, *others}) == 9


def test_full_tuning_is_alone():
    assert group(method="full") != group(method="full", seed=1)
