"""How good the classifier is on validation images, and what plain pixels reach without it."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xvision.training.record import Arrays
from xvision.training.sampler import order

BASELINE_IMAGES, BASELINE_SIDE = 2000, 32


class Auroc(NamedTuple):
    """Area under the ROC curve, or None and the reason why it cannot be estimated."""

    value: float | None
    reason: str | None = None


def auroc(probabilities: np.ndarray, labels: np.ndarray) -> Auroc:
    """AUROC of class 1 for two classes, else the mean of the one-against-the-rest AUROCs. probabilities: (N, K)."""
    classes = probabilities.shape[1]
    missing = sorted(set(range(classes)) - set(labels.tolist()))
    if missing:
        return Auroc(None, f"no image of class {missing[0]}")
    if classes == 2:
        return Auroc(float(roc_auc_score(labels, probabilities[:, 1])))
    return Auroc(float(roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")))


def majority_rate(train: np.ndarray, validation: np.ndarray, classes: int) -> float:
    """Accuracy on validation of always answering the commonest class of training, or the commoner state of each finding."""
    if train.ndim == 2:
        return float(np.mean(validation == (train.mean(axis=0) > 0.5)))
    return float(np.mean(validation == np.bincount(train, minlength=classes).argmax()))


def pixel_baseline(train: Arrays, validation: Arrays, classes: int, seed: int) -> Auroc:
    """AUROC of a logistic regression on 32 × 32 pixels and at most 2,000 training images: an honesty control.

    It sees no shapes. A network that does not beat it has learned brightness, not anatomy. Several findings: the mean over
    those in which it can be estimated.
    """
    chosen = order(len(train.labels), seed, 0)[:BASELINE_IMAGES]
    seen, asked = _small(train.pixels[chosen]), _small(validation.pixels)
    if train.labels.ndim == 1:
        return _fitted(seen, train.labels[chosen], asked, validation.labels, classes)
    areas = [
        _fitted(
            seen,
            train.labels[chosen, finding].astype(np.int64),
            asked,
            validation.labels[:, finding].astype(np.int64),
            2,
        )
        for finding in range(classes)
    ]
    known = [area.value for area in areas if area.value is not None]
    return Auroc(float(np.mean(known))) if known else areas[0]


def _fitted(seen: np.ndarray, labels: np.ndarray, asked: np.ndarray, truth: np.ndarray, classes: int) -> Auroc:
    if len(set(labels.tolist())) < classes:
        return Auroc(None, "the images drawn for the baseline lack a class")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline stopped early is still a baseline
        model.fit(seen, labels)
    return auroc(model.predict_proba(asked), truth)


def _small(pixels: np.ndarray) -> np.ndarray:
    """Mean over channels at 32 × 32, one row per image, in [0, 1]."""
    scale = np.float32(255 if pixels.dtype == np.uint8 else 1)
    planes = pixels.mean(axis=1, dtype=np.float32) / scale
    side = (BASELINE_SIDE, BASELINE_SIDE)
    return np.stack([np.asarray(Image.fromarray(plane).resize(side, Image.Resampling.BOX)).ravel() for plane in planes])
