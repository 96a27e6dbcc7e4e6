"""Images that wait for a label: a manifest whose label column may be empty or missing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from xvision import text
from xvision.data.dataset import AuditDataset
from xvision.data.manifest import MISSING, load_data
from xvision.data.sheets import read_csv
from xvision.errors import ConfigError, DataError

_OPTIONAL = ("label", "split", "mask", "bbox_xywh", "text")


def load_unlabelled(
    path: str | os.PathLike[str],
    *,
    groups: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    bands: Mapping[str, Sequence[float]] | None = None,
) -> AuditDataset:
    """As ``load_data`` for a manifest CSV, or a folder that holds ``manifest.csv``, with the label "" where none is given.

    bands: as for ``load_data``. columns: standard name → the file's own column name, as in a plan for the labelled data;
    those of label, split, mask, bbox_xywh and text may be missing here. Raises ConfigError for another column that is not
    there, DataError for contents that cannot be used.
    """
    manifest = manifest_of(path)
    header = read_csv(manifest, (), {}).columns
    named = {ours: theirs for ours, theirs in (columns or {}).items() if ours not in _OPTIONAL or theirs in header}
    image = named.get("image", "image")
    if image not in header:
        raise ConfigError(f"{manifest.name} has no column {image!r}: an unlabelled manifest needs the images' paths.")
    # Every row needs some label to be read; the image's path is never empty, and the given labels replace it.
    data = load_data(manifest, groups=groups, columns={**named, "label": image}, bands=bands)
    if len(data.without_label):
        raise DataError(
            f"{manifest.name}: {text.plural(len(data.without_label), 'row')} without an image: fill the cells."
        )
    cells = read_csv(manifest, (), named).cells
    given = cells["label"] if "label" in cells else cells["image"].map(lambda _: "")
    labels = ["" if label.lower() in MISSING else label for label in given]
    return replace(data, table=data.table.assign(label=labels).astype({"label": "str"}))


def manifest_of(path: str | os.PathLike[str]) -> Path:
    """The CSV file itself; raises DataError for a folder without ``manifest.csv``."""
    location = Path(path)
    manifest = location / "manifest.csv" if location.is_dir() else location
    if manifest != location and not manifest.is_file():
        raise DataError(f"{location} holds no manifest.csv: list the unlabelled images in one, with the column image.")
    return manifest
