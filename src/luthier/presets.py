"""Starting values: by model, family, task and method, each with its source.

Lives here: the documents' presets (PARAMETERS §2), defaults for every other model (LANDSCAPE §5), what they resolve to.
Does not live here: what a parameter means (`spec`), which base to take in the first place (`advisor.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from luthier import spec
from luthier.errors import SpecError

Family = Literal["causal", "seq2seq", "encoder"]
Sourced = Mapping[str, tuple[Any, str]]


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What must be known of a base to choose values: `positions` None = no limit; `parameters` counts all weights."""

    name: str
    family: Family
    model_type: str
    hidden_size: int
    layers: int
    positions: int | None
    vocab_size: int
    parameters: int
    chat_template: bool
    quantized: bool


@dataclass(frozen=True, slots=True)
class Preset:
    """A row of a document: for models whose name matches `pattern`, these `methods`, and one task (None: any)."""

    name: str
    pattern: str
    methods: tuple[str, ...]
    task: str | None
    values: Mapping[str, Any]
    source: str = spec.DOCUMENT


@dataclass(frozen=True, slots=True)
class Resolved:
    """An experiment without gaps, each leaf's origin ("you", "preset NAME", "default (source)"), and notes to show."""

    experiment: spec.Experiment
    origins: Mapping[str, str]
    notes: tuple[str, ...]


def _tuning(batch_size: int, accumulate_steps: int, learning_rate: float, num_epochs: int) -> dict[str, Any]:
    return {
        "training.batch_size": batch_size,
        "training.accumulate_steps": accumulate_steps,
        "training.learning_rate": learning_rate,
        "training.num_epochs": num_epochs,
    }


def _lora(rank: int, alpha: float, dropout: float, target_modules: tuple[str, ...]) -> dict[str, Any]:
    return {
        "method.rank": rank,
        "method.alpha": alpha,
        "method.dropout": dropout,
        "method.target_modules": target_modules,
    }


_PROMPT, _LOW_RANK = ("prompt_tuning",), ("lora", "qlora")
_GRANITE_13B = r"granite-13b-instruct-v2"

PRESETS: tuple[Preset, ...] = (
    Preset(
        "flan-t5-xl-3b", r"flan-t5-xl(-3b)?", _PROMPT, None, {"method.init_method": "random"} | _tuning(16, 16, 0.3, 20)
    ),
    Preset("granite-13b-instruct-v2", _GRANITE_13B, _PROMPT, "classification", _tuning(8, 32, 0.0006, 20)),
    Preset("granite-13b-instruct-v2", _GRANITE_13B, _PROMPT, "generation", _tuning(16, 16, 0.0002, 20)),
    Preset("granite-13b-instruct-v2", _GRANITE_13B, _PROMPT, "summarization", _tuning(8, 1, 0.0002, 40)),
    Preset(
        "granite-3-1-8b-base",
        r"granite-3-1-8b-base",
        _LOW_RANK,
        None,
        _lora(8, 32, 0.05, ("all-linear",)) | _tuning(8, 1, 0.00001, 10),
    ),
    Preset(
        "llama-3-1-8b",
        r"(meta-)?llama-3-1-8b(-base)?",
        _LOW_RANK,
        None,
        _lora(32, 64, 0.05, ("q_proj", "v_proj")) | _tuning(8, 1, 0.00001, 5),
    ),
)
_STORED = r"(-(hf|unsloth|bnb-4bit|bnb-8bit|4bit|8bit|nf4|bf16|fp16))*"  # the same weights, stored otherwise

ARCHITECTURE_TARGETS: Mapping[str, tuple[str, ...]] = {
    "llama": ("q_proj", "v_proj"),
    "granite": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "qwen3": ("q_proj", "v_proj"),
    "gemma": ("q_proj", "v_proj"),
    "gemma2": ("q_proj", "v_proj"),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "gpt2": ("c_attn",),
    "gpt_neox": ("query_key_value",),
    "opt": ("q_proj", "v_proj"),
    "t5": ("q", "v"),
    "bart": ("q_proj", "v_proj"),
    "blenderbot": ("q_proj", "v_proj"),
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "albert": ("query", "value"),
    "deberta-v2": ("query_proj", "value_proj"),
}
"""What `target_modules: []` means, by model type: PARAMETERS §3 for llama and granite, PEFT's table for the others."""

