from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dashboards
from dashboards import markup
from dashboards.theme import STREAMLIT_THEME, tint
from tests.factories import HOSTILE
from xvision.images import VERDICT_SYMBOLS
from xvision.result import Metric

SOURCES = sorted(Path(dashboards.__file__).parent.rglob("*.py"))
# Streamlit commands whose first argument is rendered as Markdown.
MARKDOWN = {
    "badge", "button", "caption", "download_button", "error", "expander", "header", "info", "markdown", "metric", "pills", "popover",
    "radio", "segmented_control", "selectbox", "subheader", "success", "table", "tabs", "text_input", "title", "toggle", "warning", "write",
}  # fmt: skip


def test_text_is_escaped_and_html_is_not_escaped_twice() -> None:
    assert markup.safe("<b>") == "&lt;b&gt;"
    assert markup.safe(markup.safe("<b>")) == "&lt;b&gt;"
    pieces = [
        markup.title(HOSTILE, eyebrow=HOSTILE, lead=HOSTILE), markup.alert(HOSTILE), markup.facts([(HOSTILE, HOSTILE)]),
        markup.table([HOSTILE], [[HOSTILE]]), markup.notes("n", [HOSTILE]), markup.prose(HOSTILE), markup.tiles([(HOSTILE, HOSTILE)]),
        markup.figures([(HOSTILE, Metric(HOSTILE, 0.5, 0.4, 0.6, n=3))]), markup.banner("fail", HOSTILE, HOSTILE),
    ]  # fmt: skip
    for piece in pieces:
        assert "<script" not in piece
        assert "&lt;script&gt;" in piece


@pytest.mark.parametrize("verdict", sorted(VERDICT_SYMBOLS))
def test_a_verdict_is_a_colour_a_word_and_a_symbol(verdict: str) -> None:
    badge = markup.badge(verdict)
    assert f"xv-is-{verdict.replace(' ', '-')}" in badge
    assert verdict.capitalize() in badge
    assert VERDICT_SYMBOLS[verdict] in badge


def test_the_interval_bar_lies_where_the_numbers_are() -> None:
    bar = markup.interval(Metric("auroc", 0.91, 0.86, 0.95, n=60), "pass", (0.85,))
    assert 'style="left:86.00%;width:9.00%"' in bar
    assert 'xv-point" style="left:91.00%"' in bar
    assert 'xv-limit" style="left:85.00%"' in bar


def test_a_difference_is_drawn_from_minus_one_to_one() -> None:
    bar = markup.interval(Metric("difference", -0.4, -0.5, -0.3, n=60), "fail", (0.1, -0.1))
    assert 'data-low="−1"' in bar
    assert 'style="left:25.00%;width:10.00%"' in bar
    assert 'xv-point" style="left:30.00%"' in bar
    assert [part[:6] for part in bar.split('xv-limit" style="left:')[1:]] == ["55.00%", "45.00%"]


@pytest.mark.parametrize(
    "metric",
    [
        Metric("psnr", 31.0, 30.0, 32.0, n=5, unit="dB"),
        Metric("cases", 1, n=1, unit="count"),
        Metric("ppv", None, reason="none"),
    ],
)
def test_numbers_that_are_no_proportion_have_no_bar(metric: Metric) -> None:
    assert markup.interval(metric, "pass", ()) == ""


def test_a_missing_number_is_said_in_words() -> None:
    tile = markup.figures([("Performance", Metric("ppv", None, reason="nothing called positive"))])
    assert "not estimable" in tile
    assert "nothing called positive" in tile


def test_docstrings_become_paragraphs() -> None:
    assert markup.prose("One\n    line.\n\nTwo ``x``.") == '<div class="xv-prose"><p>One line.</p><p>Two x.</p></div>'


def test_tints_run_from_white_to_the_colour() -> None:
    assert (tint("#0072B2", 0.0), tint("#0072B2", 1.0)) == ("#FFFFFF", "#0072B2")
    assert STREAMLIT_THEME["theme.base"] == "light"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_untrusted_text_reaches_markdown(source: Path) -> None:
    """Commands that render Markdown get words of ours, or text escaped for Markdown."""
    for call in (node for node in ast.walk(ast.parse(source.read_text("utf-8"))) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        assert not {word.arg for word in call.keywords} & {"unsafe_allow_html", "unsafe_allow_javascript", "caption"}
        if name in MARKDOWN and call.args and _of_streamlit(call):
            assert _is_ours(call.args[0]), f"{source.name}:{call.lineno}"
        for word in call.keywords:
            if word.arg in {"help", "placeholder"} or (word.arg == "label" and name == "page_link"):
                assert _is_ours(word.value), f"{source.name}:{call.lineno}"


def _of_streamlit(call: ast.Call) -> bool:
    """``st.button`` and ``column.button``, but not our own ``markup.title`` or a dictionary's ``get``."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return not (isinstance(owner, ast.Name) and owner.id in {"markup", "text", "inert"})


def _is_ours(value: ast.expr) -> bool:
    if isinstance(value, ast.Constant):
        return True
    if isinstance(value, ast.Name) and value.id == "label":
        return True  # assigned from inert.markdown, checked below
    return isinstance(value, ast.Call) and ast.unparse(value.func) == "inert.markdown"


def test_page_titles_and_filter_names_are_escaped_for_markdown() -> None:
    folder = Path(dashboards.__file__).parent
    assert "inert.markdown(entry.title)" in (folder / "navigation.py").read_text("utf-8")
    assert "label = inert.markdown(" in (folder / "app_pages" / "cases.py").read_text("utf-8")
