"""Calibration against worked examples, scikit-learn, exact identities and its behaviour when everything is right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.calibration import calibration_curve

from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.calibration import (
    Strategy,
    calibrated_by_chance,
    ece,
    ece_change,
    ece_null,
    mce,
    reliability,
    root_of_squared,
    squared_calibration_error,
    top_label,
)
from xvision.methods.intervals import Estimate, not_estimable

quick = settings(deadline=None, max_examples=30)


def calibrated(rng: np.random.Generator, cases: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities from Beta(1, 3) and outcomes that follow them."""
    probabilities = rng.beta(1, 3, cases)
    return probabilities, rng.random(cases) < probabilities, np.arange(cases)


def plain_ece(*cases: np.ndarray, bins: int = 15) -> float:
    return ece(*cases, rng=np.random.default_rng(0), bins=bins, resamples=2).value or 0.0


def test_the_last_bin_holds_a_probability_of_one() -> None:
    # Both fall into (14/15, 1], where 0.975 is said on average and 1 of 2 happens: 0.475. torchmetrics 1.9 says 0.525, because
    # it puts 1.0 into a sixteenth bin of its own, |0.95 - 1| / 2 + |1 - 0| / 2; a range of probabilities that ends at 1 has
    # no such bin, so the figure of scikit-learn's bins, the one here, is right.
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


@pytest.mark.parametrize(("cases", "expected"), [(100, 0.118), (1000, 0.0385), (10_000, 0.0122)])
def test_plug_in_error_of_a_calibrated_model_by_size(cases: int, expected: float) -> None:
    # Probabilities spread evenly, 15 bins of equal width: what chance alone makes of a model without any error.
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0, 1, cases)
    chance = calibrated_by_chance(
        probabilities, rng.random(cases) < probabilities, np.arange(cases), rng=rng, draws=300
    )
    assert chance is not None
    assert chance.ece.mean == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(("cases", "expected"), [(50, 0.118), (200, 0.061), (1000, 0.027), (5000, 0.012)])
def test_ece_of_a_perfect_model_is_not_zero_and_its_null_says_so(cases: int, expected: float) -> None:
    rng = np.random.default_rng(0)
    datasets = [calibrated(rng, cases) for _ in range(20)]
    null = [ece_null(*parts, rng=rng, bins=10, draws=50) for parts in datasets]
    assert np.mean([chance.mean for chance in null if chance]) == pytest.approx(expected, rel=0.1)
    assert np.mean([plain_ece(*parts, bins=10) for parts in datasets]) == pytest.approx(expected, rel=0.2)


def test_largest_error_is_that_of_the_worst_bin_and_is_read_beside_its_chance() -> None:
    # Said 0.1: 1 of 10. Said 0.9: 5 of 10.
    probabilities, outcomes = np.repeat([0.1, 0.9], 10), np.array([1] + 9 * [0] + 5 * [1] + 5 * [0])
    found = mce(probabilities, outcomes, np.arange(20), rng=np.random.default_rng(0), bins=5)
    assert found.value == pytest.approx(0.4, abs=1e-12)
    assert found.low is not None
    assert found.low < 0.4 < (found.high or 0)
    rng = np.random.default_rng(0)
    errors, p_values = [], []
    for _ in range(100):
        cases = calibrated(rng, 100)
        chance = calibrated_by_chance(*cases, rng=rng, bins=10, draws=99)
        assert chance is not None
        errors.append((mce(*cases, rng=rng, bins=10, resamples=2).value or 0.0) - chance.mce.mean)
        p_values.append(chance.mce.p_value)
    assert np.mean(errors) == pytest.approx(0.0, abs=3 * np.std(errors) / 10)
    assert np.mean(np.array(p_values) <= 0.1) <= 0.1 + 3 * 0.03  # not uniform: one case alone in a bin makes many ties


def test_ece_change_is_the_difference_and_its_interval_is_paired() -> None:
    rng = np.random.default_rng(0)
    chances, outcomes, patients = calibrated(rng, 300)
    before, after = chances**3, chances**2.5
    found = ece_change(before, after, outcomes, patients, rng=rng)
    assert found.value == pytest.approx(plain_ece(after, outcomes, patients) - plain_ece(before, outcomes, patients))
    width = (found.high or 0) - (found.low or 0)
    alone = ece(after, outcomes, patients, rng=rng)
    assert width < (alone.high or 0) - (alone.low or 0)
    same = ece_change(before, before, outcomes, patients, rng=rng)
    assert same[:3] == (0.0, 0.0, 0.0)
    assert ece_change(before[:0], before[:0], outcomes[:0], patients[:0], rng=rng).reason == "no cases"


def test_band_of_a_calibrated_model_is_that_of_the_binomial() -> None:
    rng = np.random.default_rng(0)
    probabilities = np.repeat([0.2, 0.7], [50, 100])
    found = calibrated_by_chance(probabilities, np.zeros(150), np.arange(150), rng=rng, draws=20_000)
    assert found is not None
    expected = [stats.binom(n, p).ppf([0.025, 0.975]) / n for n, p in ((50, 0.2), (100, 0.7))]
    assert np.array(found.bands) == pytest.approx(np.array(expected), abs=0.0101)
    bins = reliability(probabilities, np.zeros(150), np.arange(150))
    assert len(bins) == len(found.bands)


def test_root_of_the_debiased_error_keeps_the_scale_and_its_width() -> None:
    assert root_of_squared(Estimate(0.04, 0.01, 0.09, 5, "x"))[:3] == pytest.approx((0.2, 0.1, 0.3))
    assert root_of_squared(Estimate(-0.02, -0.05, -0.01, 5, "x"))[:3] == pytest.approx((0.0, 0.0, 0.1))
    assert root_of_squared(not_estimable("no cases")).reason == "no cases"


@quick
@given(st.integers(0, 10**6), st.sampled_from(["width", "mass"]))
def test_order_of_cases_changes_nothing(seed: int, strategy: Strategy) -> None:
    rng = np.random.default_rng(seed)
    cases = calibrated(rng, 40)
    order = rng.permutation(40)
    first, second = (
        [
            measure(*parts, rng=np.random.default_rng(0), bins=8, strategy=strategy, resamples=20)[:4]
            for measure in (ece, mce, squared_calibration_error)
        ]
        for parts in (cases, tuple(part[order] for part in cases))
    )
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, abs=1e-12)


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
    assert ece(nothing, nothing, nothing, rng=rng).reason == "no cases"
    assert mce(nothing, nothing, nothing, rng=rng).reason == "no cases"
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


def test_top_label_is_the_confidence_in_the_class_named() -> None:
    confidence, right = top_label(np.array([[0.2, 0.5, 0.3], [0.6, 0.4, 0.0]]), np.array([1, 2]))
    assert confidence.tolist() == [0.5, 0.6]
    assert right.tolist() == [True, False]


def test_the_range_of_chance_holds_its_mean() -> None:
    """Rare events: few draws have one, and these have a large error."""
    found = ece_null(np.full(10, 1e-3), np.zeros(10, int), np.arange(10), rng=np.random.default_rng(0))
    assert found is not None
    assert found.low <= found.mean <= found.high
