"""Figures of each level and of all of them, beside scikit-learn and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

from xvision.methods.intervals import proportion
from xvision.methods.shift.levels import Judged, figures, levels, periods, together
from xvision.methods.shift.random_effects import on_logit_scale, random_effects

EQUAL = np.array([0.5, 0.5])


def judged(seed: int, count: int, prevalence: float = 0.4, separation: float | np.ndarray = 1.5) -> Judged:
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < prevalence).astype(int)
    p = expit(rng.normal(separation * (labels - 0.5) * 2, 1))
    return Judged(labels, (p >= 0.5).astype(int), np.stack([1 - p, p], axis=1), np.arange(count), 1)


def test_figures_equal_scikit_learn() -> None:
    cases = judged(0, 300)
    found = figures(cases, np.array([0.9, 0.1]))
    recall = [recall_score(cases.labels, cases.decisions, pos_label=code) for code in (0, 1)]
    expected = {
        "accuracy": (cases.labels == cases.decisions).mean(),
        "balanced_accuracy": balanced_accuracy_score(cases.labels, cases.decisions),
        "standardised_accuracy": 0.9 * recall[0] + 0.1 * recall[1],
        "sensitivity": recall[1],
        "specificity": recall[0],
        "auroc": roc_auc_score(cases.labels, cases.probabilities[:, 1]),
        "prevalence": cases.labels.mean(),
    }
    assert {name: found[name, None].value for name in expected} == pytest.approx(expected)
    assert len(found) == len(expected)


def test_more_classes_have_a_figure_each() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(3), 200)
    labels = rng.integers(0, 3, 200)
    found = figures(Judged(labels, p.argmax(axis=1), p, np.arange(200), None), np.array([0.2, 0.3, 0.5]))
    for code in range(3):
        assert found["auroc", code].value == pytest.approx(roc_auc_score(labels == code, p[:, code]))
        assert found["sensitivity", code].value == pytest.approx((p.argmax(axis=1) == code)[labels == code].mean())
        assert found["prevalence", code].value == pytest.approx((labels == code).mean())
    assert ("specificity", None) not in found


def test_prevalence_moves_accuracy_but_not_what_is_free_of_it() -> None:
    """Two sites with the same model and images, 20 and 80 ill of 100: the accuracy at one prevalence is the same."""
    rng = np.random.default_rng(2)
    parts = []
    for prevalence in (0.2, 0.8):
        labels = (rng.random(20_000) < prevalence).astype(int)
        decisions = np.where(rng.random(20_000) < np.where(labels == 1, 0.6, 0.9), labels, 1 - labels)
        parts.append((labels, decisions))
    labels, decisions = (np.concatenate(each) for each in zip(*parts, strict=True))
    scores = np.stack([1.0 - decisions, decisions], axis=1)
    named = np.repeat(["A", "B"], 20_000)
    rows = levels(Judged(labels, decisions, scores, np.arange(40_000), 1), named, EQUAL, fewest=5)
    assert rows[0].figures["accuracy", None].value - rows[1].figures["accuracy", None].value == pytest.approx(
        0.18, abs=0.01
    )
    for name in ("standardised_accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc"):
        first, second = (row.figures[name, None].value for row in rows)
        assert first == pytest.approx(second, abs=0.015)


def test_small_levels_and_unknown_ones() -> None:
    cases = judged(3, 60)
    named = np.array(["B"] * 25 + ["A"] * 26 + ["tiny"] * 4 + ["unknown"] * 5)
    rows = levels(cases, named, EQUAL, fewest=5)
    assert [(row.name, row.cases, row.patients) for row in rows] == [
        ("A", 26, 26),
        ("B", 25, 25),
        ("tiny", 4, 4),
        ("unknown", 5, 5),
    ]
    assert {estimate.reason for estimate in rows[2].figures.values()} == {"fewer than 5 patients"}
    assert rows[3].figures["accuracy", None].value is not None
    every = together(cases, named, rows, ("accuracy", None), EQUAL, called="site")
    assert every.spread is not None
    assert every.spread.places == 2  # neither the tiny one nor "unknown"
    assert every.pooled.n == 51
    assert "two levels" in every.new.reason


def test_all_levels_are_put_together_on_the_logit_scale() -> None:
    separation = np.repeat([0.4, 0.8, 1.2, 1.6], 120)
    cases, named = judged(4, 480, separation=separation), np.repeat(["A", "B", "C", "D"], 120)
    rows = levels(cases, named, EQUAL, fewest=20)
    every = together(cases, named, rows, ("auroc", None), EQUAL, called="site")
    found = random_effects(on_logit_scale([row.figures["auroc", None] for row in rows]))
    assert found is not None
    assert every.spread == found
    assert found.p_value < 0.001
    assert logit(every.pooled.value) == pytest.approx(found.mean)
    assert logit([every.new.low, every.new.high]) == pytest.approx(found.predicted)
    assert every.worst_level == "A"
    own = rows[0].figures["auroc", None]
    assert every.worst.value == own.value
    assert every.worst.low < own.low < own.high < every.worst.high
    assert "98.75 %" in every.worst.method


def test_the_worst_of_equal_levels_is_not_called_worse_than_it_is() -> None:
    """Of 10 equal sites the lowest accuracy lies under 0.8; its own interval misses 0.8 too often, the wide one does not."""
    rng = np.random.default_rng(5)
    missed, naive, named = 0, 0, np.repeat(np.arange(10).astype(str), 60)
    for _ in range(100):
        decisions = (rng.random(600) < 0.8).astype(int)
        cases = Judged(np.ones(600, int), decisions, np.stack([1.0 - decisions, decisions], axis=1), np.arange(600), 1)
        rows = levels(cases, named, np.array([0.0, 1.0]), fewest=5)
        every = together(cases, named, rows, ("accuracy", None), np.array([0.0, 1.0]), called="site")
        missed += every.worst.high < 0.8
        worst = cases.decisions[named == every.worst_level] == 1
        naive += proportion(worst, np.arange(60)).high < 0.8
    assert missed <= 6
    assert naive > 12


def test_one_level_says_what_would_settle_it() -> None:
    cases = judged(6, 50)
    for named, words in (
        (np.repeat("A", 50), "one level of site"),
        (np.repeat("unknown", 50), "no known level of site"),
    ):
        rows = levels(cases, named, EQUAL, fewest=5)
        every = together(cases, named, rows, ("auroc", None), EQUAL, called="site")
        assert every.spread is None
        assert words in every.pooled.reason
        assert "would be settled by labelled cases" in every.worst.reason
    named = np.repeat(["A", "B"], [46, 4])
    rows = levels(cases, named, EQUAL, fewest=5)
    assert "1 of 2 levels of site" in together(cases, named, rows, ("auroc", None), EQUAL, called="site").new.reason


def test_all_labels_equal_leave_what_can_be_told() -> None:
    decisions = np.array([0, 1] * 5)
    cases = Judged(np.ones(10, int), decisions, np.stack([1.0 - decisions, decisions], axis=1), np.arange(10), 1)
    found = figures(cases, EQUAL)
    assert found["sensitivity", None].value == 0.5
    assert found["specificity", None].reason == "no negative cases"
    assert found["auroc", None].reason == "no negative cases"
    assert found["standardised_accuracy", None].reason == "no cases of one class"


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        (["2024-01-31", "2024-02-01", "unknown"], ["2024-01", "2024-02", "unknown"]),
        (["20240131", "20240201"], ["2024-01", "2024-02"]),
        ([f"{year}-{month:02d}" for year in (2023, 2024) for month in (1, 2, 3, 4, 5, 6, 10)], None),
        ([f"{year}-05-05" for year in range(2000, 2020)], [str(year) for year in range(2000, 2020)]),
        (["before", "after"], ["before", "after"]),
        (["2024-13-01", "2024-01-01"], ["2024-13-01", "2024-01-01"]),
        (["unknown"], ["unknown"]),
    ],
)
def test_dates_are_cut_to_periods(dates: list[str], expected: list[str] | None) -> None:
    found = periods(np.array(dates))
    if expected is None:
        assert set(found) == {"2023 Q1", "2023 Q2", "2023 Q4", "2024 Q1", "2024 Q2", "2024 Q4"}
    else:
        assert found.tolist() == expected
