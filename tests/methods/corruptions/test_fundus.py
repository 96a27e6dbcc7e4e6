"""Light, haze, lids and lashes against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.measure import label

from tests.methods.corruptions import colour_laws as laws
from xvision.methods.corruptions import fundus
from xvision.methods.filters import gaussian_blur

KINDS = laws.kinds_by_name(fundus.KINDS)
RETINA = (0.8, 0.4, 0.25)


@pytest.mark.parametrize("loss", [0.2, 0.8])
def test_illumination_falls_evenly_by_the_stated_share(loss: float) -> None:
    directions = []
    for seed in range(12):
        light = KINDS["uneven_illumination"].apply(torch.ones(1, 1, 80, 120), loss, [seed])[0, 0]
        assert float(light.max()) == pytest.approx(1.0, abs=1e-5)
        assert float(light.min()) == pytest.approx(1.0 - loss, abs=1e-5)
        assert float(light.mean()) == pytest.approx(1.0 - loss / 2.0, abs=1e-5)
        assert float(light.diff(n=2, dim=0).abs().max() + light.diff(n=2, dim=1).abs().max()) < 1e-5
        directions.append(math.atan2(float(light.diff(dim=0).mean()), float(light.diff(dim=1).mean())))
    assert np.std(directions) > 0.5


def test_a_flare_adds_its_light_to_dark_and_none_to_white() -> None:
    black, white = (KINDS["lens_flare"].apply(laws.flat((value,) * 3, 224, 224), 0.6, [0])[0] for value in (0.0, 1.0))
    assert bool((white == 1.0).all())
    np.testing.assert_allclose(black.flatten(1).amax(dim=1), 0.6 * np.array([1.0, 0.93, 0.78]), rtol=1e-3)
    row, column = divmod(int(black[0].argmax()), 224)
    assert math.hypot(row + 0.5 - 112, column + 0.5 - 112) == pytest.approx(0.28 * 224, abs=1.0)
    width = float((black[0] > 0.6 * math.exp(-0.5)).sum())
    assert width == pytest.approx(math.pi * (0.15 * 224) ** 2, rel=0.03)
    half = KINDS["lens_flare"].apply(laws.flat((0.5,) * 3, 224, 224), 0.6, [0])[0]
    torch.testing.assert_close(half, 0.5 + 0.5 * black, rtol=0, atol=1e-6)


def test_haze_scales_what_differs_from_the_mean_and_keeps_a_grey_one() -> None:
    pixels = 0.3 + 0.4 * torch.rand((2, 1, 60, 60), generator=torch.Generator().manual_seed(0))
    for share in (0.15, 0.75):
        after = KINDS["cataract_haze"].apply(pixels, (share, 0.0), [0, 0])
        mean = pixels.mean(dim=(2, 3), keepdim=True)
        torch.testing.assert_close(after, mean + (1.0 - share) * (pixels - mean), rtol=0, atol=1e-5)
        blurred = KINDS["cataract_haze"].apply(pixels, (share, 3.0), [0, 0])
        expected = share * mean + (1.0 - share) * gaussian_blur(pixels, 3.0 * 60 / 224)
        torch.testing.assert_close(blurred, expected, rtol=0, atol=1e-5)


def test_haze_whitens_the_retina_and_leaves_the_surround_black() -> None:
    y, x = torch.meshgrid(torch.arange(100) - 49.5, torch.arange(100) - 49.5, indexing="ij")
    eye = laws.flat(RETINA, 100, 100) * (torch.hypot(y, x) < 45)
    after = KINDS["cataract_haze"].apply(eye, (0.6, 0.0), [0])[0]
    assert float(after[:, 0, 0].max()) == 0.0
    expected = [0.4 * value + 0.6 * (0.5 * value + 0.5 * 0.8) for value in RETINA]
    np.testing.assert_allclose(after[:, 50, 50], expected, atol=1e-5)


@pytest.mark.parametrize("depth", [0.09, 0.28])
def test_a_lid_reaches_the_stated_depth_from_above_or_below(depth: float) -> None:
    side, edges = 224, set()
    for seed in range(12):
        after = KINDS["eyelid"].apply(laws.flat((1.0,) * 3, side, side), depth, [seed])[0]
        cover = (1.0 - after[1]) / (1.0 - 0.08)
        upper = bool(cover[0].sum() > cover[-1].sum())
        edges.add(upper)
        hung = cover if upper else cover.flip(0)
        reached = int((hung[:, side // 2] > 0.0).sum())
        assert reached == pytest.approx(depth * side, abs=1.0)
        assert int((hung[:, 0] > 0.0).sum()) == pytest.approx(0.4 * depth * side, abs=1.5)
        assert float(hung[0, side // 2]) == pytest.approx(1.0)
        np.testing.assert_allclose(after[:, 0 if upper else -1, side // 2], [0.22, 0.08, 0.06], atol=1e-5)
    assert edges == {True, False}


def test_lashes_hang_from_one_edge_and_are_as_many_as_stated() -> None:
    side, edges, counts = 448, set(), []
    for seed in range(12):
        after = KINDS["eyelashes"].apply(torch.ones(1, 1, side, side), 4, [seed])[0, 0]
        dark = after.numpy() < 0.6
        rows = np.nonzero(dark.any(axis=1))[0]
        upper = bool(rows.min() < 8)
        assert upper != bool(rows.max() > side - 9)
        edges.add(upper)
        assert np.ptp(rows) < 0.5 * side
        counts.append(int(label(dark, connectivity=2).max()))
        covered = float((1.0 - after).sum()) / (0.85 * (1.0 - (0.299 * 0.10 + 0.587 * 0.05 + 0.114 * 0.04)))
        assert 4 * 0.15 * side * 8.0 * 0.6 < covered < 4 * 0.5 * side * 8.0
    assert edges == {True, False}
    assert max(counts) == 4
    assert min(counts) >= 1
