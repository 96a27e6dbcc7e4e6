"""What misleads an attack is planted and must be measured; on linear models the figures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.attacks.planted import (
    PIXELS,
    SEEDS,
    SHAPE,
    Change,
    Planted,
    linear,
    linear_cases,
    margins,
    network,
    of,
    planted,
    right,
)
from xvision.attacks import check_rules as rules
from xvision.attacks.cases import Cases
from xvision.attacks.probes import (
    CUBE,
    company,
    connected,
    differences,
    dynamic,
    held_alone,
    reach,
    repeats,
    slopes,
    steadiness,
    surface,
)
from xvision.errors import ConfigError

# Gradients


@pytest.mark.parametrize("seed", SEEDS)
def test_a_linear_model_has_slopes_at_any_scale(seed: int) -> None:
    for scale in (1e-20, 1e-6, 1.0, 1e6):
        found = slopes(linear_cases(seed, scale=scale)[1])
        assert not any(values.any() for values in (found.zero_slope, found.tiny_slope, found.nonfinite, found.cut))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rounded_input_has_no_slope_anywhere(seed: int) -> None:
    found = slopes(planted(seed, lambda inner, images: inner((images * 32).round() / 32)))
    assert found.zero_slope.all()
    assert found.tiny_slope.all()
    assert not found.cut.any()
    assert rules.zero_gradients(found.zero_slope, found.tiny_slope, np.zeros(24, dtype=bool)).state == "broken"


def test_a_slope_that_foretells_nothing_is_tiny_whatever_the_scale() -> None:
    for scale in (1.0, 1e8):
        forward = linear(torch.full((PIXELS,), scale * 1e-13 / PIXELS), bias=scale)
        found = slopes(of(forward, torch.rand(8, *SHAPE), torch.ones(8, dtype=torch.long)))
        assert not found.zero_slope.any()
        assert found.tiny_slope.all()
    forward = linear(torch.full((PIXELS,), 1e-9 / PIXELS), bias=1.0)
    assert not slopes(of(forward, torch.rand(8, *SHAPE), torch.ones(8, dtype=torch.long))).tiny_slope.any()


@pytest.mark.parametrize("seed", SEEDS)
def test_large_logits_hide_the_slope_of_the_cross_entropy_alone(seed: int) -> None:
    cases = planted(seed, lambda inner, images: 1e3 * inner(images))
    found = slopes(cases)
    assert np.array_equal(
        found.cross_entropy_zero[margins(cases) < -120], np.ones((margins(cases) < -120).sum(), dtype=bool)
    )
    assert not found.zero_slope.any()
    same = np.zeros(len(cases), dtype=bool)
    assert rules.losses_disagree(same, same, found.cross_entropy_zero, found.zero_slope, 1).state == "flagged"


def _through_numpy(inner: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return inner(torch.from_numpy(images.numpy()))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("change", [lambda inner, images: inner(images.detach()), _through_numpy])
def test_a_graph_that_is_cut_or_raises_is_no_gradient(seed: int, change: Change) -> None:
    cases = planted(seed, change)
    found = slopes(cases)
    assert found.cut.all()
    assert not connected(cases)
    assert rules.nonfinite_or_cut(found.nonfinite, found.cut).state == "broken"


def test_weights_that_ask_for_gradients_do_not_make_up_for_pixels() -> None:
    cases = planted(0, lambda inner, images: inner(images.detach()))
    model = cases.forward
    assert isinstance(model, Planted)
    model.change = lambda inner, images: model.scale * inner(images.detach())
    assert slopes(cases).cut.all()


def test_a_model_that_does_not_answer_at_all_is_an_error_and_not_a_finding() -> None:
    def fails(inner: nn.Module, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        slopes(planted(0, fails))

    def full(inner: nn.Module, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("full") if images.requires_grad else ValueError

    with pytest.raises(torch.OutOfMemoryError):
        slopes(planted(0, full))


def test_a_gradient_that_is_not_finite_marks_its_case_only() -> None:
    def change(inner: nn.Module, images: torch.Tensor) -> torch.Tensor:
        steep = torch.sqrt(0 * images[:1].flatten(1).sum(dim=1, keepdim=True))
        return torch.cat([inner(images[:1]) + steep, inner(images[1:])])

    found = slopes(planted(0, change))
    assert found.nonfinite.tolist() == [True, *[False] * 23]
    assert not found.tiny_slope[1:].any()
    assert rules.nonfinite_or_cut(found.nonfinite, found.cut).state == "flagged"


def test_an_infinite_logit_is_odd_and_not_without_slope() -> None:
    cases = of(
        lambda images: images.flatten(1).sum(dim=1, keepdim=True) / 0, torch.rand(3, *SHAPE), torch.ones(3).long()
    )
    found = slopes(cases)
    assert found.nonfinite.all()
    assert not found.tiny_slope.any()


# Answers


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_layer_is_seen_and_a_fixed_one_is_not(seed: int) -> None:
    torch.manual_seed(seed)
    honest = repeats(planted(seed, lambda inner, images: inner(images)), times=5)
    assert not honest.spread.any()
    assert rules.random_model(honest.spread, honest.changed).state == "clear"
    noisy = repeats(planted(seed, lambda inner, images: inner(images + 0.05 * torch.randn_like(images))), times=5)
    assert (noisy.spread > 1e-4).all()
    assert rules.random_model(noisy.spread, noisy.changed).state == "flagged"


def test_repeats_are_relative_to_large_logits_and_count_decisions() -> None:
    answers = iter([1.0, 1.0, -3.0] * 2)
    cases = of(
        lambda images: torch.full((len(images), 1), 1e6 * next(answers)), torch.rand(3, *SHAPE), torch.tensor([1, 1, 0])
    )
    found = repeats(cases, times=3)
    assert found.spread == pytest.approx([4.0] * 3)
    assert found.changed.all()
    always = repeats(
        of(lambda images: -torch.ones(len(images), 1), torch.rand(3, *SHAPE), torch.tensor([1, 1, 0])), times=2
    )
    assert not always.changed.any()
    assert found.logits.tolist() == [[1e6]] * 3
    small = iter([0.5, 0.4])
    cases = of(lambda images: torch.full((len(images), 1), next(small)), torch.rand(1, *SHAPE), torch.tensor([1]))
    assert repeats(cases, times=2).spread == pytest.approx([0.1])
    with pytest.raises(ConfigError, match="at least 2"):
        repeats(cases, times=1)


def test_an_answer_that_is_not_a_number_differs_from_a_number_only() -> None:
    values = iter([math.nan, math.nan, 1.0])
    cases = of(lambda images: torch.full((len(images), 1), next(values)), torch.rand(2, *SHAPE), torch.tensor([1, 1]))
    assert repeats(cases, times=2).spread.tolist() == [0.0, 0.0]
    values = iter([math.nan, 1.0])
    assert repeats(cases, times=2).spread.tolist() == [math.inf, math.inf]
    values = iter([math.inf, math.inf])
    assert repeats(cases, times=2).spread.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_softmax_at_the_end_is_seen_in_the_outputs(seed: int) -> None:
    given = repeats(planted(seed, lambda inner, images: inner(images).softmax(dim=1)), times=2)
    assert rules.probabilities_given(given.logits).state == "flagged"
    assert rules.probabilities_given(repeats(right(network(seed, 0.0), seed), times=2).logits).state == "clear"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_model_that_looks_at_the_batch_is_seen_even_with_one_case(seed: int) -> None:
    def mean(inner: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return inner(images - 0.2 * images.mean(dim=0, keepdim=True))

    for count in (24, 1):
        found = company(planted(seed, mean, count))
        assert (found.company > 1e-4).all()
        assert rules.batch_dependence(found.company, found.training).state == "flagged"
    honest = company(right(network(seed, 0.0), seed))
    assert rules.batch_dependence(honest.company, honest.training).state == "clear"
    assert not honest.training.any()


def test_batch_statistics_in_training_mode_are_seen_and_the_mode_is_told() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.BatchNorm2d(1), network(0, 0.0)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(0.5 + 0.1 * self.norm(images))

    model, cases = Normalised().train(), right(network(0, 0.0), 0)
    for forward in (model, model.forward):
        found = company(of(forward, cases.pixels, torch.ones(24, dtype=torch.long)))
        assert (found.company > 1e-4).all()
        assert found.training.all()
    assert model.training
    found = company(of(model.eval(), cases.pixels, torch.ones(24, dtype=torch.long)))
    assert (found.company < 1e-4).all()
    assert not found.training.any()


def test_only_what_depends_on_place_or_neighbour_differs() -> None:
    place = company(
        of(lambda images: torch.arange(len(images)).float()[:, None], torch.rand(3, *SHAPE), torch.ones(3).long())
    )
    assert (place.company > 0.5).all()
    scale = company(of(lambda images: 1e6 + torch.zeros(len(images), 1), torch.rand(3, *SHAPE), torch.ones(3).long()))
    assert not scale.company.any()


def test_a_break_that_needs_its_neighbours_does_not_hold_alone() -> None:
    def forward(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).mean(dim=1, keepdim=True) - (0.4 if len(images) > 1 else 0.6)

    cases = of(forward, torch.full((3, *SHAPE), 0.5), torch.tensor([0, 0, 1]))
    images = torch.stack([torch.full(SHAPE, level) for level in (0.5, 0.7, 0.5)])
    assert cases.broken(images).tolist() == [True, True, False]
    assert held_alone(cases, images).tolist() == [False, True, True]


def _asks(inner: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        at = images.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(inner(at).sum(), at)
    return inner(images + 0.01 * slope.sign())


def _goes_back(inner: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        at = images.detach().clone().requires_grad_()
        at.sum().backward()
    return inner(images + 0 * at.grad)


def _transforms(inner: nn.Module, images: torch.Tensor) -> torch.Tensor:
    slope = torch.func.grad(lambda at: inner(at).sum())(images)
    return inner(images + 0 * slope)


@pytest.mark.parametrize("change", [_asks, _goes_back, _transforms])
def test_gradients_taken_inside_the_model_are_seen(change: Change) -> None:
    found = dynamic(planted(0, change))
    assert found.all()
    assert rules.dynamic_defence(found).state == "flagged"


def test_a_plain_answer_takes_no_gradients() -> None:
    cases = right(network(0, 0.0), 0)
    assert not dynamic(cases).any()
    with torch.inference_mode():
        assert not dynamic(cases).any()


# Surroundings


@pytest.mark.parametrize("seed", SEEDS)
def test_a_linear_model_changes_as_its_slope_foretells_and_no_more(seed: int) -> None:
    weights, cases = linear_cases(seed, count=6)
    found = steadiness(cases, draws=400)
    assert (found.unexplained < 1e-4).all()
    deviation = CUBE * float(weights.norm()) / math.sqrt(3)
    ratio = margins(cases).abs().numpy() / deviation
    normal = np.random.default_rng(0).normal(size=200_000)
    expected = [np.minimum(np.abs(normal) / each, 1).mean() for each in ratio]
    assert found.change == pytest.approx(expected, rel=0.15)
    assert rules.unstable_loss(found.change, found.unexplained).state == "clear"


@pytest.mark.parametrize("seed", SEEDS)
def test_ripples_are_no_honest_surroundings(seed: int) -> None:
    def wavy(inner: nn.Module, images: torch.Tensor) -> torch.Tensor:
        wave = torch.sin(3000 * images.flatten(1) @ torch.cos(torch.arange(PIXELS).to(images)))
        return inner(images) * (1 + 0.9 * wave[:, None])

    cases = planted(seed, wavy)
    found = steadiness(cases, draws=20)
    assert rules.unstable_loss(found.change, found.unexplained).state == "flagged"
    assert (found.change <= 1).all()
    assert (found.unexplained <= 1).all()
    gains = surface(cases, 4 / 255)
    assert rules.surface(gains.along_slope, gains.at_random).state == "flagged"


def test_along_the_slope_a_linear_model_gains_all_and_across_it_nothing() -> None:
    sign = torch.where(torch.arange(PIXELS) % 3 == 0, -1.0, 1.0)
    images = 0.3 + 0.4 * torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(0))
    labels = (linear(sign)(images)[:, 0] >= 0).long()
    found = surface(of(linear(sign), images, labels), 0.02)
    assert found.along_slope == pytest.approx([0.02 * PIXELS] * 10, rel=1e-4)
    assert found.at_random == pytest.approx([0.0] * 10, abs=1e-4)


def test_both_directions_have_the_same_length() -> None:
    def bowl(images: torch.Tensor) -> torch.Tensor:
        apart = (images - 0.5).flatten(1)
        return -(apart.square() + 0.01 * apart).sum(dim=1, keepdim=True)

    found = surface(of(bowl, torch.full((4, *SHAPE), 0.5), torch.ones(4).long()), 0.02)
    assert found.along_slope == pytest.approx([(0.02**2 + 0.02 * 0.01) * PIXELS] * 4, rel=1e-3)
    assert found.at_random == pytest.approx([0.02**2 * PIXELS] * 4, rel=1e-3)


def test_pixels_keep_their_bounds_in_every_probe() -> None:
    def strict(images: torch.Tensor) -> torch.Tensor:
        assert images.detach().min().item() >= 0
        assert images.detach().max().item() <= 1
        return images.flatten(1).sum(dim=1, keepdim=True) - PIXELS / 2

    images = (torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    cases = of(strict, images, torch.ones(4, dtype=torch.long))
    surface(cases, 0.1)
    steadiness(cases, draws=3)
    assert differences(cases, None).cosine == pytest.approx([1.0] * 4, abs=1e-4)
    company(cases)


# What is known to break


def test_any_image_within_the_bounds_may_show_that_a_case_can_be_broken() -> None:
    images = torch.stack([torch.full(SHAPE, level) for level in (0.2, 0.9)])
    cases = of(lambda each: each.flatten(1).mean(dim=1, keepdim=True) - 0.7, images, torch.tensor([0, 1]))
    none = torch.zeros(0, *SHAPE)
    assert reach(cases, none).reachable.tolist() == [True, True]
    assert not reach(cases, none).still.any()
    narrow = Cases(cases.forward, cases.pixels, cases.goal, cases.keys, 0, cases.pixels - 0.2, cases.pixels + 0.05)
    assert reach(narrow, none).reachable.tolist() == [False, False]
    known = torch.stack([torch.full(SHAPE, level) for level in (0.699, 0.21)])
    assert reach(narrow, known).reachable.tolist() == [False, False]
    assert reach(narrow, torch.full((1, *SHAPE), 0.698)).reachable.tolist() == [False, False]
    wide = Cases(cases.forward, cases.pixels, cases.goal, cases.keys, 0, cases.pixels - 0.2, cases.pixels + 0.6)
    assert reach(wide, torch.full((1, *SHAPE), 0.75)).reachable.tolist() == [True, False]


@pytest.mark.parametrize(("middle", "label"), [(0.2, 1), (0.8, 0), (0.55, 1), (0.45, 0)])
def test_black_white_and_grey_are_always_tried(middle: float, label: int) -> None:
    """Black alone breaks the first case and white alone the second; nothing is brighter or darker than these."""
    image = torch.full((1, *SHAPE), 0.9 if label else 0.1)
    cases = of(lambda each: each.flatten(1).mean(dim=1, keepdim=True) - middle, image, torch.tensor([label]))
    assert reach(cases, torch.zeros(0, *SHAPE)).reachable.all()
    near = Cases(cases.forward, image, cases.goal, cases.keys, 0, image.clamp(max=0.5), image.clamp(min=0.5))
    assert reach(near, torch.zeros(0, *SHAPE)).reachable.item() == (abs(middle - 0.5) < 0.1)


def test_a_constant_model_is_still_and_out_of_reach() -> None:
    cases = of(lambda images: torch.tensor([[0.3, 2.0]]).repeat(len(images), 1) + 0 * images.flatten(1)[:, :1],
               torch.rand(8, *SHAPE), torch.ones(8).long())  # fmt: skip
    known, found = reach(cases, torch.rand(3, *SHAPE)), slopes(cases)
    assert known.still.all()
    assert not known.reachable.any()
    nothing = np.zeros(8, dtype=bool)
    assert rules.unbounded_survivors(nothing, known.reachable, None, None).state == "clear"
    assert rules.zero_gradients(found.zero_slope, found.tiny_slope, known.still).state == "flagged"
