"""Ways a chest X-ray goes wrong before it reaches the model, in five severities each.

Written on torch tensors, batched; every case draws from its own seed, so a result does not depend on the batch, the
order or the device. Noise is drawn once per pixel and added to all channels, because an X-ray is grey. Lengths are in
pixels at a side (the shorter one) of 224 and scale with the side, so that a severity means the same to the anatomy.
A severity is a setting, not a size of change: show it with the PSNR measured by ``psnr``.

Parameters from MedMNIST-C are those of Di Salvo et al. (2024), from ImageNet-C those of Hendrycks and Dietterich
(2019); the others were set here and no radiologist has graded them. Shapes: B batch, C channels, H W image.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from xvision.errors import ConfigError, DataError, nearest
from xvision.methods.filters import gaussian_blur
from xvision.methods.randomness import case_generator, case_seed, require_keys

REFERENCE_SIDE = 224

Apply = Callable[[torch.Tensor, float, Sequence[int]], torch.Tensor]


@dataclass(frozen=True)
class Corruption:
    """One way an image goes wrong.

    parameter and unit say what the five ``severities`` are, source who set them. ``apply`` takes pixels (B, C, H, W)
    in [0, 1], one parameter value and one seed per case, and returns pixels of the same shape, not yet clipped.
    """

    name: str
    title: str
    parameter: str
    unit: str
    source: str
    severities: tuple[float, float, float, float, float]
    apply: Apply


def corrupt(pixels: torch.Tensor, kind: str, severity: int, keys: Sequence[str], *, seed: int) -> torch.Tensor:
    """The images with one corruption, float32 in [0, 1], (B, C, H, W); severity 0 returns them unchanged.

    Args:
        pixels: (B, C, H, W) in [0, 1].
        kind: a name in ``CORRUPTIONS``.
        severity: 0 to 5.
        keys: case ids; with ``seed``, kind and severity they fix each case's randomness.
        seed: of the audit.

    Raises:
        ConfigError: an unknown kind or severity.
        DataError: pixels outside [0, 1], a wrong shape or number of keys.
    """
    if kind not in CORRUPTIONS:
        raise ConfigError(f"found the corruption {kind!r}. {nearest(kind, CORRUPTIONS)}")
    if not 0 <= severity <= 5:
        raise ConfigError(f"found severity {severity} of {kind}: it must be from 0 (unchanged) to 5")
    _require_images(pixels)
    require_keys(keys, len(pixels))
    images = pixels.float()
    if severity == 0:
        return images
    corruption = CORRUPTIONS[kind]
    seeds = [case_seed(seed, f"{kind}/{severity}", key) for key in keys]
    return corruption.apply(images, corruption.severities[severity - 1], seeds).clamp(0.0, 1.0)


def psnr(clean: torch.Tensor, corrupted: torch.Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio in dB per case, (B,) float64: -10 log10 of the mean squared change, peak 1.

    Smaller is a larger change; infinite where nothing changed. It counts pixels, not meaning: a small marker scores
    high and may still decide the prediction.
    """
    if clean.shape != corrupted.shape:
        raise DataError(f"found images of shape {tuple(clean.shape)} and {tuple(corrupted.shape)}: they must agree")
    error = (clean.double() - corrupted.double()).square().flatten(1).mean(dim=1).cpu().numpy()
    with np.errstate(divide="ignore"):
        decibel: np.ndarray = -10.0 * np.log10(error)
    return decibel


def _gaussian_noise(pixels: torch.Tensor, deviation: float, seeds: Sequence[int]) -> torch.Tensor:
    shape = (1, *pixels.shape[2:])
    noise = torch.stack([torch.randn(shape, generator=case_generator(seed)) for seed in seeds])
    return pixels + deviation * noise.to(pixels.device)


def _shot_noise(pixels: torch.Tensor, rate: float, seeds: Sequence[int]) -> torch.Tensor:
    """Counting noise of ``rate`` quanta at full brightness: variance x / rate at brightness x."""
    brightness = pixels.mean(dim=1, keepdim=True).cpu()
    counts = torch.stack(
        [
            torch.poisson(rate * case, generator=case_generator(seed))
            for case, seed in zip(brightness, seeds, strict=True)
        ]
    )
    return pixels + (counts / rate - brightness).to(pixels.device)


