"""Noise images with a spot in the middle and a square in a corner, and linear models that read the one or the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from tests.analyses.shifted import PooledClassifier
from xvision.audit import Audit
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.engine import Engine
from xvision.methods.decision import Decision
from xvision.models.network import Facts
from xvision.models.protocols import InputSpec

SIDE, FIELDS = 32, 8
SPOT, SQUARE = 3 * FIELDS + 3, 0
"""Fields of 4 × 4 pixels: the spot and the square fill one each."""
STEP = 0.5


@dataclass(frozen=True)
class Scene:
    """agreement: share of the audited cases whose site goes with the label; in training it is ``learned``."""

    agreement: float = 0.5
    learned: float = 0.9
    images: int = 240
    seed: int = 0
    masks: bool = False


def scene(settings: Scene) -> AuditDataset:
    """Ill images have the spot, those of site B the square; half are for training. masks: all but the outer fields of each."""
    rng = np.random.default_rng(settings.seed)
    count = settings.images
    split = np.repeat(["train", "test"], [count // 2, count - count // 2])
    label = np.arange(count) % 2
    place = np.where(split == "train", np.arange(count), np.arange(count) - count // 2) // 2
    size = max(1, count // 4)
    agrees = place % size < np.where(split == "train", settings.learned, settings.agreement) * size
    site = np.where(agrees, label, 1 - label)
    pixels = 0.3 + rng.uniform(-0.02, 0.02, (count, 1, SIDE, SIDE))
    pixels[label == 1, :, 12:16, 12:16] += STEP
    pixels[site == 1, :, :4, :4] += STEP
    ids = tuple(f"c{number:03d}" for number in range(count))
    table = pd.DataFrame(
        {
            "label": np.where(label == 1, "lesion", "normal"), "patient": [f"p{name}" for name in ids], "split": split,
            "site": np.where(site == 1, "B", "A"), "sex": rng.choice(["F", "M"], count),
        },
        index=pd.Index(ids, name="id"), dtype="str",
    )  # fmt: skip
    inside = np.zeros((count, SIDE, SIDE), bool)
    inside[:, 4:-4, 4:-4] = True
    if settings.masks:
        table["mask"] = [f"{name}.png" for name in ids]
    return AuditDataset(table, ("sex", "site"), ArraySource(ids, pixels.astype(np.float32), inside))


def reader(spot: float, square: float, *, threshold: float | None = None) -> PooledClassifier:
    """Log-odds: so much for each of the two, 0 where half of what it reads is there."""
    pool, head = nn.AdaptiveAvgPool2d(FIELDS), nn.Linear(FIELDS**2, 1)
    middle = (0.3 + STEP / 2) * (spot + square) if threshold is None else threshold
    with torch.no_grad():
        head.weight.zero_()
        head.weight[0, SPOT], head.weight[0, SQUARE] = spot, square
        head.bias.fill_(-middle)
    facts = Facts(("normal", "lesion"), False, InputSpec(1, SIDE, SIDE), "Hand-set", "a test", f"{spot} {square}")
    return PooledClassifier(nn.Sequential(pool, nn.Flatten(), head), facts, torch.device("cpu"))


def marked_audit(settings: Scene, *, spot: float = 0.0, square: float = 0.0) -> Audit:
    """The split "test" is audited."""
    model, data = reader(spot, square), scene(settings)
    return Audit(model, data, Decision(1, 0.5, True), 3, Engine(), ("sex",), ("site",), task="shortcuts")
