"""Files → Dataset: read, recognise, drop twins, split by content, find leaks, guess the task, describe.

Two passes with flat memory: the first writes every example to a spool and keeps a few numbers of each, all decisions
are taken on these, the second writes the splits. Lives here: everything that decides which row stands in which split.
Does not live here: the spool (`spool.py`), how twins are found (`leaks.py`, `twins.py`), tokens (`encode.py`), the
folder's form (`dataset.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data import cleaning, formats, leaks, sources
from luthier.data.cleaning import Cleaner
from luthier.data.dataset import SPLITS, Dataset, Record, amend, label_of, load_dataset, write
from luthier.data.examples import EmptyAnswer, answer_text
from luthier.data.sorting import OUT, Sorting, clean, draw, settle
from luthier.data.spool import KINDS, MAX_CLASS_LENGTH, NO_CLASS, Spool
from luthier.data.survey import survey
from luthier.data.templates import placeholders
from luthier.errors import DataError, did_you_mean
from luthier.spec import Data

__all__ = ["Dataset", "guess_task", "load_dataset", "prepare"]

SHARE = 0.1
"""Of the rows of `train`: how many validation and test get when the experiment says nothing."""
MAX_CLASSES, MIN_ROWS_A_CLASS = 200, 4
STALE = 86_400  # seconds after which what a killed process left in `home/data` is taken away


def prepare(data: Data, home: Path, seed: int = 0, task: str | None = None) -> Dataset:
    """Read everything `data` names and write the Dataset folder `home/data/<fingerprint>`.

    The side of a row follows from its content alone (the question without the answer, or its group), never from the
    seed, the order or the other rows; a row of validation or test that has a twin in train can only be left out.
    `seed` only draws `data.limit`. About 50 bytes a row are kept in memory. Raises DataError with file:line, NotFound.
    """
    with _room(Path(home) / "data") as room:
        given, origins = _sources(data, room)
        shares = {split: 0.0 if split in given else _share(wish) for split, wish in _wishes(data)}
        spool = Spool(room / "spool", data, shares, every_answer=task == "classification")
        cleaner = Cleaner(data.clean, data.columns, data.group_by)
        read = {split: _read(source, split, data, (spool, cleaner)) for split, source in given.items()}
        format_name, columns = _one_format(read)
        known = spool.facts()
        sorting = Sorting(data, frozenset(given), spool, known, known.sides.copy())
        one_kind = _one_kind(sorting, format_name)
        summary: dict[str, Any] = {"rows": {split: rows for split, (_, _, rows) in read.items()}}
        found, compared = clean(sorting)
        summary |= found | settle(sorting, compared)
        summary["cleaning"] = {name: tally.told() for name, tally in cleaner.tallies.items()}
        del compared
        task = task or ("translation" if formats.translates(data) else _task(sorting, one_kind))
        labels = _label(sorting) if task == "classification" else ()
        draw(sorting, seed)
        if not len(sorting.rows("train")):
            hint = "with few rows, data.validation: 0 and data.test: 0 keep them all in train"
            raise DataError("no row is left to train on", sources.name_of(data.train), hint)
        summary |= _described(sorting, labels) | {"unused_columns": _unused(columns, format_name, data)}
        summary["notes"] = sorting.notes + _notes(summary, sorting, format_name) + cleaning.notes(cleaner.tallies)
        summary["notes"] += [_mark_note(name) for source in given.values() for name in sources.marked_files(source)]
        splits = {split: _records(sorting, split, one_kind, bool(labels)) for split in SPLITS}
        told = {"splits": origins, "summary": summary}
        files = room / "files"
        files.mkdir()
        facts = {"task": task, "format": format_name, "labels": labels}
        dataset = write(Path(home), files, splits, facts, told)
        return amend(dataset, remarks=[dataclasses.asdict(remark) for remark in survey(dataset, data)])


def prepare_beside(file: str | None, like: Data, home: Path) -> Dataset | None:
    """All rows of `file`, which need not be like the others: read as `like` wishes if they can be, else by themselves.

    None without a file. Raises DataError, NotFound.
    """
    if file is None:
        return None
    whole: dict[str, Any] = {"train": file, "validation": 0.0, "test": 0.0, "clean": ()}
    if like.columns or like.format:
        with contextlib.suppress(DataError):
            return prepare(like.model_copy(update=whole | {"limit": None, "group_by": None, "labels": None}), home)
    return prepare(Data(**whole, encoding=like.encoding), home)


@contextlib.contextmanager
def _room(folder: Path) -> Iterator[Path]:
    """A folder to work in beside the finished ones; those that killed processes left are taken away a day later."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".prepare.tmp-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left, ignore_errors=True)
    room = folder / f".prepare.tmp-{secrets.token_hex(4)}"
    room.mkdir()
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


# -- reading -----------------------------------------------------------------------------------------------------------


def _wishes(data: Data) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("validation", data.validation), ("test", data.test)


