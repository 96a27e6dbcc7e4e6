"""Conformal sets of stored scores: a kept promise, a broken one, and data on which none can be made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.analyses.reading import found as one
from tests.analyses.scored import halves, scored
from xvision.audit import Audit
from xvision.charts import Table
from xvision.errors import ConfigError
from xvision.registry import analyses
from xvision.result import NotApplicable, Result

CASES = 2000


def run(audit: Audit, **options: Any) -> Result:
    audit.task = "conformal"
    found = analyses()["conformal"]
    return found(audit, found.bind(options))


def calibrated(cases: int = CASES, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.6), cases)
    labels = (probabilities.cumsum(axis=1) < rng.random((cases, 1))).sum(axis=1).clip(0, classes - 1)
    return probabilities, labels


def lied_to(where: np.ndarray) -> Audit:
    """Labels of the given audited cases are drawn without regard to the scores."""
    probabilities, labels = calibrated()
    group = np.where(where, "F", "M")
    test = halves(CASES) == "test"
    labels = np.where(where & test, np.random.default_rng(9).integers(0, 2, CASES), labels)
    return scored(probabilities, labels, halves(CASES), columns={"sex": group})


def test_a_promise_to_cases_like_those_of_calibration_is_kept() -> None:
    probabilities, labels = calibrated(classes=3, seed=1)
    site = np.random.default_rng(1).choice(["A", "B"], CASES)
    result = run(scored(probabilities, labels, halves(CASES), columns={"site": site}))
    for score in ("lac", "aps"):
        coverage = one(result, "coverage", score=score)
        assert (coverage.n, coverage.interval) == (CASES // 2, "Clopper-Pearson")
        assert coverage.value == pytest.approx(0.9, abs=0.035)
        chance = one(result, "coverage_by_chance", score=score)
        assert (chance.value, chance.low, chance.high) == pytest.approx((0.900100, 0.8808, 0.9179), abs=5e-5)
    assert one(result, "coverage", score="lac", site="A").n == int((site[CASES // 2 :] == "A").sum())
    assert result.summary.count("nowhere is coverage below the promise beyond chance") == 2


def test_coverage_and_size_are_those_of_the_stored_sets() -> None:
    probabilities, labels = calibrated(400, classes=3)
    result = run(scored(probabilities, labels, halves(400)), scores=("lac",), alpha=0.2)
    table = result.tables["conformal"]
    limit = np.sort(1 - probabilities[np.arange(200), labels[:200]])[int(np.ceil(201 * 0.8)) - 1]
    held = 1 - probabilities[200:] <= limit
    assert table["size"].tolist() == held.sum(axis=1).tolist()
    assert table["covered"].tolist() == held[np.arange(200), labels[200:]].tolist()
    assert table["set"][0] == "|".join(f"class{code}" for code in np.flatnonzero(held[0]))
    assert one(result, "coverage", score="lac").value == pytest.approx(table["covered"].mean())
    assert one(result, "set_size", score="lac").value == pytest.approx(table["size"].mean())
    assert one(result, "singleton_share", score="lac").value == pytest.approx((table["size"] == 1).mean())
    assert one(result, "empty_share", score="lac").value == pytest.approx((table["size"] == 0).mean())
    first = labels[200:] == 0
    assert one(result, "set_size", score="lac", **{"class": "class0"}).value == pytest.approx(held[first].sum(1).mean())
    assert one(result, "coverage", score="lac", **{"class": "class0"}).n == int(first.sum())


def test_the_group_that_pays_is_named_and_no_other() -> None:
    result = run(lied_to(np.arange(CASES) % 4 == 0), scores=("lac",))
    words = {
        row[1]: row[-1] for chart in result.charts if isinstance(chart, Table) for row in chart.rows if len(row) == 8
    }
    assert words["Sex F"] == words["All cases"] == "below the promise"
    assert words["Sex M"] == "no sign against it"
    assert "below the promise beyond chance: Sex F 0." in result.summary
    few = run(lied_to(np.arange(CASES) > CASES - 9), scores=("lac",))  # too few to be tested
    words = {row[1]: row[-1] for chart in few.charts if isinstance(chart, Table) for row in chart.rows if len(row) == 8}
    assert words["Sex F"] == "not tested"


def test_the_order_of_the_cases_changes_nothing() -> None:
    probabilities, labels = calibrated(300, classes=3)
    made = scored(probabilities, labels, halves(300), columns={"sex": np.where(labels == 0, "F", "M")})
    turned = replace(made.everything, table=made.everything.table.iloc[::-1])
    result, again = run(made), run(replace(made, everything=turned, shared={}))
    for item, other in zip(result.metrics, again.metrics, strict=True):
        assert (item.name, item.where, item.n) == (other.name, other.where, other.n)
        assert item.value == pytest.approx(other.value)


def test_by_class_each_class_is_covered() -> None:
    rng = np.random.default_rng(4)
    labels = (rng.random(4000) < 0.1).astype(int)
    positive = np.where(labels == 1, rng.beta(2, 5, 4000), rng.beta(1, 9, 4000))
    made = scored(np.stack((1 - positive, positive), axis=1), labels, halves(4000))
    rare = {"score": "lac", "class": "class1"}
    pooled, own = (run(made, scores=("lac",), by_class=by_class) for by_class in (False, True))
    assert (one(pooled, "coverage", **rare).value or 1) < 0.6
    assert "class class1" in pooled.summary
    assert (one(own, "coverage", **rare).value or 0) > 0.83
    assert "class class1" not in own.summary
    assert any("Nothing promises" in caveat for caveat in pooled.caveats)
    assert not any("Nothing promises" in caveat for caveat in own.caveats)


def test_images_of_one_patient_are_not_counted_as_cases() -> None:
    probabilities, labels = calibrated(400)
    patients = np.arange(400) // 4
    result = run(scored(probabilities, labels, halves(400), patients=patients), scores=("lac",))
    assert one(result, "coverage", score="lac").n == 50
    assert one(result, "coverage_by_chance", score="lac").n == 50
    assert any("calibration cases are of 50 patients" in caveat for caveat in result.caveats)


def test_few_patients_with_many_images_make_the_range_by_chance_wide() -> None:
    probabilities, labels = calibrated(400)
    patients = np.where(halves(400) == "test", 1000 + np.arange(400), np.arange(400) // 40)
    labels = np.where((halves(400) == "test") & (np.arange(400) % 8 == 0), 1 - labels, labels)
    result = run(scored(probabilities, labels, halves(400), patients=patients), scores=("lac",))
    chance = one(result, "coverage_by_chance", score="lac")
    assert chance.n == 5
    assert 0.85 < (chance.value or 0.0) < 0.95
    assert (chance.low or 1.0) < 0.7
    assert one(result, "coverage", score="lac").value != 1.0
    assert "nowhere is coverage below the promise" in result.summary


def test_too_few_calibration_cases_are_said_to_promise_nothing() -> None:
    probabilities, labels = calibrated(10)
    result = run(scored(probabilities, labels, halves(10)), scores=("lac",))
    assert one(result, "coverage", score="lac").value == 1.0
    assert one(result, "set_size", score="lac").value == 2.0
    assert any(
        "Too few calibration cases for alpha 0.1: every class is in every set" in each for each in result.caveats
    )


def test_one_class_in_the_tuning_split_is_said() -> None:
    probabilities, labels = calibrated(200)
    labels[:100] = 0
    result = run(scored(probabilities, labels, halves(200)), scores=("lac",), by_class=True)
    assert any("No calibration case is of class class1" in caveat for caveat in result.caveats)
    assert any("class1 is in every set" in caveat for caveat in result.caveats)
    labels[:] = 0
    result = run(scored(probabilities, labels, halves(200)), scores=("lac",))
    assert one(result, "coverage", score="lac", **{"class": "class1"}).reason == "no such case is audited"
    assert one(result, "set_size", score="lac", **{"class": "class1"}).value is None


def test_without_cases_to_fit_on_the_reason_says_what_to_add() -> None:
    probabilities, labels = calibrated(40)
    with pytest.raises(NotApplicable, match='split "validation"'):
        run(scored(probabilities, labels, np.full(40, "all")))
    with pytest.raises(NotApplicable, match=r"to the predictions \(scores.csv has no prediction for 'case-00000'"):
        run(scored(probabilities, labels, halves(40), predicted=halves(40) == "test"))
    with pytest.raises(NotApplicable, match="among the audited images"):
        run(scored(probabilities, labels, np.where(np.arange(40) % 2, "train", "validation")))


def test_options_that_make_no_sense_are_refused() -> None:
    probabilities, labels = calibrated(40)
    made = scored(probabilities, labels, halves(40))
    with pytest.raises(ConfigError, match="alpha is 1"):
        run(made, alpha=1.0)
    with pytest.raises(ConfigError, match=r"unknown score 'lak'. Did you mean 'lac'"):
        run(made, scores=("lak",))
    with pytest.raises(ConfigError, match="one or more"):
        run(made, scores=())
