"""Paired changes against closed forms, other implementations and planted effects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar

from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.methods.intervals import Estimate, bootstrap, not_estimable
from xvision.methods.paired import (
    Change,
    adjusted,
    auroc_change,
    margins,
    mean_change,
    p_value,
    quantile_changes,
    rate_change,
    tango,
    unpaired_change,
    verdict,
)
from xvision.methods.scores import auroc_difference_paired

Z = norm.ppf(0.975)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def outcomes(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.repeat([True, False, True, False], [both, gained, lost, neither])
    after = np.repeat([True, True, False, False], [both, gained, lost, neither])
    return before, after


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


# rates


def test_rate_without_changes_has_the_width_that_chance_leaves() -> None:
    before, after = outcomes(150, 0, 0, 50)
    found = rate_change(before, after, np.arange(200))
    assert found[:2] == (0.75, 0.75)
    assert bounds(found.difference) == pytest.approx((-(Z**2) / (200 + Z**2), Z**2 / (200 + Z**2)), abs=1e-9)
    assert found.p == 1.0


@pytest.mark.parametrize(("gained", "lost"), [(5, 0), (12, 4), (3, 9), (40, 40)])
def test_p_value_is_mcnemars(gained: int, lost: int) -> None:
    before, after = outcomes(60, gained, lost, 20)
    table = [[60, lost], [gained, 20]]
    expected = mcnemar(table, exact=False, correction=False).pvalue
    found = rate_change(before, after, np.arange(len(before)))
    assert found.p == pytest.approx(expected)
    assert found.difference.value == pytest.approx((gained - lost) / len(before))


@pytest.mark.parametrize(("gained", "lost", "cases"), [(5, 1, 50), (1, 0, 200), (20, 35, 400), (0, 3, 12)])
def test_tango_by_direct_maximisation_of_the_likelihood(gained: int, lost: int, cases: int) -> None:
    low, high = tango(gained, lost, cases)
    for limit, sign in ((low, 1), (high, -1)):

        def surprise(share: float, change: float = limit) -> float:
            rest = cases - gained - lost
            parts = [(gained, share + change), (lost, share), (rest, 1 - 2 * share - change)]
            return -sum(count * np.log(max(chance, 1e-300)) for count, chance in parts if count)

        ends = (max(0.0, -limit), (1 - limit) / 2)
        share = minimize_scalar(surprise, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
        spread = np.sqrt(cases * (2 * share + limit * (1 - limit)))
        assert (gained - lost - cases * limit) / spread == pytest.approx(sign * Z, rel=1e-4)


@given(gained=st.integers(0, 30), lost=st.integers(0, 30), same=st.integers(0, 200))
def test_tango_contains_the_change_and_mirrors(gained: int, lost: int, same: int) -> None:
    cases = gained + lost + same
    if not cases:
        return
    low, high = tango(gained, lost, cases)
    assert -1 <= low <= (gained - lost) / cases <= high <= 1
    assert tango(lost, gained, cases) == pytest.approx((-high, -low), abs=1e-9)
    if same + min(gained, lost) and gained + lost:
        assert (low > 0 or high < 0) == ((gained - lost) ** 2 / (gained + lost) > Z**2)


def test_everything_changed() -> None:
    before, after = outcomes(0, 30, 0, 0)
    found = rate_change(before, after, np.arange(30))
    low, high = bounds(found.difference)
    assert (found.difference.value, high) == (1.0, 1.0)
    assert low == pytest.approx((30 - Z**2) / (30 + Z**2))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=3, max_size=30), st.integers(2, 4))
def test_copies_of_a_patients_images_add_nothing(pairs: list[tuple[bool, bool]], copies: int) -> None:
    before, after = (np.array(column) for column in zip(*pairs, strict=True))
    once = rate_change(before, after, np.arange(len(before)))
    again = rate_change(*(np.repeat(part, copies) for part in (before, after, np.arange(len(before)))))
    assert bounds(again.difference) == pytest.approx(bounds(once.difference), abs=1e-9)
    assert again.p == pytest.approx(once.p)


def test_clustered_interval_agrees_with_the_patient_bootstrap() -> None:
    draw = rng()
    patients = np.repeat(np.arange(300), 4)
    gains, losses = (np.repeat(draw.random(300) < share, 4) & (draw.random(1200) < 0.8) for share in (0.12, 0.06))
    before = draw.random(1200) < 0.7
    after = (before | gains) & ~losses
    changes = after.astype(float) - before
    peer = bootstrap(lambda weights: weights @ changes / weights.sum(axis=1), patients, rng=rng(), resamples=4000)
    found = rate_change(before, after, patients).difference
    assert bounds(found) == pytest.approx(bounds(peer), abs=0.004)
    naive = rate_change(before, after, np.arange(1200)).difference
    assert np.ptp(bounds(naive)) < 0.8 * np.ptp(bounds(found))


def test_one_patient_is_one_case_and_no_cases_are_none() -> None:
    found = rate_change(np.ones(50, bool), np.ones(50, bool), np.zeros(50)).difference
    assert bounds(found) == pytest.approx((-(Z**2) / (1 + Z**2), Z**2 / (1 + Z**2)))
    assert rate_change(np.zeros(0, bool), np.zeros(0, bool), np.zeros(0)).difference.reason == "no cases"


def test_rate_interval_covers_rare_changes() -> None:
    """The share of changed decisions that compression causes is small, which is where resampling alone is too narrow."""
    draw, covered = rng(), 0
    for _ in range(400):
        kinds = draw.choice(3, size=200, p=[0.985, 0.01, 0.005])
        low, high = bounds(rate_change(kinds == 2, kinds == 1, np.arange(200)).difference)
        covered += low <= 0.005 <= high
    assert covered / 400 > 0.93


# AUROC and means


def scored(cases: int, shift: float, *, images: int = 1) -> tuple[np.ndarray, ...]:
    draw = rng()
    patients = np.repeat(np.arange(cases), images)
    labels = np.repeat(draw.random(cases) < 0.4, images)
    common = np.repeat(draw.normal(size=cases), images) + labels + 0.5 * draw.normal(size=cases * images)
    before = common + 0.3 * draw.normal(size=cases * images)
    return before, common + shift * draw.normal(size=cases * images), labels, patients


@pytest.mark.parametrize("images", [1, 3])
def test_auroc_change_agrees_with_delong(images: int) -> None:
    before, after, labels, patients = scored(500, 1.2, images=images)
    found = auroc_change(before, after, labels, patients, rng=rng())
    peer = auroc_difference_paired(after, before, labels, patients, scale="linear")
    assert found.before == pytest.approx(roc_auc_score(labels, before))
    assert found.after == pytest.approx(roc_auc_score(labels, after))
    assert found.difference.value == pytest.approx(peer.value)
    assert bounds(found.difference) == pytest.approx(bounds(peer), abs=0.006)


def test_auroc_change_agrees_with_delong_written_out() -> None:
    """DeLong, DeLong and Clarke-Pearson (1988): the covariance of the two AUROCs' structural components."""
    before, after, labels, patients = scored(400, 0.8)
    kernels = [
        (scores[labels][:, None] > scores[~labels]) + 0.5 * (scores[labels][:, None] == scores[~labels])
        for scores in (before, after)
    ]
    difference = kernels[1] - kernels[0]
    rows, columns = difference.mean(axis=1), difference.mean(axis=0)
    error = np.sqrt(rows.var(ddof=1) / len(rows) + columns.var(ddof=1) / len(columns))
    found = auroc_change(before, after, labels, patients, rng=rng(), resamples=4000)
    assert found.difference.value == pytest.approx(difference.mean())
    assert np.ptp(bounds(found.difference)) == pytest.approx(2 * Z * error, rel=0.06)
    assert found.p == pytest.approx(2 * norm.sf(abs(difference.mean()) / error), abs=0.04)


