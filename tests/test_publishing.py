"""Publishing: what is shown was proved by a fresh process; what was not proved is never there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier import publishing, spec
from luthier.data.dataset import Dataset
from luthier.disk import sha256
from luthier.errors import ModelError
from luthier.evaluation.report import Report, Subject
from luthier.models import adapters, base
from luthier.publishing import Question
from luthier.runs import Score
from tests import tiny as models
from tests.trained import FULL, LORA, PROMPT, QLORA, far, labels_of, ours, rows, trained

DATASET = Dataset(Path("x"), "0123abcd", {"train": 1200, "test": 150}, {}, {}, "generation", "text", ())
SUBJECT = Subject(run="r", name="n", model="m", method="lora", dataset="0123abcd", task="generation")
SCORES = {"exact_match": Score(0.8333, 0.787, 0.8714, 300), "chrf": Score(71.2, 68.1, 74.3, 300)}
BEFORE = {"chrf": Score(12.0, 10.0, 14.0, 300)}
REPORT = Report(SUBJECT, SCORES, BEFORE, {}, "exact match: tuned 0.83, base <0.01")
METHODS = (LORA, QLORA, PROMPT, FULL)


def model_of(kind: str, **chosen: Any) -> spec.Model:
    return spec.Model(name=str(models.build(kind)), **chosen)


def run(kind: str, method: Any, folder: Path) -> Path:
    tuned = trained(kind, method)
    return adapters.save(tuned, tuned.slots[0], folder)


@pytest.mark.parametrize(
    "kinds",
    [("tiny_llama", "tiny_bert"), pytest.param(tuple(models.KINDS), marks=pytest.mark.slow)],
    ids=["two", "all"],
)
def test_every_method_computes_in_a_fresh_process_what_it_computed_here(kinds: tuple[str, ...], tmp_path: Path) -> None:
    """RELIABILITY 20: saved: 0 ulp; merged: 1e-5; the tuning itself is more than ten times that."""
    questions, expected, merged, bare = [], [], [], []
    for kind in kinds:
        probes = rows(models.family(kind))
        for method in METHODS:
            tuned = trained(kind, method)
            folder = adapters.save(tuned, tuned.slots[0], tmp_path / f"{kind}-{method.type}")
            own = spec.Model(name=str(folder))
            questions.append(
                Question(own, None, probes) if method is FULL else Question(model_of(kind), folder, probes)
            )
            expected.append(ours(tuned))
            merged.append(False)
        publishing._merge(model_of(kind), adapters.read(tmp_path / f"{kind}-lora"), tmp_path / f"{kind}-merged")
        questions.append(Question(spec.Model(name=str(tmp_path / f"{kind}-merged")), None, probes))
        expected.append(expected[-len(METHODS)])
        merged.append(True)
        plain = base.load(model_of(kind), labels=labels_of(kind))
        bare += [publishing._plain_logits(plain.model, plain.family, plain.decoder_start_token_id, probes)] * 5
    answers = publishing.in_fresh_process(questions, tmp_path)
    for question, answer, wanted, whole, before in zip(questions, answers, expected, merged, bare, strict=True):
        name = question.adapter or question.model.name
        exact = not whole and question.adapter is not None
        allowed = 0 if exact else 1e-5 * max(1, wanted.abs().max().item())
        assert far(torch.cat(answer), wanted) <= allowed, name
        assert far(torch.cat(before), wanted) >= 10 * allowed > 0 or exact, name


@pytest.mark.slow
def test_publishing_proves_before_it_shows(tmp_path: Path) -> None:
    folder = run("tiny_llama", LORA, tmp_path / "run")
    (folder / "optimizer.pt").write_bytes(b"\x80\x04.")
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")
    done = publishing.publish(folder, model_of("tiny_llama"), tmp_path / "out", merge=True)
    assert done.merged and done.difference <= done.tolerance < done.effect / 10
    assert sorted(path.name for path in done.path.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "luthier.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    manifest = json.loads((done.path / "luthier.json").read_text())
    assert manifest["merged"] and manifest["method"]["type"] == "lora"
    assert "AutoModelForCausalLM" in (done.path / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof's questions are answered in this process: the same code, without five seconds of imports."""
    monkeypatch.setattr(publishing, "in_fresh_process", lambda asked, _: [publishing.answer(each) for each in asked])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.type)
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bart", "tiny_bert"])
def test_a_copy_is_the_run_and_has_only_what_others_need(kind: str, method: Any, tmp_path: Path) -> None:
    folder = run(kind, method, tmp_path / "run")
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "notes.txt", "run.py", "pytorch_model.bin"):
        (folder / name).write_bytes(b"\x80\x04.")
    done = publishing.publish(folder, model_of(kind), tmp_path / "out")
    assert (done.difference, done.merged) == (0, False) and done.effect > 0.1
    base_named = [str(models.build(kind)) in note and "do not push" in note for note in done.notes]
    assert base_named == ([] if method is FULL else [True])
    assert str(models.build(kind)) not in (done.path / "luthier.json").read_text()
    kept = {path.name for path in done.path.iterdir()}
    assert {"README.md", "luthier.json", "tokenizer.json"} <= kept
    assert kept <= {*publishing.PUBLISHED.split(), "model.safetensors"}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_the_card_tells_what_it_was_made_from_and_what_it_is_worth(merge: bool, tmp_path: Path) -> None:
    folder = run("tiny_llama", LORA, tmp_path / "run")
    story = publishing.story_of(DATASET, REPORT)
    done = publishing.publish(folder, model_of("tiny_llama"), tmp_path / "out", merge=merge, story=story)
    card = (done.path / "README.md").read_text()
    for said in (
        "license: unknown",
        "Rows: 1,200 train, 150 test. Fingerprint of their content: `0123abcd`",
        "exact match: tuned 0.83, base &lt;0.01",
        "| metric | tuned | base |",
        "| exact match | 0.83 (0.79–0.87, n = 300) | – |",
        "| chrf | 71.2 (68.1–74.3, n = 300) | 12.0 (10.0–14.0, n = 300) |",
        "Not known to luthier",
    ):
        assert said in card, said
    assert adapters.read(done.path).manifest if not merge else base.load(spec.Model(name=str(done.path)))
    (folder / "README.md").write_text("a person's own words")
    again = publishing.publish(folder, model_of("tiny_llama"), tmp_path / "again", story=story)
    assert (again.path / "README.md").read_text() == "a person's own words"


