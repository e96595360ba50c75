"""Adapter folders: PEFT reads ours and we read PEFT's, with the same logits; anything that does not fit is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from luthier import spec
from luthier.disk import sha256
from luthier.errors import ModelError
from luthier.models import adapters, base, facts
from luthier.models.manifest import AUTO_MODEL, CARD, MANIFEST, model_card
from luthier.models.methods import Tuned, attach
from tests import tiny as models
from tests.trained import FULL, LABELS, LORA, PROMPT, QLORA, far, labels_of, ours, plain, trained

Build = Callable[..., Path]
AUTO = {
    "causal": peft.AutoPeftModelForCausalLM,
    "seq2seq": peft.AutoPeftModelForSeq2SeqLM,
    "encoder": peft.AutoPeftModelForSequenceClassification,
}


EVERY = [kind if kind in models.DISTINCT else pytest.param(kind, marks=pytest.mark.slow) for kind in models.KINDS]


@pytest.fixture(autouse=True)
def _silent() -> Any:
    with facts.quiet():
        yield


def saved(tuned: Tuned, folder: Path) -> Path:
    return adapters.save(tuned, tuned.slots[0], folder)


def by_peft(folder: Path, kind: str) -> Any:
    """The call the model card shows."""
    count = {"num_labels": len(LABELS)} if models.family(kind) == "encoder" else {}
    return AUTO[models.family(kind)].from_pretrained(folder, **count).eval()


def reloaded(folder: Path, kind: str, model: Path | None = None) -> Tuned:
    files = adapters.read(folder)
    method = adapters.method_of(files)
    tuned = attach(
        base.load(spec.Model(name=str(model or models.build(kind))), method, labels_of(kind)), [method], [77]
    )
    adapters.load(tuned, tuned.slots[0], files)
    return tuned


# --------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("method", [LORA, PROMPT], ids=lambda method: method.type)
@pytest.mark.parametrize("kind", EVERY)
def test_peft_loads_ours_and_we_load_what_it_saves(kind: str, method: Any, tmp_path: Path) -> None:
    tuned = trained(kind, method)
    expected, family = ours(tuned), models.family(kind)
    theirs = by_peft(saved(tuned, tmp_path / "ours"), kind)
    found = plain(theirs, family, tuned.slots[0].virtual_tokens, tuned.base.decoder_start_token_id)
    assert far(found, expected) <= 1e-5 * max(1, expected.abs().max().item())
    theirs.save_pretrained(tmp_path / "theirs")
    assert far(ours(reloaded(tmp_path / "theirs", kind)), expected) == 0
    assert far(ours(reloaded(tmp_path / "ours", kind)), expected) == 0


def test_rank_stabilised_scale_is_peft_s(tmp_path: Path) -> None:
    tuned = trained("tiny_llama", LORA.model_copy(update={"rslora": True, "alpha": 3.5}))
    theirs = by_peft(saved(tuned, tmp_path / "a"), "tiny_llama")
    assert far(plain(theirs, "causal"), ours(tuned)) <= 1e-4
    assert adapters.method_of(adapters.read(tmp_path / "a")).rslora


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bert"])
def test_an_adapter_peft_made_from_its_own_defaults(kind: str, tmp_path: Path) -> None:
    """Other half of the equivalence: nothing of the folder comes from us."""
    family = models.family(kind)
    count = {"num_labels": 3, "id2label": dict(enumerate(LABELS))} if family == "encoder" else {}
    auto = transformers.AutoModelForCausalLM if family == "causal" else transformers.AutoModelForSequenceClassification
    network = auto.from_pretrained(models.build(kind), **count)
    extra = {"modules_to_save": ["bert.pooler"]} if family == "encoder" else {}
    task = adapters.TASK_TYPE[family]
    config = peft.LoraConfig(task_type=task, target_modules=r".*\.(q_proj|query)", init_lora_weights=False, **extra)
    theirs = peft.get_peft_model(network, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    assert far(ours(reloaded(tmp_path / "theirs", kind)), plain(theirs, family)) <= 1e-5


def test_seq2seq_prompt_with_an_unused_decoder_half(tmp_path: Path) -> None:
    """PEFT's default stores 2n rows for seq2seq and reads n of them."""
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(models.build("tiny_bart"))
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    theirs = peft.get_peft_model(network, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    assert len(load_file(tmp_path / "theirs" / adapters.WEIGHTS)["prompt_embeddings"]) == 6
    assert far(ours(reloaded(tmp_path / "theirs", "tiny_bart")), plain(theirs, "seq2seq", start=1)) <= 1e-5


# --------------------------------------------------------------------------------------------------- what stands inside


def test_the_configuration_is_peft_s(tmp_path: Path) -> None:
    tuned = trained("tiny_bert", LORA)
    config = json.loads((saved(tuned, tmp_path / "a") / adapters.CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(models.build("tiny_bert").resolve())
    assert (config["peft_type"], config["task_type"]) == ("LORA", "SEQ_CLS")
    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 8, "none")
    assert config["modules_to_save"] == ["bert.pooler", "classifier"]
    assert "dense" not in config["target_modules"], "it would mean the pooler's layer too"


def test_prompts_are_as_wide_as_the_embedding_not_as_the_model(tmp_path: Path) -> None:
    config = json.loads((saved(trained("tiny_albert", PROMPT), tmp_path / "a") / adapters.CONFIG).read_text())
    assert (config["token_dim"], config["num_transformer_submodules"], config["num_layers"]) == (16, 1, 2)


def test_conv1d_is_said(tmp_path: Path) -> None:
    for kind, expected in (("tiny_gpt2", True), ("tiny_llama", False)):
        config = json.loads((saved(trained(kind, LORA), tmp_path / kind) / adapters.CONFIG).read_text())
        assert config["fan_in_fan_out"] is expected


def test_the_card_shows_the_call_and_no_path(tmp_path: Path) -> None:
    folder = saved(trained("tiny_bert", LORA), tmp_path / "a")
    card = (folder / CARD).read_text()
    assert "AutoPeftModelForSequenceClassification" in card and f"num_labels={len(LABELS)}" in card
    assert "0 = refund, 1 = delivery" in card
    assert str(models.build("tiny_bert").parent) not in card + (folder / MANIFEST).read_text()


def test_labels_cannot_write_the_card() -> None:
    origin = {"name": "org/x", "revision": "abc", "weights": "0"}
    manifest = {"base": origin, "family": "encoder", "method": {"type": "lora"}, "files": {}}
    card = model_card(manifest | {"labels": ["<script>alert(1)</script>", "[a](http://x)\n# b"]}, merged=False)
    assert "<script" not in card and "](http" not in card and "\n# b" not in card


def test_files_are_readable_by_others_and_named_by_hash(tmp_path: Path) -> None:
    folder = saved(trained("tiny_llama", LORA), tmp_path / "a")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert {path.name for path in folder.iterdir()} == {*manifest["files"], MANIFEST, CARD}
    assert all(sha256(folder / name) == digest for name, digest in manifest["files"].items())
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
    assert manifest["method"]["type"] == "lora" and manifest["base"]["vocabulary"] == models.VOCABULARY


def test_saving_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    tuned = trained("tiny_llama", LORA)
    folder = saved(tuned, tmp_path / "a")
    before = (folder / adapters.WEIGHTS).read_bytes()
    name, tensor = next(iter(tuned.slots[0].tensors().items()))
    tensor[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite") as refusal:
        saved(tuned, folder)
    assert name in str(refusal.value)
    tensor[0, 0] = 1.0
    tuned.base.tokenizer.save_pretrained = lambda _: (_ for _ in ()).throw(OSError("disk full"))
    with pytest.raises(ModelError, match="cannot be written: disk full") as refusal:
        saved(tuned, folder)
    assert refusal.value.where == str(folder) and "room on the disk" in (refusal.value.hint or "")
    assert (folder / adapters.WEIGHTS).read_bytes() == before
    del tuned.base.tokenizer.save_pretrained
    saved(tuned, folder)
    assert (folder / adapters.WEIGHTS).read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "nothing half-written is left"


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_t5", "tiny_bert"])
def test_full_tuning_saves_a_model_that_transformers_loads(kind: str, tmp_path: Path) -> None:
    tuned = trained(kind, FULL)
    folder = saved(tuned, tmp_path / "a")
    auto = getattr(transformers, f"AutoModelFor{AUTO_MODEL[models.family(kind)]}")
    network = auto.from_pretrained(folder).eval()
    expected = ours(tuned)
    assert far(plain(network, models.family(kind), 0, tuned.base.decoder_start_token_id), expected) <= 1e-5
    assert network.config.id2label == dict(enumerate(labels_of(kind) or ("LABEL_0", "LABEL_1")))
    assert transformers.AutoTokenizer.from_pretrained(folder)("hi").input_ids == tuned.base.tokenizer("hi").input_ids


# --------------------------------------------------------------------------------------------------- strict loading


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tuned = trained("tiny_llama", LORA)
    return adapters.save(tuned, tuned.slots[0], tmp_path_factory.mktemp("good") / "adapter")


A_KEY = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


def _transposed(tensors: dict[str, Any]) -> None:
    tensors[A_KEY] = torch.zeros(4, 31)


def _renamed(tensors: dict[str, Any]) -> None:
    tensors[A_KEY.replace("up_proj", "down_proj2")] = tensors.pop(A_KEY)


def _half(tensors: dict[str, Any]) -> None:
    tensors[A_KEY] = tensors[A_KEY].half()


def _nan(tensors: dict[str, Any]) -> None:
    tensors[A_KEY][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(A_KEY.replace("lora_A", "lora_B")), "lacks `base_model.model.model.layers.0.mlp"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "holds `extra`"),
        (_transposed, r"has shape \(4, 31\), expected \(4, 32\)"),
        (_renamed, "down_proj2"),
        (_half, r"torch\.float16, expected torch.float32"),
        (_nan, "not finite"),
    ],
    ids=["missing", "extra", "shape", "renamed", "dtype", "nan"],
)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_loaded(
    good: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    folder = shutil.copytree(good, tmp_path / "a")
    tensors = load_file(folder / adapters.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / adapters.WEIGHTS, metadata={"format": "pt"})
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][adapters.WEIGHTS] = sha256(folder / adapters.WEIGHTS)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    tuned = attach(base.load(spec.Model(name=str(models.build("tiny_llama"))), LORA), [LORA], [5])
    before = {name: tensor.clone() for name, tensor in tuned.slots[0].tensors().items()}
    with pytest.raises(ModelError, match=said):
        adapters.load(tuned, tuned.slots[0], folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tuned.slots[0].tensors().items())


def test_one_flipped_byte_is_found(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "a")
    data = bytearray((folder / adapters.WEIGHTS).read_bytes())
    data[-3] ^= 1
    (folder / adapters.WEIGHTS).write_bytes(data)
    with pytest.raises(ModelError, match="hash differs"):
        adapters.read(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", adapters.CONFIG])
def test_every_file_with_a_hash_is_checked(good: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(good, tmp_path / "a")
    (folder / CARD).write_text("a person's own words")
    adapters.read(folder)
    (folder / name).write_text((folder / name).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(ModelError, match="hash differs") as refusal:
        adapters.read(folder)
    assert refusal.value.where == str(folder / name)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name}"):
        adapters.read(folder)


def test_a_manifest_cannot_name_a_file_elsewhere(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "a")
    manifest = json.loads((folder / MANIFEST).read_text())
    (tmp_path / "secret").write_text("x")
    manifest["files"]["../secret"] = sha256(tmp_path / "secret")
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"`\.\./secret`, which luthier\.json names, is not"):
        adapters.read(folder)


def test_safetensors_own_disk_errors_are_worded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What safetensors raises is no OSError: here for a folder that is not there."""
    tuned = trained("tiny_llama", LORA)
    write = adapters.safetensors.torch.save_file
    nowhere = tmp_path / "not" / "there"
    monkeypatch.setattr(
        adapters.safetensors.torch, "save_file", lambda tensors, path, **more: write(tensors, nowhere, **more)
    )
    with pytest.raises(ModelError, match="cannot be written") as refusal:
        saved(tuned, tmp_path / "a")
    assert refusal.value.where == str(tmp_path / "a") and list(tmp_path.iterdir()) == []
    assert isinstance(refusal.value.__cause__, adapters.safetensors.SafetensorError)


def _other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _resized(folder: Path) -> None:
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    network.resize_token_embeddings(models.VOCABULARY + 8)
    network.save_pretrained(folder)


def _other_tokens(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace('"<unk>"', '"<none>"'), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [(_other_weights, "other weights"), (_resized, "328: it was resized"), (_other_tokens, "another tokenizer")],
    ids=["weights", "vocabulary", "tokenizer"],
)
def test_another_base_is_refused_with_the_reason(
    good: Path, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    folder = models.build("tiny_llama", tmp_path / "base")
    reloaded(good, "tiny_llama", folder)  # a copy elsewhere is the same base
    change(folder)
    with pytest.raises(ModelError, match=said):
        reloaded(good, "tiny_llama", folder)


def test_another_revision_and_another_name_are_refused(good: Path, tmp_path: Path) -> None:
    loaded = base.load(spec.Model(name=str(models.build("tiny_llama"))))
    files = adapters.read(good)
    stored = dict(files.manifest or {})
    stored["base"] = stored["base"] | {"revision": "aaaa", "weights": "0" * 64}
    for manifest, config, said in (
        (stored, files.config, "revision aaaa, this is None"),
        (None, {**files.config, "base_model_name_or_path": "org/other"}, "trained on `org/other`"),
        (None, {**files.config, "revision": "bbbb"}, "revision bbbb"),
    ):
        with pytest.raises(ModelError, match=said):
            adapters.check_base(loaded, adapters.AdapterFiles(good, config, files.tensors, manifest))


def test_other_classes_are_refused(tmp_path: Path) -> None:
    folder = saved(trained("tiny_bert", LORA), tmp_path / "a")
    method = adapters.method_of(adapters.read(folder))
    loaded = base.load(spec.Model(name=str(models.build("tiny_bert"))), method, ("delivery", "refund", "other"))
    tuned = attach(loaded, [method], [0])
    with pytest.raises(ModelError, match=r"tells .* apart, not"):
        adapters.load(tuned, tuned.slots[0], folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "changes the base's own weights"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 5}, "`r` is 5"),
        ({"lora_alpha": "8"}, "lora_alpha"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_variants_that_would_compute_something_else_are_refused(
    good: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = shutil.copytree(good, tmp_path / "a")
    config = json.loads((folder / adapters.CONFIG).read_text())
    (folder / adapters.CONFIG).write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=said):
        adapters.read(folder)


# --------------------------------------------------------------------------------------------------- merging


@pytest.mark.parametrize("kind", EVERY)
def test_merged_is_unmerged(kind: str, tmp_path: Path) -> None:
    tuned = trained(kind, LORA)
    target = base.load(spec.Model(name=str(models.build(kind))), None, labels_of(kind))
    start = target.decoder_start_token_id
    before = plain(target.model, models.family(kind), 0, start)
    adapters.merge(target, adapters.read(saved(tuned, tmp_path / "a")))
    expected = ours(tuned)
    error = far(plain(target.model, models.family(kind), 0, start), expected)
    assert error <= 1e-5 * max(1, expected.abs().max().item())
    assert far(expected, before) >= 10 * error


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2", "tiny_bert"])
def test_a_quantized_base_is_merged_into_the_weights_training_saw(kind: str, tmp_path: Path) -> None:
    tuned = trained(kind, QLORA)
    target = base.load(spec.Model(name=str(models.build(kind))), QLORA, labels_of(kind))
    adapters.merge(target, adapters.read(saved(tuned, tmp_path / "a")))
    adapters.save_model(target, tmp_path / "merged")
    again = base.load(spec.Model(name=str(tmp_path / "merged")), None, labels_of(kind))
    assert not again.facts.quantized
    expected = ours(tuned)
    assert far(plain(again.model, models.family(kind)), expected) <= 1e-5 * max(1, expected.abs().max().item())


def test_merging_in_bfloat16_stays_close(tmp_path: Path) -> None:
    """Computed in float32, so that the rounding of the weights is all that differs."""
    tuned = trained("tiny_llama", LORA)
    target = base.load(spec.Model(name=str(models.build("tiny_llama")), dtype="bfloat16"))
    adapters.merge(target, adapters.read(saved(tuned, tmp_path / "a")))
    expected = ours(tuned)
    assert target.model.lm_head.weight.dtype == torch.bfloat16
    assert far(plain(target.model.float(), "causal"), expected) <= 2e-2 * expected.abs().max().item()


def test_soft_prompts_cannot_be_merged(tmp_path: Path) -> None:
    folder = saved(trained("tiny_llama", PROMPT), tmp_path / "a")
    with pytest.raises(ModelError, match="soft prompt cannot be merged"):
        adapters.merge(base.load(spec.Model(name=str(models.build("tiny_llama")))), adapters.read(folder))


def test_a_trained_head_of_a_tied_model_survives_merge_and_reload(tmp_path: Path) -> None:
    """PEFT can train `lm_head` apart from the embedding it is tied to; merging must not move the embedding."""
    folder = models.build("tiny_llama", tmp_path / "base", tie_word_embeddings=True)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"], r=4)
    theirs = peft.get_peft_model(network, config).eval()
    with torch.no_grad():
        theirs.base_model.model.lm_head.modules_to_save["default"].weight.add_(0.3)
    theirs.save_pretrained(tmp_path / "a")
    expected = plain(theirs, "causal")
    target = base.load(spec.Model(name=str(folder)))
    embedding = target.model.get_input_embeddings().weight.clone()
    adapters.merge(target, adapters.read(tmp_path / "a"))
    adapters.save_model(target, tmp_path / "merged")
    again = base.load(spec.Model(name=str(tmp_path / "merged")))
    assert far(plain(again.model, "causal"), expected) <= 1e-4
    assert torch.equal(again.model.get_input_embeddings().weight, embedding)
    assert not again.model.config.tie_word_embeddings


# --------------------------------------------------------------------------------------------------- pipelines


def test_pipelines_run_on_adapter_and_merged_model(tmp_path: Path) -> None:
    tuned = trained("tiny_llama", LORA)
    adapter = saved(tuned, tmp_path / "adapter")
    target = base.load(spec.Model(name=str(models.build("tiny_llama"))))
    adapters.merge(target, adapters.read(adapter))
    adapters.save_model(target, tmp_path / "merged")
    said = []
    for folder in (adapter, tmp_path / "merged"):
        pipe = transformers.pipeline("text-generation", model=str(folder))
        said.append(pipe("SELECT", max_new_tokens=5, do_sample=False)[0]["generated_text"])
    bare = transformers.pipeline("text-generation", model=str(models.build("tiny_llama")))
    assert said[0] == said[1] != bare("SELECT", max_new_tokens=5, do_sample=False)[0]["generated_text"]


def test_classification_pipeline_names_the_classes(tmp_path: Path) -> None:
    tuned = trained("tiny_bert", LORA)
    adapter = saved(tuned, tmp_path / "adapter")
    target = base.load(spec.Model(name=str(models.build("tiny_bert"))), None, LABELS)
    adapters.merge(target, adapters.read(adapter))
    adapters.save_model(target, tmp_path / "merged")
    whole = transformers.pipeline("text-classification", model=str(tmp_path / "merged"))("where is my parcel")[0]
    theirs = by_peft(adapter, "tiny_bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter)
    apart = transformers.pipeline("text-classification", model=theirs, tokenizer=tokenizer)("where is my parcel")[0]
    assert whole["label"] in LABELS
    assert whole["score"] == pytest.approx(apart["score"], abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("tiny_llama", LORA), ("tiny_llama", PROMPT), ("tiny_llama", FULL),
        ("tiny_bert", LORA), ("tiny_bert", PROMPT), ("tiny_bert", FULL),
        ("tiny_bart", LORA), ("tiny_bart", PROMPT),
    ],
    ids=lambda value: value if isinstance(value, str) else value.type,
)  # fmt: skip
def test_the_code_on_the_card_runs_and_names_the_classes(
    kind: str, method: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(trained(kind, method), tmp_path / "a")
    card = (folder / CARD).read_text()
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    capsys.readouterr()
    exec(code.replace("path/to/this/folder", str(folder)), {})
    said = capsys.readouterr().out
    assert said.strip()
    if kind == "tiny_bert":
        assert re.search(rf"'label': '({'|'.join(LABELS)})'", said)
    assert ("`transformers.pipeline` cannot open this folder" in card) == (method is PROMPT)


def test_a_pipeline_opens_a_lora_classifier_with_its_names(tmp_path: Path) -> None:
    folder = saved(trained("tiny_bert", LORA), tmp_path / "a")
    names = dict(enumerate(json.loads((folder / MANIFEST).read_text())["labels"]))
    pipe = transformers.pipeline("text-classification", model=str(folder), model_kwargs={"id2label": names})
    assert pipe("where is my parcel")[0]["label"] in LABELS
