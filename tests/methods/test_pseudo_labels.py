"""Floors for pseudo-labels: exact limits against scipy, the promise kept in simulation, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from xvision.errors import ConfigError, DataError
from xvision.methods.pseudo_labels import confidence_floor, fewest_cases, lower_limit, precision_limit

quick = settings(deadline=None, max_examples=60)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@quick
@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.01, 0.05, 0.1]))
def test_the_lower_limit_is_scipys_exact_one(trials: int, share: float, error_rate: float) -> None:
    hits = round(share * trials)
    exact = binomtest(hits, trials, alternative="greater").proportion_ci(1 - error_rate, method="exact")
    assert lower_limit(hits, trials, error_rate) == pytest.approx(exact.low, abs=1e-9)
    shown = precision_limit(np.arange(trials) < hits, np.arange(trials), error_rate=error_rate)
    assert shown.low == pytest.approx(exact.low, abs=1e-9)
    assert shown.high == 1.0


def test_the_known_sizes_of_samples_without_and_with_one_error() -> None:
    assert [fewest_cases(share) for share in (0.9, 0.95, 0.99)] == [29, 59, 299]
    assert [fewest_cases(share, errors=1) for share in (0.9, 0.95, 0.99)] == [46, 93, 473]
    assert fewest_cases(0.95, error_rate=0.01) == 90


def test_copied_images_of_a_patient_show_no_more() -> None:
    right, patients = np.arange(40) < 38, np.arange(40)
    once, thrice = (precision_limit(np.repeat(right, k), np.repeat(patients, k)) for k in (1, 3))
    assert thrice.low == pytest.approx(once.low)
    assert (once.method, thrice.method) == (
        "Clopper-Pearson, one-sided 95 %",
        "Clopper-Pearson, patient-clustered, one-sided 95 %",
    )


def test_a_floor_by_hand() -> None:
    """The 100 surest of 200 are right, the others wrong; ten floors are tried, from 46 cases downwards."""
    confidence = np.linspace(1.0, 0.5, 200)
    floor = confidence_floor(confidence, np.arange(200) < 100, np.arange(200), precision=0.9)
    tried = np.rint(np.linspace(45, 199, 10)).astype(int)
    passing = [place for place in tried if lower_limit(min(100, place + 1), place + 1) >= 0.9]
    assert floor.value == confidence[passing[-1]]
    assert floor.precision.value == pytest.approx(min(100, passing[-1] + 1) / (passing[-1] + 1))
    assert (floor.cases, floor.patients, floor.reason) == (200, 200, None)


def test_a_group_with_too_few_patients_gets_no_floor_and_the_reason() -> None:
    floor = confidence_floor(np.ones(58), np.ones(58, bool), np.arange(58), precision=0.95)
    assert floor.value is None
    assert floor.reason == "58 patients with 58 labelled cases; fewer than 59 cannot show a precision of 0.95"
    assert floor.precision.value is None
    assert confidence_floor(np.ones(59), np.ones(59, bool), np.arange(59), precision=0.95).value == 1.0
    many_images = confidence_floor(np.ones(580), np.ones(580, bool), np.repeat(np.arange(58), 10), precision=0.95)
    assert many_images.reason is not None
    assert many_images.reason.startswith("58 patients with 580 labelled cases")
    nobody = confidence_floor(np.empty(0), np.empty(0, bool), np.empty(0, int), precision=0.95)
    assert nobody.reason is not None
    assert nobody.reason.startswith("0 patients")


def test_a_group_that_is_often_wrong_gets_no_floor_and_the_reason() -> None:
    right = np.arange(300) % 5 != 0
    floor = confidence_floor(np.linspace(1, 0.5, 300), right, np.arange(300), precision=0.95)
    assert floor.value is None
    assert floor.reason == "a share of 0.796 of the most confident labelled cases is right, which does not show 0.95"
    assert floor.precision.value == pytest.approx(74 / 93)


def test_the_first_floor_that_fails_ends_the_search() -> None:
    """Three of the surest are wrong and all others right: 400 cases would show it, were they the only floor ever tried."""
    right = np.arange(400) >= 3
    assert lower_limit(397, 400) > 0.95
    floor = confidence_floor(np.linspace(1, 0.5, 400), right, np.arange(400), precision=0.95)
    assert floor.value is None
    assert floor.precision.value == pytest.approx(90 / 93)


@quick
@given(st.integers(0, 250), st.floats(0.6, 0.99), st.floats(0.5, 1.0), st.integers(0, 10_000))
@example(190, 0.9445993812783126, 0.96875, 190)  # ties at the first floor
def test_the_laws_of_a_floor(cases: int, precision: float, accuracy: float, seed: int) -> None:
    draw = rng(seed)
    confidence, right = draw.random(cases).round(2), draw.random(cases) < accuracy
    patients = draw.integers(max(1, cases // 2), size=cases)
    floor = confidence_floor(confidence, right, patients, precision=precision)
    assert (floor.value is None) == (floor.reason is not None)
    if floor.value is None:
        return
    taken = confidence >= floor.value
    assert floor.precision == precision_limit(right[taken], patients[taken])
    assert floor.precision.low is not None
    assert floor.precision.low >= precision
    assert floor.value in confidence
    order = draw.permutation(cases)
    assert confidence_floor(confidence[order], right[order], patients[order], precision=precision).value == floor.value


@pytest.mark.parametrize("images", [1, 3])
def test_the_promise_is_broken_in_at_most_one_of_twenty_samples(images: int) -> None:
    """True precision at or above floor f is 0.90 + 0.05 (1 + f): 0.95 is kept from f = 0 on, 0.97 only from f = 0.4."""
    draw, broken, given_one = rng(2), 0, 0
    for _ in range(400):
        confidence = draw.random(300 * images)
        right = np.empty(len(confidence), bool)
        patients = np.repeat(np.arange(300), images)
        luck = draw.random(300)[patients]  # one draw per patient: its images are right together
        right = luck < 0.90 + 0.1 * confidence
        floor = confidence_floor(confidence, right, patients, precision=0.97)
        given_one += floor.value is not None
        broken += floor.value is not None and floor.value < 0.4
    assert broken / 400 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)
    assert given_one > 20


def test_what_is_no_promise_is_refused() -> None:
    one = np.ones(1)
    with pytest.raises(
        ConfigError, match="the precision asked of pseudo-labels is 95: give a share above 0 and below 1"
    ):
        confidence_floor(one, one, one, precision=95)
    with pytest.raises(ConfigError, match=r"the error rate 0\.5 must be above 0 and below 0\.5; 0\.05 is usual"):
        fewest_cases(0.9, 0.5)
    with pytest.raises(DataError, match="2 confidences came with 1 answers and 1 patients: one per case"):
        confidence_floor(np.ones(2), one, one, precision=0.9)
    with pytest.raises(DataError, match="confidences must be finite numbers"):
        confidence_floor(np.array([np.nan]), one, one, precision=0.9)
