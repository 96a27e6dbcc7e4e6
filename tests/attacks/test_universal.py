"""One perturbation for all: closed form on linear models, brute force in two pixels, and never a look at the held-out cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from xvision.attacks.balls import size, unit
from xvision.attacks.cases import Cases, cases_of
from xvision.attacks.goals import class_goal
from xvision.attacks.universal import tuning_half, universal
from xvision.errors import ConfigError, DataError
from xvision.methods.decision import Decision, Direction

SHAPE = (1, 6, 7)
PIXELS = math.prod(SHAPE)
WEIGHTS = torch.randn(PIXELS, generator=torch.Generator().manual_seed(5))


def linear(images: torch.Tensor, middle: float = 0.5) -> torch.Tensor:
    return ((images.flatten(1) - middle) @ WEIGHTS)[:, None]


def cases(
    count: int,
    seed: int,
    directions: tuple[Direction, ...] = ("missed disease",),
    forward: Callable[[torch.Tensor], torch.Tensor] = linear,
    spread: float = 0.2,
) -> Cases:
    """Right cases of the model, well inside the box; with one direction, those that have it alone."""
    noise = torch.rand(4 * count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    pixels = 0.5 + spread * (noise - 0.5)
    labels = (forward(pixels)[:, 0] >= 0).long()
    if directions == ("missed disease",):
        pixels, labels = pixels[labels == 1], labels[labels == 1]
    pixels, labels = pixels[:count], labels[:count]
    goal = class_goal(labels, 2, Decision(1, 0.5, True, directions))
    return cases_of(forward, pixels, goal, keys=[f"{seed}/{place}" for place in range(len(pixels))], seed=3)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.012), ("l2", 0.02)])
def test_in_one_direction_a_linear_model_has_a_closed_form(norm: Literal["linf", "l2"], epsilon: float) -> None:
    tuning, held_out = cases(60, 0), cases(80, 1)
    found = universal([tuning], [held_out], norm, epsilon, steps=1)
    radius = epsilon * unit(norm, SHAPE)
    slope = WEIGHTS.view(SHAPE)
    best = -radius * slope.sign() if norm == "linf" else -radius * slope / slope.norm()
    torch.testing.assert_close(found.perturbation, best, atol=1e-6, rtol=0)
    gain = radius * float(WEIGHTS.abs().sum() if norm == "linf" else WEIGHTS.norm())
    for part, broken in ((tuning, found.tuned), (held_out, found.held_out)):
        expected = linear(part.pixels)[:, 0] < gain
        assert torch.equal(broken, expected)
        assert 0 < int(expected.sum()) < len(part)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_control_has_random_signs_and_the_same_size(norm: Literal["linf", "l2"]) -> None:
    found = universal([cases(20, 0)], [cases(60, 1)], norm, 0.02, steps=3)
    sizes = size(torch.stack([found.perturbation, found.control]), norm)
    assert sizes.tolist() == pytest.approx([0.02 * unit(norm, SHAPE)] * 2, rel=1e-5)
    assert len(found.control.abs().unique()) <= 2  # one magnitude, up to rounding
    assert 0.2 < float((found.control > 0).float().mean()) < 0.8
    assert found.held_out.float().mean() > found.held_out_control.float().mean() + 0.3


def test_both_directions_do_not_cancel() -> None:
    tuning, held_out = cases(60, 0, ("any",)), cases(80, 1, ("any",))
    positive = linear(tuning.pixels)[:, 0] >= 0
    kept = torch.cat([torch.nonzero(positive).squeeze(1)[:20], torch.nonzero(~positive).squeeze(1)[:20]])
    found = universal([tuning.rows(kept)], [held_out], "linf", 0.05, steps=5)
    assert float(found.tuned.float().mean()) >= 0.5
    signs = found.perturbation.flatten().sign() * WEIGHTS.sign()
    assert abs(float(signs.mean())) == 1.0


def test_held_out_cases_take_no_part_in_the_choice() -> None:
    tuning = cases(30, 0, ("any",))
    one = universal([tuning], [cases(20, 1, ("any",))], "linf", 0.03, steps=4)
    other = universal([tuning], (cases(20, seed, ("any",)) for seed in (2, 3)), "linf", 0.03, steps=4)
    none = universal([tuning], [], "linf", 0.03, steps=4)
    assert torch.equal(one.perturbation, other.perturbation)
    assert torch.equal(one.perturbation, none.perturbation)
    assert torch.equal(one.control, other.control)
    assert (len(one.held_out), len(other.held_out), len(none.held_out)) == (20, 40, 0)
    assert len(one.tuned) == len(one.tuned_control) == 30


def test_batches_change_nothing() -> None:
    tuning = cases(30, 0)
    parts = [tuning.rows(index) for index in torch.arange(30).split(7)]
    whole, cut = (universal(each, [tuning], "linf", 0.02, steps=3) for each in ([tuning], parts))
    assert torch.equal(whole.perturbation, cut.perturbation)
    assert torch.equal(whole.tuned, cut.tuned)


def curved(images: torch.Tensor) -> torch.Tensor:
    """A small network of the first two pixels, with a bend."""
    at = images.flatten(1)[:, :2] - 0.5
    return (torch.sin(9.0 * at[:, :1]) + torch.cos(7.0 * at[:, 1:]) - 0.6 * at[:, :1] * at[:, 1:]) - 0.7


@pytest.mark.parametrize("seed", range(4))
def test_on_a_curved_model_it_comes_near_the_best_of_a_grid(seed: int) -> None:
    tuning = cases(40, seed, ("any",), curved, spread=0.9)
    found = universal([tuning], [], "linf", 0.15, steps=20)
    grid = []
    for first, second in itertools.product(torch.linspace(-0.15, 0.15, 31).tolist(), repeat=2):
        change = torch.zeros(SHAPE)
        change.view(-1)[:2] = torch.tensor([first, second])
        logits = curved((tuning.pixels + change).clamp(0, 1))
        margins = tuning.goal.margin(logits).clamp(max=0.0)
        grid.append((float(margins.mean()), int(tuning.goal.broken(logits).sum())))
    broken = int(found.tuned.sum())
    assert broken >= max(grid)[1]  # at the best mean clipped margin, which is what is climbed
    assert broken >= 0.7 * max(count for _, count in grid)


def test_more_steps_never_break_fewer_tuning_cases() -> None:
    tuning = cases(40, 2, ("any",), curved, spread=0.9)
    counts = [int(universal([tuning], [], "linf", 0.1, steps=steps).tuned.sum()) for steps in (1, 3, 10)]
    assert counts == sorted(counts)


def one_pixel(
    logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], kinds: list[int], starts: float | list[float] = 0.5
) -> Cases:
    """Ill cases of two pixels. The first names the kind, as tenths, and the logit is a function of kind and second pixel."""
    pixels = torch.zeros(len(kinds), 1, 1, 2)
    pixels[..., 0] = torch.tensor(kinds)[:, None, None] / 10
    pixels[..., 1] = torch.tensor(starts)[..., None, None] if isinstance(starts, list) else starts

    def forward(images: torch.Tensor) -> torch.Tensor:
        kind = (10 * images[:, 0, 0, 0].detach()).round()
        return logits(kind, images[:, 0, 0, 1])[:, None]

    goal = class_goal(torch.ones(len(kinds), dtype=torch.int64), 2, Decision(1, 0.5, True))
    made = cases_of(forward, pixels, goal, keys=[str(place) for place in range(len(kinds))], seed=0)
    held = torch.tensor([True, False])
    low, high = torch.where(held, pixels, made.low), torch.where(held, pixels, made.high)
    return replace(made, low=low, high=high)


def test_cases_that_are_broken_do_not_pull() -> None:
    """Nine cases break at the smallest step along one pixel and pull hard; the tenth needs the other pixel for itself."""
    radius = 0.05
    pixels = torch.full((10, 1, 1, 3), 0.5)
    pixels[:9, ..., 0], pixels[9, ..., 0] = 0.2, 0.8

    def forward(images: torch.Tensor) -> torch.Tensor:
        easy, hard = 100.0 * (images[:, 0, 0, 1] - 0.499), images[:, 0, 0, 2] - (0.5 - 0.9 * radius)
        return torch.where(images[:, 0, 0, 0] < 0.5, easy, hard)[:, None]

    goal = class_goal(torch.tensor([1] * 10), 2, Decision(1, 0.5, True))
    tuning = cases_of(forward, pixels, goal, keys=list("abcdefghij"), seed=0)
    found = universal([tuning], [], "l2", radius / math.sqrt(3), steps=30)
    assert found.tuned.all()


def test_steps_grow_shorter_so_that_what_lies_between_is_met() -> None:
    def logits(kind: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        change = (value - 0.5) / 0.1
        return torch.where(kind == 1, change + 0.3, (change + 0.5).square() - 0.04)

    assert universal([one_pixel(logits, [1, 1, 2])], [], "linf", 0.1, steps=10).tuned.all()


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_best_perturbation_met_is_kept(steps: int) -> None:
    def logits(kind: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        change = (value - 0.5) / 0.1
        return torch.where(kind == 1, change + 0.5, 10.0 * (0.9 - change))

    found = universal([one_pixel(logits, [1, 1, 1, 2, 2])], [], "linf", 0.1, steps=steps)
    assert int(found.tuned.sum()) == 2


def test_a_pixel_at_its_end_does_not_pull_beyond_it() -> None:
    """A white pixel would gain most from being whiter still; the other case needs it a little darker."""

    def logits(kind: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.where(kind == 1, 100.0 * (1.01 - value), value - 0.495)

    found = universal([one_pixel(logits, [1, 2], [1.0, 0.5])], [], "linf", 0.1, steps=12)
    assert found.tuned.tolist() == [False, True]


def test_the_aim_that_breaks_most_cases_is_taken() -> None:
    """All three healthy cases are easy to break; of ten ill ones, nine are, the other way."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0, 0, :1] - 0.5) * 10.0

    pixels = torch.tensor([0.45] * 3 + [0.55] * 9 + [0.9])[:, None, None, None]
    goal = class_goal((pixels[:, 0, 0, 0] > 0.5).long(), 2, Decision(1, 0.5, True))
    tuning = cases_of(forward, pixels, goal, keys=list("abcdefghijklm"), seed=0)
    assert universal([tuning], [], "linf", 0.1, steps=3).tuned.tolist() == [False] * 3 + [True] * 9 + [False]


