"""The guide shows what `luthier convert` really says and writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luthier import conversion
from luthier.cli import show

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "convert.md"


def test_the_guide_s_example_says_and_writes_this(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, said, written = re.findall(r"```\w+\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[:3]
    monkeypatch.chdir(tmp_path)
    Path("config.yml").write_text(config, encoding="utf-8")
    made = conversion.convert("config.yml")
    show.err.cache_clear()
    show.conversion(made)
    assert capsys.readouterr().err == said
    assert made.text == written
