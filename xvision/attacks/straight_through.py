"""Slopes through parts that have none: the value stays the audited model's, the slope is borrowed.

Source: backward pass differentiable approximation, Athalye et al. 2018. Shapes: n images, C H W image, K logits.
"""

from __future__ import annotations

import torch

from xvision.attacks.cases import Forward
from xvision.errors import ModelError


def straight_through(transform: Forward, forward: Forward) -> Forward:
    """``forward`` after ``transform``, to the bit, with the slope at the transformed images taken as that at the images.

    For a step that keeps images about as they are and hides the slope: rounding, JPEG, median filters. transform:
    (n, C, H, W) to the same shape. The slope is wrong by as much as the transform moves the image, so that a model that
    holds here is not shown to hold. The returned function raises ModelError for a transform that changes the shape.
    """

    def through(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            changed = transform(images)
        if changed.shape != images.shape:
            raise ModelError(
                f"a transform made {tuple(changed.shape)} of images of shape {tuple(images.shape)}: one that changes the"
                " shape needs a differentiable stand-in instead"
            )
        return forward(_with_slope_of(changed, images))

    return through


def borrowed_gradient(forward: Forward, surrogate: Forward) -> Forward:
    """The logits of ``forward``, to the bit, with the slopes of ``surrogate``: the same model without its hidden part, say.

    Costs a pass of both. What it finds is a break of ``forward`` itself; that it finds none may be the surrogate's fault.
    The returned function raises ModelError where the two give logits of different shapes.
    """

    def borrowed(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = forward(images)
        lent = surrogate(images)
        if lent.shape != logits.shape:
            raise ModelError(
                f"the surrogate gave logits of shape {tuple(lent.shape)} where the model gave {tuple(logits.shape)}: it must"
                " answer the same question"
            )
        return _with_slope_of(logits, lent)

    return borrowed


def _with_slope_of(values: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Values without a slope, to the bit, with that of ``source``; also where the source is not finite."""
    slope = source - source.detach()
    return values + torch.nan_to_num(slope, nan=0.0)
