"""The pictures of the documents are what their scripts draw."""

from __future__ import annotations

import runpy
from pathlib import Path

CONCEPTS = Path(__file__).parents[2] / "docs" / "concepts"


def test_the_engines_pictures_are_drawn_from_todays_batches():
    drawn = runpy.run_path(str(CONCEPTS / "draw.py"))
    for name in ("tree", "slots"):
        assert (CONCEPTS / f"{name}.svg").read_text(encoding="utf-8") == drawn[name](), (
            "run `python docs/concepts/draw.py`"
        )