def test_the_class_that_is_nearest_on_average_is_aimed_at() -> None:
    """Two kinds of cases pull apart, each to the class nearest to it; one class is a little farther from both."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        kind, change = images[:, 0, 0, 0].detach() > 0.5, images[:, 0, 0, 1] - 0.5
        far = torch.full_like(change, -50.0)
        one, other = torch.where(kind, -0.1 - change, far), torch.where(kind, far, -0.1 + change)
        return torch.stack([torch.zeros_like(change), far, one, 10.0 * change - 0.2, other, far], dim=1)

    pixels = torch.tensor([[0.2, 0.5], [0.8, 0.5]])[:, None, None, :]
    goal = class_goal(torch.tensor([0, 0]), 6, Decision())
    tuning = cases_of(forward, pixels, goal, keys=("a", "b"), seed=0)
    assert universal([tuning], [], "linf", 0.05, steps=3).tuned.all()


@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_the_three_nearest_classes_are_aimed_at(place: int) -> None:
    """One class can win, of those that are nearer or farther none; it pulls the other way."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        change = images[:, 0, 0, 0] - 0.5
        ways = [-0.1 * way + (10.0 if way == place else -0.1) * change for way in range(1, 5)]
        return torch.stack([torch.zeros_like(change), *ways], dim=1)

    pixels = torch.full((1, 1, 1, 1), 0.5)
    tuning = cases_of(forward, pixels, class_goal(torch.tensor([0]), 5, Decision()), keys=("a",), seed=0)
    assert universal([tuning], [], "linf", 0.05, steps=3).tuned.tolist() == [place <= 3]


