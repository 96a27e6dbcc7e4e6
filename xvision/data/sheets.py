"""Tables of text cells from a CSV file, class folders or another container, before any of it is interpreted."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from xvision.data.images import SUFFIXES
from xvision.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from xvision.data.dataset import ImageSource

Row = int | str
STANDARD = ("image", "label", "patient", "split", "mask", "bbox_xywh", "text", "id")
SPLITS = {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "testing": "test",
}


@dataclass(frozen=True)
class Sheet:
    """Cells as stripped text.

    root: folder that paths are relative to. cells: one column per standard or group column that is there, index = row
    number, or ``split/row`` in a container of several tables. columns: what the file's own columns are called. numbered:
    False when rows are files, not lines. source: the images, where they are not files that the cells name.
    """

    name: str
    root: Path
    cells: pd.DataFrame
    columns: tuple[str, ...]
    numbered: bool = True
    source: ImageSource | None = None

    def where(self, row: Row) -> str:
        """The place of a row for a message."""
        return f"{self.name} row {row}" if self.numbered else self.name


def read_csv(path: Path, groups: tuple[str, ...], columns: Mapping[str, str]) -> Sheet:
    """The standard and group columns of a CSV file in UTF-8; the others are not kept.

    columns: standard name → own name. Row numbers count the header as row 1. Raises ConfigError for a column that was
    asked for and is not there, DataError for a file that is no such table.
    """
    if not os.path.isfile(path):
        raise DataError(f"There is no manifest or data folder at {path}: correct the path.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(rows, [])]
            own = wanted(header, path.name, groups, columns)
            numbers, cells = _cells(rows, len(header), list(own.values()), path.name)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: save the table as CSV in UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): make it readable.") from error
    except csv.Error as error:
        raise DataError(f"{path} is no well-formed CSV file ({error}): save the table as CSV again.") from error
    if not numbers:
        raise DataError(f"{path} has no data rows: a manifest needs a header and at least one row.")
    frame = pd.DataFrame(dict(zip(own, cells, strict=True)), index=pd.Index(numbers), dtype="str")
    return Sheet(path.name, path.parent.resolve(), frame, tuple(header))


def read_folder(root: Path, groups: tuple[str, ...]) -> Sheet:
    """Image files of ``class/image`` or ``split/class/image`` in the order of their names; hidden files do not count."""
    if groups:
        raise ConfigError(f"The folder {root} has no manifest.csv and so no column {groups[0]!r}: write a manifest.")
    found = sorted(
        Path(folder, name).relative_to(root)
        for folder, _, names in os.walk(root)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )
    depths = {len(path.parts) for path in found}
    if depths not in ({2}, {3}):
        raise DataError(
            f"The folder {root} holds neither manifest.csv nor images as class/image or split/class/image "
            f"({len(found)} images found): arrange it so or write a manifest."
        )
    cells = {"image": [path.as_posix() for path in found], "label": [path.parts[-2] for path in found]}
    if depths == {3}:
        cells["split"] = [_known_split(path.parts[0], root) for path in found]
    return Sheet(str(root), root.resolve(), pd.DataFrame(cells, dtype="str"), tuple(cells), numbered=False)


def wanted(header: list[str], name: str, groups: tuple[str, ...], columns: Mapping[str, str]) -> dict[str, int]:
    """Our column name → position in the file, for standard columns that are there and all groups."""
    if len(header) == 1 and ";" in header[0]:
        raise DataError(f"{name} seems to be separated by semicolons: save it separated by commas.")
    repeated = [column for column in header if header.count(column) > 1]
    if repeated:
        raise DataError(f"{name} has the column {repeated[0]!r} more than once: rename one of them.")
    for column in (*columns.values(), *groups):
        if column not in header:
            raise ConfigError(f"{name} has no column {column!r}. {nearest(column, header)}")
    own = {standard: columns.get(standard, standard) for standard in STANDARD} | {group: group for group in groups}
    return {ours: header.index(theirs) for ours, theirs in own.items() if theirs in header}


def _cells(rows: Iterator[list[str]], width: int, positions: list[int], name: str) -> tuple[list[int], list[list[str]]]:
    """Row numbers, and one list of stripped cells per position; blank lines are passed over but counted."""
    numbers: list[int] = []
    cells: list[list[str]] = [[] for _ in positions]
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != width:
            raise DataError(f"{name} row {number} has {len(row)} cells but the header has {width}: correct the row.")
        numbers.append(number)
        for column, position in zip(cells, positions, strict=True):
            column.append(row[position].strip())
    return numbers, cells


def _known_split(name: str, root: Path) -> str:
    if name.lower() not in {*SPLITS, *SPLITS.values()}:
        raise DataError(
            f"In split/class/image the folder {name!r} of {root} is no split: name it train, validation or test, "
            "or write a manifest when it is a class or a patient."
        )
    return name
