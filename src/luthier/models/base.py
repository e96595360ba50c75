"""A base: a pre-trained model with its tokenizer, its family and what is known of it. Frozen, and never written to.

Lives here: loading a base in a precision, quantized, or spread over devices.
Does not live here: finding it (`facts.py`), what is refused (`refusals.py`), what is trained on it (`methods.py`).
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer

from luthier import hardware, spec
from luthier.errors import MissingExtra, ModelError
from luthier.models import refusals
from luthier.models.facts import (
    auto_class,
    configuration,
    facts_of,
    first_line,
    inspect,
    locate,
    position_offset,
    quiet,
    tokenizer_digest,
    weights_digest,
)
from luthier.presets import BaseFacts

__all__ = ["Base", "inspect", "load", "untrained_token_ids"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEAD_SEED = 0
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it repeats one remark on precision at every product


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base. Its parameters need no gradient, it is in `eval()` mode.

    `fresh` are the modules a classifier's adapter trains and carries: all beside the encoder, and what the checkpoint
    lacked (a pooler); new ones start from a fixed seed. `missing`: the parameters the checkpoint lacked.
    `end_token_ids`: every token that ends an answer, the one to train first. `position_offset`: added to positions that
    begin at 0 before they go to the model as `position_ids`.
    `weights` names the base's weights by content, `tokenizer_hash` its vocabulary. `notes` are for a person.
    """

    model: Any
    tokenizer: Any
    family: str
    name: str
    revision: str | None
    facts: BaseFacts
    device: torch.device
    dtype: torch.dtype
    end_token_ids: tuple[int, ...]
    fresh: tuple[str, ...]
    missing: frozenset[str]
    labels: tuple[str, ...]
    pad_token_id: int
    decoder_start_token_id: int | None
    position_offset: int
    folder: Path
    weights: str
    tokenizer_hash: str
    notes: tuple[str, ...] = ()


def load(
    model: spec.Model,
    method: Any = None,
    labels: tuple[str, ...] = (),
    machine: hardware.Machine | None = None,
    *,
    spread: bool = False,
    max_memory: Mapping[int | str, int | str] | None = None,
    weights: bool = True,
    shard: Callable[[Any], None] | None = None,
) -> Base:
    """Load the base `model` for `method` (None: to evaluate or generate).

    `labels` are an encoder's classes in the order of its outputs. float32 on a CPU, bfloat16 on a GPU unless the model
    says otherwise (full tuning: float32). qlora quantizes at load (NF4 or 8 bits) a base that is not stored quantized.
    `spread` lays a base that is larger than one device over all of them, then memory, then disk, within `max_memory`
    (bytes or "10GiB" by device): for evaluation and generation only. `shard` is given the network in the host's memory
    and lays it over the processes that train it together. Without `weights` only shapes are there, on torch's meta
    device: for plans. Raises ModelError, MissingExtra (bitsandbytes).
    """
    machine = machine or hardware.machine()
    folder, commit = locate(model.name, model.revision, weights)
    config, notes = configuration(folder)
    facts = facts_of(model.name, config, folder)
    _check_method(facts, method)
    if labels and facts.family == "encoder":
        _set_labels(config, labels)
    dtype = _dtype(model.dtype, machine, method)
    placement = {"dtype": dtype} | (_devices(machine, spread, max_memory) if shard is None else {})
    if method is not None and method.type == "qlora" and not facts.quantized:
        placement["quantization_config"] = _quantization(method, dtype, config, facts.family)
    config._attn_implementation = None if model.attention in (None, "auto") else model.attention
    if weights:
        network, missing = _network(folder, config, facts.family, placement)
    else:
        network, missing = _shapes(folder, config, facts, dtype), set()
    if shard is not None:
        shard(network)
    tokenizer, pad, remark = _tokenizer(folder, config, model.chat_template)
    return Base(
        model=network,
        tokenizer=tokenizer,
        family=facts.family,
        name=model.name,
        revision=commit,
        facts=facts,
        device=torch.device(machine.device if weights else "meta"),
        dtype=dtype,
        end_token_ids=_end_tokens(network, tokenizer, pad) if facts.family != "encoder" else (),
        fresh=_trained_modules(network, missing) if facts.family == "encoder" else (),
        missing=frozenset(missing),
        labels=tuple(config.id2label[i] for i in range(config.num_labels)) if facts.family == "encoder" else (),
        pad_token_id=pad,
        decoder_start_token_id=_decoder_start(network) if facts.family == "seq2seq" else None,
        position_offset=position_offset(config),
        folder=folder,
        weights=weights_digest(folder) if weights else "",
        tokenizer_hash=tokenizer_digest(tokenizer),
        notes=(*notes, *remark),
    )


