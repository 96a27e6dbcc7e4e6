"""How unlike the images a model was made for an image is, and how well that tells two sets of images apart.

Every score is higher for a more unlike image; in every figure the outside images are the positive ones unless it says
otherwise. Shapes: N cases, M cases of the reference, K classes, D width of the embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh, solve_triangular
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from xvision.errors import ConfigError, DataError
from xvision.methods.intervals import Estimate, binary, bootstrap, not_estimable, patient_codes, with_width
from xvision.methods.scores import missing_class, ranked, ratio

_ROUNDING = 1e-9


def msp(logits: np.ndarray) -> np.ndarray:
    """(N,) one minus the maximum softmax probability (Hendrycks and Gimpel 2017), without saturating at 0."""
    ordered = np.sort(_matrix(logits, "logits"), axis=1)
    return np.asarray(np.exp(logsumexp(ordered[:, :-1], axis=1) - logsumexp(ordered, axis=1)))


def max_logit(logits: np.ndarray) -> np.ndarray:
    """(N,) minus the largest logit (Hendrycks et al. 2022); it depends on what is added to all logits of a case."""
    return np.asarray(-_matrix(logits, "logits").max(axis=1))


def energy(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(N,) free energy -T logsumexp(z / T) (Liu et al. 2020); it depends on what is added to all logits of a case."""
    return np.asarray(-temperature * logsumexp(_matrix(logits, "logits") / temperature, axis=1))


def feature_norm(embeddings: np.ndarray) -> np.ndarray:
    """(N,) minus the length of the embedding: unfamiliar images tend to have shorter ones (Vaze et al. 2022)."""
    return np.asarray(-np.linalg.norm(_matrix(embeddings, "embeddings"), axis=1))


class Gaussian(NamedTuple):
    """Means (C, D) and the lower Cholesky factor (D, D) of the covariance they share; shrinkage: towards a round one."""

    means: np.ndarray
    factor: np.ndarray
    shrinkage: float

    def distances(self, embeddings: np.ndarray) -> np.ndarray:
        """(N,) the squared Mahalanobis distance to the nearest mean (Lee et al. 2018).

        By class, minus the distance to all classes as one Gaussian, it is the relative distance of Ren et al. (2021), from which
        drops out what all images share.
        """
        white = solve_triangular(self.factor, _matrix(embeddings, "embeddings").T, lower=True).T
        centres = solve_triangular(self.factor, self.means.T, lower=True).T
        return np.asarray(cdist(white, centres, "sqeuclidean").min(axis=1))


def gaussian(embeddings: np.ndarray, labels: np.ndarray | None = None, *, shrinkage: float | None = None) -> Gaussian:
    """One Gaussian per class with a shared covariance, or one for all; fitted on the reference.

    embeddings: (M, D). labels: (M,). shrinkage: 0 takes the covariance as it is, None as much as Ledoit and Wolf (2004)
    estimate to be best, which keeps it invertible with fewer cases than dimensions. Raises DataError where it is not.
    """
    values = _matrix(embeddings, "embeddings")
    codes = np.zeros(len(values), dtype=int) if labels is None else np.unique(labels, return_inverse=True)[1]
    means = np.stack([values[codes == code].mean(axis=0) for code in range(codes.max() + 1)])
    residuals = values - means[codes]
    share = float(ledoit_wolf_shrinkage(residuals, assume_centered=True)) if shrinkage is None else shrinkage
    covariance = residuals.T @ residuals / len(values)
    covariance = (1 - share) * covariance
    covariance[np.diag_indices_from(covariance)] += share * float(np.square(residuals).mean())
    try:
        return Gaussian(means, np.linalg.cholesky(covariance), share)
    except np.linalg.LinAlgError:
        raise DataError(
            f"the covariance of {len(values)} embeddings of {values.shape[1]} dimensions has no inverse: they do not vary, or"
            " shrinkage is needed"
        ) from None


def knn(embeddings: np.ndarray, reference: np.ndarray, *, neighbours: int = 10) -> np.ndarray:
    """(N,) distance to the ``neighbours``-th nearest case of the reference, all embeddings of length 1 (Sun et al. 2022)."""
    points = normalize(_matrix(reference, "embeddings"))
    if not 1 <= neighbours <= len(points):
        raise ConfigError(
            f"found {neighbours} neighbours for a reference of {len(points)} cases: give from 1 to that many"
        )
    found = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(points)
    distances, _ = found.kneighbors(normalize(_matrix(embeddings, "embeddings")))
    return np.asarray(distances[:, -1])


