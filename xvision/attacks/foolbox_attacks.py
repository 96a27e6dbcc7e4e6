"""Attacks of foolbox on a deployed decision: smallest changes along the gradient, and attacks that see decisions only.

Together with ``foolbox_model`` the only door to foolbox. Every break is one that was looked at, inside the box and confirmed,
and is then shortened on its way back to the clean image. What a case is given depends on the case alone, except where
``decision_based`` says otherwise. Shapes: B cases, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from eagerpy.astensor import astensor

from xvision.attacks.balls import Norm, size, unit
from xvision.attacks.cases import Budget, Cases, Found, nothing
from xvision.attacks.foolbox_model import (
    BoundaryAttack,
    ClassOne,
    DDNAttack,
    EADAttack,
    HopSkipJumpAttack,
    L0FMNAttack,
    L1FMNAttack,
    L2CarliniWagnerAttack,
    L2DeepFoolAttack,
    LinfDeepFoolAttack,
    LInfFMNAttack,
    MinimizationAttack,
    Misclassification,
    Spent,
    View,
    own_randomness,
)
from xvision.errors import ConfigError
from xvision.methods.randomness import case_seed

BLOCKED: Mapping[str, str] = MappingProxyType(
    {
        "l2fmn": "its projection divides a norm by itself, so that the budget never binds: use DDN",
        "linfpgd": "by default it starts at random and walks 1.33 budgets, which is an attack of 8/9 of the budget: use PGD"
        " on the margin",
        "l1pgd": "its steps spread over all pixels what reaches farthest on a few: use APGD",
        "l1fastgradient": "it spreads over all pixels what reaches farthest on a few: use a single step",
        "brendelbethge": "it can run for ever: use FAB",
        "hopskipjump": "several images in one batch share one normalisation and weaken each other: use decision_based, which"
        " gives it one image at a time",
    }
)
"""Attacks of foolbox 3.3.4 that must not be used as they come, in lower case, and why."""

SHRINK_LOOKS = 10
"""Looks that shorten a break: to 1/1024 of its way."""
_BINARY_STEPS = 5
"""Values of their constant that Carlini-Wagner and elastic net try."""
_CAP = 10.0
"""Of a margin that DDN sees through a cross-entropy, whose slope float32 loses at about 100."""
_NOISES, _BLENDS = 5, (1.0, 0.5)


def blocked(name: str) -> str | None:
    """Why an attack of foolbox must not be used as it comes, one sentence; None where nothing is known against it."""
    reason = BLOCKED.get(name.lower().replace("_", "").removesuffix("attack"))
    return None if reason is None else f"foolbox's {name} is not used: {reason}."


class _L0FMN(L0FMNAttack):
    """Its stock projection reads one place beyond the image where every pixel may change."""

    def project(self, x: Any, x0: Any, epsilon: Any) -> Any:
        return super().project(x, x0, epsilon.minimum(float(x[0].raw.numel() - 1)))


def _carlini_wagner(steps: int) -> MinimizationAttack:
    # stopping early is decided on the sum over the batch: a case's result would depend on its neighbours
    return L2CarliniWagnerAttack(steps=steps, binary_search_steps=_BINARY_STEPS, initial_const=1.0, abort_early=False)


def _elastic_net(steps: int) -> MinimizationAttack:
    return EADAttack(steps=steps, binary_search_steps=_BINARY_STEPS, initial_const=1.0, abort_early=False)


_MINIMAL: Mapping[tuple[str, Norm], Callable[[int], MinimizationAttack]] = {
    ("ddn", "l2"): lambda steps: DDNAttack(steps=steps),
    ("fmn", "linf"): lambda steps: LInfFMNAttack(steps=steps),
    ("fmn", "l1"): lambda steps: L1FMNAttack(steps=steps),
    ("fmn", "l0"): lambda steps: _L0FMN(steps=steps),
    ("deepfool", "linf"): lambda steps: LinfDeepFoolAttack(steps=steps, overshoot=0.02),
    ("deepfool", "l2"): lambda steps: L2DeepFoolAttack(steps=steps, overshoot=0.02),
    ("cw", "l2"): _carlini_wagner,
    ("ead", "l1"): _elastic_net,
}


def minimal_norm(cases: Cases, budget: Budget, *, attack: str, steps: int, width: int = 64) -> Found:
    """The smallest change found by DDN (Rony 2019; l2), FMN (Pintor 2021; linf, l1, l0), DeepFool (Moosavi-Dezfooli 2016;
    linf, l2), Carlini-Wagner (2017; l2) or elastic net (Chen 2018; l1): "ddn", "fmn", "deepfool", "cw", "ead".

    steps: of the walk; "cw" and "ead" make it for 5 values of their constant, 300 being sensible for them. width: cases in
    one batch. Cases known to break within the smallest budget are left alone. Sizes do not depend on the other budgets and
    are upper bounds: that nothing smaller was found does not mean that there is nothing.

    Cost: steps, 5 × steps for "cw", 10 × steps for "ead", and up to 13 looks more. A case on which the model or foolbox raises
    keeps what was found until then and is marked nonfinite. ConfigError for an attack that does not bound the norm.
    """
    make = _MINIMAL.get((attack, budget.norm))
    if make is None:
        bounds = ", ".join(f"{name} ({norm})" for name, norm in _MINIMAL)
        reason = blocked(f"{budget.norm}{attack}") or "foolbox has no such attack."
        raise ConfigError(f"found the attack {attack!r} in {budget.norm}: {reason} Known: {bounds}.")
    if steps < 1 or width < 1:
        raise ConfigError(f"found steps = {steps} and width = {width} for {attack}: both must be at least 1")
    with torch.inference_mode(False), torch.no_grad():
        found = nothing(cases)
        for rows in _open(cases, budget, width):
            _merge(found, rows, _smallest(cases.rows(rows), budget.norm, attack, make(steps)))
    return found


def _open(cases: Cases, budget: Budget, width: int) -> list[torch.Tensor]:
    """Places of the cases not known to break within the smallest budget, in batches of ``width``."""
    places = torch.nonzero(budget.columns(budget.reached) > 0).squeeze(1).to(cases.pixels.device)
    return [rows for rows in torch.split(places, width) if len(rows)]


def _smallest(cases: Cases, norm: Norm, attack: str, search: MinimizationAttack) -> Found:
    first = View(cases, norm)
    margins, slope = first.slopes(cases.pixels)
    found, steepness = first.found, slope.flatten(1).norm(dim=1)
    found.flat.copy_(steepness == 0.0)
    rows = torch.nonzero(torch.isfinite(margins) & (margins <= 0.0) & ~found.nonfinite).squeeze(1)
    if len(rows):
        scale = _scale(margins[rows].abs(), steepness[rows], attack, unit("l2", cases.pixels.shape[1:]))
        _merge(found, rows, _walked(cases.rows(rows), norm, attack, scale, search))
        _shorten(cases, found, norm, SHRINK_LOOKS)
    return found


def _scale(margins: torch.Tensor, steepness: torch.Tensor, attack: str, longest: float) -> torch.Tensor:
    """(n,) the clean margin becomes 1. For Carlini-Wagner its constant of 1 becomes twice the smallest one that could reach the
    boundary were the model linear: if it is much larger, the norm counts for nothing; 2.8 times the exact size was seen.
    """
    sizes = margins.clamp(min=1e-12)
    if attack != "cw":
        return 1.0 / sizes
    reach = (sizes / steepness).clamp(max=longest)
    return 4.0 * reach.square() / sizes


def _walked(cases: Cases, norm: Norm, attack: str, scale: torch.Tensor, search: MinimizationAttack) -> Found:
    device, ddn = cases.pixels.device, attack == "ddn"

    def started(rows: torch.Tensor) -> Started:
        part = cases.rows(rows)
        lost = _directions(part, "ddn") if ddn else None
        view = View(part, norm, scale=scale[rows], cap=_CAP if ddn else torch.inf, lost=lost)
        labels = Misclassification(torch.zeros_like(rows))
        return view, partial(search.run, view, part.pixels.clone(), labels)

    with torch.enable_grad(), own_randomness(cases.seed, device):
        return _isolated(torch.arange(len(cases), device=device), started)


def _directions(cases: Cases, purpose: str) -> torch.Tensor:
    """(B, C, H, W) where a case goes that has no slope: DDN draws it, for the whole batch at once."""
    shape = cases.pixels.shape[1:]
    drawn = [torch.randn(shape, generator=generator) for generator in cases.generators(purpose)]
    return torch.stack(drawn).to(cases.pixels)


Started = tuple[View, Callable[[], Any]]
"""What is seen of some cases, and the walk that is to be taken with it."""


def _isolated(rows: torch.Tensor, started: Callable[[torch.Tensor], Started]) -> Found:
    """What a walk on all rows (n,) found; where it fails, its halves go alone, down to the case that is the cause."""
    view, walk = started(rows)
    done = _finished(view, walk)
    if done or len(rows) == 1:
        view.found.nonfinite.logical_or_(torch.tensor(not done, device=rows.device))
        return view.found
    for half in torch.arange(len(rows), device=rows.device).chunk(2):
        _merge(view.found, half, _isolated(rows[half], started))
    return view.found


def _finished(view: View, walk: Callable[[], Any]) -> bool:
    """False where the model or foolbox failed on the way.

    A walk out of looks is finished, and so is one whose own checks find that a decision changed between two looks at one
    image, as that of a model that answers at random does.
    """
    try:
        walk()
    except Spent:
        return True
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, ValueError):
        return not view.refused
    except (ArithmeticError, LookupError, RuntimeError):
        return False
    return True


def _merge(found: Found, rows: torch.Tensor, part: Found) -> None:
    """Takes what a part found for the rows (n,) of the whole."""
    places = rows.cpu()
    smaller = part.size < found.size[places]
    found.size[places[smaller]] = part.size[smaller]
    found.looks[places] += part.looks
    at = smaller.to(rows.device)
    found.images[rows[at]] = part.images[at]
    found.nonfinite[rows] |= part.nonfinite
    found.flat[rows] |= part.flat


def shrunk(cases: Cases, images: torch.Tensor, norm: Norm, steps: int = SHRINK_LOOKS) -> Found:
    """The breaks at images (B, C, H, W), shortened: a bisection of ``steps`` looks between the clean image and each.

    l0: pixels go back to what they were, the smallest change first. An image that breaks nothing gives none, unless a point of
    the bisection does. Nothing between two looks is known: the shortest break on the way may be shorter.
    """

    def started(rows: torch.Tensor) -> Started:
        view = View(cases.rows(rows), norm)
        return view, partial(_bisected, view, images[rows], _largest if norm == "l0" else _scaled, steps)

    return _isolated(torch.arange(len(cases), device=images.device), started)


def _bisected(
    view: View, images: torch.Tensor, shortened: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], steps: int
) -> None:
    change = images - view.cases.pixels
    low, high = torch.zeros(len(images), device=images.device), torch.ones(len(images), device=images.device)
    view.broken(images)
    for _ in range(steps):
        middle = (low + high) / 2
        broken = view.broken(view.cases.pixels + shortened(change, middle))
        low, high = torch.where(broken, low, middle), torch.where(broken, middle, high)


def _scaled(change: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    return change * share[:, None, None, None]


def _largest(change: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The share (B,) of the values that change, rounded up, that change most."""
    flat = change.flatten(1)
    rank = flat.abs().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    count = ((flat != 0).sum(dim=1) * share).ceil()
    return torch.where(rank < count[:, None], flat, torch.zeros_like(flat)).view_as(change)


