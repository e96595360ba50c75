"""A run's parts laid ready: its base, its rows as tokens, what the gate says, its adapter.

Lives here: bringing into memory what worker, plan, look, evaluate and generate all need. Does not live here: the order
of a run's work (`worker.py`), any of the parts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import hardware, presets, redaction, spec
from luthier.data import encode, formats, gate, rows, tokens
from luthier.data.encode import Rules
from luthier.data.examples import Encoded, Example
from luthier.data.lengths import LengthAdvice, suggested_length
from luthier.data.prepare import Dataset, load_dataset
from luthier.data.rows import TokenRows
from luthier.data.tokens import StoredSplit
from luthier.errors import DataError, ModelError, NotFound, TrainingError
from luthier.evaluation import generate as speech
from luthier.models import adapters, base, facts, methods
from luthier.models.base import Base
from luthier.models.methods import Tuned
from luthier.runs import Finding, Plan, Run
from luthier.train import measure as measuring
from luthier.train import plan as planning
from luthier.train.loop import Job

LENGTHS_OF = 20_000


@dataclass(frozen=True, slots=True)
class Bench:
    """An experiment's base and rows, ready to train. `findings`: what the gate says; `remarks`: counts, in words."""

    experiment: spec.Experiment
    dataset: Dataset
    base: Base
    rules: Rules
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    findings: tuple[Finding, ...]
    remarks: tuple[str, ...]
    cut: int


def of_run(run: Run, shard: Callable[[Any], None] | None = None, loaded: Base | None = None) -> Bench:
    """The bench of a run, from its folder and the data set it names. Raises ModelError if its base has changed.

    `shard` lays the base over the run's processes, where it needs to be; `loaded`: the base, where it is here already.
    """
    experiment, dataset = experiment_of(run), dataset_of(run)
    loaded = loaded or base.load(experiment.model, experiment.method, dataset.labels, shard=shard)
    _same_base(run, loaded)
    return _laid(experiment, dataset, loaded)


def _same_base(run: Run, loaded: Base) -> None:
    """A run is of one base: of the commit, or of the weights by content, that stood when it was described."""
    then, now = run.facts["revision"], loaded.revision or loaded.weights
    if then != now:
        what = "commit was" if loaded.revision else "weights were"
        raise ModelError(
            f"the base of run {run.id} has changed: its {what} {then:.12}…, now {now:.12}…",
            str(loaded.folder) if loaded.revision is None else loaded.name,
            "bring the base back as it was; a run of the new one begins with `luthier tune FILE --new`",
        )


def experiment_of(run: Run) -> spec.Experiment:
    """What the run was described as, every value decided."""
    return spec.load(run.path / "resolved.yaml")


def dataset_of(run: Run) -> Dataset:
    """The prepared data of a run."""
    return load_dataset(run.path.parents[1] / "data" / run.facts["dataset"])


def result_of(run: Run) -> Path:
    """Where what the run learned lies: an adapter, or after full tuning a whole model."""
    return run.path / ("model" if run.facts["method"] == "full" else "adapter")


def lay(experiment: spec.Experiment, dataset: Dataset, weights: bool = True) -> Bench:
    """Load the base, encode train and validation, ask the gate. Raises ModelError; DataError by the length policy."""
    return _laid(experiment, dataset, base.load(experiment.model, experiment.method, dataset.labels, weights=weights))


def _laid(experiment: spec.Experiment, dataset: Dataset, loaded: Base) -> Bench:
    rules = rules_of(experiment, dataset, loaded)
    train, validation = (tokens.stored(dataset, split, loaded.tokenizer, rules) for split in ("train", "validation"))
    known, tokenizer = gate_facts(experiment.method, loaded), loaded.tokenizer
    longest = int(rows.lengths(train.rows).max(initial=0))
    findings = [
        *gate.inspect(train.rows, train.rows.places(), known, "train", tokenizer),
        *gate.inspect(validation.rows, validation.rows.places(), known, "validation", tokenizer, longest),
    ]
    remarks = (*loaded.notes, *_counted("train", train), *_counted("validation", validation))
    return Bench(
        experiment, dataset, loaded, rules, train.rows, validation.rows, tuple(findings), remarks, train.cut.count
    )