def done_question(path: Path) -> Question:
    return Question(spec.Model(name=str(path)), None, publishing._probes(base.load(spec.Model(name=str(path)))))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("bits", "allowed"), [(4, 1e-5), (8, 5e-2)])
def test_quantized_bases_merge_into_whole_models(bits: int, allowed: float, tmp_path: Path) -> None:
    folder = run("tiny_llama", QLORA.model_copy(update={"bits": bits}), tmp_path / "run")
    done = publishing.publish(folder, model_of("tiny_llama"), tmp_path / "out", merge=True)
    largest = max(1, max(logits.abs().max().item() for logits in publishing.answer(done_question(done.path))))
    assert done.difference <= done.tolerance == pytest.approx(allowed * largest, rel=0.05)
    assert "quantization_config" not in json.loads((done.path / "config.json").read_text())


@pytest.mark.usefixtures("here")
def test_a_merge_keeps_the_precision_of_the_base_s_files(tmp_path: Path) -> None:
    half = base.load(model_of("tiny_llama", dtype="bfloat16"))
    adapters.save_model(half, tmp_path / "base")
    tuned = trained("tiny_llama", LORA, tmp_path / "base")
    folder = adapters.save(tuned, tuned.slots[0], tmp_path / "run")
    model = spec.Model(name=str(tmp_path / "base"))
    done = publishing.publish(folder, model, tmp_path / "out", merge=True)
    assert {tensor.dtype for tensor in load_file(done.path / "model.safetensors").values()} == {torch.bfloat16}
    assert 0 < done.difference <= done.tolerance
    exact = publishing.publish(folder, model.model_copy(update={"dtype": "float32"}), tmp_path / "exact", merge=True)
    assert exact.difference < done.difference / 100