def _gaussian_blur(pixels: torch.Tensor, sigma: float, seeds: Sequence[int]) -> torch.Tensor:
    return gaussian_blur(pixels, sigma * _side(pixels) / REFERENCE_SIDE)


def _motion_blur(pixels: torch.Tensor, length: float, seeds: Sequence[int]) -> torch.Tensor:
    """Steady motion of ``length`` during the exposure, in a direction within 45 degrees of horizontal, per case."""
    batch, channels = pixels.shape[:2]
    scaled = length * _side(pixels) / REFERENCE_SIDE
    angles = [math.pi / 4.0 * (2.0 * torch.rand((), generator=case_generator(seed)).item() - 1.0) for seed in seeds]
    kernels = torch.stack([_line_kernel(scaled, angle) for angle in angles]).to(pixels.device)
    radius = kernels.shape[-1] // 2
    padded = F.pad(pixels, (radius,) * 4, mode="replicate")
    planes = padded.reshape(1, batch * channels, *padded.shape[2:])
    weights = kernels.unsqueeze(1).repeat_interleave(channels, dim=0)
    return F.conv2d(planes, weights, groups=batch * channels).reshape(pixels.shape)


def _line_kernel(length: float, angle: float) -> torch.Tensor:
    """Weights (S, S), summing to 1, of a line through the centre, spread over the four pixels around each point."""
    radius = max(1, math.ceil(length / 2.0) + 1)
    along = np.linspace(-length / 2.0, length / 2.0, 16 * radius + 1)
    rows, columns = radius + along * math.sin(angle), radius + along * math.cos(angle)
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (1.0 - np.abs(rows - top - down)) * (1.0 - np.abs(columns - left - right))
        np.add.at(kernel, (top + down, left + right), weight)
    return torch.as_tensor(kernel / kernel.sum(), dtype=torch.float32)


def _contrast_down(pixels: torch.Tensor, factor: float, seeds: Sequence[int]) -> torch.Tensor:
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return mean + factor * (pixels - mean)


def _gamma(pixels: torch.Tensor, gamma: float, seeds: Sequence[int]) -> torch.Tensor:
    return pixels.pow(gamma)


def _jpeg(pixels: torch.Tensor, quality: float, seeds: Sequence[int]) -> torch.Tensor:
    """Pillow's own encoder and decoder at 8 bits; three channels as colour, any other number one by one."""
    levels = (255.0 * pixels).round().to(torch.uint8).cpu()
    if pixels.shape[1] == 3:
        decoded = np.stack([_jpeg_round_trip(case.permute(1, 2, 0).numpy(), quality) for case in levels])
        planes = torch.as_tensor(decoded).permute(0, 3, 1, 2)
    else:
        planes = torch.as_tensor(
            np.stack([[_jpeg_round_trip(channel.numpy(), quality) for channel in case] for case in levels])
        )
    return planes.to(pixels.device, torch.float32) / 255.0


def _jpeg_round_trip(image: np.ndarray, quality: float) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=round(quality))
    return np.asarray(Image.open(buffer))


