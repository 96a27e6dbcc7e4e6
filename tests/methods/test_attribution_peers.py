"""Gradient methods against captum, input times gradient, the data mean, and completeness on a transformer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency

from tests.methods.small_models import ONES, images, pixels_of, scalar_model, small_network
from xvision.errors import DataError, ModelError
from xvision.methods.attribution import (
    baseline_pixels,
    completeness_gap,
    input_x_gradient,
    integrated_gradients,
    saliency,
)
from xvision.methods.randomness import case_generator
from xvision.methods.sampled_gradients import expected_gradients, smooth_grad, var_grad
from xvision.methods.target import score_of
from xvision.models.huggingface import adapt, preprocessing_of
from xvision.models.llm.classifier import preset

TARGETS = torch.tensor([0, 1, 2, 0])
SEEDS = (11, 12, 13, 14)


class KnownNoise(NoiseTunnel):
    """captum's tunnel with the noise that each image's seed gives, scaled to that image's range."""

    def _add_noise_to_input(self, given: torch.Tensor, stdev: float, copies: int) -> torch.Tensor:
        noisy = []
        for image, seed in zip(given, SEEDS, strict=True):
            generator, deviation = case_generator(seed), stdev * (image.max() - image.min())
            noisy += [image + deviation * torch.randn(image.shape, generator=generator) for _ in range(copies)]
        return torch.stack(noisy)


def by_captum(method: str, pixels: torch.Tensor) -> torch.Tensor:
    score = score_of(small_network())
    if method == "saliency":
        return Saliency(score).attribute(pixels, additional_forward_args=TARGETS).amax(dim=1)
    if method == "input_x_gradient":
        return InputXGradient(score).attribute(pixels, additional_forward_args=TARGETS).sum(dim=1)
    kind = {"smooth_grad": "smoothgrad", "var_grad": "vargrad"}[method]
    found = KnownNoise(Saliency(score)).attribute(
        pixels, nt_type=kind, nt_samples=9, stdevs=0.3, abs=False, additional_forward_args=TARGETS
    )
    return found.abs().amax(dim=1)


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient", "smooth_grad", "var_grad"])
def test_methods_agree_with_captum(method: str) -> None:
    model, pixels = small_network(), images()
    ours = {
        "saliency": lambda: saliency(model, pixels, TARGETS),
        "input_x_gradient": lambda: input_x_gradient(model, pixels, TARGETS),
        "smooth_grad": lambda: smooth_grad(model, pixels, TARGETS, seeds=SEEDS, noise=0.3, samples=9, internal_batch=5),
        "var_grad": lambda: var_grad(model, pixels, TARGETS, seeds=SEEDS, noise=0.3, samples=9, internal_batch=5),
    }[method]()
    expected = by_captum(method, pixels.clone().requires_grad_()).detach().numpy()
    # captum subtracts the squared mean from the mean square in float32, so a variance has fewer digits
    np.testing.assert_allclose(ours.maps, expected, rtol=1e-4 if method == "var_grad" else 1e-5, atol=1e-7)


def test_integrated_gradients_from_the_data_mean_agrees_with_captum() -> None:
    model, pixels, references = small_network(), images(), images(5, seed=1)
    mean = references.mean(dim=0, keepdim=True).expand_as(pixels)
    expected = IntegratedGradients(score_of(model)).attribute(pixels, mean, additional_forward_args=TARGETS, n_steps=16)
    ours = integrated_gradients(model, pixels, TARGETS, baseline="data mean", references=references, steps=16)
    np.testing.assert_allclose(ours.maps, expected.detach().sum(dim=1), rtol=1e-5, atol=1e-7)


def test_expected_gradients_of_one_reference_and_a_straight_model_agree_with_captum() -> None:
    weights = torch.linspace(-1.0, 1.0, 72)
    model, pixels, reference = scalar_model(lambda x: x @ weights), images(), images(1, seed=1)
    targets = torch.ones(4, dtype=torch.int64)
    expected = GradientShap(score_of(model)).attribute(
        pixels, reference, n_samples=3, stdevs=0.0, additional_forward_args=targets
    )
    ours = expected_gradients(model, pixels, targets, references=reference, seeds=SEEDS, samples=3)
    np.testing.assert_allclose(ours.maps, expected.sum(dim=1), rtol=1e-5, atol=1e-6)


