"""The trials of a search as their folders tell them: making one, which may be handed out, what people wish meanwhile.

Lives here: a search's folder, and the folders of its trials beside it. Does not live here: the processes that train
them (`lead.py`), which values are tried and which trial is weak (`trials/`).

Nothing else holds state: whoever opens the roster anew finds what was there.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from luthier import disk, drafts, errors, logbook, ownership, presets, runs, spec
from luthier.data.dataset import Dataset, load_dataset
from luthier.drafts import Base, Draft
from luthier.errors import DataError, LuthierError, ModelError, SpecError, TrainingError
from luthier.logbook import Problem
from luthier.runs import Run, State
from luthier.trials import record, space, study
from luthier.trials.record import Trial
from luthier.trials.space import Space

KIND = "search"
WISHES = "wishes"
ENDED = ("done", "pruned", "failed")
TRIES = 2  # processes that may die under a trial
KEPT_SECONDS = 2.0  # of a search with a limit that a kill may forget


def search_of(run: Run) -> str:
    """The id of the search whose trial `run` is. Raises SpecError where it is none."""
    if run.facts.get("search") is None:
        hint = "a trial is named by its search and its number: `SEARCH.007`"
        raise SpecError(f"{run.id} is no trial of a search", hint=hint)
    return str(run.facts["search"])


@dataclass(frozen=True, slots=True)
class Basis:
    """What all trials of a search share: the described experiment, the rows, and what is known of the bases."""

    described: spec.Experiment
    dataset: Dataset
    regression: Dataset | None
    drawn_by: int
    pruner: str
    bases: dict[str, Base]

    def draft(self, values: Mapping[str, Any]) -> Draft:
        """The experiment with these values, every other one decided. Raises SpecError, and ModelError for a base that
        cannot be used."""
        for path in values:
            if path.startswith(("data.", "evaluation.", "task")) and path not in drafts.RENDERING:
                hint = "trials are compared on the same rows, asked in the same way; vary it in a search of its own"
                raise SpecError(f"`{path}` is the same for all trials of a search", hint=hint)
        chosen = drafts.named(space.applied(self.described, values))
        name = chosen.model.name
        base = self.bases.get(name) or self.bases.setdefault(name, drafts.base_of(chosen.model))
        given = base, self.dataset, self.drawn_by, self.regression
        found, counts = drafts.decided(chosen, *given), self.dataset.counts
        every = space.evaluate_every(found.resolved.experiment, counts["train"], counts["validation"], self.pruner)
        if every is None:
            return found
        return drafts.decided(space.applied(chosen, {"training.evaluate_every": every}), *given)


def describe(experiment: spec.Experiment, home: Path) -> tuple[Draft, dict[str, Any]]:
    """The draft of a search, and the facts that its run is known by.

    Raises what `drafts.draft` does; SpecError where a value of the space cannot be meant, DataError without rows to
    choose by.
    """
    wishes, draft = experiment.search or spec.Search(), drafts.draft(drafts.one(experiment), home)
    if not draft.dataset.counts["validation"]:
        hint = "`data.validation`: a file, or a share of the rows (0.1)"
        raise DataError("a search chooses on validation rows, and there are none", str(draft.dataset.path), hint)
    whole = _placed(space.parse(wishes.space)) if wishes.space else None
    whole = whole or space.default(draft.chosen, draft.resolved, draft.base.facts)
    written, trials = space.written(whole), space.budget(whole, wishes, draft.chosen.method.type)
    decided = dict(wishes) | {"space": written, "trials": trials}
    wishes = spec.Search.model_construct(wishes.model_fields_set, **decided)
    study.directions(wishes.objective)
    study.ask(whole, wishes, draft.chosen.seed, [])  # what it refuses is refused now
    space.refuse_combinations(whole, draft.chosen)
    bases = {draft.chosen.model.name: draft.base}
    basis = Basis(draft.chosen, draft.dataset, draft.regression, draft.drawn_by, wishes.pruner, bases)
    for values in space.probes(whole):
        basis.draft(values)
    told = {name: base_told(base) for name, base in basis.bases.items()}
    return drafts.searching(draft, wishes), {"kind": KIND, "searched": written, "bases": told}


def _placed(whole: Space) -> Space:
    """The space with bases in folders by their whole paths: a search may go on from another folder."""
    found = []
    for each in whole.dimensions:
        when = {path: _whole(path, among) for path, among in each.when.items()}
        found.append(replace(each, choices=_whole(each.path, each.choices), when=when))
    return Space(tuple(found))


def _whole(path: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(map(drafts.whole_path, values)) if path == "model.name" else values


class Roster:
    """A search's trials; one process at a time makes and ends them, the one that owns the search."""

    def __init__(self, search: Run) -> None:
        self.search, self.path, self.id, self.name = search, search.path, search.id, search.name
        self.home = search.path.parents[1]
        resolved = spec.load(search.path / "resolved.yaml")
        wishes = resolved.search
        assert wishes is not None
        self.wishes, self.space = wishes, space.parse(wishes.space)
        self.starts = space.starts(self.space, resolved)
        self.basis = _basis(search, wishes)
        self._ended: dict[str, Trial] = {}
        self._exhausted = False
        self._before = self._kept = float(search.facts.get("spent", 0.0))
        self._began = time.monotonic()

    # --- what stands
    @property
    def facts(self) -> dict[str, Any]:
        return runs.load(self.path).facts

    def keep(self, **facts: Any) -> None:
        """Facts of the search that a later attempt must know."""
        runs.update(self.path, {"facts": facts})

    def runs(self) -> list[Run]:
        """Every trial's run, by number."""
        found = [runs.load(folder.parent) for folder in self.path.parent.glob(f"{self.id}.[0-9]*/{runs.RECORD}")]
        return sorted(found, key=lambda run: int(run.facts["number"]))

    def trials(self) -> list[Trial]:
        """Every trial with what it has told, by number. One that has ended is read once."""
        told = []
        for run in self.runs():
            trial = self._ended.get(run.id) or record.read(run)
            if run.state in ENDED:
                self._ended[run.id] = trial
            told.append(trial)
        return told

    def run(self, trial: str) -> Run:
        return runs.load(self.path.parent / trial)

    def waiting(self) -> list[Run]:
        """Trials that nobody carries and that are not at their end: made, stopped with the search, or left by a dead
        process. What a person stopped stays so; the winner is its worker's."""
        facts = self.facts
        aside = {*facts.get("unwanted", ()), facts.get("best")}
        open_ = [run for run in self.runs() if run.state in ("queued", "stopped", "interrupted")]
        return [run for run in open_ if run.id not in aside]

    def carried(self) -> bool:
        """Whether any trial has a living process; the winner, on the test, is no trial any more."""
        best = self.facts.get("best")
        return any(run.state == "running" and run.id != best for run in self.runs())

    def ended(self) -> int:
        """How many trials have come to an end."""
        return sum(run.state in ENDED for run in self.runs())

    def note(self, kind: str, message: str) -> None:
        """A word to whoever watches the search."""
        logbook.note(self.search, kind, message, step=self.ended())

    # --- another trial
    def may_ask(self) -> bool:
        """Whether the budget has room for another trial of the sampler's."""
        wishes, made = self.wishes, sum(run.facts["by"] == "sampler" for run in self.runs())
        late = wishes.time_limit is not None and self.spent() >= wishes.time_limit
        used = wishes.token_limit is not None and self._tokens() >= wishes.token_limit
        return made < wishes.trials and not late and not used and not self._exhausted

    def _tokens(self) -> int:
        """Tokens trained on so far, by all trials."""
        return sum(trial.tokens for trial in self.trials())

    def spent(self) -> float:
        """Seconds that processes have carried the search, all attempts together."""
        return self._before + time.monotonic() - self._began

    def tick(self) -> None:
        """Keep the time spent, every few seconds: a killed attempt counts, too."""
        if self.wishes.time_limit is not None and self.spent() - self._kept >= KEPT_SECONDS:
            self._kept = self.spent()
            self.keep(spent=self._kept)

    def ask(self) -> Run | None:
        """Another trial, with the sampler's values. None where no combination is left."""
        values = study.ask(self.space, self.wishes, self.basis.described.seed, self.trials(), self.starts)
        if values is None:
            self._exhausted = True
            return None
        try:
            return self.make(values, "sampler")
        except (SpecError, ModelError) as refusal:  # values that do not go together: told as any trial that fails
            run = self._create(self.basis.draft({}), values, "sampler", {})
            return self._end(run, "failed", errors.in_words(refusal))

    def make(self, values: Mapping[str, Any], by: str, **facts: Any) -> Run:
        """A queued trial of these values. Raises SpecError where they are none."""
        return self._create(self.basis.draft(values), values, by, facts)

    def _create(self, draft: Draft, values: Mapping[str, Any], by: str, facts: Mapping[str, Any]) -> Run:
        number = max((int(run.facts["number"]) for run in self.runs()), default=-1) + 1
        draft = drafts.renamed(draft, f"{self.name[:58]}.{number:03d}")
        told = {"search": self.id, "number": number, "values": dict(values), "by": by}
        told |= {"group": space.group_key(draft.resolved.experiment, draft.base.revision)} | dict(facts)
        return drafts.create(draft, self.home, f"{self.id}.{number:03d}", told)

    # --- what ends a trial from here
    def died(self, run: Run, why: str) -> bool:
        """A process ended under the trial; it is tried once more. Whether that was the last time, and it has failed."""
        deaths = int(run.facts.get("retries", 0)) + 1
        if deaths < TRIES:
            runs.update(run.path, {"facts": {"retries": deaths}})
            return False
        problem = TrainingError(f"its process ended twice: {why}", str(self.path / runs.LOG))
        self._end(run, "failed", errors.in_words(problem))
        return True

    def unwant(self, run: Run, held: bool = False) -> None:
        """A person wants no more of this trial. `held`: it was handed to a process, which ends it."""
        self.keep(unwanted=sorted({*self.facts.get("unwanted", ()), run.id}))
        ownership.ask_to_stop(run.path)
        if run.state in ("queued", "interrupted") and not held:
            self._end(run, "stopped", None)

    def _end(self, run: Run, state: State, error: Problem | None) -> Run:
        reason = error["message"] if error else "stopped by a person"
        with ownership.locked(run.path):
            logbook.close(run, logbook.finished(run, state, reason or ""), error)
        return runs.load(run.path)

    # --- what people wish meanwhile
    def hear(self, held: Collection[str]) -> list[str]:
        """Do what people have wished since; gives it in words. A wish is done once, whatever is killed meanwhile.

        `held`: the trials that processes have.
        """
        said = []
        for path in sorted((self.path / WISHES).glob("[!.]*.json")):
            try:
                said += self._heed(path, held)
            except (LuthierError, ValueError, KeyError) as problem:  # looked at before, but anybody may write a file
                said.append(f"a wish is left aside: {problem}")
            path.unlink()
        return said

    def _heed(self, path: Path, held: Collection[str]) -> list[str]:
        wish = json.loads(path.read_text(encoding="utf-8"))
        if "stop" in wish:
            if (run := self.run(wish["stop"])).state in ENDED:
                return []
            self.unwant(run, run.id in held)
            return [f"trial {run.facts['number']:03d} is stopped by a person"]
        if any(run.facts.get("wish") == path.stem for run in self.runs()):
            return []  # made by an attempt that was killed before it said so
        run = self.make(wish["add"], "person", wish=path.stem)
        return [f"trial {run.facts['number']:03d} is added by a person: {in_words(wish['add'])}"]


