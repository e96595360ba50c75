"""Bases: their facts, how they load, and that they stay what they are."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from luthier import spec
from luthier.errors import MissingExtra, ModelError
from luthier.models import adapters, base, facts
from tests import tiny as models
from tests.trained import FULL, LABELS, LORA, PROMPT, QLORA, labels_of, trained

Build = Callable[..., Path]


def load(folder: Path, method: Any = None, labels: tuple[str, ...] = (), **chosen: Any) -> base.Base:
    return base.load(spec.Model(name=str(folder), **chosen), method, labels)


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --------------------------------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize("kind", models.KINDS)
def test_facts_come_from_the_configuration(kind: str, tiny: Build) -> None:
    found = base.inspect(str(tiny(kind)))
    stored = load_file(tiny(kind) / "model.safetensors")
    assert found.family == models.family(kind)
    assert (found.hidden_size, found.layers, found.vocab_size) == (32, 2, models.VOCABULARY)
    assert found.parameters == sum(tensor.numel() for tensor in stored.values())
    assert found.positions == {"tiny_t5": None, "tiny_roberta": 253}.get(kind, 256)
    assert (found.chat_template, found.quantized) == (False, False)


def test_without_weights_the_parameters_are_counted_on_a_model_without_memory(tiny: Build, tmp_path: Path) -> None:
    folder = models.build("tiny_llama", tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    assert base.inspect(str(folder)).parameters == base.inspect(str(tiny("tiny_llama"))).parameters


def test_chat_template_is_seen(tiny: Build) -> None:
    assert base.inspect(str(tiny("tiny_llama", chat=True))).chat_template


@pytest.mark.parametrize(
    ("name", "family", "positions", "ends"),
    [
        ("stories260k", "causal", 512, (1,)),
        ("translit-ar-en", "seq2seq", 128, (2,)),
        ("rxn-albert", "encoder", 512, ()),
    ],
)
def test_real_models(shared: Path, name: str, family: str, positions: int, ends: tuple[int, ...]) -> None:
    loaded = load(shared / "models" / name)
    assert (loaded.family, loaded.facts.positions, loaded.end_token_ids) == (family, positions, ends)
    assert loaded.decoder_start_token_id == (1 if family == "seq2seq" else None)


def test_a_vision_model_is_no_base(tmp_path: Path) -> None:
    transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, architectures=["ViTModel"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="neither a decoder"):
        base.inspect(str(tmp_path))


# ------------------------------------------------------------------------------------------------------------- loading


def test_a_base_is_frozen_whole_and_in_float32_on_a_cpu(tiny: Build) -> None:
    loaded = load(tiny("tiny_llama"))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.fresh == () and loaded.missing == frozenset()


def test_dtype_is_the_one_asked_for(tiny: Build) -> None:
    loaded = load(tiny("tiny_llama"), dtype="bfloat16")
    assert loaded.dtype == loaded.model.lm_head.weight.dtype == torch.bfloat16


def test_attention_is_the_one_asked_for(tiny: Build) -> None:
    assert load(tiny("tiny_llama"), attention="eager").model.config._attn_implementation == "eager"
    assert load(tiny("tiny_llama")).model.config._attn_implementation == "sdpa"


FRESH = {
    "tiny_bert": ("bert.pooler", "classifier"),
    "tiny_roberta": ("classifier",),
    "tiny_albert": ("albert.pooler", "classifier"),
    "tiny_distilbert": ("classifier", "pre_classifier"),
    "tiny_modernbert": ("classifier", "head"),
}


@pytest.mark.parametrize("kind", models.ENCODERS)
def test_an_encoder_gets_a_head_from_a_fixed_seed(kind: str, tiny: Build) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = load(tiny(kind), labels=LABELS)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(6)
    two = load(tiny(kind), labels=LABELS)
    assert one.fresh == FRESH[kind]
    assert one.labels == LABELS and one.model.config.id2label == dict(enumerate(LABELS))
    for (name, a), (_, b) in zip(one.model.named_parameters(), two.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_stored_head_is_kept_for_its_own_classes_only(tiny: Build, tmp_path: Path) -> None:
    first = load(tiny("tiny_bert"), labels=LABELS)
    torch.nn.init.normal_(first.model.classifier.weight)
    adapters.save_model(first, tmp_path)
    same, renamed, more = (load(tmp_path, labels=names) for names in (LABELS, ("x", "y", "z"), (*LABELS, "more")))
    assert torch.equal(same.model.classifier.weight, first.model.classifier.weight) and same.missing == frozenset()
    assert renamed.model.classifier.weight.std() < 0.1 and "classifier.weight" in renamed.missing
    assert more.model.classifier.weight.shape[0] == 4 and "classifier.weight" in more.missing
    assert same.fresh == more.fresh == ("classifier",)  # the pooler was stored this time


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_t5", "tiny_bert"])
def test_a_checkpoint_that_lacks_a_layer_is_refused(kind: str, tmp_path: Path) -> None:
    folder = models.build(kind, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if ".1." in name and name.endswith("weight"))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="partly random"):
        load(folder, labels=labels_of(kind))


def test_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = models.build("tiny_llama", tmp_path)
    change_json(folder / "config.json", vocab_size=400)
    with pytest.raises(ModelError, match="could not be loaded"):
        load(folder)


# -------------------------------------------------------------------------------------------------------------- tokens


def test_every_end_token_counts_and_that_of_the_generation_configuration_is_first(tmp_path: Path) -> None:
    folder = models.build("tiny_llama", tmp_path)
    change_json(folder / "generation_config.json", eos_token_id=[7, 1])
    change_json(folder / "config.json", eos_token_id=9)
    loaded = load(folder)
    assert loaded.end_token_ids == (7, 1, 9)
    assert loaded.model.generation_config.eos_token_id == [7, 1, 9]


def test_a_missing_pad_token_is_an_existing_one_and_no_row_is_added(tiny: Build) -> None:
    loaded = load(tiny("tiny_gpt2"))
    assert loaded.tokenizer.pad_token == "<|endoftext|>" and loaded.pad_token_id == 1
    assert len(loaded.tokenizer) == loaded.model.get_input_embeddings().num_embeddings == models.VOCABULARY
    assert any("no pad token" in note for note in loaded.notes)


def test_neither_pad_nor_end_token(tmp_path: Path) -> None:
    folder = models.build("tiny_gpt2", tmp_path, bos_token_id=None, eos_token_id=None)
    (folder / "generation_config.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    plain = {name: value for name, value in settings.items() if name not in ("bos_token", "eos_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(plain))
    loaded = load(folder)
    assert loaded.end_token_ids == () and loaded.pad_token_id == 0


def test_untrained_end_token_of_stories260k_is_found(shared: Path) -> None:
    loaded = load(shared / "models" / "stories260k")
    found = base.untrained_token_ids(loaded)
    assert 2 in found, "</s> was never trained"
    assert 1 not in found, "<s>, which ends the stories, was"


@pytest.mark.parametrize("kind", models.CAUSAL)
def test_distinct_rows_are_trained(kind: str, tiny: Build) -> None:
    assert base.untrained_token_ids(load(tiny(kind))) == frozenset()


def test_chat_template_from_text_and_from_a_file(tiny: Build, tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    path = tmp_path / "template.jinja"
    path.write_text(template)
    for given in (template, str(path)):
        asked = spec.Model(name=str(tiny("tiny_llama", chat=True))).model_copy(update={"chat_template": given})
        tokenizer = base.load(asked).tokenizer
        assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "[hi]"


# ----------------------------------------------------------------------------------------------------------- quantized


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2", "tiny_t5", "tiny_bert", "tiny_albert", "tiny_modernbert"])
def test_qlora_quantizes_layers_but_never_heads_and_poolers(kind: str, bits: int, tiny: Build) -> None:
    method = QLORA.model_copy(update={"bits": bits})
    loaded = load(tiny(kind), method, labels_of(kind))
    quantized = [name for name, m in loaded.model.named_modules() if "bitsandbytes" in type(m).__module__]
    assert len(quantized) >= 6
    output = loaded.model.get_output_embeddings()
    assert output is None or output.weight.is_floating_point()
    assert not any(name.startswith(loaded.fresh) for name in quantized if loaded.fresh)


def test_a_base_stored_quantized_stays_so_and_wants_qlora(tiny: Build, tmp_path: Path) -> None:
    adapters.save_model(load(tiny("tiny_llama"), QLORA), tmp_path)
    assert base.inspect(str(tmp_path)).quantized
    assert base.inspect(str(tmp_path)).parameters == base.inspect(str(tiny("tiny_llama"))).parameters
    for method in (LORA, FULL):
        with pytest.raises(ModelError, match="stored quantized") as refusal:
            load(tmp_path, method)
        assert "qlora" in (refusal.value.hint or "")
    kept = load(tmp_path, QLORA.model_copy(update={"bits": 8}))
    assert type(kept.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert load(tmp_path, PROMPT).facts.quantized


def test_other_quantizations_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = models.build("tiny_llama", tmp_path)
    change_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="gptq") as refusal:
        load(folder)
    assert "qlora" in (refusal.value.hint or "")


def test_qlora_without_bitsandbytes_names_the_command(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else found(name, *a)
    )
    with pytest.raises(MissingExtra) as refusal:
        load(tiny("tiny_llama"), QLORA)
    assert "pip install" in (refusal.value.hint or "")


# ------------------------------------------------------------------------------------------------------ where from, to


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Hub cache that holds `org/small` at one commit, as huggingface_hub lays it out; gives the commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--small"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in models.build("tiny_llama").iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return commit


def test_a_hub_name_loads_with_its_commit(hub: str, tiny: Build) -> None:
    for revision in (None, "main", hub):
        loaded = base.load(spec.Model(name="org/small", revision=revision))
        assert (loaded.name, loaded.revision) == ("org/small", hub)
    assert loaded.weights == load(tiny("tiny_llama")).weights


def test_names_that_lead_nowhere(hub: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="could not be fetched"):
        base.inspect("org/unknown")
    with pytest.raises(ModelError, match="could not be fetched"):
        base.inspect("org/small", "no-such-branch")
    with pytest.raises(ModelError, match="no model folder"):
        base.inspect("https://example.org/model")
    with pytest.raises(ModelError, match="no revisions"):
        base.inspect(str(tmp_path), "main")
    with pytest.raises(ModelError, match=r"no config\.json"):
        base.inspect(str(tmp_path))


def test_a_base_larger_than_its_device_is_spread(tiny: Build) -> None:
    """Most of the model lies on disk; logits and generation are those of the whole."""
    whole = load(tiny("tiny_llama"))
    model = spec.Model(name=str(tiny("tiny_llama")))
    spread = base.load(model, spread=True, max_memory={"cpu": 120_000})
    assert {"cpu", "disk"} == set(map(str, spread.model.hf_device_map.values()))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(spread.model(ids).logits, whole.model(ids).logits)
    assert torch.equal(spread.model.generate(ids, max_new_tokens=4), whole.model.generate(ids, max_new_tokens=4))


def test_digests_name_weights_and_vocabulary(tiny: Build, tmp_path: Path) -> None:
    one = load(tiny("tiny_llama"))
    folder = models.build("tiny_llama", tmp_path)
    assert facts.weights_digest(folder) == one.weights
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert facts.weights_digest(folder) != one.weights
    assert one.tokenizer_hash == load(tiny("tiny_mistral")).tokenizer_hash != load(tiny("tiny_gpt2")).tokenizer_hash


@pytest.mark.parametrize("method", [LORA, QLORA, PROMPT, FULL], ids=lambda method: method.type)
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bert"])
def test_the_files_of_a_base_are_never_touched(kind: str, method: Any, tmp_path: Path) -> None:
    folder = models.build(kind, tmp_path / "base")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    tuned = trained(kind, method, folder)
    out = adapters.save(tuned, tuned.slots[0], tmp_path / "out")
    if method.type in ("lora", "qlora"):
        adapters.merge(load(folder, method, labels_of(kind)), adapters.read(out))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("./modls/x", "did you mean `models/x`?"),
        ("models/xy/z", "did you mean `models/x`?"),
        ("models/qq", "give a folder, or a Hub id such as `org/name`"),
        ("~nobody-of-that-name/x", "give a folder, or a Hub id such as `org/name`"),
        ("/nowhere/x", "give a folder, or a Hub id such as `org/name`"),
    ],
)
def test_a_mistyped_folder_is_refused_without_asking_the_hub(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(ModelError, match=f"there is no model folder `{name}`") as refusal:
        facts.locate(name)
    assert refusal.value.hint == hint


def test_a_hub_id_that_cannot_be_fetched_may_be_a_folder_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "x").mkdir(parents=True)
    (tmp_path / "one.gguf").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="could not be fetched from the Hub") as refusal:
        facts.locate("modls/x")
    assert str(refusal.value.hint).startswith("did you mean `models/x`? Or else check the name")
    with pytest.raises(ModelError, match="is a file, not a model folder"):
        facts.locate("one.gguf")
