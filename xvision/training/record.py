"""What goes into the training loop and what comes out of it, in memory and on disk."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xvision import __version__, codec
from xvision.errors import DataError
from xvision.models.llm_config import LlmImageClassifierConfig
from xvision.recipe import TrainingPlan
from xvision.store import write_atomic

LOG = "metrics.jsonl"


class Arrays(NamedTuple):
    """Images and labels. pixels: (N, C, H, W) uint8, or float32 in [0, 1]. labels: (N,) class indices, int64."""

    pixels: np.ndarray
    labels: np.ndarray


class Progress(NamedTuple):
    """Where the training is; ``step`` counts from 1 to ``total`` over all epochs."""

    epoch: int
    step: int
    total: int
    loss: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Validation:
    """Scores on the validation images. auroc is None, with the reason, where it cannot be estimated."""

    auroc: float | None
    reason: str | None
    accuracy: float
    loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """Better is larger: AUROC, then loss."""
        return (-1.0 if self.auroc is None else self.auroc, -self.loss)


@dataclass(frozen=True)
class TrainingSummary:
    """What training came to. Epochs count from 1; ``validation`` is of the best epoch, whose weights were saved.

    baseline_auroc: of plain pixels, see ``pixel_baseline``. beats_majority: validation accuracy is above always
    answering the commonest class.
    """

    best_epoch: int
    epochs: int
    steps: int
    validation: Validation
    baseline_auroc: float | None
    baseline_reason: str | None
    majority_accuracy: float
    beats_majority: bool
    parameters: int
    seconds: float
    device: str


def check_arrays(name: str, arrays: Arrays, config: LlmImageClassifierConfig) -> None:
    """DataError when images or labels do not fit the model; ``name`` says which."""
    pixels, labels = arrays.pixels, arrays.labels
    shape = (config.num_channels, config.image_size, config.image_size)
    if pixels.ndim != 4 or pixels.shape[1:] != shape or len(pixels) != len(labels) or not len(labels):
        raise DataError(
            f"The {name} images have shape {pixels.shape} for {len(labels)} labels; the model takes (N, "
            f"{', '.join(map(str, shape))}) and needs at least one image."
        )
    if pixels.dtype not in (np.uint8, np.float32) or (
        pixels.dtype == np.float32 and not (pixels.min() >= 0 and pixels.max() <= 1)
    ):
        raise DataError(f"The {name} images are {pixels.dtype}: give uint8, or float32 in [0, 1].")
    if labels.dtype != np.int64 or labels.min() < 0 or labels.max() >= len(config.classes):
        raise DataError(f"The {name} labels must be int64 from 0 to {len(config.classes) - 1}, one for each class.")
    missing = sorted(set(range(len(config.classes))) - set(labels.tolist()))
    if name == "training" and missing:
        raise DataError(f"There is no training image of the class {config.classes[missing[0]]!r}: add some.")


def log(out: Path, line: Mapping[str, Any]) -> None:
    """One more line of metrics.jsonl."""
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def write_run(out: Path, summary: TrainingSummary, plan: TrainingPlan, train: Arrays, validation: Arrays) -> None:
    """run.json: plan, data, versions and result."""
    facts = {
        "plan": asdict(plan),
        "result": asdict(summary),
        "data": {"training": _facts(train), "validation": _facts(validation)},
        "versions": {"xvision": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "numpy", "scikit-learn")},
    }
    write_atomic(out / "run.json", codec.dumps(facts).encode())


def _facts(arrays: Arrays) -> dict[str, str | int]:
    digest = hashlib.sha256(arrays.pixels.tobytes())
    digest.update(arrays.labels.tobytes())
    return {"images": len(arrays.labels), "sha256": digest.hexdigest()}
