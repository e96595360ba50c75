"""The experiment as a type: fields, bounds, defaults, advice, fingerprint, schema, arithmetic."""

from __future__ import annotations

import doctest
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from luthier import spec
from luthier.errors import SpecError
from luthier.spec import arithmetic, conditions, text, values

DESIGN = {
    "Experiment": "name model task data method training evaluation search seed",
    "Model": "name revision dtype attention chat_template base_url",
    "Data": "train validation test encoding format columns template labels train_on overlength clean remove_leaks "
    "accept group_by limit",
    "PromptTuning": "type virtual_tokens init_method init_text",
    "Lora": "type rank alpha dropout target_modules rslora",
    "QLora": "type rank alpha dropout target_modules rslora bits double_quantization",
    "Full": "type trainable",
    "Training": "batch_size accumulate_steps num_epochs max_steps learning_rate schedule warmup weight_decay "
    "max_grad_norm max_seq_length batching share_prefixes gradient_checkpointing save_every evaluate_every patience",
    "Evaluation": "metrics judge max_new_tokens temperature limit compare_base slices regression",
    "Judge": "model base_url mode rubric concurrency labelled",
    "Search": "space trials at_once sampler pruner objective time_limit token_limit seeds",
}
"""The fields of DESIGN §4, name by name: adding one is a decision, not an accident."""


def experiment(**fields) -> spec.Experiment:
    return spec.Experiment(**{"model": "org/base", "data": "rows.jsonl"} | fields)


def refusal(**fields) -> SpecError:
    with pytest.raises(SpecError) as caught:
        experiment(**fields)
    return caught.value


# --- the fields ------------------------------------------------------------------------------------------------------
def test_the_fields_are_those_of_the_design():
    found = {kind.__name__: list(kind.model_fields) for kind in values.sections()}
    assert found == {name: fields.split() for name, fields in DESIGN.items()}


def test_at_most_80_leaf_fields():
    """Paths a file can set: `method.rank` is one, though LoRA and QLoRA both have it."""
    roots = {kind.root for kind in values.sections()}
    leaves = {(*kind.root, name) for kind in values.sections() for name in kind.model_fields} - roots
    assert 70 < len(leaves) <= 80


def test_every_section_and_field_is_described_once():
    for kind in values.sections():
        assert kind.__doc__
        for name, field in kind.model_fields.items():
            assert field.description and len(field.description) >= 6, (kind.__name__, name)
            assert field.description.rstrip().endswith((".", "`", ")", ":"))


def test_what_is_omitted_is_said_where_none_has_a_meaning():
    """The preset fills the None of the first group; the text of every other None field says what omitted means."""
    preset = {"virtual_tokens", "init_method", "rank", "alpha", "dropout", "target_modules", "batch_size"}
    preset |= {"accumulate_steps", "num_epochs", "learning_rate", "warmup", "weight_decay"}
    for kind in values.sections():
        for name, field in kind.model_fields.items():
            if field.default is None and name not in preset:
                assert "Omitted" in field.description, (kind.__name__, name)


def test_the_door_is_light():
    code = "import sys, luthier.spec, luthier.plugins, luthier.hardware, luthier.presets; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"'torch'", "'numpy'", "'transformers'", "'pandas'"} & set(loaded.strip("[]\n").split(", "))


def test_plain_defaults():
    found = spec.leaves(experiment())
    assert found["training.max_grad_norm"] == 1.0 and found["training.schedule"] == "linear"
    assert found["training.share_prefixes"] is True and found["training.batching"] == "random"
    assert found["method.type"] == "lora" and found["method.rank"] is None
    assert found["data.train_on"] == "assistant" and found["data.overlength"] == "error"
    assert found["evaluation.compare_base"] is True and found["evaluation.temperature"] == 0.0
    assert found["search"] is None and found["seed"] == 0


# --- ways to write it ------------------------------------------------------------------------------------------------
def test_text_stands_for_a_section():
    one = experiment(method="qlora", evaluation={"judge": "gpt-4o"})
    assert one.model == spec.Model(name="org/base") and one.data == spec.Data(train="rows.jsonl")
    assert one.method == spec.QLora() and one.evaluation.judge == spec.Judge(model="gpt-4o")
    assert experiment(model=Path("a/b"), data=Path("r.csv")) == experiment(model="a/b", data="r.csv")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("none", spec.Full()),
        ("full", spec.Full()),
        ({"type": "none", "trainable": "layers.11."}, spec.Full(trainable=("layers.11.",))),
        ({"rank": 4}, spec.Lora(rank=4)),
        (None, spec.Lora()),
        ("prompt_tuning", spec.PromptTuning()),
        ({"type": "qlora", "bits": 8}, spec.QLora(bits=8)),
        ({"target_modules": "all-linear"}, spec.Lora(target_modules=("all-linear",))),
        (spec.QLora(rank=2), spec.QLora(rank=2)),
    ],
)
def test_methods_in_all_their_spellings(written, meant):
    assert experiment(method=written).method == meant