def test_expected_gradients_agree_with_captum_in_the_mean() -> None:
    model, pixels, references = small_network(), images(2), images(3, seed=1)
    torch.manual_seed(0)
    np.random.seed(0)  # captum draws from the global generators
    expected = GradientShap(score_of(model)).attribute(
        pixels, references, n_samples=6000, stdevs=0.0, additional_forward_args=TARGETS[:2]
    )
    ours = expected_gradients(model, pixels, TARGETS[:2], references=references, seeds=SEEDS[:2], samples=600)
    expected_maps = expected.detach().sum(dim=1).numpy()
    assert np.abs(ours.maps - expected_maps).max() < 0.03 * np.abs(expected_maps).max()


def test_input_times_gradient_is_integrated_gradients_from_black_only_for_a_straight_model() -> None:
    weights, pixels = torch.linspace(-1.0, 1.0, 4), pixels_of(0.1, 0.0, 0.6, 0.9)
    ours = input_x_gradient(scalar_model(lambda x: x @ weights + 2.0), pixels, ONES)
    np.testing.assert_allclose(ours.maps.ravel(), pixels.flatten() * weights, atol=1e-6)
    assert ours.gap is None
    squared = input_x_gradient(scalar_model(lambda x: x.square().sum(dim=1)), pixels, ONES)
    np.testing.assert_allclose(squared.maps.ravel(), 2.0 * pixels.flatten() ** 2, atol=1e-6)
    opposite = input_x_gradient(scalar_model(lambda x: x @ weights), pixels, 0 * ONES)
    np.testing.assert_allclose(opposite.maps.ravel(), -pixels.flatten() * weights, atol=1e-6)


def test_integrated_gradients_are_complete_on_a_transformer() -> None:
    module = preset("tiny-bert", image_size=32, seed=0)
    model = adapt(module, preprocessing_of(module.config), source="a test")
    pixels = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    found = integrated_gradients(model.logits, pixels, torch.tensor([1, 0, 1]), baseline="black", steps=32)
    assert found.gap is not None
    assert found.difference is not None
    assert (found.gap <= 1e-3).all()
    assert (np.abs(found.difference) > 1e-3).all()
    with torch.no_grad():
        ends = [model.logits(at) for at in (pixels, torch.zeros_like(pixels))]
    change = ((ends[0] - ends[1])[:, 1] - (ends[0] - ends[1])[:, 0]).numpy() * [1, -1, 1]
    np.testing.assert_allclose(found.maps.sum(axis=(1, 2)), change, rtol=2e-3)


def test_the_data_mean_is_the_mean_of_the_references() -> None:
    pixels, references = images(3), images(5, seed=1)
    mean = baseline_pixels(pixels, "data mean", references)
    assert mean.shape == pixels.shape
    torch.testing.assert_close(mean[1], references.mean(dim=0))
    with pytest.raises(DataError, match='"data mean" needs reference images'):
        baseline_pixels(pixels, "data mean")
    with pytest.raises(DataError, match=r"references of shape \(0, 2, 6, 6\) for images of shape \(3, 2, 6, 6\)"):
        baseline_pixels(pixels, "data mean", references[:0])
    with pytest.raises(DataError, match=r"references of shape \(5, 1, 6, 6\)"):
        baseline_pixels(pixels, "data mean", references[:, :1])


def test_the_gap_is_a_share_of_a_difference_of_at_least_a_millionth() -> None:
    maps = np.array([[[1.0, 2.0]], [[0.5, 0.0]], [[1e-6, 0.0]]])
    np.testing.assert_allclose(completeness_gap(maps, np.array([4.0, -0.5, 0.0])), [0.25, 2.0, 1.0])


def test_input_times_gradient_names_a_row_that_is_not_finite() -> None:
    pixels = torch.cat([pixels_of(0.9), pixels_of(0.5)])
    with pytest.raises(
        ModelError, match=r"input × gradient: the gradient is NaN or infinite for 1 of 2 images.* row 1"
    ):
        input_x_gradient(scalar_model(lambda x: torch.sqrt(x - 0.5).sum(dim=1)), pixels, torch.ones(2).long())
