"""Statistics of images in closed form and beside scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import shannon_entropy

from xvision.errors import DataError
from xvision.methods.shift.image_statistics import STATISTICS, image_statistics


def test_a_flat_image_has_no_spread_edges_or_noise() -> None:
    found = image_statistics(np.full((2, 3, 8, 9), 0.25))
    assert set(found) == set(STATISTICS)
    for name, value in {"mean": 0.25, "p05": 0.25, "median": 0.25, "p95": 0.25}.items():
        np.testing.assert_allclose(found[name], value)
    for name in ("sd", "sharpness", "noise", "black", "white", "entropy"):
        np.testing.assert_allclose(found[name], 0.0, atol=1e-12)


def test_black_white_and_entropy_of_known_shares() -> None:
    image = np.zeros((1, 1, 8, 8))
    image[..., :4, :] = 1.0
    image[..., 0, :] = 0.5
    found = image_statistics(image)
    assert (found["black"][0], found["white"][0]) == (0.5, 0.375)
    shares = np.array([0.5, 0.375, 0.125])
    assert found["entropy"][0] == pytest.approx(-(shares * np.log2(shares)).sum())
    grey = np.random.default_rng(0).integers(0, 256, (16, 16)) / 255
    assert image_statistics(grey[None, None])["entropy"][0] == pytest.approx(shannon_entropy(np.rint(grey * 255)))


def test_noise_is_measured_on_a_slope_and_sharpness_is_that_of_the_filter() -> None:
    rng = np.random.default_rng(1)
    slope = np.linspace(0.2, 0.8, 128)[None, None, None] * np.ones((4, 1, 128, 1))
    found = image_statistics(slope + rng.normal(0, 0.03, slope.shape))
    np.testing.assert_allclose(found["noise"], 0.03, rtol=0.05)
    np.testing.assert_allclose(found["sharpness"], 20 * 0.03**2, rtol=0.1)  # 4 neighbours of weight 1 and a centre of 4
    assert np.all(image_statistics(slope)["noise"] < 1e-12)


@given(st.integers(0, 100), st.floats(0.1, 0.9), st.floats(-0.1, 0.1))
@settings(max_examples=25, deadline=None)
def test_contrast_and_brightness_move_what_they_should(seed: int, gain: float, lift: float) -> None:
    image = np.random.default_rng(seed).uniform(0.2, 0.8, (1, 1, 12, 12))
    before, after = image_statistics(image), image_statistics(gain * image + lift)
    for name in ("mean", "p05", "median", "p95"):
        assert after[name][0] == pytest.approx(gain * before[name][0] + lift)
    for name, power in (("sd", 1), ("noise", 1), ("sharpness", 2)):
        assert after[name][0] == pytest.approx(gain**power * before[name][0])


def test_an_image_does_not_depend_on_its_batch() -> None:
    images = np.random.default_rng(2).random((5, 2, 10, 11))
    together = image_statistics(images)
    for name, values in together.items():
        assert values.shape == (5,)
        np.testing.assert_array_equal(values[3], image_statistics(images[3:4])[name][0])
    with pytest.raises(DataError, match="at least 3 × 3"):
        image_statistics(np.zeros((1, 1, 2, 8)))
