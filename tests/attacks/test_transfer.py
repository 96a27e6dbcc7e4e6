"""Transfer: exact on linear models, past the surrogate's own boundary; and a student that equals ridge regression."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from xvision.attacks.balls import Norm, size, steepest, within
from xvision.attacks.cases import Cases, Forward, budget_of, cases_of
from xvision.attacks.goals import Goal, class_goal, finding_goal
from xvision.attacks.gradient_walks import MarginPGD
from xvision.attacks.search import pursue
from xvision.attacks.transfer import distilled, transferred
from xvision.errors import DataError, ModelError
from xvision.methods.decision import Decision

PLAIN = Decision()
SHAPE = (1, 5, 5)
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
WEIGHT = torch.randn(25, 2, generator=torch.Generator().manual_seed(1))


def linear(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - 0.5).flatten(1) @ WEIGHT


def hidden(pixels: torch.Tensor) -> torch.Tensor:
    """The linear model of the pixels rounded finely, which hides its slope."""
    return linear((pixels * 512).round() / 512)


def images(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return 0.3 + 0.4 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def cases(forward: Forward, count: int = 30) -> Cases:
    pixels = images(count)
    goal = class_goal(forward(pixels).argmax(dim=1), 2, PLAIN)
    return cases_of(forward, pixels, goal, keys=[str(place) for place in range(count)], seed=0)


def best_margins(part: Cases, norm: Norm, radius: float) -> torch.Tensor:
    """(B,) the largest margin of the linear model within the radius and the box, exact."""
    slope = WEIGHT @ torch.tensor([-1.0, 1.0])
    away = 1.0 - 2.0 * linear(part.pixels).argmax(dim=1)
    slopes = (away[:, None] * slope).view(-1, *SHAPE)
    change = steepest(slopes, part.low - part.pixels, part.high - part.pixels, torch.full((len(part),), radius), norm)
    return part.goal.margin(linear(part.pixels + change))


@pytest.mark.parametrize("norm", NORMS)
def test_from_the_model_itself_it_is_exact_on_a_linear_model(norm: Norm) -> None:
    part = cases(linear)
    budget = budget_of(norm, [0.01, 0.03, 0.1, 0.3], part.pixels)
    found = transferred(part, budget, linear, steps=10, width=8)
    counts = []
    for radius in budget.radii:
        possible, broken = best_margins(part, norm, radius) > 0, found.size <= radius + budget.slack
        clear = best_margins(part, norm, radius).abs() > 1e-4
        assert torch.equal(broken[clear], possible[clear])
        counts.append(int(broken.sum()))
    assert counts[0] < counts[-1]
    broken = torch.isfinite(found.size)
    assert torch.equal(part.broken(found.images), broken)
    torch.testing.assert_close(size(found.images - part.pixels, norm)[broken], found.size[broken])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_second_of_two_looks_is_at_the_radius(norm: Norm) -> None:
    part = cases(linear)
    budget = budget_of(norm, [0.05], part.pixels)
    margins = best_margins(part, norm, budget.radii[0])
    clear = margins.abs() > 1e-4
    found = transferred(part, budget, linear, steps=2, width=30)
    assert torch.equal(torch.isfinite(found.size)[clear], (margins > 0)[clear])
    assert bool(torch.isinf(transferred(part, budget, linear, steps=1, width=30).size).all())
    assert int((margins > 0).sum()) >= 10


@pytest.mark.parametrize("norm", NORMS)
def test_it_goes_past_the_surrogates_own_boundary_to_the_models(norm: Norm) -> None:
    part = cases(linear)
    signs = torch.where(linear(part.pixels).argmax(dim=1) == 1, 1.0, -1.0)

    def eager(pixels: torch.Tensor) -> torch.Tensor:
        """Wrong already at the images themselves, each in its place."""
        return linear(pixels) - 100 * torch.stack([-signs, signs], dim=1)

    assert bool(replace(part, forward=eager).broken(part.pixels).all())
    budget = budget_of(norm, [0.1], part.pixels)
    found = transferred(part, budget, eager, steps=10, width=30)
    margins = best_margins(part, norm, budget.radii[0])
    clear = margins.abs() > 1e-4
    assert torch.equal(torch.isfinite(found.size)[clear], (margins > 0)[clear])
    assert int((margins > 0).sum()) >= 15


def test_what_a_hidden_slope_protects_falls_to_its_open_twin() -> None:
    part = cases(hidden)
    budget = budget_of("linf", [0.02, 0.05], part.pixels)
    blind = pursue(part, budget, MarginPGD(steps=10), width=30)
    found = transferred(part, budget, linear, steps=10, width=30)
    assert bool(torch.isinf(blind.size).all())
    for radius in budget.radii:
        possible = best_margins(part, "linf", radius - 1 / 512) > 0
        assert bool((found.size <= radius + budget.slack)[possible].all())
        assert 0 < int(possible.sum()) < 30


def test_the_model_is_asked_once_per_case_and_radius_and_never_for_slopes() -> None:
    asked: list[tuple[int, bool]] = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        asked.append((len(pixels), torch.is_grad_enabled()))
        return linear(pixels)

    part = cases(linear)
    budget = budget_of("linf", [0.005, 0.02, 0.05], part.pixels)
    reached = torch.full((30,), torch.inf, dtype=torch.float64)
    reached[:5], reached[5:10] = 0.02, 0.005
    found = transferred(replace(part, forward=forward), replace(budget, reached=reached), linear, steps=4, width=7)
    assert sum(count for count, _ in asked) == int(found.looks.sum())
    assert max(count for count, _ in asked) <= 7
    assert not any(grad for _, grad in asked)
    assert found.looks[5:10].tolist() == [0] * 5
    assert found.looks[:5].tolist() == [1] * 5
    tried = (
        torch.bucketize(found.size[10:], torch.tensor(budget.radii, dtype=torch.float64) + budget.slack).clamp(max=2)
        + 1
    )
    assert torch.equal(found.looks[10:], tried)
    assert len(torch.unique(tried)) == 3


def test_a_break_must_be_confirmed() -> None:
    part = cases(linear)
    budget = budget_of("linf", [0.05], part.pixels)
    none = transferred(
        replace(part, confirm=lambda seen, goal: torch.zeros(len(seen), dtype=torch.bool)),
        budget,
        linear,
        steps=4,
        width=9,
    )
    assert bool(torch.isinf(none.size).all())
    assert torch.equal(none.images, part.pixels)


def test_the_largest_margin_counts_not_the_last_rise() -> None:
    """The surrogate's margin jumps up, falls, and rises again to less; the model is wrong only where it was largest."""
    pixels = torch.full((3, *SHAPE), 0.5)

    def moved(images: torch.Tensor) -> torch.Tensor:
        return (images - 0.5).flatten(1).mean(dim=1, keepdim=True) / 0.1

    def surrogate(images: torch.Tensor) -> torch.Tensor:
        return torch.where(moved(images) < 0.3, 4 * moved(images), 0.3 * moved(images)) - 1

    def model(images: torch.Tensor) -> torch.Tensor:
        return 0.05 - (moved(images) - 0.25).abs()

    part = cases_of(model, pixels, class_goal(torch.zeros(3, dtype=torch.long), 2, PLAIN), keys=["a", "b", "c"], seed=0)
    found = transferred(part, budget_of("linf", [0.1], pixels), surrogate, steps=10, width=3)
    assert bool(torch.isfinite(found.size).all())


