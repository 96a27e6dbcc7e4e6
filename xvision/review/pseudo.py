"""The model's surest answers as labels for training, group by group, each group with a promise shown on labelled cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from xvision import text
from xvision.data.dataset import AuditDataset
from xvision.errors import ConfigError, DataError
from xvision.methods.pseudo_labels import Floor, confidence_floor
from xvision.review.files import OWN, bring_images, is_formula, manifest_rows, own_names, write_table
from xvision.review.scores import Scored

EVERYONE = "everyone"
Cell = tuple[str, str]
"""A group of patients and the class that the model decides."""


@dataclass(frozen=True)
class PseudoLabels:
    """Answers that may stand in for labels.

    chosen: positions among the unlabelled cases. floors: (group, decided class) → the confidence asked for. left: why
    the other cases got none → how many. note: how to train with them. copied: image files that could not be given a second
    name.
    """

    precision: float
    column: str | None
    chosen: np.ndarray
    floors: Mapping[Cell, Floor]
    left: Mapping[str, int]
    note: str | None = None
    copied: int = 0

    def __str__(self) -> str:
        total = len(self.chosen) + sum(self.left.values())
        lines = [
            f"Pseudo-labels: {text.number(len(self.chosen), 'count')} of {text.number(total, 'count')} unlabelled cases"
        ]
        for (group, label), floor in sorted(self.floors.items()):
            shown = f"from confidence {text.number(floor.value)}" if floor.reason is None else f"none ({floor.reason})"
            where = f"{self.column} {group}, {label}" if self.column else label
            lines.append(f"  {where}: {shown}")
        lines += [f"  {text.number(count, 'count')} left out: {why}" for why, count in self.left.items() if count]
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])


def check_pseudo(classes: Sequence[str], labelled: AuditDataset) -> None:
    """Refuses what pseudo-labels cannot be made for, before the model is run."""
    for name in classes:
        if is_formula(name):
            raise ConfigError(
                f"the class {name!r} starts with a sign that spreadsheets take for a formula, so pseudo-labels of it "
                "cannot be written: rename the class."
            )
    clash = [name for name in labelled.groups if name in OWN]
    if clash:
        raise ConfigError(
            f"the column {clash[0]!r} has the name of a column of pseudo_labels.csv: give it another name."
        )
    if not (labelled.table["split"] == "validation").any():
        raise DataError(
            "pseudo-labels need labelled cases of the split validation, to show how often the model is right; "
            f"found: {', '.join(sorted(set(labelled.table['split'])))}."
        )


def choose(known: Scored, asked: Scored, *, precision: float, column: str | None) -> PseudoLabels:
    """The unlabelled cases whose confidence reaches the floor of their group and decided class.

    A case gets none when its patient or its very image is in a labelled split that models are judged on.
    """
    judged = known.where(np.flatnonzero(np.isin(known.column("split"), ["validation", "test"])))
    floors = _floors(known.where(np.flatnonzero(known.column("split") == "validation")), asked, precision, column)
    limits = np.empty(len(asked.logits))
    for cell, floor in floors.items():
        limits[_members(asked, column, cell)] = np.inf if floor.value is None else floor.value
    seen = np.isin(asked.patients, judged.patients) & asked.data.patients_declared
    images = _digests(asked.data)
    same = np.isin(images, _digests(judged.data)) & (images != "") & ~seen
    free, sure = ~seen & ~same, asked.confidence >= limits
    left = {
        "their patient is in the validation or test split": int(seen.sum()),
        "the same image is in the validation or test split": int(same.sum()),
        "their group and class have no floor": int((free & np.isinf(limits)).sum()),
        "less confident than the floor": int((free & ~sure & np.isfinite(limits)).sum()),
    }
    return PseudoLabels(precision, column, np.flatnonzero(free & sure), floors, left)


def _floors(shown: Scored, asked: Scored, precision: float, column: str | None) -> dict[Cell, Floor]:
    """A floor for every group and decided class among the cases asked about."""
    levels = sorted(set(asked.column(column))) if column else [EVERYONE]
    floors: dict[Cell, Floor] = {}
    for cell in ((level, name) for level in levels for name in asked.question.classes):
        if _members(asked, column, cell).any():
            part = _members(shown, column, cell)
            right = (shown.decisions == shown.labels)[part]
            floors[cell] = confidence_floor(shown.confidence[part], right, shown.patients[part], precision=precision)
    return floors


def _members(scored: Scored, column: str | None, cell: Cell) -> np.ndarray:
    level, name = cell
    decided: np.ndarray = scored.decisions == scored.question.classes.index(name)
    return decided & (scored.column(column) == level) if column else decided


def _digests(data: AuditDataset) -> np.ndarray:
    return np.array(data.source.digests(data.ids, "image"))


class Roots(NamedTuple):
    """Folders that the image paths of labelled and unlabelled manifests start from."""

    known: Path
    asked: Path

    def holds(self, data: AuditDataset) -> bool:
        """Whether every labelled image is a file of its own."""
        return "image" in data.table and all((self.known / image).is_file() for image in data.table["image"])


def write_pseudo_labels(
    found: PseudoLabels, known: Scored, asked: Scored, roots: Roots, names: Mapping[str, str], out: Path
) -> PseudoLabels:
    """pseudo_labels.csv, and training.csv that holds the given labels too, with their images; the record of both.

    names: standard column → the plan's own name, which both files then have.
    """
    rows, copied = bring_images(_rows(found, known, asked), roots.asked, out, "pseudo")
    write_table(out / "pseudo_labels.csv", own_names(rows, names))
    if not roots.holds(known.data):
        note = "the labelled images are no files of their own, so no training.csv joins them with the pseudo-labels"
        return replace(found, copied=copied, note=note)
    given = manifest_rows(known.data, known.data.ids, list(known.data.table["label"]), None)
    given, more = bring_images(given, roots.known, out, "given")
    write_table(out / "training.csv", own_names(pd.concat([given, rows]), names))
    note = f"given labels and pseudo-labels together: xvision finetune PLAN.toml --data {out / 'training.csv'}"
    return replace(found, copied=copied + more, note=note)


def write_without_images(
    found: PseudoLabels, known: Scored, asked: Scored, names: Mapping[str, str], out: Path
) -> PseudoLabels:
    """pseudo_labels.csv with the paths of the unlabelled manifest, where no image may be brought along."""
    write_table(out / "pseudo_labels.csv", own_names(_rows(found, known, asked), names))
    note = "case_images is off, so no image was brought along: put pseudo_labels.csv beside the unlabelled manifest"
    return replace(found, note=note)


def _rows(found: PseudoLabels, known: Scored, asked: Scored) -> pd.DataFrame:
    """Pseudo-labels as a manifest, spelled like the given labels, which may be the digits of classes."""
    ids = [asked.data.ids[place] for place in found.chosen]
    spelling = dict(enumerate(asked.question.classes))
    spelling |= dict(zip(known.labels.tolist(), known.data.table["label"], strict=True))
    labels = [spelling[code] for code in asked.decisions[found.chosen].tolist()]
    return manifest_rows(asked.data, ids, labels, asked.confidence[found.chosen].tolist())
