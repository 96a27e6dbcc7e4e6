"""Small classifiers to attack: built from nothing on one CPU thread, the same every time, with the images they know.

Every network takes pixels (B, C, H, W) in [0, 1] and gives logits (B, K). It is in evaluation mode, and its weights ask for
gradients, as a model does that comes straight from training. Among them are networks that only look as if they stood up to
attacks: ``masked`` wraps a weak one so that its gradients mislead.

``folder``: where the weights are kept from one call to the next; without one a network is trained anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

from xvision.store import write_atomic

LESION_EPSILON = 4 / 255
"""What the lesion network was trained against."""
DIGIT_EPSILON = 24 / 255
"""The same for digits, whose contrast is four times that of a lesion."""


class Images(NamedTuple):
    """pixels: (N, C, H, W) float32 in [0, 1]. labels: (N,) int64."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def first(self, count: int) -> Images:
        return Images(self.pixels[:count], self.labels[:count])


def lesions(count: int, *, seed: int) -> Images:
    """Grey images of 48 × 48: a soft background under fine noise, in every other one a faint bright spot somewhere."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(size=(count, 1, 6, 6)).astype(np.float32))
    background = 0.45 + 0.06 * F.interpolate(coarse, size=(48, 48), mode="bicubic", align_corners=False)
    noise = 0.03 * torch.from_numpy(rng.normal(size=(count, 1, 48, 48)).astype(np.float32))
    labels = torch.arange(count) % 2
    spots = torch.from_numpy(_spots(rng, count))[:, None]
    return Images((background + noise + labels.view(-1, 1, 1, 1) * spots).clamp(0.0, 1.0), labels)


def _spots(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 48, 48) float32: bell-shaped, 0.12 to 0.25 above their surroundings, 2 to 4 pixels wide."""
    grid = np.arange(48, dtype=np.float32)
    top, left = rng.uniform(8, 40, (2, count, 1)).astype(np.float32)
    width = rng.uniform(2, 4, (count, 1)).astype(np.float32)
    height = rng.uniform(0.12, 0.25, (count, 1, 1)).astype(np.float32)
    down, across = (np.exp(-0.5 * ((grid - centre) / width) ** 2) for centre in (top, left))
    spots: np.ndarray = height * down[:, :, None] * across[:, None, :]
    return spots


def digits(side: int = 28) -> tuple[Images, Images]:
    """Handwritten digits of scikit-learn, 8 × 8 enlarged to ``side``: 1,297 to train with and 500 others."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    small = torch.from_numpy((found.images[order] / 16).astype(np.float32))[:, None]
    pixels = F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False).clamp(0.0, 1.0)
    labels = torch.from_numpy(found.target[order].astype(np.int64))
    return Images(pixels[500:], labels[500:]), Images(pixels[:500], labels[:500])


class SmallNetwork(nn.Module):
    """Three convolutions, the largest answer of each filter anywhere in the image, one linear layer."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2, stride=2), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(4 * width, classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(pixels - 0.5).amax(dim=(2, 3)))
        return logits


class Recipe(NamedTuple):
    """How a network is trained. epsilon: the largest change of a pixel it is trained against; 0 for none."""

    epochs: int
    batch: int = 50
    rate: float = 2e-3
    epsilon: float = 0.0
    steps: int = 5


def lesion_cnn(folder: Path | None = None) -> nn.Module:
    """Two classes, (B, 1, 48, 48)."""
    return cached("lesion", folder, lambda: SmallNetwork(2), lambda: lesions(2000, seed=1), Recipe(6))


def hardened_lesion_cnn(folder: Path | None = None) -> nn.Module:
    """The same, trained against changes of ``LESION_EPSILON``."""
    recipe = Recipe(12, epsilon=LESION_EPSILON)
    return cached("lesion-hardened", folder, lambda: SmallNetwork(2), lambda: lesions(2000, seed=1), recipe)


def digits_cnn(folder: Path | None = None) -> nn.Module:
    """Ten classes, (B, 1, 28, 28)."""
    return cached("digits", folder, lambda: SmallNetwork(10), lambda: digits()[0], Recipe(12))


def hardened_digits_cnn(folder: Path | None = None) -> nn.Module:
    """The same, trained against changes of ``DIGIT_EPSILON``."""
    recipe = Recipe(30, epsilon=DIGIT_EPSILON)
    return cached("digits-hardened", folder, lambda: SmallNetwork(10), lambda: digits()[0], recipe)


def cached(
    name: str, folder: Path | None, make: Callable[[], nn.Module], images: Callable[[], Images], recipe: Recipe
) -> nn.Module:
    """The trained network, from the folder where it is there and made for this recipe, else trained and put there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make()
    told = "-".join(str(value) for value in recipe)
    path = folder / f"{name}-{told}.safetensors" if folder else None
    if path and path.exists():
        network.load_state_dict(load_file(path))
        return network.eval()
    train(network, images(), recipe)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), path)
    return network.eval()


def train(network: nn.Module, images: Images, recipe: Recipe) -> None:
    """Adam on the cross-entropy, at the worst change that a few steps of projected gradient descent find (Madry 2018)."""
    generator = torch.Generator().manual_seed(0)
    count = len(images.labels)
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.rate)
    steps = recipe.epochs * -(-count // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps)
    for epoch in range(recipe.epochs):
        # the bound grows over the first third: from the start at full size, a network may never learn anything
        bound = recipe.epsilon * min(1.0, 3 * (epoch + 1) / recipe.epochs)
        for rows in torch.randperm(count, generator=generator).split(recipe.batch):
            pixels, labels = images.pixels[rows], images.labels[rows]
            if bound:
                pixels = worst(network, pixels, labels, bound, recipe.steps, generator)
            optimiser.zero_grad()
            F.cross_entropy(network(pixels), labels).backward()
            optimiser.step()
            schedule.step()
    network.zero_grad()


def worst(
    network: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, epsilon: float, steps: int, generator: torch.Generator
) -> torch.Tensor:
    """Images within epsilon of ``pixels`` that raise the cross-entropy, from a random start."""
    low, high = (pixels - epsilon).clamp(min=0.0), (pixels + epsilon).clamp(max=1.0)
    at = low + (high - low) * torch.rand(pixels.shape, generator=generator)
    for _ in range(steps):
        at.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(network(at), labels, reduction="sum"), at)
        at = torch.minimum(torch.maximum(at.detach() + 2.5 * epsilon / steps * slope.sign(), low), high)
    return at
