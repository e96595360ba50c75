"""A plan in a terminal: shares, bars, and what the gate finds."""

from __future__ import annotations

import doctest
import json
from collections.abc import Callable
from pathlib import Path

from luthier.cli import planned
from luthier.runs import Finding, Plan, Severity
from luthier.train import plan as planning
from tests import rows
from tests.cli.conftest import Luthier

EMPTY = Plan(1, 1, 100, 25, 40, 0, None, None, None)


def finding(code: str, severity: Severity, message: str, *places: str, count: int = 1) -> Finding:
    excerpts = tuple(f"…so ⟦{code}⟧" for _ in places)
    return Finding(code, severity, "train", message, count, places, excerpts, f"mend {code}")


WARNING = finding("G03", "warn", "the answer was cut (1 of 9 rows)", "a.jsonl:1")
REFUSAL = finding("G01", "refuse", "no end is trained (1,200 of 2,000 rows)", "a.jsonl:4", "a.jsonl:9", count=1_200)
UNBENDING = finding("G02", "refuse", "there is nothing to train (1 of 9 rows)", "a.jsonl:7")


def test_doctests() -> None:
    assert doctest.testmod(planned).failed == 0 and doctest.testmod(planning).failed == 0


def test_shares_are_told_beside_the_counts() -> None:
    assert planned.words(EMPTY)["tokens"] == "100 an epoch, 25 trained (25.0 %), 40 saved by shared prefixes (40.0 %)"
    alone = Plan(1, 1, 100, 25, 0, 0, None, None, None)
    assert planned.words(alone)["tokens"] == "100 an epoch, 25 trained (25.0 %)" and alone.shared_share == 0


def test_bars_are_as_long_as_their_counts() -> None:
    drawn = planned.bars(((0, 9, 80), (10, 19, 20), (20, 29, 0), (30, 1_000, 1)))
    assert [(name, len(bar.plain), count) for name, bar, count in drawn] == [
        ("0–9", planned.WIDTH, "80"),
        ("10–19", planned.WIDTH // 4, "20"),
        ("20–29", 0, "0"),
        ("30–1,000", 1, "1"),
    ]


def test_findings_are_listed_refusals_first_with_rows_and_what_to_do() -> None:
    said = list(planned.findings([WARNING, REFUSAL]))
    assert [text.plain for text in said] == [
        "refused G01 · no end is trained (1,200 of 2,000 rows)",
        "    a.jsonl:4, a.jsonl:9, …",
        "    …so ⟦G01⟧",
        "    → mend G01",
        "warning G03 · the answer was cut (1 of 9 rows)",
        "    a.jsonl:1",
        "    …so ⟦G03⟧",
        "    → mend G03",
    ]
    styles = [next(str(span.style) for span in text.spans) for text in (said[0], said[4])]
    assert "red" in styles[0] and "yellow" in styles[1]


def test_what_a_person_accepted_is_no_refusal_unless_training_would_fail() -> None:
    said = [text.plain.split(" ·")[0] for text in planned.findings([REFUSAL, UNBENDING], ("G01", "G02"))][::4]
    assert said == ["refused G02", "accepted G01"]


def test_a_plan_ends_as_the_run_would_where_rows_are_refused(
    luthier: Luthier, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    told = [{"input": f"item {i}?", "output": f"it is{'</s>' if i == 3 else ''} {i}"} for i in range(12)]
    rows.write(tmp_path / "rows.jsonl", told)
    data = "data: {train: rows.jsonl, validation: 0, test: 0}"
    (tmp_path / "experiment.yaml").write_text(f"model: {tiny('tiny_llama')}\n{data}\ntask: generation\n")
    said = luthier("plan")
    assert said.code == 2 and "refused G07" in said.out and "training.batch_size" in said.out
    as_json = luthier("plan", "--json")
    assert as_json.code == 2 and json.loads(as_json.out)["plan"]["findings"][0]["code"] == "G07"
    assert luthier("plan", "--set", "data.accept=[G07]").code == 0


def test_a_plan_counts_each_split_by_the_length_policy(
    luthier: Luthier, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    for name, longs in (("train", 4), ("validation", 2), ("test", 1)):
        given = [{"input": f"{name} {i} " + "word " * 30 * (i < longs), "output": "yes no"} for i in range(12)]
        rows.write(tmp_path / f"{name}.jsonl", given)
    data = "data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl, overlength: drop}"
    lines = (f"model: {tiny('tiny_llama')}", data, "task: generation", "training: {max_seq_length: 60}")
    (tmp_path / "experiment.yaml").write_text("\n".join(lines) + "\n")
    told = json.loads(luthier("plan", "--json").out)["plan"]
    assert told["splits"] == {
        "train": {"rows": 8, "dropped": 4, "cut": 0},
        "validation": {"rows": 10, "dropped": 2, "cut": 0},
        "test": {"rows": 11, "dropped": 1, "cut": 0},
    }
    assert (
        sum(count for _, _, count in told["histogram"]) == 8 and told["histogram"][-1][1] == told["lengths"]["longest"]
    )
    assert told["trained_share"] == told["trained_tokens"] / told["tokens"] > 0
    assert told["shared_share"] == told["shared_tokens"] / told["tokens"] > 0
    said = luthier("plan").out
    assert "8 train (4 dropped), 10 validation (2 dropped), 11 test (1 dropped)" in said


def test_a_plan_lists_what_the_gate_finds_and_look_shows_such_a_row(
    luthier: Luthier, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    given = [{"input": f"item {i}?", "output": "yes " * (1 if i else 60)} for i in range(30)]
    rows.write(tmp_path / "rows.jsonl", given)
    for name in ("others", "tests"):
        rows.write(tmp_path / f"{name}.jsonl", [{"input": f"{name} {i}?", "output": "no"} for i in range(3)])
    data = "data: {train: rows.jsonl, validation: others.jsonl, test: tests.jsonl, overlength: cut}"
    lines = (f"model: {tiny('tiny_llama')}", data, "task: generation", "training: {max_seq_length: 60}")
    (tmp_path / "experiment.yaml").write_text("\n".join(lines) + "\n")
    told = json.loads(luthier("plan", "--json").out)["plan"]
    assert told["splits"]["train"] == {"rows": 30, "dropped": 0, "cut": 1}
    [found] = told["findings"]
    [where] = found["rows"]
    assert found["code"] == "G03" and found["count"] == 1 and where.endswith("rows.jsonl:1")
    said = luthier("plan")
    assert f"warning G03 · {found['message']}\n    {where}\n" in said.out
    assert f"    {found['excerpts'][0]}\n    → {found['hint']}\n" in said.out
    assert "luthier look experiment.yaml --row FILE:LINE" in said.err and "G03" not in said.err
    assert "cut: 60 of its" in luthier("look", "--row", where).out
