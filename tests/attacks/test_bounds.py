"""Bounds behind the pixels against closed forms, quadratic programming, a dense grid and a gradient attack."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from xvision.attacks.balls import Norm
from xvision.attacks.bounds import Dense, certified_linf, leads, linear_distance
from xvision.attacks.goals import ClassGoal, class_goal
from xvision.errors import ConfigError
from xvision.methods.decision import Decision

ORDERS: dict[Norm, float] = {"linf": math.inf, "l2": 2, "l1": 1}


def dense(sizes: tuple[int, ...], seed: int) -> Dense:
    generator = torch.Generator().manual_seed(seed)
    layers = tuple(
        (
            torch.randn(wide, narrow, generator=generator).double() / math.sqrt(narrow),
            0.3 * torch.randn(wide, generator=generator).double(),
        )
        for narrow, wide in itertools.pairwise(sizes)
    )
    return Dense(layers, "pixels")


def centred(network: Dense, points: torch.Tensor) -> Dense:
    """The network with logits whose means over the points are equal, so that every class is decided somewhere."""
    weight, bias = network.layers[-1]
    return Dense((*network.layers[:-1], (weight, bias - network.logits(points).mean(dim=0))), network.space)


def goal_of(network: Dense, points: torch.Tensor, decision: Decision | None = None) -> ClassGoal:
    """What the network decides is right."""
    logits = network.logits(points)
    plain = class_goal(torch.zeros(len(points), dtype=torch.int64), logits.shape[1], decision or Decision())
    return class_goal(plain.scores(logits).argmax(dim=1), logits.shape[1], decision or Decision())


def margin_of(network: Dense, points: torch.Tensor, goal: ClassGoal) -> torch.Tensor:
    """(B,) how far the right class leads."""
    return -goal.margin(network.logits(points))


def held(network: Dense, points: torch.Tensor, goal: ClassGoal, radius: float) -> torch.Tensor:
    """(B,) lower bounds of the lead over the box of this radius within [0, 1]."""
    found = leads(network, (points - radius).clamp(min=0), (points + radius).clamp(max=1), goal)
    best = found.masked_fill(goal.wrong[:, :, None], -torch.inf).amax(dim=1)
    return best.masked_fill(~goal.wrong, torch.inf).amin(dim=1)


def attacked(network: Dense, points: torch.Tensor, goal: ClassGoal, radius: float, steps: int = 40) -> torch.Tensor:
    """(B,) bool, broken by ascent of the margin's gradient within the box, from several starts."""
    generator = torch.Generator().manual_seed(0)
    low, high = (points - radius).clamp(min=0), (points + radius).clamp(max=1)
    broken = torch.zeros(len(points), dtype=torch.bool)
    for _ in range(4):
        at = low + (high - low) * torch.rand(points.shape, generator=generator).double()
        for step in range(steps):
            at.requires_grad_()
            margin = goal.margin(_differentiable(network, at))
            broken |= margin.detach() > 0
            (slope,) = torch.autograd.grad(margin.sum(), at)
            at = (at.detach() + 2 * radius * (1 - step / steps) * slope.sign()).maximum(low).minimum(high)
    return broken


