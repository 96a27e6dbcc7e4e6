"""Images that a model was not made for, made from those it was. Shapes: B batch, C channels, H W image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from xvision.methods.image_inputs import blank, patch_shuffled
from xvision.methods.randomness import case_generator, case_seed, require_keys

Make = Callable[[torch.Tensor, Sequence[str], int], torch.Tensor]
"""Pixels (B, C, H, W) in [0, 1], a key for each and a seed, to pixels of the same shape."""
_GRID = 4


@dataclass(frozen=True)
class StandIn:
    """What stands in an image's place. fixed: the same picture for every case. upright: needs images that have a top."""

    name: str
    title: str
    make: Make
    fixed: bool = False
    upright: bool = False


def _noise(pixels: torch.Tensor, keys: Sequence[str], seed: int) -> torch.Tensor:
    require_keys(keys, len(pixels))
    drawn = [torch.rand(pixels.shape[1:], generator=case_generator(case_seed(seed, "noise", key))) for key in keys]
    return torch.stack(drawn).to(pixels)


def _shuffled(pixels: torch.Tensor, keys: Sequence[str], seed: int) -> torch.Tensor:
    grid = min(_GRID, *pixels.shape[2:])
    return patch_shuffled(pixels, keys, grid=grid, seed=seed)


_ALL = (
    StandIn("black", "black image", lambda pixels, keys, seed: blank(pixels, 0.0), fixed=True),
    StandIn("white", "white image", lambda pixels, keys, seed: blank(pixels, 1.0), fixed=True),
    StandIn("grey", "mid-grey image", lambda pixels, keys, seed: blank(pixels, 0.5), fixed=True),
    StandIn("noise", "uniform noise", _noise),
    StandIn("patch_shuffled", "patches shuffled", _shuffled),
    StandIn("inverted", "brightness inverted", lambda pixels, keys, seed: 1.0 - pixels),
    StandIn("upside_down", "upside down", lambda pixels, keys, seed: pixels.flip(2), upright=True),
)
STAND_INS: Mapping[str, StandIn] = {each.name: each for each in _ALL}
