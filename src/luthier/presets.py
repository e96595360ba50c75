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
}
"""What `target_modules: []` means, by model type (PARAMETERS §3). For other types the models room asks PEFT's table."""

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
    method = experiment.method.type
    preset = find(facts.name, method, task)
    wanted = {path: (value, f"preset {preset.name}") for path, value in preset.values.items()} if preset else {}
    default = {path: (value, f"default ({source})") for path, (value, source) in _defaults(experiment, facts).items()}
    if "method.init_text" in spec.chosen(experiment):
        wanted.pop("method.init_method", None)  # a text that is given is meant to be used
    if task is not None:
        default["task"] = (task, "default (what the data look like)")
    known, chosen = spec.leaves(experiment), spec.chosen(experiment)
    given = {path: (value, "you" if path in chosen else "default") for path, value in known.items()}
    mine = {path: pair for path, pair in given.items() if path in chosen}
    filled = {**default, **wanted, **mine, **_targets(known, facts)}
    values = {path: filled.get(path, pair) for path, pair in given.items()}
    values |= _length(values, facts)
    origins = {path: origin for path, (_, origin) in values.items()}
    if "name" not in chosen and experiment.name is not None:
        origins["name"] = "default (the file's name)"
    complete = _fill(experiment, {path: value for path, (value, _) in values.items()})
    return Resolved(complete, origins, _notes(complete, origins, facts))


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


def _defaults(experiment: spec.Experiment, facts: BaseFacts) -> Sourced:
    """Path → (value, source) for whatever depends on family, size and method."""
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
    return values


def _targets(values: Mapping[str, Any], facts: BaseFacts) -> Mapping[str, tuple[Any, str]]:
    """`target_modules: []` → the architecture's default, where PARAMETERS §3 names one."""
    if "method.target_modules" not in values or values["method.target_modules"] != ():
        return {}
    known = ARCHITECTURE_TARGETS.get(facts.model_type)
    return {"method.target_modules": (known, f"you (`[]`: the default of {facts.model_type})")} if known else {}


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


# --- which base to start from (step 1 of the guide, PARAMETERS §7) ---------------------------------------------------
@dataclass(frozen=True, slots=True)
class Suggestion:
    """A base that fits task, language and memory; `parameters` counts its weights; `why` is one line for a person."""

    name: str
    family: Family
    parameters: int
    why: str


_IBM, _GRANITE = "ibm-granite/granite-3.1", "de es fr ja pt ar cs it ko nl zh"
# name, its chat form ("" = none), family, million parameters, languages beside English, remark
_BASES: tuple[tuple[str, str, Family, int, str, str], ...] = (
    ("sentence-transformers/all-MiniLM-L6-v2", "", "encoder", 23, "", "tunes in minutes on a laptop"),
    ("distilbert/distilbert-base-uncased", "", "encoder", 66, "", "small and fast"),
    ("FacebookAI/roberta-base", "", "encoder", 125, "", "well tried"),
    ("answerdotai/ModernBERT-base", "", "encoder", 150, "", "reads 8,192 tokens"),
    ("answerdotai/ModernBERT-large", "", "encoder", 395, "", "reads 8,192 tokens"),
    ("FacebookAI/xlm-roberta-base", "", "encoder", 278, "many", "100 languages"),
    ("FacebookAI/xlm-roberta-large", "", "encoder", 560, "many", "100 languages"),
    ("google/flan-t5-small", "", "seq2seq", 77, "", "instruction-tuned T5"),
    ("google/flan-t5-base", "", "seq2seq", 248, "", "instruction-tuned T5"),
    ("google/flan-t5-large", "", "seq2seq", 783, "", "instruction-tuned T5"),
    ("google/flan-t5-xl", "", "seq2seq", 2850, "", "instruction-tuned T5"),
    ("facebook/bart-base", "", "seq2seq", 139, "", "pre-trained to restore text"),
    ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct", "causal", 135, "", "good for a first try"),
    ("HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-360M-Instruct", "causal", 362, "", "small"),
    ("HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "causal", 1711, "", "open data and recipe"),
    ("google/gemma-3-270m", "google/gemma-3-270m-it", "causal", 268, "many", "made to be tuned; gated: needs HF_TOKEN"),
    ("Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B", "causal", 596, "many", "119 languages"),
    ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-1.7B", "causal", 1720, "many", "119 languages"),
    ("Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B", "causal", 4022, "many", "119 languages"),
    ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B", "causal", 8191, "many", "119 languages"),
    ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct", "causal", 1236, "", "gated: needs HF_TOKEN"),
    ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", "causal", 8030, "", "gated: needs HF_TOKEN"),
    (f"{_IBM}-2b-base", f"{_IBM}-2b-instruct", "causal", 2534, _GRANITE, "12 languages"),
    (f"{_IBM}-8b-base", f"{_IBM}-8b-instruct", "causal", 8171, _GRANITE, "12 languages"),
)  # fmt: skip
_FAMILIES_FOR: Mapping[str, tuple[Family, ...]] = {
    "classification": ("encoder", "causal"),
    "summarization": ("seq2seq", "causal"),
    "translation": ("seq2seq", "causal"),
    "generation": ("causal",),
    "chat": ("causal",),
}
_FIT = {"encoder": "closest to the task: classifies with a head; ", "seq2seq": "closest to the task: rewrites text; "}
_PATIENCE = 700e6  # parameters beyond which a step on a CPU takes seconds


def suggest(task: str, memory_bytes: int, language: str = "en", device: str = "cuda") -> list[Suggestion]:
    """Open bases for `task` ("classification", …) in `language` (ISO 639-1) that can be tuned in `memory_bytes`.

    Closest families first, larger before smaller, at most three of a family, and its smallest for a first try.
    """
    found: list[Suggestion] = []
    for family in _FAMILIES_FOR[task]:
        fitting = []
        for name, chat, kind, millions, languages, remark in _BASES:
            spoken = language == "en" or languages == "many" or language in languages.split()
            how = _how_it_fits(millions * 1e6, memory_bytes, device)
            if kind != family or not spoken or how is None or (device == "cpu" and millions * 1e6 > _PATIENCE):
                continue
            size = f"{millions / 1000:.1f} billion" if millions >= 1000 else f"{millions} million"
            named = chat if task == "chat" else name
            preset = find(named, "lora", task) or find(named, "prompt_tuning", task)
            why = f"{_FIT.get(family, '')}{size} parameters, {how}; {remark}" + ("; has a preset" if preset else "")
            fitting.append(Suggestion(named, family, millions * 1_000_000, why))
        fitting.sort(key=lambda suggestion: -suggestion.parameters)
        found += fitting if len(fitting) <= 4 else [*fitting[:3], fitting[-1]]
    return found


def _how_it_fits(parameters: float, memory_bytes: int, device: str) -> str | None:
    """The richest method whose weights, gradients and moments (and a quarter more to work in) fit, or None."""
    weight = 4 if device == "cpu" else 2
    for bytes_each, method in ((16, "full tuning fits"), (weight, "LoRA fits"), (0.6, "QLoRA fits")):
        if parameters * bytes_each * 1.25 + 2**29 <= memory_bytes:
            return method
    return None
