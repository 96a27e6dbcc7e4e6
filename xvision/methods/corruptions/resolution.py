"""Fewer pixels or levels than the image had: compression, coarse grids."""

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


# fmt: off
KINDS = (
    Corruption("jpeg", "JPEG compression", "quality", "Pillow scale", "MedMNIST-C",
               {ANY: (50, 30, 15, 10, 7)}, _jpeg),
    # the shares of MedMNIST-C's "pixelate" for pneumonia; those for ChestMNIST leave a 64 px input six pixels
    Corruption("low_resolution", "Low resolution", "pixels kept per side", "share", "MedMNIST-C",
               {ANY: (0.8, 0.7, 0.6, 0.5, 0.4)}, _low_resolution),
)
# fmt: on
