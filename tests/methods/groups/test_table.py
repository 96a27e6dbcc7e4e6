"""Group tables against counts made by hand, published counts and fairlearn."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, true_positive_rate
from scipy import stats
from sklearn.metrics import precision_score, roc_auc_score

from xvision.errors import DataError
from xvision.methods.groups.cases import Cases, definitions
from xvision.methods.groups.fairlearn_rates import fairlearn_rates
from xvision.methods.groups.table import GroupRow, group_table
from xvision.methods.intervals import wilson


def from_counts(**cells: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, decisions and groups from (TP, FP, FN, TN) by group."""
    labels = [np.repeat([1, 0, 1, 0], counts) for counts in cells.values()]
    decisions = [np.repeat([1, 1, 0, 0], counts) for counts in cells.values()]
    groups = [np.repeat(name, sum(counts)) for name, counts in cells.items()]
    return np.concatenate(labels), np.concatenate(decisions), np.concatenate(groups)


COMPAS = {
    "fpr": (0.448468, 0.234543),
    "fnr": (0.279853, 0.477226),
    "ppv": (0.629715, 0.591335),
    "selection_rate": (0.588203, 0.348003),
}
"""ProPublica's rates (2016), of Black and of white defendants."""


def table(labels: np.ndarray, decisions: np.ndarray, groups: np.ndarray) -> dict[str, GroupRow]:
    rows = group_table(labels, decisions, decisions, groups, np.arange(len(labels)))
    return {row.group: row for row in rows}


def test_published_counts_give_the_published_rates() -> None:
    rows = table(*from_counts(black=(1369, 805, 532, 990), white=(505, 349, 461, 1139)))
    for metric, values in COMPAS.items():
        found = [rows[name].estimates[metric].value for name in ("black", "white")]
        assert found == pytest.approx(values, abs=5e-7)
    assert rows["black"].estimates["fpr"][1:4] == (*wilson(805, 1795), 1795)
    assert (rows["white"].cases, rows["white"].positives, rows["white"].negatives) == (2454, 966, 1488)


def test_an_empty_denominator_is_not_zero() -> None:
    labels, decisions = np.array([1, 1, 0, 0, 0, 0, 0, 0]), np.array([1, 0, 0, 1, 0, 0, 0, 0])
    group = np.repeat(["a", "b"], 4)
    frame = MetricFrame(
        metrics={"sensitivity": true_positive_rate}, y_true=labels, y_pred=decisions, sensitive_features=group
    )
    assert frame.by_group["sensitivity"]["b"] == 0.0  # what must not be passed on
    rows = table(labels, decisions, group)
    empty = rows["b"].estimates
    assert {name: part.reason for name, part in empty.items() if part.value is None} == {
        "sensitivity": "no positive cases",
        "fnr": "no positive cases",
        "ppv": "no positive decisions",
        "auroc": "no positive cases",
    }
    assert empty["fpr"][:4] == pytest.approx((0.0, 0.0, 0.4899, 4), abs=5e-5)
    assert rows["a"].estimates["sensitivity"].value == 0.5


def test_predictive_values_follow_prevalence() -> None:
    rows = table(*from_counts(A=(400, 50, 100, 450), B=(80, 90, 20, 810)))
    for row in rows.values():
        rates = {name: part.value or 0.0 for name, part in row.estimates.items()}
        assert (rates["sensitivity"], rates["fpr"]) == pytest.approx((0.8, 0.1))
        assert (rates["specificity"], rates["fnr"]) == pytest.approx((0.9, 0.2))
        prevalence = row.positives / row.cases
        odds = prevalence / (1 - prevalence)
        # the identity of Chouldechova 2017
        assert rates["fpr"] == pytest.approx(odds * (1 - rates["ppv"]) / rates["ppv"] * rates["sensitivity"], abs=1e-12)
    assert [rows[name].estimates["ppv"].value for name in "AB"] == pytest.approx([0.888889, 0.470588], abs=5e-7)


