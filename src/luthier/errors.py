"""What can go wrong, said so that a person can act on it: message, where, what next.

Every error a user can cause is a `LuthierError`; anything else that escapes is a defect of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path


class LuthierError(Exception):
    """An error with a place and a way out. Picklable, so that it crosses process borders whole."""

    def __init__(self, message: str, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, where, hint)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        advice = f"\n\nhint: {self.hint}" if self.hint else ""
        return f"{self.message}{place}{advice}"


class SpecError(LuthierError, ValueError):
    """The experiment says something that cannot be meant."""


class DataError(LuthierError, ValueError):
    """The rows cannot be read, or would fail silently in training."""


class ModelError(LuthierError, RuntimeError):
    """A base or an adapter cannot be loaded, saved or combined."""


class TrainingError(LuthierError, RuntimeError):
    """The run cannot go on."""


class NotFound(LuthierError, LookupError):
    """A run, file or name that does not exist."""


class MissingExtra(LuthierError, ImportError):
    """An optional dependency is not installed; the hint is the command that installs it."""

    def __init__(self, message: str, where: str | None = None, hint: str | None = None) -> None:
        LuthierError.__init__(self, message, where, hint)


def in_words(error: LuthierError) -> dict[str, str | None]:
    """An error as plain values, to be written down or told to another process."""
    return {"kind": type(error).__name__, "message": error.message, "where": error.where, "hint": error.hint}


def as_it_was(words: Mapping[str, str | None]) -> LuthierError:
    """The error that `in_words` told; of a kind nobody knows, a TrainingError."""
    kinds = {kind.__name__: kind for kind in _kinds(LuthierError)}
    return kinds.get(words["kind"] or "", TrainingError)(words["message"] or "", words["where"], words["hint"])


def _kinds(of: type[LuthierError]) -> list[type[LuthierError]]:
    return [each for kind in of.__subclasses__() for each in (kind, *_kinds(kind))]


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The hint for a misspelt word, or None when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else None


def few(names: Iterable[str], limit: int = 12) -> str:
    """Names for a sentence: no more than a person reads.

    >>> few(["a", "b"]), few("abcde", limit=2)
    ('a, b', 'a, b and 3 more')
    """
    found = list(names)
    shown = ", ".join(name if len(name) <= 60 else f"{name[:57]}…" for name in found[:limit])
    return f"{shown} and {len(found) - limit:,} more" if len(found) > limit else shown


def here(name: str | Path) -> Path:
    """The path that `name` is, `~` opened; the home of nobody stays as it is written."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def near_path(path: Path) -> str | None:
    """The hint for a path that is not there: the neighbour that was probably meant. None when nothing is close."""
    if path.exists():
        return None
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    try:
        names = [entry.name for entry in missing.parent.iterdir()]
    except OSError:  # a folder that may be entered, not read
        return None
    close = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.6)
    if not close:
        return None
    meant = missing.parent / close[0] / path.relative_to(missing)
    return f"did you mean `{meant if meant.exists() else missing.parent / close[0]}`?"


def means_a_path(name: str) -> bool:
    """Whether `name` can only be a path: of its form, or because a folder of its first part stands here.

    >>> [means_a_path(name) for name in ("./x", "~/x", "/x", "a/b/c", "org/name", "gpt2")]
    [True, True, True, True, False, False]
    """
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and Path(name).parent.is_dir())
