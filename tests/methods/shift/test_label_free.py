"""Accuracy expected without labels: identities on the reference, known failures, and an independent computation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from xvision.errors import DataError
from xvision.methods.intervals import Estimate
from xvision.methods.shift.label_free import Answered, Expected, expected_accuracy, recalibrated

RNG = np.random.default_rng


def drawn(
    seed: int, count: int, *, prevalence: float = 0.5, separation: float = 2.0, threshold: float = 0.5
) -> Answered:
    """Scores of two normals; probabilities are right for a prevalence of one half. Two images a patient."""
    rng = RNG(seed)
    labels = (rng.random(count) < prevalence).astype(int)
    p = expit(separation * rng.normal(separation * (labels - 0.5), 1))
    return Answered(np.stack([1 - p, p], axis=1), (p >= threshold).astype(int), labels, np.arange(count) // 2)


def by_name(found: tuple[Expected, ...]) -> dict[tuple[str, str], Estimate]:
    return {(each.figure, each.method): each.estimate for each in found}


@given(st.integers(0, 10_000), st.integers(2, 60), st.sampled_from([None, 1]), st.sampled_from([1, 5, 8]))
@settings(max_examples=30, deadline=None)
def test_the_reference_gets_its_own_accuracy_exactly(seed: int, count: int, positive: int | None, digits: int) -> None:
    """Ties and a threshold that is not one half included."""
    answered = drawn(seed, count, threshold=0.3, separation=1.0)
    answered = answered._replace(probabilities=answered.probabilities.round(digits))
    found = by_name(expected_accuracy(answered, answered, positive=positive, rng=RNG(0), resamples=2))
    accuracy = (answered.labels == answered.decisions).mean()
    for method in ("ATC", "ATC, entropy", "DoC", "CM-ATC", "CM-DoC"):
        estimate = found["accuracy", method]
        assert estimate.value is None or estimate.value == pytest.approx(accuracy, abs=1e-9)
    if positive is None:
        return
    for figure, code in (("sensitivity", 1), ("specificity", 0)):
        truth = (
            (answered.decisions[answered.labels == code] == code).mean() if (answered.labels == code).any() else None
        )
        for method in ("CM-ATC", "CM-DoC"):
            value = found[figure, method].value
            assert value is None or value == pytest.approx(truth, abs=1e-9)


def test_cbpe_expects_what_calibrated_probabilities_say() -> None:
    reference, current = drawn(0, 50), drawn(1, 20_000)
    found = by_name(expected_accuracy(reference, current, positive=1, rng=RNG(0), resamples=50))
    p, decided = current.probabilities[:, 1], current.decisions == 1
    assert found["accuracy", "CBPE"].value == pytest.approx(current.probabilities.max(axis=1).mean())
    assert found["sensitivity", "CBPE"].value == pytest.approx(p[decided].sum() / p.sum())
    assert found["specificity", "CBPE"].value == pytest.approx((1 - p)[~decided].sum() / (1 - p).sum())
    truth = (current.labels == current.decisions).mean()
    assert found["accuracy", "CBPE"].value == pytest.approx(truth, abs=0.01)


def test_a_harder_place_is_foreseen_and_the_error_is_told() -> None:
    """Covariate shift: the current cases lie nearer the threshold, where probabilities are still right."""
    rng = RNG(3)
    reference = drawn(2, 4000)
    p = expit(rng.normal(0, 1, 4000))
    labels = (rng.random(4000) < p).astype(int)
    current = Answered(np.stack([1 - p, p], axis=1), (p >= 0.5).astype(int), labels, np.arange(4000))
    truth = (labels == current.decisions).mean()
    assert (reference.labels == reference.decisions).mean() - truth > 0.1
    for each in expected_accuracy(reference, current, positive=1, rng=RNG(0), resamples=100):
        assert each.error is not None
        if each.figure != "accuracy":
            continue
        assert each.error.value == pytest.approx(each.estimate.value - truth)
        assert each.error.low <= each.error.value <= each.error.high
        if each.method in {"DoC", "CM-DoC", "CBPE"}:
            assert each.error.value == pytest.approx(0.0, abs=0.03)


def test_prevalence_shift_misleads_the_confusion_matrix_without_a_sign() -> None:
    """The known failure: with 8 instead of 50 ill in 100, the expected sensitivity is far off the truth."""
    reference, current = drawn(4, 8000), drawn(5, 8000, prevalence=0.08)
    for each in expected_accuracy(reference, current, positive=1, rng=RNG(0), resamples=50):
        if each.figure == "sensitivity":
            assert each.error is not None
            assert each.error.high < -0.1


def test_atc_equals_its_definition() -> None:
    reference, current = drawn(6, 400), drawn(7, 300, separation=1.0)
    found = by_name(expected_accuracy(reference, current, positive=1, rng=RNG(0), resamples=20))
    for name, score in (("ATC", lambda p: p.max(axis=1)), ("ATC, entropy", lambda p: (p * np.log(p)).sum(axis=1))):
        scores = np.sort(score(reference.probabilities))
        threshold = scores[(reference.labels != reference.decisions).sum()]
        assert found["accuracy", name].value == pytest.approx((score(current.probabilities) >= threshold).mean())
    right = 0
    for code in (0, 1):
        mine, theirs = (part.decisions == code for part in (reference, current))
        scores = np.sort(reference.probabilities[mine, code])
        threshold = scores[(reference.labels[mine] != code).sum()]
        right += (current.probabilities[theirs, code] >= threshold).sum()
    assert found["accuracy", "CM-ATC"].value == pytest.approx(right / 300)


def test_the_interval_covers_the_expected_value() -> None:
    target = by_name(expected_accuracy(drawn(8, 40_000), drawn(9, 40_000), positive=1, rng=RNG(0), resamples=2))
    held = dict.fromkeys(target, 0)
    for seed in range(60):
        places = drawn(100 + seed, 150), drawn(500 + seed, 150)
        for key, estimate in by_name(expected_accuracy(*places, positive=1, rng=RNG(seed), resamples=200)).items():
            held[key] += estimate.low <= target[key].value <= estimate.high
    assert min(held.values()) >= 51, held  # 95 % and 3 standard errors


def test_what_a_method_cannot_say_has_a_reason() -> None:
    reference = drawn(10, 40)
    never = reference._replace(decisions=np.zeros(40, int))
    found = by_name(expected_accuracy(never, reference, positive=1, rng=RNG(0), resamples=20))
    assert "does not occur" in found["accuracy", "CM-DoC"].reason
    assert "does not occur" in found["sensitivity", "CM-ATC"].reason
    assert found["accuracy", "CBPE"].value is not None
    alone = reference._replace(patients=np.zeros(40))
    assert (
        by_name(expected_accuracy(alone, reference, positive=1, rng=RNG(0)))["accuracy", "ATC"].reason
        == "fewer than 2 patients"
    )
    unlabelled = reference._replace(labels=None)
    assert all(
        each.error is None for each in expected_accuracy(reference, unlabelled, positive=1, rng=RNG(0), resamples=9)
    )
    with pytest.raises(DataError, match="no labels"):
        expected_accuracy(unlabelled, reference, positive=1, rng=RNG(0))
    none = Answered(*(part[:0] for part in reference))
    with pytest.raises(DataError, match="40 reference and 0 current"):
        expected_accuracy(reference, none, positive=1, rng=RNG(0))
    wrong = reference._replace(labels=1 - reference.decisions)
    assert by_name(expected_accuracy(wrong, reference, positive=None, rng=RNG(0)))["accuracy", "ATC"].value == 0.0


def test_more_classes_have_an_accuracy_only() -> None:
    rng = RNG(11)
    p = rng.dirichlet(np.ones(3), 5000)
    labels = (rng.random(5000)[:, None] > p.cumsum(axis=1)).sum(axis=1)
    answered = Answered(p, p.argmax(axis=1), labels, np.arange(5000))
    found = by_name(expected_accuracy(answered, answered, positive=None, rng=RNG(0), resamples=10))
    assert {figure for figure, _ in found} == {"accuracy"}
    assert found["accuracy", "CBPE"].value == pytest.approx(p.max(axis=1).mean())
    assert found["accuracy", "CM-ATC"].value == pytest.approx((labels == answered.decisions).mean())


def test_calibration_is_learnt_from_the_reference() -> None:
    """Log-odds reported as 2 z − 1 where z is right; for three classes, logits of twice the size."""
    rng = RNG(12)
    z = rng.normal(0, 1.5, 20_000)
    labels = (rng.random(20_000) < expit(z)).astype(int)
    logits = np.stack([np.zeros_like(z), 2 * z - 1], axis=1)
    np.testing.assert_allclose(recalibrated(logits, labels, logits)[:, 1], expit(z), atol=0.02)
    three = np.log(rng.dirichlet(np.ones(3), 20_000))
    chosen = (rng.random(20_000)[:, None] > np.exp(three).cumsum(axis=1)).sum(axis=1)
    np.testing.assert_allclose(recalibrated(2 * three, chosen, 2 * three), np.exp(three), atol=0.02)
    one_sided = recalibrated(logits[:50], np.zeros(50, int), logits[:50])
    assert np.isfinite(one_sided).all()
    apart = recalibrated(logits[:50], (z[:50] > 0).astype(int), logits[:50])
    assert np.isfinite(apart).all()
