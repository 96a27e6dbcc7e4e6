"""Small classifiers to attack: built from nothing on one CPU thread, the same every time, with the images they know.

Every network takes pixels (B, C, H, W) in [0, 1] and gives logits (B, K). It is in evaluation mode, and its weights ask for
gradients, as a model does that comes straight from training. Among them are networks that only look as if they stood up to
attacks: ``masked`` wraps a weak one so that its gradients mislead.

``folder``: where the weights are kept from one call to the next; without one a network is trained anew. Kept weights are told
apart by name and recipe, not by the code: use a folder that does not outlive it.
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
    """(count, 48, 48) float32: bell-shaped, 0.2 to 0.35 above their surroundings, 1.5 to 3 pixels wide."""
    grid = np.arange(48, dtype=np.float32)
    top, left = rng.uniform(8, 40, (2, count, 1)).astype(np.float32)
    width = rng.uniform(1.5, 3.0, (count, 1)).astype(np.float32)
    height = rng.uniform(0.2, 0.35, (count, 1, 1)).astype(np.float32)
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


class SmallTransformer(nn.Module):
    """A vision transformer of four layers over 64 patches of 12 × 12: tens of milliseconds a batch on one CPU thread."""

    def __init__(self, classes: int, width: int = 128, layers: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 12, stride=12)
        self.places = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(pixels - 0.5).flatten(2).transpose(1, 2) + self.places
        for layer in self.layers:
            tokens = layer(tokens)
        logits: torch.Tensor = self.head(tokens.mean(dim=1))
        return logits


class Layer(nn.Module):
    """Attention of four heads and a perceptron, each after its norm and beside what it changes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.merged = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, count, width = tokens.shape
        query, key, value = self.mixed(self.first(tokens)).view(batch, count, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.merged(attended.transpose(1, 2).reshape(batch, count, width))
        changed: torch.Tensor = tokens + self.perceptron(self.second(tokens))
        return changed


class Masked(nn.Module):
    """A network whose decisions are as weak as those of ``network``, or almost, and whose gradients tell less of it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(pixels)
        return logits


class Scaled(Masked):
    """Logits a thousand times as large: every decision stays, and the gradient of the cross-entropy vanishes."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 1000.0 * super().forward(pixels)


class Rounded(Masked):
    """Pixels rounded to 32nds first: a staircase, whose gradient is zero everywhere."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward((32.0 * pixels).round() / 32.0)


class Noisy(Masked):
    """Fresh noise of standard deviation 0.05 in every pass, drawn by a generator of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(pixels.shape, generator=self.generator).to(pixels.device)
        return super().forward(pixels + 0.05 * noise)


class Detached(Masked):
    """The pixels are cut off the graph: no gradient reaches them."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels.detach())


class Probabilities(Masked):
    """Probabilities where logits belong: every decision by the larger one stays, slopes shrink where the network is sure."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels).softmax(dim=1)


class OneLogit(Masked):
    """Two logits as one, the log-odds of the second class (B, 1)."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = super().forward(pixels)
        return logits[:, 1:] - logits[:, :1]


def masked(network: nn.Module) -> Mapping[str, nn.Module]:
    """The network behind everything that misleads a gradient, by name; all share its weights."""
    kinds = {"logits × 1000": Scaled, "rounded input": Rounded, "random input": Noisy, "detached": Detached}
    return {name: kind(network).eval() for name, kind in kinds.items()} | {
        "probabilities": Probabilities(network).eval()
    }


class Recipe(NamedTuple):
    """How a network is trained. epsilon: the largest change of a pixel it is trained against; 0 for none."""

    epochs: int
    batch: int = 50
    rate: float = 2e-3
    epsilon: float = 0.0
    steps: int = 5


def lesion_cnn(folder: Path | None = None) -> nn.Module:
    """Two classes, (B, 1, 48, 48)."""
    return cached("lesion", folder, lambda: SmallNetwork(2), lambda: lesions(2000, seed=1), Recipe(8, rate=3e-3))


def hardened_lesion_cnn(folder: Path | None = None) -> nn.Module:
    """The same, trained against changes of ``LESION_EPSILON``."""
    recipe = Recipe(12, rate=3e-3, epsilon=LESION_EPSILON)
    return cached("lesion-hardened", folder, lambda: SmallNetwork(2), lambda: lesions(2000, seed=1), recipe)


def digits_cnn(folder: Path | None = None) -> nn.Module:
    """Ten classes, (B, 1, 28, 28)."""
    return cached("digits", folder, lambda: SmallNetwork(10), lambda: digits()[0], Recipe(12))


def hardened_digits_cnn(folder: Path | None = None) -> nn.Module:
    """The same, trained against changes of ``DIGIT_EPSILON``."""
    recipe = Recipe(30, epsilon=DIGIT_EPSILON)
    return cached("digits-hardened", folder, lambda: SmallNetwork(10), lambda: digits()[0], recipe)


def digits_transformer(folder: Path | None = None) -> nn.Module:
    """Ten classes, (B, 1, 96, 96)."""
    recipe = Recipe(6, batch=32, rate=1.5e-3)
    return cached("digits-transformer", folder, lambda: SmallTransformer(10), lambda: digits(96)[0], recipe)


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
        save_file(network.state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
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
        order = torch.randperm(count, generator=generator)
        for start in range(0, count, recipe.batch):
            rows = order[start : start + recipe.batch]
            pixels, labels = images.pixels[rows], images.labels[rows]
            if bound:
                pixels = worst(network, pixels, labels, bound, recipe.steps, generator)
            optimiser.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(pixels), labels))
            optimiser.step()
            schedule.step()
    network.zero_grad()


def worst(
    network: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Images within epsilon of ``pixels`` that raise the cross-entropy, from a random start."""
    low, high = (pixels - epsilon).clamp(min=0.0), (pixels + epsilon).clamp(max=1.0)
    at = low + (high - low) * torch.rand(pixels.shape, generator=generator)
    for _ in range(steps):
        at.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(network(at), labels, reduction="sum"), at)
        at = torch.minimum(torch.maximum(at.detach() + 2.5 * epsilon / steps * slope.sign(), low), high)
    return at