# The sources of the defaults.
_REGRET = "LoRA Without Regret, Thinking Machines 2025"
_COOKBOOK = "tinker-cookbook: 5e-5 · 10 · (2000 / hidden size)^p, LoRA ten times full"
_BERT = "BERT, Devlin et al. 2019: 2e-5 to 5e-5, here by hidden size"
_T5 = "Hugging Face's T5 guide: 1e-4 to 3e-4, here by hidden size"
_BART = "BART's recipe for summaries, Lewis et al. 2020: 3e-5, here by hidden size"
_HEADED = "PEFT's guide for LoRA on RoBERTa: 1e-3, here by hidden size: 20 times the full rate"
_TEN_TIMES = f"ten times the full rate: {_REGRET}"
_SOFT = "TRL's PEFT guide: 1e-2 to 3e-2; more for small models"
_VOCABULARY = "PEFT's method comparison: vocabulary start 34 % against 23 % at random (GSM8K)"
_LESTER = "Lester et al. 2021: little gain beyond 20 tokens"
_COMMON = "usual for fine-tuning: transformers' TrainingArguments"


def find(name: str, method: str, task: str | None) -> Preset | None:
    """The preset for a model by its Hub id, folder or plain name, as people write them; None for any other model.

    >>> find("meta-llama/Meta-Llama-3.1-8B", "lora", None).name
    'llama-3-1-8b'
    >>> find("meta-llama/Llama-3.1-8B-Instruct", "lora", None) is None
    True
    """
    parts = [part for part in re.split(r"[/\\]", name) if part]
    cached = len(parts) > 2 and parts[-2] == "snapshots"  # the Hub's cache: models--ORG--NAME/snapshots/COMMIT
    last = parts[-3].split("--")[-1] if cached else parts[-1]
    plain = re.sub(r"[._\s]", "-", last.lower())
    for preset in PRESETS:
        if re.fullmatch(preset.pattern + _STORED, plain) and method in preset.methods and preset.task in (None, task):
            return preset
    return None


def resolve(experiment: spec.Experiment, facts: BaseFacts, task: str | None = None) -> Resolved:
    """Fill what the experiment leaves open: preset first, else default. `task` is what the data look like.

    No None is left in `method` and `training` but where omitted has a meaning of its own. Raises SpecError where method
    and base do not fit (PARAMETERS §3: lora on a quantized base), or the task is none of the base's.
    """
    task = experiment.task or task
    _refuse(experiment, facts, task)
    chosen, written = spec.chosen(experiment), spec.leaves(experiment)
    you = {path: (written[path], "you") for path in chosen}
    layers = (you, _document(experiment, facts, task), _defaults(experiment, facts, task))  # the first that knows wins
    values = {
        path: next((layer[path] for layer in layers if path in layer), (value, "default"))
        for path, value in written.items()
    }
    values |= _targets(values, facts)
    values |= _length(values, facts)
    origins = {path: origin for path, (_, origin) in values.items()}
    complete = _fill(experiment, {path: value for path, (value, _) in values.items()})
    return Resolved(complete, origins, _notes(complete, origins, facts))


def _document(experiment: spec.Experiment, facts: BaseFacts, task: str | None) -> Sourced:
    """What a document's preset says for this base, method and task."""
    preset = find(facts.name, experiment.method.type, task)
    values = dict(preset.values) if preset else {}
    if "method.init_text" in spec.chosen(experiment):
        values.pop("method.init_method", None)  # a text that is given is meant to be used
    return {path: (value, f"preset {preset.name}") for path, value in values.items()} if preset else {}


