"""Adapter folders in PEFT's format: save, read, strict load, merge. And whole models, for full tuning.

Lives here: the files and what they promise (`luthier.json`). Does not live here: the trained tensors (`methods.py`).
A folder is complete or absent: it is written beside its place and renamed.

The format is that of PEFT 0.21 (`adapter_config.json`, `adapter_model.safetensors`); PEFT itself is not needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier import disk, spec
from luthier.errors import ModelError
from luthier.models import refusals
from luthier.models.base import Base
from luthier.models.facts import first_line, quiet
from luthier.models.lora import lora_scale
from luthier.models.manifest import (
    MANIFEST,
    SAME,
    base_facts,
    check_files,
    name_to_load,
    read_manifest,
    write_manifest,
)
from luthier.models.methods import Tuned
from luthier.models.slots import PEFT_PREFIX, PROMPT_PREFIX, Slot

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TASK_TYPE = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "encoder": "SEQ_CLS"}

# Keys of a PEFT configuration that we read or need not. Any other with a value of its own changes the maths: refused.
_KNOWN = """
peft_type task_type base_model_name_or_path revision inference_mode peft_version auto_mapping modules_to_save
r lora_alpha lora_dropout use_rslora fan_in_fan_out init_lora_weights
target_modules exclude_modules layers_to_transform layers_pattern
num_virtual_tokens token_dim num_layers num_attention_heads num_transformer_submodules
prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs
"""
_NEUTRAL: dict[str, Any] = {"bias": "none", "megatron_core": "megatron.core", "qalora_group_size": 16}
_HARMLESS_INIT = {True, False, "gaussian", "eva", "orthogonal"}  # others change the base's weights


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A folder's content, read and checked: `tensors` by the names of `Slot.tensors()`, `manifest` None from others."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    manifest: Mapping[str, Any] | None


def save(tuned: Tuned, slot: Slot, folder: Path) -> Path:
    """Write what `slot` learned to `folder`: an adapter, or for full tuning the whole model. Replaces what was there.

    With the tokenizer, a model card and `luthier.json`, which names base, vocabulary and files by content.
    Raises ModelError if a value is not finite or the disk refuses: then nothing is written.
    """
    base = tuned.base
    tensors = {name: tensor.cpu().contiguous() for name, tensor in slot.tensors().items()}
    broken = sorted(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all())
    if broken:
        raise ModelError(f"`{broken[0]}` holds values that are not finite; nothing was saved", str(folder))
    with writing(folder), disk.whole_folder(folder) as partial:
        if isinstance(slot.method, spec.Full):
            save_model(base, partial)
        else:
            disk.write_json(partial / CONFIG, _config(base, slot))
            safetensors.torch.save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
            save_tokenizer(base, partial)
        write_manifest(partial, base, slot.method)
    return folder


def read(folder: Path) -> AdapterFiles:
    """What an adapter folder holds, from us or from PEFT. Nothing is followed, no pickle is opened, no code is run.

    Raises ModelError for a folder that is refused (`refusals.py`), damaged, or of a method luthier does not have.
    """
    if not (folder / CONFIG).is_file():
        raise ModelError(f"no {CONFIG}: this is not an adapter folder", str(folder))
    refusals.scan(folder, known_model_type=False)
    config = refusals.read_json(folder / CONFIG, "config")
    if not (folder / WEIGHTS).is_file():
        others = [path.name for path in folder.glob("adapter_model.*")]
        hint = f"found {', '.join(others)}; a pickle is never opened" if others else None
        raise ModelError(f"no {WEIGHTS}", str(folder), hint)
    manifest = read_manifest(folder / MANIFEST) if (folder / MANIFEST).exists() else None
    tensors = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    _check_config(config, tensors, folder / CONFIG)
    if manifest is not None:
        check_files(folder, manifest)
    files = AdapterFiles(folder, config, tensors, manifest)
    method_of(files)  # refuses values that no method may have
    return files


def method_of(files: AdapterFiles) -> spec.Method:
    """The method to attach so that `load` fits; target modules are those the tensors name."""
    config, manifest = files.config, files.manifest
    if config["peft_type"] == "PROMPT_TUNING":
        return spec.PromptTuning(virtual_tokens=config["num_virtual_tokens"], init_method="random")
    ending = ".lora_A.weight"
    targets = [key.removeprefix(PEFT_PREFIX).removesuffix(ending) for key in files.tensors if key.endswith(ending)]
    fields: dict[str, Any] = {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "dropout": config.get("lora_dropout", 0.0),
        "target_modules": tuple(targets),
        "rslora": config.get("use_rslora", False),
    }
    try:
        if manifest is not None and manifest["method"]["type"] == "qlora":
            return spec.QLora(
                **fields, **{name: manifest["method"].get(name) for name in ("bits", "double_quantization")}
            )
        return spec.Lora(**fields)
    except ValueError as error:
        raise ModelError(f"the adapter's values make no method: {first_line(error)}", str(files.folder)) from None


def load(tuned: Tuned, slot: Slot, files: AdapterFiles | Path) -> None:
    """Copy an adapter into `slot`, strictly: same base, same keys, same shapes. On any error the slot is untouched.

    A head that another program left out of its adapter keeps the base's own weights, if the base has them.
    """
    files = files if isinstance(files, AdapterFiles) else read(files)
    check_base(tuned.base, files)
    own, given = slot.tensors(), dict(files.tensors)
    where = str(files.folder / WEIGHTS)
    if files.manifest is None:
        for key in own.keys() - given.keys():
            name = key.removeprefix(PROMPT_PREFIX if slot.virtual_tokens else PEFT_PREFIX)
            if ".lora_" not in key and key != "prompt_embeddings" and name not in tuned.base.missing:
                given[key] = tuned.base.model.get_parameter(name)
        rows = files.config.get("num_virtual_tokens")
        if "prompt_embeddings" in given and files.config.get("num_transformer_submodules") == 2:
            given["prompt_embeddings"] = given["prompt_embeddings"][:rows]  # PEFT reads only the encoder's half
    for key in sorted(own.keys() | given.keys()):
        if key not in given:
            raise ModelError(f"the adapter lacks `{key}`", where)
        if key not in own:
            raise ModelError(f"the adapter holds `{key}`, which this base and method have no place for", where)
        if given[key].shape != own[key].shape:
            shapes = f"{tuple(given[key].shape)}, expected {tuple(own[key].shape)}"
            raise ModelError(f"`{key}` has shape {shapes}", where)
        exact = files.manifest is not None  # others save in half precision too, which float32 holds exactly
        if given[key].dtype not in ({torch.float32} if exact else {torch.float32, torch.bfloat16, torch.float16}):
            raise ModelError(f"`{key}` is {given[key].dtype}, expected torch.float32", where)
        if not torch.isfinite(given[key]).all():
            raise ModelError(f"`{key}` holds values that are not finite", where)
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(given[key])


def check_base(base: Base, files: AdapterFiles) -> None:
    """Raise ModelError naming what differs if the adapter was not trained on this base."""
    where = str(files.folder)
    trained_on = files.config.get("base_model_name_or_path")
    if files.manifest is None:
        if trained_on not in (base.name, name_to_load(base)):
            hint = "if it is the same model, write its name into adapter_config.json"
            raise ModelError(f"the adapter was trained on `{trained_on}`, not on `{base.name}`", where, hint)
        revision = files.config.get("revision")
        if revision not in (None, "main", base.revision):
            raise ModelError(f"the adapter was trained on revision {revision}, this is {base.revision}", where)
        return
    then, now = files.manifest["base"], base_facts(base)
    for field, said in SAME.items():
        if then[field] != now[field] and (field != "revision" or then["weights"] != now["weights"]):
            difference = said.format(str(then[field]), str(now[field]))
            raise ModelError(f"the adapter of `{then['name']}` was trained on {difference}", where)
    if list(files.manifest["labels"]) != list(base.labels):
        raise ModelError(f"the adapter tells {list(files.manifest['labels'])} apart, not {list(base.labels)}", where)


def merge(base: Base, files: AdapterFiles) -> None:
    """Write the adapter into the weights of `base`, in place: W + s B A in float32, rounded once to the base's dtype.

    A quantized base is dequantized first and stays so: rounding back would undo a small adapter. A trained tensor that
    was tied to another is untied. Raises ModelError for soft prompts, which no weight can hold.
    """
    if files.config["peft_type"] == "PROMPT_TUNING":
        hint = "publish the adapter, or serve it with luthier or PEFT"
        raise ModelError("a soft prompt cannot be merged: it is input, not weights", str(files.folder), hint)
    check_base(base, files)
    dequantize(base)
    config = files.config
    scale = lora_scale(config["r"], config["lora_alpha"], config.get("use_rslora", False))
    with torch.no_grad():
        for key, tensor in files.tensors.items():
            name = key.removeprefix(PEFT_PREFIX)
            if name.endswith(".lora_A.weight"):
                module = base.model.get_submodule(name.removesuffix(".lora_A.weight"))
                change = scale * (files.tensors[key.replace("lora_A", "lora_B")].float() @ tensor.float())
                change = change.t() if isinstance(module, Conv1D) else change
                _assign(base, module, "weight", module.weight.float() + change.to(module.weight.device))
            elif not name.endswith(".lora_B.weight"):
                path, _, leaf = name.rpartition(".")
                _assign(base, base.model.get_submodule(path), leaf, tensor)


def dequantize(base: Base) -> None:
    """Replace every quantized layer by a plain one with the weights that training saw, in the base's precision."""
    quantized = [
        (name, module)
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    ]
    if quantized:
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        for name, module in quantized:
            state = module.state if type(module.weight).__name__ == "Int8Params" else None
            weight = dequantize_bnb_weight(cast(nn.Parameter, module.weight), state).to(base.dtype)
            transposed = module.source_cls is Conv1D  # what the layer was before transformers quantized it
            weight = weight.t().contiguous() if transposed else weight
            with torch.device("meta"):
                plain = (Conv1D if transposed else nn.Linear)(*weight.shape[::-1])
            plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), module.bias
            base.model.set_submodule(name, plain)
    vars(base.model.config).pop("quantization_config", None)


