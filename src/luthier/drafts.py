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
from luthier import presets, runs, spec, workbench
from luthier.data.prepare import Dataset, prepare, prepare_beside
from luthier.errors import SpecError, here
from luthier.evaluation import judge, metrics
from luthier.models import facts
from luthier.runs import Run


@dataclass(frozen=True, slots=True)
class Draft:
    """An experiment with every value decided and its data prepared; no weight has been loaded."""

    resolved: presets.Resolved
    chosen: spec.Experiment
    dataset: Dataset
    facts: presets.BaseFacts
    revision: str
    fingerprint: str
    drawn_by: int  # the seed that draws `data.limit` and `evaluation.limit`
    regression: Dataset | None = None

    @property
    def name(self) -> str:
        return self.resolved.experiment.name or "run"


def draft(experiment: spec.Experiment, home: Path) -> Draft:
    """Look at the base's configuration, prepare the data, and decide every open value. Raises any LuthierError."""

    _refuse_what_nothing_reads(experiment)
    metrics.by_name(experiment.evaluation.metrics or ())  # an unknown one is refused now, not after the training
    chosen = named(experiment)
    folder, commit = facts.locate(chosen.model.name, chosen.model.revision, weights=False)
    base = facts.inspect(chosen.model.name, commit)
    if chosen.evaluation.regression is not None and base.family == "encoder":
        raise SpecError("an encoder answers nothing that it could forget", "evaluation.regression", "leave it out")
    revision = commit or facts.weights_digest(folder)
    dataset = prepare(chosen.data, home, chosen.seed, chosen.task)
    resolved = pinned(presets.resolve(chosen, base, dataset.task), commit)
    regression = prepare_beside(chosen.evaluation.regression, chosen.data, home)
    rows = dataset.fingerprint + (f" {regression.fingerprint}" if regression else "")
    fingerprint = spec.fingerprint(resolved.experiment, rows, revision)
    return Draft(resolved, chosen, dataset, base, revision, fingerprint, chosen.seed, regression)


def wanted(experiment: spec.Experiment, home: Path, new: bool = False, further: int = 0) -> Run:
    """The run that `experiment` means, begun by nobody; with `further`, the one whose seed is raised by so much."""
    described = draft(experiment, home)
    return meant(reseeded(described, further) if further else described, home, new)


def meant(draft: Draft, home: Path, new: bool = False) -> Run:
    """The newest run of the draft's name if it is the same; else, or where `new`, another one.

    Raises SpecError where that would leave work behind, DataError where the gate refuses the rows.
    """
    previous = None if new else runs.newest_of_name(home, draft.name)
    if previous is not None and previous.fingerprint == draft.fingerprint:
        return runs.load(previous.path)
    if previous is not None and _has_work_under_way(previous):
        raise SpecError(
            f"run {previous.id} is {previous.state} and was described differently: {_differences(previous, draft)}",
            hint="`--new` starts another run; with the old values the same command continues this one",
        )
    wishes = draft.resolved.experiment.evaluation
    if wishes.judge is not None:
        judge.require(wishes.judge, wishes.compare_base)  # now, not after the training
    workbench.judge(draft.resolved.experiment, draft.dataset)
    return create(draft, home)


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
            "family": draft.facts.family,
            "task": draft.dataset.task,
            "method": resolved.method.type,
            "dataset": draft.dataset.fingerprint,
            "revision": draft.revision,
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
    if here(model.name).is_dir():
        path = str(here(model.name).resolve())
        changes["model"] = type(model).model_construct(model.model_fields_set, **dict(model) | {"name": path})
    if experiment.name is None:
        stem = re.sub(r"[^\w.-]+", "-", Path(model.name).name).lstrip("-.")
        changes["name"] = f"{stem}-{experiment.method.type}"[:64]
    return spec.Experiment.model_construct(experiment.model_fields_set, **dict(experiment) | changes)


def reseeded(draft: Draft, further: int) -> Draft:
    """The draft with its seed raised by `further`; which rows stand in which split, and which are asked, stays."""
    changes = {
        "name": f"{draft.name[: 64 - len(f'-seed{further}')]}-seed{further}",
        "seed": draft.chosen.seed + further,
    }
    chosen, resolved = (
        spec.Experiment.model_construct(each.model_fields_set | {"seed"}, **dict(each) | changes)
        for each in (draft.chosen, draft.resolved.experiment)
    )
    origins = {**draft.resolved.origins, "seed": f"you (`--seeds`: {draft.chosen.seed} + {further})"}
    fingerprint = spec.fingerprint(resolved, draft.dataset.fingerprint, draft.revision)
    whole = replace(draft.resolved, experiment=resolved, origins=origins)
    return replace(draft, resolved=whole, chosen=chosen, fingerprint=fingerprint)


def _refuse_what_nothing_reads(experiment: spec.Experiment) -> None:
    """What a file may describe and this version does not do: better said than passed over."""
    if experiment.search is not None:
        raise SpecError("not yet: `search` can be described, but nothing acts on it", hint="leave out `search`")
    if experiment.model.name.startswith("openai:"):
        hint = "`luthier evaluate` scores it; to tune, name a base of the Hub or a folder"
        raise SpecError(f"`{experiment.model.name}` stands behind an endpoint, where nothing can be tuned", hint=hint)


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
    """Whether another run in its place would leave work behind: one at work, or a checkpoint to continue from."""
    if run.state in ("stopped", "interrupted"):
        return any((run.path / "checkpoints").glob("step-*"))
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
    if previous.facts["revision"] != draft.revision and now.model.revision is None:  # else it is named above
        told.append("`model` (the base's files have changed)")
    return ", ".join(told)
