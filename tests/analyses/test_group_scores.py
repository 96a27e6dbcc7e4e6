"""Scores of groups: planted shifts and sharpened probabilities are found, and groups alike are left in peace."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax

from tests.analyses.reading import found
from tests.analyses.scored import scored
from xvision.analyses.group_scores import group_scores
from xvision.audit import Audit
from xvision.charts import Forest, Lines, Table
from xvision.config import FairnessPlan
from xvision.methods.scores import auroc
from xvision.result import NotApplicable, Result


def planted(cases: int = 2400, *, shift: float = 0.0, factor: float = 1.0, seed: int = 0) -> Audit:
    """Calibrated; log-odds of "F" are shifted, those of site "B" multiplied; "few" has 9 images, some sexes are missing."""
    rng = np.random.default_rng(seed)
    odds = 1.5 * rng.normal(size=cases)
    labels = (rng.random(cases) < expit(odds)).astype(int)
    sex, site = rng.choice(["F", "M", "unknown"], cases, p=[0.4, 0.5, 0.1]), rng.choice(["A", "B"], cases).astype("U3")
    site[:9] = "few"
    said = (odds + shift * (sex == "F")) * np.where(site == "B", factor, 1.0)
    return scored(expit(said), labels, columns={"sex": sex, "site": site})


def table(result: Result, title: str) -> dict[str, tuple[str | int | float | None, ...]]:
    chart = next(chart for chart in result.charts if isinstance(chart, Table) and chart.title.startswith(title))
    return {f"{row[0]} {row[1]}" if title == "Who" else str(row[0]): row for row in chart.rows}


@pytest.fixture(scope="module")
def shifted() -> Result:
    return group_scores(planted(shift=1.0, factor=2.5), resamples=50, draws=200)


def test_a_shift_leaves_the_aurocs_equal_and_is_found_across_the_groups(shifted: Result) -> None:
    difference = found(shifted, "auroc_difference", sex="F", against="M")
    assert (difference.low or 0.0) <= 0 <= (difference.high or 0.0)
    crossed = found(shifted, "cross_auroc_difference", sex="F", against="M")
    assert (crossed.low or 0.0) > 0.1
    parts = [found(shifted, f"cross_auroc_{name}", sex="F", against="M").value for name in ("positives", "negatives")]
    assert crossed.value == pytest.approx((parts[0] or 0) - (parts[1] or 0))
    assert "F is scored higher than M at the same label" in shifted.summary
    large = found(shifted, "calibration_in_the_large_difference", sex="F", against="M")
    assert (large.high or 0.0) < 0
    assert table(shifted, "Differences")["Sex F and M"][2::2] == ("not enough data", "gap shown")


def test_a_sharpened_group_is_found_and_others_are_not(shifted: Result) -> None:
    verdicts = {name: row[-1] for name, row in table(shifted, "Calibration").items()}
    assert verdicts["Site B"] == verdicts["Sex F"] == "miscalibrated"
    assert verdicts["Site few"] == "not enough data"
    assert verdicts["Sex unknown"] == "not judged"
    slope = found(shifted, "calibration_slope", site="B")
    assert (slope.high or 1.0) < 0.7


def test_groups_alike_are_left_in_peace() -> None:
    result = group_scores(planted(1200, seed=3), resamples=50, draws=200)
    assert result.summary.startswith("No group is shown to be ranked, scored or calibrated differently")
    assert {row[-1] for row in table(result, "Calibration").values()} <= {"not shown", "not judged", "not enough data"}


def test_sizes_come_first_and_nobody_is_lost(shifted: Result) -> None:
    assert shifted.charts[0].title == "Who is in the data"
    rows = table(shifted, "Who")
    assert sum(int(row[2] or 0) for row in rows.values() if row[0] == "Sex") == 2400
    assert rows["Site few"][2:4] == (9, 9)
    assert str(rows["Site few"][6]).startswith("not enough data: fewer than 10")
    assert any("Sex is unknown for 9 %" in caveat for caveat in shifted.caveats)


def test_a_small_group_has_reasons_for_all_that_is_not_said(shifted: Result) -> None:
    small = [item for item in shifted.metrics if item.where.get("site") == "few"]
    given = {item.name for item in small if item.value is not None}
    assert given == {"auroc", "prevalence"}
    assert all((item.reason or "").startswith("fewer than 10") for item in small if item.value is None)


def test_figures_are_those_of_the_group_alone(shifted: Result) -> None:
    audit = planted(shift=1.0, factor=2.5)
    inside = audit.column("sex") == "F"
    scores, labels = audit.scores[inside], audit.labels[inside]
    alone = auroc(scores, labels, audit.patients[inside])
    metric = found(shifted, "auroc", sex="F")
    assert (metric.value, metric.low, metric.high) == alone[:3]
    assert found(shifted, "prevalence", sex="F").value == pytest.approx(labels.mean())
    assert found(shifted, "brier", sex="F").value == pytest.approx(((scores - labels) ** 2).mean())
    large = found(shifted, "calibration_in_the_large", sex="F").value
    assert large == pytest.approx(labels.mean() - scores.mean())
    raw = [found(shifted, "ece_p", sex=name).value or 0.0 for name in "FM"]
    adjusted = found(shifted, "ece_adjusted_p", sex="F").value
    holm = min(1.0, 2 * raw[0] if raw[0] <= raw[1] else max(2 * raw[1], raw[0]))
    assert adjusted == pytest.approx(min(1.0, holm * len((*audit.groups, *audit.acquisition))))


def test_curves_are_thin_and_of_groups_that_can_be_judged(shifted: Result) -> None:
    lines = [chart for chart in shifted.charts if isinstance(chart, Lines)]
    assert [chart.title for chart in lines] == [
        "ROC curves: Sex", "Calibration curves: Sex",
        "ROC curves: Site (2 largest of 3 groups)", "Calibration curves: Site (2 largest of 3 groups)",
    ]  # fmt: skip
    for series in lines[0].series:
        assert len(series.x) <= 60
        assert (series.x[0], series.y[0], series.x[-1], series.y[-1]) == (0, 0, 1, 1)
    assert {len(series.x) for series in lines[1].series} == {10}
    forests = [chart for chart in shifted.charts if isinstance(chart, Forest)]
    assert len(forests) == 3
    assert [mark.part for mark in forests[0].marks] == ["sex"] * 3 + ["site"] * 3


def test_a_margin_that_was_agreed_makes_equal_aurocs_equivalent() -> None:
    audit = planted(1500)
    audit.fairness = FairnessPlan(margin=0.15)
    result = group_scores(audit, resamples=20, draws=50)
    assert table(result, "Differences")["Sex F and M"][2] == "equivalent"


def test_each_of_several_classes_is_taken_against_the_rest() -> None:
    rng = np.random.default_rng(1)
    odds, labels = rng.normal(size=(450, 3)), rng.integers(0, 3, 450)
    odds[np.arange(450), labels] += 1.5
    # A column that is called like another condition is told apart from it.
    result = group_scores(
        scored(softmax(odds, axis=1), labels, columns={"class": rng.choice(["x", "y"], 450)}), resamples=20, draws=50
    )
    inside = next(item for item in result.metrics if item.where.get("group class") == "x")
    assert set(inside.where) == {"class", "group class"}
    assert len({item.where["class"] for item in result.metrics}) == 3
    keys = [(item.name, tuple(sorted(item.where.items()))) for item in result.metrics]
    assert len(keys) == len(set(keys))


def test_bad_columns_are_named_or_shown() -> None:
    with pytest.raises(NotApplicable, match="name them in the plan or with --groups"):
        group_scores(scored(np.linspace(0.1, 0.9, 30), np.arange(30) % 2))
    alone = group_scores(scored(np.linspace(0.1, 0.9, 60), np.arange(60) % 2, columns={"sex": np.full(60, "F")}))
    assert not [item for item in alone.metrics if "against" in item.where]
    one = group_scores(scored(np.linspace(0.1, 0.9, 30), np.zeros(30, int), columns={"sex": np.array(["A", "B"] * 15)}))
    assert {item.name for item in one.metrics if item.value is not None} == {"prevalence"}
    rng = np.random.default_rng(0)
    levels = {"sex": np.arange(1000).astype(str)}
    many = group_scores(scored(rng.random(1000), rng.integers(0, 2, 1000), columns=levels))
    assert len(table(many, "Who")) == 20
    assert "20 largest of 1000 groups" in many.caveats[-1]
