"""Images under attack, and what an attack on them found. Shapes: B cases, C H W image, K logits, E budgets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from xvision.attacks.balls import Norm, unit
from xvision.attacks.goals import Goal, LossName
from xvision.errors import ConfigError, DataError
from xvision.methods.randomness import case_generator, case_seed, require_keys

Forward = Callable[[torch.Tensor], torch.Tensor]
"""(n, C, H, W) pixels in [0, 1] to (n, K) logits; each row's logits must not depend on the other rows."""
Confirm = Callable[[torch.Tensor, Goal], torch.Tensor]
"""(n, C, H, W) images and their goal to (n,) bool: is the decision really broken there?"""

TOLERANCE = 1e-6
"""Sizes are compared with budgets up to this difference in epsilon, which is about float32's own for pixels in [0, 1]."""


COUNTED = 1e-3
"""The same for numbers of changed values, which are whole: their budgets are products that may round below a whole number."""


@dataclass(frozen=True, eq=False)
class Cases:
    """Images and what must be reached on each.

    forward: the model, searched along its gradients. pixels: (B, C, H, W) float32 in [0, 1]. keys: case ids; with ``seed``
    they fix what is drawn for a case, whatever the batch. low, high: (B, C, H, W), between which each pixel may move; [0, 1]
    for most attacks, the pixel itself where it must stay. confirm: what a hit must pass besides ``forward``; None where
    ``forward`` is the deployed pipeline in float32 itself. recheck: what a break must pass once more when the search is over;
    None where asking again would give the same answer.
    """

    forward: Forward
    pixels: torch.Tensor
    goal: Goal
    keys: tuple[str, ...]
    seed: int
    low: torch.Tensor
    high: torch.Tensor
    confirm: Confirm | None = None
    recheck: Confirm | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, index: torch.Tensor) -> Cases:
        keys = tuple(self.keys[row] for row in index.tolist())
        return replace(
            self,
            pixels=self.pixels[index],
            goal=self.goal.rows(index),
            keys=keys,
            low=self.low[index],
            high=self.high[index],
        )

    def broken(self, images: torch.Tensor) -> torch.Tensor:
        """(B,) bool, whether the decision is broken at images (B, C, H, W), confirmed; without gradients."""
        with torch.no_grad():
            hit = self.goal.broken(self.forward(images))
        return self.confirmed(images, hit)

    def confirmed(self, images: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
        """(B,) which of the hits (B,) hold where they must be confirmed."""
        return self._passed(self.confirm, images, hit)

    def held(self, images: torch.Tensor) -> torch.Tensor:
        """(B,) bool, ``broken``, and still so when checked again."""
        return self._passed(self.recheck, images, self.broken(images))

    def _passed(self, asked: Confirm | None, images: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
        if asked is None or not bool(hit.any()):
            return hit
        rows = torch.nonzero(hit).squeeze(1)
        held = hit.clone()
        with torch.no_grad():
            held[rows] = asked(images[rows], self.goal.rows(rows))
        return held

    def generators(self, purpose: str) -> list[torch.Generator]:
        """One generator per case, the same whatever the batch, order or device."""
        return [case_generator(case_seed(self.seed, purpose, key)) for key in self.keys]


def cases_of(forward: Forward, pixels: torch.Tensor, goal: Goal, *, keys: Sequence[str], seed: int) -> Cases:
    """Cases free to move within [0, 1]. Raises DataError for images that are no batch, outside [0, 1] or not finite."""
    if pixels.ndim != 4 or len(pixels) == 0:
        raise DataError(f"found pixels of shape {tuple(pixels.shape)}: (B, C, H, W) with at least one image is needed")
    require_keys(keys, len(pixels))
    lowest, highest = pixels.min().item(), pixels.max().item()
    if not (lowest >= 0.0 and highest <= 1.0):
        raise DataError(f"found pixels from {lowest:.4g} to {highest:.4g}: they must be finite and in [0, 1]")
    images = pixels.detach().float().clone()
    return Cases(forward, images, goal, tuple(keys), seed, torch.zeros_like(images), torch.ones_like(images))


@dataclass(frozen=True, eq=False)
class Budget:
    """How far an attack may go, and what earlier attacks have reached.

    radii: ascending sizes of the change, in the norm's own unit (``balls.unit``). reached: (B,) the smallest size known to
    break each case, infinity where none. slack: how much larger than its budget, in the same unit, a size may be measured.
    """

    norm: Norm
    radii: tuple[float, ...]
    reached: torch.Tensor
    slack: float = TOLERANCE

    def rows(self, index: torch.Tensor) -> Budget:
        return replace(self, reached=self.reached[index])

    def columns(self, sizes: torch.Tensor) -> torch.Tensor:
        """(B,) the first budget that holds each size; len(radii) where none does."""
        radii = torch.tensor(self.radii, dtype=torch.float64) + self.slack
        return torch.searchsorted(radii, sizes.detach().double().cpu())


def budget_of(norm: Norm, epsilons: Sequence[float], images: torch.Tensor) -> Budget:
    """The budget of ascending epsilons in (0, 1] for images (B, C, H, W) of which nothing is known yet."""
    ladder = tuple(float(epsilon) for epsilon in epsilons)
    rising = all(low < high for low, high in itertools.pairwise(ladder))
    if not ladder or not rising or not 0.0 < ladder[0] <= ladder[-1] <= 1.0:
        raise ConfigError(f"found the epsilons {list(ladder)}: give at least one, rising, above 0 and at most 1")
    scale = unit(norm, images.shape[1:])
    radii = tuple(epsilon * scale for epsilon in ladder)
    reached = torch.full((len(images),), torch.inf, dtype=torch.float64)
    return Budget(norm, radii, reached, slack=COUNTED if norm == "l0" else TOLERANCE * scale)


class Found(NamedTuple):
    """images: (B, C, H, W), the smallest change that broke each case, the clean image where none. size: (B,) float64 on
    the CPU, its size in the norm's unit, infinity where none. looks: (B,) images shown to the model for the case.
    nonfinite, flat: (B,) bool, a logit or gradient was not finite, or the attack itself failed on this case; the first gradient was
    exactly zero.
    """

    images: torch.Tensor
    size: torch.Tensor
    looks: torch.Tensor
    nonfinite: torch.Tensor
    flat: torch.Tensor


def nothing(cases: Cases) -> Found:
    """What an attack has found before it starts."""
    count, device = len(cases), cases.pixels.device
    no = torch.zeros(count, dtype=torch.bool, device=device)
    return Found(
        cases.pixels.clone(),
        torch.full((count,), torch.inf, dtype=torch.float64),
        torch.zeros(count, dtype=torch.int64),
        no,
        no.clone(),
    )


class Seen(NamedTuple):
    """What a look at (n, C, H, W) points showed: logits (n, K), loss (n,), its gradient (n, C, H, W), None if not asked."""

    logits: torch.Tensor
    loss: torch.Tensor
    gradient: torch.Tensor | None


def look(cases: Cases, points: torch.Tensor, loss: LossName | None) -> Seen:
    """The model at ``points`` and the slope of the loss for the pixels alone: the model's own ``.grad`` stays as it is.

    loss None: no gradient, and the loss is the margin. A model that cuts the pixels off, or raises an error when asked for a
    gradient, gives one of zero, which is itself a sign that gradient attacks see nothing: ``probes.slopes`` tells.
    """
    if loss is not None:
        try:
            return _sloped(cases, points, loss)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # no derivative, or a graph that was overwritten; any other error is raised again below
            points = points.clone()
    with torch.no_grad():
        logits = cases.forward(points)
    if loss is None:
        return Seen(logits, cases.goal.margin(logits), None)
    return Seen(logits, cases.goal.loss(loss, logits), torch.zeros_like(points))


def _sloped(cases: Cases, points: torch.Tensor, loss: LossName) -> Seen:
    with torch.inference_mode(False), torch.enable_grad():
        at = points.detach().clone().requires_grad_()
        logits = cases.forward(at)
        values = cases.goal.loss(loss, logits)
        gradient = None
        if values.requires_grad:
            kept = torch.where(torch.isfinite(values), values, torch.zeros_like(values))
            (gradient,) = torch.autograd.grad(kept.sum(), at, allow_unused=True)
    return Seen(logits.detach(), values.detach(), torch.zeros_like(at).detach() if gradient is None else gradient)


def nonfinite(seen: Seen) -> torch.Tensor:
    """(n,) bool: a logit or a gradient was NaN or infinite."""
    odd = ~torch.isfinite(seen.logits).all(dim=1)
    return odd if seen.gradient is None else odd | ~torch.isfinite(seen.gradient).flatten(1).all(dim=1)
