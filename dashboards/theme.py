"""How the dashboard looks: white, deep ink, one accent; the palette and the verdict colours are those of the report."""

from __future__ import annotations

from pathlib import Path

from xvision.images import GRID, INK, MUTED, PALETTE, VERDICT_COLOURS

ACCENT = PALETTE[0]
SURFACE = "#F5F7F9"
FONT = '"Source Sans", "Source Sans Pro", system-ui, sans-serif'
ICON = str(Path(__file__).parent / "icon.svg")
WORDMARK = str(Path(__file__).parent / "wordmark.svg")

STREAMLIT_THEME: dict[str, object] = {
    "theme.base": "light",
    "theme.primaryColor": ACCENT,
    "theme.backgroundColor": "#FFFFFF",
    "theme.secondaryBackgroundColor": SURFACE,
    "theme.textColor": INK,
    "theme.linkColor": ACCENT,
    "theme.borderColor": GRID,
    "theme.codeTextColor": INK,
    "theme.codeBackgroundColor": SURFACE,
    "theme.dataframeHeaderBackgroundColor": SURFACE,
    "theme.dataframeHeaderTextColor": MUTED,
    "theme.dataframeBorderColor": GRID,
    "theme.baseRadius": "8px",
    "theme.baseFontSize": 15,
    "theme.chartCategoricalColors": list(PALETTE),
    "theme.paddingTop": "1.25rem",
    "theme.paddingBottom": "4rem",
    "theme.sidebar.backgroundColor": SURFACE,
    "theme.sidebar.secondaryBackgroundColor": "#FFFFFF",
    "theme.sidebar.textColor": INK,
    "theme.sidebar.borderColor": GRID,
}


def tint(colour: str, share: float) -> str:
    """``colour`` (#RRGGBB) mixed into white; share 1 is the colour itself."""
    channels = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - channel) * share):02X}" for channel in channels)


def transparent(colour: str, opacity: float) -> str:
    """``colour`` (#RRGGBB) as rgba()."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def slug(verdict: str) -> str:
    """A verdict as part of a CSS class."""
    return verdict.replace(" ", "-")


def _verdict_rules() -> str:
    return "".join(
        f".xv-is-{slug(name)} {{ --xv-verdict: {colour}; --xv-tint: {tint(colour, 0.07)}; --xv-edge: {tint(colour, 0.28)}; }}\n"
        f'[class*="st-key-finding-{slug(name)}-"] {{ border-left: 5px solid {colour} !important; }}\n'
        for name, colour in VERDICT_COLOURS.items()
    )


STYLE = (
    f":root {{ --xv-ink: {INK}; --xv-muted: {MUTED}; --xv-grid: {GRID}; --xv-surface: {SURFACE}; --xv-accent: {ACCENT}; }}\n"
    + _verdict_rules()
    + (Path(__file__).parent / "style.css").read_text("utf-8")
)
