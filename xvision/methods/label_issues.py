"""Which given labels are probably wrong, from probabilities that no case's own label has touched.

Shapes: N cases, D width, K classes. A low self-confidence says that a label disagrees with those of similar images of
other patients: it may be wrong, or right and rare. Only a reader can tell. The only door to cleanlab.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xvision.errors import DataError, MissingExtra
from xvision.methods.intervals import Estimate, bootstrap, not_estimable, patient_codes

NEARLY = 1e-6
"""A probability this close below a threshold counts as at it: a class whose cases all have one probability reaches it."""


class OutOfFold(NamedTuple):
    """probabilities: (N, K) float64, each case's from a model fitted without its patient. folds: (N,) which that was."""

    probabilities: np.ndarray
    folds: np.ndarray


@dataclass(frozen=True)
class LabelIssues:
    """Cases by how little their label is believed.

    order: (N,) positions, least believed first. self_confidence: (N,) out-of-fold probability of the given label.
    suggested: (N,) most probable class, which may be the given one. suspect: (N,) bool, counted off the diagonal of the
    confident joint. share: estimated share of wrong labels, see ``noise_share``.
    """

    order: np.ndarray
    self_confidence: np.ndarray
    suggested: np.ndarray
    suspect: np.ndarray
    share: Estimate

    @property
    def count(self) -> int | None:
        """Estimated number of wrong labels, None where it cannot be estimated."""
        return None if self.share.value is None else round(self.share.value * len(self.order))


class ConfidentJoint(NamedTuple):
    """guess: (N,) class that a case confidently belongs to, −1 where it is confident of none. counts: (K, K) given × guess."""

    guess: np.ndarray
    counts: np.ndarray


