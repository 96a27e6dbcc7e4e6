"""What a kind of corruption is: a record that its module exports in ``KINDS`` and ``registry`` gathers.

Shapes: B batch, C channels (1 or 3), H W image; pixels float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from xvision.errors import ConfigError, nearest

MODALITIES = ("xray", "ct", "mr", "ultrasound", "dermoscopy", "histology", "fundus", "natural")
ANY = ""
"""Instead of a modality's name: the values for a modality that has none of its own, and for one that is not declared."""
REFERENCE_SIDE = 224
"""The shorter side, in pixels, at which lengths are stated; they scale with the side, so that a severity means the same
to the anatomy."""

Parameter = float | tuple[float, ...]
Severities = tuple[Parameter, Parameter, Parameter, Parameter, Parameter]
Apply = Callable[[torch.Tensor, Any, Sequence[int]], torch.Tensor]
"""Pixels (B, C, H, W) in [0, 1], one ``Parameter`` and one seed per case to pixels of the same shape, not yet clipped.

It leaves its input as it is, knows no global randomness and treats a case the same whatever is beside it: what is drawn
comes from ``draws`` or ``methods.randomness.case_generator``. C is 1 or 3; H and W differ and may be as small as 28."""


@dataclass(frozen=True)
class Corruption:
    """One way an image goes wrong.

    parameter and unit: what the five values of ``severities`` are. source: who set them; "xvision" where they were set
    here, which no radiologist has graded. severities: the values from mild to severe, by modality, or under ``ANY``; a
    kind without ``ANY`` makes sense for the named modalities only; five equal values say all or nothing. label_changing:
    the right decision may change with the image (left and right are swapped), so a decision that follows is no error.
    """

    name: str
    title: str
    parameter: str
    unit: str
    source: str
    severities: Mapping[str, Severities]
    apply: Apply
    label_changing: bool = False

    def __post_init__(self) -> None:
        if not self.severities:
            raise ConfigError(f"the corruption {self.name!r} has no severities: give five values")
        for modality, values in self.severities.items():
            if modality != ANY and modality not in MODALITIES:
                raise ConfigError(
                    f"the corruption {self.name!r} names the modality {modality!r}. {nearest(modality, MODALITIES)}"
                )
            if len(values) != 5 or len(set(values)) not in (1, 5):
                raise ConfigError(
                    f"the corruption {self.name!r} has severities {values}: five different values are needed"
                )

    def graded(self, modality: str | None) -> bool:
        """Do its severities differ? All or nothing is five times the same value, and one severity is enough to run."""
        return len(set(self.values(modality))) > 1

    def suits(self, modality: str | None) -> bool:
        """Does it make sense for a modality; for None, for every one?"""
        return ANY in self.severities or modality in self.severities

    def values(self, modality: str | None) -> Severities:
        """The five values for a modality; for None the general ones, or the first listed of a kind that has none."""
        if modality is not None and modality in self.severities:
            return self.severities[modality]
        if ANY in self.severities:
            return self.severities[ANY]
        if modality is None:
            return next(iter(self.severities.values()))
        raise ConfigError(
            f"the corruption {self.name!r} makes no sense for {modality}: it is for {', '.join(sorted(self.severities))}"
        )


def side(pixels: torch.Tensor) -> int:
    """The shorter side in pixels."""
    return min(pixels.shape[2:])


def scaled(length: float, pixels: torch.Tensor) -> float:
    """A length in pixels at the reference side, in pixels of these images."""
    return length * side(pixels) / REFERENCE_SIDE
