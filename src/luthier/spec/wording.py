"""Why an experiment was refused, in words: which parameter, what it must be, where it stands, what was probably meant.

Lives here: pydantic's findings → one `SpecError`; the names other tools give to our parameters.
Does not live here: the parameters and their bounds (`parameters.py`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from luthier import redaction
from luthier.errors import SpecError, did_you_mean

SECRET = "looks like a secret"

SAME_THING: Mapping[str, str] = {
    "model_name_or_path": "model.name", "base_model": "model.name", "model_id": "model.name",
    "llm_backbone": "model.name", "model_revision": "model.revision", "torch_dtype": "model.dtype",
    "backbone_dtype": "model.dtype", "attn_implementation": "model.attention", "flash_attn": "model.attention",
    "template_jinja": "model.chat_template", "dataset": "data.train", "datasets": "data.train",
    "dataset_name": "data.train", "train_file": "data.train", "training_file": "data.train",
    "train_dataset": "data.train", "validation_file": "data.validation", "eval_dataset": "data.validation",
    "val_size": "data.validation", "val_set_size": "data.validation", "split_dataset_ratio": "data.validation",
    "eval_split": "data.validation", "validation_size": "data.validation", "test_file": "data.test",
    "test_dataset": "data.test", "charset": "data.encoding", "verbalizer": "data.template",
    "response_template": "data.template",
    "prompt_template": "data.template", "max_samples": "data.limit", "train_on_inputs": "data.train_on",
    "train_on_prompt": "data.train_on", "mask_prompt_labels": "data.train_on",
    "completion_only_loss": "data.train_on", "assistant_only_loss": "data.train_on",
    "roles_to_train": "data.train_on", "train_on_completions": "data.train_on", "loss_scale": "data.train_on",
    "finetuning_type": "method.type", "adapter": "method.type", "tuner_type": "method.type",
    "training_type": "method.type", "tuning_type": "method.type", "peft_type": "method.type",
    "use_peft": "method.type", "lora": "method.type", "peft_parameters": "method", "peft_config": "method",
    "tuning_parameters": "training", "lora_r": "method.rank", "lora_rank": "method.rank", "r": "method.rank",
    "lora_alpha": "method.alpha", "lora_dropout": "method.dropout", "lora_target_modules": "method.target_modules",
    "lora_target": "method.target_modules", "lora_target_linear": "method.target_modules",
    "use_rslora": "method.rslora", "quantization_bit": "method.bits", "quant_bits": "method.bits",
    "bnb_4bit_use_double_quant": "method.double_quantization", "double_quant": "method.double_quantization",
    "num_virtual_tokens": "method.virtual_tokens", "prompt_tuning_init": "method.init_method",
    "prompt_tuning_init_text": "method.init_text", "num_train_epochs": "training.num_epochs",
    "epochs": "training.num_epochs", "n_epochs": "training.num_epochs",
    "per_device_train_batch_size": "training.batch_size", "micro_batch_size": "training.batch_size",
    "train_batch_size": "training.batch_size", "gradient_accumulation_steps": "training.accumulate_steps",
    "grad_accumulation": "training.accumulate_steps", "lr": "training.learning_rate",
    "learning_rate_multiplier": "training.learning_rate", "cutoff_len": "training.max_seq_length",
    "sequence_len": "training.max_seq_length", "max_length": "training.max_seq_length",
    "model_max_length": "training.max_seq_length", "max_input_tokens": "training.max_seq_length",
    "max_output_tokens": "evaluation.max_new_tokens", "lr_scheduler_type": "training.schedule",
    "lr_scheduler": "training.schedule", "warmup_ratio": "training.warmup", "warmup_steps": "training.warmup",
    "warmup_epochs": "training.warmup", "gradient_clip": "training.max_grad_norm",
    "save_steps": "training.save_every", "eval_steps": "training.evaluate_every",
    "eval_strategy": "training.evaluate_every", "early_stopping_patience": "training.patience",
    "group_by_length": "training.batching", "judge_model": "evaluation.judge.model", "n_trials": "search.trials",
    "num_trials": "search.trials", "max_concurrent_trials": "search.at_once", "task_id": "task", "task_type": "task",
    "run_name": "name", "experiment_name": "name", "random_seed": "seed", "data_seed": "seed",
}  # fmt: skip
"""Key names of transformers/TRL, PEFT, LLaMA-Factory, Axolotl, ms-swift, Unsloth, H2O, watsonx and OpenAI → ours."""

INSTEAD: Mapping[str, str] = {
    "load_in_4bit": "say `method: qlora` (`method.bits: 4`)",
    "load_in_8bit": "say `method.type: qlora` and `method.bits: 8`",
    "bf16": "say `model.dtype: bfloat16`; omitted, the machine decides", "fp16": "say `model.dtype: float16`",
    "packing": "nothing to set: batches carry no padding, and no example sees another",
    "output_dir": "runs are kept under the home folder: `--home`", "report_to": "trackers are lines of luthier.toml",
    "resume_from_checkpoint": "the same command again continues an unfinished run",
    "load_best_model_at_end": "the best checkpoint is always kept; `training.patience` stops early",
    "metric_for_best_model": "the best checkpoint is that of the lowest validation loss",
    "push_to_hub": "`luthier publish RUN OUT`", "hub_model_id": "`luthier publish RUN OUT`",
    "logging_steps": "every step is logged", "optim": "the optimizer is AdamW",
    "device_map": "devices belong to the machine, not to the experiment", "gpu": "devices belong to the machine",
    "num_gpus": "devices belong to the machine", "trust_remote_code": "code from a model's folder is never run",
    "token": "put the Hub token in the environment: HF_TOKEN", "hub_token": "put it in the environment: HF_TOKEN",
    "api_key": "put it in the environment: OPENAI_API_KEY", "train_on_eos": "end tokens are always trained",
    "eos_token": "the end token is the model's own",
}  # fmt: skip
"""Keys of other tools that no parameter of ours replaces, and what takes their place."""

_MUST_BE = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number", "finite_number": "a finite number",
    "bool_type": "true or false", "string_type": "text", "tuple_type": "a list", "list_type": "a list",
    "dict_type": "a mapping (name: value)", "model_type": "a mapping (name: value)",
    "model_attributes_type": "a mapping (name: value)", "mapping_type": "a mapping (name: value)",
    "string_too_short": "not empty", "too_short": "not empty",
}  # fmt: skip
_BOUND = {
    "greater_than": ("gt", "greater than"), "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"), "less_than_equal": ("le", "at most"),
}  # fmt: skip


def is_secret(value: Any) -> bool:
    """Whether `value` is text that looks like a key or a token."""
    try:
        redaction.refuse(value if isinstance(value, str) else "", "")
    except SpecError:
        return True
    return False


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal: the parameter's keys, the sentence, and the way out."""

    path: tuple[str, ...]
    message: str
    hint: str | None = None