def _differentiable(network: Dense, points: torch.Tensor) -> torch.Tensor:
    values = points
    for place, (weight, bias) in enumerate(network.layers):
        values = (values.relu() if place else values) @ weight.T + bias
    return values


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_two_classes_and_a_threshold_in_closed_form(norm: Norm) -> None:
    weight = torch.tensor([[0.5, -1.0, 2.0], [1.0, 2.0, -1.0]]).double()
    points = torch.tensor([[0.2, 0.1, 0.3], [0.9, 0.8, 0.1]]).double()
    layer = (weight, torch.tensor([0.25, 0.0]).double())
    network = Dense((layer,), "embeddings")
    decision = Decision(1, 0.8)
    goal = goal_of(network, points, decision)
    odds = points @ (weight[1] - weight[0]) - 0.25 - math.log(0.8 / 0.2)
    dual = {"linf": 6.5, "l2": math.sqrt(0.25 + 9 + 9), "l1": 3.0}[norm]
    found = linear_distance(network.logits(points), layer, goal, norm)
    assert found.exact.all()
    assert found.size.tolist() == pytest.approx((odds.abs() / dual).tolist(), abs=2e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_several_classes_against_the_smallest_change_over_all_wrong_classes(norm: Norm) -> None:
    network = dense((5, 4), 3)
    points = torch.rand(12, 5, generator=torch.Generator().manual_seed(1)).double()
    goal = goal_of(network, points)
    found = linear_distance(network.logits(points), network.layers[0], goal, norm)
    weight, dual = network.layers[0][0].numpy(), {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    logits, right = network.logits(points).numpy(), (~goal.wrong).int().argmax(dim=1).tolist()
    for row, own in enumerate(right):
        gaps = [
            (logits[row, own] - logits[row, other]) / np.linalg.norm(weight[own] - weight[other], dual)
            for other in range(4)
            if other != own
        ]
        assert found.size[row].item() == pytest.approx(min(gaps), rel=1e-9)


def test_l2_distance_is_what_quadratic_programming_finds() -> None:
    network = dense((4, 3), 5)
    points = torch.rand(6, 4, generator=torch.Generator().manual_seed(2)).double()
    goal = goal_of(network, points)
    found = linear_distance(network.logits(points), network.layers[0], goal, "l2")
    weight, bias = (part.numpy() for part in network.layers[0])
    for row, point in enumerate(points.numpy()):
        own = int((~goal.wrong[row]).int().argmax())
        sizes = []
        for other in set(range(3)) - {own}:
            slope, shift = weight[other] - weight[own], bias[other] - bias[own]
            limit = {"type": "ineq", "fun": lambda change, s=slope, c=shift, at=point: s @ (at + change) + c}
            solved = minimize(lambda change: change @ change, np.zeros(4), constraints=[limit], tol=1e-14)
            sizes.append(math.sqrt(solved.fun))
        assert found.size[row].item() == pytest.approx(min(sizes), rel=1e-4)


def test_several_right_classes_give_a_bound_that_says_so() -> None:
    network = dense((5, 4), 3)
    points = torch.rand(40, 5, generator=torch.Generator().manual_seed(3)).double()
    labels = goal_of(network, points).wrong.logical_not().int().argmax(dim=1)
    goal = class_goal(labels, 4, Decision(off_by=2))
    found = linear_distance(network.logits(points), network.layers[0], goal, "linf")
    assert found.exact.tolist() == [int((~row).sum()) in (1, 4) for row in goal.wrong]
    assert not found.exact.all()
    weight, logits = network.layers[0][0].numpy(), network.logits(points).numpy()
    for row, wrong in enumerate(goal.wrong.numpy()):
        boundaries = [
            max(
                max(0.0, logits[row, right] - logits[row, other]) / np.abs(weight[right] - weight[other]).sum()
                for right in np.flatnonzero(~wrong)
            )
            for other in np.flatnonzero(wrong)
        ]
        assert found.size[row].item() == pytest.approx(min(boundaries), rel=1e-9)
    finite = torch.isfinite(found.size)
    for row in torch.nonzero(finite & (found.size > 0)).flatten().tolist():
        change = torch.rand(4000, 5, generator=torch.Generator().manual_seed(row)).double() * 2 - 1
        moved = points[row] + 0.999 * found.size[row] * change.sign()
        assert not goal.rows(torch.full((4000,), row)).broken(network.logits(moved)).any()


def test_what_is_broken_has_no_distance_and_what_cannot_break_has_no_end() -> None:
    network = dense((5, 3), 4)
    points = torch.rand(8, 5, generator=torch.Generator().manual_seed(4)).double()
    right = goal_of(network, points)
    logits = network.logits(points)
    wrong = class_goal(((~right.wrong).int().argmax(dim=1) + 1) % 3, 3, Decision())
    assert linear_distance(logits, network.layers[0], wrong, "l2").size.tolist() == [0.0] * 8
    healthy = class_goal(torch.zeros(8, dtype=torch.int64), 3, Decision(directions=("missed disease",), no_disease=0))
    never = linear_distance(logits, network.layers[0], healthy, "l2")
    assert torch.isinf(never.size).all()
    assert never.exact.all()
    with pytest.raises(ConfigError, match="l0"):
        linear_distance(logits, network.layers[0], right, "l0")


@given(seed=st.integers(0, 10_000), radius=st.floats(0.001, 0.5))
@settings(max_examples=40, deadline=None)
def test_one_layer_is_bounded_exactly(seed: int, radius: float) -> None:
    network = dense((6, 3), seed)
    points = torch.rand(5, 6, generator=torch.Generator().manual_seed(seed)).double()
    goal = goal_of(network, points)
    weight, bias = network.layers[0]
    low, high = (points - radius).clamp(min=0), (points + radius).clamp(max=1)
    found = leads(network, low, high, goal)
    for first in range(3):
        for second in range(3):
            slope = weight[first] - weight[second]
            worst = torch.where(slope > 0, low, high) @ slope + bias[first] - bias[second]
            assert torch.allclose(found[:, first, second], worst, atol=1e-9)


@given(seed=st.integers(0, 10_000), radius=st.floats(0.001, 0.4))
@settings(max_examples=40, deadline=None)
def test_no_point_of_the_box_is_below_the_bound(seed: int, radius: float) -> None:
    network = dense((2, 7, 5, 2), seed)
    points = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed)).double()
    goal = goal_of(network, points, Decision(1, 0.6))
    bound = held(network, points, goal, radius)
    line = torch.linspace(0, 1, 41).double()
    grid = torch.cartesian_prod(line, line)
    for row, point in enumerate(points):
        low, high = (point - radius).clamp(min=0), (point + radius).clamp(max=1)
        many = low + (high - low) * grid
        each = goal.rows(torch.full((len(many),), row))
        assert margin_of(network, many, each).min() >= bound[row] - 1e-9


