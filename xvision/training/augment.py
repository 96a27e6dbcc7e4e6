"""Changes that leave a medical label true: small movements and tones; a flip only where left and right mean nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from xvision.training.noise import normal, uniform

ROTATION = math.radians(10)
SCALE = 0.1
SHIFT = 0.05
"""Share of the image's side."""
TONE = 0.1
"""Largest change of brightness (of the full range), contrast and gamma (of their size)."""
NOISE = 0.02
"""Largest standard deviation of the Gaussian noise, of the full range."""
_DRAWS, _NOISE = 0, 1


def augment(
    pixels: torch.Tensor, examples: Sequence[int] | np.ndarray, *, seed: int, epoch: int, flip: bool = False
) -> torch.Tensor:
    """Pixels (B, C, H, W) in [0, 1], each changed by its own random numbers; the result stays in [0, 1].

    examples: (B,) index of each image in the training set. flip: mirror half of the images left to right. The result
    for an image depends on (seed, epoch, index) only, not on the batch it comes in, and is made where the pixels are.
    """
    shape, device = pixels.shape[1:], pixels.device
    values = uniform(9, examples, seed=seed, epoch=epoch, purpose=_DRAWS, device=device) * 2 - 1
    noise = normal(math.prod(shape), examples, seed=seed, epoch=epoch, purpose=_NOISE, device=device)
    mirrored = (values[:, 8] < 0) if flip else torch.zeros_like(values[:, 8], dtype=torch.bool)
    moved = _move(pixels, values[:, :4], mirrored)
    brightness, contrast, gamma = (TONE * values[:, 4:7]).T.reshape(3, -1, 1, 1, 1)
    toned: torch.Tensor = ((moved - 0.5) * (1 + contrast) + 0.5 + brightness).clamp(0, 1) ** (1 + gamma)
    spread = NOISE * values[:, 7].abs().view(-1, 1, 1, 1)
    return (toned + spread * noise.view_as(pixels)).clamp(0, 1)


def _move(pixels: torch.Tensor, values: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Rotated about the centre, scaled, shifted and maybe mirrored; what comes in from outside repeats the border."""
    angle, scale = ROTATION * values[:, 0], 1 + SCALE * values[:, 1]
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    height, width = pixels.shape[-2:]
    across, down = 2 * SHIFT * values[:, 2], 2 * SHIFT * values[:, 3]
    side = torch.where(mirrored, -1.0, 1.0)
    rows = (
        torch.stack((side * cosine, side * -sine * height / width, across), dim=1),
        torch.stack((sine * width / height, cosine, down), dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    moved: torch.Tensor = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return moved
