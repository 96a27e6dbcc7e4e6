"""Marks that go with a level of a column: where they are, and images with and without them. Shapes: N cases, G fields a side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from scipy.stats import binomtest

from xvision.errors import ConfigError
from xvision.methods.randomness import case_seed

_LARGEST = 0.1
"""Share of the image that counts as a local mark; what differs over more is narrowed to its strongest place."""
_TRIES = 8
"""Places that the placebo is chosen from."""


class Box(NamedTuple):
    """Edges as shares of the width and height."""

    left: float
    top: float
    right: float
    bottom: float

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom (exclusive) pixel; at least one pixel."""
        left, top = min(int(self.left * width), width - 1), min(int(self.top * height), height - 1)
        right, bottom = (
            int(np.ceil(share * side - 1e-9)) for share, side in ((self.right, width), (self.bottom, height))
        )
        return left, top, max(right, left + 1), max(bottom, top + 1)

    def __str__(self) -> str:
        return f"{self.left:.0%} to {self.right:.0%} from the left, {self.top:.0%} to {self.bottom:.0%} from the top".replace(
            "%", " %"
        )


def checked_box(edges: Sequence[float]) -> Box:
    """A box from what a plan says; ConfigError unless 0 <= left < right <= 1 and 0 <= top < bottom <= 1."""
    if len(edges) == 4:
        box = Box(*map(float, edges))
        if 0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1:
            return box
    raise ConfigError(
        f"analysis.shortcuts.boxes: found {list(edges)}; give [left, top, right, bottom] as shares of the sides, from 0 to 1."
    )


class Found(NamedTuple):
    """Where carriers differ most from others, whether they are brighter there, and how often chance does as much (p)."""

    box: Box
    brighter: bool
    p: float


