"""Calibration against worked examples, scikit-learn, exact identities and its behaviour when everything is right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.calibration import (
    brier,
    brier_parts,
    ece,
    ece_null,
    reliability,
    squared_calibration_error,
    top_label,
)

quick = settings(deadline=None, max_examples=30)


def calibrated(rng: np.random.Generator, cases: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities from Beta(1, 3) and outcomes that follow them."""
    probabilities = rng.beta(1, 3, cases)
    return probabilities, rng.random(cases) < probabilities, np.arange(cases)


def plain_ece(*cases: np.ndarray, bins: int = 15) -> float:
    return ece(*cases, rng=np.random.default_rng(0), bins=bins, resamples=2).value or 0.0


def test_the_last_bin_holds_a_probability_of_one() -> None:
    cases = (np.array([0.95, 1.0]), np.array([1, 0]), np.arange(2))
    assert plain_ece(*cases) == pytest.approx(0.475, abs=1e-12)
    (only,) = reliability(*cases)
    assert (only.lower, only.upper, only.predicted, only.cases) == pytest.approx((14 / 15, 1.0, 0.975, 2))


def test_an_inner_edge_belongs_to_the_bin_above() -> None:
    bins = reliability(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), np.array([0, 0, 1, 1, 1]), np.arange(5), bins=4)
    assert [(part.lower, part.cases) for part in bins] == [(0.0, 1), (0.25, 1), (0.5, 1), (0.75, 2)]


@pytest.mark.parametrize(("probability", "hits", "expected"), [(0.8, 10, 0.2), (0.7, 7, 0.0), (1.0, 10, 0.0)])
def test_ece_of_one_probability_is_its_distance_from_the_rate(probability: float, hits: int, expected: float) -> None:
    value = plain_ece(np.full(10, probability), np.arange(10) < hits, np.arange(10))
    assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("strategy", "named"), [("width", "uniform"), ("mass", "quantile")])
def test_reliability_agrees_with_scikit_learn(strategy: str, named: str) -> None:
    probabilities, outcomes, patients = calibrated(np.random.default_rng(0), 1000)
    observed, predicted = calibration_curve(outcomes, probabilities, n_bins=10, strategy=named)
    bins = reliability(probabilities, outcomes, patients, bins=10, strategy=strategy)
    assert [part.predicted for part in bins] == pytest.approx(list(predicted))
    assert [part.observed.value for part in bins] == pytest.approx(list(observed))
    assert sum(part.cases for part in bins) == 1000


def test_bins_of_equal_mass_keep_equal_probabilities_together() -> None:
    probabilities = np.repeat([0.2, 0.6], [90, 10])
    bins = reliability(probabilities, np.zeros(100), np.arange(100), bins=5, strategy="mass")
    assert [(part.predicted, part.cases) for part in bins] == [(pytest.approx(0.2), 90), (pytest.approx(0.6), 10)]


def test_ece_intervals_are_by_patient() -> None:
    cases = calibrated(np.random.default_rng(0), 120)
    once = ece(*cases, rng=np.random.default_rng(1), resamples=200)
    copied = ece(*(np.repeat(part, 5) for part in cases), rng=np.random.default_rng(1), resamples=200)
    assert copied[:4] == pytest.approx(once[:4], abs=1e-12)
    null = [
        ece_null(*parts, rng=np.random.default_rng(1), draws=200)
        for parts in (cases, tuple(np.repeat(part, 5) for part in cases))
    ]
    assert null[0] == pytest.approx(null[1], abs=1e-12)
    debiased = [
        squared_calibration_error(*parts, rng=np.random.default_rng(1), resamples=200)
        for parts in (cases, tuple(np.repeat(part, 5) for part in cases))
    ]
    assert debiased[0] == pytest.approx(debiased[1], abs=1e-12)


@pytest.mark.parametrize(("cases", "expected"), [(50, 0.118), (200, 0.061), (1000, 0.027), (5000, 0.012)])
def test_ece_of_a_perfect_model_is_not_zero_and_its_null_says_so(cases: int, expected: float) -> None:
    rng = np.random.default_rng(0)
    datasets = [calibrated(rng, cases) for _ in range(20)]
    null = [ece_null(*parts, rng=rng, bins=10, draws=50) for parts in datasets]
    assert np.mean([chance.mean for chance in null if chance]) == pytest.approx(expected, rel=0.1)
    assert np.mean([plain_ece(*parts, bins=10) for parts in datasets]) == pytest.approx(expected, rel=0.2)


def test_small_calibrated_groups_are_not_flagged() -> None:
    rng = np.random.default_rng(0)
    chances = [ece_null(*calibrated(rng, 80), rng=rng, bins=10, draws=99) for _ in range(300)]
    p_values = [chance.p_value for chance in chances if chance]
    assert stats.kstest(np.array(p_values) - 0.005, "uniform").pvalue > 0.01


def test_a_miscalibrated_model_is_beyond_chance() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0, 1, 400)
    outcomes = rng.random(400) < probabilities**3
    null = ece_null(probabilities, outcomes, np.arange(400), rng=rng, draws=199)
    assert null is not None
    assert null.low < null.mean < null.high < plain_ece(probabilities, outcomes, np.arange(400))
    assert null.p_value == 1 / 200


