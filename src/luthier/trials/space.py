"""The space of a search: what may be varied, the values in it, and the experiment that a trial's values make.

Lives here: dimensions and their conditions, the default space of each method, what trials share. Does not live here:
how `search.space` is read (`spec/spaces.py`), which values come next (`study.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from luthier import presets, spec
from luthier.errors import SpecError
from luthier.spec import spaces, wording
from luthier.spec.spaces import key

COUNTED = spaces.COUNTED  # values of one dimension; a range of more is drawn from, not listed
GRID_POINTS = 5  # of a range without steps, where a grid needs a list
LOOKS = 9  # evaluations of a trial, where nobody said how often
LOOKS_SHARE = 1 / 3  # of a trial's own work, that more looks than one an epoch may cost: a weak trial ends at the first
BACKWARD = 3  # an update costs about as much as three forward passes
CHECKED = 2_000
GRID_LIMIT = 10_000  # combinations that a grid may have
TRIALS = 16
MOST_TRIALS = 1_000  # where time or tokens bound a search, and nobody says how many
FULL_TRIALS = 8  # each trains all weights, alone
LEARNS = ("tpe", "cmaes")  # samplers that choose by what trials told
TURNS = 4  # in which such a sampler names its trials, where nobody says how many are trained at once
RATE_STEP = math.sqrt(10)  # of the default space: two learning rates a decade
RANK_LIMIT, RATE_LIMIT = 64, 0.5  # of the document: PARAMETERS §1 and §3


@dataclass(frozen=True, slots=True)
class Dimension:
    """A parameter that is varied: a list of `choices`, or a range `low` … `high` of numbers ("float") or whole numbers
    ("int"), even in the logarithm if `log`, in steps of `step` (`log`: times `step`). It is varied only where each
    parameter of `when` has one of these values."""

    path: str
    kind: Literal["choices", "float", "int"]
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """Every value where they can be counted, in their order; None for a range without steps."""
        if self.kind == "choices":
            return self.choices
        step = self.step or (1 if self.kind == "int" and not self.log else None)
        if step is None or (count := spaces.count(self.low, self.high, step, self.log)) > COUNTED:
            return None
        return self._plain(self.low * step**i if self.log else self.low + i * step for i in range(count))

    @property
    def grid(self) -> tuple[Any, ...]:
        """The values that a grid takes: all of them, or GRID_POINTS evenly spread with both ends."""
        if (found := self.values) is not None:
            return found
        parts = [i / (GRID_POINTS - 1) for i in range(GRID_POINTS)]
        if self.log:
            return self._plain(self.low * (self.high / self.low) ** part for part in parts)
        return self._plain(self.low + (self.high - self.low) * part for part in parts)

    @property
    def ordered(self) -> bool:
        """Whether its values are numbers, so that neighbours are alike."""
        return self.kind != "choices" or all(type(choice) in (int, float) for choice in self.choices)

    def holds(self, value: Any) -> bool:
        """Whether `value` is one of its values."""
        if (found := self.values) is not None:
            return key(value) in {key(each) for each in found}
        number = type(value) is int or (type(value) is float and (self.kind == "float" or value.is_integer()))
        return number and self.low <= value <= self.high

    def _plain(self, numbers: Iterable[float]) -> tuple[Any, ...]:
        """Numbers as a person writes them (0.003, not 0.0030000000000000005), each once."""
        rounded = (round(number) if self.kind == "int" else float(f"{number:.6g}") for number in numbers)
        return tuple(dict.fromkeys(min(max(number, self.low), self.high) for number in rounded))


@dataclass(frozen=True, slots=True)
class Space:
    """What is varied, in the order of the description; what a condition names comes before what it allows."""

    dimensions: tuple[Dimension, ...]

    def active(self, dimension: Dimension, values: Mapping[str, Any]) -> bool:
        """Whether the dimension is varied in a trial that has `values` so far."""
        return all(
            path in values and key(values[path]) in {key(each) for each in among}
            for path, among in dimension.when.items()
        )

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether `values` are those of a trial of this space: each of its parameters, and none that is not varied."""
        wanted = [dimension for dimension in self.dimensions if self.active(dimension, values)]
        inside = all(each.path in values and each.holds(values[each.path]) for each in wanted)
        return inside and len(wanted) == len(values)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of the grids' values, each once; what a condition forbids is left out."""

        def further(values: dict[str, Any], rest: tuple[Dimension, ...]) -> Iterator[dict[str, Any]]:
            if not rest:
                yield values
            elif not self.active(rest[0], values):
                yield from further(values, rest[1:])
            else:
                for value in rest[0].grid:
                    yield from further(values | {rest[0].path: value}, rest[1:])

        return further({}, self.dimensions)

    @property
    def finite(self) -> bool:
        """Whether every dimension's values can be counted."""
        return all(dimension.values is not None for dimension in self.dimensions)


