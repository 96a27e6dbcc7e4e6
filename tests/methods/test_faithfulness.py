"""Removal curves and correlations on models whose answer to a removal is known, then planted effects and laws."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import pearsonr
from sklearn.metrics import auc

from xvision.errors import ConfigError, DataError
from xvision.methods.faithfulness import (
    Curves,
    aopc,
    as_probability,
    curves,
    curves_of,
    deletion_auc,
    faithfulness_correlation,
    infidelity,
    insertion,
    insertion_auc,
    srg,
)
from xvision.methods.units import Evaluate

PARTS = np.array([[3.0, -1.0, 0.5, 2.0, -2.5]])
"""What each of five units adds to the score of a linear model, w * x."""
BIAS = 0.7


class Additive:
    """A model whose score is a bias and what the units that are left add to it; counts what it is asked."""

    def __init__(self, parts: np.ndarray) -> None:
        self.parts = parts
        self.calls, self.asked = 0, 0

    def __call__(self, rows: np.ndarray, removed: np.ndarray) -> np.ndarray:
        assert removed.dtype == np.bool_
        assert removed.shape == (len(rows), self.parts.shape[1])
        self.calls, self.asked = self.calls + 1, self.asked + len(rows)
        return BIAS + np.where(removed, 0.0, self.parts[rows]).sum(axis=1)


def interacting(parts: np.ndarray):
    """A model with a product of two neighbours, so that order matters."""

    def evaluate(rows: np.ndarray, removed: np.ndarray) -> np.ndarray:
        left = np.where(removed, 0.0, parts[rows])
        return np.tanh(left.sum(axis=1)) + (left[:, 1:] * left[:, :-1]).sum(axis=1)

    return evaluate


def random_parts(images: int, units: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(images, units))


def test_the_curve_of_a_linear_model_falls_by_the_sorted_contributions() -> None:
    found = curves(Additive(PARTS), PARTS, steps=5)
    np.testing.assert_allclose(found.fractions, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(found.most_first, [[2.7, -0.3, -2.3, -2.8, -1.8, 0.7]], atol=1e-12)
    np.testing.assert_allclose(found.least_first, [[2.7, 5.2, 6.2, 5.7, 3.7, 0.7]], atol=1e-12)
    total = PARTS.sum() + BIAS
    np.testing.assert_allclose(found.most_first[0, 1:], total - np.cumsum(-np.sort(-PARTS[0])), atol=1e-12)
    assert found.most_first[0, -1] == pytest.approx(BIAS, abs=1e-12)


def test_the_order_of_the_map_is_the_best_of_all_120() -> None:
    ranks = np.array([[4.0 - order.index(unit) for unit in range(5)] for order in permutations(range(5))])
    every = curves(Additive(np.repeat(PARTS, 120, axis=0)), ranks, steps=5)
    areas, gains = deletion_auc(every), srg(every)
    assert list(permutations(range(5)))[int(np.argmin(areas))] == (0, 3, 2, 1, 4)
    assert (areas <= areas.min() + 1e-12).sum() == 1
    assert int(np.argmax(gains)) == int(np.argmin(areas))
    assert deletion_auc(curves(Additive(PARTS), PARTS, steps=5))[0] == pytest.approx(areas.min(), abs=1e-12)


def test_every_figure_of_the_two_curves_by_hand() -> None:
    found = curves(Additive(PARTS), PARTS, steps=5)
    assert deletion_auc(found)[0] == pytest.approx(-1.1, abs=1e-12)
    assert insertion_auc(found)[0] == pytest.approx(4.5, abs=1e-12)
    assert srg(found)[0] == pytest.approx(5.6, abs=1e-12)
    assert aopc(found)[0] == pytest.approx((3.0 + 5.0 + 5.5 + 4.5 + 2.0) / 6, abs=1e-12)


def test_areas_agree_with_another_implementation() -> None:
    parts = random_parts(6, 17)
    found = curves(interacting(parts), random_parts(6, 17, 1), steps=7)
    for row in range(6):
        assert deletion_auc(found)[row] == pytest.approx(auc(found.fractions, found.most_first[row]), abs=1e-12)
        assert insertion_auc(found)[row] == pytest.approx(auc(found.fractions, found.least_first[row]), abs=1e-12)


def test_inserting_is_removing_the_least_important_read_backwards() -> None:
    """With ties too: what is inserted is evaluated directly, most important first, equal ones by position."""
    parts, ranks = random_parts(4, 12), np.random.default_rng(3).integers(0, 4, (4, 12)).astype(float)
    model = interacting(parts)
    line = insertion(curves(model, ranks, steps=12))
    order = np.argsort(-ranks, axis=1, kind="stable")
    for inserted in range(13):
        removed = np.ones((4, 12), dtype=bool)
        np.put_along_axis(removed, order[:, :inserted], False, axis=1)
        np.testing.assert_allclose(line.values[:, inserted], model(np.arange(4), removed), atol=1e-12)
    np.testing.assert_allclose(line.fractions, np.arange(13) / 12)


def test_without_ties_the_turned_map_swaps_the_curves() -> None:
    parts, values = random_parts(5, 20), random_parts(5, 20, 1)
    one, other = (curves(interacting(parts), sign * values, steps=8) for sign in (1, -1))
    np.testing.assert_array_equal(one.most_first, other.least_first)
    np.testing.assert_allclose(srg(one), -srg(other), atol=1e-12)


def test_equally_important_units_go_by_position() -> None:
    found = curves(Additive(PARTS), np.array([[1.0, 1.0, 1.0, 1.0, 0.0]]), steps=5)
    np.testing.assert_allclose(found.most_first[0], [2.7, -0.3, 0.7, 0.2, -1.8, 0.7], atol=1e-12)
    np.testing.assert_allclose(found.least_first[0], [2.7, 5.2, 3.2, 2.7, 3.7, 0.7], atol=1e-12)


@pytest.mark.parametrize(("units", "steps", "made"), [(5, 50, 5), (196, 20, 20), (7, 3, 3), (2, 2, 2)])
def test_steps_are_equal_up_to_rounding_and_never_more_than_the_units(units: int, steps: int, made: int) -> None:
    found = curves(Additive(random_parts(2, units)), random_parts(2, units, 1), steps=steps)
    counts = found.fractions * units
    assert counts.shape == (made + 1,)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
    np.testing.assert_array_equal(np.round(counts), np.floor(np.arange(made + 1) * units / made + 0.5))
    assert (found.fractions[0], found.fractions[-1]) == (0.0, 1.0)


def test_methods_share_one_call_and_what_they_have_in_common() -> None:
    """Both ends once per image; a second method that ranks alike costs nothing."""
    parts = random_parts(3, 8)
    model = Additive(parts)
    found = curves_of(model, {"one": parts, "same": 5.0 * parts, "turned": -parts}, steps=8)
    assert model.calls == 1
    assert model.asked == 3 * (2 + 2 * 7)
    alone = curves(Additive(parts), parts, steps=8)
    for name in ("one", "same"):
        np.testing.assert_array_equal(found[name].most_first, alone.most_first)
        np.testing.assert_array_equal(found[name].least_first, alone.least_first)
    np.testing.assert_array_equal(found["turned"].most_first, alone.least_first)


def test_a_map_that_ranks_nothing_has_no_curve_and_costs_nothing() -> None:
    parts = random_parts(3, 6)
    values = parts.copy()
    values[0], values[1, 2] = 4.0, np.nan
    model = Additive(parts)
    found = curves(model, values, steps=6)
    assert model.asked == 2 + 2 * 5
    for figure in (deletion_auc, insertion_auc, aopc, srg):
        np.testing.assert_array_equal(np.isnan(figure(found)), [True, True, False])
    np.testing.assert_array_equal(found.most_first[2], curves(Additive(parts), parts, steps=6).most_first[2])
    nothing = curves(model, np.zeros((3, 6)), steps=6)
    np.testing.assert_array_equal(nothing.most_first, np.full((3, 7), np.nan))


def test_an_infinite_score_leaves_only_its_own_case_undefined() -> None:
    parts = random_parts(2, 4)
    parts[0, 1] = np.inf
    found = curves(Additive(parts), random_parts(2, 4, 1), steps=4)
    np.testing.assert_array_equal(np.isnan(srg(found)), [True, False])
    removed = random_subsets(2, 4, 9)
    drops = random_parts(2, 9, 2)
    drops[0, 3] = np.inf
    found = faithfulness_correlation(random_parts(2, 4, 1), removed, drops)
    np.testing.assert_array_equal(np.isnan(found), [True, False])


def test_probabilities_are_the_logistic_function_of_log_odds() -> None:
    found = Curves(np.array([0.0, 1.0]), np.array([[np.log(3.0), 0.0]]), np.array([[np.log(3.0), -np.log(9.0)]]))
    chances = as_probability(found)
    np.testing.assert_allclose(chances.most_first, [[0.75, 0.5]], atol=1e-15)
    np.testing.assert_allclose(chances.least_first, [[0.75, 0.1]], atol=1e-15)
    np.testing.assert_allclose(srg(chances), [(0.75 + 0.1) / 2 - (0.75 + 0.5) / 2], atol=1e-15)
    parts = random_parts(3, 9)
    np.testing.assert_allclose(
        as_probability(curves(Additive(parts), parts, steps=9)).most_first,
        curves(lambda rows, removed: expit(Additive(parts)(rows, removed)), parts, steps=9).most_first,
    )


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
def test_a_positive_scale_changes_no_ranking_figure(seed: int, scale: float) -> None:
    parts, values = random_parts(3, 9, seed), random_parts(3, 9, seed + 1)
    one, other = (curves(interacting(parts), factor * values, steps=5) for factor in (1.0, scale))
    np.testing.assert_array_equal(one.most_first, other.most_first)
    np.testing.assert_array_equal(one.least_first, other.least_first)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(4)))
def test_results_follow_the_images_whatever_their_batch(seed: int, order: list[int]) -> None:
    parts, values = random_parts(4, 9, seed), random_parts(4, 9, seed + 1)
    removed = random_subsets(4, 9, 20)

    def figures(rows: list[int]) -> list[np.ndarray]:
        model = interacting(parts[rows])
        drops = drops_of(model, removed[rows])
        found = curves(model, values[rows], steps=5)
        judged = [faithfulness_correlation, infidelity]
        return [srg(found), *(figure(values[rows], removed[rows], drops) for figure in judged)]

    for whole, permuted, alone in zip(figures([0, 1, 2, 3]), figures(order), figures([2]), strict=True):
        np.testing.assert_allclose(permuted, whole[order], atol=1e-12)
        np.testing.assert_allclose(alone, whole[[2]], atol=1e-12)


def random_subsets(images: int, units: int, samples: int) -> np.ndarray:
    """(B, S, P) bool, drawn image by image."""
    return np.stack([np.random.default_rng(image).random((samples, units)) < 0.4 for image in range(images)])


def drops_of(evaluate: Evaluate, removed: np.ndarray) -> np.ndarray:
    """(B, S) fall of the score by each subset."""
    images, subsets, units = removed.shape
    rows = np.arange(images)
    left = evaluate(np.repeat(rows, subsets), removed.reshape(-1, units)).reshape(images, subsets)
    return evaluate(rows, np.zeros((images, units), dtype=bool))[:, None] - left


def bank(images: int = 4, units: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = random_parts(images, units)
    removed = random_subsets(images, units, 80)
    return parts, removed, drops_of(Additive(parts), removed)


def test_contributions_to_a_linear_model_correlate_perfectly_with_its_drops() -> None:
    parts, removed, drops = bank()
    np.testing.assert_allclose(faithfulness_correlation(parts, removed, drops), 1.0, atol=1e-12)
    np.testing.assert_allclose(faithfulness_correlation(-3.0 * parts, removed, drops), -1.0, atol=1e-12)


def test_correlations_agree_with_another_implementation() -> None:
    parts, removed, _ = bank()
    values, drops = random_parts(4, 12, 7), drops_of(interacting(parts), removed)
    found = faithfulness_correlation(values, removed, drops)
    for row in range(4):
        sums = np.array([values[row, chosen].sum() for chosen in removed[row]])
        assert found[row] == pytest.approx(pearsonr(sums, drops[row]).statistic, abs=1e-12)


def test_a_correlation_with_nothing_that_varies_is_not_a_number() -> None:
    parts, removed, drops = bank()
    assert np.isnan(faithfulness_correlation(np.full((4, 12), 0.1), removed, drops)).all()
    assert np.isnan(faithfulness_correlation(np.zeros((4, 12)), removed, drops)).all()
    assert np.isnan(faithfulness_correlation(parts, removed, np.full(drops.shape, 0.3))).all()
    assert np.isnan(faithfulness_correlation(parts, removed[:, :2], drops[:, :2])).all()
    assert np.isnan(faithfulness_correlation(parts, removed[:, :0], drops[:, :0])).all()


def test_sums_that_differ_by_rounding_do_not_vary() -> None:
    """Unit values 0.1 and 0.3, subsets of one of each: every sum is 0.4 up to rounding."""
    removed = np.eye(6, dtype=bool) | np.roll(np.eye(6, dtype=bool), 3, axis=1)
    values = np.array([[0.1, 0.1, 0.1, 0.3, 0.3, 0.3]])
    assert np.isnan(faithfulness_correlation(values, removed[None], random_parts(1, 6))).all()


def test_infidelity_of_a_linear_model_is_zero_for_its_contributions() -> None:
    parts, removed, drops = bank()
    np.testing.assert_allclose(infidelity(parts, removed, drops, normalised=False), 0.0, atol=1e-20)
    twice = infidelity(2.0 * parts, removed, drops, normalised=False)
    np.testing.assert_allclose(twice, (drops**2).mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(infidelity(2.0 * parts, removed, drops), 0.0, atol=1e-20)


def test_infidelity_of_twice_the_gradient_under_gaussian_noise() -> None:
    """a = 2w misses I.w, whose mean square is sigma^2 |w|^2."""
    weights, sigma, samples = random_parts(1, 30), 0.3, 20_000
    noise = np.random.default_rng(0).normal(0.0, sigma, (1, samples, 30))
    drops = noise @ weights[0]
    expected = sigma**2 * (weights**2).sum()
    found = infidelity(2.0 * weights, noise, drops, normalised=False)[0]
    assert found == pytest.approx(expected, abs=4 * expected * np.sqrt(2 / samples))
    np.testing.assert_allclose(infidelity(weights, noise, drops, normalised=False), 0.0, atol=1e-20)
    np.testing.assert_allclose(infidelity(2.0 * weights, noise, drops), 0.0, atol=1e-20)


def test_infidelity_is_the_quadratic_form_of_the_perturbations() -> None:
    """For a linear model it is (a - w)' E[I I'] (a - w), and the best scale minimises it."""
    weights, values = random_parts(1, 6), random_parts(1, 6, 1)
    noise = np.random.default_rng(2).normal(size=(1, 50, 6)) * np.arange(1, 7)
    second, drops = noise[0].T @ noise[0] / 50, noise @ weights[0]

    def form(scale: float) -> float:
        miss = scale * values[0] - weights[0]
        return float(miss @ second @ miss)

    assert infidelity(values, noise, drops, normalised=False)[0] == pytest.approx(form(1.0), rel=1e-12)
    best = (values[0] @ second @ weights[0]) / (values[0] @ second @ values[0])
    assert infidelity(values, noise, drops)[0] == pytest.approx(form(best), rel=1e-12)
    assert form(best) < min(form(best + 0.01), form(best - 0.01))


def test_a_map_of_zeros_misses_all_of_the_drops() -> None:
    parts, removed, drops = bank()
    for normalised in (True, False):
        found = infidelity(np.zeros_like(parts), removed, drops, normalised=normalised)
        np.testing.assert_allclose(found, (drops**2).mean(axis=1), atol=1e-12)


def test_planted_evidence_is_recognised_and_noise_is_not() -> None:
    """One unit of 25 carries the score: a map that finds it wins nearly everything, random maps win nothing on average."""
    parts = np.full((200, 25), 0.01)
    parts[:, 11] = 4.0
    noise = np.random.default_rng(0).random((200, 25))
    found = curves_of(Additive(parts), {"true": parts, "noise": noise}, steps=25)
    gains = {name: srg(as_probability(each)) for name, each in found.items()}
    assert (gains["true"] > 0.25).all()
    assert abs(gains["noise"].mean()) < 4 * gains["noise"].std() / np.sqrt(200)


def test_wrong_shapes_and_options_are_named() -> None:
    parts, removed, drops = bank()
    with pytest.raises(ConfigError, match="found steps = 1: a removal curve needs at least 2"):
        curves(Additive(parts), parts, steps=1)
    with pytest.raises(DataError, match=r"found values of one \(4, 12\), two \(3, 12\): every method needs the same"):
        curves_of(Additive(parts), {"one": parts, "two": parts[:3]}, steps=4)
    with pytest.raises(DataError, match="found values of no method"):
        curves_of(Additive(parts), {}, steps=4)
    with pytest.raises(DataError, match=r"found values of map \(4, 3, 4\)"):
        curves(Additive(parts), parts.reshape(4, 3, 4), steps=4)
    with pytest.raises(DataError, match=r"found values of map \(4, 0\)"):
        curves(Additive(parts), parts[:, :0], steps=4)
    with pytest.raises(DataError, match=r"found values of shape \(4, 11\), removed units of \(4, 80, 12\)"):
        infidelity(parts[:, 1:], removed, drops)


@pytest.mark.parametrize("units", [1, 3])
def test_one_image_of_few_units(units: int) -> None:
    parts = random_parts(1, units)
    found = curves(Additive(parts), parts, steps=10)
    assert np.isnan(srg(found)).all() == (units == 1)


def test_no_image_at_all() -> None:
    found = curves(Additive(np.zeros((0, 4))), np.zeros((0, 4)), steps=4)
    assert srg(found).shape == (0,)
