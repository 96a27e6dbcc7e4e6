"""Gaps between groups: exact counts, no false alarms on fair data, planted differences found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.methods.groups.test_table import from_counts
from xvision.errors import ConfigError
from xvision.methods.groups.gaps import Gap, conditional_dependence, group_gaps, permutation_test
from xvision.methods.intervals import Sample, difference
from xvision.methods.scores import Scored, auroc_difference


def excludes_zero(gap: Gap) -> bool:
    return (gap.difference.low or 0.0) > 0 or (gap.difference.high or 0.0) < 0


def fair(rng: np.random.Generator, groups: int, cases: int, rate: float = 0.8) -> tuple[np.ndarray, ...]:
    """Positive cases only: labels, decisions, scores, groups and patients with the same sensitivity everywhere."""
    labels = np.ones(groups * cases)
    decisions = rng.random(groups * cases) < rate
    names = np.repeat([f"g{index}" for index in range(groups)], cases)
    return labels, decisions, decisions, names, np.arange(groups * cases)


def test_two_groups_are_compared_once_against_the_larger() -> None:
    labels, decisions, groups = from_counts(black=(1369, 805, 532, 990), white=(505, 349, 461, 1139))
    patients = np.arange(len(labels))
    (gap,) = group_gaps(labels, decisions, decisions, groups, patients, metric="fpr")
    assert (gap.group, gap.reference, gap.family, gap.level) == ("white", "black", 1, pytest.approx(0.95))
    assert gap.difference.value == pytest.approx(-0.213925, abs=5e-7)
    assert (gap.cases, gap.reference_cases) == (1488, 1795)
    assert excludes_zero(gap)


def test_equal_error_rates_at_unequal_prevalence_are_no_gap() -> None:
    labels, decisions, groups = from_counts(A=(800, 200, 200, 800), B=(80, 360, 20, 1440))
    for metric in ("fpr", "fnr", "sensitivity", "specificity"):
        (gap,) = group_gaps(labels, decisions, decisions, groups, np.arange(len(labels)), metric=metric)
        assert gap.difference.value == pytest.approx(0.0, abs=1e-12)
        assert not excludes_zero(gap)
    (follows_prevalence,) = group_gaps(labels, decisions, decisions, groups, np.arange(len(labels)), metric="ppv")
    assert excludes_zero(follows_prevalence)


def test_several_groups_are_each_compared_with_the_rest_at_a_shared_level() -> None:
    labels, decisions, scores, groups, patients = fair(np.random.default_rng(0), 4, 50)
    gaps = group_gaps(labels, decisions, scores, groups, patients, metric="sensitivity")
    assert [(gap.group, gap.reference, gap.family) for gap in gaps] == [(f"g{i}", "rest", 4) for i in range(4)]
    for gap in gaps:
        inside = groups == gap.group
        sides = (Sample(decisions[side], patients[side]) for side in (inside, ~inside))
        assert gap.level == pytest.approx(1 - 0.05 / 4)
        assert gap.difference[:4] == pytest.approx(difference(*sides, level=1 - 0.05 / 4)[:4])


def test_missing_groups_are_compared_but_neither_ranked_nor_counted() -> None:
    rng = np.random.default_rng(0)
    labels, decisions, scores, groups, patients = fair(rng, 4, 50)
    renamed = np.where(groups == "g3", "unknown", groups)
    gaps = group_gaps(labels, decisions, scores, renamed, patients, metric="sensitivity")
    assert [(gap.group, gap.reference, gap.ranked) for gap in gaps] == [
        ("g0", "rest", True),
        ("g1", "rest", True),
        ("g2", "rest", True),
        ("unknown", "known", False),
    ]
    assert [gap.reference_cases for gap in gaps] == [100, 100, 100, 150]
    assert {gap.family for gap in gaps} == {3}
    only = np.where(groups == "g0", "g0", "unknown")
    assert [gap.group for gap in group_gaps(labels, decisions, scores, only, patients, metric="sensitivity")] == [
        "unknown"
    ]


def test_small_groups_give_a_reason_and_leave_the_family() -> None:
    labels, decisions, groups = from_counts(A=(30, 10, 10, 30), B=(20, 10, 20, 30), C=(5, 10, 4, 30), D=(9, 1, 1, 8))
    columns = (labels, decisions, decisions, groups, np.arange(len(labels)))

    def reasons(metric: str, minimum: int = 10) -> list[str | None]:
        return [gap.difference.reason for gap in group_gaps(*columns, metric=metric, minimum=minimum)]

    positive, negative = "fewer than 10 positive patients", "fewer than 10 negative patients"
    assert reasons("sensitivity") == [None, None, positive, None]
    assert reasons("specificity") == [None, None, None, negative]
    assert reasons("auroc") == [None, None, positive, negative]
    assert reasons("accuracy", minimum=20) == [None, None, None, "fewer than 20 patients"]
    assert reasons("ppv", minimum=11) == [None, None, None, "fewer than 11 patients with a positive decision"]
    assert reasons("npv") == [None, None, None, "fewer than 10 patients with a negative decision"]
    assert {gap.family for gap in group_gaps(*columns, metric="sensitivity")} == {3}


def test_the_minimum_counts_patients_not_images() -> None:
    labels, decisions, groups = from_counts(A=(30, 0, 10, 0), B=(30, 0, 10, 0))
    (gap,) = group_gaps(labels, decisions, decisions, groups, np.arange(80) // 5, metric="sensitivity")
    assert (gap.difference.value, gap.difference.reason) == (None, "fewer than 10 positive patients")


def test_too_small_a_rest_is_named() -> None:
    labels, decisions, groups = from_counts(A=(30, 0, 10, 0), B=(3, 0, 1, 0), C=(3, 0, 1, 0))
    gaps = group_gaps(labels, decisions, decisions, groups, np.arange(len(labels)), metric="sensitivity")
    assert gaps[0].difference.reason == "fewer than 10 positive patients in the comparison group"


def test_auroc_gap_is_the_difference_of_the_two_groups() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, 300), rng.choice(["F", "M"], 300, p=[0.4, 0.6])
    scores, patients = labels * (1 + (groups == "M")) + rng.normal(size=300), rng.integers(0, 200, 300)
    (gap,) = group_gaps(labels, scores > 1, scores, groups, patients, metric="auroc")
    sides = (Scored(scores[groups == name], labels[groups == name], patients[groups == name]) for name in "FM")
    assert gap.difference == auroc_difference(*sides)
    assert (gap.cases, gap.reference_cases) == ((groups == "F").sum(), (groups == "M").sum())


@pytest.mark.parametrize("groups", [2, 4, pytest.param(20, marks=pytest.mark.benchmark)])
def test_fair_data_rarely_show_a_gap(groups: int) -> None:
    rng = np.random.default_rng(groups)
    alarms = [any(map(excludes_zero, group_gaps(*fair(rng, groups, 50), metric="sensitivity"))) for _ in range(200)]
    assert np.mean(alarms) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_fair_rankings_rarely_show_a_gap() -> None:
    rng = np.random.default_rng(0)
    labels, groups = np.tile(np.repeat([0, 1], [60, 30]), 3), np.repeat(["a", "b", "c"], 90)
    alarms = []
    for _ in range(200):
        scores = labels + rng.normal(size=270)
        alarms.append(
            any(map(excludes_zero, group_gaps(labels, scores > 1, scores, groups, np.arange(270), metric="auroc")))
        )
    assert np.mean(alarms) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_repeated_images_do_not_turn_chance_into_a_gap() -> None:
    rng = np.random.default_rng(0)
    alarms = {"by patient": 0, "by image": 0}
    for _ in range(200):
        labels, decisions, scores, groups, patients = (np.repeat(part, 4) for part in fair(rng, 2, 40))
        for name, owners in (("by patient", patients), ("by image", np.arange(len(labels)))):
            (gap,) = group_gaps(labels, decisions, scores, groups, owners, metric="sensitivity")
            alarms[name] += excludes_zero(gap)
    assert alarms["by patient"] / 200 <= 0.096
    assert alarms["by image"] / 200 > 0.2


def test_a_planted_gap_is_found_with_its_sign() -> None:
    labels, decisions, groups = from_counts(A=(180, 0, 20, 0), B=(150, 0, 50, 0), C=(182, 0, 18, 0))
    gaps = group_gaps(labels, decisions, decisions, groups, np.arange(600), metric="sensitivity")
    assert gaps[1].difference.value == pytest.approx(0.75 - 0.905)
    assert (gaps[1].difference.high or 0) < 0
    (first, second, third) = (excludes_zero(gap) for gap in gaps)
    assert (first, second, third) == (False, True, True)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_gaps_ignore_the_order_of_rows_and_contain_their_value(seed: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    columns = fair(rng, groups, 20)
    shuffle = rng.permutation(len(columns[0]))
    gaps = group_gaps(*columns, metric="accuracy")
    again = group_gaps(*(column[shuffle] for column in columns), metric="accuracy")
    for gap, same in zip(gaps, again, strict=True):
        assert gap.difference[:4] == pytest.approx(same.difference[:4], abs=1e-9)
        assert (gap.difference.low or 0) <= (gap.difference.value or 0) <= (gap.difference.high or 0)


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"metric 'sensitivty' has no gap between groups\. Did you mean 'sensitivity'\?"
    ):
        group_gaps(*fair(np.random.default_rng(0), 2, 20), metric="sensitivty")


def dependent(rng: np.random.Generator, cases: int, effect: float) -> tuple[np.ndarray, ...]:
    """Decisions, labels, sites and patients; site A has more disease, and adds ``effect`` to the chance of a yes."""
    site = rng.choice(["A", "B", "C"], cases)
    labels = rng.random(cases) < np.where(site == "A", 0.7, 0.2)
    chance = np.where(labels, 0.7, 0.2) + effect * (site == "A")
    return rng.random(cases) < chance, labels, site, np.arange(cases)


def test_dependence_standardises_over_the_label() -> None:
    labels, decisions, groups = from_counts(A=(90, 5, 10, 15), B=(60, 10, 40, 90))
    (gap,) = conditional_dependence(decisions, labels, groups, np.arange(len(labels)))
    assert (gap.group, gap.reference) == ("A", "B")
    assert gap.difference.value == pytest.approx(((0.9 - 0.6) + (0.25 - 0.1)) / 2)
    assert (gap.cases, gap.reference_cases) == (120, 200)


def test_dependence_is_found_when_planted_and_not_made_by_prevalence() -> None:
    rng = np.random.default_rng(0)
    decisions, labels, site, patients = dependent(rng, 4000, 0.15)
    gaps = conditional_dependence(decisions, labels, site, patients)
    assert [gap.group for gap in gaps] == ["A", "B", "C"]
    assert gaps[0].difference.value == pytest.approx(0.15, abs=0.04)
    assert (gaps[0].difference.low or 0) > 0
    alarms = [any(map(excludes_zero, conditional_dependence(*dependent(rng, 400, 0.0)))) for _ in range(200)]
    assert np.mean(alarms) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_dependence_needs_both_labels_at_a_level() -> None:
    labels, decisions, groups = from_counts(A=(20, 20, 20, 20), B=(20, 20, 20, 20), C=(20, 3, 20, 3))
    gaps = conditional_dependence(decisions, labels, groups, np.arange(len(labels)))
    assert [gap.difference.reason for gap in gaps] == [None, None, "fewer than 10 negative patients"]
    assert {gap.family for gap in gaps} == {2}


@pytest.mark.parametrize(("groups", "cases", "expected"), [(2, 30, 0.074), (5, 30, 0.149), (10, 100, 0.109)])
def test_expected_gap_is_what_chance_gives(groups: int, cases: int, expected: float) -> None:
    rng = np.random.default_rng(0)
    results = []
    for _ in range(40):
        labels, decisions, _, names, patients = fair(rng, groups, cases, 0.85)
        results.append(
            permutation_test(labels, decisions, names, patients, rng=rng, metric="sensitivity", permutations=99)
        )
    assert np.mean([result.expected for result in results if result.expected is not None]) == pytest.approx(
        expected, abs=0.01
    )
    assert np.mean([result.gap for result in results if result.gap is not None]) == pytest.approx(expected, abs=0.02)


def test_permutation_p_values_of_two_groups_agree_with_fishers_exact_test() -> None:
    labels, decisions, groups = from_counts(A=(18, 0, 7, 0), B=(10, 0, 15, 0))
    result = permutation_test(
        labels,
        decisions,
        groups,
        np.arange(50),
        rng=np.random.default_rng(0),
        metric="sensitivity",
        permutations=20_000,
    )
    assert result.gap == pytest.approx(8 / 25)
    assert result.p_value == pytest.approx(stats.fisher_exact([[18, 7], [10, 15]]).pvalue, abs=0.004)
    assert (result.groups, result.patients) == (2, 50)


def test_permutation_false_alarms_stay_at_their_level_with_repeated_images() -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(200):
        labels, decisions, _, names, patients = (np.repeat(part, 3) for part in fair(rng, 4, 30))
        result = permutation_test(
            1 - labels, 1 - decisions, names, patients, rng=rng, metric="specificity", permutations=99
        )
        p_values.append(result.p_value or 0.0)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.096
    assert np.mean(np.array(p_values) <= 0.5) == pytest.approx(0.5, abs=0.15)


def test_permutation_deals_out_whole_patients_whatever_their_number_of_images() -> None:
    rng = np.random.default_rng(0)
    sizes, home = rng.integers(1, 4, 60), np.repeat([0, 1, 2], [30, 20, 10])
    right = rng.binomial(sizes, np.where(home == 0, 0.9, 0.6))
    decisions = np.concatenate([np.arange(size) < hits for size, hits in zip(sizes, right, strict=True)])
    groups, patients = np.repeat(home, sizes).astype(str), np.repeat(np.arange(60), sizes)
    found = permutation_test(
        np.ones(len(groups)), decisions, groups, patients, rng=rng, metric="sensitivity", permutations=20_000
    )

    def gap(places: np.ndarray) -> float:
        return float(np.ptp(np.bincount(places, right) / np.bincount(places, sizes)))

    drawn = np.array([gap(rng.permutation(home)) for _ in range(5000)])
    assert found.gap == pytest.approx(gap(home))
    assert found.expected == pytest.approx(drawn.mean(), abs=0.006)
    assert found.p_value == pytest.approx((drawn >= gap(home) - 1e-12).mean(), abs=0.02)


def test_permutation_leaves_out_small_and_missing_groups() -> None:
    labels, decisions, groups = from_counts(A=(20, 0, 20, 0), B=(20, 0, 20, 0), C=(9, 0, 0, 0), unknown=(40, 0, 0, 0))
    rng = np.random.default_rng(0)
    result = permutation_test(labels, decisions, groups, np.arange(len(labels)), rng=rng, metric="sensitivity")
    assert (result.gap, result.p_value, result.groups, result.patients) == (0.0, 1.0, 2, 80)
    alone = permutation_test(
        labels, decisions, groups, np.arange(len(labels)), rng=rng, metric="sensitivity", minimum=41
    )
    assert (alone.gap, alone.p_value) == (None, None)
    assert alone.reason == "fewer than 2 groups with 41 positive patients"
    nobody = permutation_test(labels, decisions, groups, np.arange(len(labels)), rng=rng, metric="specificity")
    assert nobody.reason == "fewer than 2 groups with 10 negative patients"
