"""Maps against captum, pytorch-grad-cam and the textbook form of rollout."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tests.benchmarks.explanations_peers import compared, paired, relative
from tests.benchmarks.harness import Row
from xvision.methods.rollout import rollout

TOKENS, LAYERS, HEADS = 197, 12, 12


def rollout_rows(pairs: int) -> Iterator[Row]:
    """The read-out row carried down the layers, against the product of their matrices."""
    for heads in (1, HEADS):
        generator = torch.Generator().manual_seed(0)
        weights = [
            torch.softmax(3 * torch.randn(4, heads, TOKENS, TOKENS, generator=generator), dim=-1) for _ in range(LAYERS)
        ]
        readout = np.eye(TOKENS)[0]
        own, peer = (lambda: rollout(weights, readout)), (lambda: _product(weights, readout))  # noqa: B023  # called at once
        what = "heads already joined" if heads == 1 else f"joining {heads} heads included"
        yield from compared(
            f"Rollout row form, {what}", paired(own, peer, 4 * pairs), 5 if heads == 1 else 1, relative(own(), peer()),
            1e-6, "no pass on either side", f"4 images, {TOKENS} tokens × {LAYERS} layers, both in float64, {what}",
        )  # fmt: skip


def _product(weights: list[torch.Tensor], readout: np.ndarray) -> np.ndarray:
    """As published: every layer's matrix, multiplied up, and the read-out row of the product."""
    skip = torch.eye(TOKENS, dtype=torch.float64)
    mixed = [0.5 * skip + 0.5 * layer.mean(dim=1).double() for layer in weights]
    total, *others = [layer / layer.sum(dim=-1, keepdim=True) for layer in mixed]
    for layer in others:
        total = layer @ total
    row: np.ndarray = (torch.from_numpy(readout) @ total).numpy()
    return row
