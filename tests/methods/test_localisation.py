"""Where a heat map falls, on maps whose score is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.errors import ConfigError, DataError
from xvision.methods.localisation import (
    border_area,
    border_mass,
    mass_lift,
    pointing_game,
    region_lift,
    regions,
    relevance_mass,
)

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def corner_mask(batch: int = 1, side: int = 8, inside: int = 4) -> np.ndarray:
    masks = np.zeros((batch, side, side), dtype=bool)
    masks[:, :inside, :inside] = True
    return masks


def test_a_constant_map_scores_the_area_share() -> None:
    maps, masks = np.ones((1, 8, 8)), corner_mask()
    assert relevance_mass(maps, masks) == pytest.approx(0.25)
    assert mass_lift(maps, masks) == pytest.approx(1.0)
    assert pointing_game(maps, masks) == pytest.approx(0.25)
    assert border_mass(maps, 0.25) == pytest.approx(border_area(8, 8, 0.25))


def test_a_map_equal_to_the_mask_scores_one() -> None:
    masks = corner_mask()
    maps = masks.astype(float)
    assert relevance_mass(maps, masks) == 1.0
    assert mass_lift(maps, masks) == 4.0
    assert pointing_game(maps, masks) == 1.0


@pytest.mark.parametrize("score", [relevance_mass, mass_lift, pointing_game])
def test_an_empty_mask_is_never_a_hit(score: Score) -> None:
    assert np.isnan(score(np.ones((1, 8, 8)), np.zeros((1, 8, 8), dtype=bool))).all()


def test_a_map_without_positive_attribution_has_no_mass() -> None:
    maps = -np.ones((1, 8, 8))
    assert np.isnan(relevance_mass(maps, corner_mask())).all()
    assert np.isnan(mass_lift(maps, corner_mask())).all()
    assert np.isnan(border_mass(maps, 0.1)).all()


def test_negative_attribution_is_no_mass() -> None:
    maps = np.full((1, 8, 8), -5.0)
    maps[0, 0, 0], maps[0, 7, 7] = 1.0, 3.0
    assert relevance_mass(maps, corner_mask()) == 0.25


def test_tied_maxima_count_by_their_share_inside() -> None:
    maps = np.zeros((1, 8, 8))
    maps[0, 0, 0] = maps[0, 7, 7] = maps[0, 7, 6] = 2.0
    assert pointing_game(maps, corner_mask()) == pytest.approx(1 / 3)


def test_the_frame_is_as_wide_as_asked_and_at_least_one_pixel() -> None:
    assert border_area(10, 20, 0.2) == pytest.approx(1 - 6 * 16 / 200)
    assert border_area(10, 10, 0.001) == pytest.approx(36 / 100)
    maps = np.zeros((1, 10, 10))
    maps[0, 0, 5], maps[0, 5, 5] = 1.0, 3.0
    assert border_mass(maps, 0.1) == 0.25


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
def test_scores_ignore_positive_scale_and_the_rest_of_the_batch(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    maps, masks = rng.normal(size=(5, 6, 7)), rng.random((5, 6, 7)) < 0.3
    for score in (relevance_mass, mass_lift, pointing_game):
        together = score(maps, masks)
        np.testing.assert_allclose(score(scale * maps, masks), together, rtol=1e-9)
        np.testing.assert_array_equal([score(maps[i : i + 1], masks[i : i + 1])[0] for i in range(5)], together)


def test_unusable_maps_and_masks_are_errors() -> None:
    with pytest.raises(DataError, match=r"masks of shape .* and type float64"):
        relevance_mass(np.ones((1, 4, 4)), np.ones((1, 4, 4)))
    with pytest.raises(DataError, match="masks of shape"):
        pointing_game(np.ones((1, 4, 4)), np.ones((1, 4, 5), dtype=bool))
    maps = np.ones((2, 4, 4))
    maps[1, 0, 0] = np.nan
    with pytest.raises(DataError, match="heat map in row 1 holds NaN"):
        mass_lift(maps, np.ones((2, 4, 4), dtype=bool))
    with pytest.raises(DataError, match=r"maps of shape \(4, 4\)"):
        border_mass(np.ones((4, 4)), 0.1)
    with pytest.raises(ConfigError, match=r"found width_fraction = 0\.5"):
        border_mass(np.ones((1, 4, 4)), 0.5)


def test_regions_are_the_frame_and_four_corners() -> None:
    found = regions(10, 20, corner=0.2, border=0.1)
    assert list(found) == [
        "border", "upper left corner", "upper right corner", "lower left corner", "lower right corner",
    ]  # fmt: skip
    assert [int(mask.sum()) for mask in found.values()] == [56, 8, 8, 8, 8]
    assert found["upper right corner"][:2, 16:].all()
    assert found["lower left corner"][8:, :4].all()
    assert found["lower right corner"][8:, 16:].all()


def test_region_lift_of_known_maps() -> None:
    corner = regions(10, 10, corner=0.2, border=0.1)["upper left corner"]
    marked = np.zeros((3, 10, 10))
    marked[0, 0, 0], marked[1] = 5.0, 1.0
    marked[2, 1, 1], marked[2, 5, 5], marked[2, 9, 9] = 1.0, 3.0, -9.0
    np.testing.assert_allclose(region_lift(marked, corner), [25.0, 1.0, 6.25])
    assert np.isnan(region_lift(-marked[:2], corner)).all()


def test_unusable_regions_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"found corner = 0\.5"):
        regions(10, 10, corner=0.5, border=0.1)
    with pytest.raises(ConfigError, match=r"found width_fraction = 0\.0"):
        regions(10, 10, corner=0.2, border=0.0)
    with pytest.raises(DataError, match=r"region of shape \(4, 4\), type bool and 0 pixels"):
        region_lift(np.ones((1, 4, 4)), np.zeros((4, 4), dtype=bool))
    with pytest.raises(DataError, match=r"region of shape \(4, 5\)"):
        region_lift(np.ones((1, 4, 4)), np.ones((4, 5), dtype=bool))
