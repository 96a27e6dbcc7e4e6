"""Net benefit of planted models: what is said of every group, and what is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, softmax

from tests.analyses.reading import found
from tests.analyses.scored import scored
from xvision.analyses.net_benefit import net_benefit
from xvision.audit import Audit
from xvision.charts import Lines, Table
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.methods.groups.net_benefit import net_benefit as counted
from xvision.methods.operating_point import OperatingPoint, Rule
from xvision.result import Result


def planted(cases: int = 3000, *, threshold: float = 0.2, seed: int = 0, columns: bool = True) -> Audit:
    """Prevalence about 0.2, calibrated; in group "B" the score is random, "few" has 8 images, some groups are missing."""
    rng = np.random.default_rng(seed)
    odds = 1.8 * rng.normal(size=cases) - 2
    labels = (rng.random(cases) < expit(odds)).astype(int)
    group = rng.choice(["A", "B", "unknown"], cases, p=[0.55, 0.4, 0.05])
    group[:8] = "few"
    said = np.where(group == "B", rng.permutation(odds), odds)
    return scored(expit(said), labels, columns={"sex": group} if columns else None, threshold=threshold)


@pytest.fixture(scope="module")
def result() -> Result:
    return net_benefit(planted(), resamples=200)


def test_the_group_in_which_the_model_is_a_coin_is_told_apart(result: Result) -> None:
    table = next(chart for chart in result.charts if isinstance(chart, Table))
    words = {row[1]: str(row[-1]) for row in table.rows}
    assert words["A"] == "better than both from 0.1 to 0.5; not decided elsewhere"
    assert words["B"].startswith(
        "worse than treating everybody from 0.05 to 0.15; worse than treating nobody from 0.3 to 0.5"
    )
    assert words["few"] == "not enough data: fewer than 10 positive patients"
    assert found(result, "thresholds_better_than_both", sex="A").value == 9
    assert found(result, "thresholds_better_than_both", sex="B").value == 0
    assert found(result, "net_benefit_advantage", sex="B", decision="deployed").low is not None
    assert "worse than an alternative somewhere in 1 (Sex B)" in result.summary
    assert "not enough is known in 1." in result.summary


def test_the_range_and_the_weight_of_a_false_alarm_stand_on_the_page(result: Result) -> None:
    first, _, deployed = result.charts[:3]
    assert isinstance(first, Table)
    assert first.title.endswith("10 thresholds from 0.05 to 0.5")
    assert "Over 10 thresholds from 0.05 to 0.5" in result.summary
    assert deployed.title.endswith("one found case is weighed like 4 false alarms (t = 0.2)")
    assert sum(int(row[2] or 0) for row in first.rows[1:]) == first.rows[0][2] == 3000


def test_figures_are_those_of_the_counts(result: Result) -> None:
    audit = planted()
    for group in ("A", "B", "unknown"):
        inside = audit.column("sex") == group
        model, everybody, _ = counted(audit.scores[inside], audit.labels[inside], [0.2])
        assert found(result, "net_benefit", sex=group, decision="deployed").value == pytest.approx(model[0])
        assert found(result, "net_benefit_of_everybody", sex=group, decision="deployed").value == pytest.approx(
            everybody[0]
        )
        gain = model[0] - max(everybody[0], 0.0)
        for where in ({"decision": "deployed"}, {"threshold": 0.2}):
            assert found(result, "net_benefit_advantage", sex=group, **where).value == pytest.approx(gain)
    banded = found(result, "net_benefit_advantage", sex="A", threshold=0.2)
    single = found(result, "net_benefit_advantage", sex="A", decision="deployed")
    assert (banded.low or 0.0) < (single.low or 0.0) < (single.high or 0.0) < (banded.high or 0.0)
    assert "10 thresholds hold together" in banded.interval


def test_curves_are_of_the_groups_with_enough_data(result: Result) -> None:
    lines = [chart for chart in result.charts if isinstance(chart, Lines)]
    assert [chart.title.split(":")[0] for chart in lines] == [
        "Decision curve of all images",
        "Net benefit beyond the better of everybody and nobody",
    ]
    assert [series.name.split(" ")[0] for series in lines[1].series] == ["A", "B", "unknown"]
    assert "(3 of 4 groups)" in lines[1].title


def test_without_columns_it_speaks_of_all_images() -> None:
    alone = net_benefit(planted(columns=False), resamples=50)
    assert len(alone.charts) == 3
    assert "groups" not in alone.summary


def test_a_model_that_looks_for_the_healthy_is_acted_upon_where_it_does_not_find_them() -> None:
    audit = planted(800, threshold=0.3)
    turned = scored(1 - audit.scores, 1 - audit.labels, columns={"sex": audit.column("sex")}, names=("ill", "healthy"))
    turned.decision = Decision(1, 0.7, True, no_disease=1)
    one, other = (net_benefit(each, resamples=50) for each in (audit, turned))
    assert [item.value for item in other.metrics] == pytest.approx([item.value for item in one.metrics])
    assert "probability of ill" in other.summary


def test_a_threshold_chosen_for_net_benefit_keeps_the_weight_that_was_agreed() -> None:
    audit = replace(planted(800), operating=OperatingPoint("chosen", Rule("net benefit", 0.1)))
    chosen = net_benefit(audit, resamples=50)
    treated = audit.scores >= 0.2
    expected = (treated & (audit.labels == 1)).mean() - (treated & (audit.labels == 0)).mean() / 9
    assert found(chosen, "net_benefit", decision="deployed").value == pytest.approx(expected)
    assert "weighed like 9 false alarms" in chosen.summary


def test_of_several_classes_one_acts_on_disease_or_on_each() -> None:
    rng = np.random.default_rng(1)
    odds, labels = rng.normal(size=(450, 3)), rng.integers(0, 3, 450)
    odds[np.arange(450), labels] += 2
    audit = scored(softmax(odds, axis=1), labels, columns={"class": rng.choice(["x", "y"], 450)})
    each = net_benefit(audit, resamples=20)
    assert {item.where["class"] for item in each.metrics} == {"class0", "class1", "class2"}
    assert any("decision.no_disease" in caveat for caveat in each.caveats)
    assert not any("decision" in item.where for item in each.metrics)
    audit.decision = Decision(no_disease=0)
    joined = net_benefit(audit, resamples=20)
    model, everybody, _ = counted(1 - audit.predictions.probabilities[:, 0], labels != 0, [0.5])
    gain = found(joined, "net_benefit_advantage", threshold=0.5).value
    assert gain == pytest.approx(model[0] - max(everybody[0], 0))
    assert "any class but class0" in joined.summary
    assert {key for item in joined.metrics for key in item.where} == {"threshold", "group class"}


def test_bad_ranges_and_one_class_are_named() -> None:
    for wrong in ({"low": 0.6}, {"low": 0.0}, {"high": 1.0}, {"steps": 1}, {"steps": 1000}):
        with pytest.raises(ConfigError, match="the lower first"):
            net_benefit(planted(100), **wrong)
    one = net_benefit(scored(np.linspace(0.1, 0.9, 30), np.zeros(30, int), columns={"sex": np.array(["A", "B"] * 15)}))
    assert {item.reason for item in one.metrics} == {"no positive cases"}
    assert "not enough data: no positive cases" in one.summary


def test_a_thousand_levels_are_counted_and_not_judged() -> None:
    rng = np.random.default_rng(0)
    audit = scored(rng.random(1000), rng.integers(0, 2, 1000), columns={"sex": np.arange(1000).astype(str)})
    many = net_benefit(audit, resamples=20, steps=2)
    tables = [chart for chart in many.charts if isinstance(chart, Table)]
    assert all(len(chart.rows) == 20 for chart in tables)
    assert "Of 1 000 groups, not enough is known in 1 000." in many.summary
    assert any("19 largest of 1000 groups" in caveat for caveat in many.caveats)
