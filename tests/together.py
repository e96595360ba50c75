"""Several processes on this machine, joined as torchrun would join them, for tests of what they do together."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from luthier.train.ranks import Ranks, joined

SECONDS = 60


def together(count: int, work: Callable[[Ranks], Any], sharded: bool = False) -> list[Any]:
    """What `work` gives in each of `count` processes that have joined, by rank; in this process where it is one."""

    def join() -> Any:
        with joined() as ranks:
            return work(ranks.sharing_layers() if sharded else ranks)

    return processes(count, join) if count > 1 else [join()]


def processes(count: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` gives in each of `count` processes with torchrun's environment, by rank. Errors are raised here.

    The processes are forked: `work` may be any function and use what is in memory, torch is not imported again.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe(duplex=False) for _ in range(count)]
    children = []
    for rank, (_, answer) in enumerate(pipes):
        said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        children.append(fork.Process(target=_child, args=(work, said, answer)))
        children[-1].start()
        answer.close()
    try:
        answers = [_heard(hear) for hear, _ in pipes]
    finally:
        for child in children:
            child.join(5)
            child.kill()
    problems = [problem for _, problem in answers if problem]
    assert not problems, "\n".join(problems)
    return [answer for answer, _ in answers]


def _child(work: Callable[[], Any], said: dict[str, Any], answer: Any) -> None:
    os.environ.update({name: str(value) for name, value in said.items()})
    torch.set_num_threads(1)
    try:
        told = pickle.dumps((work(), None))  # pickled here: `send` would share a tensor's memory, which ends with us
    except BaseException:
        told = pickle.dumps((None, traceback.format_exc()))
    answer.send_bytes(told)
    os._exit(0)  # no farewell of pytest's in a copy of it


def _heard(hear: Any) -> tuple[Any, str | None]:
    if not hear.poll(SECONDS):
        return None, f"no answer within {SECONDS} s: the processes wait for each other"
    try:
        return pickle.loads(hear.recv_bytes())
    except EOFError:
        return None, "a process ended without a word"
