"""What holds of every kind of corruption, checked on small soft-tissue phantoms."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from xvision.methods.corruptions.kind import Corruption, Parameter


def phantoms(count: int, height: int = 64, width: int = 64) -> torch.Tensor:
    """(count, 1, height, width) ellipses in air, with a bright rim, soft lumps and some texture."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    y, x = (y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5
    images = []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = 0.7 * ((x / 0.38) ** 2 + (y / 0.44) ** 2 < 1) - 0.25 * ((x / 0.33) ** 2 + (y / 0.39) ** 2 < 1)
        for _ in range(5):
            column, row, size, height_of = rng.uniform([-0.25, -0.25, 0.02, -0.3], [0.25, 0.25, 0.1, 0.3])
            image = image + height_of * np.exp(-((x - column) ** 2 + (y - row) ** 2) / 2 / size**2)
        images.append(np.clip(image + 0.02 * rng.normal(size=image.shape), 0.0, 1.0))
    return torch.as_tensor(np.stack(images), dtype=torch.float32).unsqueeze(1)


def values(kind: Corruption, modality: str, severity: int) -> Parameter:
    return kind.severities[modality][severity - 1]


def check_order_and_batch(kind: Corruption, modality: str) -> None:
    """A case's result does not depend on the cases beside it."""
    pixels, seeds, value = phantoms(6, 40, 56), [11, 24, 35, 46, 57, 68], values(kind, modality, 4)
    together = kind.apply(pixels, value, seeds)
    turned = kind.apply(pixels.flip(0), value, seeds[::-1]).flip(0)
    alone = torch.cat([kind.apply(pixels[case : case + 1], value, seeds[case : case + 1]) for case in range(6)])
    torch.testing.assert_close(turned, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)


def check_grey_channels(kind: Corruption, modality: str) -> None:
    """Three equal channels stay equal and are what one channel becomes; the input stays as it was."""
    pixels, seeds, value = phantoms(4, 40, 56), [1, 2, 3, 4], values(kind, modality, 4)
    grey = pixels.repeat(1, 3, 1, 1)
    before = grey.clone()
    torch.manual_seed(0)
    three = kind.apply(grey, value, seeds)
    torch.manual_seed(1)
    torch.testing.assert_close(three, kind.apply(pixels, value, seeds).expand_as(three), rtol=0, atol=1e-6)
    assert three.dtype == torch.float32
    assert torch.equal(grey, before)


def check_severities(kind: Corruption, modality: str, side: int) -> None:
    """The mean squared change rises with the severity, averaged over images and draws."""
    pixels = phantoms(24, side, side).repeat(2, 1, 1, 1)
    if modality == "ultrasound":
        pixels = 0.15 + 0.6 * pixels
    changes = []
    for severity in range(1, 6):
        changed = kind.apply(pixels, values(kind, modality, severity), range(1000 * severity, 1000 * severity + 48))
        changes.append(float((changed.clamp(0.0, 1.0) - pixels).square().mean()))
    assert changes[0] > 1e-5
    assert all(low < high for low, high in itertools.pairwise(changes)), changes


def check_draws(kind: Corruption, modality: str, drawn: bool) -> None:
    """What is drawn follows the case's seed and nothing else."""
    pixels = phantoms(1, 40, 56).repeat(8, 1, 1, 1)
    result = kind.apply(pixels, values(kind, modality, 4), range(20, 36, 2))
    others = [not torch.equal(result[0], other) for other in result[1:]]
    assert all(others) if drawn else not any(others)
    assert torch.equal(kind.apply(pixels, values(kind, modality, 4), [24] * 8)[5], result[2])