def _sources(data: Data, room: Path) -> tuple[dict[str, sources.Source], dict[str, str]]:
    """Split → source for the splits that have one, and for every split in words where it comes from."""
    given: dict[str, sources.Source] = {"train": _readable_twice(data.train, room / "train")}
    origins = {"train": sources.name_of(data.train)}
    for split, wish in _wishes(data):
        own = sources.own_split(data.train, split) if wish is None else wish
        if own is None or isinstance(own, float):
            origins[split] = f"{_share(wish):.0%} of {origins['train']}, by content"
        else:
            given[split] = _readable_twice(own, room / split)
            origins[split] = sources.name_of(own)
    return given, origins


def _share(wish: Any) -> float:
    return wish if isinstance(wish, float) else SHARE


@dataclass(frozen=True, slots=True)
class _Kept:
    """The rows of an iterator, which gives them only once."""

    path: Path

    def __iter__(self) -> Iterator[Any]:
        with self.path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _readable_twice(source: sources.Source, place: Path) -> sources.Source:
    if not isinstance(source, Iterator):
        return source
    with place.open("w", encoding="utf-8") as file:
        for row, _, _ in sources.rows(source):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return _Kept(place)


def _read(source: sources.Source, split: str, data: Data, into: tuple[Spool, Cleaner]) -> tuple[str, list[str], int]:
    """Format, columns and number of rows of one source, its examples cleaned and spooled. All bad rows are counted, the
    first is shown. The columns are known only at the end, so the rows are read twice."""
    name, rows = sources.name_of(source) if not isinstance(source, _Kept) else "rows", 0
    columns = formats.columns_of(row for row, _, _ in sources.rows(source, data.encoding))
    (spool, cleaner), errors, first = into, 0, None
    for row, file, line in sources.rows(source, data.encoding):
        rows, where = rows + 1, f"{file}:{line}"
        if rows == 1:
            format_name = formats.detect(columns, name, data)
        try:
            example = formats.to_example(cleaner.row(row, where), format_name, data, file, line)
        except DataError as error:
            if error.where != where:
                raise
            if not (isinstance(error, EmptyAnswer) and cleaner.drops(error)):
                errors, first = errors + 1, first or error
            continue
        if cleaner.keeps(example) and first is None:
            spool.add(example, split)
    if not rows:
        raise DataError("no rows", name, "it is empty, or holds a header alone")
    if first is not None:
        more = f" (and {errors - 1:,} more rows cannot be used)" if errors > 1 else ""
        raise DataError(first.message + more, first.where, first.hint)
    return format_name, columns, rows


def _one_format(read: Mapping[str, tuple[str, list[str], int]]) -> tuple[str, list[str]]:
    format_name, columns, _ = read["train"]
    for split, (other, _, _) in read.items():
        if other != format_name:
            message = f"train is `{format_name}`, but {split} is `{other}`"
            raise DataError(message, hint="give all files the same columns, or force data.format")
    return format_name, columns


def _one_kind(sorting: Sorting, format_name: str) -> bytes | None:
    """All rows are chats or none is: Alpaca rows without history join those that have one; other mixes are refused."""
    kinds, first = np.unique(sorting.facts.kinds, return_index=True)
    if len(kinds) < 2:
        return None
    if format_name != "alpaca":
        where = dict(zip((KINDS[kind] for kind in kinds), sorting.where(first), strict=True))
        place = f"{where['pair']} and {where['chat']}"
        raise DataError("some rows are lists of messages, others plain text", place, "write all one way")
    return b"chat"


# -- task, labels, words -----------------------------------------------------------------------------------------------


