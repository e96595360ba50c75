"""The row in the guide to `luthier look` is the one that the command shows."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from luthier.cli import app, tokens
from luthier.demo import write_demo
from luthier.studio import Studio

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "look.md"


def test_the_example_is_the_demos_first_row(tmp_path: Path) -> None:
    [seen] = Studio(tmp_path / "home").look(write_demo(tmp_path), ["1"])
    shown = f"{tokens.heading(seen).plain}\n{tokens.tokens(seen, plain=True).plain}\n"
    assert shown.replace(f"{tmp_path}/", "") in GUIDE.read_text(encoding="utf-8")


def test_the_legend_has_every_mark() -> None:
    told = GUIDE.read_text(encoding="utf-8")
    for mark in re.findall(r"[^\w\s]", tokens.legend(plain=True).plain):
        assert mark in told


def test_every_flag_of_the_guide_is_one_of_the_command() -> None:
    flags = {flag for option in typer.main.get_group(app.app).commands["look"].params for flag in option.opts}
    named = set(re.findall(r"--[a-z]+", GUIDE.read_text(encoding="utf-8")))
    assert named <= flags and {"--row", "--worst", "--html", "--json"} <= named