def test_bounds_are_better_than_intervals_alone_and_meet_the_value_in_a_point() -> None:
    network = dense((10, 16, 16, 3), 1)
    points = torch.rand(20, 10, generator=torch.Generator().manual_seed(9)).double()
    goal = goal_of(network, points)
    assert torch.allclose(held(network, points, goal, 0.0), margin_of(network, points, goal), atol=1e-9)
    better = torch.stack(
        [held(network, points, goal, radius) - intervals(network, points, goal, radius) for radius in RADII]
    )
    assert (better >= -1e-9).all()
    assert better[0].median() > 0.1
    # In deep networks and large boxes lines alone are often worse than intervals.
    deep = dense((8, 16, 16, 16, 3), 3)
    many = torch.rand(30, 8, generator=torch.Generator().manual_seed(3)).double()
    right = goal_of(deep, many)
    for radius in (0.2, 0.4, 0.8):
        assert (held(deep, many, right, radius) >= intervals(deep, many, right, radius) - 1e-9).all()


RADII = (0.05, 0.3, 1.0)


def intervals(network: Dense, points: torch.Tensor, goal: ClassGoal, radius: float) -> torch.Tensor:
    """(B,) the lead over the box by interval arithmetic alone, written out for one right class."""
    low, high = (points - radius).clamp(min=0), (points + radius).clamp(max=1)
    for place, (weight, bias) in enumerate(network.layers[:-1]):
        low, high = (low, high) if place == 0 else (low.relu(), high.relu())
        middle, half = (low + high) / 2 @ weight.T + bias, (high - low) / 2 @ weight.abs().T
        low, high = middle - half, middle + half
    last, shift = network.layers[-1]
    right = (~goal.wrong).int().argmax(dim=1)
    slope = last[right][:, None] - last[None]
    plain = (slope.clamp(min=0) @ low.relu()[:, :, None] + slope.clamp(max=0) @ high.relu()[:, :, None]).squeeze(2)
    return (plain + shift[right][:, None] - shift[None]).masked_fill(~goal.wrong, torch.inf).amin(dim=1)


def number(value: float) -> torch.Tensor:
    return torch.tensor([[value]]).double()


