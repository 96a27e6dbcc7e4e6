"""Walks on curved decisions, and what holds of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.attacks.test_gradient_walks import GOALS, linear, quick
from xvision.attacks.apgd import APGD
from xvision.attacks.balls import NORMS, Norm, unit
from xvision.attacks.cases import Cases, Found, budget_of, cases_of
from xvision.attacks.goals import Goal, class_goal
from xvision.attacks.gradient_walks import MarginPGD, noise, single_step
from xvision.attacks.search import Attempt, Walker, pursue
from xvision.errors import ConfigError
from xvision.methods.decision import Decision


def toy(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A curved decision on two pixels: one logit of a small network."""
    generator = torch.Generator().manual_seed(seed)
    first, second = 4 * torch.randn(2, 8, generator=generator), torch.randn(8, generator=generator)
    offset = torch.randn(8, generator=generator)
    return lambda images: (torch.tanh((images.flatten(1) - 0.5) @ first + offset) @ second)[:, None]


def on_grid(forward: Callable[[torch.Tensor], torch.Tensor], goal: Goal, pixels: torch.Tensor, norm: Norm) -> float:
    """The smallest breaking change on grids of 401 × 401 images: over the whole box, then around what that found."""
    centre, reach, found = pixels.flatten(), 1.0, math.inf
    for _ in range(3):
        lines = [torch.linspace(max(at - reach, 0.0), min(at + reach, 1.0), 401) for at in centre.tolist()]
        grid = torch.cartesian_prod(*lines)
        broken = goal.rows(torch.zeros(len(grid), dtype=torch.long)).broken(forward(grid.view(-1, 1, 1, 2)))
        change = (grid - centre).abs()
        every = {"linf": change.amax(dim=1), "l2": change.square().sum(dim=1).sqrt(), "l1": change.sum(dim=1)}
        if not bool(broken.any()):
            break
        found = float(every[norm][broken].min())
        reach = 1.02 * found
    return found


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("walker", [MarginPGD(40), APGD("margin", 60), APGD("cross_entropy", 60)])
def test_a_curved_decision_is_broken_where_a_grid_says_so(walker: Walker, seed: int, norm: Norm) -> None:
    forward = toy(seed)
    pixels = torch.tensor([0.35, 0.6]).view(1, 1, 1, 2)
    goal = class_goal((forward(pixels)[:, 0] >= 0).long(), 2, Decision(1, 0.5))
    cases = cases_of(forward, pixels, goal, keys=["a"], seed=1)
    exact = on_grid(forward, goal, pixels, norm) / unit(norm, (1, 1, 2))
    epsilons = [share * min(exact, 0.9) for share in (0.5, 0.97, 1.03, 1.1)]
    budget = budget_of(norm, epsilons, pixels)
    found = pursue(cases, budget, walker, width=8, attempts=[[Attempt(start) for start in range(6)]])
    assert budget.columns(found.size).tolist() == ([2] if math.isfinite(exact) else [4])


@quick
@given(
    norm=st.sampled_from(NORMS),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    epsilon=st.floats(0.01, 1.0),
    start=st.integers(0, 2),
    seed=st.integers(0, 999),
    which=st.sampled_from(["pgd", "apgd", "noise", "single"]),
)
def test_what_is_found_is_allowed_and_breaks(
    norm: Norm, shape: tuple[int, int, int], epsilon: float, start: int, seed: int, which: str
) -> None:
    if which == "apgd" and norm == "l0":
        return
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(3, *shape, generator=generator)
    pixels[0] = pixels[0].round()
    weights = torch.randn(3, math.prod(shape), generator=generator)
    free = torch.rand(pixels.shape, generator=generator) < 0.8
    low = torch.where(free, (pixels - torch.rand(pixels.shape, generator=generator)).clamp(min=0.0), pixels)
    high = torch.where(free, (pixels + torch.rand(pixels.shape, generator=generator)).clamp(max=1.0), pixels)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * images.flatten(1)) @ weights.T

    goal = class_goal(forward(pixels).argmax(dim=1), 3, Decision())
    plain = cases_of(forward, pixels, goal, keys=list("abc"), seed=seed)
    cases = Cases(forward, plain.pixels, goal, plain.keys, seed, low, high)
    budget = budget_of(norm, (epsilon / 2, epsilon), pixels)
    tries = [[Attempt(start)]] * 3
    runs: dict[str, Callable[[], Found]] = {
        "pgd": lambda: pursue(cases, budget, MarginPGD(6), width=2, attempts=tries),
        "apgd": lambda: pursue(cases, budget, APGD("margin", 10), width=2, attempts=tries),
        "noise": lambda: noise(cases, budget, draws=3, width=2),
        "single": lambda: single_step(cases, budget, gradient=None, width=2),
    }
    found = runs[which]()
    hit = torch.isfinite(found.size)
    change = (found.images - pixels).double().flatten(1)
    sizes = {
        "linf": change.abs().amax(1), "l2": change.square().sum(1).sqrt(), "l1": change.abs().sum(1),
        "l0": (change != 0).sum(1).double(),
    }[norm]  # fmt: skip
    torch.testing.assert_close(sizes[hit], found.size[hit])
    assert bool((sizes <= budget.radii[-1] + budget.slack).all())
    assert bool(((found.images >= low) & (found.images <= high)).all())
    assert bool((found.images == pixels)[~free].all())
    assert bool(cases.broken(found.images)[hit].all())
    assert bool((found.images == pixels).flatten(1).all(1)[~hit].all())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_starts_depend_on_case_and_start_alone(norm: Norm) -> None:
    cases = linear(11, *GOALS["two logits"], count=4).cases
    budget = budget_of(norm, (1e-4,), cases.pixels)
    firsts: dict[tuple[int, int], torch.Tensor] = {}

    def run(order: torch.Tensor, starts: tuple[int, ...]) -> dict[tuple[int, int], torch.Tensor]:
        points: dict[tuple[int, int], torch.Tensor] = {}

        def watch(rows, state, seen) -> None:
            for row in torch.nonzero(rows.step == 0).squeeze(1).tolist():
                points[int(order[rows.place[row]]), int(rows.start[row])] = state["at"][row]

        tries = [[Attempt(start) for start in starts]] * len(order)
        pursue(cases.rows(order), budget.rows(order), MarginPGD(2), width=3, attempts=tries, watch=watch)
        return points

    firsts = run(torch.arange(4), (0, 1, 2))
    again = run(torch.tensor([3, 1]), (2, 0))
    assert all(torch.equal(firsts[key], point) for key, point in again.items())
    assert all(torch.equal(firsts[case, 0], cases.pixels[case]) for case in range(4))
    assert not torch.equal(firsts[0, 1], firsts[0, 2])
    assert not torch.equal(firsts[0, 1] - cases.pixels[0], firsts[1, 1] - cases.pixels[1])


def test_counts_below_one_are_refused() -> None:
    cases = linear(0, *GOALS["two logits"], count=2).cases
    budget = budget_of("linf", (0.1,), cases.pixels)
    with pytest.raises(ConfigError, match="found 0 steps"):
        MarginPGD(0)
    with pytest.raises(ConfigError, match="found 0 draws"):
        noise(cases, budget, draws=0, width=4)
