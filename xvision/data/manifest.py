"""From a manifest CSV or a folder of class folders to an AuditDataset; every row is checked, no image is decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from xvision.data.dataset import ALL, UNKNOWN, AuditDataset
from xvision.data.paths import resolve_inside
from xvision.data.sheets import SPLITS, STANDARD, Sheet, read_csv, read_folder
from xvision.data.sources import Box, FileSource
from xvision.errors import ConfigError, DataError, nearest

# "none" is not among them: "device: none" is a finding, not a gap.
MISSING = frozenset({"", "na", "n/a", "nan", "null", "unknown", "?"})
MAX_NUMERIC_LEVELS = 8


def load_data(
    path: str | os.PathLike[str],
    *,
    groups: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    images_required: bool = True,
) -> AuditDataset:
    """Read a manifest CSV, a folder that holds ``manifest.csv``, or class folders ``[split/]class/image``.

    groups: columns by which results are broken down; a missing value becomes the level "unknown". columns: standard
    name → the file's own column name. split: keep only this split; leakage between splits then cannot be seen.
    images_required: False for models that are known by their scores only. Row numbers in messages count the header as
    row 1. Split names are lower-cased; "val", "valid", "dev", "training" and "testing" get their usual names. Raises
    ConfigError for an argument that names nothing, DataError for contents that cannot be used.
    """
    if isinstance(groups, str):
        raise ConfigError(f"groups is the text {groups!r}: give a list of column names, [{groups!r}].")
    names = tuple(dict.fromkeys(groups))
    columns = columns or {}
    _check_names(columns, names)
    location = Path(path)
    manifest = location / "manifest.csv" if os.path.isdir(location) else location
    arranged = manifest != location and not os.path.isfile(manifest)
    sheet = read_folder(location, names) if arranged else read_csv(manifest, names, columns)
    return _dataset(sheet, names, split, images_required)


def _dataset(sheet: Sheet, groups: tuple[str, ...], split: str | None, images_required: bool) -> AuditDataset:
    _check_columns(sheet, images_required)
    _check_labels(sheet)
    ids = pd.Index(_ids(sheet), name="id", dtype="str")
    rows = dict(zip(ids, sheet.cells.index, strict=True))
    cells = sheet.cells.set_axis(ids, axis=0)
    lacking = _missing(cells["patient"]) if "patient" in cells else pd.Series(True, index=ids)
    table = pd.DataFrame({"label": cells["label"]})
    table["patient"] = cells.get("patient", ids.to_series()).mask(lacking, ids.to_series())
    table["split"] = _splits(cells)
    for name in groups:
        table[name] = _levels(cells[name], sheet.name)
    for name in ("image", "mask", "bbox_xywh", "text"):
        if name in cells:
            table[name] = cells[name].mask(_missing(cells[name]), "") if name in ("mask", "bbox_xywh") else cells[name]
    table = (table if split is None else _chosen(table, split)).astype("str")
    return AuditDataset(
        table,
        groups,
        _source(sheet, table, rows, images_required),
        patients_declared="patient" in cells,
        without_patient=frozenset(ids[lacking] if "patient" in cells else ()),
    )


def _check_names(columns: Mapping[str, str], groups: tuple[str, ...]) -> None:
    for standard in columns:
        if standard not in STANDARD:
            raise ConfigError(f"columns names {standard!r}, which is no standard column. {nearest(standard, STANDARD)}")
    for name in groups:
        if name in STANDARD:
            raise ConfigError(f"{name!r} is a standard column and cannot be a group: copy it under another name.")


def _check_columns(sheet: Sheet, images_required: bool) -> None:
    image_needed = images_required or "id" not in sheet.cells
    for name in ("image", "label") if image_needed else ("label",):
        if name not in sheet.cells:
            raise DataError(
                f"{sheet.name} has no column {name!r}: rename one, or say in columns which one it is. "
                f"{nearest(name, sheet.columns)}"
            )


def _check_labels(sheet: Sheet) -> None:
    empty = sheet.cells.index[_missing(sheet.cells["label"])]
    if len(empty):
        raise DataError(
            f"{sheet.where(empty[0])} has no label, and so have {len(empty) - 1} further rows: "
            "label the cases or remove the rows."
        )


def _ids(sheet: Sheet) -> list[str]:
    """The id column, else the image paths; refused when empty or repeated."""
    column = "id" if "id" in sheet.cells else "image"
    values = sheet.cells[column]
    empty = values.index[values == ""]
    if len(empty):
        raise DataError(f"{sheet.where(empty[0])} has no {column}: fill the cell or remove the row.")
    repeated = values[values.duplicated()]
    if len(repeated):
        first = values.index[values == repeated.iloc[0]][0]
        raise DataError(
            f"{sheet.where(repeated.index[0])} repeats the {column} {repeated.iloc[0]!r} of row {first}: "
            "every row needs an id of its own."
        )
    return list(values)


def _missing(values: pd.Series[str]) -> pd.Series[bool]:
    return values.str.lower().isin(MISSING)


def _splits(cells: pd.DataFrame) -> pd.Series[str]:
    if "split" not in cells:
        return pd.Series(ALL, index=cells.index, dtype="str")
    lowered = cells["split"].str.lower()
    return lowered.replace(SPLITS).mask(_missing(lowered), UNKNOWN)


def _chosen(table: pd.DataFrame, split: str) -> pd.DataFrame:
    name = SPLITS.get(split.lower(), split.lower())
    chosen = table[table["split"] == name]
    if chosen.empty:
        raise ConfigError(f"No case belongs to the split {split!r}. {nearest(name, set(table['split']))}")
    return chosen


def _levels(values: pd.Series[str], name: str) -> pd.Series[str]:
    """Levels of a group, "unknown" where missing; a column of many numbers is refused."""
    levels = values.mask(_missing(values), UNKNOWN)
    distinct = set(levels) - {UNKNOWN}
    if len(distinct) > MAX_NUMERIC_LEVELS and all(_is_number(level) for level in distinct):
        raise DataError(
            f"The group column {values.name!r} of {name} holds {len(distinct)} different numbers: bin it into a few "
            "bands in a new column (such as '<40', '40-59', '60+'), or put a letter before codes that are no numbers."
        )
    return levels


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _source(sheet: Sheet, table: pd.DataFrame, rows: Mapping[str, int], images_required: bool) -> FileSource:
    """Paths and boxes of the kept rows, checked."""
    images = _paths(sheet, table, rows, "image", images_required)
    masks = _paths(sheet, table, rows, "mask", must_exist=True)
    return FileSource(sheet.root, images, masks, _boxes(sheet, table, rows))


def _paths(sheet: Sheet, table: pd.DataFrame, rows: Mapping[str, int], column: str, must_exist: bool) -> dict[str, str]:
    """Id → relative path of a column, where it is filled; raises DataError for an unsafe path or missing files."""
    if column not in table:
        return {}
    paths: dict[str, str] = {case: text for case, text in zip(table.index, table[column], strict=True) if text}
    absent = []
    for case, text in paths.items():
        try:
            real = resolve_inside(sheet.root, text)
        except DataError as error:
            raise DataError(f"{sheet.where(rows[case])}, {column}: {error}.") from None
        if must_exist and not os.path.isfile(real):  # False where Path.is_file would raise
            absent.append(case)
    if absent:
        raise DataError(
            f"{sheet.where(rows[absent[0]])}: the {column} file {paths[absent[0]]!r} does not exist under {sheet.root}, "
            f"and {len(absent) - 1} further {column} files are missing: restore them or correct the paths."
        )
    empty = table.index[table[column] == ""]
    if column == "image" and must_exist and len(empty):
        raise DataError(f"{sheet.where(rows[empty[0]])} has no image: fill the cell or remove the row.")
    return paths


def _boxes(sheet: Sheet, table: pd.DataFrame, rows: Mapping[str, int]) -> dict[str, Box]:
    if "bbox_xywh" not in table:
        return {}
    cells = zip(table.index, table["bbox_xywh"], strict=True)
    return {case: _box(text, sheet.where(rows[case])) for case, text in cells if text}


def _box(text: str, where: str) -> Box:
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise DataError(f"{where}: bbox_xywh {text!r} is not four numbers 'x,y,width,height': correct it.") from None
    if not all(map(math.isfinite, (x, y, width, height))) or min(x, y) < 0 or min(width, height) <= 0:
        raise DataError(f"{where}: bbox_xywh {text!r} is no box: x, y ≥ 0 and width, height > 0 are needed.")
    return x, y, width, height
