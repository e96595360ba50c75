"""The model card of an adapter or model folder: what it is, and the call that loads it. A README.md, written by us.

Lives here: text only. Does not live here: writing the folder (`adapters.py`). No path and no row of data gets in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PIPELINE = {"causal": "text-generation", "seq2seq": "text2text-generation", "encoder": "text-classification"}
AUTO_MODEL = {"causal": "CausalLM", "seq2seq": "Seq2SeqLM", "encoder": "SequenceClassification"}


def model_card(manifest: dict[str, Any], merged: bool) -> str:
    """Markdown with the front matter the Hub reads. `manifest` is the content of luthier.json."""
    base, family, labels = manifest["base"], manifest["family"], manifest["labels"]
    local = Path(base["name"]).is_absolute()
    lines = ["---"]
    lines += [] if local else [f"base_model: {json.dumps(base['name'])}"]
    lines += ["library_name: transformers" if merged else "library_name: peft"]
    lines += [f"pipeline_tag: {PIPELINE[family]}", "tags:", "- luthier", f"- {manifest['method']['type']}", "---", ""]
    shown = f"a base with weights `{base['weights'][:12]}`" if local else f"`{base['name']}`"
    at = f" at revision `{base['revision']}`" if base["revision"] else ""
    lines += [
        f"{_title(manifest, merged)} of {shown}{at}, made with luthier.",
        "",
        "```python",
        *_call(manifest, merged),
        "```",
        "",
    ]
    if labels:
        named = ", ".join(f"{number} = {_plain(label)}" for number, label in enumerate(labels))
        lines += [f"Classes, in the order of the outputs: {named}.", ""]
    return "\n".join(lines)


def _title(manifest: dict[str, Any], merged: bool) -> str:
    names = {
        "lora": "LoRA adapter",
        "qlora": "LoRA adapter (trained on a quantized base)",
        "prompt_tuning": "Soft prompt",
    }
    kind = manifest["method"]["type"]
    return "A tuned model, whole," if merged or kind == "full" else names[kind]


def _call(manifest: dict[str, Any], merged: bool) -> list[str]:
    family = manifest["family"]
    whole = merged or manifest["method"]["type"] == "full"
    name = f"Auto{'' if whole else 'Peft'}ModelFor{AUTO_MODEL[family]}"
    count = f", num_labels={len(manifest['labels'])}" if family == "encoder" and not whole else ""
    return [
        f"from {'transformers' if whole else 'peft'} import {name}",
        f'model = {name}.from_pretrained("path/to/this/folder"{count})',
    ]


def _plain(label: str) -> str:
    """A label as text that Markdown and HTML leave alone."""
    return "".join(letter if letter.isalnum() or letter in " _-.,:()" else f"&#{ord(letter)};" for letter in label)
