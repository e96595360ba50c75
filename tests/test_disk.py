"""Files and folders that are whole or absent: what fails in the middle leaves the old one and nothing beside it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

from luthier import disk


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    disk.write_json(path, {"score": 1.5, "text": "過学習 \ud83d"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"score": 1.5, "text": "過学習 \ud83d"}
    with pytest.raises(ValueError):
        disk.write_json(path, {"score": math.nan})
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        disk.write_whole(tmp_path / "taken", "text")
    assert json.loads(path.read_text(encoding="utf-8"))["score"] == 1.5
    assert {each.name for each in tmp_path.iterdir()} == {"report.json", "taken"}


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "adapter"
    for text in ("old", "new"):
        with disk.whole_folder(target) as partial:
            (partial / "inner").mkdir()
            (partial / "inner" / "weights").write_text(text)
            (partial / "inner" / "weights").chmod(0o600)
    with pytest.raises(ZeroDivisionError), disk.whole_folder(target) as partial:
        (partial / "weights").write_text("half")
        raise ZeroDivisionError
    assert (target / "inner" / "weights").read_text() == "new"
    assert (target / "inner" / "weights").stat().st_mode & 0o777 == 0o644
    assert [each.name for each in target.parent.iterdir()] == ["adapter"]


def test_a_file_s_name_by_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert disk.sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()
