"""What a method of explanation is asked and what it answers. Shapes: B batch, C H W image, P units, R references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from xvision.errors import ModelError
from xvision.methods.attribution import Baseline
from xvision.methods.target import Score, score_of
from xvision.methods.units import Units

Family = Literal["gradient", "perturbation", "class activation", "attention", "token", "control"]


@dataclass(frozen=True)
class Settings:
    """Options that several methods share; the analysis that uses them states them.

    baseline: what integrated gradients and occlusion compare with. steps: of the integral. samples: noisy copies or
    references of one image. masks: random masks of one image. noise: standard deviation as a share of the image's own
    range. residual, head_fusion: of rollout. batch: most images in one pass; changes memory and speed only.
    """

    baseline: Baseline = "blur"
    steps: int = 50
    samples: int = 16
    masks: int = 256
    noise: float = 0.1
    residual: float = 0.5
    head_fusion: Literal["mean", "max", "min"] = "mean"
    batch: int = 64


@dataclass(frozen=True, eq=False)
class Asked:
    """One batch to explain.

    model: a classifier (``xvision.models.protocols``), with whatever more of it the method's ``refuse`` has checked.
    pixels: (B, C, H, W) in [0, 1]. targets: (B,) class to explain. seeds: one per image, so that what is drawn for an
    image does not depend on its batch. units: what is removed together. references: (R, C, H, W) images of the data,
    for baselines drawn from it; None where there are none.
    """

    model: Any
    pixels: torch.Tensor
    targets: torch.Tensor
    seeds: tuple[int, ...]
    units: Units
    settings: Settings
    references: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.pixels) == len(self.targets) == len(self.seeds):
            raise ModelError(
                f"found {len(self.pixels)} images, {len(self.targets)} targets and {len(self.seeds)} seeds: one each"
            )

    def alone(self, place: int) -> Asked:
        """The same question about one image."""
        part = slice(place, place + 1)
        return replace(self, pixels=self.pixels[part], targets=self.targets[part], seeds=self.seeds[part])

    @property
    def score(self) -> Score:
        return score_of(self.model.logits)


class Maps(NamedTuple):
    """values: (B, H, W) float32, finite. gap, difference: (B,) as ``xvision.methods.attribution.Attribution`` has them."""

    values: np.ndarray
    gap: np.ndarray | None = None
    difference: np.ndarray | None = None


@dataclass(frozen=True)
class Method:
    """A named way to explain a decision.

    name: as in plans and metrics. label: as on pages, and the name of its pictures. signed: evidence against is
    negative; else only strength is given. passes: cost per image, in words. source: author and year. note: printed
    wherever the method is used. chosen: how early it is taken when nobody names methods, None for only when named. neutral: the
    value that says nothing, which pictures leave uncoloured.
    refuse: None where the method may be used on a model, else why not and what to use instead.
    """

    name: str
    label: str
    family: Family
    signed: bool
    passes: str
    source: str
    refuse: Callable[[Any], str | None]
    run: Callable[[Asked], Maps]
    note: str = ""
    chosen: int | None = None
    neutral: float = 0.0


def needs_gradients(model: Any) -> str | None:
    """Refuses a model whose gradients cannot be had."""
    if model.access == "white-box":
        return None
    return f"{architecture(model)} gives no gradients: use patch_ablation, kernel_shap or rise"


def needs_nothing(model: Any) -> str | None:
    """Any model that can be run."""
    return None


def architecture(model: Any) -> str:
    """The model's name in sentences."""
    return str(model.description.get("architecture", "this model"))
