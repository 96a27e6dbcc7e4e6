"""Gradients averaged over random points: expected gradients, SmoothGrad and VarGrad.

Every image has its own seed, so its map depends neither on the batch it is in nor on how many points share a pass.
captum draws from the global generator and takes one noise level and one pass for all images, so it is not used here.
Shapes: B batch, C channels, H W image, K classes, R references, S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from xvision.errors import ConfigError, DataError
from xvision.methods.attribution import Attribution, checked_references, completeness_gap
from xvision.methods.randomness import case_generator
from xvision.methods.target import Logits, Score, checked, finite_maps, gradients_for_pixels, log_odds, score_of


class _Drawn(NamedTuple):
    """points: (S, C, H, W) where gradients are taken. factor: what they are multiplied by, same shape or (1, 1, 1, 1)."""

    points: torch.Tensor
    factor: torch.Tensor


class _Moments(NamedTuple):
    """Of factor × gradient over the samples of b images, (b, C, H, W) float64 each."""

    mean: torch.Tensor
    variance: torch.Tensor


_Draw = Callable[[int, int], _Drawn]
"""Row of an image and a number of samples to the next so many samples of that image."""
_Summary = Callable[[_Moments], torch.Tensor]
"""Moments of b images to their maps (b, H, W)."""


def expected_gradients(
    logits: Logits,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    *,
    references: torch.Tensor,
    seeds: Sequence[int],
    samples: int = 16,
    internal_batch: int = 64,
) -> Attribution:
    """Integrated gradients averaged over references of the data (Erion et al. 2021), also called GradientSHAP.

    Signed share of each pixel in the change of the log-odds from the references drawn to the image. Each sample is one
    reference and one random point on the line from it to the image; references are drawn without replacement until all
    were used, points once from each of S equal parts of the line. A pixel gets little where the image looks like the
    references. ``gap`` holds the error of sampling too. Cost: ``samples`` forward and backward passes per image, one
    more forward pass, and one for each reference.

    Args:
        logits: model, (B, C, H, W) in [0, 1] to (B, K).
        pixels: (B, C, H, W).
        targets: (B,) class to explain.
        references: (R, C, H, W) images of the data.
        seeds: (B,) one per image.
        samples: per image.
        internal_batch: most images in one pass; changes memory and speed, not the result.

    Raises:
        ConfigError: an option is out of range.
        DataError, ModelError: as ``saliency``, or references or seeds that do not match the images.
    """
    with gradients_for_pixels():
        images, explained = checked(pixels, targets)
        _require(images, seeds, samples, internal_batch)
        known = checked_references(references, images)
        plans = [_plan(seed, samples, len(known)) for seed in seeds]
        taken = [0] * len(plans)

        def draw(row: int, count: int) -> _Drawn:
            part = slice(taken[row], taken[row] + count)
            taken[row] += count
            start = known[plans[row].order[part].to(known.device)]
            moved = images[row] - start
            return _Drawn(start + plans[row].places[part].to(images).view(-1, 1, 1, 1) * moved, moved)

        summed = _summarised(
            score_of(logits), draw, explained, samples, internal_batch, lambda found: found.mean.sum(dim=1)
        )
        maps = finite_maps(summed, "expected gradients")
        difference = _difference(logits, images, explained, known, plans, internal_batch)
    return Attribution(maps, explained.cpu().numpy(), completeness_gap(maps, difference), difference)


def smooth_grad(
    logits: Logits,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    *,
    seeds: Sequence[int],
    noise: float = 0.1,
    samples: int = 16,
    internal_batch: int = 64,
) -> Attribution:
    """Absolute mean gradient over noisy copies of the image, largest over channels (Smilkov et al. 2017).

    The saliency of the model blurred by the noise: steadier to look at, not closer to what the model does. The noise is
    normal and may leave [0, 1]. Cost: ``samples`` forward and backward passes per image.

    Args:
        logits, pixels, targets, seeds, samples, internal_batch: as ``expected_gradients``.
        noise: standard deviation as a share of the image's own range (largest minus smallest pixel); a constant image
            therefore gets its plain saliency.

    Raises:
        ConfigError, DataError, ModelError: as ``expected_gradients``.
    """
    maps = _noisy(
        logits, pixels, targets, seeds, noise, samples, internal_batch, lambda found: found.mean.abs().amax(dim=1)
    )
    return Attribution(finite_maps(maps, "SmoothGrad"), targets.cpu().numpy(), None, None)


def var_grad(
    logits: Logits,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    *,
    seeds: Sequence[int],
    noise: float = 0.1,
    samples: int = 16,
    internal_batch: int = 64,
) -> Attribution:
    """Variance of the gradient over noisy copies of the image, largest over channels (Adebayo et al. 2018).

    Where the model bends, not what it uses: 0 for a linear model however much a pixel counts, and for a constant image,
    which gets no noise. The mean square over ``samples``, not the unbiased estimate. Arguments, cost and errors as
    ``smooth_grad``.
    """
    maps = _noisy(
        logits, pixels, targets, seeds, noise, samples, internal_batch, lambda found: found.variance.amax(dim=1)
    )
    return Attribution(finite_maps(maps, "VarGrad"), targets.cpu().numpy(), None, None)


class _Plan(NamedTuple):
    """order: (S,) which reference each sample takes. places: (S,) how far along the line from it to the image."""

    order: torch.Tensor
    places: torch.Tensor


def _plan(seed: int, samples: int, references: int) -> _Plan:
    generator = case_generator(seed)
    rounds = -(-samples // references)
    order = torch.cat([torch.randperm(references, generator=generator) for _ in range(rounds)])[:samples]
    parts = torch.randperm(samples, generator=generator)
    return _Plan(order, (parts + torch.rand(samples, generator=generator)) / samples)


@torch.no_grad()
def _difference(
    logits: Logits,
    images: torch.Tensor,
    targets: torch.Tensor,
    references: torch.Tensor,
    plans: Sequence[_Plan],
    internal_batch: int,
) -> np.ndarray:
    """Score at the image minus the mean score at the references it drew, (B,) float64."""
    scores = log_odds(_in_parts(logits, images, internal_batch), targets)
    orders = np.stack([plan.order.numpy() for plan in plans])
    used, places = np.unique(orders, return_inverse=True)
    found = _in_parts(logits, references[torch.from_numpy(used).to(references.device)], internal_batch)
    each = torch.from_numpy(places).view(orders.shape).to(found.device)
    starts = [log_odds(found[own], target.expand(len(own))).mean() for own, target in zip(each, targets, strict=True)]
    difference: np.ndarray = (scores - torch.stack(starts)).double().cpu().numpy()
    return difference


def _in_parts(logits: Logits, images: torch.Tensor, size: int) -> torch.Tensor:
    return torch.cat([logits(images[first : first + size]) for first in range(0, len(images), size)])


def _noisy(
    logits: Logits,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    seeds: Sequence[int],
    noise: float,
    samples: int,
    internal_batch: int,
    summary: _Summary,
) -> torch.Tensor:
    if not 0.0 <= noise < float("inf"):
        raise ConfigError(f"found noise = {noise}: give a share of the image's range, 0 or more")
    with gradients_for_pixels():
        images, explained = checked(pixels, targets)
        _require(images, seeds, samples, internal_batch)
        deviations = noise * (images.amax(dim=(1, 2, 3)) - images.amin(dim=(1, 2, 3)))
        generators = [case_generator(seed) for seed in seeds]
        one = images.new_ones(1, 1, 1, 1)

        def draw(row: int, count: int) -> _Drawn:
            drawn = [torch.randn(images.shape[1:], generator=generators[row]) for _ in range(count)]
            return _Drawn(images[row] + deviations[row] * torch.stack(drawn).to(images), one)

        return _summarised(score_of(logits), draw, explained, samples, internal_batch, summary)


def _summarised(
    score: Score, draw: _Draw, targets: torch.Tensor, samples: int, internal_batch: int, summary: _Summary
) -> torch.Tensor:
    """Maps (B, H, W), so many images at a time as share a pass."""
    size = max(1, internal_batch // samples)
    parts = [range(first, min(first + size, len(targets))) for first in range(0, len(targets), size)]
    return torch.cat([summary(_moments(score, draw, targets, rows, samples, internal_batch)) for rows in parts])


def _moments(
    score: Score, draw: _Draw, targets: torch.Tensor, rows: range, samples: int, internal_batch: int
) -> _Moments:
    # Sums of what is left after the first sample is taken off: equal gradients have a variance of exactly 0.
    shift = total = squares = torch.zeros((), dtype=torch.float64)
    for first in range(0, samples, internal_batch):
        count = min(internal_batch, samples - first)
        drawn = [draw(row, count) for row in rows]
        points = torch.cat([each.points for each in drawn]).requires_grad_()
        explained = targets[rows.start : rows.stop].repeat_interleave(count)
        (gradients,) = torch.autograd.grad(score(points, explained).sum(), points)
        factors = torch.stack([each.factor for each in drawn])
        values = gradients.view(len(rows), count, *gradients.shape[1:]).double() * factors
        if first == 0:
            shift = values[:, 0].clone()
        left = values - shift.unsqueeze(1)
        total, squares = total + left.sum(dim=1), squares + left.square().sum(dim=1)
    mean = total / samples
    return _Moments(shift + mean, (squares / samples - mean.square()).clamp(min=0.0))


def _require(images: torch.Tensor, seeds: Sequence[int], samples: int, internal_batch: int) -> None:
    if samples < 1 or internal_batch < 1:
        raise ConfigError(f"found samples = {samples} and internal_batch = {internal_batch}: both must be at least 1")
    if len(seeds) != len(images):
        raise DataError(f"found {len(seeds)} seeds for {len(images)} images: give one per image")
