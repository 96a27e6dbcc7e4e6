"""Attacks carried over from another model, which meet no hidden slope: the audited model is only asked at the end.

Shapes: B cases, n images, D values of an image, K logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from xvision.attacks.balls import Norm, size
from xvision.attacks.cases import Budget, Cases, Forward, Found, look, nonfinite, nothing
from xvision.attacks.goals import ClassGoal, FindingGoal, Goal
from xvision.attacks.gradient_walks import MarginPGD, per_row
from xvision.attacks.search import Rows
from xvision.errors import DataError

_RIDGES = tuple(10.0 ** (power / 2) for power in range(-12, 7))
"""Ridge strengths tried, in mean variances of the images along their principal directions."""
_COLUMNS = 16384
"""Pixel values taken into float64 at once."""


def transferred(cases: Cases, budget: Budget, surrogate: Forward, *, steps: int, width: int) -> Found:
    """The worst change for ``surrogate`` within each radius, shown to the audited model once.

    surrogate: (n, C, H, W) pixels to logits of the same K, with gradients. Its margin is climbed for all ``steps``, past its
    own boundary, since a change that it clearly gets wrong is more likely to carry over (Papernot et al. 2017). Radii are
    tried from the smallest up until one breaks the case; looks count the audited model alone. A case that stands says
    nothing where the surrogate decides otherwise than the model; one that falls only here shows hidden gradients.
    """
    found = nothing(cases)
    for column, radius in enumerate(budget.radii):
        known = budget.columns(torch.minimum(budget.reached, found.size))
        open_ones = torch.nonzero(known > column).squeeze(1)
        for start in range(0, len(open_ones), width):
            places = open_ones[start : start + width]
            rows = places.to(cases.pixels.device)
            part = cases.rows(rows)
            images = _worst(replace(part, forward=surrogate), budget.norm, radius, steps)
            seen = look(part, images, None)
            held = part.confirmed(images, part.goal.broken(seen.logits))
            found.looks[places] += 1
            found.nonfinite[rows] |= nonfinite(seen)
            found.images[rows[held]] = images[held]
            found.size[places[held.cpu()]] = size((images - part.pixels)[held], budget.norm)
    return found


def _worst(cases: Cases, norm: Norm, radius: float, steps: int) -> torch.Tensor:
    """(n, C, H, W) the images of the largest margin that a walk meets, whether they break anything or not."""
    walker, place = MarginPGD(steps=steps), torch.arange(len(cases), device=cases.pixels.device)
    start = torch.zeros_like(place)
    rows = Rows(cases, norm, torch.full_like(place, radius, dtype=torch.float32), start, start, place, start)
    state = walker.begin(rows)
    worst, most = state["at"], torch.full_like(rows.radius, -torch.inf)
    for _ in range(steps):
        seen = look(cases, state["at"], walker.loss)
        worst = torch.where(per_row(seen.loss > most), state["at"], worst)
        most = torch.where(seen.loss > most, seen.loss, most)
        state = walker.learn(rows, state, seen)
        rows = replace(rows, step=rows.step + 1)
    return worst


class Student(NamedTuple):
    """A linear stand-in for a model. forward: (n, C, H, W) pixels to (n, K) logits. same: (n,) bool, a student fitted
    without the image decides as the model does. chance: the share that deciding always alike would reach. ridge:
    its strength, as a share of the mean variance of the images along their principal directions.
    """

    forward: Forward
    same: torch.Tensor
    chance: float
    ridge: float

    @property
    def agreement(self) -> float:
        return self.same.double().mean().item()


def distilled(pixels: torch.Tensor, logits: torch.Tensor, goal: Goal) -> Student:
    """A ridge regression of the model's logits (n, K) on the pixels (n, C, H, W), so that a surrogate always exists.

    Closed form in the n images, whatever their size; the ridge's strength has the smallest squared error on images left out
    one at a time, in closed form too (Hoerl and Kennard 1970; Golub et al. 1979). goal: of the images, says how logits are
    decided. A student whose ``agreement`` is near ``chance`` has learnt nothing, and a transfer that fails says nothing.

    Raises DataError for fewer than 3 images and for logits that are not finite.
    """
    if len(pixels) < 3 or len(logits) != len(pixels) or not bool(torch.isfinite(logits).all()):
        raise DataError(
            f"found {len(pixels)} images and logits of shape {tuple(logits.shape)} to distil: at least 3 images with finite"
            " logits are needed"
        )
    flat, answers = pixels.detach().flatten(1).cpu(), logits.detach().double().cpu()
    middle = answers.mean(dim=0)
    fit = _ridge(flat, answers - middle)
    mean = torch.cat([part.mean(dim=0) for part in _parts(flat)])
    weight = torch.cat([part.T @ fit.dual for part in _parts(flat)])  # the dual sums to 0, which centres the images
    bias = middle - mean @ weight
    slope, offset = weight.float().to(pixels.device), bias.float().to(pixels.device)
    left_out = (fit.left_out + middle).float().to(pixels.device)
    same = (_decided(left_out, goal) == _decided(logits.detach().float(), goal)).all(dim=1)
    _, counts = torch.unique(_decided(logits.detach(), goal), dim=0, return_counts=True)
    return Student(
        lambda images: images.flatten(1) @ slope + offset,
        same=same.cpu(),
        chance=counts.max().item() / len(pixels),
        ridge=fit.strength,
    )


class _Ridge(NamedTuple):
    """dual: (n, K), whose product with the centred images is the weight. left_out: (n, K) predictions of centred answers."""

    dual: torch.Tensor
    left_out: torch.Tensor
    strength: float


def _ridge(flat: torch.Tensor, answers: torch.Tensor) -> _Ridge:
    """Of images (n, D) and centred answers (n, K), the intercept free, at the best strength."""
    centred = (part - part.mean(dim=0) for part in _parts(flat))
    values, vectors = torch.linalg.eigh(
        sum((part @ part.T for part in centred), torch.zeros(len(flat), len(flat)).double())
    )
    values = values.clamp(min=0.0)
    scale = values.mean().item() or 1.0
    turned = vectors.T @ answers

    def fitted(strength: float) -> tuple[float, _Ridge]:
        ridge = values + strength * scale
        own = (vectors.square() * (values / ridge)).sum(dim=1) + 1.0 / len(flat)
        missed = (answers - vectors @ ((values / ridge)[:, None] * turned)) / (1.0 - own).clamp(min=1e-9)[:, None]
        error = missed.square().sum().item()
        return error, _Ridge(vectors @ (turned / ridge[:, None]), answers - missed, strength)

    return min((fitted(strength) for strength in _RIDGES), key=lambda each: each[0])[1]


def _parts(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    return (part.double() for part in torch.split(flat, _COLUMNS, dim=1))


def _decided(logits: torch.Tensor, goal: Goal) -> torch.Tensor:
    """(n, 1) the class or (n, F) the findings decided; (n, 1) whether broken for another kind of goal."""
    if isinstance(goal, ClassGoal):
        return goal.scores(logits).argmax(dim=1, keepdim=True)
    if isinstance(goal, FindingGoal):
        return (logits >= goal.offsets).long()
    return goal.broken(logits).long()[:, None]
