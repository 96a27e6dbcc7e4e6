"""Concentration of maps whose figure is known, then another implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from xvision.methods.complexity import entropy, gini


def one_pixel(count: int, pixels: int = 1) -> np.ndarray:
    maps = np.zeros((1, count))
    maps[0, 3 : 3 + pixels] = -2.5
    return maps


@pytest.mark.parametrize("count", [4, 64, 1000])
def test_a_single_pixel_is_as_concentrated_as_can_be(count: int) -> None:
    np.testing.assert_allclose(gini(one_pixel(count)), [(count - 1) / count], atol=1e-15)
    np.testing.assert_array_equal(entropy(one_pixel(count)), [0.0])


def test_the_gini_index_of_one_and_of_two_of_64_pixels() -> None:
    np.testing.assert_allclose(gini(one_pixel(64)), [0.984375], atol=1e-15)
    np.testing.assert_allclose(gini(one_pixel(64, pixels=2)), [1 - 2 / 64], atol=1e-15)


@pytest.mark.parametrize("value", [1.0, -3e-9, 1e200])
def test_a_constant_map_is_as_spread_out_as_can_be(value: float) -> None:
    maps = np.full((1, 6, 7), value)
    np.testing.assert_allclose(gini(maps), [0.0], atol=1e-14)
    np.testing.assert_allclose(entropy(maps), [np.log(42)], atol=1e-13)


def test_what_has_no_magnitude_is_undefined_and_leaves_its_neighbours_alone() -> None:
    maps = np.random.default_rng(0).normal(size=(4, 5, 5))
    maps[0], maps[1, 2, 2], maps[2, 0, 0] = 0.0, np.nan, np.inf
    for figure in (gini, entropy):
        found = figure(maps)
        np.testing.assert_array_equal(np.isnan(found), [True, True, True, False])
        np.testing.assert_array_equal(found[3:], figure(maps[3:]))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6))
def test_figures_agree_with_other_formulas_in_any_unit_and_order(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(2, 30))
    sizes = np.abs(maps)
    spread = np.abs(sizes[:, :, None] - sizes[:, None, :]).mean(axis=(1, 2)) / (2 * sizes.mean(axis=1))
    np.testing.assert_allclose(gini(scale * maps[:, rng.permutation(30)]), spread, atol=1e-12)
    np.testing.assert_allclose(entropy(scale * maps), scipy_entropy(sizes, axis=1), atol=1e-12)
