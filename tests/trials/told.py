"""Trials made up for tests: what they were given and what they told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luthier import spec
from luthier.trials import space, study
from luthier.trials.record import Trial
from luthier.trials.space import Space


def whole(entries: Mapping[str, Any], method: str = "lora") -> Space:
    """The space of an experiment of this method."""
    read = spec.Experiment(model="m", data="d", method=method, search={"space": dict(entries)})
    assert read.search is not None
    return space.parse(read.search.space)


def trial(number: int, losses: Sequence[float] = (), state: str = "running", **fields: Any) -> Trial:
    """A trial that has looked after each ninth of its updates (of `looks` in all), with these validation losses."""
    looks, metric, fits = fields.pop("looks", 9), fields.pop("metric", ()), fields.pop("fits", None)
    told = [
        (10 * (i + 1), (i + 1) / looks, {"loss": loss} | ({"exact_match": metric[i]} if metric else {}))
        for i, loss in enumerate(losses)
    ]
    finite = [each for each in told if each[2]["loss"] == each[2]["loss"]]
    kept = min(finite, key=lambda each: each[2]["loss"])[2] if finite else None
    known: dict[str, Any] = {
        "run_id": f"s.{number:03d}",
        "path": f"/runs/s.{number:03d}",
        "values": {},
        "by": "sampler",
    }
    known |= {"told": tuple(told), "scores": kept, "training": tuple(fits or losses), "parameters": 100} | fields
    return Trial(number=number, state=state, **known)


def search(
    within: Space,
    wishes: spec.Search,
    loss: Callable[[Mapping[str, Any]], float],
    count: int,
    starts: Sequence[Mapping[str, Any]] = (),
) -> list[Trial]:
    """As many trials, one after another, each with the loss that its values have."""
    trials: list[Trial] = []
    while len(trials) < count:
        values = study.ask(within, wishes, 7, trials, starts)
        if values is None:
            break
        trials.append(trial(len(trials), [loss(values)], "done", looks=1, values=values))
    return trials


def running(one: Trial) -> Trial:
    return dataclasses.replace(one, state="running", told=(), scores=None)
