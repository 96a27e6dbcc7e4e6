"""Attributions of functions whose attribution is known, then an independent integral, then a planted shortcut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tests.methods.small_models import ONES, Counted, Logits, images, pixels_of, scalar_model, small_network
from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.attribution import (
    Attribution,
    baseline_pixels,
    integrated_gradients,
    saliency,
)
from xvision.methods.controls import random_maps, sobel_edges
from xvision.methods.localisation import mass_lift, pointing_game, relevance_mass
from xvision.methods.target import log_odds


def test_log_odds_is_the_logit_of_the_softmax_probability() -> None:
    logits = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    probability = logits.softmax(dim=1)[torch.arange(7), targets]
    torch.testing.assert_close(log_odds(logits, targets), torch.logit(probability), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_odds(logits + 3.0, targets), log_odds(logits, targets))


def test_log_odds_of_two_classes_is_the_difference_of_the_logits() -> None:
    logits = torch.tensor([[1.5, -2.0], [30.0, 900.0]])
    torch.testing.assert_close(log_odds(logits, torch.tensor([0, 1])), torch.tensor([3.5, 870.0]))


@pytest.mark.parametrize("steps", [1, 2, 32])
@pytest.mark.parametrize("baseline", ["black", "mean", "blur"])
def test_integrated_gradients_of_a_linear_model_is_exact(steps: int, baseline: str) -> None:
    weights = torch.randn(2 * 36, generator=torch.Generator().manual_seed(1))
    pixels = images(3)
    result = integrated_gradients(
        scalar_model(lambda x: x @ weights + 0.7), pixels, torch.ones(3).long(), baseline=baseline, steps=steps
    )
    moved = pixels - baseline_pixels(pixels, baseline)
    np.testing.assert_allclose(result.maps, (moved * weights.view(2, 6, 6)).sum(dim=1), atol=1e-5)
    assert result.difference is not None
    np.testing.assert_allclose(result.difference, (moved.flatten(1) @ weights), atol=1e-5)


def test_the_other_class_of_a_binary_model_gets_the_opposite_map() -> None:
    model = scalar_model(lambda x: x @ torch.linspace(-1.0, 1.0, 4))
    pixels = pixels_of(0.1, 0.4, 0.6, 0.9)
    maps = [integrated_gradients(model, pixels, each * ONES, baseline="black").maps for each in (0, 1)]
    np.testing.assert_allclose(maps[0], -maps[1], atol=1e-6)


def test_integrated_gradients_of_a_quadratic_is_exact_with_one_node() -> None:
    half = torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
    matrix = half + half.T
    pixels = pixels_of(0.2, 0.9, 0.5, 0.7)
    result = integrated_gradients(
        scalar_model(lambda x: 0.5 * (x @ matrix * x).sum(dim=1)), pixels, ONES, baseline="black", steps=1
    )
    vector = pixels.flatten()
    np.testing.assert_allclose(result.maps.ravel(), 0.5 * vector * (matrix @ vector), atol=1e-6)


def test_saturation_hides_the_pixel_from_the_gradient_but_not_from_integrated_gradients() -> None:
    model = scalar_model(lambda x: (1.0 - torch.relu(1.0 - x)).sum(dim=1))
    assert saliency(model, pixels_of(2.0), ONES).maps.item() == 0.0
    result = integrated_gradients(model, pixels_of(2.0), ONES, baseline="black", steps=32)
    assert result.maps.item() == pytest.approx(1.0, abs=1e-6)


def test_integrated_gradients_credits_the_smaller_of_two_inputs_with_their_minimum() -> None:
    result = integrated_gradients(
        scalar_model(lambda x: torch.minimum(x[:, 0], x[:, 1])), pixels_of(1.0, 3.0), ONES, baseline="black"
    )
    np.testing.assert_allclose(result.maps.ravel(), [1.0, 0.0], atol=1e-6)


def test_integrated_gradients_agrees_with_an_integral_done_by_hand() -> None:
    model, pixels, targets = small_network(), images(2), torch.tensor([2, 0])
    expected = torch.zeros_like(pixels, dtype=torch.float64)
    twin = small_network().double()
    for step in range(400):
        point = ((step + 0.5) / 400 * pixels.double()).requires_grad_()
        expected += torch.autograd.grad(log_odds(twin(point), targets).sum(), point)[0] / 400
    result = integrated_gradients(model, pixels, targets, baseline="black", steps=32)
    np.testing.assert_allclose(result.maps, (expected * pixels).sum(dim=1), atol=1e-5)


def test_the_completeness_gap_is_measured_and_shrinks_with_steps() -> None:
    model, pixels, targets = small_network(), 3.0 * images(4) - 1.0, torch.tensor([0, 1, 2, 0])
    coarse, fine = (integrated_gradients(model, pixels, targets, baseline="mean", steps=n) for n in (1, 32))
    assert coarse.gap is not None
    assert fine.gap is not None
    assert fine.difference is not None
    assert (fine.gap < 1e-3).all()
    assert (coarse.gap > 10 * fine.gap).all()
    with torch.no_grad():
        ends = [log_odds(model(at), targets).numpy() for at in (pixels, baseline_pixels(pixels, "mean"))]
    np.testing.assert_allclose(fine.difference, ends[0] - ends[1], atol=1e-5)
    by_hand = np.abs(coarse.maps.sum(axis=(1, 2)) - (ends[0] - ends[1])) / np.abs(ends[0] - ends[1])
    np.testing.assert_allclose(coarse.gap, by_hand, rtol=1e-3)


def test_saliency_is_the_largest_absolute_gradient_over_channels() -> None:
    model, pixels, targets = small_network(), images(3), torch.tensor([0, 1, 2])
    result = saliency(model, pixels, targets)
    twin, step = small_network().double(), 1e-5
    for case, row, column in [(0, 0, 0), (1, 3, 2), (2, 5, 5)]:
        slopes = []
        for channel in range(2):
            ends = []
            for sign in (1.0, -1.0):
                moved = pixels[case : case + 1].double()
                moved[0, channel, row, column] += sign * step
                ends.append(log_odds(twin(moved), targets[case : case + 1]).item())
            slopes.append(abs(ends[0] - ends[1]) / (2 * step))
        assert result.maps[case, row, column] == pytest.approx(max(slopes), rel=1e-4)
    assert result.gap is None
    assert result.difference is None


def explain(model: Logits, pixels: torch.Tensor, targets: torch.Tensor) -> list[Attribution]:
    return [
        saliency(model, pixels, targets),
        integrated_gradients(model, pixels, targets, baseline="blur", steps=8),
    ]


def test_a_batch_gives_what_each_case_gives_alone() -> None:
    model, pixels, targets = small_network(), images(5), torch.tensor([0, 1, 2, 0, 1])
    together = explain(model, pixels, targets)
    for case in range(5):
        alone = explain(model, pixels[case : case + 1], targets[case : case + 1])
        for many, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(many.maps[case], one.maps[0], atol=1e-6)
            assert many.maps.dtype == np.float32


@pytest.mark.parametrize("internal_batch", [1, 3, 1000])
def test_the_internal_batch_changes_no_number(internal_batch: int) -> None:
    model, pixels, targets = small_network(), images(4), torch.tensor([0, 1, 2, 0])
    expected = integrated_gradients(model, pixels, targets, baseline="black", steps=7)
    counted = Counted(model)
    result = integrated_gradients(counted, pixels, targets, baseline="black", steps=7, internal_batch=internal_batch)
    np.testing.assert_allclose(result.maps, expected.maps, atol=1e-6)
    assert counted.largest <= internal_batch


def test_the_model_and_the_pixels_are_left_untouched() -> None:
    model, pixels, targets = small_network(), images(3), torch.tensor([0, 1, 2])
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    explain(model, pixels, targets)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not pixels.requires_grad
    assert torch.equal(pixels, images(3))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_found_where_the_caller_switched_them_off(context: Callable[[], torch.no_grad]) -> None:
    model, pixels, targets = small_network(), images(2), torch.tensor([0, 1])
    with context():
        inside = explain(model, pixels.clone(), targets.clone())
    for one, other in zip(inside, explain(model, pixels, targets), strict=True):
        np.testing.assert_array_equal(one.maps, other.maps)


def test_a_gradient_that_is_not_finite_names_the_method_and_the_row() -> None:
    model = scalar_model(lambda x: torch.sqrt(x - 0.5).sum(dim=1))
    pixels = torch.cat([pixels_of(0.9, 0.8), pixels_of(0.9, 0.5)])
    with pytest.raises(ModelError, match=r"saliency: the gradient is NaN or infinite for 1 of 2 images, .* row 1"):
        saliency(model, pixels, torch.ones(2).long())
    with pytest.raises(ModelError, match="integrated gradients: the gradient is NaN"):
        integrated_gradients(model, pixels, torch.ones(2).long(), baseline="black")


@pytest.mark.parametrize(
    "function", [lambda x: x.detach().sum(dim=1), lambda x: nn.Parameter(torch.ones(1)).expand(len(x))]
)
def test_a_model_that_cuts_the_pixels_off_is_named(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ModelError, match="no gradient of the logits reaches the pixels"):
        saliency(scalar_model(function), pixels_of(0.5, 0.5), ONES)


def test_other_errors_of_a_model_are_not_renamed() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        saliency(scalar_model(lambda x: (x @ torch.ones(3, 1)).sum(dim=1)), pixels_of(0.5, 0.5), ONES)


def test_unusable_input_is_an_error() -> None:
    model, pixels = small_network(), images(2)
    with pytest.raises(DataError, match=r"pixels of shape \(2, 2, 6, 6\) and targets of shape \(1,\)"):
        saliency(model, pixels, torch.tensor([0]))
    with pytest.raises(DataError, match="found target 3: the model has the classes 0 to 2"):
        saliency(model, pixels, torch.tensor([0, 3]))
    with pytest.raises(ModelError, match=r"logits of shape \(2, 1\)"):
        saliency(lambda x: x.flatten(1).sum(dim=1, keepdim=True), pixels, torch.tensor([0, 0]))
    with pytest.raises(ConfigError, match="found steps = 0"):
        integrated_gradients(model, pixels, torch.tensor([0, 1]), baseline="black", steps=0)
    with pytest.raises(ConfigError, match="found baseline = 'white'"):
        integrated_gradients(model, pixels, torch.tensor([0, 1]), baseline="white")


def test_baselines_are_what_their_names_say() -> None:
    pixels = images(2)
    assert (baseline_pixels(pixels, "black") == 0).all()
    means = baseline_pixels(pixels, "mean")
    torch.testing.assert_close(means, pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels))
    constant = torch.full((1, 1, 32, 32), 0.3)
    torch.testing.assert_close(baseline_pixels(constant, "blur"), constant)
    dot = torch.zeros(1, 1, 224, 224)
    dot[0, 0, 112, 112] = 1.0
    blurred = baseline_pixels(dot, "blur")[0, 0, 112]
    offsets = torch.arange(224) - 112.0
    assert float(((offsets**2 * blurred).sum() / blurred.sum()).sqrt()) == pytest.approx(10.0, abs=0.01)


def test_a_planted_shortcut_is_found_and_the_controls_miss_it() -> None:
    masks = np.zeros((6, 32, 32), dtype=bool)
    masks[:, 20:26, 4:10] = True
    weights = torch.zeros(32, 32)
    weights[20:26, 4:10] = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    model = scalar_model(lambda x: 0.05 * (x @ weights.flatten()) ** 2)
    pixels = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    for result in explain(model, pixels, torch.ones(6).long()):
        assert (pointing_game(result.maps, masks) == 1.0).all()
        np.testing.assert_allclose(relevance_mass(result.maps, masks), 1.0, atol=1e-6)
    for control in (sobel_edges(pixels), random_maps(range(10, 16), 32, 32)):
        assert (np.abs(mass_lift(control, masks) - 1.0) < 0.3).all()
