"""Where the evidence of a map lies: planted patches are found, with their exact shares and outlines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboards.patches import border, strongest_patches


def planted() -> np.ndarray:
    """64 × 64: against, 8 × 8 pixels of −1 and 4 × 6 of −1; for, 5 × 5 of 3."""
    values = np.zeros((64, 64))
    values[4:12, 40:48], values[50:54, 6:12], values[30:35, 30:35] = -1.0, -1.0, 3.0
    return values


def test_planted_patches_have_their_place_and_their_exact_share() -> None:
    against = strongest_patches(planted(), -1)
    assert [patch.share for patch in against] == pytest.approx([64 / 88, 24 / 88])
    assert all(patch.pixels[planted() < 0].sum() > 0 for patch in against)
    first, second = against
    assert first.rows[0] <= 4
    assert first.rows[1] >= 11
    assert second.columns[0] <= 6
    assert second.columns[1] >= 11
    assert max(first.rows[1] - 11, 4 - first.rows[0], 6 - second.columns[0]) <= 2, "smoothing widens by its own width"
    (supporting,) = strongest_patches(planted(), 1)
    assert supporting.share == 1.0
    assert supporting.pixels[30:35, 30:35].all()


def test_on_a_small_map_a_patch_is_exactly_what_is_connected_corners_included() -> None:
    values = np.zeros((8, 8))
    values[1, 1], values[2, 2], values[6, 6] = -1.0, -1.0, -0.5
    first, second = strongest_patches(values, -1)
    assert (first.rows, first.columns, first.share) == ((1, 2), (1, 2), 0.8)
    assert (second.rows, second.columns, second.share) == ((6, 6), (6, 6), 0.2)


def test_no_more_patches_than_asked_for_and_none_without_evidence() -> None:
    values = -np.kron(np.eye(10), np.pad(np.ones((2, 2)), 2))
    assert len(strongest_patches(values, -1)) == 3
    assert strongest_patches(values, 1) == ()
    assert strongest_patches(np.zeros((5, 5)), -1) == ()


def test_the_border_of_a_pixel_is_its_four_sides() -> None:
    pixels = np.zeros((3, 4), dtype=bool)
    pixels[1, 2] = True
    assert border(pixels) == (
        [1.5, 2.5, None, 1.5, 2.5, None, 1.5, 1.5, None, 2.5, 2.5, None],
        [0.5, 0.5, None, 1.5, 1.5, None, 0.5, 1.5, None, 0.5, 1.5, None],
    )
    assert border(np.zeros((3, 4), dtype=bool)) == ([], [])


def test_the_border_of_a_rectangle_is_four_lines_also_at_the_edge_of_the_image() -> None:
    x, y = border(np.ones((2, 5), dtype=bool))
    assert x.count(None) == 4
    assert {value for value in x if value is not None} == {-0.5, 4.5}
    assert {value for value in y if value is not None} == {-0.5, 1.5}


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_a_border_is_as_long_as_the_count_of_sides_between_inside_and_outside(
    height: int, width: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).random((height, width)) < 0.5
    sides = 0
    for row, column in np.argwhere(pixels):
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            beside = (row + down, column + right)
            sides += not (0 <= beside[0] < height and 0 <= beside[1] < width and pixels[beside])
    x, y = border(pixels)
    length = sum(abs(x[place + 1] - x[place]) + abs(y[place + 1] - y[place]) for place in range(0, len(x), 3))
    assert length == sides