def test_ties_count_half() -> None:
    before, after, labels, patients = scored(300, 0.8)
    coarse = [np.round(scores) for scores in (before, after)]
    found = auroc_change(*coarse, labels, patients, rng=rng())
    assert found.before == pytest.approx(roc_auc_score(labels, coarse[0]))
    assert found.after == pytest.approx(roc_auc_score(labels, coarse[1]))


def test_auroc_ranked_alike_keeps_a_width() -> None:
    before, _, labels, patients = scored(400, 1.0)
    found = auroc_change(before, 2 * before + 1, labels, patients, rng=rng()).difference
    smaller = min(labels.sum(), (~labels).sum())
    assert found.value == 0
    assert bounds(found) == pytest.approx((-(Z**2) / (smaller + Z**2), Z**2 / (smaller + Z**2)))


def test_auroc_needs_both_classes_and_ten_patients_of_each() -> None:
    scores, labels = np.arange(40.0), np.zeros(40, bool)
    assert auroc_change(scores, scores, labels, np.arange(40), rng=rng()).difference.reason == "no positive cases"
    labels[:9] = True
    few = auroc_change(scores, -scores, labels, np.arange(40), rng=rng())
    assert few.difference.reason == "fewer than 10 patients of a class"
    assert (few.before, few.after) == (0.0, 1.0)


def test_mean_change_agrees_with_the_t_interval() -> None:
    draw = rng()
    before = draw.gamma(2.0, size=800)
    after = before + draw.normal(0.05, 0.4, size=800)
    found = mean_change(before, after, np.arange(800), rng=rng())
    half = Z * (after - before).std(ddof=1) / np.sqrt(800)
    value = (after - before).mean()
    assert found.difference.value == pytest.approx(value)
    assert bounds(found.difference) == pytest.approx((value - half, value + half), abs=0.002)
    assert mean_change(before[:9], after[:9], np.arange(9), rng=rng()).difference.reason == "fewer than 10 patients"


