"""A Ray cluster of several nodes on this machine, in a process of its own, for tests of `searching/clusters.py`.

A node is a process of Ray's, with processes of its own beside it; killing one is what a machine's death looks like.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "0123456789abcdef0123456789abcdef-of-a-test"
MEMORY = 80_000_000  # bytes of a node's object store, which luthier leaves empty

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")

_KEEPER = f"""
import sys
from ray.cluster_utils import Cluster
few = dict(object_store_memory={MEMORY}, include_dashboard=False)
count, cores = map(int, sys.argv[1:])
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, **few))
nodes = [cluster.add_node(num_cpus=cores, **few) for _ in range(count)]
told = [(node.node_id, node.all_processes["raylet"][0].process.pid) for node in nodes]
print("cluster", cluster.address, *(word for each in told for word in each), file=sys.stderr, flush=True)
for line in sys.stdin:
    [node] = [node for node in nodes if node.node_id == line.strip()]
    cluster.remove_node(node, allow_graceful=False)
    print("gone", file=sys.stderr, flush=True)
cluster.shutdown()
"""


@dataclass(frozen=True, slots=True)
class Nodes:
    """The cluster's address; its nodes' ids and the process that each is. The head, which computes nothing, is none."""

    address: str
    raylets: dict[str, int]
    keeper: subprocess.Popen[str]

    def kill(self, node: str) -> None:
        """End a node with all that runs on it, unasked."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.write(node + "\n")
        self.keeper.stdin.flush()
        _told(self.keeper, "gone")


@contextmanager
def running(count: int, cores: int = 1, token: str | None = TOKEN, path: str = "") -> Iterator[Nodes]:
    """A cluster of `count` nodes with so many cores each; without a token it lets in anybody. `path`: where its nodes
    find modules, besides ours."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a longer path is too long for a socket
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", _KEEPER, str(count), str(cores)]
    places = {"RAY_TMPDIR": folder, "PYTHONPATH": f"{ROOT / 'src'}:{path}"}
    environment = _without_ray(os.environ) | secret | places
    keeper = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )
    assert keeper.stdin is not None
    try:
        address, *told = _told(keeper, "cluster")
        yield Nodes(address, dict(zip(told[::2], map(int, told[1::2]), strict=True)), keeper)
    finally:
        keeper.stdin.close()
        try:
            keeper.wait(30)
        except subprocess.TimeoutExpired:
            keeper.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _told(keeper: subprocess.Popen[str], word: str) -> list[str]:
    """What the keeper says behind `word`, its next line that begins so."""
    assert keeper.stderr is not None
    said = []
    for line in keeper.stderr:
        said.append(line)
        if line.split()[:1] == [word]:
            return line.split()[1:]
    raise AssertionError("".join(said))


def _without_ray(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("RAY_")} | {
        "RAY_USAGE_STATS_ENABLED": "0"
    }