def judge(experiment: spec.Experiment, dataset: Dataset) -> None:
    """Ask the gate about all rows of an experiment before a run of it is made. Raises DataError if it refuses."""
    bench = lay(experiment, dataset, weights=_weights_tell(experiment))
    gate.refuse((*bench.findings, *test_findings(bench, test_split(bench).rows)), experiment.data.accept)


def test_split(bench: Bench) -> StoredSplit:
    """The test rows as tokens, of each the last answer, and what the length policy did."""
    rules = dataclasses.replace(bench.rules, train_on="last")
    return tokens.stored(bench.dataset, "test", bench.base.tokenizer, rules)


def test_findings(bench: Bench, test: TokenRows) -> list[Finding]:
    """What the gate says of the test rows."""
    tokenizer, known = bench.base.tokenizer, gate_facts(bench.experiment.method, bench.base)
    return gate.inspect(test, test.places(), known, "test", tokenizer, int(rows.lengths(bench.train).max()))


def rules_of(experiment: spec.Experiment, dataset: Dataset, loaded: Base) -> Rules:
    """How the experiment's rows become tokens of this base."""
    data, method = experiment.data, experiment.method
    return Rules(
        family=loaded.family,
        task=dataset.task,
        chat=loaded.tokenizer.chat_template is not None,
        template=data.template,
        train_on=data.train_on,
        overlength=data.overlength,
        max_seq_length=experiment.training.max_seq_length,
        end_token_ids=loaded.end_token_ids,
        labels=dataset.labels,
        virtual_tokens=_virtual_tokens(method),
        positions=loaded.facts.positions,
    )


def _virtual_tokens(method: spec.Method | None) -> int:
    return method.virtual_tokens or 0 if isinstance(method, spec.PromptTuning) else 0


def gate_facts(method: spec.Method | None, loaded: Base) -> gate.GateFacts:
    """What the gate must know of a base and how it is tuned (None: not at all)."""
    frozen, template = not isinstance(method, spec.Full), loaded.tokenizer.chat_template or ""
    return gate.GateFacts(
        end_token_ids=loaded.end_token_ids,
        bos_id=loaded.tokenizer.bos_token_id,
        positions=loaded.facts.positions,
        untrained_ids=base.untrained_token_ids(loaded) if frozen else frozenset(),
        virtual_tokens=_virtual_tokens(method),
        family=loaded.family,
        unknown_id=loaded.tokenizer.unk_token_id,
        pad_id=loaded.pad_token_id,
        dated="strftime_now" in (template if isinstance(template, str) else str(template)),
    )


def _counted(split: str, made: tokens.StoredSplit) -> list[str]:
    """What the length policy did, with the first rows it did it to, and whether stored tokens had to be made anew."""
    told = [made.remade] if made.remade else []
    for verb, some in (("dropped", made.dropped), ("cut", made.cut)):
        if some.count:
            shown = "; ".join(some.shown[:3]) + ("; …" if some.count > 3 else "")
            told.append(f"{some.count:,} rows of {split} were {verb}: {shown}")
    return told


