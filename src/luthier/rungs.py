"""The rungs of a ladder: what each is made of, and the two pieces of work that no run does: asking the bare base, and
trying learning rates. `python -m luthier.rungs FOLDER` does one piece in a process of its own.

Lives here: the experiment of a rung, the examples that fit before a question, the trials. Does not live here: in which
order it all happens (`climbing.py`), training (`train/`), which rate or rung wins (`evaluation/ladder.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import disk, redaction, runs, spec
from luthier.errors import LuthierError, TrainingError, in_words
from luthier.runs import Evaluated, Event, Finished, Noted, Started, Stepped

if TYPE_CHECKING:
    from luthier.assessment import Exam
    from luthier.data.encode import Rules
    from luthier.data.examples import Example
    from luthier.data.prepare import Dataset
    from luthier.evaluation.predictions import Question
    from luthier.models.methods import Tuned
    from luthier.workbench import Bench

EXPERIMENT, TASK, RESULT, ANSWERS = "resolved.yaml", "task.json", "result.json", "predictions.jsonl"
SHARE, LEAST_STEPS = 0.2, 20  # of a rung's updates that a trial of its learning rate takes, and never fewer
LOOKED_AT = 500  # validation rows that judge a trial
SHOTS, MOST_SHOTS = 4, 16  # examples before a question: so many, or one a class up to so many

_LOW_RANK = ("rank", "alpha", "dropout", "target_modules", "rslora")


class LeftOut(LuthierError):
    """A rung that this base, these rows or this machine do not have."""


# --- what a rung is -----------------------------------------------------------------------------------------------
def experiments(experiment: spec.Experiment) -> dict[str, spec.Experiment]:
    """The experiment of every tuned rung, the cheapest first: the file's own method as it is written there.

    The other methods have their defaults (LoRA beside QLoRA its shape), and their own learning rate: what the file
    says of it was meant for its own method. All else is the same. QLoRA only where the file asks for it.
    """
    own = experiment.method
    kinds: dict[str, type[spec.PromptTuning | spec.QLora | spec.Lora | spec.Full]] = {
        "prompt_tuning": spec.PromptTuning
    }
    kinds |= {"qlora": spec.QLora} if isinstance(own, spec.QLora) else {}
    kinds |= {"lora": spec.Lora, "full": spec.Full}
    found = {}
    for name, kind in kinds.items():
        method, training = own, experiment.training
        if own.type != name:
            shape = _LOW_RANK if name == "lora" and isinstance(own, spec.QLora) else ()
            method = kind(**{key: value for key, value in own if key in shape and key in own.model_fields_set})
            training = _without(training, "learning_rate")
        found[name] = changed(experiment, name=run_name(experiment, name), method=method, training=training)
    return found


def run_name(experiment: spec.Experiment, rung: str) -> str:
    """`NAME-ladder-prompt-tuning`: what the run of a rung is called, within the 64 characters of a name."""
    end = f"-ladder-{rung.replace('_', '-')}"
    return (experiment.name or "run")[: 64 - len(end)] + end


def changed(experiment: spec.Experiment, **fields: Any) -> spec.Experiment:
    """The experiment with these parts, which count as written."""
    return spec.Experiment.model_construct(
        experiment.model_fields_set | set(fields), **dict(experiment) | fields
    )  # fmt: skip


def at_rate(experiment: spec.Experiment, rate: float) -> spec.Experiment:
    """The experiment with another learning rate."""
    training = experiment.training
    fields = dict(training) | {"learning_rate": rate}
    return changed(
        experiment, training=spec.Training.model_construct(training.model_fields_set | {"learning_rate"}, **fields)
    )


def _without(training: spec.Training, field: str) -> spec.Training:
    return spec.Training.model_construct(training.model_fields_set - {field}, **dict(training) | {field: None})


# --- a piece of work, in a process of its own ---------------------------------------------------------------------
Tell = Callable[[Event], None]


def main() -> int:
    """Do what task.json in the folder says, tell events as JSON lines, leave result.json. Exit code 1: the last line
    is the error. The process ends when the one that started it does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(Path(sys.argv[1]), _told)
    except LuthierError as problem:
        _last_word(problem)
        return 1
    except (MemoryError, RuntimeError) as error:
        from luthier.train.room import out_of_memory

        if (words := out_of_memory(error)) is None:
            raise
        _last_word(TrainingError(f"not enough memory: {redaction.strike(words)}"))
        return 1
    return 0


def work(folder: Path, tell: Tell) -> None:
    """Do what task.json in the folder says and leave result.json; complete or not there."""
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    result = {"ask": ask, "choose": choose}[task["kind"]](folder, task, tell)
    disk.write_json(folder / RESULT, result | {"key": task["key"]})


