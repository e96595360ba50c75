"""A Ray cluster: who is refused, processes on its nodes, and what the death of a node looks like."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier import engines, settings
from luthier.errors import MissingExtra, SpecError, TrainingError
from luthier.searching import clusters
from tests import raycluster
from tests.raycluster import TOKEN, Nodes, needs_ray

ECHOES = """
import os, sys
print("environment", *os.environ, flush=True)
for line in sys.stdin:
    print(line.strip(), os.getpid(), flush=True)
sys.exit(3)
"""


# --- what is refused before anybody is asked -------------------------------------------------------------------------
@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home, and an environment that knows of no cluster."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.60.0")
    return tmp_path


def test_the_cluster_is_that_of_the_settings_or_the_environment(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with pytest.raises(SpecError, match="none is named") as problem:
        clusters.require(alone)
    assert problem.value.hint is not None and "ray_address" in problem.value.hint
    (alone / settings.FILE).write_text('ray_address = "10.0.0.1:6379"\n', encoding="utf-8")
    assert clusters.require(alone) == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert clusters.require(alone) == "10.0.0.2:6379"


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://10.0.0.1:8265", "local"])
def test_an_address_no_search_can_join_is_refused(alone: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SpecError, match="not the address of a Ray cluster"):
        clusters.require(alone)


def test_without_a_token_nothing_is_asked(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(SpecError, match="no token") as problem:
        clusters.require(alone)
    default = alone / ".ray" / "auth_token"
    assert problem.value.where == str(default) and problem.value.hint is not None and "cluster.md" in problem.value.hint
    default.parent.mkdir()
    default.write_text(" \n", encoding="utf-8")
    with pytest.raises(SpecError, match="no token"):
        clusters.require(alone)
    default.write_text(TOKEN, encoding="utf-8")
    assert clusters.require(alone) == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(alone / "elsewhere"))
    with pytest.raises(SpecError, match="no token"):
        clusters.require(alone)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert clusters.require(alone) == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(SpecError, match="without a token, and \\$RAY_AUTH_MODE is `disabled`"):
        clusters.require(alone)


def test_ray_itself_is_needed_and_a_new_one(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.3")
    with pytest.raises(MissingExtra, match="too old"):
        clusters.require(alone)

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(MissingExtra) as problem:
        clusters.require(alone)
    assert problem.value.hint == "pip install 'luthier[ray]'"


# --- a cluster -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "echoes.py").write_text(ECHOES, encoding="utf-8")
    return folder


def _await(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not what() and time.monotonic() < until:
        time.sleep(0.05)
    assert what()


@pytest.fixture(scope="module")
def three(modules: Path) -> Iterator[Nodes]:
    with raycluster.running(3, path=str(modules)) as found:
        yield found


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, three: Nodes) -> Nodes:
    monkeypatch.setenv("RAY_ADDRESS", three.address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    return three


@needs_ray
@pytest.mark.slow
def test_a_process_ends_with_the_one_it_helps(nodes: Nodes, tmp_path: Path) -> None:
    """A driver that is gone takes its actors with it; a driver that is started anew connects anew."""
    cluster = clusters.connect(tmp_path)
    lines = (helper := cluster.helper(["echoes"], str(tmp_path))).lines()
    next(lines)
    helper.say("who are you")
    pid = int(next(lines).rsplit(" ", 1)[1])
    cluster.close()
    _await(lambda: not Path(f"/proc/{pid}").exists())
    cluster = clusters.connect(tmp_path)
    try:
        assert next(cluster.helper(["echoes"], str(tmp_path)).lines()).startswith("environment")
    finally:
        cluster.close()


@needs_ray
@pytest.mark.slow
def test_a_home_that_the_nodes_do_not_see_is_refused(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match="does not see the home folder") as problem:
        clusters.connect(Path("/proc/self/cwd"))  # another folder for every process
    assert problem.value.hint is not None and "shared file system" in problem.value.hint
    assert not list(tmp_path.iterdir())


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_lets_in_anybody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with raycluster.running(0, token=None) as open_to_all:
        monkeypatch.setenv("RAY_ADDRESS", open_to_all.address)
        with pytest.raises(TrainingError, match="lets in anybody") as problem:
            clusters.connect(tmp_path)
        assert problem.value.where == open_to_all.address


@needs_ray
@pytest.mark.slow
def test_a_wrong_token_and_nobody_at_the_address_are_told_apart(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with pytest.raises(TrainingError, match="does not take our token"):
        clusters.connect(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(TrainingError, match="no Ray cluster answers"):
        clusters.connect(tmp_path)


@needs_ray
@pytest.mark.slow
def test_processes_on_nodes_and_the_death_of_one(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "for the Hub")
    before = signal.getsignal(signal.SIGTERM)
    cluster = clusters.connect(tmp_path)
    try:
        assert signal.getsignal(signal.SIGTERM) is before  # who is asked to end saves first
        assert not list(tmp_path.iterdir())  # what was written to be seen by the nodes is gone
        assert cluster.room() == 3 and cluster.threads == 1
        mine, far = cluster.helper(["echoes"], str(tmp_path)), cluster.helper(["echoes"], "org/base")
        heard, lines = mine.lines(), far.lines()
        _, *names = next(heard).split()
        assert not [name for name in names if "RAY_AUTH" in name or name == "HF_TOKEN"]
        assert "HF_TOKEN" in next(lines).split()  # its base comes from the Hub
        mine.say("good morning")
        first, pid = next(heard).rsplit(" ", 1)
        assert first == "good morning" and int(pid) != os.getpid() and mine.returncode is None
        far.say("hello")
        assert next(lines).startswith("hello")
        _await(lambda: cluster.room() == 3)  # these two, and one more

        rest = list[str]()
        listener = threading.Thread(target=lambda: rest.extend(lines))
        listener.start()
        nodes.kill(far.node)
        listener.join(60)
        assert not listener.is_alive() and far.returncode == engines.LOST
        [told] = rest
        assert told.startswith(f"node {far.node[:12]} of the cluster is gone")
        far.say("nobody hears this")
        far.kill()

        mine.leave()  # the other node's process has lost nothing
        assert list(heard) == [] and mine.returncode == 3
        mine.kill()
        again = cluster.helper(["echoes"], str(tmp_path))
        assert next(again.lines()).startswith("environment")
        again.kill()
        assert again.returncode == -signal.SIGKILL
        _await(lambda: cluster.room() == 2)
    finally:
        cluster.close()
