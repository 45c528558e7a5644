"""Several processes at one piece of work, as torchrun or `robuq-bench launch` start them; one needs no group."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from robuq_bench.devices import jobs_per_gpu
from robuq_bench.errors import BenchError

Made = TypeVar("Made")
PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: one may be encoding a shard or saving a state meanwhile."""


@dataclass(frozen=True)
class Sum:
    """One on its way."""

    work: dist.Work

    def wait(self) -> None:
        """Until it is there, for what follows on this stream."""
        with _others():
            self.work.wait()


@dataclass(frozen=True)
class World:
    """This process among `size`; `rank` 0, the lead, alone writes files."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def part(self, count: int, what: str = "batch") -> slice:
        """This process's share of `count` things. Raises BenchError when they cannot be shared out evenly."""
        if count % self.size:
            raise BenchError(f"{what} {count} is not a multiple of {self.size}, the number of processes")
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def lead_first(self, make: Callable[[], Made]) -> Made:
        """What `make` gives in each process; in the lead before the others, who find what it has written."""
        if self.leads:
            made = make()
            self.wait()
            return made
        self.wait()
        return make()

    def sum(self, tensor: Tensor) -> None:
        """Replace it by its sum over all processes."""
        if self.size > 1:
            self.start_sum(tensor).wait()

    def start_sum(self, tensor: Tensor) -> Sum:
        """The same, while this process does other things until it waits for it."""
        with _others():
            return Sum(dist.all_reduce(tensor, async_op=True))

    def share(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by the lead's."""
        if self.size > 1:
            with _others(), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            with _others():
                dist.barrier()


ALONE = World()


@contextmanager
def together(device: str) -> Iterator[World]:
    """The group that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), or this process alone.

    Raises BenchError when processes are lost, or when GPUs are shared by jobs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    cuda = device == "cuda"
    if cuda and jobs_per_gpu() > 1:  # two processes of one job could have got the same, which NCCL refuses at length
        raise BenchError("each process needs a GPU of its own: leave jobs_per_gpu out when several share a job")
    # The GPU that this process has claimed: left to itself NCCL takes that of its rank for `wait`, and with two GPUs in
    # a process the processes may wait for each other for ever when they end.
    own = torch.device("cuda", torch.cuda.current_device()) if cuda else None
    with _others():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE, device_id=own)
    yield World(dist.get_rank(), size)
    dist.destroy_process_group()  # not after an error: NCCL would wait for the others, who wait for this process


@contextmanager
def _others() -> Iterator[None]:
    """What a collective says when a process is gone, in one line."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        reason = re.sub(r"^\[\S+:\d+\] ", "", " ".join(str(error).split())).split(". ")[0][:120]
        raise BenchError(
            f"another process of this run was lost ({reason}); what was saved is kept: run the same command again"
        ) from error
