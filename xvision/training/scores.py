"""How good the classifier is on validation images, and what plain pixels reach without it."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xvision.training.record import Arrays
from xvision.training.sampler import order

BASELINE_IMAGES, BASELINE_SIDE = 2000, 32
_ABSENT = -30.0
"""Log-odds of a class that the baseline's images lack."""


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
    """AUROC of ``pixel_logits``: an honesty control. Several findings: the mean over those in which it can be estimated."""
    drawn = train.labels[order(len(train.labels), seed, 0)[:BASELINE_IMAGES]]
    if drawn.ndim == 1 and len(np.unique(drawn)) < classes:
        return Auroc(None, "the images drawn for the baseline lack a class")
    return area(pixel_logits(train, validation, classes, seed), validation.labels)


def area(logits: np.ndarray, labels: np.ndarray) -> Auroc:
    """AUROC of logits (N, K) for labels (N,), or for labels (N, K) the mean over the findings in which it can be estimated."""
    if labels.ndim == 1:
        return auroc(softmax(logits, axis=1), labels)
    pairs = zip(logits.T, labels.T, strict=True)
    found = [auroc(np.stack((-column, column), axis=1), truth.astype(np.int64)).value for column, truth in pairs]
    known = [value for value in found if value is not None]
    return Auroc(float(np.mean(known))) if known else Auroc(None, "no finding has both present and absent images")


def pixel_logits(train: Arrays, images: Arrays, classes: int, seed: int) -> np.ndarray:
    """Logits (N, K) of a logistic regression on 32 × 32 pixels and at most 2,000 training images.

    It sees no shapes. A network that does not beat it has learned brightness, not anatomy.
    """
    chosen = order(len(train.labels), seed, 0)[:BASELINE_IMAGES]
    known, asked, labels = _small(train.pixels[chosen]), _small(images.pixels), train.labels[chosen]
    if labels.ndim == 1:
        return _regression(known, labels, asked, classes)
    columns = [_regression(known, labels[:, finding].astype(np.int64), asked, 2) for finding in range(classes)]
    return np.stack([column[:, 1] - column[:, 0] for column in columns], axis=1)


def _small(pixels: np.ndarray) -> np.ndarray:
    """Mean over channels at 32 × 32, one row per image, in [0, 1]."""
    scale = np.float32(255 if pixels.dtype == np.uint8 else 1)
    planes, side = pixels.mean(axis=1, dtype=np.float32) / scale, (BASELINE_SIDE, BASELINE_SIDE)
    return np.stack([np.asarray(Image.fromarray(plane).resize(side, Image.Resampling.BOX)).ravel() for plane in planes])


def _regression(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, classes: int) -> np.ndarray:
    logits = np.full((len(asked), classes), _ABSENT)
    present = np.unique(labels)
    if len(present) == 1:
        logits[:, present[0]] = 0.0
        return logits
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline stopped early is still a baseline
        fitted.fit(known, labels)
    found = fitted.decision_function(asked)
    logits[:, present] = np.stack((np.zeros_like(found), found), axis=1) if len(present) == 2 else found
    return logits
