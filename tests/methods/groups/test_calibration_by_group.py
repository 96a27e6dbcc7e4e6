"""Calibration of groups: exact residuals, small calibrated groups left in peace, planted miscalibration found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit
from sklearn.metrics import brier_score_loss
from statsmodels.stats.multitest import multipletests

from xvision.errors import DataError, ModelError
from xvision.methods.calibration import ece_null, root_of_squared, squared_calibration_error
from xvision.methods.groups.calibration_by_group import (
    GroupCalibration,
    calibration_by_group,
    calibration_in_the_large,
    in_the_large_gap,
    in_the_large_gaps,
)
from xvision.methods.groups.gaps import group_gaps
from xvision.methods.intervals import bootstrap
from xvision.methods.recalibration import calibration_slope_intercept

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def streams(seed: int) -> Callable[[str], np.random.Generator]:
    return lambda name: np.random.default_rng([seed, *name.encode()])


def calibrated(sizes: dict[str, int], rng: np.random.Generator, factor: float = 1.0) -> Columns:
    """Probabilities from Beta(1, 3) that come true; in group "sharp" their log-odds are then multiplied by ``factor``."""
    groups = np.repeat(list(sizes), list(sizes.values()))
    risk = rng.beta(1, 3, len(groups))
    said = np.where(groups == "sharp", expit(factor * logit(risk)), risk)
    return said, rng.random(len(groups)) < risk, groups, np.arange(len(groups))


def rows(columns: Columns, seed: int = 0, **options: int) -> dict[str, GroupCalibration]:
    found = calibration_by_group(*columns, rng=streams(seed), **({"resamples": 100, "draws": 200} | options))
    return {each.group: each for each in found}


@pytest.mark.parametrize(("cases", "error"), [(50, 0.118), (200, 0.061), (1000, 0.027), (5000, 0.012)])
def test_the_error_of_a_calibrated_group_grows_as_it_shrinks(cases: int, error: float) -> None:
    rng = np.random.default_rng(cases)
    draws = [calibrated({"A": cases}, rng) for _ in range(max(2, 4000 // cases))]
    means = [ece_null(p, y, who, rng=rng, bins=10, draws=50) for p, y, _, who in draws]
    assert np.mean([each.mean for each in means if each]) == pytest.approx(error, rel=0.1)


def test_small_calibrated_groups_are_not_flagged() -> None:
    rng = np.random.default_rng(28)
    found = [rows(calibrated({"A": 60, "B": 240}, rng), seed, resamples=2, minimum=2) for seed in range(80)]
    for name in "AB":
        p_values = [each[name].chance.p_value for each in found if each[name].chance]
        assert len(p_values) > 75
        assert stats.kstest(p_values, "uniform").pvalue > 0.01
    any_flag = np.mean([min(each[name].adjusted_p or 1.0 for name in "AB") <= 0.05 for each in found])
    assert any_flag <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 80)
    # What a reader of plug-in errors would see: the small group looks worse almost every time.
    assert np.mean([(each["A"].ece.value or 0) > (each["B"].ece.value or 0) for each in found]) > 0.9
    debiased = [[each[name].error.value or 0.0 for each in found] for name in "AB"]
    assert np.mean(np.array(debiased[0]) > debiased[1]) < 0.65


def test_a_sharpened_group_is_found_and_the_others_are_not() -> None:
    found = rows(calibrated({"A": 800, "B": 800, "sharp": 800}, np.random.default_rng(1), factor=3.0))
    assert found["sharp"].slope.value == pytest.approx(1 / 3, abs=0.06)
    assert (found["sharp"].adjusted_p or 0.0) <= 0.05
    assert (found["sharp"].error.low or 0.0) > 0.02
    for name in "AB":
        assert (found[name].adjusted_p or 0.0) > 0.05
        assert (found[name].slope.low or 0.0) < 1 < (found[name].slope.high or 0.0)


def test_every_figure_is_that_of_the_group_alone() -> None:
    columns = calibrated({"A": 200, "unknown": 150, "sharp": 300}, np.random.default_rng(2), factor=2.0)
    found = rows(columns)
    assert list(found) == ["A", "sharp", "unknown"]
    for name, row in found.items():
        p, y, _, who = (column[columns[2] == name] for column in columns)
        assert (row.cases, row.patients, row.events) == (len(p), len(p), y.sum())
        assert row.in_the_large.value == pytest.approx(y.mean() - p.mean(), abs=1e-12)
        assert row.brier.value == pytest.approx(brier_score_loss(y, p), abs=1e-12)
        fits = calibration_slope_intercept(p, y, who)
        assert (row.slope, row.intercept) == (fits.slope, fits.intercept)
        by_hand = [abs((y - p)[np.minimum(p * 10, 9).astype(int) == cell].sum()) for cell in range(10)]
        assert row.ece.value == pytest.approx(sum(by_hand) / len(p), abs=1e-12)
        squared = squared_calibration_error(p, y, who, rng=streams(0)(name), bins=10, resamples=100)
        assert row.error == root_of_squared(squared)
        assert sum(each.cases for each in row.bins) == row.cases
        # The bins are those of the whole range, not of the group's own.
        assert all(round(10 * each.lower, 9) == int(round(10 * each.lower, 9)) for each in row.bins)
    assert found["unknown"].chance is not None
    assert found["unknown"].adjusted_p is None


def test_no_group_changes_the_figures_of_another_but_through_the_correction() -> None:
    columns = calibrated({"A": 200, "B": 200, "sharp": 200}, np.random.default_rng(3))
    alone = rows(tuple(column[columns[2] == "A"] for column in columns))["A"]
    beside = rows(columns)["A"]
    assert (alone.error, alone.chance, alone.brier) == (beside.error, beside.chance, beside.brier)
    shuffled = np.random.default_rng(0).permutation(600)
    again = rows(tuple(column[shuffled] for column in columns))["A"]
    assert again.ece[:4] == pytest.approx(beside.ece[:4], abs=1e-12)
    assert again.chance == pytest.approx(beside.chance, abs=1e-12)


def test_p_values_are_corrected_over_the_known_groups() -> None:
    columns = calibrated({"A": 150, "B": 150, "sharp": 150, "unknown": 150}, np.random.default_rng(4), factor=1.6)
    found = calibration_by_group(*columns, rng=streams(0), resamples=10, draws=100)
    known = [each for each in found if each.group != "unknown"]
    raw = [each.chance.p_value for each in known if each.chance]
    assert [each.adjusted_p for each in known] == pytest.approx(multipletests(raw, method="holm")[1])


def test_a_small_group_is_refused_with_its_counts_and_the_reason() -> None:
    p, y, groups, who = calibrated({"A": 200, "few": 30, "none": 20}, np.random.default_rng(5))
    y = np.where(groups == "few", np.arange(len(y)) < 204, y & (groups != "none"))
    found = rows((p, y, groups, who))
    assert found["few"].reason == found["few"].slope.reason == "fewer than 10 positive patients"
    assert (found["few"].cases, found["few"].events, found["few"].bins) == (30, 4, ())
    assert found["none"].reason == "fewer than 10 positive patients"
    assert found["A"].reason is None
    every = rows((p, np.ones_like(y), groups, who), minimum=0)
    assert {each.reason for each in every.values()} == {"fewer than 1 negative patients"}
    one = rows((p[:2], np.array([1, 0]), groups[:2], np.array(["x", "x"])), minimum=1)
    assert one["A"].in_the_large.reason == "fewer than 2 patients"


@given(st.integers(0, 10_000), st.integers(2, 5))
@settings(max_examples=15, deadline=None)
def test_copies_under_the_same_patients_change_no_interval(seed: int, copies: int) -> None:
    p, y, _, who = calibrated({"A": 40}, np.random.default_rng(seed))
    once, more = (calibration_in_the_large(*(np.tile(c, times) for c in (p, y, who))) for times in (1, copies))
    assert more[:4] == pytest.approx(once[:4], abs=1e-9)


def test_calibration_in_the_large_is_a_students_mean_of_residuals_and_agrees_with_resampled_patients() -> None:
    p, y, groups, who = calibrated({"A": 120, "B": 180}, np.random.default_rng(6))
    inside = groups == "A"
    found = calibration_in_the_large(p[inside], y[inside], who[inside])
    expected = stats.ttest_1samp(y[inside] - p[inside], 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    gap = in_the_large_gap(p, y, who // 2, inside, ~inside)

    def statistic(weights: np.ndarray) -> np.ndarray:
        means = [(weights[:, side] @ (y - p)[side]) / weights[:, side].sum(axis=1) for side in (inside, ~inside)]
        return np.asarray(means[0] - means[1])

    resampled = bootstrap(statistic, who // 2, rng=np.random.default_rng(0), resamples=2000)
    assert gap.value == pytest.approx(resampled.value, abs=1e-12)
    assert (gap.high or 0) - (gap.low or 0) == pytest.approx((resampled.high or 0) - (resampled.low or 0), rel=0.1)


def test_patients_in_both_groups_cancel_from_the_gap() -> None:
    rng = np.random.default_rng(7)
    residual = np.repeat(rng.random(80) < 0.5, 2)
    p, groups, who = np.full(160, 0.5), np.tile(["A", "B"], 80), np.repeat(np.arange(80), 2)
    gap = in_the_large_gap(p, residual, who, groups == "A", groups == "B")
    assert gap[:4] == pytest.approx((0.0, 0.0, 0.0, 80))


def test_gaps_follow_the_comparisons_given_and_their_levels() -> None:
    p, y, groups, who = calibrated({"A": 100, "B": 100, "C": 100, "few": 12}, np.random.default_rng(8))
    aurocs = group_gaps(y, p > 0.5, p, groups, who, metric="auroc")
    found = in_the_large_gaps(p, y, groups, who, aurocs)
    inside = groups == "A"
    assert found[0].difference == in_the_large_gap(p, y, who, inside, ~inside, level=1 - 0.05 / 3)
    assert [each.difference.reason for each in found] == [None, None, None, aurocs[3].difference.reason]


def test_bad_input_is_named() -> None:
    p, y, groups, who = calibrated({"A": 30}, np.random.default_rng(9))
    with pytest.raises(ModelError, match="lie outside"):
        rows((p + 1, y, groups, who))
    with pytest.raises(DataError, match="30 outcomes came with groups of shape"):
        rows((p, y, groups[1:], who))
    assert calibration_by_group(*(np.array([]),) * 4, rng=streams(0)) == ()
    many = rows((p, y, np.arange(30).astype(str), who))
    assert len(many) == 30
    assert all(each.reason for each in many.values())
