"""Attacks one after another, cheapest first: each works only on what all before it left unbroken at some budget.

Shapes: B cases, C H W image, E budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from xvision.attacks.balls import Norm, unit
from xvision.attacks.cases import Budget, Cases, Forward, budget_of, look
from xvision.attacks.catalogue import Attack, Clean, Effort
from xvision.errors import ConfigError, ModelError

BELOW = 1e-3
"""Of the smallest budget, below which no smaller change is looked for."""
SAME = 1e-12
"""Relative difference below which two sizes are the same."""


class Outcome(NamedTuple):
    """What a cascade achieved, per case; all sizes are epsilons (``balls.unit``), infinity where nothing was found.

    clean_broken: (B,) bool, wrong before any attack, in a way that counts. possible: (B,) bool, something can be broken
    at all. sizes: attack to (B,), the smallest change that it found below what the attacks before it had found. smallest:
    (B,). images: (B, C, H, W) float32, where it broke, the clean image where it did not. looks: attack to (B,), images shown to the
    model. nonfinite, flat, unconfirmed: (B,) bool, a gradient or logit was not finite; the margin has no slope at the clean image; a
    break did not hold in the original batch, or when checked again, and is not counted.
    """

    epsilons: tuple[float, ...]
    clean_broken: np.ndarray
    possible: np.ndarray
    sizes: dict[str, np.ndarray]
    smallest: np.ndarray
    images: torch.Tensor
    looks: dict[str, np.ndarray]
    nonfinite: np.ndarray
    flat: np.ndarray
    unconfirmed: np.ndarray

    @property
    def attacked(self) -> np.ndarray:
        """(B,) bool, the cases that could be broken and were not yet."""
        return np.asarray(self.possible & ~self.clean_broken)


def clean_of(cases: Cases, *, width: int, gradients: bool, student: Forward | None = None) -> Clean:
    """The model at the unchanged images. Raises ModelError for a logit there that is not finite."""
    logits, slopes = [], []
    for rows in torch.split(torch.arange(len(cases), device=cases.pixels.device), width):
        part = cases.rows(rows)
        seen = look(part, part.pixels, "margin" if gradients else None)
        logits.append(seen.logits)
        slopes.append(seen.gradient)
    values = torch.cat(logits)
    if not bool(torch.isfinite(values).all()):
        raise ModelError("the model returned a NaN or infinite logit on an unchanged image: there is nothing to attack")
    found = [slope for slope in slopes if slope is not None]
    return Clean(values, torch.cat(found) if gradients else None, student)


def cascade(
    cases: Cases, norm: Norm, epsilons: Sequence[float], attacks: Sequence[Attack], effort: Effort, clean: Clean
) -> Outcome:
    """Try to break each case within each epsilon, in one norm.

    A break is proof: its image was decided otherwise in float32, inside the ball and the box, in the original batch. What is
    left is not: a stronger attack may exist, so what follows from it is an upper bound on robustness. Cost: every attack
    meets only the cases and budgets that those before it left, and shows ``looks`` images to the model.

    Raises ConfigError for an attack that does not bound the norm or cannot run on this model.
    """
    gradients, ways = clean.gradient is not None, ways_of(cases, clean)
    for attack in attacks:
        reason = attack.refuse(norm, ways, gradients=gradients)
        if reason:
            raise ConfigError(reason)
    scale = unit(norm, cases.pixels.shape[1:])
    broken, possible = cases.goal.broken(clean.logits), cases.goal.possible(clean.logits)
    rows = torch.nonzero(possible & ~broken).squeeze(1)
    part, budget = cases.rows(rows), budget_of(norm, epsilons, cases.pixels[rows])
    clean_part = Clean(clean.logits[rows], None if clean.gradient is None else clean.gradient[rows], clean.student)
    state = _Reached(part, budget)
    for attack in attacks:
        state.improve(attack, effort, clean_part)
    return _outcome(cases, tuple(epsilons), rows, state, scale, broken, possible, clean, effort.width)


def ways_of(cases: Cases, clean: Clean) -> int:
    """The most ways of breaking that any case has."""
    return int((cases.goal.ways(clean.logits) > -torch.inf).sum(dim=1).max())


class _Reached:
    """What the attacks have reached so far on n cases."""

    def __init__(self, cases: Cases, budget: Budget) -> None:
        self.cases, self.budget = cases, budget
        self.images = cases.pixels.clone()
        self.nonfinite = torch.zeros(len(cases), dtype=torch.bool, device=cases.pixels.device)
        self.sizes: dict[str, torch.Tensor] = {}
        self.looks: dict[str, torch.Tensor] = {}

    def improve(self, attack: Attack, effort: Effort, clean: Clean) -> None:
        budget, reached = self.budget, self.budget.reached
        if attack.minimal:
            budget = replace(budget, radii=(BELOW * budget.radii[0], *budget.radii))
        open_ones = torch.nonzero(budget.columns(reached) > 0).squeeze(1)
        sizes, looks = torch.full_like(reached, torch.inf), torch.zeros(len(reached), dtype=torch.int64)
        if len(open_ones):
            rows = open_ones.to(self.images.device)
            slopes = None if clean.gradient is None else clean.gradient[rows]
            found = attack.run(
                self.cases.rows(rows),
                budget.rows(open_ones),
                effort,
                Clean(clean.logits[rows], slopes, clean.student),
            )
            within = budget.columns(found.size) < len(
                budget.radii
            )  # a minimal attack may go beyond, which counts for nothing
            better = within & (found.size < reached[open_ones] * (1 - SAME))
            sizes[open_ones[better]] = found.size[better]
            looks[open_ones] = found.looks.cpu()
            at = rows[better.to(rows.device)]
            self.images[at] = found.images[better.to(rows.device)]
            self.nonfinite[rows] |= found.nonfinite
        self.sizes[attack.name], self.looks[attack.name] = sizes, looks
        self.budget = replace(self.budget, reached=torch.minimum(reached, sizes))


def _outcome(
    cases: Cases,
    epsilons: tuple[float, ...],
    rows: torch.Tensor,
    state: _Reached,
    scale: float,
    broken: torch.Tensor,
    possible: torch.Tensor,
    clean: Clean,
    width: int,
) -> Outcome:
    places, count = rows.cpu().numpy(), len(cases)
    images = cases.pixels.clone()
    images[rows] = state.images
    hits = torch.zeros(count, dtype=torch.bool)
    hits[rows.cpu()] = torch.isfinite(state.budget.reached)
    unconfirmed = hits.numpy() & ~_held(cases, images, width)
    images[torch.from_numpy(unconfirmed).to(images.device)] = cases.pixels[
        torch.from_numpy(unconfirmed).to(images.device)
    ]

    def everywhere(values: torch.Tensor, empty: float) -> np.ndarray:
        spread = np.full(count, empty)
        spread[places] = values.cpu().numpy()
        return spread

    sizes = {name: everywhere(values / scale, np.inf) for name, values in state.sizes.items()}
    smallest = everywhere(state.budget.reached / scale, np.inf)
    for values in (*sizes.values(), smallest):
        values[unconfirmed] = np.inf
    flat = torch.zeros_like(broken) if clean.gradient is None else (clean.gradient == 0.0).flatten(1).all(dim=1)
    attacked = (possible & ~broken).cpu().numpy()
    return Outcome(
        epsilons=epsilons,
        clean_broken=broken.cpu().numpy(),
        possible=possible.cpu().numpy(),
        sizes=sizes,
        smallest=smallest,
        images=images,
        looks={name: everywhere(values, 0).astype(np.int64) for name, values in state.looks.items()},
        nonfinite=everywhere(state.nonfinite, 0.0).astype(bool),
        flat=flat.cpu().numpy() & attacked,
        unconfirmed=unconfirmed,
    )


def _held(cases: Cases, images: torch.Tensor, width: int) -> np.ndarray:
    """(B,) bool, whether the decisions are broken with all the images in their original places."""
    parts = torch.split(torch.arange(len(cases), device=images.device), width)
    return torch.cat([cases.rows(rows).held(images[rows]) for rows in parts]).cpu().numpy()


def columns(sizes: np.ndarray, epsilons: Sequence[float], tolerance: float) -> np.ndarray:
    """(B, E) bool, which budgets hold each size."""
    return np.asarray(sizes[:, None] <= np.asarray(epsilons)[None, :] + tolerance)


def first_breakers(sizes: Mapping[str, np.ndarray], epsilon: float, tolerance: float) -> np.ndarray:
    """(B,) the attack, in the order in which they ran, that first broke each case within epsilon; "" where none."""
    found = np.full(len(next(iter(sizes.values()))), "", dtype=object)
    for name, values in sizes.items():
        found[(found == "") & (values <= epsilon + tolerance)] = name
    return found
