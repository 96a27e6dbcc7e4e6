"""Phantoms of two sites, a linear model of them, and what is planted in the audited ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from xvision.audit import Audit
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.data.synthetic import PhantomSettings, phantom_dataset
from xvision.engine import Engine
from xvision.methods.decision import Decision
from xvision.models.network import Facts, NetworkClassifier
from xvision.models.protocols import InputSpec

SIDE = 32
_POOLED = 8
Plant = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class PooledClassifier(NetworkClassifier):
    """Log-odds linear in the means of 8 × 8 fields, which are its embeddings."""

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 64)."""
        return nn.functional.adaptive_avg_pool2d(pixels, _POOLED).flatten(1)


def pooled_model(data: AuditDataset) -> PooledClassifier:
    """Fitted on the split "train"."""
    train, spec = data.split("train"), InputSpec(1, SIDE, SIDE)
    pool = nn.AdaptiveAvgPool2d(_POOLED)
    fields = pool(torch.from_numpy(train.pixels(train.ids, spec))).flatten(1).numpy()
    fitted = LogisticRegression(C=10.0, max_iter=500).fit(fields, train.label_codes(("normal", "lesion")))
    head = nn.Linear(_POOLED**2, 1)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fitted.coef_))
        head.bias.copy_(torch.from_numpy(fitted.intercept_))
    facts = Facts(("normal", "lesion"), False, spec, "Pooled", "a test", f"pooled {fitted.coef_.sum():.6f}")
    return PooledClassifier(nn.Sequential(pool, nn.Flatten(), head), facts, torch.device("cpu"))


def phantom_audit(seed: int, plant: Plant | None = None, *, images: int = 900, site: str = "B") -> Audit:
    """The split "test" is audited, with ``plant`` done to its images (N, 1, H, W) of one site."""
    data = phantom_dataset(
        PhantomSettings(n=images, seed=seed, size=SIDE, contrast=0.6, visits=2, fractions=(0.4, 0.3, 0.3))
    )
    model = pooled_model(data)
    if plant is not None:
        pixels = data.pixels(data.ids, model.input)
        chosen = ((data.table["split"] == "test") & (data.table["site"] == site)).to_numpy()
        pixels[chosen] = plant(pixels[chosen], np.random.default_rng(seed)).clip(0, 1)
        data = replace(data, source=ArraySource(data.ids, pixels.astype(np.float32)))
    decision = Decision(1, 0.5, True)
    return Audit(model, data, decision, seed, Engine(), ("sex",), ("site",), task="domain_shift")
