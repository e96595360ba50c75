"""docs/reference/metrics.md is the table of metrics, written by `python -m tests.evaluation.test_metrics_page`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from luthier.evaluation.metrics import FAMILIES, METRICS, SETUP_COLUMN, Prediction, by_name, default_metrics
from luthier.evaluation.normalisers import NORMALISERS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
KINDS = {"share": "right or wrong", "mean": "mean", "whole": "whole"}


def table() -> list[str]:
    lines = ["| name | what counts | rows | scale | better | source |", "|---|---|---|---|---|---|"]
    for metric in METRICS.values():
        scale = "from 0" if metric.top is None else f"0–{metric.top:g}"
        better = "higher" if metric.higher_is_better else "lower"
        cells = [f"`{metric.name}`", metric.rule, KINDS[metric.kind], scale, better, metric.source or "ours"]
        cells[3] = "from 1" if metric.name == "perplexity" else "-1–1" if metric.name == "mcc" else scale
        lines.append(f"| {' | '.join(cells)} |")
    for family in FAMILIES.values():
        cells = [f"`{family.name}:{family.argument}`", family.rule, "right or wrong", "0–1", "higher"]
        lines.append(f"| {' | '.join([*cells, family.source or 'ours'])} |")
    return lines


def normalisers() -> list[str]:
    return ["| name | what does not count |", "|---|---|"] + [
        f"| `exact_match{'' if name == 'strip' else f':{name}'}` | {overlooked} |"
        for name, (_, overlooked) in NORMALISERS.items()
    ]


def defaults() -> list[str]:
    tasks = {
        "classification, two classes": default_metrics("classification", labels=("no", "yes")),
        "classification, more": default_metrics("classification", labels="abc"),
        "generation": default_metrics("generation"),
        "any, with a column `setup`": default_metrics("generation", columns=(SETUP_COLUMN,)),
        "summarization": default_metrics("summarization"),
        "translation": default_metrics("translation"),
        "chat": default_metrics("chat"),
    }
    lines = ["| task | metrics, the leading one first |", "|---|---|"]
    return lines + [f"| {task} | {', '.join(f'`{name}`' for name in names)} |" for task, names in tasks.items()]


def written(page: str) -> str:
    """The page with its tables as they are today."""
    for name, lines in {"table": table(), "normalisers": normalisers(), "defaults": defaults()}.items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = between.sub(lambda found, lines=lines: found[1] + "\n".join(lines) + "\n" + found[2], page)
    return page


def test_the_page_is_todays() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "run `python -m tests.evaluation.test_metrics_page`"


def test_the_pages_examples_are_accepted() -> None:
    page = PAGE.read_text(encoding="utf-8")
    named = re.search(r"metrics: \[(.*)\]\n", page)[1].replace("'", "").split(", ")  # type: ignore[index]
    assert [metric.name for metric in by_name(named)] == named


def test_the_pages_own_metric_is_one() -> None:
    page = PAGE.read_text(encoding="utf-8")
    offer, source = re.search(r"```toml\n(.*?)```", page, re.DOTALL), re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert offer and source
    entry = tomllib.loads(offer[1])["project"]["entry-points"]["luthier.metric"]
    made: dict[str, object] = {}
    exec(source[1], made)
    [metric] = by_name([made[entry["first_letter"].partition(":")[2]]])  # type: ignore[list-item]
    assert metric.kind == "share" and metric.row(Prediction("1", "", "", ("ab",), "a")) == 1


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
