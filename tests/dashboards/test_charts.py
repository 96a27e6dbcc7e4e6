"""The figure holds the numbers of the chart, and nothing that a label says can become part of the page."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dashboards.charts import Drawable, figure
from dashboards.parts import table_frame
from tests.factories import HOSTILE, explanation, fairness, performance
from xvision.charts import Axis, Bars, Forest, HeatMap, Lines, Mark, Reference, Series, Table


def drawn(chart: Drawable) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(figure(chart).to_json(engine="json"))
    return found


def trace(plot: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in plot["data"] if item.get("name") == name)


def test_lines_show_points_gaps_band_reference_and_identity() -> None:
    roc = performance("lesion").charts[0]
    assert isinstance(roc, Lines)
    plot = drawn(roc)
    line, gap, band = trace(plot, "lesion"), trace(plot, "gap"), trace(plot, "lesion interval")
    assert (line["x"], line["y"]) == ([0.0, 0.2, 1.0], [0.0, 0.9, 1.0])
    assert gap["y"] == [0.1, None, 0.9]
    assert gap["connectgaps"] is False
    assert band["x"] == [0.0, 0.2, 1.0, 1.0, 0.2, 0.0]
    assert band["y"] == [0.0, 0.95, 1.0, 1.0, 0.8, 0.0]
    assert (trace(plot, "chance")["x"], trace(plot, "chance")["y"]) == ([0, 1], [0, 1])
    assert plot["layout"]["shapes"][0]["y0"] == 0.8
    assert plot["layout"]["annotations"][0]["text"] == "agreed 0.800"
    assert plot["layout"]["xaxis"]["range"] == [0, 1]


def test_a_band_is_broken_where_the_interval_is_missing_and_a_lone_interval_has_whiskers() -> None:
    series = Series("s", (0.0, 1.0, 2.0, 3.0), (0.5, 0.5, 0.5, 0.5), (0.4, 0.4, None, 0.2), (0.6, 0.6, None, 0.9))
    plot = drawn(Lines("t", "a", Axis("x"), Axis("y"), (series,)))
    bands = [item for item in plot["data"] if item.get("name") == "s interval"]
    assert [band["x"] for band in bands] == [[0.0, 1.0, 1.0, 0.0]]
    whiskers = trace(plot, "s")["error_y"]
    assert whiskers["array"] == pytest.approx([0.0, 0.0, 0.0, 0.4])
    assert whiskers["arrayminus"] == pytest.approx([0.0, 0.0, 0.0, 0.3])


def test_ticks_are_the_words_of_the_chart() -> None:
    axis = Axis("Budget", ticks=((0.0, "0"), (4 / 255, "4/255")))
    plot = drawn(Lines("t", "a", axis, Axis("Share", unit="%"), (Series("s", (0.0, 4 / 255), (1.0, 0.5)),)))
    assert plot["layout"]["xaxis"]["tickvals"] == [0.0, 4 / 255]
    assert plot["layout"]["xaxis"]["ticktext"] == ["0", "4/255"]
    assert plot["layout"]["yaxis"]["title"]["text"] == "Share (%)"
    assert trace(plot, "s")["hovertext"][1] == "s<br>Budget 4/255: 0.500"


def test_bars_show_every_value_over_its_category() -> None:
    bars = performance("lesion").charts[2]
    assert isinstance(bars, Bars)
    plot = drawn(bars)
    assert {item["name"]: item["y"] for item in plot["data"]} == {"normal": [50.0, 10.0], "lesion": [5.0, 55.0]}
    assert plot["layout"]["xaxis"]["ticktext"] == ["0 to 0.5", "0.5 to 1"]
    assert trace(plot, "lesion")["text"] == ["5", "55"]


def test_a_histogram_names_every_other_bin_and_shows_them_all() -> None:
    names = tuple(f"{place / 20:.2f}" for place in range(20))
    plot = drawn(Bars("t", "a", names, Axis("Images"), {"s": tuple(map(float, range(20)))}))
    assert plot["data"][0]["y"] == list(map(float, range(20)))
    assert plot["layout"]["xaxis"]["ticktext"] == list(names[::2])
    assert plot["data"][0]["hovertext"][3] == "s, 0.15: 3"


def test_forest_shows_intervals_and_says_why_a_row_has_none() -> None:
    forest = fairness("M").charts[0]
    assert isinstance(forest, Forest)
    plot = drawn(forest)
    points = plot["data"][0]
    assert points["x"] == [0.8, None]
    assert points["y"] == [1, 0]
    assert points["error_x"]["array"] == pytest.approx([0.1, 0.0])
    assert points["error_x"]["arrayminus"] == pytest.approx([0.1, 0.0])
    assert plot["layout"]["yaxis"]["ticktext"] == ["F", "M"]
    assert plot["layout"]["yaxis2"]["ticktext"] == [
        "0.800 (0.700 to 0.900)<br>n = 30",
        "not estimable (no positive<br>cases)",
    ]
    assert points["hovertext"][0] == "F: 0.800 (0.700 to 0.900), n = 30"
    assert plot["layout"]["shapes"][0]["x0"] == 0.82


def test_a_forest_row_without_value_never_reads_like_a_number() -> None:
    plot = drawn(Forest("t", "a", Axis("x"), (Mark("F", None, note="3 patients"), Mark("M", None))))
    assert plot["layout"]["yaxis2"]["ticktext"] == ["not estimable (3 patients)", "not estimable"]


def test_heat_map_prints_its_numbers_and_a_dash_for_none() -> None:
    matrix = performance("lesion").charts[1]
    assert isinstance(matrix, HeatMap)
    plot = drawn(matrix)["data"][0]
    assert plot["z"] == [[50.0, 10.0], [5.0, None]]
    assert plot["text"] == [["50", "10"], ["5", "–"]]


def test_a_heat_map_of_proportions_keeps_three_decimals() -> None:
    heat = HeatMap("t", "a", ("1", "2"), ("blur",), ((1.0, 0.25),), "Severity", "Kind", low=0, high=1, better="lower")
    plot = drawn(heat)["data"][0]
    assert plot["text"] == [["1.000", "0.250"]]
    assert (plot["zmin"], plot["zmax"]) == (0, 1)


def test_whole_numbers_among_decimals_are_not_taken_for_counts() -> None:
    heat = HeatMap("t", "a", ("1", "2"), ("blur",), ((30.0, 31.25),), "Severity", "Kind", unit="dB")
    assert drawn(heat)["data"][0]["text"] == [["30.000", "31.250"]]


def test_hostile_labels_are_inert_in_every_kind() -> None:
    charts = [
        *(chart for chart in performance(HOSTILE).charts if isinstance(chart, Lines | Bars | Forest | HeatMap)),
        *(chart for chart in fairness(HOSTILE).charts if isinstance(chart, Forest)),
        Lines("t", "a", Axis(HOSTILE, HOSTILE), Axis("y"), (), (Reference(HOSTILE, 1.0),), HOSTILE),
    ]
    for chart in charts:
        sent = figure(chart).to_json(engine="json")
        assert "evil.example" in sent
        assert "<script" not in sent
        assert "\\u0000" not in sent
        assert "<a" not in sent


def test_pictures_and_tables_are_never_figures() -> None:
    kinds = {chart.kind for chart in explanation("lesion").charts}
    assert kinds == {"images", "table"}


def test_counts_beside_words_have_no_decimals() -> None:
    table = Table("t", "a", ("what", "value"), (("decided", 593), ("risk", 0.25), ("rule", "agreed"), ("left", None)))
    assert table_frame(table)["value"].tolist() == ["593", "0.250", "agreed", None]
