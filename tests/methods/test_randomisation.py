"""Maps of a model and of its shuffled twin: closed forms, other implementations, and explainers blind to the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity as skimage_similarity

from xvision.errors import DataError
from xvision.methods.attribution import saliency
from xvision.methods.controls import sobel_edges
from xvision.methods.randomisation import (
    bottom_up,
    efficient_mprt,
    randomised_similarity,
    structural_similarity,
)

VARIED_AND_CONSTANT = (np.arange(64.0).reshape(1, 8, 8), np.full((1, 8, 8), 3.0))


def linear_model_gradients(weights: torch.Tensor, cases: int) -> np.ndarray:
    """Maps (B, 8, 8) of the gradient of a binary model whose log-odds are linear in one channel."""
    pixels = torch.rand(cases, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def logits(images: torch.Tensor) -> torch.Tensor:
        score = images.flatten(1) @ weights
        return torch.stack([torch.zeros_like(score), score], dim=1)

    return saliency(logits, pixels, torch.ones(cases).long()).maps


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), levels=st.integers(2, 50))
def test_similarity_is_spearman_with_averaged_ties(seed: int, levels: int) -> None:
    maps, twins = np.random.default_rng(seed).integers(0, levels, size=(2, 3, 5, 6)).astype(float)
    expected = [spearmanr(one.ravel(), two.ravel()).statistic for one, two in zip(maps, twins, strict=True)]
    np.testing.assert_allclose(randomised_similarity(maps, twins), expected, atol=1e-12)


def test_similarity_of_known_pairs() -> None:
    maps = np.arange(12.0).reshape(1, 3, 4)
    np.testing.assert_allclose(randomised_similarity(maps, np.exp(maps)), [1.0])
    np.testing.assert_allclose(randomised_similarity(maps, -maps), [-1.0])
    assert np.isnan(randomised_similarity(maps, np.ones((1, 3, 4)))).all()


@pytest.mark.parametrize("compare", [randomised_similarity, structural_similarity, efficient_mprt])
def test_maps_of_other_shapes_are_refused(compare) -> None:
    with pytest.raises(DataError, match=r"found maps of shape \(1, 3, 4\) and \(1, 3, 5\)"):
        compare(np.ones((1, 3, 4)), np.ones((1, 3, 5)))


@pytest.mark.parametrize("compare", [randomised_similarity, structural_similarity, efficient_mprt])
def test_a_constant_map_compares_with_nothing(compare) -> None:
    varied, constant = VARIED_AND_CONSTANT
    assert np.isnan(compare(varied, constant)).all()
    assert np.isnan(compare(constant, varied)).all()


@pytest.mark.parametrize("compare", [randomised_similarity, structural_similarity, efficient_mprt])
def test_a_map_with_nan_leaves_its_neighbours_alone(compare) -> None:
    maps, twins = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
    alone = compare(maps[1:], twins[1:])
    maps[0, 2, 2] = np.nan
    together = compare(maps, twins)
    assert np.isnan(together[0])
    np.testing.assert_array_equal(together[1:], alone)


def test_gradients_of_a_linear_model_keep_the_correlation_of_old_and_new_weights() -> None:
    old, new = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    found = randomised_similarity(linear_model_gradients(old, 3), linear_model_gradients(new, 3))
    expected = spearmanr(old.abs(), new.abs()).statistic
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert abs(expected) < 0.3


def test_an_explainer_that_sees_the_input_only_is_the_same_at_every_step() -> None:
    pixels = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    edges = sobel_edges(pixels)
    steps = np.stack([randomised_similarity(edges, sobel_edges(pixels)) for _ in range(5)], axis=1)
    np.testing.assert_allclose(steps, 1.0, atol=1e-12)
    np.testing.assert_allclose(bottom_up(steps), 1.0, atol=1e-12)
    np.testing.assert_allclose(structural_similarity(edges, edges), 1.0, atol=1e-12)
    np.testing.assert_allclose(efficient_mprt(edges, edges), 0.0, atol=1e-12)


def test_the_mean_over_steps_leaves_out_what_is_not_defined() -> None:
    similarities = np.array([[0.5, 0.1, 0.0], [0.4, np.nan, 0.2], [np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(bottom_up(similarities), [0.2, 0.3, np.nan])
    with pytest.raises(DataError, match=r"similarities of shape \(3,\)"):
        bottom_up(similarities[0])


def test_structural_similarity_ignores_the_scale_of_either_map() -> None:
    maps, twins = np.random.default_rng(0).normal(size=(2, 3, 12, 10))
    found = structural_similarity(maps, twins)
    np.testing.assert_allclose(structural_similarity(maps * 1e4, twins * 1e-6), found, atol=1e-12)
    np.testing.assert_allclose(structural_similarity(maps, 7.0 * maps), 1.0, atol=1e-12)
    one, other = maps[0] / np.abs(maps[0]).max(), twins[0] / np.abs(twins[0]).max()
    spread = np.concatenate([one, other]).max() - np.concatenate([one, other]).min()
    assert found[0] == pytest.approx(skimage_similarity(one, other, data_range=spread), abs=1e-12)


def test_structural_similarity_of_one_window_is_wangs_formula() -> None:
    maps, twins = np.random.default_rng(3).random((2, 1, 5, 5))
    one, other = (each[0].ravel() / each.max() for each in (maps, twins))
    spread = max(one.max(), other.max()) - min(one.min(), other.min())
    first, second = (0.01 * spread) ** 2, (0.03 * spread) ** 2
    means = (2 * one.mean() * other.mean() + first) / (one.mean() ** 2 + other.mean() ** 2 + first)
    spreads = (2 * np.cov(one, other)[0, 1] + second) / (one.var(ddof=1) + other.var(ddof=1) + second)
    np.testing.assert_allclose(structural_similarity(maps, twins), [means * spreads], atol=1e-12)


def test_structural_similarity_of_tiny_maps() -> None:
    maps = np.random.default_rng(0).random((1, 4, 3))
    np.testing.assert_allclose(structural_similarity(maps, maps), 1.0)
    with pytest.raises(DataError, match="found maps of 2 x 9: structural similarity needs 3 x 3"):
        structural_similarity(np.ones((1, 2, 9)), np.ones((1, 2, 9)))


def test_efficient_randomisation_is_the_relative_rise_of_the_entropy() -> None:
    """Two equally full bins hold ln 2, four hold ln 4: the entropy doubles."""
    two = np.tile([0.0, 1.0], 32).reshape(1, 8, 8)
    four = np.tile([0.0, 1.0, 2.0, 3.0], 16).reshape(1, 8, 8)
    np.testing.assert_allclose(efficient_mprt(two, four), [1.0])
    np.testing.assert_allclose(efficient_mprt(four, two), [-0.5])
    np.testing.assert_allclose(efficient_mprt(four, four * 1e-9), [0.0], atol=1e-12)
    np.testing.assert_allclose(efficient_mprt(two, four, bins=2), [0.0], atol=1e-12)


def test_a_focused_map_that_turns_into_noise_becomes_more_disordered() -> None:
    focused = np.zeros((4, 16, 16))
    focused[:, 4:8, 4:8] = 1.0
    noise = np.random.default_rng(0).normal(size=(4, 16, 16))
    assert (efficient_mprt(focused, noise) > 5).all()
