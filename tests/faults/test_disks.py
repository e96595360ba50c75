"""Disks that are full, fail or rot (reliability tests 5, 6, 7).

The run ends with a reason, the older checkpoint stands, the same command continues.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier import runs
from luthier.errors import TrainingError
from luthier.train import checkpoint
from tests.faults.victims import (
    Training,
    Ward,
    at_call,
    bits,
    checkpoint_bits,
    disk_fails,
    fork,
    leftovers,
    small_files,
    wait,
)

SOME = [2, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
LONG = {"save_every": 2}  # full tuning: a checkpoint of some 400 KiB, after updates 2, 4, 5 (the epoch), 6, 8 and 10


@pytest.fixture(scope="module")
def expected(ward: Ward) -> dict[str, Any]:
    run = ward.run("full", **LONG)
    assert ward.carry(run) == 0
    return bits(run)


def failed(run: Path) -> str:
    """The whole error of a failed run, in one line."""
    told = runs.load(run)
    assert told.state == "failed" and told.error is not None
    assert not leftovers(run)
    return " ".join(str(part) for part in told.error.values())


@pytest.mark.parametrize("cases", SOME)
def test_a_write_that_is_refused_at_a_save_ends_the_run_and_the_same_command_continues(
    ward: Ward, expected: dict[str, Any], cases: int
) -> None:
    draw = np.random.default_rng(5)
    for _ in range(cases):
        save, size = int(draw.integers(1, 6)), int(draw.integers(10_000, 100_000))
        run = ward.run("full", **LONG)
        full = at_call("luthier.train.checkpoint:save", save, functools.partial(small_files, size))
        assert ward.carry(run, full) == 1
        said = failed(run)
        assert "could not be written" in said and "MiB must be free" in said and f"{run}/checkpoints/step-" in said
        found, complaints = checkpoint.newest(run / "checkpoints")
        assert not complaints and (found.progress.step if found else 0) == (0, 2, 4, 5, 6)[save - 1]
        assert ward.carry(run) == 0
        assert bits(run) == expected, f"refused beyond {size} bytes at save {save}"


@pytest.mark.parametrize("cases", SOME)
def test_a_disk_that_fails_under_a_sync_ends_the_run_and_the_same_command_continues(
    ward: Ward, expected: dict[str, Any], cases: int
) -> None:
    """At any sync of the run's: of a checkpoint, the events, the record, the answers, what was learned."""
    draw = np.random.default_rng(6)
    for number in draw.integers(1, 60, cases).tolist():
        run = ward.run("full", **LONG)
        assert ward.carry(run, at_call("os:fsync", number, disk_fails)) == 1, f"sync {number}"
        if runs.load(run).state != "interrupted":  # where the very record could not be written
            assert os.strerror(5) in failed(run) and "defect" not in failed(run)
        assert ward.carry(run) == 0
        assert bits(run) == expected, f"sync {number} failed"
        assert not leftovers(run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1300k", "luthier-test", str(place)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_disk_that_fills_up_ends_the_run_and_with_room_the_same_command_continues(
    ward: Ward, small_disk: Path, expected: dict[str, Any], foreseen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without the look at the free space before a save: the second meets the disk's own refusal."""
    ward = Ward(small_disk, data=ward.folder)
    run = ward.run("full", **LONG)
    with monkeypatch.context() as patch:
        if not foreseen:
            patch.setattr(checkpoint, "ROOM", 0.1)
        assert ward.carry(run) == 1
    said = failed(run)
    assert "could not be written" in said and ("No space left" in said or "os error 28" in said)
    found, complaints = checkpoint.newest(run / "checkpoints")
    assert found is not None and found.progress.step >= 2 and not complaints
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    assert ward.carry(run) == 0
    assert bits(run) == expected


def test_a_save_looks_for_room_first_and_leaves_nothing(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = training.tuned.slots[0].tensors()
    need = sum(tensor.nbytes for tensor in weights.values())
    usage = namedtuple("usage", "total used free")
    for free, fits in ((int(2.2 * need) + 1, True), (int(2.2 * need) - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(0, 0, free))
        folder = tmp_path / str(fits)
        if fits:
            assert checkpoint.save(folder, checkpoint.Progress(1), weights, {}).is_dir()
        else:
            with pytest.raises(TrainingError, match="No space left"):
                checkpoint.save(folder, checkpoint.Progress(1), weights, {})
            assert not list(folder.iterdir())


def test_an_event_that_does_not_fit_leaves_the_lines_before_it_whole(tmp_path: Path) -> None:
    """A line cut by a full disk would make one unreadable line of itself and the next."""
    run = runs.create(tmp_path, "tickets", "f00d", {}, {})
    note = runs.Noted(run.id, 1, 2.0, "progress", "x" * 150)
    runs.append(run.path, note)

    def work() -> int:
        small_files((run.path / runs.EVENTS).stat().st_size + 50)
        try:
            runs.append(run.path, note)
        except OSError:
            return 7
        return 0

    assert wait(fork(work, (), run.path / runs.LOG)) == 7
    runs.append(run.path, note)
    assert runs.read_events(run.path) == [note, note]


def test_a_checkpoint_that_rots_is_named_and_the_one_before_used(training: Training, tmp_path: Path) -> None:
    """Every byte of the small files and 200 of each large one flipped, every file cut and deleted."""
    whole, room = training.reference(), training.latest
    newest = max((room / "checkpoints").iterdir())
    draw = np.random.default_rng(7)
    for file in sorted(newest.iterdir()):
        good = file.read_bytes()
        places = range(len(good)) if len(good) < 1000 else draw.integers(0, len(good), 200).tolist()
        flipped = [good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :] for at in places]
        for bad in (*flipped, b"", good[: len(good) // 2], good[:-1], None):
            if bad is None:
                file.unlink()
            else:
                file.write_bytes(bad)
            found, [complaint] = checkpoint.newest(room / "checkpoints")
            assert found is not None and checkpoint_bits(found.path) == whole[len(whole) - 1]
            assert newest.name in complaint and (file.name in complaint or file.name == "MANIFEST.json")
        file.write_bytes(good)
    (newest / "optimizer.safetensors").write_bytes(b"rot")
    assert training.carry(room) == 0
    assert checkpoint_bits(newest) == whole[len(whole)]
    assert any(newest.name in e.message for e in runs.read_events(room) if isinstance(e, runs.Noted))


def test_rotation_never_trusts_a_checkpoint_from_an_abandoned_future(training: Training, tmp_path: Path) -> None:
    """Going on before a damaged one, the damaged one does not count among the two that stand."""
    weights = training.tuned.slots[0].tensors()
    for step in (1, 2, 9):
        checkpoint.save(tmp_path, checkpoint.Progress(step=step), weights, {})
    (tmp_path / "step-00000009" / "MANIFEST.json").unlink()
    checkpoint.save(tmp_path, checkpoint.Progress(step=3), weights, {})
    checkpoint.rotate(tmp_path, {3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("saves", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_at_no_instant_is_there_less_than_a_whole_checkpoint(training: Training, saves: int) -> None:
    """The training is held still every 5 ms and looked at; it evaluates every third update and saves after each."""
    room = training.fresh()
    pid = training.begin(room, max_steps=saves, num_epochs=50, evaluate_every=3, learning_rate=0.1)
    looks, most = 0, 0
    try:
        while _held_still(pid):
            told = sum(isinstance(event, runs.Saved) for event in runs.read_events(room))
            places = list((room / "checkpoints").glob("step-*"))
            stand = [path for path in places if checkpoint._fault(path) is None]
            assert len(stand) >= min(2, told), f"after {told} saves: {[path.name for path in places]}"
            looks, most = looks + (told > 0), max(most, len(places))
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.005)
    except BaseException:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended, badly
            os.kill(pid, signal.SIGKILL)
            wait(pid)
        raise
    assert looks > saves and most <= 5  # the best, the newest, the one before, one coming and one going


def _held_still(pid: int) -> bool:
    """Hold the victim where it is; False where it has ended well."""
    os.kill(pid, signal.SIGSTOP)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status) or status == 0
    return os.WIFSTOPPED(status)