class VirtualLogit(NamedTuple):
    """origin: (D,). main: (D, R) the reference's main directions. scale: of what lies outside them."""

    origin: np.ndarray
    main: np.ndarray
    scale: float

    def residuals(self, embeddings: np.ndarray) -> np.ndarray:
        """(N,) the length outside the main directions."""
        centred = _matrix(embeddings, "embeddings") - self.origin
        return np.asarray(np.linalg.norm(centred - centred @ self.main @ self.main.T, axis=1))

    def scores(self, embeddings: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """(N,) the virtual logit minus logsumexp of the others."""
        return np.asarray(self.scale * self.residuals(embeddings) + energy(logits))


def vim(reference: np.ndarray, logits: np.ndarray) -> VirtualLogit:
    """Virtual-logit matching (Wang et al. 2022), fitted on the reference's embeddings (M, D) and logits (M, K).

    The length of an embedding outside the reference's main directions, scaled so that its mean over the reference is the mean
    largest logit there, is a logit of its own. The mean of the reference is the origin, so that the head need not be linear; the
    main directions are half of the rank, at most 512, or 1000 from 2048 dimensions on. Raises DataError where nothing lies
    outside them or the largest logits are negative.
    """
    values = _matrix(reference, "embeddings")
    origin = values.mean(axis=0)
    centred = values - origin
    spread, directions = eigh(centred.T @ centred / len(values))
    rank = int((spread > max(spread[-1], 0.0) * len(spread) * np.finfo(float).eps).sum())
    main = directions[:, ::-1][:, : min(rank // 2, 1000 if len(spread) >= 2048 else 512)]
    unscaled = VirtualLogit(origin, main, 1.0)
    typical, largest = float(unscaled.residuals(values).mean()), float(_matrix(logits, "logits").max(axis=1).mean())
    if rank < 2 or typical <= 0 or largest <= 0:
        raise DataError(
            f"no virtual logit: the reference's embeddings have rank {rank} and its largest logits a mean of {largest:.3g}"
        )
    return unscaled._replace(scale=largest / typical)


def fpr_at_tpr(
    scores: np.ndarray,
    outside: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    share: float = 0.95,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Share of outside images that pass when ``share`` of the ordinary ones do.

    scores, outside, patients: (N,). The threshold is the smallest score that lets that share of the ordinary images pass, those
    of equal score with it. Identical sets: ``share``, or more with ties; 0 is best. Here alone the ordinary images are the
    positive ones, as is usual. Patient bootstrap, which moves the threshold, too; Wilson where all resamples are equal.
    """
    truth = binary(outside, "outside")
    codes, count = patient_codes(patients, len(truth))
    if missing_class(truth):
        return not_estimable("no outside images" if not truth.any() else "no ordinary images", count)
    order = np.argsort(ranked(scores, len(truth)), kind="stable")
    ascending, strange = np.asarray(scores, float)[order], truth[order]
    ends = np.flatnonzero(np.append(ascending[1:] != ascending[:-1], True))

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, order]
        ordinary = np.cumsum(drawn * ~strange, axis=1)[:, ends]
        passing = np.cumsum(drawn * strange, axis=1)[:, ends]
        wanted = share * ordinary[:, -1:] - _ROUNDING
        place = (ordinary < wanted).sum(axis=1)
        passed = np.where(ordinary[:, -1] > 0, passing[np.arange(len(drawn)), np.minimum(place, len(ends) - 1)], 0)
        return ratio(passed.astype(float), np.where(ordinary[:, -1] > 0, passing[:, -1], 0))

    found = bootstrap(statistic, codes, rng=rng, resamples=resamples, level=level)
    return with_width(found, len(np.unique(codes[truth])), level)


def _matrix(values: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values, float)
    if array.ndim != 2 or array.shape[1] < 1 or not np.isfinite(array).all():
        raise DataError(
            f"{name} of shape {array.shape} are no finite table of cases and columns; leave out what is not finite"
        )
    return array
