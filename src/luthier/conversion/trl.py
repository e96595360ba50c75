"""TRL: the YAML or JSON of `trl sft --config` (ScriptArguments, SFTConfig, ModelConfig), with PEFT's names as well.

Lives here: what each of its keys means here, and its own defaults (read in TRL 1.16 and PEFT 0.21).
"""

from __future__ import annotations

from functools import partial

from luthier.conversion import hugging_face as hf
from luthier.conversion import rows
from luthier.conversion.lines import Foreign, Line, Tool, as_here, carried, changed, default, lost, names, written

NAME = "TRL"
_ADAPTER = "luthier trains plain LoRA, without this"
_PEFT = {"r": "lora_r", "target_modules": "lora_target_modules", "modules_to_save": "lora_modules_to_save"}
_OTHER_TRAINING = names(
    "beta num_generations reward_funcs reward_model_path reward_model_name_or_path max_prompt_length ref_model "
    "max_completion_length desirable_weight"
)
_STARTS = {"TEXT": "text", "RANDOM": "random", "SAMPLE_VOCAB": "vocabulary"}


def _method(f: Foreign) -> list[Line]:
    """`use_peft` and the bits of the base; or a PEFT configuration, which has other defaults than TRL's ModelConfig."""
    kind = f.word("peft_type", "lora")
    if kind == "prompt_tuning":
        return _soft(f)
    bare = any(f.has(key) for key in ("peft_config", "lora_config", "peft_type", "r", "target_modules"))
    bits = 4 if f.flag("load_in_4bit") else 8 if f.flag("load_in_8bit") else 0
    if not (bare or f.flag("use_peft")):
        return [written(f, "use_peft", "method.type", "full")]
    key = next(
        name for name in ("use_peft", "peft_type", "peft_config", "lora_config", "r", "target_modules") if f.has(name)
    )
    found = [carried(key, "method.type", "qlora" if bits else "lora")]
    found += [as_here("peft_type")] if f.has("peft_type") and key != "peft_type" else []
    if bits:
        found.append(carried("load_in_4bit" if bits == 4 else "load_in_8bit", "method.bits", bits))
        double = "use_bnb_nested_quant"
        found.append(written(f, double, "method.double_quantization", f.flag(double)))
    rank, alpha, dropout = (8, 8.0, 0.0) if bare else (16, 32.0, 0.05)
    ranks = "r" if f.has("r") else "lora_r"
    layers = "target_modules" if f.has("target_modules") else "lora_target_modules"
    found.append(written(f, ranks, "method.rank", f.count(ranks, rank)))
    found.append(written(f, "lora_alpha", "method.alpha", f.number("lora_alpha", alpha)))
    found.append(written(f, "lora_dropout", "method.dropout", f.number("lora_dropout", dropout)))
    found.append(
        carried(layers, "method.target_modules", f.texts(layers))
        if f.has(layers)
        else default("method.target_modules", [], "PEFT's own for the architecture")
    )
    return found


def _soft(f: Foreign) -> list[Line]:
    """PEFT's PromptTuningConfig."""
    found = [carried("peft_type", "method.type", "prompt_tuning")]
    if f.has("num_virtual_tokens"):
        found.append(carried("num_virtual_tokens", "method.virtual_tokens", f.count("num_virtual_tokens")))
    key = "prompt_tuning_init"
    start = f.text(key, "RANDOM")
    if start not in _STARTS:
        raise f.wrong(key, "TEXT, RANDOM or SAMPLE_VOCAB")
    found.append(written(f, key, "method.init_method", _STARTS[start]))
    if f.has("prompt_tuning_init_text"):
        text = "prompt_tuning_init_text"
        words = f"`{key}: {start}` does not use it"
        found.append(carried(text, "method.init_text", f.text(text)) if start == "TEXT" else lost(text, words))
    return found


