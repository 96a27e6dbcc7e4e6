"""Classifiers to be explained: a small convolutional network, one that gives scores only, and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from tests.models.builders import BODY, MLP, RGB, WITHOUT_MAP, seeded, vit
from xvision.explain.method import Asked, Settings
from xvision.methods.units import grid
from xvision.models.huggingface import HuggingFaceClassifier, adapt, preprocessing_of
from xvision.models.llm.classifier import preset
from xvision.models.protocols import Access, Features, InputSpec


class Network:
    """Convolution, global mean, one linear layer, for images (2, 6, 8)."""

    classes, task, bounds = ("normal", "lesion", "other"), "multiclass", (0.0, 1.0)
    input, device, access = InputSpec(2, 6, 8), torch.device("cpu"), "white-box"
    description: dict[str, str | int] = {"architecture": "Network"}  # noqa: RUF012  # as the protocol declares it
    fingerprint = ""
    convolutional = True

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Sequential(nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.Tanh()).requires_grad_(False)
            self.head = nn.Linear(5, 3).requires_grad_(False)

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.features(pixels).logits

    def features(self, pixels: torch.Tensor) -> Features:
        maps = self.stem(pixels)
        maps = maps if maps.requires_grad else maps.requires_grad_()
        return Features(maps, self.head(maps.mean(dim=(2, 3))))


class Scores(Network):
    """The same without gradients."""

    access: Access = "black-box"
    description: dict[str, str | int] = {"architecture": "Scores"}  # noqa: RUF012  # as the protocol declares it


@cache
def vision_transformer(layers: int = 3) -> HuggingFaceClassifier:
    sizes = {**BODY, **MLP, "num_hidden_layers": layers}
    return adapt(seeded(lambda: vit(**sizes)), RGB, source="a test")


@cache
def windowed() -> HuggingFaceClassifier:
    return adapt(seeded(WITHOUT_MAP["swin"]), RGB, source="a test")


@cache
def residual_network() -> HuggingFaceClassifier:
    return adapt(seeded(WITHOUT_MAP["resnet"]), RGB, source="a test")


@cache
def language_model(name: str = "tiny-qwen3") -> HuggingFaceClassifier:
    """For images (1, 32, 32), 16 tokens and a read-out."""
    module = preset(name, image_size=32, patch_size=8, seed=0)
    return adapt(module, preprocessing_of(module.config), source="a test")


def images(model: object, batch: int = 3) -> torch.Tensor:
    spec = model.input
    generator = torch.Generator().manual_seed(5)
    return torch.rand(batch, spec.channels, spec.height, spec.width, generator=generator)


def asked(
    model: object,
    pixels: torch.Tensor,
    targets: Sequence[int],
    *,
    references: torch.Tensor | None = None,
    settings: Settings | None = None,
) -> Asked:
    units = grid(pixels.shape[2], pixels.shape[3], 2)
    seeds = tuple(range(20, 20 + len(pixels)))
    return Asked(model, pixels, torch.tensor(targets), seeds, units, settings or Settings(), references)
