"""All groups against the rest at once: the same estimates as one by one."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.methods.groups.gaps import conditional_dependence, group_gaps, permutation_test
from xvision.methods.groups.rest import against_rest
from xvision.methods.intervals import Sample, combination


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10**6), st.integers(2, 4), st.sampled_from([0.9, 0.95, 0.995]), st.sampled_from([0.0, 0.3, 0.9, 1.0])
)
def test_the_estimates_are_those_of_each_group_and_its_rest(seed: int, count: int, level: float, rate: float) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(5, 80))
    hits, groups, strata = rng.random(size) < rate, rng.integers(0, count, size), rng.integers(0, 2, size)
    patients = np.arange(size) if seed % 3 else rng.integers(0, int(rng.integers(1, size + 1)), size)
    plain = against_rest(hits, groups, patients, count=count, level=level)
    layered = against_rest(hits, groups, patients, count=count, level=level, strata=strata)
    for group in range(count):
        sides = [groups == group, groups != group]
        cells = [side & (strata == stratum) for stratum in range(strata.max() + 1) for side in sides]
        share = 1 / (strata.max() + 1)
        for found, parts, weights in (
            (plain[group], sides, [1, -1]),
            (layered[group], cells, [share, -share] * (strata.max() + 1)),
        ):
            expected = combination([Sample(hits[part], patients[part]) for part in parts], weights, level=level)
            assert (found.method, found.reason, found.value is None) == (
                expected.method,
                expected.reason,
                expected.value is None,
            ) or expected.value is None
            if expected.value is not None:
                assert np.allclose(found[:4], expected[:4], atol=1e-9)


def test_a_thousand_groups_take_no_longer_than_reading_about_them() -> None:
    rng = np.random.default_rng(0)
    labels, sites = rng.random(20_000) < 0.5, rng.integers(0, 1000, 20_000).astype(str)
    decisions, patients = rng.random(20_000) < np.where(labels, 0.8, 0.1), np.arange(20_000) // 2
    start = time.process_time()
    gaps = group_gaps(labels, decisions, decisions, sites, patients, metric="sensitivity")
    dependence = conditional_dependence(decisions, labels, sites, patients)
    test = permutation_test(labels, decisions, sites, patients, rng=rng, metric="sensitivity", permutations=199)
    assert time.process_time() - start < 3
    assert (len(gaps), len(dependence)) == (1000, 1000)
    assert (test.p_value or 0) > 0.01
    few = [gap for gap in gaps if gap.difference.value is None]
    assert {gap.difference.reason for gap in few} == {"fewer than 10 positive patients"}
    assert gaps[0].family == test.groups == 1000 - len(few)


def test_nobody_is_compared_with_nobody() -> None:
    nothing = np.zeros(0, dtype=int)
    found = against_rest(nothing == 1, nothing, nothing, count=2, level=0.95)
    assert [estimate.reason for estimate in found] == ["no cases in one of the groups"] * 2
