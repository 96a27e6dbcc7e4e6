"""Audits of stored scores: any probabilities, labels, patients and groups, with no image and no pass."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from xvision.audit import Audit
from xvision.data.dataset import AuditDataset
from xvision.data.scores import without_images
from xvision.data.sources import ArraySource
from xvision.methods.decision import Decision
from xvision.models.predictions import PredictionsClassifier


def scored(
    probabilities: np.ndarray,
    labels: np.ndarray,
    split: np.ndarray | None = None,
    *,
    columns: Mapping[str, np.ndarray] | None = None,
    patients: np.ndarray | None = None,
    predicted: np.ndarray | None = None,
    threshold: float = 0.5,
    names: tuple[str, ...] | None = None,
) -> Audit:
    """probabilities: (N,) of the second of two classes, or (N, K). labels: (N,) codes. split: (N,) names, "test" unless given.

    predicted: (N,) which cases have a prediction. Two classes are decided at the threshold, more by the largest probability.
    Columns are groups but "site", an acquisition. names: of the classes, class0 and so on unless given.
    """
    both = probabilities if probabilities.ndim == 2 else np.column_stack([1 - probabilities, probabilities])
    cases, size = both.shape
    classes = names or tuple(f"class{code}" for code in range(size))
    ids = [f"case-{place:05d}" for place in range(cases)]
    table = pd.DataFrame(
        {
            "label": [classes[code] for code in labels],
            "patient": ids if patients is None else patients.astype(str),
            "split": "test" if split is None else split,
            **(columns or {}),
        },
        index=pd.Index(ids, name="id"),
    ).astype("str")
    kept = np.ones(cases, dtype=bool) if predicted is None else predicted
    known = tuple(np.array(ids)[kept].tolist())
    model = PredictionsClassifier("scores.csv", "id", known, classes, both[kept], multilabel=False)
    source = ArraySource([], np.zeros((0, 1, 8, 8), np.float32))
    declared = patients is not None
    data = without_images(AuditDataset(table, tuple(columns or {}), source, patients_declared=declared))
    decision = Decision(1, threshold, True) if size == 2 else Decision()
    groups = tuple(name for name in columns or {} if name != "site")
    acquisition = ("site",) if "site" in (columns or {}) else ()
    return Audit(model, data, decision, 3, groups=groups, acquisition=acquisition, task="scored")


def halves(cases: int) -> np.ndarray:
    """(cases,) the split of each: the first half "validation", the second "test"."""
    return np.where(np.arange(cases) < cases // 2, "validation", "test")
