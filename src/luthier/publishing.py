"""From a run's result to a folder for others: the adapter, or one model with the adapter merged in. Proved, then shown.

Lives here: publish, and the proof that what was written computes what was trained. Does not live here: the formats
(`models/adapters.py`), serving. Nothing is pushed anywhere, no pickle is copied.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier import disk, hardware, redaction, spec
from luthier.data.batches import Share
from luthier.data.dataset import Dataset
from luthier.data.examples import Encoded
from luthier.errors import LuthierError, ModelError
from luthier.evaluation.report import Report
from luthier.evaluation.report import say as in_words
from luthier.models import adapters, base, facts, manifest, refusals
from luthier.models.methods import Tuned, attach

PUBLISHED = """
adapter_config.json adapter_model.safetensors config.json generation_config.json README.md luthier.json
model.safetensors.index.json tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json
vocab.json vocab.txt merges.txt tokenizer.model spiece.model sentencepiece.bpe.model source.spm target.spm
chat_template.jinja
"""
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 2e-2}
"""Largest allowed difference of logits (RELIABILITY, test 20), as a share of the largest logit where that exceeds 1.

A share, because rounding is one: logits of 30 carry errors 30 times those of logits of 1, and float32 itself is 2e-6
wide there; a bound that stayed at 1e-5 would judge the model's scale. Up to a logit of 1 the figure stands as it is.
"""
_EIGHT_BITS = 5e-2  # a base in 8 bits rounds its activations too, which the merged model no longer does
# A merge whose error is more than this share of the tuning's own effect is refused (test 20's factor of 10). Of the
# error that was found, not of the one that is allowed: a small tuning may be merged if it comes through.
_ROUNDED_AWAY = 0.1
_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Published:
    """A folder that was proved. `difference`: of its logits, in a fresh process, to those of the run (the largest);
    `effect`: of the run's to the base's, on the same `probes` sequences. `notes` are for a person."""

    path: Path
    merged: bool
    difference: float
    effect: float
    tolerance: float
    probes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """Which logits come out of `probes`: of the adapter in a folder on base `model`, or of `model` itself (None)."""

    model: spec.Model
    adapter: Path | None
    probes: list[Encoded]


@dataclass(frozen=True, slots=True)
class _Trained:
    """What the run computes on the probes, without and with its adapter."""

    probes: list[Encoded]
    plain: list[Tensor]
    tuned: list[Tensor]


def publish(
    folder: Path, model: spec.Model, out: Path, *, merge: bool = False, story: manifest.Story | None = None
) -> Published:
    """Copy the result in `folder` (adapter, or whole model after full tuning) of base `model` to `out`, or merge it.

    `story` goes into the model card.

    `out` appears only when a fresh process has loaded it and found the run's logits in it: within TOLERANCE of the
    precision, and within a tenth of what the tuning changed. Raises ModelError otherwise, or if `out` exists.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError("there is something already", str(out), "choose another folder")
    files = adapters.read(folder) if (folder / adapters.CONFIG).exists() else None
    stored = model.model_copy(update={"dtype": _precision(model, files)})
    model = model.model_copy(update={"dtype": _proving_precision(model, stored.dtype)})
    trained = _adapter_logits(model, files) if files else _whole_logits(model, folder)
    with (
        adapters.writing(out),
        tempfile.TemporaryDirectory(prefix="luthier-proof-") as scratch,
        disk.whole_folder(out) as partial,
    ):
        whole = Question(spec.Model(name=str(partial.resolve()), dtype=model.dtype), None, trained.probes)
        if files is not None and merge:
            _merge(stored, files, partial)
            question, share = whole, _tolerance(stored.dtype, files)
        else:
            _copy(folder, partial)
            question = Question(model, partial, trained.probes) if files else whole
            share = TOLERANCE["float32"]
        (found,) = in_fresh_process([question], Path(scratch))
        if story is not None:
            manifest.tell(partial, story)
        proved = _prove(trained, found, out, question is whole and files is not None, share)
        return replace(proved, notes=(*proved.notes, *_local_base(partial)))


def story_of(dataset: Dataset, report: Report | None) -> manifest.Story:
    """What a model card tells of a run: its data, and its test if there was one."""
    if report is None:
        return manifest.Story(dataset.fingerprint, dataset.counts)
    scores = []
    for name, score in report.scores.items():
        sides = [score, report.base_scores.get(name)]
        told = [in_words(each, None if each.high > 1 else 1.0, with_n=True) if each else "–" for each in sides]
        scores.append((name.replace("_", " "), told[0], told[1]))
    return manifest.Story(dataset.fingerprint, dataset.counts, report.verdict, report.subject.against, tuple(scores))


