"""Folders that Hugging Face ``datasets`` wrote with ``save_to_disk``: the only door to that package.

Tables are mapped from the disk. Images stay packed until they are asked for and then go through the same decoder, with the
same limits, as image files; neither code from the folder nor an address on the network is followed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from xvision.data.findings import SEPARATOR
from xvision.data.images import Blob
from xvision.data.paths import resolve_inside
from xvision.data.sheets import Sheet, wanted
from xvision.data.sources import Box, Content, StoredSource, parse_box
from xvision.errors import ConfigError, DataError, MissingExtra, nearest

_DICT = "dataset_dict.json"
_TABLE = ("state.json", "dataset_info.json")
_MAX_JSON = 64 * 2**20
_UNLABELLED = "unknown"
# What datasets and pyarrow raise on folders that were not written by datasets, or were damaged since.
_DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError, RecursionError)


@dataclass(frozen=True)
class Table:
    """One table. name: for messages. key: its split, "" when it is the only one. stored: a Dataset that gives Arrow rows.

    wanted: our column name → the table's own.
    """

    name: str
    key: str
    stored: Any
    wanted: Mapping[str, str]

    @cached_property
    def rows(self) -> list[str]:
        """``split/row``, or ``row`` when there is one table; rows are counted from 0."""
        return [f"{self.key}/{row}" if self.key else str(row) for row in range(len(self.stored))]

    def feature(self, column: str) -> Any:
        """The type of one of our columns."""
        return self.stored.features[self.wanted[column]]

    def values(self, column: str) -> list[Any]:
        """One of our columns as Python values."""
        return [value for chunk in self._chunks(column) for value in chunk.to_pylist()]

    def images(self, column: str) -> list[str | None]:
        """For each row of an image column: "" when the image is stored here, else its path, None when there is none."""
        found: list[str | None] = []
        for chunk in self._chunks(column):
            parts = (chunk.is_valid(), chunk.field("bytes").is_valid(), chunk.field("path"))
            for there, stored, path in zip(*(part.to_pylist() for part in parts), strict=True):
                found.append(("" if stored else path or None) if there else None)
        return found

    def _chunks(self, column: str) -> list[Any]:
        """Parts of a column whose structure was checked, so that a damaged file cannot be read past its end."""
        values = self.stored[self.wanted[column]][:]
        try:
            values.validate(full=True)
        except ValueError as problem:
            raise DataError(f"{self.name}: the column {self.wanted[column]!r} is damaged ({problem}).") from problem
        return list(values.chunks)


class SavedSource(StoredSource):
    """Images and masks inside tables. places: id → table and row."""

    def __init__(
        self, root: Path, tables: Mapping[str, Table], places: Mapping[str, tuple[str, int]], boxes: Mapping[str, Box]
    ) -> None:
        super().__init__(boxes)
        self._root = root
        self._places = places
        self._columns: dict[tuple[str, str], Any] = {
            (key, content): table.stored.select_columns([table.wanted[content]])
            for key, table in tables.items()
            for content in ("image", "mask")
            if content in table.wanted
        }

    def _value(self, case: str, content: Content) -> dict[str, Any] | None:
        key, row = self._places.get(case, ("", -1))
        if row < 0 or (key, content) not in self._columns:
            return None
        cell: dict[str, Any] | None = self._columns[key, content][row].column(0)[0].as_py()
        return cell if cell and (cell["bytes"] is not None or cell["path"]) else None

    def _has(self, case: str, content: Content) -> bool:
        return self._value(case, content) is not None

    def _file(self, case: str, content: Content) -> Path | Blob:
        value = self._value(case, content)
        if value is None:
            raise DataError(f"Case {case!r} has no {content}.")
        if value["bytes"] is None:
            return resolve_inside(self._root, value["path"])
        return Blob(f"The {content} of case {case!r} in {self._root}", value["bytes"])


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder."""
    return os.path.isfile(folder / _DICT) or all(os.path.isfile(folder / name) for name in _TABLE)


