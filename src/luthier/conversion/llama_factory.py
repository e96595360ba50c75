"""LLaMA-Factory: a YAML or JSON file for `llamafactory-cli train`.

Lives here: what each of its keys means here, and its own defaults (read in its `hparams`, version 0.9.5).
"""

from __future__ import annotations

from functools import partial

from luthier.conversion import hugging_face as hf
from luthier.conversion import rows
from luthier.conversion.lines import Foreign, Line, Tool, as_here, carried, changed, default, lost, names, written

NAME = "LLaMA-Factory"
FILE = "dataset_info.json"
_ADAPTER = "luthier trains plain LoRA, without this"
_PICTURES = "luthier trains on text"
_TOKENS = "luthier adds no tokens to a base"


def _method(f: Foreign) -> list[Line]:
    """`finetuning_type` and `quantization_bit`: lora, qlora or full."""
    key, bits = "finetuning_type", "quantization_bit"
    if f.text(key, "lora") == "full":
        return [carried(key, "method.type", "full")]
    kind = "qlora" if f.has(bits) else "lora"
    found = [written(f, key, "method.type", kind)]
    if f.has(bits):
        if f.count(bits) not in (4, 8):
            raise f.wrong(bits, "4 or 8")
        found.append(carried(bits, "method.bits", f.count(bits)))
    if f.has("double_quantization") and f.has(bits):
        found.append(carried("double_quantization", "method.double_quantization", f.flag("double_quantization")))
    rank = f.count("lora_rank", 8)
    alpha = f.number("lora_alpha")
    found.append(written(f, "lora_rank", "method.rank", rank))
    twice = "twice the rank"
    found.append(
        default("method.alpha", 2.0 * rank, twice) if not alpha else carried("lora_alpha", "method.alpha", alpha)
    )
    found.append(written(f, "lora_dropout", "method.dropout", f.number("lora_dropout", 0.0)))
    layers = f.texts("lora_target", ["all"])
    found.append(written(f, "lora_target", "method.target_modules", ["all-linear"] if layers == ["all"] else layers))
    return found


def _data(f: Foreign) -> list[Line]:
    """`dataset` names entries of `dataset_dir`'s dataset_info.json."""
    found = _named("dataset", "data.train", f)
    if f.has("dataset_dir"):
        found.append(rows.as_part("dataset_dir"))
    if f.has("eval_dataset"):
        found += _named("eval_dataset", "data.validation", f)
    else:
        found.append(rows.validation("val_size", NAME, f))
    if f.text("stage", "sft") == "pt":
        found.append(carried("stage", "data.train_on", "all"))
    else:
        found += [as_here("stage")] if f.has("stage") else []
        for key, value in (("train_on_prompt", "all"), ("mask_history", "last")):
            if f.has(key) and f.flag(key):
                found.append(carried(key, "data.train_on", value))
        words = (
            "LLaMA-Factory puts every row into a chat by a template of its own; luthier asks chats (sharegpt) with the "
            "base's own chat template and alpaca rows with a prompt of its own (data.template): look at `luthier look`"
        )
        found.append(changed("template" if f.has("template") else "", words))
    if f.has("max_samples"):
        words = "the first rows of every data set there; here so many are drawn by the seed"
        found.append(changed("max_samples", words, "data.limit", f.count("max_samples")))
    validates = f.has("eval_dataset") or f.number("val_size", 0.0) > 0
    return [*found, rows.verdict(NAME), *hf.best(validates, NAME, f)]


def _named(key: str, path: str, f: Foreign) -> list[Line]:
    """The first of the data sets that `key` names; of a folder's dataset_info.json, or of the Hub (ONLINE)."""
    sets = f.texts(key, [])
    if not sets:
        raise f.wrong(key, "the name of a data set")
    folder = f.text("dataset_dir", "data")
    if folder.startswith("REMOTE:"):
        raise f.wrong("dataset_dir", f"a folder; luthier reads no {FILE} of the Hub")
    name = f"hf://{sets[0]}:train" if folder == "ONLINE" else f"{folder.rstrip('/')}/{FILE}:{sets[0]}"
    words = f"`{path}` has one source: join the rows to one file, in one format ({{}})"
    return [carried(key, path, name)] + [lost(key, words.format(other)) for other in sets[1:]]


def _length(f: Foreign) -> list[Line]:
    """`cutoff_len`: LLaMA-Factory cuts question and answer in proportion."""
    words = "LLaMA-Factory shortens question and answer in proportion; `cut` keeps the first tokens, `error` refuses"
    return [
        written(f, "cutoff_len", "training.max_seq_length", f.count("cutoff_len", 2048)),
        changed("cutoff_len" if f.has("cutoff_len") else "", words, "data.overlength", "cut"),
    ]


def _precision(f: Foreign) -> list[Line]:
    for key, dtype in (("pure_bf16", "bfloat16"), ("bf16", "bfloat16"), ("fp16", "float16")):
        if f.has(key) and f.flag(key):
            return [carried(key, "model.dtype", dtype)]
    return []


def _checkpointing(f: Foreign) -> list[Line]:
    """On there unless it is disabled; here where memory asks for it."""
    key = "disable_gradient_checkpointing"
    if f.has(key):
        return [carried(key, "training.gradient_checkpointing", not f.flag(key))]
    return [default("training.gradient_checkpointing", True)]


def _attention(f: Foreign) -> list[Line]:
    return hf.attention("flash_attn", f)


def _ends(f: Foreign) -> list[Line]:
    """A training that stops early counts evaluations, whatever its name says."""
    key = "early_stopping_steps"
    return [carried(key, "training.patience", f.count(key))] if f.has(key) else []


def _revision(f: Foreign) -> list[Line]:
    key = "model_revision"
    if not f.has(key):
        return []
    return [as_here(key)] if f.text(key) == "main" else [carried(key, "model.revision", f.text(key))]