def untrained_token_ids(base: Base) -> frozenset[int]:
    """Special and end tokens whose row in the output layer was never trained, so that a frozen base cannot say them.

    Criterion: an untrained row is only ever pushed away from every context, so such rows end up the same; a trained row
    has no double. A row counts as untrained if it is zero, or within 5 % (relative distance) of at least two others
    (after "Fishing for Magikarp", Land & Bartolo 2024; stories260k: 252 such rows, all others ≥ 5 % apart).
    """
    layer = base.model.get_output_embeddings() if base.family != "encoder" else None
    if layer is None or layer.weight.is_meta or not layer.weight.is_floating_point():
        return frozenset()
    rows_VH = layer.weight.detach()
    special = {*base.tokenizer.all_special_ids, *base.tokenizer.added_tokens_decoder, *base.end_token_ids}
    untrained = set()
    for token in (token for token in special if 0 <= token < len(rows_VH)):
        row_H = rows_VH[token].float()
        length = row_H.norm()
        twins = int((torch.cdist(row_H[None], rows_VH.float())[0] <= 0.05 * length).sum()) - 1
        if length == 0 or twins >= 2:
            untrained.add(int(token))
    return frozenset(untrained)


def _check_method(facts: BaseFacts, method: Any) -> None:
    if method is not None and facts.quantized and method.type in ("lora", "full"):
        raise ModelError(
            f"`{facts.name}` is stored quantized; `{method.type}` needs a base that is not",
            hint="say `method.type: qlora`, which trains on a quantized base as it is",
        )


def _devices(machine: hardware.Machine, spread: bool, limits: Mapping[int | str, int | str] | None) -> dict[str, Any]:
    if spread or limits is not None:
        return {"device_map": "auto", "max_memory": limits and dict(limits)}
    if machine.device == "cuda":
        return {"device_map": {"": torch.cuda.current_device()}}  # each of several processes has its own
    return {"device_map": {"": machine.device}} if machine.device != "cpu" else {}


def _dtype(chosen: str | None, machine: hardware.Machine, method: Any) -> torch.dtype:
    if chosen in DTYPES:
        return DTYPES[chosen]
    full = method is not None and method.type == "full"
    return torch.float32 if full or machine.device == "cpu" else DTYPES[machine.dtype]


def _quantization(method: Any, dtype: torch.dtype, config: Any, family: str) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("qlora needs bitsandbytes, which is not installed", hint="pip install 'luthier[quant]'")
    kept = None  # transformers then leaves out the output layer and whatever is tied to it
    if family == "encoder":
        with torch.device("meta"), quiet():
            network = auto_class(family).from_config(config, trust_remote_code=False)
        kept = [name for name, _ in network.named_modules() if "pooler" in name.rpartition(".")[2]] + _heads(network)
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": method.double_quantization}
    return transformers.BitsAndBytesConfig(
        load_in_4bit=method.bits == 4,
        load_in_8bit=method.bits == 8,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
        **four if method.bits == 4 else {},
    )


def _network(folder: Path, config: Any, family: str, placement: dict[str, Any]) -> tuple[Any, set[str]]:
    """The frozen network and the names of parameters its checkpoint lacked (only an encoder's head and pooler may)."""
    refusals.weight_files(folder)
    fixed = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True, "output_loading_info": True}
    try:
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(_HEAD_SEED)
            network, info = auto_class(family).from_pretrained(
                folder, config=config, ignore_mismatched_sizes=family == "encoder", **fixed, **placement
            )
            missing = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
            missing |= _renamed_head(network, folder) if family == "encoder" else set()
    except Exception as error:  # a foreign file's content decides what its loader raises
        raise ModelError(f"the base could not be loaded: {first_line(error)}", str(folder)) from error
    heads = _heads(network) if family == "encoder" else []
    for key in sorted(missing):
        if not any(key.startswith(head + ".") for head in heads) and not (heads and "pooler" in key):
            raise ModelError(f"the checkpoint lacks `{key}`: the model would be partly random", str(folder))
    for module in network.modules():
        if (
            type(module).__name__ == "Linear4bit"
        ):  # else a forward without gradients repacks the weights in other digits
            module.support_avx512bf16_for_cpu = False
    return network.requires_grad_(False).eval(), missing


