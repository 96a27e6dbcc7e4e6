"""Split conformal sets against closed forms, brute force and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, kstest

from xvision.errors import ConfigError, DataError
from xvision.methods.conformal import (
    SCORE_NAMES,
    coverage_by_chance,
    fitted,
    quantile,
    rank_of,
    sets,
    strangeness,
    too_low_p,
    uniforms,
)


def drawn(cases: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Probabilities of a calibrated model, labels drawn from them, and keys."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.7), cases)
    labels = (probabilities.cumsum(axis=1) < rng.random((cases, 1))).sum(axis=1).clip(0, classes - 1)
    return probabilities, labels, [f"{seed}-{place}" for place in range(cases)]


def test_the_rank_and_the_coverage_by_chance_are_the_known_ones() -> None:
    assert (rank_of(100, 0.1), rank_of(1000, 0.1)) == (91, 901)
    small, large = (coverage_by_chance(cases, 0.1, level=0.9) for cases in (100, 1000))
    assert small == pytest.approx((0.900990, 0.8482, 0.9447), abs=5e-5)
    assert large == pytest.approx((0.900100, 0.8841, 0.9152), abs=5e-5)


def test_a_rank_that_is_whole_is_not_rounded_up() -> None:
    assert rank_of(9, 0.7) == 3  # 10 * (1 - 0.7) is 3.0000000000000004
    assert rank_of(99, 0.1) == 90


def test_too_few_cases_put_every_class_in_every_set() -> None:
    assert quantile(np.array([0.1, 0.2]), 0.1) == (math.inf, 3, 2)
    assert quantile(np.array([]), 0.1).threshold == math.inf
    assert quantile(np.linspace(0, 1, 9), 0.1) == (1.0, 9, 9)  # the smallest number that suffices
    assert coverage_by_chance(2, 0.1) == (1.0, 1.0, 1.0)
    assert too_low_p(1.0, 5, 2, 0.1) == 1.0
    assert too_low_p(0.8, 5, 2, 0.1) == 0.0


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1])
def test_a_share_that_is_none_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        rank_of(10, alpha)


def test_lac_sets_are_those_of_brute_force() -> None:
    probabilities, labels, keys = drawn(60)
    scores = strangeness(probabilities, "lac", keys, seed=0)
    found = sets(scores[40:], fitted(scores[:40], labels[:40], 0.2))
    own = sorted(1 - probabilities[row, labels[row]] for row in range(40))
    limit = own[math.ceil(41 * 0.8) - 1]
    expected = [[1 - probabilities[row, code] <= limit for code in range(3)] for row in range(40, 60)]
    assert found.tolist() == expected


def test_aps_and_raps_are_those_of_brute_force() -> None:
    probabilities, _, keys = drawn(30, classes=4)
    draws = uniforms(keys, seed=5)
    aps = strangeness(probabilities, "aps", keys, seed=5)
    raps = strangeness(probabilities, "raps", keys, seed=5, penalty=0.3, free_ranks=2)
    for row in range(30):
        for code in range(4):
            likelier = probabilities[row] > probabilities[row, code]
            score = probabilities[row, likelier].sum() + draws[row] * probabilities[row, code]
            assert aps[row, code] == pytest.approx(score, abs=1e-12)
            assert raps[row, code] == pytest.approx(score + 0.3 * max(likelier.sum() + 1 - 2, 0), abs=1e-12)


def test_aps_of_the_true_class_is_uniform_where_probabilities_are_true() -> None:
    probabilities, labels, keys = drawn(4000)
    own = strangeness(probabilities, "aps", keys, seed=1)[np.arange(4000), labels]
    assert kstest(own, "uniform").pvalue > 0.01


def test_the_draws_of_a_case_are_uniform_and_its_own() -> None:
    keys = [f"case-{place}" for place in range(3000)]
    draws = uniforms(keys, seed=0)
    assert kstest(draws, "uniform").pvalue > 0.01
    assert np.array_equal(uniforms(keys[::-1], seed=0), draws[::-1])
    assert not np.array_equal(uniforms(keys, seed=1), draws)


@pytest.mark.parametrize("name", SCORE_NAMES)
def test_coverage_over_repeats_is_the_mean_of_its_distribution(name: str) -> None:
    """50 calibration cases, 200 repeats of 50 audited ones."""
    probabilities, labels, keys = drawn(20_000)
    scores = strangeness(probabilities, name, keys, seed=2)
    hits = 0
    for start in range(0, 20_000, 100):
        calibration, audited = slice(start, start + 50), slice(start + 50, start + 100)
        found = sets(scores[audited], fitted(scores[calibration], labels[calibration], 0.1))
        hits += int(found[np.arange(50), labels[audited]].sum())
    expected = coverage_by_chance(50, 0.1).mean
    spread = math.sqrt(200) * 50 * math.sqrt(expected * (1 - expected) * (1 / 50 + 1 / 52))
    assert hits == pytest.approx(10_000 * expected, abs=3.5 * spread)


def test_chance_of_a_low_coverage_is_that_of_repeats() -> None:
    rng = np.random.default_rng(3)
    scores = rng.random((4000, 60))  # 40 calibrated, 20 audited
    limits = np.sort(scores[:, :40], axis=1)[:, rank_of(40, 0.2) - 1]
    shares = (scores[:, 40:] <= limits[:, None]).mean(axis=1)
    for covered in (0.6, 0.7, 0.8):
        seen = int((shares <= covered + 1e-9).sum())
        assert binomtest(seen, 4000, too_low_p(covered, 20, 40, 0.2)).pvalue > 0.001


def test_a_class_with_its_own_threshold_is_covered_and_without_it_is_not() -> None:
    """The rare class is hard: scores near 1, which one threshold for all ignores."""
    rng = np.random.default_rng(4)
    labels = (rng.random(4000) < 0.05).astype(int)
    positive = np.where(labels == 1, rng.beta(2, 5, 4000), rng.beta(1, 9, 4000))
    scores = strangeness(np.stack((1 - positive, positive), axis=1), "lac", [str(i) for i in range(4000)], seed=0)
    audited, rare = slice(2000, 4000), labels[2000:] == 1
    covered = {}
    for by_class in (False, True):
        found = sets(scores[audited], fitted(scores[:2000], labels[:2000], 0.1, by_class=by_class))
        covered[by_class] = found[np.arange(2000), labels[audited]][rare].mean()
    assert covered[False] < 0.5
    assert covered[True] > 0.8


def test_a_class_without_calibration_cases_is_in_every_set_by_class() -> None:
    probabilities, _, keys = drawn(40, classes=2)
    scores = strangeness(probabilities, "lac", keys, seed=0)
    thresholds = fitted(scores, np.zeros(40, dtype=int), 0.1, by_class=True)
    assert thresholds[1] == (math.inf, 1, 0)
    assert sets(scores, thresholds)[:, 1].all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(10, 60), st.sampled_from(SCORE_NAMES), st.booleans())
def test_sets_grow_as_fewer_may_be_missed(seed: int, cases: int, name: str, by_class: bool) -> None:
    probabilities, labels, keys = drawn(cases, seed=seed)
    scores = strangeness(probabilities, name, keys, seed=0)
    smaller = sets(scores, fitted(scores, labels, 0.4, by_class=by_class))
    larger = sets(scores, fitted(scores, labels, 0.15, by_class=by_class))
    assert (larger | ~smaller).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(SCORE_NAMES))
def test_neither_order_of_cases_nor_of_classes_counts(seed: int, name: str) -> None:
    probabilities, labels, keys = drawn(30, seed=seed)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(30), rng.permutation(3)
    scores = strangeness(probabilities, name, keys, seed=0)
    moved = strangeness(probabilities[rows][:, columns], name, [keys[row] for row in rows], seed=0)
    assert moved == pytest.approx(scores[rows][:, columns], abs=1e-12)
    whole = fitted(scores, labels, 0.2)[0].threshold
    assert fitted(scores[rows], labels[rows], 0.2)[0].threshold == whole


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no conformal score 'lax'. Did you mean 'lac'"):
        strangeness(np.ones((2, 2)) / 2, "lax", ["a", "b"], seed=0)
    with pytest.raises(DataError, match="one key"):
        strangeness(np.ones((2, 2)) / 2, "lac", ["a"], seed=0)
    with pytest.raises(DataError, match=r"\(n, K\) and \(n,\)"):
        fitted(np.ones((2, 2)), np.zeros(3, dtype=int), 0.1)


def test_cases_worth_as_many_units_have_the_plain_law_and_fewer_a_wider_one() -> None:
    assert coverage_by_chance(99, 0.1, units=99) == coverage_by_chance(99, 0.1)
    assert too_low_p(0.8, 50, 99, 0.1, units=99) == too_low_p(0.8, 50, 99, 0.1)
    few, many = coverage_by_chance(99, 0.1, units=5), coverage_by_chance(99, 0.1)
    assert few.mean == many.mean == pytest.approx(0.9)
    assert few.low < many.low
    assert too_low_p(0.8, 50, 99, 0.1, units=5) > too_low_p(0.8, 50, 99, 0.1) > 0.0
