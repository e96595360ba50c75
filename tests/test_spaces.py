"""`search.space` as it is read: what each entry may be, and every refusal in the words of the parameter it varies."""

from __future__ import annotations

import doctest

import pytest

from luthier import spec
from luthier.errors import SpecError
from luthier.spec import spaces


def experiment(space: dict, **fields) -> spec.Experiment:
    return spec.Experiment(**{"model": "org/base", "data": "rows.jsonl", "search": {"space": space}} | fields)


def read(space: dict, **fields) -> dict:
    return experiment(space, **fields).search.space


# --- what may be varied ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "entry"),
    [
        ("method.rank", [4, 8]),
        ("method.rank", {"int": [4, 64], "step": 4}),
        ("method.rank", {"log": [4, 64]}),
        ("training.learning_rate", {"log": [1e-5, 1e-2]}),
        ("training.learning_rate", {"log": [1e-5, 1e-2], "step": 10}),
        ("training.batch_size", [1, 2, 4]),
        ("training.schedule", ["linear", "cosine"]),
        ("training.share_prefixes", [True, False]),
        ("training.max_steps", [None, 100]),
        ("method.target_modules", [["q_proj"], ["q_proj", "v_proj"], ["all-linear"]]),
        ("data.template", ["Input: {input}\nOutput:", "{input} ->"]),
        ("model.name", ["org/base", "org/other"]),
        ("method.type", ["lora", "full"]),
        ("seed", [0, 1, 2]),
        ("seed", {"int": [0, 2**32 - 1]}),
    ],
)
def test_any_numeric_or_categorical_parameter_may_vary(path, entry):
    assert read({path: entry}) == {path: entry}


def test_values_are_read_as_their_parameter_reads_them():
    space = {
        "method.target_modules": ["all-linear", ["q"]],
        "data.template": ["{{ input }}"],
        "method.type": ["lora", "none"],
    }
    assert read(space) == {
        "method.target_modules": [["all-linear"], ["q"]],
        "data.template": ["{input}"],
        "method.type": ["lora", "full"],
    }
    assert read({"method.dropout": [0, 0.1]})["method.dropout"] == [0.0, 0.1]


def test_python_s_words_make_the_same_entries():
    space = {"training.learning_rate": spec.log_uniform(1e-5, 1e-2, 10), "method.dropout": spec.uniform(0, 0.2)}
    space |= {"method.rank": spec.integers(4, 64, 4)}
    assert read(space) == {
        "training.learning_rate": {"log": [1e-5, 1e-2], "step": 10},
        "method.dropout": {"uniform": [0.0, 0.2]},
        "method.rank": {"int": [4, 64], "step": 4},
    }


def test_a_condition_names_one_choice_or_several():
    rank = {"choices": [4, 8], "when": {"training.schedule": "linear", "method.target_modules": ["q", "v"]}}
    space = {"training.schedule": ["linear", "cosine"], "method.target_modules": [["q", "v"], ["q"]]}
    assert read(space | {"method.rank": rank})["method.rank"]["when"] == {
        "training.schedule": ["linear"],
        "method.target_modules": [["q", "v"]],
    }
    both = {"choices": [4, 8], "when": {"training.schedule": ["cosine", "linear"]}}
    assert read(space | {"method.rank": both})["method.rank"]["when"] == {"training.schedule": ["cosine", "linear"]}