def guess_task(kinds: Collection[str], answers: Collection[str] | None, rows: int) -> str:
    """classification for labels and for few short answers that repeat; chat for chats; generation otherwise.

    `answers`: the different ones, without spaces at the ends; None if some are long or they are too many to know.
    """
    if set(kinds) == {"label"}:
        return "classification"
    if "chat" in kinds:
        return "chat"
    if set(kinds) != {"pair"} or answers is None:
        return "generation"
    few = 2 <= len(answers) <= min(MAX_CLASSES, rows // MIN_ROWS_A_CLASS)
    short = all(len(answer) <= MAX_CLASS_LENGTH and "\n" not in answer for answer in answers)
    return "classification" if few and short else "generation"


def _task(sorting: Sorting, one_kind: bytes | None) -> str:
    facts, rows = sorting.facts, sorting.rows("train")
    kinds = {KINDS[kind] for kind in np.unique(facts.kinds[rows])}
    classes = np.unique(facts.classes[rows])
    names = list(sorting.spool.answers)
    answers = None if NO_CLASS in classes else [names[number] for number in classes]
    return guess_task({"chat"} if one_kind and kinds else kinds, answers, len(rows))


def _label(sorting: Sorting) -> tuple[str, ...]:
    """The class names: those of `data.labels`, or the sorted ones of `train`.

    A split that was cut from `train` may hold a rare class that train lost; a given file may not bring a new one.
    """
    facts, answers = sorting.facts, sorting.spool.answers
    ordered = {split: sorting.rows(split) for split in SPLITS}
    for rows in ordered.values():
        plain = rows[facts.kinds[rows] == KINDS.index("text")]
        if len(plain):
            where = sorting.where(plain, 1)[0]
            raise DataError("plain text has no class to learn", where, "data.columns: {label: COLUMN}")
    unknown = (facts.classes == NO_CLASS) & (sorting.places != OUT)  # long answers of other splits than train
    for row, example in zip(np.flatnonzero(unknown), sorting.spool.examples(unknown), strict=True):
        facts.classes[row] = answers.setdefault(answer_text(example).strip(), len(answers))
    told = list(answers)
    own = [facts.classes[rows] for split, rows in ordered.items() if split == "train" or split not in sorting.given]
    names = formats.class_names(sorting.data.labels) or tuple(
        sorted(told[number] for number in np.unique(np.concatenate(own)))
    )
    known = np.isin(np.arange(len(told)), [answers[name] for name in names if name in answers])
    for rows in ordered.values():
        strange = rows[~known[facts.classes[rows]]]
        if len(strange):
            label = told[facts.classes[strange[0]]]
            hint = did_you_mean(label, names) or "list it in data.labels if it is meant"
            message = f"`{label}` is not among the {len(names)} classes"
            raise DataError(message, sorting.where(strange, 1)[0], hint)
    if len(names) < 2:
        raise DataError("all rows have the same class", sources.name_of(sorting.data.train), "is this classification?")
    return names


def _records(sorting: Sorting, split: str, one_kind: bytes | None, labelled: bool) -> tuple[int, Iterator[Record]]:
    """How many rows a split has, and these rows, ready to be written."""
    chosen = sorting.places == SPLITS.index(split)
    records = sorting.spool.records(chosen)
    if one_kind:
        records = (record._replace(kind=one_kind) for record in records)
    if labelled:
        pieces = [label_of(name) for name in sorting.spool.answers]
        classes = sorting.facts.classes[chosen]
        records = (record._replace(label=pieces[number]) for record, number in zip(records, classes, strict=True))
    return int(chosen.sum()), records


def _described(sorting: Sorting, labels: Sequence[str]) -> dict[str, Any]:
    """What is counted in the finished splits."""
    facts, train = sorting.facts, sorting.rows("train")
    questions = leaks.several_answers(facts, np.flatnonzero(sorting.places != OUT))
    trained = facts.questions[train]
    told: dict[str, Any] = {
        "conflicts": len(questions),
        "asked_in_train": {
            split: int(np.isin(facts.questions[sorting.rows(split)], trained).sum()) for split in SPLITS[1:]
        },
        "characters": {
            name: {"median": int(np.median(sizes[train])), "max": int(sizes[train].max())}
            for name, sizes in (("question", facts.asked), ("answer", facts.answered))
        },
    }
    if labels:
        counts = np.bincount(facts.classes[train], minlength=len(sorting.spool.answers))
        numbers = sorting.spool.answers
        told["label_counts"] = {name: int(counts[numbers[name]]) if name in numbers else 0 for name in labels}
    return told


def _unused(columns: Sequence[str], format_name: str, data: Data) -> list[str]:
    known = formats.FORMATS[format_name]
    used = known.required | known.others | set(placeholders(data.template)) | set(data.columns.values())
    if format_name == "input_output" and not {"input", "output"} <= set(columns):
        used |= {*formats.QUESTIONS, *formats.ANSWERS}
    return [name for name in columns if name not in used | {data.group_by}]


def _mark_note(file: str) -> str:
    return f"{file} begins with a byte order mark, which is left out"


def _notes(summary: Mapping[str, Any], sorting: Sorting, format_name: str) -> list[str]:
    """What a person should know of the finished splits."""
    data, train, count = sorting.data, sorting.rows("train"), summary["conflicts"]
    notes, first = [], "; ".join(summary["repeats"]["contradictions"]["first"][:2])
    if count:
        more = f" [{first}]; `data.clean: [contradictions]` drops all their rows" if first else ""
        notes.append(f"{count:,} {'question has' if count == 1 else 'questions have'} more than one answer{more}")
    notes += [
        f"{count:,} {'row' if count == 1 else 'rows'} of {split} with a question of train, but another answer"
        for split, count in summary["asked_in_train"].items()
        if count
    ]
    notes += [
        f"{split} is empty: {len(train):,} {'row is' if len(train) == 1 else 'rows are'} too few to share"
        for split, wish in _wishes(data)
        if not len(sorting.rows(split)) and (wish is None or wish != 0)
    ]
    lost = [label for label, count in summary.get("label_counts", {}).items() if not count]
    if lost:
        notes.append(f"no row of train has the class {', '.join(lost[:5])}")
    if data.template and KINDS[sorting.facts.kinds[train[0]]] in ("chat", "text"):
        notes.append(f"data.template has no effect on rows of the format {format_name}")
    return notes
