"""Tests of two sets: closed forms, scipy and scikit-learn, false alarms and power."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel

from xvision.errors import ModelError
from xvision.methods.shift.two_sample import (
    Sets,
    classifier_test,
    decisions_test,
    ks_test,
    median_distance,
    mmd,
    standardised_difference,
    superiority,
)


def sets(first: np.ndarray, second: np.ndarray, images: int = 1) -> Sets:
    """``images`` rows in a row belong to one patient."""
    whose = [np.arange(len(part)) // images for part in (first, second)]
    return Sets(first, second, *whose)


def repeated(rng: np.random.Generator, patients: int, images: int, move: float = 0.0, width: int = 2) -> np.ndarray:
    """Rows (P × images, D) of which those of one patient are much alike."""
    return np.repeat(rng.normal(move, 1, (patients, width)), images, axis=0) + rng.normal(
        0, 0.1, (patients * images, width)
    )


def test_mmd_of_two_normals_is_the_closed_form() -> None:
    """N(0, I) and N(μ, I), Gaussian kernel: 2 (s²/(s²+2))^(d/2) (1 − exp(−|μ|²/(2(s²+2)))) = 0.102346."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(30):
        pair = sets(rng.normal(size=(300, 2)), rng.normal([1.0, 0.0], 1, (300, 2)))
        effect, _ = mmd(pair, rng=rng, permutations=1, resamples=2, bandwidth=1.0)
        found.append(effect.value)
    assert np.mean(found) == pytest.approx(0.102346, abs=3 * np.std(found) / np.sqrt(30))
    assert np.std(found) < 0.02


def test_mmd_equals_the_plain_sums() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(12, 3)), rng.normal(size=(9, 3))
    width = median_distance(first)
    distances = [np.linalg.norm(one - other) for i, one in enumerate(first) for other in first[i + 1 :]]
    assert width == pytest.approx(np.median(distances))
    gamma = 1 / (2 * width**2)
    within = [
        (rbf_kernel(part, part, gamma).sum() - len(part)) / (len(part) * (len(part) - 1)) for part in (first, second)
    ]
    expected = sum(within) - 2 * rbf_kernel(first, second, gamma).mean()
    assert mmd(sets(first, second), rng=rng, permutations=1).effect.value == pytest.approx(expected, abs=1e-12)


def test_mmd_counts_only_pairs_of_different_patients() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(12, 3)), rng.normal(size=(9, 3))
    plain = mmd(sets(first, second), rng=rng, permutations=1, bandwidth=1.0).effect.value
    twice = sets(np.repeat(first, 2, axis=0), np.repeat(second, 2, axis=0), images=2)
    assert mmd(twice, rng=rng, permutations=1, bandwidth=1.0).effect.value == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("images", [1, 3])
def test_mmd_alarms_falsely_as_often_as_it_says(images: int) -> None:
    rng = np.random.default_rng(3)
    alarms = [
        mmd(
            sets(*(repeated(rng, 10, images) for _ in range(2)), images=images),
            rng=rng,
            permutations=199,
            resamples=2,
        ).p_value
        <= 0.05
        for _ in range(500)
    ]
    assert 0.03 <= np.mean(alarms) <= 0.07


def test_mmd_finds_a_shift_and_its_interval_leaves_zero() -> None:
    rng = np.random.default_rng(4)
    effect, p_value = mmd(sets(rng.normal(size=(80, 4)), rng.normal(0.7, 1, (80, 4))), rng=rng)
    assert p_value == pytest.approx(1 / 501)
    assert 0 < effect.low < effect.value < effect.high
    assert effect.n == 160


def test_mmd_does_not_depend_on_the_order_of_cases() -> None:
    rng = np.random.default_rng(5)
    pair = sets(rng.normal(size=(20, 2)), rng.normal(0.5, 1, (20, 2)))
    mixed = rng.permutation(20)
    other = pair._replace(current=pair.current[mixed], current_patients=pair.current_patients[mixed])
    one, two = (mmd(each, rng=np.random.default_rng(0)) for each in (pair, other))
    assert one.p_value == two.p_value
    assert one.effect == pytest.approx(two.effect)


def test_a_classifier_finds_what_a_line_can_part() -> None:
    rng = np.random.default_rng(6)
    found = classifier_test(sets(rng.normal(size=(200, 5)), rng.normal([1.5, 0, 0, 0, 0], 1, (200, 5))), rng=rng)
    assert found.effect.value == pytest.approx(0.856, abs=0.04)  # Φ(1.5 / √2), for the best line there is
    assert found.p_value < 1e-6
    assert found.effect.low < 0.856 < found.effect.high
    far = sets(rng.normal(size=(60, 2)), np.concatenate([rng.normal(size=(59, 2)), [[40.0, 0.0]]]))
    assert np.argmax(np.abs(classifier_test(far, rng=rng).unlike)) == 59


@pytest.mark.parametrize("images", [1, 2])
def test_a_classifier_alarms_falsely_no_more_often_than_it_says(images: int) -> None:
    rng = np.random.default_rng(7)
    alarms, outside = [], []
    for _ in range(60):
        found = classifier_test(sets(*(repeated(rng, 20, images, width=4) for _ in range(2)), images=images), rng=rng)
        alarms.append(found.p_value <= 0.05)
        outside.append(not found.effect.low <= 0.5 <= found.effect.high)
    assert np.mean(alarms) <= 0.10  # 5 % and less than 2 standard errors
    assert np.mean(outside) <= 0.09


