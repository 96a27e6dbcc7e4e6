"""Calibration of planted miscalibration: what it says overall, of groups, of classes, and of a recalibration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax

from tests.analyses.reading import found
from tests.analyses.scored import scored
from xvision.analyses.calibration import calibration
from xvision.audit import Audit
from xvision.charts import Forest, Lines, Table
from xvision.config import DecisionPlan, RulePlan
from xvision.operating import at_operating_point
from xvision.result import Result


def planted(count: int, factor: float, *, seed: int = 0, validation: bool = True, threshold: float = 0.5) -> Audit:
    """Labels follow sigmoid(z), the model says sigmoid(factor × z); half of the cases are the validation split."""
    rng = np.random.default_rng(seed)
    odds = 1.5 * rng.normal(size=count)
    labels = (rng.random(count) < expit(odds)).astype(int)
    split = np.where(rng.random(count) < 0.5, "validation", "test") if validation else None
    return scored(expit(factor * odds), labels, split=split, threshold=threshold)


def value(result: Result, name: str, **where: str) -> float:
    number = found(result, name, **where).value
    assert number is not None
    return number


@pytest.fixture(scope="module")
def sharp() -> Result:
    return calibration(planted(8000, 2.0), resamples=200)


def test_a_sharp_model_is_found_and_its_temperature_would_mend_it(sharp: Result) -> None:
    assert value(sharp, "temperature", split="validation") == pytest.approx(2.0, rel=0.06)
    assert value(sharp, "platt_slope", split="validation") == pytest.approx(0.5, rel=0.06)
    assert value(sharp, "calibration_slope") == pytest.approx(0.5, abs=0.04)
    for method in ("temperature", "platt"):
        assert value(sharp, "calibration_slope", recalibration=method) == pytest.approx(1.0, abs=0.08)
        for name in ("ece", "brier", "nll"):
            change = found(sharp, f"{name}_change", recalibration=method)
            assert (change.high or 0.0) < 0
            after = value(sharp, name, recalibration=method)
            assert change.value == pytest.approx(after - value(sharp, name), abs=1e-12)
    # Of two classes at threshold 0.5 no temperature changes a decision.
    assert value(sharp, "decisions_changed", recalibration="temperature") == 0.0
    assert "not applied" in sharp.summary
    assert "more than calibration allows" in sharp.summary


def test_a_preview_at_a_threshold_that_was_chosen_says_that_it_keeps_the_number() -> None:
    audit = planted(200, 2.0)
    chosen = at_operating_point(audit, DecisionPlan("class1", rule=RulePlan("sensitivity", 0.9)))
    said = [
        any("needs one chosen anew" in each for each in calibration(one, resamples=20).caveats)
        for one in (audit, chosen)
    ]
    assert said == [False, True]


def test_brier_is_the_sum_of_the_parts_it_is_shown_with(sharp: Result) -> None:
    parts = [value(sharp, f"brier_{name}") for name in ("reliability", "resolution", "uncertainty", "within_bins")]
    assert parts[0] - parts[1] + parts[2] + parts[3] == pytest.approx(value(sharp, "brier"), abs=1e-12)
    assert value(sharp, "scaled_brier") == pytest.approx(1 - value(sharp, "brier") / parts[2], abs=1e-12)


def test_decisions_change_at_another_threshold_and_are_counted() -> None:
    audit = planted(4000, 2.0, threshold=0.9)
    result = calibration(audit, resamples=50)
    size = value(result, "temperature", split="validation")
    cooled = expit(logit(audit.scores) / size) >= 0.9
    changed = cooled != (audit.predictions.decisions == 1)
    assert value(result, "decisions_changed", recalibration="temperature") == pytest.approx(changed.mean())
    table = next(chart for chart in result.charts if isinstance(chart, Table) and "recalibration" in chart.title)
    assert f"0 change to class1, {changed.sum()} from it" in table.rows[-1]


def test_a_calibrated_model_is_left_in_peace() -> None:
    result = calibration(planted(6000, 1.0, seed=4), resamples=100)
    assert "within what calibration allows" in result.summary
    for name in ("ece", "adaptive_ece", "mce"):
        chance = found(result, f"{name}_if_calibrated")
        assert (chance.low or 0) <= value(result, name) <= (chance.high or 0)
        assert value(result, name) > 0.005
    assert found(result, "debiased_calibration_error").low == 0.0
    assert value(result, "debiased_calibration_error") < 0.02
    assert value(result, "observed_expected_ratio") == pytest.approx(1.0, abs=0.05)
    change = found(result, "ece_change", recalibration="temperature")
    assert (change.low or 0) <= 0 <= (change.high or 0)


def test_a_group_whose_risk_is_set_too_low_stands_out() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(size=4000)
    site = np.where(np.arange(4000) % 2 == 0, "A", "B").astype("<U7")
    site[:9] = "unknown"
    labels = (rng.random(4000) < expit(odds + (site == "B"))).astype(int)
    result = calibration(scored(expit(odds), labels, columns={"site": site}), resamples=100)
    intercepts = [found(result, "calibration_intercept", site=level) for level in ("A", "B")]
    assert (intercepts[0].low or 0) < 0 < (intercepts[0].high or 0)
    assert intercepts[1].value == pytest.approx(1.0, abs=0.12)
    errors = [found(result, "debiased_calibration_error", site=level) for level in ("A", "B")]
    assert (errors[1].low or 0) > (errors[0].high or 0)
    few = found(result, "calibration_slope", site="unknown")
    assert few.value is None
    assert (few.reason or "").startswith("insufficient evidence: ")
    forests = [chart for chart in result.charts if isinstance(chart, Forest)]
    assert [mark.label for mark in forests[1].marks] == ["all", "site A", "site B"]


def test_each_class_of_several_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    logits = 1.5 * rng.normal(size=(5000, 3))
    chances = softmax(logits, axis=1)
    labels = (chances.cumsum(axis=1) < rng.random(5000)[:, None]).sum(axis=1)
    split = np.where(np.arange(5000) % 2 == 0, "validation", "test")
    sharp = softmax(2 * logits, axis=1)
    result = calibration(scored(sharp, labels, split=split, names=("a", "b", "c")), resamples=50)
    for name in ("a", "b", "c"):
        assert value(result, "calibration_slope", **{"class": name}) == pytest.approx(0.5, abs=0.06)
    assert value(result, "temperature", split="validation") == pytest.approx(2.0, rel=0.06)
    assert value(result, "decisions_changed", recalibration="temperature") == 0.0
    assert found(result, "platt_slope", split="validation").reason.startswith("Platt scaling is for two classes")
    audited = split == "test"
    own = sharp[audited, labels[audited]]
    assert value(result, "nll") == pytest.approx(-np.log(own).mean())


@pytest.mark.parametrize("validation", [True, False])
def test_without_a_split_to_fit_on_nothing_is_fitted(validation: bool) -> None:
    audit = planted(60, 2.0, validation=validation)
    if validation:  # no split "test", so that the validation cases are themselves audited
        audit.everything.table["split"] = "validation"
    result = calibration(audit, resamples=20)
    words = "among the audited images" if validation else 'no split "validation"'
    for name, where in (
        ("temperature", {"split": "validation"}),
        ("ece_change", {"recalibration": "temperature"}),
        ("decisions_changed", {"recalibration": "platt"}),
    ):
        assert words in (found(result, name, **where).reason or "")
    assert words in result.summary


def test_patients_in_both_splits_are_told() -> None:
    people = np.arange(60) // 2
    audit = scored(
        np.linspace(0.1, 0.9, 60),
        np.arange(60) % 3 % 2,
        patients=people,
        split=np.where(np.arange(60) % 2, "test", "validation"),
    )
    caveats = calibration(audit, resamples=20).caveats
    assert "30 patients of the validation split are also audited: the preview is too favourable." in caveats


def test_the_diagram_shows_what_chance_would(sharp: Result) -> None:
    diagram = sharp.charts[0]
    assert isinstance(diagram, Lines)
    model, band = diagram.series
    assert model.x == band.x
    outside = [not low <= seen <= high for seen, low, high in zip(model.y, band.low, band.high, strict=True)]
    assert np.mean(outside) > 0.5


@pytest.mark.parametrize("labels", [np.zeros(10, int), np.arange(10) % 2])
def test_ten_images_of_one_or_two_classes(labels: np.ndarray) -> None:
    result = calibration(scored(np.linspace(0.05, 0.95, 10), labels), resamples=20)
    if labels.any():
        assert found(result, "calibration_intercept").value is not None
    else:
        assert found(result, "calibration_slope").reason == "no positive cases"
        assert found(result, "scaled_brier").reason == "undefined on these cases"
    assert result.summary.endswith(".")


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 10**6))
def test_the_order_of_cases_changes_no_figure(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chances, labels = rng.random(80), rng.integers(0, 2, 80)
    split, site = np.where(rng.random(80) < 0.4, "validation", "test"), rng.choice(["A", "B"], 80)
    people, order = np.array([f"p{number:02d}" for number in range(80)]), rng.permutation(80)
    first, second = (
        calibration(
            scored(chances[who], labels[who], split=split[who], patients=people[who], columns={"site": site[who]}),
            resamples=20,
            minimum=3,
        )
        for who in (np.arange(80), order)
    )
    for one, other in zip(first.metrics, second.metrics, strict=True):
        assert (one.name, one.where, one.reason) == (other.name, other.where, other.reason)
        if one.value is not None:
            assert (one.value, one.low, one.high) == pytest.approx(
                (other.value, other.low, other.high), rel=1e-6, abs=1e-6
            )


def test_predictions_of_the_audited_split_alone_are_enough() -> None:
    split = np.where(np.arange(60) % 2, "test", "validation")
    audit = scored(np.linspace(0.1, 0.9, 60), np.arange(60) % 3 % 2, split, predicted=split == "test")
    result = calibration(audit, resamples=20)
    assert value(result, "ece") > 0
    assert "have to be added to the predictions" in (found(result, "temperature", split="validation").reason or "")


def test_a_patient_in_both_splits_is_told() -> None:
    split = np.where(np.arange(60) < 30, "test", "validation")
    people = np.where(np.arange(60) == 59, 0, np.arange(60))
    audit = scored(np.linspace(0.1, 0.9, 60), np.arange(60) % 3 % 2, split, patients=people)
    assert any(each.startswith("1 patient of the validation split is also") for each in calibration(audit).caveats)


def test_only_an_error_above_the_range_of_chance_is_evidence() -> None:
    said = set()
    for seed in (0, 22, 39, 57, 58, 184):  # all but the first have a p-value between 0.025 and 0.05
        rng = np.random.default_rng(seed)
        chances = rng.random(100)
        happened = (rng.random(100) < chances + 0.07 + (seed == 0)).astype(int)
        result = calibration(scored(chances, happened), resamples=20)
        above = value(result, "ece") > (found(result, "ece_if_calibrated").high or 0.0)
        assert ("more than calibration allows" in result.summary) == above
        said.add(above)
    assert said == {True, False}
