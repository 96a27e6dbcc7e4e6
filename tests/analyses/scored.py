"""Audits of probabilities without images, for analyses that need nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from xvision.audit import Audit
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.methods.decision import Decision
from xvision.models.predictions import PredictionsClassifier


def scored(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    split: np.ndarray | None = None,
    patients: np.ndarray | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
    threshold: float = 0.5,
    names: tuple[str, ...] = ("normal", "lesion"),
) -> Audit:
    """probabilities: (N,) of the second of two classes, or (N, K). labels: (N,) class indices. split: "test" unless given."""
    count = len(labels)
    ids = [f"case-{place:05d}" for place in range(count)]
    both = probabilities if probabilities.ndim == 2 else np.column_stack([1 - probabilities, probabilities])
    table = pd.DataFrame(
        {
            "label": np.asarray(names)[labels],
            "patient": ids if patients is None else patients.astype(str),
            "split": "test" if split is None else split,
            **(columns or {}),
        },
        index=pd.Index(ids, name="id"),
    )
    source = ArraySource(ids, np.zeros((count, 1, 1, 1), np.float32))
    data = AuditDataset(table, tuple(columns or ()), source, patients_declared=patients is not None)
    model = PredictionsClassifier("scores.csv", "id", tuple(ids), names, both, False)
    decision = Decision(1, threshold, True) if both.shape[1] == 2 else Decision()
    return Audit(model, data, decision, 3, groups=tuple(columns or ()), task="scored")
