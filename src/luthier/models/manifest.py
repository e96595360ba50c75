"""What a folder of ours says of itself: `luthier.json` for programs, the model card (README.md) for people.

Lives here: both texts, and which facts make two bases the same. Does not live here: tensors (`adapters.py`). No row of
data gets in, and no path of this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
    manifest["files"] = {path.name: disk.sha256(path) for path in files}
    (folder / CARD).write_text(model_card(manifest, merged), encoding="utf-8")
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
_LICENCE = "Not known to luthier. The licence of the base binds what was made from it; so may that of the data."


@dataclass(frozen=True, slots=True)
class Story:
    """How a result was made and what it is worth, in words: `scores` are (metric, tuned, `against`), with intervals."""

    data: str
    counts: Mapping[str, int]
    verdict: str | None = None
    against: str = "base"
    scores: tuple[tuple[str, str, str], ...] = ()


def tell(folder: Path, story: Story) -> None:
    """Write the card of a folder of ours anew, with `story` in it; a card that somebody has written on stays."""
    if (folder / MANIFEST).is_file() and (folder / CARD).is_file():
        manifest = read_manifest(folder / MANIFEST)
        merged = manifest.get("merged") is True
        if (folder / CARD).read_text(encoding="utf-8") == model_card(manifest, merged):
            (folder / CARD).write_text(model_card(manifest, merged, story), encoding="utf-8")


def model_card(manifest: dict[str, Any], merged: bool, story: Story | None = None) -> str:
    """Markdown with the front matter the Hub reads. `manifest` is the content of luthier.json."""
    base, family, labels = manifest["base"], manifest["family"], manifest["labels"]
    local = base["revision"] is None
    lines = ["---"]
    lines += [] if local else [f"base_model: {json.dumps(base['name'])}"]
    lines += ["library_name: transformers" if merged else "library_name: peft", "license: unknown"]
    lines += [f"pipeline_tag: {PIPELINE[family]}", "tags:", "- luthier", f"- {manifest['method']['type']}", "---", ""]
    shown = f"`{base['name'].replace('`', '')}`"
    at = f", a folder with weights `{base['weights'][:12]}`" if local else f" at revision `{base['revision']}`"
    lines += [f"{_title(manifest, merged)} of {shown}{at}, made with luthier.", ""]
    lines += [*_worth(story), "## Use", "", "```python", *_call(manifest, merged), "```", ""]
    if manifest["method"]["type"] == "prompt_tuning":
        lines += ["A soft prompt is input, not weights: `transformers.pipeline` cannot open this folder, PEFT can.", ""]
    if family == "encoder" and manifest["method"]["type"] in ("lora", "qlora") and not merged:
        names = '`model_kwargs={"id2label": labels}`'
        lines += [f"`transformers.pipeline` opens this folder too; the names of the classes it takes from {names}.", ""]
    if labels:
        named = ", ".join(f"{number} = {_plain(label)}" for number, label in enumerate(labels))
        lines += [f"Classes, in the order of the outputs: {named}.", ""]
    return "\n".join([*lines, *_made_from(story), "## Licence", "", _LICENCE, ""])


def _worth(story: Story | None) -> list[str]:
    if story is None or story.verdict is None:
        return []
    rows = [f"| {_cell(metric)} | {_cell(tuned)} | {_cell(base)} |" for metric, tuned, base in story.scores]
    table = [f"| metric | tuned | {_cell(story.against)} |", "|---|---|---|", *rows]
    return ["## Scores", "", f"{_cell(story.verdict)}", "", *table, "", "In brackets: 95 % intervals.", ""]


def _made_from(story: Story | None) -> list[str]:
    if story is None:
        return []
    counts = ", ".join(f"{count:,} {split}" for split, count in story.counts.items())
    return ["## Data", "", f"Rows: {counts}. Fingerprint of their content: `{story.data}`.", ""]


def _title(manifest: dict[str, Any], merged: bool) -> str:
    names = {
        "lora": "LoRA adapter",
        "qlora": "LoRA adapter (trained on a quantized base)",
        "prompt_tuning": "Soft prompt",
    }
    kind = manifest["method"]["type"]
    return "A tuned model, whole," if merged or kind == "full" else names[kind]


def _call(manifest: dict[str, Any], merged: bool) -> list[str]:
    """Python that loads the folder and asks it something. The class names of an adapter stand in luthier.json only."""
    family = manifest["family"]
    whole = merged or manifest["method"]["type"] == "full"
    name = f"Auto{'' if whole else 'Peft'}ModelFor{AUTO_MODEL[family]}"
    named = family == "encoder" and not whole
    head = ["import json", ""] if named else []
    origin = ["from transformers import " + ", ".join(sorted([name, "AutoTokenizer", "pipeline"]))]
    if not whole:
        origin = [f"from peft import {name}", "from transformers import AutoTokenizer, pipeline"]
    if family == "seq2seq":
        origin[-1] = origin[-1].removesuffix(", pipeline")
    lines = [*head, *origin, "", 'folder = "path/to/this/folder"']
    lines += ['labels = dict(enumerate(json.load(open(f"{folder}/luthier.json"))["labels"]))'] if named else []
    arguments = f", num_labels={len(manifest['labels'])}, id2label=labels" if named else ""
    base = "path/to/the/base" if manifest["base"]["revision"] is None else manifest["base"]["name"]
    own = "tokenizer_config.json" in manifest["files"]  # else it knows tokens that the base has no row for
    lines += [
        f"model = {name}.from_pretrained(folder{arguments})",
        f"tokenizer = AutoTokenizer.from_pretrained({'folder' if own else json.dumps(base)})",
    ]
    if family == "seq2seq":
        asked = 'model.generate(**tokenizer("…", return_tensors="pt"), max_new_tokens=64)'
        return [*lines, f"print(tokenizer.decode({asked}[0], skip_special_tokens=True))"]
    return [*lines, f'print(pipeline("{PIPELINE[family]}", model=model, tokenizer=tokenizer)("…"))']


def _plain(label: str) -> str:
    """A label as text that Markdown and HTML leave alone."""
    return "".join(letter if letter.isalnum() or letter in " _-.,:()" else f"&#{ord(letter)};" for letter in label)


def _cell(words: str) -> str:
    """A sentence of ours, which may repeat names that a person chose, in a table."""
    return words.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("\n", " ")
