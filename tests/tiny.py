"""Tiny random models and tokenizers, as real folders that every test may share.

Lives here: `build(kind)`, a model folder as the Hub would hold it (config, safetensors, tokenizer), random weights.
Does not live here: real pre-trained weights (the `shared` fixture finds those).
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "List the names of all singers older than 30.",
    "SELECT name FROM singer WHERE age > 30;",
    "Classify the ticket: my card was declined at the shop.",
    "The quick brown fox jumps over the lazy dog, 0123456789 times.",
    "Übersetze: 한국어 문장, 日本語の文, عربى.",
)
VOCABULARY = 320
"""Size of every tiny vocabulary: 256 bytes, the special tokens, some merges."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)

DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}

# kind → (config class, model class, configuration)
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tiny_llama": ("LlamaConfig", "LlamaForCausalLM", DECODER),
    "tiny_mistral": ("MistralConfig", "MistralForCausalLM", DECODER | {"sliding_window": 8, "head_dim": 8}),
    "tiny_qwen3": ("Qwen3Config", "Qwen3ForCausalLM", DECODER | {"head_dim": 8}),
    "tiny_gemma2": ("Gemma2Config", "Gemma2ForCausalLM", DECODER | {"head_dim": 8, "sliding_window": 8}),
    "tiny_granite": (
        "GraniteConfig",
        "GraniteForCausalLM",
        DECODER | {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    ),
    "tiny_gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 256,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
    ),
    "tiny_t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "pad_token_id": 2,
            "eos_token_id": 1,
            "decoder_start_token_id": 2,
        },
    ),
    "tiny_bart": ("BartConfig", "BartForConditionalGeneration", SEQ2SEQ),
    "tiny_blenderbot": ("BlenderbotConfig", "BlenderbotForConditionalGeneration", SEQ2SEQ),
    "tiny_bert": ("BertConfig", "BertForMaskedLM", ENCODER),
    "tiny_roberta": ("RobertaConfig", "RobertaForMaskedLM", ENCODER),
    "tiny_albert": ("AlbertConfig", "AlbertForMaskedLM", ENCODER | {"embedding_size": 16}),
    "tiny_distilbert": (
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 256,
        }
        | {"pad_token_id": 2},
    ),
    "tiny_modernbert": (
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        ENCODER | {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 1},
    ),
}
_OLD = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}  # GPT-2 and its kin
_OLD |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_ALIBI = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_T5 = KINDS["tiny_t5"][2]
_EXPERTS = DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}

# Further families: for the tests that compare every one of them (`tests/models/test_families.py`).
MORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tiny_qwen2": ("Qwen2Config", "Qwen2ForCausalLM", DECODER),
    "tiny_gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        DECODER | {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "tiny_phi": ("PhiConfig", "PhiForCausalLM", DECODER),
    "tiny_phi3": ("Phi3Config", "Phi3ForCausalLM", DECODER),
    "tiny_gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", DECODER),
    "tiny_opt": ("OPTConfig", "OPTForCausalLM", DECODER | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "tiny_stablelm": ("StableLmConfig", "StableLmForCausalLM", DECODER),
    "tiny_olmo2": ("Olmo2Config", "Olmo2ForCausalLM", DECODER),
    "tiny_cohere": ("CohereConfig", "CohereForCausalLM", DECODER),
    "tiny_smollm3": (
        "SmolLM3Config",
        "SmolLM3ForCausalLM",
        DECODER | {"no_rope_layers": [1, 0], "use_sliding_window": False},
    ),
    "tiny_granite_moe": ("GraniteMoeConfig", "GraniteMoeForCausalLM", _EXPERTS),
    "tiny_mixtral": ("MixtralConfig", "MixtralForCausalLM", _EXPERTS | {"head_dim": 8}),
    "tiny_falcon": ("FalconConfig", "FalconForCausalLM", DECODER),
    "tiny_mpt": ("MptConfig", "MptForCausalLM", _ALIBI | {"d_model": 32, "n_heads": 4, "n_layers": 2}),
    "tiny_bloom": ("BloomConfig", "BloomForCausalLM", _ALIBI | {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "tiny_gpt_neo": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        _ALIBI
        | {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 256, "window_size": 8}
        | {"attention_types": [[["global", "local"], 1]]},
    ),
    "tiny_codegen": ("CodeGenConfig", "CodeGenForCausalLM", _OLD | {"rotary_dim": 8}),
    "tiny_gptj": ("GPTJConfig", "GPTJForCausalLM", _OLD | {"rotary_dim": 8}),
    "tiny_electra": ("ElectraConfig", "ElectraForMaskedLM", ENCODER | {"embedding_size": 16}),
    "tiny_xlm_roberta": ("XLMRobertaConfig", "XLMRobertaForMaskedLM", ENCODER),
    "tiny_deberta_v2": (
        "DebertaV2Config",
        "DebertaV2ForMaskedLM",
        ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    ),
    "tiny_mt5": ("MT5Config", "MT5ForConditionalGeneration", _T5),
    "tiny_pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", SEQ2SEQ),
    "tiny_mbart": ("MBartConfig", "MBartForConditionalGeneration", SEQ2SEQ),
}
CAUSAL = ("tiny_llama", "tiny_mistral", "tiny_qwen3", "tiny_gemma2", "tiny_granite", "tiny_gpt2")
DISTINCT = (
    "tiny_llama",
    "tiny_gemma2",
    "tiny_gpt2",
    "tiny_t5",
    "tiny_bart",
    "tiny_bert",
    "tiny_albert",
    "tiny_modernbert",
)
"""One of each kind of difficulty, for tests that cannot afford all."""
SEQ2SEQ_KINDS = ("tiny_t5", "tiny_bart", "tiny_blenderbot")
ENCODERS = ("tiny_bert", "tiny_roberta", "tiny_albert", "tiny_distilbert", "tiny_modernbert")

