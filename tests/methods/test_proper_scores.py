"""Proper scores against worked examples, exact identities, scikit-learn and their own parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from xvision.methods.proper_scores import brier, brier_part_estimates, brier_parts, log_losses, mean_loss

quick = settings(deadline=None, max_examples=30)


def calibrated(rng: np.random.Generator, cases: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities from Beta(1, 3) and outcomes that follow them."""
    probabilities = rng.beta(1, 3, cases)
    return probabilities, rng.random(cases) < probabilities, np.arange(cases)


@quick
@given(st.integers(0, 10**6), st.sampled_from([None, 5, 15]))
def test_brier_is_the_sum_of_its_parts(seed: int, bins: int | None) -> None:
    rng = np.random.default_rng(seed)
    probabilities, outcomes, _ = calibrated(rng, 60)
    parts = brier_parts(np.round(probabilities, 1) if bins is None else probabilities, outcomes, bins=bins)
    assert parts is not None
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bins
    assert parts.brier == pytest.approx(total, abs=1e-12)
    assert bins is not None or parts.within_bins == pytest.approx(0, abs=1e-15)


def test_brier_parts_of_a_worked_example() -> None:
    # Said 0.2: 1 of 4 happened. Said 0.8: 4 of 4 happened.
    parts = brier_parts(np.repeat([0.2, 0.8], 4), np.array([1, 0, 0, 0, 1, 1, 1, 1]))
    assert parts == pytest.approx((0.115, (0.05**2 + 0.2**2) / 2, 0.375**2, 0.625 * 0.375, 0.0))


def test_brier_agrees_with_scikit_learn_and_the_mean_of_several_classes() -> None:
    rng = np.random.default_rng(0)
    probabilities, outcomes, patients = calibrated(rng, 300)
    estimate = brier(probabilities, outcomes, patients, rng=rng, resamples=2000)
    squared = (probabilities - outcomes) ** 2
    half = 1.96 * squared.std() / np.sqrt(300)
    assert estimate.value == pytest.approx(brier_score_loss(outcomes, probabilities))
    assert (estimate.low, estimate.high) == pytest.approx((squared.mean() - half, squared.mean() + half), abs=0.002)
    both = np.column_stack([1 - probabilities, probabilities])
    doubled = brier(both, outcomes.astype(int), patients, rng=rng, resamples=2)
    assert doubled.value == pytest.approx(2 * (estimate.value or 0))
    assert brier(both[:0], outcomes[:0], patients[:0], rng=rng).reason == "no cases"


@quick
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_estimated_parts_add_up_and_are_the_parts(seed: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    cases = calibrated(rng, 60)
    found = brier_part_estimates(*cases, rng=rng, bins=bins, resamples=20)
    parts = brier_parts(*cases[:2], bins=bins, strategy="mass")
    assert parts is not None
    values = [each.value or 0.0 for each in found]
    assert values[:4] == pytest.approx(list(parts[1:]), abs=1e-12)
    assert values[0] - values[1] + values[2] + values[3] == pytest.approx(parts.brier, abs=1e-12)
    if parts.uncertainty:
        assert values[4] == pytest.approx(1 - parts.brier / parts.uncertainty)
    for each in found:
        assert each.value is None or (each.low or 0.0) <= each.value <= (each.high or 0.0)


def test_intervals_of_the_parts_cover() -> None:
    # Said 0.2 and 0.8, true rates 0.3 and 0.7: reliability 0.01, resolution 0.04, uncertainty 0.25.
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(150):
        probabilities = np.repeat([0.2, 0.8], 200)
        outcomes = rng.random(400) < np.repeat([0.3, 0.7], 200)
        found = brier_part_estimates(probabilities, outcomes, np.arange(400), rng=rng, bins=2, resamples=200)
        inside.append([(e.low or 0) <= t <= (e.high or 0) for e, t in zip(found, (0.01, 0.04), strict=False)])
    assert (np.mean(inside, axis=0) > 0.88).all()


def test_noise_that_resampling_adds_is_taken_from_the_interval() -> None:
    # Resampling 100 cases in 15 bins adds as much noise again: unshifted, the whole interval would lie above the value.
    rng = np.random.default_rng(0)
    found = brier_part_estimates(*calibrated(rng, 100), rng=rng)
    for part in (found.reliability, found.resolution):
        assert (part.low or 0.0) < 0.8 * (part.value or 0.0)


def test_parts_without_cases_patients_or_both_outcomes_say_so() -> None:
    rng, nothing = np.random.default_rng(0), np.array([])
    assert brier_parts(nothing, nothing) is None
    assert {each.reason for each in brier_part_estimates(nothing, nothing, nothing, rng=rng)} == {"no cases"}
    same = brier_part_estimates(np.full(9, 0.3), np.zeros(9), np.arange(9), rng=rng, resamples=20)
    assert (same.resolution.value, same.scaled.reason) == (0.0, "undefined on these cases")


def test_log_loss_agrees_with_scikit_learn_and_is_finite() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 4)), rng.integers(0, 4, 200)
    losses = log_losses(logits, labels)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = mean_loss(losses, np.arange(200), rng=rng, resamples=200)
    assert found.value == pytest.approx(log_loss(labels, chances), abs=1e-12)
    assert (found.low or 0) < (found.value or 0) < (found.high or 0)
    assert log_losses(np.array([[1000.0, 0.0]]), np.array([1])).tolist() == [1000.0]


def test_squares_have_no_limit_below_0() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        predicted = rng.uniform(0.4, 0.6, 40)
        parts = brier_part_estimates(
            predicted, rng.random(40) < predicted, np.arange(40), rng=rng, bins=5, resamples=100
        )
        assert (parts.reliability.low or 0.0) >= 0
        assert (parts.resolution.low or 0.0) >= 0
