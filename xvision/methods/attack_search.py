"""Where in an epsilon ball a decision changes: uniform noise, one gradient step, projected gradient descent.

The only module that imports foolbox, which takes every gradient step; what foolbox leaves open is decided here:

- its default PGD walks 1.33 epsilon from a random start, so that on a linear model it is an attack of 8/9 of the budget,
  weaker than one step of FGSM: here PGD starts at the image, with steps of 2.5 epsilon / steps;
- it returns the last iterate: here a case is hit when any iterate is, and leaves the batch there;
- its cross-entropy gradient vanishes when logits are large: here the loss is the margin, whose sign no scaling changes;
- it differentiates the weights and leaves ``.grad`` behind: here the gradient is taken for the pixels alone, which
  touches neither ``.grad`` nor ``requires_grad`` and measured as fast as with frozen parameters.

Shapes: B batch, C channels, H W image, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from eagerpy.astensor import astensor, astensor_
from eagerpy.tensor.tensor import Tensor

from xvision.errors import ConfigError
from xvision.methods.randomness import case_generator, case_seed

with warnings.catch_warnings():
    # foolbox 3.3.4 imports its blur attack, unused here, through a namespace that SciPy has deprecated
    warnings.filterwarnings("ignore", message="Please import `gaussian_filter`", category=DeprecationWarning)
    from foolbox.attacks import LinfPGD
    from foolbox.models.base import Model
    from foolbox.types import Bounds

Logits = Callable[[torch.Tensor], torch.Tensor]

NOISE_DRAWS = 10


@dataclass(frozen=True)
class Cases:
    logits: Logits
    pixels: torch.Tensor
    labels: torch.Tensor
    keys: tuple[str, ...]
    seed: int

    def rows(self, index: torch.Tensor) -> Cases:
        keys = tuple(self.keys[row] for row in index.tolist())
        return Cases(self.logits, self.pixels[index], self.labels[index], keys, self.seed)

    def decided_otherwise(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return decided_otherwise(self.logits(images), self.labels)


class Found(NamedTuple):
    """images: (n, C, H, W) where a search ended. hit: (n,) the decision changed there. nonfinite: (n,)."""

    images: torch.Tensor
    hit: torch.Tensor
    nonfinite: torch.Tensor


Search = Callable[[Cases, float], Found]


def searches(attacks: Sequence[str], steps: int, restarts: int) -> dict[str, Search]:
    if steps < 1 or restarts < 1:
        raise ConfigError(f"found steps = {steps} and restarts = {restarts}: both must be at least 1")
    known: dict[str, Search] = {
        "noise": _noise,
        "fgsm": _fgsm,
        "pgd": partial(_pgd, steps=steps, restarts=restarts),
    }
    unknown = [name for name in attacks if name not in known]
    if unknown or len(attacks) == 0:
        raise ConfigError(f"found the attacks {', '.join(attacks) or 'none'}: give some of {', '.join(known)}")
    return {name: known[name] for name in attacks}


def _noise(cases: Cases, epsilon: float) -> Found:
    return _until_hit(cases, [partial(_one_draw, epsilon=epsilon, draw=draw) for draw in range(NOISE_DRAWS)])


def _one_draw(cases: Cases, epsilon: float, draw: int) -> Found:
    images = _drawn(cases, epsilon, f"noise/{draw}")
    return Found(images, cases.decided_otherwise(images), torch.zeros_like(cases.labels, dtype=torch.bool))


def _fgsm(cases: Cases, epsilon: float) -> Found:
    return _descend(cases, cases.pixels, epsilon, steps=1, stepsize=epsilon)


def _pgd(cases: Cases, epsilon: float, *, steps: int, restarts: int) -> Found:
    return _until_hit(cases, [partial(_one_start, epsilon=epsilon, steps=steps, start=at) for at in range(restarts)])


def _one_start(cases: Cases, epsilon: float, steps: int, start: int) -> Found:
    at = cases.pixels if start == 0 else _drawn(cases, epsilon, f"start/{start}")
    return _descend(cases, at, epsilon, steps=steps, stepsize=2.5 * epsilon / steps)


def _until_hit(cases: Cases, attempts: Sequence[Callable[[Cases], Found]]) -> Found:
    """Each attempt on the cases that all earlier ones left unbroken."""
    images, hit = cases.pixels.clone(), torch.zeros_like(cases.labels, dtype=torch.bool)
    nonfinite = hit.clone()
    for attempt in attempts:
        left = torch.nonzero(~hit).squeeze(1)
        if len(left) == 0:
            break
        found = attempt(cases.rows(left))
        images[left], hit[left] = found.images, found.hit
        nonfinite[left] |= found.nonfinite
    return Found(images, hit, nonfinite)


def _descend(cases: Cases, start: torch.Tensor, epsilon: float, *, steps: int, stepsize: float) -> Found:
    """Walk up the margin inside the ball; a case leaves the batch at its first adversarial iterate."""
    images, hit = start.clone(), torch.zeros_like(cases.labels, dtype=torch.bool)
    nonfinite = hit.clone()
    model = _FoolboxModel(cases.logits)
    active = torch.arange(len(images), device=images.device)
    for _ in range(steps):
        part = cases.rows(active)
        step = _MarginStep(images[active], stepsize)
        moved = step.run(model, part.pixels, part.labels, epsilon=epsilon)
        hit[active] = step.hit
        nonfinite[active] |= step.nonfinite
        active = active[~step.hit]
        images[active] = moved[~step.hit]
        if len(active) == 0:
            return Found(images, hit, nonfinite)
    hit[active] = cases.rows(active).decided_otherwise(images[active])
    return Found(images, hit, nonfinite)


def _drawn(cases: Cases, epsilon: float, purpose: str) -> torch.Tensor:
    """Each image plus its own uniform noise in [-epsilon, epsilon], clipped; the same pattern at every epsilon."""
    shape = cases.pixels.shape[1:]
    unit = torch.stack(
        [torch.rand(shape, generator=case_generator(case_seed(cases.seed, purpose, key))) for key in cases.keys]
    )
    return (cases.pixels + epsilon * (2.0 * unit.to(cases.pixels.device) - 1.0)).clamp(0.0, 1.0)


class _FoolboxModel(Model):
    """The bare callable as foolbox sees it: no device moves, no look at the training flag."""

    bounds = Bounds(0.0, 1.0)

    def __init__(self, logits: Logits) -> None:
        self._logits = logits

    def __call__(self, inputs: Any) -> Any:
        pixels, restore_type = astensor_(inputs)
        return restore_type(astensor(self._logits(pixels.raw)))


class _MarginStep(LinfPGD):
    """One foolbox PGD step from a given point, up the margin; records whether that point was adversarial already."""

    def __init__(self, start: torch.Tensor, stepsize: float) -> None:
        super().__init__(abs_stepsize=stepsize, steps=1, random_start=True)
        self._start = start

    def get_random_start(self, x0: Tensor, epsilon: float) -> Tensor:
        return astensor(self._start)

    def get_loss_fn(self, model: Model, labels: Tensor) -> Callable[[Tensor], Tensor]:
        def loss(inputs: Tensor) -> Tensor:
            values = model(inputs).raw
            self.hit = decided_otherwise(values, labels.raw)
            return astensor(margins(values, labels.raw))

        return loss

    def value_and_grad(self, loss_fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = x.raw.clone().requires_grad_()
        margin = loss_fn(astensor(pixels))
        gradient = pixel_gradient(margin.raw, pixels)
        self.nonfinite = nonfinite_rows(margin.raw, gradient)  # foolbox takes the sign next, 0 for NaN
        return margin, astensor(gradient)


def margins(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B,) largest other logit minus the label's: above 0 the decision is another one."""
    own = torch.nn.functional.one_hot(labels, values.shape[1]).bool()
    return values.masked_fill(own, -torch.inf).amax(dim=1) - values[own]


def decided_otherwise(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A decision that is not the label's; a NaN or infinite logit is no decision."""
    return torch.isfinite(values).all(dim=1) & (values.argmax(dim=1) != labels)


def pixel_gradient(margins: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) slope of each margin; zero, a warning sign in itself, when the model cuts the pixels off."""
    if not margins.requires_grad:
        return torch.zeros_like(pixels)
    (gradient,) = torch.autograd.grad(margins.sum(), pixels, allow_unused=True)
    return torch.zeros_like(pixels) if gradient is None else gradient


def nonfinite_rows(margins: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return ~(torch.isfinite(margins) & torch.isfinite(gradient).flatten(1).all(dim=1))
