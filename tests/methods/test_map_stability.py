"""How far maps move under noise: models whose maps move by a known amount, other implementations, and laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.metrics import sensitivity_max
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.errors import ConfigError, DataError
from xvision.methods.decision import Decision
from xvision.methods.map_stability import (
    Changes,
    Noise,
    average_sensitivity,
    changes_of,
    max_sensitivity,
    noise_of,
    relative_input_stability,
    relative_output_stability,
    unchanged,
)

FIGURES = (
    average_sensitivity,
    max_sensitivity,
    relative_input_stability,
    relative_output_stability,
)
WEIGHTS = np.random.default_rng(9).normal(size=(1, 4, 4))


def images(count: int = 3, copies: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(0.2, 1.0, (count, 1, 4, 4))
    return pixels, pixels[:, None] + rng.uniform(-0.1, 0.1, (count, copies, 1, 4, 4))


def linear_logits(pixels: np.ndarray) -> np.ndarray:
    score = (pixels * WEIGHTS).sum(axis=(-1, -2, -3))
    return np.stack([np.zeros_like(score), score], axis=-1)


def noise(pixels: np.ndarray, noisy: np.ndarray, floor: float = 1e-6) -> Noise:
    """All copies kept."""
    found = noise_of(pixels, noisy, linear_logits(pixels), linear_logits(noisy), floor=floor)
    return found._replace(kept=np.ones(found.kept.shape, dtype=bool))


def test_the_gradient_of_a_linear_model_does_not_move() -> None:
    pixels, noisy = images()
    maps = changes_of(np.repeat(WEIGHTS, 3, axis=0), np.broadcast_to(WEIGHTS[0], (3, 8, 4, 4)))
    for figure in FIGURES:
        np.testing.assert_array_equal(figure(maps, noise(pixels, noisy)), np.zeros(3))


def test_a_map_that_is_the_image_moves_as_the_image_does() -> None:
    pixels, noisy = images()
    bank, maps = noise(pixels, noisy), changes_of(pixels[:, 0], noisy[:, :, 0], floor=1e-6)
    np.testing.assert_allclose(relative_input_stability(maps, bank), 1.0, atol=1e-12)


def test_every_figure_by_hand() -> None:
    """One image of two pixels (1, 2) and two copies; the map (3, 4) becomes (3, 4.5) and (6, 4)."""
    pixels, noisy = np.array([[[[1.0, 2.0]]]]), np.array([[[[[1.3, 2.8]]], [[[1.0, 1.0]]]]])
    logits, noisy_logits = np.array([[0.0, 1.0]]), np.array([[[0.0, 1.25], [0.0, 3.0]]])
    bank = noise_of(pixels, noisy, logits, noisy_logits)
    maps = changes_of(np.array([[[3.0, 4.0]]]), np.array([[[[3.0, 4.5]], [[6.0, 4.0]]]]))
    np.testing.assert_allclose(maps.size, [5.0])
    np.testing.assert_allclose(average_sensitivity(maps, bank), [(0.1 + 0.6) / 2])
    np.testing.assert_allclose(max_sensitivity(maps, bank), [0.6])
    np.testing.assert_allclose(relative_input_stability(maps, bank), [max(0.125 / 0.5, 1.0 / 0.5)])
    np.testing.assert_allclose(relative_output_stability(maps, bank), [max(0.125 / 0.25, 1.0 / 2.0)])


def test_largest_sensitivity_agrees_with_captum() -> None:
    pixels, noisy = images()

    def explain(inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0] ** 3 - inputs[0],)

    spread = torch.from_numpy(noisy).flatten(0, 1)
    expected = sensitivity_max(
        explain, torch.from_numpy(pixels), perturb_func=lambda *_: (spread,), n_perturb_samples=8
    ).numpy()
    maps = changes_of((pixels**3 - pixels)[:, 0], (noisy**3 - noisy)[:, :, 0])
    np.testing.assert_allclose(max_sensitivity(maps, noise(pixels, noisy)), expected, atol=1e-12)


def test_relative_stability_agrees_with_the_published_formulas() -> None:
    """Agarwal et al. (2022), equations 2 and 4, written out copy by copy."""
    pixels, noisy = images()
    explained, explained_noisy = np.tanh(pixels) - 0.1, np.tanh(noisy) - 0.1
    logits, noisy_logits = linear_logits(pixels), linear_logits(noisy)
    inputs, outputs = np.zeros((3, 8)), np.zeros((3, 8))
    for row in range(3):
        for copy in range(8):
            moved = np.linalg.norm((explained[row] - explained_noisy[row, copy]) / explained[row])
            inputs[row, copy] = moved / max(np.linalg.norm((pixels[row] - noisy[row, copy]) / pixels[row]), 1e-6)
            outputs[row, copy] = moved / max(np.linalg.norm(logits[row] - noisy_logits[row, copy]), 1e-6)
    maps = changes_of(explained[:, 0], explained_noisy[:, :, 0], floor=1e-6)
    np.testing.assert_allclose(relative_input_stability(maps, noise(pixels, noisy)), inputs.max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(relative_output_stability(maps, noise(pixels, noisy)), outputs.max(axis=1), rtol=1e-12)


def test_an_entry_near_zero_is_divided_by_the_floor() -> None:
    """Of (10, 0) the 0 counts as 0.01 * 10 = 0.1, so a change of (1, 1) is (0.1, 10)."""
    found = changes_of(np.array([[10.0, 0.0]]), np.array([[[11.0, 1.0]]]), floor=0.01)
    np.testing.assert_allclose(found.relative, [[np.hypot(0.1, 10.0)]])
    negative = changes_of(np.array([[-10.0, 0.001]]), np.array([[[-11.0, 1.001]]]), floor=0.01)
    np.testing.assert_allclose(negative.relative, found.relative)


def test_a_change_of_the_logits_below_the_smallest_counts_as_the_smallest() -> None:
    maps = changes_of(np.array([[1.0]]), np.array([[[1.5]]]))
    still = Changes(np.ones(1), np.zeros((1, 1)), np.zeros((1, 1)))
    bank = Noise(still, np.zeros((1, 1)), np.ones((1, 1), dtype=bool))
    np.testing.assert_allclose(relative_output_stability(maps, bank), [0.5e6])
    np.testing.assert_allclose(relative_input_stability(maps, bank), [0.5e6])


def test_copies_decided_otherwise_are_left_out() -> None:
    pixels, noisy = images(count=2, copies=3)
    bank = noise(pixels, noisy)._replace(kept=np.array([[True, False, True], [False, False, False]]))
    maps = changes_of(pixels[:, 0] ** 2, noisy[:, :, 0] ** 2)
    only = noise(pixels[:1], noisy[:1, ::2])
    for figure in FIGURES:
        found = figure(maps, bank)
        np.testing.assert_allclose(found[0], figure(changes_of(pixels[:1, 0] ** 2, noisy[:1, ::2, 0] ** 2), only)[0])
        assert np.isnan(found[1])


def test_the_deployed_decision_says_which_copies_are_unchanged() -> None:
    logits, noisy = np.array([[0.0, 1.0]]), np.array([[[0.0, -0.1], [0.0, 0.5], [0.0, 3.0]]])
    np.testing.assert_array_equal(unchanged(logits, noisy), [[False, True, True]])
    at_80_percent = Decision(positive=1, threshold=0.8)
    np.testing.assert_array_equal(unchanged(logits, noisy, decision=at_80_percent), [[True, True, False]])
    pixels, copies = images(count=1, copies=3)
    np.testing.assert_array_equal(noise_of(pixels, copies, logits, noisy).kept, [[False, True, True]])


@pytest.mark.parametrize("broken", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.full((4, 4), np.inf)])
def test_a_map_without_values_is_undefined_and_leaves_its_neighbours_alone(broken: np.ndarray) -> None:
    pixels, noisy = images()
    originals, copies = pixels[:, 0].copy(), noisy[:, :, 0]
    originals[1] = broken
    for figure in FIGURES:
        found = figure(changes_of(originals, copies), noise(pixels, noisy))
        np.testing.assert_array_equal(np.isnan(found), [False, True, False])
        alone = figure(changes_of(originals[2:], copies[2:]), noise(pixels[2:], noisy[2:]))
        np.testing.assert_array_equal(found[2:], alone)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_map_of_one_copy_is_not_passed_over(value: float) -> None:
    pixels, noisy = images()
    copies = noisy[:, :, 0].copy()
    copies[1, 2, 0, 0] = value
    for figure in FIGURES:
        found = figure(changes_of(pixels[:, 0], copies), noise(pixels, noisy))
        np.testing.assert_array_equal(np.isnan(found), [False, True, False])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-4, 1e4), order=st.permutations(range(3)))
def test_the_unit_of_the_map_and_the_order_of_images_do_not_matter(seed: int, scale: float, order: list[int]) -> None:
    pixels, noisy = images(seed=seed)
    bank = noise(pixels, noisy, floor=0.01)
    maps = changes_of(np.sin(9 * pixels[:, 0]), np.sin(9 * noisy[:, :, 0]))
    scaled = changes_of(scale * np.sin(9 * pixels[:, 0]), scale * np.sin(9 * noisy[:, :, 0]))
    turned = changes_of(np.sin(9 * pixels[order, 0]), np.sin(9 * noisy[order, :, 0]))
    for figure in FIGURES:
        np.testing.assert_allclose(figure(scaled, bank), figure(maps, bank), rtol=1e-9)
        np.testing.assert_array_equal(
            figure(turned, noise(pixels[order], noisy[order], 0.01)), figure(maps, bank)[order]
        )


def test_no_copies_leave_nothing_to_say() -> None:
    pixels, noisy = images(copies=0)
    for figure in FIGURES:
        assert np.isnan(figure(changes_of(pixels[:, 0], noisy[:, :, 0]), noise(pixels, noisy))).all()


def test_wrong_shapes_and_options_are_named() -> None:
    pixels, noisy = images()
    with pytest.raises(DataError, match=r"found copies of shape \(2, 8, 1, 4, 4\) of \(3, 1, 4, 4\)"):
        changes_of(pixels, noisy[:2])
    for floor in (0.0, 1.5):
        with pytest.raises(ConfigError, match=rf"found floor = {floor}: it must be above 0 and at most 1"):
            changes_of(pixels, noisy, floor=floor)
    logits = linear_logits(noisy)[:, :5]
    with pytest.raises(DataError, match=r"found pixels of \(3, 8\) and logits of \(3, 5\) images and copies"):
        noise_of(pixels, noisy, linear_logits(pixels), logits)
