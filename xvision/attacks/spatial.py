"""Rotations, shifts and changes of scale that a patient or a technician could cause. Shapes: B cases, C H W image, F families.

A declared grid is tried, mildest first, and a case leaves a family at the first transformation that breaks it (Engstrom
et al. 2019: the worst case over a grid finds more than gradients do here, and needs none). Whatever moves into view beyond the
image repeats its border; between pixels the value is bilinear. What is not broken by the grid may be broken between its points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from xvision.attacks.cases import Cases
from xvision.errors import ConfigError

FAMILIES = ("rotation", "shift", "scale", "together")
"""One parameter alone, or all of them; what one alone does counts as together, too."""
NONE = -1
"""In ``Spatial.smallest``: nothing tried broke the case."""


class Transformation(NamedTuple):
    """rotation: degrees, counter-clockwise, about the centre. right, down: shifts as shares of width and height. scale: above
    1 is larger. severity: the largest rank, from 1, that one of its parameters has among the grid's magnitudes; 0: unchanged.
    """

    rotation: float = 0.0
    right: float = 0.0
    down: float = 0.0
    scale: float = 1.0
    severity: int = 0

    @property
    def family(self) -> str:
        changed = [self.rotation != 0.0, (self.right, self.down) != (0.0, 0.0), self.scale != 1.0]
        return "together" if sum(changed) > 1 else FAMILIES[changed.index(True)] if any(changed) else "unchanged"

    @property
    def displacement(self) -> float:
        """Root mean square distance that the points of a square image move, as a share of its side."""
        turned = self.scale**2 - 2 * self.scale * math.cos(math.radians(self.rotation)) + 1
        return math.sqrt(self.right**2 + self.down**2 + max(turned, 0.0) / 6)

    @property
    def words(self) -> str:
        """``rotated by 5°, shifted by 2 % right``."""
        parts = [f"rotated by {self.rotation:g}°"] if self.rotation else []
        sides = ((self.right, "right", "left"), (self.down, "down", "up"))
        parts += [
            f"shifted by {100 * abs(share):.3g} % {plus if share > 0 else minus}"
            for share, plus, minus in sides
            if share
        ]
        parts += [f"scaled to {self.scale:g}"] if self.scale != 1.0 else []
        return ", ".join(parts) or "unchanged"


@dataclass(frozen=True)
class Grid:
    """What is tried. rotations: degrees, in both directions. shifts: shares of the side, in both directions of both axes.
    scales: factors. combinations: how many joint changes are tried, spaced evenly from mild to severe within each severity;
    None: all of them. Raises ConfigError for a value that is no such change.
    """

    rotations: tuple[float, ...] = (5.0, 10.0, 15.0)
    shifts: tuple[float, ...] = (0.02, 0.04, 0.08)
    scales: tuple[float, ...] = (0.9, 0.95, 1.05, 1.1)
    combinations: int | None = None

    def __post_init__(self) -> None:
        if not all(0 < angle <= 180 for angle in self.rotations) or not all(0 < share < 1 for share in self.shifts):
            raise ConfigError(
                f"found the rotations {list(self.rotations)} and the shifts {list(self.shifts)}: give degrees above 0 and at"
                " most 180, and shares of the side above 0 and below 1"
            )
        if not all(factor > 0 and factor != 1 for factor in self.scales):
            raise ConfigError(f"found the scales {list(self.scales)}: give factors above 0 that are not 1")
        if not (self.rotations or self.shifts or self.scales) or (self.combinations or 0) < 0:
            raise ConfigError("found an empty grid or fewer than 0 combinations: give rotations, shifts or scales")

    @property
    def severities(self) -> int:
        """The highest severity of a transformation."""
        return max(len(set(map(abs, self.rotations))), len(self._sizes), len(set(self.shifts)))

    def words(self, family: str, severity: int) -> str:
        """What a family may do up to a severity: ``rotated by at most 5°``."""
        if family == "rotation":
            return f"rotated by at most {sorted(set(self.rotations))[:severity][-1]:g}°"
        if family == "shift":
            return f"shifted by at most {100 * sorted(set(self.shifts))[:severity][-1]:.3g} % along each axis"
        if family == "scale":
            return f"scaled by at most {100 * self._sizes[:severity][-1]:.3g} %"
        return f"rotated, shifted and scaled at once, each up to severity {severity}"

    @property
    def _sizes(self) -> list[float]:
        return sorted({round(abs(factor - 1.0), 9) for factor in self.scales})

    def transformations(self) -> tuple[Transformation, ...]:
        """Everything that is tried, mildest first: by severity, then by how far the points of the image move."""
        every = sorted(self._product(), key=lambda each: (each.severity, each.displacement, each))
        kept = set(self._joint(every))
        return tuple(each for each in every if each.family != "together" or each in kept)

    def _joint(self, every: Sequence[Transformation]) -> list[Transformation]:
        """The joint changes that are tried: of each severity equally many, unless it has fewer."""
        joint = [each for each in every if each.family == "together"]
        if self.combinations is None:
            return joint
        kept: list[Transformation] = []
        for severity in range(1, self.severities + 1):
            members = [each for each in joint if each.severity == severity]
            share = min(len(members), (self.combinations - len(kept)) // (self.severities + 1 - severity))
            kept += [members[place] for place in np.linspace(0, len(members) - 1, share).round().astype(int)]
        return kept

    def _product(self) -> list[Transformation]:
        angles, moves = sorted(set(self.rotations)), sorted(set(self.shifts))
        sizes, found = self._sizes, []
        signed = [0.0, *moves, *(-move for move in moves)]
        for rotation, right, down, scale in itertools.product(
            [0.0, *angles, *(-angle for angle in angles)], signed, signed, [1.0, *sorted(set(self.scales))]
        ):
            ranks = [
                angles.index(abs(rotation)) + 1 if rotation else 0,
                moves.index(abs(right)) + 1 if right else 0,
                moves.index(abs(down)) + 1 if down else 0,
                sizes.index(round(abs(scale - 1.0), 9)) + 1 if scale != 1.0 else 0,
            ]
            if any(ranks):
                found.append(Transformation(rotation, right, down, scale, max(ranks)))
        return found


class Spatial(NamedTuple):
    """transformations: tried, mildest first. smallest: (B, F) place of the mildest that broke each case, by ``FAMILIES``; NONE
    where none did. looks: (B,) images shown to the model for the case; unlike the rest it depends on the batch.
    """

    transformations: tuple[Transformation, ...]
    smallest: torch.Tensor
    looks: torch.Tensor

    @property
    def broken(self) -> torch.Tensor:
        """(B, F) bool."""
        return self.smallest != NONE

    @property
    def severity(self) -> torch.Tensor:
        """(B, F) int, the severity at which each case breaks; 0 where it does not."""
        ranks = torch.tensor([*(each.severity for each in self.transformations), 0])
        return ranks[self.smallest]

    def images(self, cases: Cases, family: str) -> torch.Tensor:
        """(B, C, H, W) the images under the mildest transformation of a family that breaks them, else unchanged."""
        places = self.smallest[:, FAMILIES.index(family)].tolist()
        return moved(
            cases.pixels, [Transformation() if place == NONE else self.transformations[place] for place in places]
        )


def spatial(cases: Cases, grid: Grid, *, width: int) -> Spatial:
    """The mildest transformation of each family that breaks each case; ``Cases.low`` and ``high`` do not bind here.

    width: images in one batch, which changes memory and speed only. Source: Engstrom et al. (2019), with bilinear
    interpolation and a repeated border. Cost per case: at most as many passes as the grid has transformations.
    """
    order = grid.transformations()
    nowhere = torch.full((len(cases),), len(order), dtype=torch.int64)
    looks = torch.zeros(len(cases), dtype=torch.int64)
    found: list[torch.Tensor] = []
    for family in FAMILIES:
        places = [place for place, each in enumerate(order) if each.family == family]
        limit = torch.stack(found).amin(dim=0) if family == "together" else nowhere
        found.append(_first_broken(cases, order, places, limit, looks, width))
    smallest = torch.stack(found, dim=1)
    return Spatial(order, smallest.masked_fill(smallest == len(order), NONE), looks)


def _first_broken(
    cases: Cases,
    order: Sequence[Transformation],
    places: Sequence[int],
    limit: torch.Tensor,
    looks: torch.Tensor,
    width: int,
) -> torch.Tensor:
    """(B,) the first of the places, below the limit (B,), whose transformation breaks each case, else the limit."""
    found, done = limit.clone(), 0
    while done < len(places):
        active = torch.nonzero(found > places[done]).squeeze(1)
        if len(active) == 0:
            break
        tried = places[done : done + max(1, width // len(active))]
        done += len(tried)
        for part in torch.split(active, max(1, width // len(tried))):
            rows = part.repeat_interleave(len(tried)).to(cases.pixels.device)
            images = moved(cases.pixels[rows], [order[place] for place in tried] * len(part))
            hits = cases.rows(rows).broken(images).view(len(part), len(tried)).cpu()
            first = torch.tensor(tried)[hits.int().argmax(dim=1)]
            found[part] = torch.where(hits.any(dim=1), torch.minimum(found[part], first), found[part])
            looks[part] += len(tried)
    return found


def moved(images: torch.Tensor, transformations: Sequence[Transformation]) -> torch.Tensor:
    """Images (n, C, H, W), each under its transformation: rotated and scaled about the centre, then shifted.

    An unchanged image is returned to the last bit. Interpolation is bilinear in float32, which also blurs a little; the border is
    repeated.
    """
    height, width = images.shape[2:]
    turns = torch.tensor([_inverse(each, height, width) for each in transformations], dtype=torch.float64)
    cells = turns.float().to(images.device)[:, :, :, None, None]
    down, right = ((2.0 * torch.arange(size, device=images.device) + 1.0) / size - 1.0 for size in (height, width))
    grid = cells[:, :, 0] * right[None, None, None, :] + cells[:, :, 1] * down[None, None, :, None] + cells[:, :, 2]
    sampled = F.grid_sample(
        images, grid.movedim(1, -1), mode="bilinear", padding_mode="border", align_corners=False
    ).clamp(0.0, 1.0)
    same = torch.tensor([each.family == "unchanged" for each in transformations], device=images.device)
    return torch.where(same[:, None, None, None], images, sampled)


def _inverse(change: Transformation, height: int, width: int) -> list[list[float]]:
    """(2, 3): from a point of the new image to the point of the old one, each axis from -1 to 1."""
    angle = math.radians(change.rotation)
    cosine, sine = math.cos(angle) / change.scale, math.sin(angle) / change.scale
    across, along = sine * height / width, sine * width / height
    right, down = 2.0 * change.right, 2.0 * change.down
    return [
        [cosine, -across, -cosine * right + across * down],
        [along, cosine, -along * right - cosine * down],
    ]
