"""Where to look: groups of alike embeddings in which labels and answers differ. Shapes: N cases, d coordinates, K groups.

After the error-aware mixture of Domino (Eyuboglu 2022), written anew: groups are formed on coordinates beside which label and
predicted probability stand with a small weight. Whatever a group was formed on, cases are assigned to it by coordinates alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

Kind = Literal["mixture", "k-means", "direction"]
_COORDINATES = 64
_MANY_CLASSES = 20
_STARTS = 3
_FLOOR = 0.1
"""Least variance of a mixture's coordinate; coordinates have variance 1 on average."""
_SHRUNK = 0.3
"""Ridge of a direction, as a share of the variance of a feature."""


def coordinates(embeddings: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """(N, d) principal components, d at most 64, of standardised embeddings, with variance 1 on average over d.

    fit: positions of the cases by which mean, spread and components are found. No coordinate where all are alike.
    """
    seen = embeddings[fit].astype(np.float64)
    mean, spread = seen.mean(axis=0), seen.std(axis=0)
    varied = spread > 1e-6 * max(float(spread.max(initial=0.0)), 1e-12)
    kept = min(_COORDINATES, int(varied.sum()), max(2, len(fit) // 10))
    if not varied.any() or kept < 1:
        return np.zeros((len(embeddings), 0))
    standard = (embeddings[:, varied] - mean[varied]) / spread[varied]
    found = PCA(kept, svd_solver="full" if standard.shape[1] <= 1024 else "randomized", random_state=0).fit(
        standard[fit]
    )
    return np.asarray(found.transform(standard) / np.sqrt(found.explained_variance_.mean()))


def answers(labels: np.ndarray, probabilities: np.ndarray, weight: float) -> np.ndarray:
    """(N, a) label and predicted probabilities times the weight; of more than 20 classes the true one's probability alone."""
    classes = probabilities.shape[1]
    if classes > _MANY_CLASSES:
        return np.asarray(weight * probabilities[np.arange(len(labels)), labels][:, None])
    if classes == 2:
        return np.asarray(weight * np.column_stack([labels, probabilities[:, 1]]))
    truth = np.eye(classes)[labels]
    return np.asarray(weight * np.column_stack([truth, probabilities]))


@dataclass(frozen=True, eq=False)
class Groups:
    """count groups. form: the group (N,) of each case by everything that they were formed on. assign: coordinates (N, d) →
    log-weight (N, count) of each group by the coordinates alone."""

    kind: Kind
    count: int
    form: Callable[[], np.ndarray]
    assign: Callable[[np.ndarray], np.ndarray]


def clusters(places: np.ndarray, told: np.ndarray, fit: np.ndarray, count: int, seed: int) -> tuple[Groups, Groups]:
    """A diagonal Gaussian mixture and the k-means that it starts from, formed on the cases at ``fit`` of (N, d) and (N, a)."""
    joined, size = np.column_stack([places, told]), places.shape[1]
    means = KMeans(count, n_init=_STARTS, max_iter=100, random_state=seed).fit(joined[fit])
    mixture = _mixture(joined[fit], means.labels_, count, seed)
    centres, middles = means.cluster_centers_[:, :size], mixture.means_[:, :size]
    variances, weights = mixture.covariances_[:, :size], np.log(mixture.weights_)
    return (
        Groups(
            "mixture",
            count,
            lambda: mixture.predict(joined),
            lambda given: _density(given, middles, variances) + weights,
        ),
        Groups("k-means", count, lambda: means.predict(joined), lambda given: _nearness(given, centres)),
    )


def _mixture(seen: np.ndarray, labels: np.ndarray, count: int, seed: int) -> GaussianMixture:
    """Fitted from the groups of labels (N,), each of which has a case."""
    own = np.eye(count)[labels]
    sizes = own.sum(axis=0)[:, None]
    means = own.T @ seen / sizes
    variances = own.T @ seen**2 / sizes - means**2 + _FLOOR
    mixture = GaussianMixture(
        count,
        covariance_type="diag",
        weights_init=sizes[:, 0] / len(seen),
        means_init=means,
        precisions_init=1.0 / variances,
        init_params="random_from_data",
        reg_covar=_FLOOR,
        tol=1e-2,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(seen)


def direction(places: np.ndarray, surplus: np.ndarray, fit: np.ndarray, share: float) -> Groups:
    """Two groups: the rest, and the share of cases that lies furthest in the direction in which errors exceed what is expected.

    surplus: (N,) error less the error of comparable cases. The direction is a ridge regression of it on the coordinates and
    their squares, so that both an end and the outside of the cloud can be one (after Jain 2022, failures as directions).
    """
    centre, spread = _spread(_squared(places[fit]))
    seen = (_squared(places[fit]) - centre) / spread
    gram = seen.T @ seen + _SHRUNK * len(fit) * np.eye(seen.shape[1])
    slope = np.linalg.solve(gram, seen.T @ surplus[fit])
    cut = float(np.quantile(seen @ slope, 1 - share))

    def assign(given: np.ndarray) -> np.ndarray:
        along = ((_squared(given) - centre) / spread) @ slope
        return np.column_stack([np.zeros(len(given)), along - cut])

    return Groups("direction", 2, lambda: assign(places).argmax(axis=1), assign)


def _squared(given: np.ndarray) -> np.ndarray:
    return np.column_stack([given, given**2])


def _spread(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spread = features.std(axis=0)
    return features.mean(axis=0), np.where(spread > 0, spread, 1.0)


def _nearness(given: np.ndarray, centres: np.ndarray) -> np.ndarray:
    squares = (given**2).sum(axis=1)[:, None] - 2 * given @ centres.T + (centres**2).sum(axis=1)
    return np.asarray(-squares)


def _density(given: np.ndarray, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """(N, K) log-density of diagonal Gaussians without the constant."""
    precision = 1.0 / variances
    squares = given**2 @ precision.T - 2 * given @ (means * precision).T + (means**2 * precision).sum(axis=1)
    return np.asarray(-0.5 * (squares + np.log(variances).sum(axis=1)))


def strengths(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group (N,) of each case by log-weights (N, K), and by how much it beats the next best (N,)."""
    best = weights.argmax(axis=1)
    if weights.shape[1] < 2:
        return best, np.zeros(len(weights))
    top = np.partition(weights, -2, axis=1)
    return best, np.asarray(top[:, -1] - top[:, -2])
