"""Scores on the validation images, the same on every process."""

from __future__ import annotations

import numpy as np
import torch

from xvision.models.huggingface import preprocessing_of
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.recipe import TrainingPlan
from xvision.training.batches import Batches, precision
from xvision.training.objectives import example_losses
from xvision.training.record import Arrays, Validation
from xvision.training.scores import area
from xvision.training.world import World

_PLAIN = TrainingPlan()
_ALONE = World(0, 1, torch.device("cpu"))
_BATCHES = 4
"""Validation batches are as many times larger than training batches: nothing is kept for a backward pass."""


def validate(model: LlmImageClassifier, arrays: Arrays, plan: TrainingPlan, world: World = _ALONE) -> Validation:
    """AUROC, accuracy of the decision, mean loss without smoothing, weights or focus, and the worst group's AUROC."""
    logits = predict(model, arrays, plan, world)
    loss = float(example_losses(torch.from_numpy(logits), torch.from_numpy(arrays.labels), _PLAIN).mean())
    if not np.isfinite(logits).all():
        return Validation(None, "not finite", 0.0, loss)
    found = area(logits, arrays.labels)
    right = (logits > 0) == arrays.labels if arrays.labels.ndim == 2 else logits.argmax(axis=1) == arrays.labels
    return Validation(found.value, found.reason, float(np.mean(right)), loss, _worst_group(logits, arrays))


@torch.inference_mode()
def predict(model: LlmImageClassifier, arrays: Arrays, plan: TrainingPlan, world: World = _ALONE) -> np.ndarray:
    """Logits (N, K) float32; with several processes each computes its share."""
    model.train(False)
    mine = world.share(np.arange(len(arrays.labels)))
    batches = Batches(arrays, preprocessing_of(model.config), model.device)
    size = _BATCHES * plan.batch_size
    parts = [np.empty((0, len(model.config.classes)), dtype=np.float32)]
    for start in range(0, len(mine), size):
        chosen = mine[start : start + size]
        with precision(plan, model.device):
            pixels, text = batches.normalised(batches.pixels(chosen)), batches.text(chosen)
            logits = (model(pixels) if text is None else model(pixels, text=text)).logits
        parts.append(logits.float().cpu().numpy())
    everyone = world.gathered(np.concatenate(parts))
    found = np.empty((len(arrays.labels), len(model.config.classes)), dtype=np.float32)
    for rank, rows in enumerate(everyone):
        found[rank :: world.size] = rows
    return found


def _worst_group(logits: np.ndarray, arrays: Arrays) -> float | None:
    if arrays.groups is None:
        return None
    areas = [area(logits[members], arrays.labels[members]).value for members in _members(arrays.groups)]
    return min((value for value in areas if value is not None), default=None)


def _members(groups: np.ndarray) -> list[np.ndarray]:
    return [groups == code for code in np.unique(groups)]