def _local_base(folder: Path) -> tuple[str, ...]:
    """A note if an adapter names its base by a path, without which PEFT could not load it here."""
    if not (folder / adapters.CONFIG).is_file():
        return ()
    named = refusals.read_json(folder / adapters.CONFIG, "config").get("base_model_name_or_path")
    if not Path(str(named)).is_absolute():
        return ()
    said = f"{adapters.CONFIG} names the base by a folder of this machine ({named})"
    return (f"{said}: no other machine can load the adapter until a Hub id stands there, so do not push it as it is",)


def _prove(trained: _Trained, found: list[Tensor], out: Path, merged: bool, share: float) -> Published:
    tolerance = share * max(1.0, max(logits.abs().max().item() for logits in trained.tuned))
    difference, effect = _largest(found, trained.tuned), _largest(trained.tuned, trained.plain)
    figures = f"its logits differ by {difference:.2g} from the run's; the tuning changed them by {effect:.2g}"
    if not difference <= tolerance:
        raise ModelError(
            f"what was written does not compute what was trained: {figures} (allowed {tolerance:.2g})", str(out)
        )
    if merged and 0 < effect < difference / _ROUNDED_AWAY:
        hint = "publish the adapter itself, or set `model.dtype: float32`"
        raise ModelError(f"merging would round the tuning away: {figures}", str(out), hint)
    notes = () if effect > 0 else ("on the probes the tuned model computes what its base computes",)
    return Published(out, merged, difference, effect, tolerance, len(trained.probes), notes)


def _largest(one: list[Tensor], other: list[Tensor]) -> float:
    differences = [(a.float() - b.float()).abs().max().item() for a, b in zip(one, other, strict=True)]
    return max(differences) if all(np.isfinite(differences)) else float("inf")


# --------------------------------------------------------------------------------------------------------------- parts


def _precision(model: spec.Model, files: adapters.AdapterFiles | None) -> str:
    """The precision to publish in: the one asked for, else that of the base's files (a quantized one: of training)."""
    if model.dtype != "auto":
        return model.dtype
    where, _ = facts.locate(model.name, model.revision, weights=False)
    raw = refusals.read_json(where / "config.json", "config")
    stored = raw.get("dtype") or raw.get("torch_dtype")
    quantized = "quantization_config" in raw or (files is not None and adapters.method_of(files).type == "qlora")
    return stored if stored in TOLERANCE and not quantized else "float32"


def _proving_precision(model: spec.Model, stored: str) -> str:
    """float32 where it fits, so that the proof measures what was written and not the rounding of a forward pass."""
    known = facts.inspect(model.name, model.revision)
    return "float32" if known.quantized or 5 * known.parameters <= hardware.machine().memory_bytes else stored


def _tolerance(stored: str, files: adapters.AdapterFiles) -> float:
    method = adapters.method_of(files)
    eight = isinstance(method, spec.QLora) and method.bits == 8
    return max(TOLERANCE[stored], _EIGHT_BITS if eight else 0)


def _adapter_logits(model: spec.Model, files: adapters.AdapterFiles) -> _Trained:
    tuned = _load_adapter(model, files)
    probes = _probes(tuned.base)
    with tuned.speaking(None) as plain:
        before = _plain_logits(plain, tuned.base.family, tuned.base.decoder_start_token_id, probes)
    return _Trained(probes, before, _tuned_logits(tuned, probes))


def _whole_logits(model: spec.Model, folder: Path) -> _Trained:
    """For full tuning the run's result is a model itself."""
    own = base.load(spec.Model(name=str(folder), dtype=model.dtype))
    probes = _probes(own)
    tuned = _plain_logits(own.model, own.family, own.decoder_start_token_id, probes)
    before = base.load(model, labels=own.labels)
    return _Trained(probes, _plain_logits(before.model, own.family, own.decoder_start_token_id, probes), tuned)


def _load_adapter(model: spec.Model, files: adapters.AdapterFiles) -> Tuned:
    method = adapters.method_of(files)
    labels = tuple(files.manifest["labels"]) if files.manifest else ()
    loaded = base.load(model, method, labels)
    tuned = attach(loaded, [method], [0])
    adapters.load(tuned, tuned.slots[0], files)
    return tuned


def _merge(model: spec.Model, files: adapters.AdapterFiles, out: Path) -> None:
    labels = tuple(files.manifest["labels"]) if files.manifest else ()
    method = adapters.method_of(files)
    target = base.load(model, method, labels)
    adapters.merge(target, files)
    adapters.save_model(target, out)
    manifest.write_manifest(out, target, method, merged=True)


