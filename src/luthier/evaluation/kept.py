"""JSON lines by key, kept as they come: what was paid for once is not asked again.

Lives here: an append-only file whose every line is on disk before the next one. Does not live here: what a line means
(`judge.py`, `endpoint.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.errors import DataError


class Kept:
    """The lines of the file `path`, which need not exist; each has a `key` and a `state`. A torn last line is dropped.

    Raises DataError naming a line that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = _read(path)
        self._good = {line["key"]: line for line in self.lines if line["state"] == "ok"}

    def good(self, key: str) -> dict[str, Any] | None:
        """The newest line of `key` that came to something; a failure is kept for people and asked again."""
        return self._good.get(key)

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line; it survives a power cut from here on."""
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(dict(line))
        if line["state"] == "ok":
            self._good[line["key"]] = dict(line)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    found = []
    for number, line in enumerate(whole.decode("utf-8", "replace").split("\n")[:-1], 1):
        try:
            found.append(_checked(json.loads(line)))
        except ValueError as error:
            raise DataError("this line cannot be read", f"{path}:{number}", "delete the file and ask again") from error
    return found


def _checked(line: Any) -> dict[str, Any]:
    if not isinstance(line, dict) or not {"key", "state"} <= line.keys():
        raise ValueError("neither key nor state")
    return line
