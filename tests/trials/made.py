"""Made-up searches for the tests of boards: trials as their folders would tell them, and rows whose means are known."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luthier.trials.board import Axis, Board
from luthier.trials.conclude import Search, aim, conclude
from luthier.trials.record import Trial
from luthier.trials.rows import Rows

ID = "2026-01-05-sql-1f2e"
RATES, RANKS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (4, 8, 16, 32)
AXES = (
    Axis("training.learning_rate", "float", 1e-4, 1e-2, log=True),
    Axis("method.rank", "choices", choices=RANKS),
    Axis("method.dropout", "float", 0.0, 0.2),
)
DESCRIBED = {"training.learning_rate": 3e-4, "method.rank": 8, "method.dropout": 0.05}
PLANNED = 300


def trial(
    number: int,
    values: Mapping[str, Any],
    loss: float | None,
    state: str = "done",
    share: float = 1.0,
    reason: str = "",
    by: str = "sampler",
    **more: Any,
) -> Trial:
    """A trial whose loss fell towards `loss` in ten evaluations until `share` of its updates; None: it never told."""
    looks = () if loss is None else range(1, max(1, round(10 * share)) + 1)
    told = tuple((30 * k, k / 10, {"loss": (loss or 0) + 2.0 * math.exp(-k)}) for k in looks)
    rank = values.get("method.rank", 8)
    facts: dict[str, Any] = {
        "seconds": 0.11 * PLANNED * share,
        "steps": round(PLANNED * share),
        "tokens": round(64_000 * share),
        "parameters": 5_120 * rank if isinstance(rank, int) else 5_120,
        "bytes": 20_480 * rank if isinstance(rank, int) else 20_480,
        "planned": PLANNED,
    }
    facts["scores"] = {"loss": loss} if loss is not None else None
    run = f"{ID}.{number:03}"
    return Trial(number, run, f"/runs/{run}", values, by, state, told, reason=reason, **(facts | more))  # type: ignore[arg-type]


def trials(count: int, pruned: bool = True) -> list[Trial]:
    """Trials over AXES: the loss is lowest near a rate of 1e-3 and rank 16; every third weak one is pruned."""
    draw, found = random.Random(0), []
    for number in range(count):
        rate = 3e-4 if number == 0 else round(math.exp(draw.uniform(math.log(1e-4), math.log(1e-2))), 6)
        rank, dropout = (8, 0.05) if number == 0 else (draw.choice(RANKS), round(draw.uniform(0, 0.2), 3))
        values = {"training.learning_rate": rate, "method.rank": rank, "method.dropout": dropout}
        loss = 1.2 + 0.25 * abs(math.log10(rate / 1e-3)) + 0.02 * abs(math.log2(rank / 16)) + draw.gauss(0, 0.01)
        if pruned and number % 3 == 2:
            found.append(trial(number, values, loss + 0.2, "pruned", 0.3, "among the weaker half at 30 % (asha)"))
        elif number % 17 == 13:
            found.append(trial(number, values, None, "failed", 0.1, f"3 updates in a row were not finite at {number}"))
        else:
            found.append(trial(number, values, loss, reason="300 updates"))
    return found


def rows_of(told: Sequence[Trial], n: int = 240, noise: float = 0.3) -> dict[int, Rows]:
    """Rows that are easy or hard for everybody; each trial's mean is its loss."""
    draw = np.random.default_rng(0)
    hard_N = draw.gamma(1.0, 0.6, n)
    found = {}
    for each in told:
        if each.state == "done" and each.scores:
            own_N = hard_N + noise * draw.standard_normal(n)
            values_N = own_N - own_N.mean() + each.scores["loss"]
            ids = tuple(map(str, range(n)))
            found[each.number] = Rows(ids, {"loss": tuple(5 * values_N)}, {"loss": (5.0,) * n})
    return found


def search(**more: Any) -> Search:
    facts = {"method": "LoRA", "model": "luthier/demo", "dataset": "text-to-sql"}
    known: dict[str, Any] = {
        "id": ID,
        "name": "sql",
        "state": "done",
        "aims": (aim("loss", False),),
        "axes": AXES,
        "described": DESCRIBED,
        "rows": 240,
        "facts": facts,
    }
    return Search(**(known | more))


IMPORTANCE = {"method.rank": 0.17, "training.learning_rate": 0.79, "method.dropout": 0.04}


def board(count: int = 16, with_rows: bool = True, **more: Any) -> Board:
    told = trials(count)
    return conclude(search(**more), told, rows_of(told) if with_rows else {}, IMPORTANCE if count > 4 else {})


def varied() -> dict[str, Board]:
    """Boards of every shape that a page must show."""
    alone = (Axis("training.learning_rate", "float", 1e-5, 1e-1, log=True),)
    words = (
        Axis(
            "data.template", "choices", choices=("{text}", "Question: {text} Answer in one word and nothing else: " * 3)
        ),
        Axis("method.init_method", "choices", choices=("random", "vocabulary", "text")),
        Axis("method.target_modules", "choices", choices=('["q_proj", "v_proj"]', '["all-linear"]')),
    )
    draw = random.Random(1)
    rates = [trial(k, {alone[0].path: 10 ** draw.uniform(-5, -1)}, 1 + draw.random()) for k in range(6)]
    named = [
        trial(
            k,
            {axis.path: axis.choices[(k * 5 + place) % len(axis.choices)] for place, axis in enumerate(words)},
            1 + k / 9,
        )
        for k in range(7)
    ]
    far = [trial(k, {alone[0].path: 10.0 ** -(k + 1)}, loss) for k, loss in enumerate((3.5, 1.3, 1.2, 1.25, 5_000.0))]
    lost = [trial(k, {alone[0].path: 0.1}, None, "failed", 0.1, "not finite", steps=0) for k in range(5)]
    many = tuple(Axis(f"training.a_rather_long_parameter_{k}", "float", 0.0, 1.0) for k in range(12))
    wide = [trial(k, {axis.path: draw.random() for axis in many[: 12 - k]}, 1 + draw.random()) for k in range(8)]
    aims = (aim("loss", False), aim("size", False))
    two = conclude(search(aims=aims), trials(24), rows_of(trials(24)), IMPORTANCE)
    more = [trial(16 + k, trials(16)[1].values, loss, by="seed") for k, loss in enumerate((1.24, 1.26))]
    seeded = conclude(search(), [*trials(16), *more], rows_of(trials(16)), IMPORTANCE)
    on_the_way = [
        *trials(6),
        trial(6, trials(7)[6].values, 1.4, "running", 0.6),
        Trial(7, "r", "/r", DESCRIBED, "person", "queued"),
    ]
    return {
        "one": board(1),
        "three": conclude(search(), trials(3, pruned=False), {}, {}),
        "sixteen": board(16),
        "hundred": board(100),
        "none": conclude(search(state="running"), [], {}, {}),
        "all failed": conclude(search(axes=alone), lost, {}, {}),
        "one parameter": conclude(search(axes=alone, described={alone[0].path: 1e-3}), rates, rows_of(rates), {}),
        "words alone": conclude(
            search(axes=words), named, rows_of(named), {"data.template": 0.6, "method.init_method": 0.4}
        ),
        "far off": conclude(search(axes=alone), far, rows_of(far), {}),
        "twelve parameters": conclude(search(axes=many), wide, {}, {axis.path: 1 / 12 for axis in many}),
        "two aims": two,
        "seeds": seeded,
        "running": conclude(search(state="running"), on_the_way, {}, {}),
    }
