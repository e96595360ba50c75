"""Axolotl: a YAML file for `axolotl train`.

Lives here: what each of its keys means here, and its own defaults (read in its schemas, version 0.19).
"""

from __future__ import annotations

import re
from functools import partial

from luthier.conversion import hugging_face as hf
from luthier.conversion import rows
from luthier.conversion.lines import Foreign, Line, Tool, as_here, carried, changed, default, lost, names, written

NAME = "Axolotl"
_OWN_TEMPLATE = "luthier asks with the base's own chat template: look at `luthier look`, or set model.chat_template"
_TOKENS = "luthier adds no tokens to a base"
_KERNEL = hf.SPEED
_FULL = "luthier trains low-rank adapters without this"


def _method(f: Foreign) -> list[Line]:
    """`adapter` and the bits of the base: lora, qlora, or (no adapter) all weights."""
    adapter = f.text("adapter")
    if adapter is None:
        return [default("method.type", "full", "no `adapter`: all weights are trained"), *_trainable(f)]
    bits = 4 if f.flag("load_in_4bit") else 8 if f.flag("load_in_8bit") else 0
    kind = "qlora" if bits or adapter == "qlora" else "lora"
    found = [carried("adapter", "method.type", kind)]
    if kind == "qlora":
        found.append(carried("load_in_8bit" if bits == 8 else "load_in_4bit", "method.bits", bits or 4))
        options = f.inner("bnb_config_kwargs")
        double = "bnb_4bit_use_double_quant"
        if options.has(double):
            found.append(carried(f"bnb_config_kwargs.{double}", "method.double_quantization", options.flag(double)))
        found += [
            lost(f"bnb_config_kwargs.{key}", "4 bits are NF4, computed in `model.dtype`")
            for key in options.values
            if key != double
        ]
    layers = f.texts("lora_target_modules")
    if f.has("lora_target_linear") and f.flag("lora_target_linear"):
        found.append(carried("lora_target_linear", "method.target_modules", ["all-linear"]))
        if layers:
            found.append(lost("lora_target_modules", "`lora_target_linear` takes every linear layer already"))
    elif layers:
        found.append(carried("lora_target_modules", "method.target_modules", layers))
    found.append(written(f, "lora_dropout", "method.dropout", f.number("lora_dropout", 0.0)))
    missing = [key for key in ("lora_r", "lora_alpha") if not f.has(key)]
    return found + [changed("", f"Axolotl has no default of `{key}`: luthier's own counts") for key in missing]


def _trainable(f: Foreign) -> list[Line]:
    """Patterns of parameters; luthier knows parts of names."""
    key = "unfrozen_parameters"
    if not f.has(key):
        return []
    parts = [re.sub(r"^\^|\$$", "", pattern).replace("\\.", ".") for pattern in f.texts(key)]
    if all(re.fullmatch(r"[\w.]+", part) for part in parts):
        return [changed(key, "read as parts of names, not as patterns", "method.trainable", parts)]
    return [lost(key, "patterns; method.trainable takes parts of names (`layers.11.`)")]


def _data(f: Foreign) -> list[Line]:
    """`datasets`, `test_datasets`, `val_set_size`."""
    found, first = rows.one_of("data.train", "datasets", f.parts("datasets"), "datasets.")
    if first is not None:
        found += _type(first, "datasets.0.")
    tests, other = rows.one_of("data.validation", "test_datasets", f.parts("test_datasets"), "test_datasets.")
    if other is None:
        tests = [rows.validation("val_set_size", NAME, f)]
    else:
        words = "the rows of validation are read as those of training are"
        for key in [key for key in other.values if key not in _PLACED]:
            alike = first is not None and other.values[key] == first.values.get(key)
            tests.append((as_here if alike else partial(lost, words=words))(f"test_datasets.0.{key}"))
        tests += [lost("val_set_size", "`test_datasets` are there")] if f.number("val_set_size", 0.0) else []
    everything = f.has("train_on_inputs") and f.flag("train_on_inputs")
    train_on = [carried("train_on_inputs", "data.train_on", "all")] if everything else []
    validates = other is not None or f.number("val_set_size", 0.0) > 0
    return [*found, *tests, *train_on, rows.verdict(NAME), *hf.best(validates, NAME, f)]


