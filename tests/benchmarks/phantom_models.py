"""A small network that learns phantoms in a second or two, the same every time, and gives embeddings."""

from __future__ import annotations

import numpy as np
import torch

from tests.benchmarks.adversarial_models import Images, Recipe, SmallNetwork, train
from xvision.data.dataset import AuditDataset
from xvision.data.synthetic import CLASSES
from xvision.models.network import Facts, NetworkClassifier
from xvision.models.protocols import InputSpec


class _Network(NetworkClassifier):
    """Its embeddings are the largest answers of its filters."""

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 64)."""
        features: torch.Tensor = self.module.features(pixels - 0.5).amax(dim=(2, 3))
        return features


def trained(data: AuditDataset, seed: int, side: int, epochs: int) -> NetworkClassifier:
    """The network after so many epochs on the split "train", whose images are ``side`` pixels wide."""
    learned, spec = data.split("train"), InputSpec(1, side, side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallNetwork(2)
    pixels = torch.from_numpy(np.array(learned.pixels(learned.ids, spec)))
    labels = torch.from_numpy(np.array(learned.label_codes(CLASSES)))
    train(network, Images(pixels, labels), Recipe(epochs, rate=3e-3))
    told = sum(float(weights.detach().abs().sum()) for weights in network.parameters())
    facts = Facts(CLASSES, False, spec, "Small network", "a benchmark", f"small {told:.6f}")
    return _Network(network.eval(), facts, torch.device("cpu"))