def _assign(base: Base, module: nn.Module, leaf: str, value: Tensor) -> None:
    """Give a parameter a new value without changing one it is tied to."""
    old = module.get_parameter(leaf)
    module.register_parameter(leaf, nn.Parameter(value.to(old.device, old.dtype), requires_grad=False))
    holders = sum(1 for _, other in base.model.named_parameters(remove_duplicate=False) if other is old)
    if holders and base.model.config.tie_word_embeddings:
        base.model.config.tie_word_embeddings = False


# --------------------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the disk refuses while `folder` is written, as a ModelError that names the place."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        hint = "is there room on the disk, and may you write there? then the same command again"
        raise ModelError(f"cannot be written: {said}", str(folder), hint) from error


def save_model(base: Base, folder: Path) -> None:
    """The whole model as transformers loads it: safetensors, configuration, tokenizer and chat template."""
    with quiet():
        base.model.save_pretrained(folder)
    save_tokenizer(base, folder)


def save_tokenizer(base: Base, folder: Path) -> None:
    """The tokenizer's files, unless it knows tokens the base has no row for: PEFT would then resize the base."""
    if len(base.tokenizer) <= base.model.get_input_embeddings().num_embeddings:
        with quiet():
            base.tokenizer.save_pretrained(folder)


def _config(base: Base, slot: Slot) -> dict[str, Any]:
    text = base.model.config.get_text_config()
    config = {
        "base_model_name_or_path": name_to_load(base),
        "revision": base.revision,
        "task_type": TASK_TYPE[base.family],
        "inference_mode": True,
        "modules_to_save": list(base.fresh) or None,
    }
    if isinstance(slot.method, spec.PromptTuning):
        return config | {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": slot.method.virtual_tokens,
            "token_dim": base.model.get_input_embeddings().embedding_dim,
            "num_layers": base.facts.layers,
            "num_attention_heads": text.num_attention_heads,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
        }
    assert isinstance(slot.method, spec.Lora | spec.QLora) and slot.method.alpha is not None
    return config | {
        "peft_type": "LORA",
        "r": slot.method.rank,
        "lora_alpha": int(slot.method.alpha) if slot.method.alpha.is_integer() else slot.method.alpha,
        "lora_dropout": slot.method.dropout,
        "use_rslora": slot.method.rslora,
        "target_modules": _short_targets(base, slot.targets),
        "fan_in_fan_out": any(isinstance(base.model.get_submodule(name).base, Conv1D) for name in slot.targets[:1]),
        "bias": "none",
        "init_lora_weights": True,
    }