def test_quantiles_are_order_statistics() -> None:
    values = np.random.default_rng(3).permutation(101).astype(float)
    even = quantile_changes(values[values < 100], np.arange(100), (0.05, 0.5, 0.95), rng=rng())
    assert [estimate.value for estimate in even] == [4, 49, 94]
    found = quantile_changes(values, np.arange(101), (0.05, 0.5, 0.95), rng=rng())
    assert [estimate.value for estimate in found] == list(np.quantile(values, (0.05, 0.5, 0.95), method="inverted_cdf"))
    low, high = bounds(found[1])
    assert 35 < low < 50 < high < 65
    with pytest.raises(ConfigError, match=r"quantiles \(1.5,\) are not all between 0 and 1"):
        quantile_changes(values, np.arange(101), (1.5,), rng=rng())


def test_margins_are_log_odds_from_the_threshold() -> None:
    logits = np.array([[0.0, 2.0], [0.0, 2.0], [1.0, 0.5]])
    labels = np.array([1, 0, 0])
    found = margins(logits, labels, Decision(1, 0.8, True))
    threshold = np.log(0.8 / 0.2)
    assert found == pytest.approx([2 - threshold, threshold - 2, threshold + 0.5], abs=1e-5)
    three = np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    assert margins(three, np.array([0, 1]), Decision()) == pytest.approx([1.0, -2.0])
    assert three[0, 0] == 3.0


# from intervals alone, and what is said of it


def test_unpaired_change_is_newcombes_square_and_add() -> None:
    first, second = Estimate(0.9, 0.85, 0.93, 100, "Wilson"), Estimate(0.8, 0.72, 0.86, 80, "Wilson")
    found = unpaired_change(first, second)
    assert found.difference.value == pytest.approx(-0.1)
    low, high = bounds(found.difference)
    assert low == pytest.approx(-0.1 - np.hypot(0.8 - 0.72, 0.93 - 0.9))
    assert high == pytest.approx(-0.1 + np.hypot(0.86 - 0.8, 0.9 - 0.85))
    assert found.difference.method == "Newcombe, unpaired, conservative"
    assert found.difference.n == 80


def test_unpaired_change_is_not_made_without_values_or_intervals() -> None:
    whole = Estimate(0.9, 0.85, 0.93, 100, "Wilson")
    missing, bare = not_estimable("no positive cases"), Estimate(0.9, None, None, 100, "")
    assert unpaired_change(whole, missing).difference.reason == "no positive cases"
    assert unpaired_change(bare, whole).difference.reason == "no interval"
    assert unpaired_change(bare, whole).p is None


@given(st.floats(-1, 1), st.floats(0.001, 1), st.floats(0.001, 1))
def test_p_value_agrees_with_its_interval(value: float, below: float, above: float) -> None:
    estimate = Estimate(value, value - below, value + above, 50, "")
    p = p_value(estimate)
    assert p is not None
    if min(abs(value - below), abs(value + above)) > 1e-9:
        assert (p < 0.05) == (value - below > 0 or value + above < 0)


def test_holm_leaves_out_what_has_no_p_value() -> None:
    none = not_estimable("no cases")
    changes = [Change(None, None, none, p) for p in (0.01, None, 0.04, 0.03)]
    assert adjusted(changes) == pytest.approx([0.03, None, 0.06, 0.06])
    assert adjusted([]) == []


@pytest.mark.parametrize(
    ("interval", "p", "better", "margin", "expected"),
    [
        ((0.03, 0.01, 0.05), 0.001, "higher", 0.02, "better"),
        ((0.03, 0.01, 0.05), 0.001, "lower", 0.02, "worse"),
        ((-0.03, -0.05, -0.01), 0.001, "higher", 0.02, "worse"),
        ((-0.03, -0.05, -0.01), 0.001, "lower", 0.02, "better"),
        ((-0.03, -0.05, -0.01), 0.001, "neither", 0.02, "changed"),
        ((-0.03, -0.05, -0.01), 0.06, "higher", 0.02, "not decided"),
        ((0.01, -0.01, 0.03), 0.3, "higher", 0.02, "not decided"),
        ((0.01, 0.005, 0.015), 0.001, "higher", 0.02, "equivalent"),
        ((0.01, 0.005, 0.015), 0.001, "higher", None, "better"),
        ((0.0, -0.02, 0.02), 1.0, "higher", 0.02, "equivalent"),
        ((0.0, -0.02, 0.021), 1.0, "higher", 0.02, "not decided"),
    ],
)
def test_verdicts(interval: tuple[float, float, float], p: float, better: str, margin: float, expected: str) -> None:
    assert verdict(Estimate(*interval, 50, ""), p, better, margin) == expected
    assert verdict(not_estimable("no cases"), None, "higher", 0.02) == "not decided"
