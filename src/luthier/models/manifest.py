"""What a folder of ours says of itself: `luthier.json` for programs, the model card (README.md) for people.

Lives here: both texts, and which facts make two bases the same. Does not live here: tensors (`adapters.py`). No row of
data gets in, and no path of this machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier import __version__, disk, spec
from luthier.errors import ModelError
from luthier.models import refusals
from luthier.models.base import Base

MANIFEST, CARD = "luthier.json", "README.md"
SAME = {
    "vocabulary": "a vocabulary of {} rows, this base has {}: it was resized",
    "revision": "revision {}, this is {}",
    "weights": "other weights ({:.12}…, these are {:.12}…)",
    "tokenizer": "another tokenizer ({:.12}…, this is {:.12}…)",
}
"""What must be the same of a base, and how a difference is said."""


def write_manifest(folder: Path, base: Base, method: spec.Method, merged: bool = False) -> dict[str, Any]:
    """`luthier.json` (base, vocabulary, labels, method, sha256 of the files) and the model card; returns the former.

    The card has no hash: it is for people to write on.
    """
    manifest = {
        "luthier": __version__,
        "base": base_facts(base),
        "family": base.family,
        "labels": list(base.labels),
        "method": method.model_dump(mode="json"),
        "merged": merged,
    }
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CARD)
    (folder / CARD).write_text(model_card(manifest, merged), encoding="utf-8")
    manifest["files"] = {path.name: disk.sha256(path) for path in files}
    disk.write_json(folder / MANIFEST, manifest)
    return manifest


def base_facts(base: Base) -> dict[str, Any]:
    """What must be the same when an adapter is loaded again, and a name: of a local base its folder's."""
    return {
        "name": base.name if base.revision is not None else base.folder.resolve().name,
        "revision": base.revision,
        "weights": base.weights,
        "vocabulary": base.model.get_input_embeddings().num_embeddings,
        "tokenizer": base.tokenizer_hash,
    }


def name_to_load(base: Base) -> str:
    """The Hub id, or the absolute path of a local base, so that PEFT finds it from any working directory."""
    return base.name if base.revision is not None else str(base.folder.resolve())


def read_manifest(path: Path) -> dict[str, Any]:
    manifest = refusals.read_json(path, "config")
    parts = {"base": dict, "labels": list, "method": dict, "files": dict, "family": str}
    whole = all(isinstance(manifest.get(name), kind) for name, kind in parts.items())
    if not whole or not {*SAME, "name"} <= manifest["base"].keys() or "type" not in manifest["method"]:
        raise ModelError(
            f"`{path.name}` is not what luthier writes", str(path), "remove it to load the folder as PEFT's"
        )
    return manifest


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise ModelError unless every file that `manifest` names a hash for stands in `folder` as it was written."""
    for name, digest in manifest["files"].items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ModelError(f"`{name}`, which {MANIFEST} names, is not in this folder", str(folder))
        if disk.sha256(path) != digest:
            hint = f"if the change is meant, take the entry out of {MANIFEST}"
            raise ModelError(f"{name} is not the file luthier wrote (its hash differs)", str(path), hint)


def forget_missing(folder: Path) -> None:
    """Take files that were not copied with it out of a folder's `luthier.json`, if it has one."""
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder / MANIFEST)
        manifest["files"] = {name: digest for name, digest in manifest["files"].items() if (folder / name).is_file()}
        disk.write_json(folder / MANIFEST, manifest)


# ------------------------------------------------------------------------------------------------------------- the card

PIPELINE = {"causal": "text-generation", "seq2seq": "text2text-generation", "encoder": "text-classification"}
AUTO_MODEL = {"causal": "CausalLM", "seq2seq": "Seq2SeqLM", "encoder": "SequenceClassification"}


def model_card(manifest: dict[str, Any], merged: bool) -> str:
    """Markdown with the front matter the Hub reads. `manifest` is the content of luthier.json."""
    base, family, labels = manifest["base"], manifest["family"], manifest["labels"]
    local = base["revision"] is None
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
