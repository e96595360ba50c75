"""What deserves a second look in a prepared data set: balance, class names, lengths, languages, and how many rows.

| code | what was found | when |
|---|---|---|
| D01 | one class outweighs | the largest class has 10 times the rows of the smallest that is not rare, or 80 % of all |
| D02 | rare classes | fewer than 10 rows in train |
| D03 | names that may be one class | alike but for case, spaces, `-` and `_`; or one edit apart, 10 times as rare |
| D04 | classes without training | rows in validation or test, none in train |
| D05 | classes without a test | rows in train, none in test |
| D06 | very long rows | beyond what the middle half of the rows suggests, and 8 times the median |
| D07 | several languages | 1 % or more of the questions, or of the answers, in others than the most frequent |
| D08 | languages differ by split | a share in validation or test 10 points, and 3 standard errors, from that in train |
| D09 | longer than in training | rows of validation or test longer than every row of train |
| D10 | few steps | an epoch has fewer than 20 |
| D11 | few rows | fewer than 100 to train on |
| D12 | a coarse verdict | fewer than 100 rows in test |

A remark never stops anything: the gate refuses, a survey tells. Lives here: the judgement. Does not live here: counting
(`census.py`), lengths in tokens (`lengths.py`, `gate.py`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from luthier.data.census import SIDES, Split, count
from luthier.data.dataset import Dataset
from luthier.data.lengths import far_fence
from luthier.spec import Data, batches_per_epoch, steps_per_epoch

OUTWEIGHS, OVERWHELMS = 10, 0.8
RARE = 10
TYPO_RATIO, TYPO_LETTERS = 10, 4
FOREIGN_SHARE, FEWEST_FOREIGN, SHARE_APART, ERRORS_APART, HEARD = 0.01, 3, 0.1, 3, 0.5
FEW_STEPS, USUAL_BATCH = 20, 8
ADVISED_ROWS, COARSE_TEST = (100, 1000), 100
ADVICE = "IBM advises 100 to 1,000 labelled examples (watsonx.ai, Data formats for tuning foundation models)"
_SHOWN = 5

Census = Mapping[str, Split]


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to look at: `code` of the table above, what it is, the first rows (`file:line`), what to do."""

    code: str
    message: str
    rows: tuple[str, ...]
    hint: str


def survey(dataset: Dataset, data: Data) -> list[Remark]:
    """All remarks on a finished Dataset folder, in the order of their codes. One pass, memory flat in the rows."""
    return judge(count(dataset), dataset, data)


def judge(census: Census, dataset: Dataset, data: Data) -> list[Remark]:
    """The remarks that follow from a census of `dataset`."""
    remarks: list[Remark] = []
    if dataset.task == "classification":
        remarks += [*_balance(census), *_rare(census), *_alike(census, data), *_untrained(census), *_untested(census)]
    remarks += [*_very_long(census), *_languages(census), *_other_languages(census), *_longer(census)]
    steps = few_steps(census["train"].rows)
    return remarks + ([steps] if steps else []) + [*_few_rows(census), *_coarse(census)]


# --- classes


def _balance(census: Census) -> Iterator[Remark]:
    train = census["train"]
    ordered = train.labels.most_common()
    if len(ordered) < 2:
        return
    name, most = ordered[0]
    least_name, least = next((one for one in reversed(ordered) if one[1] >= RARE), ordered[0])
    share = most / train.rows
    if most >= OUTWEIGHS * least or share >= OVERWHELMS:
        other = f", `{least_name}` {least:,}" if least < most else ""
        yield Remark(
            "D01",
            f"`{name}` has {most:,} of {train.rows:,} training rows{other}: always saying so is {share:.0%} right",
            (),
            "judge by `evaluation.metrics: [macro_f1, accuracy]`; add rows of the small classes",
        )


def _rare(census: Census) -> Iterator[Remark]:
    train = census["train"]
    rare = sorted((n, name) for name, n in train.labels.items() if n < RARE)
    if rare:
        told = _list(f"`{name}` ({n})" for n, name in rare)
        yield Remark(
            "D02",
            f"{_many(len(rare), 'class has', 'classes have')} fewer than {RARE} training rows: {told}",
            _first(train, "label", (name for _, name in rare)),
            "add rows, or join classes: `data.labels: {rare: other, other: other, …}`",
        )