def _refuse(f: Foreign) -> tuple[str, str] | None:
    if f.text("stage", "sft") not in ("sft", "pt"):
        return "stage", "this trains on preferences or rewards; luthier learns from answers"
    if f.text("finetuning_type", "lora") not in ("lora", "full"):
        return "finetuning_type", "luthier trains lora, qlora or full (with `trainable` for some layers)"
    if f.has("do_train") and not f.flag("do_train"):
        return "do_train", "this trains nothing"
    if f.has("export_dir") or not f.has("dataset"):
        return "export_dir" if f.has("export_dir") else "", "this trains nothing: it names no `dataset`"
    return None


TOOL = Tool(
    name=NAME,
    signs=names(
        "stage finetuning_type cutoff_len template dataset dataset_dir lora_rank lora_target val_size quantization_bit "
        "overwrite_cache mask_history train_on_prompt neat_packing flash_attn plot_loss preprocessing_num_workers "
        "max_samples eval_dataset export_dir adapter_name_or_path quantization_method"
    ),
    same={
        **hf.SAME,
        "model_name_or_path": ("model.name", Foreign.text),
        "use_rslora": ("method.rslora", Foreign.flag),
    },
    together={
        (
            *("finetuning_type", "quantization_bit", "double_quantization"),
            *("lora_rank", "lora_alpha", "lora_dropout", "lora_target"),
        ): _method,
        (
            *("dataset", "dataset_dir", "eval_dataset", "val_size", "stage", "train_on_prompt", "mask_history"),
            *("template", "max_samples", "load_best_model_at_end"),
        ): _data,
        ("cutoff_len",): _length,
        ("per_device_train_batch_size", "gradient_accumulation_steps"): partial(
            hf.batch, "per_device_train_batch_size", 8, NAME
        ),
        ("packing", "neat_packing"): partial(hf.packing, ("packing", "neat_packing"), "cutoff_len"),
        ("num_train_epochs", "max_steps"): partial(hf.length_of_run, "num_train_epochs", 3),
        ("lr_scheduler_type", "warmup_steps", "warmup_ratio"): partial(
            hf.rate, "lr_scheduler_type", "linear", (0.0, "no warm-up")
        ),
        ("optim", "adam_beta1", "adam_beta2", "adam_epsilon"): partial(hf.optimizer, "optim"),
        ("max_grad_norm",): hf.clipping,
        ("save_strategy", "save_steps"): partial(hf.cadence, "save", "training.save_every"),
        ("eval_strategy", "eval_steps"): partial(hf.cadence, "eval", "training.evaluate_every"),
        ("bf16", "fp16", "pure_bf16"): _precision,
        ("disable_gradient_checkpointing",): _checkpointing,
        ("flash_attn",): _attention,
        ("early_stopping_steps",): _ends,
        ("model_revision",): _revision,
    },
    left={
        **hf.LEFT,
        "do_train": "`luthier tune` trains",
        "adapter_name_or_path": "luthier does not continue somebody's adapter",
        "create_new_adapter": "luthier always does",
        "additional_target": f"{_ADAPTER}: embeddings and head stay as they are",
        "use_dora": _ADAPTER,
        "pissa_*": _ADAPTER,
        "loraplus_*": f"{_ADAPTER}: A and B have one rate",
        "quantization_type": "4 bits are NF4",
        "quantization_method": "luthier quantizes with bitsandbytes; a base that is stored quantized is taken as it is",
        "quantization_device_map": hf.PLACE,
        "use_galore": "luthier's optimizer is AdamW",
        "galore_*": "luthier's optimizer is AdamW",
        "use_apollo": "luthier's optimizer is AdamW",
        "apollo_*": "luthier's optimizer is AdamW",
        "use_badam": "luthier's optimizer is AdamW",
        "badam_*": "luthier's optimizer is AdamW",
        "use_adam_mini": "luthier's optimizer is AdamW",
        "use_muon": "luthier's optimizer is AdamW",
        "use_dft_loss": "luthier trains on the plain likelihood",
        "use_asft_loss": "luthier trains on the plain likelihood",
        "use_eaft_loss": "luthier trains on the plain likelihood",
        "freeze_*": _PICTURES,
        "image_*": _PICTURES,
        "video_*": _PICTURES,
        "audio_*": _PICTURES,
        "media_dir": _PICTURES,
        "resize_vocab": _TOKENS,
        "add_tokens": _TOKENS,
        "add_special_tokens": _TOKENS,
        "new_special_tokens_config": _TOKENS,
        "rope_scaling": "the base's own positions count",
        "shift_attn": hf.SPEED,
        "use_unsloth*": hf.SPEED,
        "enable_liger_kernel": hf.SPEED,
        "upcast_*": hf.SPEED,
        "compute_accuracy": hf.GENERATED,
        "eval_num_beams": hf.GENERATED,
        "plot_loss": "`luthier show` and the report draw it",
        "overwrite_cache": hf.READ,
        "preprocessing_*": hf.READ,
        "tokenized_path": hf.READ,
        "streaming": hf.READ,
        "buffer_size": hf.READ,
        "mix_strategy": "one source",
        "interleave_probs": "one source",
        "disable_shuffling": "the order is drawn by the seed",
        "tool_format": "tools are written as the base's chat template has them",
        "ignore_pad_token_for_loss": "nothing is padded",
        "infer_*": hf.GENERATED,
        "hf_hub_token": "the Hub's token is where HF_TOKEN says",
        "ms_hub_token": "luthier does not read ModelScope",
    },
    defaults={"training.weight_decay": 0.0, "training.learning_rate": 5e-5, "seed": 42, "data.clean": []},
    refuse=_refuse,
)
