"""Combinations of groups: a planted cell, empty and small cells, missing values, many levels, and nothing to combine."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from tests.analyses.reading import found, table
from tests.analyses.scored import scored
from xvision.analyses.intersections import intersections
from xvision.audit import Audit
from xvision.charts import HeatMap, Table
from xvision.config import FairnessPlan
from xvision.errors import ConfigError
from xvision.result import NotApplicable


def world(
    size: int = 1500, drop: float = 0.0, *, margin: float | None = None, ages: tuple[str, ...] = ("old", "young")
) -> Audit:
    """Sensitivity 0.85 and specificity 0.85, less ``drop`` for old women with disease; one in twelve has no age."""
    rng = np.random.default_rng(0)
    columns = {"sex": rng.choice(["F", "M"], size), "age": rng.choice(ages, size)}
    labels = rng.random(size) < 0.5
    hidden = (columns["sex"] == "F") & (columns["age"] == "old") & labels
    decided = rng.random(size) < np.where(labels, 0.85, 0.15) - drop * hidden
    columns["age"] = np.where(np.arange(size) % 12 == 0, "unknown", columns["age"])
    audit = scored(np.where(decided, 0.9, 0.1), labels.astype(int), columns=columns)
    return replace(audit, fairness=FairnessPlan(margin=margin))


def test_a_planted_cell_is_found_and_its_margins_are_not_blamed() -> None:
    result = intersections(world(drop=0.4), resamples=300)
    gap = found(result, "sensitivity_difference", sex="F", age="old", against="rest")
    assert gap.value == pytest.approx(-0.4, abs=0.1)
    assert (gap.high or 0) < 0
    assert "each so that 8 hold together" in gap.interval
    assert result.summary.startswith("Gap shown. Sensitivity is 0.")
    assert "lower for sex F, age old than for the rest." in result.summary
    rows = table(result, "What may be said").rows
    assert rows[0][:2] == ("sex F, age old", "Sensitivity")
    assert rows[0][4] == "gap shown"
    maps = [chart for chart in result.charts if isinstance(chart, HeatMap)]
    assert [chart.title for chart in maps] == ["Sensitivity by sex and age", "Specificity by sex and age"]
    assert (maps[0].rows, maps[0].columns) == (("F", "M"), ("old", "young"))
    assert maps[0].values[0][0] == pytest.approx(found(result, "sensitivity", sex="F", age="old").value)
    assert maps[0].alt.startswith("Lowest for sex F, age old: 0.")


def test_without_a_difference_none_is_shown_and_a_margin_decides_what_is_equivalent() -> None:
    result = intersections(world(), resamples=300)
    assert result.summary == (
        "No combination of groups is shown to do worse than the rest. Of 8 comparisons: 8 not enough data."
    )
    assert any("No margin was agreed" in caveat for caveat in result.caveats)
    agreed = intersections(world(12_000, margin=0.06), resamples=100)
    assert "Of 8 comparisons: 8 equivalent." in agreed.summary
    assert not any("No margin was agreed" in caveat for caveat in agreed.caveats)


def test_sizes_come_first_with_empty_and_unknown_cells() -> None:
    audit = world(600)
    data = audit.everything.table.copy()
    data.loc[(data["sex"] == "M") & (data["age"] == "old"), "age"] = "young"
    few = data.index[(data["sex"] == "F") & (data["age"] == "old")][6:]
    data.loc[few, "age"] = "young"
    result = intersections(replace(audit, everything=replace(audit.everything, table=data)), resamples=50)
    sizes = result.charts[0]
    assert isinstance(sizes, Table)
    rows = {row[1]: row[2:] for row in sizes.rows}
    assert rows["M × old"] == (0, 0, 0, 0)
    assert rows["F × old"][0] == 6
    assert {"F × unknown", "M × unknown"} < set(rows)
    assert sum(row[0] for row in rows.values()) == 600
    assert (found(result, "cells").value, found(result, "empty_cells").value) == (5, 1)
    assert any("Nobody is in 1 combination of levels that occur" in caveat for caveat in result.caveats)
    assert any("2 combinations with an unknown level are shown and not ranked" in caveat for caveat in result.caveats)
    assert any(caveat.startswith("2 comparisons had fewer than 10 patients") for caveat in result.caveats)
    small = found(result, "sensitivity_difference", sex="F", age="old", against="rest")
    assert small.reason == "fewer than 10 positive patients"
    assert (
        found(result, "sensitivity_difference", sex="F", age="unknown", against="rest").reason == "a level is unknown"
    )
    (first, *_) = [chart for chart in result.charts if isinstance(chart, HeatMap)]
    assert first.values[1][0] is None
    assert "M × old (0 positive)" in first.alt
    withheld = replace(
        audit, everything=replace(audit.everything, table=data), fairness=FairnessPlan(suppress_below=10)
    )
    (first, *_) = [chart for chart in intersections(withheld, resamples=50).charts if isinstance(chart, HeatMap)]
    assert "F × old (fewer than 10 positive)" in first.alt


def test_many_levels_give_short_tables_that_say_how_many_more() -> None:
    audit = world(6000, ages=tuple(f"{year}" for year in range(1000)))
    start = time.process_time()
    result = intersections(audit)
    assert time.process_time() - start < 4
    assert all(len(chart.rows) <= 20 for chart in result.charts if isinstance(chart, Table))
    assert any("smaller combinations beyond the largest 200 were not looked at" in caveat for caveat in result.caveats)
    assert "cells more are in the data or empty" in result.charts[0].alt
    assert result.summary.startswith("No combination of groups")


def test_several_classes_are_each_taken_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    columns = {"sex": rng.choice(["F", "M"], 400), "age": rng.choice(["old", "young"], 400)}
    audit = scored(rng.dirichlet(np.ones(3), 400), rng.integers(0, 3, 400), columns=columns)
    result = intersections(audit, resamples=50)
    names = {item.where.get("class") for item in result.metrics if item.name == "sensitivity"}
    assert names == {"class0", "class1", "class2"}
    assert sum(isinstance(chart, HeatMap) for chart in result.charts) <= 4
    assert str(table(result, "What may be said").rows[0][1]).endswith("against the rest")


def test_nothing_to_combine_is_said() -> None:
    audit = world(200)
    with pytest.raises(NotApplicable, match=r"combinations need two group columns .* and none of the declared ones"):
        intersections(replace(audit, groups=()))
    with pytest.raises(NotApplicable, match="and sex of the declared ones has them"):
        intersections(replace(audit, groups=("sex",)))
    with pytest.raises(ConfigError, match=r"analysis\.intersections\.depth is 3, with 2 group columns: give 2 to 2"):
        intersections(audit, depth=3)


def test_one_class_only_leaves_half_the_rates_without_an_estimate() -> None:
    audit = scored(
        np.tile([0.2, 0.8, 0.2], 100), np.zeros(300, int),
        columns={"sex": np.repeat(["F", "M"], 150), "age": np.tile(["old", "young"], 150)},
    )  # fmt: skip
    result = intersections(audit, resamples=50)
    assert found(result, "sensitivity", sex="F", age="old").reason == "no positive cases"
    assert found(result, "specificity", sex="F", age="old").value is not None
    assert all("Sensitivity" not in chart.title for chart in result.charts)