def test_rows_from_python_are_taken_and_kept_out_of_everything_written():
    rows = [{"input": "a", "output": "private"}]
    one = experiment(data=rows)
    assert list(one.data.train) == rows
    assert "private" not in spec.dump(one) and spec.ROWS in spec.dump(one)
    assert spec.fingerprint(one, "d", None) == spec.fingerprint(experiment(), "d", None)
    assert experiment(data=spec.Data(train=iter(rows), test=rows)).data.test == rows


def test_a_data_frame_is_its_rows():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", "b"], "label": [0, 1]})
    assert experiment(data=frame).data.train[1] == {"text": "b", "label": 1}


def test_both_spellings_of_a_template():
    assert spec.Data(train="x", template="Input: {{input}}\nOutput:").template == "Input: {input}\nOutput:"
    assert spec.Data(train="x", template="classify {a, b} {{ text }}").template == "classify {a, b} {text}"


def test_readings_of_data():
    data = spec.Data(train="x", labels=[0, 1], accept="G07", format="prompt/completion", clean=False, validation=0)
    assert (data.labels, data.accept, data.format) == (("0", "1"), ("G07",), "prompt_completion")
    assert (data.clean, data.validation) == ((), 0.0)


def test_an_experiment_is_frozen_and_travels():
    one = experiment()
    with pytest.raises(Exception, match="frozen"):
        one.seed = 3
    assert pickle.loads(pickle.dumps(one)) == one


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"training": {"batch_size": 0}}, "`training.batch_size` must be at least 1, not 0"),
        ({"training": {"batch_size": 1.5}}, "`training.batch_size` must be a whole number, not 1.5"),
        ({"training": {"batch_size": 8.0}}, "`training.batch_size` must be a whole number, not 8.0"),
        ({"training": {"batch_size": 10**400}}, "`training.batch_size` must be at most 2147483647, not 1000"),
        ({"method": {"alpha": 10**400}}, "`method.alpha` must be a"),
        ({"training": {"batch_size": True}}, "`training.batch_size` must be a whole number, not true"),
        ({"training": {"batch_size": "8"}}, "`training.batch_size` must be a whole number, not the text '8'"),
        ({"training": {"learning_rate": 0}}, "`training.learning_rate` must be greater than 0, not 0"),
        ({"training": {"learning_rate": float("nan")}}, "`training.learning_rate` must be a finite number, not nan"),
        (
            {"training": {"warmup": 1.5}},
            "`training.warmup` must be a share below 1 or a whole number of steps, not 1.5",
        ),
        ({"training": {"warmup": -0.1}}, "`training.warmup` must be at least 0, not -0.1"),
        ({"training": {"share_prefixes": 1}}, "`training.share_prefixes` must be true or false, not 1"),
        ({"training": []}, "`training` must be a mapping (name: value), not a list"),
        ({"method": {"dropout": 1}}, "`method.dropout` must be less than 1, not 1"),
        ({"method": {"type": "qlora", "bits": 3}}, "`method.bits` must be one of 4, 8, not 3"),
        ({"method": {"target_modules": [1]}}, "`method.target_modules[0]` must be text, not 1"),
        (
            {"method": {"type": "prompt_tuning", "init_method": "text"}},
            "`method` with `init_method: text` needs `init_text`",
        ),
        (
            {"method": {"type": "prompt_tuning", "init_method": "random", "init_text": "x"}},
            "`method` has an `init_text`, which `init_method: random` does not use",
        ),
        ({"seed": -1}, "`seed` must be at least 0, not -1"),
        ({"name": "a/b"}, "`name` must be made of letters, digits, `.`, `_` and `-`, at most 64, not the text 'a/b'"),
        ({"model": ""}, "`model.name` must be not empty"),
        (
            {"data": {"train": None}},
            "`data.train` must be a path or the name of a Hub data set, or an iterable of rows, not empty",
        ),
        (
            {"data": ["a.jsonl"]},
            "`data.train` must hold rows that are mappings (column: value), not the text 'a.jsonl'",
        ),
        (
            {"data": {"train": "x", "test": 1}},
            "`data.test` as a number is a share of `train`: at least 0 and less than 1, not 1",
        ),
        (
            {"data": {"train": "x", "test": 0.5, "validation": 0.5}},
            "`data` leaves nothing to train on: the shares of `validation` and `test` reach 1",
        ),
        ({"data": {"train": "x", "labels": ["a", "a"]}}, "`data.labels` must not name the same label twice"),
    ],
)
def test_refusals_name_parameter_bound_and_value(fields, message):
    assert refusal(**fields).message.startswith(message)