def patient_folds(labels: np.ndarray, patients: np.ndarray, *, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Fold of each case (N,): whole patients, dealt so that every class is spread over the folds.

    A patient with several classes is dealt by the rarest. Fewer folds are made when a class has fewer patients than
    that. Raises DataError where a class would be missing from what a model is fitted on.
    """
    truth = np.asarray(labels)
    codes, count = patient_codes(patients, len(truth))
    classes, given = np.unique(truth, return_inverse=True)
    owned = np.zeros((count, len(classes)), bool)
    owned[codes, given] = True
    sizes = owned.sum(axis=0)
    if len(classes) < 2:
        raise DataError(f"all {len(truth)} cases have the same label: there is nothing to compare it with")
    rarity = np.empty(len(classes), int)
    rarity[np.argsort(sizes, kind="stable")] = np.arange(len(classes))
    rarest = np.where(owned, rarity, len(classes)).min(axis=1)
    shuffled = np.random.default_rng(seed).permutation(count)
    used = max(2, min(folds, int(sizes.min())))
    dealt = np.empty(count, int)
    dealt[shuffled[np.argsort(rarest[shuffled], kind="stable")]] = np.arange(count) % used
    found = np.asarray(dealt[codes])
    _require_all_classes(given, found, classes, sizes)
    return found


def _require_all_classes(given: np.ndarray, folds: np.ndarray, classes: np.ndarray, sizes: np.ndarray) -> None:
    for fold in range(int(folds.max()) + 1):
        lacking = np.setdiff1d(np.arange(len(classes)), given[folds != fold])
        if len(lacking):
            rare = int(lacking[0])
            raise DataError(
                f"the label {str(classes[rare])!r} has {sizes[rare]} patients, too few to leave some out: label more of them"
            )


def out_of_fold(
    embeddings: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    classes: Sequence[str],
    folds: int = 5,
    seed: int = 0,
    strength: float = 1.0,
) -> OutOfFold:
    """Class probabilities of each case by logistic regression on the embeddings of other patients.

    embeddings: (N, D), frozen; scaled in each fold by what the fold is fitted on. labels: (N,) positions in
    ``classes``; a class without a case gets probability 0. strength: inverse of the L2 penalty. The embeddings may come
    from a model that was trained on the very labels: then it has already learned some of the errors, and fewer are
    found. Raises DataError when the embeddings are not finite numbers or a class is too rare to hold patients out.
    """
    features, truth = np.asarray(embeddings, float), np.asarray(labels)
    if features.ndim != 2 or len(features) != len(truth):
        raise DataError(f"{len(truth)} labels came with embeddings of shape {features.shape}: give one row per case")
    wrong = int((~np.isfinite(features)).any(axis=1).sum())
    if wrong:
        raise DataError(f"embeddings of {wrong} of {len(features)} cases are not finite: find the images that cause it")
    dealt = patient_folds(np.asarray(classes)[truth], patients, folds=folds, seed=seed)  # names, for its messages
    probabilities = np.zeros((len(truth), len(classes)))
    for fold in range(int(dealt.max()) + 1):
        held, others = dealt == fold, dealt != fold
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
        fitted.fit(features[others], truth[others])
        probabilities[np.ix_(held, fitted.classes_)] = fitted.predict_proba(features[held])
    return OutOfFold(probabilities, dealt)


def rank_label_issues(
    probabilities: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> LabelIssues:
    """Cases from the least to the most believed label, by self-confidence (Northcutt, Jiang and Chuang 2021).

    probabilities: (N, K), out of fold. labels: (N,) class indices. patients: (N,). Equal cases keep their order.
    """
    scores, truth = _checked(probabilities, labels)
    own = scores[np.arange(len(truth)), truth]
    joint = confident_joint(scores, truth)
    return LabelIssues(
        order=np.argsort(own, kind="stable"),
        self_confidence=own,
        suggested=scores.argmax(axis=1),
        suspect=(joint.guess >= 0) & (joint.guess != truth),
        share=noise_share(joint.guess, truth, patients, rng=rng, resamples=resamples),
    )


def confident_joint(probabilities: np.ndarray, labels: np.ndarray) -> ConfidentJoint:
    """Given labels against the classes that cases confidently belong to (Northcutt, Jiang and Chuang 2021).

    A case is confident of a class when its probability reaches the mean probability of that class among the cases that
    are labelled so; of several, the most probable. Cases confident of none are not counted.
    """
    scores, truth = _checked(probabilities, labels)
    size = scores.shape[1]
    members = np.bincount(truth, minlength=size)
    own = np.bincount(truth, scores[np.arange(len(truth)), truth], size)
    # A class that no label names cannot be told from its labels, so no case is confident of it.
    thresholds = np.where(members > 0, own / np.maximum(members, 1), np.inf)
    reached = scores >= thresholds - NEARLY
    guess = np.where(reached.any(axis=1), np.where(reached, scores, -1.0).argmax(axis=1), -1)
    counts = np.zeros((size, size), int)
    np.add.at(counts, (truth[guess >= 0], guess[guess >= 0]), 1)
    return ConfidentJoint(guess, counts)


def noise_share(
    guess: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> Estimate:
    """Estimated share of wrong labels: the confident joint off its diagonal, each row scaled to its label's cases.

    guess: (N,) as in ``confident_joint``. The interval is a patient bootstrap with the thresholds and probabilities as
    they are, so it holds the chance of who is in the data. Confident mistakes of the model count as wrong labels: where
    it is often wrong the share is too high.
    """
    truth, found = np.asarray(labels), np.asarray(guess)
    size = int(truth.max(initial=0)) + 1
    lacking = [code for code in np.unique(truth) if not ((truth == code) & (found >= 0)).any()]
    if lacking:
        return not_estimable(f"no case with label {lacking[0]} is confidently of any class", len(np.unique(patients)))
    estimate = bootstrap(_calibrated(truth, found, size), patients, rng=rng, resamples=resamples)
    return estimate._replace(method=f"calibrated confident joint, {estimate.method}") if estimate.method else estimate


def _calibrated(labels: np.ndarray, guess: np.ndarray, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Share off the diagonal for weights (R, N), NaN where a label that was drawn has no confident case."""
    rows = np.zeros((len(labels), size))
    rows[np.arange(len(labels)), labels] = 1.0
    counted, off = guess >= 0, (guess >= 0) & (guess != labels)

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn = weights.astype(float)
        total, sure, wrong = (drawn @ (rows * part[:, None]) for part in (np.ones(len(labels), bool), counted, off))
        with np.errstate(invalid="ignore", divide="ignore"):
            per_label = np.where(total > 0, total * wrong / sure, 0.0)
        return np.asarray(per_label.sum(axis=1) / total.sum(axis=1))

    return statistic


def require_cleanlab() -> Callable[..., np.ndarray]:
    """cleanlab's search for label issues; raises MissingExtra when it is not installed."""
    try:
        from cleanlab.filter import find_label_issues  # type: ignore[import-untyped]  # it ships no type information
    except ImportError:
        raise MissingExtra("cleanlab", "labels", "a second opinion on label issues") from None
    found: Callable[..., np.ndarray] = find_label_issues
    return found


def second_opinion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cases (N,) bool that cleanlab flags on the same probabilities, pruning by noise rate.

    Classes without a case are left out, as cleanlab asks. Raises MissingExtra when cleanlab is not installed.
    """
    find_label_issues = require_cleanlab()
    scores, truth = _checked(probabilities, labels)
    present, compact = np.unique(truth, return_inverse=True)
    kept = scores[:, present]
    kept = kept / np.maximum(kept.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    flagged = find_label_issues(compact, kept, n_jobs=1)
    return np.asarray(flagged, bool)


def _checked(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, truth = np.asarray(probabilities, float), np.asarray(labels)
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or not len(truth):
        raise DataError(
            f"probabilities of shape {scores.shape} came with labels of shape {truth.shape}: give one row per case"
        )
    if not ((scores >= 0) & (scores <= 1 + NEARLY)).all():
        raise DataError("probabilities must lie between 0 and 1: give probabilities, not logits")
    if truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise DataError(f"labels reach from {truth.min()} to {truth.max()} but there are {scores.shape[1]} classes")
    return scores, truth
