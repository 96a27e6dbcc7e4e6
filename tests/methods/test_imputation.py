"""Holes of any size are filled by the same equations, whichever solver they need."""

from __future__ import annotations

import numpy as np
import pytest

from xvision.methods.imputation import linear_imputation


@pytest.mark.parametrize(("height", "width"), [(12, 40), (40, 12), (300, 300)])
def test_a_ramp_comes_back_exactly_in_small_and_large_holes(height: int, width: int) -> None:
    """Neighbours lie evenly around each pixel, so a slope satisfies every equation; 300 × 300 is too large for a band."""
    row, column = np.indices((height, width))
    ramp = np.stack((0.2 + 0.001 * row - 0.0005 * column, 0.9 - 0.002 * row))
    removed = np.zeros((height, width), dtype=bool)
    removed[1:-1, 1:-1] = True
    given = np.where(removed, 77.0, ramp)
    np.testing.assert_allclose(linear_imputation(given, removed), ramp, rtol=0, atol=1e-10)


def test_holes_that_do_not_touch_are_filled_each_from_its_own_surroundings() -> None:
    rng = np.random.default_rng(0)
    pixels, first, second = rng.random((1, 30, 30)), np.zeros((30, 30), dtype=bool), np.zeros((30, 30), dtype=bool)
    first[2:8, 3:9], second[15:28, 11:30] = True, True
    both = linear_imputation(pixels, first | second)
    np.testing.assert_allclose(both[:, first], linear_imputation(pixels, first)[:, first], rtol=0, atol=1e-12)
    np.testing.assert_allclose(both[:, second], linear_imputation(pixels, second)[:, second], rtol=0, atol=1e-12)