def explain(
    error: ValidationError,
    known: Mapping[str, Collection[str]],
    place: Callable[[tuple[str, ...]], str | None],
    root: tuple[str, ...] = (),
    method: str | None = None,
) -> SpecError:
    """One SpecError for all findings of `error`: the first in full, the others listed in its hint.

    `known` maps every dotted path to the method types it belongs to (none: to any); `place` gives the `file:line` of a
    path; `root` is the path of the section that was validated, `method` its type if it is a method.
    """
    findings = error.errors(include_url=False, include_context=True)
    problems = [_problem(finding, known, root, method) for finding in findings]
    problems.sort(key=lambda problem: _line(place(problem.path)))
    first, *others = problems
    hints = [first.hint] if first.hint else []
    for other in others:
        where = place(other.path)
        hints.append(
            f"also: {other.message}" + (f" ({where})" if where else "") + (f": {other.hint}" if other.hint else "")
        )
    return SpecError(first.message, where=place(first.path), hint="\n".join(hints) or None)


def _line(place: str | None) -> int:
    """The line of `file:line`, so that refusals come in the order of the file; what has none comes last."""
    number = (place or "").rpartition(":")[2]
    return int(number) if number.isdecimal() else 1 << 30


def _problem(finding: Any, known: Mapping[str, Collection[str]], root: tuple[str, ...], method: str | None) -> Problem:
    kind, context, given = finding["type"], finding.get("ctx", {}), finding["input"]
    keys = [str(key) for key in (*root, *finding["loc"])]
    if keys[:1] == ["method"] and len(keys) > 1 and not root:
        method = keys.pop(1)  # the union's tag, which pydantic puts between
    path = tuple(keys)
    name = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(path))
    if is_secret(given):
        return Problem(path, f"`{name}` {SECRET}", "secrets belong in the environment: HF_TOKEN, OPENAI_API_KEY")
    if kind == "extra_forbidden":
        return Problem(path, f"`{name}` is not a parameter", _meant(path, known, method))
    if kind == "missing":
        return Problem(path, f"`{name}` is missing", None)
    if kind == "value_error":
        return Problem(path, f"`{name}` {context['error']}" if name else str(context["error"]))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        options = sorted({method for methods in known.values() for method in methods})
        path, given = (*path, "type"), context.get("tag", given)
        return Problem(path, _one_of(f"{name}.type", options, given), _near(given, options))
    if kind == "literal_error":
        options = [word.strip("'") for word in re.split(r", | or ", context["expected"])]
        return Problem(path, _one_of(name, options, given), _near(given, options))
    if kind == "string_pattern_mismatch":
        return Problem(
            path, f"`{name}` must be made of letters, digits, `.`, `_` and `-`, at most 64, not {shown(given)}"
        )
    if kind in _BOUND:
        key, words = _BOUND[kind]
        bound = f"{context[key]:g}" if isinstance(context[key], float) else str(context[key])
        return Problem(path, _refused(name, f"{words} {bound}", given))
    if kind in _MUST_BE:
        return Problem(path, _refused(name, _MUST_BE[kind], given))
    return Problem(path, f"`{name}`: {finding['msg']}")


