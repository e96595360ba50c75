"""Files → Dataset: read, recognise, drop twins, split by content, find leaks, guess the task, describe.

Lives here: everything that decides which row stands in which split. Does not live here: tokens (`encode.py`), the
folder's form (`dataset.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier import disk
from luthier.data import formats, sources
from luthier.data.dataset import SPLITS, Dataset, load_dataset, write
from luthier.data.examples import Example, answer_text, content_id
from luthier.data.survey import survey
from luthier.data.templates import as_text, placeholders
from luthier.errors import DataError, did_you_mean
from luthier.spec import Data

__all__ = ["Dataset", "guess_task", "load_dataset", "prepare", "side"]

SHARE = 0.1
"""Of the rows of `train`: how many validation and test get when the experiment says nothing."""
MAX_CLASSES, MAX_CLASS_LENGTH, MIN_ROWS_A_CLASS = 200, 60, 4

Splits = dict[str, list[Example]]


def prepare(data: Data, home: Path, seed: int = 0, task: str | None = None) -> Dataset:
    """Read everything `data` names and write the Dataset folder `home/data/<fingerprint>`.

    The split of a row follows from its content alone (the question without the answer, or its group), never from the
    seed, the order or the other rows. `seed` only draws `data.limit`. Raises DataError with file:line, NotFound.
    """
    given, origins = _sources(data)
    read = {split: _read(source, data) for split, source in given.items()}
    format_name, columns = _one_format(read)
    splits: Splits = {split: examples for split, (_, examples, _) in read.items()}
    rows = {split: len(examples) for split, examples in splits.items()}
    _one_kind(splits, format_name)
    twins = _drop_twins(splits) if "duplicates" in data.clean else {}
    splits = _divide(splits, data)
    leaks = _drop_leaks(splits, data)
    task = task or ("translation" if formats.translates(data) else guess_task(splits["train"]))
    labels = _label(splits, data, set(given)) if task == "classification" else ()
    splits["train"] = _drawn(splits["train"], data.limit, seed)
    if not splits["train"]:
        hint = "with few rows, data.validation: 0 and data.test: 0 keep them all in train"
        raise DataError("no row is left to train on", sources.name_of(data.train), hint)
    summary: dict[str, Any] = {
        "rows": rows,
        "duplicates": {split: len(found) for split, found in twins.items()},
        "duplicate_rows": [where for found in twins.values() for where in found[:20]],
        "leaks": len(leaks),
        "leaked_rows": leaks[:20],
        "conflicts": _conflicts(splits, data),
        "asked_in_train": _asked_in_train(splits, data),
        "characters": _characters(splits["train"]),
        "unused_columns": _unused(columns, format_name, data),
    }
    if labels:
        counts = Counter(example.label for example in splits["train"])
        summary["label_counts"] = {label: counts[label] for label in labels}
    summary["notes"] = _notes(summary, splits, data, format_name)
    facts = {"task": task, "format": format_name, "labels": labels}
    return _surveyed(write(Path(home), splits, facts, {"splits": origins, "summary": summary}), data)


def _surveyed(dataset: Dataset, data: Data) -> Dataset:
    """The data set with the survey's remarks in its summary, written down."""
    told = json.loads((dataset.path / "dataset.json").read_text(encoding="utf-8"))
    told["summary"]["remarks"] = [dataclasses.asdict(remark) for remark in survey(dataset, data)]
    disk.write_whole(dataset.path / "dataset.json", json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    return load_dataset(dataset.path)


# -- reading -----------------------------------------------------------------------------------------------------------


def _sources(data: Data) -> tuple[dict[str, sources.Source], dict[str, str]]:
    """Split → source for the splits that have one, and for every split in words where it comes from."""
    given: dict[str, sources.Source] = {"train": data.train}
    origins = {"train": sources.name_of(data.train)}
    for split, wish in (("validation", data.validation), ("test", data.test)):
        own = sources.own_split(data.train, split) if wish is None else wish
        if own is None or isinstance(own, float):
            origins[split] = f"{_share(wish):.0%} of {origins['train']}, by content"
        else:
            given[split] = own
            origins[split] = sources.name_of(own)
    return given, origins


def _share(wish: Any) -> float:
    return wish if isinstance(wish, float) else SHARE


def _read(source: sources.Source, data: Data) -> tuple[str, list[Example], list[str]]:
    """Format, examples and columns of one source. All bad rows are counted, the first is shown."""
    rows = list(sources.rows(source))
    name = sources.name_of(source)
    if not rows:
        raise DataError("no rows", name, "it is empty, or holds a header alone")
    columns = formats.columns_of(row for row, _, _ in rows)
    format_name = formats.detect(columns, name, data)
    examples, errors = [], []
    for row, file, line in rows:
        try:
            examples.append(formats.to_example(row, format_name, data, file, line))
        except DataError as error:
            if error.where != f"{file}:{line}":
                raise
            errors.append(error)
    if errors:
        more = f" (and {len(errors) - 1:,} more rows cannot be used)" if len(errors) > 1 else ""
        raise DataError(errors[0].message + more, errors[0].where, errors[0].hint)
    return format_name, examples, columns


def _one_format(read: Mapping[str, tuple[str, list[Example], list[str]]]) -> tuple[str, list[str]]:
    format_name, _, columns = read["train"]
    for split, (other, _, _) in read.items():
        if other != format_name:
            message = f"train is `{format_name}`, but {split} is `{other}`"
            raise DataError(message, hint="give all files the same columns, or force data.format")
    return format_name, columns


def _one_kind(splits: Splits, format_name: str) -> None:
    """All rows are chats or none is: Alpaca rows without history join those that have one; other mixes are refused."""
    first = {example.kind: example for examples in splits.values() for example in reversed(examples)}
    if len(first) < 2:
        return
    if format_name != "alpaca":
        chat, pair = first["chat"].where, first["pair"].where
        raise DataError("some rows are lists of messages, others plain text", f"{pair} and {chat}", "write all one way")
    for split, examples in splits.items():
        splits[split] = [dataclasses.replace(example, kind="chat") for example in examples]


# -- twins, sides, leaks -----------------------------------------------------------------------------------------------


def _drop_twins(splits: Splits) -> dict[str, list[str]]:
    """Keep the first row of each content in every split; gives where the others stood."""
    twins = {}
    for split, examples in splits.items():
        kept: dict[str, Example] = {}
        twins[split] = [one.where for one in examples if kept.setdefault(one.id, one) is not one]
        splits[split] = list(kept.values())
    return twins


def question_id(example: Example, template: str | None = None) -> str:
    """A name for all of the content but the answer: the same question asked twice has the same name."""
    beside = {name: example.columns.get(name) for name in placeholders(template) if name not in ("input", "text")}
    if example.kind in ("text", "label"):
        return content_id({"text": example.text} | beside)
    told = [{"role": m.role, "content": m.content} | m.extra for m in example.messages]
    last = max((i for i, turn in enumerate(told) if turn["role"] == "assistant"), default=len(told))
    return content_id({"messages": told[:last]} | beside)


def side(key: str, validation: float, test: float) -> str:
    """The split of the row named `key`: a function of its name and the two shares alone.

    >>> [side("a", 0.0, 0.0), side("a", 0.0, 0.99)]
    ['train', 'test']
    """
    place = int.from_bytes(hashlib.sha256(f"luthier split {key}".encode()).digest()[:8]) / 2**64
    return "test" if place < test else "validation" if place < test + validation else "train"


def _group(example: Example, data: Data) -> str | None:
    if data.group_by is None:
        return None
    value = example.columns.get(data.group_by)
    if value is None:
        hint = did_you_mean(data.group_by, example.columns)
        raise DataError(f"`data.group_by` names `{data.group_by}`, which this row lacks", example.where, hint)
    return content_id({"group": as_text(value)})


def _divide(splits: Splits, data: Data) -> Splits:
    """Send the rows of `train` to the splits that have no source of their own."""
    shares = {
        split: 0.0 if split in splits else _share(wish)
        for split, wish in (("validation", data.validation), ("test", data.test))
    }
    divided: Splits = {split: list(splits.get(split, [])) for split in SPLITS}
    divided["train"] = []
    for example in splits["train"]:
        key = _group(example, data) or question_id(example, data.template)
        divided[side(key, shares["validation"], shares["test"])].append(example)
    return divided


def _drop_leaks(splits: Splits, data: Data) -> list[str]:
    """Refuse rows (and groups) that stand in two splits; with `remove_leaks` take them out of the earlier one."""
    removed = []
    for early, late in (("train", "test"), ("validation", "test"), ("train", "validation")):
        seen = {key: example for example in splits[late] for key in (example.id, _group(example, data)) if key}
        pairs = [
            (example, seen.get(example.id) or seen.get(_group(example, data) or ""))
            for example in splits[early]
            if example.id in seen or _group(example, data) in seen
        ]
        if pairs and not data.remove_leaks:
            shown = "; ".join(f"{one.where} = {other.where}" for one, other in pairs[:3] if other)
            message = f"{len(pairs):,} rows of {early} also stand in {late}"
            raise DataError(message, shown, f"data.remove_leaks: true takes them out of {early}")
        gone = {id(example) for example, _ in pairs}
        splits[early] = [example for example in splits[early] if id(example) not in gone]
        removed += [example.where for example, _ in pairs]
    return removed


def _drawn(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` rows in their order. A smaller limit draws a part of what a larger one draws."""
    if limit is None or limit >= len(examples):
        return examples
    order = sorted(range(len(examples)), key=lambda i: (content_id([seed, examples[i].id]), i))
    return [examples[i] for i in sorted(order[:limit])]


# -- task, labels, words -----------------------------------------------------------------------------------------------


def guess_task(examples: Sequence[Example]) -> str:
    """classification for labels and for few short answers that repeat; chat for chats; generation otherwise."""
    kinds = {example.kind for example in examples}
    if kinds == {"label"}:
        return "classification"
    if "chat" in kinds:
        return "chat"
    if kinds != {"pair"}:
        return "generation"
    answers = {answer_text(example).strip() for example in examples}
    few = 2 <= len(answers) <= min(MAX_CLASSES, len(examples) // MIN_ROWS_A_CLASS)
    short = all(len(answer) <= MAX_CLASS_LENGTH and "\n" not in answer for answer in answers)
    return "classification" if few and short else "generation"


def _label(splits: Splits, data: Data, given: set[str]) -> tuple[str, ...]:
    """Give every example its label; the class names are those of `data.labels`, or the sorted ones of `train`.

    A split that was cut from `train` may hold a rare class that train lost; a given file may not bring a new one.
    """
    for split, examples in splits.items():
        for example in examples:
            if example.kind == "text":
                raise DataError("plain text has no class to learn", example.where, "data.columns: {label: COLUMN}")
        splits[split] = [dataclasses.replace(example, label=answer_text(example).strip()) for example in examples]
    own = [
        example.label or "" for split in splits if split == "train" or split not in given for example in splits[split]
    ]
    names = formats.class_names(data.labels) or tuple(sorted(set(own)))
    for examples in splits.values():
        for example in examples:
            if example.label not in names:
                hint = did_you_mean(example.label or "", names) or "list it in data.labels if it is meant"
                raise DataError(f"`{example.label}` is not among the {len(names)} classes", example.where, hint)
    if len(names) < 2:
        raise DataError("all rows have the same class", sources.name_of(data.train), "is this classification?")
    return names


def _conflicts(splits: Splits, data: Data) -> int:
    """How many questions have more than one answer."""
    answers: dict[str, set[str]] = {}
    for examples in splits.values():
        for example in examples:
            if example.kind != "text":
                answers.setdefault(question_id(example, data.template), set()).add(example.id)
    return sum(len(found) > 1 for found in answers.values())


def _asked_in_train(splits: Splits, data: Data) -> dict[str, int]:
    """Rows of validation and test whose question train answers otherwise: given files may share them; no leak."""
    trained = {question_id(example, data.template) for example in splits["train"]}
    return {
        split: sum(question_id(example, data.template) in trained for example in splits[split])
        for split in SPLITS
        if split != "train"
    }


def _characters(examples: Iterable[Example]) -> dict[str, dict[str, int]]:
    """Median and greatest length in characters, of the question and of the answer."""
    sizes: dict[str, list[int]] = {"question": [], "answer": []}
    for example in examples:
        answer = len(answer_text(example))
        whole = len(example.text or "") + sum(len(m.content) for m in example.messages)
        sizes["question"].append(whole if example.kind in ("text", "label") else whole - answer)
        sizes["answer"].append(answer)
    return {name: {"median": int(statistics.median(found)), "max": max(found)} for name, found in sizes.items()}


def _unused(columns: Sequence[str], format_name: str, data: Data) -> list[str]:
    known = formats.FORMATS[format_name]
    used = known.required | known.others | set(placeholders(data.template)) | set(data.columns.values())
    if format_name == "input_output" and not {"input", "output"} <= set(columns):
        used |= {*formats.QUESTIONS, *formats.ANSWERS}
    return [name for name in columns if name not in used | {data.group_by}]


def _notes(summary: Mapping[str, Any], splits: Splits, data: Data, format_name: str) -> list[str]:
    twins = sum(summary["duplicates"].values())
    counted = (
        (twins, "row repeats another one and was dropped", "rows repeat another one and were dropped"),
        (
            summary["leaks"],
            "row also stood in a later split and was taken out",
            "rows also stood in a later split and were taken out",
        ),
        (summary["conflicts"], "question has more than one answer", "questions have more than one answer"),
    )
    notes = [f"{count:,} {one if count == 1 else many}" for count, one, many in counted if count]
    notes += [
        f"{count:,} {'row' if count == 1 else 'rows'} of {split} with a question of train, but another answer"
        for split, count in summary["asked_in_train"].items()
        if count
    ]
    notes += [
        f"{split} is empty: {len(splits['train']):,} rows are too few to share"
        for split, wish in (("validation", data.validation), ("test", data.test))
        if not splits[split] and (wish is None or wish != 0)
    ]
    lost = [label for label, count in summary.get("label_counts", {}).items() if not count]
    if lost:
        notes.append(f"no row of train has the class {', '.join(lost[:5])}")
    if data.template and splits["train"][0].kind in ("chat", "text"):
        notes.append(f"data.template has no effect on rows of the format {format_name}")
    return notes
