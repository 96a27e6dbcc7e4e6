"""Measurements on a model that tell whether its gradients could mislead an attack; the rules are in ``checks``.

Shapes: B cases, C H W image, K logits. Every probe shows its cases to the model as one batch unless it says otherwise, gives one
row per case under the name that ``checks.Evidence`` has for it, and counts its cost in passes per case. What is drawn belongs to
the case. Probes that follow gradients raise what the model raises on the way back: ``slopes`` tells, so ask it first.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from xvision.attacks.cases import Cases, Forward, look, nonfinite
from xvision.errors import ConfigError

VANISHING = 1e-10
"""Relative gain, by its slope, of moving every pixel across its whole range, below which a margin has practically no slope."""
CUBE = 4 / 255
"""Half the side of the cube in which the loss is tried for steadiness (Pintor et al. 2022)."""
DIRECTIONS = 32
"""Directions along which slopes are compared with differences."""
NOISE = 32
"""How many times the rounding of a logit a difference must be to be measured."""
_STEPS = {torch.float64: 1e-6, torch.float32: 1 / 1024}
"""How far each pixel moves for a difference: far enough that rounding does not show, near enough that curvature does not."""


class Slopes(NamedTuple):
    """All (B,) bool. zero_slope: the margin's gradient is exactly zero; tiny_slope: practically zero whatever the scale of the
    logits. cross_entropy_zero: that of the cross-entropy is exactly zero. nonfinite: a logit or gradient was not finite.
    cut: the model gave no gradient for its pixels, or raised an error when asked.
    """

    zero_slope: np.ndarray
    tiny_slope: np.ndarray
    cross_entropy_zero: np.ndarray
    nonfinite: np.ndarray
    cut: np.ndarray


def slopes(cases: Cases) -> Slopes:
    """Is there a gradient to follow at the images as they are? Cost: 3 passes with a gradient.

    The slope counts as tiny where moving every pixel across its whole range would change the margin by less than 1e-10 of
    itself, if the margin were linear.
    """
    no = np.zeros(len(cases), dtype=bool)
    if not connected(cases):
        return Slopes(no, no, no, no, ~no)
    margin, entropy = (look(cases, cases.pixels, loss) for loss in ("margin", "cross_entropy"))
    slope = _slope(margin.gradient, cases.pixels)
    zero = (slope == 0).flatten(1).all(dim=1)
    gain = slope.double().abs().flatten(1).sum(dim=1)
    odd = nonfinite(margin)
    flat = (_slope(entropy.gradient, cases.pixels) == 0).flatten(1).all(dim=1)
    tiny = gain < VANISHING * margin.loss.double().abs()
    return Slopes(_array(zero), _array(tiny & ~odd), _array(flat), _array(odd), no)


def connected(cases: Cases) -> bool:
    """Does a gradient reach the pixels at all? The other probes that follow gradients need it. Cost: 1 pass with a gradient."""
    with torch.inference_mode(False), torch.enable_grad():
        at = cases.pixels.detach().clone().requires_grad_()
        try:
            logits = torch.nan_to_num(cases.forward(at))
            (gradient,) = torch.autograd.grad(logits.sum(), at, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # no graph, one that was overwritten, or an operation without a derivative
            look(cases, cases.pixels, None)  # raises where the model does not even answer
            return False
    return gradient is not None


class Repeats(NamedTuple):
    """logits: (B, K) of the first pass. spread: (B,) the largest difference of a logit from the first pass, relative to the
    largest logit where that is above 1. changed: (B,) bool, the decision was broken in some passes and not in others.
    """

    logits: np.ndarray
    spread: np.ndarray
    changed: np.ndarray


def repeats(cases: Cases, *, times: int) -> Repeats:
    """The same images again and again: does the model answer alike? Cost: ``times`` passes."""
    if times < 2:
        raise ConfigError(f"found {times} passes to compare: at least 2 are needed")
    with torch.no_grad():
        every = torch.stack([cases.forward(cases.pixels) for _ in range(times)])
    broken = torch.stack([cases.goal.broken(logits) for logits in every])
    spread = torch.stack([difference(every[0], logits) for logits in every[1:]]).amax(dim=0)
    return Repeats(_array(every[0]), _array(spread), _array(broken.any(dim=0) & ~broken.all(dim=0)))


def difference(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(B,) the largest difference of logits (B, K), relative to the largest of them where that is above 1; NaN equals NaN."""
    apart = (first.double() - second.double()).abs()
    apart = apart.masked_fill(first.isnan() & second.isnan() | (first == second), 0.0)
    scale = torch.nan_to_num(first.double().abs().amax(dim=1), nan=1.0, posinf=1.0).clamp(min=1.0)
    return torch.nan_to_num(apart.amax(dim=1) / scale, nan=torch.inf)


class Steadiness(NamedTuple):
    """(B,) each, mean of the draws, each capped at 1. change: of the margin relative to itself. unexplained: what is left of it
    after what the gradient foretells is taken off.
    """

    change: np.ndarray
    unexplained: np.ndarray