def _one_of(name: str, options: Collection[str], given: Any) -> str:
    need = f"one of {', '.join(options)}" if len(options) > 1 else next(iter(options))
    return f"`{name}` must be {need}, not {shown(given).removeprefix('the text ')}"


def _refused(name: str, need: str, given: Any) -> str:
    return f"`{name}` must be {need}" + ("" if need.startswith("not ") else f", not {shown(given)}")


def shown(given: Any) -> str:
    """A value as a person would recognise it, short."""
    if given is None:
        return "empty"
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, int | float):
        return repr(given) if isinstance(given, float) else str(given)[:40]
    if isinstance(given, str):
        return f"the text '{given if len(given) <= 40 else given[:39] + '…'}'"
    if isinstance(given, Mapping):
        return "a mapping"
    return "a list" if isinstance(given, list | tuple) else f"a {type(given).__name__}"


def _near(given: Any, options: Collection[str]) -> str | None:
    return did_you_mean(given, options) if isinstance(given, str) else None


def _meant(path: tuple[str, ...], known: Mapping[str, Collection[str]], method: str | None) -> str | None:
    """What a key that is not ours was probably meant to be: a neighbour, a key that moved, another tool's word."""
    dotted, key = ".".join(path), path[-1]
    if dotted in known and method is not None:
        return f"`{key}` belongs to {' and '.join(known[dotted])}; this method is {method}"
    prefix = ".".join((*path[:-1], ""))
    neighbours = [name.removeprefix(prefix).split(".")[0] for name in known if name.startswith(prefix)]
    if method is not None:
        neighbours = [name for name in neighbours if method in known[prefix + name]]
    if key in SAME_THING:
        return f"did you mean `{SAME_THING[key]}`?"
    if key in INSTEAD:
        return INSTEAD[key]
    if close := did_you_mean(key, neighbours):
        return close
    by_key = {name.split(".")[-1]: name for name in reversed(list(known))}
    near = difflib.get_close_matches(key, list(by_key), n=1)
    return f"did you mean `{by_key[near[0]]}`?" if near else None
