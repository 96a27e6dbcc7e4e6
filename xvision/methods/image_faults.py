"""Images that cannot show anything: constant, almost uniform, or mostly an empty border. Shapes: B images, C channels, H W image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from xvision.errors import DataError

LEVEL = 1.0 / 255.0
"""Grey values this close are one: a level of an 8-bit image."""
UNIFORM = 0.01
"""Standard deviation below which an image shows next to nothing."""
LEAST_CONTENT = 0.25
FAULTS = ("constant", "almost uniform", "mostly border")


class ImageFacts(NamedTuple):
    """Per image (B,): range and standard deviation of the grey values, and the share of the area inside the flat border."""

    span: np.ndarray
    deviation: np.ndarray
    content: np.ndarray


def image_facts(pixels: torch.Tensor) -> ImageFacts:
    """Facts of images (B, C, H, W). A border is rows and columns from the edge inwards that each hold one grey value."""
    if pixels.ndim != 4:
        raise DataError(f"found pixels of shape {tuple(pixels.shape)}: (B, C, H, W) is needed")
    grey = pixels.detach().double().mean(dim=1).cpu().numpy()
    span = np.ptp(grey.reshape(len(grey), -1), axis=1) if len(grey) else np.zeros(0)
    down, across = (_inside(np.ptp(grey, axis=axis) > LEVEL) for axis in (2, 1))
    return ImageFacts(span, grey.std(axis=(1, 2)), down * across)


def _inside(varied: np.ndarray) -> np.ndarray:
    """Share (B,) of the lines (B, L) between the first and the last that vary, with these."""
    size = varied.shape[1]
    first, last = varied.argmax(axis=1), size - varied[:, ::-1].argmax(axis=1)
    return np.where(varied.any(axis=1), (last - first) / size, 0.0)


def faults(facts: ImageFacts) -> np.ndarray:
    """The fault (B,) of each image, one of :data:`FAULTS` or "": the gravest."""
    named = np.where(facts.content < LEAST_CONTENT, "mostly border", "").astype("<U16")
    named[facts.deviation < UNIFORM] = "almost uniform"
    named[facts.span <= LEVEL] = "constant"
    return named
