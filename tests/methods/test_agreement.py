"""Agreement of rankings whose agreement is known, and beside scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare, spearmanr

from xvision.errors import ConfigError, DataError
from xvision.methods.agreement import kendall_w, pairwise_spearman, top_overlap

UP, DOWN = np.arange(20.0), np.arange(20.0)[::-1]


def methods(*values: np.ndarray) -> np.ndarray:
    """One case."""
    return np.stack(values)[None]


def test_one_ranking_is_full_agreement() -> None:
    values = methods(UP, np.exp(UP), UP**3 - 7)
    assert kendall_w(values) == pytest.approx(1.0)
    np.testing.assert_allclose(pairwise_spearman(values)[0], np.ones((3, 3)))
    np.testing.assert_array_equal(top_overlap(values)[0], np.ones((3, 3)))


def test_two_opposed_rankings_have_nothing_in_common() -> None:
    values = methods(UP, DOWN)
    assert kendall_w(values) == pytest.approx(0.0)
    np.testing.assert_allclose(pairwise_spearman(values)[0], [[1, -1], [-1, 1]])
    np.testing.assert_array_equal(top_overlap(values)[0], [[1, 0], [0, 1]])


def test_three_judges_by_hand() -> None:
    """Ranks 1234, 1243 and 2134: rank sums 4, 5, 10 and 11 about 7.5, so W = 12 × 37 / (9 × 60)."""
    values = methods(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3]), np.array([2.0, 1, 3, 4]))
    assert kendall_w(values) == pytest.approx(12 * 37 / 540)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([3, 5, 1000]))
def test_figures_equal_those_of_scipy_with_ties(seed: int, levels: int) -> None:
    values = np.random.default_rng(seed).integers(0, levels, (3, 4, 25)).astype(float)
    values[:, :, :2] = 0, 1
    rank, concordance = pairwise_spearman(values), kendall_w(values)
    for case in range(3):
        np.testing.assert_allclose(rank[case], spearmanr(values[case], axis=1).statistic, atol=1e-12)
        chi_square = friedmanchisquare(*values[case].T).statistic
        assert concordance[case] == pytest.approx(chi_square / (4 * 24))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_concordance_is_the_mean_rank_correlation(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(2, 5, 30))
    pairs = pairwise_spearman(values)[:, *np.triu_indices(5, 1)].mean(axis=1)
    np.testing.assert_allclose(kendall_w(values), (1 + 4 * pairs) / 5)


def test_unrelated_rankings_reach_what_chance_reaches() -> None:
    values = np.random.default_rng(0).normal(size=(200, 4, 196))
    assert kendall_w(values).mean() == pytest.approx(1 / 4, abs=0.01)
    assert pairwise_spearman(values)[:, 0, 1].mean() == pytest.approx(0.0, abs=0.02)
    assert top_overlap(values)[:, 0, 1].mean() == pytest.approx(0.1 / 1.9, abs=0.01)


def test_overlap_of_the_top_by_hand() -> None:
    """Of ten units two are on top: units 9 and 8 for one method, 9 and 0 for the other."""
    one, other = np.arange(10.0), np.arange(10.0)
    other[0] = 8.5
    assert top_overlap(methods(one, other), share=0.2)[0, 0, 1] == pytest.approx(1 / 3)


def test_units_tied_at_the_edge_share_its_places() -> None:
    """Two places: one for the highest, one shared by four; the other method has one of those four on top for itself."""
    one = np.array([9.0, 5, 5, 5, 5, 0, 0, 0, 0, 0])
    other = np.array([9.0, 8, 0, 0, 0, 0, 0, 0, 0, 0])
    assert top_overlap(methods(one, other), share=0.2)[0, 0, 1] == pytest.approx(1.25 / 2.75)


def test_a_method_that_ranks_nothing_agrees_with_nothing() -> None:
    values = np.stack([np.stack([UP, np.zeros(20), DOWN]), np.stack([UP, UP, UP])])
    assert np.isnan(kendall_w(values)[0])
    assert kendall_w(values)[1] == pytest.approx(1.0)
    for found in (pairwise_spearman(values), top_overlap(values)):
        assert np.isnan(found[0, 1]).all()
        assert np.isnan(found[0, :, 1]).all()
        assert np.isfinite(found[0, [0, 0, 2, 2], [0, 2, 0, 2]]).all()
        assert np.isfinite(found[1]).all()


def test_cases_do_not_depend_on_each_other() -> None:
    values = np.random.default_rng(4).normal(size=(5, 3, 16))
    for score in (kendall_w, pairwise_spearman, top_overlap):
        np.testing.assert_array_equal(np.concatenate([score(values[[i]]) for i in range(5)]), score(values))


def test_unusable_values_are_errors() -> None:
    for score in (kendall_w, pairwise_spearman, top_overlap):
        with pytest.raises(DataError, match=r"found values of shape \(1, 1, 5\)"):
            score(np.ones((1, 1, 5)))
        broken = np.ones((3, 2, 5))
        broken[2, 1, 0] = np.nan
        with pytest.raises(DataError, match="method 1 gives NaN or infinity for case 2"):
            score(broken)
    with pytest.raises(ConfigError, match=r"found share = 0\.0"):
        top_overlap(np.ones((1, 2, 5)), share=0.0)
