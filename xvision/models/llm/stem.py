"""From pixels to tokens: patches through a stem, and where each of them lies in the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import nn

from xvision.models.llm.config import Stem


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position: unlike norms over the image, it carries nothing across patches."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return super().forward(maps.movedim(1, -1)).movedim(-1, 1)


class PatchStem(nn.Module):
    """Pixels (B, C, H, W) to image tokens (B, P, D), row by row.

    "linear" is one matrix per patch; "conv" halves the image log2(patch) times, which learns small local structure in
    far fewer steps (Xiao et al., 2021). Its 4 × 4 filters keep each token centred on its patch; it sees one patch width
    less a pixel beyond.
    """

    def __init__(self, channels: int, patch: int, width: int, kind: Stem) -> None:
        super().__init__()
        if kind == "linear":
            self.project = nn.Sequential(nn.Conv2d(channels, width, patch, stride=patch))
        else:
            halvings = patch.bit_length() - 1
            widths = [channels, *(max(8, width >> (halvings - 1 - step)) for step in range(halvings))]
            self.project = nn.Sequential(*_halvings(widths))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.norm(self.project(pixels).flatten(2).transpose(1, 2))
        return tokens


def _halvings(widths: Sequence[int]) -> Iterator[nn.Module]:
    for number, (before, after) in enumerate(pairwise(widths)):
        if number:
            yield ChannelNorm(before)
            yield nn.GELU()
        yield nn.Conv2d(before, after, 4, stride=2, padding=1)


class GridPositions(nn.Module):
    """Adds a learned row and a learned column vector to each image token: raster order alone is not two-dimensional."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.row = nn.Embedding(side, width)
        self.column = nn.Embedding(side, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        grid = self.row.weight[:, None] + self.column.weight[None, :]
        return tokens + grid.reshape(self.side**2, -1)
