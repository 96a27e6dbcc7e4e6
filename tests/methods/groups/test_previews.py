"""Previews on cases whose answer is known: levelling down, temperatures by group, thresholds by hand, and who is unknown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit, ndtr, ndtri

from xvision.errors import ConfigError, DataError
from xvision.methods.calibration import ece
from xvision.methods.groups.preview_effects import GroupEffect, group_effects, levels_down, moves
from xvision.methods.groups.previews import PREVIEWS, Fitted, Tuning, fit_previews, threshold_mixture
from xvision.methods.intervals import Sample, combination
from xvision.methods.scores import auroc


def binormal(good: float = 3.3, bad: float = 1.0, cases: int = 8000, share: float = 0.7) -> Tuning:
    """Two groups whose scores are exactly normal at each label, d' apart, half of them diseased: quantiles, no draws."""
    scores, labels, groups = [], [], []
    for name, distance, size in (("good", good, share), ("bad", bad, 1 - share)):
        half = round(cases * size / 2)
        quantiles = ndtri((np.arange(half) + 0.5) / half)
        for label in (True, False):
            scores.append(quantiles + (distance / 2 if label else -distance / 2))
            labels.append(np.full(half, label))
            groups.append(np.full(half, name))
    total = sum(len(part) for part in scores)
    return Tuning(np.concatenate(scores), np.concatenate(labels), np.concatenate(groups), np.arange(total))


@pytest.fixture(scope="module")
def cases() -> Tuning:
    return binormal()


@pytest.fixture(scope="module")
def fitted(cases: Tuning) -> Fitted:
    return fit_previews(cases, 0.5)


def judged(fitted: Fitted, name: str, cases: Tuning) -> dict[str, GroupEffect]:
    rule, deployed = fitted.rules[name], cases.scores > 0
    chance = rule.chance(cases.scores, cases.groups, deployed)
    effects = group_effects(
        cases.labels, deployed, chance, cases.groups, cases.patients, aim=rule.aim, ignored=rule.ignored(cases.groups)
    )
    return {effect.group: effect for effect in effects}


def test_equalised_odds_levels_down_and_decides_by_chance(fitted: Fitted, cases: Tuning) -> None:
    """T36, tolerance 0.02, and the same from the normal curves: both groups end where the bad one was.

    Where on its curve they end is loose, because the best balanced accuracy of the bad group is flat there.
    """
    effects = judged(fitted, "equalised odds", cases)
    published = {"good": (0.952, 0.049, 0.700, 0.320), "bad": (0.688, 0.307, 0.699, 0.314)}
    for name, (found, alarms, found_after, alarms_after) in published.items():
        right, calm = effects[name].sensitivity, effects[name].specificity
        assert (right.before.value, 1 - calm.before.value) == pytest.approx((found, alarms), abs=0.02)
        assert (right.after.value, 1 - calm.after.value) == pytest.approx((found_after, alarms_after), abs=0.03)
        assert right.after.value + calm.after.value - 1 == pytest.approx(found_after - alarms_after, abs=0.02)
        assert right.after.value + calm.after.value - 1 == pytest.approx(ndtr(0.5) - ndtr(-0.5), abs=0.001)
    assert levels_down(tuple(effects.values()))
    both, calm = (getattr(effects["good"], name).after.value for name in ("sensitivity", "specificity"))
    alone = ndtr(3.3 + ndtri(1 - calm))  # what the good group would find at that false positive rate
    assert effects["good"].ignored.value == pytest.approx((alone - both) / (alone - (1 - calm)), abs=0.005)
    assert effects["good"].ignored.value == pytest.approx(0.437, abs=0.02)
    assert effects["bad"].ignored.value == pytest.approx(0.0, abs=0.005)
    changed = sum(effect.randomised.value * effect.cases for effect in effects.values()) / len(cases.scores)
    assert changed == pytest.approx(0.255, abs=0.02)


