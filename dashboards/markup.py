"""Small pieces of HTML. Whatever is not ``Html`` already is escaped, so no caller can forget to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import streamlit as st

from dashboards import inert
from dashboards.theme import slug
from xvision import text
from xvision.images import VERDICT_SYMBOLS
from xvision.result import Metric, named

Limits = tuple[float, ...]


class Html(str):
    """Text that is HTML already."""


def show(*pieces: str) -> None:
    """Puts the pieces on the page as one block."""
    st.html(f'<div class="xv">{"".join(safe(piece) for piece in pieces)}</div>')


def safe(value: object) -> Html:
    """``value`` as HTML that shows it literally; HTML stays as it is."""
    return value if isinstance(value, Html) else Html(inert.markup_text(value))


def element(tag: str, content: object, style: str = "") -> Html:
    """One element with a class; the tag and the class are ours, the content may be anything."""
    attribute = f' class="{style}"' if style else ""
    return Html(f"<{tag}{attribute}>{safe(content)}</{tag}>")


def join(pieces: Iterable[object]) -> Html:
    return Html("".join(safe(piece) for piece in pieces))


def title(name: object, *, eyebrow: object = "", lead: object = "") -> Html:
    return join(
        [
            element("div", eyebrow, "xv-eyebrow") if eyebrow else "",
            element("h1", name, "xv-title"),
            element("p", lead, "xv-lead") if lead else "",
        ]
    )


def heading(name: object) -> Html:
    return element("h2", name, "xv-heading")


def subheading(name: object) -> Html:
    return element("h3", name, "xv-subheading")


def muted(sentence: object) -> Html:
    return element("div", sentence, "xv-muted")


def chip(words: object) -> Html:
    return element("span", words, "xv-chip")


def gap() -> Html:
    """A little air between two pieces."""
    return Html('<div class="xv-gap"></div>')


def split(left: object, right: object) -> Html:
    """Two columns, one below the other on a narrow screen."""
    return element("div", join([element("div", left), element("div", right)]), "xv-split")


def row(pieces: Iterable[object]) -> Html:
    return element("div", join(pieces), "xv-row")


def badge(verdict: str, word: str = "") -> Html:
    """Colour, word and symbol, so that no reader depends on one of them."""
    symbol = element("span", VERDICT_SYMBOLS[verdict], "xv-symbol")
    return element("span", join([symbol, word or verdict.capitalize()]), f"xv-badge xv-is-{slug(verdict)}")


def hint(content: object, sentence: object) -> Html:
    """Something with a sentence that shows under the pointer and is read out with it."""
    words = inert.markup_text(sentence)
    return Html(f'<span title="{words}" aria-description="{words}">{safe(content)}</span>')


def banner(verdict: str, sentence: object, remark: object = "") -> Html:
    words = join(
        [
            element("div", verdict.capitalize(), "xv-word"),
            element("div", sentence),
            muted(remark) if remark else "",
        ]
    )
    disc = element("div", VERDICT_SYMBOLS[verdict], "xv-disc")
    return element("div", join([disc, element("div", words)]), f"xv-banner xv-is-{slug(verdict)}")


def alert(sentence: object, verdict: str = "fail") -> Html:
    return element("div", sentence, f"xv-alert xv-is-{slug(verdict)}")


def notes(name: str, sentences: Sequence[object]) -> Html:
    items = join(element("li", sentence) for sentence in sentences)
    return element("div", join([element("strong", name), element("ul", items)]), "xv-note")


def prose(passage: str) -> Html:
    """Paragraphs of a docstring, its indentation and double back-ticks removed."""
    paragraphs = [re.sub(r"\s*\n\s*", " ", part).replace("``", "") for part in re.split(r"\n\s*\n", passage.strip())]
    return element("div", join(element("p", part) for part in paragraphs), "xv-prose")


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Names and values, one pair a line."""
    items = (join([element("dt", name), element("dd", value)]) for name, value in pairs)
    return element("dl", join(items), "xv-facts")


def tiles(pairs: Iterable[tuple[object, object]]) -> Html:
    """Names and values side by side, as many in a line as fit."""
    return element(
        "div", join(element("div", join([muted(name), element("div", value)])) for name, value in pairs), "xv-known"
    )


def mono(value: object) -> Html:
    """A hash or a command."""
    return element("span", value, "xv-hash")


def table(columns: Sequence[object], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> Html:
    """A small table; ``right`` lists the columns that hold numbers."""

    def cells(tag: str, values: Sequence[object]) -> Html:
        return join(element(tag, value, "xv-right" if place in right else "") for place, value in enumerate(values))

    head = element("thead", element("tr", cells("th", columns)))
    body = element("tbody", join(element("tr", cells("td", values)) for values in rows))
    return element("div", element("table", join([head, body]), "xv-table"), "xv-scroll")


def figures(metrics: Iterable[tuple[str, Metric]]) -> Html:
    """Tiles of a number with its interval; each comes with the name of what it belongs to."""
    return element("div", join(_figure(owner, metric) for owner, metric in metrics), "xv-figures")


def interval(metric: Metric, verdict: str, limits: Limits) -> Html:
    """The interval as a bar from 0 (or −1) to 1 with the agreed limits as upright strokes; nothing for other scales."""
    if metric.value is None or metric.unit == "count":
        return Html("")
    low = metric.value if metric.low is None else metric.low
    high = metric.value if metric.high is None else metric.high
    numbers = (low, metric.value, high, *limits)
    if not all(-1 <= number <= 1 for number in numbers):
        return Html("")
    bottom = -1 if any(number < 0 for number in numbers) else 0

    def place(number: float) -> str:
        return f"{(number - bottom) / (1 - bottom):.2%}"

    strokes = "".join(f'<span class="xv-limit" style="left:{place(limit)}"></span>' for limit in limits)
    return Html(
        f'<div class="xv-range xv-is-{slug(verdict)}" data-low="{"−1" if bottom else "0"}" aria-hidden="true">'
        f'<span class="xv-track"></span><span class="xv-span" style="left:{place(low)};width:{place(high - low + bottom)}"></span>'
        f'<span class="xv-point" style="left:{place(metric.value)}"></span>{strokes}</div>'
    )


def _figure(owner: str, metric: Metric) -> Html:
    number = text.number(metric.value, metric.unit) if metric.value is not None else "not estimable"
    spread = text.interval(metric.low, metric.high)
    below = metric.reason if metric.value is None else f"{spread or metric.interval}"
    size = f"n = {text.number(metric.n, 'count')}" if metric.n else ""
    return element(
        "div",
        join(
            [
                element("div", named(metric), "xv-label"),
                element("div", number, "xv-number" if metric.value is not None else "xv-number xv-none"),
                element("div", " · ".join(part for part in (below, size) if part), "xv-below"),
                element("div", owner, "xv-below"),
            ]
        ),
        "xv-figure",
    )