@pytest.mark.usefixtures("here")
def test_a_tuning_too_small_for_the_precision_is_not_merged(tmp_path: Path) -> None:
    """RELIABILITY A10: rounding to bfloat16 would undo it; the adapter itself keeps it."""
    half = base.load(model_of("tiny_llama", dtype="bfloat16"))
    adapters.save_model(half, tmp_path / "base")
    tuned = trained("tiny_llama", LORA, tmp_path / "base")
    for name, tensor in tuned.slots[0].tensors().items():
        tensor.mul_(1e-3 if "lora_B" in name else 1)
    folder = adapters.save(tuned, tuned.slots[0], tmp_path / "run")
    model = spec.Model(name=str(tmp_path / "base"))
    with pytest.raises(ModelError, match="round the tuning away"):
        publishing.publish(folder, model, tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()
    assert publishing.publish(folder, model, tmp_path / "out").difference == 0


@pytest.mark.usefixtures("here")
def test_an_adapter_that_changes_nothing_is_said(tmp_path: Path) -> None:
    tuned = trained("tiny_llama", LORA)
    for name, tensor in tuned.slots[0].tensors().items():
        tensor.mul_(0 if "lora_B" in name else 1)
    folder = adapters.save(tuned, tuned.slots[0], tmp_path / "run")
    done = publishing.publish(folder, model_of("tiny_llama"), tmp_path / "out", merge=True)
    assert done.effect == 0 and "computes what its base computes" in done.notes[0]


def test_a_soft_prompt_is_not_merged_and_a_full_place_is_not_overwritten(tmp_path: Path) -> None:
    folder = run("tiny_llama", PROMPT, tmp_path / "run")
    with pytest.raises(ModelError, match="cannot be merged"):
        publishing.publish(folder, model_of("tiny_llama"), tmp_path / "out", merge=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ModelError, match="something already"):
        publishing.publish(folder, model_of("tiny_llama"), tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "run"]


@pytest.mark.usefixtures("here")
def test_a_file_that_is_not_for_others_is_forgotten_in_the_copy(tmp_path: Path) -> None:
    folder = run("tiny_llama", LORA, tmp_path / "run")
    manifest = json.loads((folder / "luthier.json").read_text())
    (folder / "mine.json").write_text("{}")
    manifest["files"]["mine.json"] = sha256(folder / "mine.json")
    (folder / "luthier.json").write_text(json.dumps(manifest))
    done = publishing.publish(folder, model_of("tiny_llama"), tmp_path / "out")
    assert adapters.read(done.path).manifest["files"].keys() == manifest["files"].keys() - {"mine.json"}


@pytest.mark.usefixtures("here")
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run("tiny_llama", LORA, tmp_path / "run")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing.shutil, "copyfile", full)
    with pytest.raises(ModelError, match="cannot be written: No space left on device") as refusal:
        publishing.publish(folder, model_of("tiny_llama"), tmp_path / "out")
    assert refusal.value.where == str(tmp_path / "out") and not (tmp_path / "out").exists()


def test_no_secret_reaches_the_fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}

    def look(*_: object, env: dict[str, str], **__: object) -> Any:
        seen.update(env)
        return publishing.subprocess.CompletedProcess([], 1, "", "stop")

    for name in ("HF_TOKEN", "DB_PASSWD", "AWS_CREDENTIALS", "KEYBOARD"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(publishing.subprocess, "run", look)
    with pytest.raises(ModelError, match="stop"):
        publishing.in_fresh_process([], tmp_path)
    assert not {"HF_TOKEN", "DB_PASSWD", "AWS_CREDENTIALS", "KEYBOARD"} & seen.keys()  # only what is on the list
    assert seen["PATH"] and seen["OMP_NUM_THREADS"] == "1"


def _scale_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] *= 1.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("damage", "said"),
    [(_scale_head, "does not compute what was trained"), (_cut, "header says")],
    ids=["other", "cut"],
)
def test_a_merge_that_went_wrong_is_never_shown(
    damage: Callable[[Path], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RELIABILITY A7 to A9: the file on disk is judged, not the tensors in memory."""
    write = adapters.save_model

    def damaged(target: base.Base, folder: Path) -> None:
        write(target, folder)
        damage(folder)

    monkeypatch.setattr(adapters, "save_model", damaged)
    folder = run("tiny_llama", LORA, tmp_path / "run")
    with pytest.raises(ModelError, match=said):
        publishing.publish(folder, model_of("tiny_llama"), tmp_path / "out", merge=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.slow
def test_a_fresh_process_that_cannot_load_says_why(tmp_path: Path) -> None:
    question = Question(spec.Model(name=str(tmp_path / "nothing")), None, rows("causal"))
    with pytest.raises(ModelError, match="no model folder"):
        publishing.in_fresh_process([question], tmp_path)