# --- what is refused -------------------------------------------------------------------------------------------------
FORMS = "a list of choices, {log|uniform|int: [low, high]} or {choices: […]}"
RATE = "training.learning_rate"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        # the path
        ({"method.rnk": [1]}, "`search.space.method.rnk` is not a parameter of a trial; did you mean `method.rank`?"),
        ({"lr": [1]}, "`search.space.lr` is not a parameter of a trial; did you mean `training.learning_rate`?"),
        ({"rank": [1]}, "`search.space.rank` is not a parameter of a trial; did you mean `method.rank`?"),
        ({"search.trials": [1]}, "`search.space.search.trials` is the same for all trials: it belongs to the search"),
        ({"data.train": ["a", "b"]}, "`search.space.data.train` is the same for all trials: trials are compared on"),
        ({"evaluation.limit": [1]}, "`search.space.evaluation.limit` is the same for all trials: trials are compared"),
        ({"method.virtual_tokens": [8]}, "`search.space.method.virtual_tokens` belongs to prompt_tuning; this method"),
        # the entry
        ({"method.rank": 8}, f"`search.space.method.rank` needs {FORMS}, not 8"),
        ({"method.rank": []}, "`search.space.method.rank` has no choice: it needs at least one value"),
        (
            {"method.rank": {"loguniform": [1, 2]}},
            f"`search.space.method.rank` has `loguniform`; it needs {FORMS}; did",
        ),
        ({"method.rank": {"step": 2}}, f"`search.space.method.rank` needs {FORMS}"),
        (
            {"method.rank": {"int": [1, 2], "log": [1, 2]}},
            f"`search.space.method.rank` needs {FORMS}, one of them: not",
        ),
        ({"method.rank": {"choices": 8}}, "`search.space.method.rank.choices` must be a list, not 8"),
        ({"method.rank": {"choices": [8], "step": 2}}, "`search.space.method.rank.step` has no meaning beside choices"),
        # every value, by its own parameter
        ({"method.rank": [8, 8.5]}, "`search.space.method.rank[1]` must be a whole number, not 8.5"),
        ({"method.rank": [8, "16"]}, "`search.space.method.rank[1]` must be a whole number, not the text '16'"),
        ({"method.rank": {"choices": [0]}}, "`search.space.method.rank.choices[0]` must be at least 1, not 0"),
        ({"method.rank": [8, 16, 8]}, "`search.space.method.rank` has 8 twice"),
        ({"method.dropout": [0, 0.0]}, "`search.space.method.dropout` has 0.0 twice"),
        ({"method.type": ["lora", "lroa"]}, "`search.space.method.type[1]` must be one of prompt_tuning, lora, qlora"),
        ({"training.schedule": ["cosin"]}, "`search.space.training.schedule[0]` must be one of linear, cosine"),
        ({"method.target_modules": [["q", 1]]}, "`search.space.method.target_modules[0][1]` must be text, not 1"),
        ({"data.template": ["none"]}, "`search.space.data.template[0]` must name a column, such as {input}"),
        ({"model.name": ["hf_" + "a1B2" * 8]}, "`search.space.model.name[0]` looks like a secret"),
        # both ends
        ({"method.rank": {"log": [0, 8]}}, "`search.space.method.rank.log[0]` must be at least 1, not 0"),
        ({"method.rank": {"log": [4.5, 8]}}, "`search.space.method.rank.log[0]` must be a whole number, not 4.5"),
        (
            {"method.dropout": {"uniform": [0, 1]}},
            "`search.space.method.dropout.uniform[1]` must be less than 1, not 1",
        ),
        ({"training.weight_decay": {"log": [0, 1]}}, "`search.space.training.weight_decay.log` needs the lower number"),
        ({RATE: {"log": [1e-2, 1e-5]}}, f"`search.space.{RATE}.log` needs the lower number first, above 0"),
        ({RATE: {"uniform": [1, 1]}}, f"`search.space.{RATE}.uniform` needs the lower number first"),
        ({RATE: {"log": [1e-5]}}, f"`search.space.{RATE}.log` needs two numbers: [low, high]"),
        ({RATE: {"log": "1e-5"}}, f"`search.space.{RATE}.log` needs two numbers: [low, high]"),
        ({RATE: {"int": [0.5, 2]}}, f"`search.space.{RATE}.int` needs two whole numbers"),
        ({"training.warmup": {"uniform": [0, 5]}}, "`search.space.training.warmup.uniform` must be a share below 1"),
        ({"training.schedule": {"uniform": [0, 1]}}, "`search.space.training.schedule.uniform` has a range, and"),
        # steps
        (
            {"method.rank": {"int": [4, 8], "step": 0}},
            "`search.space.method.rank.step` must be a number above 0, not 0",
        ),
        (
            {"method.rank": {"int": [4, 8], "step": 1.5}},
            "`search.space.method.rank.step` must be a whole number, not 1",
        ),
        (
            {"method.rank": {"int": [4, 8], "step": 5}},
            "`search.space.method.rank.step` leaves the range with its first",
        ),
        ({RATE: {"log": [1e-5, 1], "step": 1}}, f"`search.space.{RATE}.step` must be a factor above 1 (from one value"),
        (
            {RATE: {"uniform": [0.1, 1], "step": 1e-9}},
            f"`search.space.{RATE}.step` makes 900,000,001 values, more than",
        ),
        # conditions
        (
            {"training.schedule": ["linear"], "method.rank": {"choices": [4], "when": {"training.schedul": "linear"}}},
            "`search.space.method.rank.when.training.schedul` is not in the space; did you mean `training.schedule`?",
        ),
        (
            {"training.schedule": ["linear"], "method.rank": {"choices": [4], "when": {"training.schedule": "cosine"}}},
            "`search.space.method.rank.when.training.schedule` is never the text 'cosine': it has linear",
        ),
        (
            {RATE: {"log": [1e-5, 1]}, "method.rank": {"choices": [4], "when": {RATE: 0.1}}},
            f"`search.space.method.rank.when.{RATE}` has a range: a condition needs a list of choices",
        ),
        (
            {"method.rank": {"choices": [4], "when": {"method.rank": 4}}},
            "`search.space.method.rank.when.method.rank` stands under a condition on itself",
        ),
        (
            {
                "method.rank": {"choices": [4], "when": {"method.dropout": 0}},
                "method.dropout": {"choices": [0], "when": {"method.rank": 4}},
            },
            "`search.space.method.rank.when.method.dropout` stands under a condition on itself",
        ),
        (
            {"method.rank": {"choices": [4], "when": "linear"}},
            "`search.space.method.rank.when` needs a mapping (parameter",
        ),
    ],
)
def test_a_refusal_names_the_entry_and_what_it_needs(space, message):
    with pytest.raises(SpecError) as caught:
        experiment(space)
    assert caught.value.message.startswith(message), caught.value.message


