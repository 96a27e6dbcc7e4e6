"""Expected gradients, SmoothGrad and VarGrad: closed forms, then each image by itself, then bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.small_models import ONES, Counted, images, pixels_of, scalar_model, small_network
from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.attribution import Attribution, saliency
from xvision.methods.randomness import case_generator
from xvision.methods.sampled_gradients import expected_gradients, smooth_grad, var_grad
from xvision.methods.target import log_odds

WEIGHTS = torch.randn(72, generator=torch.Generator().manual_seed(1))
HALF = torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
MATRIX = HALF + HALF.T
STRAIGHT = scalar_model(lambda x: x @ WEIGHTS + 0.7)
QUADRATIC = scalar_model(lambda x: 0.5 * (x @ MATRIX * x).sum(dim=1))
SEEDS = (5, 6, 7, 8)
REFERENCES = images(5, seed=9)


def ones(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.int64)


@pytest.mark.parametrize("rounds", [1, 3])
def test_expected_gradients_of_a_linear_model_are_exact_when_each_reference_is_used_as_often(rounds: int) -> None:
    pixels = images(4)
    found = expected_gradients(STRAIGHT, pixels, ones(4), references=REFERENCES, seeds=SEEDS, samples=5 * rounds)
    moved = pixels - REFERENCES.mean(dim=0)
    np.testing.assert_allclose(found.maps, (moved * WEIGHTS.view(2, 6, 6)).sum(dim=1), atol=1e-5)
    assert found.difference is not None
    assert found.gap is not None
    np.testing.assert_allclose(found.difference, moved.flatten(1) @ WEIGHTS, atol=1e-5)
    assert (found.gap < 1e-4).all()


def test_expected_gradients_of_a_linear_model_are_right_in_expectation_with_one_sample() -> None:
    pixels = pixels_of(0.2, 0.9, 0.5, 0.7).expand(900, -1, -1, -1)
    references = torch.rand(3, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    found = expected_gradients(
        scalar_model(lambda x: x @ weights), pixels, ones(900), references=references, seeds=range(900), samples=1
    )
    expected = weights * (pixels[0].flatten() - references.mean(dim=0).flatten())
    spread = (weights * references.flatten(1)).std(dim=0, correction=0) / 900**0.5
    assert (np.abs(found.maps.mean(axis=0).ravel() - expected.numpy()) < 4.0 * spread.numpy()).all()


def test_expected_gradients_of_a_quadratic_is_its_closed_form() -> None:
    """E over b of (x − b) ⊙ A (x + b) / 2."""
    pixels = pixels_of(0.2, 0.9, 0.5, 0.7)
    references = torch.rand(4, 1, 1, 4, generator=torch.Generator().manual_seed(3))
    found = expected_gradients(QUADRATIC, pixels, ONES, references=references, seeds=(0,), samples=8000)
    image, others = pixels.flatten(), references.flatten(1)
    expected = ((image - others) * ((image + others) @ MATRIX)).mean(dim=0) / 2.0
    np.testing.assert_allclose(found.maps.ravel(), expected, atol=0.01 * float(expected.abs().max()))


def test_the_gap_of_expected_gradients_is_the_miss_of_the_change_from_the_references_drawn() -> None:
    model, pixels, targets = small_network(), images(4), torch.tensor([0, 1, 2, 0])
    found = expected_gradients(model, pixels, targets, references=REFERENCES, seeds=SEEDS, samples=5)
    with torch.no_grad():
        starts = torch.stack([log_odds(model(REFERENCES), target.expand(5)).mean() for target in targets])
        change = (log_odds(model(pixels), targets) - starts).numpy()
    assert found.gap is not None
    np.testing.assert_allclose(found.difference, change, atol=1e-5)
    np.testing.assert_allclose(found.gap, np.abs(found.maps.sum(axis=(1, 2)) - change) / np.abs(change), rtol=1e-3)
    many = expected_gradients(model, pixels, targets, references=REFERENCES, seeds=SEEDS, samples=500)
    assert many.gap is not None
    assert many.gap.mean() < 0.2 * found.gap.mean()


def test_the_points_lie_once_in_each_equal_part_of_the_line() -> None:
    """At x = 1 from 0, the gradient of relu(x − ½) is 1 on one half of the line: with parts, exactly half the samples."""
    model = scalar_model(lambda x: torch.relu(x - 0.5).sum(dim=1))
    pixels = torch.ones(3, 1, 1, 1)
    found = expected_gradients(
        model, pixels, ones(3), references=torch.zeros(1, 1, 1, 1), seeds=(0, 1, 2), samples=8, internal_batch=3
    )
    np.testing.assert_allclose(found.maps.ravel(), 0.5, atol=1e-7)


def test_smoothing_a_linear_model_changes_nothing_and_its_gradient_never_varies() -> None:
    pixels = images(4)
    smooth = smooth_grad(STRAIGHT, pixels, ones(4), seeds=SEEDS, samples=7)
    np.testing.assert_allclose(smooth.maps, saliency(STRAIGHT, pixels, ones(4)).maps, rtol=1e-6)
    assert (var_grad(STRAIGHT, pixels, ones(4), seeds=SEEDS, samples=7, internal_batch=3).maps == 0.0).all()


def test_smoothing_a_quadratic_is_its_closed_form() -> None:
    """Gradients are A (x + n): mean A (x + mean n), variance that of A n, and σ² Σ_j A_ij² in expectation."""
    pixels, samples = pixels_of(0.2, 0.9, 0.5, 0.7), 6
    generator = case_generator(3)
    noise = torch.stack([torch.randn((1, 1, 4), generator=generator) for _ in range(samples)]).flatten(1) * 0.25 * 0.7
    smooth = smooth_grad(QUADRATIC, pixels, ONES, seeds=(3,), noise=0.25, samples=samples)
    np.testing.assert_allclose(smooth.maps.ravel(), (MATRIX @ (pixels.flatten() + noise.mean(dim=0))).abs(), rtol=1e-5)
    bent = var_grad(QUADRATIC, pixels, ONES, seeds=(3,), noise=0.25, samples=samples)
    np.testing.assert_allclose(bent.maps.ravel(), (noise @ MATRIX).var(dim=0, correction=0), rtol=1e-5)
    many = var_grad(QUADRATIC, pixels, ONES, seeds=(4,), noise=0.25, samples=5000)
    np.testing.assert_allclose(many.maps.ravel(), (0.25 * 0.7) ** 2 * MATRIX.square().sum(dim=1), rtol=0.06)


def test_the_noise_is_a_share_of_each_images_own_range() -> None:
    narrow, wide = pixels_of(0.4, 0.5, 0.45, 0.42), pixels_of(0.0, 1.0, 0.5, 0.2)
    found = var_grad(QUADRATIC, torch.cat([narrow, wide]), ones(2), seeds=(1, 1), noise=0.5)
    np.testing.assert_allclose(found.maps[0] * 100.0, found.maps[1], rtol=1e-4)


def test_a_constant_image_gets_its_plain_saliency_and_no_variance() -> None:
    model, pixels = small_network(), torch.full((1, 2, 6, 6), 0.3)
    smooth = smooth_grad(model, pixels, ONES, seeds=(0,))
    np.testing.assert_allclose(smooth.maps, saliency(model, pixels, ONES).maps, rtol=1e-6)
    np.testing.assert_allclose(var_grad(model, pixels, ONES, seeds=(0,)).maps, 0.0, atol=1e-14)


def explain(model: Any, rows: slice, internal_batch: int = 64) -> list[Attribution]:
    pixels, targets, seeds = images(4)[rows], torch.tensor([0, 1, 2, 0])[rows], SEEDS[rows]
    common: dict[str, Any] = {"seeds": seeds, "samples": 6, "internal_batch": internal_batch}
    return [
        expected_gradients(model, pixels, targets, references=REFERENCES, **common),
        smooth_grad(model, pixels, targets, **common),
        var_grad(model, pixels, targets, **common),
    ]


def require_same(one: np.ndarray, other: np.ndarray) -> None:
    """To a hundred thousandth of the largest value: a variance is a small number."""
    np.testing.assert_allclose(one, other, rtol=0.0, atol=1e-5 * np.abs(other).max())


def test_an_image_gets_the_same_map_alone_and_in_any_batch() -> None:
    model = small_network()
    together = explain(model, slice(None))
    for row in range(4):
        for many, one in zip(together, explain(model, slice(row, row + 1)), strict=True):
            require_same(many.maps[row], one.maps[0])
            assert many.maps.dtype == np.float32
    for many, other in zip(together, explain(model, slice(1, 3)), strict=True):
        require_same(many.maps[1:3], other.maps)


@settings(deadline=None, max_examples=8)
@given(internal_batch=st.integers(1, 30))
def test_the_internal_batch_bounds_a_pass_and_changes_no_number(internal_batch: int) -> None:
    model = Counted(small_network())
    expected = explain(small_network(), slice(None))
    for one, other in zip(explain(model, slice(None), internal_batch), expected, strict=True):
        require_same(one.maps, other.maps)
    assert model.largest <= internal_batch
    assert model.total == 3 * 4 * 6 + 4 + 5  # samples of three methods, and the two ends of the difference


def test_seeds_decide_what_is_drawn() -> None:
    model, pixels = small_network(), images(1).expand(2, -1, -1, -1)
    for method in (smooth_grad, var_grad):
        same, other = (method(model, pixels, ones(2), seeds=seeds).maps for seeds in ((1, 1), (1, 2)))
        require_same(same[0], same[1])
        assert np.abs(other[0] - other[1]).max() > 1e-3 * other.max()


def test_the_model_is_left_as_it_was() -> None:
    model = small_network()
    next(model.parameters()).requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with torch.inference_mode():
        explain(model, slice(None))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_unusable_input_is_an_error() -> None:
    model, pixels = small_network(), images(2)
    with pytest.raises(ConfigError, match="found samples = 0 and internal_batch = 64"):
        smooth_grad(model, pixels, ones(2), seeds=(1, 2), samples=0)
    with pytest.raises(ConfigError, match="found samples = 16 and internal_batch = 0"):
        expected_gradients(model, pixels, ones(2), references=REFERENCES, seeds=(1, 2), internal_batch=0)
    for noise in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"found noise = {noise}"):
            var_grad(model, pixels, ones(2), seeds=(1, 2), noise=noise)
    with pytest.raises(DataError, match="found 1 seeds for 2 images"):
        smooth_grad(model, pixels, ones(2), seeds=(1,))
    with pytest.raises(DataError, match=r"found references of shape \(0, 2, 6, 6\)"):
        expected_gradients(model, pixels, ones(2), references=REFERENCES[:0], seeds=(1, 2))
    with pytest.raises(DataError, match="found target 3"):
        smooth_grad(model, pixels, torch.tensor([0, 3]), seeds=(1, 2))


def test_a_gradient_that_is_not_finite_names_the_method_and_the_row() -> None:
    model = scalar_model(lambda x: torch.sqrt(x - 0.5).sum(dim=1))
    pixels = torch.cat([pixels_of(0.9, 0.8), pixels_of(0.5, 0.5)])
    with pytest.raises(ModelError, match=r"SmoothGrad: .* the first in row 1"):
        smooth_grad(model, pixels, ones(2), seeds=(1, 2), noise=0.0)
    with pytest.raises(ModelError, match=r"VarGrad: .* the first in row 1"):
        var_grad(model, pixels, ones(2), seeds=(1, 2), noise=0.0)
    with pytest.raises(ModelError, match=r"expected gradients: .* the first in row 1"):
        expected_gradients(model, pixels, ones(2), references=pixels_of(0.5, 0.5), seeds=(1, 2))
    with pytest.raises(ModelError, match="no gradient of the logits reaches the pixels"):
        smooth_grad(scalar_model(lambda x: x.detach().sum(dim=1)), pixels, ones(2), seeds=(1, 2))
