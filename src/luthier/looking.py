"""`luthier look`: the rows that were asked for, or the worst ones, as the model sees them.

Lives here: which rows. Does not live here: making tokens (`data/encode.py`), how they are shown (`data/seen.py`,
`cli/show.py`). Only `worst` encodes more rows than it shows.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from luthier import presets, workbench
from luthier.data import encode
from luthier.data.dataset import SPLITS, Dataset
from luthier.data.encode import Rules
from luthier.data.examples import Encoded, Example
from luthier.data.seen import Fate, Seen, pieces, special_ids
from luthier.errors import NotFound, SpecError, did_you_mean
from luthier.models import base
from luthier.models.base import Base

FIRST = 3
"""Rows shown where nobody says which, and of each kind of worst."""

_CHUNK = 512  # rows encoded at once
_FORMS = "say a number (17), a range (1-10), a split (test, or test:3), or a file and line (rows.jsonl:17)"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows by their number in a `split`, or by their line in a `file`, from `first` to `last` (None: to the end)."""

    split: str | None = None
    file: str | None = None
    first: int = 1
    last: int | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    split: str
    number: int
    example: Example


def chosen(word: str) -> Chosen:
    """The rows that a word means: `17`, `1-10`, `test`, `test:3`, `rows.jsonl:17`. Raises SpecError.

    >>> chosen("17"), chosen("test:3-5")
    (Chosen(split='train', file=None, first=17, last=17), Chosen(split='test', file=None, first=3, last=5))
    >>> chosen("folder/rows.jsonl:17").file
    'folder/rows.jsonl'
    """
    if word in SPLITS:
        return Chosen(split=word)
    found = re.fullmatch(r"(?:(?P<name>.+):)?(?P<first>\d+)(?:-(?P<last>\d+))?", word)
    if found is None:
        near = did_you_mean(word, SPLITS)
        raise SpecError(f"`{word}` names no row", "--row", f"{near} {_FORMS}" if near else _FORMS)
    first = int(found["first"])
    last = int(found["last"] or first)
    if not 1 <= first <= last:
        raise SpecError(f"`{word}` names no row: they are counted from 1 upwards", "--row", _FORMS)
    name = found["name"] or "train"
    return Chosen(split=name, first=first, last=last) if name in SPLITS else Chosen(None, name, first, last)


def look(resolved: presets.Resolved, dataset: Dataset, words: Sequence[str] = (), worst: bool = False) -> list[Seen]:
    """The rows that `words` name, each as `chosen` reads it (none: the first of train); with `worst` those among them
    (none: among all) that are longest, lose most to the length policy, are trained least.

    Raises SpecError, NotFound, or DataError where a row cannot become tokens.
    """
    wanted = [chosen(word) for word in words]
    loaded = base.load(resolved.experiment.model, resolved.experiment.method, dataset.labels, weights=False)
    rules = workbench.rules_of(resolved.experiment, dataset, loaded)
    if worst:
        among = wanted or [Chosen(split=split) for split in SPLITS if dataset.counts[split]]
        rows = itertools.chain.from_iterable(_rows(dataset, each) for each in among)
        return [_seen(row, loaded, rules, told) for row, told in _worst(rows, loaded, rules)]
    shown: list[_Row] = []
    for each in wanted or [Chosen(split="train")]:
        few = FIRST if each.last is None else None
        shown += itertools.islice(_rows(dataset, each), few)
    return [_seen(row, loaded, rules) for row in shown]


# --- which rows
def _rows(dataset: Dataset, wanted: Chosen) -> Iterator[_Row]:
    """The prepared rows that are meant, one after another. Raises NotFound where there is none."""
    if wanted.split is not None:
        count = dataset.counts[wanted.split]
        if wanted.first > count:
            other = ", ".join(f"{n:,} {split}" for split, n in dataset.counts.items() if n)
            raise NotFound(
                f"there is no row {wanted.first:,} of {wanted.split}", "--row", f"the prepared rows are: {other}"
            )
        numbered = enumerate(dataset.stream(wanted.split), 1)
        for number, example in itertools.islice(numbered, wanted.first - 1, wanted.last):
            yield _Row(wanted.split, number, example)
        return
    yield from _of_file(dataset, wanted)


def _of_file(dataset: Dataset, wanted: Chosen) -> Iterator[_Row]:
    """The rows that stand on these lines of a file, which its name or the end of its path names."""
    name, last = wanted.file or "", wanted.last or wanted.first
    files: set[str] = set()
    near: dict[bool, int] = {}  # the nearest line behind those that are wanted (True), and before them
    found = False
    for split in SPLITS:
        for number, example in enumerate(dataset.stream(split), 1):
            files.add(example.file)
            if example.file != name and not example.file.endswith("/" + name):
                continue
            if wanted.first <= example.line <= last:
                found = True
                yield _Row(split, number, example)
            else:
                behind = example.line > last
                near[behind] = (min if behind else max)(near.get(behind, example.line), example.line)
    if not found and near:
        hint = f"preparation left it out, or the file ends before; the nearest: {', '.join(map(str, near.values()))}"
        raise NotFound(f"no prepared row stands on line {wanted.first:,} of {name}", "--row", hint)
    if not found:
        known = ", ".join(sorted(files)[:5])
        raise NotFound(f"no row comes from `{name}`", "--row", f"the rows come from {known}. {_FORMS}")


