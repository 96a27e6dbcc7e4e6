"""Curves shown elsewhere as well: TensorBoard files and Weights & Biases, both on this machine unless told otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from xvision import codec
from xvision.errors import MissingExtra
from xvision.recipe import TrainingPlan

_SKIPPED = frozenset({"event", "step", "epoch", "reason"})


class Tracker(Protocol):
    """Somewhere that draws curves."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """All of a training's trackers; metrics.jsonl is written whether there are any or not."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        kind = "training" if line["event"] == "steps" else "validation"
        values = {
            f"{kind}/{name}": float(value)
            for name, value in line.items()
            if name not in _SKIPPED and isinstance(value, int | float)
        }
        for tracker in self._trackers:
            tracker.log(int(line["step"]), values)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def open_trackers(plan: TrainingPlan, out: Path, *, active: bool) -> Trackers:
    """The plan's trackers; files go to the folder ``OUT.tracking``. MissingExtra when one is not installed."""
    if not active:
        return Trackers([])
    folder = out.with_name(f"{out.name}.tracking")
    makers = {"tensorboard": _tensorboard, "wandb": _wandb}
    return Trackers([makers[name](plan, folder) for name in plan.trackers])


def _tensorboard(plan: TrainingPlan, folder: Path) -> Tracker:
    try:
        import tensorboard  # noqa: F401  # torch's writer needs it and says so less clearly
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("tensorboard", "tracking", 'training.trackers = ["tensorboard"]') from None
    return _TensorBoard(SummaryWriter(str(folder / "tensorboard")))


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _wandb(plan: TrainingPlan, folder: Path) -> Tracker:
    try:
        import wandb
    except ImportError:
        raise MissingExtra("wandb", "tracking", 'training.trackers = ["wandb"]') from None
    folder.mkdir(parents=True, exist_ok=True)
    # Nothing leaves this machine unless the user's own environment asks for it.
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    run = wandb.init(
        project="xvision", dir=str(folder), mode=mode, config=codec.plain(plan),
        settings=wandb.Settings(silent=True, disable_git=True, disable_code=True, save_code=False),
    )  # fmt: skip
    return _WeightsAndBiases(run)


class _WeightsAndBiases:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
