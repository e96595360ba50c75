"""luthier.toml: every key of the example reaches the worker, the environment wins, a wrong line is named."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from luthier import engines, runs, settings
from luthier.errors import SpecError

EXAMPLE = Path(__file__).resolve().parents[1] / "luthier.example.toml"


def test_the_example_shows_every_key_and_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / settings.FILE).write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    assert set(tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))) == set(settings.KEYS)
    for variable, _ in settings.KEYS.values():
        assert variable in EXAMPLE.read_text(encoding="utf-8")
        monkeypatch.delenv(variable, raising=False)
    inherited = engines._environment(begun(tmp_path))
    said = ["cpu", "2", "True", "/data/models", "10.0.0.1:6379"]
    assert [inherited[variable] for variable, _ in settings.KEYS.values()] == said


def begun(home: Path, model: str = "org/small") -> runs.Run:
    return runs.create(home, "tiny", "0", {}, {"model": model})


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / settings.FILE).write_text("threads = 2\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert engines._environment(begun(tmp_path))["OMP_NUM_THREADS"] == "7"


def test_the_worker_sees_what_is_on_the_list_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = "PATH HOME LC_ALL TOKENIZERS_PARALLELISM CUDA_VISIBLE_DEVICES HF_HUB_OFFLINE LUTHIER_DEVICE https_proxy"
    secret = "AWS_ACCESS_KEY_ID OPENAI_KEY SOME_API_KEY LUTHIER_TOKEN NVIDIA_API_KEY DATABASE_URL SSH_AUTH_SOCK"
    for name in (needed + " " + secret).split():
        monkeypatch.setenv(name, "a value of it")
    inherited = engines._environment(begun(tmp_path))
    assert not set(needed.split()) - set(inherited) and not set(secret.split()) & set(inherited)


def test_the_hub_s_token_goes_to_who_loads_a_base_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "for the Hub")
    assert engines._environment(begun(tmp_path))["HF_TOKEN"] == "for the Hub"
    assert "HF_TOKEN" not in engines._environment(begun(tmp_path, model=str(tmp_path)))


def test_a_cluster_s_token_goes_to_the_search_that_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "for the cluster")
    search = runs.create(tmp_path, "far", "0", {}, {"model": str(tmp_path), "kind": "search", "engine": "ray"})
    assert engines._environment(search)["RAY_AUTH_TOKEN"] == "for the cluster"
    assert "RAY_AUTH_TOKEN" not in engines._environment(begun(tmp_path))


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
