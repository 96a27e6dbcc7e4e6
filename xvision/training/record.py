"""What goes into the training loop and what comes out of it, in memory and on disk."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xvision import __version__, codec, provenance
from xvision.errors import DataError
from xvision.models.llm.config import LlmImageClassifierConfig
from xvision.recipe import TrainingPlan
from xvision.store import write_atomic

LOG = "metrics.jsonl"
_CHUNK = 1024


class Arrays(NamedTuple):
    """Images with what training needs to know of them.

    pixels: (N, C, H, W) uint8, or float32 in [0, 1]. labels: (N,) class indices, int64, or (N, K) 0 and 1, float32, when
    an image may show several findings. groups: (N,) int64 codes of the group column that training minds. text: (N, T) int64
    rows of the kept vocabulary, -1 where there is no token. balance: int64 codes of the cells drawn equally often,
    of the images that are not rehearsed.
    """

    pixels: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None
    text: np.ndarray | None = None
    balance: np.ndarray | None = None

    def without_last(self, count: int) -> Arrays:
        """All but the last ``count`` images: the training images without those that are rehearsed."""
        kept = len(self.labels) - count
        further = (None if part is None else part[:kept] for part in self[2:])
        return Arrays(self.pixels[:kept], self.labels[:kept], *further)


class Progress(NamedTuple):
    """Where the training is; ``step`` counts from 1 to ``total`` over all epochs. mfu: share of the machine's matrix rate."""

    epoch: int
    step: int
    total: int
    loss: float
    images_per_second: float
    seconds_left: float
    mfu: float | None = None


@codec.record
class Validation:
    """Scores on the validation images. auroc is None, with the reason, where it cannot be estimated.

    worst_group: smallest AUROC of a group in which it can be estimated; None without groups.
    """

    auroc: float | None
    reason: str | None
    accuracy: float
    loss: float
    worst_group: float | None = None

    def rank(self, select: str) -> tuple[float, float]:
        """Better is larger: what the plan selects by, then loss."""
        leading = self.worst_group if select == "worst group" else self.auroc
        return (-1.0 if leading is None else leading, -self.loss)


@codec.record
class TrainingSummary:
    """What training came to. Epochs count from 1; ``validation`` is of the best epoch, whose weights were saved.

    before: the same scores of the model as it started. baseline_auroc: of plain pixels, see ``pixel_baseline``.
    beats_majority: validation accuracy is above always answering the commonest class. flops: floating-point operations of
    training on one image. mfu: share of the device's measured matrix rate that was used, over the whole training.
    """

    best_epoch: int
    epochs: int
    steps: int
    validation: Validation
    before: Validation
    baseline_auroc: float | None
    baseline_reason: str | None
    majority_accuracy: float
    beats_majority: bool
    parameters: int
    trained_parameters: int
    seconds: float
    images_per_second: float
    flops: int
    matrix_rate: float
    mfu: float
    device: str
    processes: int
    notes: tuple[str, ...] = ()


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
    _check_labels(name, labels, config)
    if (arrays.text is None) != (config.text_tokens == 0) or (
        arrays.text is not None and arrays.text.shape != (len(labels), config.text_tokens)
    ):
        found = "none" if arrays.text is None else f"shape {arrays.text.shape}"
        raise DataError(f"The {name} text has {found} but the model reads {config.text_tokens} tokens for each image.")


def _check_labels(name: str, labels: np.ndarray, config: LlmImageClassifierConfig) -> None:
    count = len(config.classes)
    if config.problem_type == "multi_label_classification":
        if labels.dtype != np.float32 or labels.shape[1:] != (count,) or not np.isin(labels, (0, 1)).all():
            raise DataError(f"The {name} labels must be float32 of shape (N, {count}), 0 or 1 for each finding.")
        present = np.flatnonzero(labels.any(axis=0)).tolist()
    else:
        if labels.dtype != np.int64 or labels.ndim != 1 or labels.min() < 0 or labels.max() >= count:
            raise DataError(f"The {name} labels must be int64 from 0 to {count - 1}, one for each class.")
        present = sorted(set(labels.tolist()))
    missing = sorted(set(range(count)) - set(present))
    if name == "training" and missing:
        raise DataError(f"There is no training image of the class {config.classes[missing[0]]!r}: add some.")


def log(out: Path, line: Mapping[str, Any]) -> None:
    """One more line of metrics.jsonl."""
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def write_run(out: Path, summary: TrainingSummary, plan: TrainingPlan, data: Mapping[str, Any]) -> None:
    """run.json: plan, data, versions, hardware and result."""
    facts = {
        "plan": codec.plain(plan),
        "result": codec.plain(summary),
        "data": dict(data),
        "versions": {"xvision": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "numpy", "scikit-learn")},
        "git": provenance.git(),
        "finished": provenance.now(),
    }
    write_atomic(out / "run.json", codec.dumps(facts).encode())


def facts(arrays: Arrays) -> dict[str, str | int]:
    """Number and SHA-256 of images, labels, groups and text together."""
    digest = hashlib.sha256()
    for part in arrays:
        if part is not None:
            digest.update(f"{part.dtype}{part.shape}".encode())
            for start in range(0, len(part), _CHUNK):
                digest.update(np.ascontiguousarray(part[start : start + _CHUNK]).data)
    return {"images": len(arrays.labels), "sha256": digest.hexdigest()}
