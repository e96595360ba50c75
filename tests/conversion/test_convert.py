"""Configurations of other tools: the experiment each one becomes, and no key of it without a word."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from luthier import conversion, spec
from luthier.conversion.lines import Foreign, is_off
from luthier.errors import NotFound, SpecError
from luthier.spec import text

FILES = Path(__file__).parent / "files"
SOURCES = sorted(path for path in FILES.iterdir() if ".expected" not in path.name)
TOOLS = {"axolotl": "Axolotl", "llama": "LLaMA-Factory", "trl": "TRL", "watsonx": "watsonx"}


def _converted(tmp_path: Path, content: str, name: str = "config.yaml") -> conversion.Conversion:
    (tmp_path / name).write_text(content, encoding="utf-8")
    return conversion.convert(tmp_path / name, tmp_path / "experiment.yaml")


def _values(made: conversion.Conversion) -> dict[str, Any]:
    return {line.path: line.value for line in made.lines if line.path}


def test_every_tool_has_three_examples() -> None:
    told = [TOOLS[path.name.partition("-")[0]] for path in SOURCES]
    assert {name: told.count(name) >= 3 for name in TOOLS.values()} == dict.fromkeys(TOOLS.values(), True)
    assert {tool.name for tool in conversion.TOOLS} == set(TOOLS.values())


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_experiment_is_the_expected_one(source: Path, tmp_path: Path) -> None:
    made = conversion.convert(source, tmp_path / "experiment.yaml")
    assert made.tool == TOOLS[source.name.partition("-")[0]]
    (tmp_path / "experiment.yaml").write_text(made.text, encoding="utf-8")
    ours = spec.load(tmp_path / "experiment.yaml")
    expected = spec.load(source.with_suffix(".expected.yaml"))
    if "name" not in spec.chosen(expected):
        expected = expected.model_copy(update={"name": ours.name})
        assert "name" not in spec.chosen(ours)
    assert spec.leaves(ours) == spec.leaves(expected)
    assert spec.chosen(ours) - {"name"} == spec.chosen(expected) - {"name"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_every_key_is_spoken_of_with_its_line(source: Path) -> None:
    made = conversion.convert(source)
    values = text.read(source.read_text(encoding="utf-8"), source.name).values
    opened = {key for tool in conversion.TOOLS for key in tool.opened} & values.keys()
    wanted = {key for key, value in values.items() if not is_off(value)} - opened
    wanted |= {key for outer in opened for key in values[outer]}
    told = {part.partition(".")[0] for line in made.lines for part in line.key.split(" × ")}
    assert wanted <= told
    lines = source.read_text(encoding="utf-8").splitlines()
    for line in made.lines:
        if line.key:
            file, _, number = line.where.rpartition(":")
            name = line.key.split(" × ")[0].rpartition(".")[2]
            assert file == str(source) and (name.isdigit() or name in lines[int(number) - 1])
        if line.kind == "lost":
            assert line.words and not line.path


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("axolotl-qlora.yml", {"lora_modules_to_save", "special_tokens", "wandb_project", "flash_attention"}),
        ("axolotl-full.yaml", {"datasets.1", "warmup_ratio", "deepspeed", "neftune_noise_alpha"}),
        ("axolotl-prompt.yml", {"datasets.0.type.no_input_format", "test_datasets.0.type", "plugins", "liger_rope"}),
        ("llama-factory-lora.yaml", {"dataset", "trust_remote_code", "output_dir", "plot_loss"}),
        ("llama-factory-qlora.json", {"use_dora", "flash_attn", "do_train"}),
        ("llama-factory-full.yaml", {"adam_beta2", "save_strategy"}),
        ("trl-lora.yaml", {"eos_token", "push_to_hub", "env", "report_to"}),
        ("trl-full.json", {"optim", "lr_scheduler_kwargs", "attn_implementation"}),
        ("trl-soft-prompt.yaml", {"datasets.1", "tokenizer_name_or_path", "task_type"}),
        ("watsonx-prompt-tuning.json", {"project_id", "results_reference", "auto_update_model"}),
        ("watsonx-lora.json", {"type"}),
    ],
)
def test_what_stays_behind_is_named(source: str, said: set[str]) -> None:
    assert said <= {line.key for line in conversion.convert(FILES / source).of("lost")}


def test_the_effective_batch_is_told_and_packing_beside_it() -> None:
    changed = {line.key: line.words for line in conversion.convert(FILES / "axolotl-qlora.yml").of("changed")}
    assert "2 × 4 = 8 rows a step" in changed["micro_batch_size × gradient_accumulation_steps"]
    assert "4 × N" in changed["micro_batch_size × gradient_accumulation_steps"]
    assert "as many examples as fit" in changed["sample_packing"]
    devices = {line.key: line for line in conversion.convert(FILES / "watsonx-lora.json").of("changed")}
    assert devices["accumulate_steps × gpu.num"].value == 4


def test_defaults_of_the_tool_are_written_where_nobody_wrote_one(tmp_path: Path) -> None:
    bare = {
        "base_model: m\ndatasets: [{path: a, type: alpaca}]\nmicro_batch_size: 2\nadapter: lora\nlearning_rate: 1": {
            "training.schedule": "cosine",
            "training.warmup": 0.03,
            "training.num_epochs": 1,
            "training.max_seq_length": 512,
            "data.overlength": "drop",
            "method.dropout": 0.0,
        },
        "model_name_or_path: m\ndataset: a\nlora_rank: 4": {
            "method.alpha": 8.0,
            "training.learning_rate": 5e-5,
            "training.batch_size": 8,
            "training.max_seq_length": 2048,
            "training.num_epochs": 3,
            "method.type": "lora",
        },
        "model_name_or_path: m\ndataset_name: a/b\nuse_peft: true": {
            "method.rank": 16,
            "method.alpha": 32.0,
            "method.dropout": 0.05,
            "method.target_modules": [],
            "training.learning_rate": 2e-5,
            "training.max_seq_length": 1024,
            "data.overlength": "cut",
        },
        "model_name_or_path: m\ndataset_name: a/b\npeft_config: {lora_alpha: 16}": {
            "method.type": "lora",
            "method.rank": 8,
            "method.alpha": 16.0,
            "method.dropout": 0.0,
        },
        "base_model: m\ntuning_type: prompt_tuning\ntask_id: generation": {
            "method.init_method": "random",
            "method.virtual_tokens": 100,
            "data.overlength": "cut",
        },
    }
    for content, expected in bare.items():
        made = _converted(tmp_path, content)
        assert expected.items() <= _values(made).items(), made.tool
        assert {"data.test", "data.validation", "data.clean"} <= _values(made).keys()


@pytest.mark.parametrize(
    ("content", "words", "where"),
    [
        ("model: m\ndata: d", "is an experiment file of luthier's already", "config.yaml"),
        ("learning_rate: 1\nnum_train_epochs: 2", "no key that tells whose", "config.yaml"),
        ("", "no key that tells whose", "config.yaml"),
        ("micro_batch_size: 1\ncutoff_len: 2", "`micro_batch_size` of Axolotl; `cutoff_len` of LLaMA-Factory", ":1"),
        ("base_model: m\nrl: dpo\nmicro_batch_size: 1", "`rl` of Axolotl: this trains on preferences", ":2"),
        ("base_model: m\nadapter: lora", "names no rows (`data.train`)", "config.yaml"),
        ("datasets: [{path: a}]\nadapter: lora", "names no base (`model.name`)", "config.yaml"),
        ("base_model: m\nadapter: lora\nnum_epochs: .nan", "`num_epochs` must be a number", ":3"),
        ("base_model: m\nadapter: lora\nnum_epochs: true", "`num_epochs` must be a number", ":3"),
        ("base_model: m\nadapter: llama-adapter", "`adapter` of Axolotl", ":2"),
        ("stage: dpo\ndataset: a", "`stage` of LLaMA-Factory", ":1"),
        ("finetuning_type: freeze\ndataset: a", "`finetuning_type` of LLaMA-Factory", ":1"),
        ("model_name_or_path: m\nexport_dir: x\ntemplate: t", "trains nothing", ":2"),
        ("dataset_name: a\nbeta: 0.1", "`beta` of TRL", ":2"),
        ("dataset_name: a\npeft_config: {peft_type: IA3}", "`peft_type` of TRL", ":2"),
        ("use_peft: true", "names no rows", "config.yaml"),
        ("task_id: generation", "names no `base_model`", "config.yaml"),
        ("base_model: m\ntuning_type: other", "`tuning_type` must be prompt_tuning", ":2"),
        ("base_model: m\nmicro_batch_size: two\nadapter: lora", "`micro_batch_size` must be a number", ":2"),
        ("base_model: m\nmicro_batch_size: 0\nadapter: lora\ndatasets: [{path: a}]", "`training.batch_size`", ":2"),
        ("base_model: m\ndatasets: [{type: alpaca}]\nadapter: lora", "`datasets` names no rows", ":2"),
        ("base_model: m\ntask_id: generation\nverbalizer: Answer", "a prompt with {{input}} in it", ":3"),
        ("dataset: a\ndataset: b", "given twice", ":2"),
        ("a: &x 1\nb: *x", "not allowed", ":1"),
        ("a: !!python/object/apply:os.system [ls]", "tags are not allowed", ":1"),
        ("[1, 2]", "mapping", ":1"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(
    tmp_path: Path, content: str, words: str, where: str
) -> None:
    with pytest.raises(SpecError) as caught:
        _converted(tmp_path, content)
    assert words in caught.value.message and (caught.value.where or "").endswith(where)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(NotFound, match="does not exist") as caught:
        conversion.convert(tmp_path / "confg.yaml")
    assert "config.yaml" in (caught.value.hint or "")


def test_a_typing_error_is_told_with_what_was_probably_meant(tmp_path: Path) -> None:
    made = _converted(tmp_path, "model_name_or_path: m\ndataset: a\nlearning_rte: 1e-3")
    [lost] = [line for line in made.of("lost") if line.key == "learning_rte"]
    assert "did you mean `learning_rate`" in lost.words and lost.where.endswith(":3")
    made = _converted(tmp_path, "model_name_or_path: m\ndataset: a\nfinetuning_type: full\nlora_rank: 8")
    assert [line.key for line in made.of("lost")] == ["lora_rank"]


def test_what_is_lost_is_named_and_never_quoted(tmp_path: Path) -> None:
    secret = "hf_" + "a" * 34
    made = _converted(tmp_path, f"model_name_or_path: m\ndataset: a\nhf_hub_token: {secret}\nunknown: {secret}")
    assert {"hf_hub_token", "unknown"} <= {line.key for line in made.of("lost")}
    assert secret not in made.text and secret not in str([dataclasses.asdict(line) for line in made.lines])


def test_paths_that_are_here_are_found_from_where_the_experiment_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").touch()
    Path("trl.yaml").write_text("model_name_or_path: m\ndataset_name: rows.jsonl", encoding="utf-8")
    Path("lf.yaml").write_text("model_name_or_path: m\ndataset: a\ntemplate: x", encoding="utf-8")
    assert _values(conversion.convert("trl.yaml", "here.yaml"))["data.train"] == "rows.jsonl"
    assert _values(conversion.convert("trl.yaml", "sub/there.yaml"))["data.train"] == str(tmp_path / "rows.jsonl")
    assert _values(conversion.convert("lf.yaml", "here.yaml"))["data.train"] == "data/dataset_info.json:a"
    moved = _values(conversion.convert("lf.yaml", "sub/there.yaml"))["data.train"]
    assert moved == f"{tmp_path}/data/dataset_info.json:a"


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("load_in_8bit: true", "method.bits", 8),
        (
            "load_in_4bit: true\nbnb_config_kwargs: {bnb_4bit_use_double_quant: false}",
            "method.double_quantization",
            False,
        ),
        ("lora_target_modules: q_proj", "method.target_modules", ["q_proj"]),
        ("excess_length_strategy: raise", "data.overlength", "error"),
        ("train_on_inputs: yes", "data.train_on", "all"),
        ("lr_scheduler: rex", "training.schedule", "linear"),
        ("lr_scheduler: cosine_with_restarts", "training.schedule", "cosine"),
        ("warmup_steps: 0\nwarmup_ratio: 0.1", "training.warmup", 0.1),
        ("bf16: false", "model.dtype", "float32"),
        ("fp16: true", "model.dtype", "float16"),
        ("eager_attention: true", "model.attention", "eager"),
        ("gradient_checkpointing: offload", "training.gradient_checkpointing", True),
        ("chat_template_jinja: '{{ messages }}'", "model.chat_template", "{{ messages }}"),
        ("val_set_size: 500", "data.validation", 0.1),
        ("num_epochs: 2.5", "training.num_epochs", 3),
        ("eval_steps: 0.1", "training.evaluate_every", None),
        ("save_steps: 50\nsave_strategy: epoch", "training.save_every", None),
    ],
)
def test_settings_of_axolotl(tmp_path: Path, setting: str, path: str, value: Any) -> None:
    head = "base_model: m\ndatasets: [{path: a.jsonl}]\nmicro_batch_size: 1\nadapter: lora\nlearning_rate: 1e-3\n"
    assert _values(_converted(tmp_path, head + setting)).get(path) == value


def test_json_s_halves_of_a_character_are_joined(tmp_path: Path) -> None:
    head = '{"base_model": "m", "tuning_type": "prompt_tuning", "init_method": "text", "init_text": "%s"}'
    made = _converted(tmp_path, head % "smile \\ud83d\\ude00", "request.json")
    assert _values(made)["method.init_text"] == "smile \U0001f600" and made.text.encode()
    with pytest.raises(SpecError, match="half of a surrogate pair"):
        _converted(tmp_path, head % "\\ud83d", "request.json")


@pytest.mark.parametrize(
    ("kind", "format_name"),
    [
        ("alpaca", "alpaca"),
        ("alpaca_chat.load_qa", "alpaca"),
        ("sharegpt", "sharegpt"),
        ("chat_template", "messages"),
        ("completion", "text"),
        ("input_output", "segments"),
        ("orcamini", None),
    ],
)
def test_types_of_axolotl_s_data_sets(tmp_path: Path, kind: str, format_name: str | None) -> None:
    made = _converted(tmp_path, f"base_model: m\nadapter: lora\ndatasets: [{{path: a.jsonl, type: {kind}}}]")
    assert _values(made).get("data.format") == format_name


def test_words_of_yaml_1_1_are_read_as_these_tools_read_them() -> None:
    values = Foreign({"a": "yes", "b": "off", "c": "1_000", "d": "2e-4", "e": False}, {})
    assert (values.flag("a"), values.flag("b"), values.count("c"), values.number("d")) == (True, False, 1000, 2e-4)
    assert values.word("e", "x") == "no" and values.word("z", "x") == "x"
    wrong = Foreign({"n": 2.5, "w": "2e-4", "l": [1]}, {"n": "f:3"})
    for key, reading in (
        ("n", wrong.count),
        ("w", wrong.flag),
        ("l", wrong.texts),
        ("w", wrong.inner),
        ("w", wrong.parts),
    ):
        with pytest.raises(SpecError, match=f"`{key}` must be"):
            reading(key)
    with pytest.raises(SpecError, match="whole number") as caught:
        wrong.count("n")
    assert caught.value.where == "f:3"