def _alike(census: Census, data: Data) -> Iterator[Remark]:
    """Names of one class under two spellings. A name that `data.labels` lists is meant, so only what it lists not."""
    if data.labels:
        return
    counts: Counter[str] = sum((split.labels for split in census.values()), Counter())
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(counts):
        groups[_normal(name)].append(name)
    pairs = [(a, b) for names in groups.values() for a, b in combinations(names, 2)]
    pairs += [(a, b) for a, b in _one_edit_apart(counts) if _normal(a) != _normal(b)]
    told = [sorted(pair, key=lambda name: (counts[name], name)) for pair in pairs]
    if told:
        rows = [
            place for split in census.values() for rare, _ in told for place in split.places.get(("label", rare), ())
        ]
        spelled = _list(f"`{rare}` ({counts[rare]:,}) and `{often}` ({counts[often]:,})" for rare, often in told)
        rare, often = told[0]
        yield Remark(
            "D03",
            f"{_many(len(told), 'pair of classes', 'pairs of classes')} may be one class spelled twice: {spelled}",
            tuple(rows[:_SHOWN]),
            f"correct the rows, or name every class once: `data.labels: {{{rare}: {often}, {often}: {often}, …}}`",
        )


def _normal(name: str) -> str:
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()


def _one_edit_apart(counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Pairs of a rare and a frequent name, one letter added, lost, changed or swapped; never a digit.

    Names one edit apart share what is left when a letter is taken out of one or both, so that only such are compared.
    """
    left: dict[str, set[str]] = defaultdict(set)
    for name in counts:
        if len(name) >= TYPO_LETTERS:
            for rest in {name, *(name[:i] + name[i + 1 :] for i in range(len(name)))}:
                left[rest].add(name)
    near = {pair for names in left.values() if len(names) > 1 for pair in combinations(sorted(names), 2)}
    for a, b in sorted(near):
        low, high = sorted((counts[a], counts[b]))
        if low * TYPO_RATIO <= high and _is_typo(a, b):
            yield a, b


def _is_typo(a: str, b: str) -> bool:
    """Whether one edit of a letter turns `a` into `b`.

    >>> [_is_typo("refund", name) for name in ("refnud", "refunds", "refind", "fund")], _is_typo("level 1", "level 2")
    ([True, True, True, False], False)
    """
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[start:], b[start:]
    if any(character.isdigit() for character in rest_a[:1] + rest_b[:1]):
        return False
    swapped = len(rest_a) > 1 and rest_a[1::-1] + rest_a[2:] == rest_b
    return swapped or rest_b in (rest_a[1:],) or rest_a in (rest_b[1:],) or rest_a[1:] == rest_b[1:]


def _untrained(census: Census) -> Iterator[Remark]:
    trained = census["train"].labels
    for name in ("validation", "test"):
        split = census[name]
        lost = sorted(label for label in split.labels if label not in trained)
        if lost:
            told = _list(f"`{x}`" for x in lost)
            yield Remark(
                "D04",
                f"{_many(len(lost), 'class', 'classes')} of {name} that no training row has: {told}",
                _first(split, "label", lost),
                "it cannot be learned: add training rows of it, or take it out",
            )


def _untested(census: Census) -> Iterator[Remark]:
    train, test = census["train"], census["test"]
    lost = sorted(label for label in train.labels if label not in test.labels)
    if test.rows and lost:
        yield Remark(
            "D05",
            f"{_many(len(lost), 'class', 'classes')} that no test row has: {_list(f'`{x}`' for x in lost)}",
            _first(train, "label", lost),
            "the verdict will say nothing of it: add test rows, or raise `data.test`",
        )


# --- lengths


def _very_long(census: Census) -> Iterator[Remark]:
    limit = far_fence(census["train"].lengths["row"])
    for name, split in census.items():
        found = split.lengths["row"].between(limit, float("inf"))
        if limit and found:
            median = census["train"].lengths["row"].quantile(0.5)
            yield Remark(
                "D06",
                f"{_many(found, 'row', 'rows')} of {name} with {limit:,.0f} characters or more; the median of train is"
                f" {median:,}, the longest here {split.longest[0][0]:,}",
                tuple(place for length, place in split.longest if length >= limit),
                "look at them: a file pasted into a cell, a lost quote? `luthier look --worst` shows them as tokens",
            )


def _longer(census: Census) -> Iterator[Remark]:
    reach = census["train"].lengths["row"].longest
    for name in ("validation", "test"):
        split = census[name]
        if split.beyond:
            yield Remark(
                "D09",
                f"{_many(split.beyond, 'row', 'rows')} of {name} longer than every training row ({reach:,} characters)",
                tuple(place for length, place in split.longest if length > reach),
                "training examples should match the limits of later use (PARAMETERS §1): train on such rows too",
            )


# --- languages


def _languages(census: Census) -> Iterator[Remark]:
    for side in SIDES:
        heard: Counter[str] = sum((split.languages[side] for split in census.values()), Counter())
        total = heard.total()
        others = heard.most_common()[1:]
        foreign = sum(n for _, n in others)
        if foreign < max(FEWEST_FOREIGN, FOREIGN_SHARE * total) or not _are_told(side, *census.values()):
            continue
        names = [name for name, _ in others]
        rows = [place for split in census.values() for x in names for place in split.places.get((side, x), ())]
        told = ", ".join(f"{name} {n / total:.1%}" for name, n in heard.most_common(_SHOWN))
        yield Remark(
            "D07",
            f"{side}s are in {len(heard)} languages: {told} (of {total:,} that could be told)",
            tuple(rows[:_SHOWN]),
            f"if only {heard.most_common(1)[0][0]} is meant, take the others out; else compare scores by language",
        )


def _are_told(side: str, *splits: Split) -> bool:
    """Whether the languages of at least half the texts are known: names and numbers alone say little of the rest."""
    heard = sum(split.languages[side].total() for split in splits)
    return heard > 0 and heard >= HEARD * sum(split.looked_at for split in splits)


def _other_languages(census: Census) -> Iterator[Remark]:
    train = census["train"]
    for name in ("validation", "test"):
        split = census[name]
        for side in SIDES:
            if not (_are_told(side, train) and _are_told(side, split)):
                continue
            apart = [x for x in split.languages[side] | train.languages[side] if _apart(x, side, split, train)]
            shares = {x: (_share(x, side, split), _share(x, side, train)) for x in sorted(apart)}
            if apart:
                told = "; ".join(f"{x} {here:.0%} against {there:.0%} in train" for x, (here, there) in shares.items())
                yield Remark(
                    "D08",
                    f"the {side}s of {name} are in other languages than those of train: {told}",
                    _first(split, side, (x for x, (here, there) in shares.items() if here > there)),
                    "a score on one language says little of another: divide the rows so that every split has both",
                )


def _share(name: str, side: str, split: Split) -> float:
    return split.languages[side][name] / split.languages[side].total()


def _apart(name: str, side: str, split: Split, train: Split) -> bool:
    """Whether a language's shares in two splits differ by much, and by more than the luck of drawing them."""
    a, b = split.languages[side], train.languages[side]
    pooled = (a[name] + b[name]) / (a.total() + b.total())
    error = (pooled * (1 - pooled) * (1 / a.total() + 1 / b.total())) ** 0.5
    return abs(_share(name, side, split) - _share(name, side, train)) >= max(SHARE_APART, ERRORS_APART * error)


# --- how many


def few_steps(rows: int, batch_size: int = USUAL_BATCH, accumulate_steps: int = 1) -> Remark | None:
    """D10 for `rows` training rows at a batch size. PARAMETERS §4: with few examples take a smaller batch."""
    steps = steps_per_epoch(batches_per_epoch(rows, batch_size), accumulate_steps) if rows else 0
    if not rows or steps >= FEW_STEPS:
        return None
    fitting = max(1, rows // FEW_STEPS)
    together = f" × {accumulate_steps}" if accumulate_steps > 1 else ""
    smaller = f"`training.batch_size: {1 << fitting.bit_length() - 1}`"
    return Remark(
        "D10",
        f"{_many(rows, 'training row', 'training rows')} at batch size {batch_size}{together} "
        f"{'is' if rows == 1 else 'are'} {_many(steps, 'step', 'steps')} an epoch",
        (),
        f"with few examples take a smaller batch (PARAMETERS §4): {smaller}"
        + (", `training.accumulate_steps: 1`" if accumulate_steps > 1 else ""),
    )


def _few_rows(census: Census) -> Iterator[Remark]:
    rows = census["train"].rows
    if rows < ADVISED_ROWS[0]:
        yield Remark("D11", f"{_many(rows, 'row', 'rows')} to train on. {ADVICE}", (), "; ".join(learning_curve(rows)))


def learning_curve(rows: int, file: str = "experiment.yaml") -> tuple[str, ...]:
    """The commands that tell whether more rows would help: the same test after a quarter, half and all of them.

    >>> learning_curve(1000)[0]
    'luthier tune experiment.yaml --set name=quarter --set data.limit=250'
    """
    parts = [
        f"luthier tune {file} --set name={name} --set data.limit={max(1, round(rows * share))}"
        for name, share in (("quarter", 0.25), ("half", 0.5))
    ]
    return (*parts, f"luthier tune {file} --set name=whole", "luthier compare quarter half whole")


def _coarse(census: Census) -> Iterator[Remark]:
    """The half-width of a 95 % interval is widest where half the answers are right: 1.96 · √(0.25 / n)."""
    rows = census["test"].rows
    if 0 < rows < COARSE_TEST:
        width = 100 * 1.96 * (0.25 / rows) ** 0.5
        yield Remark(
            "D12",
            f"test has {_many(rows, 'row', 'rows')}: a share of right answers is known to ±{width:.0f} points at worst",
            (),
            "for ±10 points it takes 96 rows, for ±5 it takes 384: add rows, or raise `data.test`",
        )


# --- words


def _first(split: Split, what: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(place for name in names for place in split.places.get((what, name), ()))[:_SHOWN]


def _many(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def _list(words: Iterable[str]) -> str:
    told = list(words)
    return ", ".join(told[:_SHOWN]) + (f", … ({len(told) - _SHOWN:,} more)" if len(told) > _SHOWN else "")
