"""What Axolotl, LLaMA-Factory and TRL share: the arguments of transformers' Trainer, and LoRA as PEFT has it.

Lives here: tables and readings that two of them need. The facts are those of transformers' `TrainingArguments`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from luthier.conversion.lines import BEST, Foreign, Line, as_here, carried, changed, default, lost, written

PLACE = "where it runs is no part of an experiment"
SPEED = "how it is computed changes no result; luthier's engine decides"
TRACKED = "luthier writes down every event of a run by itself"
FOLDER = "runs lie in luthier's home (`--home`)"
PUBLISHED = "publishing is a step of its own: `luthier publish RUN OUT`"
READ = "luthier reads and keeps rows its own way"
NO_CODE = "luthier runs no code of a model or a data set"
GENERATED = "answers are generated as `evaluation` says"

SAME = {
    "learning_rate": ("training.learning_rate", Foreign.number),
    "weight_decay": ("training.weight_decay", Foreign.number),
    "seed": ("seed", Foreign.count),
}

LEFT: Mapping[str, str] = {
    "output_dir": FOLDER,
    "overwrite_output_dir": FOLDER,
    "save_only_model": "a checkpoint always holds what a resume needs",
    "save_total_limit": "luthier keeps the checkpoints a resume needs",
    "save_safetensors": "luthier always does",
    "resume_from_checkpoint": "`luthier resume RUN` continues a run",
    "report_to": TRACKED,
    "run_name": "a run is named after its file; `name` in the experiment is another",
    "logging_*": TRACKED,
    "log_level": TRACKED,
    "disable_tqdm": TRACKED,
    "include_*": TRACKED,
    "wandb_*": TRACKED,
    "mlflow_*": TRACKED,
    "comet_*": TRACKED,
    "swanlab_*": TRACKED,
    "trackio_*": TRACKED,
    "use_tensorboard": TRACKED,
    "push_to_hub": PUBLISHED,
    "hub_*": PUBLISHED,
    "dataloader_*": READ,
    "remove_unused_columns": READ,
    "ddp*": PLACE,
    "fsdp*": PLACE,
    "deepspeed": PLACE,
    "accelerator_config": PLACE,
    "local_rank": PLACE,
    "use_cpu": PLACE,
    "no_cuda": PLACE,
    "device_map": PLACE,
    "ray_*": PLACE,
    "tf32": SPEED,
    "torch_compile*": SPEED,
    "use_liger*": SPEED,
    "low_cpu_mem_usage": SPEED,
    "auto_find_batch_size": "luthier splits a batch so that it fits, without a change of the batch",
    "group_by_length": "luthier pads nothing; the order is drawn by the seed",
    "gradient_checkpointing_kwargs": SPEED,
    "use_reentrant*": SPEED,
    "per_device_eval_batch_size": SPEED,
    "eval_batch_size": SPEED,
    "eval_accumulation_steps": SPEED,
    "eval_on_start": "the base is scored beside the tuned model (`evaluation.compare_base`)",
    "eval_delay": "luthier evaluates from the start",
    "do_eval": "luthier evaluates where there are rows to",
    "do_predict": GENERATED,
    "predict_with_generate": GENERATED,
    "prediction_loss_only": GENERATED,
    "metric_for_best_model": "the validation loss decides which checkpoint is the best",
    "greater_is_better": "the validation loss decides which checkpoint is the best",
    "neftune_noise_alpha": "luthier adds no noise to embeddings",
    "label_smoothing_factor": "luthier trains on the plain likelihood",
    "lr_scheduler_kwargs": "a schedule has no options here",
    "optim_*": "luthier's optimizer is AdamW, without options",
    "data_seed": "one `seed` draws everything",
    "full_determinism": "a run can be repeated bit for bit anyway",
    "trust_remote_code": NO_CODE,
    "use_fast_tokenizer": "luthier takes the fast tokenizer",
    "cache_dir": "the Hub's cache is where HF_HOME says",
}

_ADAMW = {"adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw", "adamw_anyprecision"}
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
_ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}


def optimizer(key: str, f: Foreign) -> list[Line]:
    """AdamW is carried; a form of it that saves memory becomes the exact one; any other stays behind."""
    found = []
    name = f.word(key, "adamw_torch")
    if name in _ADAMW and f.has(key):
        found.append(as_here(key))
    elif "adamw" in name and f.has(key):
        found.append(changed(key, "luthier computes AdamW exactly: no 8-bit or paged states"))
    elif f.has(key):
        found.append(lost(key, "luthier trains with AdamW: look at the learning rate again"))
    for option, value in _ADAM.items():
        if f.has(option):
            same = math.isclose(f.number(option), value)
            found.append(as_here(option) if same else lost(option, f"luthier's AdamW has {value:g}"))
    return found


def length_of_run(epochs: str, default_epochs: int, f: Foreign) -> list[Line]:
    """Epochs and steps; a part of an epoch becomes a whole one."""
    found = []
    number = f.number(epochs, float(default_epochs))
    whole = max(math.ceil(number), 1)
    if whole != number:
        words = f"{number:g} epochs are {whole} here: luthier counts whole ones; `training.max_steps` ends within one"
        found.append(changed(epochs, words, "training.num_epochs", whole))
    else:
        found.append(written(f, epochs, "training.num_epochs", whole))
    if f.has("max_steps"):
        limited = f.count("max_steps") > 0
        found.append(
            carried("max_steps", "training.max_steps", f.count("max_steps")) if limited else as_here("max_steps")
        )
    return found


def rate(key: str, usual: str, usual_warmup: tuple[float, str], f: Foreign) -> list[Line]:
    """The schedule and the warm-up, of which transformers' `constant` has none."""
    name = f.word(key, usual)
    if name in _SCHEDULES:
        found = [written(f, key, "training.schedule", _SCHEDULES[name])]
    else:
        near = "cosine" if "cosine" in name else "linear"
        words = f"luthier has no schedule `{name}`: linear, cosine and constant; the nearest is written"
        found = [changed(key, words, "training.schedule", near)]
    steps, share = f.number("warmup_steps"), f.number("warmup_ratio")
    given = "warmup_steps" if steps is not None and (steps or share is None) else "warmup_ratio"
    value = steps if given == "warmup_steps" else share
    both = steps is not None and share is not None
    if both:
        other = "warmup_ratio" if given == "warmup_steps" else "warmup_steps"
        found.append(lost(other, f"`{given}` is given as well, and counts"))
    if name == "constant":
        found.append(Line("default", "", "training.warmup", 0.0, "`constant` has no warm-up"))
        return found + ([lost(given, "`constant` has no warm-up there either")] if value else [])
    if value is None:
        return [*found, default("training.warmup", *usual_warmup)]
    if given == "warmup_ratio" and value >= 1:
        raise f.wrong(given, "a share below 1")
    return [*found, carried(given, "training.warmup", value)]


