"""Stored pictures on a page. None that shows a map of a method comes without whether that method may be relied on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import streamlit as st

from dashboards import inert, markup
from dashboards.markup import Html
from xvision import images
from xvision.errors import RunError
from xvision.images import MAP_LOOKS
from xvision.result import MapVerdict, StoredCase
from xvision.store import Run

_PICTURE_WIDTH = 208
_LARGEST_SIDE = 4096


def pictures(run: Run, shown: Sequence[tuple[StoredCase, str, str]]) -> None:
    """Pictures side by side, each under its name and, where one is given, under where it comes from; maps under a verdict."""
    level = Html("&nbsp;") if any(name in case.mapped for case, name, _ in shown) else ""
    with st.container(horizontal=True, gap="medium"):
        for case, name, source in shown:
            with st.container(width=_PICTURE_WIDTH, gap="xsmall"):
                word = map_badge(run.map_verdict(name)) if name in case.mapped else level
                markup.show(
                    markup.element("div", name, "xv-name"), markup.muted(source) if source else "",
                    markup.element("div", word) if word else "",
                )  # fmt: skip
                picture(run, case, name)


def picture(run: Run, case: StoredCase, name: str) -> None:
    """One stored picture, stamped where it must not be relied on, or one sentence when its file is missing or no picture."""
    try:
        content = run.picture(case, name)
    except RunError as problem:
        markup.show(markup.alert(problem))
        return
    said = f"{name} of case {case.id}"
    if name in case.mapped:
        verdict = run.map_verdict(name)
        said = f"{said}; {spoken(verdict)}"
        content = _stamped(content, verdict.stamp)
    if max(images.png_size(content) or (_LARGEST_SIDE + 1,)) > _LARGEST_SIDE:
        markup.show(markup.alert(f"{case.pictures[name]} is not a PNG picture: the file was changed or is damaged."))
        return
    st.image(content, width="stretch", output_format="PNG", alt=inert.plain(said))


def _stamped(content: bytes, stamp: str) -> bytes:
    """The picture with the stamp drawn into it; nothing where it cannot be drawn, because unstamped it is not shown."""
    if not stamp:
        return content
    try:
        return images.png(images.stamped(images.read_png(content, _LARGEST_SIDE), stamp))
    except ValueError:
        return b""


def spoken(verdict: MapVerdict) -> str:
    """A verdict where there is no room for its sentence: ``fails randomisation: do not rely on this map``."""
    return f"{verdict.said}: {verdict.stamp}" if verdict.stamp else verdict.said


def map_badge(verdict: MapVerdict) -> Html:
    """The verdict on a method's maps as colour, symbol and word; its sentence shows under the pointer."""
    return markup.hint(markup.badge(MAP_LOOKS[verdict.said], verdict.said), verdict.sentence)


def map_table(verdicts: Mapping[str, MapVerdict]) -> Html:
    """Methods with their verdicts and the sentence behind each."""
    rows = [[name, map_badge(verdict), _reason(verdict)] for name, verdict in verdicts.items()]
    return markup.table(["Method", "Its maps", "Why"], rows)


def map_legend(run: Run, names: Iterable[str]) -> Html:
    """The verdicts on the methods of the pictures above it."""
    found = {name: run.map_verdict(name) for name in dict.fromkeys(names)}
    return map_table(found) if found else Html("")


def _reason(verdict: MapVerdict) -> str:
    return f"{verdict.sentence} {verdict.stamp.capitalize()}." if verdict.stamp else verdict.sentence
