"""The Dataset folder: `dataset.json` and one file of examples per split, complete or invisible.

Lives here: writing it, reading it, its fingerprint. Does not live here: how its rows were chosen (`prepare.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import disk
from luthier.data.examples import Example, Message
from luthier.errors import DataError, NotFound

SPLITS = ("train", "validation", "test")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Dataset:
    """Prepared data: the folder, its fingerprint (a hash of the content, the same on every machine), and what it holds.

    `counts`: rows per split. `splits`: where each split comes from, in words. `summary`: what was read, dropped and
    noticed (JSON-like; `summary["notes"]` are sentences for a person). `labels`: class names in the order of their
    indices, empty unless the task is classification.
    """

    path: Path
    fingerprint: str
    counts: dict[str, int]
    splits: dict[str, str]
    summary: dict[str, Any]
    task: str
    format: str
    labels: tuple[str, ...]

    def examples(self, split: str) -> list[Example]:
        """The examples of `split` ("train", "validation", "test"), in their order."""
        return list(self.stream(split))

    def stream(self, split: str) -> Iterator[Example]:
        """The same, one after another; nothing is read before the first is asked for."""
        if split not in self.counts:
            raise NotFound(f"no split `{split}` in {self.path}", hint=f"one of {', '.join(self.counts)}")
        found = 0
        with (self.path / f"{split}.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                yield _example(json.loads(line))
                found += 1
        if found != self.counts[split]:
            message = f"{found} rows where {self.counts[split]} were written"
            raise DataError(message, str(self.path / f"{split}.jsonl"), "prepare the data again")


def load_dataset(path: str | Path) -> Dataset:
    """The Dataset of a folder that `write` made."""
    folder = Path(path)
    try:
        told = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"no prepared data set in {folder}", hint="prepare the data first") from None
    except ValueError:
        raise DataError("damaged", str(folder / "dataset.json"), "delete the folder and prepare again") from None
    if told.pop("version") != _VERSION:
        raise DataError("written by another version of luthier", str(folder), "prepare the data again")
    return Dataset(path=folder, **told | {"labels": tuple(told["labels"])})


def write(
    home: Path, splits: Mapping[str, Sequence[Example]], facts: Mapping[str, Any], told: Mapping[str, Any]
) -> Dataset:
    """Write the folder `home/data/<fingerprint>` and give its Dataset.

    `facts` (task, format, labels) count as content, `told` (splits, summary) does not, nor do files and lines: the same
    rows from another path are the same data set, whose folder then names the newer path. Idempotent.
    """
    files, digest = {}, hashlib.sha256(_dumps(facts).encode())
    for split, examples in splits.items():
        records = [(_dumps(_record(example)), example) for example in examples]
        digest.update(f"\n{split} {len(records)}\n".encode())
        for record, _ in records:
            digest.update(record.encode())
        files[f"{split}.jsonl"] = _placed(records)
    fingerprint = digest.hexdigest()[:16]
    counts = {split: len(examples) for split, examples in splits.items()}
    head = {"version": _VERSION, "fingerprint": fingerprint, "counts": counts, **told, **facts}
    files["dataset.json"] = json.dumps(head, ensure_ascii=False, indent=1) + "\n"
    target = home / "data" / fingerprint
    if not (target / "dataset.json").is_file():
        _write_folder(target, files)
    else:
        _refresh(target, files)
    return load_dataset(target)


def _write_folder(target: Path, files: Mapping[str, str]) -> None:
    try:
        with disk.whole_folder(target) as room:
            for name, text in files.items():
                (room / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError:
        if not (target / "dataset.json").is_file():  # otherwise another process wrote the same content meanwhile
            raise


def _refresh(target: Path, files: Mapping[str, str]) -> None:
    """The same content from another place: replace the files that tell places, each in one step."""
    for name, text in files.items():
        place = target / name
        if not place.is_file() or place.read_text(encoding="utf-8") != text:
            disk.write_whole(place, text)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _placed(records: Iterable[tuple[str, Example]]) -> str:
    lines = (f'{text[:-1]},"file":{_dumps(example.file)},"line":{example.line}}}\n' for text, example in records)
    return "".join(lines)


def _record(example: Example) -> dict[str, Any]:
    """What an example is, without where it stood; empty fields are left out."""
    messages = [
        {"role": m.role, "content": m.content}
        | ({} if m.train is None else {"train": m.train})
        | ({"extra": m.extra} if m.extra else {})
        for m in example.messages
    ]
    rest = {"messages": messages, "text": example.text, "label": example.label, "exact": example.exact}
    kept = {name: value for name, value in rest.items() if value}
    return {"id": example.id, "kind": example.kind, **kept, "columns": example.columns}


def _example(record: dict[str, Any]) -> Example:
    messages = tuple(Message(**message) for message in record.pop("messages", []))
    return Example(messages=messages, **record)
