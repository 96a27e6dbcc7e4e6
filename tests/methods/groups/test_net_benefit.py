"""Net benefit: counts by hand, scikit-learn's confusion matrix, resampled patients, and claims that must not be made."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.decision import Decision, decide
from xvision.methods.groups.net_benefit import (
    Benefit,
    Curve,
    better_range,
    decided_benefit,
    decision_curve,
    net_benefit,
)
from xvision.methods.intervals import Estimate, bootstrap

GRID = tuple(np.linspace(0.05, 0.5, 10))


def calibrated(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities from Beta(1, 3) that come true, and patients."""
    p = rng.beta(1, 3, count)
    return p, rng.random(count) < p, np.arange(count)


def curve(p: np.ndarray, y: np.ndarray, who: np.ndarray, *thresholds: float, **options: float) -> Curve:
    return decision_curve(p, y, who, thresholds or GRID, rng=np.random.default_rng(0), **({"resamples": 200} | options))


def test_by_hand() -> None:
    # 10 cases, 4 ill. At 0.2 seven are treated: 3 ill, 4 well; one false alarm costs a quarter of a case found.
    p = np.array([0.9, 0.8, 0.3, 0.1, 0.7, 0.6, 0.25, 0.2, 0.1, 0.05])
    y = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    model, everybody, nobody = net_benefit(p, y, [0.2])
    assert model == pytest.approx(3 / 10 - 4 / 10 / 4)
    assert everybody == pytest.approx(4 / 10 - 6 / 10 / 4)
    assert nobody == 0
    (found,) = curve(p, y, np.arange(10), 0.2, minimum=1).benefits
    assert (found.treated, found.model.value, found.everybody.value) == (7, pytest.approx(0.2), pytest.approx(0.25))
    assert found.over_everybody.value == found.advantage.value == pytest.approx(-0.05)


def test_a_perfect_model_gains_the_prevalence_and_treating_everybody_breaks_even_at_it() -> None:
    y = np.arange(100) < 30
    model, everybody, _ = net_benefit(y.astype(float), y, [0.1, 0.3, 0.7])
    assert model == pytest.approx([0.3, 0.3, 0.3])
    assert everybody == pytest.approx([0.3 - 0.7 / 9, 0.0, 0.3 - 0.7 * 7 / 3])


