"""Which values come next, which parameters mattered, what no other trial beats: Optuna, asked anew each time.

Nothing is kept between two questions. The study is rebuilt from the trials, and every draw follows from the seed and
the trial's number, so whoever kills a search and begins it again gets the same answers. Lives here: samplers,
importance, the Pareto front. Does not live here: stopping the weak (`pruning.py`), the trials' folders (`record.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier import spec
from luthier.errors import SpecError
from luthier.trials import pruning, record, space
from luthier.trials.record import Trial
from luthier.trials.space import GRID_LIMIT, Dimension, Space, same

if TYPE_CHECKING:
    import numpy as np
    import optuna

TRIES = 10  # draws before a twin of an earlier trial is given up
STARTUP = 5  # trials at random before TPE and with fewer than 20; then a quarter of them, at most MOST_STARTUP
MOST_STARTUP = 10
SIGMA = 0.25  # of CMA-ES's first generation, of each range
DIGITS = 4  # of a drawn number
FEWEST = 8  # trials with an objective, before importance means anything
TOP = 5  # trials that importance compares with all, as long as they are no more than a third


def directions(objective: str) -> tuple[bool, ...]:
    """For each name in `search.objective` whether more is better. Raises SpecError for a name that is none."""
    names = record.objectives(objective)
    if not names:
        raise SpecError("`search.objective` names nothing", hint="`loss`, or the name of a metric")
    return tuple(_more_is_better(name) for name in names)


def _more_is_better(name: str) -> bool:
    if name in ("loss", record.SIZE):
        return False
    from luthier.evaluation import metrics  # numpy: only where a metric is named

    return metrics.by_name([name])[0].higher_is_better


def weak(wishes: spec.Search, trials: Sequence[Trial], number: int) -> pruning.Ending | None:
    """How trial `number` should end now, and why: `pruning.weak`."""
    return pruning.weak(wishes, directions(wishes.objective), trials, number)


def front(objective: str, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats in every objective, the best in the first one first, the earlier of equals first.
    Trials without a value of each objective are left out."""
    names, higher = record.objectives(objective), directions(objective)
    known = [(trial, values) for trial in trials if (values := record.objective(trial, names)) is not None]
    best = [
        (trial, values)
        for trial, values in known
        if not any(pruning.beats(other, values, higher) for _, other in known)
    ]
    best.sort(key=lambda pair: (-pair[1][0] if higher[0] else pair[1][0], pair[0].number))
    return [trial for trial, _ in best]


# --- which values come next ------------------------------------------------------------------------------------------
def ask(
    whole: Space, wishes: spec.Search, seed: int, trials: Sequence[Trial], starts: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any] | None:
    """The values of the next trial; None where every combination has been tried.

    TPE begins with all of `starts` (`space.starts`), random and CMA-ES with the first. A grid, and random in a space
    whose values can be counted, take every combination once, in an order drawn by the seed. No trial is a twin of an
    earlier one, as long as there are others. Raises SpecError where sampler and space do not fit.
    """
    _refuse(whole, wishes)
    tried = {same(trial.values) for trial in trials if trial.by != "seed"}
    made = sum(trial.by == "sampler" for trial in trials)
    first = [] if wishes.sampler == "grid" else starts if wishes.sampler == "tpe" else starts[:1]
    if made < len(first) and same(first[made]) not in tried:
        if whole.holds(first[made]):
            return dict(first[made])
        return _drawn(whole, wishes, seed, trials, first[made], 0)
    listed = wishes.sampler == "grid" or (wishes.sampler == "random" and whole.finite)
    if listed and (every := _every(whole)) is not None:
        return _untried(every, seed, tried)
    for attempt in range(TRIES):
        values = _drawn(whole, wishes, seed, trials, {}, attempt)
        if same(values) not in tried:
            return values
    every = _every(whole) if whole.finite else None
    return values if every is None else _untried(every, seed, tried)


def _refuse(whole: Space, wishes: spec.Search) -> None:
    higher = directions(wishes.objective)
    if wishes.sampler == "grid" and _every(whole) is None:
        hint = "fewer values or `step`s, or `sampler: random`, which draws as many as `trials`"
        raise SpecError(f"the grid of `search.space` has more than {GRID_LIMIT:,} combinations", hint=hint)
    if wishes.sampler != "cmaes":
        return
    if len(higher) > 1:
        hint = "`sampler: tpe` takes several"
        raise SpecError("`search.sampler: cmaes` takes one objective", hint=hint)
    if len(_moved(whole)) < 2:
        hint = "`sampler: tpe` takes choices and conditions"
        raise SpecError("`search.sampler: cmaes` needs two numbers in `search.space` without a condition", hint=hint)


def _every(whole: Space) -> list[dict[str, Any]] | None:
    """Every combination of the grid; None where there are more than a grid may have."""
    found = list(itertools.islice(whole.combinations(), GRID_LIMIT + 1))
    return found if len(found) <= GRID_LIMIT else None


