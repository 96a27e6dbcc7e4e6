"""Weather, mud, zoom and glass against closed forms and what each promises of its share and size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.corruptions import colour_laws as laws
from xvision.methods.corruptions import drawing, natural
from xvision.methods.filters import gaussian_blur

KINDS = laws.kinds_by_name(natural.KINDS)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 90), st.integers(2, 90), st.floats(1.2, 3.0), st.integers(0, 2**31))
def test_plasma_fills_the_unit_range_on_any_shape(height: int, width: int, decay: float, seed: int) -> None:
    noise = drawing.plasma(torch.zeros(2, 3, height, width), decay, [seed, seed + 1])
    assert noise.shape == (2, 1, height, width)
    assert float(noise.min()) >= 0.0
    assert float(noise.max()) <= 1.0
    assert not torch.equal(noise[0], noise[1])


def test_plasma_is_a_torus_of_the_stated_roughness() -> None:
    """A halved grid has displacements ``decay`` times smaller: squared steps between neighbours fall by about decay**2."""
    for decay in (1.4, 2.0):
        ratios = []
        for seed in range(8):
            noise = drawing.plasma(torch.zeros(1, 1, 256, 256), decay, [seed])[0, 0].double()
            low, high = float(noise.min()), float(noise.max())
            assert (low, high) == (0.0, 1.0)
            wrap = (noise[0] - noise[-1]).square().mean()
            assert float(wrap / (noise[100] - noise[101]).square().mean()) < 4.0
            coarse = noise[::4, ::4] - (noise.roll(-4, 1) + noise.roll(4, 1))[::4, ::4] / 2.0
            fine = noise[::2, ::2] - (noise.roll(-2, 1) + noise.roll(2, 1))[::2, ::2] / 2.0
            ratios.append(float(coarse.square().mean() / fine.square().mean()))
        assert np.sqrt(np.mean(ratios)) == pytest.approx(decay, rel=0.12)


def test_fog_keeps_the_brightest_pixel_and_moves_every_pixel_towards_the_plasma() -> None:
    pixels = laws.scene(64, 64, batch=3)
    brightest = pixels.amax(dim=(1, 2, 3), keepdim=True)
    moved = [KINDS["fog"].apply(pixels, strength, [4, 5, 6]) for strength in (1.0, 2.5)]
    for after in moved:
        assert bool((after <= brightest + 1e-6).all())
        assert bool((after >= 0.0).all())
    ratio = (moved[1] - pixels) / (moved[0] - pixels)
    share = [strength / (brightest + strength) for strength in (1.0, 2.5)]
    clear = (moved[0] - pixels).abs() > 0.01
    torch.testing.assert_close(ratio[clear], (share[1] / share[0]).expand_as(ratio)[clear], rtol=1e-3, atol=0.0)
    assert float(KINDS["fog"].apply(torch.zeros(1, 3, 32, 32), 2.0, [0]).max()) == 0.0


def test_frost_lies_between_the_image_and_ice() -> None:
    pixels, ice = laws.scene(64, 64, batch=4), torch.tensor([0.86, 0.93, 1.0]).view(1, 3, 1, 1)
    for opacity in laws.values_of(KINDS["frost"]):
        after = KINDS["frost"].apply(pixels, opacity, [0, 1, 2, 3])
        share = ((after - pixels) / (ice - pixels))[(ice - pixels).abs() > 0.05]
        assert float(share.min()) >= 0.3 * opacity - 1e-4
        assert float(share.max()) <= opacity + 1e-4
        assert float(share.max() - share.min()) > 0.5 * opacity


def test_snow_only_brightens_and_falls_downwards() -> None:
    pixels = laws.scene(64, 64, batch=4)
    for value in laws.values_of(KINDS["snow"]):
        assert bool((KINDS["snow"].apply(pixels, value, [0, 1, 2, 3]) >= pixels - 1e-6).all())
    flakes = KINDS["snow"].apply(torch.zeros(20, 1, 224, 224), (0.1, 3.0, 16.0, 1.0), list(range(20)))
    down = (flakes[:, :, 1:] - flakes[:, :, :-1]).square().mean()
    across = (flakes[..., 1:] - flakes[..., :-1]).square().mean()
    assert float(across) > 1.5 * float(down)


def test_the_scene_in_snow_is_whitened_by_the_stated_share() -> None:
    pixels = laws.flat((0.6, 0.2, 0.1), batch=2)
    after = KINDS["snow"].apply(pixels, (-9.0, 3.0, 8.0, 0.7), [0, 1])
    grey = 0.299 * 0.6 + 0.587 * 0.2 + 0.114 * 0.1
    expected = [0.7 * value + 0.3 * max(value, 1.5 * grey + 0.5) for value in (0.6, 0.2, 0.1)]
    np.testing.assert_allclose(after[0, :, 3, 3], expected, atol=1e-5)


@pytest.mark.parametrize("share", [0.04, 0.32])
def test_mud_covers_exactly_the_stated_share(share: float) -> None:
    pixels = laws.flat((0.9, 0.9, 0.9), 80, 130, batch=5)
    after = KINDS["spatter"].apply(pixels, share, list(range(5)))
    covered = (after[:, 0] < 0.9).flatten(1).sum(dim=1)
    assert covered.tolist() == [round(share * 80 * 130)] * 5
    assert float(after[:, 0].min()) == pytest.approx(0.9 + 0.9 * (0.25 - 0.9), abs=1e-5)


def test_mud_scales_with_the_image() -> None:
    small, large = (KINDS["spatter"].apply(torch.ones(1, 1, side, side), 0.2, [3]) for side in (112, 448))
    gap = torch.nn.functional.interpolate(large, (112, 112), mode="area") - small
    assert float(gap.abs().mean()) < 0.02


@pytest.mark.parametrize("zoom", [(1.10, 0.01), (1.15, 0.01), (1.20, 0.02), (1.25, 0.02), (1.30, 0.03)])
def test_a_ramp_zooms_to_the_mean_of_its_flatter_copies(zoom: tuple[float, float]) -> None:
    offsets = torch.arange(64) - 31.5
    ramp = (0.5 + 0.01 * offsets).expand(1, 1, 50, 64)
    factors = np.arange(1.0, zoom[0] + 0.001, zoom[1])
    assert len(factors) == {1.10: 11, 1.15: 16, 1.20: 11, 1.25: 13, 1.30: 11}[zoom[0]]
    flatter = (1.0 + (1.0 / factors).sum()) / (len(factors) + 1)
    after = KINDS["zoom_blur"].apply(ramp, zoom, [0])
    np.testing.assert_allclose(after[0, 0, 20], 0.5 + 0.01 * flatter * offsets, atol=1e-5)
    torch.testing.assert_close(after, after[:, :, :1].expand_as(after), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["zoom_blur", "glass_blur"])
def test_blurs_keep_a_constant_image(name: str) -> None:
    for value in laws.values_of(KINDS[name]):
        pixels = laws.flat((0.37,))
        torch.testing.assert_close(KINDS[name].apply(pixels, value, [0]), pixels, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("reach", "times"), [(1.0, 2), (4.0, 2), (2.0, 3)])
def test_glass_moves_a_pixel_by_no_more_than_the_stated_square(reach: float, times: int) -> None:
    side = 224
    ramp = (0.2 + 0.5 * torch.arange(side) / side).expand(2, 1, side, side)
    after = KINDS["glass_blur"].apply(torch.cat((ramp, ramp.mT)), (0.0, reach, times), [0, 1, 2, 3])
    moved = (after - torch.cat((ramp, ramp.mT)))[..., 20:-20, 20:-20] * side / 0.5
    assert float(moved.abs().max()) <= reach * times + 1e-3
    single = KINDS["glass_blur"].apply(ramp, (0.0, reach, 1), [0, 1])
    spread = float(((single - ramp)[..., 20:-20] * side / 0.5).square().mean())
    assert spread == pytest.approx(reach**2 / 3.0, rel=0.03)
    blurred = KINDS["glass_blur"].apply(laws.scene(side, side), (1.5, 0.0, 1), [0])
    twice = gaussian_blur(gaussian_blur(laws.scene(side, side), 1.5), 1.5)
    torch.testing.assert_close(blurred, twice, rtol=0, atol=1e-5)
