"""Controls of known shape: a ramp's slope, a hill's height, a distance from the mean, noise that belongs to its image."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import kstest

from xvision.methods.controls import centre_prior, input_magnitude, random_maps, sobel_edges


def test_sobel_gives_the_slope_of_a_ramp_and_nothing_on_a_constant() -> None:
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 3, 8, 8) * 0.1
    np.testing.assert_allclose(sobel_edges(ramp)[0, :, 1:-1], 0.1, atol=1e-6)
    np.testing.assert_allclose(sobel_edges(ramp.transpose(2, 3))[0, 1:-1], 0.1, atol=1e-6)
    assert (sobel_edges(torch.full((1, 1, 5, 5), 0.4)) == 0).all()


def test_a_random_map_belongs_to_its_seed_whatever_the_batch() -> None:
    maps = random_maps((3, 4, 3), 6, 5)
    assert maps.dtype == np.float32
    assert maps.shape == (3, 6, 5)
    np.testing.assert_array_equal(maps[1], random_maps((4,), 6, 5)[0])
    np.testing.assert_array_equal(maps[0], maps[2])
    assert (maps[0] != maps[1]).all()


def test_random_maps_are_uniform() -> None:
    assert kstest(random_maps(range(50), 20, 20).ravel(), "uniform").pvalue > 0.01


def test_the_centre_prior_is_a_gaussian_of_a_quarter_of_the_shorter_side() -> None:
    maps = centre_prior(2, 9, 41)
    assert maps.shape == (2, 9, 41)
    assert maps.dtype == np.float32
    assert maps[0, 4, 20] == 1.0
    np.testing.assert_allclose(maps[0, 4, 20 + 2], np.exp(-0.5 * (2 / 2.25) ** 2), rtol=1e-6)
    np.testing.assert_allclose(maps[1, 4 - 3, 20 + 1], np.exp(-0.5 * (9 + 1) / 2.25**2), rtol=1e-6)
    np.testing.assert_array_equal(maps, maps[:, ::-1, ::-1])
    assert centre_prior(1, 4, 4).max() < 1.0  # between four pixels


def test_input_magnitude_counts_bright_and_dark_alike() -> None:
    pixels = torch.tensor([[[[0.0, 0.5], [0.5, 1.0]], [[0.2, 0.2], [0.2, 0.2]]]])
    np.testing.assert_allclose(input_magnitude(pixels), [[[0.25, 0.0], [0.0, 0.25]]], atol=1e-7)
    np.testing.assert_allclose(input_magnitude(1.0 - pixels), input_magnitude(pixels), atol=1e-7)
    np.testing.assert_allclose(input_magnitude(torch.full((1, 3, 4, 4), 0.7)), 0.0, atol=1e-7)


def test_no_control_hands_on_a_graph_or_changes_the_pixels() -> None:
    pixels = torch.rand(2, 1, 6, 6, requires_grad=True)
    before = pixels.detach().clone()
    for maps in (sobel_edges(pixels), input_magnitude(pixels)):
        assert maps.shape == (2, 6, 6)
        assert maps.dtype == np.float32
    assert torch.equal(pixels.detach(), before)