def _shapes(folder: Path, config: Any, facts: BaseFacts, dtype: torch.dtype) -> Any:
    """The network without numbers. What an encoder's checkpoint lacks is not known then: nothing is called missing."""
    with torch.device("meta"), quiet():
        network = auto_class(facts.family).from_config(config, trust_remote_code=False, dtype=dtype)
    if facts.family == "seq2seq":
        network.set_attn_implementation("eager")  # the others look at a mask's values to choose their kernel
    if facts.family != "encoder" and (folder / "generation_config.json").is_file():
        network.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return network.requires_grad_(False).eval()


def _heads(network: Any) -> list[str]:
    """The parts of a classifier beside its encoder that have parameters, in the order of the forward pass."""
    prefix = network.base_model_prefix
    return [name for name, part in network.named_children() if name != prefix and any(True for _ in part.parameters())]


def _set_labels(config: Any, labels: tuple[str, ...]) -> None:
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"


def _renamed_head(network: Any, folder: Path) -> set[str]:
    """A stored head for other classes (as many, but named differently) is made anew; returns its parameter names."""
    stored = refusals.read_json(folder / "config.json", "config").get("id2label") or {}
    if [str(label) for label in stored.values()] == list(network.config.id2label.values()):
        return set()
    name = _heads(network)[-1]
    head = network.get_submodule(name)
    for parameter in head.parameters():
        parameter._is_hf_initialized = False
    head.apply(network._init_weights)
    return {f"{name}.{inner}" for inner, _ in head.named_parameters()}


def _trained_modules(network: Any, missing: set[str]) -> tuple[str, ...]:
    """Every part beside the encoder, and the largest modules inside it that are wholly missing (a pooler)."""
    parameters = [name for name, _ in network.named_parameters()]
    heads = _heads(network)
    found = set(heads)
    for key in (key for key in missing if key.partition(".")[0] not in heads):
        path = key.rpartition(".")[0]
        while all(name in missing for name in parameters if name.startswith(path.rpartition(".")[0] + ".")):
            path = path.rpartition(".")[0]
        found.add(path)
    return tuple(sorted(found))


def _tokenizer(folder: Path, config: Any, template: str | None) -> tuple[Any, int, list[str]]:
    """The tokenizer, the id that fills padded places, and remarks. No token is ever added to the vocabulary."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a foreign file's content decides what its reader raises
        raise ModelError(f"the tokenizer could not be loaded: {first_line(error)}", str(folder)) from error
    tokenizer.init_kwargs.pop("auto_map", None)  # so that no copy of this base carries the name of code either
    remarks = []
    if template is not None:
        tokenizer.chat_template = _template(template)
    vocabulary = config.get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        remarks.append(f"the tokenizer knows {len(tokenizer)} tokens, the model only {vocabulary}")
    if tokenizer.pad_token_id is None:
        pad = config.get_text_config().pad_token_id
        if not isinstance(pad, int) or not 0 <= pad < vocabulary:
            pad = next(
                (t for t in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id) if t is not None),
                0,
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        remarks.append(f"no pad token: `{tokenizer.pad_token}` fills padded places (it is trained like any other)")
    return tokenizer, tokenizer.pad_token_id, remarks


def _template(text: str) -> str:
    """A chat template given as text, or as the path of a file that holds it."""
    if "{" in text:
        return text
    path = Path(text).expanduser()
    if not path.is_file():
        raise ModelError(f"`model.chat_template` is neither a template nor a file: {text}")
    return path.read_text(encoding="utf-8")


def _end_tokens(network: Any, tokenizer: Any, pad: int) -> tuple[int, ...]:
    """Every id that ends an answer, without doubles, that of generation_config.json first; generation stops at them."""
    generation = network.generation_config
    ids: list[int] = []
    for value in (generation.eos_token_id, network.config.get_text_config().eos_token_id, tokenizer.eos_token_id):
        ids += value if isinstance(value, list) else [] if value is None else [value]
    ends = tuple(dict.fromkeys(int(end) for end in ids if 0 <= int(end) < network.config.get_text_config().vocab_size))
    generation.eos_token_id = list(ends) or None
    generation.pad_token_id = pad
    return ends


def _decoder_start(network: Any) -> int:
    for start in (network.generation_config.decoder_start_token_id, network.config.decoder_start_token_id):
        if start is not None:
            return int(start)
    if network.config.bos_token_id is None:
        raise ModelError("the base does not say with which token its decoder starts (decoder_start_token_id)")
    return int(network.config.bos_token_id)
