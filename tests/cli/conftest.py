"""`luthier("tune", path)` runs a command line in this process, workers included, and tells what came out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from luthier import runs, worker
from luthier.cli import app
from tests import rows
from tests.conftest import Starting


@dataclass(frozen=True, slots=True)
class Said:
    """Exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Luthier = Callable[..., Said]


@pytest.fixture
def luthier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], starting: Starting
) -> Luthier:
    """Run one command; its home is `tmp_path`/home, its working directory `tmp_path`, its worker this process."""

    def start(run: runs.Run) -> runs.Run:
        worker.work(run.path, lambda: False)
        return replace(run, state="running")  # as a real worker's run is seen: at work

    starting(start)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["luthier", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app.main()
        said = capsys.readouterr()
        return Said(int(end.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def experiment(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """experiment.yaml in the working directory: one short epoch of a tiny decoder."""
    rows.pairs(tmp_path)
    path = tmp_path / "experiment.yaml"
    training = "training: {num_epochs: 1, batch_size: 16, learning_rate: 0.01}"
    lines = (f"model: {tiny('tiny_llama')}", "data: pairs.jsonl", "method: lora", training)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