def _shorten(cases: Cases, found: Found, norm: Norm, steps: int) -> None:
    """The breaks found, shortened where there is anything to shorten."""
    places = torch.nonzero(torch.isfinite(found.size) & (found.size > 0)).squeeze(1)
    if len(places):
        rows = places.to(cases.pixels.device)
        _merge(found, rows, shrunk(cases.rows(rows), found.images[rows], norm, steps))


class _HopSkipJump(HopSkipJumpAttack):
    """HopSkipJump on one image, which looks at all points of one slope in full batches instead of one at a time."""

    def __init__(self, norm: Norm, width: int) -> None:
        super().__init__(constraint="linf" if norm == "linf" else "l2")
        self._width = width

    def approximate_gradients(self, is_adversarial: Any, x_advs: Any, steps: int, delta: Any) -> Any:
        """The mean of the directions, those that break less those that do not, over their balance (Chen 2020)."""
        point, radius = x_advs.raw, delta.raw.item()
        shape = (steps, *point.shape[1:])
        drawn = torch.randn(shape) if self.constraint == "l2" else 2.0 * torch.rand(shape) - 1.0
        directions = drawn / drawn.flatten(1).norm(dim=1)[:, None, None, None]
        points = (point + radius * directions).clamp(0.0, 1.0)
        taken = (points - point) / (radius + 1e-8)
        parts = [is_adversarial(astensor(part)).raw for part in torch.split(points, self._width)]
        signs = 2.0 * torch.cat(parts).float() - 1.0
        if signs.abs().mean() != signs.mean().abs():
            signs = signs - signs.mean()
        slope = (signs[:, None, None, None] * taken).mean(dim=0, keepdim=True)
        return astensor(slope / (slope.norm() + 1e-12))


