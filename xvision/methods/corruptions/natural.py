"""Weather, dirt and glass between a camera and what it sees outdoors or in a works: industrial and field images.

The families are those of ImageNet-C, written from their descriptions: its photographs of frost are replaced by fractal
noise, its settings that do not rise with severity by ones that do, its swapping of pixels by displacement. Flakes, drops
and fractals have a fixed number of grains over the shorter side, so they scale with the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from xvision.methods.corruptions import blur, drawing
from xvision.methods.corruptions.draws import normal, uniform
from xvision.methods.corruptions.kind import REFERENCE_SIDE, Corruption, scaled, side
from xvision.methods.filters import gaussian_blur

_ICE, _MUD = (0.86, 0.93, 1.0), (0.25, 0.17, 0.11)
_FOG_DECAY, _FROST_DECAY = 1.8, 1.7
_MUD_GRAIN, _MUD_OPACITY, _MUD_EDGE = 9.0, 0.9, 0.15
_MOTION = next(kind.apply for kind in blur.KINDS if kind.name == "motion_blur")


def _fog(pixels: torch.Tensor, brightness: float, seeds: Sequence[int]) -> torch.Tensor:
    """Fractal light of this brightness added, and all scaled so that the brightest pixel cannot get brighter."""
    brightest = pixels.amax(dim=(1, 2, 3), keepdim=True)
    thick = pixels + brightness * drawing.plasma(pixels, _FOG_DECAY, seeds)
    return thick * brightest / (brightest + brightness).clamp(min=1e-12)


def _frost(pixels: torch.Tensor, opacity: float, seeds: Sequence[int]) -> torch.Tensor:
    """Ice on the pane: bright veins where fractal noise crosses its middle value, faint film between them."""
    veins = 1.0 - (2.0 * drawing.plasma(pixels, _FROST_DECAY, seeds) - 1.0).abs()
    return drawing.painted(pixels, opacity * (0.3 + 0.7 * veins.square()), _ICE)


def _snow(pixels: torch.Tensor, snow: tuple[float, float, float, float], seeds: Sequence[int]) -> torch.Tensor:
    """Flakes that fall within 45 degrees of straight down, in two layers, in front of a whitened scene.

    The four numbers: mean of the noise (of deviation 0.3) whose peaks above 0.5 are flakes, their size and fall in px at
    side 224, and the share of the scene that is not whitened.
    """
    mean, grain, fall, kept = snow
    noise = _grains(pixels, grain, seeds)
    flakes = mean + 0.3 * noise
    flakes = torch.where(flakes < 0.5, 0.0, flakes.clamp(0.0, 1.0)).to(pixels.device)
    layer = _MOTION(flakes.transpose(2, 3), fall, seeds).transpose(2, 3)
    grey = (pixels * drawing.tint(pixels, drawing.LUMA)).sum(dim=1, keepdim=True) if pixels.shape[1] == 3 else pixels
    white = torch.maximum(pixels, 1.5 * grey + 0.5)
    return kept * pixels + (1.0 - kept) * white + layer + layer.flip(2, 3)


def _spatter(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """Splashes of mud, with edges that thin out, over exactly this ``share`` of the image."""
    field = _grains(pixels, _MUD_GRAIN, seeds).to(pixels.device)
    flat = field.flatten(1)
    clean = flat.shape[1] - round(share * flat.shape[1])
    level = flat.kthvalue(max(1, clean), dim=1).values.view(-1, 1, 1, 1)
    cover = ((field - level) / _MUD_EDGE).clamp(0.0, 1.0)
    return drawing.painted(pixels, _MUD_OPACITY * cover, _MUD)


def _grains(pixels: torch.Tensor, size: float, seeds: Sequence[int]) -> torch.Tensor:
    """Standard normal noise with one draw every ``size`` px at side 224, smooth in between, (B, 1, H, W)."""
    height, width = pixels.shape[2:]
    shape = [max(2, round(REFERENCE_SIDE / size * length / side(pixels))) for length in (height, width)]
    return F.interpolate(normal(seeds, 1, *shape), (height, width), mode="bicubic")


def _zoom_blur(pixels: torch.Tensor, zoom: tuple[float, float], seeds: Sequence[int]) -> torch.Tensor:
    """The mean of the image and its enlargements about the centre, from 1 to the first number in steps of the second."""
    largest, step = zoom
    rows, columns = drawing.centres(pixels)
    height, width = pixels.shape[2:]
    factors = np.arange(1.0, largest + step / 2.0, step)
    total = 2.0 * pixels  # ImageNet-C counts the image once for itself and once as the enlargement by 1
    for factor in factors[1:].tolist():
        near_rows, near_columns = (rows - height / 2.0) / factor, (columns - width / 2.0) / factor
        total = total + drawing.sampled_at(pixels, near_rows + height / 2.0, near_columns + width / 2.0)
    return total / (len(factors) + 1)


def _glass_blur(pixels: torch.Tensor, glass: tuple[float, float, float], seeds: Sequence[int]) -> torch.Tensor:
    """Ribbed glass: blur, a random displacement of every pixel within a square, so many times, and blur again.

    The three numbers: standard deviation of the blur and half the square, both in px at side 224, and the repetitions.
    """
    sigma, reach, times = glass
    rows, columns = drawing.centres(pixels)
    height, width = pixels.shape[2:]
    moves = scaled(reach, pixels) * (2.0 * uniform(seeds, int(times), 2, 1, height, width).to(pixels.device) - 1.0)
    image = gaussian_blur(pixels, scaled(sigma, pixels))
    for turn in range(int(times)):
        image = drawing.sampled_at(image, rows + moves[:, turn, 0], columns + moves[:, turn, 1])
    return gaussian_blur(image, scaled(sigma, pixels))


_ZOOMS = ((1.10, 0.01), (1.15, 0.01), (1.20, 0.02), (1.25, 0.02), (1.30, 0.03))

# fmt: off
KINDS = (
    Corruption("fog", "Fog", "brightness of the fog", "of full range", "xvision, after ImageNet-C",
               {"natural": (1.0, 1.5, 2.0, 2.5, 3.5)}, _fog),
    Corruption("frost", "Frost on the pane", "opacity of the ice", "share", "xvision, after ImageNet-C",
               {"natural": (0.25, 0.4, 0.55, 0.7, 0.85)}, _frost),
    Corruption("snow", "Snowfall", "mean, grain, fall, scene kept", "px at side 224, shares", "xvision, after ImageNet-C",
               {"natural": ((-0.05, 3.0, 8.0, 0.9), (0.02, 3.0, 10.0, 0.85), (0.08, 3.5, 12.0, 0.8),
                            (0.14, 4.0, 14.0, 0.75), (0.2, 4.0, 16.0, 0.65))}, _snow),
    Corruption("spatter", "Mud on the lens", "area covered", "share", "xvision, after ImageNet-C",
               {"natural": (0.04, 0.08, 0.14, 0.22, 0.32)}, _spatter),
    Corruption("zoom_blur", "Zoom during the exposure", "largest zoom, step", "factor", "ImageNet-C",
               dict.fromkeys(("natural", "dermoscopy"), _ZOOMS), _zoom_blur),
    Corruption("glass_blur", "Behind ribbed glass", "blur, displacement, repetitions", "px at side 224", "ImageNet-C",
               {"natural": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))}, _glass_blur),
)
# fmt: on
