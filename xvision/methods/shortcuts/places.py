"""What stands at the edge of an image, where no disease is: trivial figures and a coarse picture. Shapes: B C H W pixels."""

from __future__ import annotations

import numpy as np

from xvision.errors import ConfigError

CELLS = 16
"""Fields a side of the coarse picture."""
CORNERS = ("upper left corner", "upper right corner", "lower left corner", "lower right corner")
_INK = 0.8
_CORNER = 0.2


def edge_statistics(pixels: np.ndarray, border: float) -> dict[str, np.ndarray]:
    """Mean grey and ink, the share of pixels of at least 0.8, of the border and of each corner (B,), on the mean of the channels.

    pixels: (B, C, H, W) in [0, 1]. border: its width as a share of the shorter side. A corner is a fifth of each side. These
    need no look at the anatomy, so a label that they tell can be had without it (as the dark images of cleanlab's checks).
    """
    if not 0 < border < 0.5:
        raise ConfigError(f"found a border of {border} of the side: give a share above 0 and below 0.5")
    grey = np.asarray(pixels, float).mean(axis=1)
    found = {}
    for name, place in edge_places(grey.shape[1], grey.shape[2], border).items():
        found[f"{name}, mean grey"] = grey[:, place].mean(axis=1)
        found[f"{name}, ink"] = (grey[:, place] >= _INK).mean(axis=1)
    return found


def edge_places(height: int, width: int, border: float) -> dict[str, np.ndarray]:
    """(H, W) bool by name: the border and the four corners."""
    frame = np.ones((height, width), bool)
    wide = max(1, round(border * min(height, width)))
    frame[wide : height - wide, wide : width - wide] = False
    found = {"border": frame}
    rows, columns = max(1, round(_CORNER * height)), max(1, round(_CORNER * width))
    for name in CORNERS:
        place = np.zeros((height, width), bool)
        down = slice(None, rows) if "upper" in name else slice(height - rows, None)
        across = slice(None, columns) if "left" in name else slice(width - columns, None)
        place[down, across] = True
        found[name] = place
    return found


def coarse(pixels: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """(B, cells, cells) mean grey of fields of about equal size; fields may share a pixel where the side is no multiple."""
    grey = np.asarray(pixels, float).mean(axis=1)
    down, across = (_fields(side, cells) for side in grey.shape[1:])
    return np.asarray(down @ grey @ across.T)


def _fields(side: int, cells: int) -> np.ndarray:
    """(cells, side) weights whose rows add up to 1."""
    edges = np.arange(cells + 1) * side / cells
    rows = np.zeros((cells, side))
    for row in range(cells):
        first, last = int(edges[row]), max(int(np.ceil(edges[row + 1])), int(edges[row]) + 1)
        rows[row, first:last] = 1 / (last - first)
    return rows


def ring(cells: int, share: float) -> np.ndarray:
    """(cells, cells) bool, the fields whose middle is nearer to the edge than ``share`` of the side."""
    middle = (np.arange(cells) + 0.5) / cells
    near = np.minimum(middle, 1 - middle) < share
    return np.asarray(near[:, None] | near[None, :])
