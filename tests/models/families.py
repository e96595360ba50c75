"""Every family beside the padded PEFT model, and the page that tells: `python -m tests.models.families` writes it.

Lives here: the list of families, one comparison, `docs/families.md`. Does not live here: the assertions
(`test_families.py`), the tiny models (`tests/tiny.py`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from luthier import spec
from luthier.models import base as bases
from luthier.models.methods import attach
from tests import tiny
from tests.equivalence.workbench import (
    LABELS,
    LORA,
    PROMPT,
    batch_loss,
    gradients,
    load,
    peft_model,
    peft_tensors,
    rows,
    share,
    tune,
)

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
TITLES = {
    "causal": "Decoders",
    "encoder": "Encoders (classification)",
    "seq2seq": "Encoder-decoders",
}
FAMILIES = {
    "tiny_llama": "Llama 1–3",
    "tiny_granite": "Granite 3",
    "tiny_qwen2": "Qwen 2, 2.5",
    "tiny_qwen3": "Qwen 3",
    "tiny_mistral": "Mistral (sliding window)",
    "tiny_gemma2": "Gemma 2 (local layers, soft-capping)",
    "tiny_gemma3": "Gemma 3 (local layers)",
    "tiny_phi": "Phi 1, 2",
    "tiny_phi3": "Phi 3, 4",
    "tiny_smollm3": "SmolLM 3",
    "tiny_olmo2": "OLMo 2",
    "tiny_cohere": "Cohere",
    "tiny_gpt2": "GPT-2",
    "tiny_gpt_neox": "GPT-NeoX, Pythia",
    "tiny_opt": "OPT",
    "tiny_granite_moe": "Granite MoE",
    "tiny_mixtral": "Mixtral",
    "tiny_stablelm": "StableLM",
    "tiny_falcon": "Falcon",
    "tiny_mpt": "MPT",
    "tiny_bloom": "BLOOM",
    "tiny_gpt_neo": "GPT-Neo",
    "tiny_gptj": "GPT-J",
    "tiny_codegen": "CodeGen",
    "tiny_bert": "BERT",
    "tiny_roberta": "RoBERTa",
    "tiny_xlm_roberta": "XLM-RoBERTa",
    "tiny_distilbert": "DistilBERT",
    "tiny_albert": "ALBERT",
    "tiny_electra": "ELECTRA",
    "tiny_modernbert": "ModernBERT",
    "tiny_deberta_v2": "DeBERTa v2, v3",
    "tiny_t5": "T5, Flan-T5",
    "tiny_mt5": "mT5",
    "tiny_bart": "BART",
    "tiny_mbart": "mBART",
    "tiny_blenderbot": "Blenderbot",
    "tiny_pegasus": "Pegasus",
}


@dataclass(frozen=True, slots=True)
class Compared:
    """One method on one family: largest differences to PEFT's padded batch, of the loss and of any gradient.

    `largest` is PEFT's largest gradient, `blind` the tensors whose gradient is all zero: there a test sees nothing.
    """

    layout: str
    note: str
    loss: float
    gradient: float
    largest: float
    blind: tuple[str, ...]


@functools.cache
def compared(kind: str, method: spec.Lora | spec.PromptTuning) -> Compared:
    """Our step, in micro-batches of at most 60 tokens, against one padded batch through PEFT."""
    base = load(tiny.build, kind)
    tuned = tune(base, method)
    examples = rows(base.family)
    ours, (grads,) = gradients(tuned, [share(tuned, 0, examples)], budget=60)
    model = peft_model(tiny.build, kind, tuned)
    loss = batch_loss(base.family, model, examples, base.decoder_start_token_id)
    loss.backward()
    theirs = {name: parameter.grad for name, parameter in peft_tensors(model, tuned).items()}
    return Compared(
        layout=tuned.layout,
        note=tuned.note,
        loss=abs(ours - float(loss.detach())),
        gradient=max(float((grads[name] - grad).abs().max()) for name, grad in theirs.items()),
        largest=max(float(grad.abs().max()) for grad in theirs.values()),
        blind=tuple(name for name, grad in theirs.items() if not float(grad.abs().max()) > 0),
    )


def planned(kind: str) -> str:
    """The layout that a plan foresees from shapes alone."""
    shapes = bases.load(spec.Model(name=str(tiny.build(kind))), labels=LABELS, weights=False)
    return attach(shapes, [], []).layout


def page() -> str:
    """docs/families.md."""
    lines = [INTRODUCTION.format(transformers=transformers.__version__)]
    reasons = []
    for family, title in TITLES.items():
        lines += [f"\n## {title}\n", HEAD]
        for kind, name in FAMILIES.items():
            if tiny.family(kind) == family:
                lora, prompt = compared(kind, LORA), compared(kind, PROMPT)
                lines.append(f"| {begin(kind)} {_figures(lora)} | {_figures(prompt)} |")
                if lora.note:
                    reasons.append(f"* **{name}**: {lora.note.partition('batches (')[2][:-1]}.")
    return "\n".join([*lines, REASONS, *reasons, CLOSE])


def begin(kind: str) -> str:
    """The cells of a family's line that do not depend on the machine: name, class, batch."""
    return f"{FAMILIES[kind]} | `{(tiny.KINDS | tiny.MORE)[kind][1]}` | {compared(kind, LORA).layout} |"


def _figures(found: Compared) -> str:
    return f"{found.loss:.0e} | {found.gradient:.0e} of {found.largest:.2g}"


HEAD = """| family | class | batch | LoRA: loss | LoRA: gradients | prompt: loss | prompt: gradients |
|---|---|---|---|---|---|---|"""
INTRODUCTION = """# Families

Which base models luthier tunes, how their rows lie in a micro-batch, and how far loss and gradients are from the
same step through PEFT on one padded batch. Written by `python -m tests.models.families` (transformers
{transformers}, float32, one CPU thread): a tiny random model of each family, nine examples with shared prefixes, a
duplicate and one that begins another; LoRA of rank 4 on every linear layer, and three virtual tokens.
`tests/models/test_families.py` compares them again in the default tests. A difference is the largest of any number:
of the loss (a few units), and of every gradient (the largest gradient stands behind *of*).

*flat*: no padding, shared prefixes stored once (`concepts/engine.md`). *padded*: one row an example, nothing shared;
for encoder-decoders always, for others where the model cannot be given its attention from outside. `attach` finds
out for each base, whatever its name: every layer must ask for our attention, and two flat rows must give what each
gives alone through the unmodified model; otherwise the same is asked of padded rows, and a base that fails both is
refused. Plan and run say so where a base runs padded. A plan has no weights: it looks whether every layer asks."""
REASONS = """
## Why padded
"""
CLOSE = """
## Notes

* All methods (LoRA, QLoRA, prompt tuning, full) run in both layouts, with slots, dropout and recomputation:
  `tests/equivalence/`.
* Mixtures of experts are exact: a token's route depends on that token alone. Experts are tensors of their own, no
  linear layers: adapters sit on the attention (and on Granite's router). No balancing loss is added.
* DeBERTa's tables of relative positions pass through adapted layers as well. With one slot they are its own; several
  LoRA slots on one DeBERTa are refused.
* A family that is not listed is asked in the same way.
"""


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page(), encoding="utf-8")
