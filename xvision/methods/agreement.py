"""Do several methods rank the units of an image alike? Pure functions on unit values.

Agreement is not correctness: methods that share an error agree on it. Every figure is per case and NaN where a method
gives all units of that case the same value, for such a method ranks nothing. Shapes: B cases, M methods, P units.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from xvision.errors import ConfigError, DataError


def kendall_w(values: np.ndarray) -> np.ndarray:
    """Concordance (B,) of all methods on each case: 1 is one ranking, 0 none in common (Kendall and Babington Smith 1939).

    values: (B, M, P). Ties take average ranks and the denominator is corrected for them. With M methods W is
    (1 + (M − 1) r) / M for the mean rank correlation r of their pairs where nothing ties, so rankings that have nothing
    to do with each other reach about 1 / M, not 0: read it beside ``pairwise_spearman``.
    """
    ranks = _ranks(values)
    methods, units = values.shape[1:]
    spread = ((ranks.sum(axis=1) - methods * (units + 1) / 2) ** 2).sum(axis=1)
    most = methods * ((ranks - (units + 1) / 2) ** 2).sum(axis=(1, 2))  # ties make it smaller: this is their correction
    return _where(np.asarray(~_constant(values).any(axis=1)), spread, most)


def pairwise_spearman(values: np.ndarray) -> np.ndarray:
    """Rank correlation (B, M, M) of every two methods on each case, average ranks for ties (Spearman 1904).

    values: (B, M, P). About 0 for rankings that have nothing to do with each other, 1 on the diagonal.
    """
    ranks = _ranks(values)
    centred = ranks - ranks.mean(axis=2, keepdims=True)
    products = np.einsum("bip,bjp->bij", centred, centred)
    lengths = np.sqrt(np.einsum("bii->bi", products))
    scale = lengths[:, :, None] * lengths[:, None, :]
    correlation: np.ndarray = np.clip(_where(_ranked_pairs(values), products, scale), -1.0, 1.0)
    return correlation


def top_overlap(values: np.ndarray, *, share: float = 0.1) -> np.ndarray:
    """Intersection over union (B, M, M) of the highest units of every two methods on each case.

    values: (B, M, P). share: of the units, rounded, at least one. Units that tie at the edge of the top share its last
    places in equal parts; intersection and union then are sums of the smaller and of the larger part. Two rankings
    that have nothing to do with each other reach about share / (2 − share), 0.05 for a tenth.

    Raises:
        ConfigError: a share that is not above 0 and at most 1.
    """
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"found share = {share}: the share of units on top must be above 0 and at most 1")
    top = _membership(values, max(1, round(share * _checked(values).shape[2])))
    shared = np.stack([np.minimum(top, top[:, [place]]).sum(axis=2) for place in range(top.shape[1])], axis=1)
    joined = np.stack([np.maximum(top, top[:, [place]]).sum(axis=2) for place in range(top.shape[1])], axis=1)
    return _where(_ranked_pairs(values), shared, joined)


def _membership(values: np.ndarray, count: int) -> np.ndarray:
    """(B, M, P) how much of each unit is among the ``count`` highest: 1, 0, or its part of the places that ties share."""
    edge = np.partition(values, -count, axis=2)[:, :, [-count]]
    above, tied = values > edge, values == edge
    left = count - above.sum(axis=2, keepdims=True)
    membership: np.ndarray = above + tied * (left / tied.sum(axis=2, keepdims=True))
    return membership


def _ranks(values: np.ndarray) -> np.ndarray:
    ranks: np.ndarray = rankdata(_checked(values), axis=2)
    return ranks


def _checked(values: np.ndarray) -> np.ndarray:
    if values.ndim != 3 or values.shape[1] < 2 or values.shape[2] < 2:
        raise DataError(
            f"found values of shape {values.shape}: agreement needs (B, M, P) with two methods and two units or more"
        )
    if not np.isfinite(values).all():
        place = np.argwhere(~np.isfinite(values))[0]
        raise DataError(f"method {place[1]} gives NaN or infinity for case {place[0]}: leave this case out")
    return values


def _constant(values: np.ndarray) -> np.ndarray:
    """(B, M) whether a method gives all units of a case the same value."""
    constant: np.ndarray = (values == values[:, :, :1]).all(axis=2)
    return constant


def _ranked_pairs(values: np.ndarray) -> np.ndarray:
    ranked = ~_constant(values)
    pairs: np.ndarray = ranked[:, :, None] & ranked[:, None, :]
    return pairs


def _where(defined: np.ndarray, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    result = np.full(part.shape, np.nan)
    np.divide(part, whole, out=result, where=defined)
    return result
