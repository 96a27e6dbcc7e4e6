"""What holds for every kind: no change at severity 0, more with severity, a case on its own, pixels in range."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.corruptions.pictures import chest, colourful, flat, keys_of, one
from xvision.methods.corruptions import CORRUPTIONS, blur, corrupt, ct, geometry, marks, noise, resolution, tone

EVERY = sorted(CORRUPTIONS)
OWN = sorted(kind.name for module in (noise, blur, tone, resolution, marks, geometry, ct) for kind in module.KINDS)
GRADED = [
    (name, each) for name in OWN for each in CORRUPTIONS[name].severities if CORRUPTIONS[name].graded(each or None)
]
DRAWN = {
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "motion_blur", "underexposure", "window_centre", "window_width",
    "grid_lines", "rotation", "elastic", "orientation", "ct_dose", "ct_rings", "ct_metal",
}  # fmt: skip
CONSTANT = [
    "gaussian_blur", "defocus_blur", "motion_blur", "low_resolution", "resampling", "pixelate", "contrast_up", "contrast_down", "zoom",
]  # fmt: skip


@pytest.mark.parametrize("kind", EVERY)
def test_severity_zero_is_the_image_itself(kind: str) -> None:
    assert torch.equal(one(colourful(), kind, 0), colourful())


@pytest.mark.parametrize("side", [28, 64, 224])
@pytest.mark.parametrize(("kind", "modality"), GRADED)
def test_the_change_rises_with_severity(kind: str, modality: str, side: int) -> None:
    pixels = chest(side).repeat(2 if side == 224 else 12, 1, 1, 1)
    where = modality or None
    changes = [float((one(pixels, kind, level, modality=where) - pixels).square().mean()) for level in range(6)]
    assert changes[0] == 0.0
    assert all(low < high for low, high in itertools.pairwise(changes))


@pytest.mark.parametrize("kind", EVERY)
def test_a_case_does_not_depend_on_its_batch_or_order(kind: str) -> None:
    pixels = torch.cat([colourful() * share for share in (1.0, 0.9, 0.8, 0.7, 0.6)])
    keys = [f"patient-{row}" for row in range(5)]
    together = corrupt(pixels, kind, 3, keys, seed=1)
    turned = corrupt(pixels.flip(0), kind, 3, keys[::-1], seed=1).flip(0)
    alone = torch.cat([corrupt(pixels[row : row + 1], kind, 3, keys[row : row + 1], seed=1) for row in range(5)])
    torch.testing.assert_close(turned, together, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", OWN)
def test_randomness_follows_seed_and_key_and_nothing_else(kind: str) -> None:
    pixels = chest().repeat(8, 1, 1, 1)
    first = one(pixels, kind, 4)
    torch.manual_seed(123)
    assert torch.equal(one(pixels, kind, 4), first)
    same_case = all(torch.equal(first[0], other) for other in first)
    same_seed = torch.equal(one(pixels, kind, 4, seed=1), first)
    assert same_case == same_seed == (kind not in DRAWN)


@pytest.mark.parametrize("kind", EVERY)
def test_pixels_stay_in_range_and_the_input_is_not_changed(kind: str) -> None:
    pixels = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)).round()
    before = pixels.clone()
    result = one(pixels, kind, 5)
    assert result.shape == pixels.shape
    assert result.dtype == torch.float32
    assert float(result.min()) >= 0.0
    assert float(result.max()) <= 1.0
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("kind", [kind for kind in OWN if kind != "jpeg"])
def test_a_grey_image_in_three_channels_stays_grey_and_equals_one_channel(kind: str) -> None:
    three = one(chest(channels=3), kind, 3)
    for channel in range(3):
        torch.testing.assert_close(three[:, channel], one(chest(), kind, 3)[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", CONSTANT)
def test_a_constant_image_stays_constant(kind: str) -> None:
    torch.testing.assert_close(one(flat(0.37), kind, 5), flat(0.37), rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(OWN),
    severity=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(16, 70),
    width=st.integers(16, 70),
    seed=st.integers(0, 2**31),
)
def test_any_shape_is_kept_and_its_cases_stay_apart(
    kind: str, severity: int, channels: int, height: int, width: int, seed: int
) -> None:
    pixels = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed))
    both = corrupt(pixels, kind, severity, keys_of(pixels), seed=seed)
    assert both.shape == pixels.shape
    assert both.isfinite().all()
    torch.testing.assert_close(corrupt(pixels[1:], kind, severity, ["case-1"], seed=seed), both[1:], rtol=0, atol=1e-6)
