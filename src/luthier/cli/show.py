"""Results in a terminal: data on standard output, words on standard error; colour only where somebody looks.

Lives here: tables, errors, scores. Does not live here: tokens (`tokens.py`), a plan (`planned.py`), a run on its way
(`progress.py`), what is shown (`commands/`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from luthier.cli.progress import Status, after, clock
from luthier.errors import LuthierError, NotFound, SpecError
from luthier.runs import Plan, Run, Score, read_events

if TYPE_CHECKING:
    from luthier.conversion import Conversion
    from luthier.data.seen import Seen
    from luthier.drafts import Draft
    from luthier.evaluation.differences import Slice
    from luthier.evaluation.report import Report

WIDE = 400  # columns of a table that no terminal cuts
HURT = 3  # groups that are named beside the verdict
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow", "stopped": "yellow"}


@functools.cache
def err() -> Console:
    """Words for a person go here."""
    return Console(stderr=True, highlight=False)


@functools.cache
def out() -> Console:
    """Data go here; in a pipe nothing is cut to a width."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=WIDE)


def say(words: str, style: str = "") -> None:
    """A remark on standard error."""
    err().print(Text(words, style=style), soft_wrap=True)


def busy(doing: str) -> AbstractContextManager[Any]:
    """Say what takes a moment, for as long as it takes; only on a terminal."""
    return err().status(Text(doing)) if err().is_terminal else contextlib.nullcontext()


def line(words: str) -> None:
    """A line of data on standard output, as it is: no wrapping, no markup."""
    print(words, flush=True)


def as_json(value: Any) -> None:
    """JSON on standard output. Dataclasses are objects, paths are text."""
    line(json.dumps(asdict(value) if _is_data(value) else value, ensure_ascii=False, indent=1, default=_plain))


def _is_data(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, frozenset | set | tuple):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    return asdict(value) if _is_data(value) else str(value)