def test_every_wrong_entry_is_said_at_once_at_its_own_line(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(
        "model: m\ndata: d.jsonl\nsearch:\n  space:\n    method.rank: [8, 8.5]\n    method.rnk: [1]\n"
        "    training.schedule: [cosin]\n",
        encoding="utf-8",
    )
    with pytest.raises(SpecError) as caught:
        spec.load(file)
    assert caught.value.where == f"{file}:5" and "method.rank[1]" in caught.value.message
    assert f"({file}:6)" in caught.value.hint and f"({file}:7): did you mean `cosine`?" in caught.value.hint


def test_what_another_method_has_is_refused_at_its_line(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(
        "model: m\ndata: d.jsonl\nmethod: full\nsearch:\n  space:\n    method.rank: [8]\n", encoding="utf-8"
    )
    with pytest.raises(SpecError) as caught:
        spec.load(file)
    assert caught.value.message == "`search.space.method.rank` belongs to lora and qlora; this method is full"
    assert caught.value.where == f"{file}:6"
    assert read({"method.rank": [8], "method.type": ["lora", "full"]}, method="full")["method.rank"] == [8]


def test_a_space_travels_through_its_own_text(tmp_path):
    space = {
        "method.type": ["lora", "prompt_tuning"],
        "method.target_modules": [["q", "v"], ["all-linear"]],
        "training.learning_rate": {"log": [1e-5, 0.01], "step": 10},
        "data.template": ["{input}: \n", "a {input}"],
        "method.rank": {"choices": [4, 8], "when": {"method.type": ["lora"]}},
    }
    one = experiment(space)
    file = tmp_path / "x.yaml"
    file.write_text(spec.dump(one), encoding="utf-8")
    assert spec.load(file).search.space == one.search.space == space


def test_doctests():
    found = doctest.testmod(spaces)
    assert found.attempted > 0 and found.failed == 0
