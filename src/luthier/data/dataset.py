"""The Dataset folder: `dataset.json` and one file of examples per split, complete or invisible.

Lives here: writing it, reading it, its fingerprint. Does not live here: how its rows were chosen (`prepare.py`).
"""

from __future__ import annotations

import filecmp
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
        """The same one by one, for data sets that do not fit in memory."""
        if split not in self.counts:
            raise NotFound(f"no split `{split}` in {self.path}", hint=f"one of {', '.join(self.counts)}")
        path, found = self.path / f"{split}.jsonl", 0
        with path.open("rb") as lines:
            for line in lines:
                yield example_of(line)
                found += 1
        if found != self.counts[split]:
            message = f"{found} rows where {self.counts[split]} were written"
            raise DataError(message, str(path), "prepare the data again")


def shortly(dataset: Dataset) -> Callable[[str], str]:
    """What a person reads of a text that names rows: `file:line` without the folder in which all the files lie.

    `luthier look --row` takes such a name too.
    """
    given = [origin for split, origin in dataset.splits.items() if split in dataset.summary["rows"]]
    folder, *others = {origin.rpartition("/")[0] for origin in given}
    return (lambda text: text) if others or not folder else (lambda text: text.replace(f"{folder}/", ""))


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


class Record(NamedTuple):
    """An example as JSON, in pieces: what it is without where it stood, and `place`, which ends the line."""

    id: bytes
    kind: bytes
    body: bytes
    label: bytes
    rest: bytes
    place: bytes

    def content(self) -> bytes:
        """All but the place, as one object: what the fingerprint is made of."""
        return b'{"id":"%b","kind":"%b"%b%b%b}' % self[:5]


def write(
    home: Path,
    room: Path,
    splits: Mapping[str, tuple[int, Iterable[Record]]],
    facts: Mapping[str, Any],
    told: Mapping[str, Any],
) -> Dataset:
    """Write the folder `home/data/<fingerprint>` and give its Dataset. `splits`: how many rows, and the rows.

    `facts` (task, format, labels) count as content, `told` (splits, summary) does not, nor do files and lines: the same
    rows from another path are the same data set, whose folder then names the newer path. Idempotent. `room` is an
    empty folder beside the place, on the same disk.
    """
    digest, counts = hashlib.sha256(_dumps(facts).encode()), {split: count for split, (count, _) in splits.items()}
    for split, (count, records) in splits.items():
        digest.update(f"\n{split} {count}\n".encode())
        with (room / f"{split}.jsonl").open("wb") as file:
            for record in records:
                content = record.content()
                digest.update(content)
                file.write(content[:-1] + record.place)
    fingerprint = digest.hexdigest()[:16]
    head = {"version": _VERSION, "fingerprint": fingerprint, "counts": counts, **told, **facts}
    text = json.dumps(head, ensure_ascii=False, indent=1) + "\n"
    (room / "dataset.json").write_text(text, encoding="utf-8", newline="\n")
    target = home / "data" / fingerprint
    if not (target / "dataset.json").is_file():
        _place_folder(target, room)
    else:
        _refresh(target, room)
    return load_dataset(target)


def amend(dataset: Dataset, **more: Any) -> Dataset:
    """The same data set with more in its summary: what can be told only once the folder stands."""
    place = dataset.path / "dataset.json"
    head = json.loads(place.read_text(encoding="utf-8"))
    head["summary"] |= more
    disk.write_whole(place, json.dumps(head, ensure_ascii=False, indent=1) + "\n")
    return load_dataset(dataset.path)


def _place_folder(target: Path, room: Path) -> None:
    try:
        with disk.whole_folder(target) as place:
            for path in room.iterdir():
                path.replace(place / path.name)
    except OSError:
        if not (target / "dataset.json").is_file():  # otherwise another process wrote the same content meanwhile
            raise


def _refresh(target: Path, room: Path) -> None:
    """The same content from another place: replace the files that tell places, each in one step."""
    for path in room.iterdir():
        place = target / path.name
        if not place.is_file() or not filecmp.cmp(path, place, shallow=False):
            disk.sync(path)
            path.replace(place)
    disk.sync(target)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def record_of(example: Example) -> Record:
    """An example's JSON; empty fields are left out. No piece holds a tab or the end of a line, but for the last."""
    messages = [
        {"role": m.role, "content": m.content}
        | ({} if m.train is None else {"train": m.train})
        | ({"extra": m.extra} if m.extra else {})
        for m in example.messages
    ]
    body = f',"messages":{_dumps(messages)}' if messages else ""
    body += f',"text":{_dumps(example.text)}' if example.text else ""
    rest = (',"exact":true' if example.exact else "") + f',"columns":{_dumps(example.columns)}'
    place = f',"file":{_dumps(example.file)},"line":{example.line}}}\n'
    label = label_of(example.label or "")
    return Record(example.id.encode(), example.kind.encode(), body.encode(), label, rest.encode(), place.encode())


def label_of(name: str) -> bytes:
    """The piece of a record that tells its label."""
    return f',"label":{_dumps(name)}'.encode() if name else b""


def example_of(line: bytes | str) -> Example:
    """The example of one line of a split's file."""
    record = json.loads(line)
    messages = tuple(Message(**message) for message in record.pop("messages", []))
    return Example(messages=messages, **record)
