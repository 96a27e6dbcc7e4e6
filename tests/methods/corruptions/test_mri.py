"""Artefacts of magnetic resonance against closed forms and numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from tests.methods.corruptions.laws import (
    check_draws,
    check_grey_channels,
    check_order_and_batch,
    check_severities,
    phantoms,
)
from xvision.methods.corruptions import mri, mri_motion
from xvision.methods.corruptions.draws import uniform
from xvision.methods.corruptions.kind import Parameter

KINDS = {kind.name: kind for kind in (*mri.KINDS, *mri_motion.KINDS)}
NAMES = sorted(KINDS)
ROWS, COLUMNS = 2, 3  # an even seed turns nothing: the phase axis runs along the rows' axis
EITHER = pytest.mark.parametrize(("seed", "axis"), [(10, ROWS), (11, COLUMNS)])
NOTHING: dict[str, Parameter] = {
    "gibbs": 0.0,
    "spike": 0.0,
    "ghosting": (4, 0.0),
    "bias_field": 0.0,
    "rician_noise": 0.0,
    "thick_slices": 1.0,
    "undersampling": 1.0,
    "fold_over": 0.0,
    "kspace_motion": (3, 0.0, 0.0),
}


def applied(name: str, pixels: torch.Tensor, value: Parameter, seeds: list[int] | range) -> np.ndarray:
    return KINDS[name].apply(pixels, value, seeds).double().numpy()


def line_along(axis: int, at: int, height: int = 48, width: int = 60) -> torch.Tensor:
    """A bright line across the phase axis."""
    image = torch.zeros(1, 1, height, width)
    image.select(axis, at).fill_(1.0)
    return image


def profile(image: np.ndarray, axis: int) -> np.ndarray:
    """Values along an axis, where the image must be constant along the other."""
    lines = image[0, 0] if axis == ROWS else image[0, 0].T
    np.testing.assert_allclose(lines, np.repeat(lines[:, :1], lines.shape[1], axis=1), atol=1e-6)
    first: np.ndarray = lines[:, 0]
    return first


@pytest.mark.parametrize("name", NAMES)
def test_a_case_stands_alone(name: str) -> None:
    check_order_and_batch(KINDS[name], "mr")


@pytest.mark.parametrize("name", NAMES)
def test_grey_stays_grey(name: str) -> None:
    check_grey_channels(KINDS[name], "mr")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_follows_the_seed(name: str) -> None:
    # the axis alone is drawn for slices and the field of view: not between even seeds
    check_draws(KINDS[name], "mr", name not in {"gibbs", "thick_slices", "fold_over"})


@pytest.mark.parametrize("side", [28, 64])
@pytest.mark.parametrize("name", NAMES)
def test_the_change_rises_with_severity(name: str, side: int) -> None:
    check_severities(KINDS[name], "mr", side)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (41, 32)])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_done_is_the_image_itself(name: str, height: int, width: int) -> None:
    pixels = phantoms(2, height, width)
    np.testing.assert_allclose(applied(name, pixels, NOTHING[name], [0, 1]), pixels, atol=2e-5)


@pytest.mark.parametrize("share", [0.3, 0.55, 0.75])
def test_gibbs_is_a_circle_cut_out_of_numpys_spectrum(share: float) -> None:
    pixels = phantoms(3, 41, 32)
    down, across = np.fft.fftfreq(41)[:, None], np.fft.fftfreq(32)[None]
    kept = down**2 + across**2 <= (1.0 - share) ** 2 / 2.0
    spectrum = np.fft.fft2(pixels.double().numpy()) * kept
    expected = np.abs(np.fft.ifft2(spectrum))
    result = applied("gibbs", pixels, share, [0, 0, 0])
    np.testing.assert_allclose(result, expected, atol=1e-5)
    energy = (np.abs(spectrum) ** 2).sum(axis=(1, 2, 3)) / (41 * 32)
    np.testing.assert_allclose((result**2).sum(axis=(1, 2, 3)), energy, rtol=1e-5)


def test_gibbs_overshoots_an_edge_by_nine_percent() -> None:
    edge = torch.zeros(1, 1, 512, 512)
    edge[..., 128:384] = 0.5
    overshoot = applied("gibbs", edge, 0.9, [0]).max() / 0.5 - 1.0
    assert overshoot == pytest.approx(0.0895, abs=0.004)


@pytest.mark.parametrize("strength", [0.1, 0.6])
def test_a_spike_adds_one_plane_wave_within_its_ring(strength: float) -> None:
    pixels = phantoms(20, 48, 64)
    wave = applied("spike", pixels, strength, range(20)) - pixels.double().numpy()
    spectrum = np.abs(np.fft.fft2(wave[:, 0])) / (48 * 64)
    mean = pixels.double().mean(dim=(1, 2, 3)).numpy()
    places, starts = set(), set()
    for case in range(20):
        points = np.argwhere(spectrum[case] > 1e-5)
        assert len(points) == 2
        assert (points.sum(axis=0) % (48, 64) == 0).all()
        np.testing.assert_allclose(spectrum[case][tuple(points.T)], strength * mean[case] / 2.0, rtol=1e-4)
        down, across = np.fft.fftfreq(48)[points[0, 0]], np.fft.fftfreq(64)[points[0, 1]]
        assert 0.1 - 0.015 < math.hypot(down, across) < 0.3 + 0.015
        places.add((abs(down), abs(across)))
        starts.add(round(float(wave[case, 0, 0, 0]) / strength / mean[case], 1))
    assert len(places) > 12
    assert len(starts) > 8


@EITHER
@pytest.mark.parametrize(("ghosts", "intensity"), [(2, 0.2), (4, 0.4), (6, 0.6), (12, 1.0)])
def test_a_line_has_its_ghosts_where_the_closed_form_says(seed: int, axis: int, ghosts: int, intensity: float) -> None:
    line = line_along(axis, 5)
    along = profile(applied("ghosting", line, (ghosts, intensity), [seed]), axis)
    expected = np.zeros(len(along))
    expected[(5 + np.arange(ghosts) * len(along) // ghosts) % len(along)] = intensity / ghosts
    expected[5] = 1.0 - intensity / ghosts
    np.testing.assert_allclose(along, expected, atol=1e-6)


def test_ghosts_weaken_every_nth_line_but_never_the_central_one() -> None:
    flat = torch.full((30, 1, 24, 24), 0.4)
    np.testing.assert_allclose(applied("ghosting", flat, (3, 1.0), range(30)), 0.4, atol=1e-6)
    wave = 0.4 + 0.3 * torch.cos(2.0 * torch.pi * torch.arange(24) / 24)
    waves = wave[:, None].expand(1, 1, 24, 24)
    result = profile(applied("ghosting", waves, (3, 1.0), [2]), ROWS)
    angle = 2.0 * np.pi * np.arange(24) / 24
    # one of the wave's two lines is gone, whichever of the two possible combs is drawn
    np.testing.assert_allclose(result, np.abs(0.4 + 0.15 * np.exp(1j * angle)), atol=1e-6)


@pytest.mark.parametrize("size", [0.1, 0.5])
def test_the_bias_field_is_the_exponential_of_a_cubic_of_stated_size(size: float) -> None:
    flat = torch.full((12, 1, 40, 56), 0.3)
    field = applied("bias_field", flat, size, range(12))[:, 0] / 0.3
    assert (field > 0.0).all()
    np.testing.assert_allclose(field.mean(axis=(1, 2)), 1.0, rtol=1e-5)
    y = np.repeat(((np.arange(40) + 0.5) / 20 - 1)[:, None], 56, axis=1).ravel()
    x = np.repeat(((np.arange(56) + 0.5) / 28 - 1)[None], 40, axis=0).ravel()
    design = np.polynomial.legendre.legvander2d(y, x, [3, 3])
    powers = np.array([(down, across) for down, across in itertools.product(range(4), range(4))])
    cubic = (powers.sum(axis=1) <= 3) & (powers.sum(axis=1) > 0)
    inverse = np.linalg.pinv(design)
    for case in field:
        fitted = inverse @ np.log(case).ravel()
        np.testing.assert_allclose(fitted[powers.sum(axis=1) > 3], 0.0, atol=1e-5)
        assert np.sqrt((fitted[cubic] ** 2).mean()) == pytest.approx(size / math.sqrt(3.0), rel=1e-3)
        np.testing.assert_allclose(design @ fitted, np.log(case).ravel(), atol=1e-5)
    assert np.std(field[:, 0, 0]) > 0.1 * size


@pytest.mark.parametrize("brightness", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("deviation", [0.04, 0.16])
def test_rician_noise_has_scipys_law(brightness: float, deviation: float) -> None:
    noisy = applied("rician_noise", torch.full((4, 1, 128, 128), brightness), deviation, range(4)).ravel()
    law = stats.rice(brightness / deviation, scale=deviation)
    assert noisy.mean() == pytest.approx(law.mean(), abs=4.0 * law.std() / math.sqrt(noisy.size))
    assert stats.kstest(noisy[::7], law.cdf).pvalue > 1e-3
    if brightness == 0.0:
        assert noisy.mean() == pytest.approx(deviation * math.sqrt(math.pi / 2.0), rel=0.01)


@EITHER
def test_thick_slices_are_block_means_with_lines_between(seed: int, axis: int) -> None:
    pixels = phantoms(1, 48, 60)
    result = applied("thick_slices", pixels, 4.0, [seed])[0, 0]
    image = pixels[0, 0].double().numpy()
    if axis == COLUMNS:
        image, result = image.T, result.T
    means = image.reshape(len(image) // 4, 4, -1).mean(axis=1)
    at = np.arange(len(image)) + 0.5
    middles = 4.0 * np.arange(len(means)) + 2.0
    expected = np.stack([np.interp(at, middles, column) for column in means.T], axis=1)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_slices_that_cut_pixels_take_their_share_of_them() -> None:
    pixels = phantoms(1, 64, 40)
    image = pixels[0, 0].double().numpy()
    means = np.repeat(image, 13, axis=0).reshape(13, 64, 40).mean(axis=1)
    middles = 64 / 13 * (np.arange(13) + 0.5)
    expected = np.stack([np.interp(np.arange(64) + 0.5, middles, column) for column in means.T], axis=1)
    np.testing.assert_allclose(applied("thick_slices", pixels, 5.0, [0])[0, 0], expected, atol=1e-5)


@EITHER
@pytest.mark.parametrize("acceleration", [1.25, 1.5, 4.0])
def test_undersampling_keeps_the_stated_number_of_lines_and_the_centre(
    seed: int, axis: int, acceleration: float
) -> None:
    line = line_along(axis, 7, 64, 80)
    length = line.shape[axis]
    spread = profile(applied("undersampling", line, acceleration, [seed]), axis)
    assert (spread**2).sum() == pytest.approx(round(length / acceleration) / length, rel=1e-5)  # Parseval
    turns = 2.0 * torch.pi * torch.arange(length) / length
    slow = 0.5 + 0.2 * torch.cos(turns) + 0.2 * torch.sin(2.0 * turns)
    image = torch.ones(1, 1, 64, 80) * (slow[:, None] if axis == ROWS else slow)
    np.testing.assert_allclose(applied("undersampling", image, acceleration, [seed]), image, atol=1e-5)


def test_which_lines_are_left_out_is_drawn() -> None:
    line = line_along(ROWS, 7, 64, 64)
    spreads = [profile(applied("undersampling", line, 2.0, [seed]), ROWS) for seed in (0, 2, 4)]
    assert min(np.abs(first - second).max() for first, second in itertools.combinations(spreads, 2)) > 0.01


@EITHER
def test_fold_over_adds_what_lies_one_field_of_view_away(seed: int, axis: int) -> None:
    pixels = phantoms(1, 40, 40)
    image = pixels[0, 0].double().numpy()
    turned = image if axis == ROWS else image.T
    expected = turned.copy()
    expected[:10] += turned[30:]
    expected[30:] += turned[:10]
    result = applied("fold_over", pixels, 0.25, [seed])[0, 0]
    np.testing.assert_allclose(result, expected if axis == ROWS else expected.T, atol=1e-6)
    between = applied("fold_over", pixels, 9.5 / 40, [seed])
    neighbours = applied("fold_over", pixels, 9 / 40, [seed]) + applied("fold_over", pixels, 10 / 40, [seed])
    np.testing.assert_allclose(between, neighbours / 2.0, atol=1e-6)


def moved_slowly(image: np.ndarray, movements: int, degrees: float, shift: float, seed: int) -> np.ndarray:
    """Line by line with scipy's rotation, along the rows' axis."""
    when, where, sense, direction = uniform([seed], 4, movements)[0].double().numpy()
    distance = np.sort(0.02 + 0.13 * when)
    height, width = image.shape
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    spectrum = np.empty(image.shape, dtype=complex)
    for line, frequency in enumerate(np.fft.fftfreq(height)):
        angle, offset = 0.0, np.zeros(2)
        for number in range(movements):
            signed = frequency if where[number] < 0.5 else -frequency
            if signed > distance[number]:
                angle += math.radians(degrees) * (1.0 if sense[number] < 0.5 else -1.0)
                offset += shift * np.array(
                    [math.sin(2 * math.pi * direction[number]), math.cos(2 * math.pi * direction[number])]
                )
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        posed = ndimage.affine_transform(image, turn, centre - turn @ centre + offset, order=3, mode="nearest")
        spectrum[line] = np.fft.fft(posed, axis=0)[line]
    magnitude: np.ndarray = np.abs(np.fft.ifft(spectrum, axis=0))
    return magnitude


@pytest.mark.parametrize("seed", [2, 8, 9])
def test_motion_takes_each_line_from_its_pose(seed: int) -> None:
    smooth = ndimage.gaussian_filter(phantoms(1, 56, 48)[0, 0].double().numpy(), 2.0)
    pixels = torch.as_tensor(smooth, dtype=torch.float32)[None, None]
    result = applied("kspace_motion", pixels, (3, 6.0, 10.0), [seed])[0, 0]
    expected = moved_slowly(smooth if seed % 2 == 0 else smooth.T, 3, 6.0, 10.0 * 48 / 224, seed)
    np.testing.assert_allclose(result, expected if seed % 2 == 0 else expected.T, atol=4e-3)
    assert np.abs(result - smooth).max() > 0.03


def test_shifts_move_no_energy_and_leave_the_image_in_place() -> None:
    smooth = np.pad(ndimage.gaussian_filter(phantoms(1, 48, 48)[0, 0].double().numpy(), 1.5), 16)
    pixels = torch.as_tensor(smooth, dtype=torch.float32).expand(12, 1, 80, 80)
    result = applied("kspace_motion", pixels, (2, 0.0, 8.0), range(12))
    np.testing.assert_allclose((result**2).sum(axis=(1, 2, 3)), (smooth**2).sum(), rtol=5e-3)
    at = np.arange(80)
    centre = (result.sum(axis=(1, 2)) @ at) / result.sum(axis=(1, 2, 3))
    apart = np.abs(centre - (smooth.sum(axis=0) @ at) / smooth.sum())
    assert apart.mean() < 0.5  # of up to 5.7 pixels that the image moves
    assert apart.max() < 2.0