def error(problem: LuthierError) -> None:
    """`error: what (where)`, an empty line, `hint: what next`."""
    err().print(Text("error: ", style="bold red") + Text(str(problem), style="not bold"), soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows under quiet headings (none if all are empty) on standard output."""
    shown = Table(box=None, pad_edge=False, header_style="dim", show_header=any(columns))
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Text) else Text("" if cell is None else str(cell)) for cell in row))
    out().print(shown)


def pairs(values: Mapping[str, Any]) -> None:
    """Names and values on standard output; empty ones are left out."""
    table(("", ""), [(Text(name, style="dim"), value) for name, value in values.items() if value not in (None, "", [])])


def state(run: Run) -> Text:
    """A run's state in its colour."""
    return Text(run.state, style=COLOURS.get(run.state, ""))


def when(seconds: float | None) -> str:
    """A moment, in the reader's time zone."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def size(count: int | None) -> str:
    """Bytes as people read them.

    >>> size(999), size(1_500_000), size(None)
    ('999 B', '1.4 MiB', '')
    """
    if count is None:
        return ""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, (max(count, 1).bit_length() - 1) // 10)
    return f"{count / 1024**power:.1f} {units[power]}" if power else f"{count} B"


def rows(shown: Sequence[Seen]) -> None:
    """Rows as tokens on standard output; what the colours and marks mean on standard error."""
    from luthier.cli import tokens

    plain = out().no_color or not out().color_system
    err().print(tokens.legend(plain), soft_wrap=True)
    for seen in shown:
        for text in (tokens.heading(seen), tokens.tokens(seen, plain), Text()):
            out().print(text, soft_wrap=True)
    if any(tokens.shortened(seen) for seen in shown):
        say("long stretches are shortened: `--html FILE` shows every token, `--json` too", style="dim")


def check_page(path: Path) -> None:
    """Raise where no page can be written: better before the rows are read. An experiment is never overwritten."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise SpecError(f"`{path}` is no name of a page", "--html", "let it end in .html")
    if not path.resolve().parent.is_dir():
        raise NotFound(f"there is no folder {path.parent}", "--html")


def page(draft: Draft, shown: Sequence[Seen], path: Path) -> None:
    """Rows as tokens, written as a page."""
    from luthier.data import seen_page

    experiment, data = draft.resolved.experiment, draft.dataset
    splits = ", ".join(f"{count:,} {split}" for split, count in data.counts.items())
    facts = {"model": experiment.model.name, "task": data.task, "train on": experiment.data.train_on, "rows": splits}
    seen_page.write(shown, facts, path)


def json_line(value: Any) -> None:
    """One line of JSON on standard output."""
    line(json.dumps(value, ensure_ascii=False, default=_plain))


def value(given: Any) -> str:
    """A parameter's value in a table."""
    if given is None:
        return "–"
    if isinstance(given, str | int | float):
        return f"{given:g}" if isinstance(given, float) else str(given)
    return json.dumps(given, ensure_ascii=False, default=_plain)


def conversion(made: Conversion) -> None:
    """What became of another tool's configuration: on standard error, for the data is the file that was written."""
    say(f"a configuration of {made.tool}: {len(made.of('carried'))} keys mean the same here")
    heads = {
        "changed": "changed in meaning, or added by luthier",
        "default": f"not written there; {made.tool}'s own values, written out",
        "lost": "not carried over",
    }
    for kind, head in heads.items():
        lines = made.of(kind)
        if lines:
            say(f"\n{head}:")
        for line in lines:
            shown = json.dumps(line.value, ensure_ascii=False) if "\n" in str(line.value) else value(line.value)
            told = f"{line.path}: {shown}" if line.path else ""
            parts = (line.key, f"({line.where})" if line.where else "", f"→ {told}" if line.key and told else told)
            said = " ".join(part for part in parts if part)
            say(f"  {said}{': ' if said and line.words else ''}{line.words}")


def plan(found: Plan, accepted: Collection[str]) -> None:
    """What a run would do, how long its rows are, what the gate finds, on standard output. `accepted`: findings that a
    person has accepted."""
    from luthier.cli import planned

    line("")
    pairs(planned.words(found))
    line("")
    table(("tokens", "", "training rows"), planned.bars(found.histogram))
    if found.findings:
        line("")
    for text in planned.findings(found.findings, accepted):
        out().print(text, soft_wrap=True)


def run_row(run: Run) -> tuple[Any, ...]:
    """A run in the listing."""
    told = run.facts
    verdict = told.get("verdict") or (run.error["message"] if run.error else "")
    return run.id, state(run), Path(told["model"]).name, told["method"], told["task"], when(run.created), verdict


def run_facts(run: Run) -> dict[str, Any]:
    """A run's facts, for `show`."""
    status = functools.reduce(after, read_events(run.path), Status())
    took = run.finished - run.started if run.finished and run.started else None
    return {
        "run": run.id,
        "state": state(run),
        "model": run.facts["model"],
        "method": run.facts["method"],
        "task": run.facts["task"],
        "data": run.facts["dataset"],
        "created": when(run.created),
        "took": "" if took is None else clock(took),
        "steps": f"{status.step:,} of {status.steps:,}" if status.steps else "",
        "loss": "" if status.loss is None else f"{status.loss:.4g}",
        "validation": "" if status.validation is None else f"{status.validation:.4g}",
        "folder": run.path,
        "notes": "\n".join(run.facts["notes"]),
        "verdict": run.facts.get("verdict"),
    }


def _spoken(metric: str) -> str:
    """A metric's name in words; what it was told after a colon, a file's name without its folders, stays as it is.

    >>> _spoken("rouge_l"), _spoken("json_schema:/a_b/c_d.json"), _spoken("regex:^a_/b$")
    ('rouge l', 'json schema:c_d.json', 'regex:^a_/b$')
    """
    first, colon, told = metric.partition(":")
    return first.replace("_", " ") + colon + (told.rpartition("/")[2] if first == "json_schema" else told)


def scores(report: Report) -> None:
    """Every score of a report with its interval, the base's beside it."""
    from luthier.evaluation.report import say as in_words

    def told(score: Score | None) -> str:
        return "" if score is None else in_words(score, None if score.high > 1 else 1.0, with_n=True)

    rows = [(_spoken(name), told(score), told(report.base_scores.get(name))) for name, score in report.scores.items()]
    table(("metric", report.subject.name, report.subject.against if report.base_scores else ""), rows)


def where_not(report: Report) -> None:
    """How the training went, what was forgotten, and the first groups that tuning surely hurt."""
    if report.fit:
        say(f"training: {report.fit}")
    for told in report.forgetting:
        if not told.strange:
            say(f"forgetting: {told.sentence}")
    # against "most frequent class" that class can only lose
    hurt = [group for group in report.differences if group.hurt and report.subject.against == "base"]
    for group in hurt[:HURT]:
        say(f"worse: {group.by} {group.name}: {_three(group.base)} → {_three(group.tuned)} (n = {group.n:,})")
    if len(hurt) > HURT:
        say(f"worse: {len(hurt) - HURT:,} more groups, in the report")


def differences(report: Report) -> None:
    """Every group of rows before and after, as a table."""
    rows = [
        (
            group.by,
            group.name,
            group.n,
            _three(group.tuned),
            _three(group.base),
            group.fixed,
            group.broken,
            _span(group),
        )
        for group in report.differences
    ]
    if rows:
        table(("by", "rows", "n", "tuned", report.subject.against, "fixed", "broken", "difference"), rows)


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _span(group: Slice) -> str:
    if group.difference is None or group.low is None or group.high is None:
        return ""
    return f"{group.difference:+.3g} ({group.low:+.3g} to {group.high:+.3g})".replace("-", "−")


def stream(name: str, pieces: Iterable[str]) -> None:
    """An answer as it is made, on a line of its own after `name`: where two answer, a pipe must know whose it is."""
    out().print(Text(name, style="dim"), end="")
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
