"""luthier.toml: every key of the example reaches the worker, the environment wins, a wrong line is named."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from luthier import engines, settings
from luthier.errors import SpecError

EXAMPLE = Path(__file__).resolve().parents[1] / "luthier.example.toml"


def test_the_example_shows_every_key_and_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / settings.FILE).write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    assert set(tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))) == set(settings.KEYS)
    for variable, _ in settings.KEYS.values():
        assert variable in EXAMPLE.read_text(encoding="utf-8")
        monkeypatch.delenv(variable, raising=False)
    inherited = engines._environment(tmp_path)
    assert [inherited[variable] for variable, _ in settings.KEYS.values()] == ["cpu", "2", "True", "/data/models"]


def test_the_environment_wins_and_secrets_stay_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / settings.FILE).write_text("threads = 2\n")
    for name, value in {"OMP_NUM_THREADS": "7", "SOME_API_KEY": "secret", "HF_TOKEN": "for the Hub"}.items():
        monkeypatch.setenv(name, value)
    inherited = engines._environment(tmp_path)
    assert inherited["OMP_NUM_THREADS"] == "7" and inherited["HF_TOKEN"] == "for the Hub"
    assert "SOME_API_KEY" not in inherited


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('devise = "cpu"', "did you mean `device`"),
        ('threads = "2"', "must be a whole number"),
        ("offline = 1", "true or false"),
        ("device = ", "not TOML"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / settings.FILE).write_text(line)
    with pytest.raises(SpecError, match=said):
        settings.environment(tmp_path)
