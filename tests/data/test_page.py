"""dataset.html: what it says, nothing from outside, nothing that runs, every text escaped; and in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from luthier.data import page
from luthier.data.dataset import Dataset, shortly
from luthier.data.prepare import prepare
from luthier.spec import Data
from tests.browser import check_markup, opened

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}"


def _dataset(home: Path, count: int = 90) -> Dataset:
    names = (f"card {HOSTILE}", "lost", "Lost")
    table: list[dict[str, Any]] = [
        {"text": f"where is number {i * 7919} of the {'very ' * (i % 9)}{HOSTILE}", "label": names[i % 3]}
        for i in range(count)
    ]
    return prepare(Data(train=[*table, table[0]], validation=0.2, test=0.2), home)


def test_nothing_comes_from_outside_and_nothing_runs(tmp_path: Path) -> None:
    text = page.render(_dataset(tmp_path))
    check_markup(text)
    assert "&lt;script&gt;alert(1)" in text and "{{ 7*7 }}" in text  # shown, not calculated


def test_the_page_says_what_the_data_set_says(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    path = page.write(dataset)
    text = path.read_text(encoding="utf-8")
    assert path == dataset.path / "dataset.html"
    for remark in dataset.summary["remarks"]:
        assert f"<b>{remark['code']}</b>" in text
    assert {"D03", "D10", "D11", "D12"} <= {remark["code"] for remark in dataset.summary["remarks"]}
    for split, count in dataset.counts.items():
        assert f"<b>{count}</b> {split}" in text
    assert re.search(r"<td>duplicates</td><td class=\"num\">1</td><td class=\"fate\">dropped</td>", text)
    assert text.count('<td class="bar">') == 3 and "rows:91" in text  # a bar a class; where the twin stood
    assert "--set data.limit=" in text and "100 to 1,000 labelled examples" in text
    assert dataset.examples("train")[0].where in text
    assert "English 100.0 %" in text and dataset.fingerprint in text


def test_rows_are_named_without_the_folder_that_all_files_share(tmp_path: Path) -> None:
    for split in ("train", "test"):
        told = [{"input": f"{split} {i}", "output": f"is {i}"} for i in (*range(40), 0)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    (tmp_path / "else").mkdir()
    (tmp_path / "test.jsonl").rename(tmp_path / "else" / "test.jsonl")
    one = prepare(Data(train=str(tmp_path / "train.jsonl"), test=0.0), tmp_path)
    two = prepare(Data(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "else" / "test.jsonl")), tmp_path)
    where = f"{tmp_path}/train.jsonl:41"
    assert shortly(one)(f"see {where}") == "see train.jsonl:41" and shortly(two)(where) == where
    text = page.render(one)
    assert "train.jsonl:41 = train.jsonl:1" in text and where not in text
    assert f"{where} = {tmp_path}/train.jsonl:1" in page.render(two)


def test_the_charts_count_every_row(tmp_path: Path) -> None:
    for count in (2, 90):
        table = [{"input": "x" * (1 + i**2 % 977) + str(i), "output": "y" * (i % 2) + "z"} for i in range(count)]
        dataset = prepare(Data(train=table, validation=0.0, test=0.0), tmp_path, task="generation")
        text = page.render(dataset)
        bars = [int(number) for number in re.findall(r"<title>([\d,]+) rows of", text)]
        assert sum(bars) == 2 * count  # questions and answers


def test_cleaning_and_leaks_are_told_by_reason(tmp_path: Path) -> None:
    """As the steps of preparing report them: what was found, whether it was changed, before and after."""
    dataset = _dataset(tmp_path)
    change = {"where": "rows:7", "before": "cafÃ©", "after": "café"}
    tally = {
        "step": "mojibake",
        "applied": True,
        "rows": 3,
        "count": 4,
        "examples": [change],
        "labels": {},
        "fate": "repaired",
    }
    mail = tally | {"step": "pii", "fate": "masked"}
    leak = {"from": "train", "also_in": "test", "kind": "near", "rows": 2, "first": ["a:1 = b:2"]}
    dataset.summary.update(cleaning={"mojibake": tally, "pii:email": mail}, leak_kinds=[leak], left_out=[])
    text = page.render(dataset)
    assert "mojibake" in text and "cafÃ©" in text and "repaired" in text
    assert "pii:email" in text and "masked" in text
    assert "train rows that also stand in test (near)" in text and "a:1 = b:2" in text


def test_long_rows_and_many_classes_keep_the_page_small(tmp_path: Path) -> None:
    table = [{"text": f"{i} " + "word " * 20_000, "label": f"class {i % 60}"} for i in range(120)]
    text = page.render(prepare(Data(train=table, validation=0.0, test=0.0), tmp_path))
    assert len(text) < 60_000 and "and 20 more" in text and "more characters)" in text


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(tmp_path: Path, theme: str) -> None:
    """No request, no script, no dialog, no sideways scroll; both themes differ and follow the system."""
    with opened(page.write(_dataset(tmp_path)), theme) as view:
        assert view.seen == [] and view.violations() == []
        assert view.page.evaluate("document.documentElement.scrollWidth") == 390
        paper = view.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(250, 249, 246)" if theme == "light" else "rgb(20, 19, 16)")
        assert view.page.get_by_role("heading", name="Worth a second look").is_visible()
