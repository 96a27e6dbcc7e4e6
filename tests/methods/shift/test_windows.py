"""Distances as scipy has them, false alarms as often as said, and planted changes found in the channel where they are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, ks_2samp

from xvision.errors import DataError
from xvision.methods.shift.windows import Cases, unlike


def cases(count: int, seed: int, *, channels: int = 5, per_patient: int = 1, shift: float = 0.0) -> Cases:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, channels))
    values[:, 1] = np.round(values[:, 1])  # ties
    values[:, 2] += shift
    patients = np.arange(count) // per_patient
    values[:, 0] += rng.normal(size=count)[patients] * (per_patient > 1) * 3  # images of a patient are alike
    return Cases(values, (values[:, 3] > 0.5).astype(int), patients.astype(str))


def test_distances_are_those_of_scipy() -> None:
    reference, current = cases(90, 0), cases(37, 1, shift=0.7)
    found = unlike(reference, current, 2, windows=20, rng=np.random.default_rng(0))
    for place in range(5):
        wanted = ks_2samp(reference.values[:, place], current.values[:, place]).statistic
        assert found.distances[place] == pytest.approx(wanted)
    assert found.distances[5] == pytest.approx(abs(reference.decisions.mean() - current.decisions.mean()))
    assert found.window == 37
    assert unlike(reference, cases(80, 2), 2, windows=20, rng=np.random.default_rng(0)).window == 45


def test_windows_vary_as_independent_batches_do() -> None:
    """What a window of the reference shows on average is what fresh batches show."""
    reference = cases(400, 3)
    fresh = np.stack(
        [
            unlike(reference, cases(60, 100 + seed), 2, windows=1, rng=np.random.default_rng(0)).distances
            for seed in range(150)
        ]
    )
    usual = unlike(reference, cases(60, 99), 2, windows=300, rng=np.random.default_rng(1)).usual
    assert usual == pytest.approx(fresh.mean(axis=0), rel=0.15)


@pytest.mark.parametrize("per_patient", [1, 4])
def test_false_alarms_come_as_often_as_said(per_patient: int) -> None:
    alarms, repeats = 0.1, 100
    count = 0
    for seed in range(repeats):
        reference, current = (
            cases(240, 2 * seed, per_patient=per_patient),
            cases(60, 2 * seed + 1, per_patient=per_patient),
        )
        found = unlike(reference, current, 2, windows=59, rng=np.random.default_rng(seed))
        count += found.p <= alarms
    assert binom.ppf(0.001, repeats, alarms) <= count <= binom.ppf(0.999, repeats, alarms)


def test_many_images_of_few_patients_are_no_many_cases() -> None:
    """Batches of two patients from the same place, beside a reference with one image each."""
    found = []
    for seed in range(20):
        reference, few = cases(200, 2 * seed), cases(2, 2 * seed + 1)
        alike = Cases(*(np.repeat(each, 20, axis=0) for each in few))
        found.append(unlike(reference, alike, 2, windows=59, rng=np.random.default_rng(seed)).p)
    assert sum(p <= 0.05 for p in found) <= 4


def test_a_window_is_never_the_whole_reference() -> None:
    reference = cases(60, 0)
    most = Cases(reference.values, reference.decisions, np.array(["A"] * 50 + [f"p{place}" for place in range(10)]))
    found = unlike(most, cases(60, 1), 2, windows=50, rng=np.random.default_rng(0))
    assert found.usual[0] > 0.1
    single = Cases(reference.values, reference.decisions, np.array(["A"] * 60))
    with pytest.raises(DataError, match="of one patient"):
        unlike(single, cases(60, 1), 2, windows=50, rng=np.random.default_rng(0))


def test_a_planted_change_is_found_where_it_is() -> None:
    reference = cases(300, 5)
    found = unlike(reference, cases(100, 6, shift=0.8), 2, windows=199, rng=np.random.default_rng(0))
    assert int(found.adjusted.argmin()) == 2
    assert found.p == 1 / 200
    current = cases(100, 7)
    sick = Cases(current.values, np.ones(100, dtype=int), current.patients)
    assert int(unlike(reference, sick, 2, windows=199, rng=np.random.default_rng(0)).adjusted.argmin()) == 5


def test_order_and_a_channel_that_never_varies_change_nothing() -> None:
    reference, current = cases(120, 8), cases(50, 9)
    for each in (reference, current):
        each.values[:, 4] = 1.0
    whole = unlike(reference, current, 2, windows=50, rng=np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(50)
    mixed = Cases(current.values[order], current.decisions[order], current.patients[order])
    again = unlike(reference, mixed, 2, windows=50, rng=np.random.default_rng(0))
    assert np.array_equal(whole.adjusted, again.adjusted)
    assert whole.distances[4] == 0.0
    assert whole.adjusted[4] > 0.5


def test_too_few_cases_are_refused() -> None:
    with pytest.raises(DataError, match="4 reference cases"):
        unlike(cases(3, 0), cases(10, 1), 2, windows=10, rng=np.random.default_rng(0))
    with pytest.raises(DataError, match="the same channels"):
        unlike(cases(30, 0), cases(10, 1, channels=4), 2, windows=10, rng=np.random.default_rng(0))
