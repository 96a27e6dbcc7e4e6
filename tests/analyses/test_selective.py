"""Abstention on stored scores: rules that hold and rules that do not, and groups that are left undecided or harmed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.analyses.reading import found as one
from tests.analyses.scored import halves, scored
from xvision.audit import Audit
from xvision.errors import ConfigError
from xvision.methods.intervals import clopper_pearson
from xvision.registry import analyses
from xvision.result import Result

CASES = 2000


def run(audit: Audit, **options: Any) -> Result:
    audit.task = "selective"
    found = analyses()["selective"]
    return found(audit, found.bind({"resamples": 100, **options}))


def two_sided(odds: np.ndarray) -> np.ndarray:
    """(N, 2) probabilities of log-odds of the second class."""
    positive = 1 / (1 + np.exp(-odds))
    return np.stack((1 - positive, positive), axis=1)


def calibrated(cases: int = CASES, seed: int = 0, scale: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    probabilities = two_sided(rng.normal(0, scale, cases))
    return probabilities, (rng.random(cases) < probabilities[:, 1]).astype(int)


def test_risk_falls_with_coverage_and_is_that_of_the_table() -> None:
    probabilities, labels = calibrated()
    result = run(scored(probabilities, labels, halves(CASES), threshold=0.3))
    table = result.tables["selective"]
    odds = np.log(probabilities[CASES // 2 :, 1] / probabilities[CASES // 2 :, 0])
    assert table["confidence"].to_numpy() == pytest.approx(np.abs(odds - math.log(0.3 / 0.7)), abs=1e-5)
    assert table["wrong"].tolist() == ((odds >= math.log(0.3 / 0.7)) != labels[CASES // 2 :]).tolist()
    surest = table.sort_values("confidence", ascending=False)["wrong"]
    assert one(result, "error_rate").value == pytest.approx(table["wrong"].mean())
    for share in (0.8, 0.9):
        assert one(result, "selective_risk", coverage=share).value == pytest.approx(surest[: int(1000 * share)].mean())
    areas = surest.cumsum() / np.arange(1, 1001)
    assert one(result, "aurc").value == pytest.approx(areas.mean())
    rate = table["wrong"].mean()
    best = rate + (1 - rate) * math.log(1 - rate)
    assert one(result, "e_aurc").value == pytest.approx(areas.mean() - best)


def test_the_usual_rule_is_chosen_on_validation_and_judged_on_the_audited() -> None:
    probabilities, labels = calibrated()
    result = run(scored(probabilities, labels, halves(CASES)))
    odds = np.abs(np.log(probabilities[:, 1] / probabilities[:, 0]))
    threshold = np.sort(odds[:1000])[200]
    decided = odds[1000:] >= threshold - 1e-9
    assert result.tables["selective"]["decided"].tolist() == decided.tolist()
    assert one(result, "coverage", rule="surest 80 %").value == pytest.approx(decided.mean())
    wrong = (probabilities[1000:, 1] >= 0.5) != labels[1000:]
    risk = one(result, "selective_risk", rule="surest 80 %")
    assert risk.value == pytest.approx(wrong[decided].mean())
    assert (risk.low, risk.high) == pytest.approx(clopper_pearson(wrong[decided].sum(), decided.sum()))
    ill = labels[1000:] == 1
    assert one(result, "sensitivity", rule="surest 80 %").value == pytest.approx(1 - wrong[decided & ill].mean())
    assert one(result, "specificity", rule="surest 80 %").value == pytest.approx(1 - wrong[decided & ~ill].mean())
    rule = {"rule": "surest 80 %", "class": "class1"}
    assert one(result, "coverage", **rule).value == pytest.approx(decided[ill].mean())
    change = wrong[ill & decided].mean() - wrong[ill].mean()
    assert one(result, "risk_change", **rule).value == pytest.approx(change)


def test_an_agreed_risk_is_kept_on_cases_like_those_of_validation() -> None:
    probabilities, labels = calibrated(6000)
    result = run(scored(probabilities, labels, halves(6000)), agreed_risk=0.1)
    risk, coverage = (one(result, name, rule="agreed risk 0.1") for name in ("selective_risk", "coverage"))
    assert risk.high is not None
    assert risk.high <= 0.1
    odds = np.abs(np.log(probabilities[:3000, 1] / probabilities[:3000, 0]))
    surest = ((probabilities[:3000, 1] >= 0.5) != labels[:3000])[np.argsort(-odds)]
    limits = [clopper_pearson(surest[:count].sum(), count, 0.995)[1] for count in range(150, 3001, 150)]
    widest = max(place + 1 for place, limit in enumerate(limits) if limit <= 0.1) / 20
    assert 0.05 < widest < 1.0
    assert coverage.value == pytest.approx(widest, abs=0.03)
    assert "within the agreed 0.1." in result.summary
    assert any("promised for cases like those of validation" in caveat for caveat in result.caveats)


def test_a_shift_breaks_the_agreed_risk_and_is_called_so() -> None:
    probabilities, labels = calibrated(6000)
    shifted = np.where((halves(6000) == "test") & (np.arange(6000) % 4 == 0), 1 - labels, labels)
    result = run(scored(probabilities, shifted, halves(6000)), agreed_risk=0.1)
    assert "above the agreed 0.1." in result.summary
    few = (np.arange(6000) >= 5120) & (np.arange(6000) < 5160)
    small = run(scored(probabilities, labels, np.where(few, "test", "validation")), agreed_risk=0.1)
    risk = one(small, "selective_risk", rule="agreed risk 0.1")
    assert (risk.value or 1) < 0.1 < (risk.high or 0)  # within, but not for certain
    assert "not decided whether within the agreed 0.1." in small.summary


def test_without_a_rule_the_reason_stands_where_the_numbers_would() -> None:
    probabilities, labels = calibrated(60)
    few = run(scored(probabilities, labels, halves(60)), agreed_risk=0.01)
    assert "no rule keeps" in (
        one(few, "coverage", rule="agreed risk 0.01").reason or ""
    ) or "insufficient evidence" in (one(few, "coverage", rule="agreed risk 0.01").reason or "")
    assert one(few, "coverage", rule="surest 80 %").value is not None
    assert "No rule was found for the agreed risk of 0.01" in few.summary
    alone = run(scored(probabilities, labels, np.full(60, "test")), agreed_risk=0.3)
    assert 'a split "validation"' in (one(alone, "selective_risk", rule="agreed risk 0.3").reason or "")
    assert one(alone, "coverage", rule="surest 80 %").value == pytest.approx(0.8)
    assert any("by construction" in caveat for caveat in alone.caveats)


def test_predictions_without_validation_are_like_none() -> None:
    probabilities, labels = calibrated(60)
    result = run(scored(probabilities, labels, halves(60), predicted=halves(60) == "test"))
    assert one(result, "coverage", rule="surest 80 %").value == pytest.approx(0.8)
    assert any("have to be added to the predictions" in caveat for caveat in result.caveats)


def test_no_rule_is_chosen_on_audited_cases() -> None:
    probabilities, labels = calibrated(60)
    result = run(scored(probabilities, labels, np.where(np.arange(60) % 2, "train", "validation")), agreed_risk=0.4)
    assert "is among the audited images" in (one(result, "coverage", rule="agreed risk 0.4").reason or "")
    assert any("is among the audited images" in caveat for caveat in result.caveats)


def test_a_group_left_undecided_more_often_is_named_and_equal_groups_are_not() -> None:
    rng = np.random.default_rng(2)
    probabilities, labels = calibrated()
    women = rng.random(CASES) < 0.4
    dim = np.where(women, 0.35, 1.0)[:, None] * np.log(probabilities)
    dim = np.exp(dim) / np.exp(dim).sum(axis=1, keepdims=True)
    sex = np.where(women, "F", "M")
    result = run(scored(dim, labels, halves(CASES), columns={"sex": sex}))
    gap = one(result, "coverage_difference", sex="F", against="M", rule="surest 80 %")
    decided, audited = result.tables["selective"]["decided"].to_numpy(), women[CASES // 2 :]
    assert gap.value == pytest.approx(decided[audited].mean() - decided[~audited].mean())
    assert gap.high is not None
    assert gap.high < 0
    assert "Sex F is decided less often than M" in result.summary
    equal = run(scored(probabilities, labels, halves(CASES), columns={"sex": sex}))
    assert "less often" not in equal.summary


def test_a_group_that_abstention_harms_is_named() -> None:
    """In site B the surest decisions are the wrong ones."""
    probabilities, labels = calibrated()
    sure = np.abs(np.log(probabilities[:, 1] / probabilities[:, 0])) > 3
    site = np.where(np.arange(CASES) % 5 == 0, "B", "A")
    decided = (probabilities[:, 1] >= 0.5).astype(int)
    labels = np.where(site == "B", np.where(sure, 1 - decided, decided), labels)
    result = run(scored(probabilities, labels, halves(CASES), columns={"site": site}))
    change = one(result, "risk_change", site="B", rule="surest 80 %")
    assert change.low is not None
    assert change.low > 0
    assert "97.5 % each so that 2 hold together" in change.interval
    assert "Abstention raises the error rate of site B by" in result.summary
    assert (one(result, "risk_change", site="A", rule="surest 80 %").high or 1) < 0
    chance = np.where(np.random.default_rng(8).random(CASES) < 0.2, 1 - decided, decided)  # confidence says nothing
    result = run(scored(probabilities, chance, halves(CASES), columns={"site": site}))
    change = one(result, "risk_change", site="B", rule="surest 80 %")
    assert (change.low or 1) < 0 < (change.high or 0)
    assert "Abstention raises" not in result.summary


def test_the_order_of_the_cases_changes_nothing() -> None:
    probabilities, labels = calibrated(300)
    probabilities = probabilities.round(2)  # many ties
    made = scored(probabilities, labels, halves(300), columns={"sex": np.where(np.arange(300) % 3 == 0, "F", "M")})
    turned = replace(made.everything, table=made.everything.table.iloc[::-1])
    result, again = run(made), run(replace(made, everything=turned, shared={}))
    for item, other in zip(result.metrics, again.metrics, strict=True):
        assert (item.name, item.where, item.n, item.reason) == (other.name, other.where, other.n, other.reason)
        assert item.value is None or item.value == pytest.approx(other.value)


def test_few_cases_one_class_and_no_errors_give_reasons_and_no_wrong_number() -> None:
    probabilities, labels = calibrated(20)
    few = run(scored(probabilities, labels, halves(20)))
    assert one(few, "risk_change", rule="surest 80 %", **{"class": "class0"}).reason == "fewer than 10 patients"
    probabilities, _ = calibrated(200)
    alone = run(scored(probabilities, np.zeros(200, dtype=int), halves(200)))
    assert one(alone, "coverage", rule="surest 80 %", **{"class": "class1"}).reason == "no such case is audited"
    assert one(alone, "sensitivity", rule="surest 80 %").reason == "no case of class1 is decided"
    decided = (probabilities[:, 1] >= 0.5).astype(int)
    right = run(scored(probabilities, decided, halves(200)))
    assert (one(right, "aurc").value, one(right, "e_aurc").value) == (0.0, 0.0)
    assert (
        one(right, "risk_change", rule="surest 80 %", **{"class": "class0"}).reason
        == "no decision of these cases is wrong"
    )


def test_more_classes_are_judged_by_the_most_probable() -> None:
    rng = np.random.default_rng(5)
    probabilities = rng.dirichlet(np.full(3, 0.5), 600)
    labels = (probabilities.cumsum(axis=1) < rng.random((600, 1))).sum(axis=1).clip(0, 2)
    result = run(scored(probabilities, labels, halves(600)))
    table = result.tables["selective"]
    top = probabilities[300:].max(axis=1)
    assert np.argsort(table["confidence"]).tolist() == np.argsort(top).tolist()
    rule = {"rule": "surest 80 %", "class": "class2"}
    kept = table["decided"].to_numpy() & (labels[300:] == 2)
    assert one(result, "sensitivity", **rule).value == pytest.approx(1 - table["wrong"].to_numpy()[kept].mean())


def test_an_agreed_risk_that_is_none_is_refused() -> None:
    probabilities, labels = calibrated(40)
    with pytest.raises(ConfigError, match="agreed_risk is 1"):
        run(scored(probabilities, labels, halves(40)), agreed_risk=1.0)