def test_every_value_equals_its_count_and_an_independent_library() -> None:
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 150, 400)
    labels, decisions, scores = rng.integers(0, 2, 400), rng.integers(0, 2, 400), rng.normal(size=400)
    groups = rng.choice(["F", "M", "unknown"], 400)
    rows = group_table(labels, decisions, scores, groups, patients)
    assert [row.group for row in rows] == ["F", "M", "unknown"]
    for row in rows:
        inside = groups == row.group
        truth, decided, rate = labels[inside] == 1, decisions[inside] == 1, row.estimates
        assert rate["sensitivity"].value == pytest.approx((truth & decided).sum() / truth.sum())
        assert rate["specificity"].value == pytest.approx((~truth & ~decided).sum() / (~truth).sum())
        assert rate["ppv"].value == pytest.approx(precision_score(truth, decided))
        assert rate["npv"].value == pytest.approx(precision_score(~truth, ~decided))
        assert rate["accuracy"].value == pytest.approx((truth == decided).mean())
        assert rate["auroc"].value == pytest.approx(roc_auc_score(truth, scores[inside]))
        assert row.patients == rate["accuracy"].n == len(np.unique(patients[inside]))
        assert rate["sensitivity"].n == len(np.unique(patients[inside & (labels == 1)]))
        assert all((part.low or 0) <= (part.value or 0) <= (part.high or 0) for part in rate.values())


@pytest.mark.parametrize("count", [3, 40])
def test_rates_counted_here_and_those_of_fairlearn_are_equal_to_the_last_digit(count: int) -> None:
    rng = np.random.default_rng(0)
    labels, decisions = rng.random(2000) < 0.3, rng.random(2000) < 0.4
    groups = rng.integers(0, count, 2000).astype(str)
    rows = table(labels, decisions, groups)
    theirs = fairlearn_rates(Cases(labels, decisions, groups, np.arange(2000)))
    for name, row in rows.items():
        inside = groups == name
        for metric, rate in definitions(labels[inside], decisions[inside]).items():
            assert row.estimates[metric].value == theirs[name][metric] == rate.hits[rate.among].mean()
    assert list(rows) == sorted(theirs)


def test_equal_ranking_can_hide_unequal_errors() -> None:
    # Scores N(0,1) and N(1,1) in A, half a unit higher in B, one threshold at 1.
    grid = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    scores = np.concatenate([grid, grid + 1, grid + 0.5, grid + 1.5])
    labels, groups = np.tile(np.repeat([0, 1], 2000), 2), np.repeat(["A", "B"], 4000)
    rows = group_table(labels, scores >= 1, scores, groups, np.arange(8000))
    found = [[row.estimates[name].value for name in ("auroc", "sensitivity", "fpr")] for row in rows]
    assert found == [pytest.approx([0.7602, 0.5, 0.1587], abs=1e-3), pytest.approx([0.7602, 0.6915, 0.3085], abs=1e-3)]


def test_a_missing_group_is_a_row_and_nobody_is_lost() -> None:
    labels, decisions, groups = from_counts(F=(5, 3, 2, 6), unknown=(2, 2, 2, 2), M=(4, 4, 1, 9))
    rows = table(labels, decisions, groups)
    assert list(rows) == ["F", "M", "unknown"]
    assert sum(row.cases for row in rows.values()) == len(labels)


def test_one_group_of_one_label_is_a_table() -> None:
    (row,) = table(np.zeros(5), np.zeros(5), np.full(5, "all")).values()
    assert row.estimates["specificity"].value == 1.0
    assert row.estimates["sensitivity"].reason == "no positive cases"
    assert group_table(*(np.array([]),) * 5) == ()


def test_inputs_that_do_not_fit_are_refused() -> None:
    labels = np.array([0, 1, 1])
    with pytest.raises(DataError, match="3 labels came with 3 decisions, 2 groups; give one per case"):
        group_table(labels, labels, labels, np.array(["a", "b"]), np.arange(3))
    with pytest.raises(DataError, match="2 of 3 group values are missing; write them as 'unknown'"):
        group_table(labels, labels, labels, np.array(["a", None, np.nan], object), np.arange(3))
