"""The data set under audit: one table by case id, and a source that decodes images only when asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import pandas as pd

from xvision.data.findings import names_in
from xvision.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from xvision.data.bands import Bands
    from xvision.models.protocols import InputSpec

UNKNOWN = "unknown"
ALL = "all"
TEST = "test"
_REQUIRED = ("label", "patient", "split")


class ImageSource(Protocol):
    """Where pixels and masks come from. Ids are those of the table; an unknown id is a DataError."""

    def pixels(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Pixels (B, C, H, W) float32 in [0, 1] as ``spec`` wants them."""

    def masks(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Masks (B, H, W) bool, resized like the pixels; a box is a filled rectangle."""

    def unreadable(self, ids: Sequence[str]) -> tuple[str, ...]:
        """One sentence per image whose header cannot be read; pixels are not decoded."""

    def digests(self, ids: Sequence[str], content: Literal["image", "mask"]) -> tuple[str, ...]:
        """SHA-256 of the stored bytes of each case's image or mask; "" where there is none."""


@dataclass(frozen=True, eq=False)
class AuditDataset:
    """Cases with labels, patients, splits and groups.

    table: index ``id`` (unique str); columns ``label``, ``patient``, ``split`` and every group, all str, with the level
    ``"unknown"`` where a group value is missing; optionally ``image``, ``mask``, ``bbox_xywh`` and ``text`` ("" where
    missing). patients_declared: False when the data named no patient, so that every image counts as a patient of its
    own. without_patient: the ids that had to count as their own patient although others were declared. multilabel: a
    label names any number of findings in alphabetical order, separated by ``|``; "" is a case without any. bands: how
    columns of numbers became groups. without_label: patient, split, groups and image of cases that were left out for that.
    cells: once one finding was chosen, all that each case has, by id.
    """

    table: pd.DataFrame
    groups: tuple[str, ...]
    source: ImageSource
    patients_declared: bool = True
    without_patient: frozenset[str] = frozenset()
    multilabel: bool = False
    bands: Mapping[str, Bands] = field(default_factory=dict)
    without_label: pd.DataFrame = field(default_factory=pd.DataFrame)
    cells: pd.Series[str] | None = None

    def __post_init__(self) -> None:
        missing = [name for name in (*_REQUIRED, *self.groups) if name not in self.table.columns]
        if missing:
            raise DataError(f"The data table has no column {missing[0]!r}. {nearest(missing[0], self.table.columns)}")
        repeated = self.table.index[self.table.index.duplicated()]
        if len(repeated):
            raise DataError(f"The id {repeated[0]!r} occurs more than once: ids must be unique.")

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> tuple[str, ...]:
        """Case ids in the order of the table."""
        return tuple(self.table.index)

    @property
    def audited(self) -> AuditDataset:
        """The split "test" where there is one, else all cases."""
        return self.split(TEST) if (self.table["split"] == TEST).any() else self

    def subset(self, ids: Sequence[str]) -> AuditDataset:
        """The named cases in the given order; raises DataError for an id that is not there or is named twice."""
        absent = [case for case in ids if case not in self.table.index]
        if absent:
            raise DataError(
                f"There is no case with the id {absent[0]!r} ({len(absent)} of {len(ids)} ids are unknown)."
            )
        return replace(self, table=self.table.loc[list(ids)])

    def split(self, name: str) -> AuditDataset:
        """The cases of one split; raises ConfigError when no case belongs to it."""
        chosen = self.table["split"] == name
        if not chosen.any():
            raise ConfigError(f"No case belongs to the split {name!r}. {nearest(name, set(self.table['split']))}")
        return replace(self, table=self.table[chosen])

    def pixels(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Pixels (B, C, H, W) float32 in [0, 1], decoded now; raises DataError naming a file that cannot be read."""
        return self.source.pixels(ids, spec)

    @property
    def has_mask(self) -> pd.Series[bool]:
        """Whether a case has a mask file or a box, by id."""
        marked = pd.Series(False, index=self.table.index, name="has_mask")
        for column in ("mask", "bbox_xywh"):
            if column in self.table.columns:
                marked |= self.table[column] != ""
        return marked

    def masks(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Masks (B, H, W) bool at the model's input size; raises DataError for a case without mask and box."""
        marked = self.has_mask
        bare = [case for case in ids if not marked.get(case, False)]
        if bare:
            raise DataError(f"Case {bare[0]!r} has neither a mask nor a box ({len(bare)} of {len(ids)} asked for).")
        return self.source.masks(ids, spec)

    def label_codes(self, classes: Sequence[str]) -> np.ndarray:
        """Labels as int64 positions (N,) in ``classes``; a label is a class name or the digits of its position.

        A name wins over a position. Raises DataError for a label that is neither, and for multi-label data.
        """
        if self.multilabel:
            raise DataError(
                "These labels name several findings at once, so they are no classes: choose one finding "
                f"(decision.positive in a plan, data.finding(NAME) in Python). Found: {', '.join(self.findings) or 'none'}."
            )
        codes = _positions(classes)
        strange = self.table["label"][~self.table["label"].isin(list(codes))]
        if len(strange):
            raise DataError(
                f"Case {strange.index[0]!r} has the label {strange.iloc[0]!r}, which is no class of the model "
                f"({len(strange)} of {len(self)} cases have such labels). {nearest(strange.iloc[0], classes)}"
            )
        return self.table["label"].map(codes).to_numpy(dtype=np.int64)

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings that these cases have, in alphabetical order; raises DataError for single-label data."""
        self._need_multilabel()
        return tuple(sorted({name for cell in self.table["label"].unique() for name in names_in(cell)}))

    def finding(self, name: str) -> AuditDataset:
        """The same cases with the labels ``NAME`` where the finding is there and ``"no NAME"`` where it is not.

        Masks stay as they are: one may mark another finding of the same image. Raises DataError for single-label data
        and for a finding that no case has.
        """
        known = self.findings
        if name not in known:
            raise DataError(f"No case has the finding {name!r}. {nearest(name, known)}")
        present = {cell: name if name in names_in(cell) else f"no {name}" for cell in self.table["label"].unique()}
        table = self.table.assign(label=self.table["label"].map(present).astype("str"))
        return replace(self, table=table, multilabel=False, cells=self.table["label"])

    @property
    def whole(self) -> AuditDataset | None:
        """The same cases with all findings that they have, of which one was chosen; None where none was."""
        if self.cells is None:
            return None
        table = self.table.assign(label=self.cells.loc[self.table.index])
        return replace(self, table=table, multilabel=True, cells=None)

    def label_matrix(self, classes: Sequence[str]) -> np.ndarray:
        """Findings (N, K) float32: 1 where the case has the finding of ``classes`` (or the digits of its position).

        A name wins over a position. Raises DataError for single-label data and for a finding that is neither.
        """
        known = self.findings
        codes = _positions(classes)
        strange = [name for name in known if name not in codes]
        if strange:
            having = self.table.index[[strange[0] in names_in(cell) for cell in self.table["label"]]]
            raise DataError(
                f"Case {having[0]!r} has the finding {strange[0]!r}, which is no class of the model "
                f"({len(having)} of {len(self)} cases have it). {nearest(strange[0], classes)}"
            )
        matrix = np.zeros((len(self), len(classes)), dtype=np.float32)
        for row, cell in enumerate(self.table["label"]):
            matrix[row, [codes[name] for name in names_in(cell)]] = 1.0
        return matrix

    def _need_multilabel(self) -> None:
        if not self.multilabel:
            raise DataError(
                "These labels name one class each, no findings: set multilabel = true under [data] when a label may name "
                "several findings separated by '|'."
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the rows of the table in their order and the content of every image and mask of these cases."""
        kind = ["several findings a case"] if self.multilabel else []
        digest = hashlib.sha256(json.dumps([*self.table.columns, *kind]).encode())
        if self.cells is not None:
            digest.update(json.dumps(self.cells.loc[self.table.index].tolist()).encode())
        images = self.source.digests(self.ids, "image")
        masks = self.source.digests(self.ids, "mask")
        for case, image, mask in zip(self.table.itertuples(name=None), images, masks, strict=True):
            digest.update(json.dumps([*case, image, mask]).encode())
        return digest.hexdigest()


def _positions(classes: Sequence[str]) -> dict[str, int]:
    """Position of each class by its name and by its digits; a name wins."""
    codes = {str(position): position for position in range(len(classes))}
    return codes | {name: position for position, name in enumerate(classes)}