_pristine: dict[tuple[str, str], Path] = {}
_home = Path(tempfile.mkdtemp(prefix="luthier-tiny-"))
atexit.register(shutil.rmtree, _home, ignore_errors=True)


def build(kind: str, folder: Path | None = None, *, chat: bool = False, **overrides: Any) -> Path:
    """A folder with the tiny model `kind`, random weights from seed 0, and its tokenizer.

    Without `folder` the cached folder itself is given: read it, never write to it. With `folder` a copy is put there.
    `chat` adds a chat template; `overrides` change the configuration (`tie_word_embeddings=True`, `hidden_size=64`).
    """
    key = (kind, repr((chat, sorted(overrides.items()))))
    if key not in _pristine:
        _pristine[key] = _build(kind, _home / f"{kind}-{len(_pristine)}", chat, overrides)
    if folder is None:
        return _pristine[key]
    return Path(shutil.copytree(_pristine[key], folder, dirs_exist_ok=True))


def _build(kind: str, folder: Path, chat: bool, overrides: dict[str, Any]) -> Path:
    config_class, model_class, settings = (KINDS | MORE)[kind]
    config = getattr(transformers, config_class)(**settings | overrides)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, model_class)(config)
        _roughen(model)
    model.save_pretrained(folder)
    text = tokenizer("gpt2" if kind == "tiny_gpt2" else family(kind))
    if chat:
        text.chat_template = CHAT_TEMPLATE
    text.save_pretrained(folder)
    return folder


def _roughen(model: torch.nn.Module) -> None:
    """Larger random weights than a fresh initialisation, so that an error shows in the logits."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.ndim > 1:
            parameter.data = noise * (0.5 if "embed" in name or "wte" in name else parameter.shape[-1] ** -0.5)
        else:
            parameter.data += 0.1 * noise


def family(kind: str) -> str:
    """causal, seq2seq or encoder."""
    model_class = (KINDS | MORE)[kind][1]
    return {"ForConditionalGeneration": "seq2seq", "ForMaskedLM": "encoder"}.get(
        model_class[model_class.index("For") :] if "For" in model_class else "", "causal"
    )


def tokenizer(style: str = "causal") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `VOCABULARY` tokens trained on `SENTENCES`.

    style "causal" puts `<s>` first (ids: 0 `<s>`, 1 `</s>`, 2 `<pad>`), "seq2seq" puts `</s>` last, "encoder" makes
    [CLS] text [SEP] (ids 0 and 1, pad 2, mask 3), "gpt2" has one `<|endoftext|>` (id 1) for everything and no pad.
    """
    names = _STYLES[style][0]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(_STYLES[style][1]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    core.post_processor = _STYLES[style][2]()
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=256, **names)


def _ends(single: str, pair: str, *tokens: tuple[str, int]) -> Callable[[], Any]:
    def make() -> Any:
        both = [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(tokens)),
        ]
        return processors.Sequence(both)

    return make


_LM = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_STYLES: dict[str, tuple[dict[str, str], tuple[str, ...], Callable[[], Any]]] = {
    "causal": (_LM, ("<s>", "</s>", "<pad>", "<unk>"), _ends("<s> $A", "<s> $A <s> $B", ("<s>", 0))),
    "seq2seq": (_LM, ("<s>", "</s>", "<pad>", "<unk>"), _ends("$A </s>", "$A </s> $B </s>", ("</s>", 1))),
    "encoder": (
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"},
        ("[CLS]", "[SEP]", "[PAD]", "[MASK]"),
        _ends("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ("[CLS]", 0), ("[SEP]", 1)),
    ),
    "gpt2": (
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        ("<unk>", "<|endoftext|>", "<spare>"),
        lambda: processors.ByteLevel(trim_offsets=False),
    ),
}
