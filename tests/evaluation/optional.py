"""A report with every optional part, as plain values: what other modules put into it, by the names they give them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from luthier.evaluation.report import Report


@dataclass(frozen=True)
class Full(Report):
    """A report that has been through everything."""

    openings: Any = ()
    forgetting: Any = ()
    differences: Any = ()
    judge: Any = None
    grouped_by: str | None = None


def full(made: Report, text: str = "a text", opened: int = 2) -> Full:
    """`made` with all that may be there, `text` in each of its texts."""
    own = {field.name: getattr(made, field.name) for field in fields(Report)}
    own["comparisons"] = {
        name: replace(compared, p_holm=min(1.0, 2 * compared.p)) for name, compared in made.comparisons.items()
    }
    return Full(
        **own
        | {
            "openings": tuple({"time": 1.7e9 + k, "run": f"{text} {k}", "rows": 60} for k in range(opened)),
            "forgetting": ({"name": text, "n": 9, "before": 10.0, "after": 15.0, "ratio": 1.5} | _ends(1.2, 1.9),),
            "differences": (part(text, "short", -0.2, -0.3, -0.1), part("class", text, 0.5, 0.4, 0.6)),
            "judge": judge(text),
            "grouped_by": text,
        }
    )


def _ends(low: float, high: float) -> dict[str, Any]:
    return {"low": low, "high": high, "sentence": "it forgot a little"}


def part(by: str, name: str, difference: float, low: float, high: float) -> dict[str, Any]:
    """Rows that have something in common."""
    counts = {"n": 30, "tuned": 0.5 + difference, "base": 0.5, "fixed": 4, "broken": 2}
    return {"by": by, "name": name, "difference": difference, "low": low, "high": high} | counts


def judge(text: str = "a model", **more: Any) -> dict[str, Any]:
    """What a judge said."""
    facts = {"model": text, "mode": "reference", "asked": 60, "missing": 3, "tokens": (1234, 56), "unreliable": text}
    score = {"score": 0.8, "low": 0.7, "high": 0.9, "bounds": (0.75, 0.85), "canaries": ((text, True), ("bad", False))}
    return facts | score | {"agreement": 0.9, "kappa": 0.8, "kappa_low": 0.6, "kappa_high": 0.95} | more
