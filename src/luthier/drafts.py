"""An experiment with every value decided and its data prepared, and the run that is made of it.

Lives here: from what somebody described to a queued run's folder. Does not live here: which run an experiment means
(`studio.py`), what a parameter means (`spec`), starting values (`presets.py`). No weight is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import luthier
from luthier import presets, runs, spec
from luthier.data.prepare import Dataset, load_dataset, prepare, prepare_beside
from luthier.errors import SpecError, here
from luthier.evaluation import metrics
from luthier.models import refusals
from luthier.runs import Run

RENDERING = ("data.template", "data.train_on", "data.overlength")
"""What of `data` changes how rows are shown to the base, and not which rows there are."""


@dataclass(frozen=True, slots=True)
class Base:
    """What must be known of a base to describe runs of it: its facts, its commit (None: a folder), and the commit or
    the weights by content."""

    facts: presets.BaseFacts
    commit: str | None
    revision: str


@dataclass(frozen=True, slots=True)
class Draft:
    """An experiment with every value decided and its data prepared; no weight has been loaded."""

    resolved: presets.Resolved
    chosen: spec.Experiment
    dataset: Dataset
    base: Base
    fingerprint: str
    drawn_by: int  # the seed that draws `data.limit` and `evaluation.limit`
    regression: Dataset | None = None

    @property
    def name(self) -> str:
        return self.resolved.experiment.name or "run"


@dataclass(frozen=True, slots=True)
class Rows:
    """The prepared data of an experiment, and the rows that must not be forgotten. Nothing of it depends on the
    base."""

    dataset: Dataset
    regression: Dataset | None

    @property
    def folders(self) -> tuple[str, str | None]:
        """As `rows_in` takes them."""
        return str(self.dataset.path), str(self.regression.path) if self.regression else None


def refuse(experiment: spec.Experiment) -> None:
    """Refuse what no run can mean, as far as that shows at once. Raises SpecError, ModelError."""
    model = experiment.model
    if model.name.startswith("openai:"):  # what a file may describe and no run does: better said than passed over
        hint = "`luthier evaluate` scores it; to tune, name a base of the Hub or a folder"
        raise SpecError(f"`{model.name}` stands behind an endpoint, where nothing can be tuned", hint=hint)
    refusals.named_folder(model.name, model.revision)
    metrics.by_name(experiment.evaluation.metrics or ())  # an unknown one is refused now, not after the training


def rows_of(experiment: spec.Experiment, home: Path) -> Rows:
    """Prepare the data; nothing heavy is imported for it. Raises DataError, NotFound."""
    data, wishes = experiment.data, experiment.evaluation
    dataset = prepare(data, home, experiment.seed, experiment.task)
    return Rows(dataset, prepare_beside(wishes.regression, data, home))


def rows_in(dataset: str, regression: str | None) -> Rows:
    """The rows that another process has prepared in these folders. Raises NotFound."""
    return Rows(load_dataset(dataset), load_dataset(regression) if regression else None)


def draft(experiment: spec.Experiment, home: Path, rows: Rows | None = None) -> Draft:
    """Look at the base's configuration, prepare the data unless that is done, and decide every open value.

    Raises any LuthierError.
    """
    refuse(experiment)
    chosen = one(named(experiment))
    base = base_of(chosen.model)
    if chosen.evaluation.regression is not None and base.facts.family == "encoder":
        raise SpecError("an encoder answers nothing that it could forget", "evaluation.regression", "leave it out")
    rows = rows or rows_of(chosen, home)
    found = decided(chosen, base, rows.dataset, chosen.seed, rows.regression)
    if experiment.search is None:
        return found
    note = "`search` is left aside: this is one run with the file's own values; `luthier search FILE` tries others"
    return replace(found, resolved=replace(found.resolved, notes=(*found.resolved.notes, note)))


def one(experiment: spec.Experiment) -> spec.Experiment:
    """The experiment without its search: one run with the file's own values."""
    if experiment.search is None:
        return experiment
    fields = experiment.model_fields_set - {"search"}
    return spec.Experiment.model_construct(fields, **dict(experiment) | {"search": None})


