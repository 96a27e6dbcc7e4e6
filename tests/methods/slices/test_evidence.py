"""The tests of a slice against Fisher's, against enumeration, and over data without a slice."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from xvision.methods.slices.evidence import Strata, evidence, standing, strata, surplus_p


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(0, 9)] * 4).filter(lambda cells: sum(cells[:2]) and sum(cells[2:])))
def test_one_stratum_is_fishers_exact_test(cells: tuple[int, int, int, int]) -> None:
    wrong_in, right_in, wrong_out, right_out = cells
    errors = np.repeat([1, 0, 1, 0], cells).astype(bool)
    inside = np.repeat([True, True, False, False], cells)
    found = surplus_p(inside, strata(errors, np.zeros(len(errors), int), np.arange(len(errors))), rng=rng())
    table = [[wrong_in, right_in], [wrong_out, right_out]]
    assert found == pytest.approx(fisher_exact(table, alternative="greater").pvalue, abs=1e-12)


def small() -> tuple[np.ndarray, Strata]:
    errors = np.array([1, 1, 0, 0, 0, 1, 1, 0, 0], bool)
    inside = np.array([1, 0, 1, 0, 0, 1, 1, 0, 0], bool)
    return inside, strata(errors, np.array([0, 0, 0, 0, 0, 1, 1, 1, 1]), np.arange(9))


def enumerated(inside: np.ndarray, given: Strata) -> np.ndarray:
    """The surplus of every slice with as many cases of each stratum."""
    choices = []
    for code in np.unique(given.codes):
        own = np.flatnonzero(given.codes == code)
        choices.append(list(combinations(own, int(inside[own].sum()))))
    return np.array([sum(given.surplus[list(part)].sum() for part in chosen) for chosen in product(*choices)])


def test_two_strata_are_as_enumerated() -> None:
    inside, given = small()
    every = enumerated(inside, given)
    observed = given.surplus[inside].sum()
    assert surplus_p(inside, given, rng=rng()) == pytest.approx((every >= observed - 1e-9).mean())
    assert standing(inside, given) == pytest.approx(observed / every.std())


def test_copies_under_the_same_patient_change_nothing_but_the_noise_of_draws() -> None:
    inside, given = small()
    twice = strata(np.repeat(given.errors, 2), np.repeat(given.codes, 2), np.repeat(np.arange(9), 2))
    assert standing(np.repeat(inside, 2), twice) == pytest.approx(standing(inside, given))
    exact = surplus_p(inside, given, rng=rng())
    drawn = surplus_p(np.repeat(inside, 2), twice, rng=rng(), draws=9999)
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 9999) + 1e-4)
    naive = strata(np.repeat(given.errors, 2), np.repeat(given.codes, 2), np.arange(18))
    assert surplus_p(np.repeat(inside, 2), naive, rng=rng()) < exact


def test_patients_of_several_images_raise_no_more_false_alarms_than_agreed() -> None:
    draws, alarms, runs = rng(), 0, 150
    for _ in range(runs):
        sizes = draws.integers(1, 5, 120)
        patients = np.repeat(np.arange(120), sizes)
        wrong = draws.beta(0.3, 1.2, 120)[patients] > draws.random(len(patients))
        inside = (draws.random(120) < 0.2)[patients] ^ (draws.random(len(patients)) < 0.1)
        labels = draws.integers(0, 2, 120)[patients]
        alarms += surplus_p(inside, strata(wrong, labels, patients), rng=draws, draws=199) <= 0.05
    assert alarms / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_a_slice_that_nobody_is_outside_of_says_nothing() -> None:
    _, given = small()
    assert surplus_p(np.ones(9, bool), given, rng=rng()) == 1.0
    assert surplus_p(np.zeros(9, bool), given, rng=rng()) == 1.0
    assert standing(np.ones(9, bool), given) == -np.inf


def test_differences_are_taken_within_the_label() -> None:
    """Positives: 8 of 10 wrong inside, 2 of 20 outside. Negatives: 1 of 30 inside, 4 of 40 outside. The mix is 1 to 3."""
    blocks = [(True, 1, 8, 10), (False, 1, 2, 20), (True, 0, 1, 30), (False, 0, 4, 40)]
    inside = np.concatenate([np.full(size, side) for side, _, _, size in blocks])
    labels = np.concatenate([np.full(size, label) for _, label, _, size in blocks])
    errors = np.concatenate([np.arange(size) < wrong for _, _, wrong, size in blocks])
    found = evidence(inside, errors, labels, np.arange(100))
    assert (found.cases, found.patients, found.errors) == (40, 40, 9)
    assert found.rest == pytest.approx(0.25 * 0.1 + 0.75 * 0.1)
    assert found.difference.value == pytest.approx(0.25 * (0.8 - 0.1) + 0.75 * (1 / 30 - 0.1))
    alone = evidence(labels == 1, errors, labels, np.arange(100))
    assert alone.difference.value is None
    assert "no case of the same label" in str(alone.difference.reason)
