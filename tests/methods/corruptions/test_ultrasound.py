"""What goes wrong on an ultrasound machine, against closed forms and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from scipy.special import ive

from tests.methods.corruptions.laws import (
    check_draws,
    check_grey_channels,
    check_order_and_batch,
    check_severities,
    phantoms,
)
from xvision.methods.corruptions import ultrasound, ultrasound_marks
from xvision.methods.corruptions.kind import Parameter

KINDS = {kind.name: kind for kind in (*ultrasound.KINDS, *ultrasound_marks.KINDS)}
NAMES = sorted(KINDS)
NOTHING: dict[str, Parameter] = {
    "rayleigh_speckle": 0.0,
    "gain_up": 0.0,
    "gain_down": 0.0,
    "time_gain": 0.0,
    "depth_attenuation": 0.0,
    "acoustic_shadow": (0.2, 0.0),
    "reverberation": 0.0,
    "lateral_blur": 0.0,
}


def applied(name: str, pixels: torch.Tensor, value: Parameter, seeds: list[int] | range) -> np.ndarray:
    return KINDS[name].apply(pixels, value, seeds).double().numpy()


def flat(value: float, batch: int, height: int, width: int) -> torch.Tensor:
    return torch.full((batch, 1, height, width), value)


@pytest.mark.parametrize("name", NAMES)
def test_a_case_stands_alone(name: str) -> None:
    check_order_and_batch(KINDS[name], "ultrasound")


@pytest.mark.parametrize("name", NAMES)
def test_grey_stays_grey(name: str) -> None:
    check_grey_channels(KINDS[name], "ultrasound")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_follows_the_seed(name: str) -> None:
    fixed = {"gain_up", "gain_down", "depth_attenuation", "lateral_blur"}
    check_draws(KINDS[name], "ultrasound", name not in fixed)


@pytest.mark.parametrize("side", [28, 64])
@pytest.mark.parametrize("name", NAMES)
def test_the_change_rises_with_severity(name: str, side: int) -> None:
    check_severities(KINDS[name], "ultrasound", side)


@pytest.mark.parametrize("name", sorted(NOTHING))
def test_nothing_done_is_the_image_itself(name: str) -> None:
    pixels = phantoms(2, 41, 32)
    np.testing.assert_allclose(applied(name, pixels, NOTHING[name], [0, 1]), pixels, atol=1e-6)


@pytest.mark.parametrize("deviation", [0.1, 0.3])
def test_speckle_has_rayleighs_law_with_the_stated_deviation_up_to_the_border(deviation: float) -> None:
    factor = applied("rayleigh_speckle", flat(0.5, 40, 112, 112), deviation, range(40))[:, 0] / 0.5
    unit = math.sqrt(2.0 - math.pi / 2.0)
    magnitude = (factor - 1.0) / deviation * unit + math.sqrt(math.pi / 2.0)
    for part in (magnitude, magnitude[:, 0], magnitude[:, :, -1]):
        assert part.mean() == pytest.approx(math.sqrt(math.pi / 2.0), rel=0.02)
        assert part.std() == pytest.approx(unit, rel=0.04)
    assert stats.kstest(magnitude[:, ::8, ::8].ravel(), stats.rayleigh.cdf).pvalue > 1e-3
    assert factor.mean() == pytest.approx(1.0, abs=0.005)
    assert factor.std() == pytest.approx(deviation, rel=0.02)


@pytest.mark.parametrize("side", [224, 112])
def test_the_grain_of_speckle_scales_with_the_side(side: int) -> None:
    factor = applied("rayleigh_speckle", flat(0.5, 10, side, side), 0.3, range(10))[:, 0]
    magnitude = (factor / 0.5 - 1.0) / 0.3 * math.sqrt(2.0 - math.pi / 2.0) + math.sqrt(math.pi / 2.0)
    power = magnitude[:, 8:-8, 8:-8] ** 2
    beside = np.corrcoef(power[:, :, 1:].ravel(), power[:, :, :-1].ravel())[0, 1]
    doubled = 2.0 * (side / 224) ** 2
    assert beside == pytest.approx((ive(1, doubled) / ive(0, doubled)) ** 2, abs=0.02)


@pytest.mark.parametrize(("name", "decibel"), [("gain_up", 6.0), ("gain_up", 18.0), ("gain_down", -9.0)])
def test_a_gain_adds_its_share_of_60_decibels_and_leaves_black_black(name: str, decibel: float) -> None:
    shades = torch.tensor([0.0, 0.025, 0.05, 0.3, 0.7]).view(1, 1, 1, 5).expand(1, 1, 4, 5)
    change = applied(name, shades, decibel, [0])[0, 0] - shades[0, 0].double().numpy()
    np.testing.assert_allclose(change, np.tile(decibel / 60.0 * np.array([0.0, 0.5, 1.0, 1.0, 1.0]), (4, 1)), atol=1e-6)


def test_time_gain_is_eight_sliders_of_stated_size_with_lines_between() -> None:
    change = applied("time_gain", flat(0.5, 5, 64, 40), 9.0, range(5))[:, 0] - 0.5
    np.testing.assert_allclose(change, np.repeat(change[:, :, :1], 40, axis=2), atol=1e-7)
    decibel = 60.0 * change[:, :, 0]
    sliders = decibel[:, ::9]  # 63 steps for seven gaps
    np.testing.assert_allclose(np.sqrt((sliders**2).mean(axis=1)), 9.0, rtol=1e-5)
    for case in range(5):
        np.testing.assert_allclose(
            decibel[case], np.interp(np.arange(64), np.arange(0, 64, 9), sliders[case]), atol=1e-4
        )
    assert len(np.unique(np.round(sliders[:, 0], 3))) == 5


def test_attenuation_grows_evenly_with_depth() -> None:
    change = applied("depth_attenuation", flat(0.8, 1, 50, 30), 24.0, [0])[0, 0] - 0.8
    expected = -24.0 / 60.0 * (np.arange(50) + 0.5) / 50
    np.testing.assert_allclose(change, np.tile(expected[:, None], (1, 30)), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_shadow_is_a_wedge_along_rays_from_above_the_middle(seed: int) -> None:
    height, width, share, decibel = 200, 300, 0.06, 12.0
    loss = 0.9 - applied("acoustic_shadow", flat(0.9, 1, height, width), (share, decibel), [seed])[0, 0]
    assert loss.min() == pytest.approx(0.0, abs=1e-6)
    assert loss.max() == pytest.approx(decibel / 60.0, rel=1e-5)
    cover = loss / (decibel / 60.0)
    tip = int(np.argmax(cover.max(axis=1) > 0.5)) / height
    assert 0.09 < tip < 0.36
    rows = np.arange(int(tip * height) + 4, int(tip * height) + 60)
    depth = (rows + 0.5) / height
    spread = (depth + 0.5) / (tip + 0.5)
    np.testing.assert_allclose(cover[rows].sum(axis=1) / width, share * spread, rtol=0.03)
    middle = (cover[rows] @ ((np.arange(width) + 0.5) / width - 0.5)) / cover[rows].sum(axis=1)
    np.testing.assert_allclose(middle / (depth + 0.5), middle[0] / (depth[0] + 0.5), rtol=1e-3, atol=3e-4)
    assert abs(middle[0]) < 0.26


def test_shadows_lie_where_drawn() -> None:
    loss = 0.9 - applied("acoustic_shadow", flat(0.9, 40, 100, 100), (0.06, 12.0), range(40))[:, 0]
    dark = loss > 0.1
    tips = dark.any(axis=2).argmax(axis=1)
    middles = np.array([np.nonzero(case[tip])[0].mean() for case, tip in zip(dark, tips, strict=True)])
    for places, low, high in ((tips, 10, 35), (middles, 25, 75)):
        assert low - 1 <= places.min() < low + 5
        assert high - 5 < places.max() <= high + 1


@pytest.mark.parametrize("seed", range(4))
def test_reverberation_is_five_lines_apart_by_the_same_each_three_quarters_of_the_last(seed: int) -> None:
    lines = applied("reverberation", flat(0.0, 1, 672, 672), 0.4, [seed])[0, 0]
    column = lines[:, int(lines.sum(axis=0).argmax())]
    labels, count = ndimage.label(column > 0.01)
    assert count == 5
    peaks = np.array([column[labels == number + 1].max() for number in range(5)])
    np.testing.assert_allclose(peaks, 0.4 * 0.75 ** np.arange(5), rtol=0.02)
    places = np.array([np.average(np.nonzero(labels == n + 1)[0], weights=column[labels == n + 1]) for n in range(5)])
    np.testing.assert_allclose(np.diff(places), np.diff(places)[0], atol=0.3)
    assert 0.06 * 672 <= np.diff(places)[0] <= 0.12 * 672
    assert 0.15 * 672 <= places[0] <= 0.35 * 672
    assert lines[:, 0].max() < 0.01 * 0.4
    assert lines[:, -1].max() < 0.01 * 0.4


@pytest.mark.parametrize(("height", "width"), [(64, 64), (224, 300)])
def test_a_wide_beam_spreads_a_dot_along_its_row_only(height: int, width: int) -> None:
    dot = flat(0.0, 1, height, width)
    dot[0, 0, 20, width // 2] = 1.0
    spread = applied("lateral_blur", dot, 6.0, [0])[0, 0]
    assert np.abs(np.delete(spread, 20, axis=0)).max() == 0.0
    offsets = np.arange(width) - width // 2
    assert spread.sum() == pytest.approx(1.0, abs=1e-5)
    assert math.sqrt(spread[20] @ offsets**2) == pytest.approx(6.0 * height / 224, rel=0.005)


def test_a_wide_beam_is_scipys_gaussian_along_the_rows() -> None:
    pixels = phantoms(2, 224, 224)
    expected = ndimage.gaussian_filter1d(pixels.double().numpy(), 6.0, axis=3, mode="nearest")
    np.testing.assert_allclose(applied("lateral_blur", pixels, 6.0, [0, 1]), expected, atol=2e-3)
    np.testing.assert_allclose(applied("lateral_blur", flat(0.3, 1, 40, 56), 9.0, [0]), 0.3, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_calipers_are_two_crosses_and_nine_dots_between_them(seed: int) -> None:
    shorter, share = 250, 0.048
    ink = applied("calipers", flat(0.0, 1, shorter, 400), (1, share), [seed])[0, 0]
    arm, thick = share * shorter, 0.008 * shorter
    assert ink.sum() == pytest.approx(2.0 * (2.0 * arm * thick - thick**2) + 9.0 * thick**2, rel=0.05)
    labels, count = ndimage.label(ink > 0.0, structure=np.ones((3, 3)))
    middle = np.array(ndimage.center_of_mass(ink)) + 0.5
    assert np.abs(middle - (shorter / 2, 200)).max() <= 0.12 * shorter
    sizes = ndimage.sum_labels(ink, labels, range(1, count + 1))
    crosses = np.argsort(sizes)[-2:] + 1
    ends = np.array(ndimage.center_of_mass(ink, labels, crosses)) + 0.5
    np.testing.assert_allclose(ends.mean(axis=0), middle, atol=0.5)
    assert 0.19 * shorter < np.hypot(*(ends[0] - ends[1])) < 0.45 * shorter
    upper = ndimage.find_objects(labels)[crosses[0] - 1]
    assert all(arm - 0.01 <= box.stop - box.start <= arm + 2.0 for box in upper)


def test_small_calipers_are_eleven_marks_apart() -> None:
    ink = applied("calipers", flat(0.0, 6, 250, 400), (1, 0.016), range(6))[:, 0]
    assert [ndimage.label(case > 0.0, structure=np.ones((3, 3)))[1] for case in ink] == [11] * 6


def test_two_pairs_of_calipers_have_twice_the_ink_and_are_white_on_any_image() -> None:
    one, two = (applied("calipers", flat(0.0, 20, 224, 224), (pairs, 0.05), range(20)).sum() for pairs in (1, 2))
    assert two / one == pytest.approx(2.0, abs=0.1)
    black, grey = (applied("calipers", flat(value, 3, 64, 64), (2, 0.05), range(3)) for value in (0.0, 0.6))
    np.testing.assert_allclose(grey, 0.6 + black * 0.4, atol=1e-6)


def test_readings_are_lines_of_six_digits_in_the_upper_left() -> None:
    image = applied("readings", flat(0.0, 40, 200, 260), (2, 0.05), range(40))[:, 0]  # a cell of two pixels
    text = image[:, 4 : 4 + 24, 4 : 4 + 48]
    assert text.sum() == pytest.approx(image.sum())
    cells = text[:, ::2, ::2]
    np.testing.assert_array_equal(np.kron(cells, np.ones((1, 2, 2))), text)
    assert set(np.unique(cells)) == {0.0, 1.0}
    boxes = cells.reshape(40, 2, 6, 6, 4).transpose(0, 1, 3, 2, 4).reshape(480, 6, 4)
    assert boxes[:, 5].sum() == boxes[:, :, 3].sum() == 0.0
    shapes, counts = np.unique(boxes.reshape(480, -1), axis=0, return_counts=True)
    assert len(shapes) == 10
    assert stats.chisquare(counts).pvalue > 1e-3


def test_readings_lie_over_the_image_and_end_with_it() -> None:
    grey = applied("readings", flat(0.6, 1, 64, 40), (5, 0.3), [0])
    black = applied("readings", flat(0.0, 1, 64, 40), (5, 0.3), [0])
    np.testing.assert_allclose(grey, 0.6 + black * 0.4, atol=1e-6)
    assert black.max() == 1.0
