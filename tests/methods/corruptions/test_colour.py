"""Colours against colorsys, scikit-image, Pillow and the colour of black bodies in the literature."""

from __future__ import annotations

import colorsys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import hsv2rgb, rgb2hsv

from tests.methods.corruptions import colour_laws as laws
from xvision.errors import ConfigError
from xvision.methods.corruptions import MODALITIES, colour, corrupt, fundus, kinds_of, natural, skin, stain

KINDS = laws.kinds_by_name(colour.KINDS)


def random_colours(count: int = 4096) -> torch.Tensor:
    return torch.rand((1, 3, 1, count), generator=torch.Generator().manual_seed(0))


def rows(pixels: torch.Tensor) -> np.ndarray:
    """(N, 3) float64 of the pixels of the first case."""
    return pixels[0].flatten(1).T.double().numpy()


def linear(stored: np.ndarray) -> np.ndarray:
    return np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("name", KINDS)
def test_one_channel_has_no_colour(name: str) -> None:
    with pytest.raises(ConfigError, match=r"found images of 1 channel\(s\).*needs the 3 channels of colour"):
        KINDS[name].apply(laws.scene(channels=1), laws.values_of(KINDS[name])[0], [0])


def test_without_saturation_the_luma_of_pillow_is_left() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    pixels = torch.as_tensor(levels / 255.0, dtype=torch.float32).permute(2, 0, 1)[None]
    grey = KINDS["saturation_down"].apply(pixels, 0.0, [0])
    luma = np.asarray(Image.fromarray(levels).convert("L"), dtype=float)
    np.testing.assert_allclose(255.0 * grey[0].numpy(), np.broadcast_to(luma, (3, 40, 50)), atol=1.01)
    half = KINDS["saturation_down"].apply(pixels, 0.5, [0])
    torch.testing.assert_close(half, (pixels + grey) / 2.0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", [(1.0, 0.25), (3.0, 0.05), (20.0, 0.2), (0.5, 0.0)])
def test_saturation_is_that_of_hsv(change: tuple[float, float]) -> None:
    pixels = random_colours()
    expected = rgb2hsv(rows(pixels))
    expected[:, 1] = np.clip(change[0] * expected[:, 1] + change[1], 0.0, 1.0)
    result = KINDS["saturation_up"].apply(pixels, change, [0])
    np.testing.assert_allclose(rows(result), hsv2rgb(expected), atol=1e-5)


def test_grey_has_no_hue_to_make_stronger() -> None:
    greys = torch.linspace(0.0, 1.0, 32).view(1, 1, 1, 32).expand(1, 3, 1, 32)
    for change in laws.values_of(KINDS["saturation_up"]):
        torch.testing.assert_close(KINDS["saturation_up"].apply(greys, change, [0]), greys)


@pytest.mark.parametrize("degrees", [5.0, 30.0, 200.0])
def test_hue_turns_as_in_colorsys_forwards_in_half_of_the_cases(degrees: float) -> None:
    pixels = torch.cat((random_colours(500), torch.eye(3).T.reshape(1, 3, 1, 3), torch.ones(1, 3, 1, 1)), dim=3)
    forwards = 0
    for seed in range(40):
        result = rows(KINDS["hue"].apply(pixels, degrees, [seed]))
        turned = {}
        for sign in (1, -1):
            hsv = [colorsys.rgb_to_hsv(*colour) for colour in rows(pixels)]
            turned[sign] = np.array([colorsys.hsv_to_rgb((h + sign * degrees / 360.0) % 1.0, s, v) for h, s, v in hsv])
        gaps = {sign: np.abs(turned[sign] - result).max() for sign in (1, -1)}
        assert min(gaps.values()) < 1e-5
        forwards += gaps[1] < gaps[-1]
    assert 8 <= forwards <= 32


@pytest.mark.parametrize("kelvin", [2000.0, 2856.0, 3600.0, 5500.0, 6500.0, 9000.0, 20000.0])
def test_black_bodies_have_the_chromaticity_of_the_planckian_locus(kelvin: float) -> None:
    """The cubic fit of Kim et al. (2002) to the CIE 1931 2 degree locus."""
    per = 1.0 / kelvin
    if kelvin <= 4000.0:
        x = -0.2661239e9 * per**3 - 0.2343589e6 * per**2 + 0.8776956e3 * per + 0.179910
    else:
        x = -3.0258469e9 * per**3 + 2.1070379e6 * per**2 + 0.2226347e3 * per + 0.240390
    if kelvin <= 2222.0:
        y = -1.1063814 * x**3 - 1.34811020 * x**2 + 2.18555832 * x - 0.20219683
    elif kelvin <= 4000.0:
        y = -0.9549476 * x**3 - 1.37418593 * x**2 + 2.09137015 * x - 0.16748867
    else:
        y = 3.0817580 * x**3 - 5.87338670 * x**2 + 3.75112997 * x - 0.37001483
    srgb_to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    seen = srgb_to_xyz @ colour.black_body(kelvin)
    np.testing.assert_allclose(seen[:2] / seen.sum(), [x, y], atol=0.003)


@pytest.mark.parametrize("name", ["warm_light", "cold_light", "white_balance"])
def test_light_keeps_the_luminance_of_grey_and_its_gains_are_the_stated_ones(name: str) -> None:
    grey = torch.full((6, 3, 1, 1), 0.4)
    for value in laws.values_of(KINDS[name]):
        light = linear(KINDS[name].apply(grey, value, list(range(6)))[:, :, 0, 0].double().numpy())
        np.testing.assert_allclose(light @ [0.2126, 0.7152, 0.0722], linear(np.array(0.4)), rtol=1e-4)
        if name == "white_balance":
            stops = np.log2(light) - np.log2(light).mean(axis=1, keepdims=True)
            np.testing.assert_allclose(np.linalg.norm(stops, axis=1), value, rtol=1e-3)
            assert np.linalg.matrix_rank(stops, tol=0.01) == 2
        else:
            ratio = colour.black_body(value) / colour.black_body(6500.0)
            np.testing.assert_allclose(light[0] / light[0].sum(), ratio / ratio.sum(), atol=1e-5)
            assert (light[0, 0] > light[0, 2]) == (name == "warm_light")


@pytest.mark.parametrize("module", [colour, skin, stain, fundus, natural])
def test_kinds_are_offered_for_their_modalities_only(module: ModuleType) -> None:
    for kind in module.KINDS:
        assert {name for name in MODALITIES if kind.name in kinds_of(name)} == set(kind.severities)
        assert kind.name not in kinds_of(None)


def test_each_modality_has_its_own_values() -> None:
    pixels = laws.scene()
    for modality, change in (("histology", (1.0, 0.05)), ("natural", (1.5, 0.0))):
        after = corrupt(pixels, "saturation_up", 1, ["a"], seed=0, modality=modality)
        torch.testing.assert_close(after, KINDS["saturation_up"].apply(pixels, change, [0]).clamp(0.0, 1.0))
    with pytest.raises(ConfigError, match="makes no sense for xray"):
        corrupt(pixels, "saturation_up", 1, ["a"], seed=0, modality="xray")
