"""Several processes as one: each computes a part of every step, all make the same update.

Lives here: joining (from torchrun's environment), what the processes tell each other, laying a large base over them.
Does not live here: when they meet (`loop.py`), how a step is cut (`data/batches.part_of`), who owns the run's folder
(`worker.py`: rank 0).

The order of the examples is a function of the seed, so every process knows every step. Each adds up the gradients of
its part; a slot's weights are 1 / (trained tokens of the whole step), so one sum over the slots' flat buffers makes
the gradient of the step, with the same bits everywhere. All clip and step with it, and stay equal without ever sending
a parameter.

Nobody leaves alone. A process that is asked to stop drops the rest of its part and says so where all meet, at the end
of the update or evaluation: then all stop. (One that left by itself would keep the others waiting for ever:
pocket-tts#277.) A process that dies is missed by the others at the next meeting.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier.data.batches import Share, part_of
from luthier.errors import ModelError, TrainingError
from luthier.models.forward import Batch
from luthier.models.slots import Slot

PATIENCE = timedelta(days=7)  # for numbers that say how it goes: rank 0 may ask the base for hours before it trains
T = TypeVar("T")


class Parted(TrainingError):
    """Another process of this run is gone."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a run: which one this is, and how many. By default one, alone.

    `sharded`: the base's layers lie spread over the processes, so that all must call it equally often.
    """

    rank: int = 0
    count: int = 1
    sharded: bool = False
    control: Any = None  # a group on the CPU, for numbers that no device needs to wait for

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's folder."""
        return self.rank == 0

    def sharing_layers(self) -> Ranks:
        """The same processes, about to share the base's layers (`shard`); one alone has nobody to share with."""
        return replace(self, sharded=self.count > 1)

    def part(self, shares: Sequence[Share]) -> list[Share]:
        """This process's part of a step; where layers are spread never nothing, but an example worth nothing."""
        if self.count == 1:
            return list(shares)
        mine = part_of(shares, self.rank, self.count)
        if mine or not self.sharded:
            return mine
        return [replace(shares[0], examples=shares[0].examples[:1], weight=0.0)]

    def in_step(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The micro-batches; where layers are spread as many as the busiest process has, the last again for nothing."""
        if not self.sharded:
            yield from batches
            return
        last: Any = None  # every process has one at least (`part`)
        while True:
            batch = next(batches, None)
            if not self.sum([batch is not None])[0]:
                return
            last = batch or replace(last, weights_S=np.zeros_like(last.weights_S))
            yield last

    def together(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """`stop` as the loop may ask it between micro-batches: where layers are spread, all get the same answer."""
        return (lambda: self.agree(stop())) if self.sharded else stop

    def agree(self, wish: bool) -> bool:
        """Whether any process wishes it. Every process must ask."""
        return self.sum([wish])[0] > 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Numbers of this process, added up over all (float64). Every process must come. Raises Parted."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with _meeting():
            dist.all_reduce(total, group=self.control)
        return total.tolist()

    def sum_gradients(self, slots: Sequence[Slot]) -> None:
        """Make the gradients of this part those of the whole step, in place, with the same bits in every process."""
        if self.count == 1:
            return
        with _meeting():
            for slot in slots:
                for flat in slot.flats:
                    dist.all_reduce(flat.grads)

    def by_lead(self, work: Callable[[], T]) -> T:
        """What `work` gives in rank 0, where alone it is done, in every process. Raises Parted where rank 0 failed."""
        if self.count == 1:
            return work()
        said = [work() if self.leads else None]
        with _meeting():
            dist.broadcast_object_list(said, src=0, group=self.control)
        return said[0]  # type: ignore[return-value]

    def shard(self, network: Any) -> None:
        """Spread the layers of a frozen network over the processes (FSDP2; Zhao et al. 2023, arXiv 2304.11277).

        Each process keeps a part of every layer, which is whole only while that layer computes. What is not in a layer
        (embedding, output layer) stays whole everywhere, and so do adapters, which are no parameters of the network.
        """
        layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise ModelError(f"`{network.config.model_type}` has no layers that could be spread over processes")
        device = _device()
        mesh = init_device_mesh(device, (self.count,))
        within = {id(parameter) for layer in layers for parameter in layer.parameters()}
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        backbone = network.base_model
        whole = {parameter for parameter in backbone.parameters() if id(parameter) not in within}
        fully_shard(backbone, mesh=mesh, ignored_params=whole)
        network.to(device)


ALONE = Ranks()


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone; each has its own device (NCCL there, gloo on a CPU)."""
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    device = _device()
    if device == "cuda":
        torch.cuda.set_device(int(environment["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield Ranks(dist.get_rank(), dist.get_world_size(), control=control)
    finally:
        dist.destroy_process_group()


def _device() -> str:
    from luthier import hardware

    return hardware.machine().device


@contextmanager
def _meeting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's words for a peer that has closed its connection, or NCCL's
        raise Parted("another process of this run ended", hint="its own words stand in the run's log") from error