_PLACED = ("path", "data_files", "name", "split", "revision", "ds_type")


def _type(first: Foreign, prefix: str) -> list[Line]:
    """A data set's `type` and what belongs to it."""
    kind = first.values.get("type")
    keys = {key: f"{prefix}{key}" for key in first.values}
    if isinstance(kind, dict):
        found, used = _prompter(first.inner("type"), f"{prefix}type."), {"type"}
    else:
        found, used = _named_type(str(kind or ""), first, keys)
    if roles := first.texts("roles_to_train"):
        used.add("roles_to_train")
        only = set(roles) <= {"assistant", "gpt", "model"}
        words = "luthier learns what the assistant says; data.train_on: all learns everything"
        found.append(as_here(keys["roles_to_train"]) if only else lost(keys["roles_to_train"], words))
    for key in ("train_on_eos", "train_on_eot"):
        if first.has(key):
            used.add(key)
            words = "the end of every learned turn is learned here, and no other"
            found.append(as_here(keys[key]) if first.word(key, "turn") == "turn" else lost(keys[key], words))
    return found + [
        lost(keys[key], _LEFT_OF_DATA.get(key, "not a key of a data set that luthier knows"))
        for key in first.values
        if key not in used and key not in _PLACED and first.values[key] is not False
    ]


_LEFT_OF_DATA = {
    "chat_template": _OWN_TEMPLATE,
    "chat_template_jinja": _OWN_TEMPLATE,
    "shards": "data.limit draws so many rows",
    "shards_idx": "data.limit draws so many rows",
    "preprocess_shards": hf.READ,
    "trust_remote_code": hf.NO_CODE,
    "drop_system_message": "take the system turns out of the rows",
    "roles": "luthier knows human, user, gpt, assistant, model, system, tool, observation; rename others",
    "message_field_training": "a turn's own `train`, `weight` or `loss` counts: rename the key in the rows",
    "message_field_training_detail": "a turn is learned whole; parts of it: write the rows as `segments`",
    "field_thinking": "rename the key in the rows as the chat template has it (`reasoning_content`)",
    "split_thinking": "write the thoughts into `reasoning_content` of the turn",
}


def _named_type(kind: str, first: Foreign, keys: dict[str, str]) -> tuple[list[Line], set[str]]:
    """alpaca, chat_template, completion, input_output and their like."""
    key = keys.get("type", "type")
    base = kind.partition(":")[0].partition(".")[0]
    if base in ("chat_template", "sharegpt"):
        return _chat(base, first, keys)
    if base == "completion":
        found = [carried(key, "data.format", "text")]
        if first.has("field"):
            found.append(carried(keys["field"], "data.columns", {"text": first.text("field")}))
        return found, {"type", "field"}
    if base == "input_output":
        return [carried(key, "data.format", "segments")], {"type"}
    if base.startswith("alpaca"):
        words = (
            "Axolotl writes an English preamble and ### headings round every row; here the row's words are asked with "
            "luthier's own prompt: data.template is another"
        )
        return [changed(key, words, "data.format", "alpaca")], {"type"}
    if not kind:
        return [], {"type"}
    return [lost(key, f"luthier has no prompts of the type `{base}`; the format is recognised by the columns")], {
        "type"
    }


