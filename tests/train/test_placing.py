"""Where trials train: the decision from figures, both ways, and a real probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier import spec
from luthier.hardware import Probe, placement
from luthier.models.methods import attach
from luthier.train import placing
from luthier.train.loop import Job
from tests.equivalence.workbench import LORA, load, rows

Tiny = Callable[..., Path]
GB = 10**9
NOTHING_GAINED = {1: 1.0, 2: 1.95, 4: 3.9}
MUCH_GAINED = {1: 1.0, 2: 1.1, 4: 1.4, 8: 2.6}  # 1.8, 2.9, 3.1 times


def _placed(seconds: dict[int, float], **said: object) -> tuple[int, int, int]:
    given = {"device": "cpu", "processors": 2, "at_once": 16, "usable_bytes": 64 * GB, "process": GB, "slot": GB // 100}
    device, processors, at_once, usable, process, slot = (given | said).values()
    found = placement(device, processors, at_once, usable, Probe(seconds, process, slot))
    return found.processes, found.slots_each, found.threads


def test_on_a_cpu_a_single_threaded_process_a_core_unless_slots_pay() -> None:
    assert _placed(NOTHING_GAINED) == (2, 1, 1)
    assert _placed(MUCH_GAINED) == (2, 8, 1)
    assert _placed({1: 1.0, 2: 1.1, 4: 2.15}) == (2, 2, 1)  # four are no faster than two


def test_on_a_gpu_slots_in_one_forward_a_process_a_card() -> None:
    assert _placed(MUCH_GAINED, device="cuda", processors=1) == (1, 8, 1)
    assert _placed(MUCH_GAINED, device="cuda", processors=4) == (4, 4, 1)
    assert _placed(NOTHING_GAINED, device="cuda", processors=1) == (1, 1, 1)


def test_never_more_at_once_than_wished() -> None:
    assert _placed(MUCH_GAINED, at_once=4) == (2, 2, 1)
    assert _placed(MUCH_GAINED, at_once=1) == (1, 1, 2)  # one trial has both cores
    assert _placed(MUCH_GAINED, at_once=3, processors=8) == (3, 1, 2)


def test_memory_bounds_processes_and_slots() -> None:
    assert _placed(NOTHING_GAINED, processors=8, usable_bytes=3 * GB) == (3, 1, 2)
    assert _placed(MUCH_GAINED, usable_bytes=GB // 2) == (1, 1, 2)  # not even one: it is tried
    assert _placed(MUCH_GAINED, device="cuda", processors=1, usable_bytes=GB + 4 * GB // 100) == (1, 4, 1)
    assert _placed({}) == (2, 1, 1)  # memory ended in the probe


@pytest.mark.parametrize("method", [LORA, spec.Full()], ids=["lora", "full"])
def test_a_probe_measures_and_teaches_nothing(tiny: Tiny, tmp_path: Path, method: object) -> None:
    tuned = attach(load(tiny, "tiny_llama"), [method], [0])
    training = spec.Training(
        batch_size=2, accumulate_steps=1, num_epochs=1, learning_rate=1e-2, warmup=0.0, weight_decay=0.0
    )
    examples, threads = rows("causal", count=9), torch.get_num_threads()
    before = [flat.values.clone() for flat in tuned.slots[0].flats]
    found = placing.measure(tuned, Job("a", training, 0, examples, (), tmp_path), 4, seconds=0.5)
    assert found.processes * found.slots_each <= 4
    assert found.figures["seconds_1"] > 0 and found.figures["process_bytes"] > 2**24
    assert ("seconds_2" in found.figures) == (not tuned.full and found.processes < 4)
    assert all(torch.equal(flat.values, a) for flat, a in zip(tuned.slots[0].flats, before, strict=True))
    assert not any(flat.grads.any() for flat in tuned.slots[0].flats)
    assert torch.get_num_threads() == threads
