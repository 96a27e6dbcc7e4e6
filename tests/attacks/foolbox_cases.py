"""Linear models of known distances and a small network, for the attacks of foolbox."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from xvision.attacks.balls import Norm, size
from xvision.attacks.cases import Budget, Cases, Found, budget_of, cases_of
from xvision.attacks.foolbox_attacks import decision_based, minimal_norm
from xvision.attacks.goals import Goal, class_goal
from xvision.methods.decision import Decision

MINIMAL: list[tuple[str, Norm]] = [
    ("ddn", "l2"),
    ("fmn", "linf"),
    ("fmn", "l1"),
    ("fmn", "l0"),
    ("deepfool", "linf"),
    ("deepfool", "l2"),
    ("cw", "l2"),
    ("ead", "l1"),
]
DECIDED: list[tuple[str, Norm]] = [("hop_skip_jump", "l2"), ("hop_skip_jump", "linf"), ("boundary", "l2")]
SIDE = 8
DUAL: dict[str, float] = {"linf": 1.0, "l2": 2.0, "l1": math.inf}


def weights(seed: int = 0, side: int = SIDE) -> torch.Tensor:
    return torch.randn(side * side, generator=torch.Generator().manual_seed(seed))


def images_at(margins: torch.Tensor, weight: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """Images about grey whose product with the weights is as given."""
    side = math.isqrt(len(weight))
    noise = torch.rand(len(margins), len(weight), generator=torch.Generator().manual_seed(seed))
    flat = 0.4 + 0.2 * noise
    flat = flat + ((margins - flat @ weight) / (weight @ weight))[:, None] * weight
    return flat.view(-1, 1, side, side)


def small_margins(count: int, weight: torch.Tensor, seed: int = 2) -> torch.Tensor:
    """Distances that stay inside the box in every norm, on both sides of the boundary."""
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    side = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
    return side * (0.02 + 0.25 * drawn) * weight.abs().max()


def two_logits(weight: torch.Tensor, scale: float = 1.0) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.stack([torch.zeros(len(x)), scale * (x.flatten(1) @ weight)], dim=1)


def above(weight: torch.Tensor, level: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Class 1 where the product with the weights is above the level."""
    return lambda x: torch.stack([torch.zeros(len(x)), x.flatten(1) @ weight - level], dim=1)


def linear_cases(count: int = 12, *, side: int = SIDE, scale: float = 1.0) -> tuple[Cases, torch.Tensor, torch.Tensor]:
    weight = weights(side=side)
    margins = small_margins(count, weight)
    pixels = images_at(margins, weight)
    goal = class_goal((margins > 0).long(), 2, Decision())
    return case(two_logits(weight, scale), pixels, goal), margins.abs().double(), weight.double()


def case(forward: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, goal: Goal) -> Cases:
    return cases_of(forward, pixels, goal, keys=[f"case {place}" for place in range(len(pixels))], seed=5)


def least(cases: Cases, norm: Norm) -> Budget:
    """A budget so small that every case is attacked."""
    return budget_of(norm, [1e-6], cases.pixels)


def run(cases: Cases, attack: str, norm: Norm, effort: int = 100) -> Found:
    if attack in ("hop_skip_jump", "boundary"):
        return decision_based(cases, least(cases, norm), attack=attack, queries=effort)
    return minimal_norm(cases, least(cases, norm), attack=attack, steps=effort)


def assert_breaks(cases: Cases, found: Found, norm: Norm) -> None:
    """Every break is one, inside its bounds, of the size that is said; every other image is the clean one."""
    hit = torch.isfinite(found.size)
    assert cases.broken(found.images)[hit].all()
    assert ((found.images >= cases.low) & (found.images <= cases.high)).all()
    torch.testing.assert_close(size(found.images - cases.pixels, norm)[hit], found.size[hit], rtol=0, atol=0)
    assert torch.equal(found.images[~hit], cases.pixels[~hit])


class Network(torch.nn.Module):
    """A small network with everything that a pass could change."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(144, 3),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(pixels)
        return logits


def network_cases(count: int = 4) -> tuple[Network, Cases]:
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        model = Network().eval()
        pixels = torch.rand(count, 1, SIDE, SIDE)
    with torch.no_grad():
        labels = model(pixels).argmax(dim=1)
    return model, case(model, pixels, class_goal(labels, 3, Decision()))
