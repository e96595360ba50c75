"""Files and folders that are whole or absent, whatever is killed meanwhile; and a file's name by content.

Lives here: writing beside the place, syncing, renaming. Does not live here: what is written.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-[0-9a-f]{8}")  # the names that the writers below use meanwhile

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What a disk that is full, or broken, answers to a write."""


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader, or a power cut, finds the old text or the new one, never a part.

    Half a surrogate pair, which UTF-8 cannot hold, is written as its escape (which JSON reads back).
    """
    partial = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        with partial.open("wb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, whole or absent. Non-finite numbers are refused: they are not JSON."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; put in its place when the block ends well, removed when it does not."""
    if not folder.parent.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        sync(folder.parent.parent)
    mark = secrets.token_hex(4)
    partial, old = folder.with_name(f".{folder.name}.tmp-{mark}"), folder.with_name(f".{folder.name}.old-{mark}")
    partial.mkdir()
    try:
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors leaves its files readable by the owner only
            sync(path)
        sync(partial)
        if folder.exists():
            folder.replace(old)
        try:
            partial.replace(folder)
        except OSError:
            if old.exists():
                old.replace(folder)
            raise
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Put right what killed writers left in `folder`: half-made files and folders go, what was being replaced returns.

    For the one process that may write there.
    """
    for path in list(folder.glob(".*")):
        left = _LEFT.fullmatch(path.name)
        if left is None:
            continue
        if left["kind"] == "old" and not (folder / left["name"]).exists():
            path.replace(folder / left["name"])
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Wait until no other process holds `folder`, and hold it; False where its file system knows no locks.

    The lock is the kernel's: it cannot outlive the process that holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