_DECIDED: Mapping[str, tuple[Norm, ...]] = {"hop_skip_jump": ("linf", "l2"), "boundary": ("l2",)}


def decision_based(cases: Cases, budget: Budget, *, attack: str, queries: int, width: int = 64) -> Found:
    """The smallest change found from decisions alone, by HopSkipJump (Chen 2020; linf, l2) or the boundary attack (Brendel
    2018; l2): "hop_skip_jump", "boundary".

    queries: looks per case, all included. Cases are attacked one at a time, since foolbox lets those of a batch weaken each
    other; width: images in one batch, which are points around one case. The start is the smallest break among grey, black, white
    and noise, drawn for the case; failing these, the nearest image of another case here that is decided wrongly for this
    one, which is all that depends on the other cases. A case without a start is not broken by this attack: nothing is known of it.

    Cost: at most queries looks. A case on which the model raises keeps what was found until then and is marked nonfinite.
    ConfigError for an attack that does not bound the norm.
    """
    if budget.norm not in _DECIDED.get(attack, ()):
        raise ConfigError(
            f"found the attack {attack!r} in {budget.norm}: known are hop_skip_jump (linf, l2), boundary (l2)"
        )
    if queries < 1 or width < 1:
        raise ConfigError(f"found queries = {queries} and width = {width} for {attack}: both must be at least 1")
    with torch.inference_mode(False), torch.no_grad():
        found = nothing(cases)
        for row in _open(cases, budget, 1):
            _merge(found, row, _decided(cases, row, budget.norm, attack, queries, width))
    return found


