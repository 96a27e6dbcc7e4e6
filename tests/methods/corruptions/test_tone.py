"""Contrast, brightness, gamma, exposure and windows against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.methods.corruptions.pictures import chest, flat, one, strength


@pytest.mark.parametrize("severity", range(1, 6))
def test_contrast_scales_the_deviation_about_the_mean(severity: int) -> None:
    pixels = torch.cat([chest(), 0.5 * chest()])
    result, factor = one(pixels, "contrast_down", severity), strength("contrast_down", severity)
    for before, after in zip(pixels.double(), result.double(), strict=True):
        assert float(after.std()) == pytest.approx(factor * float(before.std()), rel=1e-5)
        assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-6)


@pytest.mark.parametrize("kind", ["gamma_up", "gamma_down"])
@pytest.mark.parametrize("severity", range(1, 6))
def test_gamma_is_the_power(kind: str, severity: int) -> None:
    expected = chest().numpy().astype(float) ** strength(kind, severity)
    np.testing.assert_allclose(one(chest(), kind, severity), expected, atol=1e-6)
    darker = float(one(chest(), kind, severity).mean()) < float(chest().mean())
    assert darker == (kind == "gamma_up")


def test_high_contrast_scales_the_deviation_until_it_clips() -> None:
    pixels = 0.5 + 0.3 * (chest() - chest().mean())
    result = one(pixels, "contrast_up", 5)
    assert float(result.std()) == pytest.approx(strength("contrast_up", 5) * float(pixels.std()), rel=1e-5)


@pytest.mark.parametrize("modality", ["xray", "ct", "ultrasound", "histology"])
def test_brightness_is_a_factor(modality: str) -> None:
    for kind in ("brightness_up", "brightness_down"):
        result = one(chest(), kind, 3, modality=modality)
        torch.testing.assert_close(result, (strength(kind, 3, modality) * chest()).clamp(max=1.0))


def test_inversion_twice_is_the_image() -> None:
    once = one(chest(), "inversion", 1)
    torch.testing.assert_close(once, 1.0 - chest())
    torch.testing.assert_close(one(once, "inversion", 5), chest(), rtol=0, atol=1e-6)


def test_overexposure_loses_what_lets_most_rays_through() -> None:
    result = one(torch.linspace(0, 1, 4096).reshape(1, 1, 64, 64), "overexposure", 5).flatten()
    factor = strength("overexposure", 5)
    assert float(result[-1]) == 1.0
    assert float((result == 0.0).float().mean()) == pytest.approx(1.0 - 1.0 / factor, abs=0.001)


@pytest.mark.parametrize("brightness", [0.5, 0.8])
def test_underexposure_is_paler_and_noisier_by_the_lost_quanta(brightness: float) -> None:
    result, share = one(flat(brightness, 128, batch=4), "underexposure", 3), strength("underexposure", 3)
    received = share * (1.0 - brightness)
    assert float(result.mean()) == pytest.approx(1.0 - received, abs=0.001)
    assert float(result.std()) == pytest.approx((received / 400.0) ** 0.5, rel=0.03)


def test_window_centre_moves_every_grey_value_up_in_some_cases_and_down_in_others() -> None:
    moved = one(flat(0.5, 8, batch=40), "window_centre", 2)[:, 0, 0, 0] - 0.5
    shift = strength("window_centre", 2)
    np.testing.assert_allclose(moved.abs(), shift, atol=1e-6)
    assert 8 < int((moved > 0).sum()) < 32


def test_window_width_narrows_some_cases_and_widens_others_about_mid_grey() -> None:
    pixels = torch.tensor([0.45, 0.5, 0.55, 0.55]).view(1, 1, 2, 2).repeat(40, 1, 1, 1)
    result, factor = one(pixels, "window_width", 4).flatten(1), 1.0 - strength("window_width", 4)
    np.testing.assert_allclose(result[:, 1], 0.5, atol=1e-6)
    slopes = (result[:, 2] - result[:, 0]) / 0.1
    narrow = slopes > 1.0
    assert 8 < int(narrow.sum()) < 32
    np.testing.assert_allclose(slopes[narrow], 1.0 / factor, rtol=1e-4)
    np.testing.assert_allclose(slopes[~narrow], factor, rtol=1e-4)
