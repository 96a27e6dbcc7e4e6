"""Games and linear models whose values are known, then brute force and captum, then laws of the banks of masks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, Occlusion
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xvision.errors import ConfigError, DataError
from xvision.methods.perturbation import (
    Bank,
    bernoulli_bank,
    kernel_shap,
    patch_ablation,
    rise,
    shapley_bank,
    window_ablation,
    windows,
)
from xvision.methods.removal import Operator, pixel_evaluator
from xvision.methods.target import Score, score_of
from xvision.methods.units import Evaluate, Units, grid

Game = Callable[[np.ndarray], np.ndarray]
"""Which units are kept (N, P), as 0 and 1, to what they are worth (N,)."""


def units_of(count: int) -> Units:
    return Units(np.arange(count, dtype=np.int64)[None], count)


def playing(*games: Game) -> Evaluate:
    """One game per image."""

    def evaluate(rows: np.ndarray, removed: np.ndarray) -> np.ndarray:
        kept = 1.0 - removed
        return np.array([games[row](each[None])[0] for row, each in zip(rows, kept, strict=True)], dtype=np.float64)

    return evaluate


def linear(weights: np.ndarray, constant: float = 0.3) -> Game:
    return lambda kept: kept @ weights + constant


def lively(seed: int, units: int) -> Game:
    """A random value for every set of units."""
    values = np.random.default_rng(seed).normal(size=2**units)
    return lambda kept: values[(kept @ 2 ** np.arange(units)).astype(int)]


def all_masks(units: int) -> np.ndarray:
    return (np.arange(2**units)[:, None] >> np.arange(units) & 1).astype(bool)


def all_of(game: Game, units: int) -> Bank:
    """Every mask once, none and all among them."""
    removed, ends = all_masks(units), np.array([[False] * units, [True] * units])
    whole, empty = game(1.0 - ends)
    return Bank(removed[None], game(1.0 - removed)[None], np.array([whole]), np.array([empty]))


def brute_force(game: Game, units: int) -> np.ndarray:
    """Mean over all orders of what each unit adds when it comes."""
    values, orders = np.zeros(units), list(permutations(range(units)))
    for order in orders:
        kept = np.zeros((1, units))
        for unit in order:
            before = game(kept)[0]
            kept[0, unit] = 1.0
            values[unit] += game(kept)[0] - before
    return values / len(orders)


def test_kernel_shap_gives_the_shapley_values_of_a_game_of_three() -> None:
    def game(z: np.ndarray) -> np.ndarray:
        return 4 * z[:, 0] * z[:, 1] + 1.5 * z[:, 2] - z[:, 0] * z[:, 2]

    bank = shapley_bank(playing(game), (0,), units_of(3), masks=6, purpose="fit")
    np.testing.assert_allclose(kernel_shap(bank), [[1.5, 2.0, 1.0]], atol=1e-12)


def test_two_inputs_share_their_minimum() -> None:
    pixels = torch.tensor([[[[1.0, 3.0]]]])
    evaluate = pixel_evaluator(
        lambda x, _: x.flatten(1).amin(dim=1),
        pixels,
        torch.ones(1, dtype=torch.int64),
        units_of(2),
        "black",
        seeds=(0,),
    )
    bank = shapley_bank(evaluate, (0,), units_of(2), masks=2, purpose="fit")
    np.testing.assert_allclose(kernel_shap(bank), [[0.5, 0.5]], atol=1e-12)
    np.testing.assert_allclose(patch_ablation(evaluate, 1, units_of(2)), [[1.0, 1.0]])


@pytest.mark.parametrize("units", [1, 2, 4, 5])
def test_all_masks_give_what_all_orders_give(units: int) -> None:
    games = [lively(seed, units) for seed in range(3)]
    bank = shapley_bank(playing(*games), (0, 1, 2), units_of(units), masks=64, purpose="fit")
    expected = [brute_force(game, units) for game in games]
    np.testing.assert_allclose(kernel_shap(bank), expected, atol=1e-10)


@pytest.mark.parametrize("masks", [36, 61, 400])
def test_a_sample_of_masks_is_exact_for_a_linear_score(masks: int) -> None:
    weights = np.random.default_rng(3).normal(size=(2, 9))
    evaluate = playing(linear(weights[0]), linear(weights[1], -2.0))
    bank = shapley_bank(evaluate, (5, 6), units_of(9), masks=masks, purpose="fit")
    assert bank.removed.shape == (2, masks // 2 * 2, 9)
    np.testing.assert_allclose(kernel_shap(bank), weights, atol=1e-9)


def test_any_masks_that_tell_the_units_apart_are_exact_for_a_linear_score() -> None:
    weights = np.array([2.0, -1.0, 0.5, 4.0])
    removed = np.eye(4, dtype=bool)[None, :3]
    game = linear(weights)
    bank = Bank(removed, game(1.0 - removed[0])[None], np.array([5.8]), np.array([0.3]), np.array([1.0, 7.0, 0.2]))
    np.testing.assert_allclose(kernel_shap(bank), [weights], atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), units=st.integers(2, 7), masks=st.integers(2, 140))
def test_the_values_add_up_to_what_all_units_change(seed: int, units: int, masks: int) -> None:
    bank = shapley_bank(playing(lively(seed, units)), (seed,), units_of(units), masks=masks, purpose="fit")
    try:
        values = kernel_shap(bank)
    except DataError:
        return  # too few masks to tell the units apart: the next test
    np.testing.assert_allclose(values.sum(axis=1), bank.whole - bank.empty, atol=1e-10)


def test_samples_are_right_on_average() -> None:
    game = lively(1, 6)
    many = shapley_bank(playing(*[game] * 200), range(200), units_of(6), masks=60, purpose="fit")
    np.testing.assert_allclose(kernel_shap(many).mean(axis=0), brute_force(game, 6), atol=0.06)


def test_too_few_masks_are_refused_not_guessed_from() -> None:
    bank = shapley_bank(playing(lively(0, 8)), (0,), units_of(8), masks=6, purpose="fit")
    with pytest.raises(DataError, match=r"6 masks tell only 4 of 8 units apart: KernelSHAP needs more masks, some 32"):
        kernel_shap(bank)
    with pytest.raises(ConfigError, match="found masks = 1: at least 2"):
        shapley_bank(playing(lively(0, 8)), (0,), units_of(8), masks=1, purpose="fit")
    with pytest.raises(DataError, match="not drawn by the Shapley kernel"):
        kernel_shap(bernoulli_bank(playing(lively(0, 3)), (0,), units_of(3), masks=9, purpose="fit"))


def test_a_score_that_is_no_number_spoils_its_own_image_only() -> None:
    weights = np.array([1.0, 2.0, 3.0])
    broken = playing(lambda kept: np.full(len(kept), np.nan), linear(weights))
    values = kernel_shap(shapley_bank(broken, (0, 1), units_of(3), masks=6, purpose="fit"))
    assert np.isnan(values[0]).all()
    np.testing.assert_allclose(values[1], weights, atol=1e-10)
    assert np.isnan(patch_ablation(broken, 2, units_of(3))[0]).all()
    assert np.isnan(rise(bernoulli_bank(broken, (0, 1), units_of(3), masks=30, purpose="fit"))[0]).all()


def test_sampled_masks_follow_the_kernel_s_sizes_and_come_with_their_complements() -> None:
    bank = shapley_bank(playing(linear(np.ones(10))), (3,), units_of(10), masks=1000, purpose="fit")
    removed = bank.removed[0]
    np.testing.assert_array_equal(removed[:500], ~removed[500:])
    sizes = np.arange(1, 10)
    expected = 1.0 / (sizes * (10 - sizes))
    found = np.bincount(removed.sum(axis=1), minlength=11)[1:10] / 1000
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.04)
    np.testing.assert_allclose(removed.mean(axis=0), 0.5, atol=1e-12)


@pytest.mark.parametrize("make", [bernoulli_bank, shapley_bank])
def test_masks_belong_to_image_and_purpose_whatever_the_batch(make: Callable[..., Bank]) -> None:
    games = [lively(seed, 9) for seed in range(3)]
    together = make(playing(*games), (7, 8, 9), units_of(9), masks=20, purpose="fit")
    alone = make(playing(games[1]), (8,), units_of(9), masks=20, purpose="fit")
    np.testing.assert_array_equal(together.removed[1], alone.removed[0])
    np.testing.assert_array_equal(together.scores[1], alone.scores[0])
    assert (together.removed[0] != together.removed[1]).any()
    scoring = make(playing(games[1]), (8,), units_of(9), masks=20, purpose="score")
    assert (scoring.removed != alone.removed).any()


def test_a_bank_holds_scores_of_its_masks_and_of_both_ends() -> None:
    game = linear(np.array([1.0, 2.0, 4.0]), 0.5)
    bank = bernoulli_bank(playing(game), (1,), units_of(3), masks=200, share=0.25, purpose="fit")
    np.testing.assert_allclose(bank.scores[0], game(1.0 - bank.removed[0]))
    assert bank.whole.tolist() == [7.5]
    assert bank.empty.tolist() == [0.5]
    assert bank.removed.mean() == pytest.approx(0.25, abs=0.05)
    for masks, share in ((0, 0.5), (5, 0.0), (5, 1.0)):
        with pytest.raises(ConfigError, match=f"found masks = {masks} and share = {share}"):
            bernoulli_bank(playing(game), (1,), units_of(3), masks=masks, share=share, purpose="fit")


def test_rise_of_an_additive_score_is_half_of_all_and_half_of_its_own() -> None:
    weights = np.array([3.0, -1.0, 0.5, 2.0])
    found = rise(all_of(linear(weights, 0.7), 4))
    np.testing.assert_allclose(found, [0.7 + weights.sum() / 2 + weights / 2], atol=1e-12)


def test_rise_is_the_mean_score_of_the_masks_that_keep_a_unit() -> None:
    game = lively(2, 4)
    kept = 1.0 - all_masks(4)
    expected = [game(kept[kept[:, unit] == 1.0]).mean() for unit in range(4)]
    np.testing.assert_allclose(rise(all_of(game, 4))[0], expected, atol=1e-12)


def test_rise_refuses_a_unit_that_no_mask_keeps() -> None:
    removed = np.array([[[True, False], [True, True]]])
    bank = Bank(removed, np.zeros((1, 2)), np.zeros(1), np.zeros(1))
    with pytest.raises(DataError, match="no mask of image 0 keeps unit 0: 2 masks are too few"):
        rise(bank)


SIDE = 10
PIXELS = torch.rand(2, 3, SIDE, SIDE + 2, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.randn(3, SIDE, SIDE + 2, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([1, 0])


def linear_score(pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (pixels * WEIGHTS).flatten(1).sum(dim=1) + targets


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 80, 2)).eval()


def test_ablating_a_patch_of_a_linear_model_takes_its_products_away() -> None:
    units = grid(SIDE, SIDE + 2, 4)
    for operator in ("black", "mean"):
        filling = 0.0 if operator == "black" else PIXELS.mean(dim=(2, 3), keepdim=True)
        expected = units.sums(((PIXELS - filling) * WEIGHTS).sum(dim=1).numpy())
        evaluate = pixel_evaluator(linear_score, PIXELS, TARGETS, units, operator, seeds=(0, 1))
        np.testing.assert_allclose(patch_ablation(evaluate, 2, units), expected, atol=1e-5)


def test_ablating_patches_agrees_with_captum() -> None:
    units, score = grid(SIDE, SIDE + 2, 4), score_of(network())
    evaluate = pixel_evaluator(score, PIXELS, TARGETS, units, "black", seeds=(0, 1))
    with torch.no_grad():
        expected = FeatureAblation(score).attribute(
            PIXELS, additional_forward_args=TARGETS, feature_mask=torch.as_tensor(units.labels)[None]
        )
    found = units.painted(patch_ablation(evaluate, 2, units))
    np.testing.assert_allclose(found, expected[:, 0], atol=1e-5)
    assert np.ptp(found) > 0.02


def occlusion(score: Score, *, window: int, stride: int, operator: Operator, batch: int = 64) -> np.ndarray:
    """(B, H, W) of the shared images."""
    sliding = windows(SIDE, SIDE + 2, window=window, stride=stride)
    evaluate = pixel_evaluator(score, PIXELS, TARGETS, sliding.units, operator, seeds=(0, 1), batch=batch)
    return sliding.units.painted(window_ablation(evaluate, 2, sliding))


@pytest.mark.parametrize(("window", "stride"), [(4, 4), (4, 2), (3, 2), (5, 3), (10, 1), (1, 1)])
def test_sliding_windows_agree_with_captum(window: int, stride: int) -> None:
    score = score_of(network())
    with torch.no_grad():
        expected = Occlusion(score).attribute(
            PIXELS, (3, window, window), strides=(3, stride, stride), additional_forward_args=TARGETS
        )
    found = occlusion(score, window=window, stride=stride, operator="black")
    np.testing.assert_allclose(found, expected[:, 0], atol=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_size_of_a_pass_changes_no_map(batch: int) -> None:
    score = score_of(network())
    for operator in ("blur", "road"):
        whole, parts = (occlusion(score, window=4, stride=3, operator=operator, batch=size) for size in (64, batch))
        np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_windows_are_sets_of_the_cells_their_edges_cut_out() -> None:
    found = windows(4, 5, window=3, stride=2)
    np.testing.assert_array_equal(found.units.labels[0], [0, 0, 1, 2, 2])
    np.testing.assert_array_equal(found.units.labels[:, 0], [0, 0, 3, 6])
    np.testing.assert_array_equal(found.members[0], [1, 1, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.members[3], [0, 0, 0, 0, 1, 1, 0, 1, 1])
    assert len(found.members) == 4


def test_windows_that_leave_pixels_out_are_refused() -> None:
    for window, stride in ((5, 1), (3, 4), (3, 0)):
        with pytest.raises(
            ConfigError, match=f"found a window of {window} px and a stride of {stride} for an image of"
        ):
            windows(4, 9, window=window, stride=stride)