def plan(resolved: presets.Resolved, dataset: Dataset) -> Plan:
    """What a run would do, with what the gate finds, and what the length policy does among the warnings."""
    experiment, neighbours = resolved.experiment, hardware.Neighbours()
    bench = lay(experiment, dataset, weights=_weights_tell(experiment))
    tuned, machine = _shaped(experiment, bench.base), hardware.machine()
    rates = hardware.rates(machine, neighbours.threads())
    planned = planning.plan(experiment, bench.train, bench.cut, tuned, machine, rates)
    said: list[str] = []
    lengths = rows.lengths(bench.train)
    told = {
        "median": int(np.median(lengths)),
        "longest": int(lengths.max()),
        "longest_answer": int(rows.trained(bench.train).max()),
    }
    if tuned.note:  # rows apart: nothing is shared
        planned, said = dataclasses.replace(planned, shared_tokens=0), [tuned.note]
    limited = resolved.origins.get("training.max_seq_length") == "you"
    if not limited and (advice := suggested_length(lengths)).suggested < advice.longest:
        said.append(advice.sentence)
    warnings = (*planned.warnings, *said, *bench.remarks)
    found = _found(experiment, dataset, planned, told["longest_answer"])
    test = test_split(bench)
    findings = (*bench.findings, *test_findings(bench, test.rows))
    planned = dataclasses.replace(planned, histogram=planning.histogram(lengths.tolist()), splits=_fates(bench, test))
    return dataclasses.replace(planned, warnings=warnings, findings=findings, lengths=told, found=found)


def _fates(bench: Bench, test: StoredSplit) -> dict[str, dict[str, int]]:
    """How many rows of each split are used, dropped by the length policy, and cut by it."""
    used = {"train": bench.train, "validation": bench.validation, "test": test.rows}
    cut = {"train": bench.cut, "validation": sum(row.cut for row in bench.validation), "test": test.cut.count}
    return {
        split: {"rows": len(found), "dropped": bench.dataset.counts[split] - len(found), "cut": cut[split]}
        for split, found in used.items()
    }


def _found(experiment: spec.Experiment, dataset: Dataset, planned: Plan, longest_answer: int) -> dict[str, Any]:
    """What the values that nobody chose come to, by data, base and machine; a plain None has no value to show."""
    training = experiment.training
    epoch = spec.steps_per_epoch(planned.batches_per_epoch, training.accumulate_steps)
    every = {
        "data.format": dataset.format,
        "task": dataset.task,
        "training.max_steps": planned.steps,
        "training.gradient_checkpointing": planned.recompute,
        "training.evaluate_every": epoch,
        "training.save_every": epoch,
        "evaluation.max_new_tokens": longest_answer if dataset.task != "classification" else None,
    }
    open_ones = {path for path, value in spec.leaves(experiment).items() if value is None}
    return {path: value for path, value in every.items() if path in open_ones and value is not None}


