"""Images with one corruption at one severity."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xvision.errors import ConfigError, DataError
from xvision.methods.corruptions.registry import kind_of
from xvision.methods.randomness import case_seed, require_keys


def corrupt(
    pixels: torch.Tensor, kind: str, severity: int, keys: Sequence[str], *, seed: int, modality: str | None = None
) -> torch.Tensor:
    """The images with one corruption, float32 in [0, 1], (B, C, H, W); severity 0 returns them unchanged.

    Args:
        pixels: (B, C, H, W) in [0, 1].
        kind: a name in ``CORRUPTIONS``.
        severity: 0 to 5.
        keys: case ids; with ``seed``, kind and severity they fix each case's randomness.
        seed: of the audit.
        modality: whose parameter values are meant, see ``severities_of``.

    Raises:
        ConfigError: an unknown kind or severity, or a kind that makes no sense for the modality.
        DataError: pixels outside [0, 1], a wrong shape or number of keys.
    """
    corruption = kind_of(kind)
    if not 0 <= severity <= 5:
        raise ConfigError(f"found severity {severity} of {kind}: it must be from 0 (unchanged) to 5")
    values = corruption.values(modality)
    _require_images(pixels)
    require_keys(keys, len(pixels))
    images = pixels.float()
    if severity == 0:
        return images
    drawn = severity if corruption.graded(modality) else 1  # all or nothing: the same image at every severity
    seeds = [case_seed(seed, f"{kind}/{drawn}", key) for key in keys]
    corrupted = corruption.apply(images, values[severity - 1], seeds)
    if corrupted.shape != images.shape:
        raise DataError(f"the corruption {kind} returned {tuple(corrupted.shape)} for pixels {tuple(images.shape)}")
    return corrupted.clamp(0.0, 1.0)


def _require_images(pixels: torch.Tensor) -> None:
    if pixels.ndim != 4 or len(pixels) == 0:
        raise DataError(
            f"found pixels of shape {tuple(pixels.shape)}: they must be (B, C, H, W) with at least one image"
        )
    low, high = (bound.item() for bound in torch.aminmax(pixels))
    if not (low >= 0.0 and high <= 1.0):
        raise DataError(f"found pixels from {low:.4g} to {high:.4g}: they must be finite and in [0, 1]")
