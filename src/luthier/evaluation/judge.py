"""A model as judge: every answer judged once, a failed judgement is missing and never a zero, the judge itself tested.

Lives here: which judgements a report needs, keeping them, what they add up to. Does not live here: wording and reading
(`verdicts.py`), the calls (`endpoint.py`), people's labels (`calibration.py`), intervals and tests (`report.py`).

A folder gets `judgements.jsonl` (every reply as it came, by content: never asked twice) and `judgements.parquet` (one
row an answer, for people: `frame`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier import spec
from luthier.errors import SpecError
from luthier.evaluation import calibration, endpoint, judgements, verdicts
from luthier.evaluation.calibration import Labelled
from luthier.evaluation.endpoint import Endpoint, Heard, Reply
from luthier.evaluation.judgements import frame, joined, table, write_csv
from luthier.evaluation.kept import Kept
from luthier.evaluation.metrics import Metric
from luthier.evaluation.predictions import Row, side
from luthier.evaluation.verdicts import Asked, Canary, Judged

__all__ = ["Found", "Judged", "frame", "joined", "judge", "metric", "require", "table", "write_csv"]

NAME = "judge"  # of the metric
KEPT = "judgements.jsonl"
SUSPECT = 0.02  # of the scale: more of a score may not hang on answers that speak to the judge
_LONGEST_RAW = 4000  # characters of a reply that are kept


@dataclass(frozen=True, slots=True)
class Found:
    """`rows` with a value of `metric` where there is one, what goes into the report, and how many judgements of any
    kind are still `missing`."""

    rows: list[Row]
    metric: Metric
    judged: Judged
    notes: tuple[str, ...]
    missing: int


def require(wishes: spec.Judge, compare_base: bool = True) -> None:
    """Refuse before any work what could not be judged after it. Raises SpecError, MissingExtra, NotFound, DataError."""
    endpoint.require(wishes.base_url, "`evaluation.judge`")
    if wishes.mode == "pairwise" and not compare_base:
        hint = "leave out `evaluation.compare_base: false`, or judge by `reference` or `rubric`"
        raise SpecError("`evaluation.judge.mode: pairwise` needs the base, which is not asked", hint=hint)
    if wishes.labelled is not None:
        calibration.read(wishes.labelled, wishes.mode)


def judge(rows: Sequence[Row], wishes: spec.Judge, folder: Path, heard: Heard, asking: Endpoint | None = None) -> Found:
    """Judge every answer of `rows`, "tuned" and, where it is there, "base". What stands in `folder` is not asked again.

    `heard` is told how many judgements came, and may raise to end the work. `asking`: another patience than usual.
    """
    bench = _Bench(rows, wishes, Kept(folder / KEPT))
    notes = bench.ask(asking or Endpoint(wishes.model, wishes.base_url, wishes.concurrency), heard)
    said = {(_id(row), name): bench.verdict(row, name) for row in rows for name in row.sides}
    judgements.write(rows, said, wishes, folder)
    known = judgements.joined(rows, folder)
    judged = bench.judged(known)
    return Found(known, metric(wishes, judged.unreliable), judged, (*notes, *bench.notes(judged)), bench.missing())


def metric(wishes: spec.Judge, unreliable: str = "") -> Metric:
    """How the judge's values are scored: shares with Wilson and McNemar, grades and preferences as means."""
    title = f"judge ({wishes.model}{', unreliable' if unreliable else ''})"
    rules = {
        "reference": "the share of answers the judge calls correct by the reference",
        "rubric": "the judge's grade from 1 to 5",
        "pairwise": "the share of rows on which the judge prefers it in both orders; a tie counts half",
    }
    kind = "share" if wishes.mode == "reference" else "mean"
    top = 5.0 if wishes.mode == "rubric" else 1.0
    return Metric(NAME, title, kind, lambda p: p.judged, top=top, rule=rules[wishes.mode])  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- what is asked


