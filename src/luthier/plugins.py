"""A name → a function: built in, from an installed package's entry point, or (where allowed) by dotted path.

Lives here: finding and loading. Does not live here: what a plugin must do (`testing.py` has the contract tests).

A package offers a metric by an entry point of the group `luthier.metric`: `[project.entry-points."luthier.metric"]`,
which names a function, or a value of the kind's own type (for a metric a `Metric`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from luthier.errors import SpecError, did_you_mean

Function = Callable[..., Any]


def find(
    kind: str, name: str, built_in: Mapping[str, Any], *, dotted_paths: bool = False, ready: type | None = None
) -> Any:
    """What `name` stands for among the plugins of `kind` ("metric", "format", "tracker", "engine").

    `built_in` values are returned as they are, but for text "module:function", which is imported. No package can take
    a built-in name over. "module:function" as a name runs code of the user's choice: only where `dotted_paths`
    says that the user is the owner of this process. `ready`: the type of what need not be a function. Raises SpecError.
    """
    if name in built_in:
        found = built_in[name]
        return _imported(found, f"built-in {kind} `{name}`", ready) if isinstance(found, str) else found
    offers = [entry for entry in metadata.entry_points(group=f"luthier.{kind}") if entry.name == name]
    if len({entry.value for entry in offers}) > 1:
        packages = ", ".join(sorted(entry.dist.name if entry.dist else entry.value for entry in offers))
        raise SpecError(f"several packages offer a {kind} `{name}`: {packages}", hint="uninstall all but one of them")
    if offers:
        return _imported(offers[0].value, f"{kind} `{name}` of the package {_package(offers[0])}", ready)
    if ":" in name and dotted_paths:
        return _imported(name, f"{kind} `{name}`", ready)
    if ":" in name:
        raise SpecError(
            f"`{name}`: a {kind} by path runs code, which is not allowed here", hint="use an installed plugin"
        )
    known = names(kind, built_in)
    raise SpecError(f"there is no {kind} `{name}`", hint=did_you_mean(name, known) or f"known: {', '.join(known)}")


def names(kind: str, built_in: Mapping[str, Any]) -> list[str]:
    """All names of `kind`: the built-in ones in their order, then those of installed packages."""
    offered = {entry.name for entry in metadata.entry_points(group=f"luthier.{kind}")}
    return [*built_in, *sorted(offered - set(built_in))]


def _package(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.module


def _imported(path: str, what: str, ready: type | None) -> Any:
    module, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a plugin may fail in any way while it is imported; the person needs its name
        raise SpecError(
            f"the {what} cannot be loaded: {type(error).__name__}: {error}", hint=f"it is `{path}`"
        ) from error
    if not callable(found) and (ready is None or not isinstance(found, ready)):
        raise SpecError(f"the {what} is not a function (`{path}`)")
    return found