@pytest.mark.parametrize(
    ("low", "high", "bound"), [(-1.0, 3.0, -5.5), (-3.0, 1.0, -5.5), (1.0, 2.0, -4.5), (-2.0, -1.0, -4.5)]
)
def test_a_unit_that_may_be_on_or_off_is_above_the_line_that_leaves_less(low: float, high: float, bound: float) -> None:
    # The lead is relu(x) - (x + 10) / 2, which is smallest, -5, at 0. From -1 to 3 the unit is taken as x, from -3 to 1 as 0.
    first = torch.tensor([[1.0], [1.0]]).double(), torch.tensor([0.0, 10.0]).double()
    last = torch.tensor([[0.0, 0.5], [1.0, 0.0]]).double(), torch.zeros(2).double()
    goal = class_goal(torch.tensor([1]), 2, Decision())
    found = leads(Dense((first, last), "pixels"), number(low), number(high), goal)
    assert found[0, 1, 0].item() == pytest.approx(bound)


def test_values_stay_within_their_range() -> None:
    # Log-odds x + 0.1 fall below 0 only below the range, 1.1 - x only above it.
    goal = class_goal(torch.tensor([1]), 2, Decision())
    for slope, shift, point in ((1.0, 0.1, 0.05), (-1.0, 1.1, 0.95)):
        layer = torch.tensor([[0.0], [slope]]).double(), torch.tensor([0.0, shift]).double()
        network = Dense((layer,), "pixels")
        inside = certified_linf(network, number(point), goal, low=0.0, high=1.0, largest=1.0)
        assert inside.size.item() == 1.0
        outside = certified_linf(network, number(point), goal, low=-9.0, high=9.0, largest=1.0)
        assert outside.size.item() == pytest.approx(0.15, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_certified_sizes_are_below_what_an_attack_needs_and_certify_every_smaller_one(seed: int) -> None:
    points = torch.rand(30, 8, generator=torch.Generator().manual_seed(seed)).double()
    network = centred(dense((8, 12, 12, 3), seed), points)
    goal = goal_of(network, points)
    found = certified_linf(network, points, goal, low=0.0, high=1.0, largest=0.5)
    assert not found.exact.any()
    assert (found.size > 0).all()
    smallest = torch.full((30,), math.inf).double()
    for radius in np.geomspace(0.5, 0.002, 16):
        smallest = torch.where(attacked(network, points, goal, float(radius)), float(radius), smallest)
    assert (found.size <= smallest).all()
    assert torch.isfinite(smallest).sum() > 10
    assert (smallest / found.size)[torch.isfinite(smallest)].median() < 3
    for share in (0.25, 0.5, 0.9, 1.0):
        radii = share * found.size[:, None]
        bounds = leads(network, (points - radii).clamp(min=0), (points + radii).clamp(max=1), goal)
        right = (~goal.wrong).int().argmax(dim=1)
        least = bounds[torch.arange(30), right].masked_fill(~goal.wrong, math.inf).amin(dim=1)
        assert (least > 0).all()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_larger_box_is_never_bounded_better(seed: int) -> None:
    network = dense((6, 10, 2), seed)
    points = torch.rand(4, 6, generator=torch.Generator().manual_seed(seed)).double()
    goal = goal_of(network, points)
    found = [held(network, points, goal, radius) for radius in (0.0, 0.01, 0.03, 0.1, 0.3)]
    for smaller, larger in itertools.pairwise(found):
        assert (larger <= smaller + 1e-9).all()


def test_one_layer_is_certified_up_to_its_exact_distance() -> None:
    network = dense((6, 2), 8)
    points = 0.4 + 0.2 * torch.rand(10, 6, generator=torch.Generator().manual_seed(8)).double()
    goal = goal_of(network, points)
    exact = linear_distance(network.logits(points), network.layers[0], goal, "linf").size
    found = certified_linf(network, points, goal, low=-10.0, high=10.0, largest=5.0)
    assert torch.allclose(found.size, exact, atol=1e-5)
    assert (found.size <= exact + 1e-12).all()
    wide = certified_linf(network, points, goal, low=0.0, high=1.0, largest=1.0)
    assert (wide.size >= found.size.clamp(max=1.0) - 1e-6).all()
    nothing = class_goal(torch.zeros(10, dtype=torch.int64), 2, Decision(1, 0.5, directions=("missed disease",)))
    assert (certified_linf(network, points, nothing, low=0.0, high=1.0, largest=1.0).size == 1.0).all()
