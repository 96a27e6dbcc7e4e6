"""What the search found, in the words and places of the audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase

import numpy as np
import pandas as pd

from xvision import text
from xvision.audit import Audit
from xvision.methods.slices.cases import SliceCases
from xvision.methods.slices.columns import Description, describe
from xvision.methods.slices.search import Search, Slice


@dataclass(frozen=True, eq=False)
class Found:
    """order: (N,) places in the audit of the cases searched, which are in the order of their ids."""

    audit: Audit
    order: np.ndarray
    cases: SliceCases
    columns: Mapping[str, np.ndarray]
    search: Search

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all slices checked: its levels, or a letter for a confirmed group of embeddings and a number for another."""
        names, letters = [], iter(ascii_uppercase)
        for place, item in enumerate(self.search.slices, 1):
            if item.candidate.kind == "columns":
                names.append(item.candidate.name)
            else:
                names.append(next(letters) if item.verdict == "confirmed" else f"candidate {place}")
        return tuple(names)

    def described(self, item: Slice) -> list[Description]:
        """Levels, and levels among the cases of one class, that are more frequent inside, on the confirm half."""
        half, labels = ~self.search.discover, self.cases.labels
        among = {
            f"{name} cases of {column}": np.where(labels == code, values, "")
            for code, name in enumerate(self.audit.classes)
            for column, values in self.columns.items()
        }
        columns = {name: values[half] for name, values in {**self.columns, **among}.items()}
        return describe(item.candidate.members[half], columns, self.cases.patients[half])

    def named(self, place: int) -> str:
        """A sentence that says what the columns say of a slice."""
        item, name = self.search.slices[place], self.names[place]
        if item.candidate.kind == "columns":
            return f"The columns of the table describe it: {name}."
        told = self.described(item)
        if not told:
            return f"No recorded column describes slice {name}: look at its images."
        return f"More frequent in slice {name}: {said(told)}."

    def mix(self, item: Slice) -> tuple[str, str]:
        """Labels and decisions inside, on the confirm half: "lesion 71 %, normal 29 %"."""
        own = ~self.search.discover & item.candidate.members
        return _shares(self.cases.labels[own], self.audit.classes), _shares(
            self.cases.decisions[own], self.audit.classes
        )


def _shares(codes: np.ndarray, classes: tuple[str, ...]) -> str:
    present, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return text.listing([f"{classes[present[place]]} {100 * counts[place] / len(codes):.0f} %" for place in order], 3)


def said(told: list[Description]) -> str:
    """``site B: 71 % inside, 12 % outside``."""
    return "; ".join(
        f"{text.condition({item.column: item.level})}: {100 * item.inside:.0f} % inside, {100 * item.outside:.0f} % outside"
        for item in told
    )


def table(audit: Audit, found: Found) -> pd.DataFrame:
    """One row per case and confirmed slice."""
    ids, search = audit.ids[found.order], found.search
    rows = [
        (str(ids[place]), name, "discover" if search.discover[place] else "confirm")
        for name, item in zip(found.names, search.confirmed, strict=False)
        for place in np.flatnonzero(item.candidate.members)
    ]
    return pd.DataFrame(rows, columns=["id", "slice", "half"], dtype="str")
