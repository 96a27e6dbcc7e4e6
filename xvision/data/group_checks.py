"""What a reader must know of the group and acquisition columns before any difference between groups is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from xvision import text
from xvision.data.dataset import UNKNOWN, AuditDataset
from xvision.result import Check

EXAMPLES = 5
MANY_LEVELS = 20
FEW_PATIENTS = 10
"""Fewer patients than that in a level give no comparison by default."""
PURE = 0.99
_LEAST_CASES = 20
_AS_CODES = "put a letter before numbers that are codes"


def group_checks(data: AuditDataset, acquisition: Sequence[str] = ()) -> Iterator[Check]:
    """Warnings about the group columns; one "ok" where there are columns and nothing is to be said.

    acquisition: those of the columns that say how an image was taken, in which a patient may have several levels.
    """
    personal = [column for column in data.groups if column not in acquisition]
    found = [
        *_without_label(data),
        *_bands(data),
        *_contradictions(data, personal),
        *_many_levels(data.audited),
        *_one_level(data.audited),
        *_tells_label(data.audited),
    ]
    yield from found
    if data.groups and not found:
        yield Check(
            "groups", "ok", f"{text.plural(len(data.groups), 'group column')} looked at: {', '.join(data.groups)}."
        )


def _without_label(data: AuditDataset) -> Iterator[Check]:
    """How many rows were left out because they have no label, and of whom."""
    left = data.without_label
    if left.empty:
        return
    evidence = []
    for column in data.groups:
        there = data.table[column].value_counts()
        parts = [
            f"{level} {count} of {count + there.get(level, 0)}"
            for level, count in left[column].value_counts().sort_index().items()
        ]
        evidence.append(f"{column}: {text.listing(parts)}")
    sentence = (
        f"{len(left)} of {len(left) + len(data)} cases have no label and were left out. Where labels are missing for a reason, the "
        "figures speak of other patients than the data."
    )
    yield Check("missing_labels", "warning", sentence, tuple(evidence[:EXAMPLES]))


def _bands(data: AuditDataset) -> Iterator[Check]:
    """Columns whose edges nobody named."""
    chosen = {column: bands for column, bands in data.bands.items() if not bands.declared}
    if chosen:
        evidence = [
            f"{column} = [{', '.join(f'{edge:g}' for edge in bands.edges)}] ({', '.join(bands.names)})"
            for column, bands in chosen.items()
        ]
        sentence = (
            f"{text.listing(list(chosen))}: many different numbers, divided into bands at the quartiles of these data. Name the edges "
            f"beforehand under [data.bands], such as {next(iter(chosen))} = [40, 60]; {_AS_CODES}."
        )
        yield Check("bands", "warning", sentence, tuple(evidence[:EXAMPLES]))


def _contradictions(data: AuditDataset, columns: Sequence[str]) -> Iterator[Check]:
    """Patients whose images disagree about who the patient is; an age in bands may change from one visit to the next."""
    if not data.patients_declared:
        return
    evidence, counts = [], []
    for column in (name for name in columns if name not in data.bands):
        known = data.table.loc[data.table[column] != UNKNOWN, ["patient", column]].drop_duplicates()
        repeated = known[known["patient"].duplicated(keep=False)].groupby("patient", sort=True)[column]
        evidence += [f"{patient}: {column} {' and '.join(sorted(levels))}" for patient, levels in repeated]
        counts += [f"{column} ({text.plural(len(repeated), 'patient')})"] if len(repeated) else []
    if evidence:
        sentence = (
            f"Images of the same patient disagree about {text.listing(counts)}: such a patient counts in each of the groups, "
            f"and intervals, which are by patient, stay valid. Correct the column where it should be one value."
        )
        yield Check("patients_in_two_groups", "warning", sentence, tuple(evidence[:EXAMPLES]))


def _many_levels(data: AuditDataset) -> Iterator[Check]:
    evidence = []
    for column in data.groups:
        sizes = data.table.groupby(column)["patient"].nunique()
        few = int((sizes < FEW_PATIENTS).sum())
        if len(sizes) > MANY_LEVELS and few:
            evidence.append(f"{column}: {few} of {len(sizes)} levels")
    if evidence:
        sentence = (
            f"Levels with fewer than {FEW_PATIENTS} audited patients cannot be compared, and here are many. Join them into fewer "
            f"levels; a column of measurements needs edges under [data.bands]. Found: {evidence[0]}."
        )
        yield Check("many_levels", "warning", sentence, tuple(evidence[:EXAMPLES]))


def _one_level(data: AuditDataset) -> Iterator[Check]:
    evidence = []
    for column in data.groups:
        levels = sorted(set(data.table[column]) - {UNKNOWN})
        if len(levels) < 2:
            evidence.append(f"{column}: {', '.join(levels) or 'nothing'} is all that is known")
    if evidence:
        sentence = f"Nothing can be compared in a column with fewer than two known levels among the audited cases. Found: {evidence[0]}."
        yield Check("one_level", "warning", sentence, tuple(evidence[:EXAMPLES]))


def _tells_label(data: AuditDataset) -> Iterator[Check]:
    """Columns whose levels hold almost nothing but one label each."""
    evidence = []
    for column in data.groups:
        counts = pd.crosstab(data.table[column], data.table["label"])
        shared = counts[counts.sum(axis=1) > 1]
        cases = int(shared.to_numpy().sum())
        if cases < _LEAST_CASES or len(set(np.asarray(shared.columns)[shared.to_numpy().argmax(axis=1)])) < 2:
            continue
        pure = int(shared.max(axis=1).sum())
        if pure >= PURE * cases:
            evidence.append(f"{column}: the commonest label of the level is that of {pure} of {cases} cases")
    if evidence:
        sentence = (
            "A column that all but tells the label: levels have no rates that need both classes, a difference between levels is one "
            f"between labels, and a model may read the label off the column. Found: {evidence[0]}."
        )
        yield Check("column_tells_label", "warning", sentence, tuple(evidence[:EXAMPLES]))
