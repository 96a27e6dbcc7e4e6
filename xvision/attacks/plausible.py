"""Changes that a viewer could take for the image's own: slow shading, and nothing outside the display window.

Shapes: n rows, B cases, C H W image, h w the frequencies kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from xvision.attacks.cases import Cases, Found, Seen, budget_of
from xvision.attacks.goals import LossName
from xvision.attacks.gradient_walks import TRAVEL, normalised, per_row, slope_of
from xvision.attacks.search import Rows, State, Walker, pursue
from xvision.errors import ConfigError, DataError


def dct_matrix(side: int) -> torch.Tensor:
    """(side, side) float64, orthonormal: row k is the k-th cosine of the discrete cosine transform (type II)."""
    steps = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(math.pi / side * (steps[None, :] + 0.5) * steps[:, None]) * math.sqrt(2.0 / side)
    waves[0] /= math.sqrt(2.0)
    return waves


@dataclass(frozen=True, eq=False)
class LowPass:
    """The images whose only frequencies are the lowest h × w, an orthonormal basis. rows: (h, H). columns: (w, W)."""

    rows: torch.Tensor
    columns: torch.Tensor

    @property
    def share(self) -> float:
        """Of all frequencies, those kept."""
        return len(self.rows) * len(self.columns) / (self.rows.shape[1] * self.columns.shape[1])

    def coefficients(self, images: torch.Tensor) -> torch.Tensor:
        """(…, H, W) to (…, h, w)."""
        return self.rows @ images @ self.columns.T

    def images(self, coefficients: torch.Tensor) -> torch.Tensor:
        """(…, h, w) to (…, H, W)."""
        return self.rows.T @ coefficients @ self.columns

    def projected(self, images: torch.Tensor) -> torch.Tensor:
        """(…, H, W): the nearest images of these frequencies alone."""
        return self.images(self.coefficients(images))


def low_pass(height: int, width: int, share: float, device: torch.device) -> LowPass:
    """About this share of the frequencies, the same share of the rows' as of the columns'; ConfigError outside (0, 1]."""
    if not 0 < share <= 1:
        raise ConfigError(f"found a share of {share} of the frequencies: give one above 0 and at most 1")
    kept = [dct_matrix(side)[: max(1, round(side * math.sqrt(share)))].float().to(device) for side in (height, width)]
    return LowPass(*kept)


@dataclass(frozen=True, eq=False)
class _Shading(Walker):
    """Projected ascent on the margin over the coefficients of a basis, steps as of PGD; what leaves the box is cut off."""

    basis: LowPass
    steps: int
    loss: LossName | None = "margin"

    def begin(self, rows: Rows) -> State:
        nothing = torch.zeros_like(self.basis.coefficients(rows.cases.pixels))
        return {"at": rows.cases.pixels.clone(), "coefficients": nothing}

    def learn(self, rows: Rows, state: State, seen: Seen) -> State:
        cases = rows.cases
        change = cases.pixels + self.basis.images(state["coefficients"])
        free = (change >= cases.low) & (change <= cases.high)
        slope = self.basis.coefficients(slope_of(seen, state["at"]) * free)
        ahead = state["coefficients"] + per_row(rows.radius * (TRAVEL / self.steps)) * normalised(slope)
        length = torch.linalg.vector_norm(ahead.flatten(1), dim=1)
        kept = ahead * per_row(torch.clamp(rows.radius / length.clamp(min=1e-30), max=1.0))
        return {"at": torch.clamp(cases.pixels + self.basis.images(kept), cases.low, cases.high), "coefficients": kept}


def low_frequency(cases: Cases, epsilons: Sequence[float], *, share: float, steps: int, width: int) -> Found:
    """The smallest change made of the lowest frequencies alone that breaks each case, in L2.

    epsilons: ascending, root mean square changes. share: of the frequencies (discrete cosine transform), the lowest rows and
    columns. Cut off at the box, a change may hold other frequencies; its size is measured after that. For a linear model of
    slope w the gain is the radius times the length of w's low frequencies where the box does not bind. Source: Guo et al.
    (2018) for the subspace. Cost: at most steps looks per epsilon tried.
    """
    if steps < 1:
        raise ConfigError(f"found {steps} steps for the low-frequency attack: it needs at least 1")
    height, across = cases.pixels.shape[2:]
    basis = low_pass(height, across, share, cases.pixels.device)
    return pursue(cases, budget_of("l2", epsilons, cases.pixels), _Shading(basis, steps), width=width)


def in_window(cases: Cases, may_change: torch.Tensor | None = None) -> Cases:
    """The cases with every value held that lies outside the display window: black (0) or white (1), so saturated.

    may_change: bool, (B, C, H, W) or what expands to it, pixels that may move where they are not saturated; all unless given.
    What is in the window may still move to black or white. Raises DataError for a mask that does not fit.
    """
    free = (cases.pixels > 0.0) & (cases.pixels < 1.0)
    if may_change is not None:
        try:
            free = free & may_change.to(free.device).expand(free.shape)
        except RuntimeError:
            raise DataError(
                f"found a mask of shape {tuple(may_change.shape)} for images of {tuple(free.shape)}: it must expand to them"
            ) from None
    return replace(
        cases, low=torch.where(free, cases.low, cases.pixels), high=torch.where(free, cases.high, cases.pixels)
    )