def _low_resolution(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """Shrunk with antialiasing and enlarged again; smooth, so that no phase of a pixel grid decides the damage."""
    height, width = pixels.shape[2:]
    coarse = (max(1, round(share * height)), max(1, round(share * width)))
    shrunk = F.interpolate(pixels, coarse, mode="bilinear", antialias=True)
    return F.interpolate(shrunk, (height, width), mode="bilinear")


_LETTER_R = (
    "####.",
    "#...#",
    "#...#",
    "####.",
    "#.#..",
    "#..#.",
    "#...#",
)


def _side_marker(pixels: torch.Tensor, height: float, seeds: Sequence[int]) -> torch.Tensor:
    """A white letter R in the upper left corner, where a lead marker names the patient's right side."""
    side = _side(pixels)
    rows = max(3, round(height * side))
    columns = max(2, round(rows * len(_LETTER_R[0]) / len(_LETTER_R)))
    letter = pixels.new_tensor([[float(cell == "#") for cell in line] for line in _LETTER_R])
    ink = F.interpolate(letter[None, None], (rows, columns), mode="area")[0, 0]
    margin = max(1, round(0.04 * side))
    marked = pixels.clone()
    corner = marked[:, :, margin : margin + rows, margin : margin + columns]
    corner += ink[: corner.shape[2], : corner.shape[3]] * (1.0 - corner)
    return marked


def _collimation(pixels: torch.Tensor, width: float, seeds: Sequence[int]) -> torch.Tensor:
    """The border blacked out on all four sides, as by the shutters of the X-ray tube; a border ends within a pixel."""
    thickness = width * _side(pixels)
    rows, columns = (_open_share(length, thickness) for length in pixels.shape[2:])
    return pixels * torch.outer(rows, columns).to(pixels.device)


def _open_share(length: int, thickness: float) -> torch.Tensor:
    """How much of each of ``length`` pixels in a line the shutters at both ends leave open."""
    pixel = torch.arange(length, dtype=torch.float32)
    return (torch.minimum(pixel + 1.0, length - pixel) - thickness).clamp(0.0, 1.0)


def _side(pixels: torch.Tensor) -> int:
    return min(pixels.shape[2:])


def _require_images(pixels: torch.Tensor) -> None:
    if pixels.ndim != 4 or len(pixels) == 0:
        raise DataError(
            f"found pixels of shape {tuple(pixels.shape)}: they must be (B, C, H, W) with at least one image"
        )
    low, high = pixels.min().item(), pixels.max().item()
    if not (low >= 0.0 and high <= 1.0):
        raise DataError(f"found pixels from {low:.4g} to {high:.4g}: they must be finite and in [0, 1]")


_MEDMNIST_C, _IMAGENET_C, _OWN = "MedMNIST-C, X-ray", "ImageNet-C", "xvision"

# name, title, parameter, unit, source, severities 1 to 5, function
# fmt: off
_KINDS = (
    Corruption("gaussian_noise", "Detector noise", "standard deviation", "of full range", _MEDMNIST_C,
               (0.04, 0.08, 0.12, 0.18, 0.26), _gaussian_noise),
    Corruption("shot_noise", "Low dose (photon noise)", "quanta at full brightness", "per pixel", _MEDMNIST_C,
               (60, 25, 18, 10, 5), _shot_noise),
    # the blur widths of MedMNIST-C vanish on small inputs
    Corruption("gaussian_blur", "Blur", "standard deviation", "px at side 224", _IMAGENET_C,
               (1, 2, 3, 4, 6), _gaussian_blur),
    Corruption("motion_blur", "Patient motion", "distance moved", "px at side 224", _OWN,
               (5, 10, 15, 20, 30), _motion_blur),
    Corruption("contrast_down", "Low contrast", "contrast kept", "share", _MEDMNIST_C,
               (0.9, 0.8, 0.7, 0.6, 0.4), _contrast_down),
    Corruption("gamma_up", "Darker exposure", "gamma", "exponent", _MEDMNIST_C,
               (1.1, 1.2, 1.3, 1.4, 1.6), _gamma),
    Corruption("gamma_down", "Brighter exposure", "gamma", "exponent", _MEDMNIST_C,
               (0.9, 0.8, 0.7, 0.6, 0.4), _gamma),
    Corruption("jpeg", "JPEG compression", "quality", "Pillow scale", _MEDMNIST_C,
               (50, 30, 15, 10, 7), _jpeg),
    # the shares of MedMNIST-C's "pixelate" for pneumonia; those for ChestMNIST leave a 64 px input six pixels
    Corruption("low_resolution", "Low resolution", "pixels kept per side", "share", _MEDMNIST_C,
               (0.8, 0.7, 0.6, 0.5, 0.4), _low_resolution),
    Corruption("burnt_in_text", "Side marker burnt in", "letter height", "of side", _OWN,
               (0.12, 0.15, 0.18, 0.22, 0.27), _side_marker),
    Corruption("collimation", "Collimator border", "border width", "of side", _OWN,
               (0.02, 0.04, 0.06, 0.09, 0.12), _collimation),
)
# fmt: on

CORRUPTIONS: Mapping[str, Corruption] = {kind.name: kind for kind in _KINDS}
