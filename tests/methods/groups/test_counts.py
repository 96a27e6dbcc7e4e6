"""Counts of groups against counting by hand, and their bootstrap against drawing rows, numpy and fairlearn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_score

from tests.methods.groups.test_table import COMPAS
from xvision.errors import ConfigError, DataError
from xvision.methods.groups.cases import Rate
from xvision.methods.groups.counts import (
    SHARES,
    coded,
    group_draws,
    patient_cells,
    quantiles,
    rate,
    rate_intervals,
    resampled,
    resampled_cells,
    tabulated,
    weighted,
)

RATES: tuple[Rate, ...] = tuple(SHARES)


def cases(rng: np.random.Generator, size: int, groups: int) -> tuple[np.ndarray, ...]:
    """Labels, decisions and group numbers."""
    labels = rng.random(size) < 0.4
    return labels, rng.random(size) < np.where(labels, 0.8, 0.1), rng.integers(0, groups, size)


def test_counts_of_a_published_table_give_its_rates() -> None:
    # ProPublica's COMPAS counts (2016), as true negatives, false positives, false negatives, true positives
    table = np.array([[990, 1139], [805, 349], [532, 461], [1369, 505]])
    for metric, values in COMPAS.items():
        assert rate(table, metric) == pytest.approx(values, abs=5e-7)
    for one, other in (("sensitivity", "fnr"), ("specificity", "fpr")):
        assert rate(table, one) + rate(table, other) == pytest.approx([1, 1])
    assert rate(table, "accuracy") == pytest.approx((table[0] + table[3]) / table.sum(axis=0))
    assert rate(table, "npv") == pytest.approx([990 / 1522, 1139 / 1600])


def test_intersections_are_counted_once() -> None:
    rng = np.random.default_rng(0)
    labels, decisions, _ = cases(rng, 500, 1)
    columns = {"sex": rng.choice(["F", "M"], 500), "age": rng.choice(["young", "old", "unknown"], 500)}
    coding = coded(columns)
    assert (coding.shape, coding.count) == ((2, 3), 6)
    table = tabulated(labels, decisions, coding.codes, coding.count)
    for code in range(6):
        sex, age = coding.named(code)
        inside = (columns["sex"] == sex) & (columns["age"] == age)
        by_hand = [(inside & (labels == y) & (decisions == d)).sum() for y in (0, 1) for d in (0, 1)]
        assert table[:, code].tolist() == by_hand


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_quantiles_are_those_of_numpy_without_what_is_undefined(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.round(rng.random((4, size)), 1)
    values[rng.random((4, size)) < 0.2] = np.nan
    values[0] = np.nan
    tails = (0.025, 0.31, 0.5, 0.975, 1.0)
    found = quantiles(values, tails)
    assert np.isnan(found[:, 0]).all()
    for row in range(1, 4):
        defined = values[row][~np.isnan(values[row])]
        if len(defined):
            assert np.array_equal(found[:, row], np.quantile(defined, tails))


def test_replaying_the_resamples_of_fairlearn_gives_its_intervals_to_the_last_digit() -> None:
    rng = np.random.default_rng(3)
    labels, decisions, groups = cases(rng, 400, 3)
    draws, tails = 20, [0.05, 0.5, 0.95]
    metrics = {
        "accuracy": accuracy_score,
        "sensitivity": true_positive_rate,
        "fpr": false_positive_rate,
        "selection_rate": selection_rate,
        "ppv": precision_score,
    }
    frame = MetricFrame(
        metrics=metrics, y_true=labels.astype(int), y_pred=decisions.astype(int), sensitive_features=groups,
        n_boot=draws, ci_quantiles=tails, random_state=7,
    )  # fmt: skip
    seeds = np.random.default_rng(7).integers(0, 2**32 - 1, draws, np.uint32)
    rows = pd.DataFrame(index=np.arange(400))
    drawn = [rows.sample(frac=1, replace=True, random_state=int(seed)).index for seed in seeds]
    weights = np.stack([np.bincount(places, minlength=400) for places in drawn])
    cells = patient_cells((2 * labels + decisions) * 3 + groups, 12, np.arange(400))
    counts = weighted(cells, weights).reshape(4, 3, draws)
    for name in metrics:
        values = rate(counts, name)
        theirs = np.stack([part[name].to_numpy(float) for part in frame.by_group_ci])
        assert np.abs(quantiles(values, tails) - theirs).max() == 0.0
        gaps = [part[name] for part in frame.difference_ci()]
        assert np.abs(quantiles(np.ptp(values, axis=0), tails) - gaps).max() == 0.0


def test_copies_of_every_image_of_a_patient_change_no_resample() -> None:
    labels, decisions, groups = cases(np.random.default_rng(0), 300, 2)
    table, tails = tabulated(labels, decisions, groups, 2), (0.025, 0.975)

    def limits(copies: int, patients: np.ndarray) -> np.ndarray:
        cells = patient_cells(np.repeat((2 * labels + decisions) * 2 + groups, copies), 8, patients)
        drawn = resampled_cells(cells, rng=np.random.default_rng(1)).reshape(4, 2, -1)
        return quantiles(rate(drawn, "accuracy"), tails)

    once, five = limits(1, np.arange(300)), limits(5, np.repeat(np.arange(300), 5))
    assert np.array_equal(once, five)
    as_if_alone = limits(5, np.arange(1500))
    assert np.diff(once, axis=0) / np.diff(as_if_alone, axis=0) == pytest.approx(np.full((1, 2), np.sqrt(5)), rel=0.12)
    independent = rate_intervals(table, resampled(table, rng=np.random.default_rng(1)), ["accuracy"])["accuracy"]
    assert np.stack([independent.low, independent.high]) == pytest.approx(once, abs=0.015)


@pytest.mark.parametrize("scheme", ["rows", "within group", "within group and label"])
def test_counts_vary_as_drawn_rows_do_and_keep_what_the_scheme_keeps(scheme: str) -> None:
    labels, decisions, groups = cases(np.random.default_rng(0), 200, 3)
    table = tabulated(labels, decisions, groups, 3)
    (block,) = resampled(table, rng=np.random.default_rng(1), resamples=20_000, scheme=scheme)
    kept = {"rows": (0, 1), "within group": (0,), "within group and label": ()}[scheme]
    totals = block.counts.reshape(2, 2, 3, -1).sum(axis=1)  # by label and group
    fixed = totals.sum(axis=kept) if kept else totals
    assert np.array_equal(fixed, np.broadcast_to(fixed[..., :1], fixed.shape))
    assert block.counts.mean(axis=-1) == pytest.approx(table, abs=0.25)
    among = {"rows": 200, "within group": table.sum(axis=0), "within group and label": None}[scheme]
    if among is None:
        among = np.repeat(np.stack([table[:2].sum(axis=0), table[2:].sum(axis=0)]), 2, axis=0)
    assert block.counts.var(axis=-1) == pytest.approx(table * (1 - table / among), rel=0.05)


def test_patient_weights_vary_as_patients_do() -> None:
    rng = np.random.default_rng(0)
    labels, decisions, groups = cases(rng, 300, 2)
    patients = rng.integers(0, 100, 300)
    (block,) = group_draws(labels, decisions, groups, 2, patients, rng=rng, resamples=20_000)
    cells = patient_cells((2 * labels + decisions) * 2 + groups, 8, patients)
    own = cells.toarray()
    people = len(own)
    assert block.counts.reshape(8, -1).mean(axis=-1) == pytest.approx(own.sum(axis=0), abs=0.3)
    assert block.counts.reshape(8, -1).var(axis=-1) == pytest.approx(people * own.var(axis=0), rel=0.05)
    poisson = resampled_cells(cells, rng=rng, resamples=20_000, weights="poisson")
    assert poisson.var(axis=-1) == pytest.approx((own**2).sum(axis=0), rel=0.05)


def test_blocks_join_and_an_empty_denominator_is_undefined() -> None:
    labels, decisions, groups = (
        np.array([1, 1, 0, 0, 0, 0, 0, 0]),
        np.array([1, 0, 0, 1, 0, 0, 0, 0]),
        np.repeat([0, 2], 4),
    )
    table = tabulated(labels, decisions, groups, 3)
    blocks = list(resampled(table, rng=np.random.default_rng(0), resamples=600_000))
    assert [(block.start, block.counts.shape[1]) for block in blocks] == [(0, 1), (1, 1), (2, 1)]
    found = rate_intervals(table, blocks, RATES)
    assert np.isnan(found["sensitivity"].value).tolist() == [False, True, True]
    assert found["sensitivity"].usable == pytest.approx([1 - 0.5**4, 0, 0], abs=1e-3)
    assert np.isnan(found["sensitivity"].low).tolist() == [False, True, True]
    assert found["fpr"].value[2] == 0.0
    assert np.isnan(found["accuracy"].value).tolist() == [False, True, False]


def test_the_order_of_rows_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    labels, decisions, groups = cases(rng, 200, 2)
    patients, shuffle = rng.integers(0, 80, 200), rng.permutation(200)
    first, second = (
        next(group_draws(*(part[order] for part in (labels, decisions, groups)), 2, patients[order], rng=np.random.default_rng(1)))
        for order in (np.arange(200), shuffle)
    )  # fmt: skip
    assert np.array_equal(first.counts, second.counts)


def test_what_cannot_be_counted_is_refused() -> None:
    labels = np.array([0, 1, 1])
    with pytest.raises(DataError, match=r"found group columns of lengths \{'sex': 3, 'age': 2\}; give at least one"):
        coded({"sex": np.array(["F", "M", "F"]), "age": np.array(["a", "b"])})
    with pytest.raises(DataError, match="have 4000 × 4000 combinations; leave a column out"):
        coded({"site": np.arange(4000), "scanner": np.arange(4000)})
    with pytest.raises(DataError, match="3 labels came with 3 decisions, 2 groups"):
        tabulated(labels, labels, np.array([0, 1]), 2)
    with pytest.raises(DataError, match="found groups numbered 0 to 2; number them from 0 to 1"):
        tabulated(labels, labels, np.array([0, 1, 2]), 2)
    table = tabulated(labels, labels, np.zeros(3, int), 1)
    with pytest.raises(ConfigError, match=r"'auroc' is no ratio of confusion counts\. Did you mean 'accuracy'"):
        rate(table, "auroc")
    with pytest.raises(ConfigError, match="scheme 'row' is none of"):
        next(resampled(table, rng=np.random.default_rng(0), scheme="row"))
