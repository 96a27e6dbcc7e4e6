"""Bands over groups: the level that independent, equal and flat figures need in closed form, and coverage."""

from __future__ import annotations

import numpy as np
import pytest

from xvision.methods.groups.bands import joint_level, rate_bands
from xvision.methods.groups.counts import patient_cells, quantiles, rate, resampled_cells
from xvision.methods.intervals import clopper_pearson


def test_independent_figures_need_sidaks_level_and_copies_only_their_own() -> None:
    drawn = np.random.default_rng(0).normal(size=(10, 40_000)) * np.arange(1, 11)[:, None]
    assert joint_level(drawn) == pytest.approx(0.95**0.1, abs=5e-4)
    assert joint_level(np.repeat(drawn[:1], 10, axis=0)) == pytest.approx(0.95, abs=2e-3)
    assert joint_level(drawn[:1], level=0.9) == pytest.approx(0.9, abs=4e-3)


def test_figures_without_spread_count_as_independent() -> None:
    assert joint_level(np.ones((4, 100))) == pytest.approx(0.95**0.25, abs=1e-6)
    drawn = np.random.default_rng(0).normal(size=(6, 40_000))
    drawn[3:] = 0.7
    assert joint_level(drawn) == pytest.approx(0.95 ** (1 / 6), abs=8e-4)
    drawn[0, :20_000] = np.nan
    drawn[1] = np.nan
    assert 0.95 < joint_level(drawn) < 0.95 ** (1 / 6) + 8e-4


def test_groups_that_overlap_need_less_than_bonferroni() -> None:
    parts = np.random.default_rng(0).normal(size=(12, 20_000))
    sums = np.stack([parts[first] + parts[first + 1 :].sum(axis=0) for first in range(6)])
    assert 0.95 <= joint_level(sums) < 1 - 0.05 / 6


@pytest.mark.parametrize(("shares", "copies"), [([0.9] * 4, 1), ([0.99] * 6, 1), ([0.8, 0.6, 0.9], 3)])
def test_bands_cover_all_groups_at_once(shares: list[float], copies: int) -> None:
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(len(shares)), 30)
    groups, patients = np.repeat(who, copies), np.repeat(np.arange(len(who)), copies)
    covered = 0
    for _ in range(120):
        strength = (
            rng.beta(6 * np.array(shares)[who], 6 * (1 - np.array(shares)[who]))
            if copies > 1
            else np.array(shares)[who]
        )
        decisions = rng.random(len(groups)) < np.repeat(strength, copies)
        found = rate_bands(
            np.ones(len(groups)), decisions, groups, len(shares), patients, metric="sensitivity", rng=rng, resamples=300
        )
        covered += all((one.low or 0) <= share <= (one.high or 0) for one, share in zip(found, shares, strict=True))
    assert covered / 120 >= 0.93


def test_a_group_that_is_all_right_has_width_and_an_empty_one_a_reason() -> None:
    groups = np.repeat([0, 1, 3], [10, 10, 5])
    labels, decisions = groups < 3, np.arange(25) != 12
    found = rate_bands(labels, decisions, groups, 4, np.arange(25), metric="sensitivity", rng=np.random.default_rng(0))
    each = float(found[0].method.split(", ")[1].split(" %")[0]) / 100
    assert 0.95 < each < 0.98
    assert found[0][:3] == pytest.approx((1.0, *clopper_pearson(10, 10, each)), abs=1e-3)
    assert found[0].method.endswith("% each so that 2 hold together")
    assert [estimate.reason for estimate in found] == [None, None, "no positive cases", "no positive cases"]


def test_the_patient_bootstrap_covers_at_its_level_where_images_repeat() -> None:
    rng, people, covered = np.random.default_rng(0), np.repeat(np.arange(150), 3), 0
    for _ in range(600):
        strength = rng.beta(4 * 0.7, 4 * 0.3, 150)
        decisions = rng.random(450) < np.repeat(strength, 3)
        drawn = resampled_cells(patient_cells(2 + decisions, 4, people), rng=rng, resamples=300)
        low, high = quantiles(rate(drawn, "sensitivity"), (0.025, 0.975))
        covered += low <= 0.7 <= high
    assert 0.93 <= covered / 600 <= 0.97