# --- the worst
@dataclass(frozen=True, slots=True)
class _Weighed:
    """A row with its figures: tokens, how many of them are beyond the limit, how many the model sees, trained ones."""

    row: _Row
    tokens: int
    beyond: int
    seen: int
    trained: int


def _worst(rows: Iterator[_Row], loaded: Base, rules: Rules) -> list[tuple[_Row, tuple[str, ...]]]:
    """The worst of each kind with its figures in words, each row once. One pass, and only the worst are kept."""
    kinds = _kinds(rules)
    top: dict[str, list[_Weighed]] = {kind: [] for kind in kinds}
    while chunk := list(itertools.islice(rows, _CHUNK)):
        weighed: list[_Weighed] = []
        for split, part in itertools.groupby(chunk, key=lambda row: row.split):
            weighed += _weighed(list(part), loaded, _asked(rules, split))
        for kind, (counts, key, _) in kinds.items():
            top[kind] = heapq.nlargest(FIRST, [*top[kind], *filter(counts, weighed)], key=key)
    found: dict[tuple[str, int], tuple[_Row, list[str]]] = {}
    for kind, (_, _, says) in kinds.items():
        for each in top[kind]:
            _, told = found.setdefault((each.row.split, each.row.number), (each.row, []))
            told.append(f"{kind}: {says(each)}")
    return [(row, tuple(told)) for row, told in found.values()]


_Kind = tuple[Callable[[_Weighed], bool], Callable[[_Weighed], tuple[int, ...]], Callable[[_Weighed], str]]


def _kinds(rules: Rules) -> dict[str, _Kind]:
    """The ways in which a row can be the worst: whether it counts, what it is ordered by, its figure in words."""
    over = {"cut": "most cut", "drop": "too long, dropped", "error": "too long, refused"}[rules.overlength]
    kinds: dict[str, _Kind] = {
        "longest": (lambda _: True, lambda w: (w.tokens,), lambda w: f"{w.tokens:,} tokens"),
        over: (
            lambda w: w.beyond > 0,
            lambda w: (w.beyond,),
            lambda w: f"{w.beyond:,} tokens beyond the limit",
        ),
    }
    if rules.family != "encoder":
        kinds["least trained"] = (
            lambda w: rules.overlength == "cut" or not w.beyond,  # others are not trained at all
            lambda w: (-w.trained, w.seen),
            lambda w: f"{w.trained:,} of {w.seen:,} tokens",
        )
    return kinds


def _weighed(rows: Sequence[_Row], loaded: Base, rules: Rules) -> list[_Weighed]:
    whole = encode.encode_split([row.example for row in rows], loaded.tokenizer, _unlimited(rules)).rows
    found = []
    for row, encoded in zip(rows, whole, strict=True):
        keeps = _keeps(encoded, rules)
        trained = encoded.train_L[keeps] if rules.overlength == "cut" else encoded.train_L
        beyond = int((~keeps).sum())
        found.append(_Weighed(row, len(keeps), beyond, len(trained), int(trained.sum())))
    return found


def _asked(rules: Rules, split: str) -> Rules:
    """The rules of a split: a test row is asked for its last answer, whatever is trained."""
    return dataclasses.replace(rules, train_on="last") if split == "test" else rules


def _unlimited(rules: Rules) -> Rules:
    return dataclasses.replace(rules, max_seq_length=None, positions=None)


def _keeps(whole: Encoded, rules: Rules) -> np.ndarray:
    """Which tokens are within the limits, (L,): the first of the row, and of a seq2seq model's source and target."""
    keeps = np.ones(len(whole.ids_L), bool)
    if rules.sides is not None:
        source, target = rules.sides
        begin = whole.prompt_length
        keeps[min(source, begin) : begin] = False
        keeps[begin + target :] = False
    if rules.max_seq_length is not None:
        keeps &= np.cumsum(keeps) <= rules.max_seq_length
    return keeps


# --- a row
def _seen(row: _Row, loaded: Base, rules: Rules, worst: tuple[str, ...] = ()) -> Seen:
    rules = _asked(rules, row.split)
    whole = encode.encode(row.example, loaded.tokenizer, _unlimited(rules))
    assert whole is not None  # without a limit nothing is dropped
    shown, fate, remark = _under_policy(row.example, whole, loaded, rules)
    ids = shown.ids_L.tolist()
    special = special_ids(loaded.tokenizer)
    return Seen(
        split=row.split,
        number=row.number,
        where=row.example.where,
        ids=tuple(ids),
        pieces=pieces(loaded.tokenizer, ids),
        trained=tuple(shown.train_L.tolist()),
        special=tuple(each in special for each in ids),
        whole=len(whole.ids_L),
        label=rules.labels[shown.label] if shown.label >= 0 else None,
        fate=fate,
        remark=remark,
        worst=worst,
    )


def _under_policy(example: Example, whole: Encoded, loaded: Base, rules: Rules) -> tuple[Encoded, Fate, str]:
    """What is shown of a row, what the length policy does to it, and that in words."""
    keeps = _keeps(whole, rules)
    if keeps.all():
        return whole, "used", ""
    limit = f"{int(keeps.sum()):,} of its {len(keeps):,} tokens are within the limit"
    if rules.overlength == "error":
        return whole, "refused", f"too long, a run refuses it: {limit}"
    if rules.overlength == "drop":
        return whole, "dropped", f"too long, it is dropped: {limit}"
    kept = encode.encode(example, loaded.tokenizer, rules)
    if kept is None:
        return whole, "dropped", f"dropped: {limit}, and none of these is trained"
    return kept, "cut", f"cut: {limit}"