def test_a_walk_that_settles_within_the_l1_ball_does_so_here_too() -> None:
    pixels, peak = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0.1, 0.1])

    def model(images: torch.Tensor) -> torch.Tensor:
        return 0.002 - ((images - 0.5).flatten(1) - peak).square().sum(dim=1, keepdim=True)

    part = cases_of(model, pixels, class_goal(torch.zeros(1, dtype=torch.long), 2, PLAIN), keys=["a"], seed=0)
    budget = budget_of("l1", [0.1], pixels)
    assert bool(torch.isfinite(pursue(part, budget, MarginPGD(steps=30), width=1).size))
    assert bool(torch.isfinite(transferred(part, budget, model, steps=30, width=1).size))


def test_logits_that_are_not_numbers_are_said() -> None:
    part = cases(linear)
    found = transferred(
        replace(part, forward=lambda pixels: linear(pixels) * math.nan),
        budget_of("linf", [0.1], part.pixels),
        linear,
        steps=2,
        width=8,
    )
    assert bool(found.nonfinite.all())
    assert bool(torch.isinf(found.size).all())


def test_logits_that_were_not_numbers_at_a_smaller_radius_stay_said() -> None:
    pixels = torch.full((2, *SHAPE), 0.5)

    def brighter(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).mean(dim=1, keepdim=True) - 0.68

    def holed(images: torch.Tensor) -> torch.Tensor:
        return torch.where((brighter(images) + 0.08).abs() < 0.01, torch.nan, brighter(images))  # a tenth brighter

    part = cases_of(holed, pixels, class_goal(torch.zeros(2, dtype=torch.long), 2, PLAIN), keys=["a", "b"], seed=0)
    found = transferred(part, budget_of("linf", [0.1, 0.2], pixels), brighter, steps=4, width=2)
    assert found.nonfinite.tolist() == [True, True]
    assert found.size.tolist() == pytest.approx([0.2, 0.2])


