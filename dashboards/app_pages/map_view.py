"""The maps of one case under the reader's hands: which, how opaque, in which window, and what speaks against the decision."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import streamlit as st

from dashboards import inert, markup, viewer, zoom
from dashboards.gallery import map_badge, spoken
from dashboards.patches import Patch, strongest_patches
from dashboards.stack import Map, Stack, stacked
from dashboards.viewer import Outline, Panel, outlined
from xvision import images
from xvision.errors import RunError
from xvision.result import StoredCase
from xvision.store import Run


class Look(NamedTuple):
    """How the reader wants it drawn."""

    opacity: float
    share: float
    level: float
    width: float
    mask: bool
    evidence: bool


@st.fragment
def show(run: Run, stored: Mapping[str, StoredCase]) -> None:
    """The viewer of the first analysis's image with the maps of all; nothing for a case without maps."""
    try:
        stack = stacked(run, stored)
    except RunError as problem:
        markup.show(markup.alert(problem))
        return
    if stack is None:
        return
    case = hashlib.sha256(next(iter(stored.values())).id.encode()).hexdigest()[:12]
    with st.container(border=True, key="panel-viewer"):
        markup.show(markup.subheading("Maps under one zoom"), markup.muted(_HOW))
        chosen, look = _controls(stack, case)
        view = zoom.kept(case, "panel-viewer", (tuple(chosen), look))
        found = {name: _evidence(stack.maps[name]) for name in chosen} if look.evidence else {}
        panels = [_original(stack, look), *(_panel(stack, name, look, found.get(name, ())) for name in chosen)]
        st.plotly_chart(
            viewer.figure(panels, view), theme=None, config=viewer.TOOLS, key=f"viewer-{case}",
            alt=inert.plain(_alt(stack, chosen)),
        )  # fmt: skip
        _explained(stack, chosen, found)


_HOW = (
    "Drag to move, turn the wheel to zoom, double-click to see the whole image: all pictures follow. Pixels are not smoothed. "
    "Orange speaks for the explained class, blue against it; a map without signs runs from dark red to yellow. Outlined: the "
    "strongest evidence for (+, solid), against (−, dashed), and the reference mask (dotted green)."
)


def _controls(stack: Stack, case: str) -> tuple[list[str], Look]:
    names = list(stack.maps)
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    chosen = st.multiselect(
        "Maps", names, default=stack.best(), key=f"viewer-maps-{case}-{digest}",
        format_func=lambda name: inert.plain(f"{name} · {stack.maps[name].verdict.said}"),
    )  # fmt: skip
    left, middle, right, last = st.columns(4, gap="medium")
    opacity = left.slider("Opacity of the maps (%)", 0, 100, 75, 5, key="viewer-opacity")
    share = middle.slider("Show only the strongest … % of pixels", 1, 100, 100, key="viewer-share")
    level = right.slider("Level: grey value in the middle", 0.0, 1.0, 0.5, 0.01, key="viewer-level")
    width = last.slider("Window: range of grey values", 0.02, 1.0, 1.0, 0.01, key="viewer-window")
    with st.container(horizontal=True, gap="medium"):
        evidence = st.toggle("Outline the strongest evidence", value=True, key="viewer-evidence")
        mask = stack.mask is not None and st.toggle("Outline the reference mask", value=True, key="viewer-mask")
    return [name for name in names if name in chosen], Look(opacity / 100, share / 100, level, width, mask, evidence)


def _mask(stack: Stack, look: Look) -> tuple[Outline, ...]:
    return (Outline(stack.mask, viewer.MASK),) if look.mask and stack.mask is not None else ()


def _original(stack: Stack, look: Look) -> Panel:
    seen = images.windowed(stack.pixels, look.level, look.width)
    return Panel("image", images.photograph(seen), "as the model was given it", "", _mask(stack, look))


def _panel(stack: Stack, name: str, look: Look, evidence: Sequence[Sequence[Patch]]) -> Panel:
    """One map over the image; evidence: its patches for and against, none where they are not wanted."""
    found = stack.maps[name]
    seen = images.windowed(stack.pixels, look.level, look.width)
    picture = images.overlay(seen, found.values, signed=found.signed, opacity=look.opacity, share=look.share)
    symbol = images.VERDICT_SYMBOLS[images.MAP_LOOKS[found.verdict.said]]
    looks = zip(evidence, ((viewer.FOR, "+"), (viewer.AGAINST, "−")), strict=False)
    drawn = [outline for patches, (line, sign) in looks for outline in outlined(patches, line, sign)]
    said = f"{symbol} {found.verdict.said}"
    return Panel(name, picture, said, found.verdict.stamp, (*_mask(stack, look), *drawn))


def _evidence(found: Map) -> tuple[tuple[Patch, ...], tuple[Patch, ...]]:
    """The strongest patches that speak for the explained class, and those that speak against it."""
    return strongest_patches(found.values, 1), strongest_patches(found.values, -1)


def _alt(stack: Stack, chosen: Sequence[str]) -> str:
    said = "; ".join(f"{name}: {spoken(stack.maps[name].verdict)}" for name in chosen)
    return f"The image and, over it, these maps. {said}." if said else "The image without a map."


def _explained(
    stack: Stack, chosen: Sequence[str], found: Mapping[str, tuple[tuple[Patch, ...], tuple[Patch, ...]]]
) -> None:
    """The verdict on each map shown with its reason, then where its evidence lies, against the class first."""
    for remark in stack.remarks:
        markup.show(markup.muted(remark))
    if not chosen:
        return
    rows = []
    for name in chosen:
        verdict, top = stack.maps[name].verdict, images.scale_of(stack.maps[name].values)
        rows.append([name, map_badge(verdict), verdict.sentence, f"{top:.3g}".replace("-", "−")])
    markup.show(markup.table(["Map", "May it be believed?", "Why", "Full colour at"], rows, right=(3,)))
    if not found:
        return
    lines = [line for name in chosen for line in _patch_rows(name, stack.maps[name], *found[name])]
    columns = ["Map", "Patch", "Says", "Rows", "Columns", "Share of such evidence in the map"]
    markup.show(
        markup.gap(), markup.subheading("What speaks against the explained class, and what for it"),
        markup.muted(_PATCHES), markup.table(columns, lines, right=(5,)),
    )  # fmt: skip


_PATCHES = (
    "Patches are connected pixels whose smoothed evidence is at least a third of the strongest. They tell where a map is strong; "
    "whether the map may be believed stands above."
)


def _patch_rows(
    name: str, found: Map, supporting: Sequence[Patch], opposing: Sequence[Patch]
) -> list[tuple[object, ...]]:
    words = "speaks for it" if found.signed else "matters, for or against"
    rows = [_patch_row(name, f"−{place}", "speaks against it", patch) for place, patch in enumerate(opposing, start=1)]
    rows += [_patch_row(name, f"+{place}", words, patch) for place, patch in enumerate(supporting, start=1)]
    return rows or [(name, "–", "says nothing: the map is zero", "–", "–", "–")]


def _patch_row(name: str, mark: str, words: str, patch: Patch) -> tuple[object, ...]:
    rows, columns = (f"{first} to {last}" for first, last in (patch.rows, patch.columns))
    return name, mark, words, rows, columns, f"{100 * patch.share:.1f} %"
