"""Data for a predictions file: the table alone counts, and no image file need exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NoReturn

import numpy as np
import pandas as pd

from xvision.data.dataset import AuditDataset
from xvision.errors import DataError
from xvision.models.predictions import PredictionsClassifier
from xvision.models.protocols import InputSpec
from xvision.result import Check


def without_images(data: AuditDataset) -> AuditDataset:
    """The same cases; their images and masks are not looked at, also where they are there."""
    return replace(data, source=_NoImages())


class _NoImages:
    """An ImageSource that has none."""

    def pixels(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Raises DataError."""
        self._refuse(ids)

    def masks(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Raises DataError."""
        self._refuse(ids)

    def unreadable(self, ids: Sequence[str]) -> tuple[str, ...]:
        """None: nothing is read."""
        return ()

    def digests(self, ids: Sequence[str], content: Literal["image", "mask"]) -> tuple[str, ...]:
        """ "" for each: images do not count."""
        return ("",) * len(ids)

    def _refuse(self, ids: Sequence[str]) -> NoReturn:
        raise DataError(f"Only predictions are audited: the images of {len(ids)} cases are not looked at.")


def names_of(model: PredictionsClassifier, data: AuditDataset) -> list[str]:
    """What the predictions call each case of ``data``, in its order: the image where they name images, else the id."""
    return _names(model, data.table)


def _names(model: PredictionsClassifier, table: pd.DataFrame) -> list[str]:
    return [
        str(name) for name in (table["image"] if model.key == "image" and "image" in table.columns else table.index)
    ]


def match(model: PredictionsClassifier, data: AuditDataset) -> Check:
    """Every audited case has a prediction, and every prediction a case of the data; else an error with the first names."""
    predicted = set(model.names)
    everything = {*names_of(model, data), *_names(model, data.without_label)}
    missing = [name for name in names_of(model, data.audited) if name not in predicted]
    if missing:
        sentence = (
            f"{len(missing)} of {len(data.audited)} audited cases have no prediction, such as {missing[0]!r}: the column "
            f"{model.key} of the predictions must hold the data's own names ({model.names[0]!r} is one of theirs)."
        )
        return Check("predictions", "error", sentence, tuple(missing[:5]))
    extra = [name for name in model.names if name not in everything]
    if extra:
        sentence = f"{len(extra)} of {len(model.names)} predictions belong to no case of the data, such as {extra[0]!r}: remove them."
        return Check("predictions", "error", sentence, tuple(extra[:5]))
    return Check("predictions", "ok", f"Each of the {len(data.audited)} audited cases has one prediction.")
