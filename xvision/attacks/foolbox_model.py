"""Some cases as foolbox sees them: a model of two logits, and a note of the smallest break it ever looked at.

Shapes: B cases, C H W image. The logits are (0, margin of the goal), so that one logit, thresholds, several classes, grades and
findings are all the question "is class 1 decided?", with label 0 for every case. What foolbox leaves open is decided here:

- it calls ``loss.backward()``, which would fill ``.grad`` of the audited model: the slope is taken for the pixels alone, in
  the forward pass, and handed to autograd as a constant;
- it returns its last or its best iterate by its own count: here the smallest break of all it looked at is kept, so that
  a walk may be stopped at any time;
- pixels that must stay are put back before the model looks, and their slope is zero;
- a logit or slope that is not finite is noted and hidden from it: one such case would end the whole batch;
- it draws from torch's global generator: see ``own_randomness``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from eagerpy.astensor import astensor, astensor_

from xvision.attacks.balls import Norm, size
from xvision.attacks.cases import Cases, look, nonfinite, nothing
from xvision.attacks.goals import LossName

with warnings.catch_warnings():
    # foolbox 3.3.4 imports its blur attack, unused here, through a namespace that SciPy has deprecated
    warnings.filterwarnings("ignore", message="Please import `gaussian_filter`", category=DeprecationWarning)
    from foolbox.attacks.base import MinimizationAttack
    from foolbox.attacks.boundary_attack import BoundaryAttack
    from foolbox.attacks.carlini_wagner import L2CarliniWagnerAttack
    from foolbox.attacks.ddn import DDNAttack
    from foolbox.attacks.deepfool import L2DeepFoolAttack, LinfDeepFoolAttack
    from foolbox.attacks.ead import EADAttack
    from foolbox.attacks.fast_minimum_norm import L0FMNAttack, L1FMNAttack, LInfFMNAttack
    from foolbox.attacks.hop_skip_jump import HopSkipJumpAttack
    from foolbox.criteria import Criterion, Misclassification
    from foolbox.models.base import Model
    from foolbox.types import Bounds

__all__ = [
    "BoundaryAttack",
    "ClassOne",
    "DDNAttack",
    "EADAttack",
    "HopSkipJumpAttack",
    "L0FMNAttack",
    "L1FMNAttack",
    "L2CarliniWagnerAttack",
    "L2DeepFoolAttack",
    "LInfFMNAttack",
    "LinfDeepFoolAttack",
    "MinimizationAttack",
    "Misclassification",
    "Spent",
    "View",
    "own_randomness",
]

_NEAR = 1e-4
_TINY = torch.finfo(torch.float32).tiny


class Spent(Exception):
    """The looks allowed are used up; what was found so far stands in ``View.found``."""


class ClassOne(Criterion):
    """Broken where class 1 is decided, for any number of images."""

    def __repr__(self) -> str:
        return "ClassOne()"

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        logits, restore_type = astensor_(outputs)
        return restore_type(logits.argmax(axis=-1) == 1)


class View(Model):
    """``found`` is what the looks so far have shown; images may be as many as the cases, or any number for a single case.

    scale: (B,) positive factors of the margins, which change no decision; the attacks' constants suppose margins of about 1. A
    walk along slopes gives them, and sees no margin between -1e-4 and 0: it could end on the boundary without crossing it.
    cap: bound on the margin's value, not its slope, for losses that vanish where a margin is large. lost: (B, C, H, W) what
    to take for a slope that is exactly zero. limit: looks allowed at a single case; one more raises Spent. refused: the model raised at
    the last look.
    """

    bounds = Bounds(0.0, 1.0)

    def __init__(
        self,
        cases: Cases,
        norm: Norm,
        *,
        scale: torch.Tensor | None = None,
        cap: float = torch.inf,
        lost: torch.Tensor | None = None,
        limit: float = torch.inf,
    ) -> None:
        self.cases, self.norm, self.found = cases, norm, nothing(cases)
        self._scale = torch.ones(len(cases), device=cases.pixels.device) if scale is None else scale
        self._near = 0.0 if scale is None else _NEAR
        self._cap, self._lost, self._limit = cap, lost, limit
        self.refused = False

    def __call__(self, inputs: Any) -> Any:
        images, restore_type = astensor_(inputs)
        raw = images.raw
        margins = _sloped(raw, self) if raw.requires_grad else self._seen(raw, None)[0]
        return restore_type(astensor(torch.stack([torch.zeros_like(margins), margins], dim=1)))

    def broken(self, images: torch.Tensor) -> torch.Tensor:
        """(n,) bool, from a look at images (n, C, H, W)."""
        return self._seen(images, None)[0] > 0

    def slopes(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n,) scaled margins at images (n, C, H, W), above 0 exactly where broken, and their slopes (n, C, H, W)."""
        return self._seen(images, "margin")

    def _seen(self, images: torch.Tensor, loss: LossName | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Margins and, zero unless a loss is named, their slopes; on the device of the images."""
        left = self._limit - int(self.found.looks[0])
        if len(images) > left:
            if left > 0:
                self._seen(images[: int(left)], loss)
            raise Spent
        cases, scale = self.cases, self._scale
        places = torch.arange(len(images), device=scale.device)
        if len(images) != len(cases):
            places = torch.zeros_like(places)
            cases, scale = cases.rows(places), scale[places]
        self.found.looks.add_(torch.bincount(places.cpu(), minlength=len(self.cases)))
        given = images.detach().to(cases.pixels)
        points = torch.clamp(given, cases.low, cases.high)
        self.refused = True
        view = look(cases, points, loss)
        self.refused = False
        odd = nonfinite(view)
        self.found.nonfinite[places[odd]] = True
        broken = self._noted(cases, places, points, cases.goal.broken(view.logits))
        margins = torch.where(odd, -torch.ones_like(scale), view.loss * scale).clamp(-self._cap, self._cap)
        margins = torch.where(broken, margins.clamp(min=_TINY), margins.clamp(max=-self._near))
        slope = torch.zeros_like(given)
        if view.gradient is not None:
            free = (cases.low < cases.high) & (given >= cases.low) & (given <= cases.high) & ~odd[:, None, None, None]
            slope = self._filled(torch.where(free, view.gradient * scale[:, None, None, None], slope))
        return margins.to(images.device), slope.to(images.device)

    def _noted(self, cases: Cases, places: torch.Tensor, points: torch.Tensor, broken: torch.Tensor) -> torch.Tensor:
        """(n,) the breaks that are confirmed; the smallest of a case is kept."""
        held = cases.confirmed(points, broken)
        hits = torch.nonzero(held).squeeze(1)
        sizes = size(points[hits] - cases.pixels[hits], self.norm).tolist()
        for row, place, measured in zip(hits.tolist(), places[hits].tolist(), sizes, strict=True):
            if measured < self.found.size[place]:
                self.found.size[place], self.found.images[place] = measured, points[row]
        return held

    def _filled(self, slope: torch.Tensor) -> torch.Tensor:
        if self._lost is None:
            return slope
        flat = (slope == 0.0).flatten(1).all(dim=1)
        return torch.where(flat[:, None, None, None], self._lost, slope)


def _sloped(images: torch.Tensor, view: View) -> torch.Tensor:
    margins: torch.Tensor = _Sloped.apply(images, view)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return margins


class _Sloped(torch.autograd.Function):
    """The margins of a view, with the slope for the pixels alone as their derivative."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, view: View) -> torch.Tensor:
        margins, slope = view.slopes(images)
        ctx.save_for_backward(slope)
        return margins

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        (slope,) = ctx.saved_tensors
        return outer[0][:, None, None, None] * slope, None


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Draws from torch's global generators follow ``seed`` (on the CPU) inside and leave no trace outside."""
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every other device, too
        yield
