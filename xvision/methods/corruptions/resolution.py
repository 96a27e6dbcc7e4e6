"""Fewer pixels or levels than the image had: compression, coarse grids, another resizing filter, fewer bits."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from xvision.methods.corruptions.kind import ANY, Corruption


def _jpeg(pixels: torch.Tensor, quality: float, seeds: Sequence[int]) -> torch.Tensor:
    """Pillow's own encoder and decoder at 8 bits; three channels as colour, any other number one by one."""
    levels = (255.0 * pixels).round().to(torch.uint8).cpu()
    if pixels.shape[1] == 3:
        decoded = np.stack([_jpeg_round_trip(case.numpy(), quality) for case in levels.permute(0, 2, 3, 1)])
        planes = torch.as_tensor(decoded).permute(0, 3, 1, 2)
    else:
        decoded = np.stack([[_jpeg_round_trip(channel.numpy(), quality) for channel in case] for case in levels])
        planes = torch.as_tensor(decoded)
    return planes.to(pixels.device, torch.float32) / 255.0


def _jpeg_round_trip(image: np.ndarray, quality: float) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=round(quality))
    return np.asarray(Image.open(buffer))


def _pixelate(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """Means over blocks, shown as blocks; a pixel that a block's edge cuts belongs to both in part."""
    rows, columns = (_blocks(length, share).to(pixels.device) for length in pixels.shape[2:])
    return rows.T @ (rows @ pixels @ columns.T) @ columns


def _blocks(length: int, share: float) -> torch.Tensor:
    """(blocks, length) float32: each pixel's share of each block, over the root of the block's length."""
    count = max(1, round(share * length))
    edges = np.arange(count + 1) * length / count
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1.0) - np.maximum(edges[:-1, None], pixel)
    return torch.as_tensor(np.clip(overlap, 0.0, None) * np.sqrt(count / length), dtype=torch.float32)


def _low_resolution(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """Shrunk with antialiasing and enlarged again; smooth, so that no phase of a pixel grid decides the damage."""
    shrunk = F.interpolate(pixels, _coarse(pixels, share), mode="bilinear", antialias=True)
    return F.interpolate(shrunk, pixels.shape[2:], mode="bilinear")


def _resampling(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """Shrunk between the two nearest pixels, as libraries do that resize without antialiasing, and enlarged again."""
    shrunk = F.interpolate(pixels, _coarse(pixels, share), mode="bilinear")
    return F.interpolate(shrunk, pixels.shape[2:], mode="bilinear")


def _coarse(pixels: torch.Tensor, share: float) -> tuple[int, int]:
    height, width = pixels.shape[2:]
    return max(1, round(share * height)), max(1, round(share * width))


def _bit_depth(pixels: torch.Tensor, bits: int, seeds: Sequence[int]) -> torch.Tensor:
    steps = float(2**bits - 1)
    return (steps * pixels).round() / steps


_COLOUR_CAMERA = (0.7, 0.5, 0.4, 0.3, 0.25)
_SOURCE = "MedMNIST-C; ImageNet-C for natural images"

# fmt: off
KINDS = (
    Corruption("jpeg", "JPEG compression", "quality", "Pillow scale", _SOURCE,
               {ANY: (50, 30, 15, 10, 7), "dermoscopy": (30, 20, 15, 10, 7), "fundus": (30, 25, 20, 10, 5),
                "natural": (25, 18, 15, 10, 7)}, _jpeg),
    # for X-ray the shares of pneumonia; those of ChestMNIST leave a 64 px input six pixels
    Corruption("pixelate", "Coarse pixels", "pixels kept per side", "share", _SOURCE,
               {ANY: (0.6, 0.5, 0.4, 0.3, 0.25), "xray": (0.8, 0.7, 0.6, 0.5, 0.4), "ct": (0.7, 0.6, 0.5, 0.4, 0.35),
                "ultrasound": (0.3, 0.25, 0.2, 0.15, 0.1), "dermoscopy": _COLOUR_CAMERA,
                "fundus": (0.8, 0.6, 0.5, 0.4, 0.35), "histology": (0.8, 0.6, 0.4, 0.3, 0.25)}, _pixelate),
    # the shares of "pixelate" in MedMNIST-C, in another way of resizing
    Corruption("low_resolution", "Low resolution", "pixels kept per side", "share", "MedMNIST-C, pneumonia",
               {ANY: (0.8, 0.7, 0.6, 0.5, 0.4)}, _low_resolution),
    Corruption("resampling", "Resized without antialiasing", "pixels kept per side", "share", "xvision",
               {ANY: (0.85, 0.7, 0.55, 0.45, 0.35)}, _resampling),
    Corruption("bit_depth", "Fewer grey levels", "bits", "per channel", "xvision", {ANY: (6, 5, 4, 3, 2)}, _bit_depth),
)
# fmt: on
