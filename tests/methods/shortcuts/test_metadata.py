"""Rankings within strata and from a column alone, on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from xvision.errors import DataError
from xvision.methods.intervals import wilson
from xvision.methods.scores import auroc
from xvision.methods.shortcuts.metadata import metadata_auroc, stratified_auroc


def slow_concordance(scores: np.ndarray, labels: np.ndarray, strata: np.ndarray) -> float:
    won = pairs = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero((labels == 0) & (strata == strata[i])):
            won += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
            pairs += 1
    return won / pairs


def test_concordance_agrees_with_a_double_loop() -> None:
    rng = np.random.default_rng(0)
    scores, labels, strata = rng.integers(0, 6, 120), rng.integers(0, 2, 120), rng.integers(0, 8, 120)
    estimate = stratified_auroc(scores, labels, strata, np.arange(120), rng=rng, resamples=20)
    assert estimate.value == pytest.approx(slow_concordance(scores, labels, strata), abs=1e-12)


def test_resampled_concordance_agrees_with_repeated_rows() -> None:
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(15), 3)
    scores, labels, strata = rng.integers(0, 5, 45), rng.integers(0, 2, 45), rng.integers(0, 2, 45)
    drawn = np.random.default_rng(4).integers(15, size=(100, 15))
    rows = [np.concatenate([np.flatnonzero(patients == patient) for patient in draw]) for draw in drawn]
    expected = [slow_concordance(scores[row], labels[row], strata[row]) for row in rows]
    estimate = stratified_auroc(scores, labels, strata, patients, rng=np.random.default_rng(4), resamples=100)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))


def test_one_stratum_is_the_plain_auroc_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) < 150
    scores = rng.normal(size=400) + labels
    plain = auroc(scores, labels, np.arange(400))
    pooled = stratified_auroc(scores, labels, np.full(400, "a"), np.arange(400), rng=rng, resamples=3000)
    assert pooled.value == pytest.approx(plain.value, abs=1e-12)
    assert pooled[:4] == pytest.approx(plain[:4], abs=0.006)


def test_a_shift_between_strata_changes_the_pooled_auroc_only() -> None:
    # Normal scores, positives one higher; group B lies half a unit above group A.
    grid = stats.norm.ppf((np.arange(500) + 0.5) / 500)
    scores = np.concatenate([grid, grid + 1, grid + 0.5, grid + 1.5])
    labels, group = np.tile(np.repeat([0, 1], 500), 2), np.repeat(["A", "B"], 1000)
    within = stratified_auroc(scores, labels, group, np.arange(2000), rng=np.random.default_rng(0), resamples=200)
    pooled = auroc(scores, labels, np.arange(2000))
    area = [stats.norm.cdf(distance / np.sqrt(2)) for distance in (1.0, 0.5, 1.5)]
    assert within.value == pytest.approx(area[0], abs=2e-3)
    assert pooled.value == pytest.approx((2 * area[0] + area[1] + area[2]) / 4, abs=2e-3)


def test_what_only_separates_the_sites_counts_for_nothing() -> None:
    labels = np.concatenate([np.arange(500) < 350, np.arange(500) < 20])
    site = np.repeat(["sick", "healthy"], 500)
    scores = (site == "sick") * 1.0
    assert (auroc(scores, labels, np.arange(1000)).value or 0) > 0.8
    within = stratified_auroc(scores, labels, site, np.arange(1000), rng=np.random.default_rng(0), resamples=100)
    assert within[:3] == pytest.approx((0.5, *wilson(185, 370)))


def test_strata_of_one_class_are_left_out() -> None:
    labels = np.array([0, 1, 0, 1, 1, 1, 0])
    strata = np.array(["a", "a", "a", "a", "only positive", "only positive", "only negative"])
    estimate = stratified_auroc(np.arange(7), labels, strata, np.arange(7), rng=np.random.default_rng(0))
    assert (estimate.value, estimate.n) == (0.75, 4)
    nothing = stratified_auroc(np.arange(7), labels, labels, np.arange(7), rng=np.random.default_rng(0))
    assert nothing.reason == "no stratum has both positive and negative cases"
    with pytest.raises(DataError, match=r"7 labels came with strata of shape \(6,\)"):
        stratified_auroc(np.arange(7), labels, strata[:6], np.arange(7), rng=np.random.default_rng(0))


def test_two_hospitals_of_unequal_prevalence_predict_by_name() -> None:
    # Prevalences and sizes of Zech et al. (2018), a tenth of the images: AUROC = (sensitivity + specificity) / 2.
    counts = {"NIH": (135, 11_077), "Sinai": (1450, 2790)}
    site = np.concatenate([np.full(sum(count), name) for name, count in counts.items()])
    labels = np.concatenate([np.repeat([1, 0], count) for count in counts.values()])
    expected = (1450 / 1585 + 11_077 / 13_867) / 2
    estimate = metadata_auroc(site, labels, np.arange(len(site)), rng=np.random.default_rng(0), resamples=100)
    assert estimate.value == pytest.approx(expected, abs=0.003)
    assert expected == pytest.approx(0.857, abs=5e-4)


def test_many_levels_are_not_rewarded_for_memorising() -> None:
    rng = np.random.default_rng(0)
    labels, levels = rng.integers(0, 2, 600), rng.integers(0, 200, 600)
    estimate = metadata_auroc(levels, labels, np.arange(600), rng=rng, resamples=300)
    assert (estimate.low or 0) <= 0.5 <= (estimate.high or 0)
    rates = np.bincount(levels, labels) / np.maximum(np.bincount(levels), 1)
    assert (auroc(rates[levels], labels, np.arange(600)).value or 0) > 0.75


def test_a_level_per_patient_predicts_nothing_about_other_patients() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(100), 4)
    labels = rng.integers(0, 2, 100)[patients]
    estimate = metadata_auroc(patients.astype(str), labels, patients, rng=rng, resamples=100)
    assert estimate.value == 0.5
    assert (estimate.low or 1) < 0.5 < (estimate.high or 0)


def test_a_column_that_says_nothing_gives_a_reason() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 0, 1])
    assert metadata_auroc(np.full(4, "a"), labels, np.arange(4), rng=rng).reason == "only one level"
    assert metadata_auroc(labels, labels, np.zeros(4), rng=rng).reason == "fewer than 2 patients"
    assert metadata_auroc(labels, np.zeros(4), np.arange(4), rng=rng).reason == "no positive cases"
