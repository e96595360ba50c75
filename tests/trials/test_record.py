"""A trial as its folder tells it, whole, torn, or not begun."""

from __future__ import annotations

import doctest
import math
from pathlib import Path

import pytest

from luthier import runs
from luthier.runs import Evaluated, Finished, Run, Saved, Started, Stepped
from luthier.trials import record
from tests.trials.told import trial


def made(home: Path, number: int, **facts) -> Run:
    told = {"search": "s", "number": number, "values": {"method.rank": 8}, "by": "sampler"} | facts
    return runs.create(home, f"s.{number:03d}", "f", {}, told, f"s.{number:03d}")


def tell(run: Run, *events) -> None:
    for event in events:
        runs.append(run.path, event)


def step(run: Run, number: int, loss: float = 1.0) -> Stepped:
    return Stepped(run.id, number, float(number), 0.1, loss, 1e-3, 1.0, 50, 0.5)


def look(run: Run, number: int, loss: float, **scores: float) -> Evaluated:
    return Evaluated(run.id, number, float(number), {"loss": loss} | scores, True)


def test_what_a_trial_told_is_read_with_its_share_of_the_way(tmp_path):
    run = made(tmp_path, 3)
    tell(run, Started(run.id, 0, 0.0, 10, 40, 1234), step(run, 1, 2.0), step(run, 2, 1.0), look(run, 2, 1.5, f1=0.4))
    tell(run, step(run, 3, 1.0), step(run, 4, 1.0), look(run, 4, 1.7, f1=0.6))
    found = record.read(run)
    assert (found.number, found.run_id, found.values, found.by) == (3, "s.003", {"method.rank": 8}, "sampler")
    assert found.told == ((2, 0.2, {"loss": 1.5, "f1": 0.4}), (4, 0.4, {"loss": 1.7, "f1": 0.6}))
    assert found.scores == {"loss": 1.5, "f1": 0.4}  # of the weights it keeps: lowest loss, not highest metric
    assert (found.steps, found.planned, found.tokens, found.seconds, found.parameters) == (4, 10, 200, 2.0, 1234)
    assert len(found.training) == 2 and found.training[1] < found.training[0] < 2.0
    assert found.state == "queued" and found.reason is None and found.bytes is None


def test_what_an_attempt_did_again_counts_once(tmp_path):
    run = made(tmp_path, 0)
    tell(
        run,
        Started(run.id, 0, 0.0, 10, 40, 7),
        step(run, 1),
        step(run, 2),
        look(run, 2, 1.5),
        Saved(run.id, 2, 0.0, "p"),
    )
    tell(run, step(run, 3), step(run, 4), look(run, 4, 9.0))
    tell(run, Started(run.id, 2, 0.0, 10, 40, 7), step(run, 3), step(run, 4), look(run, 4, 1.2))
    found = record.read(run)
    assert [(at, scores["loss"]) for at, _, scores in found.told] == [(2, 1.5), (4, 1.2)]
    assert (found.steps, found.tokens, found.seconds) == (4, 200, 2.0)


def test_a_queued_trial_has_told_nothing(tmp_path):
    found = record.read(made(tmp_path, 0))
    assert (found.told, found.scores, found.steps, found.seconds, found.planned) == ((), None, 0, 0.0, None)


@pytest.mark.parametrize("damage", ["torn", "missing", "broken"])
def test_torn_or_missing_events_hide_no_trial(tmp_path, damage):
    run = made(tmp_path, 0)
    tell(run, Started(run.id, 0, 0.0, 10, 40, 7), look(run, 2, 1.5))
    file = run.path / runs.EVENTS
    if damage == "torn":
        file.write_bytes(file.read_bytes() + b'{"event": "Evaluated", "run"')
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"\x00\x00\n" + file.read_bytes())
    found = record.read(run)
    assert found.number == 0 and found.values == {"method.rank": 8}
    assert len(found.told) == (1 if damage == "torn" else 0)


def test_how_it_ended_and_what_it_weighs(tmp_path):
    run = made(tmp_path, 0)
    tell(
        run, Started(run.id, 0, 0.0, 10, 40, 7), look(run, 2, math.nan), Finished(run.id, 2, 0.0, "pruned", "weak: so")
    )
    (run.path / "adapter").mkdir()
    (run.path / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 100)
    (run.path / "adapter" / "adapter_config.json").write_bytes(b"x" * 11)
    runs.update(run.path, {"state": "pruned"})
    found = record.read(runs.load(run.path))
    assert (found.state, found.reason, found.bytes, found.scores) == ("pruned", "weak: so", 111, None)
    runs.update(run.path, {"state": "failed", "error": {"kind": "TrainingError", "message": "no memory"}})
    assert record.read(runs.load(run.path)).reason == "no memory"


def test_the_trials_of_a_search_stand_by_number(tmp_path):
    search = runs.create(tmp_path, "s", "f", {}, {"kind": "search"}, "s")
    for number in (11, 2, 0):
        made(tmp_path, number)
    runs.create(tmp_path, "s.other", "f", {}, {}, "s.other")
    assert [each.number for each in record.of_search(search)] == [0, 2, 11]


def test_an_objective_is_that_of_the_kept_weights():
    one = trial(0, [3.0, 1.0, 2.0], metric=[0.1, 0.5, 0.9], parameters=640)
    assert record.objective(one, ["loss"]) == (1.0,)
    assert record.objective(one, ["exact_match", "size"]) == (0.5, 640.0)
    assert record.objective(one, ["bleu"]) is None and record.objective(trial(0), ["loss"]) is None
    assert record.objective_at(one, 1 / 9 + 1e-6, ["exact_match"]) == (0.1,)
    assert record.objective_at(one, 1.0, ["exact_match"]) == (0.5,) and record.objective_at(one, 0.05, ["loss"]) is None
    assert record.objective(trial(0, [math.nan, math.nan]), ["loss"]) is None


def test_doctests():
    found = doctest.testmod(record)
    assert found.attempted > 0 and found.failed == 0
