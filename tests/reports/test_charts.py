import re

import numpy as np
import pytest
from matplotlib.collections import PolyCollection, QuadMesh

from reports.charts import figures, svg
from reports.paper import wrapped
from tests.factories import HOSTILE, fairness, performance
from xvision.charts import Axis, Bars, Forest, HeatMap, Lines, Mark, Reference, Series

CURVES = Lines(
    "t",
    "a",
    Axis("Budget", "pixel", 0, 0.05, ((0.0, "0"), (0.0157, "4/255"))),
    Axis("Accuracy", low=0, high=1),
    (
        Series("one", (0.0, 0.02, 0.04), (0.9, None, 0.5), (0.8, None, 0.4), (0.95, None, 0.6)),
        Series("_two", (0.0, 0.04), (0.7, 0.3)),
    ),
    (Reference("chance", 0.25), Reference("agreed", 0.03, "x")),
    diagonal="ideal",
)


def words(figure):
    legends = [entry.get_text() for legend in figure.legends for entry in legend.get_texts()]
    axes = figure.axes[0]
    ticks = [entry.get_text() for entry in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    return [*legends, *ticks, axes.get_xlabel(), axes.get_ylabel(), *(entry.get_text() for entry in axes.texts)]


def test_curves_carry_the_numbers_with_gaps_bands_and_references():
    (figure,) = figures(CURVES)
    axes = figure.axes[0]
    one, two, chance, agreed = axes.lines[:4]
    np.testing.assert_array_equal(one.get_ydata(), [0.9, np.nan, 0.5])
    np.testing.assert_array_equal(two.get_xydata(), [(0.0, 0.7), (0.04, 0.3)])
    assert set(chance.get_ydata()) == {0.25}
    assert set(agreed.get_xdata()) == {0.03}
    whiskers = {tuple(map(tuple, line)) for part in axes.collections[1:] for line in part.get_segments()}
    assert whiskers == {((0.0, 0.8), (0.0, 0.95)), ((0.04, 0.4), (0.04, 0.6))}
    assert {"one", "_two", "chance", "agreed", "ideal", "4/255", "Budget (pixel)", "Accuracy"} <= set(words(figure))


def test_a_band_spans_low_to_high():
    series = Series("s", (0.0, 1.0), (0.5, 0.6), (0.4, 0.45), (0.7, 0.8))
    (figure,) = figures(Lines("t", "a", Axis("x"), Axis("y"), (series,)))
    (band,) = [item for item in figure.axes[0].collections if isinstance(item, PolyCollection)]
    corners = {tuple(point) for path in band.get_paths() for point in path.vertices}
    assert {(0.0, 0.4), (0.0, 0.7), (1.0, 0.45), (1.0, 0.8)} <= corners


def test_bars_have_the_heights_of_the_chart_in_its_order():
    chart = Bars("t", "a", ("low", "high"), Axis("Images"), {"b": (3.0, 4.0), "a": (1.0, 2.0)}, Axis("Score"))
    (figure,) = figures(chart)
    patches = figure.axes[0].patches
    assert [patch.get_height() for patch in patches] == [3.0, 4.0, 1.0, 2.0]
    assert patches[0].get_x() < patches[2].get_x() < patches[1].get_x()
    assert {"a", "b", "low", "high", "Images", "Score"} <= set(words(figure))


def test_a_forest_shows_each_interval_in_ink_and_in_numbers_and_says_why_there_is_none():
    marks = (Mark("F", 0.8, 0.7, 0.85, "n = 30"), Mark("M", None, note="no positive cases"))
    (figure,) = figures(Forest("t", "a", Axis("Sensitivity"), marks, (Reference("all", 0.75, "x"),)))
    axes = figure.axes[0]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "s"] == [0.8]
    (segment,) = axes.collections[0].get_segments()
    np.testing.assert_allclose(segment, [(0.7, 0.0), (0.85, 0.0)])
    assert {"F", "M", "0.800 (0.700 to 0.850)", "n = 30", "no positive cases", "all"} <= set(words(figure))


def test_a_long_forest_continues_with_the_same_axis_and_loses_no_row():
    marks = tuple(Mark(f"site {place}", place / 100, place / 100, place / 100) for place in range(90))
    parts = figures(Forest("t", "a", Axis("Value"), marks))
    shown = [entry.get_text() for part in parts for entry in part.axes[0].texts if entry.get_text().startswith("site")]
    assert shown == [mark.label for mark in marks]
    assert len(parts) == 3
    assert len({part.axes[0].get_xlim() for part in parts}) == 1
    assert all(part.get_size_inches()[1] * 25.4 < 230 for part in parts)