def lengths(resolved: presets.Resolved, dataset: Dataset) -> LengthAdvice:
    """What each `max_seq_length` would cost training rows, by up to LENGTHS_OF of them, evenly spread."""
    experiment = resolved.experiment
    loaded = base.load(experiment.model, experiment.method, dataset.labels, weights=False)
    free = dataclasses.replace(
        rules_of(experiment, dataset, loaded), max_seq_length=None, positions=None, overlength="cut"
    )
    step = -(-dataset.counts["train"] // LENGTHS_OF)
    rows = encode.encode_split(dataset.examples("train")[::step], loaded.tokenizer, free).rows
    positions, sides = loaded.facts.positions, 2 if loaded.family == "seq2seq" else 1
    most = None if positions is None else sides * positions - free.virtual_tokens
    return suggested_length([len(row.ids_L) for row in rows], most)


def fit(bench: Bench) -> planning.Fit:
    """How a run fits into this machine's memory, by formula: counted on its base without numbers."""
    experiment = bench.experiment
    shapes = _shaped(experiment, base.load(experiment.model, experiment.method, bench.dataset.labels, weights=False))
    return planning.fitted(experiment.training, bench.train, shapes, hardware.machine())


def _shaped(experiment: spec.Experiment, loaded: Base) -> Tuned:
    """The base with its slot, for their shapes: a soft prompt starts at random, whatever it will start from."""
    method = experiment.method
    if isinstance(method, spec.PromptTuning):
        method = method.model_copy(update={"init_method": "random", "init_text": None})
    return methods.attach(loaded, [method], [experiment.seed])


def measured(resolved: presets.Resolved, dataset: Dataset, planned: Plan, seconds: float = 20.0) -> Plan:
    """`planned` with memory and time as a fresh process measures them, on the run's longest and first steps.

    It ends after about `seconds`. Raises TrainingError where the process cannot do it, with its last words.
    """
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        text = spec.dump(resolved.experiment, dict(resolved.origins))
        (Path(folder) / "resolved.yaml").write_text(text, encoding="utf-8")
        wishes = {"data": str(dataset.path), "budget": planned.budget, "recompute": planned.recompute, "until": until}
        (Path(folder) / "wishes.json").write_text(json.dumps(wishes), encoding="utf-8")
        command = [sys.executable, "-m", "luthier.workbench", folder]
        done = subprocess.run(command, env=redaction.inherited(), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise TrainingError(f"the steps could not be measured: {redaction.strike(last[:300])}")
    told = json.loads(done.stdout.splitlines()[-1])
    found = dataclasses.replace(planned, memory_bytes=told["memory_bytes"], measured=True)
    if told["seconds"] is None:
        said = f"no update came to its end within {seconds:.0f} s: the time is by formula"
        return dataclasses.replace(found, warnings=(*found.warnings, said))
    return dataclasses.replace(found, seconds=told["seconds"])


def _measure(folder: Path) -> measuring.Measured:
    """The fresh process of `measured`: what a worker does up to its first steps, watched."""
    neighbours, before = hardware.Neighbours(), measuring.resident_bytes()
    torch.set_num_threads(neighbours.threads())
    wishes = json.loads((folder / "wishes.json").read_text(encoding="utf-8"))
    bench = lay(spec.load(folder / "resolved.yaml"), load_dataset(Path(wishes["data"])))
    tuned = methods.attach(bench.base, [bench.experiment.method], [bench.experiment.seed])
    training = bench.experiment.training.model_copy(update={"gradient_checkpointing": wishes["recompute"]})
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    job = Job("plan", training, bench.experiment.seed, bench.train, (), checkpoints)
    return measuring.measure(tuned, job, wishes["budget"], before, wishes["until"])


def _weights_tell(experiment: spec.Experiment) -> bool:
    """Whether a plan must read weights: those of an encoder tell which parts of its head are new, and are small."""
    return facts.inspect(experiment.model.name, experiment.model.revision).family == "encoder"


def learned(run: Run) -> Path:
    """The folder of what the run learned. Raises NotFound where there is nothing yet."""
    if not result_of(run).is_dir():
        hint = None if run.state in ("queued", "running") else f"`luthier resume {run.id}` goes on with it"
        raise NotFound(f"run {run.id} is not done: it is {run.state}", where=str(run.path), hint=hint)
    return result_of(run)


def open_run(run: Run) -> Tuned:
    """The run's base with what it learned in slot 0, ready to speak.

    Raises NotFound where nothing was learned yet, ModelError if the base is not the one it was learned on.
    """
    folder, experiment, labels = learned(run), experiment_of(run), dataset_of(run).labels
    model, method = experiment.model, experiment.method
    if isinstance(method, spec.Full):
        model = model.model_copy(update={"name": str(folder), "revision": None})
    loaded = base.load(model, method, labels, spread=_exceeds_one_device(model))
    if not isinstance(method, spec.Full):
        _same_base(run, loaded)
    tuned = methods.attach(loaded, [method], [experiment.seed])
    if not isinstance(method, spec.Full):
        adapters.load(tuned, tuned.slots[0], folder)
    return tuned


def bare(model: spec.Model, labels: tuple[str, ...]) -> Tuned:
    """A base alone, without a slot, ready to speak."""
    return methods.attach(base.load(model, None, labels, spread=_exceeds_one_device(model)), [], [])


def base_of(run: Run) -> Tuned:
    """The untuned base of a run, alone, ready to speak. Raises ModelError if it has changed."""
    alone = bare(experiment_of(run).model, dataset_of(run).labels)
    _same_base(run, alone.base)
    return alone


def must_shard(run: Run) -> bool:
    """Whether the run's frozen base leaves no room to train beside it, so that its processes must share its layers."""
    experiment = experiment_of(run)
    alike = isinstance(experiment.method, spec.Lora | spec.PromptTuning)  # not quantized, which FSDP2 cannot cut
    return alike and _exceeds_one_device(experiment.model, 0.7)


def _exceeds_one_device(model: spec.Model, share: float = 0.9) -> bool:
    """Whether a base's weights alone fill that share of a device."""
    machine = hardware.machine()
    width = 4 if (machine.dtype if model.dtype == "auto" else model.dtype) == "float32" else 2
    weights = facts.inspect(model.name, model.revision).parameters * width
    return machine.device != "cpu" and weights > share * machine.memory_bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What was said to a prompt, piece by piece as it is read: by the tuned model, and by the base if it was asked."""

    prompt: str
    tuned: Iterator[str]
    base: Iterator[str] | None


def generate(run: Run, prompts: Sequence[str], with_base: bool = False) -> Iterator[Reply]:
    """Answers to prompts as the run's rows were asked: a prompt is the question's text, or a JSON object of columns."""
    experiment, dataset, tuned = experiment_of(run), dataset_of(run), open_run(run)
    other = (tuned if not tuned.full else base_of(run)) if with_base else None
    rules = rules_of(experiment, dataset, tuned.base)
    for number, prompt in enumerate(prompts, 1):
        row = _row(prompt, dataset.format)
        example = formats.to_example(row, dataset.format, experiment.data, "prompt", number, answered=False)
        told = _said(run, experiment, tuned, 0, rules, example)
        yield Reply(prompt, told, _said(run, experiment, other, None, rules, example) if other else None)


_QUESTION = {"prompt_completion": "prompt", "alpaca": "instruction", "text_label": "text", "text": "text"}


def _row(prompt: str, format_name: str) -> dict[str, Any]:
    """A prompt as a row of the run's format, its answer left out."""
    with contextlib.suppress(ValueError):
        columns = json.loads(prompt)
        if isinstance(columns, dict):
            return columns
    if format_name == "messages":
        return {"messages": [{"role": "user", "content": prompt}]}
    if format_name == "sharegpt":
        return {"conversations": [{"from": "human", "value": prompt}]}
    if format_name == "segments":
        return {"segments": [{"label": False, "text": prompt}]}
    return {_QUESTION.get(format_name, "input"): prompt}


def _said(
    run: Run, experiment: spec.Experiment, tuned: Tuned, slot: int | None, rules: Rules, example: Example
) -> Iterator[str]:
    if tuned.base.family == "encoder":
        encoded = encode.encode(example, tokenizer=tuned.base.tokenizer, rules=rules)
        scores = speech.class_logits(tuned, slot, [encoded] if encoded else [])[0]
        return iter([rules.labels[int(scores.argmax())]])
    ids = encode.encode_prompt(example, tuned.base.tokenizer, rules).tolist()
    virtual = tuned.slots[slot].virtual_tokens if slot is not None else 0
    room = None if rules.positions is None else rules.positions - virtual
    if room is not None and len(ids) >= room + (rules.family == "seq2seq"):
        raise DataError(
            f"the prompt has {len(ids):,} tokens; the model reads {room:,} at most, the answer included",
            where=example.where,
            hint="ask something shorter",
        )
    wishes = experiment.evaluation
    longest = wishes.max_new_tokens or run.facts["longest_answer"]
    return speech.stream(tuned, slot, ids, longest, wishes.temperature, experiment.seed)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(_measure(Path(sys.argv[1])))))
