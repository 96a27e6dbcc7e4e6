"""Scores and decisions that go along with a column, against closed forms and planted associations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from xvision.methods.intervals import Estimate
from xvision.methods.shortcuts.followed import aligned_difference, cells, conditional_shift, goes_with_positive
from xvision.methods.shortcuts.ladder import (
    AVAILABLE,
    CAUSAL,
    CROSS_FITTED,
    ENCODED,
    FOLLOWED,
    NOTHING,
    UNTRIED,
    Rung,
    RungName,
    conclusion,
    shown,
)
from xvision.methods.shortcuts.metadata import metadata_auroc


def normal(count: int) -> np.ndarray:
    """Quantiles of a normal: a sample without chance."""
    return ndtri((np.arange(count) + 0.5) / count)


def test_the_shift_of_planted_normals_is_the_closed_form() -> None:
    """Score e0 + 0.5 e1, e1 moved by 3 for one group: 1.5 over the root of 1 + 0.25 (1 + 9 / 4)."""
    rng = np.random.default_rng(0)
    labels, group = rng.integers(0, 2, 40_000), rng.integers(0, 2, 40_000).astype(bool)
    used = 1.5 * labels + rng.normal(size=40_000) + 0.5 * (rng.normal(size=40_000) + 3 * group)
    found = conditional_shift(used, labels, group, ~group, np.arange(40_000))
    assert found.value == pytest.approx(1.5 / np.sqrt(1 + 0.25 * (1 + 9 / 4)), abs=0.02)
    unused = 1.5 * labels + rng.normal(size=40_000)
    assert conditional_shift(unused, labels, group, ~group, np.arange(40_000)).value == pytest.approx(0, abs=0.03)


def test_a_label_that_goes_with_the_group_makes_no_shift() -> None:
    labels = np.repeat([0, 0, 1, 1], [300, 100, 100, 300])
    group = np.repeat([False, True, False, True], [300, 100, 100, 300])
    scores = 5.0 * labels + np.concatenate([normal(count) for count in (300, 100, 100, 300)])
    assert conditional_shift(scores, labels, group, ~group, np.arange(800)).value == pytest.approx(0, abs=1e-12)


def test_the_interval_of_a_shift_is_as_wide_as_its_spread_over_samples() -> None:
    rng = np.random.default_rng(1)
    labels, group = np.tile([0, 1], 100), np.repeat([True, False], 100)
    found = [
        conditional_shift(rng.normal(size=200) + 0.8 * group, labels, group, ~group, np.arange(200)) for _ in range(400)
    ]
    values = np.array([item.value for item in found], float)
    half = np.mean([(item.high or 0.0) - (item.low or 0.0) for item in found]) / 2
    assert half == pytest.approx(1.96 * values.std(), rel=0.08)


def test_copies_of_the_rows_of_a_patient_change_no_shift() -> None:
    rng = np.random.default_rng(2)
    labels, group, scores = rng.integers(0, 2, 200), rng.integers(0, 2, 200).astype(bool), rng.normal(size=200)
    once = conditional_shift(scores, labels, group, ~group, np.arange(200))
    rows = np.repeat(np.arange(200), 3)
    assert conditional_shift(scores[rows], labels[rows], group[rows], ~group[rows], rows) == pytest.approx(once)


def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """90 of 100 cases have the level that goes with their label; the model reads nothing else."""
    labels = np.repeat([1, 0], 50)
    level = np.where(np.arange(100) % 10 == 0, 1 - labels, labels)
    return labels, level, level.astype(bool)


def test_a_model_that_reads_the_column_alone_is_right_where_they_agree_and_wrong_where_not() -> None:
    labels, level, decisions = planted()
    names = np.where(level == 1, "B", "A")
    assert goes_with_positive(names, labels) == ("B",)
    who = np.arange(100)
    found = aligned_difference(decisions, labels, level == 1, np.ones(100, bool), who, minimum=5)
    assert found.value == 1.0
    assert (decisions == labels).mean() == pytest.approx(0.9)
    assert cells(decisions, labels, names, who, minimum=5)[0].accuracy.value == 0.0


def test_aligned_cases_of_another_mix_of_labels_make_no_difference() -> None:
    """Sensitivity 0.6, specificity 0.9 at both levels: what is pooled over labels would differ."""
    rows = [(1, 1, 200), (0, 0, 40), (1, 0, 20), (0, 1, 160)]
    labels, level = (np.concatenate([np.full(count, row[place]) for *row, count in rows]) for place in (0, 1))
    rates = {1: 0.6, 0: 0.9}
    right = np.concatenate([np.arange(count) < rates[label] * count for label, _, count in rows])
    decisions = np.where(right, labels, 1 - labels)
    found = aligned_difference(decisions, labels, level == 1, np.ones(420, bool), np.arange(420))
    assert found.value == pytest.approx(0.0, abs=1e-12)
    aligned = labels == level
    assert abs(right[aligned].mean() - right[~aligned].mean()) > 0.15


def test_too_few_patients_give_a_reason() -> None:
    labels, level, decisions = planted()
    everyone, who = np.ones(100, bool), np.arange(100)
    assert "aligned or conflicting" in str(aligned_difference(decisions, labels, level == 1, everyone, who).reason)
    group = np.arange(100) < 3
    assert "fewer than 10 positive" in str(conditional_shift(labels, labels, group, ~group, who).reason)
    half = np.arange(100) % 2 == 0
    assert "equal" in str(conditional_shift(labels, labels, half, ~half, who).reason)
    assert cells(decisions, labels, np.full(100, "unknown"), who) == ()
    assert goes_with_positive(np.full(100, "unknown"), labels) == ()


def test_twenty_columns_without_effect_are_rarely_shown() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(300):
        estimates = [Estimate(value, value - 1.96, value + 1.96, 100, "") for value in rng.normal(size=20)]
        alarms += any(shown(estimates))
    assert alarms / 300 <= 0.03
    clear, none = Estimate(5.0, 3.04, 6.96, 100, ""), Estimate(None, None, None, 0, "", "too few")
    assert shown([clear, none]) == [True, False]
    assert shown([clear], null=6.0) == [False]
    assert shown([clear], spread=1.8) == [True]  # 5 / 1.8 standard errors: p 0.0055
    assert shown([clear], spread=1.9) == [False]  # p 0.0085, above 0.05 / 7
    assert shown([clear._replace(value=-5.0, low=-6.96, high=-3.04)], above=True) == [False]


@pytest.mark.parametrize(
    ("reached", "expected"),
    [
        ((), NOTHING),
        (("encoded",), ENCODED),
        (("available", "encoded"), AVAILABLE),
        (("available", "followed"), FOLLOWED),
        (("used", "encoded"), FOLLOWED),
        (("causal",), CAUSAL),
    ],
)
def test_only_an_intervention_shows_a_cause(reached: tuple[RungName, ...], expected: str) -> None:
    names: tuple[RungName, ...] = ("available", "encoded", "followed", "used", "causal")
    assert conclusion({name: Rung("shown" if name in reached else "not shown") for name in names}) == expected


def test_a_column_that_says_nothing_is_rarely_called_available() -> None:
    """Cross-fitted figures vary 1.43 times as much at chance as their intervals say: 1.5 covers it."""
    rng, found, plain = np.random.default_rng(4), 0, 0
    for _ in range(300):
        who = np.repeat(np.arange(200), rng.integers(1, 3, 200))
        labels, levels = rng.integers(0, 2, 200)[who], rng.integers(0, 2, 200)[who]
        estimate = metadata_auroc(levels, labels, who, rng=rng, resamples=100)
        found += any(shown([estimate], null=0.5, above=True, spread=CROSS_FITTED))
        plain += any(shown([estimate], null=0.5, above=True))
    assert found <= 5  # 300 × 0.005 and more than two standard deviations
    assert plain > found


@pytest.mark.parametrize("rest", [{}, {"followed": Rung("left out"), "used": Rung("left out")}])
def test_what_was_not_tested_is_not_called_not_followed(rest: dict[RungName, Rung]) -> None:
    available: dict[RungName, Rung] = {"available": Rung("shown"), "encoded": Rung("shown")}
    assert conclusion({**available, **rest}) == UNTRIED
    assert conclusion({**available, **rest, "used": Rung("not shown")}) == AVAILABLE
