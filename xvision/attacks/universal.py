"""One perturbation for all images, fitted on some and judged on others. Shapes: B cases, C H W image.

It needs no access to the image that it is added to: it could sit in a scanner's software. What was fitted flatters itself, so
its rate on the images it was fitted to is reported beside the one that counts, on images it never saw, and beside that of random
signs of the same size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch

from xvision.attacks.balls import project, steepest, unit
from xvision.attacks.cases import Cases, look
from xvision.errors import ConfigError, DataError
from xvision.methods.randomness import case_generator, case_seed

_ANY = -1
_AIMS = 3
"""Single ways of breaking that are tried beside all together: a perturbation that helps one class hurts another."""


class Universal(NamedTuple):
    """perturbation, control: (C, H, W), added before the image is clamped to its box; the control has random signs.
    tuned, held_out: (T,), (N,) bool, broken by the perturbation; tuned_control, held_out_control: by the control.
    """

    perturbation: torch.Tensor
    control: torch.Tensor
    tuned: torch.Tensor
    held_out: torch.Tensor
    tuned_control: torch.Tensor
    held_out_control: torch.Tensor


def tuning_half(patients: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    """(N,) bool, the cases of half of the patients (N,), rounded down and drawn at random: fewer where they have over ``most`` cases."""
    named, codes = np.unique(patients, return_inverse=True)
    order = rng.permutation(len(named))[: len(named) // 2]
    counts = np.bincount(codes, minlength=len(named))
    chosen: np.ndarray = np.isin(codes, order[np.cumsum(counts[order]) <= most])
    return chosen


class _Pass(NamedTuple):
    """All tuning cases under one perturbation: how many are broken, the sum of margins clipped at 0, and its slope."""

    broken: int
    clipped: float
    slope: torch.Tensor


def universal(
    tuning: Sequence[Cases],
    held_out: Iterable[Cases],
    norm: Literal["linf", "l2"],
    epsilon: float,
    *,
    steps: int,
) -> Universal:
    """The perturbation of one size that breaks most tuning cases, on cases that took no part in choosing it.

    tuning, held_out: batches of cases, not broken as they are; each is shown to the model whole. No patient may be in both.
    epsilon: as ``balls.unit`` has it. steps: of the ascent, for each of at most 4 aims. Projected ascent on the mean margin,
    clipped at 0 so that cases already broken do not pull (Moosavi-Dezfooli et al. 2017 define the problem; the method follows
    Shafahi et al. 2020). Exact for a linear model attacked in one direction. The rate is of this perturbation: another may break
    more, not least because the mean margin is climbed and not the count. Cost: steps + 1 passes per aim and tuning case, 4 more per case.

    Raises ConfigError for an epsilon outside (0, 1] or fewer than 1 step, DataError without tuning cases.
    """
    if not 0 < epsilon <= 1 or steps < 1:
        raise ConfigError(f"found epsilon {epsilon} and {steps} steps: give an epsilon in (0, 1] and at least 1 step")
    if not tuning or sum(map(len, tuning)) == 0:
        raise DataError("found no cases to fit a universal perturbation to: give at least one that is not broken")
    shape = tuning[0].pixels.shape[1:]
    radius = epsilon * unit(norm, shape)
    best = max((_fitted(tuning, norm, radius, steps, aim) for aim in _aims(tuning)), key=lambda each: each[0])[1]
    control = _random_signs(tuning[0], norm, radius)
    tuned = [_under(part, best, control) for part in tuning]
    unseen = [_under(part, best, control) for part in held_out]
    none = (torch.zeros(0, dtype=torch.bool),) * 2
    broken, broken_control = (torch.cat(flags) for flags in zip(*tuned, strict=True))
    held, held_control = (torch.cat(flags) for flags in zip(*(unseen or [none]), strict=True))
    return Universal(best[0], control[0], broken, held, broken_control, held_control)


def _under(cases: Cases, *perturbations: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Per perturbation (1, C, H, W): (B,) bool on the CPU, broken by it."""
    return tuple(cases.broken(_added(cases, change)).cpu() for change in perturbations)


def _added(cases: Cases, perturbation: torch.Tensor) -> torch.Tensor:
    return torch.clamp(cases.pixels + perturbation, cases.low, cases.high)


def _aims(tuning: Sequence[Cases]) -> list[int]:
    """All ways at once, and those alone that are nearest on average; one aim where only one way counts."""
    found = [part.goal.ways(look(part, part.pixels, None).logits) for part in tuning]
    ways = torch.cat(found).double()
    counted = ways > -torch.inf
    means = ways.masked_fill(~counted, 0.0).sum(dim=0) / counted.sum(dim=0)
    columns = torch.nonzero(counted.any(dim=0)).squeeze(1)
    if len(columns) < 2:
        return [_ANY]
    nearest = columns[means[columns].argsort(descending=True, stable=True)]
    return [_ANY, *nearest[:_AIMS].tolist()]


def _fitted(
    tuning: Sequence[Cases], norm: Literal["linf", "l2"], radius: float, steps: int, aim: int
) -> tuple[tuple[int, float], torch.Tensor]:
    """The best perturbation (1, C, H, W) met on the way, and how good it is: broken cases, then the clipped margins."""
    aimed = [replace(part, goal=part.goal.aimed(torch.full_like(part.goal.target, aim))) for part in tuning]
    change = torch.zeros_like(tuning[0].pixels[:1])
    ones = torch.ones_like(change)
    size = torch.full((1,), radius, device=change.device)
    best, kept = (-1, -math.inf), change
    for step in range(steps + 1):
        found = _seen(aimed, change)
        if (found.broken, found.clipped) > best:
            best, kept = (found.broken, found.clipped), change
        if step == steps or not bool(found.slope.any()):
            break
        # The first step goes to the border, which is exact for a linear model; later ones are ever shorter.
        ahead = steepest(found.slope, -ones, ones, size / (step + 1), norm)
        change = project(change + ahead, -ones, ones, size, norm)
    return best, kept


def _seen(tuning: Sequence[Cases], change: torch.Tensor) -> _Pass:
    broken, clipped, slope = 0, 0.0, torch.zeros_like(change)
    for part in tuning:
        points = _added(part, change)
        seen = look(part, points, "margin")
        open_ = torch.isfinite(seen.loss) & (seen.loss < 0)
        broken += int(part.confirmed(points, part.goal.broken(seen.logits)).sum())
        clipped += float(seen.loss[open_].double().sum())
        if seen.gradient is not None:
            moved = part.pixels + change
            free = (moved >= part.low) & (moved <= part.high) & open_[:, None, None, None]
            slope += torch.nan_to_num(seen.gradient * free, nan=0.0, posinf=0.0, neginf=0.0).sum(dim=0, keepdim=True)
    return _Pass(broken, clipped, slope)


def _random_signs(cases: Cases, norm: Literal["linf", "l2"], radius: float) -> torch.Tensor:
    """(1, C, H, W), every value of one magnitude, so large that the whole has the size."""
    shape = cases.pixels[:1].shape
    generator = case_generator(case_seed(cases.seed, "universal control", norm))
    signs = 2.0 * torch.randint(2, shape, generator=generator).float() - 1.0
    each = radius if norm == "linf" else radius / math.sqrt(signs.numel())
    return (each * signs).to(cases.pixels.device)