def _untried(combinations: Sequence[dict[str, Any]], seed: int, tried: set[str]) -> dict[str, Any] | None:
    left = [values for values in combinations if same(values) not in tried]
    return min(left, key=lambda values: _mixed(seed, same(values)), default=None)


def _mixed(*what: Any) -> int:
    """32 bits that follow from `what` alone."""
    return int.from_bytes(hashlib.sha256(json.dumps(what).encode()).digest()[:4], "big")


def _drawn(
    whole: Space, wishes: spec.Search, seed: int, trials: Sequence[Trial], fixed: Mapping[str, Any], attempt: int
) -> dict[str, Any]:
    """Values by the sampler, but for those that are `fixed`."""
    number = max((trial.number for trial in trials), default=-1) + 1
    drawn_by = _mixed(seed, number, attempt)
    told = [trial for trial in trials if trial.by != "seed" and whole.holds(trial.values)]
    if wishes.sampler == "cmaes":
        fixed = _by_cmaes(whole, wishes, told, drawn_by) | dict(fixed)
    with _quiet():
        import optuna

        if wishes.sampler == "tpe":
            startup = min(MOST_STARTUP, max(STARTUP, wishes.trials // 4))
            sampler: Any = optuna.samplers.TPESampler(seed=drawn_by, n_startup_trials=startup, constant_liar=True)
            study = _rebuilt(whole, wishes, told, sampler)
        else:
            study = _rebuilt(whole, wishes, [], optuna.samplers.RandomSampler(seed=drawn_by))
        asked = study.ask()
        values: dict[str, Any] = {}
        for each in whole.dimensions:
            if whole.active(each, values):
                drawn = fixed[each.path] if each.path in fixed else _outer(each, _suggested(asked, each))
                values[each.path] = drawn
        return values


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's own words are not for our users."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


# --- a space as Optuna knows it: what can be counted by its place, in order where values are numbers -----------------
def _distribution(each: Dimension) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if (values := each.values) is not None:
        if each.ordered and len(values) > 1:
            return IntDistribution(0, len(values) - 1)
        return CategoricalDistribution(tuple(range(len(values))))
    if each.kind == "int":
        return IntDistribution(int(each.low), int(each.high), log=each.log)
    return FloatDistribution(each.low, each.high, log=each.log)


def _places(each: Dimension) -> list[Any]:
    values = list(each.values or ())
    return sorted(values) if each.ordered else values


def _inner(each: Dimension, value: Any) -> Any:
    """A value of the dimension as Optuna knows it."""
    return [space.key(other) for other in _places(each)].index(space.key(value)) if each.values is not None else value


def _outer(each: Dimension, value: Any) -> Any:
    return _places(each)[int(value)] if each.values is not None else value


def _suggested(asked: optuna.Trial, each: Dimension) -> Any:
    """A value that the sampler draws; of a range to DIGITS digits, as a person would write it."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    way = _distribution(each)
    if isinstance(way, CategoricalDistribution):
        return asked.suggest_categorical(each.path, way.choices)
    if isinstance(way, IntDistribution):
        return asked.suggest_int(each.path, way.low, way.high, log=way.log)
    return _written(each, asked.suggest_float(each.path, each.low, each.high, log=each.log))


def _written(each: Dimension, number: float) -> float:
    return min(max(float(f"{number:.{DIGITS}g}"), each.low), each.high)


def _rebuilt(whole: Space, wishes: spec.Search, trials: Sequence[Trial], sampler: Any) -> optuna.Study:
    """The study that these trials make."""
    import optuna

    names = record.objectives(wishes.objective)
    way = optuna.study.StudyDirection
    ways = [way.MAXIMIZE if more else way.MINIMIZE for more in directions(wishes.objective)]
    study = optuna.create_study(directions=ways, sampler=sampler)
    study.add_trials([_frozen(whole, trial, names) for trial in trials])
    return study


def _frozen(whole: Space, trial: Trial, names: Sequence[str]) -> optuna.trial.FrozenTrial:
    """A trial as Optuna knows it. One that has not ended is running: its neighbourhood is avoided meanwhile. What was
    pruned or failed ranks below what is done; with several objectives, where Optuna knows no pruned trials, a pruned
    one counts by the weights it kept."""
    import optuna
    from optuna.trial import TrialState

    dimensions = {each.path: each for each in whole.dimensions if each.path in trial.values}
    inner: dict[str, Any] = {
        "params": {path: _inner(each, trial.values[path]) for path, each in dimensions.items()},
        "distributions": {path: _distribution(each) for path, each in dimensions.items()},
    }
    values = record.objective(trial, names)
    ended = trial.state in ("done", "pruned", "failed")
    if not ended:
        return optuna.trial.create_trial(state=TrialState.RUNNING, **inner)
    if values is not None and (trial.state == "done" or (trial.state == "pruned" and len(names) > 1)):
        return optuna.trial.create_trial(state=TrialState.COMPLETE, values=list(values), **inner)
    if len(names) > 1:
        return optuna.trial.create_trial(state=TrialState.FAIL, **inner)
    looks = {round(1000 * trial.told[-1][1]): values[0]} if values is not None and trial.state == "pruned" else {}
    return optuna.trial.create_trial(state=TrialState.PRUNED, intermediate_values=looks, **inner)


# --- CMA-ES: Optuna's own keeps its state in its database; here it follows from the trials --------------------------
def _moved(whole: Space) -> list[Dimension]:
    """What CMA-ES moves: numbers that every trial has, and that have more than one value."""
    found = [each for each in whole.dimensions if each.ordered and not each.when]
    return [each for each in found if each.values is None or len(each.values) > 1]


def _by_cmaes(whole: Space, wishes: spec.Search, trials: Sequence[Trial], drawn_by: int) -> dict[str, Any]:
    """The next values of the numbers, each in 0 … 1: its generations are the trials that have ended, by number, as many
    at a time as it wants. What ended without an objective counts as the worst."""
    import numpy as np
    from cmaes import CMA

    moved, more = _moved(whole), directions(wishes.objective)[0]
    bounds_D2 = np.tile([0.0, 1.0], (len(moved), 1))
    ended = [trial for trial in trials if trial.state in ("done", "pruned", "failed")]
    first = next((trial for trial in trials if trial.number == 0), None)
    middle_D = _unit(moved, first.values) if first else np.full(len(moved), 0.5)
    strategy = CMA(mean=middle_D, sigma=SIGMA, bounds=bounds_D2, seed=drawn_by)
    size = strategy.population_size
    for place in range(0, len(ended) - size + 1, size):
        generation = [(_unit(moved, trial.values), _cost(trial, wishes, more)) for trial in ended[place:][:size]]
        strategy.tell(generation)
    drawn_D = strategy.ask()
    return {each.path: _from_unit(each, float(part)) for each, part in zip(moved, drawn_D, strict=True)}


def _cost(trial: Trial, wishes: spec.Search, more: bool) -> float:
    values = record.objective(trial, record.objectives(wishes.objective)) if trial.state != "failed" else None
    return math.inf if values is None else -values[0] if more else values[0]


def _unit(moved: Sequence[Dimension], values: Mapping[str, Any]) -> np.ndarray:
    import numpy as np

    return np.array([_to_unit(each, values[each.path]) for each in moved])


def _to_unit(each: Dimension, value: Any) -> float:
    if each.values is not None:
        return (float(_inner(each, value)) + 0.5) / len(each.values)
    if each.log:
        return math.log(value / each.low) / math.log(each.high / each.low)
    return float((value - each.low) / (each.high - each.low))


def _from_unit(each: Dimension, part: float) -> Any:
    if each.values is not None:
        return _outer(each, min(int(part * len(each.values)), len(each.values) - 1))
    found = each.low * (each.high / each.low) ** part if each.log else each.low + part * (each.high - each.low)
    return min(max(round(found), each.low), each.high) if each.kind == "int" else _written(each, found)


# --- which parameters mattered ---------------------------------------------------------------------------------------
def importance(whole: Space, wishes: spec.Search, trials: Sequence[Trial]) -> dict[str, float]:
    """Share of each varied parameter in what set the best trials apart, largest first; they sum to 1. By PED-ANOVA
    (Watanabe 2023): how unlike the values of the best trials (a tenth; at least TOP, at most a third) are those of all.

    For the first objective; a pruned trial counts by the weights it had kept. {} with fewer than FEWEST such trials.
    """
    with _quiet():
        import optuna
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        names = record.objectives(wishes.objective)[:1]
        more = directions(names[0])[0]
        told = [trial for trial in trials if trial.by != "seed" and whole.holds(trial.values)]
        ended = [trial for trial in told if trial.state in ("done", "pruned") and record.objective(trial, names)]
        if len(ended) < FEWEST:
            return {}
        study = optuna.create_study(direction="maximize" if more else "minimize")
        study.add_trials([_complete(whole, trial, names) for trial in ended])
        top = min(1 / 3, max(0.1, TOP / len(ended)))
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=top))
    total = sum(found.values())
    if not total > 0:
        return {}
    return {path: value / total for path, value in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))}


def _complete(whole: Space, trial: Trial, names: Sequence[str]) -> optuna.trial.FrozenTrial:
    import optuna

    known = {each.path: each for each in whole.dimensions if each.path in trial.values}
    return optuna.trial.create_trial(
        values=list(record.objective(trial, names) or ()),
        params={path: _inner(each, trial.values[path]) for path, each in known.items()},
        distributions={path: _distribution(each) for path, each in known.items()},
    )
