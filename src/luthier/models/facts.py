"""What a base is, before any weight of it is loaded: where it lies, its family, sizes and limits, its name by content.

Lives here: finding a base (folder or Hub), reading its configuration after `refusals.py` has looked at it.
Does not live here: loading it (`base.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from luthier.errors import ModelError, here, near_path
from luthier.models import refusals
from luthier.presets import BaseFacts, Family

refusals.forbid_remote_code()

# Position ids of these begin at pad_token_id + 1: that many rows of their table are never used.
_OFFSET_POSITIONS = """
roberta xlm-roberta xlm-roberta-xl roberta-prelayernorm camembert xmod data2vec-text longformer mpnet
"""
_HUB_FILES = """
config.json generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json
vocab.json vocab.txt merges.txt tokenizer.model spiece.model sentencepiece.bpe.model source.spm target.spm
chat_template.jinja chat_template.json adapter_config.json
"""
_HUB_WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors"]


def inspect(name: str, revision: str | None = None) -> BaseFacts:
    """What a base is, from its configuration alone: no weight is loaded (from the Hub: none is downloaded).

    Raises ModelError for a base that is refused, unknown, or of no family luthier tunes.
    """
    folder, _ = locate(name, revision, weights=False)
    config, _ = configuration(folder)
    return facts_of(name, config, folder)


def locate(name: str, revision: str | None = None, weights: bool = True) -> tuple[Path, str | None]:
    """The folder of a base and the commit it stands for (None for a local folder).

    From the Hub only files of known names at the repository's root are fetched: no code, no pickle, no path.
    """
    if (folder := refusals.named_folder(name, revision)) is not None:
        return folder, None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    files = _HUB_FILES.split() + (_HUB_WEIGHTS if weights else [])
    try:
        found = Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        near = near_path(here(name)) if "/" in name else None
        hint = "check the name and revision, your connection, and for gated models that HF_TOKEN is set"
        raise ModelError(
            f"`{name}` is not a folder here and could not be fetched from the Hub: {said}",
            hint=f"{near} Or else {hint}" if near else hint,
        ) from None
    return found, found.name


def configuration(folder: Path) -> tuple[Any, list[str]]:
    """The checked configuration of the base in `folder`, and notes on what was ignored."""
    path = folder / "config.json"
    if (folder / "adapter_config.json").exists():
        raise ModelError("this folder is an adapter, not a base", str(folder), "name the base it was trained on")
    if not path.is_file():
        raise ModelError("no config.json: this is not a model folder", str(folder))
    raw = refusals.read_json(path, "config")
    known = raw.get("model_type") in modeling_auto.CONFIG_MAPPING_NAMES
    notes = refusals.scan(folder, known)
    if not known:
        raise ModelError(
            f"transformers {transformers.__version__} knows no model type `{raw.get('model_type')}`", str(path)
        )
    scheme = raw.get("quantization_config") or {}
    if scheme and scheme.get("quant_method") != "bitsandbytes":
        raise ModelError(
            f"the base is stored quantized by `{scheme.get('quant_method')}`, which luthier does not train on",
            str(path),
            "take the unquantized base with `method.type: qlora`, or one stored by bitsandbytes",
        )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a foreign file's content decides what its reader raises
        raise ModelError(
            f"config.json is not a valid `{raw['model_type']}` configuration: {first_line(error)}", str(path)
        ) from None
    vars(config).pop("auto_map", None)  # so that no copy of this base carries the name of code either
    return config, notes


def facts_of(name: str, config: Any, folder: Path) -> BaseFacts:
    text = config.get_text_config()
    raw = refusals.read_json(folder / "config.json", "config")
    family = _family(config, folder)
    try:
        hidden, layers, vocabulary = text.hidden_size, text.num_hidden_layers, text.vocab_size
    except AttributeError as error:
        raise ModelError(f"`{config.model_type}` is not a model of text: {first_line(error)}", str(folder)) from None
    return BaseFacts(
        name=name,
        family=family,
        model_type=config.model_type,
        hidden_size=hidden,
        layers=layers,
        positions=_positions(config),
        vocab_size=vocabulary,
        parameters=_parameters(config, family, folder, bool(raw.get("quantization_config"))),
        chat_template=_has_template(folder),
        quantized=bool(raw.get("quantization_config")),
    )


def _family(config: Any, folder: Path) -> Family:
    """causal, seq2seq or encoder: by the class the checkpoint was saved from, else by what its type can be."""
    kind = config.model_type
    if config.is_encoder_decoder and kind in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "seq2seq"
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, ())
    classes = {causal} if isinstance(causal, str) else set(causal)
    if classes & set(config.architectures or ()):
        return "causal"
    masked = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if masked and kind in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return "encoder"
    if classes:
        return "causal"
    raise ModelError(
        f"`{kind}` is neither a decoder, a seq2seq nor an encoder of text",
        str(folder / "config.json"),
        "luthier tunes causal language models, T5- and BART-like models, and BERT-like encoders",
    )


def _positions(config: Any) -> int | None:
    try:
        rows = config.get_text_config().max_position_embeddings
    except AttributeError:
        # MPT's table of distances has a length of its own; T5, BLOOM and state-space models have no limit
        return config.get_text_config().to_dict().get("max_seq_len")
    return rows - position_offset(config) if rows else None


def position_offset(config: Any) -> int:
    return config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS.split() else 0


def _parameters(config: Any, family: str, folder: Path, packed: bool) -> int:
    """Numbers in the checkpoint, by the headers of its files; without them, or packed, by a model without memory."""
    with contextlib.suppress(ModelError):
        if not packed:
            headers = (refusals.header(path) for path in refusals.weight_files(folder))
            return sum(math.prod(entry["shape"]) for tensors in headers for entry in tensors.values())
    with torch.device("meta"), quiet():
        network = auto_class(family).from_config(config, trust_remote_code=False)
    return sum(parameter.numel() for parameter in network.parameters())


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(refusals.read_json(path, "config").get("chat_template"))


def auto_class(family: str) -> Any:
    return {
        "causal": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "encoder": transformers.AutoModelForSequenceClassification,
    }[family]


def weights_digest(folder: Path) -> str:
    """A name for the weights in `folder` by content: each file's name, length, and 64 blocks of 1 MiB spread over it.

    Files up to 64 MiB are read whole; larger ones are sampled, so that naming 100 GB takes a moment, not minutes.
    """
    digest = hashlib.sha256()
    for path in refusals.weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        blocks = min(64, math.ceil(size / (1 << 20)))
        with path.open("rb") as file:
            for number in range(blocks):
                file.seek((size - (1 << 20)) * number // max(blocks - 1, 1) if size > 64 << 20 else number << 20)
                digest.update(file.read(1 << 20))
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """A name for a tokenizer's vocabulary: equal digests give equal ids to equal pieces."""
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda piece: (piece[1], piece[0]))
    return hashlib.sha256(json.dumps(pieces).encode()).hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing and draws no bar inside: what a person must know is in notes and errors of ours."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
