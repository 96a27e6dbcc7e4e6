"""From labelled images on disk, however arranged, to an AuditDataset; every row is checked, no image is decoded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from xvision.data import findings
from xvision.data.bands import Bands, banded, check_bands
from xvision.data.dataset import ALL, UNKNOWN, AuditDataset, ImageSource
from xvision.data.hf_datasets import is_saved_dataset, read_saved_dataset
from xvision.data.npz import read_npz
from xvision.data.paths import resolve_inside
from xvision.data.sheets import SPLITS, STANDARD, Row, Sheet, read_csv, read_folder
from xvision.data.sources import Box, FileSource, parse_box
from xvision.errors import ConfigError, DataError, nearest

MISSING = findings.MISSING


def load_data(
    path: str | os.PathLike[str],
    *,
    groups: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    images_required: bool = True,
    multilabel: bool = False,
    bands: Mapping[str, Sequence[float]] | None = None,
) -> AuditDataset:
    """Read a manifest CSV, a folder that holds ``manifest.csv``, class folders ``[split/]class/image``, an npz archive in
    the layout of MedMNIST, or a folder that ``datasets`` wrote with ``save_to_disk``.

    groups: columns by which results are broken down; a missing value becomes the level "unknown". bands: column → edges
    that make groups of its numbers; a column of more than 12 numbers without edges is divided at its quartiles. columns: standard
    name → the file's own column name. split: keep only this split; leakage between splits then cannot be seen.
    images_required: False for models that are known by their scores only. multilabel: a label cell may name several
    findings, separated by ``|``; the empty cell, "none" and "no finding" are cases without any. Rows without a label are
    left out and counted in ``without_label``. Row numbers in messages
    count the header as row 1. Split names are lower-cased; "val", "valid", "dev", "training" and "testing" get their
    usual names. Raises ConfigError for an argument that names nothing, DataError for contents that cannot be used.
    """
    if isinstance(groups, str):
        raise ConfigError(f"groups is the text {groups!r}: give a list of column names, [{groups!r}].")
    names = tuple(dict.fromkeys(groups))
    columns = columns or {}
    _check_names(columns, names)
    check_bands(bands or {}, names)
    sheet = _read(Path(path), names, columns, multilabel, images_required)
    return _dataset(sheet, names, split, images_required, multilabel, bands or {})


def _read(
    location: Path, groups: tuple[str, ...], columns: Mapping[str, str], multilabel: bool, images_required: bool
) -> Sheet:
    """The cells of whatever lies there."""
    if not os.path.isdir(location):
        archive = location.suffix.lower() == ".npz" and os.path.isfile(location)
        return read_npz(location, groups, columns, multilabel) if archive else read_csv(location, groups, columns)
    if os.path.isfile(location / "manifest.csv"):
        return read_csv(location / "manifest.csv", groups, columns)
    if is_saved_dataset(location):
        return read_saved_dataset(location, groups, columns, multilabel, images_required)
    return read_folder(location, groups)


def _dataset(
    sheet: Sheet,
    groups: tuple[str, ...],
    split: str | None,
    images_required: bool,
    multilabel: bool,
    edges: Mapping[str, Sequence[float]],
) -> AuditDataset:
    _check_columns(sheet, images_required)
    labels = _findings(sheet) if multilabel else sheet.cells["label"]
    ids = pd.Index(_ids(sheet), name="id", dtype="str")
    rows = dict(zip(ids, sheet.cells.index, strict=True))
    bare = pd.Series(_unlabelled(sheet, multilabel).to_numpy(), index=ids)
    cells = sheet.cells.set_axis(ids, axis=0)
    lacking = _missing(cells["patient"]) if "patient" in cells else pd.Series(True, index=ids)
    table = pd.DataFrame({"label": labels.set_axis(ids)})
    table["patient"] = cells.get("patient", ids.to_series()).mask(lacking, ids.to_series())
    table["split"] = _splits(cells)
    bands: dict[str, Bands] = {}
    for name in groups:
        table[name], found = banded(cells[name], sheet.name, edges.get(name))
        if found is not None:
            bands[name] = found
            table[f"{name} as given"] = cells[name]
    for name in ("image", "mask", "bbox_xywh", "text"):
        if name in cells:
            table[name] = cells[name].mask(_missing(cells[name]), "") if name in ("mask", "bbox_xywh") else cells[name]
    table = (table if split is None else _chosen(table, split)).astype("str")
    bare = bare[table.index]
    table, without = (
        table[~bare],
        table.loc[bare, [name for name in ("image", "patient", "split", *groups) if name in table]],
    )
    return AuditDataset(
        table,
        groups,
        sheet.source or _source(sheet, table, rows, images_required),
        patients_declared="patient" in cells,
        without_patient=frozenset(ids[lacking] if "patient" in cells else ()),
        multilabel=multilabel,
        bands=bands,
        without_label=without,
    )


def _check_names(columns: Mapping[str, str], groups: tuple[str, ...]) -> None:
    for standard in columns:
        if standard not in STANDARD:
            raise ConfigError(f"columns names {standard!r}, which is no standard column. {nearest(standard, STANDARD)}")
    for name in groups:
        if name in STANDARD:
            raise ConfigError(f"{name!r} is a standard column and cannot be a group: copy it under another name.")


def _check_columns(sheet: Sheet, images_required: bool) -> None:
    image_needed = sheet.source is None and (images_required or "id" not in sheet.cells)
    for name in ("image", "label") if image_needed else ("label",):
        if name not in sheet.cells:
            raise DataError(
                f"{sheet.name} has no column {name!r}: rename one, or say in columns which one it is. "
                f"{nearest(name, sheet.columns)}"
            )


def _findings(sheet: Sheet) -> pd.Series[str]:
    """Label cells as findings in alphabetical order."""
    labels = sheet.cells["label"]
    for row, cell in zip(labels.index, labels, strict=True):
        fault = findings.fault(cell)
        if fault:
            raise DataError(f"{sheet.where(row)} {fault}.")
    return labels.map(findings.canonical)


def _unlabelled(sheet: Sheet, multilabel: bool) -> pd.Series[bool]:
    """Rows that say nothing of the label; where several findings may be named, an empty cell says that there is none."""
    labels = sheet.cells["label"]
    bare = _missing(labels) & (labels != "") if multilabel else _missing(labels)
    if bare.all():
        raise DataError(
            f"{sheet.where(bare.index[0])} has no label, and so have all other rows: name the column that holds the labels in columns."
        )
    return bare


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


def _source(sheet: Sheet, table: pd.DataFrame, rows: Mapping[str, Row], images_required: bool) -> ImageSource:
    """Paths and boxes of the kept rows, checked."""
    images = _paths(sheet, table, rows, "image", images_required)
    masks = _paths(sheet, table, rows, "mask", images_required)
    return FileSource(sheet.root, images, masks, _boxes(sheet, table, rows))


def _paths(sheet: Sheet, table: pd.DataFrame, rows: Mapping[str, Row], column: str, must_exist: bool) -> dict[str, str]:
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


def _boxes(sheet: Sheet, table: pd.DataFrame, rows: Mapping[str, Row]) -> dict[str, Box]:
    if "bbox_xywh" not in table:
        return {}
    cells = zip(table.index, table["bbox_xywh"], strict=True)
    return {case: parse_box(text, sheet.where(rows[case])) for case, text in cells if text}