def _end_with_parent() -> None:
    sys.stdin.read()  # ends when the other side is closed, by whatever death
    os._exit(1)


def _told(event: Event) -> None:
    print(json.dumps(runs.to_json(event), ensure_ascii=False), flush=True)


def _last_word(problem: LuthierError) -> None:
    print(json.dumps({"error": in_words(problem)}), flush=True)


# --- asking the bare base ------------------------------------------------------------------------------------------
def ask(folder: Path, task: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """The test rows answered by the bare base, behind up to `shots` examples of train; answers are kept as they come.

    Gives `tokens` of a mean row with its reference, `shots` that were shown, and `notes`.
    """
    from luthier import assessment, workbench
    from luthier.data import rows, tokens
    from luthier.data.prepare import load_dataset

    experiment, dataset = spec.load(folder / EXPERIMENT), load_dataset(task["dataset"])
    tell(_progress("loading the base"))
    tuned = workbench.bare(experiment.model, dataset.labels)
    rules = dataclasses.replace(workbench.rules_of(experiment, dataset, tuned.base), virtual_tokens=0)
    train = tokens.stored(dataset, "train", tuned.base.tokenizer, rules)
    exam = assessment.exam(experiment, dataset, tuned.base.tokenizer, rules, int(rows.trained(train.rows).max()))
    answerer, name = assessment.base_answerer(exam, tuned, dataset.stream("train"))
    shown, notes = Shown(exam.questions, rules, ()), list(exam.notes)
    if task["shots"]:
        shown, said = _shown(exam, dataset, tuned, (task["shots"], experiment.seed))
        answerer, name = _behind(shown, exam, tuned), f"base behind {len(shown.examples)} examples"
        notes = said
    answered = 0

    def heard(count: int) -> None:
        nonlocal answered
        answered += count
        tell(_progress(f"asking the {name}: {answered:,} of {len(exam.questions):,} answers"))

    if exam.split == "test":
        assessment.opened(exam, dataset, f"{experiment.name} {name}", len(exam.questions))
    assessment.answers(exam, {"base": answerer}, folder / ANSWERS, task["key"], heard)
    asked = [question.encoded for question in shown.questions]
    mean = float(rows.lengths(asked).mean()) if asked else 0.0
    return {"tokens": mean, "shots": len(shown.examples), "notes": notes}


@dataclass(frozen=True, slots=True)
class Shown:
    """Test rows as they are asked behind `examples`."""

    questions: Sequence[Question]
    rules: Rules
    examples: tuple[Example, ...]


def _shown(exam: Exam, dataset: Dataset, tuned: Tuned, wish: tuple[int, int]) -> tuple[Shown, list[str]]:
    """As many examples as fit before every test row, at most the wished count; with a note where they are fewer.

    Raises LeftOut where the rows have no answers to show, or not one example fits.
    """
    from luthier.data import shots

    count, seed = wish
    if not all(shots.can_show(question.example) for question in exam.questions):
        raise LeftOut("rows without question and answer cannot be shown as examples")
    chosen = shots.choose(dataset.stream("train"), count, seed)
    for fitting in range(len(chosen), 0, -1):
        if found := _laid_out(exam, tuned, chosen[:fitting]):
            notes = [f"few-shot: {fitting} examples instead of {count}: more do not fit before every test row"]
            return found, notes if fitting < count else []
    raise LeftOut("not one example fits before every test row in the base's positions")


def _laid_out(exam: Exam, tuned: Tuned, chosen: Sequence[Example]) -> Shown | None:
    """The test rows behind these examples; None if any of them has no room."""
    from luthier.data import encode, shots
    from luthier.errors import DataError
    from luthier.evaluation import ask as asking

    positions, sides = exam.rules.positions, 2 if exam.rules.family == "seq2seq" else 1
    most = None if positions is None else sides * positions
    rules = dataclasses.replace(shots.rules_with(exam.rules, chosen), max_seq_length=most, overlength="drop")
    tokenizer = tuned.base.tokenizer
    longest = max(exam.questions, key=lambda question: len(question.encoded.ids_L)).example
    if encode.encode(shots.behind(longest, chosen, exam.rules), tokenizer, rules) is None:
        return None  # told by one row, before all are encoded
    asked = [shots.behind(question.example, chosen, exam.rules) for question in exam.questions]
    try:
        questions, _ = asking.questions(asked, tokenizer, rules)
    except DataError:
        return None
    return Shown(questions, rules, tuple(chosen)) if len(questions) == len(asked) else None


def _behind(shown: Shown, exam: Exam, tuned: Tuned) -> Callable[[Sequence[Question]], Any]:
    """An answerer that asks each row behind the examples; what is kept of the row is the row alone."""
    from luthier.evaluation import ask as asking

    place = {question.example.id: question for question in shown.questions}
    answerer = asking.by_model(tuned, None, shown.rules, exam.how)
    return lambda questions: answerer([place[question.example.id] for question in questions])


# --- trying learning rates -----------------------------------------------------------------------------------------
def choose(folder: Path, task: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Validation loss after a short training at each of `rates`. The test rows are not read.

    Gives `losses` in the order of the rates (None: not finite; empty without validation rows), `steps`, `seconds`.
    Raises LeftOut where the method cannot fit into memory, DataError where the gate refuses the rows.
    """
    from luthier import hardware, workbench
    from luthier.data import gate
    from luthier.data.prepare import load_dataset

    experiment, dataset = spec.load(folder / EXPERIMENT), load_dataset(task["dataset"])
    tell(_progress("loading the base"))
    bench = workbench.lay(experiment, dataset)
    gate.refuse(bench.findings, experiment.data.accept)
    fit, there = workbench.fit(bench), hardware.machine().memory_bytes
    if fit.memory_bytes > there:
        need = f"about {fit.memory_bytes / 2**30:.1f} GiB, and this machine has {there / 2**30:.1f}"
        raise LeftOut(f"not enough memory: {experiment.method.type} needs {need}")
    steps = short(experiment.training, len(bench.train))
    rates: list[float] = task["rates"]
    if not len(bench.validation):
        return {"losses": [], "steps": 0, "seconds": 0.0}
    trainings = [_trial(fit.training, rate, steps) for rate in rates]
    began, losses = time.monotonic(), dict[int, float]()
    full, every = isinstance(experiment.method, spec.Full), list(range(len(rates)))
    laid: Bench | None = bench
    del bench  # full tuning changes the base's weights: each trial loads them anew, when the last one's are gone
    for numbers in [[number] for number in every] if full else [every]:
        for event in _until_judged(
            _trained(folder, laid or workbench.lay(experiment, dataset), {i: trainings[i] for i in numbers}, fit.budget)
        ):
            if isinstance(event, Evaluated):
                losses[int(event.run)] = loss = event.scores["loss"]
                said = f"{rates[int(event.run)]:g} has validation loss {loss:.4g}"
                tell(Noted("", event.step, time.time(), "learning rate", said))
            elif isinstance(event, Started | Stepped) and event.run == str(numbers[0]):  # one stands for all
                tell(event)
        laid = None
    told = [losses.get(number, math.inf) for number in every]
    return {
        "losses": [loss if math.isfinite(loss) else None for loss in told],
        "steps": steps,
        "seconds": time.monotonic() - began,
    }


def short(training: spec.Training, rows: int) -> int:
    """The updates of a trial: a share of the whole training's, never more.

    >>> short(spec.Training(batch_size=10, accumulate_steps=1, num_epochs=4), 500)
    40
    """
    batches = spec.batches_per_epoch(rows, training.batch_size)
    steps = training.max_steps or spec.steps_per_epoch(batches, training.accumulate_steps) * training.num_epochs
    return min(steps, max(LEAST_STEPS, round(SHARE * steps)))


def _trial(training: spec.Training, rate: float, steps: int) -> spec.Training:
    wishes = {"learning_rate": rate, "max_steps": steps, "evaluate_every": steps, "save_every": steps, "patience": None}
    return training.model_copy(update=wishes)


def _trained(
    folder: Path, bench: Bench, trainings: dict[int, spec.Training], budget: int
) -> Generator[Event, None, None]:
    """The events of trials that ride the same base, in a room that is empty before and gone afterwards; a trial is told
    by its number."""
    from luthier.models import methods
    from luthier.train.loop import Job, train

    seed, method = bench.experiment.seed, bench.experiment.method
    tuned = methods.attach(bench.base, [method] * len(trainings), [seed] * len(trainings))
    every = -(-len(bench.validation) // LOOKED_AT)
    judges = [bench.validation[i] for i in range(0, len(bench.validation), every)]
    room, jobs = folder / "trials", []
    shutil.rmtree(room, ignore_errors=True)
    for number, training in trainings.items():
        (room / str(number)).mkdir(parents=True)
        jobs.append(Job(str(number), training, seed, bench.train, judges, room / str(number)))
    try:
        yield from train(tuned, jobs, budget=budget)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _until_judged(events: Generator[Event, None, None]) -> Iterator[Event]:
    """The events up to the last judgement: nobody needs the weights, and those of a whole model fill a disk."""
    going = set()
    with contextlib.closing(events):
        for event in events:
            yield event
            if isinstance(event, Started):
                going.add(event.run)
            elif isinstance(event, Evaluated | Finished):
                going.discard(event.run)
                if not going:
                    return


def _progress(message: str) -> Noted:
    return Noted("", 0, time.time(), "progress", message)


if __name__ == "__main__":
    sys.exit(main())
