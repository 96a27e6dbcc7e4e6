"""Small honest networks and linear models, the cases that they decide rightly, and what can be planted in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from xvision.attacks.cases import Cases, cases_of
from xvision.attacks.goals import class_goal
from xvision.methods.decision import Decision

SIDE = 12
SHAPE = (1, SIDE, SIDE)
PIXELS = math.prod(SHAPE)
SEEDS = range(5)
Change = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def phantoms(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images, every second one with a bright spot somewhere."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 + 0.12 * torch.randn(count, *SHAPE, generator=generator)
    labels = torch.arange(count) % 2
    centre = 3 + torch.rand(count, 2, generator=generator) * (SIDE - 6)
    axis = torch.arange(SIDE).float()
    rows = (axis[None, :, None] - centre[:, 0, None, None]) ** 2
    columns = (axis[None, None, :] - centre[:, 1, None, None]) ** 2
    spot = 0.4 * torch.exp(-(rows + columns) / 4)
    return (images + labels[:, None, None, None] * spot[:, None]).clamp(0, 1), labels


@cache
def network(seed: int, hardened: float) -> nn.Module:
    """A small CNN; hardened: epsilon of the single steps that it was trained on, 0 for none."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(432, 2),
    )
    images, labels = phantoms(300, 100 + seed)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for epoch in range(12):
        for rows in torch.arange(300).split(50):
            batch = images[rows]
            if hardened and epoch >= 4:
                batch = batch.clone().requires_grad_()
                (slope,) = torch.autograd.grad(F.cross_entropy(model(batch), labels[rows]), batch)
                batch = (batch.detach() + hardened * slope.sign()).clamp(0, 1)
            optimiser.zero_grad()
            F.cross_entropy(model(batch), labels[rows]).backward()
            optimiser.step()
    return model.eval().requires_grad_(False)


class Planted(nn.Module):
    """An honest network with something in front of it, behind it or inside."""

    def __init__(self, inner: nn.Module, change: Change) -> None:
        super().__init__()
        self.inner, self.change = inner, change
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.change(self.inner, images)

    def answer(self, images: torch.Tensor) -> torch.Tensor:
        return self(images)


def right(model: nn.Module, seed: int, count: int = 24) -> Cases:
    """Cases that the model decides rightly."""
    images, labels = phantoms(4 * count, 500 + seed)
    with torch.no_grad():
        kept = torch.nonzero(model(images).argmax(dim=1) == labels).squeeze(1)[:count]
    return of(model, images[kept], labels[kept], seed)


def of(
    model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, labels: torch.Tensor, seed: int = 0
) -> Cases:
    goal = class_goal(labels, 2, Decision())
    return cases_of(model, images, goal, keys=[f"case {place}" for place in range(len(images))], seed=seed)


def planted(seed: int, change: Change, count: int = 24) -> Cases:
    """The cases that the honest network decides rightly, seen by the changed one."""
    cases = right(network(seed, 0.0), seed, count)
    return of(Planted(network(seed, 0.0), change).eval(), cases.pixels, cases.goal.wrong.long().argmin(dim=1), seed)


def linear(weights: torch.Tensor, bias: float = 0.0) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: ((images.to(weights) - 0.5).flatten(1) @ weights)[:, None] + bias


def linear_cases(seed: int, count: int = 20, scale: float = 1.0) -> tuple[torch.Tensor, Cases]:
    """Weights (D,), and cases in the middle of the box, half of each class."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(PIXELS, generator=generator)
    images = 0.4 + 0.2 * torch.rand(count, *SHAPE, generator=generator)
    return weights, of(linear(scale * weights), images, (linear(weights)(images)[:, 0] >= 0).long(), seed)


def margins(cases: Cases) -> torch.Tensor:
    with torch.no_grad():
        return cases.goal.margin(cases.forward(cases.pixels))
