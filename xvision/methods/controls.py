"""Maps that know nothing of the model: what an explanation has to beat before it has explained anything.

Arun et al. (2021) and Adebayo et al. (2018) found published methods that do not. Shapes: B images, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from xvision.methods.filters import sobel_gradient
from xvision.methods.randomness import case_seed

CENTRE_SIGMA = 0.25
"""Standard deviation of the centre prior as a share of the shorter side."""


def random_maps(seeds: Sequence[int], height: int, width: int) -> np.ndarray:
    """Independent uniform values in [0, 1), (B, H, W) float32, one seed per image; what knowing nothing scores."""
    return np.stack([_uniform(seed, height, width) for seed in seeds])


def sobel_edges(pixels: torch.Tensor) -> np.ndarray:
    """Strength of the edges in the mean over channels, (B, H, W) float32.

    A method whose map is no better placed than this one has shown the image, not the model (Adebayo et al. 2018).
    """
    horizontal, vertical = sobel_gradient(pixels.detach().float().mean(dim=1, keepdim=True))
    edges: np.ndarray = torch.hypot(horizontal, vertical).squeeze(1).cpu().numpy()
    return edges


def centre_prior(images: int, height: int, width: int) -> np.ndarray:
    """A Gaussian hill in the middle, 1 at its top, (B, H, W) float32; its width is a quarter of the shorter side.

    Findings lie near the middle more often than chance has it, since images are taken that way: this map beats the random
    one wherever they do.
    """
    sigma = CENTRE_SIGMA * min(height, width)
    down, across = (np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2.0) / sigma) ** 2) for side in (height, width))
    hill = np.outer(down, across).astype(np.float32)
    return np.broadcast_to(hill, (images, height, width)).copy()


def input_magnitude(pixels: torch.Tensor) -> np.ndarray:
    """Distance of each pixel from its image's own mean, averaged over channels, (B, H, W) float32.

    The bare value would call bright what is important, and an image stored with white for air would get the opposite map;
    from the mean, bright and dark count alike. A constant image gets zeros.
    """
    images = pixels.detach().float()
    distance = (images - images.mean(dim=(2, 3), keepdim=True)).abs().mean(dim=1)
    maps: np.ndarray = distance.cpu().numpy()
    return maps


def _uniform(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(case_seed(seed, "random map", ""))
    return rng.random((height, width), dtype=np.float32)
