"""What holds of every kind for colour images, whatever it draws."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.corruptions import colour_laws as laws
from xvision.methods.corruptions import colour, fundus, natural, skin, stain

KINDS = laws.kinds_by_name((*colour.KINDS, *skin.KINDS, *stain.KINDS, *fundus.KINDS, *natural.KINDS))
NEUTRAL = {
    "saturation_down": 1.0, "saturation_up": (1.0, 0.0), "hue": 0.0,
    "warm_light": colour.REFERENCE_KELVIN, "cold_light": colour.REFERENCE_KELVIN, "white_balance": 0.0,
    "hair": 0, "ruler": 0.0, "ink": 0.0, "gel_bubbles": 0, "vignette": 0.0, "black_corner": 4.0,
    "stain_shift": (0.0, 0.0), "stain_deposit": 0, "air_bubbles": (7, 0), "fold": 0.0, "focus_tilt": 0.0, "tile_seam": (0, 1.0),
    "uneven_illumination": 0.0, "lens_flare": 0.0, "cataract_haze": (0.0, 0.0), "eyelid": 0.0, "eyelashes": 0,
    "fog": 0.0, "frost": 0.0, "snow": (-9.0, 3.0, 8.0, 1.0), "spatter": 0.0, "zoom_blur": (1.0, 0.01), "glass_blur": (0.0, 0.0, 2),
}  # fmt: skip
COLOURED = {*(kind.name for kind in colour.KINDS), "stain_shift"}
"""What needs three channels."""
CERTAIN = {
    "saturation_down",
    "saturation_up",
    "warm_light",
    "cold_light",
    "vignette",
    "black_corner",
    "cataract_haze",
    "zoom_blur",
}
"""What draws nothing."""


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_the_neutral_value_leaves_the_image(name: str, channels: int) -> None:
    laws.assert_neutral(KINDS[name], NEUTRAL[name], 3 if name in COLOURED else channels)


@pytest.mark.parametrize("side", [28, 64])
@pytest.mark.parametrize("name", KINDS)
def test_the_change_rises_with_severity(name: str, side: int) -> None:
    laws.assert_change_rises(KINDS[name], side)


@pytest.mark.parametrize("name", KINDS)
def test_a_case_stands_alone(name: str) -> None:
    laws.assert_case_stands_alone(KINDS[name])
    assert laws.draws_at_random(KINDS[name]) == (name not in CERTAIN)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)), st.integers(28, 70), st.integers(28, 70), st.sampled_from((1, 3)), st.integers(1, 5)
)
def test_any_shape(name: str, height: int, width: int, channels: int, severity: int) -> None:
    laws.assert_any_shape(KINDS[name], height, width, 3 if name in COLOURED else channels, severity)