def read_saved_dataset(
    folder: Path, groups: tuple[str, ...], columns: Mapping[str, str], multilabel: bool, images_required: bool
) -> Sheet:
    """The cases of a saved ``Dataset`` or ``DatasetDict``; the tables of the latter are the splits, whatever a column says.

    ``image`` and ``mask`` are Image columns. ``label`` holds class names (ClassLabel or text), class numbers, or, with
    ``multilabel``, lists of names. Ids are ``split/row`` unless there is an ``id`` column. Raises MissingExtra without the
    package, ConfigError for a column that was asked for and is not there, DataError for contents that cannot be used.
    """
    root = folder.resolve()
    tables = {table.key: table for table in _tables(root, groups, columns)}
    for table in tables.values():
        _check_columns(table, multilabel, images_required)
        _check_files(table, root, images_required)
    cells = _cells(tables)
    rows = [row for table in tables.values() for row in table.rows]
    if not rows:
        raise DataError(f"{root} has no rows: a data set needs at least one.")
    ids = cells["id"]
    places = dict(
        zip(ids, ((table.key, row) for table in tables.values() for row in range(len(table.rows))), strict=True)
    )
    cornered = zip(ids, rows, cells.get("bbox_xywh", [""] * len(ids)), strict=True)
    boxes = {case: parse_box(text, f"{root.name} row {row}") for case, row, text in cornered if text}
    frame = pd.DataFrame(cells, index=pd.Index(rows, dtype="str"), dtype="str")
    return Sheet(root.name, root, frame, tuple(cells), source=SavedSource(root, tables, places, boxes))


def _tables(root: Path, groups: tuple[str, ...], columns: Mapping[str, str]) -> Iterator[Table]:
    keyed = os.path.isfile(root / _DICT)
    if keyed and "split" in columns:
        raise ConfigError(f"{root.name}: the tables of a DatasetDict are its splits; remove split from columns.")
    for key in dict.fromkeys(_names(root / _DICT, "splits") if keyed else [""]):
        name = f"{root.name}, {key}" if keyed else root.name
        stored = _load(_inside(root, key, root / _DICT) if keyed else root)
        own = list(stored.column_names)
        found = {ours: own[place] for ours, place in wanted(own, name, groups, columns).items()}
        yield Table(name, key, stored, {ours: theirs for ours, theirs in found.items() if not keyed or ours != "split"})


def _load(folder: Path) -> Any:
    """A table with Arrow rows; every file that it is made of lies in its folder."""
    try:
        from datasets import Dataset  # type: ignore[import-untyped]  # ships no types
    except ImportError:
        raise MissingExtra("datasets", "datasets", f"the data set {folder}") from None
    for name in _names(folder / "state.json", "_data_files"):
        _inside(folder, name, folder / "state.json")
    try:
        return Dataset.load_from_disk(str(folder), keep_in_memory=False).with_format("arrow")
    except _DAMAGE as problem:
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise DataError(
            f"{folder} is no readable saved data set ({reason}): save it again with save_to_disk."
        ) from problem