def test_sections_made_on_their_own_are_refused_in_the_same_words():
    with pytest.raises(SpecError) as caught:
        spec.Training(learning_rte=1e-4)
    assert caught.value.message == "`training.learning_rte` is not a parameter"
    assert caught.value.hint == "did you mean `learning_rate`?"
    with pytest.raises(SpecError, match=r"`evaluation\.judge\.concurrency` must be at least 1"):
        spec.Judge(concurrency=0)


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"task": "clasification"}, "did you mean `classification`?"),
        ({"method": "lroa"}, "did you mean `lora`?"),
        ({"learning_rate": 1}, "did you mean `training.learning_rate`?"),
        ({"method": {"virtual_tokens": 8}}, "`virtual_tokens` belongs to prompt_tuning; this method is lora"),
        ({"method": {"bits": 4}}, "`bits` belongs to qlora; this method is lora"),
        ({"training": {"num_train_epochs": 1}}, "did you mean `training.num_epochs`?"),
        ({"training": {"cutoff_len": 1}}, "did you mean `training.max_seq_length`?"),
        ({"method": {"lora_r": 8}}, "did you mean `method.rank`?"),
        ({"lora_alpha": 8}, "did you mean `method.alpha`?"),
        ({"gradient_accumulation_steps": 8}, "did you mean `training.accumulate_steps`?"),
        ({"base_model": "x"}, "did you mean `model.name`?"),
        ({"num_virtual_tokens": 8}, "did you mean `method.virtual_tokens`?"),
        ({"method": {"load_in_4bit": True}}, "say `method: qlora` (`method.bits: 4`)"),
        ({"output_dir": "x"}, "runs are kept under the home folder: `--home`"),
        ({"search": {"space": {"method.rnk": [1]}}}, None),
    ],
)
def test_hints(fields, hint):
    assert refusal(**fields).hint == hint


def test_the_words_of_other_tools_lead_to_parameters_that_exist():
    from luthier.spec.wording import INSTEAD, SAME_THING

    sections = {".".join(kind.root) for kind in values.sections()}
    assert set(SAME_THING.values()) <= set(spec.known_paths()) | sections
    assert not {path.split(".")[-1] for path in spec.known_paths()} & (set(SAME_THING) | set(INSTEAD))


@pytest.mark.parametrize(
    "secret",
    ["hf_" + "a1B2" * 8, "sk-proj-" + "x9" * 12, "ghp_" + "q" * 36, "https://me:hunter2@example.org/v1"],
)
@pytest.mark.parametrize(
    "where", ["model.name", "model.revision", "evaluation.judge.base_url", "data.columns", "training.warmup"]
)
def test_secrets_are_refused_and_never_repeated(secret, where):
    values_: dict = {"model": {"name": "m"}, "data": {"train": "x"}, "evaluation": {"judge": {}}, "training": {}}
    *sections, key = where.split(".")
    part = values_
    for section in sections:
        part = part[section]
    part[key] = {"input": secret} if key == "columns" else secret
    with pytest.raises(SpecError, match="looks like a secret") as caught:
        spec.from_mapping(values_)
    assert secret not in str(caught.value) and f"`{where}" in caught.value.message


def test_from_mapping_takes_no_rows_and_says_where():
    with pytest.raises(SpecError) as caught:
        spec.from_mapping({"model": "m", "data": [{"text": "a"}]}, where="request body")
    assert caught.value.where == "request body"
    assert "must be a path or the name of a Hub data set" in caught.value.message


# --- advice ----------------------------------------------------------------------------------------------------------
def test_the_document_s_ranges_are_advice():
    assert spec.advice(experiment(training={"batch_size": 16, "learning_rate": 0.5}, method={"rank": 64})) == []
    training = {"batch_size": 32, "learning_rate": 1e-6, "num_epochs": 51}
    found = spec.advice(experiment(training=training, method={"rank": 65}))
    assert len(found) == 4 and all(spec.DOCUMENT in line for line in found)
    assert any("`training.batch_size` is 32; advised are 1 to 16" in line for line in found)
    assert len(spec.advice(experiment(training={"accumulate_steps": 129}))) == 1


