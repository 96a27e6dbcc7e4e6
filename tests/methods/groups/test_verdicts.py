"""Verdicts on gaps: each word at its border, published tables, and what prevalence explains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.methods.groups.test_table import from_counts
from xvision.errors import DataError
from xvision.methods.groups.counts import rate, resampled
from xvision.methods.groups.gaps import Gap, group_gaps
from xvision.methods.groups.table import group_table
from xvision.methods.groups.verdicts import prevalence_note, two_proportions, verdict, worst_group
from xvision.methods.intervals import Estimate, not_estimable, wilson


def gap(value: float, low: float, high: float, group: str = "F", reference: str = "M") -> Gap:
    return Gap(group, reference, Estimate(value, low, high, 100, "Newcombe"), 60, 40, 0.95, 1, True)


@pytest.mark.parametrize(
    ("found", "margin", "word", "sentence"),
    [
        (gap(-0.15, -0.22, -0.08), None, "gap shown", "Sensitivity is 0.150 (0.080 to 0.220) lower for F than for M."),
        (
            gap(-0.15, -0.22, -0.08), 0.05, "gap shown",
            "Sensitivity is 0.150 (0.080 to 0.220) lower for F than for M, more than the agreed margin of 0.050.",
        ),
        (
            gap(0.15, 0.02, 0.28, reference="rest"), 0.05, "gap shown",
            "Sensitivity is 0.150 (0.020 to 0.280) higher for F than for the rest;"
            " the interval also holds gaps below the agreed margin of 0.050.",
        ),
        (
            gap(0.02, 0.01, 0.03), 0.05, "below the agreed margin",
            "Sensitivity is 0.020 (0.010 to 0.030) higher for F than for M, less than the agreed margin of 0.050.",
        ),
        (
            gap(-0.04, -0.07, -0.01), 0.05, "below the agreed margin",
            "Sensitivity is 0.040 (0.010 to 0.070) lower for F than for M:"
            " below the agreed margin of 0.050, but the interval reaches beyond it.",
        ),
        (
            gap(0.0, -0.03, 0.04), 0.05, "equivalent",
            "Sensitivity for F against M: only differences from 0.030 lower to 0.040 higher are compatible with the data,"
            " within the agreed margin of 0.050.",
        ),
        (
            gap(0.0, -0.03, 0.04), None, "not enough data",
            "Sensitivity for F against M: no difference is shown, and differences from 0.030 lower to 0.040 higher are not excluded.",
        ),
        (
            gap(0.0, -0.03, 0.06, "unknown", "known"), 0.05, "not enough data",
            "Sensitivity for patients whose group is unknown against all whose group is known: no difference is shown,"
            " and differences from 0.030 lower to 0.060 higher are not excluded.",
        ),
    ],
)  # fmt: skip
def test_each_word_is_said_with_its_figures(found: Gap, margin: float | None, word: str, sentence: str) -> None:
    assert verdict(found, "sensitivity", margin=margin) == (word, sentence)


def test_a_group_too_small_is_not_enough_data_with_the_reason() -> None:
    labels, decisions, groups = from_counts(A=(400, 50, 100, 450), B=(4, 9, 1, 81))
    (found,) = group_gaps(labels, decisions, decisions, groups, np.arange(len(labels)), metric="sensitivity")
    assert verdict(found, "sensitivity", margin=0.05) == (
        "not enough data",
        "Sensitivity for B cannot be compared with A: fewer than 10 positive patients (5 cases against 500).",
    )
    with pytest.raises(DataError, match=r"the margin is 5; give a difference above 0 and below 1"):
        verdict(found, "sensitivity", margin=5)


@settings(deadline=None, max_examples=60)
@given(st.floats(-0.9, 0.9), st.floats(0.001, 0.5), st.floats(0.001, 0.5), st.floats(0.01, 0.5))
def test_exactly_one_word_holds_and_a_mirror_changes_none(value: float, down: float, up: float, margin: float) -> None:
    found, mirrored = gap(value, value - down, value + up), gap(-value, -value - up, -value + down)
    words = [verdict(each, "accuracy", margin=margin).word for each in (found, mirrored)]
    assert words[0] == words[1]
    assert (words[0] in ("gap shown", "below the agreed margin")) == (value - down > 0 or value + up < 0)
    assert verdict(found, "accuracy").word in ("gap shown", "not enough data")


@given(st.lists(st.integers(1, 5000), min_size=4, max_size=4))
def test_the_false_positive_rate_follows_from_the_other_three(cells: list[int]) -> None:
    """Chouldechova 2017: with unequal prevalence, ppv, sensitivity and specificity cannot all be equal."""
    counts = np.array(cells)
    prevalence = counts[2:].sum() / counts.sum()
    ppv, sensitivity = rate(counts, "ppv"), rate(counts, "sensitivity")
    implied = prevalence / (1 - prevalence) * (1 - ppv) / ppv * sensitivity
    assert implied == pytest.approx(rate(counts, "fpr"), rel=1e-12)
    black = np.array([990, 805, 532, 1369])
    assert rate(black, "fpr") == pytest.approx(0.448468, abs=5e-7)


def note(*cells: tuple[int, int, int, int], metric: str = "ppv"):
    """Of groups given as true and false positives, false and true negatives."""
    table = np.array(cells).T[[3, 1, 2, 0]]
    (block,) = resampled(table, rng=np.random.default_rng(0))
    return prevalence_note(table, block.counts, metric)


def test_a_difference_in_predictive_values_that_only_prevalence_makes_is_explained_by_it() -> None:
    found = note((400, 50, 100, 450), (80, 90, 20, 810))
    assert (found.word, found.gap, found.left) == (
        "explained by prevalence",
        pytest.approx(0.888889 - 0.470588, abs=5e-7),
        pytest.approx(0, abs=1e-12),
    )
    assert found.sentence.startswith("The difference of 0.418 in PPV would be 0.000 (")
    assert found.sentence.endswith(
        "if both groups had a prevalence of 0.300 instead of 0.500 and 0.100: explained by prevalence."
    )
    negative = note((400, 50, 100, 450), (80, 90, 20, 810), metric="npv")
    assert (negative.word, negative.left) == ("explained by prevalence", pytest.approx(0, abs=1e-12))
    assert negative.gap == pytest.approx(450 / 550 - 810 / 830)


def test_a_difference_that_the_errors_make_is_not_explained_and_few_cases_cannot_tell() -> None:
    worse = note((400, 50, 100, 450), (400, 200, 100, 300))
    assert (worse.word, worse.left) == ("not explained by prevalence", pytest.approx(worse.gap))
    assert note((4, 1, 1, 4), (2, 3, 1, 30)).word == "not enough data"
    assert note((8, 1, 2, 9), (8, 1, 2, 9)) is None
    assert note((0, 1, 0, 9), (8, 1, 2, 9)) is None


# Seyyed-Kalantari et al. 2021, MIMIC-CXR: false positive rate of "no finding" (underdiagnosis) as published.
RACE = {"White": 0.170, "Black": 0.276, "Hispanic": 0.275, "Other": 0.176, "Asian": 0.217, "American Indian": 0.176}
INSURANCE = {"Medicare": 0.162, "Medicaid": 0.274, "Other": 0.208}
BOTH = {"Hispanic female": 0.356, "Hispanic male": 0.206, "Asian female": 0.301}


def published(rates: dict[str, float], **sizes: int) -> dict[str, Estimate]:
    return {
        name: Estimate(value, *wilson(value * sizes.get(name, 2000), sizes.get(name, 2000)), sizes.get(name, 2000), "")
        for name, value in rates.items()
    }


def test_a_published_table_names_the_groups_it_is_worst_for() -> None:
    race = published(RACE, **{"American Indian": 41})
    found = worst_group(race, minimum=60, better="lower")
    assert (found.worst, found.best, found.too_small) == ("Black", "White", ("American Indian",))
    assert found.ratio == pytest.approx(1.6235, abs=5e-5)
    assert worst_group(published(INSURANCE), minimum=60, better="lower").worst == "Medicaid"
    assert worst_group(published(BOTH), minimum=60, better="lower").worst == "Hispanic female"
    alone = race["American Indian"]
    assert ((alone.high or 0) - (alone.low or 0)) / 2 == pytest.approx(0.115, abs=5e-4)  # not the 0.032 in print


def test_only_groups_with_a_figure_and_enough_patients_are_ranked() -> None:
    estimates = {
        "a": Estimate(0.9, 0.8, 0.95, 50, ""),
        "b": Estimate(0.2, 0.0, 0.3, 50, ""),
        "c": not_estimable("no positive cases"),
        "d": Estimate(0.1, 0.0, 0.6, 3, ""),
        "unknown": Estimate(0.0, 0.0, 0.1, 50, ""),
    }
    assert worst_group(estimates, minimum=10) == ("b", "a", pytest.approx(0.2 / 0.9), ("c", "d"), None)
    assert worst_group(estimates, minimum=10, better="lower") == ("a", "b", pytest.approx(4.5), ("c", "d"), None)
    none_missed = {"a": estimates["a"], "b": Estimate(0.0, 0.0, 0.1, 50, "")}
    assert worst_group(none_missed, minimum=10, better="lower").ratio is None
    assert worst_group(estimates, minimum=51).reason == "fewer than 2 groups with 51 patients"


def test_two_proportions_of_a_published_table() -> None:
    found = two_proportions(805, 1795, 349, 1488)
    assert found.z == pytest.approx(12.780265, abs=5e-7)
    assert found.p_value == pytest.approx(2.1135e-37, rel=1e-4)
    assert found.difference == pytest.approx(0.213925, abs=5e-7)
    square, p_value, *_ = stats.chi2_contingency([[805, 990], [349, 1139]], correction=False)
    assert (found.z**2, found.p_value) == (pytest.approx(163.335166, abs=5e-7), pytest.approx(p_value))
    assert found.z**2 == pytest.approx(square)
    assert two_proportions(532, 1901, 461, 966).z == pytest.approx(-10.498366, abs=5e-7)


def test_equal_error_rates_are_no_difference_whatever_the_prevalence() -> None:
    for hits, cases, other, others in ((200, 1000, 360, 1800), (200, 1000, 20, 100), (0, 5, 0, 50), (5, 5, 50, 50)):
        assert two_proportions(hits, cases, other, others) == (0.0, 0.0, 1.0)
    with pytest.raises(DataError, match="3 of 2 and 1 of 4 are not two proportions"):
        two_proportions(3, 2, 1, 4)


def test_underdiagnosis_of_a_head_that_says_no_finding_is_its_false_positive_rate() -> None:
    # Positive means healthy: a patient with disease who is called healthy is a false positive.
    labels, decisions, groups = from_counts(A=(50, 20, 10, 80))
    (row,) = group_table(labels, decisions, decisions, groups, np.arange(len(labels)))
    assert row.estimates["fpr"].value == pytest.approx(0.2)
    assert row.estimates["fnr"].value == pytest.approx(1 / 6)
