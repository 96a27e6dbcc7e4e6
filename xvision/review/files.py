"""The files of a review queue: tables that a spreadsheet opens safely, and manifests that fine-tuning takes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from xvision.data.dataset import AuditDataset
from xvision.data.paths import resolve_inside
from xvision.errors import RunError
from xvision.store import write_atomic

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
OWN = ("pseudo", "confidence", "source")
"""Columns that a manifest of pseudo-labels adds to those of every manifest."""
UNFINISHED = (".lock", "work", "images", "queue.csv", "label_issues.csv", "pseudo_labels.csv", "training.csv")
"""What an interrupted review queue may leave."""


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would compute a cell instead of showing it."""
    return text.startswith(_FORMULA)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A CSV in UTF-8 in which a cell that a spreadsheet would compute starts with an apostrophe."""
    safe = table.apply(lambda column: column.map(_safe)).rename(columns=_safe)
    write_atomic(path, safe.to_csv(index=False).encode())


def _safe(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and is_formula(cell) else cell


def refuse_other_content(out: Path) -> None:
    """RunError unless the folder is new, empty, or holds the unfinished work of an interrupted queue."""
    found = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file. Choose another --out.")
    if "queue.json" in found:
        raise RunError(f"{out} holds a finished review queue, perhaps with a reader's notes. Choose another --out.")
    others = [name for name in found if name not in UNFINISHED and not name.endswith(".tmp")]
    if others:
        raise RunError(f"{out} holds {others[0]!r}, which is no part of a review queue. Choose another --out.")


def manifest_rows(
    data: AuditDataset, ids: Sequence[str], labels: Sequence[str], confidence: Sequence[float] | None
) -> pd.DataFrame:
    """Rows of a training manifest; ``confidence`` is None for labels that were given, which keep their split."""
    table = data.table.loc[list(ids)]
    rows = pd.DataFrame({"image": table["image"], "label": list(labels), "patient": table["patient"]})
    rows["split"] = "train" if confidence is not None else table["split"]
    rows["text"] = table.get("text", "")
    rows["pseudo"] = "false" if confidence is None else "true"
    rows["confidence"] = [""] * len(rows) if confidence is None else [f"{value:.6f}" for value in confidence]
    rows["source"] = rows.index
    for name in data.groups:
        rows[name] = table[name]
    return rows


def own_names(rows: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """The rows under the plan's own column names; a column that the plan names and the rows lack is empty, ids are the images."""
    lacking = {name: rows["image"] if name == "id" else "" for name in names if name not in rows}
    return rows.assign(**lacking).rename(columns=dict(names))


def bring_images(rows: pd.DataFrame, root: Path, out: Path, prefix: str) -> tuple[pd.DataFrame, int]:
    """The rows with images under ``out/images``, and how many had to be copied because no second name could be given.

    A manifest's images must lie below it; a second name of the same file costs no space. root: folder of ``rows``'
    image paths. Raises RunError when a file cannot be brought.
    """
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    copied, names = 0, []
    for number, image in enumerate(rows["image"], start=1):
        target = folder / f"{prefix}-{number:06d}{Path(image).suffix.lower()}"
        copied += _bring(resolve_inside(root.resolve(), str(image)), target)
        names.append(f"images/{target.name}")
    return rows.assign(image=names), copied


def _bring(source: Path, target: Path) -> bool:
    """Whether the file had to be copied."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file that belongs to somebody else
        try:
            shutil.copyfile(source, target)
        except OSError as problem:
            raise RunError(
                f"{target}: the image {source} cannot be brought there ({problem.strerror}). Free space or choose another --out."
            ) from None
        return True
    return False
