"""Noise, the single step and PGD against the smallest change that breaks a linear model, and against a grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import settings
from scipy.optimize import brentq, linprog

from xvision.attacks.apgd import APGD, attempts
from xvision.attacks.balls import NORMS, Norm, drawn, unit
from xvision.attacks.cases import Budget, Cases, Found, budget_of, cases_of
from xvision.attacks.goals import ClassGoal, Goal, class_goal, finding_goal
from xvision.attacks.gradient_walks import MarginPGD, noise, single_step
from xvision.attacks.search import Walker, pursue
from xvision.methods.decision import Decision

quick = settings(deadline=None, max_examples=30)
SIDE = 4


class Linear(NamedTuple):
    """A linear model with its cases; weights (K, D), offsets (K,)."""

    weights: torch.Tensor
    offsets: torch.Tensor
    cases: Cases

    def logits(self) -> torch.Tensor:
        return self.cases.forward(self.cases.pixels)


def linear(seed: int, outputs: int, goal_of: Callable[[torch.Tensor], Goal], *, count: int = 8) -> Linear:
    """Images of which half the values are at a bound, and the goal of what the model decides on them."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 1, SIDE, SIDE, generator=generator)
    pixels = torch.where(torch.rand(pixels.shape, generator=generator) < 0.5, pixels.round(), pixels)
    weights = torch.randn(outputs, SIDE * SIDE, generator=generator)
    offsets = -(weights @ pixels.flatten(1).T).mean(dim=1) + 0.2 * torch.randn(outputs, generator=generator)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([(images.flatten(1) * row).sum(dim=1) for row in weights], dim=1) + offsets

    keys = [f"case {number}" for number in range(count)]
    return Linear(weights, offsets, cases_of(forward, pixels, goal_of(forward(pixels)), keys=keys, seed=seed))


def one_logit(logits: torch.Tensor) -> Goal:
    return class_goal((logits[:, 0] > math.log(0.7 / 0.3)).long(), 2, Decision(1, 0.7))


def most_probable(logits: torch.Tensor) -> Goal:
    return class_goal(logits.argmax(dim=1), logits.shape[1], Decision())


def threshold(logits: torch.Tensor) -> Goal:
    return class_goal((logits[:, 1] - logits[:, 0] > math.log(0.3 / 0.7)).long(), 2, Decision(1, 0.3))


def missed_disease(logits: torch.Tensor) -> Goal:
    labels = logits.argmax(dim=1)
    return class_goal(labels, 3, Decision(directions=("missed disease",), no_disease=0))


def two_grades_off(logits: torch.Tensor) -> Goal:
    return class_goal(logits.argmax(dim=1), logits.shape[1], Decision(off_by=2))


def findings(logits: torch.Tensor) -> Goal:
    return finding_goal(logits > 0, [0.5] * logits.shape[1], chosen=[0, 2])


GOALS: dict[str, tuple[int, Callable[[torch.Tensor], Goal]]] = {
    "one logit at a threshold": (1, one_logit),
    "two logits": (2, most_probable),
    "two logits at a threshold": (2, threshold),
    "three logits": (3, most_probable),
    "five logits": (5, most_probable),
    "findings": (3, findings),
    "missed disease": (3, missed_disease),
    "two grades off": (5, two_grades_off),
}


