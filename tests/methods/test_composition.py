"""Association of columns against scipy, worked tables and planted dependence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xvision.methods.composition import REST, association, pooled, usual


def test_strength_and_p_agree_with_scipy() -> None:
    table = np.array([[30, 10, 20], [12, 40, 18]])
    first, second = (np.repeat(codes.ravel(), table.ravel()) for codes in np.indices(table.shape))
    found = association(first, second, np.arange(130), rng=np.random.default_rng(0), resamples=200)
    peer = stats.chi2_contingency(table, correction=False)
    assert found.p == pytest.approx(peer.pvalue)
    assert found.how == "chi-squared test"
    # Bergsma (2013), by hand: phi² less (r−1)(k−1)/(n−1), over the corrected smaller number of levels.
    phi = peer.statistic / 130 - 2 / 129
    assert found.strength.value == pytest.approx(np.sqrt(phi / (2 - 1 / 129 - 1)))
    assert (found.strength.low or 0) < (found.strength.value or 0) < (found.strength.high or 0)


def test_small_tables_are_permuted() -> None:
    table = np.array([[6, 2], [1, 3]])
    first, second = (np.repeat(codes.ravel(), table.ravel()) for codes in np.indices(table.shape))
    found = association(first, second, np.arange(12), rng=np.random.default_rng(0), permutations=3999, resamples=50)
    assert found.how == "3999 permutations of patients"
    # Fisher's two-sided p sums the tables that are no likelier than this one; here they are those at least as extreme.
    assert found.p == pytest.approx(stats.fisher_exact(table).pvalue, abs=0.03)


def test_patients_count_once() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, 80), rng.integers(0, 3, 80)
    once = association(first, second, np.arange(80), rng=np.random.default_rng(1), resamples=100)
    copied = association(
        *(np.repeat(each, 5) for each in (first, second, np.arange(80))), rng=np.random.default_rng(1), resamples=100
    )
    assert once == copied


def test_p_of_independent_columns_is_uniform() -> None:
    rng = np.random.default_rng(0)
    p_values = [
        association(rng.integers(0, 2, 300), rng.integers(0, 3, 300), np.arange(300), rng=rng, resamples=2).p
        for _ in range(300)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_what_cannot_be_told_says_why() -> None:
    rng = np.random.default_rng(0)
    one = association(np.zeros(5), np.arange(5), np.arange(5), rng=rng)
    assert one.strength.reason == "one of the two has a single level"
    assert one.p is None
    nothing = np.array([])
    assert association(nothing, nothing, nothing, rng=rng).strength.reason == "no cases"


def test_many_levels_are_pooled_and_the_usual_value_stands_for_a_patient() -> None:
    levels = np.array(["a"] * 3 + ["b"] * 2 + ["c", "d"])
    assert pooled(levels, 3).tolist() == ["a"] * 3 + ["b"] * 2 + [REST] * 2
    assert pooled(levels, 4).tolist() == levels.tolist()
    assert usual(np.array(["x", "y", "y", "z"]), np.array([0, 0, 0, 1])).tolist() == ["y", "z"]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_the_order_of_cases_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second, patients = rng.integers(0, 3, 40), rng.integers(0, 2, 40), rng.integers(0, 25, 40)
    order = rng.permutation(40)
    one, other = (
        association(first[who], second[who], patients[who], rng=np.random.default_rng(0), permutations=49, resamples=20)
        for who in (np.arange(40), order)
    )
    assert one == other
