"""Recalibration against planted distortions, statsmodels, and the cases in which it has no answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from statsmodels.discrete.discrete_model import Logit

from xvision.methods.calibration import ece
from xvision.methods.recalibration import calibration_slope_intercept, platt, slope_change, temperature
from xvision.methods.scores import auroc


def distorted(rng: np.random.Generator, cases: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Two-class logits (N, 2), ``factor`` times too sharp for the labels."""
    odds = 1.5 * rng.normal(size=cases)
    return np.column_stack([np.zeros(cases), factor * odds]), (rng.random(cases) < expit(odds)).astype(int)


def test_slope_and_intercept_undo_the_planted_distortion() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(size=20_000)
    outcomes = rng.random(20_000) < expit(odds)
    stretched = calibration_slope_intercept(expit(2 * odds), outcomes, np.arange(20_000))
    shifted = calibration_slope_intercept(expit(odds - 0.7), outcomes, np.arange(20_000))
    assert stretched.slope.value == pytest.approx(0.5, abs=0.03)
    assert shifted.slope.value == pytest.approx(1.0, abs=0.06)
    assert shifted.intercept.value == pytest.approx(0.7, abs=0.05)
    assert shifted.intercept.n == 20_000


def test_fit_and_clustered_interval_agree_with_statsmodels() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), rng.integers(1, 5, 60))
    odds = rng.normal(size=60)[patients] + rng.normal(size=len(patients))
    outcomes = rng.random(len(patients)) < expit(0.6 * odds - 0.3)
    fit = calibration_slope_intercept(expit(odds), outcomes, patients)
    covariance = {"groups": patients, "use_correction": False}
    design = np.column_stack([np.ones(len(odds)), odds])
    both = Logit(outcomes.astype(float), design).fit(disp=0, cov_type="cluster", cov_kwds=covariance)
    large = Logit(outcomes.astype(float), design[:, :1], offset=odds)
    only = large.fit(disp=0, cov_type="cluster", cov_kwds=covariance)
    for estimate, value, error in (
        (fit.slope, both.params[1], both.bse[1]),
        (fit.intercept, only.params[0], only.bse[0]),
    ):
        half = 1.959964 * error * np.sqrt(60 / 59)
        assert estimate[:3] == pytest.approx((value, value - half, value + half), abs=1e-5)


def test_copies_of_images_change_nothing() -> None:
    logits, labels = distorted(np.random.default_rng(0), 80, 1.5)
    patients = np.arange(80)
    once = calibration_slope_intercept(expit(logits[:, 1]), labels, patients)
    copied = calibration_slope_intercept(
        expit(np.repeat(logits[:, 1], 3)), np.repeat(labels, 3), np.repeat(patients, 3)
    )
    assert copied.slope[:4] == pytest.approx(once.slope[:4], abs=1e-7)
    assert copied.intercept[:4] == pytest.approx(once.intercept[:4], abs=1e-7)
    cooled = [temperature(np.repeat(logits, k, axis=0), np.repeat(labels, k), np.repeat(patients, k)) for k in (1, 3)]
    assert cooled[0] == pytest.approx(cooled[1], abs=1e-7)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 30.0, 300.0]))
@example(3967, 300.0)  # a full step would end where every probability is 0 or 1
def test_slope_is_a_maximum_or_has_a_reason(seed: int, sharpness: float) -> None:
    rng = np.random.default_rng(seed)
    odds = sharpness * rng.normal(size=12)
    outcomes = rng.random(12) < 0.5
    fit = calibration_slope_intercept(expit(odds), outcomes, np.arange(12))
    if fit.slope.value is None:
        assert fit.slope.reason in {
            "no positive cases",
            "no negative cases",
            "the probabilities separate the outcomes perfectly",
        }
    else:
        assert (fit.slope.low or 0) <= fit.slope.value <= (fit.slope.high or 0)