def curved(outputs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 16), nn.Tanh(), nn.Linear(16, outputs))


@pytest.mark.parametrize("norm", NORMS)
def test_it_does_not_depend_on_batch_or_order_and_stays_within_bounds(norm: Norm) -> None:
    model, twin = curved(3, 0), curved(3, 0)
    for values in twin.parameters():
        values.data += 0.05 * torch.randn(values.shape, generator=torch.Generator().manual_seed(2))
    pixels = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(3))
    part = cases_of(
        model, pixels, class_goal(model(pixels).argmax(dim=1), 3, PLAIN), keys=list("abcdefghijklmnopqrst"), seed=0
    )
    stay = pixels > 0.8
    part = replace(part, low=torch.where(stay, pixels, part.low), high=torch.where(stay, pixels, part.high))
    budget = budget_of(norm, [0.005, 0.02, 0.04], pixels)
    base = transferred(part, budget, twin, steps=6, width=64)
    broken = torch.isfinite(base.size)
    assert 0 < int(broken.sum()) < 20
    radii = torch.where(broken, base.size, 0.0).float()
    assert bool(within(base.images - pixels, part.low - pixels, part.high - pixels, radii, norm).all())
    assert torch.equal(base.images[stay], pixels[stay])
    shuffle = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    for order, width in ((torch.arange(20), 1), (torch.arange(20), 7), (shuffle, 64)):
        other = transferred(part.rows(order), budget.rows(order), twin, steps=6, width=width)
        torch.testing.assert_close(other.size, base.size[order], rtol=1e-4, atol=1e-6)
        assert torch.equal(other.looks, base.looks[order])
    assert all(values.grad is None for part_ in (model, twin) for values in part_.parameters())


def test_a_surrogate_of_other_classes_is_an_error() -> None:
    part = cases(linear)
    with pytest.raises(ModelError, match="logits of shape"):
        transferred(part, budget_of("linf", [0.1], part.pixels), curved(5, 1), steps=2, width=8)


# Distillation


def whole(logits: torch.Tensor) -> Goal:
    return class_goal(logits.argmax(dim=1), logits.shape[1], PLAIN)


@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 8, 9)])
def test_the_student_is_the_ridge_regression_that_leaving_one_out_prefers(shape: tuple[int, ...]) -> None:
    """Fewer values than images, and more."""
    count = 14
    pixels = images(count, 1, shape)
    weight = torch.randn(math.prod(shape), 3, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(3))
    logits = (pixels - 0.5).flatten(1) @ weight + 0.5 * noise
    student = distilled(pixels, logits, whole(logits))
    flat, answers = pixels.flatten(1).double().numpy(), logits.double().numpy()
    variance = ((flat - flat.mean(axis=0)) ** 2).sum() / count

    def left_out(strength: float) -> np.ndarray:
        rows = []
        for place in range(count):
            others = np.arange(count) != place
            rows.append(Ridge(strength * variance).fit(flat[others], answers[others]).predict(flat[[place]])[0])
        return np.stack(rows)

    tried = [10.0 ** (power / 2) for power in range(-12, 7)]
    errors = [float(((left_out(strength) - answers) ** 2).sum()) for strength in tried]
    assert student.ridge == pytest.approx(tried[int(np.argmin(errors))])
    reference = Ridge(student.ridge * variance).fit(flat, answers)
    fresh = images(6, 9, shape)
    predicted = reference.predict(fresh.flatten(1).double().numpy())
    np.testing.assert_allclose(student.forward(fresh).numpy(), predicted, atol=1e-4)
    same = left_out(student.ridge).argmax(axis=1) == answers.argmax(axis=1)
    assert student.agreement == pytest.approx(same.mean())


