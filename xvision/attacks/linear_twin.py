"""A linear model that an attack must break exactly as the closed form says: a test of the attack, not of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from xvision.attacks.balls import Norm, unit
from xvision.attacks.cases import Budget, Cases, Found, budget_of, cases_of
from xvision.attacks.goals import class_goal
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.methods.randomness import case_generator, case_seed


class Twin(NamedTuple):
    """within: (N,) bool, linear cases that some change of the tried size breaks, by the closed form. reached: (N,) bool, those that
    the attack broke.
    """

    within: np.ndarray
    reached: np.ndarray


def linear_twin(
    attack: Callable[[Cases, Budget], Found],
    norm: Norm,
    shape: Sequence[int],
    *,
    count: int,
    seed: int,
    device: torch.device,
) -> Twin:
    """The attack on a linear model whose images have the same (C, H, W): does it break exactly what the closed form says?

    count: of cases, half of them within reach, none closer than 2 % to the end of it; the sizes in ``_TWIN`` leave all of them room
    in [0, 1]. A gradient attack that fails here is broken itself; one that sees no gradients need not succeed. Cost: what the attack
    needs on ``count`` images of a model that costs next to nothing.
    """
    if count < 2:
        raise ConfigError(f"found {count} cases for the linear twin: at least 2 are needed")
    generator = case_generator(case_seed(seed, "linear twin", norm))
    size = math.prod(shape)
    weights = _twin_weights(size, generator)
    wanted = torch.linspace(0.5, 1.5, count).double() * torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
    values = _twin_pixels(weights, wanted, norm, generator)
    ratio = (values - 0.5) @ weights / _capacity(values, weights, norm)
    kept = (ratio.abs() - 1).abs() > 0.02
    pixels, ratio = values[kept].float().view(-1, *shape).to(device), ratio[kept]
    logits = (
        (weights * 3 / _capacity(values, weights, norm).mean()).float().to(device)
    )  # no loss saturates at a margin of 3

    def forward(images: torch.Tensor) -> torch.Tensor:
        return ((images - 0.5).flatten(1) @ logits)[:, None]

    goal = class_goal((ratio > 0).long().to(device), 2, Decision())
    keys = [f"twin {place}" for place in range(len(pixels))]
    found = attack(cases_of(forward, pixels, goal, keys=keys, seed=seed), budget_of(norm, [_TWIN[norm]], pixels))
    return Twin((ratio.abs() < 1).numpy(), torch.isfinite(found.size).numpy())


_TWIN: dict[Norm, float] = {"linf": 8 / 255, "l2": 8 / 255, "l1": 8 / 255, "l0": 0.05}
"""The epsilon tried in each norm: so small that no pixel reaches its bound, but in l0, whose closed form knows the bounds."""


def _twin_weights(size: int, generator: torch.Generator) -> torch.Tensor:
    """(D,) float64; a quarter of them are the largest, so that a change in l1 has many pixels to go to."""
    strength = 0.2 + 0.7 * torch.rand(size, generator=generator, dtype=torch.float64)
    strength[torch.rand(size, generator=generator) < 0.25] = 1.0
    return torch.where(torch.rand(size, generator=generator) < 0.5, -strength, strength)


def _twin_pixels(weights: torch.Tensor, wanted: torch.Tensor, norm: Norm, generator: torch.Generator) -> torch.Tensor:
    """(N, D) float64 images of middle grey whose margin is about ``wanted`` (N,) times what a change can move."""
    values = 0.4 + 0.2 * torch.rand(len(wanted), len(weights), generator=generator, dtype=torch.float64)
    target = wanted * _capacity(values, weights, norm)
    missing = target - (values - 0.5) @ weights
    return values + missing[:, None] * weights / weights.square().sum()


def _capacity(values: torch.Tensor, weights: torch.Tensor, norm: Norm) -> torch.Tensor:
    """(N,) how far a change of the tried size can move the margin of images (N, D): the size times the dual norm of the weights."""
    count = len(weights)
    if norm == "l0":
        towards_zero = (values - 0.5) @ weights > 0
        up = towards_zero[:, None] == (weights < 0)
        gains = weights.abs() * torch.where(up, 1 - values, values)
        return gains.sort(dim=1, descending=True).values[:, : int(_TWIN[norm] * count)].sum(dim=1)
    order = {"linf": 1.0, "l2": 2.0, "l1": math.inf}[norm]
    dual: torch.Tensor = torch.linalg.vector_norm(weights, order)
    return (_TWIN[norm] * unit(norm, (count,)) * dual).expand(len(values))