def _names(path: Path, key: str) -> list[str]:
    """The texts, or the file names, that a JSON file lists under ``key``."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise DataError(f"{path} has more than {_MAX_JSON // 2**20} MiB: it was not written by save_to_disk.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise DataError(
            f"{path} is no readable JSON file ({type(problem).__name__}): save the data set again."
        ) from problem
    items = found.get(key) if isinstance(found, dict) else None
    names = (
        [item.get("filename") if isinstance(item, dict) else item for item in items] if isinstance(items, list) else []
    )
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} lists nothing under {key!r}: the data set is empty or damaged, save it again.")
    return [str(name) for name in names]


def _check_columns(table: Table, multilabel: bool, images_required: bool) -> None:
    """Columns that are needed are there, and each is of a type that can be read."""
    for column in ("image", "label") if images_required else ("label",):
        if column not in table.wanted:
            raise DataError(
                f"{table.name} has no column {column!r}: rename one, or say in columns which one it is. "
                f"{nearest(column, table.stored.column_names)}"
            )
    for column, theirs in table.wanted.items():
        if not _readable(column, table.feature(column)):
            needed = "Image" if column in ("image", "mask") else "text, numbers or ClassLabel"
            raise DataError(
                f"{table.name}: the column {theirs!r} is {table.feature(column)}, but {needed} is needed: cast_column it."
            )
    if hasattr(table.feature("label"), "feature") and not multilabel:
        raise ConfigError(
            f"{table.name}: the column {table.wanted['label']!r} holds lists: set multilabel = true under [data]."
        )


def _readable(column: str, feature: Any) -> bool:
    """Whether a column of this type can be read; lists of bare numbers may be names or flags, so as labels they cannot."""
    from datasets import ClassLabel, Image, LargeList, List, Value

    if column in ("image", "mask"):
        return isinstance(feature, Image)
    if column in ("label", "bbox_xywh") and isinstance(feature, List | LargeList):
        item = feature.feature
        names = isinstance(item, ClassLabel) or (isinstance(item, Value) and item.dtype in ("string", "large_string"))
        return names if column == "label" else isinstance(item, Value)
    return isinstance(feature, ClassLabel | Value)


def _check_files(table: Table, root: Path, images_required: bool) -> None:
    """Every case has an image, and images that are not stored in the table are files inside the folder."""
    for column in ("image", "mask"):
        found = table.images(column) if column in table.wanted else []
        for row, path in zip(table.rows, found, strict=False):
            needed = images_required or column == "mask"
            if path is None and column == "image" and needed:
                raise DataError(f"{root.name} row {row} has no image: fill it in or remove the row.")
            if path and not os.path.isfile(_inside(root, path, f"{root.name} row {row}, {column}")) and needed:
                raise DataError(
                    f"{root.name} row {row}: the {column} file {path!r} does not exist under {root}: restore it."
                )


def _inside(root: Path, name: str, where: object) -> Path:
    try:
        return resolve_inside(root, name)
    except DataError as error:
        raise DataError(f"{where}: {error}.") from None


def _cells(tables: Mapping[str, Table]) -> dict[str, list[str]]:
    """Cells by our column name; a column that only some tables have is empty in the others."""
    names = dict.fromkeys(name for table in tables.values() for name in table.wanted if name not in ("image", "id"))
    cells: dict[str, list[str]] = {"id": [], **{name: [] for name in names}}
    for key, table in tables.items():
        cells["id"] += _texts(table, "id") if "id" in table.wanted else table.rows
        for name in names:
            cells[name] += _texts(table, name) if name in table.wanted else [""] * len(table.rows)
        if key:
            cells.setdefault("split", []).extend([key] * len(table.rows))
    return cells


def _texts(table: Table, column: str) -> list[str]:
    """Cells of one of our columns; "" where there is no value."""
    if column == "mask":
        return ["" if path is None else path or "(stored)" for path in table.images("mask")]
    feature = table.feature(column)
    item = getattr(feature, "feature", None)
    if item is None:
        return [_text(value, feature, column) for value in table.values(column)]
    if column == "label":
        listed = zip(table.values(column), table.rows, strict=True)
        return [_several(items, item, f"{table.name}: row {row}") for items, row in listed]
    return ["" if items is None else ",".join(map(str, items)) for items in table.values(column)]


def _several(items: list[Any] | None, feature: Any, where: str) -> str:
    """A list of findings as a cell; a list that is not there, or has gaps, is no case without findings."""
    names = [_text(item, feature, "label") for item in items or ()]
    if items is None or "" in names:
        return _UNLABELLED
    mixed = [name for name in names if SEPARATOR in name]
    if mixed:
        raise DataError(f"{where}: the finding {mixed[0]!r} holds {SEPARATOR!r}, which separates findings: rename it.")
    return SEPARATOR.join(names)


def _text(value: Any, feature: Any, column: str) -> str:
    if value is None:
        return ""
    known = getattr(feature, "names", None)
    if known is not None:
        return str(known[value]).strip() if 0 <= value < len(known) else ""
    return str(int(value) if column == "label" and isinstance(value, bool) else value).strip()
