"""The maps of selected cases side by side, as a chart."""

from __future__ import annotations

from collections.abc import Sequence

from xvision.charts import Images
from xvision.result import Case


def side_by_side(title: str, labels: Sequence[str], stored: Sequence[Case]) -> tuple[Images, ...]:
    """One row per case: the image, then the map of each method by its label; nothing where there is nothing to show.

    A method that explains none of the cases has no column, and a case that lacks one of the others' maps no row.
    """
    drawn = [label for label in labels if any(label in case.pictures for case in stored)]
    pictures = ("image", *drawn)
    shown = tuple(case.id for case in stored if set(pictures) <= set(case.pictures))
    if not shown or not drawn:
        return ()
    return (Images(title, f"One row per case: the image, and the maps of {', '.join(drawn)}.", shown, pictures),)
