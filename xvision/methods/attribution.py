"""Which pixels a score depends on: gradient and integrated gradients.

The only module that imports captum. Gradients are taken for the pixels alone, so a model's parameters, their ``.grad``
and ``requires_grad`` stay as they were. Shapes: B batch, C channels, H W image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency

from xvision.errors import ConfigError, DataError
from xvision.methods.filters import gaussian_blur
from xvision.methods.target import Logits, checked, finite_maps, gradients_for_pixels, score_of

Baseline = Literal["black", "mean", "blur", "data mean"]

SMALLEST_DIFFERENCE = 1e-6
BLUR_SIGMA_AT_224 = 10.0


class Attribution(NamedTuple):
    """Heat maps of a batch.

    maps: (B, H, W) float32. target: (B,) the class explained. difference: (B,) score at the image minus score at the
    baseline, None without a baseline. gap: (B,) how far the map's sum misses that difference, as a share of it, with
    the difference taken as at least 1e-6; where the difference is near 0 the gap says nothing. None without a baseline.
    """

    maps: np.ndarray
    target: np.ndarray
    gap: np.ndarray | None
    difference: np.ndarray | None


def saliency(logits: Logits, pixels: torch.Tensor, targets: torch.Tensor) -> Attribution:
    """Absolute gradient of the log-odds, largest over channels (Simonyan et al. 2014).

    Where an infinitely small change of one pixel moves the score most; not how much a pixel contributed, and zero where
    the model has saturated. The sign is lost. Cost: one forward and one backward pass per image.

    Args:
        logits: model, (B, C, H, W) in [0, 1] to (B, K).
        pixels: (B, C, H, W).
        targets: (B,) class to explain.

    Raises:
        DataError: targets that are no class of the model or do not match the images.
        ModelError: fewer than two logits, or a gradient that is missing or not finite.
    """
    with gradients_for_pixels():
        images, explained = checked(pixels, targets)
        method = Saliency(score_of(logits))
        gradients = method.attribute(images.requires_grad_(), additional_forward_args=explained)
    maps = gradients.abs().amax(dim=1)
    return Attribution(finite_maps(maps, "saliency"), explained.cpu().numpy(), None, None)


def input_x_gradient(logits: Logits, pixels: torch.Tensor, targets: torch.Tensor) -> Attribution:
    """Pixel times its gradient of the log-odds, summed over channels (Shrikumar et al. 2016).

    What the score would lose if it were a straight line down to black: equal to integrated gradients from black only
    for a model without bias that is linear in brightness. A black pixel gets 0 however much the model uses it. Signed.
    Arguments, cost and errors as ``saliency``.
    """
    with gradients_for_pixels():
        images, explained = checked(pixels, targets)
        method = InputXGradient(score_of(logits))
        products = method.attribute(images.requires_grad_(), additional_forward_args=explained)
    return Attribution(finite_maps(products.sum(dim=1), "input × gradient"), explained.cpu().numpy(), None, None)


def integrated_gradients(
    logits: Logits,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    *,
    baseline: Baseline,
    references: torch.Tensor | None = None,
    steps: int = 32,
    internal_batch: int = 64,
) -> Attribution:
    """Signed share of each pixel in the change of the log-odds from baseline to image (Sundararajan et al. 2017).

    Gradients along the straight line from baseline to image, by Gauss-Legendre quadrature, times the distance
    travelled, summed over channels. The maps sum to ``difference`` up to ``gap``; a large gap means too few steps. The
    answer depends on the baseline: a pixel equal to it gets 0 however much the model uses it, so black hides dark
    findings. Cost: ``steps`` forward and backward passes per image and two more forward passes.

    Args:
        logits: model, (B, C, H, W) in [0, 1] to (B, K).
        pixels: (B, C, H, W).
        targets: (B,) class to explain.
        baseline: "black" 0 everywhere; "mean" the image's own mean per channel; "blur" the image blurred with a
            standard deviation of 10 px at a side of 224, in proportion at others.
        steps: quadrature points.
        internal_batch: most images in one pass; changes memory and speed, not the result.

    Raises:
        ConfigError: an option is out of range.
        DataError, ModelError: as ``saliency``.
    """
    if steps < 1 or internal_batch < 1:
        raise ConfigError(f"found steps = {steps} and internal_batch = {internal_batch}: both must be at least 1")
    score = score_of(logits)
    with gradients_for_pixels():
        images, explained = checked(pixels, targets)
        reference = baseline_pixels(images, baseline, references)
        parts = [slice(first, first + internal_batch) for first in range(0, len(images), internal_batch)]
        done = [
            _along_the_line(score, images[part], reference[part], explained[part], steps, internal_batch)
            for part in parts
        ]
    maps = finite_maps(torch.cat([contributions.sum(dim=1) for contributions, _ in done]), "integrated gradients")
    difference: np.ndarray = torch.cat([change for _, change in done]).double().cpu().numpy()
    return Attribution(maps, explained.cpu().numpy(), completeness_gap(maps, difference), difference)


def completeness_gap(maps: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """How far the sums of maps (B, ...) miss the differences (B,), as ``Attribution.gap`` states it."""
    missed = np.abs(maps.reshape(len(maps), -1).sum(axis=1, dtype=np.float64) - difference)
    gap: np.ndarray = missed / np.maximum(np.abs(difference), SMALLEST_DIFFERENCE)
    return gap


def baseline_pixels(pixels: torch.Tensor, baseline: Baseline, references: torch.Tensor | None = None) -> torch.Tensor:
    """The image without its content, (B, C, H, W); see ``integrated_gradients`` for the kinds.

    Raises ConfigError for an unknown kind, DataError where "data mean" has no references that fit.
    """
    if baseline == "black":
        return torch.zeros_like(pixels)
    if baseline == "mean":
        return pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels).clone()
    if baseline == "blur":
        return gaussian_blur(pixels, BLUR_SIGMA_AT_224 * min(pixels.shape[2:]) / 224.0)
    if baseline == "data mean":
        if references is None:
            raise DataError('the baseline "data mean" needs reference images of the data: give some, or use "blur"')
        return checked_references(references, pixels).mean(dim=0, keepdim=True).expand_as(pixels).clone()
    raise ConfigError(f"found baseline = {baseline!r}: known are {', '.join(get_args(Baseline))}")


def checked_references(references: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """References on the device of the images; DataError unless there is one at least and each has the images' shape."""
    if references.ndim != 4 or len(references) == 0 or references.shape[1:] != images.shape[1:]:
        raise DataError(
            f"found references of shape {tuple(references.shape)} for images of shape {tuple(images.shape)}: give at"
            " least one image of the data in the same shape (C, H, W)"
        )
    return references.detach().to(images)


def _along_the_line(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    reference: torch.Tensor,
    targets: torch.Tensor,
    steps: int,
    internal_batch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    contributions = IntegratedGradients(score).attribute(
        images, reference, additional_forward_args=targets, n_steps=steps, internal_batch_size=internal_batch
    )
    with torch.no_grad():
        return contributions, score(images, targets) - score(reference, targets)