def test_slope_that_does_not_exist_gives_a_reason() -> None:
    people = np.arange(4)
    for probabilities in ([0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1], [0.1, 0.5, 0.5, 0.9]):
        fit = calibration_slope_intercept(np.array(probabilities), np.array([0, 0, 1, 1]), people)
        assert fit.slope.reason == "the probabilities separate the outcomes perfectly"
        assert fit.intercept.value is not None
    equal = calibration_slope_intercept(np.full(4, 0.2), np.array([0, 0, 1, 1]), people)
    assert equal.slope.reason == "all probabilities are equal"
    assert equal.intercept.value == pytest.approx(np.log(4))
    nobody = calibration_slope_intercept(np.full(4, 0.2), np.zeros(4), people)
    assert nobody.intercept.reason == nobody.slope.reason == "no positive cases"
    alone = calibration_slope_intercept(np.full(4, 0.2), np.array([0, 0, 1, 1]), np.zeros(4))
    assert alone.intercept.reason == "fewer than 2 patients"


def test_certain_and_wrong_probabilities_still_have_a_fit() -> None:
    probabilities, outcomes = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0]), np.array([1, 0, 0, 1, 1, 0])
    fit = calibration_slope_intercept(probabilities, outcomes, np.arange(6))
    # Two of three right on each side: the fitted log-odds are ±log 2 at ±logit(1 - 1e-12).
    assert fit.slope.value == pytest.approx(np.log(2) / np.log(1e12), rel=1e-4)


@pytest.mark.parametrize("factor", [0.5, 2.0, 3.0])
def test_temperature_finds_the_planted_one(factor: float) -> None:
    estimate = temperature(*distorted(np.random.default_rng(0), 20_000, factor), np.arange(20_000))
    assert estimate.value == pytest.approx(factor, rel=0.05)
    assert (estimate.low or 0) < factor < (estimate.high or 0)


def test_temperature_maximises_the_likelihood_of_several_classes() -> None:
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.normal(size=(300, 5)), rng.integers(0, 5, 300)
    logits[np.arange(300), labels] += 2

    def loss(value: float) -> float:
        return float(-log_softmax(logits / value, axis=1)[np.arange(300), labels].mean())

    best = minimize_scalar(loss, bounds=(0.1, 50), method="bounded", options={"xatol": 1e-9})
    assert temperature(logits, labels, np.arange(300)).value == pytest.approx(best.x, rel=1e-5)


def test_temperature_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(0)
    estimates = [temperature(*distorted(rng, 200, 2.0), np.arange(200)) for _ in range(400)]
    inside = [(estimate.low or 0) <= 2 <= (estimate.high or 0) for estimate in estimates]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.035)


def test_temperature_per_group_repairs_calibration_and_keeps_the_ranking() -> None:
    rng = np.random.default_rng(0)
    (first, _), (second, labels) = distorted(rng, 20_000, 1.0), distorted(rng, 20_000, 3.0)
    patients = np.arange(20_000)
    best = temperature(second, labels, patients).value or 0.0
    before, after = (
        ece(expit(odds), labels, patients, rng=rng, bins=10, resamples=2).value or 0.0
        for odds in (second[:, 1], second[:, 1] / best)
    )
    assert best == pytest.approx(3, abs=0.15)
    assert before == pytest.approx(0.146, abs=0.02)
    assert after < 0.02
    ranking = [auroc(odds, labels, patients).value for odds in (second[:, 1], second[:, 1] / best)]
    assert ranking[0] == ranking[1]
    assert first.shape == second.shape


def test_temperature_that_does_not_exist_gives_a_reason() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0]])
    right, wrong, people = np.array([0, 1]), np.array([1, 0]), np.arange(2)
    assert (temperature(logits, right, people).reason or "").startswith("every case is classified correctly")
    assert temperature(logits, wrong, people).reason == "the logits do not favour the labels"
    assert temperature(logits, right, np.zeros(2)).reason == "fewer than 2 patients"
    rng = np.random.default_rng(3)
    vague = temperature(rng.normal(size=(60, 2)), rng.integers(0, 2, 60), np.arange(60))
    assert (vague.reason or "").startswith("the labels hardly follow the logits")
    assert temperature(logits[:0], right[:0], people[:0]).reason == "no cases"


