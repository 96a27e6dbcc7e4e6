"""Blurs against the spread of a single dot."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.methods.corruptions.pictures import chest, flat, one, strength
from xvision.methods.corruptions import REFERENCE_SIDE


@pytest.mark.parametrize("side", [28, 112, 224])
@pytest.mark.parametrize("severity", [1, 3])
def test_blur_has_the_stated_width_in_proportion_to_the_side(side: int, severity: int) -> None:
    dot = flat(0.0, side)
    dot[0, 0, side // 2, side // 2] = 1.0
    spread = one(dot, "gaussian_blur", severity)[0, 0].double()
    offsets = torch.arange(side) - side // 2
    deviation = math.sqrt(float((spread.sum(dim=0) * offsets**2).sum() / spread.sum()))
    assert float(spread.sum()) == pytest.approx(1.0, abs=1e-5)
    assert deviation == pytest.approx(strength("gaussian_blur", severity) * side / REFERENCE_SIDE, rel=0.005)


def test_motion_spreads_a_dot_evenly_over_a_line_within_45_degrees_of_horizontal() -> None:
    dots = flat(0.0, 224, batch=20)
    dots[:, 0, 112, 112] = 1.0
    spread = one(dots, "motion_blur", 5)[:, 0].double()
    offsets = torch.arange(224) - 112.0
    down, across = offsets[:, None].expand(224, 224), offsets[None].expand(224, 224)
    moments = [(spread * each).sum(dim=(1, 2)) for each in (across * across, across * down, down * down)]
    torch.testing.assert_close(spread.sum(dim=(1, 2)), torch.ones(20).double(), rtol=0, atol=1e-5)
    assert (moments[0] >= moments[2] - 1e-6).all()
    assert float(moments[1].std()) > 1.0
    length = (12.0 * (moments[0] + moments[2])).sqrt()
    np.testing.assert_allclose(length, strength("motion_blur", 5), rtol=0.05)


@pytest.mark.parametrize("severity", [1, 5])
def test_defocus_spreads_a_dot_evenly_over_a_disc(severity: int) -> None:
    dot = flat(0.0, 224)
    dot[0, 0, 112, 112] = 1.0
    spread, radius = one(dot, "defocus_blur", severity)[0, 0].double(), strength("defocus_blur", severity)
    offsets = torch.arange(224) - 112.0
    distance = (offsets[:, None] ** 2 + offsets[None] ** 2).sqrt()
    assert float(spread.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(spread[distance > radius + 1.5].sum()) == pytest.approx(0.0, abs=1e-5)
    inside = spread[distance < radius - 1.5]
    np.testing.assert_allclose(inside, 1.0 / (math.pi * radius**2), rtol=0.15)
    variance = float((spread * distance**2).sum())
    assert variance == pytest.approx(radius**2 / 2.0 + 1.0 / 3.0, rel=0.03)


@pytest.mark.parametrize("kind", ["defocus_blur", "motion_blur"])
def test_the_fast_way_for_large_kernels_is_the_plain_sum(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.cat([chest(200), chest(200).flip(2)])[:, :, :150]
    fast = one(pixels, kind, 5)
    monkeypatch.setattr("xvision.methods.corruptions.blur._LARGEST_DIRECT", 1000)
    torch.testing.assert_close(one(pixels, kind, 5), fast, rtol=0, atol=1e-5)