def _short_targets(base: Base, targets: tuple[str, ...]) -> list[str]:
    """The shortest endings of module names that mean exactly `targets` to PEFT; else the whole names."""
    names = [name for name, _ in base.model.named_modules()]
    for parts in (1, 2):
        endings = sorted({".".join(name.split(".")[-parts:]) for name in targets})
        meant = {name for name in names if any(name == ending or name.endswith("." + ending) for ending in endings)}
        if meant == set(targets):
            return endings
    return sorted(targets)


def _check_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> None:
    kind = config.get("peft_type")
    sizes = {"LORA": ("r", "lora_A"), "PROMPT_TUNING": ("num_virtual_tokens", "prompt_embeddings")}
    if kind not in sizes:
        raise ModelError(f"PEFT's `{kind}` is not a method of luthier", str(path), "it loads LORA and PROMPT_TUNING")
    field, part = sizes[kind]
    found = {len(tensor) for name, tensor in tensors.items() if part in name}
    expected = config.get(field)
    if not isinstance(expected, int) or found not in (
        {expected},
        {expected * config.get("num_transformer_submodules", 1)},
    ):
        raise ModelError(f"`{field}` is {expected}, the tensors say {sorted(found)}", str(path))
    if kind == "LORA" and not (isinstance(config.get("lora_alpha"), int | float) and config["lora_alpha"] > 0):
        raise ModelError("`lora_alpha` must be a positive number", str(path))
    for key, value in config.items():
        if key not in _KNOWN.split() and value not in (None, False, {}, [], _NEUTRAL.get(key)):
            raise ModelError(f"`{key}: {value}` is a variant luthier does not compute", str(path))
    if config.get("init_lora_weights", True) not in _HARMLESS_INIT:
        said = config["init_lora_weights"]
        raise ModelError(
            f"`init_lora_weights: {said}` changes the base's own weights", str(path), "convert it with PEFT first"
        )