def differences(fields: np.ndarray, carriers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(R, G, G) correlation × √N between each field and who carries the level, at the same label.

    fields: (N, G, G). carriers: (R, N) bool, several assignments at once. labels: (N,).
    """
    _, codes = np.unique(labels, return_inverse=True)
    same = np.eye(int(codes.max()) + 1)[codes]
    sizes = same.sum(axis=0)
    flat = fields.reshape(len(fields), -1)
    flat = flat - same @ ((same.T @ flat) / sizes[:, None])
    members = carriers.astype(float)
    members = members - ((members @ same) / sizes) @ same.T
    scale = np.linalg.norm(members, axis=1)[:, None] * np.linalg.norm(flat, axis=0)
    product = members @ flat
    found = np.sqrt(len(fields)) * np.divide(product, scale, out=np.zeros_like(product), where=scale > 1e-9)
    return np.asarray(found.reshape(-1, *fields.shape[1:]))


def find_cue(
    fields: np.ndarray,
    carriers: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    allowed: np.ndarray,
    *,
    rng: np.random.Generator,
    permutations: int = 499,
) -> Found | None:
    """Where the mean images of carriers and others differ most at the same label; None where there is nobody to compare.

    fields: (N, G, G), see :func:`~xvision.methods.shortcuts.places.coarse`. carriers: (N,) bool. labels, patients: (N,). allowed:
    (G, G) bool, fields in which the strongest place is looked for. One image of each patient counts. p: who carries is permuted
    within labels, and the largest difference over all allowed fields compared. The box holds the fields that hang together with
    the strongest and differ by more than chance, and one more around.
    """
    first = np.sort(np.unique(patients, return_index=True)[1])
    fields, own, truth = fields[first], carriers[first], labels[first]
    if not allowed.any() or min(own.sum(), (~own).sum()) < 5:
        return None
    signed = differences(fields, own[None], truth)[0]
    found = np.abs(signed)
    drawn = np.repeat(own[None], permutations, axis=0)
    for label in np.unique(truth):
        drawn[:, truth == label] = rng.permuted(drawn[:, truth == label], axis=1)
    chance = np.abs(differences(fields, drawn, truth))[:, allowed].max(axis=1)
    peak = np.unravel_index(np.argmax(np.where(allowed, found, -1.0)), found.shape)
    p = (1 + int((chance >= found[peak] - 1e-9).sum())) / (1 + permutations)
    together, _ = ndimage.label(found >= min(np.quantile(chance, 0.95), found[peak]), np.ones((3, 3)))
    box = _around(together == together[peak], (int(peak[0]), int(peak[1])))
    return Found(box, bool(signed[peak] > 0), p)


def _around(chosen: np.ndarray, peak: tuple[int, int]) -> Box:
    rows, columns = np.flatnonzero(chosen.any(axis=1)), np.flatnonzero(chosen.any(axis=0))
    side = len(chosen)
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    if (bottom - top) * (right - left) > _LARGEST * side**2:
        top, left = peak
        bottom, right = top + 1, left + 1
    top, left, bottom, right = max(top - 1, 0), max(left - 1, 0), min(bottom + 1, side), min(right + 1, side)
    return Box(float(left / side), float(top / side), float(right / side), float(bottom / side))


def donors(
    keys: np.ndarray, patients: np.ndarray, labels: np.ndarray, carriers: np.ndarray, known: np.ndarray, *, seed: int
) -> np.ndarray:
    """(N,) place of a case of another patient on the other side, for each known case; -1 where there is none.

    keys, patients, labels: (N,). carriers, known: (N,) bool. A donor of the same label is taken where there is one, so that no disease
    is put in or taken out with the mark. The draw depends on the case, the seed and who else is there, not on their order.
    """
    order = np.argsort(keys, kind="stable")
    found = np.full(len(keys), -1)
    for place in np.flatnonzero(known):
        fits = known[order] & (carriers[order] != carriers[place]) & (patients[order] != patients[place])
        alike = fits & (labels[order] == labels[place])
        pool = np.flatnonzero(alike if alike.any() else fits)
        if len(pool):
            draw = np.random.default_rng(case_seed(seed, "donor", str(keys[place])))
            found[place] = order[pool[draw.integers(len(pool))]]
    return found


class Edited(NamedTuple):
    """cue, placebo: (B, C, H, W). energy: (B,) squared change of the placebo over that of the cue."""

    cue: torch.Tensor
    placebo: torch.Tensor
    energy: np.ndarray


def edited(pixels: torch.Tensor, given: torch.Tensor, keys: Sequence[str], box: Box, *, seed: int) -> Edited:
    """Images with the donors' content inside the box, and with the donors' content at another place of the same size.

    pixels, given: (B, C, H, W), the images and their donors. The placebo's place is the one of eight drawn for each case, apart from
    the box where possible, whose change is nearest to the cue's in energy: it shows what any such change does to the score.
    """
    H, W = pixels.shape[2:]
    left, top, right, bottom = box.pixels(H, W)
    cue, placebo, energy = pixels.clone(), pixels.clone(), np.ones(len(pixels))
    cue[:, :, top:bottom, left:right] = given[:, :, top:bottom, left:right]
    change = ((given - pixels).double() ** 2).sum(dim=1).cpu().numpy()
    for row, key in enumerate(keys):
        wanted = change[row, top:bottom, left:right].sum()
        places = _elsewhere(H, W, (left, top, right, bottom), case_seed(seed, "placebo", key))
        sizes = np.array([change[row, y : y + bottom - top, x : x + right - left].sum() for x, y in places])
        best = int(np.argmin(np.abs(np.log((sizes + 1e-9) / (wanted + 1e-9)))))
        x, y = places[best]
        placebo[row, :, y : y + bottom - top, x : x + right - left] = given[
            row, :, y : y + bottom - top, x : x + right - left
        ]
        energy[row] = (sizes[best] + 1e-9) / (wanted + 1e-9)
    return Edited(cue, placebo, energy)


def _elsewhere(height: int, width: int, box: tuple[int, int, int, int], seed: int) -> list[tuple[int, int]]:
    """Left and top of up to eight places of the box's size that do not touch it; the farthest one where there is none."""
    left, top, right, bottom = box
    across, down = width - (right - left), height - (bottom - top)
    drawn = np.random.default_rng(seed).integers([across + 1, down + 1], size=(200, 2))
    apart = (
        (drawn[:, 0] >= right)
        | (drawn[:, 0] <= left - (right - left))
        | (drawn[:, 1] >= bottom)
        | (drawn[:, 1] <= top - (bottom - top))
    )
    kept = [(int(x), int(y)) for x, y in drawn[apart][:_TRIES]]
    return kept or [(across if left < across / 2 else 0, down if top < down / 2 else 0)]


def mcnemar(first: np.ndarray, second: np.ndarray, patients: np.ndarray) -> tuple[float | None, int, int]:
    """Exact two-sided p-value that two outcomes of the same cases (N,) are equally frequent, and the two discordant counts.

    One case of each patient counts, the first. None where there is no case.
    """
    kept = np.unique(patients, return_index=True)[1]
    if not len(kept):
        return None, 0, 0
    one, other = first[kept].astype(bool), second[kept].astype(bool)
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return (float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0), gained, lost