def half_spaces(model: Linear, case: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per way of breaking the (m, D) normals and (m,) margins: broken where normals · change + margins >= 0, all of them."""
    goal, logits = model.cases.goal, model.logits()[case].double()
    weights = model.weights.double()
    if not isinstance(goal, ClassGoal):
        signs = torch.where(goal.present[case], -1.0, 1.0)
        return [
            ((signs[way] * weights[way])[None].numpy(), (signs[way] * logits[way])[None].numpy())
            for way in range(len(logits))
            if bool(goal.counts[case, way])
        ]
    if len(weights) == 1:
        weights, logits = torch.cat([torch.zeros_like(weights), weights]), torch.cat([torch.zeros_like(logits), logits])
    if goal.decision.threshold is not None:
        logits = logits - torch.tensor([0.0, math.log(goal.decision.threshold / (1 - goal.decision.threshold))])
    kept = torch.nonzero(~goal.wrong[case]).squeeze(1)
    ways = torch.nonzero(goal.wrong[case]).squeeze(1).tolist()
    return [((weights[way] - weights[kept]).numpy(), (logits[way] - logits[kept]).numpy()) for way in ways]


def smallest(model: Linear, case: int, norm: Norm) -> float:
    """The exact smallest change in [0, 1], by linear programming or, in l2 with one half-space, by its own equation."""
    pixels = model.cases.pixels[case].flatten().double().numpy()
    sizes = [_one_way(normals, margins, -pixels, 1 - pixels, norm) for normals, margins in half_spaces(model, case)]
    return min(sizes, default=math.inf)


def _one_way(normals: np.ndarray, margins: np.ndarray, low: np.ndarray, high: np.ndarray, norm: Norm) -> float:
    count = len(low)
    if norm == "l2":
        (normal,), (margin,) = normals, margins

        def gain(scale: float) -> float:
            return float(normal @ np.clip(scale * normal, low, high) + margin)

        if gain(1e9) < 0:
            return math.inf
        return float(np.linalg.norm(np.clip(brentq(gain, 0.0, 1e9, xtol=1e-14, rtol=1e-14) * normal, low, high)))
    if norm == "linf":  # change, then its largest absolute value
        cost, bounds = np.r_[np.zeros(count), 1.0], [*zip(low, high, strict=True), (0.0, None)]
        ball = np.vstack([np.c_[np.eye(count), -np.ones(count)], np.c_[-np.eye(count), -np.ones(count)]])
        rows, right = np.vstack([ball, np.c_[-normals, np.zeros(len(normals))]]), np.r_[np.zeros(2 * count), margins]
    else:  # what rises, then what falls
        cost, bounds = np.ones(2 * count), [(0.0, value) for value in (*high, *-low)]
        rows, right = np.c_[-normals, normals], margins
    solved = linprog(cost, A_ub=rows, b_ub=right, bounds=bounds)
    return float(solved.fun) if solved.success else math.inf


Attack = Callable[[Cases, Budget], Found]


def broken_from(model: Linear, norm: Norm, attack: Attack, tolerance: float) -> int:
    """Checks that each case breaks at its smallest change and the tolerance, and not below; how many were checked."""
    checked = 0
    for case in range(len(model.cases)):
        exact = smallest(model, case, norm) / unit(norm, (1, SIDE, SIDE))
        if not 1e-3 < exact < 0.9:
            continue
        part = model.cases.rows(torch.tensor([case]))
        budget = budget_of(norm, (exact * 0.998, exact * (1 + tolerance)), part.pixels)
        found = attack(part, budget)
        assert budget.columns(found.size).tolist() == [1], (case, exact, found.size)
        checked += 1
    return checked


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["one logit at a threshold", "two logits", "two logits at a threshold"])
def test_a_single_step_breaks_a_binary_linear_model_wherever_it_can_be(name: str, norm: Norm, seed: int) -> None:
    model = linear(seed, *GOALS[name])
    assert broken_from(model, norm, lambda *of: single_step(*of, gradient=None, width=5), 1e-4) >= 5


EXACT = [
    (MarginPGD(20), "linf", 1e-4),
    (MarginPGD(20), "l2", 0.005),  # where the box binds, normalised steps come near to the best change only
    (MarginPGD(20), "l1", 1e-4),
    (APGD("margin", 30), "linf", 1e-4),
    (APGD("margin", 30), "l2", 0.005),
    (APGD("margin", 40), "l1", 0.005),
]


@pytest.mark.parametrize(("walker", "norm", "tolerance"), EXACT)
@pytest.mark.parametrize("name", ["one logit at a threshold", "two logits", "three logits", "five logits", "findings"])
def test_walkers_break_linear_models_wherever_they_can_be(
    name: str, walker: Walker, norm: Norm, tolerance: float
) -> None:
    model = linear(2, *GOALS[name], count=4)

    def attack(cases: Cases, budget: Budget) -> Found:
        tries = attempts(cases, cases.forward(cases.pixels), 1, 9)
        return pursue(cases, budget, walker, width=64, attempts=tries)

    assert broken_from(model, norm, attack, tolerance) >= 3


@pytest.mark.parametrize("walker", [MarginPGD(60), APGD("margin", 60)])
@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("name", ["missed disease", "two grades off"])
def test_directions_and_grades_are_never_broken_below_the_smallest_change_and_mostly_at_it(
    name: str, norm: Norm, walker: Walker
) -> None:
    """Where several classes must be passed at once the best change is at a corner of the margin, which steps approach."""
    model, columns = linear(3, *GOALS[name], count=6), []
    for case in range(len(model.cases)):
        exact = smallest(model, case, norm) / unit(norm, (1, SIDE, SIDE))
        if 1e-3 < exact < 0.6:
            part = model.cases.rows(torch.tensor([case]))
            budget = budget_of(norm, (exact * 0.998, exact * 1.01, exact * 1.5), part.pixels)
            tries = attempts(part, part.forward(part.pixels), 1, 9)
            columns += budget.columns(pursue(part, budget, walker, width=64, attempts=tries).size).tolist()
    assert set(columns) <= {1, 2}
    assert columns.count(1) >= max(columns.count(2), 2)


def test_a_case_with_nothing_to_break_is_not_attacked() -> None:
    model = linear(3, *GOALS["missed disease"], count=12)
    healthy = model.logits().argmax(dim=1) == 0
    assert 0 < int(healthy.sum()) < 12
    budget = budget_of("linf", (0.5,), model.cases.pixels)
    tries = attempts(model.cases, model.logits(), 1, 0)
    found = pursue(model.cases, budget, MarginPGD(3), width=64, attempts=tries)
    assert torch.equal(found.looks == 0, healthy)
    assert bool(found.size[healthy].isinf().all())


def test_the_single_step_of_l0_moves_the_values_that_gain_most_to_their_bounds() -> None:
    pixels = torch.tensor([0.5, 0.9, 0.0, 0.2]).view(1, 1, 2, 2)
    weights = torch.tensor([1.0, 3.0, -9.0, -2.0])  # gains: 0.5, 0.3, nothing, 0.4
    cases = cases_of(
        lambda x: (x.flatten(1) @ weights)[:, None] - (weights @ pixels.flatten() + 0.85).item(),
        pixels,
        class_goal(torch.tensor([0]), 2, Decision(1, 0.5)),
        keys=["a"],
        seed=0,
    )
    found = single_step(cases, budget_of("l0", (0.25, 0.5, 0.75), pixels), gradient=None, width=1)
    assert found.size.tolist() == [2.0]
    torch.testing.assert_close(found.images.flatten(), torch.tensor([1.0, 0.9, 0.0, 0.0]))
    assert pursue(cases, budget_of("l0", (0.25, 0.5), pixels), MarginPGD(3), width=1).size.tolist() == [2.0]


def test_pgd_in_l0_follows_the_mean_of_the_slopes_where_the_last_one_turns_in_a_circle() -> None:
    """From each of the first two pixels the slope says the other; only the third breaks."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        first, second, third = images.flatten(1).T
        mixed = first * second + first * third + second * third
        value = first + 0.9 * second + 0.8 * third - 0.5 * first**2 - 0.45 * second**2 + 0.1 * mixed
        return value[:, None] - 0.7

    pixels = torch.zeros(1, 1, 1, 3)
    cases = cases_of(forward, pixels, class_goal(torch.tensor([0]), 2, Decision(1, 0.5)), keys=["a"], seed=0)
    found = pursue(cases, budget_of("l0", (0.34,), pixels), MarginPGD(6), width=1)
    assert found.images.flatten().tolist() == [0.0, 0.0, 1.0]
    assert found.looks.tolist() == [4]  # the image, the first pixel, the second, the third


def test_the_single_step_of_linf_is_the_fast_gradient_sign_method() -> None:
    model = linear(5, *GOALS["two logits"], count=3)
    pixels = model.cases.pixels
    slope = (model.weights[1] - model.weights[0]).view(1, 1, SIDE, SIDE)
    up = torch.where(model.logits().argmax(dim=1) == 0, 1.0, -1.0)[:, None, None, None]
    found = single_step(model.cases, budget_of("linf", (0.6,), pixels), gradient=None, width=2)
    expected = (pixels + 0.6 * torch.sign(up * slope)).clamp(0, 1)
    assert torch.isfinite(found.size).all()
    torch.testing.assert_close(found.images, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_slope_is_taken_where_the_caller_takes_none(mode: type[torch.no_grad]) -> None:
    cases = linear(5, *GOALS["two logits"], count=3).cases
    budget = budget_of("linf", (0.1, 0.3, 0.6), cases.pixels)
    plain = single_step(cases, budget, gradient=None, width=2)
    with mode():
        inside = single_step(cases.rows(torch.arange(3)), budget, gradient=None, width=2)
    assert torch.equal(inside.images, plain.images)


def test_one_gradient_serves_all_budgets() -> None:
    asked: list[bool] = []
    model = linear(6, *GOALS["two logits"], count=4)

    def recording(images: torch.Tensor) -> torch.Tensor:
        asked.append(images.requires_grad)
        return model.cases.forward(images)

    cases = cases_of(recording, model.cases.pixels, model.cases.goal, keys=list("abcd"), seed=0)
    budget = budget_of("linf", tuple(0.01 * 1.5**step for step in range(9)), cases.pixels)
    taken = single_step(cases, budget, gradient=None, width=3)
    assert asked[:2] == [True, True]
    assert not any(asked[2:])
    labels = cases.goal.broken(model.logits())
    assert not labels.any()
    slope = model.weights[1] - model.weights[0]
    up = torch.where(model.logits().argmax(dim=1) == 0, 1.0, -1.0)
    given_slope = (up[:, None] * slope).view(4, 1, SIDE, SIDE)
    asked.clear()
    given_found = single_step(cases, budget, gradient=given_slope, width=3)
    assert not any(asked)
    assert torch.equal(given_found.size, taken.size)
    assert torch.equal(given_found.looks + 1, taken.looks)


def test_a_slope_that_is_zero_or_no_number_moves_nothing_and_is_noted() -> None:
    model = linear(7, *GOALS["two logits"], count=3)
    slope = torch.ones(3, 1, SIDE, SIDE)
    slope[0] = 0.0
    slope[1] = torch.nan
    found = single_step(model.cases, budget_of("l2", (0.2,), slope), gradient=slope, width=3)
    assert found.flat.tolist() == [True, False, False]
    assert found.nonfinite.tolist() == [False, True, False]
    assert found.size[:2].isinf().all()


@pytest.mark.parametrize("norm", NORMS)
def test_noise_looks_at_so_many_draws_and_finds_the_smallest_that_breaks(norm: Norm) -> None:
    model = linear(8, *GOALS["two logits"])
    cases = model.cases
    budget = budget_of(norm, (0.45,), cases.pixels)
    found = noise(cases, budget, draws=7, width=5)
    assert found.looks.tolist() == [7] * len(cases)
    low, high = -cases.pixels, 1 - cases.pixels
    radius = torch.full((len(cases),), budget.radii[0])
    hit = torch.zeros(len(cases), dtype=torch.bool)
    for number in range(1, 8):
        change = drawn(low, high, radius, norm, cases.generators(f"start/{number}"))
        hit |= cases.broken((cases.pixels + change).clamp(0, 1))
    assert torch.equal(torch.isfinite(found.size), hit)
    assert 0 < int(hit.sum()) < len(hit)


def test_more_draws_break_no_less() -> None:
    cases = linear(9, *GOALS["three logits"], count=20).cases
    budget = budget_of("l2", (0.2, 0.4), cases.pixels)
    few, many = (noise(cases, budget, draws=draws, width=64) for draws in (2, 20))
    assert bool((budget.columns(many.size) <= budget.columns(few.size)).all())
    assert int((budget.columns(many.size) < budget.columns(few.size)).sum()) > 0