@given(st.integers(0, 10_000), st.lists(st.sampled_from([0.1, 0.25, 0.5, 0.8]), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_all_thresholds_at_once_equal_one_confusion_matrix_each(seed: int, thresholds: list[float]) -> None:
    rng = np.random.default_rng(seed)
    p, y = rng.choice([0.0, 0.1, 0.2, 0.25, 0.5, 0.8, 1.0], 40), rng.integers(0, 2, 40)
    model, everybody, _ = net_benefit(p, y, thresholds)
    for place, threshold in enumerate(thresholds):
        for values, treated in ((model, p >= threshold), (everybody, np.ones(40, bool))):
            _, fp, _, tp = confusion_matrix(y, treated, labels=[0, 1]).ravel()
            assert values[place] == pytest.approx(tp / 40 - fp / 40 * threshold / (1 - threshold), abs=1e-12)


def test_at_the_threshold_it_counts_the_deployed_decision() -> None:
    p = np.array([0.7, 0.7 - 1e-9, 0.69, 0.3, 0.1])
    decided = decide(np.log(np.column_stack([1 - p, p])), Decision(1, 0.7))
    (found,) = curve(p, np.array([1, 0, 1, 0, 0]), np.arange(5), 0.7, minimum=1).benefits
    assert found.treated == decided.sum() == 2
    assert found.model.value == pytest.approx(1 / 5 - 1 / 5 * 0.7 / 0.3)
    (same,) = decided_benefit(decided, np.array([1, 0, 1, 0, 0]), np.arange(5), 0.7, minimum=1).benefits
    assert (same.model, same.over_everybody, same.advantage) == (found.model, found.over_everybody, found.advantage)
    # Another worth of a false alarm leaves the decisions as they are.
    (cheap,) = decided_benefit(decided, np.array([1, 0, 1, 0, 0]), np.arange(5), 0.2, minimum=1).benefits
    assert (cheap.treated, cheap.model.value) == (2, pytest.approx(1 / 5 - 1 / 5 / 4))


def test_intervals_agree_with_resampled_patients_where_counts_are_large() -> None:
    rng = np.random.default_rng(1)
    p, y, _ = calibrated(1500, rng)
    who = np.repeat(np.arange(500), 3)
    found = curve(p, y, who, 0.1, 0.3).benefits
    for each in found:
        cost = each.threshold / (1 - each.threshold)
        worth = np.where(y, 1.0, -cost)
        for mean, estimate in (
            (worth * (p >= each.threshold), each.model),
            (worth, each.everybody),
            (-worth * (p < each.threshold), each.over_everybody),
        ):
            resampled = bootstrap(lambda w, mean=mean: w @ mean / w.sum(axis=1), who, rng=rng, resamples=1000)
            assert estimate.value == pytest.approx(resampled.value, abs=1e-12)
            assert width(estimate) == pytest.approx(width(resampled), rel=0.12)


def width(estimate: Estimate) -> float:
    return (estimate.high or 0.0) - (estimate.low or 0.0)


def test_copies_of_all_images_under_the_same_patients_change_nothing() -> None:
    p, y, who = calibrated(150, np.random.default_rng(2))
    once, more = (curve(*(np.tile(column, times) for column in (p, y, who))) for times in (1, 4))
    assert once.level == pytest.approx(more.level, abs=1e-9)
    for one, other in zip(once.benefits, more.benefits, strict=True):
        assert one.band == pytest.approx(other.band, abs=1e-9)
        assert one.model[:4] == pytest.approx(other.model[:4], abs=1e-9)


def test_the_advantage_is_over_the_better_alternative_and_its_band_is_wider() -> None:
    found = curve(*calibrated(400, np.random.default_rng(3)))
    assert 0.95 < found.level < 1 - 0.05 / 20 + 1e-12
    for each in found.benefits:
        best = max(each.everybody.value or 0.0, 0.0)
        assert each.advantage.value == pytest.approx((each.model.value or 0.0) - best, abs=1e-12)
        assert each.band[0] <= (each.advantage.low or 0) <= (each.advantage.high or 0) <= each.band[1]
    single = curve(*calibrated(400, np.random.default_rng(3)), 0.25)
    assert single.level < found.level


def test_a_coin_is_hardly_ever_better_than_both() -> None:
    claims = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found = curve(rng.random(200), rng.random(200) < 0.2, np.arange(200), 0.1, 0.2, 0.3, resamples=100)
        claims.append(bool(better_range(found)))
    assert np.mean(claims) <= 0.05


@pytest.mark.benchmark
@pytest.mark.parametrize("count", [60, 200, 1000])
def test_bands_hold_at_all_thresholds_together(count: int) -> None:
    model, everybody, _ = net_benefit(*calibrated(1_000_000, np.random.default_rng(0))[:2], GRID)
    truth, held = model - np.maximum(everybody, 0), []
    for seed in range(400):
        drawn = curve(*calibrated(count, np.random.default_rng(seed + 1)), minimum=1)
        bands = [each.band for each in drawn.benefits]
        held.append(all(low <= true <= high for (low, high), true in zip(bands, truth, strict=True)))
    assert np.mean(held) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 400)


def test_no_claim_rests_on_missed_positives_that_a_small_group_happens_not_to_contain() -> None:
    # Twenty cases below the threshold at exactly its risk: nothing is gained by sparing them, yet 36 % of such groups
    # have no positive among them, and resampling these would show a certain gain.
    below = np.arange(200) < 20
    p = np.where(below, 0.02, 0.6)
    y = ~below & (np.arange(200) % 2 == 0)
    worth = np.where(y, 1.0, -1 / 19) * below
    resampled = bootstrap(lambda w: -(w @ worth) / w.sum(axis=1), np.arange(200), rng=np.random.default_rng(0))
    assert (resampled.low or 0.0) > 0
    (found,) = curve(p, y, np.arange(200), 0.05).benefits
    assert found.over_everybody.value == pytest.approx(resampled.value)
    assert (found.over_everybody.low or 0.0) < 0
    assert found.answer == "not decided"


def test_a_useful_model_and_a_harmful_one_are_told_apart() -> None:
    p, y, who = calibrated(6000, np.random.default_rng(4))
    assert better_range(curve(p, y, who)) == ((0.05, 0.5),)
    turned = curve(1 - p, y, who)
    assert {each.answer for each in turned.benefits if each.threshold > 0.2} == {"worse than one"}
    assert better_range(turned) == ()


def test_treating_all_alike_has_a_width_though_nothing_differs() -> None:
    y = np.arange(60) < 20
    for said in (0.9, 0.01):
        (found,) = curve(np.full(60, said), y, np.arange(60), 0.3).benefits
        difference = found.over_everybody if said > 0.3 else found.model
        assert difference.value == 0
        assert (difference.low or 0.0) < 0 < (difference.high or 0.0)
        assert found.answer != "better than both"


def test_ranges_are_runs_of_neighbouring_thresholds() -> None:
    none = Estimate(0.0, 0.0, 0.0, 1, "")

    def at(threshold: float, answer: str) -> Benefit:
        return Benefit(threshold, 1, none, none, none, none, (0.0, 0.0), answer)

    answers = ["better than both", "better than both", "not decided", "better than both", "worse than one"]
    made = [at(0.1 * (place + 1), answer) for place, answer in enumerate(answers)]
    found = better_range(Curve(tuple(reversed(made)), 0.99, 1, 1, 1))
    assert found == (pytest.approx((0.1, 0.2)), pytest.approx((0.4, 0.4)))


def test_few_patients_or_one_class_give_a_reason() -> None:
    p, y = np.linspace(0.1, 0.9, 40), np.arange(40) < 5
    assert curve(p, y, np.arange(40)).reason == "fewer than 10 positive patients"
    assert curve(p, ~y, np.arange(40)).reason == "fewer than 10 negative patients"
    assert curve(p, y & False, np.arange(40)).reason == "no positive cases"
    assert curve(p[:0], y[:0], np.arange(0)).reason == "no cases"
    assert decided_benefit(p > 0.5, y, np.arange(40), 0.5).reason == "fewer than 10 positive patients"
    few = curve(p, y, np.arange(40))
    assert (few.cases, few.patients, few.positives, few.benefits) == (40, 40, 5, ())


def test_bad_thresholds_and_probabilities_are_named() -> None:
    p, y, who = calibrated(50, np.random.default_rng(5))
    for wrong in ((0.0,), (0.2, 1.0)):
        with pytest.raises(ConfigError, match="above 0 and below 1"):
            curve(p, y, who, *wrong)
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        net_benefit(p, y, [])
    with pytest.raises(DataError, match="50 outcomes came with 49 decisions"):
        decided_benefit(p[1:] > 0.5, y, who, 0.5)
    with pytest.raises(ModelError, match="lie outside"):
        net_benefit(p + 1, y, [0.5])
