"""Noise, the single step, PGD and APGD on models of a few pixels, where every point they look at is known by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from xvision.attacks.apgd import APGD
from xvision.attacks.balls import Norm, size
from xvision.attacks.cases import Budget, Cases, Seen, budget_of, cases_of
from xvision.attacks.goals import class_goal
from xvision.attacks.gradient_walks import MarginPGD, single_step
from xvision.attacks.search import Attempt, Rows, State, Walker, pursue
from xvision.methods.decision import Decision

WEIGHTS = torch.tensor([3.0, -4.0, 0.5, 1.0])


def rising(values: Callable[[torch.Tensor], torch.Tensor], images: Sequence[Sequence[float]]) -> Cases:
    """Cases of flat images that break where the value of theirs, (n, D) to (n,), is above 0: the logits are 0 and it."""
    pixels = torch.tensor(images)[:, None, None, :]

    def forward(points: torch.Tensor) -> torch.Tensor:
        value = values(points.flatten(1))
        return torch.stack([torch.zeros_like(value), value], dim=1)

    goal = class_goal(torch.zeros(len(pixels), dtype=torch.long), 2, Decision())
    keys = [f"case {number}" for number in range(len(pixels))]
    return cases_of(forward, pixels, goal, keys=keys, seed=0)


def visited(
    cases: Cases, budget: Budget, walker: Walker, attempts: list[list[Attempt]] | None = None
) -> dict[tuple[int, int], torch.Tensor]:
    """The points (looks, D) that each case and start looks at."""
    points: dict[tuple[int, int], list[torch.Tensor]] = {}

    def watch(rows: Rows, state: State, seen: Seen) -> None:
        for row, key in enumerate(zip(rows.place.tolist(), rows.start.tolist(), strict=True)):
            points.setdefault(key, []).append(state["at"][row].flatten())

    pursue(cases, budget, walker, width=64, attempts=attempts, watch=watch)
    return {key: torch.stack(each) for key, each in points.items()}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_goes_straight_in_steps_of_two_and_a_half_radii_over_their_number(norm: Norm) -> None:
    cases = rising(lambda x: x @ WEIGHTS - 9.0, [[0.5] * 4])
    budget = budget_of(norm, (0.1,), cases.pixels)
    (points,) = visited(cases, budget, MarginPGD(10)).values()
    direction = WEIGHTS.sign() if norm == "linf" else WEIGHTS / WEIGHTS.norm()
    shares = (0.25 * torch.arange(10)).clamp(max=1.0)
    torch.testing.assert_close(points, 0.5 + budget.radii[0] * shares[:, None] * direction, atol=1e-6, rtol=0)


@pytest.mark.parametrize("power", [-80, 80])
def test_slopes_whose_squares_leave_float32_give_the_same_points(power: int) -> None:
    def points(scale: float) -> torch.Tensor:
        cases = rising(lambda x: scale * (x @ WEIGHTS - 9.0), [[0.5] * 4])
        return visited(cases, budget_of("l2", (0.1,), cases.pixels), MarginPGD(6))[0, 0]

    assert torch.equal(points(2.0**power), points(1.0))


def test_the_steps_of_l1_weigh_the_worst_changes_by_two_over_their_number_and_two() -> None:
    """The slope names the first pixel until it has moved, and the second from there on."""

    def turning(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0].detach() > 0, x[:, 1], x[:, 0]) - 9.0

    cases = rising(turning, [[0.0, 0.0]])
    (points,) = visited(cases, budget_of("l1", (0.3,), cases.pixels), MarginPGD(4)).values()
    first = torch.tensor([0.0, 1.0, 1 / 3, 1 / 3 * 1 / 2])
    second = torch.tensor([0.0, 0.0, 2 / 3, 2 / 3 * 1 / 2 + 1 / 2])
    torch.testing.assert_close(points, 0.6 * torch.stack([first, second], dim=1), atol=1e-6, rtol=0)


def test_in_l0_a_long_slope_counts_no_more_than_a_short_one() -> None:
    """At first 2 of 100 for the first pixel and 1 of 100 for the second; where the first has moved, 1 for the second alone."""

    def fading(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0].detach() > 0.5, x[:, 1], 200 * x[:, 0] + 100 * x[:, 1]) - 999.0

    cases = rising(fading, [[0.0, 0.0]])
    (points,) = visited(cases, budget_of("l0", (0.5,), cases.pixels), MarginPGD(3)).values()
    assert points.tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("walker", [MarginPGD(8), APGD("margin", 20)])
def test_no_rounding_leaves_the_bounds_of_the_pixels(walker: Walker, norm: Norm) -> None:
    """Only where every pixel is at its lower bound is the case broken; its distance from there is rounded."""
    generator = torch.Generator().manual_seed(0)
    high, low = 0.5 + torch.rand(1, 64, generator=generator) / 2, 0.3 * torch.rand(1, 64, generator=generator)
    cases = rising(lambda x: low.sum() - x.sum(dim=1) + 1e-2, high.tolist())
    bounded = replace(cases, low=low.view_as(cases.pixels))
    (points,) = visited(bounded, budget_of(norm, (1.0,), cases.pixels), walker).values()
    assert bool((high + (low - high) < low).any())  # which a sum of image and change would leave
    assert bool((points == low).any())
    assert bool((points >= low).all())


def test_random_starts_are_as_large_as_the_budget_of_their_own_row() -> None:
    cases = rising(lambda x: x.sum(dim=1) - 99.0, [[0.5] * 16] * 2)
    budget = budget_of("l2", (0.02, 0.1), cases.pixels)
    known = replace(budget, reached=torch.tensor([math.inf, budget.radii[1]], dtype=torch.float64))
    points = visited(cases, known, MarginPGD(2), [[Attempt(0), Attempt(1)]] * 2)
    for place, radius in ((0, budget.radii[1]), (1, budget.radii[0])):
        change = (points[place, 1][0] - 0.5)[None]
        assert size(change, "l2").item() == pytest.approx(radius, rel=1e-5)


@pytest.mark.parametrize("walker", [MarginPGD(8), APGD("margin", 8)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_a_pixel_of_infinite_slope_stays_and_the_others_move(walker: Walker, norm: Norm) -> None:
    if isinstance(walker, APGD) and norm == "l0":
        return
    cases = rising(lambda x: x[:, 0].sqrt() + x[:, 1] - 9.0, [[0.0, 0.2]])
    (points,) = visited(cases, budget_of(norm, (0.5,), cases.pixels), walker).values()
    assert points[:, 0].tolist() == [0.0] * 8
    assert points[1, 1] > 0.2


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_a_single_step_leaves_a_pixel_of_infinite_slope_and_says_so(norm: Norm) -> None:
    cases = rising(lambda x: 9.0 * (x[:, 1] - 0.25), [[0.0, 0.2]] * 2)
    slope = torch.tensor([[math.inf, 1.0], [-math.inf, 0.0]])[:, None, None, :]
    found = single_step(cases, budget_of(norm, (0.5,), cases.pixels), gradient=slope, width=2)
    assert found.images[0, 0, 0, 0] == 0.0
    assert torch.isfinite(found.size).tolist() == [True, False]
    assert found.nonfinite.tolist() == [True, True]
    assert found.flat.tolist() == [False, False]


def test_a_single_step_notes_a_logit_that_is_no_number_and_calls_a_slope_flat_only_where_all_of_it_is() -> None:
    cases = rising(lambda x: torch.where(x[:, 0] > 0.25, torch.nan, x[:, 0] - 9.0), [[0.2, 0.2]] * 3)
    slope = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])[:, None, None, :]
    found = single_step(cases, budget_of("linf", (0.1,), cases.pixels), gradient=slope, width=3)
    assert found.nonfinite.tolist() == [True, False, False]
    assert found.flat.tolist() == [False, False, True]


def test_of_two_points_of_equal_loss_apgd_goes_back_to_the_first() -> None:
    """From 0.25 the first step overshoots the peak at 0.375 by as much as it was below; half the step then starts at 0.25."""
    cases = rising(lambda x: -1.0 - (x[:, 0] - 0.375).abs(), [[0.25]])
    (points,) = visited(cases, budget_of("linf", (0.25,), cases.pixels), APGD("margin", 3)).values()
    assert points[:, 0].tolist() == [0.25, 0.5, 0.25 + 0.75 * 0.25]


def test_apgd_comes_back_from_a_point_of_infinite_logit() -> None:
    """Up to 0.8 it may go; from 0.6 on the case is broken, and from 0.69 on the exponential leaves float32."""
    cases = rising(lambda x: torch.exp(100 * x[:, 0] + 20) - math.exp(80), [[0.2]])
    found = pursue(cases, budget_of("linf", (0.6,), cases.pixels), APGD("margin", 3), width=1)
    assert found.nonfinite.tolist() == [True]
    assert found.size.tolist() == pytest.approx([0.75 * 0.6], rel=1e-5)


def test_apgd_in_l1_moves_the_values_that_have_room_all_the_way() -> None:
    """Two of ten values are to move, and only the least steep can."""
    weights = torch.arange(10, 0, -1.0)
    cases = rising(lambda x: x @ weights - 99.0, [[0.25] * 10])
    high = torch.where(torch.arange(10) == 9, 1.0, cases.pixels)
    held = replace(cases, low=cases.pixels.clone(), high=high)
    budget = budget_of("l1", (0.02,), cases.pixels)
    (points,) = visited(held, budget, APGD("margin", 10)).values()
    assert bool((points[:, :9] == 0.25).all())
    moved = [0.0, 3.0, 3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]  # in radii: three balls, one after another
    torch.testing.assert_close(points[:, 9], 0.25 + 0.2 * torch.tensor(moved), atol=1e-6, rtol=0)
