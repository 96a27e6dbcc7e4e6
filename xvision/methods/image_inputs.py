"""What may stand in an image's place, to see whether a decision rests on the image. Shapes: B batch, C channels, H W image, N cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from xvision.errors import ConfigError, DataError
from xvision.methods.randomness import case_generator, case_seed, require_keys


def blank(pixels: torch.Tensor, level: float) -> torch.Tensor:
    """(B, C, H, W) of one brightness."""
    return torch.full_like(pixels, level)


def patch_shuffled(pixels: torch.Tensor, keys: Sequence[str], *, grid: int, seed: int) -> torch.Tensor:
    """The image cut into ``grid`` × ``grid`` patches of equal size, in an order drawn for each case.

    Every brightness stays, its place does not; rows and columns that are left over where the side is no multiple stay where
    they are. Raises ConfigError for a grid that is finer than the pixels.
    """
    B, C, H, W = pixels.shape
    require_keys(keys, B)
    if not 2 <= grid <= min(H, W):
        raise ConfigError(f"found {grid} patches a side for images of {H} × {W}: give from 2 to {min(H, W)}")
    height, width = H // grid, W // grid
    inner = pixels[:, :, : grid * height, : grid * width]
    patches = inner.reshape(B, C, grid, height, grid, width).permute(0, 2, 4, 1, 3, 5).reshape(B, grid * grid, -1)
    orders = [
        torch.randperm(grid * grid, generator=case_generator(case_seed(seed, f"patches {grid}", key))) for key in keys
    ]
    order = torch.stack(orders).to(pixels.device)
    moved = torch.gather(patches, 1, order[:, :, None].expand_as(patches))
    shuffled = pixels.clone()
    shuffled[:, :, : grid * height, : grid * width] = (
        moved.reshape(B, grid, grid, C, height, width).permute(0, 3, 1, 4, 2, 5).reshape(inner.shape)
    )
    return shuffled


def border_only(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Black but for a border, ``share`` of the shorter side wide."""
    return pixels * ~_centre(pixels, share)


def centre_only(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Black in the border that ``border_only`` keeps."""
    return pixels * _centre(pixels, share)


def _centre(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """(H, W) bool, what lies inside the border."""
    if not 0 < share < 0.5:
        raise ConfigError(f"found a border of {share} of the side: give a share above 0 and below 0.5")
    H, W = pixels.shape[2:]
    wide = max(1, round(share * min(H, W)))
    inside = torch.zeros(H, W, dtype=torch.bool, device=pixels.device)
    inside[wide : H - wide, wide : W - wide] = True
    return inside


def partners(keys: Sequence[str], patients: np.ndarray, labels: np.ndarray, *, kind: str, seed: int) -> np.ndarray:
    """(N,) the place of another case, of another patient, for each; -1 where there is none.

    kind: "any", "same class" or "other class". Which one is drawn depends on the case, the seed and who else is there, not on
    their order.
    """
    if kind not in ("any", "same class", "other class"):
        raise DataError(f"found the kind {kind!r} of partner: give any, same class or other class")
    require_keys(keys, len(patients))
    order = np.argsort(np.asarray(keys, dtype=str), kind="stable")
    found = np.full(len(keys), -1)
    for place, key in enumerate(keys):
        fits = patients[order] != patients[place]
        if kind != "any":
            fits &= (labels[order] == labels[place]) == (kind == "same class")
        if fits.any():
            drawn = np.random.default_rng(case_seed(seed, f"partner {kind}", key)).integers(int(fits.sum()))
            found[place] = order[np.flatnonzero(fits)[drawn]]
    return found