def same(values: Mapping[str, Any]) -> str:
    """What is equal for twins: trials that have the same values."""
    return json.dumps({path: key(value) for path, value in sorted(values.items())})


# --- from and to an experiment's text --------------------------------------------------------------------------------
def parse(entries: Mapping[str, Any]) -> Space:
    """The space that `search.space` describes, as the experiment has read it. What only some methods have is varied
    only with these, where the method is varied too."""
    read = spaces.search_space(dict(entries))
    found = {path: _dimension(path, entry) for path, entry in read.items()}
    if "method.type" in found:
        types = found["method.type"].choices
        for path, each in found.items():
            methods = spec.known_paths()[path]
            if methods and path != "method.type" and not set(types) <= set(methods):
                fitting = {"method.type": tuple(name for name in types if name in methods)}
                found[path] = _when(each, fitting | dict(each.when))
    return Space(_parents_first(found))


def _dimension(path: str, entry: Any) -> Dimension:
    if isinstance(entry, list):
        return Dimension(path, "choices", choices=tuple(entry))
    when = {other: tuple(among) for other, among in entry.get("when", {}).items()}
    if "choices" in entry:
        return Dimension(path, "choices", choices=tuple(entry["choices"]), when=when)
    form = next(form for form in spaces.RANGES if form in entry)
    low, high = entry[form]
    kind: Literal["int", "float"] = "int" if form == "int" or spaces.number_kind(path) == "int" else "float"
    return Dimension(path, kind, low, high, form == "log", entry.get("step"), when=when)


def _when(each: Dimension, when: Mapping[str, tuple[Any, ...]]) -> Dimension:
    return Dimension(each.path, each.kind, each.low, each.high, each.log, each.step, each.choices, when)


def _parents_first(found: Mapping[str, Dimension]) -> tuple[Dimension, ...]:
    placed: dict[str, Dimension] = {}
    while len(placed) < len(found):
        for path, each in found.items():
            if path not in placed and set(each.when) <= set(placed):
                placed[path] = each
    return tuple(placed.values())


def written(space: Space) -> dict[str, Any]:
    """The space as `search.space` says it: what `parse` reads back."""
    return {dimension.path: _written(dimension) for dimension in space.dimensions}


def _written(each: Dimension) -> Any:
    when = {"when": {path: list(among) for path, among in each.when.items()}} if each.when else {}
    if each.kind == "choices":
        return {"choices": list(each.choices), **when} if when else list(each.choices)
    form = "log" if each.log else "int" if each.kind == "int" else "uniform"
    return {form: [each.low, each.high]} | ({"step": each.step} if each.step is not None else {}) | when