def _data(f: Foreign) -> list[Line]:
    """`dataset_name` or a mixture `datasets`; validation is the split of the name `dataset_test_split`."""
    found, first = rows.one_of("data.train", "datasets", f.parts("datasets"), "datasets.")
    if first is not None:
        found += [lost("dataset_name", "`datasets` are there")] if f.has("dataset_name") else []
        found += [lost("datasets.0.columns", hf.READ)] if first.has("columns") else []
        found.append(rows.validation("test_split_size", NAME, f))
        validates = f.has("test_split_size")
    else:
        name, config = f.text("dataset_name"), f.text("dataset_config")
        train = rows.name_of(name, config, f.text("dataset_train_split", "train"))
        found.append(carried("dataset_name", "data.train", train))
        found += [rows.as_part(key) for key in ("dataset_config", "dataset_train_split") if f.has(key)]
        validates = f.word("eval_strategy", "no") != "no"
        found += _validation(name, config, validates, f)
    if f.has("dataset_text_field"):
        column = f.text("dataset_text_field")
        found += [as_here("dataset_text_field")] if column == "text" else []
        if column != "text":
            found.append(carried("dataset_text_field", "data.columns", {"text": column}))
    return [*found, *_loss(f), rows.verdict(NAME), *hf.best(validates, NAME, f)]


def _validation(name: str, config: str | None, validates: bool, f: Foreign) -> list[Line]:
    key, split = "dataset_test_split", f.text("dataset_test_split", "test")
    place = rows.name_of(name, config, split)
    if not validates:
        extra = [lost(key, "`eval_strategy` is no: it is not used there either")] if f.has(key) else []
        return [default("data.validation", 0.0, "`eval_strategy: no`"), *extra]
    if place == name:  # a file has no splits
        return [changed(key if f.has(key) else "", "a file has no splits: a tenth is written", "data.validation", 0.1)]
    return [written(f, key, "data.validation", place)]


def _loss(f: Foreign) -> list[Line]:
    """What is learned: TRL learns whole chats unless told otherwise, luthier the assistant's turns."""
    for key in ("assistant_only_loss", "completion_only_loss"):
        if f.has(key) and f.flag(key):
            return [carried(key, "data.train_on", "assistant")]
    if f.has("completion_only_loss"):
        return [carried("completion_only_loss", "data.train_on", "all")]
    words = (
        "TRL learns every token of chats, and the completions of prompt and completion; luthier the assistant's turns "
        "and the answers: data.train_on: all learns every token"
    )
    return [changed("assistant_only_loss" if f.has("assistant_only_loss") else "", words)]


def _length(f: Foreign) -> list[Line]:
    """`max_length` (of old `max_seq_length`): the first tokens of a longer row are used."""
    key = "max_length" if f.has("max_length") or not f.has("max_seq_length") else "max_seq_length"
    limit = written(f, key, "training.max_seq_length", f.count(key, 1024))
    if key in f.nulls:  # said to be unlimited: luthier's limit is the base's positions
        limit = changed(key, "no limit there; here the base's positions")
    found = [limit, default("data.overlength", "cut")]
    if f.word("truncation_mode", "keep_start") == "keep_end":
        found.append(lost("truncation_mode", "`overlength: cut` keeps the first tokens"))
    elif f.has("truncation_mode"):
        found.append(as_here("truncation_mode"))
    return found


def _precision(f: Foreign) -> list[Line]:
    """The weights' `dtype`, float32 by default; bf16 is how TRL computes with them."""
    key = "dtype" if f.has("dtype") else "torch_dtype"
    found = [written(f, key, "model.dtype", f.word(key, "float32"))]
    words = "TRL computes in it, on weights of `dtype`; luthier in `model.dtype` alone: bfloat16 halves the memory"
    on = [other for other in ("bf16", "fp16") if f.has(other) and f.flag(other)]
    return found + [changed(other, words) for other in on]


def _checkpointing(f: Foreign) -> list[Line]:
    return hf.checkpointing(f) or [default("training.gradient_checkpointing", True)]


def _template(f: Foreign) -> list[Line]:
    key = "chat_template_path"
    if not f.has(key):
        return []
    path = f.text(key)
    if path.endswith((".jinja", ".j2")):
        return [carried(key, "model.chat_template", path)]
    return [lost(key, "luthier takes the text of a template or a .jinja file, not another tokenizer's")]


def _revision(f: Foreign) -> list[Line]:
    key = "model_revision"
    if not f.has(key):
        return []
    return [as_here(key)] if f.text(key) == "main" else [carried(key, "model.revision", f.text(key))]


def _refuse(f: Foreign) -> tuple[str, str] | None:
    for key in sorted(_OTHER_TRAINING):
        if f.has(key):
            return key, "this trains on preferences or rewards; luthier learns from answers (`trl sft`)"
    if f.word("peft_type", "lora") not in ("lora", "prompt_tuning"):
        return "peft_type", "luthier trains lora, qlora, prompt_tuning or all weights"
    if not (f.has("dataset_name") or f.has("datasets")):
        return "", "it names no rows: `dataset_name` or `datasets`"
    return None


