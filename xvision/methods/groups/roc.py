"""A ROC curve that can be drawn: few vertices, none of which the eye would miss."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_curve

from xvision.methods.intervals import binary


def thinned_roc(scores: np.ndarray, labels: np.ndarray, *, most: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates of at most ``most`` vertices, from (0, 0) to (1, 1).

    scores, labels: (N,) with both labels. Vertices are kept where the curve bends most: the one furthest from the line
    through those kept so far, again and again.
    """
    false, true, _ = roc_curve(binary(labels, "labels"), scores)
    along, across = false + true, true - false
    kept = np.array([0, len(along) - 1])
    while len(kept) < min(most, len(along)):
        away = np.abs(across - np.interp(along, along[kept], across[kept]))
        furthest = int(away.argmax())
        if away[furthest] < 1e-12:
            break
        kept = np.sort(np.append(kept, furthest))
    return false[kept], true[kept]