# --- the default space -----------------------------------------------------------------------------------------------
def default(experiment: spec.Experiment, resolved: presets.Resolved, facts: presets.BaseFacts) -> Space:
    """What is varied where nobody says: the learning rate first, then what the method has.

    The rate: two values a decade, from a tenth of the described value or of the default for this base (whichever is
    lower) to ten times the higher one, within the document's range. LoRA: rank and dropout; alpha stays, because it
    works much like the rate (PARAMETERS §3). Prompt tuning: virtual tokens and how they start. Full: epochs and weight
    decay. Every described value is among the choices. Sources: LANDSCAPE §5 (a prior for the rate within a small
    factor, the rate first on a log grid), PEFT's method comparison for the start of a prompt.
    """
    decided = spec.leaves(resolved.experiment)
    rate, usual = decided["training.learning_rate"], presets.learning_rate(experiment.method.type, facts)[0]
    entries: dict[str, Any] = {"training.learning_rate": _rates(rate, usual)}
    if experiment.method.type in ("lora", "qlora"):
        rank = decided["method.rank"]
        ranks = [max(1, rank // 4), max(1, rank // 2), rank, min(2 * rank, max(rank, RANK_LIMIT))]
        entries["method.rank"] = sorted(set(ranks))
        entries["method.dropout"] = sorted({0.0, 0.05, 0.1, decided["method.dropout"]})
    elif experiment.method.type == "prompt_tuning":
        tokens, start = decided["method.virtual_tokens"], decided["method.init_method"]
        entries["method.virtual_tokens"] = sorted({max(1, tokens // 2), tokens, 2 * tokens})
        entries["method.init_method"] = list(dict.fromkeys([start, "vocabulary", "random"]))
    else:
        epochs = decided["training.num_epochs"]
        entries["training.num_epochs"] = sorted({max(1, epochs // 2), epochs, 2 * epochs})
        entries["training.weight_decay"] = sorted({0.0, 0.01, 0.1, decided["training.weight_decay"]})
    return parse(entries)


def _rates(middle: float, usual: float) -> list[float]:
    """`middle` and its neighbours, RATE_STEP apart, a decade beyond both; two digits, as a person writes them."""
    low, high = min(middle, usual) / 10, min(10 * max(middle, usual), max(middle, RATE_LIMIT))
    down = math.floor(math.log(middle / low) / math.log(RATE_STEP) + 1e-6)
    up = math.floor(math.log(high / middle) / math.log(RATE_STEP) + 1e-6)
    return [middle if i == 0 else float(f"{middle * RATE_STEP**i:.1e}") for i in range(-down, up + 1)]


def budget(space: Space, search: spec.Search, method: str) -> int:
    """How many trials the sampler makes: as wished; else every combination of a grid, as many as a limit of time or
    tokens allows, 16, or 8 of full tuning. Never more than there are combinations."""
    said = "trials" in search.model_fields_set
    usual = MOST_TRIALS if limited(search) else FULL_TRIALS if method == "full" else TRIALS
    asked, every = search.trials if said else usual, search.sampler == "grid" and not said
    if search.sampler != "grid" and not space.finite:
        return asked
    limit = GRID_LIMIT if every else asked
    return sum(1 for _ in itertools.islice(space.combinations(), limit))


def limited(search: spec.Search) -> bool:
    """Whether time or tokens bound the search."""
    return search.time_limit is not None or search.token_limit is not None


def at_once(wishes: spec.Search) -> int:
    """How many trials may be trained together; beyond `search.at_once` none. Where it is not given: all of them, but of
    a sampler that learns a part, so that it is told of some before it names others."""
    turns = TURNS if wishes.sampler in LEARNS else 1
    return wishes.at_once or math.ceil(wishes.trials / turns)


def starts(space: Space, described: spec.Experiment) -> tuple[dict[str, Any], ...]:
    """What is tried first: the described values (of a resolved experiment) where the space has them; then, one after
    another, the countable learning rates with all else as described, nearest first."""
    values = spec.leaves(described)
    first: dict[str, Any] = {}
    for each in space.dimensions:
        if space.active(each, first) and each.path in values and each.holds(values[each.path]):
            first[each.path] = _listed(values[each.path])
    found = [first] if first else []
    rate = next((each for each in space.dimensions if each.path == "training.learning_rate"), None)
    if rate is not None and rate.path in first and rate.values is not None and not rate.when:
        here = math.log(first[rate.path])
        others = sorted(rate.values, key=lambda value: (abs(math.log(value) - here), value))
        found += [first | {rate.path: value} for value in others[1:]]
    return tuple(found)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- a trial's experiment --------------------------------------------------------------------------------------------
def applied(experiment: spec.Experiment, values: Mapping[str, Any]) -> spec.Experiment:
    """The described experiment with a trial's `values` (parameter → value), without its search.

    A method of another type keeps what both have; a prompt that no longer starts from a text loses the text. Raises
    SpecError where the values do not go together.
    """
    sections: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        if (why := spaces.why_not(path)) is not None:
            raise SpecError(f"`{path}` {why}")
        if "." not in path:
            value = _checked(path, value)
        section, _, name = path.rpartition(".")
        sections.setdefault(section, {})[name] = value
    changes = dict(sections.pop("", {}))
    for section, given in sections.items():
        part = _part(experiment, section)
        changes[section] = _method(part, given) if section == "method" else _changed(type(part), part, given)
    fields = (experiment.model_fields_set | set(changes)) - {"search"}
    whole = dict(experiment) | changes | {"search": None}
    return spec.Experiment.model_construct(fields, **whole)


def _checked(path: str, value: Any) -> Any:
    try:
        return spaces.checked(path, value)
    except ValidationError as error:
        raise wording.explain(error, spec.known_paths(), lambda path: None, (path,)) from None


def _part(experiment: spec.Experiment, section: str) -> spec.Part:
    found = dict(experiment).get(section)
    if not isinstance(found, spec.Part):
        raise SpecError(f"`{section}` holds no parameter of a trial")
    return found


def _changed(kind: type[spec.Part], part: spec.Part, given: Mapping[str, Any]) -> spec.Part:
    chosen = {name: value for name, value in part if name in part.model_fields_set and name in kind.model_fields}
    return kind(**chosen | dict(given))


def _method(part: spec.Part, given: Mapping[str, Any]) -> spec.Part:
    kinds = {kind.model_fields["type"].default: kind for kind in (spec.PromptTuning, spec.Lora, spec.QLora, spec.Full)}
    before = dict(part)
    kind = kinds[given.get("type", before["type"])]
    part = type(part).model_construct(part.model_fields_set - {"type"}, **before)
    if given.get("init_method", "text") != "text" and "init_text" not in given:
        fields = part.model_fields_set - {"init_text"}
        part = type(part).model_construct(fields, **dict(part))
    return _changed(kind, part, {"type": kind.model_fields["type"].default, **given})


def refuse_combinations(space: Space, experiment: spec.Experiment) -> None:
    """Raise SpecError where values of the space do not go together (an `init_text` with a random start), before any is
    trained. Tried are the combinations within each section, at most CHECKED of each."""
    for section in sorted({each.path.rpartition(".")[0] for each in space.dimensions}):
        inside = {each.path for each in space.dimensions if each.path.rpartition(".")[0] == section}
        above = {path for each in space.dimensions if each.path in inside for path in _needed(space, each)}
        part = Space(tuple(each for each in space.dimensions if each.path in inside | above))
        for values in itertools.islice(part.combinations(), CHECKED):
            try:
                applied(experiment, values)
            except SpecError as refusal:
                words = ", ".join(f"{path} {wording.shown(value)}" for path, value in values.items())
                hint = "`when: {parameter: value}` below an entry says with which values it is varied"
                raise SpecError(
                    f"`search.space` allows what cannot be: {refusal.message} ({words})", hint=hint
                ) from None


def probes(space: Space) -> Iterator[dict[str, Any]]:
    """Values that show every choice and both ends of every range once, each with what its condition asks for."""
    for dimension in space.dimensions:
        for value in dimension.choices or (dimension.low, dimension.high):
            yield _needed(space, dimension) | {dimension.path: value}


def _needed(space: Space, dimension: Dimension) -> dict[str, Any]:
    by_path = {each.path: each for each in space.dimensions}
    found: dict[str, Any] = {}
    for path, among in dimension.when.items():
        found |= _needed(space, by_path[path]) | {path: among[0]}
    return found


def evaluate_every(experiment: spec.Experiment, train: int, validation: int, pruner: str) -> int | None:
    """Updates between two looks at a resolved trial of so many rows; None: as the experiment says.

    A pruner needs more than one look an epoch: LOOKS over the whole training where they cost no more than LOOKS_SHARE
    of it (an update's row costs as much as BACKWARD rows of validation), never fewer than one an epoch. Where somebody
    set a patience, which counts evaluations, they come as often as that expects.
    """
    training = experiment.training
    said = training.evaluate_every is not None or training.patience is not None
    if said or pruner == "none" or not validation:
        return None
    batches = spec.batches_per_epoch(train, training.batch_size)
    an_epoch = spec.steps_per_epoch(batches, training.accumulate_steps)
    steps = training.max_steps or an_epoch * training.num_epochs
    work = BACKWARD * train * steps / an_epoch
    looks = min(LOOKS, int(LOOKS_SHARE * work / validation))
    every = math.ceil(steps / looks) if looks else steps
    return every if every < an_epoch else None


# --- what trials share -----------------------------------------------------------------------------------------------
_RENDERING = ("train_on", "overlength", "template")


def group_key(experiment: spec.Experiment, revision: str) -> str:
    """12 hex digits that are equal for trials of one search which can share a process: the same base in the same
    numbers, and the same rendering of the rows. Full tuning changes the base: each such trial is alone.

    `max_seq_length` counts where somebody chose it, or rows are dropped or cut by it. What only follows from the base's
    positions does not: it differs between prompts of different length, whose rows are the same.
    """
    model, method, data = experiment.model, experiment.method, experiment.data
    what: dict[str, Any] = {"model": dict(model) | {"revision": revision}}
    what["bits"] = [method.bits, method.double_quantization] if isinstance(method, spec.QLora) else None
    what["data"] = {name: dict(data)[name] for name in _RENDERING}
    bounded = data.overlength != "error" or "max_seq_length" in experiment.training.model_fields_set
    what["length"] = experiment.training.max_seq_length if bounded else None
    if method.type == "full":
        what["alone"] = {path: value for path, value in spec.leaves(experiment).items() if path != "name"}
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]
