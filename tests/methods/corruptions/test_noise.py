"""Noise against the moments that its parameter promises."""

from __future__ import annotations

import pytest
import torch

from tests.methods.corruptions.pictures import colourful, flat, one, strength


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_gaussian_noise_has_the_stated_deviation(severity: int) -> None:
    noise = one(flat(0.5, 128, batch=4), "gaussian_noise", severity) - 0.5
    assert float(noise.std()) == pytest.approx(strength("gaussian_noise", severity), rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.002)


@pytest.mark.parametrize("brightness", [0.2, 0.5])
def test_shot_noise_has_variance_brightness_over_rate(brightness: float) -> None:
    noise = one(flat(brightness, 128, batch=4), "shot_noise", 1) - brightness
    assert float(noise.var()) == pytest.approx(brightness / strength("shot_noise", 1), rel=0.03)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.002)


@pytest.mark.parametrize("brightness", [0.2, 0.5])
def test_speckle_noise_grows_with_the_brightness(brightness: float) -> None:
    noise = one(flat(brightness, 128, batch=4), "speckle_noise", 2) - brightness
    assert float(noise.std()) == pytest.approx(brightness * strength("speckle_noise", 2), rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.002)


@pytest.mark.parametrize("severity", range(1, 6))
def test_impulse_noise_blackens_and_whitens_half_of_the_stated_share_each(severity: int) -> None:
    result, share = one(flat(0.5, 128, batch=24), "impulse_noise", severity), strength("impulse_noise", severity)
    assert float((result == 0.0).float().mean()) == pytest.approx(share / 2, rel=0.08)
    assert float((result == 1.0).float().mean()) == pytest.approx(share / 2, rel=0.08)
    assert float((result == 0.5).float().mean()) == pytest.approx(1.0 - share, rel=0.01)


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"])
def test_a_colour_image_gets_noise_of_its_own_in_each_channel(kind: str) -> None:
    pixels = torch.cat([colourful(), colourful()[:, :1].expand(1, 3, 64, 64)])
    noise = (one(pixels, kind, 3) - pixels).flatten(2)
    assert abs(float(torch.corrcoef(noise[0])[0, 1])) < 0.1
    assert torch.equal(noise[1, 0], noise[1, 1])
