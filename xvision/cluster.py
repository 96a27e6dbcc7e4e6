"""Work on a Ray cluster, joined when one runs and started on this machine when none does. The only ray door."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from xvision.errors import MissingExtra

Shared = TypeVar("Shared")
Cut = TypeVar("Cut")
_WAITING = 4
"""Tasks that wait for each core: enough to keep it busy, few enough to keep memory small."""


def tasks(
    compute: Callable[[Shared, Cut], Mapping[str, np.ndarray]], shared: Shared, parts: Sequence[tuple[int, Cut]]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """``compute(shared, cut)`` of every (place, cut), as each is ready."""
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray", "--engine ray") from None
    _join(ray)
    remote, stored = ray.remote(compute), ray.put(shared)
    cores = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]  # ray is partly typed
    limit = _WAITING * max(1, int(cores))
    waiting: dict[Any, int] = {}
    queue = list(reversed(parts))
    while queue or waiting:
        while queue and len(waiting) < limit:
            place, cut = queue.pop()
            waiting[remote.remote(stored, cut)] = place
        ready, _ = ray.wait(list(waiting), num_returns=1)
        for reference in ready:
            yield waiting.pop(reference), dict(ray.get(reference))


def _join(ray: Any) -> None:
    """A running cluster, or a local one; its own messages stay in its own logs."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)


def train_group(work: Callable[[], None], *, workers: int, gpus: bool, storage: Path) -> None:
    """Runs ``work`` in every worker of a Ray Train group, which sets up the processes as torchrun would.

    gpus: one GPU for each worker. storage: a folder that all machines see, for Ray's own records; checkpoint and data
    folders must be seen by all machines too.
    """
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError:
        raise MissingExtra("ray", "ray", "xvision finetune --ray") from None
    _join(ray)
    scaling = ScalingConfig(num_workers=workers, use_gpu=gpus)
    TorchTrainer(work, scaling_config=scaling, run_config=RunConfig(storage_path=str(storage.resolve()))).fit()
