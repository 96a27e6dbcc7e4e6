"""How much of a ranking a column of the table, such as site or scanner, can account for. Shapes: N cases, R resamples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xvision.errors import DataError
from xvision.methods.intervals import Estimate, binary, bootstrap, not_estimable, patient_codes, with_width
from xvision.methods.scores import missing_class, ranked, ratio


def stratified_auroc(
    scores: np.ndarray,
    labels: np.ndarray,
    strata: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Chance that a positive case scores above a negative case of the same stratum, ties counting half.

    scores, labels, strata, patients: (N,). All same-stratum pairs are pooled, so a stratum weighs by positives ×
    negatives (as van Elteren 1960 combines rank sums). What only separates the strata, such as a site with more
    disease, cannot raise it. Strata with one class hold no pair and are left out; n counts the patients of the others.
    """
    truth = binary(labels, "labels")
    values = ranked(scores, len(truth))
    codes, count = patient_codes(patients, len(truth))
    reason = missing_class(truth)
    if reason:
        return not_estimable(reason, count)
    _, stratum = np.unique(np.asarray(strata), return_inverse=True)
    if stratum.shape != truth.shape:
        raise DataError(f"{len(truth)} labels came with strata of shape {np.shape(strata)}; give one stratum per case")
    kept = ((np.bincount(stratum, truth) > 0) & (np.bincount(stratum, ~truth) > 0))[stratum]
    if not kept.any():
        return not_estimable("no stratum has both positive and negative cases", count)
    statistic = _concordance(values[kept], truth[kept], stratum[kept])
    estimate = bootstrap(statistic, codes[kept], rng=rng, resamples=resamples, level=level)
    units = min(len(np.unique(codes[kept & truth])), len(np.unique(codes[kept & ~truth])))
    return with_width(estimate, units, level)


def _concordance(scores: np.ndarray, labels: np.ndarray, strata: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    order = np.lexsort((scores, strata))
    ascending, positive, stratum = scores[order], labels[order], strata[order]
    new_stratum = np.append(True, stratum[1:] != stratum[:-1])
    ties = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]) | new_stratum)
    opens = np.flatnonzero(new_stratum[ties])
    own = np.cumsum(new_stratum[ties]) - 1

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, order]
        hits = np.add.reduceat(drawn * positive, ties, axis=1)
        misses = np.add.reduceat(drawn * ~positive, ties, axis=1)
        before = np.cumsum(misses, axis=1) - misses
        below = before - before[:, opens][:, own]
        pairs = np.add.reduceat(hits, opens, axis=1) * np.add.reduceat(misses, opens, axis=1)
        return ratio((hits * (below + misses / 2)).sum(axis=1), pairs.sum(axis=1))

    return statistic


def metadata_auroc(
    levels: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    folds: int = 5,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """How well one categorical column alone, without any image, predicts the label: an AUROC, 0.5 for no information.

    levels, labels, patients: (N,). The score of a case is the rate of positive labels at its level among the patients
    of the other folds, drawn towards their overall rate as if five more cases had shown it, so that a column with many
    levels is not rewarded for memorising. Only cases of the same fold are compared. The interval takes the rates as they are; for a
    column that says nothing it is too narrow, by up to a third, since the folds share their luck. A high value says that a shortcut
    is available, not that a model uses it (Zech et al. 2018).
    """
    truth = binary(labels, "labels")
    codes, count = patient_codes(patients, len(truth))
    names, column = np.unique(np.asarray(levels), return_inverse=True)
    reason = missing_class(truth) or ("only one level" if len(names) < 2 else None)
    if not reason and count < 2:
        reason = "fewer than 2 patients"
    if reason:
        return not_estimable(reason, count)
    fold = _patient_folds(truth, codes, min(folds, count), rng)
    rates = _held_out_rates(column, truth, fold)
    return stratified_auroc(rates, truth, fold, codes, rng=rng, resamples=resamples, level=level)


def _patient_folds(labels: np.ndarray, codes: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of each case (N,): patients dealt at random, those with a positive case spread evenly."""
    positive = np.bincount(codes, labels) > 0
    shuffled = rng.permutation(len(positive))
    dealt = np.empty(len(positive), int)
    dealt[shuffled[np.argsort(positive[shuffled], kind="stable")]] = np.arange(len(positive)) % folds
    return np.asarray(dealt[codes])


def _held_out_rates(column: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    smoothing = 5.0
    rates = np.empty(len(labels))
    size = int(column.max()) + 1
    for index in range(int(fold.max()) + 1):
        others, held = fold != index, fold == index
        cases = np.bincount(column[others], minlength=size)
        hits = np.bincount(column[others], labels[others], size)
        shrunk = (hits + smoothing * labels[others].mean()) / (cases + smoothing)
        rates[held] = shrunk[column[held]]
    return rates