def _fill(part: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """`part` with the leaves of `values`; what counts as chosen stays as it was."""
    fields = {
        name: _fill(value, values, f"{prefix}{name}.") if isinstance(value, spec.Part) else values[f"{prefix}{name}"]
        for name, value in part
    }
    empty = {name for name, value in part if value is None}
    return type(part).model_construct(part.model_fields_set - empty, **fields)


# --- defaults for a model that no document names ---------------------------------------------------------------------
def learning_rate(method: str, facts: BaseFacts) -> tuple[float, str]:
    """The default peak learning rate of AdamW, two digits, and its source. Smaller models bear and need higher rates.

    full: causal 5e-5 · (2000/hidden)^p, p = 0.0775 for Qwen, else 0.781; encoder 5e-5 · (768/hidden)^0.781 in
    2e-5 … 1e-4; T5-like 1e-4 · (2048/hidden)^0.781, other seq2seq 3e-5 · (1024/hidden)^0.781, both at most 1e-3.
    lora, qlora: ten times that; twenty for encoders, whose head is new. prompt tuning: 1e-2 · (2000/hidden)^0.781 in
    1e-2 … 1e-1, encoders 1e-2.
    """
    hidden = facts.hidden_size
    if method == "prompt_tuning":
        scale = 1.0 if facts.family == "encoder" else (2000 / hidden) ** 0.781
        return float(f"{min(max(1e-2 * scale, 1e-2), 1e-1):.1e}"), _SOFT
    if facts.family == "causal":
        power = 0.0775 if "qwen" in facts.model_type else 0.781
        rate, source = 5e-5 * (2000 / hidden) ** power, _COOKBOOK
    elif facts.family == "encoder":
        rate, source = min(max(5e-5 * (768 / hidden) ** 0.781, 2e-5), 1e-4), _BERT
    elif "t5" in facts.model_type:
        rate, source = min(1e-4 * (2048 / hidden) ** 0.781, 1e-3), _T5
    else:
        rate, source = min(3e-5 * (1024 / hidden) ** 0.781, 1e-3), _BART
    if method != "full" and facts.family == "encoder":
        rate, source = 20 * rate, _HEADED
    elif method != "full":
        rate, source = 10 * rate, source if facts.family == "causal" else f"{_TEN_TIMES}; {source}"
    return float(f"{rate:.1e}"), source


def _defaults(experiment: spec.Experiment, facts: BaseFacts, task: str | None) -> Sourced:
    """Whatever depends on family, size and method; what the data and the file's name say."""
    method = experiment.method
    values: dict[str, tuple[Any, str]] = {
        "training.batch_size": (16, f"small batches suit adapters: {_REGRET}; the document's upper bound"),
        "training.accumulate_steps": (1, "memory does not ask for it: the engine splits a batch as it must"),
        "training.num_epochs": (3, _COMMON),
        "training.learning_rate": learning_rate(method.type, facts),
        "training.warmup": (0.03, "QLoRA, Dettmers et al. 2023"),
        "training.weight_decay": (0.0, _COMMON),
    }
    if facts.family == "encoder":
        values["training.warmup"] = (0.06, "RoBERTa, Liu et al. 2019")
        if method.type == "full":
            values["training.weight_decay"] = (0.01, "BERT, Devlin et al. 2019")
    if method.type in _LOW_RANK:
        values |= {
            "method.rank": (16, "between the document's 8 and 32; a rate holds for every rank: " + _REGRET),
            "method.alpha": (32.0, _REGRET),
            "method.dropout": (0.0, "PEFT's LoraConfig"),
            "method.target_modules": (("all-linear",), _REGRET),
        }
        if facts.family == "encoder":
            values["training.num_epochs"] = (5, "a new head on a frozen base: LoRA, Hu et al. 2022 takes 10 and more")
    if isinstance(method, spec.PromptTuning):
        text = method.init_text is not None
        values |= {
            "method.virtual_tokens": (20, _LESTER),
            "method.init_method": ("text", "`init_text` is given") if text else ("vocabulary", _VOCABULARY),
            "training.num_epochs": (20, f"as in {spec.DOCUMENT}"),
        }
    values |= {"task": (task, "what the data look like")} if task is not None else {}
    values |= {"name": (experiment.name, "the file's name")} if experiment.name is not None else {}
    return {path: (value, f"default ({source})") for path, (value, source) in values.items()}


def _targets(values: Sourced, facts: BaseFacts) -> Sourced:
    """`target_modules: []` → the architecture's own list, or every linear layer where none is known."""
    if "method.target_modules" not in values or values["method.target_modules"][0] != ():
        return {}
    known = ARCHITECTURE_TARGETS.get(facts.model_type)
    what = f"the default of {facts.model_type}" if known else f"no list is known for {facts.model_type}"
    return {"method.target_modules": (known or ("all-linear",), f"you (`[]`: {what})")}


def _length(values: Sourced, facts: BaseFacts) -> Sourced:
    """`max_seq_length` from the base's positions: in seq2seq both sides have them; a soft prompt takes its share."""
    if values["training.max_seq_length"][0] is not None or facts.positions is None:
        return {}
    virtual = values["method.virtual_tokens"][0] if "method.virtual_tokens" in values else 0
    if virtual >= facts.positions:
        hint = f"`method.virtual_tokens` must be less than {facts.positions}"
        room = f"{virtual} virtual tokens leave no room in the {facts.positions} positions of {facts.name}"
        raise SpecError(room, hint=hint)
    sides = 2 if facts.family == "seq2seq" else 1
    return {"training.max_seq_length": (sides * facts.positions - virtual, "default (the base's positions)")}


# --- what does not fit, and what a person should know ----------------------------------------------------------------
def _refuse(experiment: spec.Experiment, facts: BaseFacts, task: str | None) -> None:
    method = experiment.method.type
    if facts.quantized and method in ("lora", "full"):
        raise SpecError(
            f"`method.type: {method}` needs a base that is not quantized, and {facts.name} is stored quantized",
            hint="say `method: qlora`, which trains on it as it is",
        )
    if facts.family == "encoder" and task not in (None, "classification"):
        raise SpecError(
            f"{facts.name} is an encoder: it can classify, but not do `task: {task}`",
            hint="take a decoder or seq2seq base, or `task: classification`; `luthier init` names bases that fit",
        )


def _notes(experiment: spec.Experiment, origins: Mapping[str, str], facts: BaseFacts) -> tuple[str, ...]:
    method, training, origin = experiment.method.type, experiment.training, origins["training.learning_rate"]
    notes = []
    if method in _LOW_RANK and origin.startswith("preset") and training.learning_rate is not None:
        usual = learning_rate(method, facts)[0]
        notes.append(
            f"{origin} keeps its document's learning rate, {training.learning_rate:g}; current studies advise "
            f"{usual / training.learning_rate:.0f} times as much, about {usual:g} ({_REGRET})"
        )
    if method in _LOW_RANK and facts.chat_template:
        notes.append(
            f"{facts.name} has a chat template, so it is probably instruction-tuned already; LoRA works best on a base "
            f"that is not ({spec.DOCUMENT})"
        )
    if isinstance(experiment.method, spec.QLora) and not facts.quantized:
        kind = "NF4, 4 bits" if experiment.method.bits == 4 else "8 bits"
        notes.append(f"{facts.name} is not stored quantized: it is quantized at load ({kind})")
    if method == "prompt_tuning" and facts.parameters > 10_000_000_000:
        notes.append(f"above ten billion parameters the start of a soft prompt matters little ({spec.DOCUMENT})")
    virtual = experiment.method.virtual_tokens or 0 if isinstance(experiment.method, spec.PromptTuning) else 0
    length, sides = training.max_seq_length, 2 if facts.family == "seq2seq" else 1
    if length is not None and facts.positions is not None and length + virtual > sides * facts.positions:
        tokens = f"{length} tokens" + (f" and {virtual} virtual ones" if virtual else "")
        notes.append(
            f"`training.max_seq_length`: {tokens} are more than the base's {sides * facts.positions} positions"
        )
    return tuple(notes)