def test_ks_equals_scipy() -> None:
    rng = np.random.default_rng(8)
    for size, move in ((100, 0.5), (37, 0.0), (10, 2.0)):
        first, second = rng.normal(size=size), rng.normal(move, 1, size + 5).round(1)
        expected = ks_2samp(first, second, method="asymp")
        distance, p_value = ks_test(sets(first, second))
        assert distance == pytest.approx(expected.statistic)
        assert p_value == pytest.approx(expected.pvalue)


def test_ks_keeps_its_level_and_has_its_power() -> None:
    """n = m = 100, a shift of half a standard deviation: power 0.83, false alarms 0.034."""
    rng = np.random.default_rng(9)
    found = {
        move: np.mean([ks_test(sets(rng.normal(size=100), rng.normal(move, 1, 100)))[1] <= 0.05 for _ in range(400)])
        for move in (0.0, 0.5)
    }
    assert 0.01 <= found[0.0] <= 0.05
    assert found[0.5] == pytest.approx(0.83, abs=0.06)


def test_images_of_one_patient_are_no_new_evidence() -> None:
    rng = np.random.default_rng(10)
    first, second = rng.normal(size=40), rng.normal(0.6, 1, 40)
    plain, fourfold = sets(first, second), sets(np.repeat(first, 4), np.repeat(second, 4), images=4)
    assert ks_test(fourfold) == pytest.approx(ks_test(plain))
    decided = sets((first > 0.3).astype(int), (second > 0.3).astype(int))
    again = sets(np.repeat(decided.reference, 4), np.repeat(decided.current, 4), images=4)
    assert decisions_test(again, 2) == pytest.approx(decisions_test(decided, 2))
    wide, narrow = standardised_difference(plain), standardised_difference(fourfold)
    assert narrow.high - narrow.low == pytest.approx(wide.high - wide.low, rel=0.05)
    assert superiority(fourfold)[:3] == pytest.approx(superiority(plain)[:3])


def test_decisions_are_compared_as_scipy_does() -> None:
    first, second = np.array([0] * 30 + [1] * 20), np.array([0] * 10 + [1] * 25 + [2] * 5)
    expected = chi2_contingency([[30, 20, 0], [10, 25, 5]], correction=False).pvalue
    assert decisions_test(sets(first, second), 4) == pytest.approx(expected)
    assert decisions_test(sets(np.zeros(5), np.zeros(5)), 2) is None


def test_the_standardised_difference_and_its_interval() -> None:
    first, second = np.array([1.0, 2.0, 3.0]), np.array([4.0, 6.0, 8.0])
    assert standardised_difference(sets(first, second)).value == pytest.approx(4 / np.sqrt((1 + 4) / 2))
    assert superiority(sets(first, second)).value == pytest.approx(1.0)
    rng = np.random.default_rng(11)
    one, other = rng.normal(size=50), rng.normal(0.3, 1, 50)
    truth = roc_auc_score(np.repeat([0, 1], 50), np.concatenate([one, other]))
    assert superiority(sets(one, other)).value == pytest.approx(truth)
    held = 0
    for _ in range(400):
        found = standardised_difference(
            sets(repeated(rng, 40, 2, width=1), repeated(rng, 30, 2, 0.8, width=1), images=2)
        )
        held += found.low <= 0.8 / np.sqrt(1.01) <= found.high
    assert held / 400 == pytest.approx(0.95, abs=0.035)


def test_the_interval_of_a_large_difference_allows_for_the_spread() -> None:
    """For two normals d standard deviations apart, n of each: variance 2/n + d²/(4n)."""
    rng = np.random.default_rng(13)
    found = standardised_difference(sets(rng.normal(size=20_000), rng.normal(3, 1, 20_000)))
    variance = 2 / 20_000 + 9 / 80_000
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=0.02)


def test_what_cannot_be_compared_says_why() -> None:
    rng = np.random.default_rng(12)
    alone, same = sets(np.ones((3, 2)), np.ones((3, 2)), images=3), sets(np.ones((9, 2)), np.ones((9, 2)))
    for found in (mmd(alone, rng=rng), classifier_test(alone, rng=rng)):
        assert found.p_value is None
        assert "patients" in found.effect.reason
    assert "same numbers" in mmd(same, rng=rng).effect.reason
    assert standardised_difference(sets(np.ones(9), np.ones(9))).reason == "the same number for every case"
    assert "patients" in standardised_difference(sets(np.ones(9), np.ones(0))).reason
    assert ks_test(sets(np.ones(9), np.ones(0))) == (0.0, None)
    assert decisions_test(sets(np.ones(9), np.ones(0)), 2) is None
    found = classifier_test(same, rng=rng)
    assert found.effect.value == 0.5
    assert found.p_value == pytest.approx(0.5)
    with pytest.raises(ModelError, match="1 of 6 cases are not finite"):
        mmd(sets(np.array([1.0, 2, np.nan]), np.ones(3)), rng=rng)
