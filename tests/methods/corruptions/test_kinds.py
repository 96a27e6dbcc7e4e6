"""Each corruption against what its parameter promises, and the independence of a case from its batch."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from xvision.errors import ConfigError, DataError
from xvision.methods.corruptions import CORRUPTIONS, REFERENCE_SIDE, corrupt, psnr, severities_of

KINDS = sorted(CORRUPTIONS)
NOISY = {"gaussian_noise", "shot_noise", "motion_blur"}


def chest(side: int = 64, channels: int = 1) -> torch.Tensor:
    """A smooth chest-like image with edges, a small bright lesion and fine texture."""
    y, x = np.mgrid[0:side, 0:side] / side
    image = 0.75 - 0.25 * np.abs(x - 0.5) - 0.1 * y
    for centre in (0.3, 0.7):
        image -= 0.45 * np.exp(-((((x - centre) / 0.13) ** 2 + ((y - 0.48) / 0.26) ** 2) ** 1.5))
    image += 0.15 * np.exp(-((x - 0.68) ** 2 + (y - 0.4) ** 2) / 0.0012)
    image += 0.02 * np.random.default_rng(0).normal(size=image.shape)
    return torch.as_tensor(np.clip(image, 0.02, 0.98), dtype=torch.float32).expand(1, channels, side, side).clone()


def one(pixels: torch.Tensor, kind: str, severity: int, seed: int = 0) -> torch.Tensor:
    return corrupt(pixels, kind, severity, [f"case-{row}" for row in range(len(pixels))], seed=seed)


def flat(value: float, side: int = 64, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, 1, side, side), value)


def strength(kind: str, severity: int) -> float:
    return float(severities_of(kind)[severity - 1])


def test_the_registry_is_complete() -> None:
    assert len(CORRUPTIONS) == 11
    for name, corruption in CORRUPTIONS.items():
        assert corruption.name == name
        assert len(set(severities_of(name))) == 5
        assert all((corruption.title, corruption.parameter, corruption.unit, corruption.source))


@pytest.mark.parametrize("kind", KINDS)
def test_severity_zero_is_the_image_itself(kind: str) -> None:
    assert torch.equal(one(chest(), kind, 0), chest())


@pytest.mark.parametrize("side", [28, 64, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_the_change_rises_with_severity(kind: str, side: int) -> None:
    pixels = chest(side)
    changes = [float((one(pixels, kind, severity) - pixels).square().mean()) for severity in range(6)]
    assert changes[0] == 0.0
    assert all(low < high for low, high in itertools.pairwise(changes))


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_does_not_depend_on_its_batch_or_order(kind: str) -> None:
    pixels = torch.cat([chest() * share for share in (1.0, 0.9, 0.8, 0.7, 0.6)])
    keys = [f"patient-{row}" for row in range(5)]
    together = corrupt(pixels, kind, 3, keys, seed=1)
    turned = corrupt(pixels.flip(0), kind, 3, keys[::-1], seed=1).flip(0)
    alone = torch.cat([corrupt(pixels[row : row + 1], kind, 3, keys[row : row + 1], seed=1) for row in range(5)])
    torch.testing.assert_close(turned, together, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_randomness_follows_seed_and_key_and_nothing_else(kind: str) -> None:
    pixels = torch.cat([chest()] * 2)
    first = corrupt(pixels, kind, 4, ["a", "b"], seed=0)
    torch.manual_seed(123)
    assert torch.equal(corrupt(pixels, kind, 4, ["a", "b"], seed=0), first)
    same_case = torch.equal(first[0], first[1])
    same_seed = torch.equal(corrupt(pixels, kind, 4, ["a", "b"], seed=1), first)
    assert same_case == same_seed == (kind not in NOISY)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_stay_in_range_and_the_input_is_not_changed(kind: str) -> None:
    pixels = torch.rand(2, 1, 32, 40, generator=torch.Generator().manual_seed(0)).round()
    before = pixels.clone()
    result = one(pixels, kind, 5)
    assert result.shape == pixels.shape
    assert result.dtype == torch.float32
    assert float(result.min()) >= 0.0
    assert float(result.max()) <= 1.0
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "jpeg"])
def test_a_grey_image_in_three_channels_stays_grey_and_equals_one_channel(kind: str) -> None:
    three = one(chest(channels=3), kind, 3)
    for channel in range(3):
        torch.testing.assert_close(three[:, channel], one(chest(), kind, 3)[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian_blur", "motion_blur", "low_resolution", "contrast_down"])
def test_a_constant_image_stays_constant(kind: str) -> None:
    torch.testing.assert_close(one(flat(0.37), kind, 5), flat(0.37), rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("severity", [1, 5])
def test_jpeg_is_what_pillow_writes_and_reads(channels: int, severity: int) -> None:
    pixels = torch.rand(2, channels, 24, 40, generator=torch.Generator().manual_seed(0))
    levels = np.rint(255 * pixels.numpy()).astype(np.uint8)
    expected = []
    for case in levels:
        image = Image.fromarray(case[0] if channels == 1 else case.transpose(1, 2, 0))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=int(strength("jpeg", severity)))
        read = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
        expected.append(read[None] if channels == 1 else read.transpose(2, 0, 1))
    np.testing.assert_array_equal(np.rint(255 * one(pixels, "jpeg", severity).numpy()), np.stack(expected))


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


def test_low_resolution_removes_what_the_coarse_grid_cannot_hold() -> None:
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64)
    slow = 0.5 + 0.4 * torch.sin(torch.arange(64) / 64 * 2 * torch.pi).expand(1, 1, 64, 64)
    assert float(one(stripes, "low_resolution", 5)[..., 4:-4].std()) < 0.2 * float(stripes.std())
    assert float((one(slow, "low_resolution", 5) - slow)[..., 4:-4].abs().max()) < 0.01


@pytest.mark.parametrize("severity", range(1, 6))
def test_the_side_marker_is_a_white_r_in_the_upper_left(severity: int) -> None:
    result = one(flat(0.0, 224), "burnt_in_text", severity)[0, 0]
    rows, columns = torch.nonzero(result > 0.5, as_tuple=True)
    assert int(rows.max() - rows.min()) + 1 == round(strength("burnt_in_text", severity) * 224)
    assert int(rows.max()) < 112
    assert int(columns.max()) < 112
    letter = result[int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]
    height, width = letter.shape
    assert float(letter[:, 1].min()) == 1.0
    assert float(letter[1, width // 2]) == 1.0
    assert float(letter[round(0.25 * height), width // 2]) == 0.0
    assert float(letter[-1, -2]) == 1.0
    assert float(letter[-2, width // 2]) == 0.0


@pytest.mark.parametrize("severity", range(1, 6))
def test_collimation_closes_the_stated_border_and_nothing_else(severity: int) -> None:
    result = one(flat(1.0, 100), "collimation", severity)[0, 0]
    width = 100 * strength("collimation", severity)
    assert float(result.sum()) == pytest.approx((100 - 2 * width) ** 2, rel=1e-5)
    closed, opened = math.floor(width), math.ceil(width)
    assert float(result[:closed].sum() + result[:, -closed:].sum()) == 0.0
    assert (result[opened : 100 - opened, opened : 100 - opened] == 1.0).all()


def test_psnr_is_the_decibel_of_the_mean_squared_change() -> None:
    clean = flat(0.5, batch=3)
    changed = clean + torch.tensor([0.0, 0.1, 0.01]).view(3, 1, 1, 1)
    np.testing.assert_allclose(psnr(clean, changed), [np.inf, 20.0, 40.0], atol=1e-4)
    with pytest.raises(DataError, match="they must agree"):
        psnr(clean, changed[:1])


def test_what_cannot_be_corrupted_is_named() -> None:
    with pytest.raises(ConfigError, match=r"found the corruption 'gaussian_nois'\. Did you mean 'gaussian_noise'"):
        one(chest(), "gaussian_nois", 1)
    with pytest.raises(ConfigError, match="found severity 6 of jpeg"):
        one(chest(), "jpeg", 6)
    with pytest.raises(DataError, match="found 1 case keys for 2 images"):
        corrupt(torch.cat([chest()] * 2), "jpeg", 1, ["a"], seed=0)
    with pytest.raises(DataError, match=r"found pixels from 0\.\d+ to 1\.\d+: they must be finite and in \[0, 1\]"):
        one(chest() * 2, "jpeg", 1)
    with pytest.raises(DataError, match="finite"):
        one(chest() * torch.nan, "jpeg", 1)
    with pytest.raises(DataError, match=r"found pixels of shape \(1, 64, 64\)"):
        one(chest()[0], "jpeg", 1)