def test_a_case_of_infinite_logit_does_not_hide_how_the_others_fare() -> None:
    def logits(kind: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.where(kind == 1, torch.inf, value)

    alone, beside = (universal([one_pixel(logits, kinds)], [], "linf", 0.1, steps=2) for kinds in ([2], [1, 2]))
    assert alone.perturbation.flatten().tolist() == [0.0, pytest.approx(-0.1)]
    assert torch.equal(beside.perturbation, alone.perturbation)


def test_a_slope_that_is_no_number_does_not_hide_those_of_the_others() -> None:
    def logits(kind: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        root = (torch.where(kind == 1, value, 0.9) - 0.5).abs().sqrt()  # without a slope at 0.5
        return torch.where(kind == 1, 9.0 + root, value - 0.45)

    assert universal([one_pixel(logits, [1, 2])], [], "linf", 0.1, steps=2).tuned.tolist() == [False, True]


def test_nearest_is_a_mean_over_the_cases_that_a_class_can_break() -> None:
    """The last class can break one case of ten alone, and is farther from it than the first three are from every case."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        other, change = images[:, 0, 0, 0].detach() > 0.5, images[:, 0, 0, 1] - 0.5
        zero, far = torch.zeros_like(change), torch.full_like(change, -50.0)
        ways = [-0.1 - 0.1 * change, -0.2 - 0.1 * change, -0.3 + 10.0 * change]
        return torch.stack([torch.where(other, zero, far), *ways, far, torch.where(other, zero - 1.0, zero)], dim=1)

    pixels = torch.tensor([[0.2, 0.5]] * 9 + [[0.8, 0.5]])[:, None, None, :]
    goal = class_goal(torch.tensor([5] * 9 + [0]), 6, Decision())
    tuning = cases_of(forward, pixels, goal, keys=list("abcdefghij"), seed=0)
    assert universal([tuning], [], "linf", 0.05, steps=3).tuned.all()


def test_breaks_that_are_not_confirmed_do_not_choose() -> None:
    """Two cases break beyond half of the way, unconfirmed; one about a fifth of the way, which the third step meets."""

    def logits(kind: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        change = (value - 0.5) / 0.1
        return torch.where(kind == 1, 0.45 - change, (change - 0.2).abs() - 0.1)

    tuning = one_pixel(logits, [1, 1, 2])
    assert universal([tuning], [], "linf", 0.1, steps=4).tuned.tolist() == [True, True, False]
    second_kind = replace(tuning, confirm=lambda images, goal: images[:, 0, 0, 0] > 0.15)
    assert universal([second_kind], [], "linf", 0.1, steps=4).tuned.tolist() == [False, False, True]


def test_three_classes_and_a_box_that_binds() -> None:
    generator = torch.Generator().manual_seed(8)
    weights = torch.randn(PIXELS, 3, generator=generator)
    pixels = torch.rand(40, *SHAPE, generator=generator).round()  # every pixel black or white

    def forward(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ weights

    labels = forward(pixels).argmax(dim=1)
    part = cases_of(forward, pixels, class_goal(labels, 3, Decision()), keys=[str(n) for n in range(40)], seed=0)
    found = universal([part.rows(torch.arange(20))], [part.rows(torch.arange(20, 40))], "linf", 0.3, steps=8)
    expected = part.broken((pixels + found.perturbation).clamp(0, 1))
    assert torch.equal(torch.cat([found.tuned, found.held_out]), expected)
    assert found.held_out.float().mean() > found.held_out_control.float().mean()


def test_a_patient_is_in_one_half_only() -> None:
    patients = np.array(["a", "b", "a", "c", "d", "e", "e", "e", "a"])
    for seed in range(20):
        chosen = tuning_half(patients, np.random.default_rng(seed), 200)
        members = set(patients[chosen])
        assert len(members) == 2
        assert not members & set(patients[~chosen])
        few = tuning_half(patients, np.random.default_rng(seed), 3)
        assert int(few.sum()) <= 3
        assert not (few & ~chosen).any()
    assert int(tuning_half(np.array(list("abcd")), np.random.default_rng(0), 2).sum()) == 2
    assert not tuning_half(np.array(["a", "a"]), np.random.default_rng(0), 200).any()
    assert not tuning_half(np.array([], dtype=str), np.random.default_rng(0), 200).any()


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"give an epsilon in \(0, 1\]"):
        universal([cases(4, 0)], [], "linf", 0.0, steps=3)
    with pytest.raises(ConfigError, match="at least 1 step"):
        universal([cases(4, 0)], [], "linf", 0.1, steps=0)
    with pytest.raises(DataError, match="no cases to fit"):
        universal([], [cases(4, 0)], "linf", 0.1, steps=3)
