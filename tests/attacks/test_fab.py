"""FAB: the closed form and linear programs on linear models, exact distances to a curved boundary, and what it costs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from xvision.attacks.balls import Norm, size, steepest
from xvision.attacks.cases import Budget, Cases, Forward, Found, budget_of, cases_of
from xvision.attacks.fab import HALVINGS, fab, smallest_change
from xvision.attacks.goals import Goal, class_goal, finding_goal
from xvision.errors import ConfigError
from xvision.methods.decision import Decision

PLAIN = Decision()
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
DUAL: dict[Norm, float] = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
SHAPE = (1, 5, 6)


def linear(outputs: int, seed: int = 1) -> tuple[Forward, torch.Tensor]:
    """A model whose slopes differ little from pixel to pixel, so that even an l1 change stays far from the box."""
    weight = torch.rand(math.prod(SHAPE), outputs, generator=torch.Generator().manual_seed(seed)) - 0.5
    return lambda pixels: 4 * (pixels - 0.5).flatten(1) @ weight, 4 * weight


def images(count: int, seed: int = 0, spread: float = 0.1) -> torch.Tensor:
    return 0.5 + spread * (torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) - 0.5)


def cases(forward: Forward, pixels: torch.Tensor, goal: Goal) -> Cases:
    return cases_of(forward, pixels, goal, keys=[f"case {place}" for place in range(len(pixels))], seed=4)


def run(
    part: Cases, norm: Norm, *, smallest: float = 1e-6, steps: int = 20, targets: int = 9, width: int = 64
) -> Found:
    return fab(
        part, budget_of(norm, [smallest, 1.0], part.pixels), steps=steps, targets=targets, restarts=1, width=width
    )


def answered(outputs: int, count: int = 20) -> Cases:
    """Right cases of a linear model with that many logits; 0: three findings at three thresholds."""
    forward, _ = linear(outputs or 3)
    pixels = images(count)
    logits = forward(pixels)
    if outputs == 0:
        thresholds = torch.tensor([0.4, 0.5, 0.7])
        return cases(forward, pixels, finding_goal(logits >= thresholds.logit(), thresholds.tolist()))
    labels = (logits[:, 0] >= 0).long() if outputs == 1 else logits.argmax(dim=1)
    return cases(forward, pixels, class_goal(labels, max(outputs, 2), PLAIN))


def exact(part: Cases, norm: Norm) -> torch.Tensor:
    """(B,) float64: for a linear model far from the box, the smallest |way| / dual norm of its slope over the ways."""
    every = []
    for way in range(part.goal.ways(part.forward(part.pixels)).shape[1]):
        at = part.pixels.clone().requires_grad_()
        values = part.goal.ways(part.forward(at))[:, way]
        (slope,) = torch.autograd.grad(values.sum(), at)
        far = -values.detach() / torch.linalg.vector_norm(slope.flatten(1), DUAL[norm], dim=1)
        every.append(torch.where(torch.isfinite(far), far, torch.inf))
    return torch.stack(every).amin(dim=0).double()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("outputs", [1, 2, 3, 5, 0])
def test_on_a_linear_model_the_size_is_the_distance(norm: Norm, outputs: int) -> None:
    part = answered(outputs)
    found, distance = run(part, norm), exact(part, norm)
    assert bool((found.size >= distance * (1 - 1e-4)).all())
    assert bool((found.size <= distance * (1 + 1e-3) + 1e-6).all())
    assert bool(part.broken(found.images).all())
    torch.testing.assert_close(size(found.images - part.pixels, norm), found.size)


def distance_in_box(slope: np.ndarray, gain: float, low: np.ndarray, high: np.ndarray, norm: Norm) -> float:
    """The smallest size of a change with slope . change = gain between the bounds, as a linear program; inf where none."""
    count = len(slope)
    extra = 1 if norm == "linf" else count
    bound = np.ones((count, 1)) if norm == "linf" else np.eye(count)
    solved = linprog(
        np.concatenate([np.zeros(count), np.ones(extra)]),
        A_ub=np.block([[np.eye(count), -bound], [-np.eye(count), -bound]]),
        b_ub=np.zeros(2 * count),
        A_eq=np.concatenate([slope, np.zeros(extra)])[None],
        b_eq=[gain],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * extra],
    )
    return float(solved.fun) if solved.status == 0 else math.inf


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_where_the_box_binds_the_size_is_that_of_a_linear_program(norm: Norm) -> None:
    forward, weight = linear(2)
    pixels = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(3)).round()  # black or white
    labels = forward(pixels).argmax(dim=1)
    part = cases(forward, pixels, class_goal(labels, 2, PLAIN))
    found = run(part, norm)
    slope, logits = (weight[:, 1] - weight[:, 0]).double().numpy(), forward(pixels).double().numpy()
    flat = pixels.flatten(1).double().numpy()
    free = exact(part, norm)
    for place in range(12):
        gain = logits[place, 0] - logits[place, 1]
        wanted = distance_in_box(slope, gain, -flat[place], 1 - flat[place], norm)
        assert found.size[place].item() == pytest.approx(wanted, rel=1e-3)
    assert (found.size > 1.01 * free).sum() >= 6


@given(
    norm=st.sampled_from(NORMS),
    count=st.integers(1, 12),
    share=st.floats(0.0, 1.2),
    scale=st.sampled_from([1e-20, 1.0, 1e20]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_the_smallest_change_is_exact(norm: Norm, count: int, share: float, scale: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    slope = np.round(generator.normal(size=count), 1)  # with ties and zeros
    low, high = -np.round(generator.random(count), 1), np.round(generator.random(count), 1)
    most = float(np.maximum(slope * low, slope * high).sum())

    def batch(values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)

    gain = torch.tensor([share * most * scale], dtype=torch.float32)
    change = smallest_change(scale * batch(slope), gain, batch(low), batch(high), norm)
    moved = change.flatten().double().numpy()
    assert (moved >= low - 1e-6).all()
    assert (moved <= high + 1e-6).all()
    assert slope @ moved == pytest.approx(min(share, 1.0) * most, abs=1e-5 * max(1.0, most))
    # the most that any change of this size can gain is what it gains: no smaller one gains as much
    best = steepest(batch(slope), batch(low), batch(high), size(change, norm), norm).flatten().double().numpy()
    assert slope @ best == pytest.approx(slope @ moved, abs=1e-5 * max(1.0, most))


@pytest.mark.parametrize("norm", NORMS)
def test_where_nothing_is_to_be_gained_nothing_changes(norm: Norm) -> None:
    slope = torch.tensor([1.0, -2.0, 0.0]).expand(4, 1, 1, 3)
    gain = torch.tensor([0.0, -1.0, math.nan, 0.5])
    change = smallest_change(slope, gain, torch.full_like(slope, -0.5), torch.full_like(slope, 0.5), norm)
    assert (change != 0).flatten(1).any(dim=1).tolist() == [False, False, False, True]
    still = smallest_change(0 * slope, gain, torch.full_like(slope, -0.5), torch.full_like(slope, 0.5), norm)
    assert bool((still == 0).all())


def circle(pixels: torch.Tensor) -> torch.Tensor:
    """Two pixels: 1 inside a circle of radius 0.3 around (0.5, 0.5)."""
    return (0.09 - (pixels.flatten(1) - 0.5).square().sum(dim=1))[:, None]


@pytest.mark.parametrize("norm", NORMS)
def test_at_a_curved_boundary_it_is_near_the_true_distance(norm: Norm) -> None:
    pixels = 0.5 + 0.5 * (torch.rand(25, 1, 1, 2, generator=torch.Generator().manual_seed(0)) - 0.5)
    inside = circle(pixels)[:, 0] > 0.005
    pixels = pixels[inside]
    part = cases(circle, pixels, class_goal(torch.ones(len(pixels), dtype=torch.long), 2, PLAIN))
    angles = torch.linspace(0, 2 * math.pi, 100001, dtype=torch.float64)[:-1]
    edge = 0.5 + 0.3 * torch.stack([angles.cos(), angles.sin()], dim=1)
    apart = edge[None] - pixels.flatten(1).double()[:, None]
    true = torch.linalg.vector_norm(apart, {"linf": math.inf, "l2": 2.0, "l1": 1.0}[norm], dim=2).amin(dim=1)
    ratio = run(part, norm, steps=60).size / true
    assert ratio.min() > 0.999
    assert ratio.median() < 1.005
    assert ratio.max() < 1.1


def test_the_nearest_way_is_not_always_the_one_of_the_largest_logit() -> None:
    slopes = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-9.0, 0.0]])

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.flatten(1) - 0.5) @ slopes.T + torch.tensor([0.0, -0.2, -0.3])

    part = cases(forward, torch.full((1, 1, 1, 2), 0.5), class_goal(torch.zeros(1, dtype=torch.long), 3, PLAIN))
    one, two = run(part, "l2", targets=1), run(part, "l2", targets=2)
    assert one.size.item() == pytest.approx(0.2 / math.sqrt(2), rel=1e-3)
    assert two.size.item() == pytest.approx(0.3 / 9, rel=1e-3)


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(240, 4)).eval()


def curved(count: int = 16) -> Cases:
    model, pixels = network(), torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(6))
    return cases(model, pixels, class_goal(model(pixels).argmax(dim=1), 4, PLAIN))


@pytest.mark.parametrize("norm", NORMS)
def test_it_does_not_depend_on_batch_or_order(norm: Norm) -> None:
    part = curved(12)
    budget = budget_of(norm, [0.004, 0.02], part.pixels)

    def hunt(order: torch.Tensor, width: int) -> Found:
        return fab(part.rows(order), budget.rows(order), steps=8, targets=2, restarts=2, width=width)

    straight, shuffle = torch.arange(12), torch.randperm(12, generator=torch.Generator().manual_seed(3))
    base = hunt(straight, 64)
    assert len(set((base.size <= budget.radii[0]).tolist())) == 2
    for order, width in ((straight, 1), (straight, 7), (shuffle, 64)):
        other = hunt(order, width)
        torch.testing.assert_close(other.size, base.size[order], rtol=1e-3, atol=1e-6)
        assert torch.equal(other.looks, base.looks[order])


@pytest.mark.parametrize("norm", NORMS)
def test_found_images_are_broken_and_within_bounds(norm: Norm) -> None:
    part = curved()
    stay = torch.rand(part.pixels.shape, generator=torch.Generator().manual_seed(9)) < 0.4
    part = replace(part, low=torch.where(stay, part.pixels, part.low), high=torch.where(stay, part.pixels, part.high))
    found = run(part, norm, steps=30)
    broken = torch.isfinite(found.size)
    assert int(broken.sum()) >= 12
    assert torch.equal(found.images[:, :, :][stay], part.pixels[stay])
    assert bool((found.images >= part.low).all() & (found.images <= part.high).all())
    assert torch.equal(part.broken(found.images), broken)
    torch.testing.assert_close(size(found.images - part.pixels, norm)[broken], found.size[broken])


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_logits_changes_nothing(scale: float) -> None:
    part = curved()
    scaled = replace(part, forward=lambda pixels: scale * part.forward(pixels))
    for norm in NORMS:
        torch.testing.assert_close(run(scaled, norm).size, run(part, norm).size, rtol=2e-3, atol=1e-6)


def test_what_is_already_broken_at_the_smallest_budget_is_not_looked_at() -> None:
    part = answered(2, count=6)
    budget = budget_of("linf", [0.001, 0.5], part.pixels)
    reached = torch.tensor([0.0, 0.001, 0.4, math.inf, 0.0005, 0.002], dtype=torch.float64)
    found = fab(part, replace(budget, reached=reached), steps=5, targets=1, restarts=1, width=4)
    assert ((found.looks > 0) == (reached > 0.001 + budget.slack)).all()
    assert torch.equal(torch.isfinite(found.size), reached > 0.001 + budget.slack)
    shown: list[int] = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        shown.append(len(pixels))
        return part.forward(pixels)

    watched = replace(part, forward=forward)
    fab(watched, replace(budget, reached=torch.zeros_like(reached)), steps=5, targets=1, restarts=1, width=4)
    assert shown == []


def test_a_case_ends_with_its_first_break_within_the_smallest_budget() -> None:
    part = answered(2)
    quick, thorough = run(part, "linf", smallest=0.5, steps=50), run(part, "linf", steps=50)
    assert bool((quick.looks == 3).all())  # the clean image, its slope, and one step over the boundary
    assert bool((thorough.looks >= 3 + HALVINGS).all())
    assert bool((quick.size > thorough.size).all())


def test_looks_are_the_clean_image_the_steps_and_the_bisection() -> None:
    found = run(curved(), "l2", steps=5, targets=1)
    assert found.looks.max().item() == 1 + 5 + 1 + HALVINGS
    assert run(curved(), "l2", steps=5, targets=2).looks.max().item() == 1 + 2 * 5 + 1 + HALVINGS


def test_a_break_that_is_not_confirmed_does_not_count() -> None:
    part = answered(2)
    demanding = replace(part, confirm=lambda seen, goal: goal.margin(part.forward(seen)) > 0.01)
    found, distance = run(demanding, "l2", steps=60), exact(part, "l2")
    slope = part.goal.margin(part.forward(part.pixels)).abs() / distance
    needed = distance + 0.01 / slope
    held = torch.isfinite(found.size)
    assert int(held.sum()) >= 5
    assert bool((found.size >= needed * (1 - 1e-4))[held].all())


def test_a_model_without_slope_costs_two_looks_and_is_said_to_be_flat() -> None:
    part = curved(5)
    stepped = replace(part, forward=lambda pixels: part.forward((pixels * 8).round() / 8))
    found = run(stepped, "linf", targets=1)
    assert bool(found.flat.all() & ~found.nonfinite.any())
    assert found.looks.tolist() == [2] * 5
    assert bool(torch.isinf(found.size).all())


def test_a_slope_that_is_not_a_number_is_said() -> None:
    part = curved(4)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        return part.forward(pixels) + 0.0 * (pixels - pixels.detach()).flatten(1).abs().sum(dim=1, keepdim=True).sqrt()

    found = run(replace(part, forward=forward), "l2")
    assert bool(found.nonfinite.all())
    assert bool(torch.isinf(found.size).all())
    assert bool(torch.isfinite(found.images).all())


def plateau(pixels: torch.Tensor) -> torch.Tensor:
    """Flat within 0.02 of mid-grey in the mean, then falling: the slope at the clean image is zero."""
    away = (pixels.flatten(1).mean(dim=1) - 0.5).abs()
    return (0.1 - torch.relu(away - 0.02) * 10)[:, None]


def test_random_starts_leave_a_plateau() -> None:
    pixels = torch.full((6, *SHAPE), 0.5)
    part = cases(plateau, pixels, class_goal(torch.ones(6, dtype=torch.long), 2, PLAIN))
    budget = budget_of("linf", [1e-6, 1.0], pixels)
    alone, several = (fab(part, budget, steps=60, targets=1, restarts=count, width=16) for count in (1, 12))
    assert bool(torch.isinf(alone.size).all())
    assert bool(torch.isfinite(several.size).any())
    near = several.size[torch.isfinite(several.size)]
    assert near.min() == pytest.approx(0.03, rel=0.02)
    known = Budget("linf", budget.radii, torch.full((6,), 0.001, dtype=torch.float64), budget.slack)
    close = fab(part, known, steps=20, targets=1, restarts=12, width=16)  # starts within half of what is known
    assert bool(torch.isinf(close.size).all())
    narrow = budget_of("linf", [1e-6, 0.03], pixels)  # and within half of the largest budget
    assert bool(torch.isinf(fab(part, narrow, steps=60, targets=1, restarts=12, width=16).size).all())


def test_a_plateau_elsewhere_is_not_a_flat_clean_image() -> None:
    def forward(pixels: torch.Tensor) -> torch.Tensor:
        return 1 + (pixels.flatten(1).mean(dim=1, keepdim=True) - 0.5).clamp(-0.001, 0.001)

    part = cases(forward, torch.full((4, *SHAPE), 0.5), class_goal(torch.ones(4, dtype=torch.long), 2, PLAIN))
    found = fab(part, budget_of("linf", [1.0], part.pixels), steps=2, targets=1, restarts=6, width=24)
    assert not bool(found.flat.any())


@pytest.mark.parametrize(
    ("norm", "steps", "targets", "restarts", "message"),
    [("l0", 5, 1, 1, "l0"), ("l2", 0, 1, 1, "0 steps"), ("l2", 5, 0, 1, "0 targets"), ("l2", 5, 1, 0, "0 restarts")],
)
def test_what_it_cannot_do_is_refused(norm: Norm, steps: int, targets: int, restarts: int, message: str) -> None:
    part = curved(2)
    with pytest.raises(ConfigError, match=message):
        fab(part, budget_of(norm, [0.1], part.pixels), steps=steps, targets=targets, restarts=restarts, width=4)


def test_the_model_stays_as_it_is() -> None:
    part = curved(4)
    assert isinstance(part.forward, nn.Module)
    before = {name: values.clone() for name, values in part.forward.state_dict().items()}
    part.forward.train()
    run(part, "l2")
    assert part.forward.training
    assert all(torch.equal(values, before[name]) for name, values in part.forward.state_dict().items())
    assert all(values.grad is None and values.requires_grad for values in part.forward.parameters())


def test_a_direction_that_is_not_declared_is_not_attacked() -> None:
    forward, _ = linear(2)
    pixels = images(20)
    labels = forward(pixels).argmax(dim=1)
    missed = class_goal(labels, 2, Decision(1, 0.5, True, ("missed disease",)))
    found = run(cases(forward, pixels, missed), "linf")
    assert torch.equal(torch.isfinite(found.size), labels == 1)
    assert bool((found.looks[labels == 0] == 1).all())
