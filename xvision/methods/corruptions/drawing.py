"""What the kinds that lie over an image are drawn with: places, lines, discs and fractal noise.

Lengths are in pixels of the image, places (row, column) in pixels from the upper left corner, the first pixel's centre at
(0.5, 0.5). A cover is the share of each pixel that a shape takes, (B, 1, H, W) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from xvision.methods.corruptions.draws import uniform

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the grey of ITU-R BT.601, which Pillow uses too."""


def centres(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row (1, 1, H, 1) and column (1, 1, 1, W) of each pixel's centre."""
    height, width = pixels.shape[2:]
    rows = torch.arange(height, dtype=pixels.dtype, device=pixels.device) + 0.5
    columns = torch.arange(width, dtype=pixels.dtype, device=pixels.device) + 0.5
    return rows.view(1, 1, height, 1), columns.view(1, 1, 1, width)


def tint(pixels: torch.Tensor, colour: tuple[float, float, float]) -> torch.Tensor:
    """A colour (1, C, 1, 1) for three channels, and its luma for any other number of them."""
    values = colour if pixels.shape[1] == 3 else (luma_of(colour),) * pixels.shape[1]
    return pixels.new_tensor(values).view(1, -1, 1, 1)


def luma_of(colour: tuple[float, float, float]) -> float:
    return sum(share * value for share, value in zip(LUMA, colour, strict=True))


def painted(pixels: torch.Tensor, cover: torch.Tensor, colour: tuple[float, float, float]) -> torch.Tensor:
    """The images with a colour where ``cover`` is 1, unchanged where it is 0."""
    return pixels + cover * (tint(pixels, colour) - pixels)


def per_case(values: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """(B,) or (B, n) to (B, n, 1, 1) on the device of the pixels."""
    return values.to(pixels.device, pixels.dtype).reshape(len(values), -1, 1, 1)


def band(distance: torch.Tensor, width: float | torch.Tensor) -> torch.Tensor:
    """How much of a pixel lies within half a ``width`` of a line at ``distance`` from its centre; exact along an axis."""
    half = width / 2.0
    gap = distance.abs()
    return ((gap + 0.5).clamp(max=half) - (gap - 0.5).clamp(min=-half)).clamp(0.0, 1.0)


def directed(pixels: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Distance of each pixel from the image's centre along a direction per case, (B, 1, H, W); ``turn`` (B,) in [0, 1)
    is its angle from the columns' axis in full turns."""
    rows, columns = centres(pixels)
    height, width = pixels.shape[2:]
    angle = per_case(2.0 * math.pi * turn, pixels)
    return (columns - width / 2.0) * angle.cos() + (rows - height / 2.0) * angle.sin()


def radius(pixels: torch.Tensor) -> torch.Tensor:
    """Distance of each pixel's centre from the image's centre, (1, 1, H, W)."""
    rows, columns = centres(pixels)
    height, width = pixels.shape[2:]
    return torch.hypot(rows - height / 2.0, columns - width / 2.0)


def strokes(
    pixels: torch.Tensor,
    start: torch.Tensor,
    turn: torch.Tensor,
    length: torch.Tensor,
    bend: torch.Tensor,
    width: float,
) -> torch.Tensor:
    """Cover of bent lines, the thickest where they cross.

    Args:
        start: (B, n, 2) row and column where each begins.
        turn: (B, n) direction of its chord from the columns' axis, in full turns.
        length: (B, n) of the chord.
        bend: (B, n) height of the arc over its chord, in lengths.
        width: of every line.
    """
    rows, columns = centres(pixels)
    cover = pixels.new_zeros((len(pixels), 1, *pixels.shape[2:]))
    angle = 2.0 * math.pi * turn
    cosine, sine = angle.cos(), angle.sin()
    for line in range(turn.shape[1]):
        across = per_case(cosine[:, line], pixels)
        down = per_case(sine[:, line], pixels)
        from_row = rows - per_case(start[:, line, 0], pixels)
        from_column = columns - per_case(start[:, line, 1], pixels)
        along = from_column * across + from_row * down
        aside = from_row * across - from_column * down
        chord = per_case(length[:, line], pixels)
        rise = 4.0 * per_case(bend[:, line], pixels)
        within = torch.minimum(along.clamp(min=0.0), chord)
        slope = rise * (chord - 2.0 * within) / chord
        beside = (aside - rise * within * (chord - within) / chord) / torch.sqrt(1.0 + slope.square())
        distance = (beside.square() + (along - within).square()).sqrt()  # hypot is several times slower
        cover = torch.maximum(cover, band(distance, width))
    return cover


def nearest_place(pixels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Distance of each pixel to the nearest of a case's ``places`` (B, n, 2), (B, 1, H, W); infinite without any."""
    rows, columns = centres(pixels)
    down = (rows - per_case(places[..., 0], pixels)).square()
    across = (columns - per_case(places[..., 1], pixels)).square()
    nearest = pixels.new_full((len(pixels), 1, *pixels.shape[2:]), math.inf)
    for place in range(places.shape[1]):
        nearest = torch.minimum(nearest, down[:, place : place + 1] + across[:, place : place + 1])
    return nearest.sqrt()


def anywhere(pixels: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Shares (B, n, 2) of height and width to places in pixels."""
    return shares * torch.tensor(pixels.shape[2:], dtype=shares.dtype)


def plasma(pixels: torch.Tensor, decay: float, seeds: Sequence[int]) -> torch.Tensor:
    """Fractal noise from 0 to 1 by midpoint displacement (diamond and square steps on a torus), (B, 1, H, W).

    Every halving of the grid divides the displacement by ``decay``: the smaller it is, the rougher the noise. Drawn on
    the next power of two above the longer side and resized to it, so that the largest structure scales with the image.
    """
    height, width = pixels.shape[2:]
    longer = max(height, width)
    size = 1 << max(1, math.ceil(math.log2(longer)))
    draws = 2.0 * uniform(seeds, size * size).to(pixels.device) - 1.0
    grid = draws.new_zeros((len(seeds), 1, 1))
    used, wobble = 0, 1.0
    while grid.shape[1] < size:
        cells = grid.shape[1]
        first = draws[:, used : used + cells**2].view(-1, cells, cells)
        second = draws[:, used + cells**2 : used + 3 * cells**2].view(-1, 2, cells, cells)
        used += 3 * cells**2
        grid = _halved(grid, wobble * first, wobble * second)
        wobble /= decay
    low, high = grid.amin(dim=(1, 2), keepdim=True), grid.amax(dim=(1, 2), keepdim=True)
    noise = ((grid - low) / (high - low)).unsqueeze(1)
    if size != longer:
        noise = F.interpolate(noise, (longer, longer), mode="bilinear")
    return noise[:, :, :height, :width]


def _halved(grid: torch.Tensor, squares: torch.Tensor, diamonds: torch.Tensor) -> torch.Tensor:
    """A grid (B, n, n) on a torus at twice the resolution: mean of four neighbours plus a displacement."""
    batch, cells, _ = grid.shape
    right, below = grid.roll(-1, 2), grid.roll(-1, 1)
    middle = (grid + right + below + right.roll(-1, 1)) / 4.0 + squares
    top = (grid + right + middle + middle.roll(1, 1)) / 4.0 + diamonds[:, 0]
    left = (grid + below + middle + middle.roll(1, 2)) / 4.0 + diamonds[:, 1]
    upper = torch.stack((grid, top), dim=3).view(batch, cells, 2 * cells)
    lower = torch.stack((left, middle), dim=3).view(batch, cells, 2 * cells)
    return torch.stack((upper, lower), dim=2).view(batch, 2 * cells, 2 * cells)


def sampled_at(pixels: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The images at other places, linear between pixel centres, the edge pixels repeated; each (B or 1, 1, H, W)."""
    batch, _, height, width = pixels.shape
    shape = (batch, 1, height, width)
    across, down = (2.0 * columns / width - 1.0).expand(shape), (2.0 * rows / height - 1.0).expand(shape)
    grid = torch.stack((across, down), dim=-1)[:, 0]
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def absorbed(pixels: torch.Tensor, cover: torch.Tensor, colour: tuple[float, float, float]) -> torch.Tensor:
    """The images through a filter that lets ``colour`` of white light pass where ``cover`` is 1."""
    return pixels * (1.0 - cover * (1.0 - tint(pixels, colour)))
