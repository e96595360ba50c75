"""Which base to start from, for a task, a language and a machine (step 1 of the guide, PARAMETERS §7).

Lives here: the catalogue of open bases and what of them fits. Does not live here: the values to tune one with
(`presets.py`), what this machine has (`hardware.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from luthier.presets import Family, find


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
