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


def test_the_strongest_share_keeps_equals_together_and_never_zero() -> None:
    values = np.array([[-4.0, 3.0, 2.0], [2.0, 0.0, 0.0]])
    assert images.strongest(values, 1 / 6).tolist() == [[True, False, False], [False, False, False]]
    assert images.strongest(values, 0.5).tolist() == [[True, True, True], [True, False, False]]
    assert images.strongest(values, 1.0).sum() == 4
    assert images.strongest(np.zeros((3, 3)), 0.5).sum() == 0
    assert images.strongest(np.zeros((0, 3)), 0.5).shape == (0, 3)


def test_a_threshold_hides_the_weak_and_leaves_the_colours_of_the_strong() -> None:
    values = np.linspace(-1, 1, 64).reshape(8, 8)
    pixels = np.full((1, 8, 8), 0.5)
    whole = images.overlay(pixels, values, signed=True)
    cut = images.overlay(pixels, values, signed=True, share=0.25)
    kept = images.strongest(values, 0.25)
    assert kept.sum() == 16
    assert np.array_equal(cut[kept], whole[kept])
    assert (cut[~kept] == 128).all()


@pytest.mark.parametrize(
    ("level", "width", "seen"), [(0.5, 1.0, [0.0, 0.25, 1.0]), (0.25, 0.5, [0.0, 0.5, 1.0]), (1.0, 0.5, [0, 0, 0.5])]
)
def test_window_and_level(level: float, width: float, seen: list[float]) -> None:
    assert images.windowed(np.array([0.0, 0.25, 1.0]), level, width) == pytest.approx(seen)


@pytest.mark.parametrize("shape", [(5, 7, 3), (28, 28, 3), (224, 200, 3)])
def test_reducing_undoes_enlarging(shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(images.reduced(images.enlarged(picture), *shape[:2]), picture)


def test_a_stamp_covers_the_middle_and_leaves_the_rest() -> None:
    picture = np.full((192, 192, 3), 128, dtype=np.uint8)
    stamped = images.stamped(picture, "do not rely on this map").astype(int)
    assert stamped.shape == (384, 384, 3)
    assert (stamped[20:140, 20:-20] == 128).all()
    band = stamped[180:205, 10:-10]
    assert (band[..., 0] > band[..., 1]).mean() > 0.5
    assert (band.min(axis=2) > 230).mean() > 0.05, "white letters"
    assert images.stamped(picture[:1, :], "x" * 400).shape == (2, 384, 3)


def test_a_png_is_read_only_when_its_size_is_sane() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    content = images.png(picture)
    assert images.png_size(content) == (7, 5)
    assert np.array_equal(images.read_png(content, 7), picture)
    with pytest.raises(ValueError, match=r"\(7, 5\) pixels; a picture here has at most 6"):
        images.read_png(content, 6)
    wide = bytearray(content)
    wide[16:20] = (2**30).to_bytes(4, "big")
    for bad in (b"", b"\x89PNG not really", bytes(wide), content[:40], content[:-30]):
        with pytest.raises(ValueError, match="not a readable PNG"):
            images.read_png(bad, 4096)
    assert images.png_size(bytes(wide)) is None, "the checksum of its header is wrong"
