"""Places put together, beside statsmodels and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from statsmodels.stats.meta_analysis import combine_effects

from xvision.errors import DataError
from xvision.methods.intervals import Estimate, not_estimable, proportion
from xvision.methods.shift.random_effects import (
    Effects,
    as_proportion,
    on_logit_scale,
    random_effects,
    simultaneous_level,
)

DIFFERENT = Effects(np.array([0.1, 0.9, -0.4, 0.6, 1.5]), np.array([0.04, 0.02, 0.09, 0.05, 0.03]))
ALIKE = Effects(np.array([0.50, 0.52, 0.49, 0.51]), np.array([0.04, 0.02, 0.09, 0.05]))


def peer(effects: Effects) -> tuple[float, float, float, float, float]:
    """Mean, interval by Hartung and Knapp, tau2 and I2 of statsmodels."""
    found = combine_effects(*effects, method_re="dl", use_t=True)
    low, high = found.conf_int(use_t=True)[3]
    return found.mean_effect_re, low, high, found.tau2, found.i2


def test_equal_statsmodels_where_places_differ() -> None:
    found = random_effects(DIFFERENT)
    assert found is not None
    figures = (found.mean, found.low, found.high, found.tau2, found.i2)
    np.testing.assert_allclose(figures, peer(DIFFERENT), rtol=1e-9)
    test = combine_effects(*DIFFERENT, method_re="dl").test_homogeneity()
    assert found.p_value == pytest.approx(test.pvalue, rel=1e-9)
    assert found.places == 5


def test_places_more_alike_than_chance_do_not_narrow_the_interval() -> None:
    found = random_effects(ALIKE)
    assert found is not None
    assert found.tau2 == found.i2 == 0.0
    weights = 1 / ALIKE.variances
    error = 1 / np.sqrt(weights.sum())
    assert found.mean == pytest.approx(weights @ ALIKE.values / weights.sum())
    assert found.high - found.mean == pytest.approx(3.182446305 * error)
    mean, variance = ALIKE.values - found.mean, 1 / weights.sum()
    narrow = 3.182446305 * np.sqrt((weights @ mean**2) / 3 * variance)  # of Hartung and Knapp, as published
    assert narrow < found.high - found.mean


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0.01, 2)), min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_the_interval_of_the_spread_is_where_q_has_its_quantiles(pairs: list[tuple[float, float]]) -> None:
    values, variances = (np.array(part) for part in zip(*pairs, strict=True))
    found = random_effects(Effects(values, variances))
    assert found is not None

    def q(tau2: float) -> float:
        weights = 1 / (variances + tau2)
        return float((weights * (values - np.average(values, weights=weights)) ** 2).sum())

    freedom = len(pairs) - 1
    low, high = found.tau2_interval
    assert low <= found.tau2 <= high
    if 0 < low < found.tau2:
        assert q(low) == pytest.approx(chi2.ppf(0.975, freedom), rel=1e-6)
    if high > found.tau2:
        assert q(high) == pytest.approx(chi2.ppf(0.025, freedom), rel=1e-6)
    assert found.i2 == pytest.approx(max(0.0, 1 - freedom / q(0.0)) if q(0.0) > 0 else 0.0, abs=1e-9)
    assert found.i2_interval[0] <= found.i2 <= found.i2_interval[1] <= 1


def test_the_intervals_cover() -> None:
    """Of the mean, the spread and a new place, over 150 draws of 8 places: within 3 standard errors of 95 %."""
    rng = np.random.default_rng(0)
    held = np.zeros(3)
    for _ in range(150):
        variances = rng.uniform(0.02, 0.2, 8)
        truth = rng.normal(1.0, 0.4, 9)
        found = random_effects(Effects(rng.normal(truth[:8], np.sqrt(variances)), variances))
        assert found is not None
        assert found.predicted is not None
        intervals = ((found.low, found.high), found.tau2_interval, found.predicted)
        held += [low <= at <= high for (low, high), at in zip(intervals, (1.0, 0.16, truth[8]), strict=True)]
    assert np.all(np.abs(held / 150 - 0.95) < 0.054), held / 150


def test_equal_places_leave_only_the_error_of_their_mean_to_a_new_one() -> None:
    found = random_effects(Effects(np.full(4, 0.3), np.full(4, 0.04)))
    assert found is not None
    assert found.tau2_interval == (0.0, 0.0)
    assert found.predicted == pytest.approx((0.3 - 3.182446 * 0.1, 0.3 + 3.182446 * 0.1), abs=0.02)


def test_too_few_places_have_no_mean_and_two_predict_none() -> None:
    assert random_effects(Effects(np.array([0.2]), np.array([0.1]))) is None
    two = random_effects(Effects(np.array([0.2, 0.4]), np.array([0.1, 0.1])))
    assert two is not None
    assert two.predicted is None
    with pytest.raises(DataError, match="cannot be averaged"):
        random_effects(Effects(np.array([0.2, np.inf]), np.array([0.1, 0.1])))
    with pytest.raises(DataError, match="cannot be averaged"):
        random_effects(Effects(np.array([0.2, 0.3]), np.array([0.1, 0.0])))


def test_proportions_become_log_odds_with_their_own_variance() -> None:
    """A Wilson interval has the same middle as the value on the logit scale; with many cases its variance is 1/(npq)."""
    hits = np.arange(4000) < 1000
    effects = on_logit_scale([proportion(hits, np.arange(4000))])
    assert effects.values[0] == pytest.approx(np.log(1 / 3))
    assert effects.variances[0] == pytest.approx(1 / (4000 * 0.25 * 0.75), rel=2e-3)
    assert as_proportion(effects.values[0]) == pytest.approx(0.25)


def test_all_right_and_all_wrong_count_half_a_case_more() -> None:
    for hits, sign in ((np.ones(20, bool), 1), (np.zeros(20, bool), -1)):
        effects = on_logit_scale([proportion(hits, np.arange(20))])
        assert effects.values[0] == pytest.approx(sign * np.log(20.5 / 0.5))
        assert effects.variances[0] == pytest.approx(1 / 20.5 + 1 / 0.5)
    with pytest.raises(DataError, match="no cases"):
        on_logit_scale([not_estimable("no cases")])
    narrow = on_logit_scale([Estimate(0.5, 0.0, 1.0, 1, "a guess")])
    assert np.isfinite(narrow.values).all()


def test_intervals_that_hold_together_share_the_error() -> None:
    assert simultaneous_level(5) == pytest.approx(0.99)
    assert simultaneous_level(1) == simultaneous_level(0) == pytest.approx(0.95)