def _copy(folder: Path, out: Path) -> None:
    refusals.scan(folder)
    for path in sorted(folder.iterdir()):
        if path.is_file() and (
            path.name in PUBLISHED.split() or (path.suffix == ".safetensors" and path.name.startswith("model"))
        ):
            shutil.copyfile(path, out / path.name)
    manifest.forget_missing(out)


# -------------------------------------------------------------------------------------------------------------- probes


def _probes(loaded: base.Base) -> list[Encoded]:
    """Three sequences of ordinary tokens, the same for every process; all their tokens are asked for."""
    rng = np.random.default_rng(0)
    special = set(loaded.tokenizer.all_special_ids)
    ordinary = [i for i in range(min(len(loaded.tokenizer), loaded.facts.vocab_size)) if i not in special]
    rows = []
    for length in (24, 17, 9):
        train_L = np.arange(length) >= (1 if loaded.family == "causal" else length // 2)
        ids_L = rng.choice(ordinary, length).astype(np.int32)
        encoder = loaded.family == "encoder"
        rows.append(Encoded("probe", ids_L, train_L & (not encoder), label=0 if encoder else -1))
    return rows


def _tuned_logits(tuned: Tuned, probes: list[Encoded]) -> list[Tensor]:
    """Through our own forward pass, one probe a batch: (entries, vocabulary) or (1, classes) each."""
    found = []
    for probe in probes:
        share = Share(0, [probe], 1.0, tuned.slots[0].virtual_tokens)
        batches = tuned.lay_out([share], 1 << 20)
        found += [tuned.logits(batch)[torch.from_numpy(batch.entries[0]).long()].cpu() for batch in batches]
    return found


@torch.no_grad()
def _plain_logits(model: Any, family: str, start: int | None, probes: Sequence[Encoded]) -> list[Tensor]:
    """Through transformers alone, as another program would call the model."""
    found = []
    for probe in probes:
        ids = torch.from_numpy(probe.ids_L).long()[None].to(model.device)
        if family == "seq2seq":
            source, target = ids[:, : probe.prompt_length], ids[:, probe.prompt_length :]
            shifted = torch.cat([torch.full_like(target[:, :1], start or 0), target[:, :-1]], 1)
            found.append(model(input_ids=source, decoder_input_ids=shifted).logits[0])
        else:
            logits = model(input_ids=ids).logits
            found.append(logits if family == "encoder" else logits[0, :-1])
    return [logits.float().cpu() for logits in found]


# ------------------------------------------------------------------------------------------------------- fresh process


def in_fresh_process(questions: Sequence[Question], scratch: Path) -> list[list[Tensor]]:
    """Each question's logits as a new process computes them from files alone, without network and without secrets."""
    (scratch / "questions.json").write_text(
        json.dumps([_to_json(question) for question in questions]), encoding="utf-8"
    )
    environment = redaction.inherited() | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-m", "luthier.publishing", str(scratch)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ModelError(f"what was written cannot be loaded by a fresh process: {last[:300]}")
    logits = load_file(scratch / "logits.safetensors")
    return [[logits[f"{q}.{n}"] for n in range(len(question.probes))] for q, question in enumerate(questions)]


def answer(question: Question) -> list[Tensor]:
    """Load what the question names, compute its probes."""
    if question.adapter is not None:
        return _tuned_logits(_load_adapter(question.model, adapters.read(question.adapter)), question.probes)
    loaded = base.load(question.model)
    return _plain_logits(loaded.model, loaded.family, loaded.decoder_start_token_id, question.probes)


def _main(scratch: Path) -> None:
    """The fresh process's part: read the questions, write the logits."""
    questions = [_from_json(entry) for entry in json.loads((scratch / "questions.json").read_text(encoding="utf-8"))]
    found = {f"{q}.{n}": rows.contiguous() for q, asked in enumerate(questions) for n, rows in enumerate(answer(asked))}
    save_file(found, scratch / "logits.safetensors")


def _to_json(question: Question) -> dict[str, Any]:
    rows = [[probe.ids_L.tolist(), probe.train_L.tolist(), probe.label] for probe in question.probes]
    adapter = str(question.adapter.resolve()) if question.adapter else None
    return {"model": question.model.model_dump(mode="json"), "adapter": adapter, "probes": rows}


def _from_json(entry: dict[str, Any]) -> Question:
    rows = entry["probes"]
    probes = [Encoded("probe", np.array(ids, np.int32), np.array(train, bool), label) for ids, train, label in rows]
    return Question(spec.Model(**entry["model"]), Path(entry["adapter"]) if entry["adapter"] else None, probes)


if __name__ == "__main__":
    try:
        _main(Path(sys.argv[1]))
    except LuthierError as error:
        sys.exit(error.message)