def of_run(run: Run) -> Draft:
    """The draft that a run was made of, from its folder and the rows it names. Raises NotFound, ModelError."""
    from luthier.models import facts

    chosen, resolved = (spec.load(run.path / file) for file in ("experiment.yaml", "resolved.yaml"))
    rows = run.path.parents[1] / "data"
    origins = json.loads((run.path / "origins.json").read_text(encoding="utf-8"))
    model, beside = resolved.model, run.facts.get("regression")
    base = Base(facts.inspect(model.name, model.revision), model.revision, run.facts["revision"])
    return Draft(
        presets.Resolved(resolved, origins, tuple(run.facts["notes"])),
        chosen,
        load_dataset(rows / run.facts["dataset"]),
        base,
        run.fingerprint,
        run.facts["drawn_by"],
        load_dataset(rows / beside) if beside else None,
    )


def base_of(model: spec.Model) -> Base:
    """Look at a base's configuration. Raises ModelError."""
    from luthier.models import facts  # heavy: who knows the base describes runs without it

    folder, commit = facts.locate(model.name, model.revision, weights=False)
    return Base(facts.inspect(model.name, commit), commit, commit or facts.weights_digest(folder))


def decided(
    chosen: spec.Experiment, base: Base, dataset: Dataset, drawn_by: int, regression: Dataset | None = None
) -> Draft:
    """The draft of a described experiment whose base and rows are known. Raises SpecError."""
    resolved = pinned(presets.resolve(chosen, base.facts, dataset.task), base.commit)
    return Draft(
        resolved, chosen, dataset, base, _fingerprint(resolved, dataset, base, regression), drawn_by, regression
    )


def _fingerprint(resolved: presets.Resolved, dataset: Dataset, base: Base, regression: Dataset | None) -> str:
    rows = dataset.fingerprint + (f" {regression.fingerprint}" if regression else "")
    return spec.fingerprint(resolved.experiment, rows, base.revision)


def wanted(
    experiment: spec.Experiment, home: Path, new: bool = False, further: int = 0, rows: Rows | None = None
) -> Run:
    """The run that `experiment` means, begun by nobody; with `further`, the one whose seed is raised by so much."""
    described = draft(experiment, home, rows)
    return meant(reseeded(described, further) if further else described, home, new)


def meant(draft: Draft, home: Path, new: bool = False, known: Mapping[str, Any] | None = None) -> Run:
    """The newest run of the draft's name if it is the same; else, or where `new`, another one with the facts `known`.

    Among searches, where `known` says that it is one.

    Raises SpecError where that would leave work behind, DataError where the gate refuses the rows.
    """
    from luthier import workbench
    from luthier.evaluation import judge

    previous = None if new else runs.newest_of_name(home, draft.name, (known or {}).get("kind"))
    if previous is not None and previous.fingerprint == draft.fingerprint:
        return runs.load(previous.path)
    if previous is not None and _has_work_under_way(previous):
        told = _differences(previous, draft)
        hint = "`--new` starts another run; with the old values the same command continues this one"
        raise SpecError(f"run {previous.id} is {previous.state} and was described differently: {told}", hint=hint)
    wishes = draft.resolved.experiment.evaluation
    if wishes.judge is not None:
        judge.require(wishes.judge, wishes.compare_base)  # now, not after the training
    workbench.judge(draft.resolved.experiment, draft.dataset)
    return create(draft, home, known=known)


def create(draft: Draft, home: Path, run_id: str | None = None, known: Mapping[str, Any] | None = None) -> Run:
    """A queued run of the draft, begun by nobody; `known` joins its facts. Raises what `runs.create` does."""
    resolved, origins = draft.resolved.experiment, dict(draft.resolved.origins)
    files = {
        "experiment.yaml": spec.dump(draft.chosen),
        "resolved.yaml": spec.dump(resolved, origins),
        "origins.json": json.dumps(origins, ensure_ascii=False, indent=1) + "\n",
    }
    told = (
        dict(known or {})
        | {
            "model": resolved.model.name,
            "family": draft.base.facts.family,
            "task": draft.dataset.task,
            "method": resolved.method.type,
            "dataset": draft.dataset.fingerprint,
            "revision": draft.base.revision,
            "drawn_by": draft.drawn_by,
            "notes": list(draft.resolved.notes),
            "judge": resolved.evaluation.judge and resolved.evaluation.judge.model,
            "luthier": luthier.__version__,
        }
        | ({"regression": draft.regression.fingerprint} if draft.regression else {})
    )
    return runs.create(home, draft.name, draft.fingerprint, files, told, run_id)