def test_a_heat_map_prints_its_numbers_and_a_dash_for_none():
    chart = HeatMap("t", "a", ("x", "y"), ("p", "q"), ((0.25, None), (-0.5, 1.0)), "Across", "Down")
    (figure,) = figures(chart)
    axes = figure.axes[0]
    (mesh,) = [item for item in axes.collections if isinstance(item, QuadMesh)]
    np.testing.assert_array_equal(mesh.get_array().filled(-9), [[0.25, -9], [-0.5, 1.0]])
    assert [entry.get_text() for entry in axes.texts] == ["0.250", "–", "−0.500", "1.000"]
    assert axes.get_ylim() == (2.0, 0.0), "first row on top"
    assert {"Across", "Down", "x", "y", "p", "q"} <= set(words(figure))


def test_parts_of_a_long_heat_map_share_their_colours():
    values = tuple((float(row),) for row in range(90))
    parts = figures(HeatMap("t", "a", ("x",), tuple(map(str, range(90))), values, "X", "Y"))
    limits = {mesh.get_clim() for part in parts for mesh in part.axes[0].collections if isinstance(mesh, QuadMesh)}
    assert len(parts) == 3
    assert limits == {(0.0, 89.0)}
    assert len(figures(HeatMap("t", "a", ("x",), tuple(map(str, range(31))), values[:31], "X", "Y"))) == 1


def test_series_differ_without_colour():
    series = tuple(Series(str(place), (0.0, 1.0), (0.0, 1.0)) for place in range(12))
    (figure,) = figures(Lines("t", "a", Axis("x"), Axis("y"), series))
    keys = figure.legends[0].legend_handles
    assert len({(str(key._unscaled_dash_pattern), key.get_marker()) for key in keys}) == 12
    (figure,) = figures(Bars("t", "a", ("c",), Axis("y"), {str(place): (1.0,) for place in range(6)}))
    assert len({patch.get_hatch() for patch in figure.axes[0].patches}) == 6


@pytest.mark.parametrize(
    "chart", [*performance("a $x$ & <b>").charts, *fairness(HOSTILE).charts], ids=lambda chart: chart.title[:12]
)
def test_svg_is_the_same_twice_has_no_date_and_keeps_text_as_text(chart):
    first, second = svg(chart), svg(chart)
    assert first == second
    content = first[0].decode()
    assert "<text" in content
    assert not re.search(r"dc:date|dc:creator|STIXGeneral", content)


def test_a_label_is_never_read_as_mathematics():
    series = (Series("$x_1$ & <b>", (0.0, 1.0), (0.0, 1.0)), Series("b", (0.0, 1.0), (0.0, 1.0)))
    (content,) = svg(Lines("t", "a", Axis("$y$"), Axis("v"), series))
    assert b">$x_1$ &amp; &lt;b&gt;</text>" in content
    assert b">$y$</text>" in content


def test_letters_that_typst_may_not_find_are_drawn_as_outlines():
    series = (Series("\u2d37\u1f04", (0.0, 1.0), (0.0, 1.0)), Series("b", (0.0, 1.0), (0.0, 1.0)))
    (content,) = svg(Lines("t", "a", Axis("x"), Axis("v"), series))
    assert b"<text" not in content
    (content,) = svg(Lines("t", "a", Axis("ε"), Axis("é ≥ L∞"), series[1:]))
    assert b"<text" in content


@pytest.mark.parametrize(("last", "turned"), [(1.0, 0.0), (20.0, 90.0)])
def test_words_of_ticks_that_would_touch_stand_upright(last, turned):
    axis = Axis("Budget", ticks=((0.0, "0/255"), (0.5, "0.5/255"), (last, "last")))
    (figure,) = figures(Lines("t", "a", axis, Axis("y"), (Series("s", (0.0, last), (0.0, 1.0)),)))
    assert {entry.get_rotation() for entry in figure.axes[0].get_xticklabels()} == {turned}


def test_wrapping_keeps_lines_and_letters_and_marks_what_is_left_out():
    assert wrapped("one two three", 7, 2) == "one two\nthree"
    assert wrapped("abcdefghij", 4, 2) == "abcd\nefg…"


@pytest.mark.parametrize(
    "chart",
    [
        Lines("t", "a", Axis("x"), Axis("y"), ()),
        Lines("t", "a", Axis("x"), Axis("y"), (Series("s", (0.0,), (None,), (None,), (None,)),)),
        Bars("t", "a", (), Axis("y"), {}),
        Forest("t", "a", Axis("v"), ()),
        Forest("t", "a", Axis("v"), (Mark("m", 0.0, 0.0, 0.0),)),
        HeatMap("t", "a", ("x",), ("y",), ((None,),), "X", "Y"),
        HeatMap("t", "a", ("x",), ("y",), ((0.0,),), "X", "Y"),
    ],
)
def test_empty_and_constant_charts_draw(chart):
    assert svg(chart)