def _chat(base: str, first: Foreign, keys: dict[str, str]) -> tuple[list[Line], set[str]]:
    """Chats: which column, and the names of its turns' keys."""
    mapping = first.inner("message_property_mappings")
    role = mapping.text("role", first.text("message_field_role", "role"))
    content = mapping.text("content", first.text("message_field_content", "content"))
    theirs = base == "sharegpt" or (role, content) == ("from", "value")
    usual = "conversations" if theirs else "messages"
    column = first.text("field_messages", "conversations" if base == "sharegpt" else "messages")
    found = [carried(keys["type"], "data.format", "sharegpt" if theirs else "messages")]
    columns = {usual: column} if column != usual else {}
    if (tools := first.text("field_tools", "tools")) != "tools":
        columns["tools"] = tools
    if columns:
        key = " × ".join(keys[name] for name in ("field_messages", "field_tools") if name in keys) or keys["type"]
        found.append(carried(key, "data.columns", columns))
    naming = ("message_property_mappings", "message_field_role", "message_field_content")
    for key in naming:
        if first.has(key):
            words = "luthier reads role and content, or from and value: rename the keys in the rows"
            known = (role, content) in (("from", "value"), ("role", "content"))
            found.append(as_here(keys[key]) if known else lost(keys[key], words))
    if first.text("chat_template") == "tokenizer_default":
        found.append(as_here(keys["chat_template"]))
    default_template = {"chat_template"} if first.text("chat_template") == "tokenizer_default" else set()
    return found, {"type", "field_messages", "field_tools", *naming, *default_template}


def _prompter(kind: Foreign, prefix: str) -> list[Line]:
    """A prompt of one's own: `format` with {instruction} and {input}, which are columns here."""
    columns = {name: kind.text(f"field_{name}", name) for name in ("instruction", "input", "output")}
    found = [carried(f"{prefix}field_output", "data.columns", {"output": columns["output"]})]
    shape = kind.text("format", "{instruction} {input}" if kind.has("field_input") else "{instruction}")
    template = re.sub(r"\{(instruction|input)\}", lambda match: f"{{{columns[match[1]]}}}", shape)
    words = "luthier puts a space before the answer where neither has one"
    found.append(changed(f"{prefix}format", words, "data.template", template))
    found.append(Line("default", "", "data.format", "input_output", "a prompt of one's own and an answer"))
    left = {
        "no_input_format": "every row is asked in one form; a row without input needs its own words in the column",
        "system_prompt": "write it at the head of data.template",
        "system_format": "write it at the head of data.template",
        "field_system": "write {column} at the head of data.template",
    }
    return found + [lost(f"{prefix}{key}", why) for key, why in left.items() if kind.values.get(key)]


