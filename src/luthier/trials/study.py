"""Which values come next, which trial is weak, which parameters mattered: Optuna, asked anew each time.

Nothing is kept between two questions: the study is rebuilt from the trials, so whoever kills the search and begins
again gets the same answers. Lives here: samplers, importance, the Pareto front. Does not live here: stopping the weak
(`pruning.py`), the trials' folders (`record.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier import spec
from luthier.trials.record import Trial
from luthier.trials.space import Space


def objectives(objective: str) -> tuple[str, ...]:
    """The names in `search.objective`: "loss, size" → ("loss", "size")."""
    return tuple(name.strip() for name in objective.split(",") if name.strip())


def directions(objective: str) -> tuple[bool, ...]:
    """For each name in `search.objective` whether more is better. Raises SpecError for an unknown one."""
    raise NotImplementedError


def ask(
    space: Space, wishes: spec.Search, seed: int, trials: Sequence[Trial], starts: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any] | None:
    """The values of the next trial; None where every combination has been tried. `starts` (`space.starts`) come first,
    but for a grid."""
    raise NotImplementedError


def weak(wishes: spec.Search, trials: Sequence[Trial], number: int) -> tuple[str, str] | None:
    """How the trial should end now, by its newest evaluation, and why: ("pruned", reason), or ("done", reason) where it
    only over-fits (its best weights are kept, and count); None: it goes on."""
    raise NotImplementedError


def importance(space: Space, wishes: spec.Search, trials: Sequence[Trial]) -> dict[str, float]:
    """Share of each varied parameter in what made trials good, largest first; they sum to 1. {} with too few trials."""
    raise NotImplementedError


def front(objective: str, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats in every objective, best in the first one first."""
    raise NotImplementedError
