"""`luthier("tune", path)` runs a command line in this process, workers included, and tells what came out."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from luthier import engines, hardware, runs, worker
from luthier.cli import app
from luthier.searching import lead, riding
from tests import rows
from tests.conftest import Starting


@dataclass(frozen=True, slots=True)
class Said:
    """Exit code, standard output, standard error."""

    code: int
    out: str
    err: str


class Beside:
    """The wave of a search in a thread of this process, in place of `engines.Helper`."""

    def __init__(self, command: Sequence[str], home: Path, *models: str) -> None:
        assert list(command) == ["luthier.searching.wave"]
        self._answers, self._questions = queue.SimpleQueue[Any](), queue.SimpleQueue[str | None]()
        self._gone = threading.Event()
        self._work: threading.Thread | None = None
        self.returncode: int | None = None

    def say(self, text: str) -> None:
        if self._work is None:
            self._work = threading.Thread(target=self._ride, args=(json.loads(text),), daemon=True)
            self._work.start()
        else:
            self._answers.put(json.loads(text))

    def lines(self) -> Iterator[str]:
        while (line := self._questions.get()) is not None:
            yield line

    def leave(self) -> None:
        self._gone.set()
        self._answers.put(None)

    def kill(self) -> None:
        self.leave()
        if self._work is not None:
            self._work.join()

    def _ride(self, told: dict[str, Any]) -> None:
        def ask(question: Mapping[str, Any]) -> dict[str, Any] | None:
            self._questions.put(json.dumps(question))
            return self._answers.get()  # type: ignore[no-any-return]

        try:
            wave = riding.Wave(Path(told["search"]), ask, self._gone.is_set, hardware.Neighbours())
            wave.ride(told["slots"], told["threads"])
            self.returncode = 0
        except Exception as problem:
            self.returncode = 1
            self._questions.put(f"{type(problem).__name__}: {problem}")
        self._questions.put(None)


Luthier = Callable[..., Said]


@pytest.fixture
def luthier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], starting: Starting
) -> Luthier:
    """Run one command; its home is `tmp_path`/home, its working directory `tmp_path`, its worker this process."""

    def start(run: runs.Run) -> runs.Run:
        worker.work(run.path, lambda: False, *([lead.carry] if run.facts.get("kind") == "search" else []))
        return replace(run, state="running")  # as a real worker's run is seen: at work

    starting(start)
    monkeypatch.setattr(engines, "Helper", Beside)
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