def test_a_space_of_alpha_and_rate_is_warned_about():
    space = {"method.alpha": [8, 16], "training.learning_rate": spec.log_uniform(1e-5, 1e-2)}
    assert any("one of them is enough" in line for line in spec.advice(experiment(search={"space": space})))
    del space["method.alpha"]
    assert spec.advice(experiment(search={"space": space})) == []


def test_a_loss_that_means_something_else_in_each_trial_is_warned_about():
    space = {"model.name": ["a", "b"]}
    assert any("another loss" in line for line in spec.advice(experiment(search={"space": space})))
    assert spec.advice(experiment(search={"space": space, "objective": "exact_match"})) == []


# --- what was chosen, fingerprints -----------------------------------------------------------------------------------
def test_chosen_is_what_a_person_wrote():
    one = experiment(method=spec.Lora(rank=8), training={"num_epochs": 3, "learning_rate": None})
    assert spec.chosen(one) == {"model.name", "data.train", "method.type", "method.rank", "training.num_epochs"}
    assert spec.chosen(experiment()) == {"model.name", "data.train"}


def test_a_fingerprint_sees_what_is_learned_and_nothing_else():
    def mark(data="d1", revision="c1", **fields):
        return spec.fingerprint(experiment(**fields), data, revision)

    assert mark() == mark(name="other")
    assert mark() == spec.fingerprint(experiment(data="elsewhere/rows.jsonl"), "d1", "c1")
    assert mark(model="/home/a/models/m") == mark(model="/cluster/m") != mark(model="/cluster/n")
    assert mark(method={"target_modules": ["q"]}) == mark(method={"target_modules": ("q",)})
    others = [mark(data="d2"), mark(revision="c2"), mark(seed=1), mark(method="full"), mark(model="org/two")]
    assert len({mark(), *others}) == 6


def test_every_leaf_but_name_and_paths_is_in_the_fingerprint():
    one = experiment(method="qlora", search={}, evaluation={"judge": "j"})
    places = {"name", "data.train", "data.validation", "data.test", "data.encoding", "evaluation.regression"}
    places |= {"evaluation.judge.labelled"}
    paths = set(spec.leaves(one)) - places
    other = {"bool": lambda v: not v, "int": lambda v: v + 1, "float": lambda v: v + 1, "str": lambda v: v + "x"}
    for path in paths:
        value = spec.leaves(one)[path]
        kind = type(value).__name__
        changed = other[kind](value) if kind in other else ("x",) if value is not None else 7
        assert spec.differences(one, _with(one, path.split("."), changed)) == [path]


def _with(part, keys, value):
    inner = value if len(keys) == 1 else _with(getattr(part, keys[0]), keys[1:], value)
    return part.model_copy(update={keys[0]: inner})


def test_differences_are_named_in_the_documentation_s_order():
    a = experiment(training={"num_epochs": 2}, seed=1)
    assert spec.differences(a, experiment(name="b", seed=2)) == ["training.num_epochs", "seed"]
    assert spec.differences(experiment(), experiment(method="full"))[0] == "method.type"
    assert "method.trainable" in spec.differences(experiment(), experiment(method="full"))
    assert spec.differences(a, a) == []


# --- the schema ------------------------------------------------------------------------------------------------------
def test_the_schema_has_bounds_advice_and_documentation():
    schema = spec.json_schema()
    json.dumps(schema)
    training = schema["$defs"]["Training"]["properties"]
    assert training["batch_size"]["advice"] == {"low": 1, "high": 16, "source": spec.DOCUMENT}
    assert training["batch_size"]["anyOf"][0]["minimum"] == 1
    assert all(field["description"] for part in schema["$defs"].values() for field in part["properties"].values())
    assert schema["additionalProperties"] is False and schema["required"] == ["model", "data"]
    assert {"type": "string"} in schema["properties"]["model"]["anyOf"]


# --- the arithmetic --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("module", [arithmetic, conditions, text, values])
def test_doctests(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


def test_the_arithmetic_of_the_document():
    assert spec.batches_per_epoch(1_000, 10) == 100
    assert spec.steps_per_epoch(100, 10) == 10
    assert spec.total_batches(1_000, 10, 20) == 2_000
    assert (spec.batches_per_epoch(1_005, 10), spec.steps_per_epoch(101, 10)) == (101, 11)
