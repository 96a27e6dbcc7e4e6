"""Risk among the cases that are decided, against brute force, closed forms and repeats."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from xvision.errors import ConfigError, DataError
from xvision.methods.decision import Decision, probabilities
from xvision.methods.selective import (
    TESTED_COVERAGES,
    NoRule,
    Rule,
    agreed_rule,
    aurc,
    best_aurc,
    confidence,
    e_aurc,
    risk_at,
    threshold_at,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def area(sure: np.ndarray, wrong: np.ndarray) -> float:
    return aurc(sure, wrong, np.arange(len(wrong)), rng=rng(), resamples=10).value or 0.0


def by_brute_force(sure: np.ndarray, wrong: np.ndarray, orders: Iterable[tuple[int, ...]]) -> float:
    """AURC by its definition, averaged over the given orders of tied cases."""
    values = []
    for each in orders:
        order = np.array(each)[np.argsort(-sure[list(each)], kind="stable")]
        values.append(np.mean([wrong[order][:count].mean() for count in range(1, len(sure) + 1)]))
    return float(np.mean(values))


def test_aurc_without_ties_is_its_definition() -> None:
    draw = np.random.default_rng(0)
    sure, wrong = draw.random(50), draw.random(50) < 0.3
    assert area(sure, wrong) == pytest.approx(by_brute_force(sure, wrong, [tuple(range(50))]), abs=1e-12)


def test_tied_cases_count_as_their_mean_over_orders() -> None:
    sure = np.array([3.0, 3.0, 3.0, 1.0, 1.0, 0.0])
    wrong = np.array([1, 0, 0, 1, 0, 1])
    assert area(sure, wrong) == pytest.approx(by_brute_force(sure, wrong, permutations(range(6))), abs=1e-12)
    assert area(np.zeros(6), wrong) == pytest.approx(0.5)  # no order at all: the error rate, at every coverage


def test_aurc_of_resamples_is_that_of_the_copied_cases() -> None:
    """A patient drawn twice is two cases of one confidence."""
    draw = np.random.default_rng(2)
    sure, wrong = draw.integers(0, 6, 12).astype(float), draw.random(12) < 0.4
    found = aurc(sure, wrong, np.arange(12), rng=np.random.default_rng(5), resamples=400)
    again, values = np.random.default_rng(5), []
    for row in again.integers(12, size=(400, 12)):
        values.append(area(sure[row], wrong[row]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-12)


def test_the_best_order_comes_to_the_closed_form() -> None:
    cases, errors = 4000, 600
    wrong = np.arange(cases) >= cases - errors
    sure = -np.arange(cases, dtype=float)
    assert best_aurc(0.15) == pytest.approx(0.15 + 0.85 * math.log(0.85))
    assert area(sure, wrong) == pytest.approx(best_aurc(0.15), abs=1e-4)
    excess = e_aurc(sure, wrong, np.arange(cases), rng=rng(), resamples=20)
    assert excess.value == pytest.approx(0.0, abs=1e-4)
    assert area(-sure, wrong) > 0.15 > area(sure, wrong)


def test_excess_is_aurc_less_the_best() -> None:
    draw = np.random.default_rng(3)
    sure, wrong = draw.random(200), draw.random(200) < 0.2
    found = e_aurc(sure, wrong, np.arange(200), rng=rng(), resamples=50)
    assert found.value == pytest.approx(area(sure, wrong) - float(best_aurc(wrong.mean())), abs=1e-12)
    assert (found.low or 0) < (found.value or 0) < (found.high or 0)


@pytest.mark.parametrize("wrong", [np.zeros(20, dtype=bool), np.ones(20, dtype=bool)])
def test_all_right_and_all_wrong_have_an_interval_of_some_width(wrong: np.ndarray) -> None:
    sure = np.random.default_rng(0).random(20)
    for found in (aurc(sure, wrong, np.arange(20), rng=rng()), e_aurc(sure, wrong, np.arange(20), rng=rng())):
        assert (found.low, found.high) != (found.value, found.value)
    assert best_aurc(np.array([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_risk_at_a_coverage_counts_the_surest() -> None:
    sure = np.arange(10, 0, -1).astype(float)
    wrong = np.array([0, 0, 1, 0, 0, 0, 0, 1, 1, 1])
    for share, expected in ((0.8, 2 / 8), (0.85, 3 / 9), (0.01, 0.0), (1.0, 0.4)):
        assert risk_at(sure, wrong, np.arange(10), share, rng=rng(), resamples=20).value == pytest.approx(expected)
    tied = np.array([2.0, 1, 1, 1, 1, 0])
    found = risk_at(tied, np.array([0, 1, 0, 0, 0, 1]), np.arange(6), 0.5, rng=rng(), resamples=20)
    assert found.value == pytest.approx((2 / 4) / 3)  # two of the four tied cases, a quarter of an error each


def test_few_errors_still_have_the_interval_of_a_proportion() -> None:
    sure = np.arange(100, 0, -1).astype(float)
    found = risk_at(sure, np.arange(100) >= 90, np.arange(100), 0.5, rng=rng())
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1.96**2 / (50 + 1.96**2), abs=1e-4)


def test_risk_at_covers_as_often_as_it_says() -> None:
    """Errors of a known logistic model; the surest 70 % have a risk known from a large sample."""
    draw = np.random.default_rng(4)

    def sample(cases: int) -> tuple[np.ndarray, np.ndarray]:
        sure = draw.exponential(1.5, cases)
        return sure, draw.random(cases) < 1 / (1 + np.exp(sure))

    sure, wrong = sample(400_000)
    truth = float(wrong[sure >= threshold_at(sure, 0.7)].mean())
    covered = 0
    for _ in range(150):
        found = risk_at(*sample(200), np.arange(200), 0.7, rng=draw, resamples=200)
        covered += (found.low or 0) <= truth <= (found.high or 1)
    assert 0.91 <= covered / 150 <= 1.0


def test_the_threshold_decides_at_least_the_share() -> None:
    sure = np.array([4.0, 3, 2, 2, 2, 1, 1, 1, 1, 0])
    for share, expected in ((0.2, 3.0), (0.3, 2.0), (0.5, 2.0), (0.51, 1.0), (1.0, 0.0)):
        assert threshold_at(sure, share) == expected
        assert (sure >= expected).mean() >= share


def test_the_agreed_rule_is_the_widest_whose_exact_limit_holds() -> None:
    draw = np.random.default_rng(6)
    sure = draw.exponential(2.0, 1000)
    wrong = draw.random(1000) < 1 / (1 + np.exp(1.5 * sure))
    found = agreed_rule(sure, wrong, np.arange(1000), 0.1)
    assert isinstance(found, Rule)
    order = np.argsort(-sure)
    limits = {}
    for share in TESTED_COVERAGES:
        errors, count = int(wrong[order][: round(1000 * share)].sum()), round(1000 * share)
        limits[share] = beta.ppf(1 - 0.05 / 20, errors + 1, count - errors)
    widest = max(share for share, limit in limits.items() if limit <= 0.1)
    assert found.coverage == widest < 1.0
    assert found.bound == pytest.approx(limits[widest])
    assert found.threshold == np.sort(sure)[::-1][round(1000 * widest) - 1]
    assert found.risk == pytest.approx(wrong[sure >= found.threshold].mean())


def test_the_agreed_risk_is_exceeded_no_more_often_than_it_says() -> None:
    """Confidence says nothing and the risk is just above what is agreed: any rule that is given is wrong."""
    draw, given_rules = np.random.default_rng(7), 0
    for _ in range(300):
        wrong = draw.random(300) < 0.101
        given_rules += isinstance(agreed_rule(draw.random(300), wrong, np.arange(300), 0.1), Rule)
    assert given_rules <= 24  # 5 % of 300 and its 99 % limit


def test_no_rule_says_whether_evidence_or_the_model_lacks() -> None:
    few = agreed_rule(np.arange(20.0), np.zeros(20, dtype=bool), np.arange(20), 0.05)
    assert isinstance(few, NoRule)
    assert few.reason.startswith("insufficient evidence")
    needed = math.ceil(math.log(0.0025) / math.log(0.95))
    assert f"at least {needed} without an error" in few.reason
    enough = np.arange(float(needed))
    assert isinstance(agreed_rule(enough, enough < 0, enough, 0.05), Rule)
    assert isinstance(agreed_rule(enough[1:], enough[1:] < 0, enough[1:], 0.05), NoRule)
    bad = agreed_rule(np.arange(500.0), np.arange(500) % 2 == 0, np.arange(500), 0.05)
    assert isinstance(bad, NoRule)
    assert bad.reason.startswith("no rule keeps the agreed risk of 0.05")
    none = agreed_rule(np.array([]), np.array([], dtype=bool), np.array([]), 0.05)
    assert isinstance(none, NoRule)


def test_repeated_images_are_no_more_evidence_for_a_rule() -> None:
    sure, wrong, patients = np.arange(200.0), np.zeros(200, dtype=bool), np.arange(200)
    once = agreed_rule(sure[:60], wrong[:60], patients[:60], 0.05)
    copied = agreed_rule(np.repeat(sure[:60], 4), np.repeat(wrong[:60], 4), np.repeat(patients[:60], 4), 0.05)
    assert isinstance(once, NoRule)
    assert isinstance(copied, NoRule)
    assert isinstance(agreed_rule(sure, wrong, patients, 0.05), Rule)


def test_confidence_is_the_distance_from_the_deployed_threshold() -> None:
    logits = np.array([[0.0, 2.0], [0.0, -1.0], [1.0, 1.0]])
    found = confidence(logits, Decision(1, 0.8, True))
    assert found == pytest.approx(np.abs(np.array([2.0, -1.0, 0.0]) - math.log(4)), abs=1e-5)
    at = confidence(np.array([[0.0, math.log(4)]]), Decision(1, 0.8, True))
    assert at == pytest.approx([0.0], abs=1e-5)


def test_confidence_of_the_most_probable_class_ranks_as_its_probability() -> None:
    logits = np.random.default_rng(8).normal(size=(30, 4)) * 3
    found = confidence(logits, Decision())
    top = probabilities(logits).max(axis=1)
    assert found == pytest.approx(np.log(top / (1 - top)))
    extreme = confidence(np.array([[0.0, 50.0, 0.0], [0.0, 60.0, 0.0]]), Decision())
    assert extreme[0] < extreme[1]  # both probabilities are 1.0 in float64


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_neither_the_order_nor_a_rising_transform_of_confidence_counts(seed: int, cases: int) -> None:
    draw = np.random.default_rng(seed)
    sure, wrong = draw.integers(0, 8, cases).astype(float), draw.random(cases) < 0.4
    order = draw.permutation(cases)
    assert area(sure[order], wrong[order]) == pytest.approx(area(sure, wrong), abs=1e-12)
    assert area(np.exp(sure), wrong) == pytest.approx(area(sure, wrong), abs=1e-12)
    full = risk_at(sure, wrong, np.arange(cases), 1.0, rng=rng(), resamples=5).value
    assert full == pytest.approx(wrong.mean())
    assert area(sure, wrong) >= float(best_aurc(wrong.mean())) - 1e-12


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="no share of the cases"):
        risk_at(np.ones(3), np.ones(3), np.arange(3), 0.0, rng=rng())
    with pytest.raises(ConfigError, match="between 0 and 1"):
        agreed_rule(np.ones(3), np.ones(3), np.arange(3), 1.0)
    with pytest.raises(DataError, match="one number per case"):
        aurc(np.array([1.0, math.nan]), np.array([0, 1]), np.arange(2), rng=rng())
    assert aurc(np.array([]), np.array([], dtype=bool), np.array([]), rng=rng()).reason == "no cases"


@pytest.mark.parametrize(("size", "decision"), [(2, Decision(1, 0.5, True)), (3, Decision())])
def test_equal_probabilities_of_different_classes_are_equally_sure(size: int, decision: Decision) -> None:
    rng = np.random.default_rng(0)
    chances = np.stack([rng.permutation([0.7, 0.3, 0.0][:size]) for _ in range(50)])
    assert len(np.unique(confidence(np.log(np.maximum(chances, 1e-12)), decision))) == 1
