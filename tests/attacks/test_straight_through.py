"""Borrowed slopes: the value is the model's to the bit, and rounding in front of a model no longer hides its slope."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from xvision.attacks.balls import Norm
from xvision.attacks.cases import Cases, Forward, budget_of, cases_of, look
from xvision.attacks.fab import fab
from xvision.attacks.goals import class_goal
from xvision.attacks.gradient_walks import MarginPGD
from xvision.attacks.search import pursue
from xvision.attacks.straight_through import borrowed_gradient, straight_through
from xvision.errors import ModelError
from xvision.methods.decision import Decision

SHAPE = (1, 6, 6)
STEP = 1 / 32
WEIGHT = torch.randn(36, 2, generator=torch.Generator().manual_seed(1))
SLOPE = WEIGHT[:, 1] - WEIGHT[:, 0]


def linear(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - 0.5).flatten(1) @ WEIGHT


def rounded(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels / STEP).round() * STEP


def hidden(pixels: torch.Tensor) -> torch.Tensor:
    return linear(rounded(pixels))


def images(count: int) -> torch.Tensor:
    return 0.3 + 0.4 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def cases(forward: Forward, count: int = 30) -> Cases:
    pixels = images(count)
    goal = class_goal(forward(pixels).argmax(dim=1), 2, Decision())
    return cases_of(forward, pixels, goal, keys=[str(place) for place in range(count)], seed=0)


def test_the_value_is_exact_and_the_slope_is_that_at_the_transformed_image() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))
    through = straight_through(rounded, model)
    pixels = images(20).requires_grad_()
    logits = through(pixels)
    assert torch.equal(logits, model(rounded(pixels)))
    (slope,) = torch.autograd.grad(logits[:, 1].sum(), pixels)
    inner = rounded(pixels.detach()).requires_grad_()
    (expected,) = torch.autograd.grad(model(inner)[:, 1].sum(), inner)
    assert torch.equal(slope, expected)
    assert bool((slope != 0).any())


def test_a_transform_with_a_slope_of_its_own_is_taken_as_the_identity() -> None:
    through = straight_through(lambda pixels: 5 * pixels, linear)
    pixels = images(3).requires_grad_()
    (slope,) = torch.autograd.grad(through(pixels)[:, 0].sum(), pixels)
    torch.testing.assert_close(slope.flatten(1), WEIGHT[:, 0].expand(3, -1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rounding_hides_the_slope_and_the_straight_way_through_finds_the_closed_form(norm: Norm) -> None:
    plain, open_one = cases(hidden), cases(straight_through(rounded, linear))
    gradient = look(plain, plain.pixels, "margin").gradient
    assert gradient is not None
    assert bool((gradient == 0).all())
    dual = 1.0 if norm == "linf" else 2.0
    distance = (linear(rounded(plain.pixels)) @ torch.tensor([1.0, -1.0])).abs() / torch.linalg.vector_norm(SLOPE, dual)
    margin = STEP if norm == "linf" else STEP * math.sqrt(36)
    budget = budget_of(norm, [0.001, 0.5], plain.pixels)
    blind = fab(plain, budget, steps=10, targets=1, restarts=1, width=30)
    found = fab(open_one, budget, steps=40, targets=1, restarts=1, width=30)
    assert bool(torch.isinf(blind.size).all())
    assert bool((found.size <= distance + margin).all())
    assert torch.equal(plain.broken(found.images), torch.ones(30, dtype=torch.bool))


def test_within_a_step_of_the_distance_every_case_is_broken_by_pgd() -> None:
    plain, open_one = cases(hidden), cases(straight_through(rounded, linear))
    distance = (linear(plain.pixels) @ torch.tensor([1.0, -1.0])).abs() / SLOPE.abs().sum()
    for epsilon in (0.01, 0.03, 0.06):
        budget = budget_of("linf", [epsilon], plain.pixels)
        blind, found = (pursue(part, budget, MarginPGD(steps=10), width=30) for part in (plain, open_one))
        assert bool(torch.isinf(blind.size).all())
        assert bool(torch.isfinite(found.size)[distance + STEP <= epsilon].all())
        assert bool(torch.isinf(found.size)[distance - STEP > epsilon].all())
    assert int((distance + STEP <= epsilon).sum()) >= 5


def test_a_borrowed_slope_leaves_the_value_and_finds_the_same_breaks() -> None:
    borrowed = borrowed_gradient(hidden, linear)
    pixels = images(10).requires_grad_()
    logits = borrowed(pixels)
    assert torch.equal(logits, hidden(pixels))
    (slope,) = torch.autograd.grad(logits[:, 1].sum(), pixels)
    torch.testing.assert_close(slope.flatten(1), WEIGHT[:, 1].expand(10, -1))
    budget = budget_of("linf", [0.02, 0.05], images(30))
    lent, through = (
        pursue(cases(forward), budget, MarginPGD(steps=10), width=30)
        for forward in (borrowed, straight_through(rounded, linear))
    )
    assert torch.equal(lent.size, through.size)
    assert bool(torch.isfinite(lent.size).any())


def test_a_model_keeps_its_own_slope_to_itself() -> None:
    pixels = images(3).requires_grad_()
    borrowed = borrowed_gradient(lambda seen: 5 * linear(seen), linear)
    (slope,) = torch.autograd.grad(borrowed(pixels)[:, 0].sum(), pixels)
    torch.testing.assert_close(slope.flatten(1), WEIGHT[:, 0].expand(3, -1))


def test_a_surrogate_that_is_not_finite_does_not_spoil_the_value() -> None:
    borrowed = borrowed_gradient(linear, lambda pixels: linear(pixels) / 0.0)
    assert torch.equal(borrowed(images(4)), linear(images(4)))


def test_shapes_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ModelError, match="differentiable stand-in"):
        straight_through(lambda pixels: pixels[:, :, ::2], linear)(images(2))
    with pytest.raises(ModelError, match="same question"):
        borrowed_gradient(linear, lambda pixels: linear(pixels)[:, :1])(images(2))


def test_the_models_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model, twin = (nn.Sequential(nn.Flatten(), nn.Linear(36, 2)) for _ in range(2))
    before = [values.clone() for part in (model, twin) for values in part.parameters()]
    for forward in (straight_through(rounded, model), borrowed_gradient(model, twin)):
        pursue(cases(forward), budget_of("l2", [0.01], images(30)), MarginPGD(steps=4), width=8)
    after = [values for part in (model, twin) for values in part.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(values.grad is None for values in after)
