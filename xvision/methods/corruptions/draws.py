"""Random numbers of each case from its own seed, on the CPU, so that a GPU run draws the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xvision.methods.randomness import case_generator


def uniform(seeds: Sequence[int], *shape: int) -> torch.Tensor:
    """(B, *shape) from [0, 1)."""
    return torch.stack([torch.rand(shape, generator=case_generator(seed)) for seed in seeds])


def normal(seeds: Sequence[int], *shape: int) -> torch.Tensor:
    """(B, *shape) of mean 0 and standard deviation 1."""
    return torch.stack([torch.randn(shape, generator=case_generator(seed)) for seed in seeds])


def is_grey(pixels: torch.Tensor) -> list[bool]:
    """(B,) Are a case's channels the same?"""
    if pixels.shape[1] == 1:
        return [True] * len(pixels)
    found: list[bool] = (pixels == pixels[:, :1]).flatten(1).all(dim=1).tolist()
    return found


def pixel_noise(pixels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Standard normal noise (B, C, H, W): one draw per pixel for all channels of a grey case, each its own in a colour one.

    On the device of the pixels.
    """
    channels, height, width = pixels.shape[1:]
    drawn = [
        torch.randn((1 if grey else channels, height, width), generator=case_generator(seed)).expand(channels, -1, -1)
        for seed, grey in zip(seeds, is_grey(pixels), strict=True)
    ]
    return torch.stack(drawn).to(pixels.device)
