"""`luthier doctor`: the machine, the versions and their floors, the home folder, each with what to do if it is wrong.

Lives here: what is examined. Does not live here: what a device can do (`hardware.py`).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier import hardware
from luthier.cli.show import size

LEAST_FREE = 2 << 30  # bytes: a base of a billion parameters and its checkpoints


@dataclass(frozen=True, slots=True)
class Item:
    """Something examined: what was found, and if it is `wrong` what to do about it."""

    name: str
    found: str
    remark: str = ""
    wrong: bool = False


def examine(home: Path) -> list[Item]:
    """Everything a run depends on, in the order a person would ask."""
    return [*_machine(), *_packages(), *_folder(home)]


def _machine() -> Iterator[Item]:
    found = hardware.machine()
    yield Item("python", platform.python_version())
    yield Item("device", f"{found.count} × {found.device}: {found.name}")
    yield Item("memory", size(found.memory_bytes))
    yield Item("cores", str(found.cores))
    yield Item("precision", found.dtype, "of frozen weights, by default")


def _packages() -> Iterator[Item]:
    for line in importlib.metadata.requires("luthier") or []:
        named = re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\d.]+)(.*)", line)
        if named is None or "dev" in named[3]:
            continue
        name, floor, marker = named.groups()
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        yield _package(name, floor, extra[1] if extra else None)


def _package(name: str, floor: str, extra: str | None) -> Item:
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        command = f"pip install 'luthier[{extra}]'" if extra else f"pip install '{name}>={floor}'"
        return Item(name, "not installed", f"optional: {command}" if extra else command, wrong=extra is None)
    if _numbers(installed) < _numbers(floor):
        return Item(name, installed, f"{floor} or newer is needed: pip install '{name}>={floor}'", wrong=True)
    return Item(name, installed)


def _numbers(version: str) -> list[int]:
    """The release numbers of a version, for comparing.

    >>> _numbers("2.13.0+cpu") > _numbers("2.9")
    True
    """
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])]


def _folder(home: Path) -> Iterator[Item]:
    nearest = next(folder for folder in (home, *home.parents) if folder.is_dir())
    writable = os.access(nearest, os.W_OK)
    yield Item("home", str(home), "" if writable else "cannot be written: say another with --home", wrong=not writable)
    free = shutil.disk_usage(nearest).free
    wrong = free < LEAST_FREE
    yield Item("free disk", size(free), f"less than {size(LEAST_FREE)}: make room" if wrong else "", wrong=wrong)