class _Bench:
    """All that is judged for one report, and what has been said of it."""

    def __init__(self, rows: Sequence[Row], wishes: spec.Judge, kept: Kept) -> None:
        self.wishes, self.kept = wishes, kept
        self.rows = {_id(row): row for row in rows}
        self.pair, self.strangers = wishes.mode == "pairwise", 0
        plain = [Asked(p.prompt, p.references, p.answer) for p in side(rows, "tuned")]
        self.canaries: list[Canary] = verdicts.canaries(plain, wishes.mode)
        self.people = self._people(rows)
        answers = [asked for row in rows for name in row.sides for asked in self._asked(row, name)]
        tests = [each for canary in self.canaries for each in self._both(canary.asked)]
        labelled = [each for _, asked in self.people for each in self._both(asked)]
        # each thing once, the canaries first: the very first tells what the endpoint takes
        self.every = {self.key(asked): asked for asked in (*tests, *labelled, *answers)}

    def _people(self, rows: Sequence[Row]) -> list[tuple[Labelled, Asked]]:
        if self.wishes.labelled is None:
            return []
        tuned = {p.id: p for p in side(rows, "tuned")}
        base = {p.id: p for p in side(rows, "base")} if rows and "base" in rows[0].sides else {}
        every = calibration.read(self.wishes.labelled, self.wishes.mode)
        asked = [(one, calibration.as_asked(one, tuned, base, self.pair)) for one in every]
        self.strangers = sum(each is None for _, each in asked)
        return [(one, each) for one, each in asked if each is not None]

    def _asked(self, row: Row, name: str) -> list[Asked]:
        """What is asked to judge a side of a row: one thing, or the pair in both orders, the tuned answer first."""
        p = row.sides[name]
        if not self.pair:
            return [Asked(p.prompt, p.references, p.answer)]
        one, other = row.sides["tuned"].answer, row.sides["base"].answer
        if one == other:
            return []
        return [Asked(p.prompt, p.references, one, other), Asked(p.prompt, p.references, other, one)]

    def _both(self, asked: Asked) -> list[Asked]:
        """A pair in both orders."""
        return [asked] if asked.other is None else [asked, replace(asked, answer=asked.other, other=asked.answer)]

    def key(self, asked: Asked) -> str:
        return verdicts.key(self.wishes.model, self.wishes.mode, self.wishes.rubric, asked)

    def ask(self, asking: Endpoint, heard: Heard) -> tuple[str, ...]:
        """Ask for what is not known yet, keep every reply. Gives what the endpoint would not take."""
        mode, rubric = self.wishes.mode, self.wishes.rubric
        todo = [(key, asked) for key, asked in self.every.items() if self.kept.good(key) is None]

        def each(i: int, reply: Reply) -> None:
            key, asked = todo[i]
            read = verdicts.read(reply.text, mode, asked) if reply.state == "ok" else None
            state = reply.state if read is None else "ok" if read.value is not None else "unparsed"
            line: dict[str, Any] = {"key": key, "state": state, "model": self.wishes.model, "mode": mode}
            line |= {"verdict": read and read.value, "rationale": read.rationale if read else ""}
            line |= {"reason": read.problem if read else reply.reason, "raw": reply.text[:_LONGEST_RAW]}
            self.kept.add(line | {"tokens": list(reply.tokens), "answer": asked.answer[:_LONGEST_RAW]})
            heard(1)

        chats = [verdicts.chat(asked, mode, rubric) for _, asked in todo]
        return endpoint.ask(asking, chats, verdicts.body(mode), each, lambda: heard(0)) if todo else ()

    # --- what was said

    def one(self, asked: Asked) -> int | None:
        """The verdict on one thing; of a pair, if both orders agree, else a tie; None if any is missing."""
        lines = [self.kept.good(self.key(each)) for each in self._both(asked)]
        values = [line["verdict"] for line in lines if line is not None]
        if len(values) < len(lines):
            return None
        if asked.other is None:
            return int(values[0])
        return int(values[0]) if values[0] == -values[1] else 0

    def verdict(self, row: Row, name: str) -> tuple[int | None, str]:
        """Of a side of a row: the verdict on the scale, and the judge's words."""
        asked = self._asked(row, name)
        if not asked:
            return 0, "the same answer"
        value, line = self.one(asked[0]), self.kept.good(self.key(asked[0]))
        if self.pair and name == "base" and value is not None:
            value = -value
        return value, line["rationale"] if line is not None else ""

    def missing(self) -> int:
        return sum(self.kept.good(key) is None for key in self.every)

    def tokens(self) -> tuple[int, int]:
        wanted = self.every
        spent = [line["tokens"] for line in self.kept.lines if line["key"] in wanted]
        return sum(each[0] for each in spent), sum(each[1] for each in spent)

    def judged(self, rows: Sequence[Row]) -> Judged:
        """All of it, but for the score, which is the report's to make."""
        worst, best = judgements.ends(self.wishes.mode)
        values = [p.judged for p in side(rows, "tuned")]
        known = [value for value in values if value is not None]
        missing, n = len(values) - len(known), max(1, len(values))
        bounds = ((sum(known) + missing * worst) / n, (sum(known) + missing * best) / n)
        tests = [(canary, self.one(canary.asked)) for canary in self.canaries]
        right = [(c.name, v is not None and verdicts.passed(c, v, self.wishes.mode)) for c, v in tests]
        pairs = [(said, one.label) for one, asked in self.people if (said := self.one(asked)) is not None]
        told = calibration.agreement(pairs)
        unjudged = {canary.name for canary, value in tests if value is None}
        why = self._unreliable([name for name, fine in right if not fine], unjudged, rows)
        return Judged(
            model=self.wishes.model,
            mode=self.wishes.mode,
            asked=len(values),
            missing=missing,
            bounds=bounds,
            canaries=tuple(right),
            agreement=told.share,
            kappa=told.kappa,
            kappa_low=told.low,
            kappa_high=told.high,
            tokens=self.tokens(),
            unreliable=why,
        )

    def _unreliable(self, failed: Sequence[str], unjudged: set[str], rows: Sequence[Row]) -> str:
        said = []
        if not self.canaries:
            said.append("no row has a reference to test the judge with")
        if wrong := [name for name in failed if name not in unjudged]:
            said.append(f"it misjudged what is known: {', '.join(wrong)}")
        if unjudged:
            said.append(f"{len(unjudged)} of {len(self.canaries)} tests of the judge have no judgement")
        if count := _suspects(rows, self.wishes.mode):
            said.append(f"it rates {count} answers well that speak to the judge")
        return "; ".join(said)

    def notes(self, judged: Judged) -> list[str]:
        """For the report: what it cost, what is missing and why, whether to trust it."""
        name, every = f"judge {self.wishes.model}", self.every
        spent = f"{judged.tokens[0]:,} tokens in, {judged.tokens[1]:,} out"
        said = [f"{name} (`{self.wishes.mode}`): {len(every):,} judgements, {spent}"]
        if missing := self.missing():
            last = {line["key"]: line["reason"] for line in self.kept.lines if line["state"] != "ok"}
            reasons = Counter(last[key] for key in every if self.kept.good(key) is None and key in last)
            shown = "; ".join(f"{count:,} × {reason}" for reason, count in reasons.most_common(3))
            low, high = judged.bounds
            bounds = f"with every missing one worst or best the score would be {low:.2f} to {high:.2f}"
            said.append(f"{name}: {missing:,} judgements are missing ({shown}); {bounds}; the same command asks again")
        if judged.unreliable:
            said.append(f"{name} is unreliable here: {judged.unreliable}")
        if self.pair and (flips := sum(self._flipped(row) for row in self.rows.values())):
            said.append(f"{name}: {flips:,} preferences turned with the order of the answers and count as ties")
        return said + self._said_by_people(judged, name)

    def _flipped(self, row: Row) -> bool:
        lines = [self.kept.good(self.key(asked)) for asked in self._asked(row, "tuned")]
        values = [line["verdict"] for line in lines if line is not None]
        return len(values) == 2 and values[0] == values[1] != 0

    def _said_by_people(self, judged: Judged, name: str) -> list[str]:
        if judged.agreement is None:
            return []
        told = f"{name} agrees with people on {judged.agreement:.2f} of {len(self.people):,} labelled answers"
        if judged.kappa is not None:
            told += f", kappa {judged.kappa:.2f} ({judged.kappa_low:.2f}–{judged.kappa_high:.2f})"
        if self.strangers:
            told += f"; {self.strangers:,} labels name no row of this test"
        return [told]


def _id(row: Row) -> str:
    return next(iter(row.sides.values())).id


def _suspects(rows: Sequence[Row], mode: verdicts.Mode) -> int:
    """How many answers of a side speak to the judge and are rated above the worst, if the score may hang on them."""
    worst, best = judgements.ends(mode)
    found = 0
    for name in rows[0].sides if rows else ():
        speaking = [
            p for p in side(rows, name) if verdicts.speaks_to_the_judge(Asked(p.prompt, p.references, p.answer))
        ]
        gains = [(p.judged - worst) / (best - worst) for p in speaking if p.judged is not None]
        if sum(gains) > SUSPECT * len(rows):
            found += sum(gain > 0 for gain in gains)
    return found