# --- wishes: files in the search's folder, for the process that carries it, or will
def add(search: Run, values: Mapping[str, Any]) -> dict[str, Any]:
    """Wish for another trial. Gives its values. Raises SpecError where they cannot be meant, or nobody would train it
    any more."""
    if search.facts.get("kind") != KIND:
        raise SpecError(f"{search.id} is no search", hint="`luthier search FILE` begins one")
    if search.state == "done" or search.facts.get("best"):
        hint = "`luthier search FILE --new` begins another; `luthier tune` trains one run"
        raise SpecError(f"search {search.id} has chosen its winner: a further trial would come too late", hint=hint)
    spec.Search(space={path: [value] for path, value in values.items()})  # checks each
    draft = _basis(search).draft(values)
    found = dict(values) | ({"model.name": draft.chosen.model.name} if "model.name" in values else {})
    _wish(search.path, {"add": found})
    return found


def stop(trial: Run, seconds: float = 30.0) -> Run:
    """Wish that a trial end, for good, and the search go on without it. Gives the trial, at rest where its search is
    carried. Raises SpecError for the winner on the test."""
    search = runs.load(trial.path.parent / search_of(trial))
    if trial.state in ENDED:
        return trial
    if search.facts.get("best") == trial.id:
        hint = f"`luthier stop {search.id}` stops the search"
        raise SpecError(f"{trial.id} is the winner, and answers the test", hint=hint)
    _wish(search.path, {"stop": trial.id})
    until = time.monotonic() + seconds
    while runs.owner(search.path) and trial.state in ("queued", "running") and time.monotonic() < until:
        time.sleep(0.05)
        trial = runs.load(trial.path)
    return trial