def _batch(f: Foreign) -> list[Line]:
    """Two of micro_batch_size, gradient_accumulation_steps and batch_size give the third."""
    if f.has("batch_size") and not f.has("gradient_accumulation_steps"):
        micro, whole = f.count("micro_batch_size", 1), f.count("batch_size")
        f = Foreign({**f.values, "gradient_accumulation_steps": max(whole // micro, 1)}, f.places)
        found = hf.batch("micro_batch_size", 1, NAME, f)
        return [found[0], carried("batch_size", found[1].path, found[1].value), found[2]]
    extra = [lost("batch_size", "micro_batch_size and gradient_accumulation_steps give it")] * f.has("batch_size")
    return hf.batch("micro_batch_size", 1, NAME, f) + extra


def _length(f: Foreign) -> list[Line]:
    """`sequence_len`, and what happens to longer rows: Axolotl drops them."""
    key = "excess_length_strategy"
    ways = {"drop": "drop", "truncate": "cut", "raise": "error"}
    way = f.word(key, "drop")
    if way not in ways:
        raise f.wrong(key, "drop, truncate or raise")
    return [
        written(f, "sequence_len", "training.max_seq_length", f.count("sequence_len", 512)),
        written(f, key, "data.overlength", ways[way]),
    ]


def _often(f: Foreign) -> list[Line]:
    """How often is saved and evaluated."""
    found = hf.cadence("save", "training.save_every", f) + hf.cadence("eval", "training.evaluate_every", f)
    for key in ("saves_per_epoch", "evals_per_epoch"):
        if f.has(key) and f.number(key):
            once = f.number(key) == 1
            found.append(as_here(key) if once else lost(key, "luthier counts steps, or does so once an epoch"))
    return found


def _precision(f: Foreign) -> list[Line]:
    """bf16 `auto` is what luthier's `auto` is."""
    for key, dtype in (("bf16", "bfloat16"), ("bfloat16", "bfloat16"), ("fp16", "float16"), ("float16", "float16")):
        if f.word(key, "no") in ("yes", "true", "full"):
            rest = [as_here(other) for other in ("bf16", "fp16") if f.has(other) and other != key]
            return [carried(key, "model.dtype", dtype), *rest]
    if f.word("bf16", "auto") == "auto":
        return [as_here("bf16")] if f.has("bf16") else []
    return [carried("bf16", "model.dtype", "float32")]


def _attention(f: Foreign) -> list[Line]:
    """Which code attends."""
    found = hf.attention("attn_implementation", f)
    for key, name in (("eager_attention", "eager"), ("sdp_attention", "sdpa")):
        if f.has(key) and f.flag(key):
            found.append(carried(key, "model.attention", name))
    return found


def _cleaning(f: Foreign) -> list[Line]:
    key = "dataset_exact_deduplication"
    on = f.has(key) and f.flag(key)
    return [carried(key, "data.clean", ["duplicates"])] if on else [default("data.clean", [])]


def _template(f: Foreign) -> list[Line]:
    """A template that stands in the file is carried; a name of Axolotl's own is not."""
    text, name = f.text("chat_template_jinja"), f.text("chat_template", "tokenizer_default")
    if text is not None:
        found = [carried("chat_template_jinja", "model.chat_template", text)]
        return found + ([as_here("chat_template")] if f.has("chat_template") else [])
    if not f.has("chat_template"):
        return []
    return [as_here("chat_template") if name == "tokenizer_default" else lost("chat_template", _OWN_TEMPLATE)]


def _refuse(f: Foreign) -> tuple[str, str] | None:
    for key in ("rl", "reward_model", "process_reward_model"):
        if f.values.get(key):
            return key, "this trains on preferences or rewards; luthier learns from answers"
    if f.has("pretraining_dataset") and not f.has("datasets"):
        return (
            "pretraining_dataset",
            "this streams rows for pre-training; name them as `datasets` with `type: completion`",
        )
    if f.values.get("adapter") not in (None, "lora", "qlora"):
        return "adapter", "luthier trains lora, qlora, prompt_tuning or all weights"
    return None


TOOL = Tool(
    name=NAME,
    signs=names(
        "micro_batch_size sequence_len adapter sample_packing val_set_size lora_target_linear dataset_prepared_path "
        "test_datasets pretraining_dataset base_model_config tokenizer_type evals_per_epoch saves_per_epoch optimizer "
        "lr_scheduler train_on_inputs excess_length_strategy pad_to_sequence_len lora_model_dir unfrozen_parameters"
    ),
    same={
        **hf.SAME,
        "base_model": ("model.name", Foreign.text),
        "revision_of_model": ("model.revision", Foreign.text),
        "lora_r": ("method.rank", Foreign.count),
        "lora_alpha": ("method.alpha", Foreign.number),
        "peft_use_rslora": ("method.rslora", Foreign.flag),
        "early_stopping_patience": ("training.patience", Foreign.count),
    },
    together={
        (
            *("adapter", "load_in_4bit", "load_in_8bit", "bnb_config_kwargs", "lora_target_linear"),
            *("lora_target_modules", "lora_dropout", "unfrozen_parameters"),
        ): _method,
        ("datasets", "test_datasets", "val_set_size", "train_on_inputs", "load_best_model_at_end"): _data,
        ("micro_batch_size", "gradient_accumulation_steps", "batch_size"): _batch,
        ("sample_packing", "pretraining_sample_concatenation"): partial(
            hf.packing, ("sample_packing", "pretraining_sample_concatenation"), "sequence_len"
        ),
        ("sequence_len", "excess_length_strategy"): _length,
        ("num_epochs", "max_steps"): partial(hf.length_of_run, "num_epochs", 1),
        ("lr_scheduler", "warmup_steps", "warmup_ratio"): partial(
            hf.rate, "lr_scheduler", "cosine", (0.03, "Axolotl takes 100 steps at the most")
        ),
        ("optimizer", "adam_beta1", "adam_beta2", "adam_epsilon"): partial(hf.optimizer, "optimizer"),
        ("max_grad_norm",): hf.clipping,
        ("save_strategy", "save_steps", "eval_strategy", "eval_steps", "saves_per_epoch", "evals_per_epoch"): _often,
        ("bf16", "bfloat16", "fp16", "float16"): _precision,
        ("gradient_checkpointing",): hf.checkpointing,
        ("attn_implementation", "eager_attention", "sdp_attention"): _attention,
        ("dataset_exact_deduplication",): _cleaning,
        ("chat_template", "chat_template_jinja"): _template,
    },
    left={
        **hf.LEFT,
        "base_model_config": "the base's own configuration counts",
        "model_type": "luthier recognises the base by its configuration",
        "tokenizer_*": "the base's own tokenizer counts",
        "is_*_model": "luthier recognises the base by its configuration",
        "special_tokens": f"{_TOKENS}; the end tokens are those of its generation_config; nothing is padded",
        "tokens": _TOKENS,
        "added_tokens_overrides": _TOKENS,
        "resize_token_embeddings_to_32x": _TOKENS,
        "eot_tokens": "the end tokens are those of the base's generation_config",
        "default_system_message": "write it as a system turn of the rows",
        "peft_use_dora": f"{_FULL}: plain LoRA is trained",
        "peft_init_lora_weights": f"{_FULL}: B starts at zero",
        "peft_layers_*": "method.target_modules takes the names of layers",
        "peft": "`adapter` and `load_in_4bit` say what luthier needs",
        "lora_model_dir": "luthier does not continue somebody's adapter",
        "lora_modules_to_save": f"{_FULL}: embeddings and head stay as they are",
        "lora_target_parameters": "method.target_modules takes the names of layers",
        "lora_fan_in_fan_out": "luthier knows the layers of the base",
        "lora_on_cpu": hf.PLACE,
        "lora_*_kernel": _KERNEL,
        "loraplus_*": f"{_FULL}: A and B have one rate",
        "relora*": _FULL,
        "embedding_lr*": "one learning rate for all that is trained",
        "lr_groups": "one learning rate for all that is trained",
        "cosine_*": "`cosine` ends at zero",
        "gptq": "a base that is stored quantized is taken as it is: method qlora",
        "flash_*": _KERNEL,
        "flex_*": _KERNEL,
        "xformers_attention": _KERNEL,
        "s2_attention": _KERNEL,
        "unsloth_*": _KERNEL,
        "liger_*": _KERNEL,
        "cut_cross_entropy": _KERNEL,
        "plugins": f"{_KERNEL}; what a plugin teaches is not carried",
        "eval_sample_packing": "nothing is padded",
        "pad_to_sequence_len": "nothing is padded",
        "sample_packing_*": "nothing is padded",
        "multipack_real_batches": "nothing is padded",
        "batch_flattening": "nothing is padded",
        "shuffle_merged_datasets": "one source, its order drawn by the seed",
        "dataset_*": hf.READ,
        "skip_prepare_dataset": hf.READ,
        "push_dataset_to_hub": hf.READ,
        "eval_table_size": hf.GENERATED,
        "eval_max_new_tokens": "evaluation.max_new_tokens, where answers are to be longer than those of training",
        "do_causal_lm_eval": hf.GENERATED,
        "do_bench_eval": hf.GENERATED,
        "eval_causal_lm_metrics": "evaluation.metrics names luthier's own",
        "hf_use_auth_token": "the Hub's token is where HF_TOKEN says",
        "loss_watchdog_*": "luthier stops where the loss is no number",
        "strict": "luthier always is",
        "debug": hf.TRACKED,
        "gc_steps": hf.SPEED,
        "world_size": hf.PLACE,
        "auto_resume_from_checkpoints": "`luthier tune` continues what was interrupted",
        "resume_from_checkpoint": "`luthier resume RUN` continues a run",
        "early_stopping_*": "training.patience counts evaluations",
    },
    defaults={"training.weight_decay": 0.0, "seed": 42},
    refuse=_refuse,
)