def _decided(cases: Cases, row: torch.Tensor, norm: Norm, attack: str, queries: int, width: int) -> Found:
    one, last = cases.rows(row), min(SHRINK_LOOKS + 1, queries // 10)
    view = View(one, norm, limit=queries - last)
    search = _HopSkipJump(norm, width) if attack == "hop_skip_jump" else BoundaryAttack(steps=queries)
    if bool(view.broken(one.pixels)):
        return view.found

    def walk() -> None:
        if _started(view, cases, width):
            search.run(view, one.pixels.cpu(), ClassOne(), starting_points=view.found.images.cpu().clone())

    with own_randomness(case_seed(cases.seed, attack, one.keys[0]), torch.device("cpu")):
        found = _isolated(torch.zeros_like(row), lambda rows: (view, walk))
    if last > 1:
        _shorten(one, found, norm, last - 1)
    return found


def _started(view: View, cases: Cases, width: int) -> bool:
    """Whether a point was found from which a walk can start."""
    one = view.cases
    clean = one.pixels
    noise = torch.rand((_NOISES, *clean.shape[1:]), generator=one.generators("start")[0]).to(clean)
    own = [torch.full_like(clean, level) for level in (0.5, 0.0, 1.0)] + [
        clean + share * (noise - clean) for share in _BLENDS
    ]
    for part in torch.split(torch.cat(own), width):  # all of them, since the nearest break counts
        view.broken(part)
    if bool(torch.isfinite(view.found.size[0])):
        return True
    nearest = size(cases.pixels - clean, view.norm).argsort().to(clean.device)
    return any(bool(view.broken(part).any()) for part in torch.split(cases.pixels[nearest], width))
