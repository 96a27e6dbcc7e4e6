"""Stains against scikit-image's colour deconvolution; deposits, bubbles, folds, focus and seams against their sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import hed2rgb, rgb2hed
from skimage.measure import label

from tests.methods.corruptions import colour_laws as laws
from xvision.errors import ConfigError
from xvision.methods.corruptions import stain
from xvision.methods.filters import gaussian_blur

KINDS = laws.kinds_by_name(stain.KINDS)
DECADES = 6.0
"""scikit-image counts absorbance in units of -ln(1e-6), which are six decades."""


def mixtures(count: int = 2000) -> np.ndarray:
    """(N, 3) amounts of the three stains in decades that give colours above the darkest."""
    return np.random.default_rng(0).uniform(0.0, 0.6, (count, 3))


def as_image(rows: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(rows.T[None, :, None, :], dtype=torch.float32)


def as_rows(image: torch.Tensor) -> np.ndarray:
    return image[0, :, 0].T.double().numpy()


def test_stains_are_unmixed_and_mixed_as_in_scikit_image() -> None:
    amounts = mixtures()
    mixed = hed2rgb(amounts / DECADES)
    np.testing.assert_allclose(as_rows(stain.stained(as_image(amounts))), mixed, atol=1e-5)
    np.testing.assert_allclose(as_rows(stain.stains_of(as_image(mixed))) / DECADES, rgb2hed(mixed), atol=1e-5)
    np.testing.assert_allclose(as_rows(stain.stains_of(as_image(mixed))), amounts, atol=1e-5)


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_unmixing_and_mixing_gives_every_colour_back(seed: int) -> None:
    pixels = torch.rand((1, 3, 20, 20), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(stain.stained(stain.stains_of(pixels)), pixels, rtol=0, atol=1e-5)


def test_a_shift_changes_haematoxylin_and_eosin_by_the_stated_amounts_and_leaves_the_rest() -> None:
    pixels = as_image(hed2rgb(mixtures(300) / DECADES))
    before, seen = stain.stains_of(pixels), set()
    for seed in range(24):
        after = stain.stains_of(KINDS["stain_shift"].apply(pixels, (0.3, 0.06), [seed]))
        signs = []
        for which in (0, 1):
            up, down = (before[:, which] * (1.0 + sign * 0.3) + sign * 0.06 for sign in (1, -1))
            gaps = [float((after[:, which] - expected).abs().max()) for expected in (up, down)]
            assert min(gaps) < 1e-4
            signs.append(gaps[0] < gaps[1])
        torch.testing.assert_close(after[:, 2], before[:, 2], rtol=0, atol=1e-4)
        seen.add(tuple(signs))
    assert len(seen) == 4


def test_a_stain_needs_colour() -> None:
    with pytest.raises(ConfigError, match=r"found images of 1 channel\(s\): a change of stain needs"):
        KINDS["stain_shift"].apply(laws.scene(channels=1), (0.1, 0.1), [0])


def test_deposits_are_as_many_as_stated_dark_and_of_the_stated_area() -> None:
    side, radius = 448, 28.0
    found, areas = [], []
    for seed in range(8):
        after = KINDS["stain_deposit"].apply(torch.ones(1, 3, side, side), 5, [seed])[0, 1]
        found.append(int(label(after.numpy() < 0.5).max()))
        one = KINDS["stain_deposit"].apply(torch.ones(1, 3, side, side), 1, [seed])[0, 1]
        assert float(one.min()) == pytest.approx(0.06)
        areas.append(float((1.0 - one).sum()) / 0.94)
    assert max(found) == 5
    assert min(found) >= 3  # some touch
    assert np.median(areas) == pytest.approx(math.pi * radius**2 * (1.0 + (0.25**2 + 0.15**2) / 2.0), rel=0.02)


def test_bubbles_have_the_stated_radius_opacity_and_number() -> None:
    side = 448
    for radius in (7, 17):
        after = KINDS["air_bubbles"].apply(torch.zeros(1, 1, side, side), (radius, 1), [2])[0, 0].numpy()
        assert after.max() == pytest.approx(0.51, abs=1e-5)
        light = math.pi * (0.51 * (2 * radius + 4) ** 2 - (0.51 - 0.39) * (2 * radius) ** 2)
        assert after.sum() == pytest.approx(light, rel=0.005)
        y, x = np.nonzero(after > 0.2)
        assert after[round(y.mean()), round(x.mean())] == pytest.approx(0.39, abs=1e-5)
    counts = [
        int(label(KINDS["air_bubbles"].apply(torch.zeros(1, 1, 896, 896), (3, 10), [seed])[0, 0].numpy() > 0.2).max())
        for seed in range(6)
    ]
    assert max(counts) == 10
    assert min(counts) >= 8


@pytest.mark.parametrize("width", [0.07, 0.24])
def test_a_fold_absorbs_twice_within_the_stated_width(width: float) -> None:
    side = 200
    for seed in range(6):
        after = KINDS["fold"].apply(torch.full((1, 1, side, side), 0.6), width, [seed])[0, 0]
        assert float(after.min()) == pytest.approx(0.36, abs=1e-5)
        assert float(after.max()) == pytest.approx(0.6)
        inside = after < 0.48
        assert 0.8 * width * side < float(inside.sum()) / side < 1.5 * width * side
        angles = np.radians(np.arange(0.0, 180.0, 0.25))
        places = np.stack((np.sin(angles), np.cos(angles)), axis=1) @ np.nonzero(inside.numpy())
        spread = np.ptp(places, axis=1).min()
        assert spread == pytest.approx(width * side, abs=1.5)


def test_focus_is_lost_towards_one_side_only() -> None:
    pixels = laws.scene(90, 90)
    blurred = gaussian_blur(pixels, 8.0 * 90 / 224)
    for seed in range(6):
        after = KINDS["focus_tilt"].apply(pixels, 8.0, [seed])
        share = ((after - pixels) * (blurred - pixels)).sum(dim=1) / (blurred - pixels).square().sum(dim=1)
        corners = sorted(float(share[0, row, column]) for row in (0, -1) for column in (0, -1))
        assert corners[0] == pytest.approx(0.0, abs=0.02)
        assert corners[-1] == pytest.approx(1.0, abs=0.02)
        assert float(share[0, 44:46, 44:46].mean()) == pytest.approx(0.5, abs=0.03)


def test_beyond_the_seam_the_image_slips_and_darkens() -> None:
    side, slip, gain = 224, 6, 0.88
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    ramps = 0.2 + 0.5 * torch.stack((y, x))[:, None] / side  # down, and across
    seen = set()
    for seed in range(16):
        after = KINDS["tile_seam"].apply(ramps, (slip, gain), [seed, seed])[:, 0]
        beyond = (after[0] - ramps[0, 0]).abs() + (after[1] - ramps[1, 0]).abs() > 1e-4
        upright = bool(beyond.all(dim=0).any())
        line = beyond[side // 2] if upright else beyond[:, side // 2]
        first = int(line.int().argmax())
        assert 0.29 * side < first < 0.71 * side
        assert bool(line[first:].all())
        moved = (after / gain - ramps[:, 0])[:, side - 40 : side - 20, side - 40 : side - 20] * side / 0.5
        along, beside = (moved[0], moved[1]) if upright else (moved[1], moved[0])
        assert float(along.abs().mean()) == pytest.approx(slip, abs=0.01)
        assert float(beside.abs().max()) < 0.01
        seen.add((upright, float(along.mean()) > 0.0))
    assert len(seen) == 4
