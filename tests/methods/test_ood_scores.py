"""Scores of unlikeness against closed forms, scikit-learn and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis as of_scipy
from scipy.stats import norm
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.metrics import average_precision_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from xvision.errors import ConfigError, DataError
from xvision.methods.intervals import Estimate
from xvision.methods.ood_scores import (
    energy,
    feature_norm,
    fpr_at_tpr,
    gaussian,
    knn,
    max_logit,
    msp,
    vim,
)
from xvision.methods.scores import auprc, auroc


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def fpr(scores: np.ndarray, outside: np.ndarray, patients: np.ndarray | None = None, resamples: int = 50) -> Estimate:
    named = np.arange(len(scores)) if patients is None else patients
    return fpr_at_tpr(scores, outside, named, rng=draw(), resamples=resamples)


def test_scores_of_logits_are_their_formulas() -> None:
    logits = draw().normal(size=(20, 4)) * 4
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert msp(logits) == pytest.approx(1 - shares.max(axis=1))
    assert max_logit(logits).tolist() == (-logits.max(axis=1)).tolist()
    assert energy(logits) == pytest.approx(-np.log(np.exp(logits).sum(axis=1)))
    assert energy(logits, 2.5) == pytest.approx(-2.5 * np.log(np.exp(logits / 2.5).sum(axis=1)))
    huge = np.array([[0.0, 50.0], [0.0, 60.0]])
    assert msp(huge)[0] > msp(huge)[1] > 0  # 1 - p is 0 for both


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-20, 20))
def test_neither_the_order_of_classes_nor_what_is_added_to_all_counts_where_it_must_not(
    seed: int, shift: float
) -> None:
    logits = draw(seed).normal(size=(5, 3)) * 3
    moved = logits[:, draw(seed + 1).permutation(3)]
    for score in (msp, max_logit, energy):
        assert score(moved) == pytest.approx(score(logits))
    assert msp(logits + shift) == pytest.approx(msp(logits), rel=1e-6)
    assert energy(logits + shift) == pytest.approx(energy(logits) - shift)


def test_the_norm_is_lower_for_a_longer_embedding() -> None:
    assert feature_norm(np.array([[3.0, 4.0], [0.0, 1.0]])).tolist() == [-5.0, -1.0]


def test_distances_are_those_of_scikit_learn() -> None:
    rng = draw(1)
    reference, points = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(30, 5)) * 3
    peer = EmpiricalCovariance().fit(reference)
    assert gaussian(reference, shrinkage=0.0).distances(points) == pytest.approx(peer.mahalanobis(points), abs=1e-8)
    shrunk = LedoitWolf().fit(reference)
    found = gaussian(reference)
    assert found.shrinkage == pytest.approx(shrunk.shrinkage_)
    assert found.distances(points) == pytest.approx(shrunk.mahalanobis(points), abs=1e-8)


def test_distances_to_classes_share_the_covariance_within_them() -> None:
    rng = draw(2)
    labels = rng.integers(0, 3, 300)
    reference = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)) + labels[:, None] * 5
    points = rng.normal(size=(10, 4)) * 6
    means = np.stack([reference[labels == code].mean(axis=0) for code in range(3)])
    within = np.cov((reference - means[labels]).T, bias=True)
    inverse = np.linalg.inv(within)
    expected = [min(of_scipy(point, mean, inverse) ** 2 for mean in means) for point in points]
    assert gaussian(reference, labels * 7, shrinkage=0.0).distances(points) == pytest.approx(expected)
    shrunk = LedoitWolf(assume_centered=True).fit(reference - means[labels])
    expected = [min(of_scipy(point, mean, shrunk.precision_) ** 2 for mean in means) for point in points]
    assert gaussian(reference, labels).distances(points) == pytest.approx(expected)


def test_two_classes_are_told_apart_as_the_closed_form_says() -> None:
    """Distance to the nearest of one mean at 0, outside cases at mu: |x|² is chi², central and not; D = 1 has a closed form."""
    rng = draw(3)
    reference = rng.normal(size=(20_000, 1))
    for shift in (0.0, 1.0, 2.0, 6.0):
        inside, outside = rng.normal(size=4000), rng.normal(size=4000) + shift
        scores = gaussian(reference).distances(np.concatenate((inside, outside))[:, None])
        found = auroc(scores, np.arange(8000) >= 4000, np.arange(8000)).value
        grid = np.linspace(0, 12, 40_001)
        below = 2 * norm.cdf(grid) - 1
        density = norm.pdf(grid - shift) + norm.pdf(grid + shift)
        assert found == pytest.approx(np.trapezoid(below * density, grid), abs=0.015)
        assert shift < 6 or (found or 0) > 0.999


def test_the_difference_of_two_distances_reaches_the_best_possible_ranking() -> None:
    """N(0, I) and N(mu, I): distance to 0 less distance to mu is the linear discriminant, whose AUROC is Phi(|mu| / sqrt 2)."""
    rng, shift = draw(4), np.array([1.0, 0.5, 0.0])
    known, other = rng.normal(size=(5000, 3)), rng.normal(size=(5000, 3)) + shift
    points = np.concatenate((rng.normal(size=(4000, 3)), rng.normal(size=(4000, 3)) + shift))
    scores = gaussian(known, shrinkage=0.0).distances(points) - gaussian(other, shrinkage=0.0).distances(points)
    found = auroc(scores, np.arange(8000) >= 4000, np.arange(8000)).value
    assert found == pytest.approx(norm.cdf(np.linalg.norm(shift) / math.sqrt(2)), abs=0.015)


def test_fewer_cases_than_dimensions_are_shrunk_and_without_that_refused() -> None:
    reference = draw(5).normal(size=(8, 20))
    assert np.isfinite(gaussian(reference, np.arange(8) % 2).distances(reference)).all()
    with pytest.raises(DataError, match="8 embeddings of 20 dimensions has no inverse"):
        gaussian(reference, shrinkage=0.0)
    with pytest.raises(DataError, match="do not vary"):
        gaussian(np.ones((8, 3)))


def test_neighbours_are_those_of_scikit_learn_and_of_sorting() -> None:
    rng = draw(6)
    reference, points = rng.normal(size=(60, 7)), rng.normal(size=(9, 7)) * 4
    unit, ours = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (reference, points))
    sorted_distances = np.sort(np.linalg.norm(ours[:, None] - unit[None], axis=2), axis=1)
    assert knn(points, reference, neighbours=5) == pytest.approx(sorted_distances[:, 4])
    peer = NearestNeighbors(n_neighbors=10, algorithm="ball_tree").fit(unit).kneighbors(ours)[0][:, -1]
    assert knn(points, reference) == pytest.approx(peer)
    assert knn(3 * points, reference) == pytest.approx(peer)  # length does not count
    with pytest.raises(ConfigError, match="61 neighbours for a reference of 60"):
        knn(points, reference, neighbours=61)


def test_virtual_logit_is_the_length_outside_the_main_directions() -> None:
    """Four axes of falling variance: the two strongest are the main ones, what is left is the length along the others."""
    rng = draw(7)
    reference = rng.normal(size=(4000, 4)) * np.array([10.0, 5.0, 0.2, 0.1]) + 3
    logits = rng.normal(size=(4000, 3)) + np.array([4.0, 0.0, 0.0])
    points = rng.normal(size=(50, 4)) * 2
    point_logits = rng.normal(size=(50, 3))
    along = np.hypot(*(reference - reference.mean(axis=0))[:, 2:].T)
    outside = np.hypot(*(points - reference.mean(axis=0))[:, 2:].T)
    expected = logits.max(axis=1).mean() / along.mean() * outside + energy(point_logits)
    assert vim(reference, logits).scores(points, point_logits) == pytest.approx(expected, rel=0.02)
    with pytest.raises(DataError, match="rank 1"):
        vim(rng.normal(size=(5, 1)), np.ones((5, 2)))
    with pytest.raises(DataError, match="a mean of -1"):
        vim(reference, np.full((4000, 3), -1.0))


def test_identical_sets_pass_as_often_and_rank_at_chance() -> None:
    scores = np.tile(draw(8).normal(size=400), 2)
    outside = np.arange(800) >= 400
    assert fpr(scores, outside).value == pytest.approx(0.95)
    assert auroc(scores, outside, np.arange(800)).value == pytest.approx(0.5)
    assert fpr(np.zeros(10), np.arange(10) >= 5).value == 1.0  # ties pass together


def test_the_share_that_passes_is_that_of_scikit_learn() -> None:
    rng = draw(9)
    for scores in (rng.normal(size=300), rng.integers(0, 9, 300).astype(float)):
        outside = rng.random(300) < 0.4
        shifted = scores + outside
        false, true, _ = roc_curve(~outside, -shifted, drop_intermediate=False)
        assert fpr(shifted, outside).value == pytest.approx(false[np.argmax(true >= 0.95 - 1e-12)])


def test_the_interval_of_the_share_covers_the_truth() -> None:
    rng, covered = draw(10), 0
    truth = norm.cdf(norm.ppf(0.95) - 1.5)
    outside = np.arange(200) >= 100
    for _ in range(120):
        scores = rng.normal(size=200) + 1.5 * outside
        found = fpr_at_tpr(scores, outside, np.arange(200), rng=rng, resamples=200)
        covered += (found.low or 0) <= truth <= (found.high or 1)
    assert covered / 120 >= 0.88  # the quantile of 100 cases is resampled coarsely


def test_perfectly_told_apart_sets_keep_an_interval() -> None:
    found = fpr(np.arange(40.0), np.arange(40) >= 20)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1.96**2 / (20 + 1.96**2), abs=1e-4)


def test_precision_of_both_sides_is_that_of_scikit_learn() -> None:
    rng = draw(11)
    outside = rng.random(200) < 0.3
    scores = rng.integers(0, 20, 200) + 4 * outside
    for sign, truth in ((1, outside), (-1, ~outside)):
        found = auprc(sign * scores, truth, np.arange(200), rng=rng, resamples=20).value
        assert found == pytest.approx(average_precision_score(truth, sign * scores))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(10, 40))
def test_neither_order_nor_a_rising_transform_counts(seed: int, cases: int) -> None:
    rng = draw(seed)
    scores, outside = rng.integers(0, 10, cases).astype(float), np.arange(cases) % 2 == 0
    order = rng.permutation(cases)
    assert fpr(np.exp(scores[order]), outside[order], order, resamples=20) == fpr(scores, outside, resamples=20)


def test_bad_input_is_named() -> None:
    assert fpr(np.ones(3), np.ones(3, dtype=bool)).reason == "no ordinary images"
    assert fpr(np.ones(3), np.zeros(3, dtype=bool)).reason == "no outside images"
    with pytest.raises(DataError, match="no finite table"):
        msp(np.array([[math.nan, 1.0]]))
    with pytest.raises(DataError, match="no finite table"):
        feature_norm(np.ones(3))
