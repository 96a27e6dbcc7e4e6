"""Fine-tuning on a Ray cluster: the same loop in every worker, started by Ray Train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xvision.errors import MissingExtra


def on_ray(work: Callable[[], None], *, workers: int, gpus: bool, storage: Path) -> None:
    """Runs ``work`` in every worker of a Ray Train group, which sets up the processes as torchrun would.

    workers: processes. gpus: one GPU for each. storage: a folder that all machines see, for Ray's own records. The
    checkpoint and data folders must be seen by all machines too.
    """
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError:
        raise MissingExtra("ray", "ray", "xvision finetune --ray") from None
    scaling = ScalingConfig(num_workers=workers, use_gpu=gpus)
    TorchTrainer(work, scaling_config=scaling, run_config=RunConfig(storage_path=str(storage.resolve()))).fit()