def test_equal_sensitivity_lifts_one_group_and_cuts_the_other(fitted: Fitted, cases: Tuning) -> None:
    """The known figures of the same two groups: 0.688 to 0.916 with alarms 0.307 to 0.647, and 0.952 to 0.916."""
    effects = judged(fitted, "equal sensitivity", cases)
    bad, good = effects["bad"], effects["good"]
    assert bad.sensitivity.after.value == pytest.approx(good.sensitivity.after.value, abs=0.005)
    assert bad.sensitivity.after.value == pytest.approx(0.916, abs=0.02)
    assert 1 - bad.specificity.after.value == pytest.approx(0.647, abs=0.02)
    assert 1 - bad.specificity.after.value == pytest.approx(ndtr(ndtri(bad.sensitivity.after.value) - 1), abs=0.005)
    assert good.sensitivity.change.high < 0
    assert not levels_down(tuple(effects.values()))


def test_group_thresholds_reach_the_best_group_with_the_alarms_that_the_curve_asks(
    fitted: Fitted, cases: Tuning
) -> None:
    best = ndtr(1.65)
    assert fitted.target == pytest.approx(best, abs=0.001)
    effects = judged(fitted, "group thresholds", cases)
    assert effects["bad"].sensitivity.after.value == pytest.approx(best, abs=0.001)
    assert 1 - effects["bad"].specificity.after.value == pytest.approx(ndtr(ndtri(best) - 1.0), abs=0.002)
    assert effects["good"].moves.found.sum() == effects["good"].moves.alarmed.sum() == 0
    assert effects["bad"].drawn.value == 0
    one = judged(fitted, "one new threshold", cases)
    assert one["bad"].after == effects["bad"].after
    assert 1 - one["good"].specificity.after.value == pytest.approx(ndtr(ndtri(best) - 0.5 - 1.65), abs=0.002)


def test_what_is_fitted_for_a_target_is_the_highest_threshold_that_reaches_it() -> None:
    scores = np.array([3.0, 2.0, 1.0, 0.0, -1.0, 2.5, -2.0, 0.5, -0.5, 4.0])
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 1, 1, 0], bool)
    groups = np.array(["a"] * 7 + ["b"] * 3)
    found = fit_previews(Tuning(scores, labels, groups, np.arange(10)), 0.5, target=0.6, minimum=1)
    thresholds = found.rules["group thresholds"].mixtures
    assert thresholds["a"].thresholds[0] == pytest.approx(1.0, abs=1e-5)
    assert thresholds["b"].thresholds[0] == pytest.approx(-0.5, abs=1e-5)
    one = found.rules["one new threshold"].others
    assert one is not None
    assert one.thresholds == thresholds["b"].thresholds
    assert thresholds["a"].chance(np.array([1.0, 0.99])).tolist() == [1.0, 0.0]


def test_a_temperature_by_group_undoes_what_was_planted_and_keeps_the_ranking() -> None:
    """T29: logits of group B times 3."""
    rng = np.random.default_rng(1)
    odds, groups = rng.normal(0, 1.7, 8_000), np.repeat(["A", "B"], 4_000)
    labels = rng.random(8_000) < expit(odds)
    scores = np.where(groups == "B", 3 * odds, odds)
    found = fit_previews(Tuning(scores, labels, groups, np.arange(8_000)), 0.5, recalibration="temperature")
    rule = found.rules["group recalibration"]
    assert 1 / rule.lines["A"].slope == pytest.approx(1, abs=0.05)
    assert 1 / rule.lines["B"].slope == pytest.approx(3, abs=0.15)
    second = groups == "B"
    patients, truth = np.arange(4_000), labels[second]
    after = rule.recalibrated(scores[second], "B")

    def error(values: np.ndarray) -> float:
        return ece(expit(values), truth, patients, bins=10, resamples=2, rng=rng).value or 0.0

    assert error(scores[second]) == pytest.approx(0.146, abs=0.02)
    assert error(after) < 0.02
    assert auroc(after, truth, patients) == auroc(scores[second], truth, patients)
    assert not (rule.chance(scores, groups, scores > 0) != (scores > 0)).any()  # at 0.5 no temperature moves a decision