def named(experiment: spec.Experiment) -> spec.Experiment:
    """A name for its runs, where nobody gave one; a base in a folder by its whole path, so that a worker finds it."""
    model = experiment.model
    changes: dict[str, Any] = {}
    if (path := whole_path(model.name)) != model.name:
        changes["model"] = type(model).model_construct(model.model_fields_set, **dict(model) | {"name": path})
    if experiment.name is None:
        stem = re.sub(r"[^\w.-]+", "-", Path(model.name).name).lstrip("-.")
        changes["name"] = f"{stem}-{experiment.method.type}"[:64]
    return spec.Experiment.model_construct(experiment.model_fields_set, **dict(experiment) | changes)


def whole_path(name: str) -> str:
    """A base in a folder by its whole path; any other name as it is."""
    return str(here(name).resolve()) if here(name).is_dir() else name


def reseeded(draft: Draft, further: int) -> Draft:
    """The draft with its seed raised by `further`; which rows stand in which split, and which are asked, stays."""
    end = f"-seed{further}"
    changes = {"name": draft.name[: 64 - len(end)] + end, "seed": draft.chosen.seed + further}
    return _changed(draft, changes, {"seed": f"you (`--seeds`: {draft.chosen.seed} + {further})"})


def renamed(draft: Draft, name: str) -> Draft:
    """The same draft, for runs of another name."""
    return _changed(draft, {"name": name}, {})


def searching(draft: Draft, search: spec.Search) -> Draft:
    """The draft of a search of the experiment."""
    said = {f"search.{field}": "you" if field in search.model_fields_set else "default" for field, _ in search}
    return _changed(draft, {"search": search}, said)


def _changed(draft: Draft, changes: Mapping[str, Any], origins: Mapping[str, str]) -> Draft:
    chosen, resolved = (
        spec.Experiment.model_construct(each.model_fields_set | set(changes), **dict(each) | dict(changes))
        for each in (draft.chosen, draft.resolved.experiment)
    )
    whole = replace(draft.resolved, experiment=resolved, origins={**draft.resolved.origins, **origins})
    fingerprint = _fingerprint(whole, draft.dataset, draft.base, draft.regression)
    return replace(draft, resolved=whole, chosen=chosen, fingerprint=fingerprint)


def pinned(resolved: presets.Resolved, commit: str | None) -> presets.Resolved:
    """A base of the Hub at the commit that its name stands for now, so that no later moment sees another one."""
    model = resolved.experiment.model
    if commit is None or model.revision == commit:
        return resolved
    at = type(model).model_construct(model.model_fields_set, **dict(model) | {"revision": commit})
    fields = dict(resolved.experiment) | {"model": at}
    whole = spec.Experiment.model_construct(resolved.experiment.model_fields_set, **fields)
    origin = f"you (`{model.revision}`, as it was)" if model.revision else "default (the newest commit, as it was)"
    return replace(resolved, experiment=whole, origins={**resolved.origins, "model.revision": origin})


def _has_work_under_way(run: Run) -> bool:
    """Whether another run in its place would leave work behind: at work, or a checkpoint or trials to go on with."""
    if run.state in ("stopped", "interrupted"):
        return any((run.path / "checkpoints").glob("step-*")) or any(run.path.parent.glob(f"{run.id}.[0-9]*"))
    return run.state in ("queued", "running")


def _differences(previous: Run, draft: Draft) -> str:
    """The fields on which an earlier run and this experiment disagree, with both values."""
    before, now = spec.load(previous.path / "resolved.yaml"), draft.resolved.experiment
    old, new = spec.leaves(before), spec.leaves(now)
    told = [f"`{path}` ({old.get(path)} → {new.get(path)})" for path in spec.differences(before, now)]
    if previous.facts["dataset"] != draft.dataset.fingerprint:
        told.append("`data` (the rows have changed)")
    if previous.facts.get("regression") != (draft.regression.fingerprint if draft.regression else None):
        told.append("`evaluation.regression` (its rows)")
    if previous.facts["revision"] != draft.base.revision and now.model.revision is None:  # else it is named above
        told.append("`model` (the base's files have changed)")
    return ", ".join(told)
