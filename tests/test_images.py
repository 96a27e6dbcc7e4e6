"""Arrays to pictures: what must be exact, and what colour must say."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from xvision import images


def test_a_photograph_is_not_stretched() -> None:
    pixels = np.array([[[0.0, 0.5], [0.25, 1.0]]])
    picture = images.photograph(pixels)
    assert picture.shape == (2, 2, 3)
    assert picture[..., 0].tolist() == [[0, 128], [64, 255]]
    assert (picture[..., 0] == picture[..., 2]).all()


def test_an_empty_map_shows_the_image_alone() -> None:
    pixels = np.random.default_rng(0).random((1, 8, 8))
    assert np.array_equal(images.overlay(pixels, np.zeros((8, 8)), signed=True), images.photograph(pixels))


def test_evidence_for_is_orange_and_against_is_blue() -> None:
    values = np.zeros((8, 8))
    values[0, 0], values[7, 7] = 1.0, -1.0
    picture = images.overlay(np.zeros((1, 8, 8)), values, signed=True, opacity=1.0).astype(int)
    assert picture[0, 0, 0] > picture[0, 0, 2]
    assert picture[7, 7, 2] > picture[7, 7, 0]
    assert picture[4, 4].sum() == 0


def test_no_change_is_grey_and_the_largest_change_is_full_colour() -> None:
    before, after = np.full((1, 2, 2), 0.5), np.full((1, 2, 2), 0.5)
    assert (images.difference(after, before) == 128).all()
    after[0, 0, 0] = 0.51
    assert images.difference(after, before)[0, 0].tolist() == [230, 107, 0]


def test_an_outline_is_the_inner_border_of_the_mask() -> None:
    mask = np.zeros((6, 6), dtype=bool)
    mask[1:5, 1:5] = True
    drawn = images.outline(np.zeros((6, 6, 3), dtype=np.uint8), mask).any(axis=2)
    assert drawn.sum() == 12
    assert not drawn[2:4, 2:4].any()


def test_the_scale_ignores_a_single_hot_pixel() -> None:
    values = np.ones((100, 100))
    values[0, 0] = 1e6
    assert images.scale_of(values) == pytest.approx(1.0)
    assert images.scale_of(np.zeros((3, 3))) == 0.0


def test_png_bytes_are_repeatable_and_exact() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert images.png(picture) == images.png(picture.copy())
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(images.png(picture)))), picture)
    assert images.enlarged(picture, 20).shape == (20, 28, 3)