def test_images_of_one_patient_are_drawn_together() -> None:
    # Twenty images of each of twenty patients, all with the patient's outcome: the error by chance is that of twenty.
    rng = np.random.default_rng(0)
    probabilities = np.full(400, 0.5)
    own = rng.random(20) < 0.5
    clustered = ece_null(probabilities, np.repeat(own, 20), np.repeat(np.arange(20), 20), rng=rng, draws=2000)
    few = ece_null(probabilities[:20], own, np.arange(20), rng=rng, draws=2000)
    assert clustered is not None
    assert few is not None
    assert clustered.mean == pytest.approx(few.mean, abs=0.006)
    assert few.mean == pytest.approx(stats.binom(20, 0.5).expect(lambda hits: abs(hits / 20 - 0.5)), abs=0.005)


def test_debiased_error_of_a_perfect_model_is_zero_on_average() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(400):
        estimate = squared_calibration_error(*calibrated(rng, 100), rng=rng, bins=10, resamples=2)
        errors.append(estimate.value or 0.0)
    assert np.mean(errors) == pytest.approx(0.0, abs=3 * np.std(errors) / 20)
    assert min(errors) < 0


def test_debiased_error_finds_the_planted_one() -> None:
    rng = np.random.default_rng(0)
    errors, inside = [], []
    for _ in range(150):
        probabilities = np.repeat([0.3, 0.7], 100)
        outcomes = rng.random(200) < probabilities + 0.1
        estimate = squared_calibration_error(probabilities, outcomes, np.arange(200), rng=rng, resamples=200)
        errors.append(estimate.value or 0.0)
        inside.append((estimate.low or 0) <= 0.01 <= (estimate.high or 0))
    assert np.mean(errors) == pytest.approx(0.01, abs=3 * np.std(errors) / np.sqrt(150))
    assert np.mean(inside) > 0.85


def test_reasons_and_refusals() -> None:
    rng = np.random.default_rng(0)
    nothing = np.array([])
    assert reliability(nothing, nothing, nothing) == ()
    assert ece_null(nothing, nothing, nothing, rng=rng) is None
    assert brier_parts(nothing, nothing) is None
    assert ece(nothing, nothing, nothing, rng=rng).reason == "no cases"
    one = (np.array([0.5, 0.5]), np.array([0, 1]), np.zeros(2))
    assert ece(*one, rng=rng).reason == "fewer than 2 patients"
    assert squared_calibration_error(*one, rng=rng).reason == "fewer than 2 patients"
    spread = (np.array([0.1, 0.9]), np.array([0, 1]), np.arange(2))
    assert squared_calibration_error(*spread, rng=rng).reason == "fewer than 2 patients in every bin"
    with pytest.raises(ModelError, match=r"1 probabilities lie outside \[0, 1\], such as 3.0; apply softmax"):
        reliability(np.array([0.5, 3.0]), np.array([0, 1]), np.arange(2))
    with pytest.raises(ModelError, match="such as nan"):
        reliability(np.array([0.5, np.nan]), np.array([0, 1]), np.arange(2))
    with pytest.raises(DataError, match=r"2 outcomes came with probabilities of shape \(3,\)"):
        reliability(np.zeros(3), np.array([0, 1]), np.arange(3))
    with pytest.raises(ConfigError, match="0 calibration bins is too few"):
        reliability(*spread, bins=0)
    with pytest.raises(ConfigError, match="calibration bins 'even' are not known; use 'width' or 'mass'"):
        reliability(*spread, strategy="even")


@quick
@given(st.integers(0, 10**6), st.sampled_from([None, 5, 15]))
def test_brier_is_the_sum_of_its_parts(seed: int, bins: int | None) -> None:
    rng = np.random.default_rng(seed)
    probabilities, outcomes, _ = calibrated(rng, 60)
    parts = brier_parts(np.round(probabilities, 1) if bins is None else probabilities, outcomes, bins=bins)
    assert parts is not None
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bins
    assert parts.brier == pytest.approx(total, abs=1e-12)
    assert bins is not None or parts.within_bins == pytest.approx(0, abs=1e-15)


def test_brier_parts_of_a_worked_example() -> None:
    # Said 0.2: 1 of 4 happened. Said 0.8: 4 of 4 happened.
    parts = brier_parts(np.repeat([0.2, 0.8], 4), np.array([1, 0, 0, 0, 1, 1, 1, 1]))
    assert parts == pytest.approx((0.115, (0.05**2 + 0.2**2) / 2, 0.375**2, 0.625 * 0.375, 0.0))


def test_brier_agrees_with_scikit_learn_and_the_mean_of_several_classes() -> None:
    rng = np.random.default_rng(0)
    probabilities, outcomes, patients = calibrated(rng, 300)
    estimate = brier(probabilities, outcomes, patients, rng=rng, resamples=2000)
    squared = (probabilities - outcomes) ** 2
    half = 1.96 * squared.std() / np.sqrt(300)
    assert estimate.value == pytest.approx(brier_score_loss(outcomes, probabilities))
    assert (estimate.low, estimate.high) == pytest.approx((squared.mean() - half, squared.mean() + half), abs=0.002)
    both = np.column_stack([1 - probabilities, probabilities])
    doubled = brier(both, outcomes.astype(int), patients, rng=rng, resamples=2)
    assert doubled.value == pytest.approx(2 * (estimate.value or 0))
    assert brier(both[:0], outcomes[:0], patients[:0], rng=rng).reason == "no cases"


def test_top_label_is_the_confidence_in_the_class_named() -> None:
    confidence, right = top_label(np.array([[0.2, 0.5, 0.3], [0.6, 0.4, 0.0]]), np.array([1, 2]))
    assert confidence.tolist() == [0.5, 0.6]
    assert right.tolist() == [True, False]
