"""Ranking measures against the published DeLong example, slow double loops, scikit-learn, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from xvision.errors import DataError, ModelError
from xvision.methods.intervals import Estimate, wilson
from xvision.methods.scores import (
    Scored,
    auprc,
    auroc,
    auroc_difference,
    auroc_difference_paired,
    multiclass_auroc,
)

quick = settings(deadline=None, max_examples=30)

# DeLong, DeLong and Clarke-Pearson (1988): albumin, total protein, K-G score, outcome of 43 patients with all three tests.
_ROWS = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""
OVARIAN = np.array(_ROWS.split(), float).reshape(-1, 4)
ALBUMIN, PROTEIN, KG, BENEFIT = OVARIAN[:, 0], OVARIAN[:, 1], 10 - OVARIAN[:, 2], OVARIAN[:, 3]


def spread(estimate: Estimate) -> float:
    """Standard error of a Wald interval."""
    return ((estimate.high or 0) - (estimate.low or 0)) / 2 / 1.959964


def images(rng: np.random.Generator, patients: int = 40) -> Scored:
    """Repeated images per patient, tied scores, and patients with both labels."""
    owners = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    labels = (rng.random(len(owners)) < rng.beta(1, 1, patients)[owners]).astype(int)
    labels[:2] = 0, 1
    scores = np.round(labels + rng.normal(size=patients)[owners] + rng.normal(size=len(owners)), 1)
    return Scored(scores, labels, owners)


def slow_variance(first: Scored, second: np.ndarray) -> float:
    """Obuchowski (1997) written out as printed, for the difference of two scores on the same images."""

    def kernel(one: float, other: float) -> float:
        return 1.0 if one > other else 0.5 if one == other else 0.0

    positives, negatives = np.flatnonzero(first.labels == 1), np.flatnonzero(first.labels == 0)
    m, n = len(positives), len(negatives)
    pair = [
        [kernel(first.scores[i], first.scores[j]) - kernel(second[i], second[j]) for j in negatives] for i in positives
    ]
    table = np.array(pair)
    area = table.mean()
    sums = {}
    for patient in np.unique(first.patients):
        up = [table[row].mean() for row, i in enumerate(positives) if first.patients[i] == patient]
        down = [table[:, column].mean() for column, j in enumerate(negatives) if first.patients[j] == patient]
        sums[patient] = (sum(up) - len(up) * area, sum(down) - len(down) * area, len(up), len(down))
    with_positive = sum(1 for entry in sums.values() if entry[2])
    with_negative = sum(1 for entry in sums.values() if entry[3])
    s10 = with_positive / ((with_positive - 1) * m) * sum(entry[0] ** 2 for entry in sums.values())
    s01 = with_negative / ((with_negative - 1) * n) * sum(entry[1] ** 2 for entry in sums.values())
    s11 = len(sums) / (len(sums) - 1) * sum(entry[0] * entry[1] for entry in sums.values())
    return float(s10 / m + s01 / n + 2 * s11 / (m * n))


@pytest.mark.parametrize(
    ("test", "area", "error", "low", "high"),
    [
        (ALBUMIN, 0.7366, 0.0927, 0.5549, 0.9182),
        (PROTEIN, 0.6478, 0.1000, 0.4518, 0.8439),
        (KG, 0.7258, 0.1028, 0.5243, 0.9273),
    ],
)
def test_auroc_agrees_with_the_published_delong_example(
    test: np.ndarray, area: float, error: float, low: float, high: float
) -> None:
    estimate = auroc(test, BENEFIT, np.arange(43), scale="linear")
    assert (*estimate[:3], spread(estimate)) == pytest.approx((area, low, high, error), abs=5.1e-5)
    assert (estimate.n, estimate.method) == (43, "DeLong, linear scale")


@pytest.mark.parametrize(("test", "gap", "error"), [(ALBUMIN, 0.0108, 0.0953), (PROTEIN, -0.0780, 0.1046)])
def test_paired_difference_agrees_with_the_published_contrasts(test: np.ndarray, gap: float, error: float) -> None:
    estimate = auroc_difference_paired(test, KG, BENEFIT, np.arange(43), scale="linear")
    assert (estimate.value, spread(estimate)) == pytest.approx((gap, error), abs=5.1e-5)


def test_logit_scale_has_the_same_standard_error_by_the_delta_rule() -> None:
    linear, logit = (auroc(ALBUMIN, BENEFIT, np.arange(43), scale=scale) for scale in ("linear", "logit"))
    low, high, value = logit.low or 0, logit.high or 0, logit.value or 0
    width = (np.log(high / (1 - high)) - np.log(low / (1 - low))) / 2 / 1.959964
    assert width * value * (1 - value) == pytest.approx(spread(linear))


@pytest.mark.parametrize("seed", range(5))
def test_clustered_variance_agrees_with_a_double_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases = images(rng, 15)
    estimate = auroc(*cases, scale="linear", level=0.1)  # a narrow interval is not cut at 0 or 1
    deviation = ((estimate.high or 0) - (estimate.low or 0)) / 2 / stats.norm.ppf(0.55)
    assert deviation**2 == pytest.approx(slow_variance(cases, np.zeros(len(cases.scores))), rel=1e-9)
    assert estimate.method == "Obuchowski, linear scale"


@pytest.mark.parametrize("seed", range(3))
def test_paired_clustered_difference_agrees_with_a_double_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases = images(rng, 15)
    other = cases.scores + rng.normal(size=len(cases.scores))
    estimate = auroc_difference_paired(*cases[:1], other, *cases[1:], scale="linear", level=0.1)
    deviation = ((estimate.high or 0) - (estimate.low or 0)) / 2 / stats.norm.ppf(0.55)
    assert deviation**2 == pytest.approx(slow_variance(cases, other), rel=1e-9)


@quick
@given(st.integers(0, 10**6))
def test_auroc_laws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels, patients = images(rng, int(rng.integers(3, 25)))
    estimate = auroc(scores, labels, patients)
    assert estimate.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert 0 <= (estimate.low or 0) <= (estimate.value or 0) <= (estimate.high or 0) <= 1
    assert (estimate.low or 0) < (estimate.high or 0)
    shuffle = rng.permutation(len(labels))
    for same in (
        auroc(np.exp(scores / 4) - 7, labels, patients),
        auroc(-scores, 1 - labels, patients),
        auroc(scores[shuffle], labels[shuffle], patients[shuffle]),
        auroc(np.tile(scores, 3), np.tile(labels, 3), np.tile(patients, 3)),
    ):
        assert same[:4] == pytest.approx(estimate[:4], abs=1e-9)
    mirrored = auroc(-scores, labels, patients)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - (estimate.high or 0), 1 - (estimate.low or 0)), abs=1e-9)


def test_auroc_of_two_normal_distributions() -> None:
    grid = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    labels = np.repeat([0, 1], 2000)
    estimate = auroc(np.concatenate([grid, grid + 1]), labels, np.arange(4000))
    assert estimate.value == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=1e-3)


def test_auroc_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(0)
    shift, labels = np.sqrt(2) * stats.norm.ppf(0.85), np.arange(150) < 50
    inside = [
        (estimate.low or 0) <= 0.85 <= (estimate.high or 0)
        for estimate in (auroc(rng.normal(size=150) + shift * labels, labels, np.arange(150)) for _ in range(1000))
    ]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.021)


def test_perfect_separation_has_an_honest_interval() -> None:
    labels = np.arange(50) < 10
    estimate = auroc(labels * 1.0, labels, np.arange(50))
    assert estimate[:4] == (1.0, *wilson(10, 10), 50)
    assert estimate.method == "Wilson on the patients of the smaller class"
    repeated = auroc(labels * 1.0, labels, np.arange(50) // 2)
    assert repeated[:3] == (1.0, *wilson(5, 5))


def test_equal_scores_and_single_patients_have_no_visible_variance() -> None:
    constant = auroc(np.zeros(20), np.arange(20) < 8, np.arange(20))
    assert constant[:3] == (0.5, *wilson(4, 8))
    lone = auroc(np.array([2.0, 1, 3, 0, 0]), np.array([1, 0, 0, 0, 0]), np.arange(5))
    assert lone[:3] == (0.75, *wilson(0.75, 1))


@pytest.mark.parametrize(
    ("labels", "reason"), [([0, 0], "no positive cases"), ([1, 1], "no negative cases"), ([], "no cases")]
)
def test_one_class_gives_a_reason(labels: list[int], reason: str) -> None:
    count = len(labels)
    assert auroc(np.arange(count), np.array(labels), np.arange(count)).reason == reason
    other = Scored(np.arange(2), np.array([0, 1]), np.arange(2))
    difference = auroc_difference(other, Scored(np.arange(count), np.array(labels), np.arange(count)))
    assert difference.reason == f"{reason} in one of the groups"


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    with pytest.raises(ModelError, match="1 of 2 scores are not a number; find the images"):
        auroc(np.array([0.1, np.nan]), np.array([0, 1]), np.arange(2))
    with pytest.raises(DataError, match=r"2 labels came with scores of shape \(3,\)"):
        auroc(np.zeros(3), np.array([0, 1]), np.arange(2))


def test_difference_of_separate_groups_adds_their_variances() -> None:
    rng = np.random.default_rng(0)
    first = Scored(rng.normal(size=90) + (np.arange(90) < 40), np.arange(90) < 40, np.arange(90))
    second = Scored(rng.normal(size=70) + (np.arange(70) < 30), np.arange(70) < 30, 500 + np.arange(70))
    apart = [auroc(*part, scale="linear") for part in (first, second)]
    gap = auroc_difference(first, second, scale="linear")
    assert gap.value == pytest.approx((apart[0].value or 0) - (apart[1].value or 0))
    assert spread(gap) == pytest.approx(np.hypot(*(spread(part) for part in apart)))
    assert gap.n == 160


def test_difference_counts_patients_shared_by_both_groups() -> None:
    # Two views per patient that show the same: the pair tells much more about the gap than separate patients would.
    rng = np.random.default_rng(0)
    labels = np.arange(100) < 50
    base = rng.normal(size=100) + labels
    views = [Scored(base + 0.1 * rng.normal(size=100), labels, np.arange(100)) for _ in range(2)]
    shared = auroc_difference(*views, scale="linear")
    separate = auroc_difference(views[0], views[1]._replace(patients=100 + np.arange(100)), scale="linear")
    assert spread(shared) < spread(separate) / 3
    paired = auroc_difference_paired(views[0].scores, views[1].scores, labels, np.arange(100), scale="linear")
    assert shared == paired


def test_two_perfect_models_are_not_known_to_be_equal() -> None:
    labels = np.arange(20) < 10
    gap = auroc_difference_paired(labels * 1.0, labels * 2.0, labels, np.arange(20))
    low = wilson(10, 10)[0]
    assert gap[:3] == pytest.approx((0.0, low - 1, 1 - low))


def test_multiclass_auroc_is_one_class_against_the_others() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    estimates = multiclass_auroc(scores, labels, np.arange(60))
    for index in range(3):
        assert estimates[index].value == pytest.approx(roc_auc_score(labels == index, scores[:, index]))
    assert estimates[3].reason == "no positive cases"


@quick
@given(st.integers(0, 10**6))
def test_auprc_agrees_with_scikit_learn_and_contains_its_value(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels, patients = images(rng, int(rng.integers(3, 25)))
    estimate = auprc(scores, labels, patients, rng=np.random.default_rng(0), resamples=50)
    assert estimate.value == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert 0 <= (estimate.low or 0) <= (estimate.value or 0) <= (estimate.high or 0) <= 1
    shuffle = rng.permutation(len(labels))
    again = auprc(scores[shuffle], labels[shuffle], patients[shuffle], rng=np.random.default_rng(0), resamples=50)
    assert again[:4] == pytest.approx(estimate[:4])


def test_auprc_of_weights_is_auprc_of_repeated_rows() -> None:
    scores, labels, patients = images(np.random.default_rng(2), 12)
    drawn = np.random.default_rng(7).integers(12, size=(200, 12))
    expected = []
    for patient_list in drawn:
        rows = np.concatenate([np.flatnonzero(patients == patient) for patient in patient_list])
        if labels[rows].any():
            expected.append(average_precision_score(labels[rows], scores[rows]))
    estimate = auprc(scores, labels, patients, rng=np.random.default_rng(7), resamples=200)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))


def test_auprc_of_perfect_ranking_has_width_and_of_no_positives_a_reason() -> None:
    labels = np.arange(40) < 8
    estimate = auprc(labels * 1.0, labels, np.arange(40), rng=np.random.default_rng(0))
    assert estimate[:4] == (1.0, *wilson(8, 8), 40)
    nothing = auprc(np.zeros(4), np.zeros(4), np.arange(4), rng=np.random.default_rng(0))
    assert nothing.reason == "no positive cases"