class _Logits(ClassifierMixin, BaseEstimator):
    """A classifier of scikit-learn's kind whose features are the logits."""

    def fit(self, logits: np.ndarray, labels: np.ndarray) -> _Logits:
        self.classes_ = np.unique(labels)
        return self

    def decision_function(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def predict(self, logits: np.ndarray) -> np.ndarray:
        return self.classes_[logits.argmax(axis=1)]


def test_temperature_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, labels = 2 * rng.normal(size=(400, 4)), rng.integers(0, 4, 400)
    logits[np.arange(400), labels] += 1.5
    frozen = FrozenEstimator(_Logits().fit(logits, labels))
    peer = CalibratedClassifierCV(frozen, method="temperature").fit(logits, labels)
    found = temperature(logits, labels, np.arange(400)).value or 0.0
    assert softmax(logits / found, axis=1) == pytest.approx(peer.predict_proba(logits), abs=1e-6)


def test_temperature_of_doubled_logits_is_two_and_leaves_accuracy_alone() -> None:
    rng = np.random.default_rng(1)
    odds = 2 * rng.normal(size=200_000)
    labels = (rng.random(len(odds)) < expit(odds)).astype(int)
    logits = np.column_stack([np.zeros(len(odds)), 2 * odds])
    found = temperature(logits, labels, np.arange(len(odds))).value or 0.0
    assert found == pytest.approx(2, rel=0.02)
    assert np.array_equal((logits / found).argmax(axis=1), logits.argmax(axis=1))


def test_platt_agrees_with_statsmodels_and_undoes_the_distortion() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(size=5000)
    outcomes = rng.random(5000) < expit(0.6 * odds - 0.3)
    found = platt(expit(odds), outcomes, np.arange(5000))
    peer = Logit(outcomes.astype(float), np.column_stack([np.ones(5000), odds])).fit(disp=0)
    assert (found.intercept.value, found.slope.value) == pytest.approx(tuple(peer.params), abs=1e-6)
    assert (found.slope.low or 0) < 0.6 < (found.slope.high or 0)
    again = platt(expit(peer.params[0] + peer.params[1] * odds), outcomes, np.arange(5000))
    assert (again.intercept.value, again.slope.value) == pytest.approx((0.0, 1.0), abs=1e-6)
    assert platt(np.full(4, 0.2), np.array([0, 0, 1, 1]), np.arange(4)).slope.reason == "all probabilities are equal"
    assert platt(np.array([]), np.array([]), np.array([])).slope.reason == "no cases"


def test_slope_change_of_another_temperature_is_exact_and_paired() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(150), 2)
    odds = 2 * rng.normal(size=300)
    outcomes = rng.random(300) < expit(odds / 2)
    before = calibration_slope_intercept(expit(odds), outcomes, patients).slope
    found = slope_change(expit(odds), expit(odds / 1.7), outcomes, patients)
    # A slope on log-odds divided by 1.7 is 1.7 times as large, in every sample: the interval scales with it.
    assert found[:4] == pytest.approx((*(0.7 * (each or 0.0) for each in before[:3]), 150), abs=1e-9)
    same = slope_change(expit(odds), expit(odds), outcomes, patients)
    assert same[:3] == (0.0, 0.0, 0.0)
    assert slope_change(expit(odds), np.full(300, 0.5), outcomes, patients).reason == "all probabilities are equal"


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_order_of_cases_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (logits, labels), order = distorted(rng, 60, 2.0), rng.permutation(60)
    patients = rng.integers(0, 40, 60)
    chances = expit(logits[:, 1])
    one = (temperature(logits, labels, patients), *platt(chances, labels, patients))
    other = (
        temperature(logits[order], labels[order], patients[order]),
        *platt(chances[order], labels[order], patients[order]),
    )
    for first, second in zip(one, other, strict=True):
        assert first.reason == second.reason
        assert first.value is None or first[:3] == pytest.approx(second[:3], rel=1e-6, abs=1e-8)


def test_probabilities_that_differ_by_rounding_have_no_slope() -> None:
    rng = np.random.default_rng(0)
    outcomes = rng.random(200) < 0.7
    nearly = np.where(rng.random(200) < 0.5, 1 - 2e-12, 1 - 2.0001e-12)
    fit = calibration_slope_intercept(nearly, outcomes, np.arange(200))
    assert fit.slope.reason == "all probabilities are equal"
    assert fit.intercept.value is not None
