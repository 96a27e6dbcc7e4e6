"""The figure of the viewer: every picture under one zoom, stamps that stay, names that are only letters."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from dashboards.inert import plain
from dashboards.viewer import FOR, MASK, TOOLS, Outline, Panel, figure
from dashboards.zoom import View, checked
from tests.factories import HOSTILE

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def panels(count: int, **changes: object) -> list[Panel]:
    return [Panel(f"map {place}", PICTURE, **changes) for place in range(count)]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (5, 3), (8, 4), (9, 4)])
def test_every_axis_follows_the_first(count: int, columns: int) -> None:
    drawn = figure(panels(count))
    places = range(2, count + 1)
    assert all(drawn.layout[f"xaxis{place}"].matches == "x" for place in places)
    assert all(drawn.layout[f"yaxis{place}"].matches == "y" for place in places)
    assert all(drawn.layout[f"yaxis{place}"].scaleanchor == "x" for place in places)
    assert drawn.layout.yaxis.scaleanchor == "x"
    assert drawn.layout.yaxis.range == (5.5, -0.5), "rows count downwards"
    assert len({drawn.layout[f"xaxis{place or ''}"].domain for place in ("", *places)}) == columns


def test_the_zoom_it_is_given_is_where_it_begins() -> None:
    drawn = figure(panels(2), View(1.0, 4.0, 5.0, 2.0))
    assert drawn.layout.xaxis.range == drawn.layout.xaxis2.range == (1.0, 4.0)
    assert drawn.layout.yaxis2.range == (5.0, 2.0)
    assert TOOLS["scrollZoom"]


def test_pictures_are_exact_and_not_smoothed() -> None:
    (trace,) = figure(panels(1)).data
    assert trace.zsmooth is False
    content = base64.b64decode(trace.source.removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), PICTURE)


def test_a_stamp_stays_in_the_middle_of_its_panel_wherever_that_is_zoomed_to() -> None:
    drawn = figure([Panel("a", PICTURE), Panel("b", PICTURE, "✗ fails randomisation", "do not rely on this map")])
    (stamp,) = [note for note in drawn.layout.annotations if "rely" in note.text]
    assert (stamp.xref, stamp.yref, stamp.x, stamp.y) == ("x2 domain", "y2 domain", 0.5, 0.5)


def test_outlines_are_told_apart_by_dash_and_mark() -> None:
    pixels = np.zeros((6, 9), dtype=bool)
    pixels[3:5, 2:4] = True
    edge = np.zeros((6, 9), dtype=bool)
    edge[0, 0] = True
    drawn = figure(
        [Panel("a", PICTURE, outlines=(Outline(pixels, MASK), Outline(pixels, FOR, "+1"), Outline(edge, FOR, "+2")))]
    )
    lines = [trace for trace in drawn.data if trace.type == "scatter"]
    assert [line.line.dash for line in lines] == [None, "dot", None, "solid", None, "solid"]
    marks = {note.text: note for note in drawn.layout.annotations if "+" in note.text}
    assert (marks["<b>+1</b>"].x, marks["<b>+1</b>"].y, marks["<b>+1</b>"].yanchor) == (1.5, 2.5, "bottom")
    assert marks["<b>+2</b>"].yanchor == "top", "there is no room above the picture"


def test_a_hostile_name_is_only_letters() -> None:
    drawn = figure([Panel(HOSTILE, PICTURE, HOSTILE, HOSTILE)])
    words = " ".join(note.text for note in drawn.layout.annotations)
    assert "<script" not in words
    assert "&lt;script&gt;" in words
    assert "\x00" not in drawn.to_json()
    assert plain("\x00") in words


@pytest.mark.parametrize(
    "told",
    [
        None, "abcd", [1, 2, 3], [1, 2, 3, 4, 5], [2, 1, 5, 2], [1, 2, 2, 5], [1, 2, float("nan"), 0], [1, 2, float("inf"), 0],
        [0, 1e9, 5, 2], [1, "2", 5, 2], {"left": 1}, [[1], 2, 5, 2],
    ],
)  # fmt: skip
def test_a_browser_that_says_no_view_is_not_believed(told: object) -> None:
    assert checked(told) is None


def test_a_view_is_taken_as_it_was_told() -> None:
    assert checked([1, 4.5, 5, -0.5]) == View(1.0, 4.5, 5.0, -0.5)