TOOL = Tool(
    name=NAME,
    signs=names(
        "dataset_name use_peft max_length dataset_train_split dataset_test_split dataset_config assistant_only_loss "
        "completion_only_loss dataset_text_field peft_config lora_config use_bnb_nested_quant dataset_num_proc "
        "lora_task_type test_split_size chat_template_path packing_strategy padding_free dataset_streaming"
    ),
    same={
        **hf.SAME,
        "model_name_or_path": ("model.name", Foreign.text),
        "use_rslora": ("method.rslora", Foreign.flag),
    },
    together={
        (
            *("use_peft", "load_in_4bit", "load_in_8bit", "use_bnb_nested_quant", "lora_r", "lora_alpha"),
            *("lora_dropout", "lora_target_modules", "peft_type", *_PEFT, "num_virtual_tokens"),
            *("prompt_tuning_init", "prompt_tuning_init_text"),
        ): _method,
        (
            *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "datasets"),
            *("test_split_size", "dataset_text_field", "assistant_only_loss", "completion_only_loss"),
            "load_best_model_at_end",
        ): _data,
        ("max_length", "max_seq_length", "truncation_mode"): _length,
        ("per_device_train_batch_size", "gradient_accumulation_steps"): partial(
            hf.batch, "per_device_train_batch_size", 8, NAME
        ),
        ("packing",): partial(hf.packing, ("packing",), "max_length"),
        ("num_train_epochs", "max_steps"): partial(hf.length_of_run, "num_train_epochs", 3),
        ("lr_scheduler_type", "warmup_steps", "warmup_ratio"): partial(
            hf.rate, "lr_scheduler_type", "linear", (0.0, "no warm-up")
        ),
        ("optim", "adam_beta1", "adam_beta2", "adam_epsilon"): partial(hf.optimizer, "optim"),
        ("max_grad_norm",): hf.clipping,
        ("save_strategy", "save_steps"): partial(hf.cadence, "save", "training.save_every"),
        ("eval_strategy", "eval_steps"): partial(hf.cadence, "eval", "training.evaluate_every"),
        ("dtype", "torch_dtype", "bf16", "fp16"): _precision,
        ("gradient_checkpointing",): _checkpointing,
        ("attn_implementation",): partial(hf.attention, "attn_implementation"),
        ("chat_template_path",): _template,
        ("model_revision",): _revision,
    },
    left={
        **hf.LEFT,
        "env": "set the environment in the shell",
        "use_dora": _ADAPTER,
        "bias": f"{_ADAPTER}: biases stay as they are",
        "init_lora_weights": f"{_ADAPTER}: B starts at zero",
        "lora_modules_to_save": f"{_ADAPTER}: embeddings and head stay as they are",
        "modules_to_save": f"{_ADAPTER}: embeddings and head stay as they are",
        "lora_target_parameters": "method.target_modules takes the names of layers",
        "rank_pattern": _ADAPTER,
        "alpha_pattern": _ADAPTER,
        "layers_to_transform": _ADAPTER,
        "task_type": "luthier recognises the base by its configuration",
        "lora_task_type": "luthier recognises the base by its configuration",
        "tokenizer_name_or_path": "the base's own tokenizer counts",
        "bnb_4bit_*": "4 bits are NF4, computed in `model.dtype`",
        "model_init_kwargs": "`model` says what luthier needs",
        "dataset_streaming": hf.READ,
        "dataset_num_proc": hf.READ,
        "dataset_kwargs": hf.READ,
        "dataset_batch_size": hf.READ,
        "streaming": hf.READ,
        "shuffle_dataset": "the order is drawn by the seed",
        "eos_token": "the end tokens are those of the base's generation_config",
        "pad_token": "nothing is padded",
        "pad_to_multiple_of": "nothing is padded",
        "padding_free": "nothing is padded",
        "packing_strategy": "nothing is packed",
        "eval_packing": "nothing is packed",
        "loss_type": "luthier trains on the plain likelihood",
        "router_aux_loss_coef": "luthier trains on the plain likelihood",
        "activation_offloading": hf.SPEED,
        "ignore_bias_buffers": hf.SPEED,
        "do_train": "`luthier tune` trains",
    },
    defaults={"training.weight_decay": 0.0, "training.learning_rate": 2e-5, "seed": 42, "data.clean": []},
    refuse=_refuse,
    opened=("peft_config", "lora_config"),
)
