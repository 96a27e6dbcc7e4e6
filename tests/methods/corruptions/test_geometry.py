"""Turns, mirrors, magnification and deformation against an independent implementation or their own inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.transform import AffineTransform, warp

from tests.methods.corruptions.pictures import chest, flat, keys_of, one, strength
from xvision.methods.corruptions import CORRUPTIONS, corrupt


def wide(side: int = 64) -> torch.Tensor:
    return chest(side)[:, :, : side * 3 // 4]


def from_centre(pixels: torch.Tensor, change: AffineTransform) -> np.ndarray:
    """The image read at the points that ``change`` sends the pixels to, about the middle."""
    height, width = pixels.shape[2:]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    whole = AffineTransform(translation=-centre) + change + AffineTransform(translation=centre)
    return np.asarray(warp(pixels[0, 0].double().numpy(), whole, order=1, mode="edge"))


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_rotation_is_that_of_scikit_image_in_one_of_the_two_directions(severity: int) -> None:
    angle = np.deg2rad(strength("rotation", severity))
    left, right = (from_centre(wide(), AffineTransform(rotation=sign * angle)) for sign in (1, -1))
    found = set()
    for result in one(wide().repeat(12, 1, 1, 1), "rotation", severity)[:, 0].numpy():
        errors = [float(np.abs(result - expected).max()) for expected in (left, right)]
        assert min(errors) < 1e-4
        found.add(errors.index(min(errors)))
    assert found == {0, 1}


@pytest.mark.parametrize("severity", [1, 5])
def test_zoom_is_that_of_scikit_image(severity: int) -> None:
    expected = from_centre(wide(), AffineTransform(scale=1.0 / strength("zoom", severity)))
    np.testing.assert_allclose(one(wide(), "zoom", severity)[0, 0], expected, atol=1e-4)


@pytest.mark.parametrize("severity", [1, 3])
def test_elastic_moves_points_by_the_stated_deviation(severity: int) -> None:
    """On a ramp, a shift in columns reads as a change of grey."""
    side = 224
    ramp = (torch.arange(side) / (side - 1)).expand(1, 1, side, side).repeat(24, 1, 1, 1)
    shifts = ((side - 1) * (one(ramp, "elastic", severity) - ramp))[:, 0, 20:-20, 20:-20]
    assert float(shifts.square().mean().sqrt()) == pytest.approx(0.8 * strength("elastic", severity), rel=0.15)
    assert float(shifts.diff(dim=2).abs().max()) < 0.5 * strength("elastic", severity)


def test_elastic_and_zoom_keep_a_constant_image() -> None:
    for kind in ("elastic", "zoom", "rotation"):
        torch.testing.assert_close(one(flat(0.37), kind, 5), flat(0.37), rtol=0, atol=1e-6)


def test_the_flip_exchanges_left_and_right_and_twice_is_the_image() -> None:
    flipped = one(wide(), "laterality_flip", 1)
    assert torch.equal(flipped[..., 0], wide()[..., -1])
    assert torch.equal(one(flipped, "laterality_flip", 4), wide())


def test_orientation_draws_the_three_other_quarter_turns() -> None:
    pixels = chest().repeat(30, 1, 1, 1)
    turned = [
        [count for count in range(4) if torch.equal(case, chest()[0].rot90(count, (1, 2)))]
        for case in one(pixels, "orientation", 1)
    ]
    assert {tuple(found) for found in turned} == {(1,), (2,), (3,)}
    oblong = one(wide().repeat(6, 1, 1, 1), "orientation", 1)
    assert oblong[:1].shape == wide().shape


def test_only_what_exchanges_sides_may_change_the_right_decision() -> None:
    named = {name for name, kind in CORRUPTIONS.items() if kind.label_changing}
    assert {"laterality_flip", "orientation"} <= named
    assert "rotation" not in named
    pixels = chest()
    assert torch.equal(
        corrupt(pixels, "laterality_flip", 1, keys_of(pixels), seed=0),
        corrupt(pixels, "laterality_flip", 5, keys_of(pixels), seed=9),
    )
