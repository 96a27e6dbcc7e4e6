"""What holds of the kinds for colour images, called by the test of each module; and images to try them on."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from xvision.methods.corruptions.kind import Corruption, Parameter


def scene(height: int = 64, width: int = 64, batch: int = 1, channels: int = 3) -> torch.Tensor:
    """Coloured textured images with bright and dark parts, all different."""
    y, x = np.mgrid[0:height, 0:width] / min(height, width)
    waves = [0.5 + 0.3 * np.sin(9 * x + 2 * c) * np.cos(7 * y + c) + 0.1 * np.sin(40 * x * y + c) for c in range(3)]
    noise = np.random.default_rng(0).normal(0.0, 0.02, (batch, 3, height, width))
    images = np.clip(np.stack(waves)[None] * np.linspace(1.0, 0.7, batch)[:, None, None, None] + noise, 0.02, 0.98)
    return torch.as_tensor(images[:, :channels], dtype=torch.float32)


def flat(colour: tuple[float, ...], height: int = 64, width: int = 64, batch: int = 1) -> torch.Tensor:
    return torch.tensor(colour).view(1, -1, 1, 1).expand(batch, -1, height, width).clone()


def kinds_by_name(kinds: tuple[Corruption, ...]) -> dict[str, Corruption]:
    return {kind.name: kind for kind in kinds}


def values_of(kind: Corruption) -> list[Any]:
    """All five values of every modality, for the modality listed first."""
    return list(next(iter(kind.severities.values())))


def severities_listed(kind: Corruption) -> list[tuple[Parameter, ...]]:
    return list(dict.fromkeys(kind.severities.values()))


def assert_neutral(kind: Corruption, neutral: Any, channels: int = 3) -> None:
    pixels = scene(40, 52, batch=2, channels=channels)
    torch.testing.assert_close(kind.apply(pixels, neutral, [1, 2]), pixels, rtol=0, atol=1e-5)


def assert_change_rises(kind: Corruption, side: int) -> None:
    """With the same draws in every case; with other draws at each severity, as ``corrupt`` makes them, on average."""
    pixels = scene(side, side, batch=8)
    for values in severities_listed(kind):
        for step in (0, 1000):
            changes = [torch.zeros(8)]
            for severity, value in enumerate(values):
                seeds = [case + step * severity for case in range(8)]
                after = kind.apply(pixels, value, seeds).clamp(0.0, 1.0)
                changes.append((after - pixels).square().flatten(1).mean(dim=1))
            for low, high in itertools.pairwise(changes):
                assert (low < high).all() if step == 0 else low.mean() < high.mean(), (kind.name, changes)


def assert_case_stands_alone(kind: Corruption) -> None:
    """Not the batch, not the order, not the global generator: the seed and nothing else; the input stays as it was."""
    pixels, seeds, value = scene(36, 44, batch=5), [11, 12, 13, 14, 15], values_of(kind)[2]
    before = pixels.clone()
    together = kind.apply(pixels, value, seeds)
    torch.manual_seed(5)
    turned = kind.apply(pixels.flip(0), value, seeds[::-1]).flip(0)
    alone = torch.cat([kind.apply(pixels[row : row + 1], value, seeds[row : row + 1]) for row in range(5)])
    torch.testing.assert_close(turned, together, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    assert torch.equal(pixels, before)


def draws_at_random(kind: Corruption) -> bool:
    pixels = scene(36, 44).expand(4, -1, -1, -1)
    together = kind.apply(pixels, values_of(kind)[2], [1, 2, 3, 4])
    return not all(torch.equal(together[0], other) for other in together[1:])


def assert_any_shape(kind: Corruption, height: int, width: int, channels: int, severity: int) -> None:
    """Bright, dark and binary images of any shape give finite pixels of that shape and type."""
    generator = torch.Generator().manual_seed(height * width)
    pixels = torch.rand((2, channels, height, width), generator=generator)
    pixels = torch.cat((pixels, pixels.round(), torch.zeros_like(pixels[:1]), torch.ones_like(pixels[:1])))
    after = kind.apply(pixels, values_of(kind)[severity - 1], list(range(len(pixels))))
    assert after.shape == pixels.shape
    assert after.dtype == torch.float32
    assert bool(after.isfinite().all())