def test_a_group_with_few_cases_gets_the_shared_temperature() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(["large", "small", "rare"], [600, 190, 600])
    odds = rng.normal(0, 1.5, len(groups)) - 4 * (groups == "rare")
    labels = rng.random(len(groups)) < expit(odds + (groups == "large"))
    found = fit_previews(Tuning(2 * odds, labels, groups, np.arange(len(groups))), 0.5, minimum=5)
    rule = found.rules["group recalibration"]
    assert {name: line.own for name, line in rule.lines.items()} == {"large": True, "rare": False, "small": False}
    assert rule.lines["small"] == rule.lines["rare"] == rule.shared
    assert rule.lines["large"].intercept == pytest.approx(1, abs=0.3)
    assert rule.lines["large"].slope == pytest.approx(0.5, abs=0.1)
    assert rule.others is not None
    assert rule.mixture("nobody knows") == rule.others


def test_a_line_that_would_turn_the_ranking_round_is_refused() -> None:
    rng = np.random.default_rng(6)
    groups, odds = np.repeat(["right", "wrong"], 800), rng.normal(0, 2, 1600)
    labels = rng.random(1600) < expit(np.where(groups == "wrong", -0.5 * odds, odds))
    rule = fit_previews(Tuning(odds, labels, groups, np.arange(1600)), 0.5).rules["group recalibration"]
    assert rule.lines["right"].own
    assert not rule.lines["wrong"].own
    assert all(line.slope > 0 for line in rule.lines.values())


def test_unknown_groups_keep_the_deployed_threshold_and_nobody_is_lost() -> None:
    """T37: a tenth of the groups is missing."""
    whole = binormal(cases=2000)
    rng = np.random.default_rng(3)
    cases = whole._replace(groups=np.where(rng.random(len(whole.groups)) < 0.1, "unknown", whole.groups))
    found = fit_previews(cases, 0.5)
    for name in PREVIEWS:
        effects = judged(found, name, cases)
        assert list(effects) == ["bad", "good", "unknown"]
        assert sum(effect.cases for effect in effects.values()) == len(cases.scores)
        assert sum(sum(effect.after) for effect in effects.values()) == pytest.approx(len(cases.scores))
        unknown = effects["unknown"]
        if name not in ("one new threshold", "group recalibration"):
            assert unknown.after == unknown.before
            assert unknown.helped.value == unknown.harmed.value == unknown.drawn.value == 0


def test_a_group_too_small_to_fit_on_is_named_and_kept_as_deployed() -> None:
    cases = binormal(cases=1000)
    few = Tuning(np.array([1.0, -1.0]), np.array([True, False]), np.array(["one", "one"]), np.array([1000, 1001]))
    joined = Tuning(*(np.concatenate(pair) for pair in zip(cases, few, strict=True)))
    found = fit_previews(joined, 0.5)
    assert found.eligible == ("bad", "good")
    assert found.refused == {"one": "1 positive patient to fit on, fewer than 20"}
    assert found.rules["equalised odds"].mixture("one") is None
    healthy = joined._replace(labels=joined.labels & (joined.groups != "bad"))
    with pytest.raises(DataError, match="1 of 3 groups have 20 positive and 20 negative patients"):
        fit_previews(healthy, 0.5)


def test_options_that_make_no_sense_are_refused(cases: Tuning) -> None:
    with pytest.raises(ConfigError, match="give a sensitivity from 0 to 1"):
        fit_previews(cases, 0.5, target=1.5)
    with pytest.raises(ConfigError, match="at least 1"):
        fit_previews(cases, 0.5, minimum=0)
    with pytest.raises(DataError, match="2 labels came with 3 chances"):
        group_effects(*(np.array([0, 1]),) * 2, np.zeros(3), np.array(["a", "b"]), np.arange(2), aim="both")


