"""One process or several: read from the environment that torchrun, ``accelerate launch`` and Ray Train all set."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed


@dataclass(frozen=True)
class World:
    """rank: this process, of ``size``. device: the one this process computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, indices: np.ndarray) -> np.ndarray:
        """The indices this process works on; together all processes work on each once."""
        return indices[self.rank :: self.size]

    def add(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def gathered(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows of every process, by rank."""
        if self.size == 1:
            return [rows]
        everyone: list[np.ndarray] = [rows] * self.size
        distributed.all_gather_object(everyone, rows)
        return everyone

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()


def world() -> World:
    """The processes of this training. The group is started once and ends with the process, unless a launcher keeps it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else 0
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if cuda else "gloo")
        atexit.register(distributed.destroy_process_group)
    return World(int(os.environ.get("RANK", "0")) if size > 1 else 0, size, device)
