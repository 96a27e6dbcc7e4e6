"""Intervals against published tables, exact binomial sums, statsmodels, and the laws that must hold."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from xvision.errors import ConfigError, DataError
from xvision.methods.intervals import (
    Estimate,
    Sample,
    benjamini_hochberg,
    bootstrap,
    clopper_pearson,
    combination,
    difference,
    holm,
    mover,
    proportion,
    wilson,
    with_width,
)

quick = settings(deadline=None, max_examples=40)


def sample(successes: int, trials: int, first_patient: int = 0) -> Sample:
    return Sample(np.arange(trials) < successes, np.arange(trials) + first_patient)


def clustered(rng: np.random.Generator, patients: int = 30) -> Sample:
    """Patients with one to five images and their own rate."""
    owners = np.repeat(np.arange(patients), rng.integers(1, 6, patients))
    return Sample(rng.random(len(owners)) < rng.beta(2, 1, patients)[owners], owners)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
        (9, 10, 0.5958, 0.9821),
    ],
)
def test_wilson_agrees_with_the_table_of_newcombe_1998(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(100, 200, 0.4287, 0.5713), (500, 1000, 0.4685, 0.5315), (0, 200, 0.0, 0.0183), (200, 200, 0.9817, 1.0)],
)
def test_clopper_pearson_has_its_known_values(successes: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert clopper_pearson(successes, trials) == pytest.approx(
        proportion_confint(successes, trials, method="beta"), abs=1e-12
    )


@quick
@given(trials=st.integers(1, 60), rate=st.floats(0.01, 0.99), level=st.sampled_from([0.8, 0.95, 0.99]))
def test_clopper_pearson_never_covers_less_than_it_says(trials: int, rate: float, level: float) -> None:
    counts = np.arange(trials + 1)
    covers = [low <= rate <= high for low, high in (clopper_pearson(int(count), trials, level) for count in counts)]
    assert stats.binom.pmf(counts[covers], trials, rate).sum() >= level - 1e-9


@quick
@given(seed=st.integers(0, 10_000))
def test_the_exact_interval_is_of_as_many_independent_cases_as_the_score_interval(seed: int) -> None:
    drawn = clustered(np.random.default_rng(seed))
    exact, score = (proportion(drawn.hits, drawn.patients, exact=each) for each in (True, False))
    assert exact.method == "Clopper-Pearson, patient-clustered"
    trials = np.linspace(1, len(drawn.hits), 20_000)
    nearest = min(trials, key=lambda count: abs(wilson(exact.value * count, count)[0] - (score.low or 0)))
    assert clopper_pearson(exact.value * nearest, nearest) == pytest.approx((exact.low, exact.high), abs=2e-3)


@pytest.mark.parametrize(
    ("n", "rate", "score", "exact"), [(10, 0.9, 0.9298, 0.9872), (20, 0.95, 0.9245, 0.9841), (50, 0.9, 0.9703, 0.9703)]
)
def test_intervals_have_their_exact_coverage(n: int, rate: float, score: float, exact: float) -> None:
    for interval, coverage in ((wilson, score), (clopper_pearson, exact)):
        low, high = np.array([interval(count, n) for count in range(n + 1)]).T
        inside = (low <= rate) & (rate <= high)
        assert stats.binom.pmf(np.arange(n + 1), n, rate) @ inside == pytest.approx(coverage, abs=5e-5)


@quick
@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_statsmodels(trials: int, share: float, level: float) -> None:
    successes = round(share * trials)
    expected = proportion_confint(successes, trials, alpha=1 - level, method="wilson")
    assert wilson(successes, trials, level) == pytest.approx(expected, abs=1e-12)


def test_wilson_refuses_what_is_no_proportion() -> None:
    with pytest.raises(DataError, match="3 successes in 2 trials is no proportion"):
        wilson(3, 2)
    with pytest.raises(DataError, match="0 successes in 0 trials"):
        wilson(0, 0)
    with pytest.raises(ConfigError, match=r"confidence level 95 is not between 0 and 1; 0\.95 is usual"):
        wilson(1, 2, level=95)


def test_proportion_of_single_cases_is_plain_wilson() -> None:
    estimate = proportion(*sample(81, 263))
    assert (estimate.low, estimate.high) == pytest.approx(wilson(81, 263), abs=1e-12)
    assert (estimate.value, estimate.n, estimate.method) == (81 / 263, 263, "Wilson")


def test_proportion_without_cases_gives_a_reason() -> None:
    assert proportion(np.array([]), np.array([])) == Estimate(None, None, None, 0, "", "no cases")


@pytest.mark.parametrize("hits", [81, 0, 263])
def test_copies_of_every_image_of_a_patient_change_nothing(hits: int) -> None:
    once = sample(hits, 263)
    copied = proportion(np.repeat(once.hits, 5), np.repeat(once.patients, 5))
    assert copied[:4] == pytest.approx(proportion(*once)[:4], abs=1e-12)
    assert copied.method == "Wilson, patient-clustered"


def test_design_effect_follows_from_the_ratio_estimate() -> None:
    # Two images each: 55 patients both right, 20 both wrong, 25 one of each.
    hits = np.repeat([[1, 1], [0, 0], [1, 0]], [55, 20, 25], axis=0)
    estimate = proportion(hits.ravel(), np.repeat(np.arange(100), 2))
    rate = 135 / 200
    variance = ((hits.sum(axis=1) - 2 * rate) ** 2).sum() / 200**2
    effective = rate * (1 - rate) / variance
    cut = (stats.t.ppf(0.975, 199) / stats.t.ppf(0.975, 99)) ** 2
    assert 100 < effective < 200
    assert (estimate.low, estimate.high) == pytest.approx(wilson(rate * effective * cut, effective * cut), abs=1e-12)


def test_negative_correlation_earns_no_more_than_independence() -> None:
    hits, patients = np.tile([1, 0], 50), np.repeat(np.arange(50), 2)
    estimate = proportion(hits, patients)
    cut = (stats.t.ppf(0.975, 99) / stats.t.ppf(0.975, 49)) ** 2
    assert (estimate.low, estimate.high) == pytest.approx(wilson(50 * cut, 100 * cut), abs=1e-12)


def test_one_patient_is_one_unit_however_many_images() -> None:
    few, many = proportion(np.ones(3), np.zeros(3)), proportion(np.ones(3000), np.zeros(3000))
    assert few[:4] == many[:4] == (1.0, *wilson(1, 1), 1)
    dominated = proportion(np.append(np.ones(1000), 0), np.append(np.zeros(1000), 1))
    assert dominated.low is not None
    assert dominated.low < 0.1


def test_clustered_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(1)
    rate, patients, images, correlation = 0.8, 50, 4, 0.5
    precision = (1 - correlation) / correlation
    covered = 0
    for _ in range(1500):
        own = rng.beta(rate * precision, (1 - rate) * precision, patients)
        hits = rng.random((patients, images)) < own[:, None]
        estimate = proportion(hits.ravel(), np.repeat(np.arange(patients), images))
        covered += (estimate.low or 0) <= rate <= (estimate.high or 0)
    assert covered / 1500 == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / 1500))


@quick
@given(st.integers(0, 10**6))
def test_proportion_contains_its_value_and_ignores_the_order_of_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hits, patients = clustered(rng, int(rng.integers(1, 20)))
    estimate = proportion(hits, patients)
    shuffle = rng.permutation(len(hits))
    assert 0 <= (estimate.low or 0) <= hits.mean() <= (estimate.high or 0) <= 1
    assert proportion(hits[shuffle], patients[shuffle])[:3] == pytest.approx(estimate[:3], abs=1e-9)
    named = np.array([f"patient {code:04}" for code in patients])
    assert proportion(hits, named)[:4] == estimate[:4]


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"3 cases came with patients of shape \(2,\); give one patient per case"):
        proportion(np.array([1, 0, 1]), np.array([1, 2]))
    with pytest.raises(DataError, match=r"hits hold the value 2; give one 0 or 1 per case"):
        proportion(np.array([1, 2]), np.array([1, 2]))


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((10, 10), (0, 20), 0.6791, 1.0), ((10, 10), (10, 10), -0.2775, 0.2775)],
)
def test_difference_agrees_with_newcombe_1998(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    estimate = difference(sample(*first), sample(*second, first_patient=1000))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)
    assert (estimate.n, estimate.method) == (first[1] + second[1], "Newcombe")


@quick
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_difference_agrees_with_statsmodels(one: int, other: int, share: float, rest: float) -> None:
    first, second = round(share * one), round(rest * other)
    expected = confint_proportions_2indep(first, one, second, other, method="newcomb", compare="diff")
    estimate = difference(sample(first, one), sample(second, other, first_patient=1000))
    assert (estimate.low, estimate.high) == pytest.approx(expected, abs=1e-10)


def test_difference_on_the_same_patients_is_newcombes_paired_interval() -> None:
    # Newcombe (1998, Stat Med 17:2635), method 10, the table 36, 12, 2, 0.
    first = np.repeat([1, 1, 0, 0], [36, 12, 2, 0])
    second = np.repeat([1, 0, 1, 0], [36, 12, 2, 0])
    estimate = difference(Sample(first, np.arange(50)), Sample(second, np.arange(50)))
    assert estimate[:4] == pytest.approx((0.20, 0.0569, 0.3404, 50), abs=6e-5)


def test_difference_of_overlapping_samples_agrees_with_the_patient_bootstrap() -> None:
    rng = np.random.default_rng(5)
    patients = np.repeat(np.arange(400), rng.integers(1, 6, 400))
    hits = rng.random(len(patients)) < rng.beta(0.2, 0.2, 400)[patients]
    first = rng.random(len(hits)) < 0.4

    def statistic(weights: np.ndarray) -> np.ndarray:
        rates = [(weights @ (hits & side)) / (weights @ side) for side in (first, ~first)]
        return np.asarray(rates[0] - rates[1])

    resampled = bootstrap(statistic, patients, rng=rng, resamples=4000)
    closed = difference(Sample(hits[first], patients[first]), Sample(hits[~first], patients[~first]))
    assert closed[:4] == pytest.approx(resampled[:4], abs=0.006)
    apart = difference(Sample(hits[first], patients[first]), Sample(hits[~first], 1000 + patients[~first]))
    assert (apart.high or 0) - (resampled.high or 0) > 0.02


def test_difference_without_cases_gives_a_reason() -> None:
    assert difference(sample(1, 2), Sample(np.array([]), np.array([]))).reason == "no cases in one of the groups"


def test_swapping_the_samples_mirrors_the_difference() -> None:
    first, second = sample(9, 10), sample(12, 40, first_patient=5)
    forth, back = difference(first, second), difference(second, first)
    assert (forth.value, forth.low, forth.high) == pytest.approx(
        (-(back.value or 0), -(back.high or 0), -(back.low or 0))
    )


def test_combination_weighs_the_variances_of_its_parts() -> None:
    parts = [sample(800, 1000), sample(700, 1000, 1000), sample(300, 1000, 2000), sample(250, 1000, 3000)]
    estimate = combination(parts, (0.5, -0.5, 0.5, -0.5))
    wald = 1.96 * 0.5 * np.sqrt(sum(rate * (1 - rate) for rate in (0.8, 0.7, 0.3, 0.25)) / 1000)
    assert estimate[:3] == pytest.approx((0.075, 0.075 - wald, 0.075 + wald), abs=2e-4)
    assert estimate.method == "MOVER"


def test_mover_of_wald_intervals_is_the_wald_interval_of_the_sum() -> None:
    parts = [Estimate(1.0, 0.7, 1.3, 9, ""), Estimate(3.0, 2.6, 3.4, 9, "")]
    _, low, high = mover(parts, (1.0, -1.0), np.array([[1.0, 0.5], [0.5, 1.0]]))
    half = np.sqrt(0.3**2 + 0.4**2 - 2 * 0.5 * 0.3 * 0.4)
    assert (low, high) == pytest.approx((-2 - half, -2 + half))


def weighted_mean(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weights: weights @ values / weights.sum(axis=1)


def test_bootstrap_of_a_mean_has_the_standard_error_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    estimate = bootstrap(weighted_mean(values), np.arange(400), rng=rng, resamples=8000)
    half = 1.96 * values.std() / 20
    expected = (values.mean(), values.mean() - half, values.mean() + half)
    assert estimate[:3] == pytest.approx(expected, abs=0.006)
    assert (estimate.n, estimate.method, estimate.reason) == (400, "patient bootstrap", None)


def test_bootstrap_draws_patients_not_rows() -> None:
    values = np.random.default_rng(0).normal(size=80)
    patients = np.arange(80)
    once = bootstrap(weighted_mean(values), patients, rng=np.random.default_rng(3))
    copied = bootstrap(weighted_mean(np.repeat(values, 5)), np.repeat(patients, 5), rng=np.random.default_rng(3))
    naive = bootstrap(weighted_mean(np.repeat(values, 5)), np.arange(400), rng=np.random.default_rng(3))
    assert copied[:4] == pytest.approx(once[:4], abs=1e-12)
    ratio = ((once.high or 0) - (once.low or 0)) / ((naive.high or 0) - (naive.low or 0))
    assert ratio == pytest.approx(np.sqrt(5), rel=0.12)


def test_bootstrap_weights_are_whole_patients_and_add_up() -> None:
    patients = np.array(["b", "a", "b", "c"])
    seen: list[np.ndarray] = []

    def statistic(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights[:, 0] * 1.0

    bootstrap(statistic, patients, rng=np.random.default_rng(0), resamples=500)
    drawn = np.concatenate(seen[1:])
    assert drawn.dtype.kind == "i"
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert (seen[0] == 1).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(4), abs=0.12)


def test_bootstrap_counts_the_resamples_it_could_use() -> None:
    def only_with_the_first(weights: np.ndarray) -> np.ndarray:
        return np.where(weights[:, 0] > 0, weights[:, 1] * 1.0, np.nan)

    estimate = bootstrap(only_with_the_first, np.arange(10), rng=np.random.default_rng(0), resamples=2000)
    usable = int(estimate.method.removeprefix("patient bootstrap, ").split(" of ")[0])
    assert usable / 2000 == pytest.approx(1 - 0.9**10, abs=0.03)


def test_bootstrap_says_why_it_cannot_estimate() -> None:
    rng = np.random.default_rng(0)

    def rare(weights: np.ndarray) -> np.ndarray:
        return np.where((weights[:, :3] == 1).all(axis=1), 1.0, np.nan)

    constant = weighted_mean(np.ones(3))
    assert bootstrap(constant, np.array([]), rng=rng).reason == "no cases"
    assert bootstrap(constant, np.zeros(3), rng=rng).reason == "fewer than 2 patients"
    undefined = bootstrap(lambda weights: np.full(len(weights), np.nan), np.arange(3), rng=rng)
    assert undefined.reason == "undefined on these cases"
    reason = bootstrap(rare, np.arange(10), rng=rng).reason or ""
    assert reason.startswith("undefined in 9")
    assert reason.endswith("of 1000 patient resamples")
    with pytest.raises(ConfigError, match="confidence level 2"):
        bootstrap(constant, np.arange(3), rng=rng, level=2)


def test_centred_bootstrap_moves_the_resamples_to_the_value() -> None:
    values = np.random.default_rng(0).normal(size=50)

    def biased(weights: np.ndarray) -> np.ndarray:
        return weighted_mean(values)(weights) + 10 * (weights.max(axis=1) > 1)

    assert (bootstrap(biased, np.arange(50), rng=np.random.default_rng(1)).high or 0) > 9
    centred = bootstrap(biased, np.arange(50), rng=np.random.default_rng(1), centred=True)
    plain = bootstrap(weighted_mean(values), np.arange(50), rng=np.random.default_rng(1), centred=True)
    assert centred[:4] == pytest.approx(plain[:4])


def test_bootstrap_of_many_cases_stays_small() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    tracemalloc.start()
    bootstrap(weighted_mean(values), np.arange(100_000), rng=np.random.default_rng(0), resamples=60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_an_interval_without_width_is_given_one() -> None:
    flat, wide = Estimate(1.0, 1.0, 1.0, 30, "patient bootstrap"), Estimate(0.9, 0.8, 1.0, 30, "patient bootstrap")
    assert with_width(flat, 10, 0.95)[:4] == (1.0, *wilson(10, 10), 30)
    assert with_width(wide, 10, 0.95) == wide


def test_corrections_agree_with_the_worked_example() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])


def test_benjamini_and_hochberg_1995_reject_four() -> None:
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.324,
        0.4262,
        0.5719,
        0.6528,
        0.759,
        1,
    ]
    assert ((holm(p) <= 0.05).sum(), (benjamini_hochberg(p) <= 0.05).sum()) == (3, 4)


@pytest.mark.parametrize("size", [1, 5, 40])
def test_corrections_agree_with_statsmodels(size: int) -> None:
    p = np.round(np.random.default_rng(size).random(size) ** 4, 2)  # with ties, 0 among them
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1], abs=1e-12)


def test_corrections_refuse_what_is_no_p_value() -> None:
    with pytest.raises(DataError, match="leave out comparisons that were not estimable"):
        holm([0.1, float("nan")])
