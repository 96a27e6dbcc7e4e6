"""The engine among values that are not numbers, slopes that are flat, and models that want to be left alone."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from tests.attacks.test_search import Stairs, curved, decided, gaps, images_of, same
from xvision.attacks.apgd import APGD, attempts
from xvision.attacks.balls import Norm
from xvision.attacks.cases import Found, budget_of, cases_of
from xvision.attacks.goals import class_goal
from xvision.attacks.gradient_walks import MarginPGD
from xvision.attacks.search import Attempt, Walker, pursue
from xvision.methods.decision import Decision


class _NotANumber(torch.autograd.Function):
    """Passes values on, and NaN as the slope of the rows whose first value is above 0.99."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, values: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(values)
        return values.clone()

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, slope: torch.Tensor) -> torch.Tensor:
        (values,) = context.saved_tensors
        return torch.where(values[:, :1, :1, :1] > 0.99, torch.nan, slope)


@pytest.mark.parametrize("where", ["logits", "slopes"])
@pytest.mark.parametrize("walker", [MarginPGD(6), APGD("margin", 12), APGD("cross_entropy", 12)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_one_case_that_is_not_a_number_does_not_touch_the_others(walker: Walker, norm: Norm, where: str) -> None:
    pixels = images_of(6)
    pixels[:, 0, 0, 0] = 0.5
    pixels[2, 0, 0, 0] = 1.0

    def sick(images: torch.Tensor) -> torch.Tensor:
        if where == "slopes":
            return curved(_NotANumber.apply(images))
        return torch.where(images[:, 0, 0, :1] > 0.99, torch.nan, curved(images))

    whole = decided(pixels)
    budget = budget_of(norm, (0.004, 0.009), pixels)
    healthy = pursue(whole, budget, walker, width=4)
    found = pursue(replace(whole, forward=sick), budget, walker, width=4)
    others = torch.tensor([0, 1, 3, 4, 5])
    assert found.nonfinite.tolist() == [False, False, True, False, False, False]
    assert bool(torch.isfinite(found.images).all())
    same(Found(*(values[others] for values in healthy)), Found(*(values[others] for values in found)), torch.arange(5))
    if where == "logits":
        assert math.isinf(found.size[2].item())


class Sloped(Stairs):
    """The same steps, asking for slopes."""

    loss = "margin"


@pytest.mark.parametrize("walker", [Stairs(4), Sloped(4)])
def test_a_logit_that_is_not_a_number_on_the_way_is_noted(walker: Walker) -> None:
    def holed(images: torch.Tensor) -> torch.Tensor:
        first = images[:, :, 0, 0]
        return torch.where((first > 0.35) & (first < 0.45), torch.nan, first) - images[:, :, 0, 1]

    cases = replace(gaps([0.95, 0.95, 0.55]), forward=holed)
    found = pursue(cases, budget_of("linf", (0.8,), cases.pixels), walker, width=2)
    assert found.nonfinite.tolist() == [True, True, True]
    assert found.size.tolist() == pytest.approx([math.inf, math.inf, 0.6])
    other = pursue(cases, budget_of("linf", (0.3,), cases.pixels), walker, width=2)
    assert not other.nonfinite.any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("walker", [MarginPGD(6), APGD("margin", 12)])
def test_a_pixel_without_a_slope_does_not_stop_the_others(walker: Walker, norm: Norm) -> None:
    def holed(images: torch.Tensor) -> torch.Tensor:
        first = (images[:, 0, 0, :1] - 0.5).abs().sqrt()  # its slope at 0.5 is not finite
        return 0.1 * first + images[:, 0, 0, 1:2] - 0.6

    pixels = torch.full((1, 1, 1, 2), 0.5)
    cases = cases_of(
        holed, pixels, class_goal(torch.zeros(1, dtype=torch.long), 2, Decision(1, 0.5)), keys=["a"], seed=0
    )
    found = pursue(cases, budget_of(norm, (0.2,), pixels), walker, width=1)
    assert found.nonfinite.tolist() == [True]
    assert math.isfinite(float(found.size))


def test_a_flat_first_slope_is_noted() -> None:
    def saturated(images: torch.Tensor) -> torch.Tensor:
        first = images[:, 0, 0, :1]
        return torch.where(first > 0.5, first * 0.0, first) - 2.0

    pixels = torch.full((2, 1, 1, 1), 0.25)
    pixels[1] = 0.75
    goal = class_goal(torch.zeros(2, dtype=torch.long), 2, Decision(1, 0.5))
    cases = cases_of(saturated, pixels, goal, keys=["slope", "flat"], seed=0)
    budget = budget_of("linf", (0.1,), pixels)
    assert pursue(cases, budget, MarginPGD(3), width=2).flat.tolist() == [False, True]
    started = pursue(cases, budget, MarginPGD(3), width=2, attempts=[[Attempt(1)]] * 2)
    later = pursue(cases, budget_of("linf", (0.9,), pixels), MarginPGD(5), width=2)
    assert later.flat.tolist() == [False, True]  # the first case walks into the flat part
    assert started.flat.tolist() == [False, False]  # only the slope at the image itself says so


def test_the_last_look_asks_for_no_gradient() -> None:
    asked = []

    def recording(images: torch.Tensor) -> torch.Tensor:
        asked.append(images.requires_grad)
        return images.flatten(1)[:, :1] - 9.0

    pixels = torch.full((2, 1, 2, 2), 0.5)
    cases = cases_of(recording, pixels, class_goal(torch.tensor([0, 0]), 2, Decision(1, 0.5)), keys=["a", "b"], seed=0)
    pursue(cases, budget_of("linf", (0.1,), pixels), MarginPGD(4), width=2)
    assert asked == [True, True, True, False]


def test_a_model_that_takes_one_image_at_a_time() -> None:
    def single(images: torch.Tensor) -> torch.Tensor:
        assert len(images) == 1
        return curved(images)

    cases = decided(images_of(5))
    budget = budget_of("linf", (0.01, 0.05), cases.pixels)
    one = pursue(replace(cases, forward=single), budget, MarginPGD(5), width=1)
    same(pursue(cases, budget, MarginPGD(5), width=64), one, torch.arange(5))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was(mode: type[torch.no_grad]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)
    ).train()
    model[0].weight.requires_grad_(False)
    model[3].bias.grad = torch.full_like(model[3].bias, 7.0)
    before, required = copy.deepcopy(model.state_dict()), [each.requires_grad for each in model.parameters()]
    pixels = images_of(4)
    kept = pixels.clone()
    with torch.no_grad():
        logits = model(pixels)
    cases = cases_of(model, pixels, class_goal(logits.argmax(1), 3, Decision()), keys=list("abcd"), seed=0)
    with mode():
        pursue(cases, budget_of("l2", (0.01, 0.1), pixels), APGD("margin", 10), width=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [each.requires_grad for each in model.parameters()] == required
    assert model.training
    assert [each.grad is None for each in model.parameters()] == [True, True, True, False]
    assert bool((model[3].bias.grad == 7.0).all())
    assert torch.equal(pixels, kept)
    assert torch.equal(cases.pixels, kept)


def test_one_class_and_constant_logits_break_nothing() -> None:
    pixels = images_of(3)
    goal = class_goal(torch.tensor([1, 1, 1]), 2, Decision())
    cases = cases_of(lambda x: torch.tensor([[0.0, 1.0]]).expand(len(x), 2), pixels, goal, keys=list("abc"), seed=0)
    budget = budget_of("l2", (0.1, 0.5), pixels)
    found = pursue(cases, budget, APGD("margin", 5), width=2, attempts=attempts(cases, cases.forward(pixels), 2, 9))
    assert found.looks.tolist() == [10, 10, 10]
    assert found.flat.tolist() == [True] * 3
    assert bool(torch.isinf(found.size).all())
