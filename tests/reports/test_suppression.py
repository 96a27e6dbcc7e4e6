"""Small cells: on a real run, no count from 1 to 4, no rate of so few, and nothing from which they follow, reaches the paper."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xvision
from reports.build import build_report, document
from reports.shelf import Shelf
from reports.suppression import Rule, metrics, rule_of, shown
from reports.suppression.charts import charts
from reports.suppression.rule import LEFT_OUT, completed
from tests.factories import run_info
from xvision.charts import Axis, Bars, Forest, HeatMap, Lines, Mark, Series, Table
from xvision.config import FairnessPlan
from xvision.errors import RunError
from xvision.result import Group, Metric, RunInfo
from xvision.store import Run
from xvision.text import number

RULE = Rule(5, ("sex", "age_band", "site"), frozenset({("sex", "X"), ("sex", "M")}))


def cases() -> pd.DataFrame:
    """60 patients of two images; one patient of sex X, two of site C, four of the lesion class at site B."""
    rng = np.random.default_rng(4)
    patient = np.repeat(np.arange(60), 2)
    site = np.where(patient < 2, "C", np.where(patient < 24, "B", "A"))
    sick = np.where(site == "B", patient % 12 == 3, patient % 3 == 0)
    odds = rng.normal(np.where(sick, 1.5, -1.5))
    return pd.DataFrame(
        {
            "id": [f"case {place}" for place in range(120)], "label": np.where(sick, "lesion", "normal"),
            "patient": [f"p{who}" for who in patient], "sex": np.where(patient == 7, "X", np.where(patient % 5 < 2, "F", "M")),
            "site": site, "prob:normal": 1 / (1 + np.exp(odds)), "prob:lesion": 1 / (1 + np.exp(-odds)),
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("few")
    table = cases()
    table.drop(columns=["prob:normal", "prob:lesion"]).to_csv(folder / "manifest.csv", index=False)
    table[["id", "prob:normal", "prob:lesion"]].to_csv(folder / "scores.csv", index=False)
    data = xvision.load_data(folder / "manifest.csv", groups=["sex", "site"], images_required=False)
    return xvision.run_audit(
        xvision.load_model(folder / "scores.csv"), data, out=folder / "run", acquisition=["site"], positive="lesion", threshold=0.5,
        only=["performance", "fairness"], fairness=FairnessPlan(suppress_below=5),
    )  # fmt: skip


def test_the_printed_report_holds_no_small_cell(run: Run) -> None:
    content = build_report(run)
    reader = pypdf.PdfReader(io.BytesIO(content))
    text = re.sub(r"\s+", " ", " ".join(page.extract_text() for page in reader.pages))
    assert "Groups of fewer than 5 people are withheld" in text
    assert not re.findall(r"\bn = [1-4]\b(?! \d)", text)
    assert not re.findall(r"(?<![\d.,] )(?<![\d.])\b[1-4] (?:patients?|images?|cases?|positives?|negatives?)\b", text)
    rates = ("sensitivity", "specificity", "accuracy", "selection_rate", "coverage", "selective_risk")
    small = [
        item for record in run.records for item in record.metrics
        if item.name in rates and item.value is not None and (item.n or 9) < 5
    ]  # fmt: skip
    assert {str(item.where.get("sex", item.where.get("site"))) for item in small} >= {"X", "C"}
    attached = json.loads(reader.attachments["metrics.json"][0])["metrics"]
    for item in attached:
        assert not (item["n"] and 0 < item["n"] < 5)
        if item["where"].get("sex") == "X" or item["where"].get("site") in ("C", "B"):
            assert item["value"] is None
    assert run.records == Run(run.path).records  # inside the house everything stays


def test_no_table_or_chart_of_the_report_shows_a_withheld_group(run: Run) -> None:
    rule = rule_of(run.info)
    assert rule.levels == {("sex", "X"), ("sex", "F"), ("site", "A"), ("site", "B"), ("site", "C")}
    for record in shown(run).records:
        for chart in record.charts:
            if isinstance(chart, Table):
                numbers = [row for row in chart.rows if any(rule.names(str(cell)) for cell in row)]
                assert not [cell for row in numbers for cell in row if isinstance(cell, int | float)], chart.title
            if isinstance(chart, Forest):
                assert all(mark.value is None for mark in chart.marks if rule.names(mark.label, mark.part))
    composed = [
        block for block in document(shown(run), Shelf()).blocks if getattr(block, "title", "").startswith("Compos")
    ]
    rows = {(row[0].split()[0], row[1]): row[2:] for row in composed[0].rows}
    assert {key for key, counts in rows.items() if set(counts) == {"withheld"}} == rule.levels


def test_without_the_plan_everything_is_shown(run: Run) -> None:
    free = replace(run.info, plan={**run.info.plan, "fairness": {"suppress_below": 0}})
    assert rule_of(free).levels == frozenset()
    assert rule_of(replace(run.info, plan={})).below == 0
    assert shown(run).records != run.records


def test_fewer_people_than_that_altogether_make_no_report(run: Run) -> None:
    few = Run(run.path)
    few.__dict__["info"] = replace(run.info, patients=3)
    with pytest.raises(RunError, match="fewer than 5 patients were audited"):
        shown(few)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=2, max_size=6))
def test_what_is_left_of_a_total_never_tells_a_small_cell(sizes: list[int]) -> None:
    small = [0 < size < 5 for size in sizes]
    hidden = completed(sizes, small, {place for place, few in enumerate(small) if few})
    if not any(small):
        assert hidden == set()
        return
    assert {place for place, few in enumerate(small) if few} <= hidden
    rest = sum(sizes[place] for place in hidden)
    others = [place for place, size in enumerate(sizes) if size and place not in hidden]
    assert not others or (len(hidden) > 1 and rest >= 5 + 1)
    larger = [sizes[place] for place in hidden if not small[place]]
    assert all(sizes[place] >= max(larger, default=0) for place in others)  # the smallest one that will do


def test_a_composition_with_a_small_class_withholds_the_level_and_the_next_smallest() -> None:
    def levels(*rows: tuple[str, int, int, int]) -> set[str]:
        groups = tuple(
            Group("sex", name, sick + well, people, {"sick": sick, "well": well}) for name, people, sick, well in rows
        )
        return {level for _, level in rule_of(_info(groups)).levels}

    assert levels(("F", 30, 12, 18), ("M", 40, 20, 20)) == set()
    assert levels(("F", 30, 3, 27), ("M", 40, 20, 20), ("X", 50, 20, 30)) == {"F", "M"}
    assert levels(("F", 30, 0, 30), ("M", 40, 20, 20)) == set()
    assert levels(("F", 2, 1, 1), ("M", 3, 2, 1), ("X", 50, 20, 30), ("Y", 90, 40, 50)) == {"F", "M", "X"}


def _info(groups: tuple[Group, ...]) -> RunInfo:
    return replace(
        run_info(), groups=("sex",), acquisition=(), composition=groups, plan={"fairness": {"suppress_below": 5}}
    )


def test_numbers_of_few_and_those_that_would_give_them_away() -> None:
    rule = Rule(5, ("sex", "age"), frozenset())
    found = (
        Metric("sensitivity", 0.8, 0.7, 0.9, n=100),
        *(
            Metric("sensitivity", 0.5, 0.1, 0.9, n=count, where={"sex": sex, "age": age})
            for (sex, age), count in {("F", "old"): 3, ("F", "young"): 30, ("M", "old"): 25, ("M", "young"): 42}.items()
        ),
        Metric("ppv", 0.5, 0.1, 0.9, n=30, where={"sex": "F"}),
    )
    kept = metrics(found, rule)
    assert [item.value for item in kept] == [0.8, None, None, None, None, 0.5]
    assert "withheld: fewer than 5 people" in (kept[1].reason or "")
    three = (
        *found[:1],
        *(replace(found[1], n=count, where={"sex": sex}) for sex, count in (("F", 3), ("M", 30), ("X", 67))),
    )
    assert [item.value is None for item in metrics(three, rule)] == [False, True, True, False]


def test_rows_of_tables() -> None:
    table = Table(
        "Who is in the data", "X has 2 patients. Rows are groups.", ("Column", "Level", "Patients", "Rate", "Verdict"),
        (
            ("Site", "A", 3, 0.5, "gap shown"), ("Site", "B", 40, 0.6, ""), ("Site", "C", 50, 0.7, ""),
            ("Sex", "X", 70, 0.1, "n"), ("Age band", "<40", 30, 0.2, "of 3 cases"),
        ),
        counts=("Patients",), part="Column",
    )  # fmt: skip
    (kept,), gone = charts((table,), RULE)
    assert isinstance(kept, Table)
    withheld = ("withheld",) * 3
    assert kept.rows == (
        ("Site", "A", *withheld), ("Site", "B", *withheld), ("Site", "C", 50, 0.7, ""),
        ("Sex", "X", *withheld), ("Age band", "<40", 30, 0.2, "of fewer than 5 cases"),
    )  # fmt: skip
    assert kept.alt.startswith("Rows are groups. Groups of fewer than 5 people are withheld")
    words = Table("Sex: differences", "", ("Group", "Against", "Gap"), (("F", "rest", "0.1"), ("X", "rest", "0.2")))
    (kept,), _ = charts((words,), RULE)
    assert kept == replace(
        words, rows=(("F", "rest", "0.1"), ("X", "rest", "withheld")),
        alt="Groups of fewer than 5 people are withheld, and others that would give them away.",
    )  # fmt: skip
    heads = Table("Sex: mix", "", ("", "F", "X"), (("old", "10 %", "20 %"), ("young", "90 %", "80 %")))
    (kept,), _ = charts((heads,), RULE)
    assert kept.rows == (("old", "10 %", "withheld"), ("young", "90 %", "withheld"))
    names = Table("Cells", "", ("Cell", "Rate"), (("X × 0-39", "0.1"), ("F × 0-39", "0.2")))
    (kept,), _ = charts((names,), RULE)
    assert kept.rows == (("X × 0-39", "withheld"), ("F × 0-39", "0.2"))
    pair = Table("Flips", "", ("Repeat", "Flipped"), (("noise", "2 of 40"), ("blur", "20 of 40")))
    (kept,), _ = charts((pair,), RULE)
    assert kept.rows[0] == ("noise", "withheld")
    assert gone == ()


def test_charts() -> None:
    forest = Forest(
        "Sensitivity", "Lowest: 0.5.", Axis("x"),
        (
            Mark("all", 0.8, 0.7, 0.9, "n = 200"), Mark("age band <40", 0.5, 0.1, 0.9, "n = 3"),
            Mark("age band 60+", 0.6, 0.5, 0.7, "n = 50"),
            Mark("age band 40-59", 0.6, 0.5, 0.7, "n = 90"), Mark("A", 0.6, 0.5, 0.7, "", n=2, part="site"),
            Mark("B", 0.6, 0.5, 0.7, "", n=60, part="site"), Mark("C", 0.6, 0.5, 0.7, "", n=70, part="site"),
        ),
    )  # fmt: skip
    curves = Lines(
        "ROC curves: sex", "", Axis("x"), Axis("y"),
        (Series("F (n = 90)", (0.0,), (1.0,), n=90), Series("X (n = 3)", (0.0,), (1.0,), n=3), Series("M (n = 80)", (0.0,), (1.0,), n=80)),
    )  # fmt: skip
    counts = HeatMap(
        "Confusion", "2 images", ("a", "b"), ("a", "b"), ((30.0, 2.0), (9.0, 50.0)), "x", "y", unit="count"
    )
    bars = Bars("Images per bin", "", ("0", "1"), Axis("Images"), {"images": (3.0, 40.0)})
    shares = Bars("Shares", "", ("sex F", "sex X"), Axis("Share"), {"share": (0.3, 0.4)})
    kept, gone = charts((forest, curves, counts, bars, shares), RULE)
    first, second, third, fourth = kept
    assert [mark.value for mark in first.marks] == [0.8, None, None, 0.6, None, None, 0.6]
    assert first.marks[1].note == "withheld"
    assert first.alt == "Groups of fewer than 5 people are withheld, and others that would give them away."
    assert [series.name for series in second.series] == ["F (n = 90)"]
    assert third.values == ((None, None), (9.0, 50.0))
    assert third.alt.startswith("Groups of fewer")
    assert fourth.categories == ("sex F",)
    assert gone == ("Images per bin",)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Missed: 3 patients, of 40 cases.", "Missed: fewer than 5 patients, of 40 cases."),
        ("It broke 3 of 40 right decisions.", "It broke fewer than 5 of 40 right decisions."),
        ("Found in 12 of 40 cases; n = 4.", "Found in 12 of 40 cases; n below 5."),
        (
            "Two of 5 methods, 3 seeds, 0.3 cases, 1 003 patients.",
            "Two of 5 methods, 3 seeds, 0.3 cases, 1 003 patients.",
        ),
        ("Worst for sex X: 0.41. Best for sex F: 0.9.", f"{LEFT_OUT} Best for sex F: 0.9."),
        ("sex X: 0.41. sex X: 0.9. M has 7.", LEFT_OUT),
        ("0 of 2 groups have 20 positive patients.", "0 of 2 groups have 20 positive patients."),
        ("Sensitivity of M is 0.4 lower. M is the rest.", f"{LEFT_OUT} M is the rest."),
    ],
)
def test_sentences(said: str, kept: str) -> None:
    assert RULE.words(said) == kept
    assert Rule(0, (), frozenset()).words(said) == said
    assert number(1003, "count") == "1 003"


@pytest.mark.parametrize("level", ["Rome, Italy", "St. Mary and St. John", "Clinic (old)", "A × B", "C: ward"])
def test_levels_that_look_like_several_are_withheld(level: str) -> None:
    rule = Rule(5, ("site",), frozenset({("site", level)}))
    for label in (
        level,
        f"{level} − rest: as found",
        f"{level}, against rest",
        f"F × {level}",
        f"Site {level} and the rest",
    ):
        assert rule.names(label), label
    assert not rule.names(f"{level}x")
    table = Table("Sizes", "", ("Column", "Group", "Rate"), (("Site", level, 0.1), ("Site", "Bern, Italy", 0.2)))
    (kept,), _ = charts((table,), rule)
    assert isinstance(kept, Table)
    assert kept.rows == (("Site", level, "withheld"), ("Site", "Bern, Italy", 0.2))
    assert rule.words(f"Lowest at {level}: 0.41. All is said.") == f"{LEFT_OUT} All is said."


def test_a_number_whose_interval_names_a_withheld_group_is_withheld() -> None:
    worst = Metric(
        "worst_cell_accuracy",
        0.8,
        0.6,
        0.9,
        n=40,
        where={"column": "sex"},
        interval="Wilson, lowest of 4 cells (ill, sex X)",
    )
    other = replace(worst, interval="Wilson, lowest of 4 cells (ill, sex F)")
    assert [item.value for item in metrics([worst, other], RULE)] == [None, 0.8]