def clipping(f: Foreign) -> list[Line]:
    """transformers' 0 is no clipping."""
    norm = f.number("max_grad_norm", 1.0)
    if norm > 0:
        return [written(f, "max_grad_norm", "training.max_grad_norm", norm)]
    words = "0 is no clipping there; here a bound that no gradient reaches"
    return [changed("max_grad_norm", words, "training.max_grad_norm", 1e9)]


def batch(micro: str, usual: int, tool: str, f: Foreign) -> list[Line]:
    """Rows of a device × accumulation; the number of devices stands in no configuration."""
    accumulation = "gradient_accumulation_steps"
    rows, steps = f.count(micro, usual), f.count(accumulation, 1)
    keys = " × ".join(key for key in (micro, accumulation) if f.has(key))
    words = (
        f"{rows} × {steps} = {rows * steps} rows a step, on one device. {tool} takes as many on every further device, "
        f"luthier the same everywhere: for N devices set training.accumulate_steps to {steps} × N"
    )
    return [
        written(f, micro, "training.batch_size", rows),
        written(f, accumulation, "training.accumulate_steps", steps),
        changed(keys, words),
    ]


def packing(keys: Sequence[str], length: str, f: Foreign) -> list[Line]:
    """Rows packed into sequences: the flat batch wastes nothing either, but a batch counts other things."""
    on = [key for key in keys if f.has(key) and f.flag(key)]
    words = (
        f"a row of the batch there is `{length}` tokens, filled with as many examples as fit; here it is one example, "
        f"nothing is padded: raise training.batch_size by about {length} / the mean length of your rows"
    )
    return [changed(on[0], words)] + [as_here(key) for key in on[1:]] if on else []


def cadence(kind: str, path: str, f: Foreign) -> list[Line]:
    """`save_strategy` and `save_steps`, or those of `eval`: every so many steps; once an epoch is luthier's way."""
    strategy, steps = f"{kind}_strategy", f"{kind}_steps"
    found = []
    if f.has(strategy):
        word = f.word(strategy, "no")
        never = {"save": "luthier always saves", "eval": "luthier evaluates once an epoch where there is validation"}
        found += [lost(strategy, never[kind])] if word == "no" else [as_here(strategy)]
    if f.has(steps):
        value = f.number(steps)
        if value < 1:
            found.append(lost(steps, "a share of the run; luthier counts steps, or saves and evaluates once an epoch"))
        elif f.has(strategy) and f.word(strategy, "no") == "epoch":
            found.append(lost(steps, f"`{strategy}: epoch` overrules it there too"))
        else:
            found.append(carried(steps, path, f.count(steps)))
    return found


def best(validates: bool, tool: str, f: Foreign) -> list[Line]:
    """Which weights a run ends with."""
    key = "load_best_model_at_end"
    if f.has(key) and f.flag(key):
        return [as_here(key)]
    return [changed(key if f.has(key) else "", BEST.format(tool=tool))] if validates else []


def checkpointing(f: Foreign) -> list[Line]:
    """Anything but false (`true`, `offload`, `unsloth`) is true."""
    key = "gradient_checkpointing"
    if not f.has(key):
        return []
    on = f.word(key, "no") not in ("no", "false")
    return [carried(key, "training.gradient_checkpointing", on)]


def attention(key: str, f: Foreign) -> list[Line]:
    """sdpa and eager are carried; flash attention needs no word: the flat batch has its own."""
    name = f.word(key, "auto")
    if name in ("sdpa", "eager"):
        return [carried(key, "model.attention", name)]
    return ([as_here(key)] if name == "auto" else [lost(key, SPEED)]) if f.has(key) else []
