"""A plan in a terminal: its numbers in words, how long the rows are, what the gate finds.

Lives here: words, bars, the list of findings. Does not live here: tables in general (`show.py`), the plan itself
(`train/plan.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from rich.text import Text

from luthier.cli.progress import clock
from luthier.cli.show import size
from luthier.runs import Finding, Plan

WIDTH = 40
"""Columns of the longest bar."""

_EIGHTHS = " ▏▎▍▌▋▊▉"
_STYLES = {"refused": "bold red", "accepted": "yellow", "warning": "yellow", "note": "dim"}  # the gravest first


def words(plan: Plan) -> dict[str, str]:
    """A plan in words."""
    shared = f", {plan.shared_tokens:,} saved by shared prefixes ({_percent(plan.shared_share)})"
    saved = {name: count for name, count in plan.saved_tokens.items() if any(plan.saved_tokens.values())}
    about = "" if plan.measured else "about "
    origin = "measured" if plan.measured else "by formula; `--measure` runs some steps"
    budget = f"micro-batches of up to {plan.budget:,} tokens" + (", activations recomputed" if plan.recompute else "")
    told = {
        "rows": ", ".join(_split(name, told) for name, told in plan.splits.items()),
        "tokens": f"{plan.tokens:,} an epoch, {plan.trained_tokens:,} trained ({_percent(plan.trained_share)})"
        + (shared if plan.shared_tokens else ""),
        "a row": ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in plan.lengths.items()),
        "batches": f"{plan.batches_per_epoch:,} an epoch",
        "steps": f"{plan.steps:,} in all",
        "trainable": "" if plan.trainable_parameters is None else f"{plan.trainable_parameters:,} parameters",
        "saved by": ", ".join(f"`batching: {name}` {count:,}" for name, count in saved.items()),
        "numbers": ", ".join(f"{what} {dtype}" for what, dtype in plan.dtypes.items()),
        "memory": size(plan.memory_bytes) and f"{about}{size(plan.memory_bytes)} ({origin}), {budget}",
        "time": "" if plan.seconds is None else f"{about}{clock(plan.seconds)} for all steps ({origin})",
    }
    return {name: words for name, words in told.items() if words}


def _split(name: str, told: Mapping[str, int]) -> str:
    """A split's rows, and what the length policy did to others.

    >>> _split("train", {"rows": 1200, "dropped": 3, "cut": 0})
    '1,200 train (3 dropped)'
    """
    lost = [f"{told[verb]:,} {verb}" for verb in ("dropped", "cut") if told[verb]]
    return f"{told['rows']:,} {name}" + (f" ({', '.join(lost)})" if lost else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def bars(histogram: Sequence[tuple[int, int, int]]) -> list[tuple[str, Text, str]]:
    """How many training rows have so many tokens: range, bar, count."""
    most = max((count for _, _, count in histogram), default=0)
    return [
        (f"{first:,}–{last:,}", Text(_bar(count / most), style="cyan"), f"{count:,}")
        for first, last, count in histogram
    ]


def _bar(share: float) -> str:
    """A bar of so much of WIDTH, to an eighth of a column; what is there can be seen, however little.

    >>> _bar(0.5) == "█" * 20, _bar(1e-9), _bar(0)
    (True, '▏', '')
    """
    eighths = max(round(8 * WIDTH * share), int(share > 0))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def findings(found: Sequence[Finding], accepted: Collection[str] = ()) -> Iterator[Text]:
    """What the gate finds, what is refused first: code, what and how often, where the first rows stand, how the first
    looks, what to do.

    `accepted`: codes that a person has accepted.
    """
    named = [(_severity(finding, accepted), finding) for finding in found]
    for name, finding in sorted(named, key=lambda each: list(_STYLES).index(each[0])):
        more = ", …" if finding.count > len(finding.rows) else ""
        yield Text.assemble((f"{name} {finding.code}", _STYLES[name]), f" · {finding.message}")
        yield Text(f"    {', '.join(finding.rows)}{more}", style="dim")
        if finding.excerpts:
            yield Text(f"    {finding.excerpts[0]}")
        yield Text(f"    → {finding.hint}")


def refused(found: Iterable[Finding], accepted: Collection[str]) -> bool:
    """Whether a run would not start."""
    return any(_severity(finding, accepted) == "refused" for finding in found)


def _severity(finding: Finding, accepted: Collection[str]) -> str:
    from luthier.data import gate

    if gate.is_accepted(finding, accepted):
        return "accepted"
    return {"refuse": "refused", "warn": "warning", "note": "note"}[finding.severity]
