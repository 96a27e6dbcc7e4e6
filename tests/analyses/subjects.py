"""Audits of a few images in memory, by a linear model whose explanations are known in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import nn

from xvision.audit import Audit
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.engine import Engine
from xvision.methods.decision import Decision
from xvision.models.network import Facts, NetworkClassifier
from xvision.models.protocols import InputSpec

SIDE = 16


def linear_model(weights: np.ndarray) -> NetworkClassifier:
    """Log-odds w · x of a grey image, for weights (H, W)."""
    layer = nn.Linear(weights.size, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights.reshape(1, -1)))
    spec = InputSpec(1, *weights.shape)
    facts = Facts(("normal", "lesion"), False, spec, "Linear", "a test", "linear 16")
    return NetworkClassifier(nn.Sequential(nn.Flatten(), layer), facts, torch.device("cpu"))


class _Roots(nn.Module):
    """The sum of the roots of all pixels, whose gradient is infinite where a pixel is black."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.flatten(1).sqrt() * torch.linspace(0.5, 1.0, SIDE * SIDE)).sum(dim=1, keepdim=True)


def with_roots(audit: Audit) -> Audit:
    """The audit of a model without a gradient for images that hold a black pixel."""
    plain = linear_model(np.ones((SIDE, SIDE)))
    return replace(audit, model=NetworkClassifier(_Roots(), plain.facts, plain.device))


def subject(
    weights: np.ndarray, pixels: np.ndarray, masks: np.ndarray | None = None, sites: tuple[str, ...] = ()
) -> Audit:
    """pixels: (N, 16, 16) in [0, 1]. masks: (N, 16, 16) bool; the last case has none. Every image is a patient."""
    ids = [f"case-{place:02d}" for place in range(len(pixels))]
    table = pd.DataFrame(
        {
            "label": ["normal", "lesion"] * (len(ids) // 2),
            "patient": ids,
            "split": "all",
            "site": sites or "A",
            "image": ids,
            "mask": "" if masks is None else [*ids[:-1], ""],
        },
        index=pd.Index(ids, name="id"),
    )
    source = ArraySource(ids, pixels[:, None].astype(np.float32), masks)
    data = AuditDataset(table, ("site",), source)
    return Audit(
        linear_model(weights), data, Decision(1, 0.5, True), 3, Engine(part=5), (), ("site",), task="localisation"
    )


def square(top: int, left: int, side: int) -> np.ndarray:
    """(16, 16) bool."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def as_black_box(audit: Audit) -> Audit:
    """The audit of the same model, which gives logits and no gradient."""
    inner = audit.model

    class Opaque:
        access = "black-box"
        classes, task, bounds, input = inner.classes, inner.task, inner.bounds, inner.input
        device, fingerprint, description = inner.device, "opaque", {"architecture": "Opaque"}

        @staticmethod
        def logits(pixels: torch.Tensor) -> torch.Tensor:
            return inner.logits(pixels).detach()

    return replace(audit, model=Opaque(), shared={})
