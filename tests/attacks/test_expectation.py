"""Models that draw at random: the mean converges to its closed form, and luck in one draw is no break."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from xvision.attacks.cases import Cases, Forward, budget_of, cases_of, look
from xvision.attacks.expectation import JUDGED, expected, majority
from xvision.attacks.goals import ClassGoal, class_goal
from xvision.attacks.gradient_walks import MarginPGD
from xvision.attacks.search import pursue
from xvision.errors import ConfigError
from xvision.methods.decision import Decision

SHAPE = (1, 5, 5)
WEIGHT = torch.randn(25, generator=torch.Generator().manual_seed(1))
NOISE = 0.05
SPREAD = NOISE * WEIGHT.norm().item()
"""Standard deviation of the logit of ``noisy``."""


def linear(pixels: torch.Tensor) -> torch.Tensor:
    return ((pixels - 0.5).flatten(1) @ WEIGHT)[:, None]


def noisy(pixels: torch.Tensor) -> torch.Tensor:
    """A linear model of one logit behind Gaussian noise on its input."""
    return linear(pixels + NOISE * torch.randn_like(pixels))


def noisy_together(pixels: torch.Tensor) -> torch.Tensor:
    """The same noise for every row of a batch."""
    return linear(pixels + NOISE * torch.randn_like(pixels[:1]))


def squared(pixels: torch.Tensor) -> torch.Tensor:
    answers: torch.Tensor = noisy(pixels)
    return answers.square()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return 0.3 + 0.4 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def at_margin(margins: list[float]) -> torch.Tensor:
    """Images whose logit is exactly that many standard deviations."""
    flat = images(len(margins)).flatten(1)
    wanted = torch.tensor(margins) * SPREAD
    flat = flat + ((wanted - linear(flat)[:, 0]) / WEIGHT.square().sum())[:, None] * WEIGHT
    moved: torch.Tensor = flat.view(-1, *SHAPE)
    return moved


def ill(count: int) -> ClassGoal:
    """Broken where the logit falls below 0."""
    return class_goal(torch.ones(count, dtype=torch.long), 2, Decision())


@pytest.mark.parametrize("forward", [noisy, noisy_together])
def test_the_mean_converges_to_the_margin_of_the_mean(forward: Forward) -> None:
    pixels = images(200)
    errors = [
        torch.stack([expected(forward, draws, seed=seed)(pixels) - linear(pixels) for seed in range(10)])
        for draws in (1, 100)
    ]
    one, hundred = (error.square().mean().sqrt().item() for error in errors)
    assert one == pytest.approx(SPREAD, rel=0.5)
    assert hundred == pytest.approx(SPREAD / 10, rel=0.5)
    if forward is noisy:
        assert one / hundred == pytest.approx(10, rel=0.15)


def test_the_slope_is_that_of_the_mean() -> None:
    pixels = images(8)
    mean = linear(pixels).square() + SPREAD**2  # of the square of a Gaussian
    slope = 2 * linear(pixels) * WEIGHT
    errors = []
    for draws in (1, 400):
        part = cases_of(expected(squared, draws, seed=1), pixels, ill(8), keys=list("abcdefgh"), seed=0)
        seen = look(part, pixels, "margin")
        assert seen.gradient is not None
        errors.append((-seen.gradient.flatten(1) - slope).norm(dim=1).max().item())
    assert errors[1] < 0.15 * errors[0]
    assert errors[1] < 4 * 2 * SPREAD * WEIGHT.norm().item() / 20
    assert (seen.logits - mean).abs().max() < 0.15 * mean.max()


def test_draws_are_repeatable_new_for_every_image_and_leave_no_trace() -> None:
    pixels, mean = images(6), expected(noisy, 3, seed=5)
    torch.manual_seed(9)
    state = torch.get_rng_state()
    first = mean(pixels)
    judged = majority(noisy, 20, seed=5)(pixels, ill(6))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(10)
    assert torch.equal(mean(pixels), first)
    assert torch.equal(majority(noisy, 20, seed=5)(pixels, ill(6)), judged)
    assert not torch.equal(expected(noisy, 3, seed=6)(pixels), first)
    drawn = first - linear(pixels)
    moved = pixels.clone()
    moved[0, 0, 0, 0] += 1e-3
    assert (mean(moved) - linear(moved) - drawn).abs().min() > 1e-4


def test_a_search_is_judged_by_draws_that_it_has_not_seen() -> None:
    seen: list[float] = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(torch.rand(1).item())
        return linear(pixels)

    image = images(1)
    expected(forward, 20, seed=5)(image)
    majority(forward, 20, seed=5)(image, ill(1))
    assert len(seen) > 20
    assert len(set(seen)) == len(seen)


def test_a_model_that_draws_nothing_is_itself() -> None:
    pixels = images(6)
    torch.testing.assert_close(expected(linear, 7, seed=0)(pixels), linear(pixels))
    assert torch.equal(majority(linear, 20, seed=0)(pixels, ill(6)), linear(pixels)[:, 0] < 0)


def test_the_majority_decides_and_luck_does_not() -> None:
    margins = [-3.0, -1.5, 1.0, 1.5, 3.0] * 20
    pixels = at_margin(margins)
    held = majority(noisy, 41, seed=2)(pixels, ill(100))
    assert torch.equal(held, torch.tensor(margins) < 0)
    lucky = ill(100).broken(noisy(pixels)) & ~held
    assert int(lucky.sum()) >= 3  # one draw in six is broken at a standard deviation


def test_a_break_found_by_luck_does_not_survive_being_checked_again() -> None:
    """A search stops at the first lucky majority: two of five draws broken is none of all draws, and passes a second judge rarely."""
    pixels = at_margin([0.25] * 60)  # broken in 40 % of all draws
    cases = cases_of(noisy, pixels, ill(60), keys=[str(place) for place in range(60)], seed=1)
    tries = torch.stack([majority(noisy, 21, seed=seed)(pixels, ill(60)) for seed in range(12)])
    lucky = tries.any(dim=0)
    assert int(lucky.sum()) >= 30
    found = cases.rows(torch.nonzero(lucky).squeeze(1))
    again = replace(found, forward=lambda images: -torch.ones(len(images), 1), recheck=majority(noisy, JUDGED, seed=99))
    assert int(again.held(found.pixels).sum()) <= 6


def test_the_majority_does_not_depend_on_batch_or_order() -> None:
    pixels = at_margin([0.2 * place - 1.0 for place in range(11)])
    judge = majority(noisy, 20, seed=3)
    whole = judge(pixels, ill(11))
    assert 2 <= int(whole.sum()) <= 9
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    assert torch.equal(judge(pixels[order], ill(11)), whole[order])
    assert torch.equal(torch.cat([judge(pixels[row : row + 1], ill(1)) for row in range(11)]), whole)


@pytest.mark.parametrize(
    ("broken", "held", "passes"),
    [
        ("1" * 11 + "0" * 9, True, 11),
        ("0" * 10 + "1" * 10, False, 10),
        ("1" * 10 + "0" * 10, False, 20),
        ("01" * 10, False, 19),
        ("0" * 9 + "1" * 11, True, 20),
    ],
)
def test_more_than_half_is_needed_and_no_more_is_drawn(broken: str, held: bool, passes: int) -> None:
    shown: list[int] = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        shown.append(len(pixels))
        return torch.tensor([[-1.0 if broken[len(shown) - 1] == "1" else 1.0]])

    assert majority(forward, 20, seed=0)(images(1), ill(1)).tolist() == [held]
    assert shown == [1] * passes


def test_an_attack_finds_what_the_mean_allows_and_luck_finds_more() -> None:
    pixels = at_margin([0.3, 1.5, 2.5, 3.5, 4.5] * 4)
    reach = 3.0 * SPREAD / WEIGHT.abs().sum().item()  # breaks margins of up to 3 standard deviations
    budget = budget_of("linf", [reach], pixels)
    keys = [str(place) for place in range(20)]
    alone = cases_of(noisy, pixels, ill(20), keys=keys, seed=0)
    part: Cases = replace(alone, forward=expected(noisy, 20, seed=1), confirm=majority(noisy, 40, seed=1))
    torch.manual_seed(0)
    lucky = pursue(alone, budget, MarginPGD(steps=20), width=7)
    found = pursue(part, budget, MarginPGD(steps=20), width=7)
    possible = torch.tensor([0.3, 1.5, 2.5, 3.5, 4.5] * 4) < 3
    assert torch.equal(torch.isfinite(found.size), possible)
    assert int((torch.isfinite(lucky.size) & ~possible).sum()) >= 4


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 draws"):
        expected(noisy, 0, seed=0)
    with pytest.raises(ConfigError, match="at least 20"):
        majority(noisy, 19, seed=0)
