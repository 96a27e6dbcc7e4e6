"""Prevalence from decisions, and accuracy at another prevalence."""

from __future__ import annotations

import numpy as np
import pytest

from xvision.errors import DataError
from xvision.methods.intervals import proportion
from xvision.methods.shift.prevalence import Decided, label_shift, standardised_accuracy


def drawn(
    rng: np.random.Generator, count: int, shares: list[float], given: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and decisions; given: P(decision | class), one row per class."""
    labels = rng.choice(len(shares), count, p=shares)
    decisions = (rng.random(count)[:, None] > np.cumsum(given, axis=1)[labels]).sum(axis=1)
    return labels, decisions


@pytest.mark.parametrize(
    ("shares", "others", "given"),
    [
        ([0.7, 0.3], [0.3, 0.7], [[0.9, 0.1], [0.2, 0.8]]),
        ([0.98, 0.02], [0.9, 0.1], [[0.95, 0.05], [0.1, 0.9]]),
        ([0.4, 0.4, 0.2], [0.1, 0.3, 0.6], [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.15, 0.05, 0.8]]),
    ],
)
def test_a_planted_prevalence_is_recovered(shares: list[float], others: list[float], given: list[list[float]]) -> None:
    rng = np.random.default_rng(0)
    labels, decisions = drawn(rng, 20_000, shares, np.array(given))
    _, later = drawn(rng, 20_000, others, np.array(given))
    found = label_shift(
        Decided(decisions, np.arange(20_000)), labels, Decided(later, np.arange(20_000)), len(shares),
        rng=rng, resamples=100,
    )  # fmt: skip
    for estimate, weight, before, truth in zip(found.prevalence, found.weights, shares, others, strict=True):
        assert estimate.value == pytest.approx(truth, abs=0.02)
        assert estimate.low <= truth <= estimate.high
        assert weight.value == pytest.approx(estimate.value / np.mean(labels == shares.index(before)), rel=0.05)
        assert estimate.n == 40_000


def test_two_classes_equal_the_formula_of_rogan_and_gladen() -> None:
    labels = np.array([0] * 50 + [1] * 50)
    decisions = np.array([0] * 45 + [1] * 5 + [0] * 10 + [1] * 40)
    later = np.array([1] * 30 + [0] * 70)
    found = label_shift(
        Decided(decisions, np.arange(100)), labels, Decided(later, np.arange(100)), 2, rng=np.random.default_rng(0)
    )
    assert found.prevalence[1].value == pytest.approx((0.3 + 0.9 - 1) / (0.8 + 0.9 - 1))
    assert found.weights[1].value == pytest.approx(found.prevalence[1].value / 0.5)
    assert found.condition == pytest.approx(np.linalg.cond([[0.9, 0.2], [0.1, 0.8]]))
    twice = label_shift(
        *(Decided(np.repeat(each, 2), np.repeat(np.arange(100), 2)) for each in (decisions,)), np.repeat(labels, 2),
        Decided(np.repeat(later, 2), np.repeat(np.arange(100), 2)), 2, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert twice.prevalence[1] == pytest.approx(found.prevalence[1])


def test_the_interval_covers() -> None:
    rng = np.random.default_rng(1)
    given, held = np.array([[0.85, 0.15], [0.2, 0.8]]), 0
    for _ in range(100):
        labels, decisions = drawn(rng, 150, [0.5, 0.5], given)
        _, later = drawn(rng, 150, [0.7, 0.3], given)
        who = np.arange(150)
        found = label_shift(Decided(decisions, who), labels, Decided(later, who), 2, rng=rng, resamples=200)
        held += found.prevalence[1].low <= 0.3 <= found.prevalence[1].high
    assert held / 100 == pytest.approx(0.95, abs=0.065)


def test_decisions_that_say_nothing_give_no_prevalence() -> None:
    rng = np.random.default_rng(2)
    who, labels = np.arange(100), np.repeat([0, 1], 50)
    empty = Decided(np.array([], int), np.array([], int))
    constant = Decided(np.ones(100, int), who)
    found = label_shift(constant, labels, constant, 2, rng=rng)
    assert found.prevalence[0].value is None
    assert found.prevalence[0].reason == "decisions hardly tell the classes apart (condition number infinite)"
    blind = np.concatenate([np.tile([0, 1], 25), np.tile([0, 1], 24), [1, 1]])  # Youden's J is 0.02
    found = label_shift(Decided(blind, who), labels, constant, 2, rng=rng)
    assert found.condition == pytest.approx(np.linalg.cond([[0.5, 0.48], [0.5, 0.52]]))
    assert found.weights[1].reason == "decisions hardly tell the classes apart (condition number 50)"
    assert (
        label_shift(constant, np.zeros(100, int), constant, 2, rng=rng).prevalence[0].reason
        == "a class has no reference case"
    )
    assert label_shift(constant, labels, empty, 2, rng=rng).prevalence[0].reason == "no cases"
    one = Decided(labels, np.zeros(100, int))
    assert label_shift(one, labels, one, 2, rng=rng).prevalence[0].reason == "fewer than 2 patients"


def test_accuracy_at_another_prevalence() -> None:
    labels = np.array([0] * 80 + [1] * 20)
    correct = np.array([True] * 72 + [False] * 8 + [True] * 12 + [False] * 8)
    who = np.arange(100)
    found = standardised_accuracy(correct, labels, who, np.array([0.5, 0.5]))
    assert found.value == pytest.approx((0.9 + 0.6) / 2)
    assert found.low < found.value < found.high
    same = standardised_accuracy(correct, labels, who, np.array([0.8, 0.2]))
    assert same.value == pytest.approx(0.84)
    plain = proportion(correct, who)
    assert same.high - same.low == pytest.approx(plain.high - plain.low, rel=0.1)
    assert standardised_accuracy(correct, labels, who, np.array([1.0, 0.0])).value == pytest.approx(0.9)
    assert standardised_accuracy(correct, labels, who, np.array([0.5, 0.2, 0.3])).reason == "no cases of one class"
    with pytest.raises(DataError, match="sum to 1"):
        standardised_accuracy(correct, labels, who, np.array([0.5, 0.2]))
