"""`luthier.toml` in the home folder: where and how things run. Nothing in it changes what is learned.

Each key stands for an environment variable, which wins where it is set. `luthier.example.toml` shows them all.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.errors import SpecError, did_you_mean

FILE = "luthier.toml"
KEYS: Mapping[str, tuple[str, type]] = {
    "device": ("LUTHIER_DEVICE", str),
    "threads": ("OMP_NUM_THREADS", int),
    "offline": ("HF_HUB_OFFLINE", bool),
    "hub_cache": ("HF_HUB_CACHE", str),
    "ray_address": ("RAY_ADDRESS", str),
}
"""Key → the environment variable it stands for, and what its value must be."""


def environment(home: Path) -> dict[str, str]:
    """The environment variables that `home`/luthier.toml stands for. Raises SpecError for a wrong line."""
    path = home / FILE
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SpecError(f"this is not TOML: {problem}", where=str(path)) from None
    return {KEYS[key][0]: _text(key, value, path) for key, value in written.items() if _known(key, path)}


def _known(key: str, path: Path) -> bool:
    if key not in KEYS:
        raise SpecError(f"`{key}` is not a setting", str(path), did_you_mean(key, KEYS) or f"known: {', '.join(KEYS)}")
    return True


def _text(key: str, value: Any, path: Path) -> str:
    wanted = KEYS[key][1]
    if wanted is not type(value):
        words = {str: "a text in quotes", int: "a whole number", bool: "true or false"}
        raise SpecError(f"`{key}` must be {words[wanted]}, not {value!r}", where=str(path))
    return str(value)  # the Hub's library reads True as well as 1
