"""Units of known places and sizes, then the laws of sums and painting, then regions of planted images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from xvision.errors import ConfigError, DataError
from xvision.methods.units import Units, grid, superpixels


def test_a_grid_that_does_not_fit_has_smaller_patches_at_its_edges() -> None:
    units = grid(5, 7, 3)
    assert units.count == 6
    np.testing.assert_array_equal(units.areas, [9, 9, 3, 6, 6, 2])
    np.testing.assert_array_equal(units.labels[0], [0, 0, 0, 1, 1, 1, 2])
    np.testing.assert_array_equal(units.labels[:, 6], [2, 2, 2, 5, 5])


def test_a_patch_larger_than_one_side_covers_it() -> None:
    np.testing.assert_array_equal(grid(2, 6, 4).areas, [8, 4])


def test_sums_and_painted_values_of_two_halves() -> None:
    units = Units(np.array([[0, 0, 1], [0, 1, 1]]), 2)
    maps = np.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]], dtype=np.float32)
    np.testing.assert_array_equal(units.sums(maps), [[7.0, 14.0]])
    painted = units.painted(np.array([[10.0, -1.0]], dtype=np.float32))
    np.testing.assert_array_equal(painted, [[[10.0, 10.0, -1.0], [10.0, -1.0, -1.0]]])
    assert painted.dtype == np.float32


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 12), width=st.integers(1, 12), side=st.integers(1, 12), seed=st.integers(0, 99))
def test_painting_and_adding_up_gives_values_times_areas(height: int, width: int, side: int, seed: int) -> None:
    units = grid(height, width, min(side, max(height, width)))
    rng = np.random.default_rng(seed)
    values, maps = rng.normal(size=(3, units.count)), rng.normal(size=(3, height, width))
    np.testing.assert_allclose(units.sums(units.painted(values)), values * units.areas, atol=1e-12)
    np.testing.assert_allclose(units.sums(maps).sum(axis=1), maps.sum(axis=(1, 2)), atol=1e-12)
    expected = [[each[units.labels == unit].sum() for unit in range(units.count)] for each in maps]
    np.testing.assert_allclose(units.sums(maps), expected, atol=1e-12)


def test_units_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match=r"labels of shape \(H, W\) and type int64, not \(4,\) int64"):
        Units(np.zeros(4, dtype=np.int64), 1)
    with pytest.raises(DataError, match=r"type int64, not .* int32"):
        Units(np.zeros((2, 2), dtype=np.int32), 1)
    with pytest.raises(DataError, match="found 2 different labels up to 2 for 3 units"):
        Units(np.array([[0, 2]]), 3)
    with pytest.raises(ConfigError, match="found a patch side of 0 for an image of 4 x 4"):
        grid(4, 4, 0)
    with pytest.raises(DataError, match=r"maps of shape \(1, 4, 5\) for units of an image of \(4, 4\)"):
        grid(4, 4, 2).sums(np.zeros((1, 4, 5)))
    with pytest.raises(DataError, match=r"values of shape \(1, 3\) for 4 units"):
        grid(4, 4, 2).painted(np.zeros((1, 3)))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_no_region_reaches_over_a_planted_edge(channels: int) -> None:
    pixels = 0.1 * np.random.default_rng(0).random((channels, 40, 50))
    pixels[:, :, 20:] += 0.5
    units = superpixels(pixels, 30)
    assert not set(units.labels[:, :20].ravel()) & set(units.labels[:, 20:].ravel())
    assert 20 <= units.count <= 40
    assert all(label(units.labels == unit)[1] == 1 for unit in range(units.count))


def test_regions_do_not_depend_on_the_scale_of_a_grey_image() -> None:
    pixels = np.random.default_rng(1).random((1, 24, 24))
    np.testing.assert_array_equal(superpixels(pixels, 9).labels, superpixels(0.25 * pixels, 9).labels)


def test_a_constant_image_is_cut_into_a_grid_of_about_as_many() -> None:
    np.testing.assert_array_equal(superpixels(np.full((3, 32, 32), 0.4), 16).labels, grid(32, 32, 8).labels)
    assert superpixels(np.zeros((1, 3, 40)), 1).count <= 4
    assert superpixels(np.zeros((1, 4, 4)), 16).count == 16


def test_one_superpixel_is_the_image() -> None:
    assert superpixels(np.random.default_rng(0).random((1, 9, 9)), 1).count == 1


def test_superpixels_of_unusable_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="found 17 superpixels for an image of 4 x 4"):
        superpixels(np.zeros((1, 4, 4)), 17)
    with pytest.raises(ConfigError, match="found 0 superpixels"):
        superpixels(np.zeros((1, 4, 4)), 0)
    with pytest.raises(DataError, match=r"finite image of shape \(C, H, W\): found shape \(4, 4\)"):
        superpixels(np.zeros((4, 4)), 2)
    with pytest.raises(DataError, match="finite image"):
        superpixels(np.full((1, 4, 4), np.nan), 2)
