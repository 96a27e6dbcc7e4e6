from __future__ import annotations

import html
import io
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboards import inert
from tests.factories import HOSTILE


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_nothing_stays_hidden() -> None:
    assert inert.plain("a\u202eb\x00\u200b\ufeff") == "a[U+202E]b[U+0000][U+200B][U+FEFF]"
    assert inert.plain("a\u00a0b\tc\nd") == "a b c\nd"
    assert inert.plain("\ud800") == "[U+D800]"
    assert inert.plain("Größe ≥ 3 µm 肺炎") == "Größe ≥ 3 µm 肺炎"


@settings(deadline=None, max_examples=100)
@given(st.text())
def test_html_shows_exactly_the_plain_text_and_no_element(words: str) -> None:
    reader = _Reader()
    reader.feed(f"<p>{inert.markup_text(words)}</p>")
    reader.close()
    assert reader.tags == ["p"]
    assert reader.text == inert.plain(words)


def test_plotly_text_has_no_tag_and_no_entity_plotly_would_print() -> None:
    words = inert.figure_text("<a href='http://evil.example'>\"x\" & y</a>\nz")
    assert words == "&lt;a href='http://evil.example'&gt;\"x\" &amp; y&lt;/a&gt; z"


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_markdown_escapes_every_punctuation_mark(words: str) -> None:
    escaped = inert.markdown(words)
    assert escaped.replace("\\\\", "\0").replace("\\", "").replace("\0", "\\") == words
    rest = escaped.replace("\\\\", "")
    assert all(rest[place - 1] == "\\" for place, mark in enumerate(rest) if mark in "![]()<>*_`$:#|~{}&")


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_csv_text_cannot_become_a_formula_but_numbers_stay_numbers(cell: str) -> None:
    rows = inert.csv(pd.DataFrame({"=name": [cell], "number": [-1.5]})).decode()
    back = pd.read_csv(io.StringIO(rows))
    assert list(back.columns) == ["'=name", "number"]
    assert back.loc[0, "'=name"].startswith("'")
    assert back.loc[0, "number"] == -1.5


def test_hostile_label_survives_a_round_trip_through_html() -> None:
    assert html.unescape(inert.markup_text(HOSTILE)) == inert.plain(HOSTILE)
    assert "<script" not in inert.markup_text(HOSTILE)