def steadiness(cases: Cases, *, draws: int) -> Steadiness:
    """Does the margin stay what it is, or what its slope foretells, next to the image? Cost: ``draws`` + 1 passes, 1 with a gradient.

    change is the indicator of Pintor et al. (2022), uniform draws in a cube of side 8/255. It is large, too, for an honest model at an
    image near its boundary; there the slope explains it.
    """
    seen = look(cases, cases.pixels, "margin")
    slope = _slope(seen.gradient, cases.pixels).double()
    generators = cases.generators("steadiness")
    size = seen.loss.double().abs().clamp(min=torch.finfo(torch.float32).tiny)
    change, unexplained = torch.zeros_like(size), torch.zeros_like(size)
    for _ in range(draws):
        cube = _drawn(cases, generators, lambda shape, each: 2 * torch.rand(shape, generator=each) - 1)
        points = _within(cases, cases.pixels + CUBE * cube)
        moved = look(cases, points, None).loss.double() - seen.loss.double()
        foretold = (slope * (points - cases.pixels).double()).flatten(1).sum(dim=1)
        change += _capped(moved / size)
        unexplained += _capped((moved - foretold) / size)
    return Steadiness(_array(change / draws), _array(unexplained / draws))


def _capped(values: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(values.abs(), nan=1.0, posinf=1.0).clamp(max=1.0)


class Reach(NamedTuple):
    """reachable: (B,) bool, an image that the case may become breaks its decision: an attack without bounds must find one.
    still: (B,) bool, the logits are the same at every image shown: as far as seen, the model is constant.
    """

    reachable: np.ndarray
    still: np.ndarray


def reach(cases: Cases, references: torch.Tensor) -> Reach:
    """Is any image known that breaks the decision? Cost: 1 pass, and per batch one per reference and 3 more.

    references: (M, C, H, W) in [0, 1], such as some clean images of every class; mid-grey, black and white are added. Only images
    between a case's ``low`` and ``high`` count for it.
    """
    plain = [torch.full_like(cases.pixels[:1], level) for level in (0.5, 0.0, 1.0)]
    others = torch.cat([*plain, references.to(cases.pixels)])
    with torch.no_grad():
        logits, own = cases.forward(others), cases.forward(cases.pixels)
    count, rows = len(others), torch.arange(len(cases), device=own.device)
    pairs = cases.goal.rows(rows.repeat_interleave(count)).broken(logits.repeat(len(cases), 1)).view(-1, count)
    inside = torch.stack([((each >= cases.low) & (each <= cases.high)).flatten(1).all(dim=1) for each in others], dim=1)
    same = (logits[None] == own[:, None]).flatten(1).all(dim=1)
    return Reach(_array((pairs & inside).any(dim=1)), _array(same))


class Company(NamedTuple):
    """company: (B,) the largest difference between a case's logits alone and beside others, relative as in ``Repeats.spread``.
    training: (B,) bool, the model was in training mode; False where it has no modes.
    """

    company: np.ndarray
    training: np.ndarray


def company(cases: Cases) -> Company:
    """Do a case's logits depend on the images beside it? Cost: 3 passes, 1 of them with each case alone.

    Beside: after the negatives of all cases, so that neighbours and places differ. A model in training mode is not changed to find out.
    """
    with torch.no_grad():
        beside = cases.forward(torch.cat([1 - cases.pixels, cases.pixels]))[len(cases) :]
        alone = torch.cat([cases.forward(cases.pixels[row : row + 1]) for row in range(len(cases))])
    module = getattr(cases.forward, "__self__", cases.forward)
    training = getattr(module, "training", False) is True
    return Company(_array(difference(alone, beside)), np.full(len(cases), training))


def held_alone(cases: Cases, images: torch.Tensor) -> np.ndarray:
    """(B,) bool: is the decision broken at ``images`` (B, C, H, W), each shown by itself in float32? Cost: 1 pass."""
    rows = torch.arange(len(cases), device=images.device)[:, None]
    return np.concatenate([_array(cases.rows(row).broken(images[row].float())) for row in rows])


class _GradientCalls(TorchFunctionMode):
    """Counts calls of autograd while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func in (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)
        return func(*args, **(kwargs or {}))


def dynamic(cases: Cases) -> np.ndarray:
    """(B,) bool: does the model take gradients itself while it answers, as defences that adapt to their input do? Cost: 1 pass.

    It answers for the batch, and sees torch's own functions only: a model behind an interface, or one that adapts without gradients,
    is not noticed.
    """
    calls = _GradientCalls()
    with torch.inference_mode(False), torch.no_grad(), calls:
        cases.forward(cases.pixels.clone())
    return np.full(len(cases), calls.count > 0)


class Surface(NamedTuple):
    """(B,) float each: how much the margin gains along the sign of its gradient, and along a random direction orthogonal to it."""

    along_slope: np.ndarray
    at_random: np.ndarray


def surface(cases: Cases, epsilon: float) -> Surface:
    """Does the slope's direction gain more than chance? Cost: 3 passes, 1 with a gradient.

    epsilon: mean step of each pixel in both directions, whatever the norm that is audited; pixels stay within their bounds.
    """
    seen = look(cases, cases.pixels, "margin")
    sign = torch.sign(torch.nan_to_num(_slope(seen.gradient, cases.pixels)))
    draw = _drawn(cases, cases.generators("surface"), _random_signs)
    shared = (draw * sign).flatten(1).sum(dim=1) / sign.square().flatten(1).sum(dim=1).clamp(min=1.0)
    across = draw - shared[:, None, None, None] * sign
    length = torch.linalg.vector_norm(across.flatten(1), dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    across = across * (math.sqrt(sign[0].numel()) / length)[:, None, None, None]
    gains = [
        look(cases, _within(cases, cases.pixels + epsilon * way), None).loss.double() - seen.loss.double()
        for way in (sign, across)
    ]
    return Surface(*(_array(gain) for gain in gains))


class Differences(NamedTuple):
    """cosine: (B,) between the slopes along random directions by gradient and by difference; 0 where only one of them vanishes, NaN
    where neither is above what rounding makes of the logits or a value is not finite. double: (B,) bool, measured in float64.
    """

    cosine: np.ndarray
    double: np.ndarray


def differences(cases: Cases, twin: Forward | None) -> Differences:
    """Is the gradient the slope of the function? Cost: 65 passes, 1 with a gradient.

    twin: the model in float64, as ``in_double`` gives it; None measures in float32, with steps a thousand times as large, where kinks
    and rounding show: a low cosine then says less. Every direction moves every pixel one step up or down, but not out of its bounds.
    """
    kind = torch.float32 if twin is None else torch.float64
    step = _STEPS[kind]
    part = cases if twin is None else replace(cases, forward=twin)
    pixels = cases.pixels.to(kind)
    seen = look(part, pixels, "margin")
    slope = _slope(seen.gradient, pixels)
    generators = cases.generators("differences")
    by_gradient, by_difference = [], []
    for _ in range(DIRECTIONS):
        way = step * _drawn(cases, generators, _random_signs).to(kind)
        ahead, behind = _within(cases, pixels + way), _within(cases, pixels - way)
        losses = [look(part, points, None).loss.double() for points in (ahead, behind)]
        by_gradient.append((slope * (ahead - behind)).double().flatten(1).sum(dim=1))
        by_difference.append(losses[0] - losses[1])
    foretold, found = torch.stack(by_gradient, dim=1), torch.stack(by_difference, dim=1)
    steepest = torch.maximum(foretold.abs(), found.abs()).amax(dim=1)
    rounding = torch.finfo(kind).eps * seen.logits.double().abs().amax(dim=1)
    measurable = torch.isfinite(steepest) & (steepest > NOISE * rounding)
    cosine = _cosine(foretold, found).masked_fill(~measurable, torch.nan)
    return Differences(_array(cosine), np.full(len(cases), twin is not None))


def in_double(cases: Cases) -> Forward | None:
    """A copy of the model in float64, None where it is no torch module, cannot be copied or does not answer in float64.

    A method counts as the module that it belongs to. Cost: 1 pass of 1 case, and twice the model's memory.
    """
    owner = getattr(cases.forward, "__self__", cases.forward)
    if not isinstance(owner, torch.nn.Module):
        return None
    try:
        twin = copy.deepcopy(owner).double()
        forward: Forward = twin if owner is cases.forward else getattr(twin, cases.forward.__name__)
        with torch.no_grad():
            answer = forward(cases.pixels[:1].double())
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError):  # a part of it insists on float32, or cannot be copied
        return None
    return forward if answer.dtype == torch.float64 else None


def _cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(B,) of (B, D), 0 where one of them is zero, without over- or underflow."""
    return (_unit(first) * _unit(second)).sum(dim=1)


def _unit(values: torch.Tensor) -> torch.Tensor:
    largest = values.abs().amax(dim=1, keepdim=True)
    scaled = values / torch.where(largest > 0, largest, torch.ones_like(largest))
    length: torch.Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / length.clamp(min=1.0)


def _slope(gradient: torch.Tensor | None, pixels: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(pixels) if gradient is None else gradient


def _within(cases: Cases, points: torch.Tensor) -> torch.Tensor:
    return torch.clamp(points, cases.low, cases.high)


def _random_signs(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return 2.0 * torch.randint(2, shape, generator=generator).float() - 1.0


def _drawn(
    cases: Cases,
    generators: Sequence[torch.Generator],
    draw: Callable[[torch.Size, torch.Generator], torch.Tensor],
) -> torch.Tensor:
    """(B, C, H, W), each case's from its own generator."""
    shape = cases.pixels.shape[1:]
    return torch.stack([draw(shape, each) for each in generators]).to(cases.pixels.device)


def _array(values: torch.Tensor) -> np.ndarray:
    return np.asarray(values.detach().cpu().numpy())