def test_effects_by_hand() -> None:
    """Five patients of one group; the last has two images, one found anew and one alarmed anew."""
    labels = np.array([1, 1, 0, 0, 1, 0])
    deployed = np.array([0, 1, 1, 0, 0, 0])
    chance = np.array([1.0, 0.25, 0.0, 0.5, 1.0, 1.0])
    patients = np.array(["a", "b", "c", "d", "e", "e"])
    (effect,) = group_effects(labels, deployed, chance, np.full(6, "F"), patients, aim="both")
    assert effect.before == (1, 1, 2, 2)
    assert effect.after == (2.25, 1.5, 0.75, 1.5)
    assert [each.sum() for each in effect.moves] == [2, 0.75, 1, 1.5]
    assert effect.helped.value == pytest.approx(3 / 5)
    assert effect.harmed.value == pytest.approx((0.75 + 0.5 + 1) / 5)
    assert effect.randomised.value == pytest.approx((2 * 0.25 * 0.75 + 0.5) / 6)
    assert effect.drawn.value == pytest.approx(2 / 6)
    assert effect.sensitivity.change.value == pytest.approx(2.25 / 3 - 1 / 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 1)), min_size=1, max_size=20))
def test_what_is_gained_less_what_is_lost_is_the_change_of_the_counts(rows: list[tuple[bool, bool, float]]) -> None:
    labels, deployed, chance = (np.array(column) for column in zip(*rows, strict=True))
    (effect,) = group_effects(labels, deployed, chance, np.full(len(rows), "F"), np.arange(len(rows)), aim="both")
    kinds = moves(labels, deployed, chance)
    assert effect.after.tp - effect.before.tp == pytest.approx(kinds.found.sum() - kinds.missed.sum())
    assert effect.after.fp - effect.before.fp == pytest.approx(kinds.alarmed.sum() - kinds.spared.sum())
    assert sum(effect.after) == pytest.approx(len(rows))


def test_changes_of_a_certain_preview_are_paired() -> None:
    rng = np.random.default_rng(4)
    labels, deployed, after = np.ones(80, bool), rng.random(80) < 0.6, rng.random(80) < 0.8
    patients = np.repeat(np.arange(40), 2)
    (effect,) = group_effects(labels, deployed, after.astype(float), np.full(80, "F"), patients, aim="sensitivity")
    assert effect.sensitivity.change == combination([Sample(after, patients), Sample(deployed, patients)], (1, -1))
    assert effect.specificity.change.reason == "no negative cases"
    assert effect.aim.value == effect.sensitivity.change.value


def test_levels_down_looks_at_known_groups_at_a_level_that_holds_for_all_of_them() -> None:
    rng = np.random.default_rng(7)
    groups, labels = np.repeat(["F", "M", "unknown"], 200), np.tile([True, False], 300)
    deployed = rng.random(600) < np.where(labels, 0.9, 0.1)
    after = np.where(groups == "unknown", ~labels, deployed)

    def effects(chance: np.ndarray) -> tuple[GroupEffect, ...]:
        return group_effects(labels, deployed, chance, groups, np.arange(600), aim="both")

    assert not levels_down(effects(after.astype(float)))
    worse = effects(np.where(groups == "F", ~labels, deployed).astype(float))
    assert levels_down(worse)
    change = worse[0].sensitivity.change.value, worse[0].specificity.change.value
    assert worse[0].aim.value == pytest.approx(sum(change) / 2)
    (one, _, _) = group_effects(labels, deployed, after.astype(float), groups, np.arange(600), aim="sensitivity")
    assert one.aim.low < one.sensitivity.change.low


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.7])
def test_a_score_at_the_threshold_counts_as_positive(probability: float) -> None:
    at = float(logit(probability))
    assert threshold_mixture(probability).chance(np.array([at, at - 1e-3])).tolist() == [1, 0]
