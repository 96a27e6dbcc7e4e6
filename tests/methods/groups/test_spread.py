"""Spread between groups: nothing where there is nothing, the planted amount where there is some."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from xvision.errors import DataError
from xvision.methods.groups.counts import rate, resampled
from xvision.methods.groups.spread import (
    Spread,
    between_groups,
    binomial_noise,
    corrected_variance,
    gap_by_chance,
    resampled_noise,
)


def of_rates(rng: np.random.Generator, shares: list[float], cases: int) -> Spread:
    """Groups of positive cases with these sensitivities."""
    hits = rng.binomial(cases, shares)
    zero = np.zeros_like(hits)
    table = np.stack([zero, zero, cases - hits, hits])
    (block,) = resampled(table, rng=rng, resamples=400)
    drawn = rate(block.counts, "sensitivity")
    sizes = np.full(len(shares), cases)
    return between_groups(hits / cases, binomial_noise(hits, sizes), drawn, sizes)


def test_the_corrected_variance_of_equal_groups_is_zero_where_the_naive_one_is_not() -> None:
    rng = np.random.default_rng(0)
    hits = rng.binomial(50, 0.8, size=(20, 400))
    naive = np.var(hits / 50, axis=0, ddof=1)
    assert naive.mean() == pytest.approx(0.8 * 0.2 / 50, abs=3e-4)
    assert corrected_variance(hits / 50, binomial_noise(hits, np.full(hits.shape, 50))).mean() == pytest.approx(
        0, abs=3e-4
    )


def test_the_corrected_variance_of_unequal_groups_is_theirs() -> None:
    hits = np.random.default_rng(0).binomial(200, [[0.6], [0.7], [0.8], [0.9]], size=(4, 2000))
    found = corrected_variance(hits / 200, binomial_noise(hits, np.full(hits.shape, 200))).mean()
    assert found == pytest.approx(0.016667, rel=0.05)


def test_the_interval_holds_the_spread_and_0_only_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    for shares in ([0.8] * 6, [0.6, 0.7, 0.8, 0.9]):
        true = float(np.std(shares, ddof=1))
        runs = [of_rates(rng, shares, 100).sd for _ in range(150)]
        inside = np.mean([(run.low or 0) <= true + 1e-12 <= (run.high or 0) + 1e-9 for run in runs])
        assert inside >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 150)
    assert np.mean([(run.low or 0) > 0 for run in runs]) > 0.8
    assert np.mean([(of_rates(rng, [0.8] * 6, 100).sd.low or 0) > 0 for _ in range(150)]) <= 0.05


def test_noise_of_resamples_is_the_binomial_one() -> None:
    hits = np.array([40, 25, 48])
    drawn = np.random.default_rng(0).binomial(50, hits[:, None] / 50, size=(3, 20_000)) / 50
    assert resampled_noise(drawn, np.full(3, 50)) == pytest.approx(binomial_noise(hits, np.full(3, 50)), rel=0.05)


def test_groups_without_a_rate_are_left_out_and_one_group_has_no_spread() -> None:
    drawn = np.random.default_rng(0).random((3, 50))
    drawn[1] = np.nan
    noise, sizes = np.full(3, 0.01), np.array([20, 0, 30])
    found = between_groups(np.array([0.5, np.nan, 0.9]), noise, drawn, sizes)
    assert (found.groups, found.sd.n) == (2, 50)
    assert found.observed == pytest.approx(np.std([0.5, 0.9], ddof=1))
    alone = between_groups(np.array([0.5, np.nan, np.nan]), noise, drawn, sizes)
    assert alone.sd.reason == "fewer than 2 groups with 2 patients in the denominator"
    drawn[0, :40] = np.nan
    assert (
        between_groups(np.array([0.5, np.nan, 0.9]), noise, drawn, sizes).sd.reason
        == "a group is empty in 40 of 50 resamples"
    )


CHANCE = {30: (0.074, 0.149, 0.197, 0.285, 0.342), 100: (0.041, 0.082, 0.109, 0.160, 0.194)}


@pytest.mark.parametrize("cases", [30, 100])
def test_the_gap_by_chance_is_that_of_the_published_table(cases: int) -> None:
    for groups, expected in zip((2, 5, 10, 50, 200), CHANCE[cases], strict=True):
        assert gap_by_chance(0.85, np.full(groups, cases)) == pytest.approx(expected, abs=0.002)


def test_the_gap_by_chance_of_unequal_groups_is_that_of_draws() -> None:
    rng = np.random.default_rng(0)
    for sizes in (np.array([5, 17, 60]), np.array([40, 3000, 9000])):
        drawn = rng.binomial(sizes[:, None], 0.3, size=(3, 40_000)) / sizes[:, None]
        assert gap_by_chance(0.3, np.append(sizes, 0)) == pytest.approx(np.ptp(drawn, axis=0).mean(), abs=2e-3)
    two = sum(
        stats.binom.pmf(one, 4, 0.7) * stats.binom.pmf(other, 3, 0.7) * abs(one / 4 - other / 3)
        for one in range(5)
        for other in range(4)
    )
    assert gap_by_chance(0.7, np.array([4, 3])) == pytest.approx(two, abs=1e-12)
    assert (gap_by_chance(1.0, np.array([4, 3])), gap_by_chance(0.5, np.array([4]))) == (pytest.approx(0), 0.0)
    with pytest.raises(DataError, match="the rate is 80; give a share from 0 to 1"):
        gap_by_chance(80, np.array([4, 3]))


def test_noise_leaves_out_resamples_without_a_case() -> None:
    drawn = np.array([[0.2, np.nan, 0.4, 0.6], [np.nan, np.nan, np.nan, 0.5]])
    noise = resampled_noise(drawn, np.array([5, 5]))
    assert noise[0] == pytest.approx(np.var([0.2, 0.4, 0.6], ddof=1) * 5 / 4)
    assert np.isnan(noise[1])
    alone = between_groups(np.array([0.5, 0.5]), noise, drawn, np.array([5, 5]))
    assert alone.sd.value is None
