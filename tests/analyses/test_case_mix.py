"""Gaps at the same case mix on stored scores: what is evened out, what is asked, and what is never done silently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from tests.analyses.reading import found as one
from tests.analyses.scored import scored
from xvision import codec
from xvision.audit import Audit
from xvision.charts import Forest, Table
from xvision.config import FairnessPlan
from xvision.errors import ConfigError
from xvision.registry import analyses
from xvision.result import NotApplicable, Result

SIDE = {"sex": "F", "against": "M"}


def run(audit: Audit, answers: Mapping[str, Literal["confounder", "mediator"]] | None = None, **options: Any) -> Result:
    audit = replace(audit, task="case_mix", fairness=FairnessPlan(margin=0.05, case_mix=answers or {}))
    found = analyses()["case_mix"]
    return found(audit, found.bind({"resamples": 100, "permutations": 19, **options}))


def tables(result: Result) -> dict[str, Table]:
    return {chart.title: chart for chart in result.charts if isinstance(chart, Table)}


def forests(result: Result) -> dict[str, Forest]:
    return {chart.title: chart for chart in result.charts if isinstance(chart, Forest)}


def world(**extra: np.ndarray) -> Audit:
    """200 men and 200 women: sensitivity 0.6 at site A and 0.9 at B, where 80 % of women and 20 % of men go to A."""
    sex = np.repeat(["F", "M"], 200)
    site = np.concatenate([np.repeat(["A", "B"], (160, 40)), np.repeat(["A", "B"], (40, 160))])
    labels = np.tile([0, 1], 200)
    decided = np.zeros(400, bool)
    for place in ("A", "B"):
        for name in ("F", "M"):
            ill = np.flatnonzero((site == place) & (sex == name) & (labels == 1))
            decided[ill[: round(len(ill) * (0.6 if place == "A" else 0.9))]] = True
    return scored(np.where(decided, 0.9, 0.1), labels, columns={"sex": sex, "site": site, **extra})


def test_a_gap_that_is_all_site_is_gone_at_the_same_site() -> None:
    result = run(world(), {"site": "confounder"})
    assert one(result, "sensitivity_difference", **SIDE, adjusted="none").value == pytest.approx(-0.18)
    same = one(result, "sensitivity_difference", **SIDE, adjusted="site")
    assert same.value == pytest.approx(0.0, abs=1e-12)
    change = one(result, "gap_change", **SIDE, adjusted="site", figure="sensitivity")
    assert change.value == pytest.approx(0.18)
    assert change.low is not None
    assert change.low > 0.05
    assert one(result, "mix_covered", **SIDE, adjusted="site", among="positive cases").value == 1.0
    worth = one(result, "effective_patients", **SIDE, adjusted="site", figure="sensitivity", side="group")
    assert worth.value == 64
    assert one(result, "odds_ratio", **SIDE, adjusted="site", figure="sensitivity").value == pytest.approx(1.0)
    assert one(result, "npv_difference", **SIDE, adjusted="site").value == pytest.approx(0.0, abs=1e-12)
    assert "F against M −0.180" in result.summary
    assert ", 0.000 (−0." in result.summary
    forest = forests(result)["Sex: gap in sensitivity, as found and at the same case mix"]
    assert [mark.label for mark in forest.marks] == ["F − M: as found", "F − M: same site"]
    assert forest.marks[1].note == "100 % of the mix, worth 64 and 64"
    assert [reference.value for reference in forest.references] == [0.0, -0.05, 0.05]


def test_nothing_undeclared_is_evened_out_and_the_question_is_asked() -> None:
    result = run(world())
    main = {item.where["adjusted"] for item in result.metrics if "adjusted" in item.where and "as" not in item.where}
    assert main == {"none", "prevalence"}
    assert forests(result) == {}
    assert result.summary.startswith("No column is declared as a confounder")
    assert "1 question about why groups differ in mix is open." in result.summary
    asked = tables(result)["Why do the groups differ in mix? What was answered and what is open"]
    assert asked.rows[0][3:] == (
        "none",
        "Do groups of sex differ in site for a reason apart from sex (confounder) or because of it (mediator)?"
        " Answer in [fairness.case_mix].",
    )
    assert one(result, "mix_difference", column="site", group="sex").value == pytest.approx(0.6, abs=0.01)
    assert (one(result, "mix_difference_p", column="site", group="sex").value or 0.0) < 0.001
    exploratory = tables(result)["Exploratory: if an unanswered column were a confounder"]
    assert [row[:2] for row in exploratory.rows] == [("sex F − M", "site")]
    assert one(result, "sensitivity_difference", **SIDE, adjusted="site", **{"as": "what if"}).value == pytest.approx(
        0, abs=1e-9
    )


def test_a_mediator_moves_no_main_figure_and_its_row_says_what_it_would_hide() -> None:
    age = np.where(np.random.default_rng(0).random(400) < np.repeat([0.3, 0.7], 200), "old", "young")
    plain, with_mediator = (run(world(age=age), {"age": "confounder", **more}) for more in ({}, {"site": "mediator"}))
    main = [
        [item for item in result.metrics if "adjusted" in item.where and "as" not in item.where]
        for result in (plain, with_mediator)
    ]
    assert main[0] == main[1]
    forest = forests(with_mediator)["Sex: gap in sensitivity, as found and at the same case mix"]
    assert forest.marks[-1].label == "F − M: also same site (mediator)"
    assert forest.marks[-1].note == "would hide harm that comes about through it"
    assert forest.marks[-1].value == pytest.approx(0.0, abs=0.05)
    assert (forest.marks[-2].value or 0.0) < -0.1
    assert any("evening out a mediator would hide harm" in caveat for caveat in with_mediator.caveats)
    beside = one(with_mediator, "sensitivity_difference", **SIDE, adjusted="age + site", **{"as": "mediator"})
    assert beside.value == forest.marks[-1].value
    change = one(with_mediator, "gap_change", **SIDE, adjusted="age + site", **{"as": "mediator"}, figure="sensitivity")
    assert change.value == pytest.approx((beside.value or 0.0) - (forest.marks[-2].value or 0.0))


def test_confounders_are_evened_out_in_the_order_of_the_plan_and_never_by_themselves() -> None:
    age = np.where(np.random.default_rng(0).random(400) < 0.5, "old", "young")
    one_way, other_way = (
        run(world(age=age), dict.fromkeys(order, "confounder")) for order in (("age", "site"), ("site", "age"))
    )
    steps = [item.where["adjusted"] for item in one_way.metrics if item.name == "sensitivity_difference"]
    assert list(dict.fromkeys(steps)) == ["none", "age", "age + site", "site", "site + sex"]
    last = one(one_way, "sensitivity_difference", **SIDE, adjusted="age + site")
    assert last.value == pytest.approx(one(other_way, "sensitivity_difference", **SIDE, adjusted="site + age").value)
    changes = [
        one(one_way, "gap_change", **SIDE, adjusted=step, figure="sensitivity").value or 0.0
        for step in ("age", "age + site")
    ]
    assert sum(changes) == pytest.approx((last.value or 0.0) + 0.18)
    of_age = [item.where for item in one_way.metrics if "age" in item.where and "as" not in item.where]
    assert {where["adjusted"] for where in of_age} == {"none", "prevalence", "site"}


def test_an_answer_about_an_unknown_column_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"fairness.case_mix: the data have no column 'sit'. Did you mean 'site'\?"):
        run(world(), {"sit": "confounder"})
    with pytest.raises(ConfigError, match=r"case_mix.covered is 0.0"):
        run(world(), covered=0.0)


def test_without_groups_to_compare_it_says_so() -> None:
    audit = world()
    with pytest.raises(NotApplicable, match="no columns that say who the patients are were declared"):
        run(replace(audit, groups=()))
    single = scored(np.tile([0.2, 0.8], 50), np.tile([0, 1], 50), columns={"sex": np.repeat(["F", "unknown"], 50)})
    with pytest.raises(NotApplicable, match="no column has two known groups"):
        run(single)


def test_missing_groups_stand_apart_and_a_group_without_positives_has_a_reason() -> None:
    audit = world()
    table = audit.everything.table.copy()
    table.loc[table.index[:30], "sex"] = "unknown"
    table.loc[table.index[30:60], "sex"] = "X"
    table.loc[table["sex"] == "X", "label"] = "class0"
    result = run(replace(audit, everything=replace(audit.everything, table=table)), {"site": "confounder"})
    unknown = one(result, "sensitivity_difference", sex="unknown", against="known", adjusted="none")
    assert unknown.value is not None
    assert "unknown" not in result.summary
    assert any("unknown for 8 % of the images" in caveat for caveat in result.caveats)
    refused = one(result, "sensitivity_difference", sex="X", against="rest", adjusted="site")
    assert refused.reason == "fewer than 10 positive patients"
    assert one(result, "specificity_difference", sex="X", against="rest", adjusted="site").value is not None
    sizes = next(table for title, table in tables(result).items() if title.startswith("Sex: who"))
    assert sizes.columns == ("", "F", "M", "X", "unknown")
    assert sizes.rows[1] == ("patients", "140", "200", "30", "30")
    assert one(result, "mix_difference", column="site", group="sex").n == 370


def test_the_largest_gap_of_the_summary_is_one_between_known_groups() -> None:
    audit = world()
    table = audit.everything.table.copy()
    table.loc[table.index[:30], "sex"] = "unknown"
    result = run(replace(audit, everything=replace(audit.everything, table=table)))
    gaps = [
        abs(one(result, "sensitivity_difference", sex=group, against=other, adjusted="none").value or 0.0)
        for group, other in (("unknown", "known"), ("F", "M"))
    ]
    assert gaps[0] > gaps[1] > 0.2
    assert "sex F against M" in result.summary


def test_a_thousand_levels_give_a_page_of_bounded_length() -> None:
    rng = np.random.default_rng(1)
    clinic = rng.integers(0, 1000, 400).astype(str)
    clinic[:50] = "big"
    result = run(world(clinic=clinic), {"clinic": "confounder", "site": "confounder"})
    assert all(len(table.rows) <= 20 for table in tables(result).values())
    assert all(len(forest.marks) <= 20 for forest in forests(result).values())
    refused = one(result, "sensitivity_difference", **SIDE, adjusted="clinic")
    assert refused.value is None
    assert "both sides have only" in (refused.reason or "")
    assert any(caveat.startswith("Clinic has ") and "12 largest" in caveat for caveat in result.caveats)
    assert any(
        caveat.startswith("1 comparison could not be made") or "comparisons could not" in caveat
        for caveat in result.caveats
    )


def test_each_class_is_taken_against_the_rest_and_few_are_drawn() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 5, 400)
    scores = rng.dirichlet(np.ones(5), 400) + 0.4 * np.eye(5)[labels]
    audit = scored(scores / scores.sum(axis=1, keepdims=True), labels, columns={"against": rng.choice(["p", "q"], 400)})
    site = rng.choice(["A", "B"], 400)
    audit = replace(
        audit,
        everything=replace(
            audit.everything, table=audit.everything.table.assign(site=site), groups=("against", "site")
        ),
        acquisition=("site",),
    )
    result = run(audit, {"site": "confounder"})
    keys = [(item.name, tuple(sorted(item.where.items()))) for item in result.metrics]
    assert len(set(keys)) == len(keys)
    assert {item.where["class"] for item in result.metrics if "class" in item.where} == set(audit.classes)
    assert any("group against" in item.where for item in result.metrics)
    assert len(forests(result)) == 6
    assert any("3 classes" in caveat for caveat in result.caveats)


def test_order_of_rows_changes_nothing() -> None:
    audit = world()
    order = np.random.default_rng(3).permutation(400)
    table = audit.everything.table.iloc[order]
    shuffled = replace(audit, everything=replace(audit.everything, table=table))
    for item, again in zip(*(run(each, {"site": "confounder"}).metrics for each in (audit, shuffled)), strict=True):
        assert (item.name, item.where, item.n, item.reason) == (again.name, again.where, again.n, again.reason)
        if item.value is not None:
            was, now = ((each.value, each.low, each.high) for each in (item, again))
            assert [part for part in now if part is not None] == pytest.approx(
                [part for part in was if part is not None], abs=1e-9
            )


def test_the_page_is_stored_as_plain_data() -> None:
    result = run(world(), {"site": "confounder"})
    assert all(codec.plain(chart) for chart in result.charts)
    assert all(chart.alt for chart in result.charts)
