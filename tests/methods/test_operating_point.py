"""Thresholds chosen on tuning cases: by hand, against brute force over repeated rows, and what their choice costs in certainty."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import confusion_matrix, roc_curve

from xvision.errors import DataError
from xvision.methods.decision import Decision, decide
from xvision.methods.intervals import difference, proportion
from xvision.methods.operating_point import (
    RATES,
    Judged,
    OperatingPoint,
    Rule,
    called,
    chosen_thresholds,
    resampled_thresholds,
    tuned_differences,
    tuned_rates,
)

quick = settings(deadline=None, max_examples=60)

SCORES = np.array([0.9, 0.8, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2])
POSITIVE = np.array([1, 1, 0, 1, 0, 1, 0, 0], dtype=bool)


def cases(scores: np.ndarray, positive: np.ndarray) -> Judged:
    return Judged(scores, positive, np.arange(len(scores)).astype(str))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule("sensitivity", 0.25), 0.9),
        (Rule("sensitivity", 0.26), 0.8),
        (Rule("sensitivity", 0.75), 0.6),
        (Rule("sensitivity", 0.99), 0.4),
        (Rule("fpr", 0.24), 0.9),  # the tied pair at 0.8 goes together
        (Rule("fpr", 0.25), 0.6),
        (Rule("fpr", 0.5), 0.4),
        (Rule("fpr", 0.99), 0.3),
        (Rule("net benefit", 0.5), 0.6),  # 3 found, 1 false: 2 / 8, more than anywhere else
        (Rule("net benefit", 0.05), 0.4),
        (Rule("net benefit", 0.9), 0.9),
    ],
)
def test_thresholds_by_hand(rule: Rule, expected: float) -> None:
    assert chosen_thresholds(rule, cases(SCORES, POSITIVE)) == pytest.approx([expected])


def test_nobody_is_called_where_every_threshold_breaks_the_rule() -> None:
    upside = cases(SCORES, ~POSITIVE)
    assert chosen_thresholds(Rule("fpr", 0.2), upside).tolist() == [np.inf]
    assert chosen_thresholds(Rule("net benefit", 0.95), upside).tolist() == [np.inf]
    assert not called(SCORES, np.inf).any()


@pytest.mark.parametrize("target", ["sensitivity", "fpr"])
def test_a_rate_of_nobody_is_undefined(target: str) -> None:
    only = cases(SCORES, np.full(8, target == "fpr"))
    assert np.isnan(chosen_thresholds(Rule(target, 0.5), only)).all()


def test_of_thresholds_with_equal_net_benefit_the_nearest_to_the_stated_one_is_chosen() -> None:
    """At 0.5 one case more of each kind changes nothing, so three thresholds are equally good."""
    scores, positive = np.array([0.9, 0.8, 0.7, 0.45, 0.1]), np.array([1, 0, 1, 0, 1], dtype=bool)
    assert chosen_thresholds(Rule("net benefit", 0.5), cases(scores, positive)) == pytest.approx([0.7])


def _brute(rule: Rule, scores: np.ndarray, positive: np.ndarray) -> float:
    """The definition, threshold by threshold."""
    best = np.inf
    kept: list[tuple[float, float]] = []
    for threshold in sorted(set(scores)):
        tp, fp = (scores[positive] >= threshold).sum(), (scores[~positive] >= threshold).sum()
        if rule.target == "net benefit":
            kept.append((tp / len(scores) - fp / len(scores) * rule.value / (1 - rule.value), threshold))
        elif rule.target == "sensitivity" and tp / positive.sum() >= rule.value:
            best = threshold
        elif rule.target == "fpr" and fp / (~positive).sum() <= rule.value:
            return float(threshold)
    if rule.target == "net benefit":
        top = max(gain for gain, _ in kept)
        equal = [t for gain, t in kept if gain >= top - 1e-12]
        odds = [abs(np.log(t / (1 - t)) - np.log(rule.value / (1 - rule.value))) for t in equal]
        return float(equal[int(np.argmin(odds))]) if top >= -1e-12 else np.inf
    return float(best)


@quick
@given(
    seed=st.integers(0, 10**6),
    target=st.sampled_from(["sensitivity", "fpr", "net benefit"]),
    value=st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.8, 0.9]),
    ties=st.sampled_from([1, 2, 3]),
)
def test_weights_are_repeated_rows(seed: int, target: str, value: float, ties: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.uniform(0.02, 0.98, 12), ties)
    scores = np.clip(scores, 0.01, 0.99)
    positive = np.r_[True, False, rng.random(10) < 0.4]
    weights = np.c_[np.ones((4, 2), int), rng.integers(0, 3, (4, 10))]
    rule = Rule(target, value)
    found = chosen_thresholds(rule, cases(scores, positive), weights)
    expected = [_brute(rule, np.repeat(scores, row), np.repeat(positive, row)) for row in weights]
    assert found == pytest.approx(expected)


@quick
@given(seed=st.integers(0, 10**6), value=st.floats(0.01, 0.99))
def test_a_chosen_threshold_keeps_its_promise_and_the_next_one_does_not(seed: int, value: float) -> None:
    rng = np.random.default_rng(seed)
    positive = np.r_[True, False, rng.random(38) < 0.5]
    scores = np.round(expit(rng.normal(positive * 1.0)), 2)
    tuning = cases(scores, positive)
    fpr, tpr, thresholds = roc_curve(positive, scores, drop_intermediate=False)
    found = float(chosen_thresholds(Rule("sensitivity", value), tuning)[0])
    assert found == pytest.approx(thresholds[tpr >= value][0])
    found = float(chosen_thresholds(Rule("fpr", value), tuning)[0])
    assert found == pytest.approx(thresholds[fpr <= value][-1])


@quick
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1.0, 12.0, 60.0]), positive=st.sampled_from([0, 1]))
def test_the_deployed_decision_is_the_one_that_was_counted(seed: int, spread: float, positive: int) -> None:
    """Also where probabilities are so near 0 or 1 that they hardly differ."""
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, 58)]
    logits = np.round(spread * rng.normal(size=(60, 2)), int(rng.integers(0, 8)))
    margin = logits[:, positive] - logits[:, 1 - positive]
    scores = 1 / (1 + np.exp(-margin))
    for rule in (Rule("sensitivity", 0.8), Rule("fpr", 0.6)):
        threshold = float(chosen_thresholds(rule, cases(scores, labels == positive))[0])
        if np.isinf(threshold):
            continue
        decided = decide(logits, Decision(positive, threshold)) == positive
        assert (decided == called(scores, threshold)).all()
        among = labels == positive if rule.target == "sensitivity" else labels != positive
        reached = decided[among].mean()
        assert reached >= 0.8 if rule.target == "sensitivity" else reached <= 0.6


@pytest.mark.parametrize("value", np.linspace(0.1, 0.9, 9))
def test_surer_than_a_probability_can_say_is_all_the_same(value: float) -> None:
    """From log-odds of 25 on the rounding of a probability is coarser than the deployed decision."""
    margin = np.linspace(25.1, 34.9, 40)
    tuning = cases(expit(margin), np.arange(40) % 2 == 0)
    threshold = float(chosen_thresholds(Rule("sensitivity", value), tuning)[0])
    assert decide(np.c_[np.zeros(40), margin], Decision(1, threshold)).all()
    assert called(tuning.scores, threshold).all()


def test_scores_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match=r"score 1\.5: give probabilities"):
        chosen_thresholds(Rule("fpr", 0.1), cases(np.array([0.1, 1.5]), np.array([True, False])))
    with pytest.raises(DataError, match="at least one case"):
        chosen_thresholds(Rule("fpr", 0.1), cases(np.array([]), np.array([], dtype=bool)))


def test_patients_are_resampled_whole() -> None:
    """All rows copied under the same patients: the same draws choose the same thresholds."""
    rng = np.random.default_rng(0)
    positive = rng.random(50) < 0.5
    single = Judged(expit(rng.normal(positive * 1.0)), positive, np.arange(50).astype(str))
    double = Judged(*(np.repeat(part, 2) for part in single))
    rule = Rule("sensitivity", 0.8)
    found = [resampled_thresholds(rule, part, np.random.default_rng(1), 200) for part in (single, double)]
    assert (found[0] == found[1]).all()
    assert len(set(found[0])) > 5


def test_rates_at_a_fixed_threshold_are_those_of_wilson_and_newcombe() -> None:
    rng = np.random.default_rng(0)
    group, other = (_drawn(rng, 50) for _ in range(2))
    still = np.full(100, 0.4)
    rates, gaps = tuned_rates(group, 0.4, still), tuned_differences(group, other, 0.4, still)
    assert tuple(rates) == tuple(gaps) == RATES
    hits = group.scores[group.positive] >= 0.4, other.scores[other.positive] >= 0.4
    people = group.patients[group.positive], other.patients[other.positive]
    known = proportion(hits[0], people[0])
    assert rates["sensitivity"][:4] == pytest.approx(known[:4])
    samples = [type("S", (), {"hits": h, "patients": p}) for h, p in zip(hits, people, strict=True)]
    assert gaps["sensitivity"][:4] == pytest.approx(difference(*samples)[:4])
    decided = group.scores >= 0.4
    (tn, fp), (fn, tp) = confusion_matrix(group.positive, decided)
    values = (tp / (tp + fn), tn / (tn + fp), fp / (tn + fp), fn / (tp + fn), tp / (tp + fp), tn / (tn + fn))
    assert [rates[name].value for name in RATES] == pytest.approx(
        [*values, decided.mean(), (decided == group.positive).mean()]
    )


def test_a_threshold_that_moves_widens_each_interval_and_no_estimate() -> None:
    rng = np.random.default_rng(0)
    group, tuning = _drawn(rng, 40), _drawn(rng, 80)
    rule = Rule("sensitivity", 0.8)
    threshold = float(chosen_thresholds(rule, tuning)[0])
    moved = tuned_rates(group, threshold, resampled_thresholds(rule, tuning, rng, 300))
    still = tuned_rates(group, threshold, np.full(300, threshold))
    for name in RATES:
        (value, low, high), fixed = moved[name][:3], still[name]
        assert value == fixed.value
        assert low is not None
        assert high is not None
        assert 0 <= low <= fixed.low < value < fixed.high <= high <= 1
        assert (low, high) != (fixed.low, fixed.high)
        assert moved[name].method.endswith("threshold re-tuned")


def test_thresholds_of_nobody_and_undefined_ones_have_their_outcome() -> None:
    group = _drawn(np.random.default_rng(0), 40)
    nobody = tuned_rates(group, 0.5, np.array([0.5, np.inf, np.inf, np.inf]))
    assert nobody["ppv"].value is None
    assert nobody["ppv"].reason == "undefined at 3 of 4 thresholds chosen on resampled patients"
    assert nobody["sensitivity"].low == 0.0
    unknown = tuned_rates(group, 0.5, np.array([0.5, np.nan, np.nan, np.nan]))
    assert unknown["sensitivity"].value is None
    healthy = Judged(group.scores, np.zeros(40, dtype=bool), group.patients)
    assert tuned_rates(healthy, 0.5, np.full(4, 0.5))["sensitivity"].reason == "no positive cases"
    gap = tuned_differences(healthy, group, 0.5, np.full(4, 0.5))["sensitivity"]
    assert gap.reason == "no positive cases in one of the groups"


@pytest.mark.parametrize("size", [20, 300])
def test_intervals_cover_the_rate_at_the_rule_s_own_threshold(size: int) -> None:
    """Wilson's interval alone covers about 0.75 at 300 cases, as if the threshold were known; resamples of both as little at 20."""
    rng = np.random.default_rng(size)
    rule, truth = Rule("sensitivity", 0.9), (0.9, norm.cdf(1 + norm.ppf(0.1) + 1))
    held = np.zeros(3)
    repeats = 120
    for _ in range(repeats):
        tuning, group, other = _drawn(rng, 150), _drawn(rng, size), _drawn(rng, size)
        threshold = float(chosen_thresholds(rule, tuning)[0])
        again = resampled_thresholds(rule, tuning, rng, 100)
        rates = tuned_rates(group, threshold, again)
        gap = tuned_differences(group, other, threshold, again)["sensitivity"]
        sought = (*zip(("sensitivity", "specificity"), truth, strict=True),)
        found = [(rates[name], value) for name, value in sought] + [(gap, 0.0)]
        held += [item.low <= value <= item.high for item, value in found]
    assert held.min() / repeats >= 0.92


def _drawn(rng: np.random.Generator, size: int) -> Judged:
    positive = np.r_[True, False, rng.random(size - 2) < 0.5]
    return cases(expit(rng.normal(np.where(positive, 1.0, -1.0))), positive)


def test_an_operating_point_draws_its_thresholds_once() -> None:
    tuning = _drawn(np.random.default_rng(0), 60)
    point = OperatingPoint("x", Rule("fpr", 0.2), tuning, seed=3)
    assert point.tuned
    assert point.thresholds is point.thresholds
    assert (point.thresholds == resampled_thresholds(Rule("fpr", 0.2), tuning, np.random.default_rng(3))).all()
    assert not OperatingPoint("declared").tuned
    assert OperatingPoint().thresholds.size == 0


def test_a_higher_target_never_asks_for_a_higher_threshold() -> None:
    tuning = _drawn(np.random.default_rng(0), 100)
    order: list[Callable[[float], Rule]] = [lambda v: Rule("sensitivity", v), lambda v: Rule("fpr", v)]
    for rule in order:
        found = [float(chosen_thresholds(rule(value), tuning)[0]) for value in np.linspace(0.05, 0.95, 19)]
        assert all(before >= after for before, after in pairwise(found))