def test_the_student_of_a_linear_model_is_that_model() -> None:
    pixels = images(60)
    logits = linear(pixels) + torch.tensor([3.0, 2.9])
    student = distilled(pixels, logits, whole(logits))
    assert student.agreement == 1.0
    torch.testing.assert_close(
        student.forward(images(9, 5)), linear(images(9, 5)) + torch.tensor([3.0, 2.9]), atol=1e-3, rtol=0
    )
    part = cases(hidden)
    found = transferred(part, budget_of("linf", [0.05], part.pixels), student.forward, steps=5, width=30)
    possible = best_margins(part, "linf", 0.05 - 1 / 512) > 0.01
    assert bool(torch.isfinite(found.size)[possible].all())
    assert int(possible.sum()) >= 15


def test_a_student_of_logits_that_have_nothing_to_do_with_the_pixels_agrees_by_chance() -> None:
    logits = torch.randn(200, 2, generator=torch.Generator().manual_seed(7))
    student = distilled(images(200), logits, whole(logits))
    share = logits.argmax(dim=1).double().mean().item()
    assert student.chance == pytest.approx(max(share, 1 - share))
    assert abs(student.agreement - 0.5) < 0.12
    assert distilled(images(60), linear(images(60)), whole(linear(images(60)))).agreement > student.agreement + 0.3


@pytest.mark.parametrize("outputs", [1, 3])
def test_findings_and_one_logit_are_decided_at_their_thresholds(outputs: int) -> None:
    """3: findings. The thresholds are such that a mistaken reading of the logits would agree less."""
    weight = torch.randn(25, outputs, generator=torch.Generator().manual_seed(4))
    pixels = images(80)
    logits = (pixels - 0.5).flatten(1) @ weight
    thresholds = [0.3, 0.5, 0.8]
    decided = logits >= torch.tensor(thresholds).logit()[:outputs] if outputs > 1 else logits >= 0
    goal = finding_goal(decided, thresholds) if outputs > 1 else class_goal(decided[:, 0].long(), 2, PLAIN)
    student = distilled(pixels, logits, goal)
    assert student.agreement == 1.0
    _, counts = torch.unique(decided, dim=0, return_counts=True)
    assert student.chance == pytest.approx(counts.max().item() / 80)


def test_the_strength_of_the_ridge_goes_from_a_millionth_to_a_thousand() -> None:
    """The strongest where every image comes twice with opposite logits, so that what is left out is always missed."""
    pixels = images(40)
    logits = linear(pixels)
    twice, opposite = torch.cat([pixels, pixels]), torch.cat([logits, -logits])
    assert distilled(pixels, logits, whole(logits)).ridge == pytest.approx(1e-6)
    assert distilled(twice, opposite, whole(opposite)).ridge == pytest.approx(1e3)


def test_images_without_differences_give_the_mean() -> None:
    logits = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]])
    student = distilled(torch.full((3, 1, 2, 2), 0.5), logits, whole(logits))
    torch.testing.assert_close(student.forward(images(2, 0, (1, 2, 2))), torch.tensor([[2.0, 1.0]] * 2))


def test_what_cannot_be_distilled_is_an_error() -> None:
    logits = linear(images(5))
    for pixels, answers in ((images(2), logits[:2]), (images(5), logits[:4]), (images(5), logits * math.nan)):
        with pytest.raises(DataError, match="to distil"):
            distilled(pixels, answers, whole(logits))


def test_the_student_does_not_hold_a_graph() -> None:
    model = curved(2, 0)
    pixels = images(10)
    student = distilled(pixels.requires_grad_(), model(pixels), whole(model(pixels)))
    assert not student.forward(images(2)).requires_grad
    assert pixels.grad is None
