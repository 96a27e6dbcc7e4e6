"""Sample sizes against published ones, and against the intervals that the comparison of groups really makes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom
from statsmodels.stats.power import NormalIndPower

from xvision.errors import ConfigError, DataError
from xvision.methods.groups.gaps import group_gaps
from xvision.methods.groups.power import (
    among,
    auroc_standard_error,
    detectable_difference,
    gap_power,
    minimum_size,
    normal_sample_size,
    sample_size,
)
from xvision.methods.intervals import Sample, difference, wilson


@pytest.mark.parametrize(
    ("rate", "other", "family", "cases"),
    [(0.9, 0.8, 1, 199), (0.9, 0.8, 10, 338), (0.9, 0.85, 1, 686), (0.9, 0.85, 10, 1164), (0.95, 0.9, 1, 435), (0.95, 0.9, 10, 738)],
)  # fmt: skip
def test_the_textbook_sample_size(rate: float, other: float, family: int, cases: int) -> None:
    assert normal_sample_size(rate, other, power=0.8, family=family) == cases
    assert normal_sample_size(other, rate, power=0.8, family=family) == cases


def test_the_textbook_sample_size_is_near_that_of_statsmodels() -> None:
    for ratio in (1.0, 3.0):
        effect = 2 * (np.arcsin(np.sqrt(0.6)) - np.arcsin(np.sqrt(0.45)))
        theirs = NormalIndPower().solve_power(effect, power=0.9, alpha=0.05, ratio=ratio)
        assert normal_sample_size(0.6, 0.45, power=0.9, ratio=ratio) == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize(("rate", "other"), [(0.6, 0.9), (0.9, 0.6), (0.7, 0.7)])
def test_the_power_is_the_sum_over_all_tables_whose_interval_excludes_0(rate: float, other: float) -> None:
    total = 0.0
    for hits in range(13):
        for other_hits in range(16):
            sides = Sample(np.arange(12) < hits, np.arange(12)), Sample(np.arange(15) < other_hits, np.arange(100, 115))
            found = difference(*sides, level=0.9)
            above, below = (found.low or 0) > 0, (found.high or 0) < 0
            if (above and rate >= other) or (below and rate <= other):
                total += binom.pmf(hits, 12, rate) * binom.pmf(other_hits, 15, other)
    assert gap_power(rate, other, 12, 15, level=0.9) == pytest.approx(total, abs=1e-8)


@pytest.mark.parametrize("groups", [2, 5])
def test_groups_of_the_size_asked_for_show_a_planted_gap(groups: int) -> None:
    needed = sample_size("sensitivity", 0.7, 0.85, power=0.9, groups=groups)
    assert (needed.among, needed.family) == ("positive patients", 1 if groups == 2 else 5)
    assert (needed.reference_cases, needed.level) == (
        needed.cases * (groups - 1),
        pytest.approx(1 - 0.05 / needed.family),
    )
    fewer = needed.cases - 1
    assert needed.power >= 0.9 > gap_power(0.7, 0.85, fewer, fewer * (groups - 1), level=needed.level)
    rng, size = np.random.default_rng(groups), needed.cases
    names = np.repeat([f"g{place}" for place in range(groups)], size)
    shares = np.where(names == "g0", 0.7, 0.85)
    found = 0
    for _ in range(150):
        decisions = rng.random(len(names)) < shares
        gaps = group_gaps(np.ones(len(names)), decisions, decisions, names, np.arange(len(names)), metric="sensitivity")
        first = gaps[0]
        found += (first.difference.high or 0) < 0 if first.group == "g0" else (first.difference.low or 0) > 0
    assert found / 150 == pytest.approx(needed.power, abs=3 * np.sqrt(0.09 / 150))


def test_the_power_asked_for_must_be_said() -> None:
    with pytest.raises(TypeError, match="power"):
        sample_size("sensitivity", 0.7, 0.85)
    with pytest.raises(ConfigError, match=r"power 80 is not between 0 and 1; 0\.8 and 0\.9 are usual"):
        sample_size("sensitivity", 0.7, 0.85, power=80)
    with pytest.raises(ConfigError, match="found 1 groups to compare: give at least 2"):
        sample_size("sensitivity", 0.7, 0.85, power=0.8, groups=1)
    with pytest.raises(
        DataError, match=r"both rates are 0\.7: no number of patients shows a difference that is not there"
    ):
        sample_size("sensitivity", 0.7, 0.7, power=0.8)


def test_what_is_detectable_is_what_the_size_is_for() -> None:
    needed = sample_size("specificity", 0.75, 0.9, power=0.8)
    found = detectable_difference(0.9, needed.cases, needed.reference_cases, power=0.8)
    assert found == pytest.approx(0.15, abs=1e-3)
    fewer = detectable_difference(0.9, needed.cases, needed.reference_cases, power=0.8, family=5)
    assert (fewer or 0) > 0.15
    assert detectable_difference(0.2, 5, 5, power=0.8) is None
    with pytest.raises(ConfigError, match="power 0 is not"):
        detectable_difference(0.9, 50, 50, power=0)


def test_a_false_alarm_is_as_rare_as_the_level_says() -> None:
    for size in (20, 50, 200):
        assert gap_power(0.8, 0.8, size, 3 * size) <= 0.055


@pytest.mark.parametrize(
    ("half_width", "sizes"), [(0.10, {0.8: 60, 0.9: 37, 0.95: 25}), (0.05, {0.8: 245, 0.9: 141, 0.95: 83})]
)
def test_the_minimum_size_of_a_group(half_width: float, sizes: dict[float, int]) -> None:
    for rate, size in sizes.items():
        assert minimum_size(rate, half_width) == size
        low, high = wilson(rate * (size - 1), size - 1)
        assert high - low > 2 * half_width
    with pytest.raises(ConfigError, match="needs more than 10000000 patients"):
        minimum_size(0.5, 1e-5)
    with pytest.raises(ConfigError, match="half-width 5 is not between"):
        minimum_size(0.5, 5)


def test_hanley_and_mcneil_give_the_standard_error_of_an_auroc() -> None:
    found = [auroc_standard_error(0.85, *sizes) for sizes in ((20, 80), (50, 450), (100, 900))]
    assert found == pytest.approx([0.056, 0.035, 0.025], abs=5e-4)
    with pytest.raises(DataError, match="an AUROC needs both"):
        auroc_standard_error(0.85, 0, 20)


def test_the_size_that_counts_is_the_denominators() -> None:
    assert [among(name) for name in ("sensitivity", "fpr", "ppv", "accuracy")] == [
        "positive patients", "negative patients", "patients with a positive decision", "patients",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="'auroc' has no denominator"):
        among("auroc")