def _wish(search: Path, what: Mapping[str, Any]) -> None:
    folder = search / WISHES
    folder.mkdir(exist_ok=True)
    disk.write_json(folder / f"{time.time_ns()}-{secrets.token_hex(2)}.json", dict(what))


def in_words(values: Mapping[str, Any]) -> str:
    """`method.rank 8, training.learning_rate 0.001`"""
    return ", ".join(
        f"{path} {value:g}" if isinstance(value, float) else f"{path} {value}" for path, value in values.items()
    )


def base_told(base: Base) -> dict[str, Any]:
    """A base as a search's facts keep it: its trials are then described without looking at it again."""
    return {"facts": asdict(base.facts), "commit": base.commit, "revision": base.revision}


def base_from(told: Mapping[str, Any]) -> Base:
    return Base(presets.BaseFacts(**told["facts"]), told["commit"], told["revision"])


def _basis(search: Run, wishes: spec.Search | None = None) -> Basis:
    """What the trials of a search share, from its folder."""
    wishes = wishes or spec.load(search.path / "resolved.yaml").search
    assert wishes is not None
    facts, home = search.facts, search.path.parents[1]
    described = drafts.one(spec.load(search.path / "experiment.yaml"))
    bases = {name: base_from(told) for name, told in facts["bases"].items()}
    beside = facts.get("regression")
    rows = _rows(home, facts["dataset"]), _rows(home, beside) if beside else None
    return Basis(described, *rows, facts["drawn_by"], wishes.pruner, bases)


def _rows(home: Path, fingerprint: str) -> Dataset:
    """A prepared data set by its name. Raises NotFound."""
    return load_dataset(home / "data" / fingerprint)
