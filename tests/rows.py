"""Small labelled files, for tests that carry a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COLOURS = ("red", "green", "blue")


def pairs(folder: Path, count: int = 48) -> Path:
    """Questions whose answer is one of three words, as JSON lines (`input`, `output`)."""
    return write(folder / "pairs.jsonl", [{"input": f"item {i}?", "output": COLOURS[i % 3]} for i in range(count)])


def labels(folder: Path, count: int = 48) -> Path:
    """Texts of three classes (`text`, `label`)."""
    return write(
        folder / "labels.jsonl", [{"text": f"{COLOURS[i % 3]} {i}", "label": COLOURS[i % 3]} for i in range(count)]
    )


def chats(folder: Path, count: int = 60) -> Path:
    """Conversations of one question and one answer (`messages`)."""
    turns = [("user", "item {}?"), ("assistant", "it is {}")]
    rows = [{"messages": [{"role": role, "content": text.format(i)} for role, text in turns]} for i in range(count)]
    return write(folder / "chats.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """`rows` as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
