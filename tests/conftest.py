"""What every test may use: one thread, no network, the shared materials where they exist, tiny models built once."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest

from luthier import engines, runs

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository: real small models and data. Skips where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip("needs the folder `shared` (models and data) beside the repository")
    return folder


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Path]:
    """`tiny("tiny_llama", tie_word_embeddings=True)` → a model folder to read (see `tests/tiny.py`)."""
    from tests import tiny as models  # torch is imported only by tests that need it

    return models.build


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the home folder of the person who runs it."""
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path_factory.getbasetemp() / "home"))


Starting = Callable[[Callable[[runs.Run], runs.Run]], None]


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch) -> Starting:
    """`starting(begin)`: a run is begun by `begin(run)` in this process, and no worker process is."""

    def replace(begin: Callable[[runs.Run], runs.Run]) -> None:
        monkeypatch.setattr(engines, "early", lambda home, module="": nullcontext())
        monkeypatch.setattr(engines, "start", lambda run, waiting=None: begin(run))

    return replace
