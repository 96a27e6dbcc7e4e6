"""Attacks run each by itself on the same few cases, so that they can be compared: a cascade cannot tell what it skipped.

Shapes: B cases, C H W image, E budgets, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from xvision.attacks.apgd import APGD
from xvision.attacks.balls import Norm
from xvision.attacks.cases import Budget, Cases, Found, Seen, budget_of
from xvision.attacks.catalogue import ATTACKS, Clean, Effort
from xvision.attacks.gradient_walks import MarginPGD
from xvision.attacks.search import Attempt, Rows, State, Walker, pursue

RESTARTS = 5
"""Starts of the attack that must not find much more than one start does."""
GREY = 0.5
TIMES = 2
"""How many times longer the attack runs that must not find much more than the plain one."""
_COMPARED = ("noise", "single_step", "pgd", "apgd_ce", "apgd_margin", "square", "transfer", "hop_skip_jump")


class Alone(NamedTuple):
    """Which right decisions each attack broke by itself within one epsilon, and how it went.

    success: name to (B,) bool, of those attacks that the norm and the model allow, and "longer" and "restarted" PGD. curve:
    (B, E) bool, PGD within each budget by itself. paths: (B, S) the margin at each step of the margin attack, its last value
    repeated once it broke. silent: (B,) bool, an iterate of that attack broke the case and its answer does not. unbounded: (B,)
    bool, broken when every image is allowed. All four are None without gradients.
    half: (B,) bool, broken within L∞ 0.5, and grey: (B,) bool, broken at the mid-grey image, which lies that near to every image;
    None in other norms. images: (B, C, H, W) what the
    strongest attack found, the clean image where nothing. found: (B,) bool, whether it found anything.
    """

    success: dict[str, np.ndarray]
    curve: np.ndarray | None
    paths: np.ndarray | None
    silent: np.ndarray | None
    unbounded: np.ndarray | None
    half: np.ndarray | None
    grey: np.ndarray | None
    images: torch.Tensor
    found: np.ndarray


def alone(cases: Cases, norm: Norm, epsilon: float, epsilons: Sequence[float], effort: Effort, clean: Clean) -> Alone:
    """Each attack by itself on cases that are decided rightly.

    Cost: about 10 × ``pgd_steps`` + 2 × ``steps`` looks with a gradient per case that stands, and ``queries`` without.
    """
    within = budget_of(norm, [epsilon], cases.pixels)
    gradients = clean.gradient is not None
    found = {
        name: ATTACKS[name].run(cases, within, effort, clean)
        for name in _COMPARED
        if ATTACKS[name].refuse(norm, 1, gradients=gradients) is None
        and (ATTACKS[name].kind != "transfer" or clean.student is not None)
        and (ATTACKS[name].kind != "decisions" or not gradients)
    }
    grey = _array(cases.broken(torch.full_like(cases.pixels, GREY))) if norm == "linf" else None
    if not gradients:
        best = found.get("square", found["noise"])
        return Alone(_success(found), None, None, None, None, None, grey, best.images, _hit(best))
    longer = replace(effort, pgd_steps=TIMES * effort.pgd_steps)
    found["longer"] = ATTACKS["pgd"].run(cases, within, longer, clean)
    tries = [[Attempt(start) for start in range(RESTARTS)]] * len(cases)
    found["restarted"] = pursue(cases, within, MarginPGD(effort.pgd_steps), width=effort.width, attempts=tries)
    curve = [_pgd(cases, budget_of(norm, [each], cases.pixels), effort) for each in epsilons]
    unbounded = _far(cases, norm, 1.0, longer, tries)
    half = _far(cases, norm, GREY, longer, tries) if norm == "linf" else None
    walker: Walker = MarginPGD(effort.steps) if norm == "l0" else APGD("margin", effort.steps)
    path = _Path(len(cases), effort.steps)
    best = pursue(cases, within, walker, width=effort.width, watch=path)
    columns, hits = np.stack([_hit(each) for each in curve], axis=1), _hit(best)
    return Alone(
        _success(found), columns, _filled(path.margins), path.broken & ~hits, unbounded, half, grey, best.images, hits
    )


class _Path:
    """Writes down the margin at every step of a search, and which cases any of its iterates broke."""

    def __init__(self, cases: int, steps: int) -> None:
        self.margins, self.broken = np.full((cases, steps), np.nan), np.zeros(cases, dtype=bool)

    def __call__(self, rows: Rows, state: State, seen: Seen) -> None:
        goal, places = rows.cases.goal, _array(rows.place)
        self.margins[places, _array(rows.step)] = _array(goal.margin(seen.logits))
        self.broken[places[_array(rows.cases.confirmed(state["at"], goal.broken(seen.logits)))]] = True


def _filled(paths: np.ndarray) -> np.ndarray:
    """Each row's last value in the places that it never reached."""
    reached = np.where(np.isnan(paths), 0, np.arange(paths.shape[1])[None, :]).max(axis=1)
    steps = np.minimum(np.arange(paths.shape[1])[None, :], reached[:, None])
    return np.asarray(np.take_along_axis(paths, steps, axis=1))


def _far(cases: Cases, norm: Norm, epsilon: float, effort: Effort, tries: Sequence[Sequence[Attempt]]) -> np.ndarray:
    """Which cases PGD or APGD breaks, from several starts, where so much is allowed that an honest model must give way."""
    budget = budget_of(norm, [epsilon], cases.pixels)
    found = pursue(cases, budget, MarginPGD(effort.pgd_steps), width=effort.width, attempts=tries)
    if norm == "l0":
        return _hit(found)
    rest = replace(budget, reached=found.size)
    more = pursue(cases, rest, APGD("margin", effort.steps), width=effort.width, attempts=tries)
    return np.asarray(_hit(found) | _hit(more))


def _pgd(cases: Cases, budget: Budget, effort: Effort) -> Found:
    return pursue(cases, budget, MarginPGD(effort.pgd_steps), width=effort.width)


def _success(found: dict[str, Found]) -> dict[str, np.ndarray]:
    return {name: _hit(each) for name, each in found.items()}


def _hit(found: Found) -> np.ndarray:
    return np.asarray(np.isfinite(found.size.numpy()))


def _array(values: torch.Tensor) -> np.ndarray:
    return np.asarray(values.detach().cpu().numpy())
